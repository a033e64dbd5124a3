/**
 * Losses as functions of tensors: policy gradients with and without clipping, KL to a reference, the value head's
 * error, the weights that turn losses of tokens into one number, and the control of the KL coefficient between updates.
 * `objective.ts` adds them up. `docs/algorithms.md` has every formula with its source.
 *
 * Deviations from the papers:
 * - `exp` of a log-ratio or log-difference above 20 is replaced by its tangent at 20: float32 would soon overflow, and a
 *   clamp would have no gradient where the policy differs most.
 * - `klLoss` with k3 has the value of k3 and the gradient of k2. The gradient of k3 itself, which GRPO uses, is on
 *   average that of KL(reference || policy); that of k1 is 0 on average; that of k2 is that of KL(policy || reference).
 * - The KL coefficient is controlled by the KL per token, not by a sequence's sum, so that a target does not depend on
 *   the number of codes; and by the low-variance estimate that is logged as `kl/ref`, where the paper takes k1.
 */
import {
  call,
  emptyLike,
  expected,
  functional as F,
  type Generator,
  onesLike,
  type Tensor,
  tidy,
  where,
} from "../torch/index.js";
import { uniforms } from "./sampling.js";

/** Above this log-ratio or log-difference the exponential is replaced by its tangent. */
const LOG_LIMIT = 20;

/** `exp(x)`; above {@link LOG_LIMIT} the tangent at that point, which is finite and has a gradient. */
const boundedExp = (x: Tensor): Tensor => x.clamp(null, LOG_LIMIT).exp().add(beyondLimit(x));

/** `exp(x) - 1` in the same way. */
const boundedExpm1 = (x: Tensor): Tensor => x.clamp(null, LOG_LIMIT).expm1().add(beyondLimit(x));

/** The difference between the tangent and the clamped exponential; 0 up to the limit. */
const beyondLimit = (x: Tensor): Tensor => x.sub(LOG_LIMIT).relu().mul(Math.exp(LOG_LIMIT));

/** Losses of tokens, and the importance ratio. */
export interface PolicyLoss {
  /** float `[..., T]`: the loss of each token; with one ratio per sequence, its tokens share one loss. */
  readonly loss: Tensor;
  /** New probability over old, no gradient: `[..., T]`, or `[..., 1]` with one ratio per sequence. */
  readonly ratio: Tensor;
}

/** The clip of {@link pgLoss}. */
export interface ClipOptions {
  /** The ratio may fall to 1 - clipLow; default 0.2. */
  readonly clipLow?: number;
  /** The ratio may rise to 1 + clipHigh; default clipLow. */
  readonly clipHigh?: number;
  /** c > 1: for A < 0 the loss is at most -c A; default no limit. */
  readonly dualClip?: number;
  /** One ratio per token (default), or one per sequence: the geometric mean over its tokens. */
  readonly level?: "token" | "sequence";
  /** bool or float, broadcast to `[..., T]`: tokens that count in a sequence's ratio. */
  readonly mask?: Tensor;
}

/**
 * The clipped surrogate loss: `-min(rho A, clip(rho, 1 - clipLow, 1 + clipHigh) A)`, `rho = exp(logp - oldLogp)`.
 *
 * At rho = 1 its gradient is that of `-A logp`, REINFORCE's.
 *
 * @param logprobs - float `[..., T]`, nats: under the policy as it is now.
 * @param oldLogprobs - float `[..., T]`, nats, no gradient: under the policy that drew the tokens.
 * @param advantages - broadcast to `[..., T]`; `[..., 1]` with `level: "sequence"`.
 * @see Schulman et al. 2017, "Proximal Policy Optimization Algorithms", eq. 7, arXiv 1707.06347; Yu et al. 2025,
 *   "DAPO", Clip-Higher, arXiv 2503.14476 (two sides); Ye et al. 2020, "Mastering Complex Control in MOBA Games",
 *   arXiv 1912.09729 (dual clip); Zheng et al. 2025, "Group Sequence Policy Optimization", eq. 5 and 7, arXiv 2507.18071.
 */
export function pgLoss(
  logprobs: Tensor,
  oldLogprobs: Tensor,
  advantages: Tensor,
  options: ClipOptions = {},
): PolicyLoss {
  const { clipLow = 0.2, clipHigh = clipLow, dualClip, level = "token", mask } = options;
  return tidy(() => {
    const ratio = ratioOf(logprobs, oldLogprobs, level, mask);
    const plain = ratio.mul(advantages);
    const clipped = ratio.clamp(1 - clipLow, 1 + clipHigh).mul(advantages);
    let gain = plain.minimum(clipped);
    if (dualClip !== undefined) {
      if (!(dualClip > 1)) throw expected("pgLoss.dualClip", "a number above 1", dualClip);
      gain = where(advantages.lt(0), gain.maximum(advantages.mul(dualClip)), gain);
    }
    return { loss: gain.neg().expand(...logprobs.shape), ratio: ratio.detach() };
  });
}

