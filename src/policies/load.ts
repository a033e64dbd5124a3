/**
 * Recognises the policy in a state dict by names and shapes, and loads it strictly. The caller opens the file and finds
 * the state dict in it.
 */
import { countParts, init, type Readable, requireShapes, type Shapes, shapesOf } from "../nn/index.js";
import { type Device, DTYPES, type DType, expected, plainNames, type Tensor, tidy } from "../torch/index.js";
import { GPT, type GptOptions } from "./gpt.js";
import { IbqAr, type IbqArOptions, ibqArPresets } from "./ibq_ar.js";
import { gatedWidth } from "./llama_blocks.js";
import { LlamaGen, type LlamaGenOptions, llamaGenPresets } from "./llamagen.js";
import type { ArPolicy } from "./policy.js";

export type PolicyFamily = "gpt" | "llamagen" | "ibq_ar";

/** Sizes that shapes do not always determine. */
export interface PolicySizes {
  /** H, attention heads. */
  nHead?: number;
  /** T, codes per image. LlamaGen and IBQ's transformer do not save positions. */
  blockSize?: number;
  /** Number of classes without the null class. */
  numClasses?: number;
}

/** Options for recognising a policy: sizes that the caller knows, and the family that the caller expects. */
export interface RecogniseOptions extends PolicySizes {
  /** Path of the file, for messages. */
  where?: string;
  /** The family that is wanted. */
  family?: PolicyFamily;
  /** Options of the constructor in the file's metadata. The sizes above take precedence over them. */
  stated?: Readonly<Record<string, unknown>>;
  /** Sizes to assume if neither the caller nor the file has them; a note says so. */
  assume?: PolicySizes;
  /** Whether the tensors are an EMA of the weights. */
  isAverage?: boolean;
}

/** A model to which the weights of a file belong. */
export type PolicyDescription = (
  | { readonly family: "gpt"; readonly config: Partial<GptOptions> }
  | { readonly family: "llamagen"; readonly config: Partial<LlamaGenOptions> }
  | { readonly family: "ibq_ar"; readonly config: Partial<IbqArOptions> }
) & {
  readonly where: string;
  /** The weights of the last step, or their EMA. */
  readonly weights: "raw" | "ema";
  /** Sizes that are unknown, so `config` lacks them. The policy cannot be built without them. */
  readonly missing: readonly (keyof PolicySizes)[];
  /** Sizes in `config` that are assumed: neither the file nor the caller states them. */
  readonly assumed: readonly (keyof PolicySizes)[];
  /** Notes about assumed values and about values of the file that were overridden, one sentence each. */
  readonly notes: readonly string[];
  /** For each key of the policy, the name in the file. */
  readonly used: Readonly<Record<string, string>>;
  /** The file's other tensors. */
  readonly ignored: readonly { readonly name: string; readonly reason: string }[];
  readonly shapes: Shapes;
};

/** A key that only this family has. The part before it in the file is the prefix of all keys of the policy. */
const MARKS: Readonly<Record<PolicyFamily, string>> = {
  gpt: "blocks.0.attn.query.weight",
  llamagen: "layers.0.attention.wqkv.weight",
  ibq_ar: "blocks.0.ada_lin.1.weight",
};

/** Tensors of the policy in a file that this project computes instead of loading. */
const COMPUTED: readonly (readonly [pattern: RegExp, reason: string])[] = [
  [/^blocks\.\d+\.attn\.mask$/, "a causal mask, which attention applies by itself"],
  [/(^|\.)freqs_cis$/, "rotary positions, which are computed"],
];

/** Tensors of other models in the checkpoint of a training run. */
const BESIDE: readonly (readonly [prefix: string, reason: string])[] = [
  ["first_stage_model.", "the tokenizer that the policy was trained on"],
  ["cond_stage_model.", "the condition's encoder, which has no trained weights"],
];

/** Options that do not follow from shapes, by family: they are taken from the file's metadata. */
const UNTOLD: Readonly<Record<PolicyFamily, readonly string[]>> = {
  gpt: ["embdPdrop", "residPdrop", "attnPdrop", "tokenDrop"],
  llamagen: [
    "ropeBase",
    "normEps",
    "initializerRange",
    "tokenDropoutP",
    "attnDropoutP",
    "residDropoutP",
    "ffnDropoutP",
    "dropPathRate",
  ],
  ibq_ar: [
    "ropeBase",
    "normEps",
    "initializerRange",
    "tokenDrop",
    "attnDropoutP",
    "residDropoutP",
    "ffnDropoutP",
    "dropPathRate",
    "alng",
  ],
};

