/**
 * Distance of images in a network's feature maps, each feature vector divided by its length: what LPIPS and the
 * perceptual distance of our own classifiers have in common. They supply networks and weights.
 *
 * After Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", eq. 1.
 */
import { cat, expected, functional as F, type Tensor, tidy } from "../torch/index.js";
import {
  atLeastFloat32,
  type ChunkOptions,
  checkImages,
  chunkOf,
  joined,
  portions,
  ranges,
} from "./pairs.js";

/** Added to the length of a feature vector before dividing by it. */
const EPS = 1e-10;

/** Run images through a network and use each of its tapped maps `[N, C, h, w]`, the k-th of them, as it comes. */
export type Taps = <T>(images: Tensor, use: (map: Tensor, k: number) => T) => T[];

/** Features of images, computed once for all their samples. A plain object: `tidy` finds the tensors in it. */
export interface UnitFeatures {
  /** Of each tap: float32 `[B, C, h, w]`, of length 1 over C. */
  readonly features: readonly Tensor[];
  /** Height and width of the images. */
  readonly size: readonly [height: number, width: number];
}

/** Weight of a tap: one per channel, float32 `[C]`, or one for all. */
export type TapWeight = (k: number) => Tensor | number;

/** Features of images `[B, 3, H, W]`, `chunk` at a time. */
export function unitFeatures(taps: Taps, images: Tensor, chunk: number): UnitFeatures {
  return tidy(() => {
    const parts = ranges(images.size(0), chunk).map(([start, count]) =>
      tidy(() => taps(images.narrow(0, start, count), unit)),
    );
    const features = (parts[0] as Tensor[]).map((_, k) => joined(parts.map((part) => part[k] as Tensor)));
    return { features, size: [images.size(2), images.size(3)] };
  });
}

/**
 * Images as points on a grid: the squared distance of two points is `sum_k w_k . (f_k(x) - f_k(y))^2` at that place, each map
 * averaged over what of it lies there, or repeated where it is coarser than the grid.
 *
 * @returns float32 `[B, sum of C, h, w]`.
 */
export function unitPoints(
  taps: Taps,
  weightOf: TapWeight,
  images: Tensor,
  grid: readonly [h: number, w: number],
): Tensor {
  return tidy(() => {
    const maps = taps(images, (map, k) => {
      const weight = weightOf(k);
      const root = typeof weight === "number" ? Math.sqrt(weight) : weight.sqrt().reshape(-1, 1, 1);
      return F.interpolate(unit(map).mul(root), { size: grid, mode: "area" });
    });
    return cat(maps, 1);
  });
}

/**
 * `sum_k mean_hw w_k . (f_k(x) - f_k(y))^2` of each sample y and its image x.
 *
 * @param samples - `[B * G, 3, H, W]`, checked by {@link checkPaired}.
 * @param isMap - return a map instead of the mean over positions: enlarge the map of each tap to the images by bilinear
 *   interpolation.
 * @returns float32 `[B * G]`, or `[B * G, H, W]`.
 */
export function compareFeatures(
  taps: Taps,
  weightOf: TapWeight,
  reference: UnitFeatures,
  samples: Tensor,
  chunk: number,
  isMap: boolean,
): Tensor {
  const b = (reference.features[0] as Tensor).size(0);
  const perImage = samples.size(0) / b;
  return tidy(() => {
    const parts = portions(b, perImage, chunk).map((part) =>
      tidy(() => {
        const start = part.image * perImage + part.sample;
        const count = part.images * part.samples;
        const terms = taps(samples.narrow(0, start, count), (map, k) => {
          const own = (reference.features[k] as Tensor).narrow(0, part.image, part.images).unsqueeze(1);
          const squared = unit(map).unflatten(0, [part.images, part.samples]).sub(own).square(); // [b, g, C, h, w]
          const weight = weightOf(k);
          if (!isMap) return squared.mean([3, 4]).mul(weight).sum(2).flatten();
          const perChannel = typeof weight === "number" ? weight : weight.reshape(-1, 1, 1);
          const small = squared.mul(perChannel).sum(2).flatten(0, 1).unsqueeze(1); // [b * g, 1, h, w]
          return F.interpolate(small, { size: reference.size, mode: "bilinear" }).squeeze(1);
        });
        return terms.reduce((sum, term) => sum.add(term));
      }),
    );
    return joined(parts);
  });
}

/**
 * {@link compareFeatures} of images and samples that `pairUp` has checked, the images' features computed on the
 * way and freed portion by portion: float32 `[B * G]`.
 */
export function compareImages(
  taps: Taps,
  weightOf: TapWeight,
  images: Tensor,
  samples: Tensor,
  chunk: number,
): Tensor {
  const perImage = samples.size(0) / images.size(0);
  return tidy(() => {
    const parts = ranges(images.size(0), Math.max(1, Math.floor(chunk / perImage))).map(([start, count]) =>
      tidy(() => {
        const reference = unitFeatures(taps, images.narrow(0, start, count), chunk);
        const these = samples.narrow(0, start * perImage, count * perImage);
        return compareFeatures(taps, weightOf, reference, these, chunk, false);
      }),
    );
    return joined(parts);
  });
}

/**
 * Check samples against the features of their images, and give the number to compare at a time.
 *
 * @throws RangeError unless the samples are `[B * G, 3, H, W]`.
 */
export function checkPaired(
  where: string,
  reference: UnitFeatures,
  samples: Tensor,
  options: ChunkOptions,
): number {
  checkImages(where, samples, "samples");
  const [height, width] = reference.size;
  const b = (reference.features[0] as Tensor).size(0);
  const isPaired = Number.isInteger(samples.size(0) / b);
  if (!isPaired || samples.size(2) !== height || samples.size(3) !== width) {
    throw expected(where, `samples [${b} * G, 3, ${height}, ${width}]`, samples);
  }
  return chunkOf(where, options, height, width);
}

/** A feature map with its vectors over the channels divided by their length. */
function unit(map: Tensor): Tensor {
  const wide = atLeastFloat32(map);
  return wide.div(wide.norm(2, 1, true).add(EPS));
}
