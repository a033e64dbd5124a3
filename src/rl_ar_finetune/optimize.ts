/**
 * Policy updates: REINFORCE, RLOO, GRPO and its variants, PPO with its value head. Each computes advantages from
 * rewards and chooses the loss; `update.ts` does the rest. `docs/algorithms.md` has every formula with its source.
 *
 * Deviations from the papers, beside those of `advantages.ts` and `losses.ts`:
 * - old log-probabilities are those recorded in sampling, so that a ratio also corrects for differences between
 *   sampling and update; the difference is measured before the first step, and a large one is an error;
 * - means are over the window of an optimizer step, never over a micro-batch;
 * - groups whose rewards are all the same have advantage 0 and still count in those means;
 * - there may be one reward per token, where the papers have one per sequence: a token is then credited with its own
 *   reward and, discounted, with later ones;
 * - KL in the loss is not multiplied by the importance ratio in later steps on a rollout;
 * - PPO's value loss trains only the value head by default, and advantages are standardized over the rollout;
 * - dropout is off throughout.
 */
import { Linear, Module } from "../nn/index.js";
import type { ArPolicy } from "../policies/policy.js";
import { arange, type Device, expected, expectedType, noGrad, type Tensor, tidy } from "../torch/index.js";
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
import type { Objective } from "./objective.js";
import { requireChoice, requireNumber, withoutDropout } from "./sampling.js";
import { gatherRows, scoredByAll, statesOf } from "./scoring.js";
import {
  asRows,
  type KlOptions,
  type Optimizer,
  type Prepared,
  prepare,
  type ReferenceScores,
  readUpdate,
  runUpdate,
  scoreReference,
  UPDATE_NAMES,
  type UpdateArguments,
  type UpdateBatch,
  type UpdateOptions,
  type UpdateResult,
} from "./update.js";

export { type BatchPlan, planBatches } from "./batches.js";
export type { CodeDistance, CodeFrequencyLoss } from "./objective.js";
export type {
  KlOptions,
  Optimizer,
  UpdateArguments,
  UpdateBatch,
  UpdateOptions,
  UpdateResult,
} from "./update.js";

/** Options of {@link reinforceUpdate}. */
export type ReinforceOptions = UpdateOptions & SpreadOptions;

/** Options of {@link rlooUpdate}. */
export type RlooOptions = UpdateOptions & Pick<SpreadOptions, "minStd">;

const SPREAD_NAMES = { epsilon: "number", minStd: "number" } as const;

/**
 * REINFORCE: advantages are the rewards standardized over the batch, the loss is `-mean over sequences of sum_t A
 * logp_t - entropyCoef * entropy`.
 *
 * Log-probabilities are computed again, with gradients, and only compared with those of the batch. There is no
 * importance ratio that corrects for earlier steps on the same rollout: for more than one step per rollout use
 * `grpoUpdate`.
 *
 * @param given - a batch and {@link ReinforceOptions}: tokens int64 `[N, T]`, logprobs float `[N, T]`, rewards float
 *   `[N]` or `[N, T]`, or a rollout `[B, G, ...]`. Or tokens, logprobs, rewards, mask, entropyCoef, maxGradNorm in this
 *   order, as in Python.
 * @returns steps taken and skipped, and metrics; the parameters' gradients are set to none.
 * @throws Error when the batch's log-probabilities are not those of the policy: see `maxRatioGap`. RangeError or
 *   TypeError for an argument that is unknown, missing or out of range.
 * @see Williams 1992, "Simple Statistical Gradient-Following Algorithms for Connectionist Reinforcement Learning".
 */
export function reinforceUpdate(
  policy: ArPolicy,
  optimizer: Optimizer,
  ...given: UpdateArguments<ReinforceOptions>
): UpdateResult {
  const where = "reinforceUpdate";
  const { batch, options } = readUpdate<ReinforceOptions>(where, policy, given, {
    ...UPDATE_NAMES,
    ...SPREAD_NAMES,
  });
  checkSpread(where, options);
  const advantagesOf = (rewards: Tensor): Advantages => standardizedAdvantages(rewards, options);
  const defaults = { aggregation: "sum" as const, ...options };
  return policyUpdate(where, policy, optimizer, batch, defaults, advantagesOf, plainObjective);
}

