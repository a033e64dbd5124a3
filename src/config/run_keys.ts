/**
 * Keys of how a run goes: optimizer, average, precision, evaluation, saving, limits, length. Those of what is learnt
 * are in `update_keys.ts`.
 */
import * as z from "zod";

import { key, section } from "./key.js";
import * as shared from "./shared_keys.js";
import { count, every, positive } from "./shared_keys.js";
import type {
  EmaSection,
  EvalSection,
  LimitsSection,
  LogSection,
  OptimizerSection,
  PrecisionSection,
  SaveSection,
  TrainConfig,
  TrainSection,
} from "./types.js";

const atLeast0 = z.number().min(0);

export const optimizer: z.ZodType<OptimizerSection> = section<OptimizerSection>({
  lr: key(
    positive,
    1e-5,
    "learning rate of AdamW",
    "Halve it when kl/ref or clip_ratio jump; new policies want 2e-4, large ones 1e-6.",
  ),
  betas: shared.betasOf([0.9, 0.95], "steps"),
  eps: shared.eps,
  weightDecay: key(
    atLeast0,
    0,
    "part of each weight that goes at a step, times the learning rate",
    "Leave it at 0 for short fine-tuning.",
  ),
  schedule: key(
    z.enum(["constant", "linear", "cosine"]),
    "cosine",
    "how the learning rate runs after the warm-up",
    "constant lets train.iters be raised when a run is resumed.",
  ),
  warmup: key(
    z.number().min(0).lt(1),
    0.03,
    "part of train.iters in which the learning rate rises",
    "Raise it when the first iterations do harm.",
  ),
  finalLr: key(
    z.number().min(0).max(1),
    0.1,
    "part of the learning rate that linear and cosine end at",
    "0 for a run that will not go on.",
  ),
  maxGradNorm: shared.maxGradNorm,
});

export const ema: z.ZodType<EmaSection> = section<EmaSection>({
  decay: key(
    z.number().min(0).lt(1).nullable(),
    null,
    "part of the running average of the weights that stays at a step; null keeps none",
    "Set 0.999 for runs of a thousand steps; evaluation then uses the average.",
  ),
  warmup: shared.emaWarmup,
});

export const precision: z.ZodType<TrainConfig["precision"]> = section<PrecisionSection>({
  policy: shared.precisionOf(
    "the policy's layers, but for its head and losses,",
    "bfloat16 on CPUs that have it; float32 when sampling/logp_diff_max is above 0.01.",
  ),
  rewards: key(
    z.enum(["float32", "bfloat16"]),
    "float32",
    "type in which the reward's networks are computed",
    "bfloat16 for speed on CUDA, where rewards of a group differ by more than a thousandth.",
  ),
});

export const evaluation: z.ZodType<EvalSection> = section<EvalSection>({
  every: key(
    every,
    50,
    "iterations between evaluations, of which one comes before the first; 0 is none",
    "Raise it when time/eval is a large part.",
    "iterations",
  ),
  images: key(
    count,
    64,
    "images set apart that are evaluated on, always the same",
    "Raise it when eval metrics jump.",
    "images",
  ),
  numGenerations: key(count, 4, "sequences an image", "Raise it when eval metrics jump.", "sequences"),
  temperature: key(
    positive.nullable(),
    null,
    "as in rollout; null is rollout's",
    "To watch the policy as it will be used.",
  ),
  topK: key(
    z.int().min(0).nullable(),
    null,
    "as in rollout; null is rollout's",
    "To watch the policy as it will be used.",
  ),
  topP: key(
    z.number().gt(0).max(1).nullable(),
    null,
    "as in rollout; null is rollout's",
    "To watch the policy as it will be used.",
  ),
  perceptual: key(
    z.string().min(1).nullable(),
    null,
    "file of a second classifier, for a distance that no reward uses: eval/perceptual_held_out; null measures none",
    "Whenever a network's opinion is rewarded: it tells whether another one agrees.",
  ),
  best: key(
    z.string().min(1),
    "eval/reward/mean",
    "metric that decides which checkpoint is the best one",
    "Take one that is no part of the reward, such as eval/lpips/mean, to see through a reward that is gamed.",
  ),
  mode: shared.modeOf("max"),
  patience: shared.patience,
});

export const save: z.ZodType<SaveSection> = section<SaveSection>({
  every: key(
    every,
    100,
    "iterations between checkpoints, of which one comes after the last; 0 saves that one alone",
    "Lower it where a run may be cut short.",
    "iterations",
  ),
  keep: shared.keepOf(3),
  ckptPath: key(
    z.string().min(1).nullable(),
    null,
    "file to write the policy's weights to at each checkpoint, as safetensors whatever its ending",
    "For programs that want the weights at one place.",
  ),
});

export const log: z.ZodType<LogSection> = section<LogSection>({
  every: key(
    count,
    10,
    "iterations between lines on the console and points in TensorBoard; metrics.jsonl has every one",
    "Lower it for slow iterations.",
    "iterations",
  ),
  imagesEvery: key(
    every,
    50,
    "iterations between pages of samples; 0 makes none",
    "Lower it to see what the reward rewards.",
    "iterations",
  ),
  imageRows: key(
    count,
    8,
    "images on such a page, each with its reconstruction and samples",
    "Rarely.",
    "images",
  ),
  tensorboard: shared.tensorboard,
  csv: shared.csv,
});

export const limits: z.ZodType<LimitsSection> = section<LimitsSection>({
  ...shared.limitsOf("steps"),
  ratioGap: key(
    positive,
    0.1,
    "largest mean |ratio - 1| before the first step of an update: above it sampler and scorer disagree",
    "Raise it a little for bfloat16 policies that are otherwise sound.",
  ),
});

export const train: z.ZodType<TrainSection> = section<TrainSection>({
  iters: key(
    count,
    1000,
    "iterations, each a rollout and its update",
    "60 to 200 show whether a reward works.",
    "iterations",
  ),
  device: shared.device,
  threads: shared.threads,
});
