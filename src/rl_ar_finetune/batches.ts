/** How an update is divided: optimizer steps over mini-batches of images, forward passes over micro-batches of rows. */
import { expected } from "../torch/index.js";

/** Optimizer steps and forward passes of an update. */
export interface BatchPlan {
  readonly rows: number;
  readonly miniBatches: number;
  readonly steps: number;
  readonly microBatchesAStep: number;
}

/**
 * How an update is divided into mini-batches and micro-batches.
 *
 * @param sizes.images - B of the rollout.
 * @param sizes.rowsAnImage - forward rows per image: 1 where its group shares a context, else G.
 * @throws RangeError when a size is not an integer of at least 1, or the mini-batch does not divide the rollout: in a
 *   smaller last step the images would have a larger weight.
 */
export function planBatches(
  sizes: {
    images: number;
    rowsAnImage: number;
    epochs?: number;
    miniBatch?: number;
    microBatch?: number;
  },
  where = "planBatches",
): BatchPlan {
  const { images, rowsAnImage, epochs = 1, miniBatch = images } = sizes;
  const rows = images * rowsAnImage;
  const { microBatch = miniBatch * rowsAnImage } = sizes;
  for (const [name, value] of Object.entries({ images, rowsAnImage, epochs, miniBatch, microBatch })) {
    if (!Number.isInteger(value) || value < 1)
      throw expected(`${where}.${name}`, "an integer of at least 1", value);
  }
  if (images % miniBatch !== 0) {
    throw expected(`${where}.miniBatch`, `a divisor of the rollout's ${images} images`, miniBatch);
  }
  const miniBatches = images / miniBatch;
  const microBatchesAStep = Math.ceil((miniBatch * rowsAnImage) / microBatch);
  return { rows, miniBatches, steps: epochs * miniBatches, microBatchesAStep };
}
