/**
 * From a state dict to the tokenizer in it: which family, which architecture, which of its tensors. Told by names and
 * shapes alone, so that a file can be described without reading it. Files, and the dicts around a state dict, are left
 * to the caller.
 */
import { init } from "../nn/index.js";
import { expected, noGrad, type Tensor, tidy } from "../torch/index.js";
import type { Naming } from "./autoencoder.js";
import { IBQ } from "./ibq.js";
import type { Grid } from "./tokenizer.js";
import type { TokenizerConfig } from "./tokenizer_model.js";
import { TOKLIP_PREFIXES, toklipGrid } from "./toklip.js";
import { VQModel } from "./vq_model.js";

/** Shapes of tensors by their keys in a file. */
export type Shapes = Readonly<Record<string, readonly number[]>>;

/** Keys of a file that are not used, and why. */
export interface IgnoredKeys {
  reason: string;
  keys: string[];
}

/** A tokenizer that a state dict holds. */
export interface TokenizerDescription {
  /** Whose class it is: `ibq` {@link IBQ}, `vq` {@link VQModel}. */
  family: "ibq" | "vq";
  /** In words, such as `VQ-16 (LlamaGen) inside TokLIP, EMA`. */
  name: string;
  config: TokenizerConfig;
  weights: "raw" | "ema";
  /** Key of the file for each key of the model's state dict. */
  used: Record<string, string>;
  ignored: IgnoredKeys[];
  /** Rows and columns of codes that the model was trained with, where the file tells. */
  grid?: Grid;
}

/** What the caller knows or wants. */
export interface RecogniseOptions {
  /**
   * What cannot be told from shapes, such as `lookup`, `normGroups` and the weights of the losses, is taken from here; what
   * can must agree.
   */
  config?: Partial<TokenizerConfig>;
  /** The running average of the weights or the weights of the last step; the average where there is one. */
  weights?: "raw" | "ema";
}

type Untold =
  | "dropout"
  | "normGroups"
  | "lookup"
  | "beta"
  | "entropyTemperature"
  | "sampleEntropyWeight"
  | "batchEntropyWeight";

const WHERE = "recogniseTokenizer";

/** What may stand before the tokenizer's keys. `first_stage_model.` is where SEED-Voken's transformers keep theirs. */
const PREFIXES: readonly string[] = ["", ...TOKLIP_PREFIXES, "first_stage_model."];

/** First parts of the keys of every tokenizer. */
const PARTS: readonly string[] = ["encoder.", "decoder.", "quantize.", "quant_conv.", "post_quant_conv."];

const EMA = "model_ema.";

/** A file's shapes under the keys of a model. */
interface View {
  /** Stands before the keys in the file, `module.` included. */
  prefix: string;
  naming: Naming;
  hasRaw: boolean;
  hasEma: boolean;
  shapeOf: (key: string) => readonly number[] | undefined;
}

/**
 * Describe the tokenizer that a state dict holds.
 *
 * A codebook under IBQ's names is taken for IBQ, one under LlamaGen's for normalised; taming's VQGAN has IBQ's names and
 * `config: { lookup: "l2" }`.
 *
 * @param shapes - shapes by key; a leading `module.`, TokLIP's prefixes and SEED-Voken's `first_stage_model.` are found.
 * @returns null when the keys are of something else.
 * @throws RangeError when a tokenizer is there but not whole, or not as `options` want it.
 */
export function recogniseTokenizer(
  shapes: Shapes,
  options: RecogniseOptions = {},
): TokenizerDescription | null {
  const view = find(shapes);
  if (view === undefined) return null;
  const { config: asked = {} } = options;
  const weights = options.weights ?? (view.hasEma ? "ema" : "raw");
  if (!(weights === "ema" ? view.hasEma : view.hasRaw)) {
    throw expected(
      WHERE,
      `${weights === "ema" ? "EMA" : "raw"} weights`,
      weights === "ema" ? "raw alone" : "EMA alone",
    );
  }
  const told = configOf(view);
  for (const [name, value] of Object.entries(told)) {
    const want = asked[name as keyof TokenizerConfig];
    if (want === undefined || String(want) === String(value)) continue;
    throw expected(WHERE, `${name} ${describe(want)} as asked`, `${describe(value)} in the weights`);
  }
  const lookup = asked.lookup ?? (view.naming === "ibq" ? "dot" : "cosine");
  const config: TokenizerConfig = { ...untold(lookup), ...asked, ...told };
  const used = match(view, config, shapes, weights);
  const isToklip = TOKLIP_PREFIXES.some((prefix) => view.prefix.endsWith(prefix));
  const grid = isToklip ? toklipGrid(withoutModule(shapes)) : undefined;
  return {
    family: familyOf(config),
    name: nameOf(config) + (isToklip ? " inside TokLIP" : "") + (weights === "ema" ? ", EMA" : ""),
    config,
    weights,
    used,
    ignored: ignoredKeys(Object.keys(shapes), view.prefix, used),
    ...(grid && { grid }),
  };
}

