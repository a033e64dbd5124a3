/**
 * How large models are and what they cost, told from the headers of their files or from their options. No weight is
 * read. What a run makes of it is in `plan.ts`.
 */

import type { ArSection, LoraSection, TokenizerSection, TunedArSection } from "../config/types.js";
import { backboneCosts, classifierCosts, discriminatorCosts, type NetworkCosts } from "../metrics/costs.js";
import { init } from "../nn/index.js";
import { type ArPolicy, recognisePolicy, targetedPaths } from "../policies/index.js";
import { buildArPolicy } from "../rl_ar_finetune/builder.js";
import { describeWeights, statedConfig, statedSizes, wrongKind } from "../rl_ar_finetune/describe_weights.js";
import { type TokenizerCosts, tokenizerCosts } from "../tokenizers/costs.js";
import { recogniseTokenizer, type TokenizerConfig } from "../tokenizers/index.js";
import { emptyCache, expected, openWeights, type WeightsFile } from "../torch/index.js";

type Ar = ArSection & { readonly lora?: LoraSection };
type Shape = readonly number[];
type Shapes = Readonly<Record<string, Shape>>;

/** A policy: numbers of a token are those of one position of one sequence, through all blocks. */
export interface PolicySizes {
  readonly name: string;
  readonly parameters: number;
  /** Those of adapters on its layers, per unit of rank; 0 without adapters. */
  readonly loraUnit: number;
  /** Numbers a token that layers with adapters give. */
  readonly loraOutputs: number;
  readonly layers: number;
  /** D, 0 where a policy of a program's own does not tell. */
  readonly width: number;
  readonly vocabSize: number;
  /** Most codes of a sequence; null where nothing says. */
  readonly blockSize: number | null;
  /** Width of a layer's keys, which is that of its values. */
  readonly keyWidth: number;
  /** Positions of a cache beyond the codes of a sequence. */
  readonly extraPositions: number;
  /** Numbers that a cache keeps for each sequence beside keys and values. */
  readonly extraCached: number;
  /** Numbers in the linear layers of the blocks, the head not counted. */
  readonly blockWeights: number;
  readonly headWeights: number;
  /** Numbers of the largest weight. */
  readonly largest: number;
  /** Numbers that a graph keeps a token, the blocks' and what is around them. */
  readonly savedByBlocks: number;
  readonly savedAround: number;
}

/** A tokenizer of a file. */
export interface TokenizerSizes {
  readonly name: string;
  readonly parameters: number;
  readonly codebookSize: number;
  readonly downsample: number;
  /** Channels at the images' own size. */
  readonly channels: number;
  readonly costs: (side: number) => TokenizerCosts;
}

/** A network that looks at images. */
export interface NetworkSizes {
  readonly name: string;
  readonly parameters: number;
  readonly costs: (side: number) => NetworkCosts;
}

const numberOf = (shape: readonly number[]): number => shape.reduce((product, size) => product * size, 1);
const sumOf = (numbers: readonly number[]): number => numbers.reduce((sum, number) => sum + number, 0);

/**
 * The policy of a configuration: read from the file's header, built from sizes, or a program's own.
 *
 * @throws RangeError for a file that holds none, or whose vocabulary is not the tokenizer's.
 */
export function policySizes(
  ar: Ar,
  options: { blockSize: number | null; vocabSize: number; codes: number },
): PolicySizes {
  const { vocabSize, codes } = options;
  const blockSize = options.blockSize ?? codes;
  const sizes = ar.path === null ? builtSizes(ar, vocabSize, blockSize) : fileSizes(ar, ar.path, options);
  if (sizes.vocabSize === vocabSize) return sizes;
  throw expected(
    ar.path ?? "ar",
    `a vocabulary of ${vocabSize}, the tokenizer's codebook`,
    sizes.vocabSize,
    "Use the tokenizer that the policy was trained on",
  );
}

function fileSizes(
  { wrapper, nHead, lora }: Ar,
  path: string,
  options: { blockSize: number | null; codes: number },
): PolicySizes {
  using file = openWeights(path, wrapper === null ? {} : { wrapper });
  const { blockSize } = options;
  const description = recognisePolicy(file.shapes, {
    where: path,
    ...statedSizes(statedConfig(file)),
    ...(nHead !== null && { nHead }),
    ...(blockSize !== null && { blockSize }),
  });
  if (description === null) throw wrongKind(path, "a policy", describeWeights(file), file);
  const { family, config, used } = description;
  const own = Object.entries(used).map(([key, name]) => [key, file.info(name).shape] as const);
  const names = { gpt: "GPT", llamagen: "LlamaGen", ibq_ar: "IBQ's transformer" };
  return sizesOf(names[family], Object.fromEntries(own), config.blockSize ?? null, lora);
}

