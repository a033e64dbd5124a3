/**
 * The work of a training step and how long it takes: operations counted from sizes and the configuration, divided by
 * what this machine does in short tests of the same shapes.
 */

import { batchNumbers, sharesContext, type TrainConfig } from "../config/resolve.js";
import { Conv2d, Linear, packLinears, Sequential } from "../nn/index.js";
import { contextAt } from "../rl_ar_finetune/settings.js";
import { type Device, noGrad, rand, synchronize, tidy } from "../torch/index.js";
import { networksOf, type PlanDevice, type PlanModels } from "./memory.js";
import type { PolicySizes } from "./sizes.js";

/** Phases of a step, as the log times them. */
export const PHASES = ["encode", "rollout", "decode", "reward", "update"] as const;
export type Phase = (typeof PHASES)[number];

/** What there is to do; a multiplication and its addition are two operations. */
export interface Work {
  /** Operations in products of many rows, in products of the rows of one rollout step, and in convolutions. */
  readonly wide: number;
  readonly narrow: number;
  readonly convolution: number;
  /** Bytes read and written by everything else. */
  readonly traffic: number;
  /** Operators called. */
  readonly calls: number;
}

/** What a machine does a second. */
export interface Rates {
  readonly wide: number;
  readonly narrow: number;
  readonly convolution: number;
  readonly traffic: number;
  readonly calls: number;
}

/** The work of a step and of an evaluation. */
export interface PlannedWork {
  readonly step: Readonly<Record<Phase, Work>>;
  readonly evaluation: Readonly<Record<Phase, Work>>;
}

const NONE: Work = { wide: 0, narrow: 0, convolution: 0, traffic: 0, calls: 0 };

/** Operations in all. */
export const flopsOf = ({ wide, narrow, convolution }: Work): number => wide + narrow + convolution;

function add(...works: readonly Work[]): Work {
  const sum = { ...NONE };
  for (const work of works) for (const name of Object.keys(NONE) as (keyof Work)[]) sum[name] += work[name];
  return sum;
}

function times(count: number, work: Work): Work {
  return add(...Object.keys(work).map((name) => ({ ...NONE, [name]: count * work[name as keyof Work] })));
}

/** Operators of a block for one step of a rollout, and for a forward and a backward. */
const CALLS = { step: 120, draw: 200, forward: 100, gradient: 300 } as const;

/** Bytes a logit that drawing a code moves, and those of scoring it with a gradient. */
const LOGIT = { drawn: 60, scored: 80 } as const;

/** What an evaluation or a step goes through. */
export function plannedWork(config: TrainConfig, models: PlanModels, evalImages: number): PlannedWork {
  const { images, numGenerations } = config.rollout;
  const none = { encode: NONE, rollout: NONE, decode: NONE, reward: NONE, update: NONE };
  const each = config.eval.numGenerations;
  const batches = Math.ceil(evalImages / images);
  const evaluation =
    evalImages === 0
      ? none
      : {
          ...lookingAt(config, models, evalImages, each, batches, true),
          // The likelihood of the true codes.
          update: forward(config, models, evalImages, batches),
        };
  return {
    step: {
      ...lookingAt(config, models, images, numGenerations, 1, false),
      update: updateWork(config, models),
    },
    evaluation,
  };
}

/** Everything before the update: `batches` of `images` in all, `each` sequences an image. */
function lookingAt(
  config: TrainConfig,
  models: PlanModels,
  images: number,
  each: number,
  batches: number,
  isEvaluation: boolean,
): Record<Exclude<Phase, "update">, Work> {
  const side = config.data.size;
  const { encodeFlops, decodeFlops, decodeGraphBytes } = models.tokenizer.costs(side);
  const decoded = images * (each + 1); // the images' own codes too: the ceiling
  const byNetworks = networksOf(models, isEvaluation).map((network) => {
    const { flops, features } = network.costs(side);
    return {
      ...NONE,
      convolution: decoded * flops,
      traffic: decoded * features * 4 * 10,
      calls: 100 * batches,
    };
  });
  const pixels = 3 * side ** 2 * 4;
  const { ssim, msSsim } = config.reward;
  const hasBlur = ssim.weight !== 0 || msSsim.weight !== 0;
  const byPixels = { ...NONE, traffic: decoded * pixels * (hasBlur ? 1300 : 10), calls: 200 * batches };
  const calls = 300 * batches;
  return {
    encode: { ...NONE, convolution: images * encodeFlops, traffic: images * decodeGraphBytes, calls },
    rollout: times(batches, rolloutWork(config, models, images / batches, each)),
    decode: {
      ...NONE,
      convolution: decoded * decodeFlops,
      traffic: decoded * 2 * decodeGraphBytes,
      calls: 300 * Math.ceil(decoded / (config.tokenizer.decodeBatch ?? 8)),
    },
    reward: add(byPixels, ...byNetworks),
  };
}

