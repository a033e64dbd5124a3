/**
 * Sizes and costs of a run's models, computed from the headers of their files or from their options. No weight is
 * read. What a step does with the models is in `work.ts`.
 */
import type { ArSection, LoraSection, TokenizerSection, TrainConfig } from "../config/resolve.js";
import { describeEncoder, Encoder, isEncoder, type Towers } from "../encoders/index.js";
import type { LpipsNet } from "../metrics/backbones.js";
import { init } from "../nn/index.js";
import { targetedPaths } from "../policies/index.js";
import { networksIn, openModel, usedBy, wrongKind } from "../rl_ar_finetune/describe_weights.js";
import { policyOf } from "../rl_ar_finetune/parts.js";
import { empty, emptyCache, expected, known, type WeightsFile } from "../torch/index.js";
import {
  backboneCosts,
  classifierCosts,
  discriminatorCosts,
  type NetworkCosts,
  tokenizerCosts,
} from "./costs.js";

type Ar = ArSection & { readonly lora?: LoraSection };
type Shape = readonly number[];
type Shapes = Readonly<Record<string, Shape>>;

/** Sizes of a policy. A token is one position of one sequence, through all blocks. */
export type PolicySizes = ReturnType<typeof sizesOf>;

/** A network of a reward or of an evaluation. */
export interface NetworkSizes {
  readonly name: string;
  readonly parameters: number;
  readonly costs: (side: number) => NetworkCosts;
}

/** The models of a run. */
export type PlanModels = ReturnType<typeof modelsOf>;

const sum = (numbers: readonly number[]): number => numbers.reduce((sum, number) => sum + number, 0);
const numelOf = (shape: Shape): number => shape.reduce((product, size) => product * size, 1);

/**
 * The models of a configuration.
 *
 * @throws RangeError for a file that holds another model, and for sizes that do not fit together.
 */
export function modelsOf(config: TrainConfig) {
  const tokenizer = tokenizerSizes(config.tokenizer);
  const { downsample, codebookSize: vocabSize } = tokenizer;
  const { size } = config.data;
  if (size % downsample !== 0)
    throw expected("data.size", `a multiple of ${downsample}, the pixels of a code`, size);
  const codes = (size / downsample) ** 2;
  const of = { blockSize: config.blockSize, vocabSize, codes };
  const policy = policySizes(config.ar, of);
  if (policy.blockSize !== null && policy.blockSize < codes) {
    const remedy = `Use images of ${Math.sqrt(policy.blockSize) * downsample} px, or another policy`;
    throw expected("data.size", `images of at most ${policy.blockSize} codes, the policy's`, codes, remedy);
  }
  const { coef, stop, path, refreshEvery } = config.kl;
  const { lora, ...ar } = config.ar;
  const isOwn = path !== null || lora.rank === null || refreshEvery > 0;
  const hasReference = (coef !== 0 || stop !== null) && isOwn;
  const own = { ...ar, ...(path !== null && { path, wrapper: null, weights: null, policy: null }) };
  const { lpips, perceptual, patchGan, kernel, toklipImage, toklipText, clip, aesthetic, dists } =
    config.reward;
  const isKernelEncoder = kernel.path !== null && isEncoder(kernel.path);
  const files = {
    "reward.lpips": lpips.weight === 0 ? null : lpips.path,
    "reward.perceptual": perceptual.weight === 0 ? null : perceptual.path,
    "reward.patchGan": patchGan.weight === 0 ? null : patchGan.path,
    "reward.kernel": kernel.weight === 0 || isKernelEncoder ? null : kernel.path,
    "reward.dists": dists.weight === 0 ? null : dists.path,
    "eval.perceptual": config.eval.every > 0 ? config.eval.perceptual : null,
  };
  const encoders = { toklipImage, toklipText, clip, aesthetic, ...(isKernelEncoder && { kernel }) };
  const networks = [
    ...Object.entries(files).flatMap(([key, file]) =>
      file === null ? [] : [[key, networkSizes(file)] as const],
    ),
    ...Object.entries(encoders).flatMap(([name, { weight, path }]) => {
      const towers = { vision: true, text: name === "toklipText" || name === "clip" };
      return weight === 0 || path === null ? [] : [[`reward.${name}`, encoderSizes(path, towers)] as const];
    }),
  ];
  return {
    policy,
    /** Parameters of a reference with weights of its own; else 0. */
    reference: hasReference ? policySizes(own, of).parameters : 0,
    valueHead: config.algorithm === "ppo" ? policy.width + 1 : 0,
    tokenizer,
    /** By the configuration key that names their file. */
    networks: Object.fromEntries(networks),
  };
}

/**
 * The policy of a configuration: from its file's header, from options, or a program's own.
 *
 * @throws RangeError for a file that holds no policy, or whose vocabulary is not the tokenizer's.
 */
