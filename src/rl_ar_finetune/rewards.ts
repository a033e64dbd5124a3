/**
 * Rewards: metrics of one decoded batch, with a sign that makes higher better, weighted and added. The metrics are
 * those of `src/metrics`; functions and servers of the user's own are in `own_rewards.ts` and `reward_server.ts`;
 * `advantages.ts` computes advantages from the totals.
 */
import type { RewardContext } from "../config/resolve.js";
import { allGather } from "../distributed/index.js";
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
import { type Module, type PackedLayers, packConvs } from "../nn/index.js";
import {
  type AutocastState,
  autocast,
  type Device,
  expected,
  expectedType,
  functional as F,
  keep,
  noGrad,
  readOptions,
  stack,
  Tensor,
  tensor,
  tidy,
} from "../torch/index.js";
import { requireChoice } from "./sampling.js";

/** Rewards that compare a decoded image with its input. */
export type ReconstructionType = "l1" | "l2" | "psnr" | "ssim" | "ms_ssim" | "lpips" | "perceptual";

/**
 * Normalization of each term before it is weighted: none, or mean 0 and standard deviation 1 over the batch or the
 * group.
 */
export type Normalization = "none" | "batch" | "group";

/** A batch to reward: all terms are computed from one decode. */
export interface Judged {
  /** float32 `[B, 3, H, W]` in [-1, 1]; `[0, 3, H, W]` where the data has no images. */
  readonly images: Tensor;
  /** float32 `[B * G, 3, H, W]`, about [-1, 1], not clamped; sample n belongs to image floor(n / G). */
  readonly samples: Tensor;
  /** Latents of the images before quantisation, float `[B, ...]`, and of the samples, `[B * G, ...]`. */
  readonly latents?: { readonly images: Tensor; readonly samples: Tensor };
  /** Further information for the user's functions and servers. */
  readonly context?: RewardContext;
  /** Scores by the term's name, one per sample, which were waited for: see `own_rewards.ts`. */
  readonly scores?: Readonly<Record<string, readonly number[]>>;
}

/** One term of a reward. */
export interface Term {
  /** In the log: `reward/<name>`. */
  readonly name: string;
  /** Its key below `reward`, for messages; default its name. */
  readonly key?: string;
  readonly weight: number;
  /** -1 for a loss or a distance, 1 for a score, from `src/metrics/measures.ts`: higher values times this are better. */
  readonly sign: 1 | -1;
  /** Overrides the normalization of all terms. */
  readonly normalize?: Normalization;
  /** Range that values are clamped to before normalization and weight. */
  readonly clamp?: readonly [number, number];
  /**
   * One value per sample in the metric's own units, float `[B * G]`. `batch` is B of all processes together where these
   * compute as one: only a term that compares samples with each other reads it.
   */
  readonly measure: (judged: Judged, batch?: number) => Tensor;
  /** The metric at each pixel, float `[B * G, H, W]`, for terms that have it. */
  readonly map?: (judged: Judged) => Tensor;
  /** The same term in float32, for a term whose network computes in a narrower dtype. */
  readonly exact?: Term;
  /** For scores that must be waited for: all at once, one per sample, after the decode. */
  readonly call?: (judged: Judged) => Promise<readonly number[]>;
  /** For scores of a server: those of some samples, as soon as these are decoded; `first` is the place of the first one. */
  readonly send?: (samples: Tensor, first: number, context: RewardContext) => Promise<readonly number[]>;
  /** Whether it reads the context: codes and texts beside the pixels. */
  readonly isTold?: true;
  /** Frees its network and the features of the last images, for callers that opened the network for this term. */
  readonly dispose?: () => void;
}

/** The rewards of a batch. */
export interface Rewards {
  /** float64 `[B, G]`: weighted sum of the terms, higher is better. */
  readonly total: Tensor;
  /** The weighted sum before normalisation; `total` itself without normalisation. */
  readonly plain: Tensor;
  /** float64 `[B, G]` by name, in the metrics' own units, unweighted. */
  readonly terms: Readonly<Record<string, Tensor>>;
}