const codesOf = (config: TrainConfig, { tokenizer }: PlanModels): number =>
  (config.data.size / tokenizer.downsample) ** 2;

/** Products of the blocks over rows of `length` positions, attention's included, without a gradient. */
function blocks(policy: PolicySizes, rows: number, length: number): Work {
  const { blockWeights, layers, width, savedByBlocks, savedAround } = policy;
  const products = 2 * blockWeights * length;
  const attention = 2 * layers * width * length ** 2; // two products of which half is masked
  return {
    ...NONE,
    wide: rows * (products + attention),
    traffic: rows * length * (savedByBlocks + savedAround) * 4 * 2,
    calls: layers * CALLS.forward,
  };
}

/** Drawing `each` sequences for each of `images`. */
function rolloutWork(config: TrainConfig, models: PlanModels, images: number, each: number): Work {
  const { policy } = models;
  const { guidance, microBatch } = config.rollout;
  const streams = guidance.scale === 1 ? 1 : 2;
  const { vocabSize: v, headWeights, blockWeights, layers, keyWidth } = policy;
  const codes = codesOf(config, models);
  const context = contextAt(config, Number.MAX_SAFE_INTEGER, codes);
  if (sharesContext(config)) {
    const head = { ...NONE, wide: 2 * headWeights * images * codes * streams };
    const drawing = { ...NONE, traffic: images * codes * v * LOGIT.drawn };
    return add(blocks(policy, images * streams, codes), head, drawing);
  }
  const given = context.type === "prefix" ? context.length : 0;
  const steps = codes - given;
  const rows = images * each * streams;
  const parts = Math.ceil(images / (microBatch ?? images));
  const seen = (given + codes) / 2;
  return add(blocks(policy, images * streams, given + 1), {
    ...NONE,
    narrow: steps * rows * 2 * (blockWeights + headWeights),
    traffic: steps * rows * (2 * layers * keyWidth * seen * 4 + v * LOGIT.drawn),
    calls: steps * parts * (layers * CALLS.step + CALLS.draw),
  });
}

/** One forward of true codes, their log-probabilities included. */
function forward(config: TrainConfig, models: PlanModels, rows: number, parts: number): Work {
  const { policy } = models;
  const codes = codesOf(config, models);
  const head = {
    ...NONE,
    wide: 2 * policy.headWeights * rows * codes,
    traffic: rows * codes * policy.vocabSize * LOGIT.drawn,
  };
  const work = add(blocks(policy, rows, codes), head);
  return { ...work, calls: work.calls * parts };
}

function updateWork(config: TrainConfig, models: PlanModels): Work {
  const { policy, trained, valueHead, tokenizer } = models;
  const { rows, steps, miniBatches, microBatchesAStep } = batchNumbers(config);
  const isSte = config.algorithm === "ste";
  const streams = config.rollout.guidance.scale === 1 || isSte ? 1 : 2;
  const epochs = steps / miniBatches;
  const codes = codesOf(config, models);
  const { images, numGenerations } = config.rollout;
  // True codes are rows of their own unless every sequence reads them.
  const prior = config.update.auxCe !== 0 && !sharesContext(config) ? images : 0;
  const gone = epochs * (rows * streams + prior);
  const isKept = config.ar.lora.rank === null;
  // Forward, and a backward to inputs and to weights; with checkpointing the forward once more.
  const passes = 1 + (isKept ? 2 : 1.2) + (config.ar.gradientCheckpointing ? 1 : 0);
  const trunk = blocks(policy, gone, codes);
  // The head's chunks are computed again in the backward.
  const head = {
    ...NONE,
    wide: 2 * policy.headWeights * gone * codes * 4,
    traffic: gone * codes * policy.vocabSize * LOGIT.scored,
  };
  const { coef, stop, estimator } = config.kl;
  // What is only watched is asked for as what counts is.
  const before = (coef !== 0 || stop !== null ? 1 : 0) + (config.algorithm === "ppo" ? 1 : 0);
  const exact = coef !== 0 && estimator === "exact" ? epochs - 1 : 0;
  const again = times(before + exact, forward(config, models, rows * streams, 1));
  const moved = trained + valueHead;
  const decoder = tokenizer.costs(config.data.size);
  const through = isSte ? images * numGenerations : 0;
  return add(times(passes, { ...trunk, calls: 0 }), head, again, {
    ...NONE,
    convolution: through * 2 * decoder.decodeFlops,
    traffic: steps * moved * 4 * 10 + through * 6 * decoder.decodeGraphBytes,
    calls: steps * microBatchesAStep * (policy.layers * CALLS.gradient + 300) + steps * 200,
  });
}

