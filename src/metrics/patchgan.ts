/**
 * PatchGAN: a discriminator that judges patches of an image. As a metric it is frozen, from the training of a
 * tokenizer; that training has its losses (`trainers/tokenizer_losses.ts`).
 *
 * After Isola et al. 2017, "Image-to-Image Translation with Conditional Adversarial Networks", section 3.2.2, in the
 * form of VQGAN (Esser et al. 2021): not conditional, no sigmoid.
 */
import { BatchNorm2d, Conv2d, Module, Sequential, type Step } from "../nn/index.js";
import { call, expected, noGrad, readOptions, type Tensor, tidy } from "../torch/index.js";
import { atLeastFloat32, type ChunkOptions, checkImages, chunkOf, joined, ranges } from "./pairs.js";

const KERNEL = 4;
const SLOPE = 0.2;

/** Size of an {@link NLayerDiscriminator}. */
export interface DiscriminatorOptions {
  /** Channels of the first layer; doubled by each of the next, up to eightfold. 64 by default. */
  ndf?: number;
  /** Layers that halve the image. 3 by default, which makes patches of 70 x 70 pixels. */
  nLayers?: number;
}

/**
 * Logits of patches: positive where the patch looks real. With 3 layers, an image of 256 x 256 gives 30 x 30.
 *
 * Weights start as VQGAN's do. State-dict keys are `main.0.weight` to `main.11.bias`, as in the published
 * checkpoints. Training uses the batch's statistics, so that a logit there depends on the whole batch; `eval()`
 * before scoring.
 */
export class NLayerDiscriminator extends Module {
  readonly main: Sequential;
  readonly #minSize: number;

  constructor(options: DiscriminatorOptions = {}) {
    super();
    const { ndf = 64, nLayers = 3 } = readOptions<DiscriminatorOptions>("NLayerDiscriminator", [options], {
      names: { ndf: "number", nLayers: "number" },
    });
    for (const [name, value] of Object.entries({ ndf, nLayers })) {
      if (Number.isInteger(value) && value >= 1) continue;
      throw expected(`NLayerDiscriminator: ${name}`, "an integer of at least 1", value);
    }
    // The last two layers take away a pixel each.
    this.#minSize = 3 * 2 ** nLayers;
    const leaky = (x: Tensor): Tensor => x.leakyRelu(SLOPE);
    const width = (layer: number): number => ndf * Math.min(2 ** layer, 8);
    const steps: Step[] = [new Conv2d(3, ndf, KERNEL, { stride: 2, padding: 1 }), leaky];
    for (let layer = 1; layer <= nLayers; layer++) {
      const stride = layer < nLayers ? 2 : 1;
      const [from, to] = [width(layer - 1), width(layer)];
      steps.push(
        new Conv2d(from, to, KERNEL, { stride, padding: 1, bias: false }),
        new BatchNorm2d(to),
        leaky,
      );
    }
    this.main = new Sequential(...steps, new Conv2d(width(nLayers), 1, KERNEL, { padding: 1 }));
    noGrad(() => {
      for (const layer of this.main.steps) {
        if (layer instanceof Conv2d) call("aten::normal_", [layer.weight, 0, 0.02]);
        if (layer instanceof BatchNorm2d) call("aten::normal_", [layer.weight, 1, 0.02]);
      }
    });
  }

  /**
   * Logit of each patch.
   *
   * @param images - float `[N, 3, H, W]` in [-1, 1], at least 24 x 24 with 3 layers.
   * @returns `[N, 1, h, w]`, in autocast's dtype where that is on; no bounds.
   */
  forward(images: Tensor): Tensor {
    checkImages("NLayerDiscriminator", images);
    const [height, width] = [images.size(2), images.size(3)];
    if (Math.min(height, width) < this.#minSize) {
      const what = `images of at least ${this.#minSize} x ${this.#minSize}`;
      throw expected(
        "NLayerDiscriminator",
        what,
        `${height} x ${width}`,
        "Enlarge the images, or use fewer layers",
      );
    }
    return tidy(() => this.main.forward(images));
  }

  /**
   * Mean logit of each image: higher looks more real. It is the generator's hinge loss (Lim and Ye 2017,
   * "Geometric GAN") with its sign turned, image by image.
   *
   * @param options.chunk - images at a time; used only in `eval()`.
   * @returns float32 `[N]`.
   */
  score(images: Tensor, options: ChunkOptions = {}): Tensor {
    checkImages("NLayerDiscriminator.score", images);
    const chunk = chunkOf("NLayerDiscriminator.score", options, images.size(2), images.size(3));
    const step = this.training ? images.size(0) : chunk;
    return tidy(() => {
      const parts = ranges(images.size(0), step).map(([start, count]) =>
        tidy(() => atLeastFloat32(this.forward(images.narrow(0, start, count))).mean([1, 2, 3])),
      );
      return joined(parts);
    });
  }
}
