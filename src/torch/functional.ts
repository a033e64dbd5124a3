/**
 * Functions without state, as in `torch.nn.functional`: linear maps, convolutions, norms, attention, resampling and losses. Layers with weights of
 * their own are in `nn`.
 */
import { readOptions, withDefaults } from "./arguments.js";
import { type Argument, callTensor } from "./call.js";
import { expected } from "./errors.js";
import { tidy } from "./scope.js";
import type { Tensor } from "./tensor.js";

const call = (name: string, args: readonly Argument[], options?: Record<string, Argument>): Tensor =>
  callTensor<Tensor>(name, args, options);

/** How a loss over many elements becomes one number, or stays as it is. */
export type Reduction = "none" | "mean" | "sum";
const REDUCTIONS: Readonly<Record<Reduction, number>> = { none: 0, mean: 1, sum: 2 };

function reductionOf(where: string, reduction: Reduction): number {
  if (Object.hasOwn(REDUCTIONS, reduction)) return REDUCTIONS[reduction];
  throw expected(where, "none, mean or sum as reduction", reduction);
}

/** A size for height and width, or one for both. */
export type Pair = number | readonly [number, number];
const pair = (value: Pair): readonly number[] => (typeof value === "number" ? [value, value] : value);

/** `x @ weight.T + bias`: x `[..., in]`, weight `[out, in]`, bias `[out]`. */
export function linear(x: Tensor, weight: Tensor, bias: Tensor | null = null): Tensor {
  return call("aten::linear", [x, weight, bias]);
}

/** Rows of `weight` `[V, D]` at int64 `index` `[...]`, giving `[..., D]`. */
export function embedding(index: Tensor, weight: Tensor): Tensor {
  return call("aten::embedding", [weight, index]);
}
export interface Conv2dOptions {
  stride?: Pair;
  padding?: Pair;
  dilation?: Pair;
  groups?: number;
}

/** Cross-correlation: x `[B, C, h, w]`, weight `[out, C / groups, kh, kw]`, bias `[out]`. */
export function conv2d(
  x: Tensor,
  weight: Tensor,
  bias: Tensor | null = null,
  options: Conv2dOptions = {},
): Tensor {
  const { stride, padding, dilation, groups } = withDefaults("conv2d", options, {
    stride: 1,
    padding: 0,
    dilation: 1,
    groups: 1,
  });
  return call("aten::conv2d", [x, weight, bias, pair(stride), pair(padding), pair(dilation), groups]);
}

/** Transposed convolution: x `[B, C, h, w]`, weight `[C, out / groups, kh, kw]`, bias `[out]`. */
export function convTranspose2d(
  x: Tensor,
  weight: Tensor,
  bias: Tensor | null = null,
  options: Conv2dOptions & { outputPadding?: Pair } = {},
): Tensor {
  const { stride, padding, outputPadding, dilation, groups } = withDefaults("convTranspose2d", options, {
    stride: 1,
    padding: 0,
    outputPadding: 0,
    dilation: 1,
    groups: 1,
  });
  const args = [x, weight, bias, pair(stride), pair(padding), pair(outputPadding), groups, pair(dilation)];
  return call("aten::conv_transpose2d.input", args);
}

/** Normalise over the last `shape.length` dimensions; weight and bias have that shape. */
export function layerNorm(
  x: Tensor,
  shape: readonly number[],
  weight: Tensor | null = null,
  bias: Tensor | null = null,
  eps = 1e-5,
): Tensor {
  return call("aten::layer_norm", [x, shape, weight, bias, eps]);
}

/**
 * `x / sqrt(mean(x^2) + eps) * weight` over the last `shape.length` dimensions.
 *
 * @see Zhang and Sennrich 2019, "Root Mean Square Layer Normalization", eq. 4.
 */
export function rmsNorm(
  x: Tensor,
  shape: readonly number[],
  weight: Tensor | null = null,
  eps: number | null = null,
): Tensor {
  return call("aten::rms_norm", [x, shape, weight, eps]);
}

