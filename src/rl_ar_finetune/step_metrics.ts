/** Metrics of an iteration beside those of its update: the rollout, its rewards, and the machine. */

import { takePeakBytes } from "../run/clock.js";
import { type Spread, spreadOf } from "../run/metrics.js";
import { call, callTensor, cudaMemory, type Device, memory, type Tensor, tidy } from "../torch/index.js";
import type { Term } from "./rewards.js";
import type { Rollout } from "./rollout.js";

/** Rewards as they are measured, whatever the policy is credited with. */
export interface PlainRewards {
  /** float64 `[B, G]`: weighted sum of the terms. */
  readonly total: Tensor;
  /** float64 `[B, G]` by name, in the metrics' own units. */
  readonly terms: Readonly<Record<string, Tensor>>;
}

/**
 * What a rollout was like.
 *
 * `reward/{vq_ceiling,gap}` (the reward of the reconstructions, and how far off the mean is), `reward/group_std`,
 * `reward/<term>/weighted` (means with weight and sign, which sum to `reward/mean`), `policy/entropy` (nats) and
 * `policy/entropy_frac` (of log V), `tokens/codebook_usage`, `tokens/token_perplexity` (exp of the entropy of how often
 * each code was drawn), `tokens/unique_frac` (sequences that differ from all others before them).
 *
 * @param ceiling - float64 `[B, 1]`: rewards of the images' own codes.
 */
export function rolloutMetrics(
  rollout: Rollout,
  plain: PlainRewards,
  ceiling: Tensor,
  terms: readonly Term[],
  codebookSize: number,
): Record<string, number> {
  return tidy(() => {
    const { tokens, entropy } = rollout;
    const [mean, best] = [meanOf(plain.total), meanOf(ceiling)];
    const counts = tokens.flatten().bincount(codebookSize).double();
    const used = counts.div(counts.sum());
    const usage = callTensor<Tensor>("aten::special_entr", [used]).sum().exp().item();
    const sequences = tokens.flatten(0, 1); // [N, T]
    const different = (call("aten::unique_dim", [sequences, 0]) as Tensor[])[0] as Tensor;
    const nats = meanOf(entropy);
    const weighted = terms.map(({ name, weight, sign }) => {
      return [`reward/${name}/weighted`, weight * sign * meanOf(plain.terms[name] as Tensor)] as const;
    });
    return {
      "reward/vq_ceiling": best,
      "reward/gap": best - mean,
      "reward/group_std": plain.total.size(1) > 1 ? plain.total.std(1).mean().item() : 0,
      ...Object.fromEntries(weighted),
      "policy/entropy": nats,
      "policy/entropy_frac": nats / Math.log(codebookSize),
      "tokens/codebook_usage": counts.ne(0).sum().item() / codebookSize,
      "tokens/token_perplexity": usage,
      "tokens/unique_frac": different.size(0) / sequences.size(0),
    };
  });
}

/** The rewards' spread, by name; each becomes a mean, std, min and max. */
export function rewardSpreads({ total, terms }: PlainRewards): Record<string, Spread> {
  const named = Object.entries(terms).map(([name, values]) => [`reward/${name}`, values] as const);
  return Object.fromEntries(
    [["reward", total] as const, ...named].map(([name, values]) => [
      name,
      spreadOf(tidy(() => values.flatten().toList() as number[])),
    ]),
  );
}

/** Pace and memory: `perf/...`; peaks are those since the call before. */
export function machineMetrics(
  seconds: number,
  { tokens, images }: { readonly tokens?: number | undefined; readonly images: number },
  device: Device,
): Record<string, number> {
  return {
    "perf/step_s": seconds,
    ...(tokens !== undefined && { "perf/tokens_per_s": tokens / seconds }),
    "perf/images_per_s": images / seconds,
    "perf/rss_gb": process.memoryUsage.rss() / 2 ** 30,
    "perf/peak_gb": takePeakBytes() / 2 ** 30,
    ...(device.startsWith("cuda") && {
      "perf/gpu_mem_peak_gb": cudaMemory(device, { resetPeak: true }).peakAllocated / 2 ** 30,
    }),
    "perf/native_tensors": memory().tensors,
  };
}

const meanOf = (tensor: Tensor): number => tensor.mean().item();