/** Sizes of the published models; for minGPT there are none. */
const PUBLISHED: Readonly<
  Record<PolicyFamily, typeof llamaGenPresets | typeof ibqArPresets | Record<string, never>>
> = {
  gpt: {},
  llamagen: llamaGenPresets,
  ibq_ar: ibqArPresets,
};

/** Maximum number of heads, codes per image and classes: 1024 x 1024. */
const MOST = 2 ** 20;

/** Names of the families for messages. */
export const POLICY_NAMES: Readonly<Record<PolicyFamily, string>> = {
  gpt: "GPT (minGPT style)",
  llamagen: "LlamaGen",
  ibq_ar: "IBQ's transformer",
};

/** Whether the names of a file are those of a policy. */
export function isPolicy(shapes: Shapes): boolean {
  return policiesIn(plainNames("isPolicy", Object.keys(shapes))).length > 0;
}

function policiesIn(plain: ReadonlyMap<string, string>): { family: PolicyFamily; prefix: string }[] {
  return (Object.keys(MARKS) as PolicyFamily[]).flatMap((family) => {
    const mark = MARKS[family];
    const marked = [...plain.keys()].filter((key) => key === mark || key.endsWith(`.${mark}`));
    return marked.map((key) => ({ family, prefix: key.slice(0, -mark.length) }));
  });
}

/**
 * Describe the policy in a file, or return null if its tensors are not those of a known policy.
 *
 * Any prefix of the names, such as Lightning's `transformer.`, is removed, and so are the parts that torch.compile and
 * distributed wrappers add (`_orig_mod.`, `module.`).
 *
 * @throws RangeError if the policy is of another family than `options.family` or of a variant that is not implemented,
 *   if a tensor is missing, unknown or of the wrong shape, or if shapes and options contradict each other.
 */
export function recognisePolicy(shapes: Shapes, options: RecogniseOptions = {}): PolicyDescription | null {
  const { where = "recognisePolicy", isAverage = false } = options;
  const plain = plainNames(where, Object.keys(shapes));
  const found = policiesIn(plain);
  const [first] = found;
  if (first === undefined) {
    const shared = [...plain.keys()].find((key) => key.endsWith("blocks.0.ada_gss"));
    if (shared !== undefined)
      throw expected(where, "an AdaLN projection in each block", `a shared one (${shared})`);
    return null;
  }
  if (found.length > 1) {
    const prefixes = found.map(({ family, prefix }) => `${family} under "${prefix}"`);
    throw expected(where, "one policy", prefixes.join(", "), "Pass the tensors of one of them");
  }
  const { family, prefix } = first;
  if (options.family !== undefined && options.family !== family) {
    const mark = plain.get(`${prefix}${MARKS[family]}`);
    throw expected(where, `weights of ${options.family}`, `those of ${family} (it has ${mark})`);
  }
  const used: Record<string, string> = {};
  const ignored: { name: string; reason: string }[] = [];
  for (const [key, name] of plain) {
    const own = key.slice(prefix.length);
    const reason = key.startsWith(prefix)
      ? COMPUTED.find(([pattern]) => pattern.test(own))?.[1]
      : (BESIDE.find(([start]) => key.includes(start))?.[1] ?? `not under ${prefix}`);
    if (reason === undefined) used[own] = name;
    else ignored.push({ name, reason });
  }
  const facts = new Facts(where, shapes, used, family, options);
  const told = TOLD[family](facts);
  const config = { ...facts.untold(told), ...told };
  const description = {
    family,
    config,
    where,
    weights: isAverage ? ("ema" as const) : ("raw" as const),
    missing: facts.missing,
    assumed: facts.assumed,
    notes: facts.notes,
    used,
    ignored,
    shapes,
  } as PolicyDescription;
  const wanted = shapesOf(where, () => emptyPolicy(family, { ...config, ...facts.placeholders(config) }));
  requireShapes(where, POLICY_NAMES[family], wanted, used, shapes);
  return description;
}

type Told = Partial<GptOptions & LlamaGenOptions & IbqArOptions>;

/** Shapes by key of the policy, metadata of the file, options of the caller, and the sizes that follow from them. */
class Facts {
  readonly where: string;
  readonly missing: (keyof PolicySizes)[] = [];
  readonly assumed: (keyof PolicySizes)[] = [];
  readonly notes: string[] = [];
  readonly #family: PolicyFamily;
  readonly #options: RecogniseOptions;
  readonly #stated: Readonly<Record<string, unknown>>;
  readonly #shapes: Shapes;
  readonly #used: Readonly<Record<string, string>>;

