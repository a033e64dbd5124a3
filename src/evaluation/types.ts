/** What an evaluation of models takes and gives. Plain data, but for models and networks that a program passes. */

import type { DataConfig, PartialDeep, TokenizerSection } from "../config/resolve.js";
import type { FeatureNetwork } from "../metrics/features.js";
import type { ArPolicy } from "../policies/index.js";
import type { FrozenTokenizer } from "../tokenizers/index.js";
import type { Device, DType, Tensor } from "../torch/index.js";

/** A network whose features images are judged by, and its distance of images where it has one. */
export interface Judge {
  readonly network: FeatureNetwork;
  /** Of samples from their images, float `[B, 3, H, W]` in [-1, 1] both, to float `[B]`; null where there is none. */
  readonly distance: ((images: Tensor, samples: Tensor) => Tensor) | null;
  /** Of its classes, where it knows them: accuracy is measured only where they are those of the images. */
  readonly classNames?: readonly string[];
}

/** A file of weights, and what it does not tell. */
export interface PolicyFile {
  readonly path: string;
  readonly wrapper?: string;
  readonly nHead?: number;
  readonly blockSize?: number;
}

/** What {@link evaluateModels} takes. */
export interface ModelEvalOptions {
  readonly tokenizer: string | (Partial<TokenizerSection> & { readonly path: string }) | FrozenTokenizer;
  /** A: the policy, or the one before. Without it only the tokenizer is judged. */
  readonly policy?: string | PolicyFile | ArPolicy;
  /** B: the one after, judged with the same seeds. */
  readonly against?: string | PolicyFile | ArPolicy;
  /** Networks, or files of them. Those that no reward has used belong last: verdicts are given by each. */
  readonly features?: readonly (string | Judge)[];
  /** torchvision's VGG16, AlexNet or SqueezeNet 1.1, for LPIPS. */
  readonly lpips?: string;
  /** The images, by the keys of a training's `data`: `source` at least. */
  readonly data: PartialDeep<DataConfig>;
  /** What sequences start from: the image's class or text features, or nothing. `condition` where left out. */
  readonly start?: "condition" | "empty";
  /** Free samples a point; 2,000 where left out, 0 for none. */
  readonly samples?: number;
  /** How often free samples are of each class: as the training images, where left out, or all alike. */
  readonly classes?: "data" | "balanced";
  /** Given codes of a completion; half of an image's where left out, none for no completions. */
  readonly prefixes?: readonly number[];
  /** Completions an image; 1 where left out. */
  readonly draws?: number;
  /** Most held-out images; 1,000 where left out. */
  readonly images?: number;
  /** Most training images that samples are compared with; 50,000 where left out. */
  readonly trainImages?: number;
  readonly temperatures?: readonly number[];
  /** Scales of classifier-free guidance; 1 is none. */
  readonly cfg?: readonly number[];
  readonly cfgSchedule?: "constant" | "power_cosine";
  readonly topK?: number;
  readonly topP?: number;
  /** Of the draws; `[0]` where left out. With several, a number is the mean over them. */
  readonly seeds?: readonly number[];
  /** Resamples of an interval; 200 where left out, 0 for no intervals. */
  readonly resamples?: number;
  /** Sequences at a time; 128 where left out. Changes nothing but rounding. */
  readonly batch?: number;
  readonly device?: Device;
  /** Of the policies. */
  readonly dtype?: DType;
  /** A folder for pages of images. */
  readonly out?: string;
  /** A file for the free samples: uint8 `arr_0` `[N, H, W, 3]` and int64 `arr_1` `[N]`, as evaluators of others read. */
  readonly npz?: string;
  /** A file for the result. */
  readonly json?: string;
  /** Told what is being done, a line at a time. */
  readonly say?: (line: string) => void;
}

/** A number and how sure it is. */
export interface Estimate {
  readonly value: number;
  /** 95 % interval, or least and greatest of `seeds`; null where there is none. */
  readonly low: number | null;
  readonly high: number | null;
  /** One a seed, where there are several. */
  readonly seeds?: readonly number[];
}

/** By the measure's name, which {@link MEASURES} explains. */
export type Estimates = Readonly<Record<string, Estimate>>;

/** What was measured of a set of images. */
export interface Measures {
  /** How many. */
  readonly images: number;
  /** What needs no network of features. */
  readonly plain: Estimates;
  /** By the network's name. */
  readonly networks: Readonly<Record<string, Estimates>>;
}

/** A way to draw from a policy. */
export interface Point {
  readonly temperature: number;
  readonly cfg: number;
}

/** What was measured of a policy at a point. */
export interface EvalRow extends Point {
  /** "A" or "B". */
  readonly policy: string;
  readonly free: Measures | null;
  readonly completions: readonly { readonly prefix: number; readonly measures: Measures }[];
}

/** How well a policy expects the true codes of held-out images. */
export interface Likelihood {
  readonly policy: string;
  readonly images: number;
  readonly natsPerToken: Estimate;
  readonly perplexity: Estimate;
  /** Share of codes that are the most probable one. */
  readonly top1: Estimate;
}

/** What each measure is, its unit, and which way is better. */
export const MEASURES: Readonly<Record<string, { about: string; better: "lower" | "higher" | "none" }>> = {
  l1: { about: "mean absolute difference from the image, of [-1, 1]", better: "lower" },
  l2: { about: "mean squared difference from the image, of [-1, 1]", better: "lower" },
  psnr: { about: "peak signal-to-noise ratio, dB", better: "higher" },
  ssim: { about: "structural similarity", better: "higher" },
  ms_ssim: { about: "structural similarity over five scales, from 176 px on", better: "higher" },
  lpips: { about: "LPIPS distance from the image", better: "lower" },
  codes_used: { about: "share of the codebook", better: "none" },
  perceptual: { about: "distance from the image in the network's feature maps", better: "lower" },
  fd_train: { about: "Fréchet distance from the training images", better: "lower" },
  fd_held_out: { about: "Fréchet distance from the held-out images", better: "lower" },
  kd_train: {
    about: "kernel distance from the training images: cubic kernel, of at most 10,000 images",
    better: "lower",
  },
  kd_held_out: { about: "kernel distance from the held-out images, likewise", better: "lower" },
  score: { about: "inception-style score", better: "higher" },
  accuracy: { about: "share whose most probable class is the one asked for", better: "higher" },
  precision: {
    about: "share that lies where training images lie (k 3, of at most 10,000)",
    better: "higher",
  },
  recall: { about: "share of training images that lie where these lie (k 3)", better: "higher" },
  density: { about: "training neighbourhoods that hold one, on average, over k 5", better: "higher" },
  coverage: { about: "share of training images with one in their neighbourhood (k 5)", better: "higher" },
  diversity: { about: "mean distance of features within a class", better: "none" },
  nearest: { about: "mean distance of features from the nearest training image", better: "none" },
  nearest_ratio: {
    about: "the same over that of held-out images: well below 1 where training images were learnt by heart",
    better: "none",
  },
};
