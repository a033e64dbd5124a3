/**
 * From rewards to advantages: whitening, groups, leave-one-out, returns by place, and generalised advantage estimation.
 *
 * Statistics are taken in two passes in float64: the rewards of a group may differ by 1e-4 of their size, where
 * `E[x^2] - E[x]^2` in float32 is noise. Deviations from the papers:
 * - a group whose standard deviation is no more than `minStd` of its largest |reward| is constant: its advantages are
 *   exactly 0 and it is counted, where the papers divide rounding errors by a small constant;
 * - the constant added to the standard deviation is relative to the rewards (1e-8 of them), so that it never shrinks
 *   the advantages of a small but clean spread; `absoluteEpsilon` is the papers' own;
 * - where every code has a return of its own, which the papers do not have, the group's mean is taken place by place
 *   (what is hard to draw at a place is the same for all of a group) and its standard deviation over all places, so
 *   that places where much is at stake keep more weight than others.
 */
import { expected, onesLike, stack, type Tensor, tidy, where, zerosLike } from "../torch/index.js";

/** Advantages, and which groups had nothing to tell. */
export interface Advantages {
  /** float64, in the shape of the rewards; no gradient. */
  readonly advantages: Tensor;
  /** bool `[B]`: groups whose rewards are all the same, at every place. */
  readonly isConstant: Tensor;
}

/** When rewards count as equal, and what is added to a standard deviation. */
export interface SpreadOptions {
  /** Relative to the largest |reward| of the group (of all, for a scale over all); 1e-8 where left out. */
  readonly epsilon?: number;
  /** In units of the reward: 1e-4 in TRL, 1e-6 in verl, 1e-8 in VA-pi; 0 where left out. */
  readonly absoluteEpsilon?: number;
  /** Relative to the largest |reward|: a standard deviation up to this is none; 1e-6 where left out. */
  readonly minStd?: number;
}

/**
 * What is still to come at each place: `sum over s >= t of decay^(s - t) r_s`.
 *
 * 0 leaves each place its own reward, 1 gives it all later ones too.
 *
 * @param rewards - float `[..., T]`.
 * @returns float64 `[..., T]`.
 */
export function returnsToGo(rewards: Tensor, decay: number): Tensor {
  if (!(decay >= 0 && decay <= 1)) throw expected("returnsToGo", "a decay in [0, 1]", decay);
  return tidy(() => gae(rewards, zerosLike(rewards), { gamma: 1, lambda: decay }).advantages);
}

/**
 * Rewards whitened over the whole batch: `(r - mean) / std`, the seed's REINFORCE advantage.
 *
 * @param rewards - float `[B, G]` or `[N]`; `[B, G, T]` for a return a code.
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
 * Rewards against the mean of their group, `r - mean_g`, over the standard deviation of the group (GRPO), of all
 * rewards, or over nothing (Dr. GRPO).
 *
 * With `"group"` no advantage exceeds `(G - 1) / sqrt(G)`, or with returns by place that times `sqrt(T)`.
 *
 * @param rewards - float `[B, G]`, or `[B, G, T]` for a return a code; G >= 2.
 * @see Shao et al. 2024, "DeepSeekMath", sec. 4.1.2; Liu et al. 2025, "Understanding R1-Zero-Like Training", sec. 3.2.
 */
export function groupAdvantages(
  rewards: Tensor,
  options: SpreadOptions & { scale?: "group" | "batch" | "none" } = {},
): Advantages {
  const { scale = "group", epsilon = 1e-8, absoluteEpsilon = 0, minStd = 1e-6 } = options;
  return tidy(() => {
    requireSeveral("groupAdvantages", rewards);
    const { centered, isConstant, std, size } = center(rewards, minStd);
    const zero = zerosLike(centered);
    if (scale === "none")
      return { advantages: where(isConstant, zero, centered), isConstant: isConstant.flatten() };
    const all = scale === "group" ? { std, size } : center(rewards.flatten(0, 1).unsqueeze(0), minStd);
    const least = all.size.mul(epsilon).add(absoluteEpsilon);
    return {
      advantages: where(isConstant, zero, centered.div(all.std.add(least))),
      isConstant: isConstant.flatten(),
    };
  });
}

/**
 * Rewards against the mean of the others of their group: `G / (G - 1) * (r - mean_g)`.
 *
 * @param rewards - float `[B, G]`, or `[B, G, T]` for a return a code; G >= 2.
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

/** What is known of groups; all but `centered` are `[B, 1]` or `[B, 1, 1]`. */
interface Centered {
  /** Less the group's mean, at each place. */
  readonly centered: Tensor;
  /** n - 1, over the group and all its places. */
  readonly std: Tensor;
  /** Largest |reward|. */
  readonly size: Tensor;
  readonly isConstant: Tensor;
}

/** Two passes: the mean, then what is left. NaN stays NaN, so that an update sees it. */
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
      "One reward alone says nothing: raise numGenerations",
    );
  }
}

/** How far {@link gae} looks ahead. */
export interface GaeOptions {
  /** Discount of rewards a token, 1 where left out. */
  readonly gamma?: number;
  /** 1: returns minus values; 0: one step; 0.95 where left out. */
  readonly lambda?: number;
  /** bool, broadcast to `[..., T]`: tokens that count; the others are stepped over. */
  readonly mask?: Tensor;
}

/**
 * Generalised advantage estimates: `delta_t = r_t + gamma V_{t+1} - V_t`, `A_t = delta_t + gamma lambda A_{t+1}`.
 * Sequences end: the value after the last token is 0.
 *
 * @param rewards - float `[..., T]`, a token.
 * @param values - float `[..., T]`: V before each token.
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
 * Values less their mean, over their standard deviation (n - 1), both over the tokens that count.
 *
 * Where there is no spread the values are only centred.
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
