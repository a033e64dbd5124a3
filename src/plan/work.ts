/**
 * Memory and work of each phase of a step, in addition to the memory that stays for the whole run. Shapes are exact; the
 * number of arrays that are alive at a time was counted in the code, and a test compares the peak with real runs within an
 * eighth. `rates.ts` measures the speed of a machine.
 */
import { batchNumbers, sharesContext, type TrainConfig } from "../config/resolve.js";
import { commonPrefix, paysToPack } from "../rl_ar_finetune/rollout.js";
import { contextAt, decodeBatchOf } from "../rl_ar_finetune/settings.js";
import type { NetworkSizes, PlanModels, PolicySizes } from "./models.js";

/** Phases of a step, as the log times them. */
export const PHASES = ["encode", "rollout", "decode", "reward", "update"] as const;
type Phase = (typeof PHASES)[number];

/** Where a run computes. */
export interface PlanDevice {
  readonly isCuda: boolean;
  /** Whether the policy computes in bfloat16. */
  readonly isNarrow: boolean;
}

/** Amounts of work; a multiplication and its addition are two FLOPs. */
export interface Work {
  /** FLOPs in matrix products of many rows, of the few rows of one rollout step, and in convolutions. */
  readonly wide: number;
  readonly narrow: number;
  readonly convolution: number;
  /** Bytes read and written by everything else. */
  readonly traffic: number;
  /** Operator calls. */
  readonly calls: number;
}

/** Bytes by purpose. */
export type Parts = Readonly<Record<string, number>>;

/** Memory and work of one phase. */
interface PhaseCost {
  readonly parts: Parts;
  readonly work: Work;
}
type StepCosts = Readonly<Record<Phase, PhaseCost>>;

const NONE: Work = { wide: 0, narrow: 0, convolution: 0, traffic: 0, calls: 0 };
export const WORK = Object.keys(NONE) as readonly (keyof Work)[];

export const sumOf = (parts: Parts): number => Object.values(parts).reduce((sum, part) => sum + part, 0);
export const flopsOf = ({ wide, narrow, convolution }: Work): number => wide + narrow + convolution;

function add(...works: readonly Partial<Work>[]): Work {
  const total = (name: keyof Work): number => works.reduce((sum, work) => sum + (work[name] ?? 0), 0);
  return Object.fromEntries(WORK.map((name) => [name, total(name)])) as unknown as Work;
}

const times = (count: number, work: Partial<Work>): Work =>
  add(Object.fromEntries(Object.entries(work).map(([name, value]) => [name, count * value])));

/** Of alternatives that are not alive at the same time, the one that takes most. */
export const most = (...parts: readonly Parts[]): Parts =>
  parts.reduce((a, b) => (sumOf(b) > sumOf(a) ? b : a));

const FLOAT = 4;
/** Logits that exist at a time while codes are scored: the chunk of `scoring.ts`. */
const CHUNK = 2 ** 22;
/** Bytes per logit: alive while a code is drawn; alive while it is scored, and for its entropy; moved by either. */
const LOGIT = { drawing: 36, scoring: 8, entropy: 8, drawn: 60, scored: 80 } as const;
/** Maps that structural similarity compares at a time, in the size of the samples. */
const BLURRED = 34;
/** Pixels that a metric compares at a time. */
const COMPARED = 2 ** 21;
/** Operator calls per block: one step of a rollout, a forward, a forward and backward; and those of drawing a code. */
const CALLS = { step: 120, forward: 100, gradient: 300, draw: 200 } as const;

/** Bytes of the KV cache of `rows` sequences of `codes`. */
export function cacheBytes(
  policy: PolicySizes,
  rows: number,
  codes: number,
  { isCuda, isNarrow }: PlanDevice,
): number {
  const { layers, keyWidth, extraPositions, extraCached } = policy;
  const size = isCuda && isNarrow ? 2 : FLOAT;
  return rows * size * (2 * layers * keyWidth * (codes + extraPositions) + extraCached);
}

/**
 * Bytes that autograd saves for `tokens` positions; with gradient checkpointing, one block's and the inputs of all. The
 * latter is also what a forward without a graph takes.
 */
export function graphBytes(
  { layers, width, savedByBlocks, savedAround }: PolicySizes,
  tokens: number,
  { isNarrow }: PlanDevice,
  isCheckpointed = false,
): number {
  const blocks = isCheckpointed ? layers * width + savedByBlocks / Math.max(layers, 1) : savedByBlocks;
  // Norms, residuals and sums stay float32.
  return tokens * (blocks * (isNarrow ? 2.5 : FLOAT) + savedAround * FLOAT);
}

