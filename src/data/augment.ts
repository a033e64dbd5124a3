/**
 * Data augmentation for classifiers: random shift, colour jitter and cutout. Random flips are done where images are read.
 * Each image is varied independently; all random numbers come from one generator.
 */

import {
  arange,
  type Device,
  expected,
  functional as F,
  type Generator,
  rand,
  type Tensor,
  tidy,
  toDevice,
} from "../torch/index.js";
import type { BatchParts } from "./batch.js";

/** Strength of each variation; 0, the default, turns it off. */
export interface AugmentOptions {
  /** Maximum shift in pixels in each direction; new pixels repeat the border. */
  readonly shift?: number;
  /** Maximum change of brightness, contrast and saturation, as a fraction of the range, in [0, 1]. */
  readonly jitter?: number;
  /** Maximum side of the erased square, as a fraction of the image's side, in [0, 1]; half of the images have one. */
  readonly erase?: number;
}

/**
 * Vary each image.
 *
 * The same generator state gives the same variations on every device. Numbers are drawn for each variation that is on,
 * in the order of the options.
 *
 * @param images - float `[N, 3, H, W]` in [-1, 1].
 * @param generator - on the CPU.
 * @param place - of the images in the batch that several processes share: they are varied as they would be there.
 * @returns a new tensor `[N, 3, H, W]` in [-1, 1].
 * @see DeVries and Taylor 2017, "Improved Regularization of Convolutional Neural Networks with Cutout".
 */
export function augment(
  images: Tensor,
  options: AugmentOptions,
  generator: Generator,
  place: BatchParts["place"] = { from: 0, of: images.size(0) },
): Tensor {
  const { shift = 0, jitter = 0, erase = 0 } = options;
  if (!Number.isInteger(shift) || shift < 0) throw expected("augment: shift", "whole pixels from 0", shift);
  for (const [name, value] of Object.entries({ jitter, erase })) {
    if (!(value >= 0 && value <= 1)) throw expected(`augment: ${name}`, "a number in [0, 1]", value);
  }
  return tidy(() => {
    let x = images.clone();
    const draw: Draw = (count, [low, high]) => {
      const drawn = rand([place.of, count], { generator }).narrow(0, place.from, images.size(0));
      return toDevice(drawn.mul(high - low).add(low), images.device as Device);
    };
    if (shift > 0) x = shifted(x, shift, draw);
    if (jitter > 0) x = jittered(x, jitter, draw);
    if (erase > 0) x = erased(x, erase, draw);
    return x;
  });
}

/** Uniform in [low, high), float32 `[N, count]` on the images' device. */
type Draw = (count: number, range: readonly [low: number, high: number]) => Tensor;

function shifted(x: Tensor, most: number, draw: Draw): Tensor {
  const [n, c, height, width] = x.dims(4);
  const device = x.device as Device;
  const moves = draw(2, [0, 2 * most + 1])
    .floor()
    .clamp(0, 2 * most)
    .long(); // [N, 2]
  const rows = arange(0, height, 1, { device }).add(moves.narrow(1, 0, 1)); // [N, H]
  const columns = arange(0, width, 1, { device }).add(moves.narrow(1, 1, 1)); // [N, W]
  return F.pad(x, [most, most, most, most], "replicate")
    .gather(2, rows.view(n, 1, height, 1).expand(n, c, height, width + 2 * most))
    .gather(3, columns.view(n, 1, 1, width).expand(n, c, height, width));
}

function jittered(x: Tensor, jitter: number, draw: Draw): Tensor {
  const [brightness, contrast, saturation] = draw(3, [-jitter, jitter]).view(-1, 3, 1, 1, 1).unbind(1) as [
    Tensor,
    Tensor,
    Tensor,
  ]; // [N, 1, 1, 1]
  const grey = x.mean(1, { keepdim: true });
  const mean = grey.mean([2, 3], { keepdim: true });
  const coloured = grey.add(x.sub(grey).mul(saturation.add(1)));
  return mean
    .add(coloured.sub(mean).mul(contrast.add(1)))
    .add(brightness)
    .clamp(-1, 1);
}

function erased(x: Tensor, erase: number, draw: Draw): Tensor {
  const [n, , height, width] = x.dims(4);
  const device = x.device as Device;
  const [side, row, column] = draw(3, [0, 1]).unbind(1) as [Tensor, Tensor, Tensor]; // [N]
  // 2 * draw - 1: half of the sides are negative, and erase nothing.
  const half = side
    .mul(2)
    .sub(1)
    .mul((erase * Math.min(height, width)) / 2)
    .view(n, 1);
  const near = (at: Tensor, size: number): Tensor =>
    arange(0, size, 1, { device }).add(0.5).sub(at.mul(size).view(n, 1)).abs().lt(half); // [N, size]
  const inside = near(row, height)
    .view(n, 1, height, 1)
    .logicalAnd(near(column, width).view(n, 1, 1, width));
  return x.mul(inside.logicalNot());
}
