/** Checks of images and codes before a tokenizer uses them: type, shape and range. */
import { expected, expectedType, stack, type Tensor, tidy } from "../torch/index.js";
import type { Grid, ImageTokenizer } from "./tokenizer.js";

/** Tolerance for rounding around [-1, 1]. */
const RANGE_SLACK = 1e-3;

/**
 * Check dtype and shape of images, without reading values.
 *
 * @throws TypeError when they are not float32. RangeError when they are not `[B, channels, H, W]` with H and W
 *   multiples of `downsample`.
 */
export function checkImages(
  where: string,
  images: Tensor,
  { channels, downsample }: { channels: number; downsample: number },
): void {
  const { dtype, shape } = images;
  if (dtype !== "float32") throw expectedType(where, "float32 images", images, "Scale them: x / 127.5 - 1");
  if (shape.length !== 4 || shape[1] !== channels || shape[0] === 0) {
    throw expected(where, `images [B, ${channels}, H, W]`, images);
  }
  const [h, w] = [shape[2] as number, shape[3] as number];
  if (h % downsample !== 0 || w % downsample !== 0 || h === 0 || w === 0) {
    throw expected(
      where,
      `sides that are multiples of ${downsample}`,
      `${h} x ${w}`,
      "Resize or crop the images",
    );
  }
}

/**
 * Check that images are within [-1, 1]. Synchronizes with the GPU.
 *
 * @throws RangeError otherwise, also for NaN.
 */
export function checkRange(where: string, images: Tensor): void {
  const [low, high] = extremes(images);
  if (low >= -1 - RANGE_SLACK && high <= 1 + RANGE_SLACK) return;
  throw expected(where, "images in [-1, 1]", `values from ${low} to ${high}`, "Scale them: x / 127.5 - 1");
}

/**
 * Check dtype and shape of codes, without reading values, and find their grid.
 *
 * @param grid - rows and columns; a square one by default.
 * @throws TypeError when they are not int64. RangeError when they are not `[B, T]` or rows times columns of the grid is
 *   not T.
 */
export function gridOf(where: string, codes: Tensor, grid: Grid | undefined): Grid {
  if (codes.dtype !== "int64") throw expectedType(where, "int64 codes", codes);
  if (codes.ndim !== 2 || codes.numel === 0) throw expected(where, "codes [B, T]", codes);
  const t = codes.size(1);
  if (grid === undefined) {
    const side = Math.sqrt(t);
    if (Number.isInteger(side)) return [side, side];
    throw expected(where, "a square number of codes per image", t, "Give the grid: [rows, columns]");
  }
  const [rows, columns] = grid;
  const isWhole = Number.isInteger(rows) && Number.isInteger(columns) && rows > 0;
  if (!isWhole || rows * columns !== t) {
    throw expected(where, `a grid of the ${t} codes of an image`, `${rows} x ${columns}`);
  }
  return [rows, columns];
}

/**
 * Check that codes are in `[0, codebookSize)`. Synchronizes with the GPU.
 *
 * @throws RangeError otherwise.
 */
export function checkCodes(
  where: string,
  codes: Tensor,
  { codebookSize }: Pick<ImageTokenizer, "codebookSize">,
): void {
  const [low, high] = extremes(codes);
  if (low >= 0 && high < codebookSize) return;
  throw expected(where, `codes in [0, ${codebookSize})`, `codes from ${low} to ${high}`);
}

function extremes(tensor: Tensor): [low: number, high: number] {
  return tidy(() => stack([tensor.amin(), tensor.amax()]).toList()) as [number, number];
}
