/**
 * What a sample is worth: metrics of one decoded batch, turned so that higher is better, weighted and added. Metrics
 * are those of `src/metrics`; advantages are made of the totals elsewhere.
 */
import {
  type LPIPS,
  l1,
  l1Map,
  l2,
  l2Map,
  latentCosine,
  msSsim,
  type NLayerDiscriminator,
  type PerceptualDistance,
  psnr,
  ssim,
  ssimMap,
  type UnitFeatures,
} from "../metrics/index.js";
import { signOf } from "../metrics/measures.js";
import {
  type AutocastState,
  autocast,
  expected,
  functional as F,
  keep,
  noGrad,
  stack,
  type Tensor,
  tidy,
} from "../torch/index.js";

/** Rewards that compare a decoded image with its input. */
export type ReconstructionType = "l1" | "l2" | "psnr" | "ssim" | "ms_ssim" | "lpips" | "perceptual";

/** How rewards are put on one scale before they are used: as they are, or mean 0 and standard deviation 1. */
export type Normalization = "none" | "batch" | "group";

/** A batch to be judged: everything is computed from this one decode. */
export interface Judged {
  /** float32 `[B, 3, H, W]` in [-1, 1]. */
  readonly images: Tensor;
  /** float32 `[B * G, 3, H, W]`, about [-1, 1], not clamped; sample n belongs to image floor(n / G). */
  readonly samples: Tensor;
  /** Latents of the images before quantisation, float `[B, ...]`, and of the samples, `[B * G, ...]`. */
  readonly latents?: { readonly images: Tensor; readonly samples: Tensor };
}

/** One term of a reward. */
export interface Term {
  readonly name: string;
  readonly weight: number;
  /** -1 for a loss or a distance, 1 for a score, as `src/metrics/measures.ts` has it: value times sign is better the higher it is. */
  readonly sign: 1 | -1;
  /** Values in the metric's own units, float `[B * G]`. */
  readonly measure: (judged: Judged) => Tensor;
  /** The same at each pixel, float `[B * G, H, W]`, for terms that have it. */
  readonly map?: (judged: Judged) => Tensor;
  /** Frees its network and what it holds of the last images, for whoever opened the network for this term alone. */
  readonly dispose?: () => void;
}

/** What a batch was found to be worth. */
export interface Rewards {
  /** float64 `[B, G]`: weighted sum of the terms, higher is better. */
  readonly total: Tensor;
  /** The same sum of the terms as they are measured; `total` itself without normalisation. */
  readonly plain: Tensor;
  /** float64 `[B, G]` by name, in the metrics' own units, unweighted. */
  readonly terms: Readonly<Record<string, Tensor>>;
}

/** Settings of {@link reconstructionTerm}. */
export interface TermOptions {
  /** 1 where left out. */
  readonly weight?: number;
  /** Samples that a metric compares at a time. */
  readonly chunk?: number;
  /** The network of `"lpips"`. */
  readonly lpips?: LPIPS;
  /** The classifier of `"perceptual"`. */
  readonly perceptual?: PerceptualDistance;
  /** Run the network's convolutions in a narrow dtype; its distances stay float32. */
  readonly amp?: AutocastState;
}

/**
 * A term that compares samples with their images.
 *
 * Features that LPIPS and the perceptual distance take from the images are computed once a batch and serve all G
 * samples.
 *
 * @throws RangeError for `"lpips"` and `"perceptual"` without their networks.
 */
export function reconstructionTerm(type: ReconstructionType, options: TermOptions = {}): Term {
  const { weight = 1, chunk, amp } = options;
  if (!Number.isFinite(weight)) throw expected(`reward.${type}.weight`, "a finite number", weight);
  const parts = chunk === undefined ? {} : { chunk };
  const head = { name: type, weight, sign: signOf(type) };
  switch (type) {
    case "l1":
      return {
        ...head,
        measure: (j) => l1(j.images, j.samples, parts),
        map: (j) => l1Map(j.images, j.samples, parts),
      };
    case "l2":
      return {
        ...head,
        measure: (j) => l2(j.images, j.samples, parts),
        map: (j) => l2Map(j.images, j.samples, parts),
      };
    case "psnr":
      return { ...head, measure: (j) => psnr(j.images, j.samples, parts) };
    case "ssim":
      return {
        ...head,
        measure: (j) => ssim(j.images, j.samples, parts),
        map: (j) => ssimMap(j.images, j.samples, parts),
      };
    case "ms_ssim":
      return { ...head, measure: (j) => msSsim(j.images, j.samples, parts) };
    case "lpips":
    case "perceptual": {
      const network = options[type];
      if (network === undefined) {
        const remedy =
          type === "lpips"
            ? "Its backbone is torchvision's VGG16, AlexNet or SqueezeNet 1.1: set reward.lpips.path"
            : "rlar classifier trains one: set reward.perceptual.path";
        throw expected(`reward.${type}`, "the metric's network", "none", remedy);
      }
      return {
        ...head,
        measure: (j) => inCast(amp, () => network.distance(referenceOf(network, j), j.samples, parts)),
        map: (j) => inCast(amp, () => network.distanceMap(referenceOf(network, j), j.samples, parts)),
        dispose: () => {
          for (const feature of references.get(network)?.reference.features ?? []) feature.dispose();
          references.delete(network);
          if ("network" in network) network.network.dispose();
          else network.dispose();
        },
      };
    }
    default: {
      throw expected(
        "reconstructionTerm",
        "l1, l2, psnr, ssim, ms_ssim, lpips or perceptual",
        type satisfies never,
      );
    }
  }
}

