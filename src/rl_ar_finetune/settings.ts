/**
 * From the configuration to the options of the parts that do the work: sampling, contexts and the learning rate at an
 * iteration, and each algorithm's update. Options of the images are in `run/images.ts`.
 */

import type { AlgorithmSection, OptimizerSection, TrainConfig } from "../config/resolve.js";
import { sharesContext } from "../config/rules.js";
import { schedules } from "../nn/index.js";
import type { ArPolicy } from "../policies/index.js";
import type { SpreadOptions } from "./advantages.js";
import type { GrpoOptions, PpoOptions, UpdateOptions } from "./optimize.js";
import type { RolloutContext } from "./rollout.js";
import type { Sampling } from "./sampling.js";
import type { SteOptions } from "./ste.js";

/** How codes are drawn and scored in training. */
export function samplingOf(config: TrainConfig): Sampling {
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

/** How codes are drawn in evaluation: as in training, but for what `eval` says. */
export function evalSamplingOf(config: TrainConfig): Sampling {
  const { temperature, topK, topP } = config.eval;
  const training = samplingOf(config);
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
 * @param step - counted from 0; with `rollout.context.ramp` r the context is at full strength from r on.
 * @param codes - T: codes of a whole sequence.
 */
export function contextAt(config: TrainConfig, step: number, codes: number): RolloutContext {
  const { type, length, noise, ramp } = config.rollout.context;
  const strength = ramp === 0 ? 1 : Math.min(1, step / ramp);
  switch (type) {
    case "prefix": {
      const least = length ?? Math.floor(codes / 2);
      return { type, length: Math.round(codes - 1 + (least - (codes - 1)) * strength) };
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

/** The learning rate's factor at each of `total` updates, counted from 0. */
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

/** The algorithm, with the options of its update but for those that a step brings: generator, lrFactor, value head. */
export type AlgorithmOptions =
  | { readonly algorithm: "reinforce"; readonly options: UpdateOptions & SpreadOptions }
  | { readonly algorithm: "rloo"; readonly options: UpdateOptions & Pick<SpreadOptions, "minStd"> }
  | { readonly algorithm: "grpo"; readonly options: GrpoOptions }
  | { readonly algorithm: "ppo"; readonly options: Omit<PpoOptions, "valueHead"> }
  | { readonly algorithm: "ste"; readonly options: Omit<SteOptions, "tokenizer" | "terms" | "seed"> };

/**
 * The options of an update.
 *
 * @param reference - the frozen policy, where the divergence from it counts or is watched.
 * @param klCoef - weight of that divergence, where it is no longer that of the configuration.
 */
export function algorithmOptions(
  config: TrainConfig,
  reference: ArPolicy | null = null,
  klCoef: number = config.kl.coef,
): AlgorithmOptions {
  const { algorithm } = config;
  const shared = sharedOptions(config, reference, klCoef);
  switch (algorithm) {
    case "reinforce":
      return { algorithm, options: { ...shared, ...config.reinforce, ...limitsOf(config.reinforce) } };
    case "rloo":
      return { algorithm, options: { ...shared, ...config.rloo, ...limitsOf(config.rloo) } };
    case "grpo": {
      const { dualClip, ...grpo } = config.grpo;
      return {
        algorithm,
        options: { ...shared, ...grpo, ...limitsOf(grpo), ...(dualClip !== null && { dualClip }) },
      };
    }
    case "ppo": {
      const { dualClip, valueLr: _, ...ppo } = config.ppo;
      return {
        algorithm,
        options: { ...shared, ...ppo, ...limitsOf(ppo), ...(dualClip !== null && { dualClip }) },
      };
    }
    case "ste": {
      const { miniBatch, microBatch, auxCe, entropyCoef } = config.update;
      return {
        algorithm,
        options: {
          tau: config.ste.tau,
          numGenerations: config.rollout.numGenerations,
          auxCe,
          entropyCoef,
          maxGradNorm: config.optimizer.maxGradNorm ?? Infinity,
          ...(miniBatch !== null && { miniBatch }),
          ...(microBatch !== null && { microBatch }),
        },
      };
    }
  }
}

/** Left out, these would be the update's own defaults; null is no limit. */
function limitsOf({ advantageClip, targetKl }: AlgorithmSection): {
  advantageClip: number;
  targetKl: number;
} {
  return { advantageClip: advantageClip ?? Infinity, targetKl: targetKl ?? Infinity };
}

function sharedOptions(config: TrainConfig, reference: ArPolicy | null, klCoef: number): UpdateOptions {
  const { miniBatch, microBatch, maxLen, auxCe, entropyCoef, tokenDropout } = config.update;
  const { estimator, placement } = config.kl;
  const { credit, creditDecay } = config.reward;
  const pull = reference === null ? null : { coef: klCoef, reference };
  return {
    auxCe,
    entropyCoef,
    tokenDropout,
    maxGradNorm: config.optimizer.maxGradNorm ?? Infinity,
    maxRatioGap: config.limits.ratioGap,
    ...(credit === "place" && { creditDecay }),
    ...(miniBatch !== null && { miniBatch }),
    ...(microBatch !== null && { microBatch }),
    ...(maxLen !== null && { maxLen }),
    ...(pull && { kl: { ...pull, ...(estimator && { estimator }), ...(placement && { placement }) } }),
  };
}
