/**
 * LPIPS: distance of images in the features of a classification network. The linear heads that weight the features are in
 * weights/. The user supplies the weights of the network as a file, torchvision's for ImageNet.
 *
 * After Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", version 0.1
 * ("lin"), as it is in evaluation, without dropout.
 */
import { fileURLToPath } from "node:url";
import { Buffer, Conv2d, init, type LoadReport, Module, type Readable, type StateDict } from "../nn/index.js";
import { expected, loadSafetensors, readOptions, type Tensor, tensor, tidy } from "../torch/index.js";
import {
  atTaps,
  BACKBONES,
  buildFeatures,
  type Fire,
  headKey,
  type LpipsNet,
  lpipsKey,
} from "./backbones.js";
import { atLeastFloat32, type ChunkOptions, checkImages, chunkOf, pairUp } from "./pairs.js";
import { RangeGuard } from "./range.js";
import {
  checkPaired,
  compareFeatures,
  compareImages,
  type Taps,
  type TapWeight,
  type UnitFeatures,
  unitFeatures,
  unitPoints,
} from "./unit_features.js";

const HEADS_FILE = fileURLToPath(
  new URL("../../../src/metrics/weights/lpips_heads.safetensors", import.meta.url),
);

/** Weights by key, in memory or still in a file. */
type Weights = Readonly<Record<string, Tensor | Readable>>;

/** Options of {@link LPIPS}. */
export interface LpipsOptions {
  /** Which backbone. VA-pi, LlamaGen and SEED-Voken train with VGG; the authors report distances with AlexNet. */
  net: LpipsNet;
  /**
   * Weights of the backbone, by torchvision's keys (`features.0.weight`), classifier or not, or by LPIPS's own
   * (`net.slice1.0.weight`), which the `loss.perceptual_loss.` part of a VQGAN checkpoint has. Copied.
   */
  backbone: Weights;
  /** Weights of the heads (`lin0.model.1.weight`); the published ones by default. Copied. */
  heads?: Weights;
  /** Whether to check the range of all images; see {@link RangeGuard}. On by default. */
  checkRange?: boolean;
}

/** One head: a 1 x 1 convolution without bias, under the key it has behind a dropout. */
class Head extends Module {
  readonly model: readonly [null, Conv2d];

  constructor(channels: number) {
    super();
    this.model = [null, new Conv2d(channels, 1, 1, { bias: false })];
  }

  /** `[C]`. */
  get weight(): Tensor {
    return this.model[1].weight.flatten();
  }
}

/**
 * The metric: 0 for identical images, never negative, seldom above 1. Lower is closer.
 *
 * `sum_k mean_hw w_k . (f_k(x) - f_k(y))^2` with f_k the features of tap k, divided at each position by their length,
 * and w_k the weights of head k, which are the squares of the paper's.
 *
 * Weights are frozen; gradients flow to the images. Convolutions run in the dtype of the weights, or in autocast's;
 * lengths, differences and sums in float32 at least.
 *
 * @see Zhang et al. 2018, eq. 1.
 */
export class LPIPS extends Module {
  readonly net: LpipsNet;
  readonly features: (Conv2d | Fire | null)[];
  /** What takes [-1, 1] to ImageNet's normalisation: `(x - shift) / scale`, each `[1, 3, 1, 1]`. */
  readonly shift: Buffer;
  readonly scale: Buffer;
  readonly #heads: Head[];
  readonly #taps: Taps = (images, use) =>
    tidy(() => {
      const { dtype } = (this.features[0] as Conv2d).weight;
      const scaled = images.sub(this.shift).div(this.scale).to({ dtype });
      return atTaps(this.net, this.features, scaled, use);
    });
  readonly #weightOf: TapWeight = (k) => atLeastFloat32((this.#heads[k] as Head).weight);
  readonly #guard: RangeGuard | null;

