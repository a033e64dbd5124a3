/**
 * Converts the configuration into options: sampling, context and learning rate at an iteration, and options of each algorithm's
 * update. Options of the images are in `run/images.ts`.
 */
import type { OptimizerSection, TrainConfig } from "../config/resolve.js";
import { sharesContext } from "../config/rules.js";
import { schedules } from "../nn/index.js";
import type { ArPolicy } from "../policies/index.js";
import type { GrpoOptions, PpoOptions, ReinforceOptions, RlooOptions, UpdateOptions } from "./optimize.js";
import type { RolloutContext } from "./rollout.js";
import type { Sampling } from "./sampling.js";
import type { SteOptions } from "./ste.js";

/** Sampling of the training rollouts, with which the update scores too. */
export function rolloutSamplingOf(config: TrainConfig): Sampling {
  const { temperature, topK, topP, guidance } = config.rollout;
  const { interval, ...constant } = guidance;
  const isGuided = guidance.scale !== 1;
  return {
    temperature,
    topK,
    topP,
    ...(isGuided && { guidance: { ...constant, ...(interval && { interval }) } }),
  };
}

/** Sampling of the evaluation: as in training, except for the keys that `eval` sets. */
export function evalSamplingOf(config: TrainConfig): Sampling {
  const { temperature, topK, topP } = config.eval;
  const training = rolloutSamplingOf(config);
  return {
    ...training,
    ...(temperature !== null && { temperature }),
    ...(topK !== null && { topK }),
    ...(topP !== null && { topP }),
  };
}

/**
 * The context of an iteration.
 *
 * @param step - from 0; with `rollout.context.ramp` r the prefix shrinks, or the noise grows, to its full value at
 *   step r.
 * @param codes - T: codes of a whole sequence.
 */
export function contextAt(config: TrainConfig, step: number, codes: number): RolloutContext {
  const { type, length, shortest, free, noise, ramp } = config.rollout.context;
  const strength = ramp === 0 ? 1 : Math.min(1, step / ramp);
  switch (type) {
    case "prefix": {
      const rampedTo = (full: number): number => Math.round(codes - 1 + (full - (codes - 1)) * strength);
      const longest = length ?? Math.floor(codes / 2);
      return {
        type,
        length: rampedTo(longest),
        ...(shortest !== null && { shortest: rampedTo(shortest) }),
        ...(free > 0 && { free }),
      };
    }
    case "noisy_teacher_forced":
      return { type, noise: noise * strength };
    default:
      return { type };
  }
}

/** The learning rate's factor at each iteration, counted from 0. */
export function lrScheduleOf(config: TrainConfig): schedules.Schedule {
  return lrSchedule(config.optimizer, config.train.iters);
}

/** The learning rate's factor at each of `total` updates, from 0. */
export function lrSchedule(optimizer: OptimizerSection, total: number): schedules.Schedule {
  const { schedule, warmup: part, finalLr: final } = optimizer;
  const warmup = Math.min(Math.round(part * total), total - 1);
  if (schedule === "constant") return schedules.constant({ warmup });
  return schedules[schedule]({ total, warmup, final });
}

/** Whether the rollout's forward pass, with its graph, serves the update too. */
export function keepsGraph(config: TrainConfig): boolean {
  return config.rollout.keepGraph && sharesContext(config);
}

/** The algorithm, with the options of its update but for those of a single step: generator, lrFactor, value head. */
export type AlgorithmOptions =
  | { readonly algorithm: "reinforce"; readonly options: ReinforceOptions }
  | { readonly algorithm: "rloo"; readonly options: RlooOptions }
  | { readonly algorithm: "grpo"; readonly options: GrpoOptions }
  | { readonly algorithm: "ppo"; readonly options: Omit<PpoOptions, "valueHead"> }
  | { readonly algorithm: "ste"; readonly options: Omit<SteOptions, "tokenizer" | "terms" | "seed"> };

/**
 * The options of an update.
 *
 * @param reference - the frozen policy, where KL to it is minimised or measured.
 * @param klCoef - weight of that KL, which `kl.target` may have changed since the run began.
 * @param entropyCoef - weight of the entropy bonus, which `update.entropyTarget` may have changed.
 */
export function algorithmOptions(
  config: TrainConfig,
  reference: ArPolicy | null = null,
  klCoef: number = config.kl.coef,
  entropyCoef: number = config.update.entropyCoef,
): AlgorithmOptions {
  const { algorithm } = config;
  const shared = sharedOptions(config, reference, klCoef, entropyCoef);
  switch (algorithm) {
    case "reinforce":
      return { algorithm, options: { ...shared, ...given(config.reinforce) } };
    case "rloo":
      return { algorithm, options: { ...shared, ...given(config.rloo) } };
    case "grpo":
      return { algorithm, options: { ...shared, ...given(config.grpo) } };
    case "ppo": {
      const { valueLr: _, valueClip, ...ppo } = config.ppo;
      return { algorithm, options: { ...shared, ...given(ppo), valueClip } };
    }
    case "ste": {
      const { miniBatch, microBatch, auxCe, entropyCoef } = config.update;
      const { maxGradNorm } = config.optimizer;
      const { numGenerations } = config.rollout;
      const options = {
        numGenerations,
        auxCe,
        entropyCoef,
        ...given({ miniBatch, microBatch, maxGradNorm }),
      };
      return { algorithm, options: { ...config.ste, ...options } };
    }
  }
}

/** A section without its nulls, and with no limit where null says so. */
function given<T extends object>(section: T): { [K in keyof T]: Exclude<T[K], null> } {
  const entries = Object.entries(section).flatMap(([name, value]) => {
    if (value !== null) return [[name, value]];
    return NO_LIMIT.has(name) ? [[name, Infinity]] : [];
  });
  return Object.fromEntries(entries);
}

/** Options that have a default limit when omitted, and no limit when null. */
const NO_LIMIT = new Set(["advantageClip", "targetKl"]);

function sharedOptions(
  config: TrainConfig,
  reference: ArPolicy | null,
  klCoef: number,
  entropyCoef: number,
): UpdateOptions {
  const { estimator, placement } = config.kl;
  const { credit, creditDecay } = config.reward;
  const { maxGradNorm } = config.optimizer;
  const {
    entropyTarget: _,
    entropyDelta: __,
    codeDistance: ___,
    codeFrequency: ____,
    ...update
  } = config.update;
  return {
    ...given({ ...update, entropyCoef, maxGradNorm }),
    maxRatioGap: config.limits.ratioGap,
    ...(credit === "place" && { creditDecay }),
    ...(reference !== null && { kl: { coef: klCoef, reference, ...given({ estimator, placement }) } }),
  };
}

/** Images that are decoded at a time: `tokenizer.decodeBatch`, default 8. */
export function decodeBatchOf({ tokenizer }: Pick<TrainConfig, "tokenizer">): number {
  return tokenizer.decodeBatch ?? 8;
}

/** Whether something comes after `step` iterations that comes every so many, 0 for never, and at the end. */
export function isDueAt(step: number, every: number, total: number): boolean {
  return every > 0 && (step % every === 0 || step === total);
}

/**
 * Whether an iteration, from 0, measures the ceiling, the reward of the images' own codes: those that are shown, on the
 * console or on a page of samples, and the first. It costs as much as one more sample per image.
 */
export function needsCeiling({ log, train }: Pick<TrainConfig, "log" | "train">, step: number): boolean {
  return step === 0 || [log.every, log.imagesEvery].some((every) => isDueAt(step + 1, every, train.iters));
}