function inCast<T>(amp: AutocastState | undefined, fn: () => T): T {
  return amp === undefined ? fn() : autocast(amp, fn);
}

/** Features of the last images that were judged: the ceiling and the samples of a batch share them. */
const references = new WeakMap<LPIPS | PerceptualDistance, { images: Tensor; reference: UnitFeatures }>();

function referenceOf(network: LPIPS | PerceptualDistance, { images }: Judged): UnitFeatures {
  const held = references.get(network);
  if (held !== undefined && held.images === images) return held.reference;
  for (const feature of held?.reference.features ?? []) feature.dispose();
  const reference = network.reference(images);
  for (const feature of reference.features) keep(feature);
  references.set(network, { images, reference });
  return reference;
}

/** Name of {@link unrewardedTerm}. */
export const UNREWARDED = "perceptual_held_out";

/** The distance in the features of a classifier that no reward uses, to be watched beside them. */
export function unrewardedTerm(perceptual: PerceptualDistance): Term {
  return { ...reconstructionTerm("perceptual", { perceptual }), name: UNREWARDED };
}

/** How real a PatchGAN discriminator finds the samples: its mean logit. */
export function patchGanTerm(
  discriminator: NLayerDiscriminator,
  options: Pick<TermOptions, "weight" | "chunk" | "amp"> = {},
): Term {
  const { weight = 1, chunk, amp } = options;
  const parts = chunk === undefined ? {} : { chunk };
  return {
    name: "patch_gan",
    weight,
    sign: signOf("patch_gan"),
    measure: (j) => inCast(amp, () => discriminator.score(j.samples, parts)),
    dispose: () => discriminator.dispose(),
  };
}

/** 1 - cosine between the latents of samples and images; the batch must bring them. */
export function latentCosineTerm(weight = 1): Term {
  return {
    name: "latent_cosine",
    weight,
    sign: signOf("latent_cosine"),
    measure: ({ latents }) => {
      if (latents === undefined)
        throw expected("reward.latent_cosine", "latents of images and samples", "none");
      return latentCosine(latents.images, latents.samples);
    },
  };
}

/**
 * A reward of the user's: higher is better.
 *
 * @param reward - from images `[B, 3, H, W]` and samples `[B * G, 3, H, W]` to scores `[B * G]`, as in {@link Judged}.
 */
export function customTerm(
  name: string,
  reward: (images: Tensor, samples: Tensor) => Tensor,
  weight = 1,
): Term {
  return { name, weight, sign: 1, measure: (j) => reward(j.images, j.samples) };
}

/**
 * Judge a batch by several terms.
 *
 * @param options.normalize - put each term on one scale before it is weighted: `"batch"` over all samples, `"group"`
 *   over the samples of an image. Terms of different units can then be mixed by weight alone.
 * @throws RangeError when there is no term, when two have one name, or when a term gives another shape than `[B * G]`.
 */
export function judge(
  terms: readonly Term[],
  judged: Judged,
  options: { normalize?: Normalization } = {},
): Rewards {
  const { normalize = "none" } = options;
  if (terms.length === 0)
    throw expected("reward", "at least one term", "none", "Give a weight to one, such as l2");
  const names = terms.map((term) => term.name);
  const twice = names.find((name, i) => names.indexOf(name) !== i);
  if (twice !== undefined) throw expected("reward", "terms of different names", `${twice} twice`);
  const b = judged.images.size(0);
  const n = judged.samples.size(0);
  return noGrad(() =>
    tidy(() => {
      const values: Record<string, Tensor> = {};
      for (const term of terms) {
        const measured = tidy(() => term.measure(judged));
        if (measured.shape.join() !== `${n}`)
          throw expected(`reward.${term.name}`, `one value a sample, [${n}]`, measured);
        values[term.name] = measured.double().reshape(b, n / b);
      }
      const sumOf = (scale: Normalization): Tensor =>
        terms
          .map(({ name, weight, sign }) => scaled(values[name] as Tensor, scale).mul(weight * sign))
          .reduce((sum, part) => sum.add(part));
      const plain = sumOf("none");
      return { total: normalize === "none" ? plain : sumOf(normalize), plain, terms: values };
    }),
  );
}