/** Networks that look at a step's images, or at those of an evaluation, which may have one more. */
const networksOf = ({ networks }: PlanModels, isEvaluation: boolean): NetworkSizes[] =>
  Object.entries(networks).flatMap(([key, network]) =>
    isEvaluation || !key.startsWith("eval.") ? [network] : [],
  );

/** D of the codes as points, which `update.codeDistance` compares; 0 without it. */
function pointSize({ reward, update }: TrainConfig, { networks, tokenizer }: PlanModels): number {
  if (update.codeDistance === 0) return 0;
  const channels = (["perceptual", "lpips"] as const).map((name) =>
    reward[name].weight > 0 ? (networks[`reward.${name}`]?.costs(64).channels ?? 0) : 0,
  );
  const pixels = reward.l2.weight > 0 ? 3 * tokenizer.downsample ** 2 : 0;
  return channels.reduce((sum, count) => sum + count, pixels);
}

/** Bytes that stay for the whole run. */
export function fixedParts(
  config: TrainConfig,
  models: PlanModels,
  { isNarrow }: PlanDevice,
): Record<string, number> {
  const { policy, reference, valueHead, tokenizer, networks } = models;
  const { trained, parameters, blockWeights, vocabSize, width } = policy;
  const adapters = config.ar.lora.rank === null ? 0 : trained;
  return {
    policy: (parameters + adapters) * FLOAT,
    optimizer: 2 * (trained + valueHead) * FLOAT,
    "EMA of the weights": config.ema.decay === null ? 0 : trained * FLOAT,
    reference: reference * FLOAT,
    "value head": valueHead * FLOAT,
    tokenizer: tokenizer.parameters * FLOAT,
    ...Object.fromEntries(
      Object.entries(networks).map(([key, network]) => [key, network.parameters * FLOAT]),
    ),
    "codes as points": vocabSize * pointSize(config, models) * FLOAT,
    "weights in bfloat16": isNarrow ? (blockWeights + vocabSize * width) * 2 : 0,
    "decoder in bfloat16": config.precision.tokenizer === "bfloat16" ? tokenizer.decoder * 2 : 0,
  };
}

/**
 * What the phases of a step need, and those of an evaluation's batch of `evalBatch` images, whose last phase scores the
 * true codes.
 */