/**
 * CISPO: `-min(rho, ratioCap) A logp`, in which the ratio is a constant, so that every token keeps its gradient.
 *
 * @see MiniMax 2025, "MiniMax-M1", arXiv 2506.13585. Only the upper side is capped, as there and in TRL.
 */
export function cispoLoss(
  logprobs: Tensor,
  oldLogprobs: Tensor,
  advantages: Tensor,
  ratioCap = 5,
): PolicyLoss {
  return tidy(() => {
    const ratio = ratioOf(logprobs, oldLogprobs, "token").detach();
    return { loss: ratio.clamp(null, ratioCap).mul(advantages).mul(logprobs).neg(), ratio };
  });
}

/**
 * REINFORCE: `-A logp`. The old log-probabilities are used only for the reported ratio.
 *
 * @see Williams 1992, "Simple Statistical Gradient-Following Algorithms for Connectionist Reinforcement Learning".
 */
export function reinforceLoss(logprobs: Tensor, oldLogprobs: Tensor, advantages: Tensor): PolicyLoss {
  return tidy(() => ({
    loss: logprobs.mul(advantages).neg(),
    ratio: ratioOf(logprobs.detach(), oldLogprobs, "token"),
  }));
}

/**
 * Tokens whose gradient the clip removes: a ratio below `1 - clipLow` whose advantage is negative, or above
 * `1 + clipHigh` whose advantage is positive. bool, in the shape of the ratio.
 */
export function bindingClips(
  ratio: Tensor,
  advantages: Tensor,
  [clipLow, clipHigh]: readonly [number, number],
): { low: Tensor; high: Tensor } {
  return tidy(() => ({
    low: ratio.lt(1 - clipLow).logicalAnd(advantages.lt(0)),
    high: ratio.gt(1 + clipHigh).logicalAnd(advantages.gt(0)),
  }));
}

function ratioOf(logprobs: Tensor, oldLogprobs: Tensor, level: "token" | "sequence", mask?: Tensor): Tensor {
  const difference = logprobs.sub(oldLogprobs);
  if (level === "token") return boundedExp(difference);
  if (mask === undefined) return boundedExp(difference.mean(-1, { keepdim: true }));
  const weight = mask.to({ dtype: logprobs.dtype }).expand(...logprobs.shape);
  const count = weight.sum(-1, { keepdim: true }).clamp(1);
  const mean = difference.mul(weight).sum(-1, { keepdim: true }).div(count); // [..., 1]
  return boundedExp(mean);
}

/** How losses of tokens become one number; see {@link tokenWeights}. */
export type Aggregation = "mean" | "sum" | "grpo" | "bnpo" | "dapo" | "dr_grpo";

/**
 * Weights w of tokens such that `sum(w * loss)` is the loss of one optimizer step. They are computed once for all rows
 * of the step, before these are divided into micro-batches, so the result does not depend on the micro-batches.
 *
 * - `mean`, which is `dapo` and `bnpo`: mean over the tokens that count.
 * - `grpo`: mean over sequences of the mean over their tokens.
 * - `dr_grpo`: sum over tokens / (sequences * maxLen).
 * - `sum`: mean over sequences of the sum over their tokens, as REINFORCE's expectation has it.
 *
 * If all tokens count, all but `sum` are equal, because the sequences of a rollout have the same length. They differ
 * with a mask.
 *
 * @param mask - bool or float `[..., T]`: 1 where a token counts.
 * @param maxLen - for `dr_grpo`; default T.
 * @returns float64 in the shape of the mask.
 * @see Yu et al. 2025, "DAPO", eq. 8, arXiv 2503.14476; Shao et al. 2024, "DeepSeekMath", eq. 3, arXiv 2402.03300; Liu
 *   et al. 2025, "Understanding R1-Zero-Like Training", sec. 3.2, arXiv 2503.20783.
 */
export function tokenWeights(mask: Tensor, aggregation: Aggregation, maxLen?: number): Tensor {
  return tidy(() => {
    const m = mask.double();
    const t = m.size(-1);
    const sequences = m.numel / t;
    switch (aggregation) {
      case "mean":
      case "dapo":
      case "bnpo":
        return m.div(m.sum().clamp(1));
      case "grpo":
        return m.div(m.sum(-1, { keepdim: true }).clamp(1).mul(sequences));
      case "dr_grpo":
        return m.div(sequences * (maxLen ?? t));
      case "sum":
        return m.div(sequences);
    }
    aggregation satisfies never;
    throw expected("tokenWeights", "mean, sum, grpo, bnpo, dapo or dr_grpo", aggregation);
  });
}

