/**
 * The configuration that `rlar pretrain`, `rlar tokenizer` and `rlar classifier` share. Names and meanings are those of
 * `rlar train` wherever it has them. Each command adds sections in a file of its own.
 */
import type * as z from "zod";
import { key, type Section, section } from "./key.js";
import { type ConfigKind, configKind, type KindParts, type Preset } from "./kind.js";
import { checkBest, checkData, noteEval, requireImages } from "./rules.js";
import * as shared from "./shared.js";
import { count, integer0, positive, size } from "./shared.js";
import { resumedBy } from "./train.js";

/** Defaults that differ from trainer to trainer. */
export interface FitDefaults {
  readonly epochs: number;
  readonly batch: number;
  readonly lr: number;
  readonly betas: readonly [number, number];
  readonly weightDecay: number;
  /** EMA decay, null for no EMA. */
  readonly ema: number | null;
  /** Metric that chooses the weights that are kept, and whether a higher value is better. */
  readonly best: string;
  readonly mode: "max" | "min";
}

/** The sections that all have, before those of a command. */
const before = (presets: readonly string[]) => ({
  preset: key(shared.text.nullable(), null).describe(
    presets.length === 0
      ? "Values to start from; there are none for this command. Leave it at null."
      : `Values to start from: ${presets.join(", ")}. Set one to reproduce a published recipe.`,
  ),
  seed: shared.seed,
  run: shared.run,
  data: shared.data,
});

/** The sections that all have, after those of a command. */
const after = (defaults: FitDefaults) => ({
  optimizer: section(shared.optimizerKeys({ ...defaults, finalLr: 0.05 }, "updates")),
  ema: shared.emaOf(defaults.ema),
  precision: section({
    model: shared.precisionKey.describe(
      "Type that the network computes in; auto is bfloat16 on CUDA and float32 on a CPU. Set bfloat16 on CPUs that support it.",
    ),
  }),
  eval: section({
    every: key(integer0, 500, "updates").describe(
      "Interval between evaluations, the first before training and one after it; 0 never evaluates. Raise it when time/eval is a large part.",
    ),
    images: key(count, 1024, "images").describe(
      "Maximum number of held-out images to evaluate on, always the same. Raise it when the metrics fluctuate.",
    ),
    ...shared.bestKeys(defaults.best, defaults.mode, "Rarely changed."),
  }),
  save: section(shared.saveKeys(500, 2, "updates")),
  log: section(shared.logKeys(50, 500, "updates")),
  limits: section(shared.limitKeys("updates")),
  train: section({
    epochs: key(positive, defaults.epochs, "epochs").describe(
      "Number of passes over the training images. Raise it while the held-out metrics still improve.",
    ),
    iters: size("updates").describe(
      "Number of updates, in place of train.epochs; null follows from the epochs. Set it for a first look, or to compare runs of equal length.",
    ),
    batch: key(count, defaults.batch, "images").describe(
      "Images per update. Raise it together with the learning rate on a GPU; lower it when memory runs out.",
    ),
    ...shared.machineKeys,
  }),
});

/** The schema of a supervised trainer: the shared sections around the command's own. */
export function fitSchema<S extends z.ZodRawShape>(
  own: S,
  defaults: FitDefaults,
  presets: readonly string[] = [],
): Section<ReturnType<typeof before> & S & ReturnType<typeof after>> {
  return section({ ...before(presets), ...own, ...after(defaults) });
}

/** The configuration that all supervised trainers share. */
export type FitConfig = z.output<ReturnType<typeof fitSchema<Record<never, never>>>>;

/** What {@link fitKind} is made of: what differs from one supervised trainer to the next. */
interface FitKindParts<T extends FitConfig>
  extends Pick<KindParts<T>, "name" | "schema" | "aliases" | "spellings" | "memory">,
    Partial<Pick<KindParts<T>, "problems" | "missing" | "notes">> {
  readonly presets?: Readonly<Record<string, Preset>>;
  /** Metrics of an evaluation, which `eval.best` can name, and whether a higher or a lower value is better. */
  metrics(config: T): Readonly<Record<string, "max" | "min">>;
}

/** A kind of configuration for a supervised trainer. */
export function fitKind<T extends FitConfig>(parts: FitKindParts<T>): ConfigKind<T> {
  const { name, presets = {}, metrics, spellings } = parts;
  return configKind<T>({
    ...parts,
    presets,
    spellings: { "precision.model": { bf16: "bfloat16", fp32: "float32" }, ...spellings },
    problems: (config, found) => {
      checkData(config.data, found);
      checkBest(config.eval, new Map(Object.entries(metrics(config))), found);
      parts.problems?.(config, found);
    },
    missing: (config, found) => {
      requireImages(config, found);
      parts.missing?.(config, found);
    },
    notes: (config, found) => {
      if (config.train.iters !== null) found.unread("with train.iters", ["train.epochs"]);
      noteEval(config.eval, found);
      parts.notes?.(config, found);
    },
    onResume: (path, { optimizer: { schedule, warmup } }) => {
      if (path !== "train.iters" && path !== "train.epochs") return resumedBy(path);
      return schedule === "constant" && warmup === 0 ? "free" : "forced";
    },
    nameOf: ({ preset }) => (preset === null ? name : `${name}_${preset}`),
  });
}

/** Updates in all: `train.iters`, or as many as the epochs take. */
export function updatesOf({ train: { epochs, iters, batch } }: FitConfig, images: number): number {
  return iters ?? Math.max(1, Math.round((epochs * images) / batch));
}
