/**
 * How far a number about a set of samples is to be trusted: intervals from resampling the set with replacement.
 *
 * After Efron 1979, "Bootstrap Methods: Another Look at the Jackknife".
 */
import {
  arange,
  callTensor,
  expected,
  Generator,
  randint,
  readOptions,
  type Tensor,
  tidy,
} from "../torch/index.js";
import { besides, checkFeatures, factor, type Moments, momentsOf } from "./distribution.js";

/** How intervals are drawn. */
export interface BootstrapOptions {
  /** Resamples. */
  samples?: number;
  /** Of the draw; 0 where left out. */
  seed?: number;
  /** Share of the resamples in the interval; 0.95 where left out. */
  level?: number;
}

/** From `low` to `high`. */
export interface Interval {
  readonly low: number;
  readonly high: number;
}

/**
 * Percentile interval of a statistic over samples drawn with replacement.
 *
 * Right for means and shares (reward, accuracy, distance to a neighbour). Not for what copies among the samples distort:
 * the Fréchet distance, for which there is {@link frechetInterval}; kernel distance, precision, recall and the mean
 * pairwise distance.
 *
 * @param count - samples, N.
 * @param statistic - given int64 `[N]` indices, some of them several times, freed afterwards.
 * @param options.samples - 1,000 where left out.
 * @throws RangeError when the statistic is not finite.
 */
export function bootstrap(
  count: number,
  statistic: (indices: Tensor) => number,
  options: BootstrapOptions = {},
): Interval {
  const given = read("bootstrap", options);
  return percentiles(resample("bootstrap", count, 1000, statistic, given), levelOf("bootstrap", given));
}

/**
 * Interval of the Fréchet distance for the draw of the fake samples; the real ones are taken as they are.
 *
 * Resamples have fewer different samples and so larger distances. The interval is moved back by as much as their mean
 * lies above the distance: it is of the distance at this number of samples, not at infinitely many. With few samples for
 * the width it is wider than need be, up to twice at N = 8 D.
 *
 * The square root of the real covariance is computed once. A resample takes the eigenvalues of a matrix as large as the
 * samples are many or the features wide, whichever is less: 2 ms for D = 128, a second for D = 2048, on one core.
 *
 * @param real - float `[N, D]`, N >= 2, or moments.
 * @param fake - float `[M, D]`, M >= 2.
 * @param options.samples - 200 where left out.
 */
export function frechetInterval(
  real: Moments | Tensor,
  fake: Tensor,
  options: BootstrapOptions = {},
): Interval {
  const where = "frechetInterval";
  const given = read(where, options);
  const level = levelOf(where, given);
  return tidy(() => {
    const { mean, cov } = momentsOf(`${where}: real`, real);
    checkFeatures(`${where}: fake`, fake, { least: 2, width: mean.size(0) });
    const m = fake.size(0);
    // All of it with the real mean at the origin, so that no sum loses digits to a far mean.
    const x = besides(fake.detach(), mean).double().sub(mean); // [M, D]
    const y = x.matmul(factor(cov)); // [M, R], the covariance of which has the eigenvalues of C C'
    const lengths = x.square().sum(1);
    const realTrace = cov.diagonal().sum();
    const distance = (indices: Tensor): number => {
      const times = indices.bincount(m).double(); // [M]
      const shift = times.matmul(x).div(m).square().sum();
      const trace = times
        .mul(lengths)
        .sum()
        .sub(shift, m)
        .div(m - 1);
      const distinct = times.nonzero().flatten();
      const weights = times.indexSelect(0, distinct);
      const rows = y.indexSelect(0, distinct);
      const centre = weights.matmul(rows).div(m);
      const scaled = rows.sub(centre).mul(
        weights
          .div(m - 1)
          .sqrt()
          .unsqueeze(1),
      ); // [M', R]
      const across = scaled.transpose(0, 1);
      const gram = scaled.size(0) < scaled.size(1) ? scaled.matmul(across) : across.matmul(scaled);
      const cross = callTensor<Tensor>("aten::linalg_eigvalsh", [gram]).clamp(0).sqrt().sum();
      return shift.add(trace).add(realTrace).sub(cross, 2).item();
    };
    const own = tidy(() => distance(besides(arange(0, m), mean)));
    const values = resample(where, m, 200, (indices) => distance(besides(indices, mean)), given);
    const excess = values.reduce((sum, value) => sum + value, 0) / values.length - own;
    const { low, high } = percentiles(values, level);
    return { low: Math.max(0, low - excess), high: Math.max(0, high - excess) };
  });
}

function read(where: string, options: BootstrapOptions): BootstrapOptions {
  return readOptions<BootstrapOptions>(where, [options], {
    names: { samples: true, seed: true, level: true },
  });
}

function levelOf(where: string, { level = 0.95 }: BootstrapOptions): number {
  if (!(level > 0 && level < 1)) throw expected(`${where}: level`, "a number between 0 and 1", level);
  return level;
}

/** The statistic of each resample. */
function resample(
  where: string,
  count: number,
  usual: number,
  statistic: (indices: Tensor) => number,
  options: BootstrapOptions,
): number[] {
  const { samples = usual, seed = 0 } = options;
  if (!Number.isInteger(count) || count < 1) {
    throw expected(`${where}: count`, "an integer of at least 1", count);
  }
  if (!Number.isInteger(samples) || samples < 2) {
    throw expected(`${where}: samples`, "an integer of at least 2", samples);
  }
  using generator = new Generator(seed);
  return Array.from({ length: samples }, () => {
    const value = tidy(() => statistic(randint(0, count, [count], { generator })));
    if (!Number.isFinite(value)) throw expected(where, "a finite statistic", value);
    return value;
  });
}

/** The middle `level` of the values, between neighbouring ones by straight lines. */
function percentiles(values: readonly number[], level: number): Interval {
  const sorted = values.toSorted((a, b) => a - b);
  const at = (share: number): number => {
    const place = share * (sorted.length - 1);
    const below = Math.floor(place);
    const low = sorted[below] as number;
    const high = sorted[Math.min(below + 1, sorted.length - 1)] as number;
    return low + (high - low) * (place - below);
  };
  return { low: at((1 - level) / 2), high: at((1 + level) / 2) };
}
