/**
 * Policy updates: REINFORCE, RLOO, GRPO and its kin, PPO. Each turns rewards into advantages and says what is descended;
 * `update.ts` does the rest. Rewards, learning rates, and what to do about a step that was skipped are the loop's affair.
 *
 * Deviations from the papers, beside those of `advantages.ts` and `losses.ts`:
 * - old log-probabilities are the sampler's, so a ratio also corrects for whatever differs between sampling and scoring;
 *   before the first step that difference is measured, and refused when it is large;
 * - means are over the window of an optimizer step, never over a micro-batch;
 * - groups of one reward have advantage 0 and still count in those means;
 * - rewards may come with each token, where the papers have one a sequence: a token is then credited with its own
 *   and, decayed, with later ones, never with earlier ones;
 * - a divergence in the loss is not reweighted for codes that an older policy drew;
 * - PPO's value head does not train the trunk unless asked to, and advantages are whitened over the rollout;
 * - dropout is off throughout.
 */
import { Linear, Module } from "../nn/index.js";
import type { ArPolicy } from "../policies/policy.js";
import {
  arange,
  cat,
  type Device,
  expected,
  expectedType,
  noGrad,
  type Tensor,
  tidy,
} from "../torch/index.js";
import {
  type Advantages,
  type GaeOptions,
  gae,
  groupAdvantages,
  returnsToGo,
  rlooAdvantages,
  type SpreadOptions,
  standardizedAdvantages,
  whiten,
} from "./advantages.js";
import { type ClipOptions, cispoLoss, explainedVariance, pgLoss, reinforceLoss } from "./losses.js";
import { withoutDropout } from "./sampling.js";
import { rangesOf, someRows, statesOf } from "./scoring.js";
import {
  askReference,
  asRows,
  type KlOptions,
  type Optimizer,
  type Prepared,
  prepare,
  type ReferenceView,
  runUpdate,
  type UpdateBatch,
  type UpdateOptions,
  type UpdateResult,
} from "./update.js";
import type { Objective } from "./window.js";

export type { KlOptions, Optimizer, UpdateBatch, UpdateOptions, UpdateResult } from "./update.js";
export { type BatchPlan, planBatches } from "./update.js";

/**
 * REINFORCE: advantages are the rewards whitened over the batch, the loss is
 * `-mean over sequences of sum_t A logp_t - entropyCoef * entropy`.
 *
 * Log-probabilities are computed anew, with gradients; those of the batch only tell how far off that is. Nothing corrects
 * for steps in between: for more than one step a rollout take `grpoUpdate`.
 *
 * @param batch - tokens int64 `[N, T]`, logprobs float `[N, T]`, rewards float `[N]` or `[N, T]`, or a rollout
 *   `[B, G, ...]`.
 * @returns steps taken and skipped, and metrics; the optimizer's gradients are dropped.
 * @throws Error when the batch's log-probabilities are not those of the policy: see `maxRatioGap`.
 */
export function reinforceUpdate(
  policy: ArPolicy,
  optimizer: Optimizer,
  batch: UpdateBatch,
  options: UpdateOptions & SpreadOptions = {},
): UpdateResult {
  const advantagesOf = (rewards: Tensor): Advantages => standardizedAdvantages(rewards, options);
  const defaults = { aggregation: "sum" as const, ...options };
  return policyUpdate("reinforceUpdate", policy, optimizer, batch, defaults, advantagesOf, plainObjective);
}

/**
 * REINFORCE with the mean of the group's other rewards as the baseline.
 *
 * @param batch - a rollout with rewards `[B, G]` or `[B, G, T]`, G >= 2.
 * @see Ahmadian et al. 2024, "Back to Basics: Revisiting REINFORCE Style Optimization", arXiv 2402.14740.
 */
export function rlooUpdate(
  policy: ArPolicy,
  optimizer: Optimizer,
  batch: UpdateBatch,
  options: UpdateOptions & Pick<SpreadOptions, "minStd"> = {},
): UpdateResult {
  const advantagesOf = (rewards: Tensor): Advantages => rlooAdvantages(rewards, options);
  const defaults = { aggregation: "sum" as const, ...options };
  return policyUpdate("rlooUpdate", policy, optimizer, batch, defaults, advantagesOf, plainObjective);
}

const plainObjective = { policyLoss: reinforceLoss, clip: [Infinity, Infinity] } as const;

