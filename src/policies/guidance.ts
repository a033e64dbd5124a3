/**
 * The scale of classifier-free guidance along a sequence. `rl_ar_finetune/sampling.ts` combines the logits.
 *
 * Ho and Salimans 2022, "Classifier-Free Diffusion Guidance"; the rising schedule after Gao et al. 2023, "MDTv2"; the
 * interval after Kynkäänniemi et al. 2024, "Applying Guidance in a Limited Interval".
 */
import { expected } from "../torch/index.js";

/** The guidance scale of each code of a sequence. */
export interface Guidance {
  /** s; 1 is the conditional model itself, 0 the unconditional one. */
  scale: number;
  /**
   * `constant`: s throughout. `power_cosine`: from 1 to s along the sequence, `1 + (1 - cos(pi (i / N)^p)) / 2 * (s - 1)`
   * for code i of N.
   */
  schedule?: "constant" | "power_cosine";
  /** p; above 1 the scale rises later in the sequence. */
  power?: number;
  /**
   * Codes `[from, to)` that have the scale; the others have scale 1. LlamaGen's `cfg_interval` k is `[0, k + 2]` (it
   * counts steps after the first).
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