/** Normalise each of `groups` groups of channels of x `[B, C, ...]`; weight and bias `[C]`. */
export function groupNorm(
  x: Tensor,
  groups: number,
  weight: Tensor | null = null,
  bias: Tensor | null = null,
  eps = 1e-5,
): Tensor {
  return call("aten::group_norm", [x, groups, weight, bias, eps]);
}

/** Normalise channels of x `[B, C, ...]` by the batch in training, else by the running statistics `[C]`. */
export function batchNorm(
  x: Tensor,
  running: { mean: Tensor | null; var: Tensor | null },
  weight: Tensor | null,
  bias: Tensor | null,
  options: { training: boolean; momentum: number; eps: number },
): Tensor {
  const { training, momentum, eps } = readOptions<typeof options>("batchNorm", [options], {
    names: { training: "boolean", momentum: "number", eps: "number" },
  });
  return call("aten::batch_norm", [
    x,
    weight,
    bias,
    running.mean,
    running.var,
    training,
    momentum,
    eps,
    true,
  ]);
}
interface AttentionOptions {
  /** bool (true: attend) or float (added to the logits), broadcast to `[..., L, S]`. */
  mask?: Tensor;
  dropout?: number;
  /** Query i sees keys 0 ... i; not together with a mask. */
  isCausal?: boolean;
  /** Factor of the logits; 1 / sqrt(D) by default. */
  scale?: number;
  /** Fewer key and value heads than query heads, each serving a group of them. */
  enableGqa?: boolean;
}

/** `softmax(q k^T * scale + mask) v`: q `[..., L, D]`, k `[..., S, D]`, v `[..., S, E]`, giving `[..., L, E]`. */
export function scaledDotProductAttention(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  options: AttentionOptions = {},
): Tensor {
  const { mask, dropout, isCausal, scale, enableGqa } = withDefaults("scaledDotProductAttention", options, {
    mask: null,
    dropout: 0,
    isCausal: false,
    scale: null,
    enableGqa: false,
  });
  return call("aten::scaled_dot_product_attention", [q, k, v, mask, dropout, isCausal, scale, enableGqa]);
}

/** Zero each element with probability `p` and scale the rest by 1 / (1 - p), in training only. */
export function dropout(x: Tensor, p: number, training: boolean): Tensor {
  return call("aten::dropout", [x, p, training]);
}

/** Pad the last dimensions: `[left, right, top, bottom, ...]`, from the last dimension backwards. */
export function pad(
  x: Tensor,
  padding: readonly number[],
  mode: "constant" | "reflect" | "replicate" | "circular" = "constant",
  value: number | null = null,
): Tensor {
  return call("aten::pad", [x, padding, mode, value]);
}

/** Resize images `[B, C, h, w]` to `size`, or by `scale`. */
export function interpolate(
  x: Tensor,
  options: {
    size?: readonly [number, number];
    scale?: number;
    mode?: "nearest" | "nearest-exact" | "bilinear" | "bicubic" | "area";
    alignCorners?: boolean;
    antialias?: boolean;
  },
): Tensor {
  const { size, scale, mode, alignCorners, antialias } = withDefaults("interpolate", options, {
    size: null,
    scale: null,
    mode: "nearest",
    alignCorners: false,
    antialias: false,
  });
  if ((size === null) === (scale === null)) {
    throw expected("interpolate", "either size or scale", size === null ? "neither" : "both");
  }
  const factors = scale === null ? null : [scale, scale];
  switch (mode) {
    case "nearest":
      return call("aten::upsample_nearest2d.vec", [x, size, factors]);
    case "nearest-exact":
      return call("aten::_upsample_nearest_exact2d.vec", [x, size, factors]);
    case "bilinear":
    case "bicubic": {
      const name = antialias ? `aten::_upsample_${mode}2d_aa.vec` : `aten::upsample_${mode}2d.vec`;
      return call(name, [x, size, alignCorners, factors]);
    }
    case "area": {
      const [h, w] = x.shape.slice(-2) as [number, number];
      const out = size ?? [Math.floor(h * (scale as number)), Math.floor(w * (scale as number))];
      return call("aten::adaptive_avg_pool2d", [x, out]);
    }
    default:
      mode satisfies never;
      throw expected("interpolate", "a known mode", mode);
  }
}