/**
 * REINFORCE with the mean of the group's other rewards as the baseline.
 *
 * @param given - a rollout with rewards `[B, G]` or `[B, G, T]`, G >= 2, and {@link RlooOptions}; or as for
 *   {@link reinforceUpdate}.
 * @see Ahmadian et al. 2024, "Back to Basics: Revisiting REINFORCE Style Optimization", arXiv 2402.14740.
 */
export function rlooUpdate(
  policy: ArPolicy,
  optimizer: Optimizer,
  ...given: UpdateArguments<RlooOptions>
): UpdateResult {
  const where = "rlooUpdate";
  const { batch, options } = readUpdate<RlooOptions>(where, policy, given, {
    ...UPDATE_NAMES,
    minStd: "number",
  });
  checkSpread(where, options);
  const advantagesOf = (rewards: Tensor): Advantages => rlooAdvantages(rewards, options);
  const defaults = { aggregation: "sum" as const, ...options };
  return policyUpdate(where, policy, optimizer, batch, defaults, advantagesOf, plainObjective);
}

const plainObjective = { policyLoss: reinforceLoss, clip: [Infinity, Infinity] } as const;

/** Options of {@link grpoUpdate}. */
export interface GrpoOptions extends UpdateOptions, SpreadOptions, Omit<ClipOptions, "mask"> {
  /** What a group's centred rewards are divided by; default `"group"`, `"none"` is Dr. GRPO. */
  readonly scale?: "group" | "batch" | "none";
  /** Default `"clip"`; with `"cispo"` every token keeps its gradient, with a weight of at most `ratioCap`. */
  readonly objective?: "clip" | "cispo";
  /** Largest weight of a token with `"cispo"`; default 5. */
  readonly ratioCap?: number;
}

const CLIP_NAMES = { clipLow: "number", clipHigh: "number", dualClip: "number" } as const;

/**
 * GRPO: advantages are rewards relative to their group's, the loss is the clipped surrogate.
 *
 * Defaults: clip 0.2 below and 0.28 above, |advantage| at most 5, one epoch. With one step per rollout no ratio is
 * clipped, and the loss is about 0, but not its gradient. Dr. GRPO (`scale: "none"`), GSPO (`level: "sequence"`) and
 * CISPO (`objective: "cispo"`) are options; the two sides of the clip are DAPO's.
 *
 * @param given - a rollout with rewards `[B, G]` or `[B, G, T]`, G >= 2, and {@link GrpoOptions}; or as for
 *   {@link reinforceUpdate}.
 * @see Shao et al. 2024, "DeepSeekMath", eq. 3, arXiv 2402.03300.
 */
export function grpoUpdate(
  policy: ArPolicy,
  optimizer: Optimizer,
  ...given: UpdateArguments<GrpoOptions>
): UpdateResult {
  const where = "grpoUpdate";
  const { batch, options } = readUpdate<GrpoOptions>(where, policy, given, {
    ...UPDATE_NAMES,
    ...SPREAD_NAMES,
    ...CLIP_NAMES,
    level: true,
    scale: true,
    objective: true,
    ratioCap: "number",
  });
  checkSpread(where, options);
  checkClip(where, options);
  const {
    clipLow = 0.2,
    clipHigh = 0.28,
    dualClip,
    level = "token",
    objective = "clip",
    ratioCap = 5,
  } = options;
  requireChoice(`${where}.level`, level, ["token", "sequence"]);
  requireChoice(`${where}.scale`, options.scale, ["group", "batch", "none"]);
  requireChoice(`${where}.objective`, objective, ["clip", "cispo"]);
  requireNumber(`${where}.ratioCap`, ratioCap, 0);
  const isCispo = objective === "cispo";
  if (isCispo && level === "sequence") {
    throw expected(
      `${where}.level`,
      "token with objective cispo",
      level,
      "CISPO weighs each token by its own ratio",
    );
  }
  for (const signal of [batch.advantages, batch.rewards]) {
    if (level === "token" || signal?.shape.join() !== batch.tokens.shape.join()) continue;
    throw expected(where, "one number per sequence with level sequence", signal);
  }
  const advantagesOf = (rewards: Tensor): Advantages => groupAdvantages(rewards, options);
  const clip = { clipLow, clipHigh, level, ...(dualClip !== undefined && { dualClip }) };
  const loss = {
    policyLoss: (logprobs: Tensor, oldLogprobs: Tensor, advantages: Tensor, mask: Tensor) =>
      isCispo
        ? cispoLoss(logprobs, oldLogprobs, advantages, ratioCap)
        : pgLoss(logprobs, oldLogprobs, advantages, { ...clip, mask }),
    clip: isCispo ? ([Infinity, ratioCap - 1] as const) : ([clipLow, clipHigh] as const),
  };
  const defaults = { advantageClip: 5, ...options };
  return policyUpdate(where, policy, optimizer, batch, defaults, advantagesOf, loss);
}

