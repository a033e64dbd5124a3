/**
 * The smallest tokenizer that can be differentiated: 16 colours, each of 2 x 2 pixels, which its decoder blurs into
 * their neighbours. Its codes are the nearest colours, its codebook the colours themselves.
 */
import type { Grid, ImageTokenizer } from "../../src/tokenizers/index.js";
import { functional as F, full, keep, rand, type Tensor, tidy } from "../../src/torch/index.js";

export class ToyTokenizer implements ImageTokenizer {
  readonly codebookSize = 16;
  readonly downsample = 2;
  /** float32 `[16, 3]` in [-1, 1]. */
  readonly colours: Tensor = tidy(() => keep(rand([16, 3]).mul(2).sub(1)));
  /** What the decoder's step ahead asks for. */
  readonly quantize = { table: (): Tensor => this.colours };

  encode(images: Tensor): Tensor {
    return tidy(() => {
      const mean = F.avgPool2d(images, 2).flatten(2).transpose(1, 2); // [B, T, 3]
      return mean.unsqueeze(2).sub(this.colours).square().sum(-1).argmin(-1);
    });
  }

  decodeCode(codes: Tensor, [h, w]: Grid = [4, 4]): Tensor {
    return tidy(() => {
      const colours = F.embedding(codes, this.colours).transpose(1, 2); // [B, 3, T]
      return this.decode(colours.unflatten(2, [h, w]));
    });
  }

  /** float32 `[B, 3, h, w]` to `[B, 3, 2 h, 2 w]`, with a gradient. */
  decode = (quantized: Tensor): Tensor =>
    tidy(() => {
      const [b, , h, w] = quantized.dims(4);
      const large = F.interpolate(quantized, { size: [2 * h, 2 * w], mode: "nearest" });
      const blur = full([1, 1, 3, 3], 1 / 9);
      const planes = large.reshape(b * 3, 1, 2 * h, 2 * w);
      const blurred = F.conv2d(planes, blur, null, { padding: 1 }).reshape(b, 3, 2 * h, 2 * w);
      return large.mul(0.8).add(blurred.mul(0.2));
    });
}
