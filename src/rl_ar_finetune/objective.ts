/**
 * The objective of one optimizer step and its gradient: policy loss, KL to the reference, entropy, cross-entropy and
 * value loss are summed here, in micro-batches, each forward, loss and backward. The weights of tokens are computed
 * beforehand for all rows of the step, so the size of a micro-batch changes memory but not results. The losses
 * themselves are in `losses.ts`; `optimize.ts` chooses among them; `update.ts` clips and steps.
 */
import { accumulateGradients, gatherValues, reduceGradients } from "../distributed/index.js";
import type { Module } from "../nn/index.js";
import type { ArPolicy } from "../policies/policy.js";
import { noGrad, stack, type Tensor, tidy } from "../torch/index.js";
import {
  type Aggregation,
  bindingClips,
  type KlLossKind,
  klEstimate,
  klLoss,
  type PolicyLoss,
  tokenWeights,
  valueLoss,
} from "./losses.js";
import { readNumbers } from "./sampling.js";
import {
  ownRangesOf,
  type Passes,
  type Scores,
  type States,
  scoreRows,
  sliceRows,
  statesOf,
} from "./scoring.js";

/**
 * The rows of one optimizer step (a window), with everything computed before the step; every tensor has one row for
 * each row of a forward pass.
 */
export interface Window {
  readonly passes: Passes;
  /** Hidden states of all rows with their autograd graph; null to compute them here. */
  readonly states: States | null;
  /** float `[R, K, T]`: log-probabilities under the policy that drew the codes. */
  readonly oldLogprobs: Tensor;
  /** float64 `[R, K, T]`: 1 where a token counts. */
  readonly mask: Tensor;
  /** float64 `[R, K, T]`: the mask after token dropout, for the policy's loss and the KL. */
  readonly policyMask: Tensor;
  /** float64 `[R, K, T]` or `[R, K, 1]`. */
  readonly advantages: Tensor;
  /** float `[R, K, T]`: log-probabilities under the reference. */
  readonly referenceLogprobs: Tensor | null;
  /** float64 `[R, T]` and `[R, K, T]`. */
  readonly oldValues: Tensor | null;
  readonly returns: Tensor | null;
  /** int64 `[R, T]`: true codes, where a group shares its context. */
  readonly trueCodes: Tensor | null;
  /** int64 `[R, T]`: the true code at each drawn position; null without {@link Objective.codeDistance}. */
  readonly targets: Tensor | null;
  /** True codes as rows of a separate forward pass, if sequences are conditioned on their own codes. */
  readonly prior: Passes | null;
}

/** Weight of the expected distance between the drawn and the true code, and float `[V, D]` codes as points. */
export interface CodeDistance {
  readonly weight: number;
  readonly vectors: Tensor;
}

/** Weight of the KL divergence of how often codes are drawn from how often images have them, and float `[V]` its logarithms. */
export interface CodeFrequencyLoss {
  readonly weight: number;
  /** `log(P_k / Q_k)`, as `CodeFrequency` counts it. */
  readonly logRatio: Tensor;
}

/** The terms of the loss. */
export interface Objective {
  readonly policyLoss: (
    logprobs: Tensor,
    oldLogprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
  ) => PolicyLoss;
  /** Where the ratio is clipped, for counting. */
  readonly clip: readonly [low: number, high: number];
  readonly aggregation: Aggregation;
  readonly maxLen?: number;
  readonly entropyCoef: number;
  readonly auxCe: number;
  readonly codeDistance: CodeDistance | null;
  readonly codeFrequency: CodeFrequencyLoss | null;
  readonly kl: {
    readonly coef: number;
    readonly reference: ArPolicy;
    readonly kind: KlLossKind | "exact";
  } | null;
  readonly value: {
    readonly head: Module & { forward(hidden: Tensor): Tensor };
    readonly coef: number;
    readonly clip?: number;
    readonly detachTrunk: boolean;
  } | null;
}

/** Sums over a window, by name: tokens are counted in `tokens`, losses are the window's own means. */
export type WindowSums = Record<string, number>;

/**
 * Add the gradient of a window's loss to the parameters.
 *
 * Several processes share the rows of the window; their gradients and sums are then all-reduced. Synchronizes with the
 * GPU once, at the end, to read the sums.
 *
 * @param trained - the parameters whose gradients the processes add up; default the policy's.
 * @param microBatch - rows of a forward pass; the last one may have fewer.
 */