function checkSpread(where: string, { epsilon, minStd }: SpreadOptions): void {
  if (epsilon !== undefined) requireNumber(`${where}.epsilon`, epsilon, 0);
  if (minStd !== undefined) requireNumber(`${where}.minStd`, minStd, 0);
}

function checkClip(
  where: string,
  { clipLow, clipHigh, dualClip }: Omit<ClipOptions, "mask" | "level">,
): void {
  if (clipLow !== undefined) requireNumber(`${where}.clipLow`, clipLow, 0);
  if (clipHigh !== undefined) requireNumber(`${where}.clipHigh`, clipHigh, 0);
  if (dualClip !== undefined && !(typeof dualClip === "number" && dualClip > 1))
    throw expected(`${where}.dualClip`, "a number above 1", dualClip);
}

/** REINFORCE, RLOO and GRPO, which have no value head. */
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
      const reference = kl && scoreReference(policy, prepared, kl);
      const signal = {
        ...advantagesOfBatch(where, batch, prepared, reference, advantagesOf, options),
        reference,
      };
      const objective = { ...loss, ...objectiveOf(options, kl), value: null };
      return runUpdate(where, policy, optimizer, prepared, signal, objective, options);
    }),
  );
}

/** Advantages `[R, K, 1]` or `[R, K, T]` from a batch's rewards, after the KL penalty; or the batch's own. */
function advantagesOfBatch(
  where: string,
  batch: UpdateBatch,
  prepared: Prepared,
  reference: ReferenceScores | null,
  advantagesOf: (rewards: Tensor) => Advantages,
  options: UpdateOptions,
): { advantages: Tensor; isConstant: Tensor | null } {
  const { passes, mask } = prepared;
  if ((batch.rewards === undefined) === (batch.advantages === undefined)) {
    const got = batch.rewards === undefined ? "neither" : "both";
    throw expectedType(where, "either rewards or advantages", got);
  }
  if (batch.rewards === undefined) {
    if (reference?.penalty) throw expectedType(where, "rewards with kl.placement reward", "advantages");
    const advantages = batch.advantages as Tensor;
    checkPerSequence(where, "advantages", advantages, batch.tokens);
    return { advantages: asRows(advantages.detach().double(), passes), isConstant: null };
  }
  checkPerSequence(where, "rewards", batch.rewards, batch.tokens);
  const rewards = batch.rewards.double();
  const penalty = reference?.penalty?.mul(mask); // [R, K, T]
  if (!isByPlace(batch)) {
    const sums = penalty?.sum(2).reshape(...rewards.shape);
    const { advantages, isConstant } = advantagesOf(sums ? rewards.sub(sums) : rewards);
    return { advantages: asRows(advantages, passes), isConstant };
  }
  if (batch.mask !== undefined) {
    // With a mask, the means of a group would be over different numbers of sequences at different places.
    throw expectedType(where, "no mask with rewards per token", "one", "Set the rewards of such tokens to 0");
  }
  const [b, g, t] = batch.tokens.ndim === 3 ? batch.tokens.dims(3) : batch.tokens.unsqueeze(1).dims(3);
  const rewardRows = asRows(rewards, passes);
  const returns = returnsToGo(penalty ? rewardRows.sub(penalty) : rewardRows, options.creditDecay ?? 1);
  const { advantages, isConstant } = advantagesOf(returns.reshape(b, g, t));
  return { advantages: asRows(advantages, passes), isConstant };
}

/** Whether there is one reward per token. */
const isByPlace = ({ rewards, tokens }: UpdateBatch): boolean =>
  rewards?.shape.join() === tokens.shape.join();

