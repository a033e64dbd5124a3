/**
 * Recognises the tokenizer in a state dict: its family, its architecture and its tensors. Names and shapes are enough,
 * so a file can be described without reading its weights. The caller opens the file and finds the state dict in it.
 */
import { init, requireShapes, type Shapes, shapesOf } from "../nn/index.js";
import { expected, noGrad, plainName, plainNames, type Tensor, tidy } from "../torch/index.js";
import type { Naming } from "./autoencoder.js";
import { IBQ } from "./ibq.js";
import type { TokenizerConfig } from "./model.js";
import type { Grid } from "./tokenizer.js";
import { VQModel } from "./vq_model.js";

/** Keys of a file that are not used, and why. */
export interface IgnoredKeys {
  reason: string;
  keys: string[];
}

/** A tokenizer that a state dict holds. */
export interface TokenizerDescription {
  /** The class that it belongs to: `ibq` {@link IBQ}, `vq` {@link VQModel}. */
  family: "ibq" | "vq";
  /** Its name, such as `VQ-16 (LlamaGen) inside TokLIP, EMA`. */
  name: string;
  config: TokenizerConfig;
  weights: "raw" | "ema";
  /** Whether the state dict has both raw weights and their EMA. */
  hasBoth: boolean;
  /** Key of the file for each key of the model's state dict. */
  used: Record<string, string>;
  ignored: IgnoredKeys[];
  /** Rows and columns of codes that the model was trained with, if the file states them. */
  grid?: Grid;
}

/** Options of {@link recogniseTokenizer}. */
export interface RecogniseOptions {
  /** Path of the file, for messages. */
  where?: string;
  /**
   * Values that do not follow from shapes, such as `lookup`, `normGroups` and the weights of the losses. Other values
   * must agree with the shapes.
   */
  config?: Partial<TokenizerConfig>;
  /** The EMA of the weights or the weights of the last step; by default the EMA where the file has one. */
  weights?: "raw" | "ema";
  /** Whether the tensors are an EMA already, whatever their names. */
  isAverage?: boolean;
}

type Untold =
  | "dropout"
  | "normGroups"
  | "lookup"
  | "beta"
  | "entropyTemperature"
  | "sampleEntropyWeight"
  | "batchEntropyWeight";

/** A key that every tokenizer has. The part before it in the file is the prefix of all keys of the tokenizer. */
const MARK = "encoder.conv_in.weight";

/**
 * Prefixes of TokLIP's tokenizer, LlamaGen's VQ-16: in the vision tower of the released models, and in that of models
 * with open_clip's own vision transformer.
 *
 * @see Lin et al. 2025, "TokLIP: Marry Visual Tokens to CLIP for Multimodal Comprehension and Generation".
 */
const TOKLIP_PREFIXES: readonly string[] = ["visual.trunk.vq.", "visual.vq."];

/** Position embeddings of the two towers. The second may have one more, for the class token. */
const POSITIONS: readonly string[] = ["visual.trunk.pos_embed", "visual.positional_embedding"];

/** First parts of the keys of every tokenizer. */
const PARTS: readonly string[] = ["encoder.", "decoder.", "quantize.", "quant_conv.", "post_quant_conv."];

const EMA = "model_ema.";

/** A model's key as Lightning's EMA names it. */
const averaged = (key: string): string => EMA + key.replaceAll(".", "");

/** A file's shapes under the keys of a model. */
interface View {
  where: string;
  /** The prefix of the keys in the file, without the parts that wrappers add. */
  prefix: string;
  naming: Naming;
  hasRaw: boolean;
  hasEma: boolean;
  /** For each plain name (without the parts that wrappers add), the name in the file. */
  plain: ReadonlyMap<string, string>;
  shapeOf: (key: string) => readonly number[] | undefined;
}

/**
 * Describe the tokenizer that a state dict holds.
 *
 * A codebook with IBQ's names is taken to be IBQ's, one with LlamaGen's names to be normalized. Taming's VQGAN has
 * IBQ's names; pass `config: { lookup: "l2" }` for it.
 *
 * Any prefix of the names, such as TokLIP's `visual.trunk.vq.` or SEED-Voken's `first_stage_model.`, is removed, and so
 * are the parts that torch.compile and distributed wrappers add (`_orig_mod.`, `module.`).
 *
 * @param shapes - shapes by their names in the file.
 * @returns null when the names are not those of a tokenizer.
 * @throws RangeError when a tokenizer is incomplete, or does not fit `options`.
 */
