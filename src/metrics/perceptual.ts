/**
 * Perceptual distance: the distance of images in the features of a classifier from `rlar classifier`. It is used like LPIPS, for
 * small images that a backbone trained on ImageNet does not suit.
 *
 * After Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", eq. 1, with these
 * differences: no weights are learnt from human judgements, so all channels count the same, and so do all stages.
 */
import { readOptions, type Tensor, tidy } from "../torch/index.js";
import type { FeatureClassifier } from "./classifier.js";
import { type ChunkOptions, checkImages, chunkOf, pairUp } from "./pairs.js";
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

/**
 * The metric: 0 for identical images, at most 2, since features are not negative; lower is closer.
 *
 * `1/S sum_s mean_hw |f_s(x) - f_s(y)|^2` with f_s the features of stage s, divided at each position by their length.
 * Numbers of different classifiers cannot be compared.
 *
 * Gradients flow to the images, and to the classifier's weights unless they are frozen, as `openClassifier` leaves them.
 * Convolutions run in the dtype of the weights, or in autocast's; lengths, differences and sums in float32 at least.
 */
export class PerceptualDistance {
  readonly network: FeatureClassifier;
  readonly #guard: RangeGuard | null;
  readonly #taps: Taps = (images, use) =>
    tidy(() => this.network.stages(images).map((map, k) => tidy(() => use(map, k))));
  readonly #weightOf: TapWeight = () => 1 / this.network.config.widths.length;

  /** @param options.checkRange - whether to check the range of all images; see {@link RangeGuard}. On by default. */
  constructor(network: FeatureClassifier, options: { checkRange?: boolean } = {}) {
    this.network = network;
    const { checkRange = true } = readOptions<{ checkRange?: boolean }>("PerceptualDistance", [options], {
      names: { checkRange: "boolean" },
    });
    this.#guard = checkRange ? new RangeGuard("PerceptualDistance") : null;
  }

  /**
   * Features of images, for {@link distance} and {@link distanceMap}.
   *
   * @param images - float `[B, 3, H, W]` in [-1, 1].
   * @throws RangeError when the images are too small, or out of range; see {@link RangeGuard}.
   */
  reference(images: Tensor, options: ChunkOptions = {}): UnitFeatures {
    const where = "PerceptualDistance.reference";
    checkImages(where, images);
    this.#guard?.checkImages(images);
    return unitFeatures(this.#taps, images, chunkOf(where, options, images.size(2), images.size(3)));
  }

  /** Images as points on a grid, float32 `[B, C, h, w]`: their squared distance is the perceptual distance there. */
  points(images: Tensor, grid: readonly [h: number, w: number]): Tensor {
    checkImages("PerceptualDistance.points", images);
    return unitPoints(this.#taps, this.#weightOf, images, grid);
  }

  /**
   * Distance of each sample from its image.
   *
   * @param reference - of the B images.
   * @param samples - float `[B * G, 3, H, W]`, about [-1, 1]; sample n belongs to image floor(n / G).
   * @returns float32 `[B * G]`.
   */
  distance(reference: UnitFeatures, samples: Tensor, options: ChunkOptions = {}): Tensor {
    const chunk = checkPaired("PerceptualDistance.distance", reference, samples, options);
    this.#guard?.checkSamples(samples);
    return compareFeatures(this.#taps, this.#weightOf, reference, samples, chunk, false);
  }

  /**
   * {@link distance} before its mean over positions, each stage's map enlarged to the images by bilinear interpolation:
   * float32 `[B * G, H, W]`. Its mean is the distance but for what the interpolation moves across the border.
   */
  distanceMap(reference: UnitFeatures, samples: Tensor, options: ChunkOptions = {}): Tensor {
    const chunk = checkPaired("PerceptualDistance.distanceMap", reference, samples, options);
    this.#guard?.checkSamples(samples);
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
    const { height, width } = pairUp("PerceptualDistance", images, samples);
    const chunk = chunkOf("PerceptualDistance", options, height, width);
    this.#guard?.checkImages(images);
    this.#guard?.checkSamples(samples);
    return compareImages(this.#taps, this.#weightOf, images, samples, chunk);
  }
}