/** Options of {@link reconstructionTerm}. */
export interface TermOptions {
  /** Default 1. */
  readonly weight?: number;
  /** Samples that a metric compares at a time; default is the metric's own. */
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
 * Features that LPIPS and the perceptual distance take from the images are computed once per batch and serve all G
 * samples.
 *
 * @throws RangeError for `"lpips"` and `"perceptual"` without their networks.
 */
export function reconstructionTerm(type: ReconstructionType, options: TermOptions = {}): Term {
  const { weight = 1, chunk, amp } = options;
  requireChoice("reward.type", type, ["l1", "l2", "psnr", "ssim", "ms_ssim", "lpips", "perceptual"]);
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
            ? "Its backbone is torchvision's VGG16, AlexNet or SqueezeNet 1.1: set reward.lpips.path, or pass lpips: openLpips(path)"
            : "rlar classifier trains one: set reward.perceptual.path, or pass perceptual: openPerceptual(path)";
        throw expected(`reward.${type}`, "the metric's network", "none", remedy);
      }
      const module = "network" in network ? network.network : network;
      return {
        ...head,
        measure: (j) =>
          inCast(amp, module, () => network.distance(imageFeatures(network, j), j.samples, parts)),
        map: (j) =>
          inCast(amp, module, () => network.distanceMap(imageFeatures(network, j), j.samples, parts)),
        ...(amp !== undefined && { exact: reconstructionTerm(type, without(options, "amp")) }),
        dispose: () => {
          for (const feature of references.get(network)?.reference.features ?? []) feature.dispose();
          references.delete(network);
          free(module);
        },
      };
    }
  }
}

function without<T extends object, K extends keyof T>(options: T, name: K): Omit<T, K> {
  const { [name]: _, ...rest } = options;
  return rest;
}

/**
 * Run `fn` in a narrower dtype, if there is one. On a CPU the network's convolutions have a copy of their weights in it, since
 * autocast would convert them at every call.
 */
function inCast<T>(amp: AutocastState | undefined, network: Module, fn: () => T): T {
  if (amp === undefined) return fn();
  if (amp.device !== "cpu" || amp.dtype === null) return autocast(amp, fn);
  const pack = packs.get(network) ?? packConvs(network, { dtype: amp.dtype }).rest();
  packs.set(network, pack);
  return pack.within(() => autocast(amp, fn));
}

/** Narrow copies of the convolutions of networks. */
const packs = new WeakMap<Module, PackedLayers>();

/** Free a network that a term was opened with, and its narrow copy. */
function free(network: Module): void {
  packs.get(network)?.dispose();
  packs.delete(network);
  network.dispose();
}

/** Features of the last images by network, which the samples of a batch and its ceiling share. */
const references = new WeakMap<LPIPS | PerceptualDistance, { images: Tensor; reference: UnitFeatures }>();

function imageFeatures(network: LPIPS | PerceptualDistance, { images }: Judged): UnitFeatures {
  const held = references.get(network);
  if (held !== undefined && held.images === images) return held.reference;
  for (const feature of held?.reference.features ?? []) feature.dispose();
  const reference = network.reference(images);
  for (const feature of reference.features) keep(feature);
  references.set(network, { images, reference });
  return reference;
}

/** Name of the term of {@link unrewardedTerm}. */
export const UNREWARDED = "perceptual_held_out";

/** The distance in the features of a classifier that no reward uses, as a check on the rewards. */
export function unrewardedTerm(perceptual: PerceptualDistance): Term {
  return { ...reconstructionTerm("perceptual", { perceptual }), name: UNREWARDED };
}

/** The mean logit of a PatchGAN discriminator for the samples: higher looks more real. */
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
    measure: (j) => inCast(amp, discriminator, () => discriminator.score(j.samples, parts)),
    ...(amp !== undefined && { exact: patchGanTerm(discriminator, without(options, "amp")) }),
    dispose: () => free(discriminator),
  };
}

/** 1 - cosine between the latents of samples and images, which the batch must have. */
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
 * One value per sample of a term.
 *
 * @returns float `[B * G]`, on the device of the samples.
 * @throws TypeError when the term gives no Tensor, RangeError when it gives another shape than `[B * G]`.
 */
export function termValue(term: Term, judged: Judged, batch?: number): Tensor {
  const n = judged.samples.size(0);
  const scores = judged.scores?.[term.name];
  if (scores !== undefined)
    return tensor([...scores], { dtype: "float64", device: judged.samples.device as Device });
  return checkedValue(keyOf(term), term.measure(judged, batch), [n], judged);
}

