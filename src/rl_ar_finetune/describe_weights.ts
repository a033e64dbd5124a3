/**
 * Describes a file of weights from its header alone: the model, its size, the state dicts, and the metadata. `builder.ts` builds
 * models from it.
 */
import { statSync } from "node:fs";
import { rlarCommand } from "../config/command.js";
import {
  type ClassifierConfig,
  type MetricNetwork,
  recogniseClassifier,
  recogniseMetricNetwork,
} from "../metrics/index.js";
import { isPolicy, type PolicyDescription, type PolicySizes, recognisePolicy } from "../policies/index.js";
import {
  isTokenizer,
  recogniseTokenizer,
  TOKENIZER_CONFIG_NAMES,
  type TokenizerConfig,
  type TokenizerDescription,
} from "../tokenizers/index.js";
import {
  DTYPES,
  type DType,
  expected,
  isPlainObject,
  openWeights,
  plainNames,
  type WeightsFile,
} from "../torch/index.js";

/** The model in a file of weights. */
export type ModelDescription =
  | { readonly kind: "tokenizer"; readonly tokenizer: TokenizerDescription }
  | { readonly kind: "policy"; readonly policy: PolicyDescription }
  | ({ readonly kind: "classifier"; readonly config: ClassifierConfig } & NetworkDescription)
  | ({ readonly kind: "metric"; readonly network: MetricNetwork } & NetworkDescription);

/** Where a network's weights are in its file. */
export interface NetworkDescription {
  /** Name in the file by the network's own key. */
  readonly used: Readonly<Record<string, string>>;
  readonly weights: "raw" | "ema";
}

/** Options of {@link describeWeights}. */
export interface DescribeOptions extends PolicySizes {
  /** The weights of the last step, or their EMA. */
  weights?: "raw" | "ema";
  /** Known values of a tokenizer's configuration; see {@link recogniseTokenizer}. */
  tokenizerConfig?: Partial<TokenizerConfig>;
  /** Sizes of a policy to assume where neither the caller nor the file tells. */
  assume?: PolicySizes;
}

/** Which of a file's weights to take. */
export interface WeightsChoice {
  /** Key of the state dict in the file, where it holds several. */
  wrapper?: string;
  /**
   * `"raw"`: the weights of the last step. `"ema"`: their exponential moving average. Default, as in the published
   * samplers: the EMA of a tokenizer if there is one, and the raw weights of a policy if there are any.
   */
  weights?: "raw" | "ema";
}

/** A file and the model in it. Close the file, or hold this with `using`. */
export interface OpenedModel extends Disposable {
  readonly file: WeightsFile;
  /** null when the file holds no model that is known here. */
  readonly found: ModelDescription | null;
  /** What was assumed, and which weights were taken where the file left a choice: a sentence each. */
  readonly notes: readonly string[];
}

/** Keys under which trainers store an EMA of the weights. */
const AVERAGES: ReadonlySet<string> = new Set([
  "ema",
  "ema_state_dict",
  "model_ema",
  "model_state_dict_ema",
  "state_dict_ema",
]);

/** Keys under which trainers keep the weights of the last step, the preferred first. */
const RAW: readonly string[] = ["model", "module", "state_dict", "model_state_dict"];

/**
 * Open a file and say which model it holds, in the one of its state dicts that is asked for.
 *
 * @throws RangeError when the file cannot be read, when it lacks the weights that are asked for, or when the model in it
 *   is not whole.
 */
export function openModel(path: string, options: WeightsChoice & DescribeOptions = {}): OpenedModel {
  const { wrapper, ...asked } = options;
  let file = openWeights(path, wrapper === undefined ? {} : { wrapper });
  try {
    const reopen = (key: string): void => {
      file.close();
      file = openWeights(path, { wrapper: key });
    };
    // Tensors next to the state dicts, such as a step, do not belong to a model.
    const inside = [...RAW, ...AVERAGES].find((key) => file.otherWrappers.includes(key));
    if (wrapper === undefined && file.wrapper === "" && inside !== undefined && !isModel(file))
      reopen(inside);
    const { wanted, isChoice } = wrapper === undefined ? choose(file, asked.weights) : NO_CHOICE;
    if (wanted !== null && wanted !== file.wrapper) reopen(wanted);
    const found = describeWeights(file, asked);
    const notes = found?.kind === "policy" ? [...found.policy.notes] : [];
    if (found !== null && asked.weights === undefined && (isChoice || hasInnerChoice(found))) {
      const [taken, other] =
        weightsOf(found) === "ema" ? ["EMA of the weights", "raw"] : ["raw weights", "ema"];
      notes.push(
        `${path}: using the ${taken} of the ${found.kind}; weights: ${other} selects the other ones`,
      );
    }
    return { file, found, notes, [Symbol.dispose]: () => file.close() };
  } catch (error) {
    file.close();
    throw error;
  }
}

/** Whether the names of a file are those of any model that is known here, whole or not. */
function isModel(file: WeightsFile): boolean {
  return isPolicy(file.shapes) || isTokenizer(file.shapes) || networksIn(file).length > 0;
}

