/** Metrics of an update from the sums of its windows; names are those of `UpdateResult`. */
import { type Tensor, tidy } from "../torch/index.js";
import type { WindowSums } from "./window.js";

/** A sum over tokens as their mean. */
export const perToken = (sums: WindowSums, name: string): number => (sums[name] ?? 0) / (sums.tokens ?? 1);

/** What the advantages of tokens that count are like. */
export function advantageMetrics(
  advantages: Tensor,
  mask: Tensor,
  fracZeroStd: number,
): Record<string, number> {
  return tidy(() => {
    const counted = advantages.expand(...mask.shape).maskedSelect(mask.ne(0));
    const numbers =
      counted.numel === 0
        ? []
        : [
            ["advantage/mean", counted.mean().item()],
            ["advantage/std", counted.std(null, { correction: 0 }).item()],
            ["advantage/min", counted.amin().item()],
            ["advantage/max", counted.amax().item()],
            ["advantage/abs_max", counted.abs().amax().item()],
          ];
    return { ...Object.fromEntries(numbers), "advantage/frac_zero_std": fracZeroStd };
  });
}

/** Sums over the windows of an update. */
export class Progress {
  steps = 0;
  skipped = 0;
  /** Sums of the first window, before any step. */
  first: WindowSums = {};
  #windows = 0;
  #clipped = 0;
  #norm = 0;
  #maxNorm = 0;
  readonly #sums: WindowSums = {};

  add(sums: WindowSums, norm: number, isClipped: boolean, isStep: boolean): void {
    for (const [name, value] of Object.entries(sums)) {
      const before = this.#sums[name];
      if (before === undefined) this.#sums[name] = value;
      else if (name.endsWith("_max")) this.#sums[name] = Math.max(before, value);
      else if (name.endsWith("_min")) this.#sums[name] = Math.min(before, value);
      else this.#sums[name] = before + value;
    }
    this.#windows++;
    this.#norm += norm;
    this.#maxNorm = Math.max(this.#maxNorm, norm);
    if (isClipped) this.#clipped++;
    if (isStep) this.steps++;
  }

  metrics(): Record<string, number> {
    const result: Record<string, number> = { "optim/steps": this.steps, "optim/skipped_steps": this.skipped };
    if (this.#windows === 0) return result;
    const sums = this.#sums;
    for (const name of Object.keys(sums))
      if (name.startsWith("loss/")) result[name] = (sums[name] as number) / this.#windows;
    for (const [name, sum] of PER_TOKEN) if (sums[sum] !== undefined) result[name] = perToken(sums, sum);
    const reference = result["kl/ref_exact"] ?? result["kl/ref_k3"];
    if (reference !== undefined) result["kl/ref"] = reference;
    result["clip_ratio/region_mean"] = perToken(sums, "clip_low") + perToken(sums, "clip_high");
    result["policy/ratio_max"] = sums.ratio_max as number;
    result["policy/ratio_min"] = sums.ratio_min as number;
    result["sampling/logp_diff_mean"] = perToken(this.first, "logp_gap");
    result["sampling/logp_diff_max"] = this.first.logp_gap_max as number;
    result["optim/grad_norm"] = this.#norm / this.#windows;
    result["optim/grad_norm_max"] = this.#maxNorm;
    result["optim/grad_norm_clipped_frac"] = this.#clipped / this.#windows;
    return result;
  }
}

/** Metrics that are means over tokens, and the sums they come from. */
const PER_TOKEN: readonly (readonly [metric: string, sum: string])[] = [
  ["policy/ratio_mean", "ratio"],
  ["policy/entropy", "entropy"],
  ["clip_ratio/low_mean", "clip_low"],
  ["clip_ratio/high_mean", "clip_high"],
  ["kl/approx", "kl_k3"],
  ["kl/approx_k1", "kl_k1"],
  ["kl/ref_k1", "ref_k1"],
  ["kl/ref_k2", "ref_k2"],
  ["kl/ref_k3", "ref_k3"],
  ["kl/ref_exact", "ref_exact"],
  ["value/clip_ratio", "value_clipped"],
];