function checkPerSequence(where: string, name: string, given: Tensor, tokens: Tensor): void {
  const perSequence = tokens.shape.slice(0, -1);
  const [a, b, c] = [given.shape.join(), perSequence.join(), tokens.shape.join()];
  if (a === b || a === c) return;
  throw expected(where, `${name} [${perSequence.join(", ")}] or in the shape of the tokens`, given);
}

/** The parts of the objective that every update shares. */
function objectiveOf(
  options: UpdateOptions,
  kl: Required<KlOptions> | null,
): Omit<Objective, "policyLoss" | "clip" | "value"> {
  const { aggregation = "mean", maxLen, entropyCoef = 0, auxCe = 0, codeDistance, codeFrequency } = options;
  const active = <T extends { readonly weight: number }>(term: T | undefined): T | null =>
    term !== undefined && term.weight !== 0 ? term : null;
  const inLoss = kl !== null && kl.placement === "loss" && kl.coef !== 0;
  return {
    aggregation,
    ...(maxLen !== undefined && { maxLen }),
    entropyCoef,
    auxCe,
    codeDistance: active(codeDistance),
    codeFrequency: active(codeFrequency),
    kl: inLoss ? { coef: kl.coef, reference: kl.reference, kind: kl.estimator } : null,
  };
}

function klWithDefaults(kl: KlOptions | undefined, usual: "loss" | "reward"): Required<KlOptions> | null {
  if (kl === undefined) return null;
  if (kl.coef === 0) return { ...kl, placement: "loss", estimator: "k3" }; // measured alone
  const { placement = usual, estimator = placement === "loss" ? "k3" : "k1" } = kl;
  return { ...kl, placement, estimator };
}

/**
 * PPO's value head: one number per position, `V = weight . hidden + bias`, from the hidden states that the policy's
 * output head reads. Weight and bias start at 0, so that the first advantages depend only on the rewards.
 *
 * Give its parameters to the optimizer beside the policy's; a new head usually needs a larger learning rate.
 */
export class ValueHead extends Module {
  readonly out: Linear;

