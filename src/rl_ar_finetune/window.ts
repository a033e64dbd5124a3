/**
 * The gradient of one optimizer step: rows of a window in micro-batches, each forward, loss and backward. Weights of
 * tokens are made for the whole window beforehand, so how it is cut changes memory and nothing else. Which losses
 * there are is decided in `optimize.ts`, which also clips and steps.
 */
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
import { type Passes, rangesOf, type Scores, type States, scoreRows, someRows, statesOf } from "./scoring.js";

/** What is known of a window's rows before the step; every tensor has a row a pass. */
export interface Window {
  readonly passes: Passes;
  /** The trunk's states of all rows with their graph, or null to run it. */
  readonly states: States | null;
  /** float `[R, K, T]`: log-probabilities under the policy that drew. */
  readonly old: Tensor;
  /** float64 `[R, K, T]`: 1 where a token counts. */
  readonly mask: Tensor;
  /** float64 `[R, K, T]`: the same after token dropout; the policy's loss and the divergence follow it. */
  readonly kept: Tensor;
  /** float64 `[R, K, T]` or `[R, K, 1]`. */
  readonly advantages: Tensor;
  /** float `[R, K, T]`: log-probabilities under the reference. */
  readonly reference: Tensor | null;
  /** float64 `[R, T]` and `[R, K, T]`. */
  readonly oldValues: Tensor | null;
  readonly returns: Tensor | null;
  /** int64 `[R, T]`: true codes of contexts that a group shares. */
  readonly trueCodes: Tensor | null;
  /** True codes as rows of their own, where contexts are the sequences themselves. */
  readonly prior: Passes | null;
}

