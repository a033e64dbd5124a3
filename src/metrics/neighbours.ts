/**
 * Measures of two sets of images by neighbourhoods of their features: precision and recall, density and coverage, copies
 * of training images, and diversity.
 *
 * Distances are Euclidean, in float64, a portion of rows at a time. They come from inner products, which is fast and
 * leaves rounding: a sample counts as within a radius that it exceeds by no more than a part in 10^12 of the
 * squared lengths, so that copies are always in.
 */
import { expected, readOptions, type Tensor, tidy } from "../torch/index.js";
import { besides, checkClasses, checkFeatures, rowChunks } from "./distribution.js";
import { joined } from "./pairs.js";

/** Part of the squared lengths that rounding may take from a squared distance, and more. */
const SLACK = 1e-12;

/** What {@link precisionRecall} gives. */
export interface PrecisionRecall {
  /** Share of fake samples that lie where real ones are: fidelity. */
  readonly precision: number;
  /** Share of real samples that lie where fake ones are: variety. */
  readonly recall: number;
}

/**
 * Improved precision and recall: a sample lies where a set is when it is within the distance of any of its members to
 * that member's k-th nearest neighbour in the set. Both are in [0, 1]; higher is better.
 *
 * Recall is of the numbers of samples: compare it at equal ones.
 *
 * @param real - float `[N, D]`, N > k.
 * @param fake - float `[M, D]`, M > k.
 * @param options.k - 3 by default, as published.
 * @see Kynkäänniemi et al. 2019, "Improved Precision and Recall Metric for Assessing Generative Models", eq. 1 and 2.
 */
export function precisionRecall(real: Tensor, fake: Tensor, options: { k?: number } = {}): PrecisionRecall {
  const k = checkSets("precisionRecall", real, fake, options, 3);
  return tidy(() => {
    const [x, y] = centred(real, fake);
    const shareWithin = (samples: Tensor, set: Tensor): number => {
      const limits = squaredRadii(set, k);
      const counts = rowChunks(samples, set.size(0), (rows) => {
        return squaredDistances(rows, set, SLACK).le(limits).any(1).sum().item();
      });
      return sum(counts) / samples.size(0);
    };
    return { precision: shareWithin(y, x), recall: shareWithin(x, y) };
  });
}

/** What {@link densityCoverage} gives. */
export interface DensityCoverage {
  /** Real neighbourhoods that hold a fake sample, on average, divided by k: fidelity, about 1 for one distribution. */
  readonly density: number;
  /** Share of real samples that have a fake one in their neighbourhood: variety, in [0, 1]. */
  readonly coverage: number;
}

/**
 * Density and coverage: like precision and recall, but by the neighbourhoods of real samples alone, so that an outlier
 * among the fake ones changes little. The neighbourhood of a real sample reaches to its k-th nearest among the others.
 *
 * @param real - float `[N, D]`, N > k.
 * @param fake - float `[M, D]`, M >= 1.
 * @param options.k - 5 by default, as published.
 * @see Naeem et al. 2020, "Reliable Fidelity and Diversity Metrics for Generative Models", eq. 3 and 4.
 */
export function densityCoverage(real: Tensor, fake: Tensor, options: { k?: number } = {}): DensityCoverage {
  const k = checkSets("densityCoverage", real, fake, options, 5, 1);
  return tidy(() => {
    const [x, y] = centred(real, fake);
    const limits = squaredRadii(x, k).unsqueeze(1);
    const counts = rowChunks(x, y.size(0), (rows, start) => {
      const within = squaredDistances(rows, y, SLACK).le(limits.narrow(0, start, rows.size(0))); // [n, M]
      return { pairs: within.sum().item(), covered: within.any(1).sum().item() };
    });
    const pairs = sum(counts.map((count) => count.pairs));
    const covered = sum(counts.map((count) => count.covered));
    return { density: pairs / (k * y.size(0)), coverage: covered / x.size(0) };
  });
}

/** What {@link nearestNeighbours} gives. */
export interface Neighbours {
  /** float64 `[N]`: exactly 0 for a copy. */
  readonly distance: Tensor;
  /** int64 `[N]`, rows of the base. */
  readonly index: Tensor;
}

/**
 * The nearest member of the base to each sample: near ones that a generator has learnt by heart, where the base is what
 * it was trained on. The distances of held-out images to the base show what is near.
 *
 * @param query - float `[N, D]`, N >= 1.
 * @param base - float `[M, D]`, M >= 1.
 */