export function policySizes(
  ar: Ar,
  options: { blockSize: number | null; vocabSize: number; codes: number },
): PolicySizes {
  const { blockSize, vocabSize, codes } = options;
  if (ar.path !== null) {
    const sizes = fileSizes(ar, ar.path, blockSize);
    if (sizes.vocabSize === vocabSize) return sizes;
    const what = `a vocabulary of ${vocabSize}, the tokenizer's codebook`;
    throw expected(ar.path, what, sizes.vocabSize, "Use the tokenizer that the policy was trained on");
  }
  // The memory of new weights is never written, so the system never provides it.
  const { usePretrainedCodebook, nCodebookEmbd = 256 } = ar.extra;
  const codebook = usePretrainedCodebook === true ? empty([vocabSize, Number(nCodebookEmbd)]) : null;
  const sized = { ...ar, extra: { ...known({ codebook }), ...ar.extra } };
  const policy = init.skipInit(() => policyOf({ ar: sized, blockSize }, "cpu", vocabSize, codes));
  try {
    const shapes = Object.entries(policy.stateDict()).map(([name, { shape }]) => [name, shape] as const);
    const sizes = sizesOf(policy.constructor.name, Object.fromEntries(shapes), policy.blockSize, ar.lora);
    return { ...sizes, vocabSize, width: policy.hiddenSize };
  } finally {
    if (ar.policy === null) policy.dispose();
    emptyCache();
  }
}

const POLICIES = { gpt: "GPT", llamagen: "LlamaGen", ibq_ar: "IBQ's transformer" } as const;

function fileSizes(ar: Ar, path: string, blockSize: number | null): PolicySizes {
  const { wrapper, weights, nHead } = ar;
  using opened = openModel(path, known({ wrapper, weights, nHead, blockSize }));
  const { file, found } = opened;
  if (found?.kind !== "policy") throw wrongKind("a policy", found, file);
  const { family, config, used } = found.policy;
  const shapes = Object.entries(used).map(([key, name]) => [key, file.info(name).shape] as const);
  return sizesOf(POLICIES[family], Object.fromEntries(shapes), config.blockSize ?? null, ar.lora);
}

/** Sizes from the shapes of a state dict. Of a policy with names of its own, only what its shapes tell is known. */
function sizesOf(name: string, shapes: Shapes, blockSize: number | null, lora?: LoraSection) {
  const inBlocks = Object.entries(shapes).filter(([key]) => /^(?:blocks|layers)\.\d+\./.test(key));
  const layers = new Set(inBlocks.map(([key]) => key.split(".")[1])).size;
  const linears = inBlocks.filter(([, { length }]) => length === 2);
  const shapeOf = (part: RegExp): Shape | undefined => linears.find(([key]) => part.test(key))?.[1];
  const [vocabSize = 0, width = 0] = shapes["head.weight"] ?? shapes["output.weight"] ?? [];
  // A class's modulation is computed once per sequence, not once per token.
  const perToken = linears.filter(([key]) => !key.includes(".ada_lin."));
  const isModulated = perToken.length < linears.length;
  const qkv = shapeOf(/\.wqkv\.weight$/);
  const positions = shapes.pos_emb?.[1];
  const uncond = "cls_embedding.uncond_embedding"; // a buffer
  const prefix = shapes[uncond]?.[0] ?? 0;
  const hidden = shapeOf(/\.(?:w1|mlp\.0)\.weight$/)?.[0] ?? 0;
  const cross = shapeOf(/\.cross_attn\./) === undefined ? 0 : 5 * width;
  const parameters = sum(Object.entries(shapes).map(([key, shape]) => (key === uncond ? 0 : numelOf(shape))));
  const adapted = adaptedShapes(shapes, lora);
  const rank = lora?.rank ?? null;
  // Inputs of layers and results of attention and activations per block, counted in the code; a test compares them.
  const saved =
    qkv === undefined ? 8 * width + 2 * hidden + cross : (isModulated ? 16 : 12) * width + 4 * hidden;
  return {
    name,
    parameters,
    /** All parameters, or those of the LoRA adapters. */
    trained: rank === null ? parameters : rank * sum(adapted.map(([to = 0, from = 0]) => to + from)),
    /** Elements per token that the layers under adapters give; 0 without LoRA. */
    loraOutputs: sum(adapted.map(([to = 0]) => to)),
    layers,
    /** D. */
    width,
    vocabSize,
    /** Most codes of a sequence; null where neither file nor configuration states it. */
    blockSize,
    /** Width of a layer's keys, and of its values. */
    keyWidth: qkv === undefined ? width : ((qkv[0] as number) - width) / 2,
    /** Positions of the KV cache beyond the codes: a class takes the place of the last code, which predicts nothing. */
    extraPositions:
      positions !== undefined && blockSize !== null ? positions - blockSize : Math.max(0, prefix - 1),
    /** Elements per sequence in the cache beside keys and values. */
    extraCached: isModulated ? (6 * layers + 2) * width : 0,
    /** Elements of the linear layers in the blocks, without the head. */
    blockWeights: sum(perToken.map(([, shape]) => numelOf(shape))),
    /** Elements of the largest weight. */
    largest: Math.max(0, ...Object.values(shapes).map(numelOf)),
    /** Elements per token that autograd saves in the blocks, and before and after them. */
    savedByBlocks: layers * saved,
    savedAround: (qkv === undefined ? 2 : isModulated ? 4 : 3) * width,
    /** Elements per token that a backward works with beside those. */
    working: qkv === undefined ? width + hidden : 3 * hidden,
  };
}

