/**
 * Policies out of the weights of a file: which model it is and how large, by names and shapes alone, then a strict
 * load. Finding the state dict in a file, and reading it, is left to the caller.
 */
import { init, type Readable } from "../nn/index.js";
import { type Device, type DType, expected, expectedMessage, type Tensor, tidy } from "../torch/index.js";
import { GPT, type GptOptions } from "./gpt.js";
import { IbqAr, type IbqArOptions } from "./ibq_ar.js";
import { gatedWidth } from "./llama_blocks.js";
import { LlamaGen, type LlamaGenOptions } from "./llamagen.js";
import type { ArPolicy } from "./policy.js";

/** Shapes by name, as a file's header gives them. */
export type Shapes = Readonly<Record<string, readonly number[]>>;

export type PolicyFamily = "gpt" | "llamagen" | "ibq_ar";

/** What shapes cannot tell, and what the caller expects of them. */
export interface RecogniseOptions {
  /** Path of the file, for messages. */
  where?: string;
  /** The family that is wanted. */
  family?: PolicyFamily;
  /** Heads. Where left out, a head has 64 channels, as in all released models but LlamaGen's 3B (100) and 7B (128). */
  nHead?: number;
  /** Codes an image: LlamaGen and IBQ do not save positions. 256, or minGPT's saved positions, where left out. */
  blockSize?: number;
  /** Classes, the null class not counted. One less than the class table's rows where left out. */
  numClasses?: number;
}

/** A model that a file's weights fit. */
export type PolicyDescription = (
  | { readonly family: "gpt"; readonly config: GptOptions }
  | { readonly family: "llamagen"; readonly config: LlamaGenOptions }
  | { readonly family: "ibq_ar"; readonly config: IbqArOptions }
) & {
  readonly where: string;
  /** Name in the file by the policy's own key. */
  readonly used: Readonly<Record<string, string>>;
  /** The file's other tensors. */
  readonly ignored: readonly { readonly name: string; readonly reason: string }[];
  readonly shapes: Shapes;
};

/** A key that only this family has; what stands before it in the file is the prefix of all its keys. */
const MARKS: Readonly<Record<PolicyFamily, string>> = {
  gpt: "blocks.0.attn.query.weight",
  llamagen: "layers.0.attention.wqkv.weight",
  ibq_ar: "blocks.0.ada_lin.1.weight",
};

/** Tensors of the policy's part of a file that are computed here. */
const COMPUTED: readonly (readonly [pattern: RegExp, reason: string])[] = [
  [/^blocks\.\d+\.attn\.mask$/, "a causal mask, which attention applies by itself"],
  [/(^|\.)freqs_cis$/, "rotary positions, which are computed"],
];

/** Tensors beside the policy in a training run's file. */
const BESIDE: readonly (readonly [prefix: string, reason: string])[] = [
  ["first_stage_model.", "the tokenizer that the policy was trained on"],
  ["cond_stage_model.", "the condition's encoder, which has nothing learned"],
];

/**
 * Say which policy the tensors of a file are, or null when they are none of those known here.
 *
 * Any prefix of the names, such as Lightning's `transformer.` or `module.`, is taken off.
 *
 * @throws RangeError when it is another family than `options.family`, when it is a variant without an implementation,
 *   or when its shapes do not go together with each other or with the options.
 */
export function recognisePolicy(shapes: Shapes, options: RecogniseOptions = {}): PolicyDescription | null {
  const { where = "recognisePolicy" } = options;
  const names = Object.keys(shapes);
  const found = (Object.keys(MARKS) as PolicyFamily[]).flatMap((family) => {
    const marks = names.filter((name) => name === MARKS[family] || name.endsWith(`.${MARKS[family]}`));
    return marks.map((name) => ({ family, prefix: name.slice(0, -MARKS[family].length) }));
  });
  const [first] = found;
  if (first === undefined) {
    const shared = names.find((name) => name.endsWith("blocks.0.ada_gss"));
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
    const mark = `${prefix}${MARKS[family]}`;
    throw expected(where, `weights of ${options.family}`, `those of ${family} (it has ${mark})`);
  }
  const used: Record<string, string> = {};
  const ignored: { name: string; reason: string }[] = [];
  for (const name of names) {
    const own = name.slice(prefix.length);
    const reason = name.startsWith(prefix)
      ? COMPUTED.find(([pattern]) => pattern.test(own))?.[1]
      : (BESIDE.find(([start]) => name.includes(start))?.[1] ?? `not under ${prefix}`);
    if (reason === undefined) used[own] = name;
    else ignored.push({ name, reason });
  }
  const facts = new Facts(where, shapes, used, options);
  const common = { where, used, ignored, shapes };
  if (family === "gpt") return { family, config: gptConfig(facts), ...common };
  if (family === "llamagen") return { family, config: llamaGenConfig(facts), ...common };
  return { family, config: ibqArConfig(facts), ...common };
}