/** Seconds that work takes. */
export function secondsOf(work: Work, rates: Rates): number {
  return (Object.keys(NONE) as (keyof Work)[]).reduce((sum, name) => sum + work[name] / rates[name], 0);
}

/** Seconds of each test in {@link measureRates}; the first runs, which prepare, come on top. */
const TEST_SECONDS = 0.35;

/** Weights that a product of few rows goes through before the first come again, so that none waits in a cache. */
const COLD_BYTES = 2 ** 26;

/** Measure this machine with the shapes of a run: about two seconds. */
export function measureRates(
  config: TrainConfig,
  models: PlanModels,
  device: Device,
  { isCuda, isNarrow }: PlanDevice,
): Rates {
  const { policy, tokenizer } = models;
  const dtype = isNarrow ? "bfloat16" : "float32";
  const d = Math.max(policy.width, 1);
  const codes = codesOf(config, models);
  const { sequences, microBatch } = batchNumbers(config);
  const { images, microBatch: some } = config.rollout;
  const streams = config.rollout.guidance.scale === 1 ? 1 : 2;
  const rows = Math.max(1, sequences * Math.min(1, (some ?? images) / images) * streams);
  const isPacked = !isCuda && d >= 192 && rows >= 4;
  /** Units a second of what `run` does. */
  const rate = (units: number, run: () => void): number => {
    const once = (): void => tidy(run);
    once();
    if (isCuda) synchronize(device);
    const start = performance.now();
    let count = 0;
    let seconds = 0;
    do {
      once();
      count++;
      if (isCuda) synchronize(device);
      seconds = (performance.now() - start) / 1000;
    } while (seconds < TEST_SECONDS);
    return (units * count) / seconds;
  };
  return noGrad(() =>
    tidy(() => {
      const many = Math.min(1024, Math.max(64, microBatch * codes));
      using layer = new Linear(d, 4 * d).to({ device, dtype });
      const tokens = rand([many, d], { device }).to({ dtype });
      const wide = rate(2 * many * 4 * d * d, () => layer.forward(tokens));
      const bytes = 4 * d * d * (isNarrow ? 2 : 4);
      const count = Math.min(4 * Math.max(policy.layers, 1), Math.ceil(COLD_BYTES / bytes));
      using cold = new Sequential(...Array.from({ length: count }, () => new Linear(d, 4 * d))).to({
        device,
        dtype,
      });
      using _ = isPacked ? packLinears(cold, { dtype }) : null;
      const few = rand([rows, d], { device }).to({ dtype });
      const narrow = rate(2 * rows * 4 * d * d * count, () => {
        for (const step of cold.steps) if (step instanceof Linear) step.forward(few);
      });
      const { channels } = tokenizer;
      const side = Math.min(config.data.size, 64);
      using kernel = new Conv2d(channels, channels, 3, { padding: 1 }).to({ device });
      const maps = rand([8, channels, side, side], { device });
      const convolution = rate(2 * 9 * channels ** 2 * side ** 2 * 8, () => kernel.forward(maps));
      const large = rand([2 ** 22], { device });
      const traffic = rate(2 * 4 * 2 ** 22, () => large.add_(1));
      const small = rand([8], { device });
      const calls = rate(100, () => {
        for (let i = 0; i < 100; i++) small.add(1);
      });
      return { wide, narrow, convolution, traffic, calls };
    }),
  );
}