export function windowGradient(
  policy: ArPolicy,
  window: Window,
  objective: Objective,
  microBatch: number,
  trained: readonly Tensor[] = policy.parameters(),
): WindowSums {
  return tidy(() => {
    const { passes, states } = window;
    const rows = windowRows(window, objective);
    // With states from the rollout there is one autograd graph, through which one backward pass is possible.
    const size = states === null ? microBatch : passes.rows;
    const parts = ownRangesOf(passes, size).map(([from, count]) => () => {
      const some = narrowRows(rows, from, count);
      return microBatchGradient(policy, sliceRows(passes, from, count), states, some, objective, passes.rows);
    });
    const { prior } = window;
    if (prior !== null && objective.auxCe !== 0) {
      for (const [from, count] of ownRangesOf(prior, microBatch))
        parts.push(() => priorGradient(policy, prior, from, count, objective.auxCe));
    }
    const sums = accumulateGradients(trained, parts, tidy);
    reduceGradients(trained);
    return reducedSums(readSums(sums));
  });
}

type Optional = "referenceLogprobs" | "oldValues" | "returns" | "trueCodes" | "targets";
type Rows = Partial<Record<Optional, Tensor>> &
  Record<"oldLogprobs" | "mask" | "advantages" | "policyWeights" | "weights", Tensor>;

/** Every tensor of a window that has one row for each row of a forward pass. */
function windowRows(window: Window, objective: Objective): Rows {
  const { oldLogprobs, mask, policyMask, advantages } = window;
  const { referenceLogprobs, oldValues, returns, trueCodes, targets } = window;
  return {
    oldLogprobs,
    mask,
    advantages,
    policyWeights: tokenWeights(policyMask, objective.aggregation, objective.maxLen),
    weights: tokenWeights(mask, "mean"), // for entropy and values
    ...(referenceLogprobs && { referenceLogprobs }),
    ...(oldValues && { oldValues }),
    ...(returns && { returns }),
    ...(trueCodes && { trueCodes }),
    ...(targets && { targets }),
  };
}

function narrowRows(rows: Rows, from: number, count: number): Rows {
  const entries = Object.entries(rows).map(([name, tensor]) => [name, tensor.narrow(0, from, count)]);
  return Object.fromEntries(entries) as Rows;
}

/** Forward, loss and backward of some rows; sums without a graph, see {@link readSums}. */
function microBatchGradient(
  policy: ArPolicy,
  passes: Passes,
  given: States | null,
  rows: Rows,
  objective: Objective,
  totalRows: number,
): Record<string, Tensor> {
  const { kl, value, entropyCoef, auxCe, codeDistance, codeFrequency } = objective;
  const { policyWeights, weights } = rows;
  const states = given ?? statesOf(policy, passes);
  const scores = scoreRows(policy, passes, states, {
    wantsEntropy: entropyCoef !== 0,
    ...(auxCe !== 0 && rows.trueCodes && { trueCodes: rows.trueCodes }),
    ...(kl?.kind === "exact" && { reference: kl.reference }),
    ...(codeDistance &&
      rows.targets && { distance: { trueCodes: rows.targets, vectors: codeDistance.vectors } }),
    ...(codeFrequency && { costs: codeFrequency.logRatio }),
  });
  const { logprobs, entropy, truth, distance, cost } = scores; // [r, K, T], and [r, T] each
  const advantages = rows.advantages.to({ dtype: logprobs.dtype });
  const surrogate = objective.policyLoss(logprobs, rows.oldLogprobs, advantages, rows.mask);
  const terms: Record<string, Tensor> = { policy: weighted(surrogate.loss, policyWeights) };
  if (kl !== null) terms.kl = weighted(klOf(kl.kind, scores, rows), policyWeights).mul(kl.coef);
  if (entropy !== null) terms.entropy = weighted(entropy.unsqueeze(1), weights).mul(-entropyCoef);
  if (truth !== null) terms.aux_ce = truth.sum().mul(-auxCe / (totalRows * truth.size(1)));
  if (distance !== null && codeDistance !== null)
    terms.code_distance = weighted(forAll(distance, logprobs), weights).mul(codeDistance.weight);
  if (cost !== null && codeFrequency !== null)
    terms.code_frequency = weighted(forAll(cost, logprobs), weights).mul(codeFrequency.weight);
  const counts: Record<string, Tensor> = {};
  if (value !== null && rows.oldValues !== undefined && rows.returns !== undefined) {
    const hidden = value.detachTrunk ? states.hidden.detach() : states.hidden;
    const values = forAll(value.head.forward(hidden), logprobs);
    const options = { dtype: values.dtype };
    const oldValues = rows.oldValues.to(options).unsqueeze(1);
    const { loss, isClipped } = valueLoss(values, oldValues, rows.returns.to(options), value.clip);
    terms.value = weighted(loss, weights).mul(value.coef);
    counts.value_clipped = isClipped.mul(rows.mask).sum();
  }
  const total = Object.values(terms).reduce((a, b) => a.add(b));
  total.backward();
  return noGrad(() => {
    const losses = Object.entries({ ...terms, total }).map(([name, loss]) => [`loss/${name}`, loss.detach()]);
    return {
      ...Object.fromEntries(losses),
      ...counts,
      ...statistics(scores, surrogate.ratio, rows, objective),
    };
  });
}