export function nearestNeighbours(query: Tensor, base: Tensor): Neighbours {
  checkFeatures("nearestNeighbours: query", query, { least: 1 });
  checkFeatures("nearestNeighbours: base", base, { least: 1, width: query.size(1) });
  return tidy(() => {
    const [y, x] = centred(base, query);
    const index = joined(rowChunks(x, y.size(0), (rows) => squaredDistances(rows, y).argmin(1)));
    const distance = joined(
      rowChunks(index, query.size(1), (rows, start) => {
        const found = base.detach().indexSelect(0, rows).double();
        const own = besides(query.detach().narrow(0, start, rows.size(0)), base).double();
        return own.sub(found).norm(2, 1);
      }),
    );
    return { distance, index };
  });
}

/**
 * Mean distance of two different samples: how much variety a set has.
 *
 * @param features - float `[N, D]`, N >= 2.
 * @param classes - int64 `[N]`: the mean is of pairs within a class, each class counting the same, whatever its size;
 *   those with one sample do not count.
 * @throws RangeError when no class has two samples.
 */
export function meanPairwiseDistance(features: Tensor, classes?: Tensor): number {
  checkFeatures("meanPairwiseDistance", features, { least: 2 });
  const meanOf = (x: Tensor): number => {
    const n = x.size(0);
    const [centre] = centred(x, x);
    const sums = rowChunks(centre, n, (rows, start) => {
      const distances = squaredDistances(rows, centre).sqrt();
      distances.diagonal(start).narrow(0, 0, rows.size(0)).zero_(); // to itself: rounding alone
      return distances.sum().item();
    });
    return sum(sums) / (n * (n - 1));
  };
  if (classes === undefined) return tidy(() => meanOf(features));
  checkClasses("meanPairwiseDistance", classes, features.size(0));
  return tidy(() => {
    const counts = [...classes.bincount().toArray()].map(Number);
    const means = counts.flatMap((count, c) => {
      if (count < 2) return [];
      const rows = besides(classes.eq(c).nonzero().flatten(), features);
      return [tidy(() => meanOf(features.detach().indexSelect(0, rows)))];
    });
    if (means.length === 0) {
      throw expected(
        "meanPairwiseDistance",
        "a class with at least 2 samples",
        `${counts.length} classes with less`,
      );
    }
    return sum(means) / means.length;
  });
}

function checkSets(
  where: string,
  real: Tensor,
  fake: Tensor,
  options: { k?: number },
  usual: number,
  leastFake?: number,
): number {
  const { k = usual } = readOptions<{ k?: number }>(where, [options], { names: { k: "number" } });
  if (!Number.isInteger(k) || k < 1) throw expected(`${where}: k`, "an integer of at least 1", k);
  checkFeatures(`${where}: real`, real, { least: k + 1 });
  checkFeatures(`${where}: fake`, fake, { least: leastFake ?? k + 1, width: real.size(1) });
  return k;
}

/** Both in float64 and less the mean of the first: short vectors lose less to rounding. */
function centred(base: Tensor, other: Tensor): [base: Tensor, other: Tensor] {
  const x = base.detach().double();
  const mean = x.mean(0);
  return [x.sub(mean), besides(other.detach(), base).double().sub(mean)];
}

/**
 * Squared distances of all pairs, not below 0.
 *
 * @param a - float64 `[n, D]`. @param b - float64 `[M, D]`.
 * @param slack - fraction of the squared lengths to subtract.
 * @returns float64 `[n, M]`.
 */
function squaredDistances(a: Tensor, b: Tensor, slack = 0): Tensor {
  const lengths = a
    .square()
    .sum(1, { keepdim: true })
    .add(b.square().sum(1))
    .mul_(1 - slack);
  return lengths.sub_(a.matmul(b.transpose(0, 1)), 2).clamp_(0);
}

/** Squared distance of each member of x `[N, D]` to its k-th nearest among the others: float64 `[N]`. */
function squaredRadii(x: Tensor, k: number): Tensor {
  const parts = rowChunks(x, x.size(0), (rows, start) => {
    const squared = squaredDistances(rows, x);
    squared.diagonal(start).narrow(0, 0, rows.size(0)).fill_(Infinity);
    return squared.topk(k, 1, { largest: false }).values.select(1, k - 1);
  });
  return joined(parts);
}

function sum(values: readonly number[]): number {
  return values.reduce((total, value) => total + value, 0);
}