/**
 * Build a described tokenizer and read its weights one at a time, as float32.
 *
 * @param readTensor - the tensor at a key of the file. Freed after use if it was made for the call.
 * @throws RangeError when a weight is no float or not finite.
 */
export function buildTokenizer(
  description: Pick<TokenizerDescription, "config" | "used">,
  readTensor: (key: string) => Tensor,
): IBQ | VQModel {
  const model = init.skipInit(() => createTokenizer(description.config));
  try {
    for (const [name, own] of Object.entries(model.stateDict())) {
      const key = description.used[name];
      if (key === undefined) throw expected("buildTokenizer", `a key for ${name}`, "none");
      noGrad(() => tidy(() => own.copy_(checked(key, readTensor(key), own.shape))));
    }
  } catch (error) {
    model.dispose();
    throw error;
  }
  return model;
}

/**
 * The tokenizer of a state dict: {@link recogniseTokenizer} and {@link buildTokenizer} in one.
 *
 * @throws RangeError when there is none, when it is not as `options` want it, or when a weight is not finite.
 */
export function loadTokenizer(
  state: Readonly<Record<string, Tensor>>,
  options: RecogniseOptions = {},
): { model: IBQ | VQModel; description: TokenizerDescription } {
  const shapes = Object.fromEntries(Object.entries(state).map(([key, tensor]) => [key, tensor.shape]));
  const description = recogniseTokenizer(shapes, options);
  if (description === null) {
    const keys = Object.keys(state);
    const got = keys.length === 0 ? "no tensors" : `${keys.length} tensors such as ${keys[0]}`;
    throw expected("loadTokenizer", "weights of an IBQ or VQ tokenizer (encoder.conv_in.weight, ...)", got);
  }
  return { model: buildTokenizer(description, (key) => state[key] as Tensor), description };
}

/** A tokenizer of the family that the configuration's lookup says, with random weights. */
export function createTokenizer(config: TokenizerConfig): IBQ | VQModel {
  return familyOf(config) === "ibq" ? new IBQ(config) : new VQModel(config);
}

const familyOf = (config: TokenizerConfig): TokenizerDescription["family"] =>
  config.lookup === "dot" ? "ibq" : "vq";

function nameOf(config: TokenizerConfig): string {
  if (familyOf(config) === "ibq") return `IBQ-${config.codebookSize}`;
  return `VQ-${2 ** (config.chMult.length - 1)} (${config.naming === "ibq" ? "taming" : "LlamaGen"})`;
}

function find(shapes: Shapes): View | undefined {
  for (const wrapper of ["", "module."]) {
    for (const family of PREFIXES) {
      const prefix = wrapper + family;
      const emaKey = (key: string): string => prefix + EMA + key.replaceAll(".", "");
      const hasRaw = Object.hasOwn(shapes, `${prefix}encoder.conv_in.weight`);
      const hasEma = Object.hasOwn(shapes, emaKey("encoder.conv_in.weight"));
      if (!hasRaw && !hasEma) continue;
      const shapeOf = (key: string): readonly number[] | undefined =>
        shapes[prefix + key] ?? shapes[emaKey(key)];
      if (shapeOf("quantize.embedding.weight") === undefined) continue;
      const naming = shapeOf("encoder.conv_blocks.0.res.0.conv1.weight") === undefined ? "ibq" : "llamagen";
      return { prefix, naming, hasRaw, hasEma, shapeOf };
    }
  }
  return undefined;
}

/** The part of a configuration that shapes tell. */
function configOf({ naming, shapeOf }: View): Omit<TokenizerConfig, Untold> {
  const size = (key: string, dim: number): number => {
    const value = shapeOf(key)?.[dim];
    if (value === undefined)
      throw expected(WHERE, `${key} with ${dim + 1} dimensions or more`, shapeOf(key) ?? "none");
    return value;
  };
  const count = (keyOf: (i: number) => string): number => {
    let i = 0;
    while (shapeOf(keyOf(i)) !== undefined) i++;
    return i;
  };
  const [levels, blocks] = naming === "ibq" ? ["down", "block"] : ["conv_blocks", "res"];
  const conv = (level: number, block: number): string =>
    `encoder.${levels}.${level}.${blocks}.${block}.conv1.weight`;
  const ch = size("encoder.conv_in.weight", 0);
  const all = [...Array(count((level) => conv(level, 0))).keys()];
  return {
    naming,
    inChannels: size("encoder.conv_in.weight", 1),
    outChannels: size("decoder.conv_out.weight", 0),
    ch,
    chMult: all.map((level) => size(conv(level, 0), 0) / ch),
    numResBlocks: count((block) => conv(0, block)),
    attnLevels: all.filter((level) => shapeOf(`encoder.${levels}.${level}.attn.0.q.weight`) !== undefined),
    zChannels: size("decoder.conv_in.weight", 1),
    codebookSize: size("quantize.embedding.weight", 0),
    embedDim: size("quantize.embedding.weight", 1),
    hasUsageRecord: shapeOf("quantize.codebook_used") !== undefined,
  };
}