function checkedValue(where: string, value: unknown, shape: readonly number[], { samples }: Judged): Tensor {
  const wanted = `a Tensor of ${shape.length === 1 ? "one value per sample" : "one value per pixel"}, [${shape.join(", ")}]`;
  if (!(value instanceof Tensor)) {
    const remedy =
      "Return torch.tensor([...]) or the result of tensor operations, not a promise, a number or an array";
    throw expectedType(where, wanted, value instanceof Promise ? "a promise" : value, remedy);
  }
  if (value.shape.join() !== shape.join()) {
    throw expected(
      where,
      wanted,
      value,
      "Average over all dimensions but the first, for example mean([1, 2, 3])",
    );
  }
  return value.device === samples.device ? value : value.to({ device: samples.device as Device });
}

/**
 * Reward a batch by several terms.
 *
 * @param options.normalize - put each term on one scale before it is weighted: `"batch"` over all samples, `"group"`
 *   over the samples of an image. Terms of different units can then be mixed by weight alone.
 * @param options.batch - B of all processes together: their values are gathered, and the result is that of the whole batch.
 * @param options.among - the same, where only terms that compare samples with each other are to see those of all processes.
 * @throws RangeError when there is no term, when two have one name, or when a term gives another shape than `[B * G]`;
 *   TypeError when it gives no Tensor. Values that are not finite are kept: an update skips its step.
 */
export function judge(
  terms: readonly Term[],
  judged: Judged,
  options: { normalize?: Normalization; batch?: number; among?: number } = {},
): Rewards {
  const { normalize = "none", batch, among = batch } = options;
  if (terms.length === 0)
    throw expected("reward", "at least one term", "none", "Give a weight to one, such as l2");
  const names = terms.map((term) => term.name);
  const twice = names.find((name, i) => names.indexOf(name) !== i);
  if (twice !== undefined) throw expected("reward", "terms of different names", `${twice} twice`);
  const n = judged.samples.size(0);
  const b = n / generationsOf(judged);
  return noGrad(() =>
    tidy(() => {
      const values: Record<string, Tensor> = {};
      for (const term of terms) {
        const measured = tidy(() => termValue(term, judged, among));
        const own = measured.double().reshape(b, n / b);
        values[term.name] = batch === undefined ? own : allGather(own, batch);
      }
      const sumOf = (scaleOf: (term: Term) => Normalization): Tensor =>
        terms
          .map((term) =>
            scaled(counted(term, values[term.name] as Tensor), scaleOf(term)).mul(factorOf(term)),
          )
          .reduce((sum, part) => sum.add(part));
      const plain = sumOf(() => "none");
      const isPlain = terms.every((term) => (term.normalize ?? normalize) === "none");
      return { total: isPlain ? plain : sumOf((term) => term.normalize ?? normalize), plain, terms: values };
    }),
  );
}

/** G of a batch. */
export const generationsOf = ({ images, samples, context }: Judged): number =>
  context?.numGenerations ?? samples.size(0) / images.size(0);

/** What a term's values are multiplied by in the sum. */
export const factorOf = ({ weight, sign }: Term): number => weight * sign;

/** A term's key, for messages. */
export const keyOf = ({ key, name }: Term): string => `reward.${key ?? name}`;

/** A term's values after its clamp. */
export const counted = ({ clamp }: Term, values: Tensor): Tensor =>
  clamp === undefined ? values : values.clamp(...clamp);

/** Mean 0 and standard deviation 1 (n - 1), over all values or over each row; equal values become 0. */
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

/** The rewards of a batch at each place of the grid of codes. */
export interface PlaceRewards extends Omit<Rewards, "total"> {
  /** float64 `[B, G, T]`, T = rows * columns, in raster order: weighted sum of the terms, higher is better. */
  readonly places: Tensor;
}

/**
 * Rewards by place: the terms' maps, weighted, and averaged over the pixels of each code, so that each code can be
 * credited with its own part of the image. A term without a map, with one value per sample, has this value at every place.
 *
 * The mean over the codes of an image is the reward that {@link judge} gives with the same terms, up to
 * the interpolation of lpips and perceptual; `terms` and `plain` are such means.
 *
 * @param grid - rows and columns of codes.
 * @param options.normalize - as for {@link judge}, over all places of the batch or of the image.
 * @param options.batch - as for {@link judge}.
 * @throws RangeError and TypeError as {@link judge}.
 */
