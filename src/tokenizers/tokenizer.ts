/**
 * Interface of tokenizers: images to codes and back. The models are in `ibq.ts` and
 * `vq_model.ts`; training losses, data and checkpoints are elsewhere.
 */
import type { Tensor } from "../torch/index.js";

/** Rows and columns of codes, in raster order. */
export type Grid = readonly [rows: number, columns: number];

/** A model that turns images into codes of a codebook and codes into images. */
export interface ImageTokenizer {
  /** V: codes lie in `[0, V)`. */
  readonly codebookSize: number;
  /** Width and height in pixels of the square that one code stands for. */
  readonly downsample: number;

  /**
   * Codes of images.
   *
   * @param images - float32 `[B, 3, H, W]` in [-1, 1]; H and W multiples of `downsample`.
   * @returns int64 `[B, T]`, T = (H / downsample) * (W / downsample), in raster order.
   */
  encode(images: Tensor): Tensor;

  /**
   * Images of codes, not clamped.
   *
   * @param codes - int64 `[B, T]` in `[0, V)`.
   * @param grid - rows and columns; a square grid by default.
   * @returns float32 `[B, 3, H, W]`, about [-1, 1].
   */
  decodeCode(codes: Tensor, grid?: Grid): Tensor;
}
