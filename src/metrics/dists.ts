/**
 * DISTS: distance of images by the structure and the texture of VGG16's features. The user supplies the weights of both: VGG16
 * as torchvision has it, and the published `weights.pt`.
 *
 * @see Ding et al. 2020, "Image Quality Assessment: Unifying Structure and Texture Similarity".
 */
import { Buffer, type Conv2d, init, Module, Parameter, type Readable } from "../nn/index.js";
import { expected, functional as F, readOptions, type Tensor, tensor, tidy } from "../torch/index.js";
import { BACKBONES, buildFeatures, type Fire, lpipsKey } from "./backbones.js";
import { atLeastFloat32, type ChunkOptions, chunkOf, joined, pairUp, portions } from "./pairs.js";
import { RangeGuard } from "./range.js";

type Weights = Readonly<Record<string, Tensor | Readable>>;

/** Options of {@link DISTS}. */
export interface DistsOptions {
  /** VGG16 by torchvision's keys, classifier or not. Copied. */
  backbone: Weights;
  /** `alpha` of the texture and `beta` of the structure, `[1, 1475, 1, 1]` each, as published. Copied. */
  weights: Weights;
  /** Whether to check the range of all images; see {@link RangeGuard}. On by default. */
  checkRange?: boolean;
}

/** Added to the numerators and denominators. */
const EPS = 1e-6;

/** Channels of the image and of the five tapped maps. */
const CHANNELS: readonly number[] = [3, ...BACKBONES.vgg.channels];

/** Weights of L2 pooling: a Hann window of 3 x 3. */
const HANN = [1, 2, 1, 2, 4, 2, 1, 2, 1].map((weight) => weight / 16);

/**
 * The metric: 0 for identical images, at most about 1; lower is closer. It forgives another sample of the same texture.
 *
 * `1 - sum_k (alpha_k . l_k + beta_k . s_k)` over the image and five maps of VGG16 whose pooling is of squares, with
 * `l = (2 mx my + c) / (mx^2 + my^2 + c)` of the means of a channel and `s = (2 sxy + c) / (sx^2 + sy^2 + c)` of its
 * variances and covariance. alpha and beta are divided by their sum.
 *
 * Images are compared in their own size; the published program resizes the shorter side to 256 first. Weights are frozen;
 * gradients flow to the samples.
 *
 * @see Ding et al. 2020, eqs. 4 to 6.
 */
export class DISTS extends Module {
  readonly features: (Conv2d | Fire | null)[];
  readonly alpha: Parameter;
  readonly beta: Parameter;
  readonly #mean: Buffer;
  readonly #std: Buffer;
  readonly #hann: Buffer;
  readonly #guard: RangeGuard | null;

  /** @throws Error when weights are missing, of other shapes or unknown. */
  constructor(options: DistsOptions) {
    super();
    const {
      backbone,
      weights,
      checkRange = true,
    } = readOptions<DistsOptions>("DISTS", [options], {
      names: { backbone: true, weights: true, checkRange: "boolean" },
    });
    this.#guard = checkRange ? new RangeGuard("DISTS") : null;
    this.features = init.skipInit(() => buildFeatures("vgg"));
    const total = CHANNELS.reduce((sum, count) => sum + count, 0);
    const weight = (): Parameter => tidy(() => new Parameter(init.zeros([1, total, 1, 1])));
    this.alpha = weight();
    this.beta = weight();
    const constant = (values: readonly number[], shape: number[]): Buffer =>
      tidy(() => new Buffer(tensor([...values]).reshape(shape), { persistent: false }));
    this.#mean = constant([0.485, 0.456, 0.406], [1, 3, 1, 1]);
    this.#std = constant([0.229, 0.224, 0.225], [1, 3, 1, 1]);
    this.#hann = constant(HANN, [1, 1, 3, 3]);
    this.eval().requiresGrad_(false);
    try {
      const own = Object.entries(backbone).flatMap(([name, value]) => {
        const key = lpipsKey(name);
        return key === null ? [] : [[key, value]];
      });
      tidy(() => this.loadStateDict({ ...Object.fromEntries(own), ...weights }));
    } catch (error) {
      this.dispose();
      throw error;
    }
  }

