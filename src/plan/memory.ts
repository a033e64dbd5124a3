/**
 * What a training run takes of memory, told from the sizes of its models and its configuration: what stays, and what
 * comes on top in each phase of a step. Shapes are exact; how many arrays of them are alive at a time was counted on the
 * code, and is within a quarter of what runs log.
 */
import { batchNumbers, sharesContext, type TrainConfig } from "../config/resolve.js";
import { contextAt } from "../rl_ar_finetune/settings.js";
import type { NetworkSizes, PolicySizes, TokenizerSizes } from "./sizes.js";

/** The models of a run. */
export interface PlanModels {
  readonly policy: PolicySizes;
  /** Parameters that are trained: the policy's, or its adapters'. */
  readonly trained: number;
  /** Parameters of a frozen policy of its own; 0 where there is none. */
  readonly reference: number;
  readonly valueHead: number;
  readonly tokenizer: TokenizerSizes;
  /** Networks of rewards and of evaluation, by the key that names their file. */
  readonly networks: Readonly<Record<string, NetworkSizes>>;
}

/** How numbers lie in memory. */
export interface PlanDevice {
  readonly isCuda: boolean;
  /** Whether the policy computes in bfloat16. */
  readonly isNarrow: boolean;
}

/** The networks that look at a step's images, or at those of an evaluation, which has one of its own. */
export function networksOf({ networks }: PlanModels, isEvaluation: boolean): NetworkSizes[] {
  const names = Object.keys(networks).filter((name) => isEvaluation || !name.startsWith("eval."));
  return names.map((name) => networks[name] as NetworkSizes);
}

/** Bytes under a name. */
export interface Share {
  readonly name: string;
  readonly bytes: number;
}

/** Bytes of a phase, and what they are of. */
export interface PhaseShare extends Share {
  readonly parts: readonly Share[];
}

/** Bytes that stay for the whole run, and those on top of them, phase by phase. */
export interface MemoryParts {
  readonly fixed: readonly Share[];
  readonly phases: readonly PhaseShare[];
}

const FLOAT = 4;

/** Logits that are alive at a time: the chunk of `scoring.ts`. */
const CHUNK = 2 ** 22;

/** Bytes a logit while a code is drawn: logits, log-probabilities, probabilities, and their sums as whole numbers. */
const DRAWN = 36;

/** Bytes a logit while it is scored with a gradient, and those that its entropy takes on top. */
const SCORED = { plain: 8, entropy: 8 } as const;

/** Arrays `[tokens, D]` that a backward works with, beside what a graph keeps. */
const WORKING = 10;

/** Maps of samples and images that structural similarity compares at a time, in the size of the samples. */
const BLURRED = 28;

/** Pixels that a metric compares at a time. */
const COMPARED = 2 ** 21;

/** Keys and values of `rows` sequences of `codes`, bytes. */
export function cacheBytes(
  policy: PolicySizes,
  rows: number,
  codes: number,
  { isCuda, isNarrow }: PlanDevice,
): number {
  const positions = codes + policy.extraPositions;
  const size = isCuda && isNarrow ? 2 : FLOAT;
  return rows * size * (2 * policy.layers * policy.keyWidth * positions + policy.extraCached);
}

/** What a graph of `tokens` positions keeps, bytes. */
export function graphBytes(
  policy: PolicySizes,
  tokens: number,
  { isNarrow }: PlanDevice,
  isCheckpointed = false,
): number {
  const { layers, width, savedByBlocks, savedAround } = policy;
  const blocks = isCheckpointed ? layers * width + savedByBlocks / Math.max(layers, 1) : savedByBlocks;
  // Norms, residuals and what is added up stay float32.
  return tokens * (blocks * (isNarrow ? 2.5 : FLOAT) + savedAround * FLOAT);
}

/** What a forward pass of `tokens` positions takes where no graph is kept: a block's own, and what goes from block to block. */
export function passBytes(policy: PolicySizes, tokens: number, device: PlanDevice): number {
  return graphBytes(policy, tokens, device, true);
}