/** Options of {@link grpoUpdate} beside those of every update. */
export interface GrpoOptions extends UpdateOptions, SpreadOptions, Omit<ClipOptions, "mask"> {
  /** What a group's centred rewards are divided by: `"none"` is Dr. GRPO's, with `aggregation: "dr_grpo"`. */
  readonly scale?: "group" | "batch" | "none";
  /** `"cispo"` keeps every token's gradient and caps its weight at `ratioCap`; no clip then. */
  readonly objective?: "clip" | "cispo";
  /** 5 where left out. */
  readonly ratioCap?: number;
}

/**
 * GRPO: advantages are rewards against their group's, the loss is the clipped surrogate.
 *
 * Defaults: clip 0.2 below and 0.28 above, |advantage| at most 5, one epoch. At one step a rollout nothing is clipped
 * and the loss is about 0: its gradient is what counts. Dr. GRPO, DAPO, BNPO, GSPO (`level: "sequence"`) and CISPO are
 * options.
 *
 * @param batch - a rollout with rewards `[B, G]` or `[B, G, T]`, G >= 2.
 * @see Shao et al. 2024, "DeepSeekMath", eq. 3, arXiv 2402.03300.
 */
export function grpoUpdate(
  policy: ArPolicy,
  optimizer: Optimizer,
  batch: UpdateBatch,
  options: GrpoOptions = {},
): UpdateResult {
  const { clipLow = 0.2, clipHigh = 0.28, dualClip, level = "token", objective = "clip", ratioCap } = options;
  const advantagesOf = (rewards: Tensor): Advantages => groupAdvantages(rewards, options);
  const clip = { clipLow, clipHigh, level, ...(dualClip !== undefined && { dualClip }) };
  for (const signal of [batch.advantages, batch.rewards]) {
    if (level === "token" || signal?.shape.join() !== batch.tokens.shape.join()) continue;
    throw expected("grpoUpdate", "one number a sequence with level sequence", signal);
  }
  const isCispo = objective === "cispo";
  const loss = {
    policyLoss: (logprobs: Tensor, old: Tensor, advantages: Tensor, mask: Tensor) =>
      isCispo
        ? cispoLoss(logprobs, old, advantages, ratioCap)
        : pgLoss(logprobs, old, advantages, { ...clip, mask }),
    clip: isCispo ? ([Infinity, (ratioCap ?? 5) - 1] as const) : ([clipLow, clipHigh] as const),
  };
  const defaults = { aggregation: "grpo" as const, advantageClip: 5, ...options };
  return policyUpdate("grpoUpdate", policy, optimizer, batch, defaults, advantagesOf, loss);
}

/** REINFORCE, RLOO and GRPO: no value head. */
function policyUpdate(
  where: string,
  policy: ArPolicy,
  optimizer: Optimizer,
  batch: UpdateBatch,
  options: UpdateOptions,
  advantagesOf: (rewards: Tensor) => Advantages,
  loss: Pick<Objective, "policyLoss" | "clip">,
): UpdateResult {
  const kl = klWithDefaults(options.kl, "loss");
  return tidy(() =>
    withoutDropout(kl ? [policy, kl.reference] : [policy], () => {
      const prepared = prepare(where, batch, options);
      const view = kl && askReference(policy, prepared, kl);
      const { advantages, isConstant } = signalOf(where, batch, prepared, view, advantagesOf, options);
      const signal = {
        advantages,
        constantGroups: isConstant?.sum().item() ?? 0,
        groups: isConstant?.numel ?? 1,
        view,
      };
      const objective = { ...loss, ...objectiveOf(options, kl), value: null };
      return runUpdate(where, policy, optimizer, prepared, signal, objective, options);
    }),
  );
}

