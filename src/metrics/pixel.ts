/**
 * Distances and similarities of images by their pixels: L1, L2, PSNR, SSIM and MS-SSIM, per image or per
 * position. Nothing is clamped or scaled here; RangeGuard checks ranges.
 *
 * SSIM after Wang et al. 2004, "Image Quality Assessment: From Error Visibility to Structural Similarity"; MS-SSIM
 * after Wang et al. 2003, "Multi-scale Structural Similarity for Image Quality Assessment". Differences from the
 * papers, all as in TorchMetrics: colour channels count alike instead of luminance alone, borders are mirrored, and
 * negative terms of MS-SSIM become 0.
 */
import {
  type Device,
  expected,
  functional as F,
  type Tensor,
  tensor,
  tidy,
  withoutAutocast,
} from "../torch/index.js";
import { type ChunkOptions, checkImages, comparePairs } from "./pairs.js";

/** Of [-1, 1]. */
const DYNAMIC_RANGE = 2;

/** Maximum PSNR in dB: higher values would only be float32 rounding. */
const MAX_PSNR = 100;

const WINDOW = 11;
const RADIUS = (WINDOW - 1) / 2;
const SIGMA = 1.5;
const C1 = (0.01 * DYNAMIC_RANGE) ** 2;
const C2 = (0.03 * DYNAMIC_RANGE) ** 2;

/** Exponents from the finest scale to the coarsest, Wang et al. 2003, section 3.2. */
const SCALE_WEIGHTS: readonly number[] = [0.0448, 0.2856, 0.3001, 0.2363, 0.1333];

/** Smallest side on which the coarsest scale still holds a window. */
const MS_SSIM_MIN_SIZE = WINDOW * 2 ** (SCALE_WEIGHTS.length - 1);

/**
 * Mean absolute difference of each sample and its image, in [0, 2] for values in [-1, 1].
 *
 * Differentiable by both; at equal values the gradient is 0.
 *
 * @param images - float `[B, 3, H, W]`.
 * @param samples - float `[B * G, 3, H, W]`; sample n belongs to image floor(n / G).
 * @returns float32 `[B * G]` (float64 for float64 images).
 */
export function l1(images: Tensor, samples: Tensor, options: ChunkOptions = {}): Tensor {
  return comparePairs("l1", images, samples, options, (x, y) => y.sub(x).abs().mean([2, 3, 4]));
}

/** {@link l1} at each position, the mean over colours: float32 `[B * G, H, W]`. */
export function l1Map(images: Tensor, samples: Tensor, options: ChunkOptions = {}): Tensor {
  return comparePairs("l1Map", images, samples, options, (x, y) => y.sub(x).abs().mean(2));
}

/**
 * Mean squared difference of each sample and its image, in [0, 4] for values in [-1, 1].
 *
 * @param images - float `[B, 3, H, W]`.
 * @param samples - float `[B * G, 3, H, W]`; sample n belongs to image floor(n / G).
 * @returns float32 `[B * G]` (float64 for float64 images).
 */
export function l2(images: Tensor, samples: Tensor, options: ChunkOptions = {}): Tensor {
  return comparePairs("l2", images, samples, options, (x, y) => y.sub(x).square().mean([2, 3, 4]));
}

/** {@link l2} at each position, the mean over colours: float32 `[B * G, H, W]`. */
export function l2Map(images: Tensor, samples: Tensor, options: ChunkOptions = {}): Tensor {
  return comparePairs("l2Map", images, samples, options, (x, y) => y.sub(x).square().mean(2));
}

/**
 * Peak signal-to-noise ratio of each sample, dB: `10 log10(2^2 / l2)`, 2 being the width of [-1, 1].
 *
 * At most 100 dB, which identical images get instead of infinity: a reward stays finite, and its gradient there
 * is 0. Rounding to 8 bits alone costs more, it leaves 59 dB. For a figure to compare with others', clamp the
 * samples to [-1, 1] first.
 *
 * @param images - float `[B, 3, H, W]` in [-1, 1].
 * @param samples - float `[B * G, 3, H, W]`; sample n belongs to image floor(n / G).
 * @returns float32 `[B * G]` (float64 for float64 images).
 */
export function psnr(images: Tensor, samples: Tensor, options: ChunkOptions = {}): Tensor {
  const peak = DYNAMIC_RANGE ** 2;
  const floor = peak / 10 ** (MAX_PSNR / 10);
  return comparePairs("psnr", images, samples, options, (x, y) => {
    const error = y.sub(x).square().mean([2, 3, 4]).clamp(floor);
    return error
      .log()
      .rsub(Math.log(peak))
      .mul(10 / Math.LN10);
  });
}

/**
 * Structural similarity of each sample and its image: 1 for identical images, hardly ever below 0.
 *
 * The mean of {@link ssimMap}, borders included: the value of TorchMetrics' `structural_similarity_index_measure`
 * with `data_range=2`. Others differ at the borders: scikit-image skips 5 pixels at each border.
 *
 * Computed in float32 under autocast too, since variances are differences of nearly equal numbers.
 *
 * @param images - float `[B, 3, H, W]` in [-1, 1], at least 11 x 11.
 * @param samples - float `[B * G, 3, H, W]`; sample n belongs to image floor(n / G).
 * @returns float32 `[B * G]` (float64 for float64 images).
 * @see Wang et al. 2004, eq. 13 with the window of eq. 14 to 16 (gaussian, 11 x 11, sigma 1.5), and eq. 17.
 */