export function recogniseTokenizer(
  shapes: Shapes,
  options: RecogniseOptions = {},
): TokenizerDescription | null {
  const { where = "recogniseTokenizer", config: asked = {}, isAverage = false } = options;
  const view = find(where, shapes);
  if (view === undefined) return null;
  const hasInner = view.hasEma && !isAverage;
  const inner =
    isAverage || options.weights === "raw" ? "raw" : (options.weights ?? (hasInner ? "ema" : "raw"));
  if (!(inner === "ema" ? view.hasEma : view.hasRaw)) {
    const other = inner === "ema" ? "raw" : "ema";
    throw expected(where, `${WEIGHTS[inner]} weights`, `${WEIGHTS[other]} ones alone`, `Ask for ${other}`);
  }
  const told = configOf(view);
  for (const [name, value] of Object.entries(told)) {
    const want = asked[name as keyof TokenizerConfig];
    if (want === undefined || String(want) === String(value)) continue;
    throw expected(where, `${name} ${describe(want)} as asked`, `${describe(value)} in the weights`);
  }
  const lookup = asked.lookup ?? (view.naming === "ibq" ? "dot" : "cosine");
  const config: TokenizerConfig = { ...untold(lookup), ...asked, ...told };
  const used = match(view, config, shapes, inner);
  const isToklip = TOKLIP_PREFIXES.some((prefix) => view.prefix.endsWith(prefix));
  const grid = isToklip ? toklipGrid(plainShapes(view.plain, shapes)) : undefined;
  const weights = isAverage ? "ema" : inner;
  return {
    family: familyOf(config),
    name: tokenizerName(config) + (isToklip ? " inside TokLIP" : "") + (weights === "ema" ? ", EMA" : ""),
    config,
    weights,
    hasBoth: view.hasRaw && view.hasEma,
    used,
    ignored: ignoredKeys(Object.keys(shapes), view.prefix, used),
    ...(grid && { grid }),
  };
}

/** Whether the names of a file are those of a tokenizer, complete or not. */
export function isTokenizer(shapes: Shapes): boolean {
  return find("isTokenizer", shapes) !== undefined;
}

const WEIGHTS = { raw: "raw", ema: "EMA" } as const;

/**
 * Build the described tokenizer and load its weights as float32, one tensor at a time.
 *
 * @param readTensor - returns the tensor of a key of the file. It is freed after use if the call created it.
 * @param where - path of the file, for messages.
 * @throws RangeError when a weight is not floating-point, or not finite in float32.
 */
export function buildTokenizer(
  description: Pick<TokenizerDescription, "config" | "used">,
  readTensor: (key: string) => Tensor,
  where = "buildTokenizer",
): IBQ | VQModel {
  const model = init.skipInit(() => createTokenizer(description.config));
  try {
    for (const [name, own] of Object.entries(model.stateDict())) {
      const key = description.used[name];
      if (key === undefined) throw expected(where, `a key for ${name}`, "none");
      noGrad(() => tidy(() => own.copy_(checked(`${where}: ${key}`, readTensor(key), own.shape))));
    }
  } catch (error) {
    model.dispose();
    throw error;
  }
  return model;
}

/** A tokenizer with random weights; the configuration's `lookup` determines the family. */
export function createTokenizer(config: TokenizerConfig): IBQ | VQModel {
  return familyOf(config) === "ibq" ? new IBQ(config) : new VQModel(config);
}

const familyOf = (config: TokenizerConfig): TokenizerDescription["family"] =>
  config.lookup === "dot" ? "ibq" : "vq";

function tokenizerName(config: TokenizerConfig): string {
  if (familyOf(config) === "ibq") return `IBQ-${config.codebookSize}`;
  return `VQ-${2 ** (config.chMult.length - 1)} (${config.naming === "ibq" ? "taming" : "LlamaGen"})`;
}