function signalOf(
  where: string,
  batch: UpdateBatch,
  prepared: Prepared,
  view: ReferenceView | null,
  advantagesOf: (rewards: Tensor) => Advantages,
  options: UpdateOptions,
): { advantages: Tensor; isConstant: Tensor | null } {
  const { passes, mask } = prepared;
  if ((batch.rewards === undefined) === (batch.advantages === undefined)) {
    throw expectedType(
      where,
      "either rewards or advantages",
      batch.rewards === undefined ? "neither" : "both",
    );
  }
  if (batch.rewards === undefined) {
    if (view?.penalty) throw expectedType(where, "rewards with the divergence in the reward", "advantages");
    const advantages = batch.advantages as Tensor;
    checkPerSequence(where, "advantages", advantages, batch.tokens);
    return { advantages: asRows(advantages.detach().double(), passes), isConstant: null };
  }
  checkPerSequence(where, "rewards", batch.rewards, batch.tokens);
  const rewards = batch.rewards.double();
  const penalty = view?.penalty?.mul(mask); // [R, K, T]
  if (!isByPlace(batch)) {
    const sums = penalty?.sum(2).reshape(...rewards.shape);
    const { advantages, isConstant } = advantagesOf(sums ? rewards.sub(sums) : rewards);
    return { advantages: asRows(advantages, passes), isConstant };
  }
  if (batch.mask !== undefined) {
    // The mean over a group would be one of different numbers of sequences at different places.
    throw expectedType(where, "no mask with rewards a token", "one", "Set the rewards of such tokens to 0");
  }
  const [b, g, t] = batch.tokens.ndim === 3 ? batch.tokens.dims(3) : batch.tokens.unsqueeze(1).dims(3);
  const owed = asRows(rewards, passes);
  const returns = returnsToGo(penalty ? owed.sub(penalty) : owed, options.creditDecay ?? 1);
  const { advantages, isConstant } = advantagesOf(returns.reshape(b, g, t));
  return { advantages: asRows(advantages, passes), isConstant };
}

/** Whether rewards came with each token. */
const isByPlace = ({ rewards, tokens }: UpdateBatch): boolean =>
  rewards?.shape.join() === tokens.shape.join();

function checkPerSequence(where: string, name: string, given: Tensor, tokens: Tensor): void {
  const perSequence = tokens.shape.slice(0, -1);
  const [a, b, c] = [given.shape.join(), perSequence.join(), tokens.shape.join()];
  if (a === b || a === c) return;
  throw expected(where, `${name} [${perSequence.join(", ")}] or in the shape of the tokens`, given);
}

/** The parts of an objective that every update shares. */
function objectiveOf(
  options: UpdateOptions,
  kl: Required<KlOptions> | null,
): Omit<Objective, "policyLoss" | "clip" | "value"> {
  const { aggregation = "grpo", maxLen, entropyCoef = 0, auxCe = 0 } = options;
  const inLoss = kl !== null && kl.placement === "loss" && kl.coef !== 0;
  return {
    aggregation,
    ...(maxLen !== undefined && { maxLen }),
    entropyCoef,
    auxCe,
    kl: inLoss ? { coef: kl.coef, reference: kl.reference, kind: kl.estimator } : null,
  };
}

function klWithDefaults(kl: KlOptions | undefined, usual: "loss" | "reward"): Required<KlOptions> | null {
  if (kl === undefined) return null;
  if (kl.coef === 0) return { ...kl, placement: "loss", estimator: "k3" }; // only measured
  const { placement = usual, estimator = placement === "loss" ? "k3" : "k1" } = kl;
  return { ...kl, placement, estimator };
}

/**
 * `V = weight . hidden + bias`, both 0 at first: a new head must not disturb the first advantages.
 *
 * Give its parameters to the optimizer beside the policy's; a fresh head usually wants a larger learning rate.
 */
export class ValueHead extends Module {
  readonly out: Linear;

  /** @param hiddenSize - D of the policy. */
  constructor(hiddenSize: number) {
    super();
    this.out = new Linear(hiddenSize, 1);
    noGrad(() => {
      for (const parameter of this.parameters()) parameter.zero_();
    });
  }

  /** Values of hidden states: float `[..., D]` to float32 (float64 for a float64 head) `[...]`. */
  forward(hidden: Tensor): Tensor {
    return tidy(() => this.out.forward(hidden.to({ dtype: this.out.weight.dtype })).squeeze(-1));
  }
}

/** Options of {@link ppoUpdate} beside those of every update. */
export interface PpoOptions
  extends UpdateOptions,
    Omit<GaeOptions, "mask">,
    Omit<ClipOptions, "mask" | "level"> {
  /** Its parameters belong into the optimizer, beside the policy's. */
  readonly valueHead: ValueHead;
  /** 0.1 where left out. */
  readonly valueCoef?: number;
  /** How far a value may move from the old one, 0.2 where left out; null for no clip. */
  readonly valueClip?: number | null;
  /** Whether the value's gradient stops at the trunk, which is where it would harm the policy; true where left out. */
  readonly detachTrunk?: boolean;
  /** Whether advantages get mean 0 and standard deviation 1 over the rollout; true where left out. */
  readonly whiten?: boolean;
}