/** Mean of windows of x `[B, C, h, w]`. */
export function avgPool2d(
  x: Tensor,
  kernel: Pair,
  options: { stride?: Pair; padding?: Pair; ceilMode?: boolean; countIncludePad?: boolean } = {},
): Tensor {
  const { stride, padding, ceilMode, countIncludePad } = withDefaults("avgPool2d", options, {
    stride: kernel,
    padding: 0,
    ceilMode: false,
    countIncludePad: true,
  });
  return call("aten::avg_pool2d", [
    x,
    pair(kernel),
    pair(stride),
    pair(padding),
    ceilMode,
    countIncludePad,
    null,
  ]);
}

/** Largest value of windows of x `[B, C, h, w]`. */
export function maxPool2d(
  x: Tensor,
  kernel: Pair,
  options: { stride?: Pair; padding?: Pair; ceilMode?: boolean } = {},
): Tensor {
  const { stride, padding, ceilMode } = withDefaults("maxPool2d", options, {
    stride: kernel,
    padding: 0,
    ceilMode: false,
  });
  return call("aten::max_pool2d", [x, pair(kernel), pair(stride), pair(padding), [1, 1], ceilMode]);
}

/** int64 `[...]` to int64 `[..., classes]` with a single one. */
export function oneHot(index: Tensor, classes: number): Tensor {
  return call("aten::one_hot", [index, classes]);
}

/** Divide by the p-norm along `dim`, which is taken as at least `eps`. */
export function normalize(x: Tensor, options: { p?: number; dim?: number; eps?: number } = {}): Tensor {
  const { p, dim, eps } = withDefaults("normalize", options, { p: 2, dim: 1, eps: 1e-12 });
  return tidy(() => x.div(x.norm(p, dim, true).clamp(eps)));
}

/** Cosine of the angle between vectors along `dim`. */
export function cosineSimilarity(a: Tensor, b: Tensor, dim = 1, eps = 1e-8): Tensor {
  return call("aten::cosine_similarity", [a, b, dim, eps]);
}

// ---- Losses ----

/** Negative log-likelihood of int64 `target` `[N, ...]` under the softmax of `logits` `[N, V, ...]`. */
export function crossEntropy(
  logits: Tensor,
  target: Tensor,
  options: { reduction?: Reduction; weight?: Tensor; ignoreIndex?: number; labelSmoothing?: number } = {},
): Tensor {
  const { reduction, weight, ignoreIndex, labelSmoothing } = withDefaults("crossEntropy", options, {
    reduction: "mean",
    weight: null,
    ignoreIndex: -100,
    labelSmoothing: 0,
  });
  const args = [logits, target, weight, reductionOf("crossEntropy", reduction), ignoreIndex, labelSmoothing];
  return call("aten::cross_entropy_loss", args);
}

export function mseLoss(x: Tensor, target: Tensor, reduction: Reduction = "mean"): Tensor {
  return call("aten::mse_loss", [x, target, reductionOf("mseLoss", reduction)]);
}

export function l1Loss(x: Tensor, target: Tensor, reduction: Reduction = "mean"): Tensor {
  return call("aten::l1_loss", [x, target, reductionOf("l1Loss", reduction)]);
}

export function smoothL1Loss(x: Tensor, target: Tensor, reduction: Reduction = "mean", beta = 1): Tensor {
  return call("aten::smooth_l1_loss", [x, target, reductionOf("smoothL1Loss", reduction), beta]);
}

export function binaryCrossEntropyWithLogits(
  logits: Tensor,
  target: Tensor,
  reduction: Reduction = "mean",
): Tensor {
  return call("aten::binary_cross_entropy_with_logits", [
    logits,
    target,
    null,
    null,
    reductionOf("binaryCrossEntropyWithLogits", reduction),
  ]);
}

/** `target * (log(target) - logp)`; with `logTarget` the target too is a log-probability. */
export function klDiv(
  logp: Tensor,
  target: Tensor,
  options: { reduction?: Reduction; logTarget?: boolean } = {},
): Tensor {
  const { reduction, logTarget } = withDefaults("klDiv", options, { reduction: "mean", logTarget: false });
  return call("aten::kl_div", [logp, target, reductionOf("klDiv", reduction)], { log_target: logTarget });
}