/** Of a policy that is built here, on memory that is never written, and so never taken. */
function builtSizes(ar: Ar, vocabSize: number, blockSize: number): PolicySizes {
  const { policy: given, type, nLayer, nHead, nEmbd, extra, cls } = ar;
  const sizesOfModule = (policy: ArPolicy): PolicySizes => {
    const shapes = Object.entries(policy.stateDict()).map(([name, { shape }]) => [name, shape] as const);
    const name = policy.constructor.name;
    const sizes = sizesOf(name, Object.fromEntries(shapes), policy.blockSize, ar.lora);
    return { ...sizes, vocabSize: policy.vocabSize, width: policy.hiddenSize };
  };
  if (given !== null) return sizesOfModule(given);
  const { policy, optimizer } = init.skipInit(() =>
    buildArPolicy(vocabSize, blockSize, {
      type: type ?? "gpt",
      ...(cls !== null && { cls }),
      ...(nLayer !== null && { nLayer }),
      ...(nHead !== null && { nHead }),
      ...(nEmbd !== null && { nEmbd }),
      extra: { ...extra },
    }),
  );
  optimizer.dispose();
  try {
    return sizesOfModule(policy);
  } finally {
    policy.dispose();
    emptyCache();
  }
}

/** Whether a tensor of the state dict is no parameter. */
const isBuffer = (name: string): boolean => name === "cls_embedding.uncond_embedding";

function sizesOf(
  name: string,
  shapes: Shapes,
  blockSize: number | null,
  lora: LoraSection | undefined,
): PolicySizes {
  const inBlocks = (key: string): RegExpExecArray | null => /^(?:blocks|layers)\.(\d+)\.(.+)$/.exec(key);
  const layers = Math.max(-1, ...Object.keys(shapes).map((key) => Number(inBlocks(key)?.[1] ?? -1))) + 1;
  const linears = Object.entries(shapes).filter(([key, shape]) => shape.length === 2 && inBlocks(key));
  // A class's modulation is computed once a sequence.
  const perToken = linears.filter(([key]) => !key.includes(".ada_lin."));
  const ofFirst = (part: RegExp): readonly number[] | undefined =>
    linears.find(([key]) => part.test(key))?.[1];
  const [vocabSize = 0, width = 0] = shapes["head.weight"] ?? shapes["output.weight"] ?? [];
  const qkv = ofFirst(/\.wqkv\.weight$/);
  const isModulated = perToken.length < linears.length;
  const prefix = shapes["cls_embedding.uncond_embedding"]?.[0] ?? 0;
  const positions = shapes.pos_emb?.[1];
  const ffn = ofFirst(/\.(?:w1|mlp\.0)\.weight$/)?.[0] ?? 0;
  // The tables of embeddings are no layers that adapters go on.
  const paths = Object.entries(shapes).flatMap(([key, { length }]) => {
    const path = /^(.*)\.weight$/.exec(key)?.[1];
    return length !== 2 || path === undefined || /emb[^.]*$/.test(path) ? [] : [path];
  });
  const targets = lora?.targets ?? null;
  const adapted =
    (lora?.rank ?? null) === null
      ? []
      : targetedPaths("ar.lora.targets", paths, targets).map((path) => shapes[`${path}.weight`] as Shape);
  const hasCross = ofFirst(/\.cross_attn\./) !== undefined;
  return {
    name,
    parameters: sumOf(Object.entries(shapes).map(([key, shape]) => (isBuffer(key) ? 0 : numberOf(shape)))),
    loraUnit: sumOf(adapted.map(([to = 0, from = 0]) => to + from)),
    loraOutputs: sumOf(adapted.map(([to = 0]) => to)),
    layers,
    width,
    vocabSize,
    blockSize,
    keyWidth: qkv === undefined ? width : ((qkv[0] as number) - width) / 2,
    // A class takes the place of the last code, which predicts nothing.
    extraPositions:
      positions !== undefined && blockSize !== null ? positions - blockSize : Math.max(0, prefix - 1),
    extraCached: isModulated ? (6 * layers + 2) * width : 0,
    blockWeights: sumOf(perToken.map(([, shape]) => numberOf(shape))),
    headWeights: vocabSize * width,
    largest: Math.max(0, ...Object.values(shapes).map(numberOf)),
    savedByBlocks: layers * savedByBlock({ width, ffn, isGated: qkv !== undefined, isModulated, hasCross }),
    savedAround: (qkv === undefined ? 2 : isModulated ? 4 : 3) * width,
  };
}