/**
 * A mask with tokens dropped at random; at least one counted token of each sequence is kept.
 *
 * @param mask - float `[..., T]`: 1 where a token counts.
 * @param p - probability of dropping a token, in [0, 1).
 * @param generator - on the CPU.
 */
export function tokenDropout(mask: Tensor, p: number, generator?: Generator): Tensor {
  if (!(p >= 0 && p < 1)) throw expected("tokenDropout", "a probability in [0, 1)", p);
  return tidy(() => {
    const u = uniforms("tokenDropout", mask.shape, generator, mask);
    const score = where(mask.ne(0), u, -1);
    const best = score.eq(score.amax(-1, true)); // kept in any case
    return mask.mul(u.ge(p).logicalOr(best));
  });
}

/** Estimators of KL(policy || reference) from codes that the policy drew; see {@link klEstimate}. */
export type KlEstimator = "k1" | "k2" | "k3";

/**
 * Estimates of KL(policy || reference) per token, from `d = logp - referenceLogp`: k1 = d, k2 = d^2 / 2,
 * k3 = exp(-d) - 1 + d. Each has its own gradient; to minimise a KL use {@link klLoss}.
 *
 * @param logprobs - float `[..., T]`, nats: of tokens that the policy drew.
 * @param referenceLogprobs - float `[..., T]`, nats: of the same tokens.
 * @see Schulman 2020, "Approximating KL Divergence".
 */
export function klEstimate(logprobs: Tensor, referenceLogprobs: Tensor, estimator: KlEstimator): Tensor {
  return tidy(() => {
    const d = logprobs.sub(referenceLogprobs);
    switch (estimator) {
      case "k1":
        return d;
      case "k2":
        return d.square().div(2);
      case "k3":
        return boundedExpm1(d.neg()).add(d);
    }
    estimator satisfies never;
    throw expected("klEstimate", "k1, k2 or k3", estimator);
  });
}

/** What {@link klLoss} can minimise; `"k3_own"` is k3 with its own gradient, as in GRPO's paper and in TRL. */
export type KlLossKind = KlEstimator | "k3_own";

/**
 * A KL per token to minimise: the value of the estimator with the gradient `d * grad logp`, which on tokens that the
 * policy drew is on average the gradient of KL(policy || reference).
 *
 * @param logprobs - float `[..., T]`, nats.
 * @param referenceLogprobs - float `[..., T]`, nats, no gradient.
 * @throws RangeError for k1: as a loss its gradient is 0 on average.
 */
export function klLoss(logprobs: Tensor, referenceLogprobs: Tensor, kind: KlLossKind): Tensor {
  if (kind === "k1") {
    const remedy =
      "The gradient of k1 is 0 on average: it adds noise and no pull. Put k1 into the reward, or use k3";
    throw expected("klLoss", "k2, k3 or k3_own in the loss", kind, remedy);
  }
  return tidy(() => {
    if (kind === "k3_own") return klEstimate(logprobs, referenceLogprobs, "k3");
    const k2 = klEstimate(logprobs, referenceLogprobs, "k2");
    if (kind === "k2") return k2;
    const k3 = klEstimate(logprobs.detach(), referenceLogprobs, "k3");
    return k2.add(k3.sub(k2.detach()));
  });
}

/**
 * KL(policy || reference) of whole distributions, summed over all codes: no variance.
 *
 * Codes that the policy cannot draw add nothing; a code that only the reference cannot draw makes it infinite.
 *
 * @param logprobs - float `[..., V]`, nats; -Infinity for codes that cannot be drawn. The reference's likewise.
 * @returns float `[...]`, nats.
 */
export function exactKl(logprobs: Tensor, referenceLogprobs: Tensor): Tensor {
  return tidy(() => {
    const isCut = logprobs.eq(-Infinity);
    return logprobs.exp().mul(logprobs.sub(referenceLogprobs).maskedFill(isCut, 0)).sum(-1);
  });
}

/**
 * The value head's error per token, `max((V - R)^2, (clip(V, V_old +- clip) - R)^2) / 2`, or without a clip
 * `(V - R)^2 / 2`.
 *
 * @param values - float `[..., T]`, with a gradient.
 * @param oldValues - float `[..., T]`: before the update.
 * @param returns - float `[..., T]`, from `gae`.
 * @param clip - how far a value may move from the old one; no clip when omitted.
 * @returns the loss, and bool where the clipped error is the larger one, both `[..., T]`.
 * @see Schulman et al. 2017, eq. 9 (without the clip, which is that of OpenAI's baselines).
 */
