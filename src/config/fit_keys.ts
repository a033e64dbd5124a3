/**
 * The configuration that `rlar pretrain`, `rlar tokenizer` and `rlar classifier` share. Names and meanings are those of
 * `rlar train` wherever it has them; what is different for learning from examples is written here. Each command adds
 * its own section in a file of its own.
 */
import * as z from "zod";

import { key, section } from "./key.js";
import { type ConfigKind, configKind, type KindParts, type Origins, type Preset } from "./kind.js";
import { data, run } from "./model_keys.js";
import { isPattern } from "./rules.js";
import * as shared from "./shared_keys.js";
import { count, every, positive } from "./shared_keys.js";
import { isFree } from "./train_kind.js";
import type {
  DataConfig,
  EmaSection,
  LimitsSection,
  LogSection,
  OptimizerSection,
  Precision,
  RunConfig,
  SaveSection,
} from "./types.js";

/** How long, with how many images at a time, and where. */
export interface FitTrainSection {
  readonly epochs: number;
  readonly iters: number | null;
  readonly batch: number;
  readonly device: string;
  readonly threads: number | null;
}

export interface FitPrecisionSection {
  readonly model: Precision;
}

export interface FitEvalSection {
  readonly every: number;
  readonly images: number;
  readonly best: string;
  readonly mode: "max" | "min";
  readonly patience: number;
}

export type FitSaveSection = Pick<SaveSection, "every" | "keep">;
export type FitLogSection = Omit<LogSection, "imageRows">;
export type FitLimitsSection = Omit<LimitsSection, "ratioGap">;

/** What every supervised trainer is configured by. */
export interface FitConfig {
  readonly preset: string | null;
  readonly seed: number;
  readonly run: RunConfig;
  readonly data: DataConfig;
  readonly train: FitTrainSection;
  readonly optimizer: OptimizerSection;
  readonly ema: EmaSection;
  readonly precision: FitPrecisionSection;
  readonly eval: FitEvalSection;
  readonly save: FitSaveSection;
  readonly log: FitLogSection;
  readonly limits: FitLimitsSection;
}

/** Defaults that differ from trainer to trainer. */
export interface FitDefaults {
  readonly epochs: number;
  readonly batch: number;
  readonly lr: number;
  readonly betas: readonly [number, number];
  readonly weightDecay: number;
  /** Decay of the average, null for none. */
  readonly ema: number | null;
  /** Metric that decides which weights are kept, and whether more of it is better. */
  readonly best: string;
  readonly mode: "max" | "min";
}

/** Keys of `T`, each as `key(...)` or `section(...)` gives it. */
export type Fields<T> = { readonly [K in keyof T]-?: z.ZodType<T[K]> };

const train = ({ epochs, batch }: FitDefaults): z.ZodType<FitTrainSection> =>
  section<FitTrainSection>({
    epochs: key(
      positive,
      epochs,
      "times that the training images are gone through",
      "Raise it while the held-out numbers still get better.",
      "epochs",
    ),
    iters: key(
      count.nullable(),
      null,
      "updates, in place of epochs; null counts from epochs",
      "For a first look, or to compare runs of one length.",
      "updates",
    ),
    batch: key(
      count,
      batch,
      "images an update",
      "Raise it with the learning rate on a GPU; lower it when memory runs out.",
      "images",
    ),
    device: shared.device,
    threads: shared.threads,
  });

const optimizer = ({ lr, betas, weightDecay }: FitDefaults): z.ZodType<OptimizerSection> =>
  section<OptimizerSection>({
    lr: key(
      positive,
      lr,
      "learning rate of AdamW",
      "Halve it when the loss jumps; small networks bear more, large ones less.",
    ),
    betas: shared.betasOf(betas, "updates"),
    eps: shared.eps,
    weightDecay: key(
      z.number().min(0),
      weightDecay,
      "part of each weight that goes at an update, times the learning rate; of matrices and kernels alone, not of biases and norms",
      "Raise it when held-out numbers get worse while the training loss falls.",
    ),
    schedule: key(
      z.enum(["constant", "linear", "cosine"]),
      "cosine",
      "how the learning rate runs after the warm-up",
      "constant lets train.epochs and train.iters be raised when a run is resumed.",
    ),
    warmup: key(
      z.number().min(0).lt(1),
      0.03,
      "part of all updates in which the learning rate rises",
      "Raise it when the loss jumps at the start.",
    ),
    finalLr: key(
      z.number().min(0).max(1),
      0.05,
      "part of the learning rate that linear and cosine end at",
      "0 for a run that will not go on.",
    ),
    maxGradNorm: shared.maxGradNorm,
  });

const ema = ({ ema: decay }: FitDefaults): z.ZodType<EmaSection> =>
  section<EmaSection>({
    decay: key(
      z.number().min(0).lt(1).nullable(),
      decay,
      "part of the running average of the weights that stays at an update; null keeps none",
      "Raise it to 0.9999 for runs of many thousand updates; evaluation and model.safetensors take the average.",
    ),
    warmup: shared.emaWarmup,
  });

const precision: z.ZodType<FitPrecisionSection> = section<FitPrecisionSection>({
  model: key(
    z.enum(["auto", "float32", "bfloat16"]),
    "auto",
    "type in which the network's layers are computed; auto is bfloat16 on CUDA, float32 on a CPU",
    "bfloat16 on CPUs that have it.",
  ),
});

