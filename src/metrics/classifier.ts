/**
 * A small residual network that classifies images of 28 to 64 px. Its features serve the perceptual distance and the measures
 * of sets of images. `trainers/classifier.ts` trains it.
 *
 * Residual blocks of He et al. 2016, "Deep Residual Learning for Image Recognition", section 3, with group
 * normalisation (Wu and He 2018), whose results do not depend on the batch, and with shortcuts that average before
 * their 1 x 1 convolution (He et al. 2019, "Bag of Tricks", ResNet-D).
 */
import { Conv2d, GroupNorm, Linear, Module } from "../nn/index.js";
import { expected, functional as F, noGrad, readOptions, type Tensor, tidy } from "../torch/index.js";
import { relu_ } from "./backbones.js";
import type { FeatureNetwork } from "./features.js";
import { checkImages, joined, ranges } from "./pairs.js";

/** Channels that are normalised together. */
const GROUP = 8;

/** Pixels that {@link FeatureClassifier.describe} takes at a time: what fits into a processor's cache. */
const PIXELS_AT_A_TIME = 2 ** 16;

/** Configuration of a {@link FeatureClassifier}: plain data, stored with its weights. */
export interface ClassifierConfig {
  /** K, at least 2. */
  readonly numClasses: number;
  /** Names of the classes in the order of their ids; numbers by default. */
  readonly classNames?: readonly string[];
  /**
   * Channels at the images' own size and at each halving of it, multiples of 8; the last is the width of the features.
   * `[32, 48, 96, 128]` by default.
   */
  readonly widths?: readonly number[];
  /** Residual blocks after each halving. 1 by default. */
  readonly depth?: number;
}

/** Two 3 x 3 convolutions beside a shortcut: x `[N, in, h, w]` to `[N, out, h / stride, w / stride]`, not negative. */
class ResidualBlock extends Module {
  readonly conv1: Conv2d;
  readonly norm1: GroupNorm;
  readonly conv2: Conv2d;
  readonly norm2: GroupNorm;
  readonly shortcut: Conv2d | null;
  readonly #stride: number;

  constructor(inChannels: number, outChannels: number, stride: number) {
    super();
    this.conv1 = new Conv2d(inChannels, outChannels, 3, { stride, padding: 1, bias: false });
    this.norm1 = new GroupNorm(outChannels / GROUP, outChannels);
    this.conv2 = new Conv2d(outChannels, outChannels, 3, { padding: 1, bias: false });
    this.norm2 = new GroupNorm(outChannels / GROUP, outChannels);
    const isSame = inChannels === outChannels && stride === 1;
    this.shortcut = isSame ? null : new Conv2d(inChannels, outChannels, 1, { bias: false });
    this.#stride = stride;
  }

  forward(x: Tensor): Tensor {
    return tidy(() => {
      const inner = relu_(this.norm1.forward(this.conv1.forward(x)));
      const change = this.norm2.forward(this.conv2.forward(inner));
      // An odd last row or column is averaged with nothing, as the convolution has it.
      const smaller = this.#stride === 1 ? x : F.avgPool2d(x, this.#stride, { ceilMode: true });
      return relu_(change.add(this.shortcut?.forward(smaller) ?? smaller));
    });
  }
}

/**
 * The network: a 3 x 3 convolution at the images' own size, then stages that each halve it, the mean over positions, and
 * one linear layer. Any size from 8 px on; with the default widths 0.4 million parameters.
 *
 * State-dict keys: `stem.weight`, `norm.*`, `blocks.<stage>.<block>.{conv1,norm1,conv2,norm2,shortcut}.*`, `head.*`.
 */
export class FeatureClassifier extends Module implements FeatureNetwork {
  /** Printed beside every number that it gives; `openClassifier` puts the file's name in. */
  name = "feature classifier";
  readonly config: Required<ClassifierConfig>;
  readonly stem: Conv2d;
  readonly norm: GroupNorm;
  readonly blocks: readonly (readonly ResidualBlock[])[];
  readonly head: Linear;

  /**
   * Weights are random, those of Conv2d and Linear.
   *
   * @throws RangeError for fewer than two classes.
   */
  constructor(config: ClassifierConfig) {
    super();
    this.config = wholeConfig(config);
    const { numClasses, widths, depth } = this.config;
    const [first, ...later] = widths as [number, ...number[]];
    this.stem = new Conv2d(3, first, 3, { padding: 1, bias: false });
    this.norm = new GroupNorm(first / GROUP, first);
    this.blocks = later.map((width, k) =>
      Array.from({ length: depth }, (_, i) =>
        i === 0 ? new ResidualBlock(widths[k] as number, width, 2) : new ResidualBlock(width, width, 1),
      ),
    );
    this.head = new Linear(this.featureSize, numClasses);
  }

  get featureSize(): number {
    return this.config.widths.at(-1) as number;
  }

  get numClasses(): number {
    return this.config.numClasses;
  }

