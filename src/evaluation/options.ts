/**
 * Options of an evaluation with their defaults and checks, the types of its results, and reading options from a run's folder or a
 * configuration. The evaluation is in `judge_models.ts`.
 */

import { existsSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { parse } from "yaml";
import { pathIn } from "../config/input.js";
import { ConfigError, type DataConfig, type TokenizerSection } from "../config/resolve.js";
import { schemaName } from "../config/spelling.js";
import { NETWORK_TERMS } from "../config/train_kind.js";
import type { FeatureNetwork } from "../metrics/features.js";
import type { ArPolicy } from "../policies/index.js";
import { describeWeights } from "../rl_ar_finetune/builder.js";
import { checkSampling } from "../rl_ar_finetune/sampling.js";
import { bestCheckpoint, listCheckpoints } from "../run/checkpoint.js";
import { runNear } from "../run/folder.js";
import type { FrozenTokenizer } from "../tokenizers/index.js";
import { known, type OptionNames, readOptions } from "../torch/arguments.js";
import { expectedMessage } from "../torch/errors.js";
import { type Device, type DType, expected, openWeights, type Tensor } from "../torch/index.js";
import { isObject } from "../torch/json.js";

/** A network whose features images are judged by, and its distance of images where it has one. */
export interface Judge {
  readonly network: FeatureNetwork;
  /** Distance of samples from their images, float `[B, 3, H, W]` in [-1, 1] both, to float `[B]`; null where there is none. */
  readonly distance: ((images: Tensor, samples: Tensor) => Tensor) | null;
  /** Of its classes, where it knows them: accuracy is measured only where they are those of the images. */
  readonly classNames?: readonly string[];
}

/** A file of weights, and what the file does not say about them. */
export interface PolicyFile {
  readonly path: string;
  readonly wrapper?: string;
  readonly weights?: "raw" | "ema";
  readonly nHead?: number;
  readonly blockSize?: number;
}

/** Options of {@link evaluateModels}. */
export interface ModelEvalOptions {
  readonly tokenizer: string | (Partial<TokenizerSection> & { readonly path: string }) | FrozenTokenizer;
  /** A: the policy, or the policy before. Without it only the tokenizer is evaluated. */
  readonly policy?: string | PolicyFile | ArPolicy;
  /** B: the policy after, evaluated with the same seeds. */
  readonly against?: string | PolicyFile | ArPolicy;
  /** Networks, or files of them: verdicts are given by each. */
  readonly features?: readonly (string | Judge)[];
  /** torchvision's VGG16, AlexNet or SqueezeNet 1.1, for LPIPS. */
  readonly lpips?: string;
  /**
   * A set that others described: published `mu` and `sigma` (`.npz`), or embeddings of `rlar embed`. Fréchet distances from it
   * are measured with the network that described it; others are refused.
   */
  readonly reference?: string;
  /** The images, by the keys of a training's `data`: `source` at least. */
  readonly data: Partial<DataConfig>;
  /** What sequences start from: the image's class or text features, or nothing. Default: `condition`. */
  readonly start?: "condition" | "empty";
  /** Free samples per setting; default 2,000, 0 for none. */
  readonly samples?: number;
  /** How often each class is drawn in free samples: as in the training images (default), or equally often. */
  readonly classes?: "data" | "balanced";
  /** Numbers of codes that completions are given; default half of an image's codes. An empty list: no completions. */
  readonly prefixes?: readonly number[];
  /** Completions per image; default 1. */
  readonly draws?: number;
  /** Most held-out images; default 1,000. */
  readonly images?: number;
  /** Most training images that samples are compared with; default 50,000. */
  readonly trainImages?: number;
  readonly temperatures?: readonly number[];
  /** Scales of classifier-free guidance; 1: no guidance. */
  readonly cfg?: readonly number[];
  readonly cfgSchedule?: "constant" | "power_cosine";
  readonly topK?: number;
  readonly topP?: number;
  /** Random seeds of the draws; default `[0]`. With several, each number is the mean over them. */
  readonly seeds?: readonly number[];
  /** Resamples of an interval; default 200, 0 for no intervals. */
  readonly resamples?: number;
  /** Sequences at a time; default 128. Changes nothing but rounding. */
  readonly batch?: number;
  readonly device?: Device;
  /** Of the policies. */
  readonly dtype?: DType;
  /**
   * Files of the networks that the reward used. Numbers of these networks are marked, since they favour a policy that was
   * trained with them. Undefined if unknown.
   */
  readonly rewardNetworks?: readonly string[];
  /** Which checkpoint of a run is evaluated; copied into the result. */
  readonly judged?: JudgedCheckpoint;
  /** Held-out images that a checkpoint was chosen on: the first step of a spread, as training takes them. They are not used. */
  readonly chosenOn?: number;
  /** A folder for pages of images. */
  readonly out?: string;
  /** A file for the free samples: uint8 `arr_0` `[N, H, W, 3]` and int64 `arr_1` `[N]`, as other projects' evaluators read. */
  readonly npz?: string;
  /** A file for the result. */
  readonly json?: string;
  /** Called with a line of progress. */
  readonly say?: (line: string) => void;
}

/** Options that are numbers and words, with their defaults; that of prefixes depends on the codes of an image. */
const DEFAULTS = {
  start: "condition",
  samples: 2000,
  classes: "data",
  prefixes: undefined,
  draws: 1,
  images: 1000,
  trainImages: 50_000,
  temperatures: [1],
  cfg: [1],
  cfgSchedule: "constant",
  topK: 0,
  topP: 1,
  seeds: [0],
  resamples: 200,
  batch: 128,
} as const;

const SETTINGS = Object.keys(DEFAULTS) as (keyof typeof DEFAULTS)[];

/** All of them. */
const OPTIONS: OptionNames<ModelEvalOptions> = {
  ...(Object.fromEntries(
    SETTINGS.map((name) => [name, typeof DEFAULTS[name] === "number" ? "number" : true]),
  ) as Pick<OptionNames<ModelEvalOptions>, keyof typeof DEFAULTS>),
  tokenizer: true,
  policy: true,
  against: true,
  features: true,
  lpips: true,
  reference: true,
  data: true,
  device: true,
  dtype: true,
  rewardNetworks: true,
  judged: true,
  chosenOn: "number",
  out: true,
  npz: true,
  json: true,
  say: true,
};

/**
 * Options in camelCase, whichever spelling they were given in.
 *
 * @throws RangeError for an option that there is not, and for a tokenizer or data that are missing.
 */
export function readEvalOptions(given: ModelEvalOptions): ModelEvalOptions {
  const options = readOptions<ModelEvalOptions>("evaluateModels", [given], { names: OPTIONS });
  if (options.tokenizer === undefined) throw expected("evaluateModels", "a tokenizer", "none");
  if (options.data === undefined) throw expected("evaluateModels", "images: data.source", "none");
  return options;
}

/** Which checkpoint of a run is judged. */
export interface JudgedCheckpoint {
  readonly run: string;
  /** Its folder's name, or that of the run's whole model. */
  readonly checkpoint: string;
  /** `final`: a whole model, as the other trainers leave it. */
  readonly which: "last" | "best" | "final";
  /** A sentence for people. */
  readonly text: string;
}

/** A number with its interval. */
export interface Estimate {
  readonly value: number;
  /** 95 % interval, or least and greatest of `seeds`; null where there is none. */
  readonly low: number | null;
  readonly high: number | null;
  /** One a seed, where there are several. */
  readonly seeds?: readonly number[];
}

/** By the measure's name, which `MEASURES` of src/metrics/measures.ts explains. */
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

/** Whether two draws, or their measures, are of the same temperature and guidance scale. */
export const isSamePoint = (a: Point, b: Point): boolean =>
  a.temperature === b.temperature && a.cfg === b.cfg;

/** What was measured of a policy at a point. */
export interface EvalRow extends Point {
  /** "A" or "B". */
  readonly policy: string;
  readonly free: Measures | null;
  readonly completions: readonly Completion[];
}

/** What was measured of completions. */
interface Completion {
  /** Codes that were given. */
  readonly prefix: number;
  readonly measures: Measures;
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

/** {@link ModelEvalOptions} that are numbers and words, all of them set. */
export type EvalSettings = Required<Pick<ModelEvalOptions, keyof typeof DEFAULTS>>;

/**
 * Fill in defaults and check every number.
 *
 * @param codes - T: codes of an image.
 * @throws RangeError on the first that cannot be served.
 */
export function settingsOf(options: ModelEvalOptions, codes: number): EvalSettings {
  const given = { prefixes: [Math.floor(codes / 2)], ...known(options) };
  const settings = Object.fromEntries(
    SETTINGS.map((name) => [name, given[name] ?? DEFAULTS[name]]),
  ) as unknown as EvalSettings;
  for (const [name, least] of [
    ["samples", 0],
    ["draws", 1],
    ["images", 1],
    ["trainImages", 2],
    ["resamples", 0],
    ["batch", 1],
  ] as const) {
    const value = settings[name];
    if (!Number.isInteger(value) || value < least) {
      throw expected(`eval: ${name}`, `an integer of at least ${least}`, value);
    }
  }
  if (settings.samples === 1) throw expected("eval: samples", "0 for none, or at least 2", 1);
  if (settings.resamples === 1) throw expected("eval: resamples", "0 for none, or at least 2", 1);
  for (const name of ["temperatures", "cfg", "seeds"] as const) {
    if (settings[name].length === 0) throw expected(`eval: ${name}`, "at least one", "none");
  }
  for (const name of ["temperatures", "cfg", "seeds", "prefixes"] as const) {
    const values: readonly number[] = settings[name];
    const twice = values.find((value, i) => values.indexOf(value) !== i);
    if (twice !== undefined) throw expected(`eval: ${name}`, "each value once", `${twice} twice`);
  }
  for (const seed of settings.seeds) {
    if (!Number.isSafeInteger(seed)) throw expected("eval: seeds", "integers", seed);
  }
  for (const prefix of settings.prefixes) {
    if (Number.isInteger(prefix) && prefix >= 0 && prefix < codes) continue;
    throw expected(
      "eval: prefixes",
      `integers from 0 to ${codes - 1}, with ${codes} codes per image`,
      prefix,
    );
  }
  const { topK, topP, cfgSchedule: schedule } = settings;
  for (const temperature of settings.temperatures) {
    for (const scale of settings.cfg) {
      checkSampling("eval", { temperature, topK, topP, guidance: { scale, schedule } });
    }
  }
  return settings;
}

/** Options of an evaluation that a run knows. */
type RunEvalOptions = Pick<
  ModelEvalOptions,
  "start" | "features" | "rewardNetworks" | "judged" | "chosenOn"
> & {
  readonly data?: Readonly<Record<string, unknown>>;
  readonly tokenizer?: Exclude<ModelEvalOptions["tokenizer"], { encode: unknown }>;
  readonly policy?: PolicyFile;
  readonly against?: PolicyFile;
};

type Section = Readonly<Record<string, unknown>>;

const sectionOf = (value: unknown): Section => (isObject(value) ? value : {});

/**
 * Read a configuration: `data`, the tokenizer, the policy's file.
 *
 * @throws ConfigError when it cannot be read or is no configuration.
 */
export function optionsOfConfig(file: string): RunEvalOptions {
  let values: unknown;
  try {
    values = parse(readFileSync(file, "utf8"));
  } catch (error) {
    throw new ConfigError([
      `${file}: expected a configuration in YAML, got ${(error as Error).message.split("\n")[0]?.replace(/[:.]$/, "")}. Correct it, or name another.`,
    ]);
  }
  if (!isObject(values)) {
    throw new ConfigError([
      `${file}: expected keys and values, got ${Array.isArray(values) ? "a list" : String(values)}.`,
    ]);
  }
  const { data, tokenizer, ar, rollout, reward } = values;
  // Relative paths of a file are relative to it.
  const here = <T extends Section>(section: T, ...names: readonly string[]): T => {
    const paths = names.flatMap((name) => {
      const path = section[name];
      return typeof path === "string" ? [[name, pathIn(dirname(file), path)]] : [];
    });
    return { ...section, ...Object.fromEntries(paths) };
  };
  const images = here(sectionOf(data), "source", "evalSource", "eval_source");
  const [frozen, policy] = [here(sectionOf(tokenizer), "path"), here(sectionOf(ar), "path")];
  const wrapper = typeof policy.wrapper === "string" ? policy.wrapper : null;
  const weights = policy.weights === "raw" || policy.weights === "ema" ? policy.weights : null;
  const heads = policy.nHead ?? policy.n_head;
  const nHead = typeof heads === "number" ? heads : null;
  return {
    data: images,
    ...(reward !== undefined && {
      rewardNetworks: networksOf(sectionOf(reward)).map((path) => pathIn(dirname(file), path)),
    }),
    ...(sectionOf(rollout).start === "empty" && { start: "empty" }),
    ...(typeof frozen.path === "string" && {
      tokenizer: frozen as Exclude<RunEvalOptions["tokenizer"], string | undefined>,
    }),
    ...(typeof policy.path === "string" && {
      policy: { path: policy.path, ...known({ wrapper, weights, nHead }) },
    }),
  };
}

/** Files of the networks that a reward uses: those of its terms with a weight. */
function networksOf(reward: Section): string[] {
  const sections = new Set(NETWORK_TERMS.values());
  return Object.entries(reward).flatMap(([name, term]) => {
    const { path, weight } = sectionOf(term);
    return sections.has(`reward.${schemaName(name)}`) && typeof path === "string" && weight !== 0
      ? [path]
      : [];
  });
}

/**
 * Read a run's folder: its configuration, and what it made. A fine-tuned policy is compared with the policy that it
 * started from. The EMA of its weights is used if there is one.
 *
 * @param which - the checkpoint. The best was chosen on held-out images, as many as `chosenOn` says: its
 *   numbers on the same images would be too good, so these are not used.
 * @param where - what names the folder, for messages.
 * @throws ConfigError when the folder holds no run, or one that has made nothing yet, or no best checkpoint.
 */
export function optionsOfRun(
  folder: string,
  which: "last" | "best" = "last",
  where = "--run",
): RunEvalOptions {
  const config = join(folder, "config.yaml");
  if (!existsSync(config)) {
    const what = existsSync(folder) ? "which has no config.yaml" : "which is not there";
    throw new ConfigError([
      expectedMessage(where, "the folder of a run", `${folder}, ${what}`, runNear(folder)),
    ]);
  }
  const known = optionsOfConfig(config);
  const made = resultOf(folder, which);
  if (made === null) {
    throw new ConfigError([
      `${where}: expected a run with a checkpoint, got ${folder}, which has none yet. --config ${config} takes its images alone.`,
    ]);
  }
  let kind: string | undefined;
  {
    using file = openWeights(made.path);
    kind = describeWeights(file)?.kind;
  }
  const { path, judged } = made;
  const all = { ...known, judged };
  if (kind === "tokenizer") return { ...all, tokenizer: path };
  if (kind === "classifier") return { ...all, features: [path] };
  const after: PolicyFile = { path };
  const chosen = judged.which === "best" ? { chosenOn: evaluatedImages(config) } : {};
  return { ...all, ...chosen, ...(known.policy === undefined ? { policy: after } : { against: after }) };
}

/** Held-out images that a run evaluates on, by its configuration. */
function evaluatedImages(config: string): number {
  const { images } = sectionOf(sectionOf(parse(readFileSync(config, "utf8"))).eval);
  return typeof images === "number" ? images : Number.MAX_SAFE_INTEGER;
}

/** The file of a run's result, and what it is in words; null if there is none yet. */
function resultOf(folder: string, which: "last" | "best"): { path: string; judged: JudgedCheckpoint } | null {
  const whole = join(folder, "model.safetensors");
  if (existsSync(whole)) {
    const judged = { run: folder, checkpoint: "model.safetensors", which: "final" as const };
    return { path: whole, judged: { ...judged, text: `${whole}, the run's result` } };
  }
  const checkpoints = join(folder, "checkpoints");
  const last = listCheckpoints(checkpoints).at(-1);
  const best = bestCheckpoint(checkpoints);
  if (which === "best" && best === null) {
    throw new ConfigError([
      `--checkpoint best: expected a run with a best checkpoint, got ${folder}, which has marked none. --checkpoint last judges its last.`,
    ]);
  }
  const name = which === "best" ? best?.name : last;
  if (name === undefined) return null;
  const files = ["ema", "policy", "model"].map((part) => join(checkpoints, name, `${part}.safetensors`));
  const path = files.find((file) => existsSync(file));
  if (path === undefined) return null;
  const other =
    which === "last" && best !== null && best.name !== last
      ? `; the best by ${best.metric} is ${best.name}, which --checkpoint best judges`
      : "";
  const average = path.endsWith("ema.safetensors") ? " (EMA of its weights)" : "";
  const how = which === "best" ? `the best by ${best?.metric}` : "the last";
  const text = `checkpoint ${name}${average} of ${folder}, ${how}${other}`;
  return { path, judged: { run: folder, checkpoint: name, which, text } };
}