export function costsOf(
  config: TrainConfig,
  models: PlanModels,
  device: PlanDevice,
  evalBatch: number = config.rollout.images,
): { readonly step: StepCosts; readonly evaluation: StepCosts } {
  const { policy, tokenizer, valueHead } = models;
  const { vocabSize, width, layers, blockWeights } = policy;
  const headWeights = vocabSize * width;
  const { guidance, topK, topP } = config.rollout;
  const { size: side } = config.data;
  const codes = (side / tokenizer.downsample) ** 2;
  const pixels = 3 * side ** 2 * FLOAT;
  const isSte = config.algorithm === "ste";
  const isShared = sharesContext(config);
  const hasLora = config.ar.lora.rank !== null;
  const drawStreams = guidance.scale === 1 ? 1 : 2;
  const costs = tokenizer.costs(side);
  const partImages = Math.max(1, Math.floor((device.isCuda ? 2 ** 31 : 2 ** 28) / costs.partBytes));
  const passBytes = (tokens: number): number => graphBytes(policy, tokens, device, true);

  /** `sequences` of codes with what is recorded of them, and `shown` images. */
  const held = (sequences: number, shown: number): Parts => ({
    images: shown * pixels,
    codes: sequences * codes * (8 + 2 * FLOAT + (topK > 0 || topP < 1 ? Math.ceil(vocabSize / 8) : 0)),
  });

  /** The blocks over rows of `length` positions without a graph; attention's two products are half masked. */
  const blocks = (rows: number, length: number): Work =>
    add({
      wide: rows * (2 * blockWeights * length + 2 * layers * width * length ** 2),
      traffic: rows * length * (policy.savedByBlocks + policy.savedAround) * FLOAT * 2,
      calls: layers * CALLS.forward,
    });

  /** Log-probabilities of `rows` of codes without a graph. */
  const scoring = (rows: number): Work =>
    add(blocks(rows, codes), {
      wide: 2 * headWeights * rows * codes,
      traffic: rows * codes * vocabSize * LOGIT.drawn,
    });

  const encode = (images: number): PhaseCost => ({
    parts: {
      "activations of the encoder": Math.min(images, partImages) * costs.activationBytes,
      ...held(0, images),
    },
    work: add({
      convolution: images * costs.encodeFlops,
      traffic: images * costs.decodeGraphBytes,
      calls: 300,
    }),
  });

  const teacherForced = (images: number, some: number, each: number, keepGraph: boolean): PhaseCost => {
    const tokens = (keepGraph ? images : some) * codes * drawStreams;
    return {
      parts: {
        "activations of the policy": graphBytes(policy, tokens, device, !keepGraph),
        logits: Math.min(CHUNK, tokens * vocabSize) * LOGIT.drawing,
        ...held(images * each, images),
      },
      work: add(blocks(images * drawStreams, codes), {
        wide: 2 * headWeights * images * codes * drawStreams,
        traffic: images * codes * vocabSize * LOGIT.drawn,
      }),
    };
  };

  /** `each` sequences per image, code by code after those that are given. */
  const oneByOne = (images: number, some: number, each: number): PhaseCost => {
    const context = contextAt(config, Number.MAX_SAFE_INTEGER, codes);
    const given = commonPrefix(context);
    const steps = codes - given;
    const rows = some * each * drawStreams; // at a time
    const cache = cacheBytes(policy, rows, codes, device);
    // Sequences of an image begin from one cache, which is alive until theirs are filled.
    const first = each > 1 ? cacheBytes(policy, some * drawStreams, codes, device) : 0;
    const isPacked = !device.isCuda && paysToPack({ hiddenSize: width }, some * each, steps);
    const all = images * each * drawStreams;
    const seen = (given + codes) / 2;
    return {
      parts: {
        "packed weights": isPacked ? (blockWeights + headWeights) * (device.isNarrow ? 2 : FLOAT) : 0,
        ...most(
          {
            "keys and values": first === 0 ? cache : first,
            "activations of the policy": passBytes(some * drawStreams * (given + 1)),
          },
          { "keys and values": cache + first },
          {
            "keys and values": cache,
            "activations of the policy": passBytes(rows),
            logits: rows * vocabSize * LOGIT.drawing,
          },
        ),
        ...held(images * each, images),
      },
      work: add(blocks(images * drawStreams, given + 1), {
        narrow: steps * all * 2 * (blockWeights + headWeights),
        traffic: steps * all * (2 * layers * policy.keyWidth * seen * FLOAT + vocabSize * LOGIT.drawn),
        calls: steps * Math.ceil(images / some) * (layers * CALLS.step + CALLS.draw),
      }),
    };
  };

  /** Decoding `decoded` images of codes, of which `sequences` were drawn. */
  const decode = (images: number, sequences: number, decoded: number): PhaseCost => {
    const atATime = decodeBatchOf(config);
    return {
      parts: {
        "activations of the decoder": Math.min(atATime, sequences, partImages) * costs.activationBytes,
        ...held(sequences, images + 2 * sequences), // in pieces, and put together
      },
      work: add({
        // A processor with instructions for bfloat16 multiplies twice as many numbers at a time.
        convolution: (decoded * costs.decodeFlops) / (config.precision.tokenizer === "bfloat16" ? 2 : 1),
        traffic: decoded * 2 * costs.decodeGraphBytes,
        calls: 300 * Math.ceil(decoded / atATime),
      }),
    };
  };

  /** Comparing samples with their images, by the rewards or by all metrics of an evaluation. */
  const reward = (images: number, sequences: number, isEvaluation: boolean): PhaseCost => {
    const { ssim, msSsim, chunk: chunks } = config.reward;
    const chunk = Math.min(sequences, chunks ?? Math.max(1, Math.floor(COMPARED / side ** 2)));
    const isBlurred = ssim.weight !== 0 || msSsim.weight !== 0;
    const looks = networksOf(models, isEvaluation).map((network) => network.costs(side));
    const compared = sequences + images;
    return {
      parts: {
        "features of the images": looks.reduce((sum, { features }) => sum + images * features * FLOAT, 0),
        ...most(
          { differences: (isBlurred || isEvaluation ? BLURRED : 2) * chunk * pixels },
          {
            "activations of the networks": Math.max(
              0,
              ...looks.map((cost) => 5 * chunk * cost.largest * FLOAT),
            ),
          },
        ),
        ...held(sequences, isEvaluation ? images + sequences : 2 * images + sequences),
      },
      work: add(
        { traffic: compared * pixels * (isBlurred ? 1300 : 10), calls: 200 },
        ...looks.map(({ flops, features }) => ({
          convolution: compared * flops,
          traffic: compared * features * FLOAT * 10,
          calls: 100,
        })),
      ),
    };
  };

  const update = (): PhaseCost => {
    const { images, numGenerations } = config.rollout;
    const { microBatch, sequences, rows, steps, miniBatches, microBatchesAStep } = batchNumbers(config);
    const { coef, stop, estimator } = config.kl;
    const { auxCe, entropyCoef } = config.update;
    const { gradientCheckpointing } = config.ar;
    const streams = isSte ? 1 : drawStreams;
    const epochs = steps / miniBatches;
    const moved = policy.trained + valueHead;
    const drawn = images * numGenerations;
    // True codes are rows of their own unless every sequence reads them.
    const trueRows = auxCe !== 0 && !isShared ? images : 0;
    const all = epochs * (rows * streams + trueRows);
    const points = pointSize(config, models);
    const scored =
      LOGIT.scoring + (entropyCoef === 0 ? 0 : LOGIT.entropy) + (points === 0 ? 0 : LOGIT.entropy);
    const isExact = coef !== 0 && estimator === "exact";
    const inLoss = (config.kl.placement ?? (config.algorithm === "ppo" ? "reward" : "loss")) === "loss";
    /** The first backward of a step makes the gradients while it frees what autograd saved. */
    const backward = (passRows: number, gradients: number): Parts => {
      const tokens = passRows * codes;
      const working = policy.working + (gradientCheckpointing ? 6 * width : 0);
      return {
        gradients: gradients * FLOAT,
        "activations of the policy": graphBytes(policy, tokens, device, gradientCheckpointing),
        "activations of the decoder": isSte ? microBatch * numGenerations * costs.decodeGraphBytes : 0,
        ...most(
          { "gradients of activations": tokens * working * FLOAT },
          { logits: Math.min(CHUNK, tokens * vocabSize) * scored },
          // An exact divergence in the loss runs the reference while the policy's graph is alive.
          { "activations of the reference": isExact && inLoss ? passBytes(tokens) : 0 },
          // What a block's layers give before their adapters' part is added is alive until its forward ends.
          {
            "outputs under adapters": hasLora
              ? tokens * (policy.loraOutputs / layers + 3 * width) * FLOAT
              : 0,
          },
        ),
      };
    };
    const first = microBatch * streams;
    const isRepeated = microBatchesAStep > 1 || gradientCheckpointing;
    const later = isRepeated ? first : Math.min(trueRows, microBatch);
    // A forward, and a backward to inputs and to weights; with checkpointing a second forward.
    const passes = 1 + (hasLora ? 1.2 : 2) + (gradientCheckpointing ? 1 : 0);
    // Forwards without a gradient: of the reference, of the policy for values or for an exact divergence in the reward.
    const asked =
      (coef !== 0 || stop !== null ? (isExact && inLoss ? epochs : 1) : 0) +
      (isExact && !inLoss ? 1 : 0) +
      (config.algorithm === "ppo" ? 1 : 0);
    return {
      parts: {
        ...most(backward(first, 0), backward(later, moved + policy.largest)),
        statistics: 12 * 8 * sequences * codes,
        ...held(drawn, 2 * images + drawn),
      },
      work: add(
        times(passes, { ...blocks(all, codes), calls: 0 }),
        // The head's chunks are computed again in the backward.
        // As are their distances, which are computed for drawn codes.
        { wide: 8 * vocabSize * points * epochs * rows * codes },
        { wide: 8 * headWeights * all * codes, traffic: all * codes * vocabSize * LOGIT.scored },
        times(asked, scoring(rows * streams)),
        {
          convolution: isSte ? drawn * 2 * costs.decodeFlops : 0,
          traffic: steps * moved * FLOAT * 10 + (isSte ? drawn * 6 * costs.decodeGraphBytes : 0),
          calls: steps * (microBatchesAStep * (layers * CALLS.gradient + 300) + 200),
        },
      ),
    };
  };

  /** All that comes before the update, for `each` sequences per image. */
  const before = (images: number, each: number, isEvaluation: boolean): Omit<StepCosts, "update"> => {
    const some = Math.min(config.rollout.microBatch ?? images, images);
    const sequences = images * each;
    const keepGraph = config.rollout.keepGraph && !isEvaluation;
    return {
      encode: encode(images),
      rollout: isShared ? teacherForced(images, some, each, keepGraph) : oneByOne(images, some, each),
      // A step decodes the true codes too: the reward's ceiling.
      decode: decode(images, sequences, sequences + (isEvaluation ? 0 : images)),
      reward: reward(images, sequences, isEvaluation),
    };
  };
  const judged = evalBatch * config.eval.numGenerations;
  const scoredAtATime = Math.min(config.rollout.microBatch ?? evalBatch, evalBatch);
  return {
    step: { ...before(config.rollout.images, config.rollout.numGenerations, false), update: update() },
    evaluation: {
      ...before(evalBatch, config.eval.numGenerations, true),
      update: {
        parts: {
          "activations of the policy": passBytes(scoredAtATime * codes),
          ...held(judged, evalBatch + judged),
        },
        work: scoring(evalBatch),
      },
    },
  };
}