  /**
   * Feature maps at the images' own size and after each halving, in the order of `config.widths`; none is negative.
   *
   * @param images - float `[N, 3, H, W]` in [-1, 1].
   * @returns float `[N, C_k, h_k, w_k]` each, in autocast's dtype where that is on.
   * @throws RangeError when the images are too small.
   */
  stages(images: Tensor): Tensor[] {
    const where = "FeatureClassifier.stages";
    checkImages(where, images);
    const least = 2 ** this.blocks.length;
    const [height, width] = [images.size(2), images.size(3)];
    if (Math.min(height, width) < least) {
      throw expected(where, `images of at least ${least} x ${least}`, `${height} x ${width}`, "Enlarge them");
    }
    return tidy(() => {
      const { dtype } = this.stem.weight;
      let x = relu_(this.norm.forward(this.stem.forward(images.to({ dtype }))));
      const maps = [x];
      for (const stage of this.blocks) {
        for (const block of stage) x = block.forward(x);
        maps.push(x);
      }
      return maps;
    });
  }

  /**
   * Unscaled log-probabilities of the classes.
   *
   * @param images - float `[N, 3, H, W]` in [-1, 1].
   * @returns float `[N, K]`, in autocast's dtype where that is on.
   */
  logits(images: Tensor): Tensor {
    return tidy(() => this.head.forward(this.#pooled(images)));
  }

  describe(images: Tensor): { features: Tensor; probabilities: Tensor } {
    checkImages("FeatureClassifier.describe", images);
    const chunk = Math.max(1, Math.floor(PIXELS_AT_A_TIME / (images.size(2) * images.size(3))));
    return noGrad(() =>
      tidy(() => {
        const parts = ranges(images.size(0), chunk).map(([start, count]) =>
          tidy(() => {
            const features = this.#pooled(images.narrow(0, start, count));
            return [features.float(), this.head.forward(features).softmax(1, "float32")] as const;
          }),
        );
        const all = (i: 0 | 1): Tensor => joined(parts.map((part) => part[i]));
        return { features: all(0), probabilities: all(1) };
      }),
    );
  }

  /** `[N, D]`: means of the last stage over positions. */
  #pooled(images: Tensor): Tensor {
    return tidy(() => (this.stages(images).at(-1) as Tensor).mean([2, 3]));
  }
}

/** Shapes of a network's weights, by key. */
export function classifierShapes(
  config: Required<Omit<ClassifierConfig, "classNames">>,
): Record<string, readonly number[]> {
  const { numClasses, widths, depth } = config;
  const [first, ...later] = widths as [number, ...number[]];
  const shapes: Record<string, readonly number[]> = { "stem.weight": [first, 3, 3, 3] };
  const norm = (name: string, width: number): void => {
    shapes[`${name}.weight`] = [width];
    shapes[`${name}.bias`] = [width];
  };
  norm("norm", first);
  for (const [k, width] of later.entries()) {
    for (let i = 0; i < depth; i++) {
      const from = i === 0 ? (widths[k] as number) : width;
      shapes[`blocks.${k}.${i}.conv1.weight`] = [width, from, 3, 3];
      shapes[`blocks.${k}.${i}.conv2.weight`] = [width, width, 3, 3];
      norm(`blocks.${k}.${i}.norm1`, width);
      norm(`blocks.${k}.${i}.norm2`, width);
      if (i === 0) shapes[`blocks.${k}.${i}.shortcut.weight`] = [width, from, 1, 1];
    }
  }
  shapes["head.weight"] = [numClasses, widths.at(-1) as number];
  shapes["head.bias"] = [numClasses];
  return shapes;
}

function wholeConfig(given: ClassifierConfig): Required<ClassifierConfig> {
  const config = readOptions<ClassifierConfig>("FeatureClassifier", [given], {
    names: { numClasses: "number", classNames: true, widths: true, depth: "number" },
  });
  const { numClasses, widths = [32, 48, 96, 128], depth = 1 } = config;
  const where = "FeatureClassifier";
  const { classNames = Array.from({ length: numClasses }, (_, i) => `${i}`) } = config;
  if (!Number.isInteger(numClasses) || numClasses < 2) {
    const remedy = "With one class alone there is nothing to tell apart";
    throw expected(`${where}: numClasses`, "at least 2 classes", numClasses, remedy);
  }
  if (classNames.length !== numClasses) {
    throw expected(`${where}: classNames`, `${numClasses} names`, `${classNames.length}`);
  }
  if (!Number.isInteger(depth) || depth < 1) {
    throw expected(`${where}: depth`, "an integer of at least 1", depth);
  }
  const isWidth = (width: number): boolean => Number.isInteger(width) && width > 0 && width % GROUP === 0;
  if (widths.length < 2 || !widths.every(isWidth)) {
    throw expected(`${where}: widths`, `two or more multiples of ${GROUP}`, `[${widths.join(", ")}]`);
  }
  return { numClasses, classNames: [...classNames], widths: [...widths], depth };
}