/** Shapes of the layers that get adapters; embedding tables never do. */
function adaptedShapes(shapes: Shapes, lora: LoraSection | undefined): Shape[] {
  if ((lora?.rank ?? null) === null) return [];
  const paths = Object.entries(shapes).flatMap(([key, { length }]) => {
    const path = /^(.*)\.weight$/.exec(key)?.[1];
    return length !== 2 || path === undefined || /emb[^.]*$/.test(path) ? [] : [path];
  });
  const targeted = targetedPaths("ar.lora.targets", paths, lora?.targets ?? null);
  return targeted.map((path) => shapes[`${path}.weight`] as Shape);
}

/**
 * The tokenizer of a configuration.
 *
 * @throws RangeError for a file that holds no tokenizer, and for a program's own, whose costs are unknown.
 */
export function tokenizerSizes({ path, wrapper, weights, config, model }: TokenizerSection) {
  if (path === null) {
    const got = model === null ? "none" : "a model of a program";
    throw expected("plan", "a tokenizer's file", got, "A plan needs tokenizer.path");
  }
  using opened = openModel(path, { tokenizerConfig: config, ...known({ wrapper, weights }) });
  const { file, found } = opened;
  if (found?.kind !== "tokenizer") throw wrongKind("a tokenizer", found, file);
  const { name, used, config: built } = found.tokenizer;
  const { chMult, ch, codebookSize } = built;
  const count = (names: readonly string[]): number =>
    sum(names.map((own) => numelOf(file.info(used[own] as string).shape)));
  return {
    name,
    parameters: count(Object.keys(used)),
    decoder: count(Object.keys(used).filter((own) => own.startsWith("decoder."))),
    codebookSize,
    downsample: 2 ** (chMult.length - 1),
    channels: (chMult[0] as number) * ch, // at full resolution
    costs: (side: number) => tokenizerCosts(built, side ** 2),
  };
}

/** The backbone of LPIPS that a network of a file is; none for LPIPS's heads alone. */
const lpipsNet = (network: string | null): LpipsNet | undefined =>
  (["vgg", "alex", "squeeze"] as const).find((net) =>
    new RegExp(`^(torchvision|LPIPS) ${net}`).test(network ?? ""),
  );

/**
 * The network of a reward: LPIPS's backbone, a classifier or a discriminator.
 *
 * @throws RangeError for a file that holds none of them.
 */
export function networkSizes(path: string): NetworkSizes {
  using opened = openModel(path);
  const { file, found } = opened;
  if (found?.kind === "classifier") {
    const { config } = found;
    const parameters = parametersOf(usedBy(found), file);
    const name = `classifier of ${config.numClasses} classes`;
    return { name, parameters, costs: (side) => classifierCosts(config, side) };
  }
  for (const { network, shapes } of networksIn(file)) {
    const net = lpipsNet(network);
    if (net === undefined && network !== "PatchGAN discriminator") continue;
    // The linear layers that classify are not loaded.
    const own = Object.entries(shapes).filter(([key]) => !key.startsWith("classifier."));
    const parameters = sum(own.map(([, shape]) => numelOf(shape)));
    if (net !== undefined) {
      return { name: `LPIPS ${net}`, parameters, costs: (side) => backboneCosts(net, side) };
    }
    return { name: "PatchGAN discriminator", parameters, costs: (side) => discriminatorCosts(shapes, side) };
  }
  throw wrongKind("LPIPS's backbone, a classifier or a PatchGAN discriminator", found, file);
}

/**
 * The encoder of a reward.
 *
 * @throws RangeError for a path that holds none.
 */
function encoderSizes(path: string, towers: Towers): NetworkSizes {
  const description = describeEncoder(path);
  const { width, hidden, depth, grid } = description.vision;
  const encoder = init.skipInit(() => new Encoder(description, towers, true));
  const parameters = sum(encoder.parameters().map(({ numel }) => numel));
  encoder.dispose();
  emptyCache();
  const tokens = grid[0] * grid[1] + 1;
  const block = 2 * tokens * (4 * width ** 2 + 2 * width * hidden) + 4 * tokens ** 2 * width;
  const costs = {
    flops: depth * block,
    features: 0,
    channels: 0,
    largest: tokens * Math.max(hidden, 4 * width),
  };
  return { name: encoder.name, parameters, costs: () => costs };
}

const parametersOf = (used: Readonly<Record<string, string>>, file: WeightsFile): number =>
  sum(Object.values(used).map((name) => numelOf(file.info(name).shape)));