  /** @param hiddenSize - D of the policy. */
  constructor(hiddenSize: number) {
    super();
    if (!Number.isInteger(hiddenSize) || hiddenSize < 1) {
      const remedy = "Give the policy's: new ValueHead(policy.hiddenSize)";
      throw expected("ValueHead", "a hidden size, an integer of at least 1", hiddenSize, remedy);
    }
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

/** Options of {@link ppoUpdate}. */
export interface PpoOptions
  extends UpdateOptions,
    Omit<GaeOptions, "mask">,
    Omit<ClipOptions, "mask" | "level"> {
  /** Its parameters belong in the optimizer, beside the policy's. */
  readonly valueHead: ValueHead;
  /** Weight of the value loss; default 0.1. */
  readonly valueCoef?: number;
  /** How far a value may move from the old one; default 0.2, null for no clip. */
  readonly valueClip?: number | null;
  /**
   * Whether the gradient of the value loss stops at the value head, so that it does not change the policy; default
   * true.
   */
  readonly detachTrunk?: boolean;
  /** Whether advantages get mean 0 and standard deviation 1 over the rollout; default true. */
  readonly whiten?: boolean;
}

/**
 * PPO: generalised advantage estimates from a value head, the clipped surrogate, several epochs.
 *
 * The reward of a sequence is given to its last token, unless there is one reward per token. KL to a reference is
 * subtracted from each token's reward unless it is part of the loss. Where a group shares its context, one value per
 * position serves all its sequences. Defaults: 4 epochs, clip 0.2, gamma 1, lambda 0.95, target KL 0.02 (above 1.5
 * times that the remaining steps are skipped).
 *
 * @param given - a rollout with rewards `[B, G]` or `[B, G, T]`, G >= 1, and {@link PpoOptions}; or as for
 *   {@link reinforceUpdate}, with `valueHead` among the options.
 * @see Schulman et al. 2017, "Proximal Policy Optimization Algorithms", arXiv 1707.06347.
 */
export function ppoUpdate(
  policy: ArPolicy,
  optimizer: Optimizer,
  ...given: UpdateArguments<PpoOptions>
): UpdateResult {
  const where = "ppoUpdate";
  const { batch, options } = readUpdate<PpoOptions>(where, policy, given, {
    ...UPDATE_NAMES,
    ...CLIP_NAMES,
    gamma: "number",
    lambda: "number",
    valueHead: true,
    valueCoef: "number",
    valueClip: "nullable",
    detachTrunk: "boolean",
    whiten: "boolean",
  });
  checkClip(where, options);
  const {
    valueHead,
    valueCoef = 0.1,
    valueClip = 0.2,
    detachTrunk = true,
    clipLow = 0.2,
    dualClip,
  } = options;
  const { clipHigh = clipLow, gamma = 1, lambda = 0.95 } = options;
  if (!(valueHead instanceof ValueHead)) {
    throw expectedType(
      `${where}.valueHead`,
      "a ValueHead",
      valueHead,
      "Make one with new ValueHead(policy.hiddenSize)",
    );
  }
  requireNumber(`${where}.valueCoef`, valueCoef, 0);
  if (valueClip !== null) requireNumber(`${where}.valueClip`, valueClip, 0);
  requireNumber(`${where}.gamma`, gamma, 0, 1);
  requireNumber(`${where}.lambda`, lambda, 0, 1);
  const defaults = { epochs: 4, targetKl: 0.02, ...options };
  const kl = klWithDefaults(options.kl, "reward");
  const clip = { clipLow, clipHigh, ...(dualClip !== undefined && { dualClip }) };
  return tidy(() =>
    withoutDropout(kl ? [policy, kl.reference] : [policy], () => {
      const { rewards, tokens } = batch;
      if (rewards === undefined || batch.advantages !== undefined) {
        const got = rewards === undefined ? "no rewards" : "advantages";
        throw expectedType(where, "rewards, and no advantages", got, "PPO makes its own from the value head");
      }
      checkPerSequence(where, "rewards", rewards, tokens);
      const prepared = prepare(where, batch, defaults);
      const { mask } = prepared;
      const reference = kl && scoreReference(policy, prepared, kl);
      const oldValues = valuesOf(policy, valueHead, prepared); // [R, T]
      const rewardRows = asRows(rewards.double(), prepared.passes); // [R, K, 1] or [R, K, T]
      const score = rewardRows.mul(isByPlace(batch) ? mask : lastCounted(mask)); // [R, K, T]
      const perToken = reference?.penalty ? score.sub(reference.penalty.mul(mask)) : score;
      const values = oldValues.unsqueeze(1).expand(...mask.shape);
      const { advantages, returns } = gae(perToken, values, { gamma, lambda, mask });
      const signal = {
        advantages: (options.whiten ?? true) ? whiten(advantages, mask) : advantages,
        isConstant: null,
        reference,
        oldValues,
        returns,
        scalars: {
          "value/explained_variance": explainedVariance(returns, values, mask),
          "value/mean": oldValues.mean(),
          "value/std": oldValues.std(null, { correction: 0 }),
        },
      };
      const objective: Objective = {
        ...objectiveOf(defaults, kl),
        policyLoss: (logprobs, oldLogprobs, a) => pgLoss(logprobs, oldLogprobs, a, clip),
        clip: [clipLow, clipHigh],
        value: {
          head: valueHead,
          coef: valueCoef,
          ...(valueClip !== null && { clip: valueClip }),
          detachTrunk,
        },
      };
      return runUpdate(where, policy, optimizer, prepared, signal, objective, defaults);
    }),
  );
}

/** Values before the update, float64 `[R, T]`, no gradient. */
function valuesOf(policy: ArPolicy, head: ValueHead, prepared: Prepared): Tensor {
  const { passes, microBatch, states } = prepared;
  return noGrad(() => {
    if (states !== null) return gatherRows(head.forward(states.hidden).double(), passes);
    return scoredByAll(passes, microBatch, (rows) => head.forward(statesOf(policy, rows).hidden).double());
  });
}

/** 1 at the last token of each sequence that counts, float64 `[R, K, T]`. */
function lastCounted(mask: Tensor): Tensor {
  const t = mask.size(-1);
  const position = arange(0, t, 1, { device: mask.device as Device });
  const last = mask.ne(0).mul(position.add(1)).amax(-1, true).sub(1); // -1 where none counts
  return position.eq(last).double();
}
