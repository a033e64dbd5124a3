/**
 * Advantages from rewards: standardized over the batch, relative to a group, leave-one-out, returns by place, and
 * generalized advantage estimation.
 *
 * Means and standard deviations are computed in two passes in float64: the rewards of a group may differ by 1e-4 of
 * their size, and then `E[x^2] - E[x]^2` in float32 is only rounding error. Deviations from the papers:
 * - a group whose standard deviation is at most `minStd` of its largest |reward| is treated as constant: its advantages
 *   are exactly 0 and the group is counted. The papers' formulas divide its rounding errors by a small constant;
 * - the term added to the standard deviation is 1e-8 of the largest |reward|, so that it does not shrink the advantages
 *   of groups with small differences; `epsilon` sets a constant as in the papers;
 * - with a return per token, which the papers do not have, the group's mean is taken per place (the same places are hard for
 *   all sequences of a group) and its standard deviation over all places, so that places with larger differences keep
 *   more weight.
 */
import { expected, onesLike, stack, type Tensor, tidy, where, zerosLike } from "../torch/index.js";

/** Advantages, and the groups whose rewards are all equal. */
export interface Advantages {
  /** float64, in the shape of the rewards; no gradient. */
  readonly advantages: Tensor;
  /** bool `[B]`: groups whose rewards are all the same, at every place. */
  readonly isConstant: Tensor;
}

/** The threshold below which rewards count as equal, and the term added to a standard deviation. */
export interface SpreadOptions {
  /**
   * Added to the standard deviation, in units of the reward: 1e-4 in TRL, 1e-6 in verl, 1e-8 in VA-pi. Default 1e-8 of
   * the largest |reward| of the group (of all rewards, for a scale over all).
   */
  readonly epsilon?: number;
  /** Relative to the largest |reward|: a smaller or equal standard deviation counts as 0; default 1e-6. */
  readonly minStd?: number;
}

/** Added to a standard deviation, relative to the largest |reward|, where no epsilon is given. */
const RELATIVE_EPSILON = 1e-8;

/**
 * Discounted returns, `R_t = sum over s >= t of decay^(s - t) r_s`.
 *
 * With decay 0 a token is credited only with its own reward, with 1 also with all later ones.
 *
 * @param rewards - float `[..., T]`.
 * @returns float64 `[..., T]`.
 */
export function returnsToGo(rewards: Tensor, decay: number): Tensor {
  if (!(decay >= 0 && decay <= 1)) throw expected("returnsToGo", "a decay in [0, 1]", decay);
  return tidy(() => gae(rewards, zerosLike(rewards), { gamma: 1, lambda: decay }).advantages);
}

/**
 * Rewards standardized over the whole batch: `(r - mean) / std`, the default advantage of REINFORCE here.
 *
 * @param rewards - float `[B, G]` or `[N]`; `[B, G, T]` for a return per token.
 * @returns `isConstant` has one element: whether all rewards are the same.
 */
export function standardizedAdvantages(rewards: Tensor, options: SpreadOptions = {}): Advantages {
  return tidy(() => {
    const places = rewards.ndim === 3 ? [rewards.size(2)] : [];
    const flat = rewards.detach().reshape(1, -1, ...places);
    requireSeveral("standardizedAdvantages", flat);
    const { advantages, isConstant } = groupAdvantages(flat, { ...options, scale: "group" });
    return { advantages: advantages.reshape(...rewards.shape), isConstant };
  });
}

/**
 * Rewards minus the mean of their group, divided by the standard deviation (n - 1) of the group (GRPO, the default), of
 * all rewards, or by nothing (Dr. GRPO).
 *
 * With `"group"` no advantage exceeds `(G - 1) / sqrt(G)`; with returns per token, that times `sqrt(T)`.
 *
 * @param rewards - float `[B, G]`, or `[B, G, T]` for a return per token; G >= 2.
 * @see Shao et al. 2024, "DeepSeekMath", sec. 4.1.2; Liu et al. 2025, "Understanding R1-Zero-Like Training", sec. 3.2.
 */
export function groupAdvantages(
  rewards: Tensor,
  options: SpreadOptions & { scale?: "group" | "batch" | "none" } = {},
): Advantages {
  const { scale = "group", epsilon, minStd = 1e-6 } = options;
  return tidy(() => {
    requireSeveral("groupAdvantages", rewards);
    const { centered, isConstant, std, size } = center(rewards, minStd);
    const zero = zerosLike(centered);
    if (scale === "none")
      return { advantages: where(isConstant, zero, centered), isConstant: isConstant.flatten() };
    const all = scale === "group" ? { std, size } : center(rewards.flatten(0, 1).unsqueeze(0), minStd);
    const divisor = all.std.add(epsilon ?? all.size.mul(RELATIVE_EPSILON));
    return {
      advantages: where(isConstant, zero, centered.div(divisor)),
      isConstant: isConstant.flatten(),
    };
  });
}

/**
 * Rewards minus the mean of the other rewards of their group, which is `G / (G - 1) * (r - mean_g)`.
 *
 * @param rewards - float `[B, G]`, or `[B, G, T]` for a return per token; G >= 2.
 * @see Ahmadian et al. 2024, "Back to Basics: Revisiting REINFORCE Style Optimization", arXiv 2402.14740.
 */
export function rlooAdvantages(rewards: Tensor, options: Pick<SpreadOptions, "minStd"> = {}): Advantages {
  return tidy(() => {
    requireSeveral("rlooAdvantages", rewards);
    const { centered, isConstant } = center(rewards, options.minStd ?? 1e-6);
    const g = rewards.size(1);
    const advantages = where(isConstant, zerosLike(centered), centered.mul(g / (g - 1)));
    return { advantages, isConstant: isConstant.flatten() };
  });
}