  /**
   * @throws Error when the weights are not those of the backbone, RangeError when a head has a negative weight; see
   *   {@link loadStateDict}.
   */
  constructor(options: LpipsOptions) {
    super();
    const {
      net,
      backbone,
      heads = {},
      checkRange = true,
    } = readOptions<LpipsOptions>("LPIPS", [options], {
      names: { net: true, backbone: true, heads: true, checkRange: "boolean" },
    });
    if (!Object.hasOwn(BACKBONES, net)) {
      throw expected("LPIPS: net", `one of ${Object.keys(BACKBONES).join(", ")}`, net);
    }
    this.net = net;
    this.#guard = checkRange ? new RangeGuard("LPIPS") : null;
    this.shift = perChannel([-0.03, -0.088, -0.188]);
    this.scale = perChannel([0.458, 0.448, 0.45]);
    this.features = init.skipInit(() => buildFeatures(net));
    this.#heads = init.skipInit(() => BACKBONES[net].channels.map((channels) => new Head(channels)));
    for (const [k, head] of this.#heads.entries()) Object.assign(this, { [`lin${k}`]: head });
    this.eval().requiresGrad_(false);
    try {
      tidy(() => {
        const given = { ...canonical(backbone), ...canonical(heads) };
        this.loadStateDict(Object.hasOwn(given, headKey(0)) ? given : { ...given, ...publishedHeads(net) });
      });
    } catch (error) {
      this.dispose();
      throw error;
    }
  }

  /**
   * Copy weights, named as {@link LpipsOptions} says.
   *
   * @throws RangeError when a head has a weight below 0: some differences would then lower the distance. Error as
   *   Module's.
   */
  override loadStateDict(state: Weights, options: { strict?: boolean } = {}): LoadReport {
    const named = canonical(state);
    for (const [name, weight] of Object.entries(named)) {
      if (!name.startsWith("lin")) continue;
      const least = tidy(() => ("read" in weight ? weight.read() : weight).amin().item());
      if (least >= 0) continue;
      const remedy = "These are no heads of LPIPS, or were trained without its clamp; use the published ones";
      throw expected(`LPIPS.loadStateDict: ${name}`, "no weight below 0", least, remedy);
    }
    return super.loadStateDict(named, options);
  }

  /** Images as points on a grid, float32 `[B, C, h, w]`: their squared distance is the metric there. */
  points(images: Tensor, grid: readonly [h: number, w: number]): Tensor {
    checkImages("LPIPS.points", images);
    return unitPoints(this.#taps, this.#weightOf, images, grid);
  }

  /**
   * Features of images, for {@link distance} and {@link distanceMap}.
   *
   * They take 32 MB for each image of 256 x 256 with VGG.
   *
   * @param images - float `[B, 3, H, W]` in [-1, 1].
   * @throws RangeError when the images are too small, or out of range; see {@link RangeGuard}.
   */
  reference(images: Tensor, options: ChunkOptions = {}): UnitFeatures {
    this.#check("LPIPS.reference", images);
    this.#guard?.checkImages(images);
    const chunk = chunkOf("LPIPS.reference", options, images.size(2), images.size(3));
    return unitFeatures(this.#taps, images, chunk);
  }

  /**
   * Distance of each sample from its image.
   *
   * @param reference - of the B images.
   * @param samples - float `[B * G, 3, H, W]`, about [-1, 1]; sample n belongs to image floor(n / G).
   * @returns float32 `[B * G]`.
   */
  distance(reference: UnitFeatures, samples: Tensor, options: ChunkOptions = {}): Tensor {
    const chunk = this.#checkSamples("LPIPS.distance", reference, samples, options);
    return compareFeatures(this.#taps, this.#weightOf, reference, samples, chunk, false);
  }

  /**
   * {@link distance} before its mean over positions, each tap's map enlarged to the images by bilinear interpolation:
   * float32 `[B * G, H, W]`. Its mean is the distance but for what the interpolation moves across the border.
   */
  distanceMap(reference: UnitFeatures, samples: Tensor, options: ChunkOptions = {}): Tensor {
    const chunk = this.#checkSamples("LPIPS.distanceMap", reference, samples, options);
    return compareFeatures(this.#taps, this.#weightOf, reference, samples, chunk, true);
  }

  /**
   * Distance of each sample from its image, the images' features computed on the way and freed portion by portion.
   *
   * @param images - float `[B, 3, H, W]` in [-1, 1].
   * @param samples - float `[B * G, 3, H, W]`, about [-1, 1]; sample n belongs to image floor(n / G).
   * @returns float32 `[B * G]`.
   */
  forward(images: Tensor, samples: Tensor, options: ChunkOptions = {}): Tensor {
    const { height, width } = pairUp("LPIPS", images, samples);
    this.#check("LPIPS", images);
    const chunk = chunkOf("LPIPS", options, height, width);
    this.#guard?.checkImages(images);
    this.#guard?.checkSamples(samples);
    return compareImages(this.#taps, this.#weightOf, images, samples, chunk);
  }

  #check(where: string, images: Tensor): void {
    checkImages(where, images);
    const { minSize } = BACKBONES[this.net];
    const [height, width] = [images.size(2), images.size(3)];
    if (Math.min(height, width) >= minSize) return;
    const remedy = "Enlarge the images, or use another net";
    throw expected(
      where,
      `images of at least ${minSize} x ${minSize} for ${this.net}`,
      `${height} x ${width}`,
      remedy,
    );
  }

  #checkSamples(where: string, reference: UnitFeatures, samples: Tensor, options: ChunkOptions): number {
    const chunk = checkPaired(where, reference, samples, options);
    this.#guard?.checkSamples(samples);
    return chunk;
  }
}

/** The published heads, version 0.1, by LPIPS's keys; freed by an enclosing `tidy`. */
function publishedHeads(net: LpipsNet): StateDict {
  const { tensors } = loadSafetensors(HEADS_FILE);
  const own = Object.entries(tensors).filter(([name]) => name.startsWith(`${net}.`));
  return Object.fromEntries(own.map(([name, weight]) => [name.slice(net.length + 1), weight]));
}

/** The same weights under this module's keys, without what it does not use. */
function canonical(state: Weights): Record<string, Tensor | Readable> {
  const named: Record<string, Tensor | Readable> = {};
  for (const [name, weight] of Object.entries(state)) {
    const key = lpipsKey(name);
    if (key !== null) named[key] = weight;
  }
  return named;
}

function perChannel(values: number[]): Buffer {
  return tidy(() => new Buffer(tensor(values).reshape(1, -1, 1, 1), { persistent: false }));
}
