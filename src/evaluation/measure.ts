/**
 * Measures of sets of images with their intervals: distances from the images that samples belong to, and distances from the
 * training images in the features of networks. `draws.ts` makes the samples.
 *
 * Images are measured as in a file: clamped, with 8 bits per channel.
 */
import { spread } from "../data/index.js";
import { gatherParts, gatherValues } from "../distributed/index.js";
import {
  bootstrap,
  classAccuracy,
  frechetDistance,
  frechetInterval,
  inceptionScore,
  kernelDistance,
  type Moments,
  moments,
} from "../metrics/distribution.js";
import type { LPIPS } from "../metrics/lpips.js";
import {
  densityCoverage,
  meanPairwiseDistance,
  nearestNeighbours,
  precisionRecall,
} from "../metrics/neighbours.js";
import { judge as judgeTerms, reconstructionTerm, type Term } from "../rl_ar_finetune/rewards.js";
import { cat, keep, noGrad, type Tensor, tensor, tidy, zeros } from "../torch/index.js";
import type { Estimate, Estimates, Judge, Measures } from "./options.js";

/** Options of intervals. */
export interface Intervals {
  /** 0: no intervals. */
  readonly resamples: number;
  readonly seed: number;
}

/** Widest features whose Fréchet distance is resampled: at 2,048 a resample takes a second or more. */
const WIDEST_RESAMPLED = 512;

/** Most samples, and most training images, of what compares all pairs: neighbourhoods and the kernel distance. */
const MOST_IN_PAIRS = 10_000;

/** Most samples whose kernel is held as a matrix, for its interval. */
const MOST_IN_KERNEL = 5000;

/** Most samples of other statistics that are resampled; of more, an interval is too narrow to matter. */
const MOST_RESAMPLED = 10_000;

/** Least images of a set that Fréchet and kernel distances are measured against: below twice D, covariances are poor. */
const leastReference = (featureSize: number): number => 2 * featureSize;

const SSIM_LEAST = 11;
const MS_SSIM_LEAST = 176;

/** The mean of some numbers `[n]`, and its interval. */
export function meanOf(values: Tensor | readonly number[], { resamples, seed }: Intervals): Estimate {
  return tidy(() => {
    const all = Array.isArray(values) ? tensor(values, { dtype: "float64" }) : (values as Tensor).double();
    const value = all.mean().item();
    if (resamples === 0 || all.numel < 2) return { value, low: null, high: null };
    const mean = (rows: Tensor): number => all.indexSelect(0, rows).mean().item();
    return { value, ...bootstrap(all.numel, mean, { samples: resamples, seed }) };
  });
}

/** A share of `count` things, each of which is or is not. */
export function shareOf(share: number, count: number, intervals: Intervals): Estimate {
  return tidy(() => {
    const flags = zeros([count], { dtype: "float64" });
    flags.narrow(0, 0, Math.round(share * count)).fill_(1);
    return { ...meanOf(flags, intervals), value: share };
  });
}

/** A statistic that copies among the samples move; its interval is moved back by as much. */
function centredOf(
  value: number,
  count: number,
  { resamples, seed }: Intervals,
  statistic: (rows: Tensor) => number,
): Estimate {
  if (resamples === 0 || count < 2 || count > MOST_RESAMPLED) return { value, low: null, high: null };
  const seen: number[] = [];
  const { low, high } = bootstrap(
    count,
    (rows) => {
      const of = statistic(rows);
      seen.push(of);
      return of;
    },
    { samples: resamples, seed },
  );
  const excess = seen.reduce((sum, of) => sum + of, 0) / seen.length - value;
  return { value, low: low - excess, high: high - excess };
}

/** Features and class probabilities of images: float32 `[n, D]` and `[n, K]`, on the CPU. */
export interface Described {
  readonly features: Tensor;
  readonly probabilities: Tensor;
}

/**
 * Describes images batch by batch, by each network; the results outlive every `tidy` until this is disposed of. Of several
 * processes each describes its own images, in the order of the ranks.
 */
export class Describer {
  readonly #judges: readonly Judge[];
  readonly #parts: Described[][];