function find(where: string, shapes: Shapes): View | undefined {
  const plain = plainNames(where, Object.keys(shapes));
  const prefixes = new Set<string>();
  for (const key of plain.keys()) {
    for (const mark of [MARK, averaged(MARK)]) {
      const prefix = key.slice(0, -mark.length);
      if (key.endsWith(mark) && (prefix === "" || prefix.endsWith("."))) prefixes.add(prefix);
    }
  }
  const views = [...prefixes].flatMap((prefix): View[] => {
    const shapeAt = (key: string): readonly number[] | undefined => shapes[plain.get(key) ?? ""];
    const shapeOf = (key: string): readonly number[] | undefined =>
      shapeAt(prefix + key) ?? shapeAt(prefix + averaged(key));
    if (shapeOf("quantize.embedding.weight") === undefined) return [];
    const naming = shapeOf("encoder.conv_blocks.0.res.0.conv1.weight") === undefined ? "ibq" : "llamagen";
    const hasRaw = plain.has(prefix + MARK);
    const hasEma = plain.has(prefix + averaged(MARK));
    return [{ where, prefix, naming, hasRaw, hasEma, plain, shapeOf }];
  });
  const own = views.find(({ prefix }) => prefix === "");
  if (own !== undefined || views.length < 2) return own ?? views[0];
  const found = views.map(({ prefix }) => `one under "${prefix}"`).join(", ");
  throw expected(where, "one tokenizer", found, "Pass the tensors of one of them");
}

/** The part of a configuration that follows from shapes. */
function configOf({ where, naming, shapeOf }: View): Omit<TokenizerConfig, Untold> {
  const size = (key: string, dim: number): number => {
    const value = shapeOf(key)?.[dim];
    if (value === undefined || value < 1)
      throw expected(where, `${key} with ${dim + 1} dimensions or more`, shapeOf(key) ?? "none");
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

/** The part of a configuration that does not follow from shapes, as published. */
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

/** For each key of the model, the key in the file. Throws if one is missing, has the wrong shape, or is left over. */
function match(
  { where, prefix, plain }: View,
  config: TokenizerConfig,
  shapes: Shapes,
  weights: "raw" | "ema",
): Record<string, string> {
  const wanted = shapesOf(where, () => createTokenizer(config));
  const used: Record<string, string> = {};
  for (const name of Object.keys(wanted)) {
    const key = prefix + (weights === "ema" ? averaged(name) : name);
    used[name] = plain.get(key) ?? key;
  }
  const own = { ...used };
  for (const [key, name] of plain) {
    const rest = key.slice(prefix.length);
    if (key.startsWith(prefix) && PARTS.some((part) => rest.startsWith(part))) own[rest] ??= name;
  }
  requireShapes(where, tokenizerName(config), wanted, own, shapes);
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
  const plain = plainName(key);
  if (!plain.startsWith(prefix)) return "not the tokenizer's";
  const name = plain.slice(prefix.length);
  if (Object.hasOwn(used, name)) return "raw weights beside their EMA";
  if (name.startsWith("loss.") || name.startsWith(`${EMA}loss`)) return "networks of the training losses";
  if (name === `${EMA}decay` || name === `${EMA}num_updates`) return "bookkeeping of the EMA";
  if (name.startsWith(EMA)) return "averages of the raw weights";
  return "not the tokenizer's";
}

/**
 * Rows and columns of codes that the model was trained with: [16, 16] for 256 px, [24, 24] for 384 px; undefined if the
 * file has no position embedding.
 *
 * @param shapes - shapes by name, without the parts that wrappers add.
 */
function toklipGrid(shapes: Shapes): Grid | undefined {
  for (const key of POSITIONS) {
    const positions = shapes[key]?.at(-2) ?? 0; // [1, T, D] or [T, D]
    const side = Math.floor(Math.sqrt(positions));
    if (side > 0 && positions - side * side <= 1) return [side, side];
  }
  return undefined;
}

function plainShapes(plain: ReadonlyMap<string, string>, shapes: Shapes): Shapes {
  return Object.fromEntries([...plain].map(([key, name]) => [key, shapes[name] as readonly number[]]));
}

function checked(where: string, tensor: Tensor, shape: readonly number[]): Tensor {
  if (tensor.shape.join() !== shape.join()) throw expected(where, `shape ${describe(shape)}`, tensor);
  if (!tensor.dtype.includes("float")) throw expected(where, "a floating-point tensor", tensor);
  const own = tensor.float();
  if (own.isfinite().all().item() === 1) return own;
  const bad = own.isfinite().logicalNot().sum().item();
  const got = `${bad} of ${tensor.numel} that are not`;
  throw expected(where, "finite weights", got, "The file is damaged, or its training diverged");
}

function describe(value: unknown): string {
  return Array.isArray(value) ? `[${value.join(", ")}]` : String(value);
}
