/**
 * A frozen tokenizer: it runs without gradients, in eval mode, and checks the values of its inputs.
 */
import { Module, type PackedLayers } from "../nn/index.js";
import { cat, expected, expectedType, noGrad, type Tensor, tidy } from "../torch/index.js";
import { checkCodes, checkImages, checkRange, gridOf } from "./checks.js";
import { TokenizerModel } from "./model.js";
import type { Grid, ImageTokenizer } from "./tokenizer.js";

export class FrozenTokenizer implements ImageTokenizer {
  /** The model itself. */
  readonly vq: ImageTokenizer;
  /** Whether decoded images were found to be finite; weights that a program sets are not checked elsewhere. */
  #isSound = false;

  /**
   * @param vq - a tokenizer; a {@link Module} is put into eval mode, and its parameters no longer require gradients.
   */
  constructor(vq: ImageTokenizer) {
    this.vq = vq;
    if (vq instanceof Module) vq.eval().requiresGrad_(false);
  }

  get codebookSize(): number {
    return this.vq.codebookSize;
  }

  get downsample(): number {
    return this.vq.downsample;
  }

  /**
   * Codes of images. Synchronizes with the GPU to check the range of the images.
   *
   * @param images - float32 `[B, 3, H, W]` in [-1, 1]; H and W multiples of `downsample`.
   * @returns int64 `[B, T]`, T = (H / downsample) * (W / downsample), in raster order.
   * @throws TypeError, RangeError for other images.
   */
  encode(images: Tensor): Tensor {
    const where = "FrozenTokenizer.encode";
    checkImages(where, images, { channels: 3, downsample: this.downsample });
    checkRange(where, images);
    return noGrad(() => tidy(() => this.vq.encode(images)));
  }

  /**
   * Images of codes, not clamped. Synchronizes with the GPU to check the range of the codes.
   *
   * @param codes - int64 `[B, T]` in `[0, codebookSize)`.
   * @param grid - rows and columns; a square grid by default.
   * @param batch - images decoded at a time; all by default.
   * @returns float32 `[B, 3, H, W]`, about [-1, 1].
   * @throws TypeError, RangeError when the codes are not of this dtype, shape or range, rows times columns of the grid
   *   is not T, or the first decoded images are not finite.
   */
  decodeCode(codes: Tensor, grid?: Grid, batch = codes.size(0)): Tensor {
    const where = "FrozenTokenizer.decodeCode";
    const places = gridOf(where, codes, grid);
    if (codes.size(0) > 0 && !(Number.isInteger(batch) && batch >= 1))
      throw expected(where, "a whole number of images to decode at a time, at least 1", batch);
    checkCodes(where, codes, this.vq);
    return noGrad(() =>
      tidy(() => {
        const pieces = codes.size(0) <= batch ? [codes] : codes.split(batch);
        const decoded = pieces.map((piece) => this.vq.decodeCode(piece, places));
        const images = decoded.length === 1 ? (decoded[0] as Tensor) : cat(decoded);
        if (!this.#isSound) this.#requireFinite(where, images);
        return images;
      }),
    );
  }

  /**
   * Let `decodeCode` compute the decoder's convolutions in bfloat16 until the returned object is disposed of; see
   * {@link TokenizerModel.narrowDecoder}. `encode` still computes in float32.
   *
   * @throws RangeError for a tokenizer that is not one of this library's.
   */
  narrowDecoder(): PackedLayers {
    if (this.vq instanceof TokenizerModel) return this.vq.narrowDecoder();
    const remedy = "Set precision.tokenizer to float32";
    throw expected("FrozenTokenizer.narrowDecoder", "an IBQ or a VQModel", this.vq.constructor.name, remedy);
  }

  #requireFinite(where: string, images: Tensor): void {
    if (images.device === "meta") return;
    if (images.isfinite().all().item() === 0) {
      const remedy = "Its weights are not finite, or far too large: load others";
      throw expected(where, `finite images from ${this.vq.constructor.name}`, "NaN or infinity", remedy);
    }
    this.#isSound = true;
  }

  /** Free the model, if it has `dispose`. */
  dispose(): void {
    if (this.vq instanceof Module) this.vq.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

/**
 * Freeze a tokenizer that is already loaded: an {@link IBQ}, a {@link VQModel}, or any {@link ImageTokenizer}.
 *
 * @throws TypeError for anything else, such as the path of a file.
 */
export function buildTokenizerFrozen(model: ImageTokenizer): FrozenTokenizer {
  const isTokenizer = typeof model?.encode === "function" && typeof model.decodeCode === "function";
  if (!isTokenizer) {
    const remedy = "openTokenizer(path) loads a file";
    throw expectedType("buildTokenizerFrozen", "a tokenizer with encode and decodeCode", model, remedy);
  }
  return new FrozenTokenizer(model);
}