  constructor(
    where: string,
    shapes: Shapes,
    used: Readonly<Record<string, string>>,
    family: PolicyFamily,
    options: RecogniseOptions,
  ) {
    this.where = where;
    this.#family = family;
    this.#options = options;
    this.#stated = options.stated ?? {};
    this.#shapes = shapes;
    this.#used = used;
  }

  has(key: string): boolean {
    return Object.hasOwn(this.#used, key);
  }

  /** One dimension of a tensor with `rank` dimensions. */
  size(key: string, dim: number, rank = 2): number {
    const name = this.has(key) ? (this.#used[key] as string) : undefined;
    const shape = name === undefined ? undefined : this.#shapes[name];
    const size = shape?.[dim];
    if (size === undefined || shape?.length !== rank || size < 1) {
      throw expected(this.where, `${name ?? key} with ${rank} dimensions`, shape ?? "no such tensor");
    }
    return size;
  }

  /** Number of numbered parts: `blocks.0.`, `blocks.1.`, ... */
  count(part: string): number {
    return countParts(Object.keys(this.#used), part);
  }

  /** A size given by the caller or the file; undefined if neither has it. */
  said(name: keyof PolicySizes, alias: string = name): number | undefined {
    const asked = this.#options[name];
    const stated = this.#stated[name] ?? this.#stated[alias];
    const least = name === "numClasses" ? 0 : 1;
    const isSize = (value: unknown): boolean =>
      value === undefined || (Number.isInteger(value) && Number(value) >= least && Number(value) <= MOST);
    if (!isSize(asked)) throw expected(this.where, `${name}, an integer in [${least}, ${MOST}]`, asked);
    if (!isSize(stated)) {
      const at = `${this.where}: metadata.config.${name}`;
      throw expected(
        at,
        `an integer in [${least}, ${MOST}]`,
        stated,
        "Convert the file again from its source",
      );
    }
    if (asked !== undefined && stated !== undefined && asked !== stated) {
      this.notes.push(`${name} ${asked}, as asked; the file says ${stated}`);
    }
    if (asked !== undefined || stated !== undefined) return asked ?? (stated as number);
    const assumed = this.#options.assume?.[name];
    return assumed === undefined ? undefined : this.#assume(name, assumed, "");
  }

  #assume(name: keyof PolicySizes, value: number, why: string): number {
    this.assumed.push(name);
    this.notes.push(`${name} ${value} is assumed${why}; the file does not tell`);
    return value;
  }

  /** Number of heads: as given, otherwise that of the published model of this size. */
  heads(dim: number, nLayer: number): number | undefined {
    const said = this.said("nHead");
    if (said !== undefined) return said;
    for (const [name, sizes] of Object.entries(PUBLISHED[this.#family])) {
      const width = "dim" in sizes ? sizes.dim : sizes.nEmbd;
      if (width !== dim || sizes.nLayer !== nLayer) continue;
      this.notes.push(
        `nHead ${sizes.nHead} is assumed, as the published ${name} has; the file does not tell`,
      );
      return sizes.nHead;
    }
    this.missing.push("nHead");
    return undefined;
  }

  /** Codes per image, of a policy that does not save positions. */
  blockSize(): number | undefined {
    const said = this.said("blockSize");
    if (said === undefined) this.missing.push("blockSize");
    return said;
  }

  /** Number of classes of the embedding at `key`, without the null class. */
  classes(key: string): number {
    const rows = this.size(key, 0);
    const numClasses = this.said("numClasses", "classNum");
    if (rows === 1000 && numClasses !== 999) {
      const remedy =
        "A model trained without label drop has no null class; pass numClasses 999 if the last row is one";
      throw expected(this.where, `1001 rows in ${key}, for 1000 classes and the null class`, rows, remedy);
    }
    if (numClasses !== undefined && rows !== numClasses + 1) {
      const what = `${numClasses + 1} rows in ${key}, for ${numClasses} classes and the null class`;
      throw expected(this.where, what, rows);
    }
    return rows - 1;
  }

  /** Options of the file's metadata that do not follow from shapes. Throws if the metadata contradicts the shapes. */
  untold(told: Told): Told {
    for (const [name, value] of Object.entries(told)) {
      const stated = this.#stated[name];
      const isSaid = name in ({ nHead: 0, blockSize: 0 } satisfies PolicySizes);
      if (stated === undefined || isSaid || typeof value === "object" || stated === value) continue;
      throw expected(this.where, `${name} ${value}, as its weights have`, `${stated} in its metadata`);
    }
    const known = Object.entries(this.#stated).filter(([name]) => UNTOLD[this.#family].includes(name));
    for (const [name, value] of known) {
      if (typeof value === "number") continue;
      throw expected(`${this.where}: metadata.config.${name}`, "a number", value, "Convert the file again");
    }
    return Object.fromEntries(known);
  }

  /**
   * Placeholders for values that are missing or do not affect shapes. The shapes of a model with them are the right
   * ones.
   */
  placeholders(config: Told): Told {
    const features = config.features;
    const isPrepended = features?.kind === "prepend" && config.blockSize === undefined;
    return {
      // The other families have no weights for positions.
      ...((this.#family !== "gpt" || this.missing.includes("blockSize")) && { blockSize: 1 }),
      ...(isPrepended && { features: { ...features, tokens: this.size("pos_emb", 1, 3) - 1 } }),
      ...(this.missing.includes("nHead") && this.#placeholderHeads(config)),
    };
  }

  #placeholderHeads({ dim, nEmbd }: Told): Told {
    const width = (dim ?? nEmbd) as number;
    if (this.#family === "gpt") return { nHead: 1 };
    const part = this.#family === "llamagen" ? "layers" : "blocks";
    const keyWidth = (this.size(`${part}.0.attention.wqkv.weight`, 0) - width) / 2;
    return { nHead: width / keyWidth, nKvHead: 1 };
  }
}

/** The configuration of each family, from shapes and from the sizes that only the caller or the file has. */
const TOLD: Readonly<Record<PolicyFamily, (facts: Facts) => Told>> = {
  gpt: gptConfig,
  llamagen: llamaGenConfig,
  ibq_ar: ibqArConfig,
};

function gptConfig(facts: Facts): Told {
  const nEmbd = facts.size("head.weight", 1);
  const nLayer = facts.count("blocks");
  const positions = facts.size("pos_emb", 1, 3);
  const isCross = facts.has("blocks.0.cross_attn.query.weight");
  const isPrepended = facts.has("cond_proj.weight") && !isCross;
  const dim = isPrepended || isCross ? facts.size("cond_proj.weight", 1) : 0;
  const isCodebook = facts.has("embedding_projection.weight");
  const blockSize = isPrepended ? facts.blockSize() : (facts.said("blockSize") ?? positions);
  if (!isPrepended && blockSize !== positions) {
    throw expected(facts.where, `${blockSize} positions in pos_emb, as blockSize`, positions);
  }
  if (blockSize !== undefined && blockSize > positions) {
    throw expected(facts.where, `a blockSize of at most ${positions}, the positions in pos_emb`, blockSize);
  }
  const nHead = facts.heads(nEmbd, nLayer);
  return {
    vocabSize: facts.size("head.weight", 0),
    ...(blockSize !== undefined && { blockSize }),
    nLayer,
    ...(nHead !== undefined && { nHead }),
    nEmbd,
    classNum: facts.classes("class_emb.embedding_table.weight"),
    ...(isCodebook ? { usePretrainedCodebook: true, nCodebookEmbd: facts.size("tok_emb.weight", 1) } : {}),
    ...(isCross ? { features: { kind: "cross", dim } } : {}),
    ...(isPrepended ? { features: { kind: "prepend", dim, tokens: positions - (blockSize ?? 0) } } : {}),
  };
}

/** Sizes that LlamaGen's and IBQ's blocks have in common; `blocks` is the prefix of the blocks. */
function llamaSizes(facts: Facts, blocks: string, dim: number): Told {
  const nLayer = facts.count(blocks);
  const blockSize = facts.blockSize();
  const nHead = facts.heads(dim, nLayer);
  // Rows of wqkv are (H + 2 K) heads.
  const rows = facts.size(`${blocks}.0.attention.wqkv.weight`, 0);
  const keyWidth = (rows - dim) / 2;
  const isGrouped = nHead !== undefined && keyWidth !== dim;
  const nKvHead = nHead === undefined ? 1 : (keyWidth / dim) * nHead;
  const isWhole = Number.isInteger(keyWidth) && keyWidth > 0 && dim % keyWidth === 0;
  if (!isWhole || !Number.isInteger(nKvHead)) {
    const heads = nHead === undefined ? "whole heads" : `${nHead} heads of ${dim / nHead} channels`;
    const remedy = "Pass another nHead, or check the file";
    throw expected(facts.where, `rows of wqkv that make ${heads} and their keys and values`, rows, remedy);
  }
  const ffnDim = facts.size(`${blocks}.0.feed_forward.w1.weight`, 0);
  return {
    ...(blockSize !== undefined && { blockSize }),
    nLayer,
    ...(nHead !== undefined && { nHead }),
    ...(isGrouped && { nKvHead }),
    ...(ffnDim === gatedWidth(dim, 256) ? {} : { ffnDim }),
  };
}

function llamaGenConfig(facts: Facts): Told {
  const [vocabSize, dim] = [facts.size("tok_embeddings.weight", 0), facts.size("tok_embeddings.weight", 1)];
  const sizes = { vocabSize, dim, ...llamaSizes(facts, "layers", dim) };
  const none = "cls_embedding.uncond_embedding";
  if (facts.has(none)) {
    return { ...sizes, modelType: "t2i", clsTokenNum: facts.size(none, 0), captionDim: facts.size(none, 1) };
  }
  return { ...sizes, modelType: "c2i", numClasses: facts.classes("cls_embedding.embedding_table.weight") };
}

function ibqArConfig(facts: Facts): Told {
  const [vocabSize, nEmbd] = [facts.size("head.weight", 0), facts.size("head.weight", 1)];
  if (facts.has("embedding_projection.fc1.weight")) {
    throw expected(
      facts.where,
      "codes embedded at full width",
      "a codebook with a projection (embedding_projection)",
    );
  }
  const classNum = facts.classes("class_emb.embedding_table.weight");
  return { vocabSize, nEmbd, ...llamaSizes(facts, "blocks", nEmbd), classNum };
}

/** Device and dtype of a policy, and the codebook that its vocabulary must fit. */
export interface BuildOptions {
  /** Size of the tokenizer's codebook. */
  codebookSize?: number;
  dtype?: DType;
  device?: Device;
}

/** How to pass a size that the file does not have, for messages. */
const REMEDIES: Readonly<Record<keyof PolicySizes, string>> = {
  nHead: "Pass nHead, the attention heads (--heads, or ar.nHead in a configuration)",
  blockSize:
    "Pass blockSize, the codes of an image (--codes, or blockSize in a configuration), such as 256 for 256 px at 16 px per code",
  numClasses: "Pass numClasses",
};

/**
 * Build the described policy and load its weights. Tensors are read one at a time.
 *
 * @param readTensor - the tensor of a name in the file.
 * @throws RangeError if a size is missing, if the vocabulary differs from the tokenizer's codebook, or if a weight is
 *   not floating-point or not finite in the policy's dtype.
 */
export function buildPolicy(
  description: PolicyDescription,
  readTensor: (name: string) => Tensor,
  options: BuildOptions = {},
): ArPolicy {
  const { where, used, shapes, family, config, missing } = description;
  const { codebookSize, dtype = "float32", device } = options;
  const { vocabSize } = config;
  const [unknown] = missing;
  if (codebookSize !== undefined && vocabSize !== codebookSize) {
    const what = `a vocabulary of ${codebookSize}, the tokenizer's codebook`;
    throw expected(where, what, vocabSize ?? "none", "Use the tokenizer that the policy was trained on");
  }
  if (unknown !== undefined) {
    throw expected(where, `${unknown}, which its weights do not tell`, "none", REMEDIES[unknown]);
  }
  const policy = init.skipInit(() => emptyPolicy(family, config));
  try {
    policy.to({ dtype, ...(device !== undefined && { device }) });
    const weights = Object.entries(used).map(([key, name]): [string, Readable] => {
      const read = (): Tensor => finiteIn(`${where}: ${name}`, readTensor(name), dtype);
      return [key, { shape: shapes[name] as readonly number[], read }];
    });
    policy.loadStateDict(Object.fromEntries(weights));
    return policy;
  } catch (error) {
    policy.dispose();
    throw error;
  }
}

function emptyPolicy(family: PolicyFamily, config: Told): ArPolicy {
  switch (family) {
    case "gpt":
      return new GPT(config as GptOptions);
    case "llamagen":
      return new LlamaGen(config as LlamaGenOptions);
    case "ibq_ar":
      return new IbqAr(config as IbqArOptions);
    default:
      family satisfies never;
      throw expected("buildPolicy", "a known family", family);
  }
}

/** The tensor in the policy's dtype, in which a number that is finite in the file may overflow. */
function finiteIn(where: string, tensor: Tensor, dtype: DType): Tensor {
  if (!DTYPES[tensor.dtype].isFloat) {
    throw expected(where, "a floating-point tensor", tensor, "The file holds no trained weights");
  }
  const own = tensor.to({ dtype });
  // Each of them is NaN if any element is NaN.
  const ends = tidy(() => [own.amin().item(), own.amax().item()]);
  if (ends.every(Number.isFinite)) return own;
  throw expected(
    where,
    `finite weights in ${dtype}`,
    "NaN or infinity",
    "The file is damaged, or training diverged",
  );
}
