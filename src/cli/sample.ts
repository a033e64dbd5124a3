/** `rlar sample`: a PNG of images sampled from a policy, a row for each class or text. */
import { writePng } from "../data/images.js";
import { openSource } from "../data/index.js";
import { labelledPage } from "../data/page.js";
import { optionsOfRun, type PolicyFile } from "../evaluation/options.js";
import type { Condition } from "../policies/policy.js";
import { openPolicy, openTokenizer } from "../rl_ar_finetune/builder.js";
import { sampleCodesWithLogprobs } from "../rl_ar_finetune/sampling.js";
import { requireWritable } from "../run/folder.js";
import {
  type Device,
  empty,
  expected,
  loadSafetensors,
  openWeights,
  stream,
  type Tensor,
  tensor,
  tidy,
} from "../torch/index.js";
import { type Conditioning, classIds, classText, conditioningOf } from "./classes.js";
import { askedOf, sayNotes } from "./inspect.js";
import { withProgress } from "./progress.js";

/** Options of `rlar sample`. */
export interface SampleOptions {
  run?: string;
  checkpoint: "last" | "best";
  policy?: string;
  tokenizer?: string;
  out: string;
  /** Ids or names of classes, separated by commas; several where the option is repeated. */
  class: string[];
  data?: string;
  label?: string;
  features?: string;
  unconditional?: boolean;
  perClass?: number;
  cfg: number;
  cfgSchedule: "constant" | "power_cosine";
  temperature: number;
  topK: number;
  topP: number;
  seed: number;
  heads?: number;
  codes?: number;
  wrapper?: string;
  weights?: "ema" | "raw";
  dtype: "float32" | "bfloat16";
  device: Device;
  json?: boolean;
}

export async function sample(options: SampleOptions): Promise<void> {
  const { device, seed, temperature } = options;
  requireWritable("--out", options.out, [".png"]);
  const isGreedy = temperature === 0;
  const perClass = options.perClass ?? (isGreedy ? 1 : 4);
  if (!(perClass >= 1)) throw expected("--per-class", "at least 1", perClass);
  if (isGreedy && perClass > 1) {
    const remedy = "With --temperature 0 all images of a class are the same";
    throw expected("--per-class", "1 image a class", perClass, remedy);
  }
  const files = filesOf(options);
  const { path: decoderPath, ...decoderOptions } = files.tokenizer;
  const {
    tokenizer,
    description: decoder,
    notes,
  } = openTokenizer(decoderPath, { device, ...decoderOptions });
  using _tokenizer = tokenizer;
  const { path, ...asked } = files.policy;
  const { policy, description, ...opened } = openPolicy(path, {
    device,
    dtype: options.dtype,
    codebookSize: tokenizer.codebookSize,
    ...asked,
    ...askedOf(options),
  });
  using _policy = policy;
  policy.eval();
  sayNotes([...files.notes, ...notes, ...opened.notes]);
  const known = conditioningOf(description, metadataOf(path));
  const names = options.data === undefined ? known.names : await namesOf(options.data, options.label);
  const rows = rowsOf(options, path, { ...known, names: names.slice(0, known.numClasses) });
  const side = Math.sqrt(policy.blockSize);
  if (!Number.isInteger(side))
    throw expected("--codes", "a square number of codes per image", policy.blockSize);
  const started = performance.now();
  using page = await withProgress("sampling", async () =>
    tidy(() => {
      // Codes are drawn on the CPU, where the same seed gives the same codes whatever the device.
      using generator = stream(seed, "sample", 0);
      const { tokens } = sampleCodesWithLogprobs(policy, rows.start(device), policy.blockSize, {
        numGenerations: perClass,
        generator,
        ...(isGreedy ? { greedy: true } : { temperature }),
        topK: options.topK,
        topP: options.topP,
        ...(options.cfg !== 1 && { guidance: { scale: options.cfg, schedule: options.cfgSchedule } }),
      });
      const images = tokenizer.decodeCode(tokens, [side, side]).clamp(-1, 1).cpu();
      return labelledPage(
        images.split(perClass).map((row, i) => ({ label: rows.labels?.[i] ?? "", images: row })),
      );
    }),
  );
  await writePng(options.out, page);
  const seconds = (performance.now() - started) / 1000;
  const weights = { policy: description.weights, tokenizer: decoder.weights };
  if (options.json) {
    const facts = { out: options.out, seed, seconds, classes: rows.classes, weights };
    process.stdout.write(`${JSON.stringify(facts)}\n`);
  } else {
    const how = isGreedy ? "of the likeliest codes" : `seed ${seed}`;
    const many = perClass === 1 ? "1 image each" : `${perClass} images each`;
    process.stdout.write(
      `${options.out}: ${rows.text}, ${many}, ${how}, ${seconds.toFixed(1)} s\n` +
        `weights: ${weights.policy} of the policy, ${weights.tokenizer} of the tokenizer\n`,
    );
  }
}