  /**
   * Distance of each sample from its image.
   *
   * @param images - float `[B, 3, H, W]` in [-1, 1].
   * @param samples - float `[B * G, 3, H, W]`, about [-1, 1]; sample n belongs to image floor(n / G).
   * @returns float32 `[B * G]`.
   * @throws RangeError when sizes do not fit, or images are out of range; see {@link RangeGuard}.
   */
  forward(images: Tensor, samples: Tensor, options: ChunkOptions = {}): Tensor {
    const { images: b, perImage, height, width } = pairUp("DISTS", images, samples);
    const { minSize } = BACKBONES.vgg;
    if (Math.min(height, width) < minSize) {
      throw expected(
        "DISTS",
        `images of at least ${minSize} x ${minSize}`,
        `${height} x ${width}`,
        "Enlarge them",
      );
    }
    const chunk = chunkOf("DISTS", options, height, width);
    this.#guard?.checkImages(images);
    this.#guard?.checkSamples(samples);
    return tidy(() => {
      const parts = portions(b, perImage, chunk).map((part) =>
        tidy(() => {
          const x = images.narrow(0, part.image, part.images);
          const y = samples.narrow(0, part.image * perImage + part.sample, part.images * part.samples);
          return this.#compare(this.#maps(x), this.#maps(y), part.samples);
        }),
      );
      return joined(parts);
    });
  }

  /** The image in [0, 1] and the five maps. */
  #maps(images: Tensor): Tensor[] {
    return tidy(() => {
      const image = atLeastFloat32(images).add(1).div(2);
      const device = image.device as "cpu";
      const here = (constant: Buffer): Tensor => constant.to({ device, dtype: image.dtype });
      const maps = [image];
      let x = image.sub(here(this.#mean)).div(here(this.#std));
      for (const [i, step] of BACKBONES.vgg.steps.entries()) {
        if (step === "pool") {
          const channels = x.size(1);
          const hann = here(this.#hann).expand(channels, 1, 3, 3);
          x = F.conv2d(x.square(), hann, null, { stride: 2, padding: 1, groups: channels }).add(1e-12).sqrt();
        } else x = step === "relu" ? x.relu() : (this.features[i] as Conv2d).forward(x);
        if (BACKBONES.vgg.taps.includes(i)) maps.push(x);
      }
      return maps;
    });
  }

  #compare(images: readonly Tensor[], samples: readonly Tensor[], perImage: number): Tensor {
    const sum = this.alpha.sum().add(this.beta.sum());
    const [alpha, beta] = [this.alpha, this.beta].map((weight) =>
      weight
        .flatten()
        .div(sum)
        .split([...CHANNELS]),
    ) as [Tensor[], Tensor[]];
    const terms = images.map((image, k) => {
      const x = atLeastFloat32(image).unsqueeze(1); // [b, 1, C, h, w]
      const y = atLeastFloat32(samples[k] as Tensor).unflatten(0, [x.size(0), perImage]);
      const [mx, my] = [x.mean([3, 4]), y.mean([3, 4])]; // [b, g, C]
      const varianceOf = (map: Tensor, mean: Tensor): Tensor =>
        map.sub(mean.unsqueeze(-1).unsqueeze(-1)).square().mean([3, 4]);
      const covariance = x.mul(y).mean([3, 4]).sub(mx.mul(my));
      const texture = mx.mul(my).mul(2).add(EPS).div(mx.square().add(my.square()).add(EPS));
      const structure = covariance
        .mul(2)
        .add(EPS)
        .div(varianceOf(x, mx).add(varianceOf(y, my)).add(EPS));
      return texture
        .mul(alpha[k] as Tensor)
        .add(structure.mul(beta[k] as Tensor))
        .sum(-1);
    });
    const similarity = terms.reduce((total, term) => total.add(term));
    return similarity.rsub(1).flatten();
  }
}