/** What is descended. */
export interface Objective {
  readonly policyLoss: (logprobs: Tensor, old: Tensor, advantages: Tensor, mask: Tensor) => PolicyLoss;
  /** Where the ratio is clipped, for counting. */
  readonly clip: readonly [low: number, high: number];
  readonly aggregation: Aggregation;
  readonly maxLen?: number;
  readonly entropyCoef: number;
  readonly auxCe: number;
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
 * Waits for the device once, at the end, to read the sums.
 *
 * @param microBatch - rows of a forward pass.
 */
export function windowGradient(
  policy: ArPolicy,
  window: Window,
  objective: Objective,
  microBatch: number,
): WindowSums {
  return tidy(() => {
    const { passes, states } = window;
    const rows = rowsOf(window, objective);
    // With states from the rollout there is one graph, which can be gone through once.
    const size = states === null ? microBatch : passes.rows;
    const sums = rangesOf(passes.rows, size).map(([from, count]) => {
      const some = someOf(rows, from, count);
      return tidy(() =>
        microBatchGradient(policy, someRows(passes, from, count), states, some, objective, passes.rows),
      );
    });
    if (window.prior !== null && objective.auxCe !== 0) {
      for (const [from, count] of rangesOf(window.prior.rows, microBatch)) {
        sums.push(tidy(() => priorGradient(policy, window.prior as Passes, from, count, objective.auxCe)));
      }
    }
    return readSums(sums);
  });
}

type Optional = "reference" | "oldValues" | "returns" | "trueCodes";
type Rows = Partial<Record<Optional, Tensor>> &
  Record<"old" | "mask" | "advantages" | "weights" | "even", Tensor>;

/** Every tensor of a window that has a row a pass. */
function rowsOf(window: Window, objective: Objective): Rows {
  const { old, mask, advantages, reference, oldValues, returns, trueCodes } = window;
  const { aggregation, maxLen } = objective;
  return {
    old,
    mask,
    advantages,
    weights: tokenWeights(window.kept, aggregation, maxLen === undefined ? {} : { maxLen }),
    even: tokenWeights(mask, "dapo"), // a mean over tokens, for entropy and values
    ...(reference && { reference }),
    ...(oldValues && { oldValues }),
    ...(returns && { returns }),
    ...(trueCodes && { trueCodes }),
  };
}

function someOf(rows: Rows, from: number, count: number): Rows {
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
  const { kl, value, entropyCoef, auxCe } = objective;
  const { weights, even } = rows;
  const states = given ?? statesOf(policy, passes);
  const scores = scoreRows(policy, passes, states, {
    wantsEntropy: entropyCoef !== 0,
    ...(auxCe !== 0 && rows.trueCodes && { trueCodes: rows.trueCodes }),
    ...(kl?.kind === "exact" && { reference: kl.reference }),
  });
  const { logprobs, entropy, truth } = scores; // [r, K, T], [r, T], [r, T]
  const advantages = rows.advantages.to({ dtype: logprobs.dtype });
  const surrogate = objective.policyLoss(logprobs, rows.old, advantages, rows.mask);
  const terms: Record<string, Tensor> = { policy: weighted(surrogate.loss, weights) };
  if (kl !== null) terms.kl = weighted(divergence(kl.kind, scores, rows), weights).mul(kl.coef);
  if (entropy !== null) terms.entropy = weighted(entropy.unsqueeze(1), even).mul(-entropyCoef);
  if (truth !== null) terms.aux_ce = truth.sum().mul(-auxCe / (totalRows * truth.size(1)));
  const counts: Record<string, Tensor> = {};
  if (value !== null && rows.oldValues !== undefined && rows.returns !== undefined) {
    const hidden = value.detachTrunk ? states.hidden.detach() : states.hidden;
    const values = forAll(value.head.forward(hidden), logprobs);
    const options = { dtype: values.dtype };
    const old = rows.oldValues.to(options).unsqueeze(1);
    const { loss, isClipped } = valueLoss(values, old, rows.returns.to(options), value.clip);
    terms.value = weighted(loss, even).mul(value.coef);
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

/** `[r, T]`, one a position, for all K of `like` `[r, K, T]`. */
const forAll = (perPosition: Tensor, like: Tensor): Tensor => perPosition.unsqueeze(1).expand(...like.shape);

/** `sum(weights * loss)`, in the loss's dtype; the loss is broadcast over K. */
function weighted(loss: Tensor, weights: Tensor): Tensor {
  return loss.mul(weights.to({ dtype: loss.dtype })).sum();
}

function divergence(kind: KlLossKind | "exact", scores: Scores, rows: Rows): Tensor {
  if (kind === "exact") return (scores.kl as Tensor).unsqueeze(1);
  return klLoss(scores.logprobs, rows.reference as Tensor, kind);
}

/** Cross-entropy of true codes where they are no context of the rollout: rows of a forward pass of their own. */
function priorGradient(
  policy: ArPolicy,
  prior: Passes,
  from: number,
  count: number,
  auxCe: number,
): Record<string, Tensor> {
  const { logprobs } = scoreRows(policy, someRows(prior, from, count), null);
  const loss = logprobs.sum().mul(-auxCe / (prior.rows * logprobs.size(2)));
  loss.backward();
  return { "loss/aux_ce": loss.detach(), "loss/total": loss.detach() };
}

/** Sums over tokens that count, names as in the metrics, and extremes, whose names end in `_max` and `_min`. */
function statistics(scores: Scores, ratio: Tensor, rows: Rows, objective: Objective): Record<string, Tensor> {
  const logprobs = scores.logprobs.detach();
  const { mask, old, advantages, reference } = rows;
  const rho = ratio.expand(...logprobs.shape);
  const clips = bindingClips(rho, advantages, objective.clip);
  const isCounted = mask.ne(0);
  const sum = (x: Tensor): Tensor => x.mul(mask).sum();
  const change = logprobs.sub(old);
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
    // Drawn under the old policy, so KL(old || new): d = old - new.
    kl_k1: sum(change.neg()),
    kl_k3: sum(klEstimate(old, logprobs, "k3")),
  };
  if (scores.entropy !== null) result.entropy = sum(forAll(scores.entropy.detach(), mask));
  if (scores.kl !== null) result.ref_exact = sum(forAll(scores.kl.detach(), mask));
  if (reference !== undefined) {
    for (const kind of ["k1", "k2", "k3"] as const)
      result[`ref_${kind}`] = sum(klEstimate(logprobs, reference, kind));
  }
  return result;
}

/** Add up what micro-batches gave, on the device, and read it at once. */
function readSums(parts: readonly Record<string, Tensor>[]): WindowSums {
  const names = [...new Set(parts.flatMap((part) => Object.keys(part)))];
  const totals = names.map((name) => {
    const values = stack(parts.flatMap((part) => (part[name] === undefined ? [] : [part[name].double()])));
    if (name.endsWith("_max")) return values.amax();
    return name.endsWith("_min") ? values.amin() : values.sum();
  });
  const numbers = stack(totals).toArray(); // waits for the device
  return Object.fromEntries(names.map((name, i) => [name, Number(numbers[i])]));
}
