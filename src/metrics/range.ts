/**
 * Check that images are in [-1, 1]. For images in [0, 1] the metrics would give plausible but wrong numbers.
 */
import { call, expected, type Tensor, tidy } from "../torch/index.js";

/** Real images, or a decoder's reconstructions of them, go little beyond 1; ImageNet's normalisation goes to 2.6. */
const IMAGE_LIMIT = 1.5;

/** What an untrained decoder makes may go far beyond 1, bytes go further. */
const SAMPLE_LIMIT = 10;

/** Images without a negative value before they are taken to be in [0, 1]. */
const IMAGES_TO_JUDGE = 64;

/**
 * Checks that images are in [-1, 1], across calls.
 *
 * An image, or a whole small batch, may well be pale all over, without any value below 0. So [0, 1] is suspected
 * only when the first 64 images had none, and never again once one had. Each check waits for a GPU once.
 */
export class RangeGuard {
  readonly #where: string;
  #seen = 0;
  #isSigned = false;

  /** @param where - what to name in messages. */
  constructor(where: string) {
    this.#where = where;
  }

  /**
   * Check images of the data set, or reconstructions of them: `[B, ...]`.
   *
   * @throws RangeError for a value beyond 1.5 either way or a NaN; and when, with these, 64 images have been seen
   *   and none held a value below 0.
   */
  checkImages(images: Tensor): void {
    const [low, high] = extremes(images);
    if (!(low >= -IMAGE_LIMIT && high <= IMAGE_LIMIT)) {
      const remedy = "Map bytes to it by x / 127.5 - 1, and [0, 1] by 2 x - 1";
      throw expected(this.#where, "images in [-1, 1]", `values from ${low} to ${high}`, remedy);
    }
    if (low < 0) this.#isSigned = true;
    if (this.#isSigned) return;
    this.#seen += images.shape[0] ?? 1;
    if (this.#seen < IMAGES_TO_JUDGE) return;
    const remedy =
      "If they are in [0, 1], map them by 2 x - 1; if they are that bright, switch the range check off";
    throw expected(this.#where, "images in [-1, 1]", `${this.#seen} images with no value below 0`, remedy);
  }

  /**
   * Check what a decoder made: `[N, ...]`. NaN passes, and makes the metric NaN.
   *
   * @throws RangeError for a value beyond 10 either way: bytes, or a decoder that has diverged.
   */
  checkSamples(samples: Tensor): void {
    const [low, high] = extremes(samples);
    if (!(low < -SAMPLE_LIMIT || high > SAMPLE_LIMIT)) return;
    const remedy = "Map bytes to it by x / 127.5 - 1; clamp what a decoder overshoots";
    throw expected(this.#where, "samples about [-1, 1]", `values from ${low} to ${high}`, remedy);
  }
}

function extremes(x: Tensor): [low: number, high: number] {
  return tidy(() => {
    const [low, high] = call("aten::aminmax", [x.detach()]) as [Tensor, Tensor];
    const both = call("aten::stack", [[low, high]]) as Tensor; // one wait for both
    return [...both.toArray()].map(Number) as [number, number];
  });
}
