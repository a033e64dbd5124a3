/**
 * Images as an encoder was trained on them: resized, cut and normalised. TokLIP needs none of it, since its tokenizer reads
 * images.
 */
import { expected, functional as F, type Tensor, tensor, tidy } from "../torch/index.js";

/** How a family prepares images. */
export interface ImagePreprocessing {
  /** Pixels per side of the result, S. */
  readonly size: number;
  /** `shortest`: the shorter side becomes S and the middle is cut out. `squash`: both sides become S. */
  readonly resize: "shortest" | "squash";
  readonly interpolation: "bicubic" | "bilinear";
  /** Per channel, of values in [0, 1]. */
  readonly mean: readonly number[];
  readonly std: readonly number[];
}

/** Python's `round`: halves go to the even neighbour. */
function roundHalfEven(x: number): number {
  const low = Math.floor(x);
  return x - low === 0.5 ? low + (low % 2) : Math.round(x);
}

/** Rounded in value, halves up as Pillow does; the gradient passes as if it were not. */
function rounded(x: Tensor): Tensor {
  return x.add(x.detach().add(0.5).floor().sub(x.detach()));
}

function resizeTo(bytes: Tensor, size: readonly [number, number], mode: "bicubic" | "bilinear"): Tensor {
  if (bytes.size(2) === size[0] && bytes.size(3) === size[1]) return bytes;
  return rounded(F.interpolate(bytes, { size, mode, antialias: true }).clamp(0, 255));
}

/**
 * Prepare images for a vision tower.
 *
 * Images are taken as 8-bit images, as a file would hold them, before and after each resize, as the published processors do
 * with Pillow; single pixels differ from Pillow's by one level of 255. Gradients flow to the images.
 *
 * @param images - float `[N, 3, H, W]` in [-1, 1]; values outside are clamped.
 * @returns float32 `[N, 3, S, S]`, normalised.
 */
export function prepareImages(images: Tensor, spec: ImagePreprocessing): Tensor {
  const [, channels, height, width] = images.dims(4) as [number, number, number, number];
  if (channels !== 3) throw expected("prepareImages", "images of 3 channels", images);
  const { size, resize, interpolation, mean, std } = spec;
  return tidy(() => {
    const bytes = rounded(images.float().clamp(-1, 1).add(1).mul(127.5));
    const short = Math.min(height, width);
    const target: [number, number] =
      resize === "squash"
        ? [size, size]
        : ([height, width].map((side) => (side === short ? size : Math.trunc((size * side) / short))) as [
            number,
            number,
          ]);
    // Pillow resizes rows, rounds to 8 bits, then columns.
    const across = resizeTo(bytes, [height, target[1]], interpolation);
    const resized = resizeTo(across, target, interpolation);
    const [top, left] = target.map((side) => roundHalfEven((side - size) / 2)) as [number, number];
    const cut = resized.narrow(2, top, size).narrow(3, left, size);
    const device = images.device as "cpu";
    const perChannel = (values: readonly number[]): Tensor =>
      tensor([...values], { device }).reshape(1, 3, 1, 1);
    return cut.div(255).sub(perChannel(mean)).div(perChannel(std));
  });
}