/** The part of a configuration that shapes do not tell, as it was published. */
function untold(lookup: TokenizerConfig["lookup"]): Pick<TokenizerConfig, Untold> {
  const entropyWeight = lookup === "dot" ? 1 : 0;
  return {
    dropout: 0,
    normGroups: 32,
    lookup,
    beta: 0.25,
    entropyTemperature: 0.01,
    sampleEntropyWeight: entropyWeight,
    batchEntropyWeight: entropyWeight,
  };
}

/** Keys of the file for the keys of the model, all of them there, in the right shape, and none of its own left over. */
function match(
  view: View,
  config: TokenizerConfig,
  shapes: Shapes,
  weights: "raw" | "ema",
): Record<string, string> {
  const { prefix } = view;
  // Memory that is not written is not taken.
  using model = init.skipInit(() => createTokenizer(config));
  const own = Object.entries(model.stateDict());
  const used: Record<string, string> = {};
  for (const [name] of own) {
    used[name] = prefix + (weights === "ema" ? EMA + name.replaceAll(".", "") : name);
  }
  const missing = Object.values(used).filter((key) => !Object.hasOwn(shapes, key));
  const strange = Object.keys(shapes).filter((key) => {
    const name = key.slice(prefix.length);
    return (
      key.startsWith(prefix) && PARTS.some((part) => name.startsWith(part)) && !Object.hasOwn(used, name)
    );
  });
  const misshapen = own.flatMap(([name, tensor]) => {
    const key = used[name] as string;
    const shape = shapes[key] ?? tensor.shape;
    return shape.join() === tensor.shape.join()
      ? []
      : [`${key} ${describe(shape)} instead of ${describe(tensor.shape)}`];
  });
  const problems = [
    ...(missing.length > 0 ? [`missing ${some(missing)}`] : []),
    ...(strange.length > 0 ? [`unknown ${some(strange)}`] : []),
    ...(misshapen.length > 0 ? [some(misshapen)] : []),
  ];
  if (problems.length > 0) {
    throw expected(WHERE, `the ${own.length} tensors of ${nameOf(config)}`, problems.join("; "));
  }
  return used;
}

function ignoredKeys(keys: readonly string[], prefix: string, used: Record<string, string>): IgnoredKeys[] {
  const taken = new Set(Object.values(used));
  const byReason = new Map<string, string[]>();
  for (const key of keys) {
    if (taken.has(key)) continue;
    const reason = reasonFor(key, prefix, used);
    byReason.set(reason, [...(byReason.get(reason) ?? []), key]);
  }
  return [...byReason].map(([reason, list]) => ({ reason, keys: list }));
}

function reasonFor(key: string, prefix: string, used: Record<string, string>): string {
  if (!key.startsWith(prefix)) return "not the tokenizer's";
  const name = key.slice(prefix.length);
  if (Object.hasOwn(used, name)) return "raw weights beside their average";
  if (name.startsWith("loss.") || name.startsWith(`${EMA}loss`)) return "networks of the training losses";
  if (name === `${EMA}decay` || name === `${EMA}num_updates`) return "bookkeeping of the average";
  if (name.startsWith(EMA)) return "averages of the raw weights";
  return "not the tokenizer's";
}

function withoutModule(shapes: Shapes): Shapes {
  return Object.fromEntries(
    Object.entries(shapes).map(([key, shape]) => [key.replace(/^module\./, ""), shape]),
  );
}

function checked(key: string, tensor: Tensor, shape: readonly number[]): Tensor {
  if (tensor.shape.join() !== shape.join())
    throw expected(`buildTokenizer: ${key}`, `shape ${describe(shape)}`, tensor);
  if (!tensor.dtype.includes("float"))
    throw expected(`buildTokenizer: ${key}`, "a floating-point tensor", tensor);
  if (tensor.isfinite().all().item() === 1) return tensor;
  const bad = tensor.isfinite().logicalNot().sum().item();
  throw expected(
    `buildTokenizer: ${key}`,
    "finite weights",
    `${bad} of ${tensor.numel} that are not`,
    "The file is damaged",
  );
}

function describe(value: unknown): string {
  return Array.isArray(value) ? `[${value.join(", ")}]` : String(value);
}

function some(texts: readonly string[]): string {
  const shown = texts.slice(0, 3).join(", ");
  return texts.length > 3 ? `${shown} (+${texts.length - 3} more)` : shown;
}