const NO_CHOICE = { wanted: null, isChoice: false } as const;

/** The state dict to take where the caller names none, and whether the file has both raw weights and an EMA. */
function choose(
  file: WeightsFile,
  weights: "raw" | "ema" | undefined,
): { wanted: string | null; isChoice: boolean } {
  const all = [file.wrapper, ...file.otherWrappers];
  const average = all.find((key) => AVERAGES.has(key));
  const isRaw = !AVERAGES.has(file.wrapper);
  const raw = isRaw ? file.wrapper : RAW.find((key) => all.includes(key));
  if (average === undefined || raw === undefined) return NO_CHOICE;
  const taken = weights ?? (isPolicy(file.shapes) ? "raw" : "ema");
  return { wanted: taken === "ema" ? average : raw, isChoice: true };
}

/** Whether a tokenizer's state dict has an EMA besides the raw weights, as Lightning's has. */
function hasInnerChoice(found: ModelDescription): boolean {
  return found.kind === "tokenizer" && found.tokenizer.hasBoth;
}

/**
 * Say which model an open file of weights holds, from its header alone.
 *
 * @returns null for an unknown model.
 * @throws RangeError when it is a known one that is not whole, lacks the weights that are asked for, or has
 *   weights that are not floating-point numbers.
 */
export function describeWeights(file: WeightsFile, options: DescribeOptions = {}): ModelDescription | null {
  const { shapes, path: where } = file;
  const { weights, tokenizerConfig, ...sizes } = options;
  const stated = statedConfig(file);
  const isAverage = AVERAGES.has(file.wrapper) || file.metadata.weights === "ema";
  if (isAverage && weights === "raw") {
    const remedy = "Ask for ema, or take another file";
    throw expected(where, "raw weights", `their EMA${nameOfDict(file)}`, remedy);
  }
  const found = describe();
  if (found === null) return null;
  const taken = weightsOf(found);
  if (weights !== undefined && taken !== weights) {
    throw expected(where, "an EMA of the weights", `raw weights only${nameOfDict(file)}`, "Ask for raw");
  }
  requireWeights(file, usedNames(found));
  return found;

  function describe(): ModelDescription | null {
    // A transformer's file may hold its tokenizer as well, and a tokenizer's the networks of its losses.
    const policy = recognisePolicy(shapes, { where, stated, isAverage, ...sizes });
    if (policy !== null) return { kind: "policy", policy };
    const config = { ...statedTokenizer(stated), ...tokenizerConfig };
    const tokenizer = recogniseTokenizer(shapes, { where, config, isAverage, ...(weights && { weights }) });
    if (tokenizer !== null) return { kind: "tokenizer", tokenizer };
    return describeNetwork(file, stated, isAverage ? "ema" : "raw");
  }
}

/** A classifier or a metric's network that is all that a file holds. */
function describeNetwork(
  file: WeightsFile,
  { classNames }: Record<string, unknown>,
  weights: "raw" | "ema",
): ModelDescription | null {
  const [part, ...others] = networksIn(file);
  if (part === undefined || others.length > 0 || part.isPart) return null;
  const { used, classifier, network } = part;
  if (classifier === null) return network === null ? null : { kind: "metric", network, used, weights };
  const config = Array.isArray(classNames)
    ? { ...classifier, classNames: classNames.map(String) }
    : classifier;
  return { kind: "classifier", config, used, weights };
}

/** A network among the tensors of a file. */
export interface NetworkPart {
  /** Stands before all its names. */
  readonly prefix: string;
  /** Whether the file holds other tensors too. */
  readonly isPart: boolean;
  /** Name in the file by the network's own key. */
  readonly used: Readonly<Record<string, string>>;
  readonly shapes: Readonly<Record<string, readonly number[]>>;
  readonly classifier: ClassifierConfig | null;
  readonly network: MetricNetwork | null;
}

/** A key of each kind of network; what stands before it in a file is the prefix of all its keys. */
const NETWORK_MARKS: readonly string[] = [
  "stem.weight",
  "main.0.weight",
  "features.0.weight",
  "net.slice1.0.weight",
  "net.slices.0.0.weight",
  "lin0.model.1.weight",
  "lin0.model.0.weight",
  "lins.0.model.1.weight",
  "Conv2d_1a_3x3.conv.weight",
];

/** Classifiers and metrics' networks in a file, each under the prefix that a trainer gave it. */
export function networksIn(file: WeightsFile): NetworkPart[] {
  const plain = plainNames(file.path, file.names);
  const prefixes = new Set<string>();
  for (const key of plain.keys()) {
    for (const mark of NETWORK_MARKS) {
      if (key === mark || key.endsWith(`.${mark}`)) prefixes.add(key.slice(0, -mark.length));
    }
  }
  return [...prefixes].flatMap((prefix): NetworkPart[] => {
    const own = [...plain].filter(([key]) => key.startsWith(prefix));
    const used = Object.fromEntries(own.map(([key, name]) => [key.slice(prefix.length), name]));
    const shapes = Object.fromEntries(
      own.map(([key, name]) => [key.slice(prefix.length), file.info(name).shape]),
    );
    const classifier = recogniseClassifier(shapes);
    const network = recogniseMetricNetwork(shapes);
    if (classifier === null && network === null) return [];
    return [{ prefix, isPart: own.length < plain.size, used, shapes, classifier, network }];
  });
}

