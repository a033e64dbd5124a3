/**
 * What a training run takes of memory, told from the sizes of its models and its configuration: what stays, and what
 * comes on top in each phase of a step. Shapes are exact; how many arrays of them are alive at a time was counted on the
 * code, and is within a quarter of what runs log.
 */
import { batchNumbers, sharesContext, type TrainConfig } from "./config.js";
import type { NetworkSizes, PolicySizes, TokenizerSizes } from "./model_sizes.js";
import { contextAt } from "./settings.js";

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

/** Bytes under a name. */
export interface Share {
  readonly name: string;
  readonly bytes: number;
}

/** Bytes that stay for the whole run, and those on top of them, phase by phase. */
export interface MemoryParts {
  readonly fixed: readonly Share[];
  readonly phases: readonly Share[];
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
const BLURRED = 24;

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

function phasesOf(config: TrainConfig, models: PlanModels, device: PlanDevice): Share[] {
  const { tokenizer } = models;
  const { images: b, numGenerations: g } = config.rollout;
  const side = config.data.size;
  const codes = (side / tokenizer.downsample) ** 2;
  const { activationBytes, partBytes } = tokenizer.costs(side);
  const most = Math.max(1, Math.floor((device.isCuda ? 2 ** 31 : 2 ** 28) / partBytes));
  const pixels = 3 * side ** 2 * FLOAT;
  const ofCodes = (sequences: number): number =>
    sequences * codes * (8 + 2 * FLOAT + (isFiltered(config) ? Math.ceil(models.policy.vocabSize / 8) : 0));
  const phase = (name: string, sequences: number, working: number): Share => ({
    name,
    bytes: b * pixels + ofCodes(sequences) + working,
  });
  const decode = (sequences: number): number => {
    const batch = Math.min(config.tokenizer.decodeBatch ?? 8, sequences, most);
    return 2 * sequences * pixels + batch * activationBytes;
  };
  const shares = [
    phase("encode", 0, Math.min(b, most) * activationBytes),
    phase("rollout", b * g, rolloutBytes(config, models.policy, device, codes, g)),
    phase("decode", b * g, decode(b * g)),
    phase("reward", b * g, (b * g + b) * pixels + rewardBytes(config, models, b * g)),
    phase("update", b * g, (b * g + b) * pixels + updateBytes(config, models, device, codes)),
  ];
  const { every, numGenerations: e } = config.eval;
  if (every > 0) {
    const rollout = rolloutBytes(config, models.policy, device, codes, e);
    const judged = b * e * pixels + rewardBytes(config, models, b * e);
    const likelihood = forwardBytes(models.policy, (config.rollout.microBatch ?? b) * codes, device);
    shares.push(phase("evaluation", b * e, Math.max(rollout, decode(b * e), judged, likelihood)));
  }
  return shares;
}

const isFiltered = ({ rollout: { topK, topP } }: TrainConfig): boolean => topK > 0 || topP < 1;

/** A forward without a gradient: all that its blocks make is there until the last of them is done. */
function forwardBytes(policy: PolicySizes, tokens: number, device: PlanDevice): number {
  return graphBytes(policy, tokens, device);
}

/** Drawing the codes of B images, `each` sequences an image. */
function rolloutBytes(
  config: TrainConfig,
  policy: PolicySizes,
  device: PlanDevice,
  codes: number,
  each: number,
): number {
  const { images, microBatch, guidance, keepGraph } = config.rollout;
  const some = microBatch ?? images;
  const streams = guidance.scale === 1 ? 1 : 2;
  const v = policy.vocabSize;
  if (sharesContext(config)) {
    const tokens = (keepGraph ? images : some) * codes * streams;
    return forwardBytes(policy, tokens, device) + Math.min(CHUNK, tokens * v) * DRAWN;
  }
  const rows = some * each;
  const context = contextAt(config, Number.MAX_SAFE_INTEGER, codes);
  const given = context.type === "prefix" ? context.length : 0;
  const cache = cacheBytes(policy, rows * streams, codes, device);
  // Sequences of an image begin from one cache, which is there until theirs are filled.
  const shared = each > 1 ? cacheBytes(policy, some * streams, codes, device) : 0;
  const prefill = forwardBytes(policy, some * streams * (given + 1), device);
  const isPacked = !device.isCuda && policy.width >= 192 && rows >= 4 && codes - given >= 32;
  const packed = isPacked ? (policy.blockWeights + policy.headWeights) * (device.isNarrow ? 2 : FLOAT) : 0;
  const drawing = rows * streams * v * DRAWN + forwardBytes(policy, rows * streams, device);
  return packed + Math.max(shared + prefill, cache + shared, cache + drawing);
}

/** Comparing `sequences` samples with their images. */
function rewardBytes(config: TrainConfig, { networks }: PlanModels, sequences: number): number {
  const { size: side } = config.data;
  const { images } = config.rollout;
  const chunk = Math.min(sequences, config.reward.chunk ?? Math.max(1, Math.floor(COMPARED / side ** 2)));
  const pixels = 3 * side ** 2 * FLOAT;
  const { l1, l2, psnr, ssim, msSsim } = config.reward;
  const plain = l1.weight !== 0 || l2.weight !== 0 || psnr.weight !== 0 ? 2 * chunk * pixels : 0;
  const blurred =
    ssim.weight !== 0 || msSsim.weight !== 0 || config.eval.every > 0 ? BLURRED * chunk * pixels : 0;
  const costs = Object.values(networks).map((network) => network.costs(side));
  const features = costs.reduce((sum, cost) => sum + images * cost.features * FLOAT, 0);
  const looking = Math.max(0, ...costs.map(({ largest }) => 5 * chunk * largest * FLOAT));
  return features + Math.max(plain, blurred, looking);
}

/** The gradient of a micro-batch. */
function updateBytes(
  config: TrainConfig,
  { policy, tokenizer, trained, valueHead }: PlanModels,
  device: PlanDevice,
  codes: number,
): number {
  const { microBatch, sequences } = batchNumbers(config);
  const isSte = config.algorithm === "ste";
  const streams = config.rollout.guidance.scale === 1 || isSte ? 1 : 2;
  const tokens = microBatch * codes * streams;
  const graph = graphBytes(policy, tokens, device, config.ar.gradientCheckpointing);
  const working = tokens * WORKING * policy.width * FLOAT;
  const scored = SCORED.plain + (config.update.entropyCoef === 0 ? 0 : SCORED.entropy);
  const chunk = Math.min(CHUNK, microBatch * codes * policy.vocabSize) * scored * streams;
  // An exact divergence runs the reference while the policy's graph is there.
  const isExact = config.kl.coef !== 0 && config.kl.estimator === "exact";
  const other = isExact ? forwardBytes(policy, tokens, device) + chunk : 0;
  const gradients = (trained + valueHead) * FLOAT + policy.largest * FLOAT;
  const statistics = 12 * 8 * sequences * codes;
  const decoded = microBatch * config.rollout.numGenerations;
  const decoder = isSte ? decoded * tokenizer.costs(config.data.size).decodeGraphBytes : 0;
  return gradients + graph + Math.max(working, chunk, other) + statistics + decoder;
}