/** Mean 0 and standard deviation 1 (n - 1), over all values or over each row; values of no spread become 0. */
function scaled(values: Tensor, normalize: Normalization): Tensor {
  if (normalize === "none") return values;
  const all = values.shape.map((_, dim) => dim);
  const dims = normalize === "batch" ? all : all.slice(1);
  const centered = values.sub(values.mean(dims, { keepdim: true }));
  const count = normalize === "batch" ? values.numel : values.numel / values.size(0);
  const std = centered
    .square()
    .sum(dims, { keepdim: true })
    .div(Math.max(count - 1, 1))
    .sqrt();
  const least = values.abs().amax(dims, true).mul(1e-12).clamp(Number.MIN_VALUE);
  return centered.div(std.maximum(least)).mul(std.gt(least));
}

/** What each place of a batch was found to be worth. */
export interface PlaceRewards extends Omit<Rewards, "total"> {
  /** float64 `[B, G, T]`, T = rows * columns, in raster order: weighted sum of the terms, higher is better. */
  readonly places: Tensor;
}

/**
 * Rewards by place: the terms' maps, weighted, and averaged over the pixels of each code, so that a code can be
 * credited for what it shows.
 *
 * The mean over the codes of an image is the reward that {@link judge} gives with the same terms, up to
 * the interpolation of lpips and perceptual; `terms` and `plain` are such means.
 *
 * @param grid - rows and columns of codes.
 * @param options.normalize - as for {@link judge}, over all places of the batch or of the image.
 * @throws RangeError when a term has no map.
 */
export function judgeByPlace(
  terms: readonly Term[],
  judged: Judged,
  grid: readonly [number, number],
  options: { normalize?: Normalization } = {},
): PlaceRewards {
  const { normalize = "none" } = options;
  const b = judged.images.size(0);
  const n = judged.samples.size(0);
  return noGrad(() =>
    tidy(() => {
      const maps = terms.map((term) => {
        if (term.map === undefined) {
          const remedy =
            "l1, l2, ssim, lpips and perceptual have maps; leave the others out, or reward whole samples";
          throw expected(`reward.${term.name}`, "a value at each pixel", "one a sample", remedy);
        }
        const map = tidy(() => (term.map as (j: Judged) => Tensor)(judged)); // [B * G, H, W]
        const pooled = F.interpolate(map.unsqueeze(1).double(), { size: grid, mode: "area" });
        return pooled.reshape(b, n / b, grid[0] * grid[1]); // [B, G, T]
      });
      if (maps.length === 0) throw expected("reward", "at least one term", "none");
      const sumOf = (values: readonly Tensor[]): Tensor =>
        stack(values.map((value, i) => value.mul((terms[i] as Term).weight * (terms[i] as Term).sign))).sum(
          0,
        );
      const means = maps.map((map) => map.mean(2));
      return {
        places: sumOf(maps.map((map) => scaled(map, normalize))),
        plain: sumOf(means),
        terms: Object.fromEntries(terms.map((term, i) => [term.name, means[i] as Tensor])),
      };
    }),
  );
}

/**
 * Rewards of decoded images: the negative of a loss or distance, or a score, so that higher is better.
 *
 * @param inputImages - float32 `[B, 3, H, W]` in [-1, 1].
 * @param decodedImages - float32 `[B * G, 3, H, W]`; sample n belongs to image floor(n / G).
 * @param options.type - `"l2"` where left out; mean over pixels and colours, not the sum.
 * @param options.normalize - true (where left out) standardises over the batch: mean 0, standard deviation 1.
 * @returns float64 `[B * G]`.
 */
export function reconstructionReward(
  inputImages: Tensor,
  decodedImages: Tensor,
  options: TermOptions & { type?: ReconstructionType; normalize?: boolean } = {},
): Tensor {
  const { type = "l2", normalize = true, ...rest } = options;
  const judged = { images: inputImages, samples: decodedImages };
  return tidy(() => {
    const { total } = judge([reconstructionTerm(type, rest)], judged, {
      normalize: normalize ? "batch" : "none",
    });
    return total.flatten();
  });
}