/** Which weights a model is: those of the last step, or their average. */
export function weightsOf(found: ModelDescription): "raw" | "ema" {
  if (found.kind === "tokenizer") return found.tokenizer.weights;
  return found.kind === "policy" ? found.policy.weights : found.weights;
}

/** Name in the file by a model's own key. */
export function usedBy(found: ModelDescription): Readonly<Record<string, string>> {
  if (found.kind === "tokenizer") return found.tokenizer.used;
  return found.kind === "policy" ? found.policy.used : found.used;
}

/** Names of the weights that a model takes from its file. */
export const usedNames = (found: ModelDescription): string[] => Object.values(usedBy(found));

/** Check types and sizes of the weights that a model takes, before anything is built for them. */
export function requireWeights(file: WeightsFile, names: readonly string[]): void {
  let bytes = 0;
  for (const name of names) {
    const { dtype, shape } = file.info(name);
    const info = Object.hasOwn(DTYPES, dtype) ? DTYPES[dtype as DType] : undefined;
    const isCount = name.endsWith("num_batches_tracked");
    if (info === undefined || !(info.isFloat || isCount)) {
      const remedy = "Save the weights as float32, float16 or bfloat16";
      throw expected(`${file.path}: ${name}`, "a floating-point tensor", dtype, remedy);
    }
    bytes += shape.reduce((product, size) => product * size, info.size);
  }
  const size = statSync(file.path, { throwIfNoEntry: false });
  // An index or a folder of parts is small itself. Tensors may share memory, though weights seldom do.
  if (size === undefined || !size.isFile() || file.path.endsWith(".json") || bytes <= 2 * size.size) return;
  const got = `tensors of ${bytes} bytes in a file of ${size.size}`;
  throw expected(file.path, "a file as large as its tensors", got, "The file is damaged or made up");
}

/** The configuration that `rlar convert` and the trainers write beside the weights. */
function statedConfig(file: WeightsFile): Record<string, unknown> {
  const text = file.metadata.config;
  if (text === undefined) return {};
  let config: unknown;
  try {
    config = JSON.parse(text);
  } catch {
    config = null;
  }
  if (isPlainObject(config)) return config;
  const remedy = "Convert the file again from its source";
  throw expected(`${file.path}: metadata.config`, "an object in JSON", text.slice(0, 40), remedy);
}

/** The part of a {@link statedConfig} that is a tokenizer's. */
function statedTokenizer(stated: Record<string, unknown>): Partial<TokenizerConfig> {
  return Object.fromEntries(
    Object.entries(stated).filter(([name]) => Object.hasOwn(TOKENIZER_CONFIG_NAMES, name)),
  );
}

/**
 * What to write beside a policy's weights, so that the file alone is enough to build it again.
 *
 * @returns metadata of safetensors: `config`, all options of the policy as JSON.
 */
export function policyMetadata(policy: { readonly options: object }): Record<string, string> {
  return { config: JSON.stringify(policy.options) };
}

/** The part of a policy's configuration that its file states, without what was assumed. */
export const knownConfig = ({ config, assumed }: PolicyDescription): Record<string, unknown> =>
  Object.fromEntries(
    Object.entries(config).filter(([name]) => !(assumed as readonly string[]).includes(name)),
  );

function nameOfDict({ wrapper }: WeightsFile): string {
  return wrapper === "" ? "" : ` under "${wrapper}"`;
}

/** The error for a file that holds something else than is wanted. */
export function wrongKind(wanted: string, found: ModelDescription | null, file: WeightsFile): RangeError {
  return expected(
    file.path,
    wanted,
    whatIs(found, file),
    isAdapter(file) ? MERGE : `${rlarCommand(["inspect", file.path])} shows what is in it`,
  );
}

/** Whether a file holds low-rank adapters of Python's PEFT, with or without the weights that they change. */
export const isAdapter = (file: WeightsFile): boolean =>
  file.names.some((name) => /\.lora_[AB]\./.test(name));

/** What to do about adapters. */
export const MERGE = "These are LoRA adapters of PEFT: in Python, save model.merge_and_unload().state_dict()";

function whatIs(found: ModelDescription | null, file: WeightsFile): string {
  switch (found?.kind) {
    case undefined:
      return `${file.names.length} tensors of an unknown model (${file.names.slice(0, 3).join(", ")}, ...)`;
    case "metric":
      return found.network;
    case "classifier":
      return `a classifier of ${found.config.numClasses} classes`;
    case "policy":
      return `a policy (${found.policy.family})`;
    case "tokenizer":
      return `a tokenizer (${found.tokenizer.name})`;
  }
}