/** Groups whose rewards are all the same, at every place: bool `[B]` of rewards `[B, G]` or `[B, G, T]`, G >= 2. */
export function constantGroups(
  rewards: Tensor,
  { minStd = 1e-6 }: Pick<SpreadOptions, "minStd"> = {},
): Tensor {
  return tidy(() => {
    requireSeveral("constantGroups", rewards);
    return center(rewards, minStd).isConstant.flatten();
  });
}

/** Statistics of groups; all but `centered` are `[B, 1]` or `[B, 1, 1]`. */
interface Centered {
  /** Rewards minus the group's mean, at each place. */
  readonly centered: Tensor;
  /** With n - 1, over the group and all its places. */
  readonly std: Tensor;
  /** Largest |reward|. */
  readonly size: Tensor;
  readonly isConstant: Tensor;
}

/**
 * Computed in two passes: first the mean, then the deviations from it. NaN stays NaN, so that the update skips its
 * step.
 */
function center(rewards: Tensor, minStd: number): Centered {
  const r = rewards.detach().double();
  const [, g, t = 1] = r.shape as [number, number, number?];
  const group = r.ndim === 3 ? [1, 2] : [1];
  const centered = r.sub(r.mean(1, { keepdim: true })); // [B, G] or [B, G, T]
  const std = centered
    .square()
    .sum(group, { keepdim: true })
    .div((g - 1) * t)
    .sqrt();
  const size = r.abs().amax(group, true);
  return { centered, std, size, isConstant: std.le(size.mul(minStd)) };
}

function requireSeveral(name: string, rewards: Tensor): void {
  if (rewards.ndim !== 2 && rewards.ndim !== 3) throw expected(name, "rewards [B, G] or [B, G, T]", rewards);
  if (rewards.size(1) < 2) {
    throw expected(
      name,
      "at least 2 rewards to compare",
      rewards,
      "A single reward cannot be compared: raise numGenerations",
    );
  }
}

/** Options of {@link gae}. */
export interface GaeOptions {
  /** Discount of rewards per token, in [0, 1]; default 1. */
  readonly gamma?: number;
  /** 1: returns minus values; 0: the one-step error; in between a mix. Default 0.95. */
  readonly lambda?: number;
  /** bool, broadcast to `[..., T]`: tokens that count; the others are skipped. Default all. */
  readonly mask?: Tensor;
}

/**
 * Generalised advantage estimates: `delta_t = r_t + gamma V_{t+1} - V_t`, `A_t = delta_t + gamma lambda A_{t+1}`.
 * Sequences end: the value after the last token is 0.
 *
 * @param rewards - float `[..., T]`: of each token.
 * @param values - float `[..., T]`: V before each token is drawn.
 * @returns float64 `[..., T]`: advantages, and returns `A + V`; 0 and V where a token does not count.
 * @see Schulman et al. 2016, "High-Dimensional Continuous Control Using Generalized Advantage Estimation", eq. 16.
 */
export function gae(
  rewards: Tensor,
  values: Tensor,
  options: GaeOptions = {},
): { advantages: Tensor; returns: Tensor } {
  const { gamma = 1, lambda = 0.95, mask } = options;
  return tidy(() => {
    const [r, v] = [rewards.detach().double(), values.detach().double()];
    const t = r.size(-1);
    const counts = mask?.bool().expand(...r.shape);
    const zero = zerosLike(r.select(-1, 0));
    let next = zero;
    let ahead = zero;
    const columns: Tensor[] = [];
    for (let i = t - 1; i >= 0; i--) {
      const value = v.select(-1, i);
      const delta = r.select(-1, i).add(next, gamma).sub(value);
      const advantage = delta.add(ahead, gamma * lambda);
      const isCounted = counts?.select(-1, i);
      columns.unshift(isCounted ? where(isCounted, advantage, zero) : advantage);
      next = isCounted ? where(isCounted, value, next) : value;
      ahead = isCounted ? where(isCounted, advantage, ahead) : advantage;
    }
    const advantages = stack(columns, -1);
    return { advantages, returns: advantages.add(v) };
  });
}

/**
 * Values minus their mean, divided by their standard deviation (n - 1), both over the tokens that count.
 *
 * Values that are all the same are only centred.
 */
export function whiten(values: Tensor, mask?: Tensor): Tensor {
  return tidy(() => {
    const x = values.detach().double();
    const weight = mask === undefined ? onesLike(x) : mask.double().expand(...x.shape);
    const count = weight.sum();
    const centered = x.sub(x.mul(weight).sum().div(count)).mul(weight);
    const std = centered.square().sum().div(count.sub(1).clamp(1)).sqrt();
    const hasSpread = std.gt(x.abs().amax().mul(1e-12));
    return where(hasSpread, centered.div(std), centered);
  });
}

/**
 * Marks the fraction of the counted tokens with the highest entropy, including those equal to the last one.
 *
 * @param entropy - float, in the shape of the mask, nats.
 * @returns float64, 1 for these tokens.
 */
export function highestEntropy(entropy: Tensor, mask: Tensor, fraction: number): Tensor {
  return tidy(() => {
    const counted = entropy.detach().double().maskedFill(mask.eq(0), -Infinity);
    const count = Math.max(Math.ceil(fraction * Number(mask.ne(0).sum().item())), 1);
    return counted.ge(counted.flatten().topk(count).values.amin()).double();
  });
}