/**
 * PPO: generalised advantages from a value head, the clipped surrogate, several epochs.
 *
 * A sequence's reward comes with its last token, unless rewards come with each; a divergence from a reference is taken from each token's reward
 * unless placed in the loss. Where a group shares its context one value a position serves all its sequences.
 * Defaults: 4 epochs, clip 0.2, gamma 1, lambda 0.95, target KL 0.02 (the update ends above 1.5 times that, before
 * the step).
 *
 * @param batch - a rollout with rewards `[B, G]` or `[B, G, T]`; G may be 1.
 * @see Schulman et al. 2017, "Proximal Policy Optimization Algorithms", arXiv 1707.06347.
 */
export function ppoUpdate(
  policy: ArPolicy,
  optimizer: Optimizer,
  batch: UpdateBatch,
  options: PpoOptions,
): UpdateResult {
  const where = "ppoUpdate";
  const {
    valueHead,
    valueCoef = 0.1,
    valueClip = 0.2,
    detachTrunk = true,
    clipLow = 0.2,
    clipHigh,
    dualClip,
  } = options;
  const defaults = { epochs: 4, targetKl: 0.02, aggregation: "dapo" as const, ...options };
  const kl = klWithDefaults(options.kl, "reward");
  const clip = { clipLow, clipHigh: clipHigh ?? clipLow, ...(dualClip !== undefined && { dualClip }) };
  return tidy(() =>
    withoutDropout(kl ? [policy, kl.reference] : [policy], () => {
      const { rewards, advantages: given, tokens } = batch;
      if (rewards === undefined || given !== undefined)
        throw expectedType(where, "rewards and no advantages", "others");
      checkPerSequence(where, "rewards", rewards, tokens);
      const prepared = prepare(where, batch, defaults);
      const { mask } = prepared;
      const view = kl && askReference(policy, prepared, kl);
      const oldValues = valuesOf(policy, valueHead, prepared); // [R, T]
      const owed = asRows(rewards.double(), prepared.passes); // [R, K, 1] or [R, K, T]
      const score = owed.mul(isByPlace(batch) ? mask : lastCounted(mask)); // [R, K, T]
      const perToken = view?.penalty ? score.sub(view.penalty.mul(mask)) : score;
      const values = oldValues.unsqueeze(1).expand(...mask.shape);
      const { advantages, returns } = gae(perToken, values, { ...options, mask });
      const signal = {
        advantages: (options.whiten ?? true) ? whiten(advantages, mask) : advantages,
        constantGroups: 0,
        groups: 1,
        view,
        oldValues,
        returns,
      };
      const objective: Objective = {
        ...objectiveOf(defaults, kl),
        policyLoss: (logprobs, old, a) => pgLoss(logprobs, old, a, clip),
        clip: [clip.clipLow, clip.clipHigh],
        value: {
          head: valueHead,
          coef: valueCoef,
          ...(valueClip !== null && { clip: valueClip }),
          detachTrunk,
        },
      };
      const result = runUpdate(where, policy, optimizer, prepared, signal, objective, defaults);
      const metrics = {
        ...result.metrics,
        "value/explained_variance": explainedVariance(returns, values, mask),
        "value/mean": oldValues.mean().item(),
        "value/std": oldValues.std(null, { correction: 0 }).item(),
      };
      return { ...result, metrics };
    }),
  );
}

/** Values before the update, float64 `[R, T]`, without a graph. */
function valuesOf(policy: ArPolicy, head: ValueHead, prepared: Prepared): Tensor {
  const { passes, microBatch, states } = prepared;
  return noGrad(() => {
    if (states !== null) return head.forward(states.hidden).double();
    const parts = rangesOf(passes.rows, microBatch).map(([from, count]) => {
      return tidy(() => head.forward(statesOf(policy, someRows(passes, from, count)).hidden).double());
    });
    return cat(parts);
  });
}

/** 1 at the last token of each sequence that counts, float64 `[R, K, T]`. */
function lastCounted(mask: Tensor): Tensor {
  const t = mask.size(-1);
  const position = arange(0, t, 1, { device: mask.device as Device });
  const last = mask.ne(0).mul(position.add(1)).amax(-1, true).sub(1); // -1 where none counts
  return position.eq(last).double();
}
