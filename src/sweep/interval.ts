/** The 95 % interval of a mean over a few runs, by Student's t. */

/** A mean with its interval; null where there is one value only. */
export interface MeanInterval {
  readonly value: number;
  readonly low: number | null;
  readonly high: number | null;
}

/** 0.975 quantiles of Student's t for 1 to 10 degrees of freedom. */
const QUANTILES: readonly number[] = [
  12.706205, 4.302653, 3.182446, 2.776445, 2.570582, 2.446912, 2.364624, 2.306004, 2.262157, 2.228139,
];

/** The 0.975 quantile of the normal distribution. */
const Z = 1.959964;

/**
 * The 0.975 quantile of Student's t, to 1e-5.
 *
 * @param degrees - of freedom, at least 1. Above 10 the expansion of Abramowitz and Stegun 1964, 26.7.5, is used.
 */
export function studentQuantile(degrees: number): number {
  const exact = QUANTILES[degrees - 1];
  if (exact !== undefined) return exact;
  const terms = [
    (Z ** 3 + Z) / 4,
    (5 * Z ** 5 + 16 * Z ** 3 + 3 * Z) / 96,
    (3 * Z ** 7 + 19 * Z ** 5 + 17 * Z ** 3 - 15 * Z) / 384,
    (79 * Z ** 9 + 776 * Z ** 7 + 1482 * Z ** 5 - 1920 * Z ** 3 - 945 * Z) / 92160,
  ];
  return terms.reduce((sum, term, i) => sum + term / degrees ** (i + 1), Z);
}

/**
 * The mean of independent values, one a seed, and its 95 % interval: mean ± t s / √n, s with n - 1.
 *
 * @param values - at least one. An infinite or missing one (NaN) leaves no interval.
 */
export function meanInterval(values: readonly number[]): MeanInterval {
  const n = values.length;
  const value = values.reduce((sum, each) => sum + each, 0) / n;
  if (n < 2 || !Number.isFinite(value)) return { value, low: null, high: null };
  const variance = values.reduce((sum, each) => sum + (each - value) ** 2, 0) / (n - 1);
  const half = studentQuantile(n - 1) * Math.sqrt(variance / n);
  return { value, low: value - half, high: value + half };
}
