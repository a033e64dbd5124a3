/**
 * Classifier-free guidance: the mix of conditional and unconditional logits, its strength along the sequence, and one
 * policy run on both halves at once. Sampling from the result is elsewhere.
 *
 * Ho and Salimans 2022, "Classifier-Free Diffusion Guidance"; the growing strength after Gao et al. 2023, "MDTv2"; the
 * interval after Kynkäänniemi et al. 2024, "Applying Guidance in a Limited Interval".
 */
import { cat, expected, type Tensor, tensor, tidy } from "../torch/index.js";
import { concatConditions } from "./condition.js";
import { placeOf } from "./layers.js";
import type { ArPolicy, Condition, DecodeCache } from "./policy.js";

/** How strongly each code of a sequence is guided. */
export interface Guidance {
  /** s; 1 is the conditional model itself, 0 the unconditional one. */
  scale: number;
  /**
   * `constant`: s throughout. `power_cosine`: from 1 to s along the sequence, `1 + (1 - cos(pi (i / N)^p)) / 2 * (s - 1)`
   * for code i of N.
   */
  schedule?: "constant" | "power_cosine";
  /** p; above 1 the strength comes later. */
  power?: number;
  /**
   * Codes `[from, to)` that are guided; the others have scale 1. LlamaGen's `cfg_interval` k is `[0, k + 2]` (it counts
   * steps after the first).
   */
  interval?: readonly [from: number, to: number];
}

/** Scale of code `i` of `n`. */
export function guidanceScale(guidance: Guidance, i: number, n: number): number {
  const { scale, schedule = "constant", power = 1, interval } = guidance;
  if (interval !== undefined && (i < interval[0] || i >= interval[1])) return 1;
  switch (schedule) {
    case "constant":
      return scale;
    case "power_cosine":
      return 1 + ((1 - Math.cos(Math.PI * (i / n) ** power)) / 2) * (scale - 1);
    default:
      schedule satisfies never;
      throw expected("guidance.schedule", "constant or power_cosine", schedule);
  }
}

/**
 * `uncond + (cond - uncond) * scale`; `cond` itself where the scale is 1.
 *
 * @param scale - a number, or a tensor that broadcasts over the logits.
 */
export function combineGuidance(cond: Tensor, uncond: Tensor, scale: number | Tensor): Tensor {
  if (scale === 1) return cond;
  return tidy(() => uncond.lerp(cond, scale));
}

/** Condition and null condition as one batch of 2B, the conditional half first: what a guided cache is filled with. */
export function guidedCondition(policy: ArPolicy, condition: Condition): Condition {
  return concatConditions(condition, policy.nullCondition(condition));
}

/**
 * Teacher-forced logits under guidance, with gradients through both halves.
 *
 * @param tokens - int64 `[B, n]`.
 * @returns float32 `[B, n + 1, V]`; position i is guided as code i of `policy.blockSize`.
 */
export function guidedLogits(
  policy: ArPolicy,
  tokens: Tensor,
  condition: Condition,
  guidance: Guidance,
): Tensor {
  return tidy(() => {
    const both = policy.forward(cat([tokens, tokens]), guidedCondition(policy, condition));
    const [cond, uncond] = both.chunk(2) as [Tensor, Tensor];
    const count = cond.size(1);
    const scales = Array.from({ length: count }, (_, i) => guidanceScale(guidance, i, policy.blockSize));
    if (scales.every((scale) => scale === scales[0]))
      return combineGuidance(cond, uncond, scales[0] as number);
    return combineGuidance(cond, uncond, tensor(scales, placeOf(cond)).unsqueeze(1));
  });
}

/**
 * Fill a cache of 2B sequences with the first codes under condition and null condition.
 *
 * @param tokens - int64 `[B, n]`.
 * @returns float32 `[B, V]`: guided logits of code n.
 */
export function guidedPrefill(
  policy: ArPolicy,
  cache: DecodeCache,
  tokens: Tensor,
  condition: Condition,
  scale: number,
): Tensor {
  return tidy(() => {
    const both = policy.prefill(cache, cat([tokens, tokens]), guidedCondition(policy, condition));
    const [cond, uncond] = both.chunk(2) as [Tensor, Tensor];
    return combineGuidance(cond, uncond, scale);
  });
}

/**
 * One step under guidance, in a cache that {@link guidedPrefill} filled.
 *
 * @param token - int64 `[B]`.
 * @returns float32 `[B, V]`: guided logits of the next code.
 */
export function guidedDecode(policy: ArPolicy, cache: DecodeCache, token: Tensor, scale: number): Tensor {
  return tidy(() => {
    const [cond, uncond] = policy.decode(cache, cat([token, token])).chunk(2) as [Tensor, Tensor];
    return combineGuidance(cond, uncond, scale);
  });
}
