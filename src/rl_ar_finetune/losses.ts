/**
 * Losses as functions of tensors: policy gradients with and without clipping, divergence from a reference, the value
 * head's error, the weights that make a sum over tokens the mean that a method asks for, and the control of the KL
 * coefficient between updates. No model is known here.
 *
 * Deviations from the papers:
 * - log-ratios and log-differences are clamped to +-20 before `exp`, where float32 is still far from its limits;
 * - `klLoss` with k3 has k3's value and k2's gradient. The gradient of k3 itself, which GRPO descends, is on average
 *   that of KL(reference || policy); that of k1 is 0 on average; that of k2 is the one of KL(policy || reference).
 * - The KL coefficient is controlled by the KL a token, not a sequence's sum, so that a target does not depend on the
 *   number of codes; and by the low-variance estimate that is logged as `kl/ref`, where the paper takes k1.
 */
import {
  call,
  emptyLike,
  expected,
  functional as F,
  type Generator,
  rand,
  type Tensor,
  tidy,
  where,
} from "../torch/index.js";

/** Largest size of a log-ratio whose `exp` is taken. */
const LOG_LIMIT = 20;

/** A loss a token, and the ratio that it came from. */
export interface PolicyLoss {
  /** In the shape of the log-probabilities (broadcast from one a sequence, where the ratio is). */
  readonly loss: Tensor;
  /** New probability over old: `[..., T]`, or `[..., 1]` with one ratio a sequence. */
  readonly ratio: Tensor;
}

/** The clip of {@link pgLoss}. */
export interface ClipOptions {
  /** The ratio may fall to 1 - clipLow; 0.2 where left out. */
  readonly clipLow?: number;
  /** The ratio may rise to 1 + clipHigh; that of clipLow where left out. */
  readonly clipHigh?: number;
  /** c > 1: for A < 0 the loss is at most -c A. */
  readonly dualClip?: number;
  /** One ratio a token, or one a sequence: the geometric mean over its tokens. */
  readonly level?: "token" | "sequence";
  /** bool or float, broadcast to `[..., T]`: tokens that count in a sequence's ratio. */
  readonly mask?: Tensor;
}

/**
 * The clipped surrogate: `-min(rho A, clip(rho, 1 - clipLow, 1 + clipHigh) A)`, `rho = exp(logp - old)`.
 *
 * At rho = 1 its gradient is that of `-A logp`, REINFORCE's.
 *
 * @param logprobs - float `[..., T]`.
 * @param old - float `[..., T]`, no gradient: of the policy that drew the tokens.
 * @param advantages - broadcast to `[..., T]`; `[..., 1]` with `level: "sequence"`.
 * @see Schulman et al. 2017, "Proximal Policy Optimization Algorithms", eq. 7, arXiv 1707.06347; Yu et al. 2025,
 *   "DAPO", Clip-Higher, arXiv 2503.14476 (two sides); Ye et al. 2020, "Mastering Complex Control in MOBA Games",
 *   arXiv 1912.09729 (dual clip); Zheng et al. 2025, "Group Sequence Policy Optimization", eq. 5 and 7, arXiv 2507.18071.
 */