/** Everything that a run takes, by name. */
export function memoryParts(config: TrainConfig, models: PlanModels, device: PlanDevice): MemoryParts {
  const { policy, trained, reference, valueHead, tokenizer, networks } = models;
  const moved = trained + valueHead;
  const adapters = config.ar.lora.rank === null ? 0 : trained;
  const linear = policy.blockWeights + policy.headWeights;
  const fixed: Share[] = [
    { name: "policy", bytes: (policy.parameters + adapters) * FLOAT },
    { name: "optimizer", bytes: 2 * moved * FLOAT },
    { name: "average of the weights", bytes: config.ema.decay === null ? 0 : trained * FLOAT },
    { name: "reference", bytes: reference * FLOAT },
    { name: "value head", bytes: valueHead * FLOAT },
    { name: "tokenizer", bytes: tokenizer.parameters * FLOAT },
    ...Object.entries(networks).map(([name, { parameters }]) => ({ name, bytes: parameters * FLOAT })),
    { name: "weights in bfloat16", bytes: device.isNarrow ? linear * 2 : 0 },
  ];
  return { fixed: fixed.filter(({ bytes }) => bytes > 0), phases: phasesOf(config, models, device) };
}

function phasesOf(config: TrainConfig, models: PlanModels, device: PlanDevice): PhaseShare[] {
  const { policy, tokenizer } = models;
  const { images: b, numGenerations: g, microBatch } = config.rollout;
  const side = config.data.size;
  const codes = (side / tokenizer.downsample) ** 2;
  const { activationBytes, partBytes } = tokenizer.costs(side);
  const most = Math.max(1, Math.floor((device.isCuda ? 2 ** 31 : 2 ** 28) / partBytes));
  const pixels = 3 * side ** 2 * FLOAT;
  const support = isFiltered(config) ? Math.ceil(policy.vocabSize / 8) : 0;
  /** A phase that holds `sequences` codes and `samples` decoded images. */
  const phase = (name: string, sequences: number, samples: number, parts: Parts): PhaseShare => {
    const images = (b + samples) * pixels;
    const all = { ...parts, images, codes: sequences * codes * (8 + 2 * FLOAT + support) };
    const shares = Object.entries(all).filter(([, bytes]) => bytes > 0);
    return { name, bytes: sumOf(all), parts: shares.map(([part, bytes]) => ({ name: part, bytes })) };
  };
  const decoding = (sequences: number): Parts => {
    const batch = Math.min(config.tokenizer.decodeBatch ?? 8, sequences, most);
    return { "activations of the decoder": batch * activationBytes };
  };
  const encoding = { "activations of the encoder": Math.min(b, most) * activationBytes };
  const phases = [
    phase("encode", 0, 0, encoding),
    phase("rollout", b * g, 0, rolloutParts(config, policy, device, codes, g)),
    // As pieces, and put together.
    phase("decode", b * g, 2 * b * g, decoding(b * g)),
    phase("reward", b * g, b * g + b, rewardParts(config, models, b * g, false)),
    phase("update", b * g, b * g + b, updateParts(config, models, device, codes)),
  ];
  const { every, numGenerations: e } = config.eval;
  if (every > 0) {
    const likelihood = { "activations of the policy": passBytes(policy, (microBatch ?? b) * codes, device) };
    phases.push(
      largest([
        phase("evaluation", b * e, 0, rolloutParts(config, policy, device, codes, e)),
        phase("evaluation", b * e, 2 * b * e, decoding(b * e)),
        phase("evaluation", b * e, b * e, rewardParts(config, models, b * e, true)),
        phase("evaluation", b * e, b * e, likelihood),
      ]),
    );
  }
  return phases;
}

type Parts = Readonly<Record<string, number>>;

const sumOf = (parts: Parts): number => Object.values(parts).reduce((sum, bytes) => sum + bytes, 0);

function largest<T extends { readonly bytes: number }>(shares: readonly T[]): T {
  return shares.reduce((a, b) => (b.bytes > a.bytes ? b : a));
}

/** Of alternatives that are not there at the same time, the one that takes most. */
function most(...alternatives: readonly Parts[]): Parts {
  return largest(alternatives.map((parts) => ({ parts, bytes: sumOf(parts) }))).parts;
}

const isFiltered = ({ rollout: { topK, topP } }: TrainConfig): boolean => topK > 0 || topP < 1;

/**
 * Drawing the codes of B images, `each` sequences an image. Without a gradient, all that the policy's blocks make is
 * there until the last of them is done, which is about what a graph would keep.
 */