  constructor(judges: readonly Judge[]) {
    this.#judges = judges;
    this.#parts = judges.map(() => []);
  }

  /** @param images - float32 `[n, 3, H, W]` in [-1, 1]. */
  add(images: Tensor): void {
    for (const [i, { network }] of this.#judges.entries()) {
      const described = tidy(() => {
        const { features, probabilities } = network.describe(images);
        return { features: features.float().cpu(), probabilities: probabilities.float().cpu() };
      });
      this.#parts[i]?.push({
        features: keep(described.features),
        probabilities: keep(described.probabilities),
      });
    }
  }

  /** All that was added, by all processes, in the networks' order. The tensors are the caller's. */
  all(): Described[] {
    return this.#parts.map((parts) => ({
      features: gatherParts(parts.map((part) => part.features)),
      probabilities: gatherParts(parts.map((part) => part.probabilities)),
    }));
  }

  dispose(): void {
    for (const part of this.#parts.flat()) {
      part.features.dispose();
      part.probabilities.dispose();
    }
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

/** The reference sets in the features of one network. */
export interface Reference extends Disposable {
  readonly judge: Judge;
  /** Owned by the caller. */
  readonly train: Described;
  readonly trainMoments: Moments;
  /** Features of training images that pairs are made with: all, or some that are spread over them. */
  readonly trainSome: Tensor;
  /** Owned by this object. */
  readonly heldOut: Described | null;
  /** Null where there are too few held-out images. */
  readonly heldOutMoments: Moments | null;
  /** Of a set that others described; owned by the caller. */
  readonly published: Moments | null;
  /** float64 `[H]`: distance of each held-out image from the nearest training image. */
  readonly nearest: Tensor | null;
  /** Whether the network's classes are those of the images. */
  readonly knowsClasses: boolean;
}

/** @param classNames - of the images. */
export function referenceOf(
  judge: Judge,
  train: Described,
  heldOut: Described | null,
  classNames: readonly string[],
  published: Moments | null = null,
): Reference {
  const { featureSize, numClasses } = judge.network;
  const isEnough = heldOut !== null && heldOut.features.size(0) >= leastReference(featureSize);
  const parts = {
    trainMoments: moments(train.features),
    trainSome: someRows(train.features, MOST_IN_PAIRS),
    heldOutMoments: isEnough ? moments(heldOut.features) : null,
    nearest:
      heldOut === null ? null : tidy(() => nearestNeighbours(heldOut.features, train.features).distance),
  };
  const names = judge.classNames ?? classNames;
  const dispose = (): void => {
    const { trainMoments, trainSome, heldOutMoments, nearest } = parts;
    const tensors = [
      trainMoments.mean,
      trainMoments.cov,
      trainSome,
      heldOutMoments?.mean,
      heldOutMoments?.cov,
    ];
    for (const tensor of [...tensors, nearest, heldOut?.features, heldOut?.probabilities]) tensor?.dispose();
  };
  return {
    ...parts,
    judge,
    train,
    heldOut,
    published,
    knowsClasses: numClasses === classNames.length && names.every((name, c) => name === classNames[c]),
    [Symbol.dispose]: dispose,
  };
}

/** At most `most` rows, spread over all: a tensor of its own. */
function someRows(features: Tensor, most: number): Tensor {
  const n = features.size(0);
  if (n <= most) return features.clone();
  return tidy(() => features.indexSelect(0, tensor(spread(n, most), { dtype: "int64" })));
}

/** Warnings for the whole evaluation: missing numbers, and numbers to read with care. */
export function notesOfReference({
  judge,
  train,
  heldOut,
  heldOutMoments,
  knowsClasses,
}: Reference): string[] {
  const { name, featureSize, numClasses } = judge.network;
  const notes: string[] = [];
  const count = train.features.size(0);
  if (count <= featureSize) {
    notes.push(
      `${name}: ${count} training images for features of width ${featureSize}; Fréchet distances from so few say little.`,
    );
  }
  if (heldOutMoments === null && heldOut !== null) {
    notes.push(
      `${name}: no distances from the held-out images; ${heldOut.features.size(0)} are less than twice the width of the features, ${featureSize}.`,
    );
  }
  if (!knowsClasses && numClasses > 0) {
    notes.push(`${name}: no accuracy, for its ${numClasses} classes are not those of the images.`);
  }
  if (featureSize > WIDEST_RESAMPLED) {
    notes.push(
      `${name}: no intervals of Fréchet distances, whose features are too wide; give several seeds.`,
    );
  }
  return notes;
}

/** Images that could not be read, by name. */
export function unreadableNotes(which: string, names: readonly string[]): string[] {
  if (names.length === 0) return [];
  const rest = names.length > 10 ? `, ... (${names.length} in all)` : "";
  return [`Unreadable ${which} images are omitted: ${names.slice(0, 10).join(", ")}${rest}.`];
}

/** What to know of judges that the reward has not used, but that learnt from the same images as its network may have. */
export function dependence(references: readonly Reference[]): string[] {
  return references.flatMap(({ judge, knowsClasses }) =>
    judge.classNames === undefined || !knowsClasses
      ? []
      : [
          `${judge.network.name}: it learnt the classes of these images. If the reward's network did so too, it is no ` +
            "independent judge: what pleases one pleases the other. Judge by a network that learnt elsewhere as well.",
        ],
  );
}

/** A set of images to measure. */
export interface Measured {
  readonly described: Described;
  /** int64 `[n]`: what each image was asked to be. */
  readonly classes: Tensor;
  /**
   * What they are: samples of a model; `following`, each made from a held-out image, so that only the distances of sets
   * are measured; training images, or made from them, so that how near they are says nothing; the held-out ones.
   */
  readonly of: "model" | "following" | "training" | "held_out";
}

/** Measures of a set of images in the features of a network. */
export function measureSet(reference: Reference, set: Measured, intervals: Intervals): Estimates {
  return tidy(() => {
    const { features, probabilities } = set.described;
    const n = features.size(0);
    const estimates: Record<string, Estimate> = {};
    const { train, trainSome, heldOut, trainMoments, heldOutMoments, published } = reference;
    if (n < 2) return estimates;
    estimates.fd_train = frechet(trainMoments, features, intervals);
    const others = set.of === "held_out" ? null : heldOut;
    if (heldOutMoments !== null && others !== null) {
      estimates.fd_held_out = frechet(heldOutMoments, features, intervals);
    }
    if (published !== null) estimates.fd_reference = frechet(published, features, intervals);
    if (set.of === "following") return estimates;

    const paired = features.narrow(0, 0, Math.min(n, MOST_IN_PAIRS));
    estimates.kd_train = kernel(trainSome, paired, intervals);
    if (heldOutMoments !== null && others !== null) {
      estimates.kd_held_out = kernel(others.features, paired, intervals);
    }
    // Published scores of 50,000 samples are means over ten parts.
    const splits = n >= 50_000 ? 10 : 1;
    if (probabilities.size(1) > 0) {
      estimates.score = centredOf(inceptionScore(probabilities, { splits }).mean, n, intervals, (rows) => {
        return inceptionScore(probabilities.indexSelect(0, rows), { splits }).mean;
      });
    }
    if (reference.knowsClasses) {
      estimates.accuracy = shareOf(classAccuracy(probabilities, set.classes), n, intervals);
    }
    const trained = trainSome.size(0);
    if (Math.min(n, trained) > 5) {
      const { precision, recall } = precisionRecall(trainSome, paired);
      estimates.precision = shareOf(precision, paired.size(0), intervals);
      estimates.recall = shareOf(recall, trained, intervals);
      const { density, coverage } = densityCoverage(trainSome, paired);
      estimates.density = { value: density, low: null, high: null };
      estimates.coverage = shareOf(coverage, trained, intervals);
    }
    const hasPairs = (classes: Tensor): boolean => classes.bincount().amax().item() > 1;
    if (hasPairs(set.classes)) {
      const diversity = meanPairwiseDistance(features, set.classes);
      estimates.diversity = centredOf(diversity, n, intervals, (rows) => {
        const classes = set.classes.indexSelect(0, rows);
        // A resample without a pair, as of very few samples, says nothing.
        return hasPairs(classes) ? meanPairwiseDistance(features.indexSelect(0, rows), classes) : diversity;
      });
    }
    if (set.of === "training") return estimates;
    const { distance } = nearestNeighbours(features, train.features);
    estimates.nearest = meanOf(distance, intervals);
    const usual = reference.nearest?.mean().item() ?? 0;
    if (usual > 0 && set.of === "model") estimates.nearest_ratio = dividedBy(estimates.nearest, usual);
    return estimates;
  });
}

function frechet(reference: Moments, features: Tensor, { resamples, seed }: Intervals): Estimate {
  const value = frechetDistance(reference, features);
  if (resamples === 0 || features.size(1) > WIDEST_RESAMPLED) return { value, low: null, high: null };
  return { value, ...frechetInterval(reference, features, { samples: resamples, seed }) };
}

/**
 * The kernel distance; its interval is for the draw of the samples, pairs of copies omitted, so that resamples are
 * unbiased as the distance is.
 */
function kernel(real: Tensor, fake: Tensor, intervals: Intervals): Estimate {
  const value = kernelDistance(real, fake);
  const [n, d] = fake.dims(2);
  if (intervals.resamples === 0 || n > MOST_IN_KERNEL) return { value, low: null, high: null };
  return tidy(() => {
    const [x, y] = [real.double(), fake.double()];
    const of = (a: Tensor, b: Tensor): Tensor =>
      a
        .matmul(b.transpose(0, 1))
        .mul_(1 / d)
        .add_(1)
        .pow(3);
    const within = of(y, y);
    within.diagonal().zero_();
    const across = cat(y.split(512).map((rows) => tidy(() => of(rows, x).mean(1)))); // [n]
    const movable = (times: Tensor): number => {
      const pairs = Math.max(1, n ** 2 - times.square().sum().item()); // 0 where one sample was drawn n times
      return times.matmul(within).mul(times).sum().item() / pairs - (2 * times.mul(across).sum().item()) / n;
    };
    const own = movable(zeros([n], { dtype: "float64" }).add(1));
    const { low, high } = bootstrap(n, (rows) => value + movable(rows.bincount(n).double()) - own, {
      samples: intervals.resamples,
      seed: intervals.seed,
    });
    return { value, low, high };
  });
}

const dividedBy = ({ value, low, high }: Estimate, by: number): Estimate => ({
  value: value / by,
  low: low === null ? null : low / by,
  high: high === null ? null : high / by,
});

/** Terms that compare samples with their images, as the size of the images allows. */
function pixelTerms(size: number, lpips: LPIPS | null): Term[] {
  return [
    ...(["l1", "l2", "psnr"] as const).map((type) => reconstructionTerm(type)),
    ...(size >= SSIM_LEAST ? [reconstructionTerm("ssim")] : []),
    ...(size >= MS_SSIM_LEAST ? [reconstructionTerm("ms_ssim")] : []),
    ...(lpips === null ? [] : [reconstructionTerm("lpips", { lpips })]),
  ];
}

/** By measure, a number per image. */
export type PerImage = Readonly<Record<string, readonly number[]>>;

/** Compares samples with the images that they follow, batch by batch; of several processes each compares its own. */
export class Comparer {
  readonly #judges: readonly Judge[];
  readonly #terms: readonly Term[];
  readonly #plain: Record<string, number[]> = {};
  readonly #networks: Record<string, number[]>;

  constructor(judges: readonly Judge[], size: number, lpips: LPIPS | null) {
    this.#judges = judges.filter(({ distance }) => distance !== null);
    this.#terms = pixelTerms(size, lpips);
    this.#networks = Object.fromEntries(this.#judges.map(({ network }) => [network.name, []]));
  }

  /**
   * @param images - float32 `[B, 3, H, W]` in [-1, 1].
   * @param samples - float32 `[B * G, 3, H, W]`; the G of an image count as one, by their mean.
   */
  add(images: Tensor, samples: Tensor): void {
    const push = (into: number[], values: Tensor): void => {
      for (const value of values.mean(1).toList() as number[]) into.push(value);
    };
    noGrad(() =>
      tidy(() => {
        const [b, n] = [images.size(0), samples.size(0)];
        const { terms } = judgeTerms(this.#terms, { images, samples });
        for (const [name, values] of Object.entries(terms)) {
          this.#plain[name] ??= [];
          push(this.#plain[name], values);
        }
        for (const { network, distance } of this.#judges) {
          const values = (distance as NonNullable<typeof distance>)(images, samples);
          push(this.#networks[network.name] as number[], values.double().reshape(b, n / b));
        }
      }),
    );
  }

  /** Measures without a network. */
  get plain(): PerImage {
    return ofAll(this.#plain);
  }

  /** The perceptual distance by the network's name. */
  get perceptual(): PerImage {
    return ofAll(this.#networks);
  }
}

/** Numbers of the images of all processes, in the order of the ranks. */
function ofAll(own: PerImage): PerImage {
  const all = gatherValues(own);
  const names = new Set(all.flatMap((each) => Object.keys(each)));
  return Object.fromEntries([...names].map((name) => [name, all.flatMap((each) => each[name] ?? [])]));
}

/** Means of numbers per image, by name. */
export function meansOf(numbers: PerImage, intervals: Intervals): Estimates {
  return Object.fromEntries(
    Object.entries(numbers).map(([name, values]) => [name, meanOf(values, intervals)]),
  );
}

/** Share of the codebook that some sequences use, int64 `[n, T]`. */
export function usageOf(codes: Tensor, codebookSize: number, intervals: Intervals): Estimate {
  const used = (rows: Tensor): number => rows.unique().numel / codebookSize;
  return tidy(() =>
    centredOf(used(codes), codes.size(0), intervals, (rows) => used(codes.indexSelect(0, rows))),
  );
}

/** One estimate of those of several seeds: the mean of the values, their least and their greatest. */
function overSeeds(estimates: readonly Estimate[]): Estimate {
  const [first] = estimates;
  if (estimates.length === 1 && first !== undefined) return first;
  const seeds = estimates.map(({ value }) => value);
  const value = seeds.reduce((sum, of) => sum + of, 0) / seeds.length;
  return { value, low: Math.min(...seeds), high: Math.max(...seeds), seeds };
}

/** The mean of some sets' estimates, with the mean of their intervals: how sure one of them is. */
export function meanEstimates(sets: readonly Estimates[]): Estimates {
  const mean = (values: readonly (number | null)[]): number | null =>
    values.reduce<number | null>(
      (sum, of) => (sum === null || of === null ? null : sum + of / values.length),
      0,
    );
  return Object.fromEntries(
    Object.keys(sets[0] ?? {}).map((name) => {
      const each = sets.map((set) => set[name] as Estimate);
      const of = (part: "value" | "low" | "high"): number | null =>
        mean(each.map((estimate) => estimate[part]));
      return [name, { value: of("value") as number, low: of("low"), high: of("high") }];
    }),
  );
}

/** {@link overSeeds} of all measures; a measure that one seed lacks is omitted. */
export function measuresOverSeeds(all: readonly Measures[]): Measures {
  const merged = (sets: readonly Estimates[]): Estimates =>
    Object.fromEntries(
      Object.keys(sets[0] ?? {}).flatMap((name) => {
        const found = sets.map((set) => set[name]).filter((estimate) => estimate !== undefined);
        return found.length === sets.length ? [[name, overSeeds(found)]] : [];
      }),
    );
  const names = Object.keys(all[0]?.networks ?? {});
  return {
    images: all[0]?.images ?? 0,
    plain: merged(all.map(({ plain }) => plain)),
    networks: Object.fromEntries(names.map((name) => [name, merged(all.map((m) => m.networks[name] ?? {}))])),
  };
}

/** The mean over the seeds of each number of an image. */
export function meanOverSeeds(numbers: readonly PerImage[]): PerImage {
  const names = Object.keys(numbers[0] ?? {});
  return Object.fromEntries(
    names.map((name) => {
      const seeds = numbers.map((each) => each[name] as readonly number[]);
      const first = seeds[0] as readonly number[];
      return [
        name,
        first.map((_, i) => seeds.reduce((sum, seed) => sum + (seed[i] as number), 0) / seeds.length),
      ];
    }),
  );
}