const evaluation = ({ best, mode }: FitDefaults): z.ZodType<FitEvalSection> =>
  section<FitEvalSection>({
    every: key(
      every,
      500,
      "updates between evaluations, of which one comes before the first and one after the last; 0 is none",
      "Raise it when time/eval is a large part.",
      "updates",
    ),
    images: key(
      count,
      1024,
      "most images set apart that are evaluated on, always the same",
      "Raise it when eval metrics jump.",
      "images",
    ),
    best: key(
      z.string().min(1),
      best,
      "metric that decides which weights model.safetensors holds",
      "Take another eval metric to choose by that.",
    ),
    mode: shared.modeOf(mode),
    patience: shared.patience,
  });

const save: z.ZodType<FitSaveSection> = section<FitSaveSection>({
  every: key(
    every,
    500,
    "updates between checkpoints, of which one comes after the last; 0 saves that one alone",
    "Lower it where a run may be cut short.",
    "updates",
  ),
  keep: shared.keepOf(2),
});

const log: z.ZodType<FitLogSection> = section<FitLogSection>({
  every: key(
    count,
    50,
    "updates between lines on the console and points in TensorBoard; metrics.jsonl has every one",
    "Lower it for slow updates.",
    "updates",
  ),
  imagesEvery: key(
    every,
    500,
    "updates between pages to look at, of which one comes after the last; 0 makes none",
    "Lower it to see how it learns.",
    "updates",
  ),
  tensorboard: shared.tensorboard,
  csv: shared.csv,
});

const limits: z.ZodType<FitLimitsSection> = section<FitLimitsSection>({
  ...shared.limitsOf("updates"),
});

/** What {@link fitKind} is made of: what differs from one supervised trainer to the next. */
export interface FitKindParts<T extends FitConfig>
  extends Pick<KindParts<T>, "name" | "aliases" | "meanings" | "spellings">,
    Partial<Pick<KindParts<T>, "problems" | "missing" | "notes">> {
  readonly defaults: FitDefaults;
  /** The command's own keys; they stand behind those of the data. */
  readonly own: Fields<Omit<T, keyof FitConfig>>;
  readonly presets?: Readonly<Record<string, Preset<T>>>;
}

/** A kind of configuration for `fitLoop`: the shared sections, and the command's own. */
export function fitKind<T extends FitConfig>(parts: FitKindParts<T>): ConfigKind<T> {
  const { name, own, defaults, presets = {}, problems, missing, notes, ...names } = parts;
  const presetNames = Object.keys(presets).join(", ");
  const shape: Fields<FitConfig> & Fields<Omit<T, keyof FitConfig>> = {
    preset: key(
      z.string().min(1).nullable(),
      null,
      presetNames === "" ? "values to start from; there are none" : `values to start from: ${presetNames}`,
      "Rarely.",
    ),
    seed: shared.seed,
    run,
    data,
    ...own,
    optimizer: optimizer(defaults),
    ema: ema(defaults),
    precision,
    eval: evaluation(defaults),
    save,
    log,
    limits,
    train: train(defaults),
  };
  return configKind<T>({
    name,
    schema: section<T>(shape as unknown as Fields<T>),
    presets,
    ...names,
    spellings: { "precision.model": { bf16: "bfloat16", fp32: "float32" }, ...names.spellings },
    problems: (config, origins) => [
      ...patternProblems(config, origins),
      ...(problems?.(config, origins) ?? []),
    ],
    missing: (config, origins) => [...missingData(config, origins), ...(missing?.(config, origins) ?? [])],
    notes: (config, origins) => notes?.(config, origins) ?? [],
    mayChange: (path, after) => {
      const { schedule, warmup } = after.optimizer;
      if (path === "train.iters" || path === "train.epochs") return schedule === "constant" && warmup === 0;
      return isFree(path);
    },
    nameOf: ({ preset }) => (preset === null ? name : `${name}_${preset}`),
  });
}

function patternProblems({ data: { group } }: FitConfig, origins: Origins): string[] {
  if (group === null || isPattern(group)) return [];
  const remedy = "Such as ^[^/]+/(.*) for the name without its first folder";
  return [`${origins.whereOf("data.group")}: expected a regular expression, got ${group}. ${remedy}.`];
}

function missingData(config: FitConfig, origins: Origins): string[] {
  const { data: images, eval: evaluated } = config;
  const problems: string[] = [];
  const want = (path: string, what: string, isThere: boolean): void => {
    if (!isThere) problems.push(`${origins.whereOf(path)}: expected ${what}, got nothing.`);
  };
  const hasLoader = "dataloader" in config && config.dataloader !== null;
  want("data.source", "images to train on", images.source !== null || hasLoader);
  const hasEval = evaluated.every === 0 || images.evalSource !== null || images.evalPart > 0;
  want("data.evalSource", "images to evaluate on (or data.evalPart above 0, or eval.every: 0)", hasEval);
  return problems;
}

/** Updates in all: `train.iters`, or as many as the epochs take. */
export function updatesOf({ train: { epochs, iters, batch } }: FitConfig, images: number): number {
  return iters ?? Math.max(1, Math.round((epochs * images) / batch));
}