function rolloutParts(
  config: TrainConfig,
  policy: PolicySizes,
  device: PlanDevice,
  codes: number,
  each: number,
): Parts {
  const { images, microBatch, guidance, keepGraph } = config.rollout;
  const some = microBatch ?? images;
  const streams = guidance.scale === 1 ? 1 : 2;
  const v = policy.vocabSize;
  if (sharesContext(config)) {
    const tokens = (keepGraph ? images : some) * codes * streams;
    return {
      "activations of the policy": (keepGraph ? graphBytes : passBytes)(policy, tokens, device),
      logits: Math.min(CHUNK, tokens * v) * DRAWN,
    };
  }
  const rows = some * each * streams;
  const context = contextAt(config, Number.MAX_SAFE_INTEGER, codes);
  const given = context.type === "prefix" ? context.length : 0;
  const caches = cacheBytes(policy, rows, codes, device);
  // Sequences of an image begin from one cache, which is there until theirs are filled.
  const shared = each > 1 ? cacheBytes(policy, some * streams, codes, device) : 0;
  const isPacked = !device.isCuda && policy.width >= 192 && some * each >= 4 && codes - given >= 32;
  const packed = isPacked ? (policy.blockWeights + policy.headWeights) * (device.isNarrow ? 2 : FLOAT) : 0;
  return {
    "packed weights": packed,
    ...most(
      {
        "keys and values": shared === 0 ? caches : shared,
        "activations of the policy": passBytes(policy, some * streams * (given + 1), device),
      },
      { "keys and values": caches + shared },
      {
        "keys and values": caches,
        "activations of the policy": passBytes(policy, rows, device),
        logits: rows * v * DRAWN,
      },
    ),
  };
}

/** Comparing `sequences` samples with their images, by the rewards and by what is watched beside them. */
function rewardParts(
  config: TrainConfig,
  models: PlanModels,
  sequences: number,
  isEvaluation: boolean,
): Parts {
  const { size: side } = config.data;
  const { images } = config.rollout;
  const chunk = Math.min(sequences, config.reward.chunk ?? Math.max(1, Math.floor(COMPARED / side ** 2)));
  const pixels = 3 * side ** 2 * FLOAT;
  const { ssim, msSsim } = config.reward;
  const isBlurred = ssim.weight !== 0 || msSsim.weight !== 0 || isEvaluation;
  const costs = networksOf(models, isEvaluation).map((network) => network.costs(side));
  return {
    "features of the images": costs.reduce((sum, cost) => sum + images * cost.features * FLOAT, 0),
    ...most(
      { differences: (isBlurred ? BLURRED : 2) * chunk * pixels },
      {
        "activations of the networks": Math.max(0, ...costs.map((cost) => 5 * chunk * cost.largest * FLOAT)),
      },
    ),
  };
}

/** The gradient of a micro-batch. */
function updateParts(
  config: TrainConfig,
  { policy, tokenizer, trained, valueHead }: PlanModels,
  device: PlanDevice,
  codes: number,
): Parts {
  const { microBatch, sequences } = batchNumbers(config);
  const isSte = config.algorithm === "ste";
  const streams = config.rollout.guidance.scale === 1 || isSte ? 1 : 2;
  const tokens = microBatch * codes * streams;
  const scored = SCORED.plain + (config.update.entropyCoef === 0 ? 0 : SCORED.entropy);
  const logits = Math.min(CHUNK, microBatch * codes * policy.vocabSize) * scored * streams;
  const graph = graphBytes(policy, tokens, device, config.ar.gradientCheckpointing);
  const decoder =
    microBatch * config.rollout.numGenerations * tokenizer.costs(config.data.size).decodeGraphBytes;
  const isExact = config.kl.coef !== 0 && config.kl.estimator === "exact";
  return {
    gradients: (trained + valueHead + policy.largest) * FLOAT,
    "activations of the policy": graph,
    "activations of the decoder": isSte ? decoder : 0,
    statistics: 12 * 8 * sequences * codes,
    ...most(
      { "gradients of activations": tokens * WORKING * policy.width * FLOAT },
      { logits },
      // An exact divergence runs the reference while the policy's graph is there.
      isExact ? { "activations of the reference": passBytes(policy, tokens, device) } : {},
      // What layers give before their adapters add to it is there until the forward ends.
      config.ar.lora.rank === null ? {} : { "outputs under adapters": tokens * policy.loraOutputs * FLOAT },
    ),
  };
}
