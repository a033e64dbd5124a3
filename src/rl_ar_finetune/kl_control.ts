/**
 * What is done about the divergence from the reference between updates: steering its weight towards a target, and a
 * running mean to end a run by. Estimates and losses are in `losses.ts`.
 *
 * Deviations from the paper: the divergence is one a token, not a sequence's sum, so that a target does not depend on
 * the number of codes; it is the low-variance estimate that is logged as `kl/ref`, where the paper takes k1.
 */

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