export function judgeByPlace(
  terms: readonly Term[],
  judged: Judged,
  grid: readonly [number, number],
  options: { normalize?: Normalization; batch?: number } = {},
): PlaceRewards {
  const { normalize = "none", batch } = options;
  const n = judged.samples.size(0);
  const b = n / generationsOf(judged);
  return noGrad(() =>
    tidy(() => {
      const maps = terms.map((term) => {
        if (term.map === undefined) {
          const whole = tidy(() => termValue(term, judged, batch))
            .double()
            .reshape(b, n / b, 1);
          return batch === undefined ? whole : allGather(whole, batch); // [B, G, 1]
        }
        const shape = [n, ...judged.samples.shape.slice(2)];
        const map = tidy(() => checkedValue(keyOf(term), term.map?.(judged), shape, judged));
        const pooled = F.interpolate(map.unsqueeze(1).double(), { size: grid, mode: "area" });
        const own = pooled.reshape(b, n / b, grid[0] * grid[1]); // [B, G, T]
        return batch === undefined ? own : allGather(own, batch);
      });
      if (maps.length === 0) throw expected("reward", "at least one term", "none");
      const sumOf = (values: readonly Tensor[]): Tensor =>
        stack(values.map((value, i) => value.mul(factorOf(terms[i] as Term)))).sum(0);
      const everywhere = (map: Tensor): Tensor => map.expand(-1, -1, grid[0] * grid[1]);
      const means = maps.map((map) => map.mean(2));
      const parts = maps.map((map, i) => counted(terms[i] as Term, map));
      return {
        places: sumOf(parts.map((part, i) => everywhere(scaled(part, terms[i]?.normalize ?? normalize)))),
        plain: sumOf(parts.map((part) => part.mean(2))),
        terms: Object.fromEntries(terms.map((term, i) => [term.name, means[i] as Tensor])),
      };
    }),
  );
}

/** Options of {@link reconstructionReward}. */
export interface ReconstructionOptions extends TermOptions {
  /** Default `"l2"`, which is the mean over pixels and channels, not the sum. */
  readonly type?: ReconstructionType;
  /** Whether to standardise over the batch, to mean 0 and standard deviation 1; default true. */
  readonly normalize?: boolean;
}

/**
 * Rewards of decoded images: the negative of a loss or distance, or a score, so that higher is better.
 *
 * @param inputImages - float32 `[B, 3, H, W]` in [-1, 1].
 * @param decodedImages - float32 `[B * G, 3, H, W]`; sample n belongs to image floor(n / G).
 * @param given - {@link ReconstructionOptions}; or type, normalize in this order, as in Python.
 * @returns float64 `[B * G]`.
 * @throws RangeError for an option or type that is unknown, or images whose sizes or numbers do not fit.
 */
export function reconstructionReward(
  inputImages: Tensor,
  decodedImages: Tensor,
  ...given:
    | [options?: ReconstructionOptions]
    | [type?: ReconstructionType | null, normalize?: boolean | null, options?: ReconstructionOptions]
): Tensor {
  const where = "reconstructionReward";
  const {
    type = "l2",
    normalize = true,
    ...rest
  } = readOptions<ReconstructionOptions>(where, given, {
    names: {
      type: true,
      normalize: "boolean",
      weight: "number",
      chunk: "number",
      lpips: true,
      perceptual: true,
      amp: true,
    },
    order: ["type", "normalize"],
  });
  for (const [name, images] of Object.entries({ inputImages, decodedImages })) {
    if (!(images instanceof Tensor) || images.ndim !== 4)
      throw expectedType(`${where}.${name}`, "a Tensor [B, 3, H, W]", images);
  }
  if (typeof normalize !== "boolean") throw expectedType(`${where}.normalize`, "true or false", normalize);
  const [b, n] = [inputImages.size(0), decodedImages.size(0)];
  if (b === 0 || n % b !== 0) {
    throw expected(`${where}.decodedImages`, `a multiple of the ${b} input images`, decodedImages);
  }
  const judged = { images: inputImages, samples: decodedImages };
  return tidy(() => {
    const { total } = judge([reconstructionTerm(type, rest)], judged, {
      normalize: normalize ? "batch" : "none",
    });
    return total.flatten();
  });
}