/** Shapes by the policy's own keys, and what follows from them. */
class Facts {
  readonly where: string;
  readonly options: RecogniseOptions;
  readonly #shapes: Shapes;
  readonly #used: Readonly<Record<string, string>>;

  constructor(
    where: string,
    shapes: Shapes,
    used: Readonly<Record<string, string>>,
    options: RecogniseOptions,
  ) {
    this.where = where;
    this.options = options;
    this.#shapes = shapes;
    this.#used = used;
  }

  has(key: string): boolean {
    return this.#used[key] !== undefined;
  }

  /** One dimension of a tensor that has `rank` of them. */
  size(key: string, dim: number, rank = 2): number {
    const name = this.#used[key];
    const shape = name === undefined ? undefined : this.#shapes[name];
    const size = shape?.[dim];
    if (size === undefined || shape?.length !== rank) {
      throw expected(this.where, `${key} with ${rank} dimensions`, shape ?? "no such tensor");
    }
    return size;
  }

  /** How many numbered parts there are: `blocks.0.`, `blocks.1.`, ... */
  count(part: string): number {
    const numbers = Object.keys(this.#used).flatMap((key) => {
      return key.startsWith(`${part}.`) ? [Number(key.split(".")[part.split(".").length])] : [];
    });
    return Math.max(-1, ...numbers) + 1;
  }

  heads(dim: number): number {
    const { nHead } = this.options;
    const headDim = dim === 3200 ? 100 : dim === 4096 ? 128 : 64;
    if (nHead === undefined && dim % headDim !== 0) {
      throw expected(this.where, "nHead, which shapes do not tell", `none for a width of ${dim}`);
    }
    return nHead ?? dim / headDim;
  }

  /** Classes of the table at `key`, the null class not counted. */
  classes(key: string): number {
    const rows = this.size(key, 0);
    const { numClasses } = this.options;
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
}

function gptConfig(facts: Facts): GptOptions {
  const { blockSize: wanted } = facts.options;
  const nEmbd = facts.size("head.weight", 1);
  const positions = facts.size("pos_emb", 1, 3);
  const isCross = facts.has("blocks.0.cross_attn.query.weight");
  const isPrepended = facts.has("cond_proj.weight") && !isCross;
  if (isPrepended && wanted === undefined) {
    const remedy = "The positions in the file are those of features and codes together";
    throw expected(facts.where, "blockSize, the number of codes", "none", remedy);
  }
  const blockSize = isPrepended && wanted !== undefined ? wanted : positions;
  if (wanted !== undefined && blockSize !== wanted) {
    throw expected(facts.where, `${wanted} positions in pos_emb, as blockSize`, positions);
  }
  const dim = isPrepended || isCross ? facts.size("cond_proj.weight", 1) : 0;
  const isCodebook = facts.has("embedding_projection.weight");
  return {
    vocabSize: facts.size("head.weight", 0),
    blockSize,
    nLayer: facts.count("blocks"),
    nHead: facts.heads(nEmbd),
    nEmbd,
    classNum: facts.classes("class_emb.embedding_table.weight"),
    ...(isCodebook ? { usePretrainedCodebook: true, nCodebookEmbd: facts.size("tok_emb.weight", 1) } : {}),
    ...(isCross ? { features: { kind: "cross", dim } } : {}),
    ...(isPrepended ? { features: { kind: "prepend", dim, tokens: positions - blockSize } } : {}),
  };
}

/** Sizes that LlamaGen's and IBQ's blocks have in common; `blocks` is where they are. */
function llamaSizes(
  facts: Facts,
  blocks: string,
  dim: number,
): {
  blockSize: number;
  nLayer: number;
  nHead: number;
  nKvHead?: number;
  ffnDim?: number;
} {
  const nHead = facts.heads(dim);
  // Rows of wqkv are (H + 2 K) heads.
  const rows = facts.size(`${blocks}.0.attention.wqkv.weight`, 0);
  const nKvHead = (rows / (dim / nHead) - nHead) / 2;
  if (!Number.isInteger(nKvHead) || nKvHead < 1) {
    const remedy = `Pass nHead: ${nHead} heads were taken`;
    throw expected(facts.where, `rows of wqkv that are whole heads of ${dim / nHead} channels`, rows, remedy);
  }
  const ffnDim = facts.size(`${blocks}.0.feed_forward.w1.weight`, 0);
  return {
    blockSize: facts.options.blockSize ?? 256,
    nLayer: facts.count(blocks),
    nHead,
    ...(nKvHead === nHead ? {} : { nKvHead }),
    ...(ffnDim === gatedWidth(dim, 256) ? {} : { ffnDim }),
  };
}

