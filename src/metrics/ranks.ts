/** Correlation of ranks, of plain numbers. */

/**
 * Spearman's rank correlation: Pearson's correlation of the ranks. Equal values share their mean rank.
 *
 * @param b - as many values as `a`.
 * @returns a number in [-1, 1]; NaN where all values of a list are equal.
 */
export function rankCorrelation(a: readonly number[], b: readonly number[]): number {
  const [x, y] = [ranksOf(a), ranksOf(b)];
  const mean = (a.length + 1) / 2;
  const product = (u: readonly number[], v: readonly number[]): number =>
    u.reduce((sum, rank, i) => sum + (rank - mean) * ((v[i] as number) - mean), 0);
  return product(x, y) / Math.sqrt(product(x, x) * product(y, y));
}

/** From 1 for the least. */
const ranksOf = (values: readonly number[]): number[] =>
  values.map((value) => {
    const below = values.filter((other) => other < value).length;
    const equal = values.filter((other) => other === value).length;
    return below + (equal + 1) / 2;
  });