/** Files of weights, and what they do not say themselves: those of a run, or the ones that are named. */
function filesOf({ run, checkpoint, policy, tokenizer }: SampleOptions): {
  policy: PolicyFile;
  tokenizer: { path: string; wrapper?: string; weights?: "ema" | "raw"; config?: object };
  notes: readonly string[];
} {
  const known = run === undefined ? undefined : optionsOfRun(run, checkpoint);
  const drawn = policy === undefined ? (known?.against ?? known?.policy) : { path: policy };
  const ofRun = typeof known?.tokenizer === "string" ? { path: known.tokenizer } : known?.tokenizer;
  const decoder = tokenizer === undefined ? ofRun : { path: tokenizer };
  if (drawn === undefined || decoder === undefined) {
    const missing = drawn === undefined ? "a policy" : "a tokenizer";
    const option = drawn === undefined ? "--policy FILE" : "--tokenizer FILE";
    throw expected(
      "sample",
      missing,
      "none",
      `Give ${option}, or --run DIR, the folder of a run that has one`,
    );
  }
  const { path, wrapper = null, weights = null, config } = decoder;
  return {
    policy: drawn,
    tokenizer: {
      path,
      ...(wrapper !== null && { wrapper }),
      ...(weights !== null && { weights }),
      ...(config && { config }),
    },
    notes: policy === undefined && known?.judged !== undefined ? [`draws from ${known.judged.text}`] : [],
  };
}

function metadataOf(path: string): Readonly<Record<string, string>> {
  using file = openWeights(path);
  return file.metadata;
}

/** Names of the classes of a data set. */
async function namesOf(path: string, label: string | undefined): Promise<readonly string[]> {
  return (await openSource(path, label === undefined ? {} : { label })).classNames;
}

/** What the rows of the grid are drawn from. */
interface Rows {
  start(device: Device): Condition | Tensor;
  /** Ids of classes, where there are such. */
  readonly classes: readonly number[] | undefined;
  /** A label per row, where classes were asked for. */
  readonly labels?: readonly string[];
  /** For people. */
  readonly text: string;
}

/** Check that the policy is conditioned on what the command line gives, and read it. */
function rowsOf(options: SampleOptions, where: string, policy: Conditioning): Rows {
  const { class: given, features, unconditional = false } = options;
  const isGiven = {
    "--class": given.length > 0,
    "--features": features !== undefined,
    "--unconditional": unconditional,
  };
  const named = Object.entries(isGiven).flatMap(([option, is]) => (is ? [option] : []));
  if (named.length !== 1) {
    const got = named.length === 0 ? "none" : named.join(" and ");
    throw expected("sample", "one of --class, --features and --unconditional", got, remedyFor(policy));
  }
  if (unconditional) {
    const start = (device: Device): Tensor => empty([1, 0], { dtype: "int64", device });
    return { start, classes: undefined, text: "a row without a condition" };
  }
  if (features !== undefined) {
    if (policy.kind !== "features") {
      const draws = policy.kind === "classes" ? "classes" : "no condition";
      throw expected("--features", `none: ${where} draws from ${draws}`, features, remedyFor(policy));
    }
    return {
      start: (device) => featuresOf(features, device),
      classes: undefined,
      text: "a row for each text",
    };
  }
  if (policy.kind !== "classes") {
    const draws = policy.kind === "features" ? "text features" : "no condition";
    throw expected("--class", `none: the policy draws from ${draws}`, given.join(","), remedyFor(policy));
  }
  const classes = classIds(given, policy);
  const texts = classes.map((id) => classText(id, policy));
  return {
    start: (device) => ({ classes: tensor(classes, { dtype: "int64", device }) }),
    classes,
    labels: classes.map((id, i) => (id === policy.numClasses ? "" : (texts[i] as string))),
    text: `${texts.length === 1 ? "a row for class" : "a row for each of classes"} ${texts.join(", ")}`,
  };
}

/** What to give for a policy. */
function remedyFor({ kind, numClasses, names }: Conditioning): string {
  if (kind === "features") return "Give the texts' features as a file: --features FILE; or --unconditional";
  if (kind === "nothing") return "Give --unconditional";
  const some = names[0] === undefined || names[0] === "0" ? "" : `, or a name such as ${names[0]}`;
  return `Give --class with numbers from 0 to ${numClasses - 1}${some}; or --unconditional`;
}

/** Features of texts in a file, as the policy takes them. */
function featuresOf(path: string, device: Device): Condition {
  const { tensors } = loadSafetensors(path);
  if (tensors.features === undefined) {
    throw expected(path, 'a tensor "features" [B, S, C]', Object.keys(tensors).join(", "));
  }
  const condition: Condition = { features: tensors.features.to({ device }) };
  if (tensors.isReal !== undefined) condition.isReal = tensors.isReal.to({ device });
  return condition;
}