function llamaGenConfig(facts: Facts): LlamaGenOptions {
  const [vocabSize, dim] = [facts.size("tok_embeddings.weight", 0), facts.size("tok_embeddings.weight", 1)];
  const sizes = { vocabSize, dim, ...llamaSizes(facts, "layers", dim) };
  const none = "cls_embedding.uncond_embedding";
  if (facts.has(none)) {
    return { ...sizes, modelType: "t2i", clsTokenNum: facts.size(none, 0), captionDim: facts.size(none, 1) };
  }
  return { ...sizes, modelType: "c2i", numClasses: facts.classes("cls_embedding.embedding_table.weight") };
}

function ibqArConfig(facts: Facts): IbqArOptions {
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

/** Where a policy goes, and what it must fit. */
export interface BuildOptions {
  /** Codes of the tokenizer. */
  codebookSize?: number;
  dtype?: DType;
  device?: Device;
}

/**
 * Build the policy of a description and fill it. Every tensor of the policy must be there and every tensor of the file
 * be used or known to be superfluous; they are read one at a time.
 *
 * @param readTensor - the tensor of a name in the file.
 * @throws RangeError when the vocabulary is not the tokenizer's, or a weight is NaN or infinite. Error that lists
 *   missing and unexpected tensors.
 */
export function buildPolicy(
  description: PolicyDescription,
  readTensor: (name: string) => Tensor,
  options: BuildOptions = {},
): ArPolicy {
  const { where, used, shapes } = description;
  const { codebookSize, dtype, device } = options;
  const { vocabSize } = description.config;
  if (codebookSize !== undefined && vocabSize !== codebookSize) {
    const what = `a vocabulary of ${codebookSize}, the tokenizer's codebook`;
    throw expected(where, what, vocabSize ?? "none", "Use the tokenizer that the policy was trained on");
  }
  const policy = init.skipInit(() => emptyPolicy(description));
  try {
    policy.to({ ...(dtype !== undefined ? { dtype } : {}), ...(device !== undefined ? { device } : {}) });
    const weights = Object.entries(used).map(([key, name]): [string, Readable] => {
      const read = (): Tensor => finite(`${where}: ${name}`, readTensor(name));
      return [key, { shape: shapes[name] as readonly number[], read }];
    });
    policy.loadStateDict(Object.fromEntries(weights));
    return policy;
  } catch (error) {
    policy.dispose();
    throw error;
  }
}

function emptyPolicy(description: PolicyDescription): ArPolicy {
  switch (description.family) {
    case "gpt":
      return new GPT(description.config);
    case "llamagen":
      return new LlamaGen(description.config);
    case "ibq_ar":
      return new IbqAr(description.config);
    default:
      description satisfies never;
      throw expected("buildPolicy", "a known family", description);
  }
}

function finite(where: string, tensor: Tensor): Tensor {
  // Each is NaN where any element is.
  const ends = tidy(() => [tensor.amin().item(), tensor.amax().item()]);
  if (ends.every(Number.isFinite)) return tensor;
  throw expected(where, "finite weights", "NaN or infinity", "The file is damaged, or training diverged");
}

/**
 * {@link recognisePolicy} and {@link buildPolicy} in one.
 *
 * @throws RangeError also when no tensor is a policy's.
 */
export function loadPolicy(
  shapes: Shapes,
  readTensor: (name: string) => Tensor,
  options: RecogniseOptions & BuildOptions = {},
): ArPolicy {
  const description = recognisePolicy(shapes, options);
  if (description !== null) return buildPolicy(description, readTensor, options);
  const names = Object.keys(shapes);
  const got = names.length === 0 ? "no tensors" : `tensors such as ${names.slice(0, 3).join(", ")}`;
  throw new RangeError(
    expectedMessage(options.where ?? "loadPolicy", "weights of gpt, llamagen or ibq_ar", got),
  );
}