/**
 * Numbers that the graph of one block keeps a token: what its layers read and what its attention and activations gave.
 * Counted on the blocks; a test holds them to it.
 */
function savedByBlock(block: {
  width: number;
  ffn: number;
  isGated: boolean;
  isModulated: boolean;
  hasCross: boolean;
}): number {
  const { width, ffn, isGated, isModulated, hasCross } = block;
  if (!isGated) return 8 * width + 2 * ffn + (hasCross ? 5 * width : 0);
  return 12 * width + 4 * ffn + (isModulated ? 4 * width : 0);
}

/** Parameters that a run trains: the policy's, or those of its adapters. */
export function trainedParameters(policy: PolicySizes, { lora }: TunedArSection): number {
  return lora.rank === null ? policy.parameters : lora.rank * policy.loraUnit;
}

/**
 * The tokenizer of a configuration.
 *
 * @throws RangeError for a file that holds none. TypeError for a program's own, whose cost nothing tells.
 */
export function tokenizerSizes({ path, wrapper, weights, config, model }: TokenizerSection): TokenizerSizes {
  if (path === null) {
    const remedy = "A plan needs tokenizer.path";
    throw expected("plan", "a tokenizer's file", model === null ? "none" : "a model of a program", remedy);
  }
  using file = openWeights(path, wrapper === null ? {} : { wrapper });
  const stated = { ...(statedConfig(file) as Partial<TokenizerConfig>), ...config };
  const found = recogniseTokenizer(file.shapes, { config: stated, ...(weights && { weights }) });
  if (found === null) throw wrongKind(path, "a tokenizer", describeWeights(file), file);
  const numbers = Object.values(found.used).map((name) => numberOf(file.info(name).shape));
  return {
    name: found.name,
    parameters: sumOf(numbers),
    codebookSize: found.config.codebookSize,
    downsample: 2 ** (found.config.chMult.length - 1),
    channels: (found.config.chMult[0] as number) * found.config.ch,
    costs: (side) => tokenizerCosts(found.config, side ** 2),
  };
}

/**
 * The network of a reward: LPIPS, a classifier or a discriminator.
 *
 * @throws RangeError for a file that holds none of them.
 */
export function networkSizes(path: string): NetworkSizes {
  using file = openWeights(path);
  const found = describeWeights(file);
  if (found?.kind === "classifier") {
    const { numClasses, widths = [], depth = 1 } = found.config;
    const costs = (side: number): NetworkCosts => classifierCosts({ numClasses, widths, depth }, side);
    return { name: `classifier of ${numClasses} classes`, parameters: numbersOf(file, ""), costs };
  }
  const net =
    found?.kind === "metric" ? LPIPS_NETS.find(([name]) => found.network.includes(name)) : undefined;
  if (net !== undefined) {
    // Networks that classify end in layers that are not used.
    const parameters = numbersOf(file, "") - numbersOf(file, "classifier.");
    return { name: `LPIPS ${net[1]}`, parameters, costs: (side) => backboneCosts(net[1], side) };
  }
  const prefix = ["", "discriminator.", "loss.discriminator."].find((start) =>
    Object.hasOwn(file.shapes, `${start}main.0.weight`),
  );
  if (prefix === undefined) {
    throw wrongKind(path, "LPIPS's backbone, a classifier or a PatchGAN discriminator", found, file);
  }
  const own = Object.fromEntries(Object.entries(file.shapes).filter(([name]) => name.startsWith(prefix)));
  const costs = (side: number): NetworkCosts => discriminatorCosts(own, side);
  return { name: "PatchGAN discriminator", parameters: numbersOf(file, prefix), costs };
}

/** Backbones by a part of their names; heads alone are none. */
const LPIPS_NETS = [
  ["torchvision vgg16", "vgg"],
  ["torchvision alexnet", "alex"],
  ["torchvision squeezenet1_1", "squeeze"],
  ["LPIPS vgg", "vgg"],
  ["LPIPS alex", "alex"],
  ["LPIPS squeeze", "squeeze"],
] as const;

function numbersOf(file: WeightsFile, prefix: string): number {
  const own = file.names.filter((name) => name.startsWith(prefix));
  return sumOf(own.map((name) => numberOf(file.info(name).shape)));
}