export function ssim(images: Tensor, samples: Tensor, options: ChunkOptions = {}): Tensor {
  checkSize("ssim", images, WINDOW, "Compare larger images, or use l2");
  return withoutAutocast(images, () =>
    comparePairs("ssim", images, samples, options, (x, y) => similarity(x, y).ssim.mean([2, 3, 4])),
  );
}

/**
 * {@link ssim} of the window around each position, the mean over colours: float32 `[B * G, H, W]`. Windows that
 * reach beyond the border see the image mirrored, the edge pixel itself not repeated.
 */
export function ssimMap(images: Tensor, samples: Tensor, options: ChunkOptions = {}): Tensor {
  checkSize("ssimMap", images, WINDOW, "Compare larger images, or use l2Map");
  return withoutAutocast(images, () =>
    comparePairs("ssimMap", images, samples, options, (x, y) => similarity(x, y).ssim.mean(2)),
  );
}

/**
 * Structural similarity over five scales, each half the size of the one before: 1 for identical images, never
 * below 0.
 *
 * The value of TorchMetrics' `multiscale_structural_similarity_index_measure` with `data_range=2`: contrast and
 * structure over the windows that lie inside the image on the finer scales, the whole of SSIM with mirrored borders
 * on the coarsest, each mean taken as at least 0. Where one is 0 the result is 0 and so is its gradient.
 *
 * @param images - float `[B, 3, H, W]` in [-1, 1], at least 176 x 176.
 * @param samples - float `[B * G, 3, H, W]`; sample n belongs to image floor(n / G).
 * @returns float32 `[B * G]` (float64 for float64 images).
 * @throws RangeError for smaller images, whose coarsest scale would not hold a window.
 * @see Wang et al. 2003, eq. 7.
 */
export function msSsim(images: Tensor, samples: Tensor, options: ChunkOptions = {}): Tensor {
  checkSize("msSsim", images, MS_SSIM_MIN_SIZE, "Use ssim for smaller ones");
  return withoutAutocast(images, () =>
    comparePairs("msSsim", images, samples, options, (x, y) => {
      let [fineX, fineY] = [x, y];
      let product: Tensor | undefined;
      for (const [scale, weight] of SCALE_WEIGHTS.entries()) {
        const isLast = scale === SCALE_WEIGHTS.length - 1;
        const factor = tidy(() => {
          const { ssim, contrast } = similarity(fineX, fineY);
          return (isLast ? ssim : inside(contrast)).mean([2, 3, 4]).relu().pow(weight); // [b, g]
        });
        product = product?.mul(factor) ?? factor;
        if (!isLast) [fineX, fineY] = [halved(fineX), halved(fineY)];
      }
      return product as Tensor;
    }),
  );
}

function checkSize(where: string, images: Tensor, least: number, remedy: string): void {
  checkImages(where, images);
  const [, , height, width] = images.dims(4);
  if (Math.min(height, width) >= least) return;
  throw expected(where, `images of at least ${least} x ${least}`, `${height} x ${width}`, remedy);
}

/**
 * SSIM and its factor of contrast and structure around every position.
 *
 * @param x - `[b, 1, 3, H, W]`.
 * @param y - `[b, g, 3, H, W]`.
 * @returns both `[b, g, 3, H, W]`.
 */
function similarity(x: Tensor, y: Tensor): { ssim: Tensor; contrast: Tensor } {
  return tidy(() => {
    const window = gaussianWindow(x);
    // One group per channel: other kernels may round the products to TF32 on a GPU, which SSIM does not survive.
    const blur = (z: Tensor): Tensor =>
      F.conv2d(z.flatten(0, 1), window, null, { groups: 3 }).unflatten(0, z.shape.slice(0, 2));
    const [paddedX, paddedY] = [mirrored(x), mirrored(y)];
    const [meanX, meanY] = [blur(paddedX), blur(paddedY)];
    const [squareX, squareY, productXY] = [meanX.square(), meanY.square(), meanY.mul(meanX)];
    const varianceX = blur(paddedX.square()).sub(squareX).clamp(0);
    const varianceY = blur(paddedY.square()).sub(squareY).clamp(0);
    const covariance = blur(paddedY.mul(paddedX)).sub(productXY);
    const upper = covariance.mul(2).add(C2);
    const lower = varianceY.add(varianceX).add(C2);
    const luminanceUpper = productXY.mul(2).add(C1);
    const luminanceLower = squareY.add(squareX).add(C1);
    return { ssim: luminanceUpper.mul(upper).div(luminanceLower.mul(lower)), contrast: upper.div(lower) };
  });
}

/** `[3, 1, 11, 11]`, the same for each channel, in the dtype of `like`. */
function gaussianWindow(like: Tensor): Tensor {
  return tidy(() => {
    const steps = Array.from({ length: WINDOW }, (_, i) => (i - RADIUS) / SIGMA);
    const heights = tensor(steps, { dtype: like.dtype, device: like.device as Device })
      .square()
      .div(-2)
      .exp();
    const line = heights.div(heights.sum()).unsqueeze(0); // [1, 11]
    return line.transpose(0, 1).matmul(line).expand(3, 1, WINDOW, WINDOW);
  });
}

function mirrored(x: Tensor): Tensor {
  const flat = x.flatten(0, 1).contiguous();
  return F.pad(flat, [RADIUS, RADIUS, RADIUS, RADIUS], "reflect").unflatten(0, x.shape.slice(0, 2));
}

/** The part `[..., H - 10, W - 10]` whose windows see no border. */
function inside(map: Tensor): Tensor {
  return map.slice(-2, RADIUS, -RADIUS).slice(-1, RADIUS, -RADIUS);
}

function halved(x: Tensor): Tensor {
  return F.avgPool2d(x.flatten(0, 1), 2).unflatten(0, x.shape.slice(0, 2));
}