/** `[r, T]`, one per position, for all K of `like` `[r, K, T]`. */
const forAll = (perPosition: Tensor, like: Tensor): Tensor => perPosition.unsqueeze(1).expand(...like.shape);

/** `sum(weights * loss)`, in the loss's dtype; the loss is broadcast over K. */
function weighted(loss: Tensor, weights: Tensor): Tensor {
  return loss.mul(weights.to({ dtype: loss.dtype })).sum();
}

/** KL to the reference per token: `[r, K, T]`, or `[r, 1, T]` for the exact KL. */
function klOf(kind: KlLossKind | "exact", scores: Scores, rows: Rows): Tensor {
  if (kind === "exact") return (scores.kl as Tensor).unsqueeze(1);
  return klLoss(scores.logprobs, rows.referenceLogprobs as Tensor, kind);
}

/** Cross-entropy of true codes in a forward pass of their own. */
function priorGradient(
  policy: ArPolicy,
  prior: Passes,
  from: number,
  count: number,
  auxCe: number,
): Record<string, Tensor> {
  const { logprobs } = scoreRows(policy, sliceRows(prior, from, count), null);
  const loss = logprobs.sum().mul(-auxCe / (prior.rows * logprobs.size(2)));
  loss.backward();
  return { "loss/aux_ce": loss.detach(), "loss/total": loss.detach() };
}

/** Sums over tokens that count, and extremes, whose names end in `_max` and `_min`. */
function statistics(scores: Scores, ratio: Tensor, rows: Rows, objective: Objective): Record<string, Tensor> {
  const logprobs = scores.logprobs.detach();
  const { mask, oldLogprobs, advantages, referenceLogprobs } = rows;
  const rho = ratio.expand(...logprobs.shape);
  const clips = bindingClips(rho, advantages, objective.clip);
  const isCounted = mask.ne(0);
  const sum = (x: Tensor): Tensor => x.mul(mask).sum();
  const change = logprobs.sub(oldLogprobs);
  const gap = change.abs();
  const result: Record<string, Tensor> = {
    tokens: mask.sum(),
    ratio: sum(rho),
    ratio_off: sum(rho.sub(1).abs()),
    ratio_max: rho.maskedFill(isCounted.logicalNot(), -Infinity).amax(),
    ratio_min: rho.maskedFill(isCounted.logicalNot(), Infinity).amin(),
    logp_gap: sum(gap),
    logp_gap_max: gap.maskedFill(isCounted.logicalNot(), 0).amax(),
    clip_low: sum(clips.low),
    clip_high: sum(clips.high),
    // The old policy drew, so this is KL(old || new): d = old - new.
    kl_k1: sum(change.neg()),
    kl_k3: sum(klEstimate(oldLogprobs, logprobs, "k3")),
  };
  if (scores.entropy !== null) result.entropy = sum(forAll(scores.entropy.detach(), mask));
  if (scores.kl !== null) result.ref_exact = sum(forAll(scores.kl.detach(), mask));
  if (referenceLogprobs !== undefined) {
    for (const kind of ["k1", "k2", "k3"] as const)
      result[`ref_${kind}`] = sum(klEstimate(logprobs, referenceLogprobs, kind));
  }
  return result;
}

/**
 * Sums over micro-batches, and extremes of those whose names end in `_max` and `_min`. Added up on the device and read
 * at once.
 */
export function readSums(parts: readonly Record<string, Tensor>[]): WindowSums {
  return tidy(() => {
    const names = [...new Set(parts.flatMap((part) => Object.keys(part)))];
    const totals = names.map((name) => {
      const values = stack(parts.flatMap((part) => (part[name] === undefined ? [] : [part[name].double()])));
      if (name.endsWith("_max")) return [name, values.amax()] as const;
      return [name, name.endsWith("_min") ? values.amin() : values.sum()] as const;
    });
    return readNumbers(Object.fromEntries(totals));
  });
}

/** Sums of all processes, extremes where a name ends in `_max` and `_min`; each adds up as {@link readSums} does. */
export function reducedSums(own: WindowSums): WindowSums {
  const parts = gatherValues(own);
  if (parts.length === 1) return own;
  const result: WindowSums = {};
  for (const part of parts) addSums(result, part);
  return result;
}

/** Add sums to others, extremes where a name ends in `_max` and `_min`. */
export function addSums(to: WindowSums, sums: WindowSums): void {
  for (const [name, value] of Object.entries(sums)) {
    const before = to[name];
    if (before === undefined) to[name] = value;
    else if (name.endsWith("_max")) to[name] = Math.max(before, value);
    else to[name] = name.endsWith("_min") ? Math.min(before, value) : before + value;
  }
}
