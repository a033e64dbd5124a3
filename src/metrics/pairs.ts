/**
 * Pairing of images with their samples, and comparing them in portions. The metrics are in the other files.
 */
import { cat, DTYPES, expected, expectedType, readOptions, Tensor, tidy } from "../torch/index.js";

/** Options of comparing in portions. */
export interface ChunkOptions {
  /**
   * Samples at a time; by default, as many as make 2^21 pixels, which is 32 samples of 256 x 256. It bounds
   * memory and changes no result by more than rounding. With gradients on, the graph keeps every portion anyway.
   */
  chunk?: number;
}

/** Images and samples that fit together. */
export interface Pairing {
  /** B. */
  readonly images: number;
  /** G. */
  readonly perImage: number;
  readonly height: number;
  readonly width: number;
}

const PIXELS_AT_A_TIME = 2 ** 21;

/**
 * Check that a tensor is a batch of images, whatever its values.
 *
 * @throws RangeError unless the shape is `[B, 3, H, W]` with B >= 1. TypeError unless the dtype is floating-point.
 */
export function checkImages(where: string, images: Tensor, what = "images"): void {
  if (!(images instanceof Tensor)) throw expectedType(where, `${what}, a Tensor [B, 3, H, W]`, images);
  if (images.ndim !== 4 || images.shape[1] !== 3 || images.shape.includes(0)) {
    throw expected(where, `${what} [B, 3, H, W]`, images);
  }
  if (!DTYPES[images.dtype].isFloat) {
    const remedy = "Map bytes to [-1, 1] by x / 127.5 - 1";
    throw expectedType(where, `${what} of a floating-point dtype`, images, remedy);
  }
}

/**
 * Pair images `[B, 3, H, W]` with samples `[B * G, 3, H, W]`: sample n belongs to image floor(n / G).
 *
 * @throws RangeError when the sizes differ or the number of samples is not a multiple of the number of images.
 */
export function pairUp(where: string, images: Tensor, samples: Tensor): Pairing {
  checkImages(where, images);
  checkImages(where, samples, "samples");
  const [b, , height, width] = images.dims(4);
  const perImage = samples.size(0) / b;
  if (!Number.isInteger(perImage) || samples.size(2) !== height || samples.size(3) !== width) {
    throw expected(where, `samples [${b} * G, 3, ${height}, ${width}]`, samples);
  }
  return { images: b, perImage, height, width };
}

/** The number of samples to compare at a time. */
export function chunkOf(where: string, options: ChunkOptions, height: number, width: number): number {
  const { chunk = Math.max(1, Math.floor(PIXELS_AT_A_TIME / (height * width))) } = readOptions<ChunkOptions>(
    where,
    [options],
    { names: { chunk: "number" } },
  );
  if (!Number.isInteger(chunk) || chunk < 1)
    throw expected(`${where}: chunk`, "an integer of at least 1", chunk);
  return chunk;
}

/** `[start, count]` of consecutive ranges of at most `step`. */
export function ranges(total: number, step: number): [start: number, count: number][] {
  return Array.from({ length: Math.ceil(total / step) }, (_, i) => [
    i * step,
    Math.min(step, total - i * step),
  ]);
}

/**
 * Ranges of images and of their samples, none with more than `chunk` samples: several images whole where a group
 * fits, else parts of one image's group.
 */
export function portions(
  images: number,
  perImage: number,
  chunk: number,
): { image: number; images: number; sample: number; samples: number }[] {
  const samplesOfOne = ranges(perImage, Math.min(perImage, chunk));
  return ranges(images, Math.max(1, Math.floor(chunk / perImage))).flatMap(([image, count]) =>
    samplesOfOne.map(([sample, samples]) => ({ image, images: count, sample, samples })),
  );
}

/** Join portions of a result along the first dimension. */
export function joined(parts: readonly Tensor[]): Tensor {
  return parts.length === 1 ? (parts[0] as Tensor) : cat(parts);
}

/** The tensor itself, or in float32 where its dtype is narrower. */
export function atLeastFloat32(x: Tensor): Tensor {
  return x.dtype === "float64" ? x : x.float();
}

/**
 * Compare each sample with its image, portion by portion and freeing each portion's temporaries.
 *
 * @param compare - given x `[b, 1, 3, H, W]` and y `[b, g, 3, H, W]`, at least float32, gives `[b, g, ...]`. What it
 *   computes of x alone serves all g samples.
 * @returns `[B * G, ...]`.
 */
export function comparePairs(
  where: string,
  images: Tensor,
  samples: Tensor,
  options: ChunkOptions,
  compare: (x: Tensor, y: Tensor) => Tensor,
): Tensor {
  const { images: b, perImage, height, width } = pairUp(where, images, samples);
  const chunk = chunkOf(where, options, height, width);
  return tidy(() => {
    const x = atLeastFloat32(images).unsqueeze(1); // [B, 1, 3, H, W]
    const y = atLeastFloat32(samples).unflatten(0, [b, perImage]); // [B, G, 3, H, W]
    const parts = portions(b, perImage, chunk).map((part) =>
      tidy(() => {
        const these = y.narrow(0, part.image, part.images).narrow(1, part.sample, part.samples);
        return compare(x.narrow(0, part.image, part.images), these).flatten(0, 1);
      }),
    );
    return joined(parts);
  });
}