export function valueLoss(
  values: Tensor,
  oldValues: Tensor,
  returns: Tensor,
  clip?: number,
): { loss: Tensor; isClipped: Tensor } {
  return tidy(() => {
    const plain = values.sub(returns).square();
    if (clip === undefined) return { loss: plain.div(2), isClipped: plain.lt(0) };
    const near = oldValues.add(values.sub(oldValues).clamp(-clip, clip));
    const clipped = near.sub(returns).square();
    return { loss: plain.maximum(clipped).div(2), isClipped: clipped.gt(plain) };
  });
}

/**
 * Part of the returns' variance that the values explain, `1 - Var(R - V) / Var(R)`: 1 is perfect, 0 no better than
 * the mean. Over all tokens that count at once, since parts of micro-batches cannot be averaged.
 *
 * @returns float64 scalar; NaN where the returns do not vary.
 */
export function explainedVariance(returns: Tensor, values: Tensor, mask?: Tensor): Tensor {
  return tidy(() => {
    const [r, v] = [returns.detach().double(), values.detach().double()];
    const weight = mask === undefined ? onesLike(r) : mask.double().expand(...r.shape);
    const variance = (x: Tensor): Tensor => {
      const mean = x.mul(weight).sum().div(weight.sum());
      return x.sub(mean).square().mul(weight).sum();
    };
    const total = variance(r);
    return where(total.eq(0), Number.NaN, variance(r.sub(v)).div(total).neg().add(1));
  });
}

/**
 * Straight-through Gumbel-softmax: the one-hot vector of a code drawn from the softmax of the logits, with the gradient
 * of `softmax((logits + Gumbel noise) / tau)`. Its product with the codebook is the input of a frozen decoder.
 *
 * @param logits - float `[..., V]`.
 * @param options.tau - temperature of the soft draw; default 1.
 * @param options.generator - on the device of the logits.
 * @returns `[..., V]` in the dtype of the logits.
 * @see Jang et al. 2017, "Categorical Reparameterization with Gumbel-Softmax", sec. 2.2.
 */
export function straightThroughGumbel(
  logits: Tensor,
  options: { tau?: number; generator?: Generator } = {},
): Tensor {
  const { tau = 1, generator } = options;
  if (!(tau > 0)) throw expected("straightThroughGumbel.tau", "a positive number", tau);
  return tidy(() => {
    const race = exponential(logits.detach(), generator);
    const soft = logits.sub(race.log()).div(tau).softmax(-1);
    const hard = F.oneHot(soft.argmax(-1), logits.size(-1)).to({ dtype: soft.dtype });
    return hard.add(soft.sub(soft.detach()));
  });
}

function exponential(like: Tensor, generator?: Generator): Tensor {
  const race = call("aten::exponential_", [emptyLike(like), 1, generator ?? null]) as Tensor;
  return race.clamp_(1e-30); // 0 would be an infinite logit
}

/** Relative errors of the KL are clamped to this. */
const LARGEST_ERROR = 0.2;

/** Smallest coefficient: from 0 it could not rise again. */
const LEAST_COEF = 1e-8;

/** Decay of the running mean per iteration. */
const DECAY = 0.9;

/**
 * The KL coefficient after a rollout: times `1 + clamp(kl / target - 1, -0.2, 0.2) * sequences / horizon`.
 *
 * The factor stays in [0.5, 2] for any horizon, and the coefficient at 1e-8 or above. A KL that is not finite changes
 * nothing.
 *
 * @see Ziegler et al. 2019, "Fine-Tuning Language Models from Human Preferences", sec. 2.2.
 */
export function adaptedCoef(
  coef: number,
  kl: number,
  options: { target: number; horizon: number; sequences: number },
): number {
  const { target, horizon, sequences } = options;
  if (!Number.isFinite(kl)) return coef;
  const error = Math.min(Math.max(kl / target - 1, -LARGEST_ERROR), LARGEST_ERROR);
  return Math.max(coef * Math.min(Math.max(1 + (error * sequences) / horizon, 0.5), 2), LEAST_COEF);
}

/**
 * The weight of the entropy bonus after a rollout: `delta` more where the entropy was below the target, `delta` less where
 * it was above, and at least 0. An entropy that is not finite changes nothing.
 *
 * @see He et al. 2025, "Skywork Open Reasoner 1 Technical Report", sec. 4, arXiv 2505.22312, in which the bonus is off above
 *   the target too.
 */
export function adaptedEntropyCoef(
  coef: number,
  entropy: number,
  { target, delta }: { target: number; delta: number },
): number {
  if (!Number.isFinite(entropy) || entropy === target) return coef;
  return Math.max(coef + (entropy < target ? delta : -delta), 0);
}

/** A running mean after one more value, `0.9 * mean + 0.1 * value`; the first value itself. Only finite values count. */
export function runningMean(mean: number | null, value: number): number | null {
  if (!Number.isFinite(value)) return mean;
  return mean === null ? value : DECAY * mean + (1 - DECAY) * value;
}