export function pgLoss(
  logprobs: Tensor,
  old: Tensor,
  advantages: Tensor,
  options: ClipOptions = {},
): PolicyLoss {
  const { clipLow = 0.2, clipHigh = clipLow, dualClip, level = "token", mask } = options;
  return tidy(() => {
    const ratio = ratioOf(logprobs, old, level, mask);
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
 * CISPO: `-min(rho, ratioCap) A logp` with the ratio as a constant, so that no token loses its gradient.
 *
 * @see MiniMax 2025, "MiniMax-M1", arXiv 2506.13585. Only the upper side is capped, as there and in TRL.
 */
export function cispoLoss(logprobs: Tensor, old: Tensor, advantages: Tensor, ratioCap = 5): PolicyLoss {
  return tidy(() => {
    const ratio = ratioOf(logprobs, old, "token").detach();
    return { loss: ratio.clamp(null, ratioCap).mul(advantages).mul(logprobs).neg(), ratio };
  });
}

/**
 * REINFORCE: `-A logp`. The old log-probabilities give the ratio that is reported, and nothing else.
 *
 * @see Williams 1992, "Simple Statistical Gradient-Following Algorithms for Connectionist Reinforcement Learning".
 */
export function reinforceLoss(logprobs: Tensor, old: Tensor, advantages: Tensor): PolicyLoss {
  return tidy(() => ({
    loss: logprobs.mul(advantages).neg(),
    ratio: ratioOf(logprobs.detach(), old, "token"),
  }));
}

/**
 * Where a clip binds: a ratio beyond the bound that its advantage would push it further across. bool, in the shape of
 * the ratio; a ratio off the other way is not clipped and not counted.
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

function ratioOf(logprobs: Tensor, old: Tensor, level: "token" | "sequence", mask?: Tensor): Tensor {
  const difference = logprobs.sub(old);
  if (level === "token") return difference.clamp(-LOG_LIMIT, LOG_LIMIT).exp();
  if (mask === undefined) return difference.mean(-1, { keepdim: true }).clamp(-LOG_LIMIT, LOG_LIMIT).exp();
  const weight = mask.to({ dtype: logprobs.dtype }).expand(...logprobs.shape);
  const count = weight.sum(-1, { keepdim: true }).clamp(1);
  const mean = difference.mul(weight).sum(-1, { keepdim: true }).div(count); // [..., 1]
  return mean.clamp(-LOG_LIMIT, LOG_LIMIT).exp();
}

/** How losses of tokens become one number; see {@link tokenWeights}. */
export type Aggregation = "grpo" | "bnpo" | "dapo" | "dr_grpo" | "sum";

/**
 * Weights w of tokens such that `sum(w * loss)` over the window of one optimizer step is the method's mean. They are
 * made once for the window, before it is cut into micro-batches, so the cut changes nothing.
 *
 * - `grpo`: mean over sequences of the mean over their tokens (Shao et al. 2024, eq. 3).
 * - `bnpo`, `dapo`: mean over all tokens (Yu et al. 2025, token-level loss). Their sources differ in whether the count is that of a
 *   micro-batch or of the window; here it is always the window's.
 * - `dr_grpo`: sum over tokens / (sequences * maxLen) (Liu et al. 2025, sec. 3.2).
 * - `sum`: mean over sequences of the sum over their tokens, the seed's REINFORCE.
 *
 * With sequences of one length that all count, all but `sum` are the same.
 *
 * @param mask - bool or float `[..., T]`: 1 where a token counts.
 * @param options.maxLen - T where left out; for `dr_grpo`.
 * @returns float64 in the shape of the mask.
 */
export function tokenWeights(
  mask: Tensor,
  aggregation: Aggregation,
  options: { maxLen?: number } = {},
): Tensor {
  return tidy(() => {
    const m = mask.double();
    const t = m.size(-1);
    const sequences = m.numel / t;
    switch (aggregation) {
      case "grpo":
        return m.div(m.sum(-1, { keepdim: true }).clamp(1).mul(sequences));
      case "bnpo":
      case "dapo":
        return m.div(m.sum().clamp(1));
      case "dr_grpo":
        return m.div(sequences * (options.maxLen ?? t));
      case "sum":
        return m.div(sequences);
    }
    aggregation satisfies never;
    throw expected("tokenWeights", "grpo, bnpo, dapo, dr_grpo or sum", aggregation);
  });
}

/**
 * Leave tokens out of the loss at random, keeping at least one of each sequence that had one.
 *
 * @param mask - float `[..., T]`.
 * @param p - probability of leaving a token out.
 */
export function tokenDropout(mask: Tensor, p: number, generator?: Generator): Tensor {
  if (!(p >= 0 && p < 1)) throw expected("tokenDropout", "a probability in [0, 1)", p);
  return tidy(() => {
    const options = { dtype: "float64" as const, ...(generator && { generator }) };
    const u = rand(mask.shape, options).to({ device: mask.device as "cpu" });
    const score = where(mask.ne(0), u, -1);
    const best = score.eq(score.amax(-1, true)); // the one that is kept whatever the rest do
    return mask.mul(u.ge(p).logicalOr(best));
  });
}

/** Estimators of KL(policy || reference) from codes that the policy drew; d = logp - refLogp. */
export type KlEstimator = "k1" | "k2" | "k3";

/**
 * Estimates of KL(policy || reference) a token, differentiable as they are written: k1 = d, k2 = d^2 / 2,
 * k3 = exp(-d) - 1 + d. To descend a divergence use {@link klLoss}.
 *
 * @see Schulman 2020, "Approximating KL Divergence".
 */
export function klEstimate(logprobs: Tensor, reference: Tensor, estimator: KlEstimator): Tensor {
  return tidy(() => {
    const d = logprobs.sub(reference).clamp(-LOG_LIMIT, LOG_LIMIT);
    switch (estimator) {
      case "k1":
        return d;
      case "k2":
        return d.square().div(2);
      case "k3":
        return d.neg().expm1().add(d);
    }
    estimator satisfies never;
    throw expected("klEstimate", "k1, k2 or k3", estimator);
  });
}

/** Divergences that can be descended; `"k3_own"` is k3 with its own gradient, as in GRPO's paper and TRL. */
export type KlLossKind = KlEstimator | "k3_own";

/**
 * A divergence to descend, a token: value of the estimator, gradient `d * grad logp`, which on codes that the policy
 * drew is on average the gradient of KL(policy || reference).
 *
 * @throws RangeError for k1: as a loss its gradient is 0 on average.
 */
export function klLoss(logprobs: Tensor, reference: Tensor, kind: KlLossKind): Tensor {
  if (kind === "k1") {
    const remedy =
      "k1 is grad logp on average, which is 0: it adds noise and no pull. Put k1 into the reward, or use k3";
    throw expected("klLoss", "k2, k3 or k3_own in the loss", kind, remedy);
  }
  return tidy(() => {
    if (kind === "k3_own") return klEstimate(logprobs, reference, "k3");
    const k2 = klEstimate(logprobs, reference, "k2");
    if (kind === "k2") return k2;
    const k3 = klEstimate(logprobs.detach(), reference, "k3");
    return k2.add(k3.sub(k2.detach()));
  });
}

/**
 * KL(policy || reference) of whole distributions: log-probabilities `[..., V]` to `[...]`, no variance. Codes that
 * the policy cannot draw count nothing; ones that only the reference cannot draw make it infinite.
 */
export function exactKl(logprobs: Tensor, reference: Tensor): Tensor {
  return tidy(() => {
    const isCut = logprobs.eq(-Infinity);
    return logprobs.exp().mul(logprobs.sub(reference).maskedFill(isCut, 0)).sum(-1);
  });
}

/**
 * The value head's error a token, `max((V - R)^2, (clip(V, V_old +- clip) - R)^2) / 2`, or without a clip
 * `(V - R)^2 / 2`.
 *
 * @param values - float `[..., T]`; gradients go here alone.
 * @param returns - float `[..., T]`, from `gae`.
 * @returns losses, and bool where the clip is what counts, both `[..., T]`.
 * @see Schulman et al. 2017, eq. 9 (without the clip, which is that of OpenAI's baselines).
 */
export function valueLoss(
  values: Tensor,
  old: Tensor,
  returns: Tensor,
  clip?: number,
): { loss: Tensor; isClipped: Tensor } {
  return tidy(() => {
    const plain = values.sub(returns).square();
    if (clip === undefined) return { loss: plain.div(2), isClipped: plain.lt(0) };
    const near = old.add(values.sub(old).clamp(-clip, clip));
    const clipped = near.sub(returns).square();
    return { loss: plain.maximum(clipped).div(2), isClipped: clipped.gt(plain) };
  });
}

/**
 * Part of the returns' variance that the values explain, `1 - Var(R - V) / Var(R)`: 1 is perfect, 0 no better than
 * the mean. Over everything at once: means of micro-batches' parts say nothing. NaN where the returns do not vary.
 */
export function explainedVariance(returns: Tensor, values: Tensor, mask?: Tensor): number {
  return tidy(() => {
    const take = (x: Tensor): Tensor =>
      mask === undefined ? x.flatten() : x.maskedSelect(mask.bool().expand(...x.shape));
    const [r, v] = [take(returns.detach().double()), take(values.detach().double())];
    const [total, rest] = [
      r.var(null, { correction: 0 }).item(),
      r.sub(v).var(null, { correction: 0 }).item(),
    ];
    return total === 0 ? Number.NaN : 1 - rest / total;
  });
}

/**
 * A draw with a gradient: one-hot `[..., V]` of a code drawn from the softmax of the logits, whose gradient is that of
 * `softmax((logits + Gumbel noise) / tau)`. One-hot times a codebook gives the codes' vectors for a frozen decoder.
 *
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

/** Part of an error beyond which the weight changes no faster. */
const LARGEST_ERROR = 0.2;

/** The weight never falls below this, so that it can always rise again. */
const LEAST_COEF = 1e-8;

/** Part of the running mean that stays at an iteration. */
const STAYS = 0.9;

/**
 * The weight of the divergence after a rollout: times `1 + clamp(kl / target - 1, -0.2, 0.2) * sequences / horizon`.
 *
 * The factor is kept in [0.5, 2], whatever the horizon, and the weight at 1e-8 or above: from 0 it could not rise again.
 * A divergence that is no finite number leaves the weight as it is.
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

/** The running mean with one more value; the value itself at first. A value that is no finite number is left out. */
export function runningMean(mean: number | null, value: number): number | null {
  if (!Number.isFinite(value)) return mean;
  return mean === null ? value : STAYS * mean + (1 - STAYS) * value;
}
