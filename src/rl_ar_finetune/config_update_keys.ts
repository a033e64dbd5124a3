/**
 * Keys of learning: algorithms, updates, optimizer, evaluation, saving and limits. Those of what a run is made of are
 * in `config_keys.ts`.
 */
import * as z from "zod";

import { key, section } from "./config_key.js";
import type {
  AlgorithmSection,
  EmaSection,
  EvalSection,
  GrpoSection,
  KlSection,
  LimitsSection,
  LogSection,
  OptimizerSection,
  PpoSection,
  Precision,
  PrecisionSection,
  ReinforceSection,
  RlooSection,
  SaveSection,
  SpreadSection,
  TrainConfig,
  TrainSection,
  UpdateSection,
} from "./config_types.js";

const count = z.int().min(1);
const positive = z.number().gt(0);
const atLeast0 = z.number().min(0);
const every = z.int().min(0);

export const algorithm: z.ZodType<TrainConfig["algorithm"]> = key(
  z.enum(["reinforce", "rloo", "grpo", "ppo"]),
  "grpo",
  "how rewards become an update; the section of its name has its options, those of the others are not read",
  "rloo for the fewest knobs, reinforce for one sequence an image, ppo for many steps a rollout.",
);

type Fields<T> = { readonly [K in keyof T]-?: z.ZodType<T[K]> };

/** What every algorithm has, with that algorithm's defaults. */
function shared(defaults: AlgorithmSection): Fields<AlgorithmSection> {
  return {
    epochs: key(
      count,
      defaults.epochs,
      "times each rollout is gone through",
      "Raise it when rollouts cost far more than updates, and watch clip_ratio and kl/approx.",
    ),
    aggregation: key(
      z.enum(["grpo", "bnpo", "dapo", "dr_grpo", "sum"]),
      defaults.aggregation,
      "how losses of tokens become one: mean of sequences' means, mean of tokens (bnpo, dapo), sum over a fixed length, or sum",
      "Rarely: with sequences of one length all but sum are the same.",
    ),
    advantageClip: key(
      positive.nullable(),
      defaults.advantageClip,
      "largest |advantage|; null is no limit",
      "Lower it when a few samples dominate the gradient.",
    ),
    targetKl: key(
      positive.nullable(),
      defaults.targetKl,
      "an update ends before a step when KL(old || new) is above 1.5 times this; null never ends it",
      "Set it with several epochs or mini-batches.",
      "nats a token",
    ),
  };
}

const minStd: z.ZodType<number> = key(
  atLeast0,
  1e-6,
  "groups whose standard deviation is at most this part of their largest |reward| teach nothing and are counted",
  "Raise it when advantage/frac_zero_std is 0 and rewards differ by rounding alone.",
);

function spread(): Fields<SpreadSection> {
  return {
    epsilon: key(
      atLeast0,
      1e-8,
      "added to the standard deviation, relative to the largest |reward|",
      "Leave it: larger ones shrink the advantages of small but clean differences.",
    ),
    absoluteEpsilon: key(
      atLeast0,
      0,
      "added to the standard deviation, in units of the reward: 1e-4 in TRL, 1e-8 in VA-pi",
      "To repeat another trainer's numbers.",
    ),
    minStd,
  };
}

export const reinforce: z.ZodType<ReinforceSection> = section<ReinforceSection>({
  ...shared({ epochs: 1, aggregation: "sum", advantageClip: null, targetKl: null }),
  ...spread(),
});

export const rloo: z.ZodType<RlooSection> = section<RlooSection>({
  ...shared({ epochs: 1, aggregation: "sum", advantageClip: null, targetKl: null }),
  minStd,
});

/** The clip of the ratio. */
function clips(low: number, high: number): Fields<Pick<GrpoSection, "clipLow" | "clipHigh" | "dualClip">> {
  return {
    clipLow: key(
      z.number().gt(0).max(1),
      low,
      "the ratio may fall to 1 - this",
      "Lower it when the policy moves too far in one rollout; without effect at one step a rollout.",
    ),
    clipHigh: key(
      positive,
      high,
      "the ratio may rise to 1 + this",
      "Above clipLow it keeps rare codes alive, which slows the loss of entropy.",
    ),
    dualClip: key(
      z.number().gt(1).nullable(),
      null,
      "for negative advantages the loss is at most this times |advantage|; null is no limit",
      "Set 3 when grad_norm spikes with several epochs.",
    ),
  };
}

export const grpo: z.ZodType<GrpoSection> = section<GrpoSection>({
  ...shared({ epochs: 1, aggregation: "grpo", advantageClip: 5, targetKl: null }),
  ...clips(0.2, 0.28),
  level: key(
    z.enum(["token", "sequence"]),
    "token",
    "one ratio a token, or one a sequence (GSPO)",
    "sequence wants clips about 3e-4.",
  ),
  scale: key(
    z.enum(["group", "batch", "none"]),
    "group",
    "what centred rewards are divided by: the group's standard deviation, all rewards', or nothing (Dr. GRPO)",
    "none keeps images with small differences from counting as much as others.",
  ),
  objective: key(
    z.enum(["clip", "cispo"]),
    "clip",
    "clip the ratio, or cap its weight and keep every token's gradient (CISPO)",
    "Try cispo with several epochs.",
  ),
  ratioCap: key(positive, 5, "largest weight of a token with cispo", "With cispo only."),
  ...spread(),
});

export const ppo: z.ZodType<PpoSection> = section<PpoSection>({
  ...shared({ epochs: 4, aggregation: "dapo", advantageClip: null, targetKl: 0.02 }),
  ...clips(0.2, 0.2),
  gamma: key(z.number().min(0).max(1), 1, "discount of rewards a token", "Leave it at 1: sequences end."),
  lambda: key(
    z.number().min(0).max(1),
    0.95,
    "how far advantages look ahead: 1 is the return, 0 one step",
    "Raise it to 1 while value/explained_variance is low.",
  ),
  valueCoef: key(atLeast0, 0.1, "weight of the value's error", "Raise it when values learn too slowly."),
  valueClip: key(
    positive.nullable(),
    0.2,
    "how far a value may move from the old one; null is no clip",
    "Set null when rewards are far larger than 1.",
  ),
  valueLr: key(
    positive,
    1e-4,
    "learning rate of the value head",
    "Raise it when value/explained_variance stays low.",
  ),
  detachTrunk: key(
    z.boolean(),
    true,
    "keep the value's gradient out of the policy's trunk",
    "Leave it on: a shared trunk suffers from a fresh head.",
  ),
  whiten: key(
    z.boolean(),
    true,
    "give advantages mean 0 and standard deviation 1 over the rollout",
    "Switch it off to keep the reward's own scale.",
  ),
});

export const update: z.ZodType<UpdateSection> = section<UpdateSection>({
  miniBatch: key(
    count.nullable(),
    null,
    "images an optimizer step, a divisor of rollout.images; null is all of them",
    "Lower it for several steps a rollout; then clipping and targetKl come into play.",
    "images",
  ),
  microBatch: key(
    count.nullable(),
    null,
    "rows of a forward pass: images where a group shares its context, else sequences; null is all of a mini-batch",
    "Lower it when the update runs out of memory; the result stays the same.",
    "rows",
  ),
  auxCe: key(
    atLeast0,
    0.1,
    "weight of the cross-entropy of the images' own codes",
    "Do not set 0 with a reward of pixels: without this term it wrecks a generator (VA-pi's FID goes from 14 to 39, with LPIPS too).",
  ),
  entropyCoef: key(
    atLeast0,
    0,
    "weight of the mean entropy of a token's distribution",
    "Set 1e-3 when policy/entropy falls towards 0.",
  ),
  tokenDropout: key(
    z.number().min(0).lt(1),
    0,
    "probability of leaving a token out of the policy's loss",
    "Rarely.",
  ),
  maxLen: key(
    count.nullable(),
    null,
    "length that dr_grpo divides by; null is the number of codes drawn",
    "With aggregation dr_grpo and a prefix that changes.",
    "codes",
  ),
});

export const kl: z.ZodType<KlSection> = section<KlSection>({
  coef: key(
    atLeast0,
    0,
    "weight of the divergence from a frozen reference; at 0 no reference is loaded",
    "Set 1e-3 to 0.1 when samples drift although auxCe is on.",
  ),
  estimator: key(
    z.enum(["k1", "k2", "k3", "k3_own", "exact"]).nullable(),
    null,
    "estimate of the divergence; null is k3 in the loss, with the gradient of k2, and k1 in the reward",
    "exact has no noise and costs the reference's logits; k3_own repeats TRL's gradient.",
  ),
  placement: key(
    z.enum(["loss", "reward"]).nullable(),
    null,
    "where it counts; null is the loss, and the reward for ppo",
    "To repeat another trainer's choice.",
  ),
  path: key(
    z.string().min(1).nullable(),
    null,
    "file of the reference; null is the policy as it was when training began",
    "Give the base model when training goes on from a fine-tuned one.",
  ),
});

export const optimizer: z.ZodType<OptimizerSection> = section<OptimizerSection>({
  lr: key(
    positive,
    1e-5,
    "learning rate of AdamW",
    "Halve it when kl/ref or clip_ratio jump; new policies want 2e-4, large ones 1e-6.",
  ),
  betas: key(
    z.tuple([z.number().min(0).lt(1), z.number().min(0).lt(1)]),
    [0.9, 0.95],
    "decay of the mean of the gradient and of its square",
    "0.999 for the second suits runs of many thousand steps.",
  ),
  eps: key(positive, 1e-8, "added to the root of the squares' mean", "Rarely."),
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
  maxGradNorm: key(
    positive.nullable(),
    1,
    "largest norm of the gradient, all weights as one vector; null is no limit",
    "Look at optim/grad_norm: clipping should be the exception.",
  ),
});

export const ema: z.ZodType<EmaSection> = section<EmaSection>({
  decay: key(
    z.number().min(0).lt(1).nullable(),
    null,
    "part of the running average of the weights that stays at a step; null keeps none",
    "Set 0.999 for runs of a thousand steps; evaluation then uses the average.",
  ),
  warmup: key(z.boolean(), true, "let the average forget its start soon", "Rarely."),
});

const precisionOf = (what: string, when: string): z.ZodType<Precision> =>
  key(
    z.enum(["auto", "float32", "bfloat16"]),
    "auto",
    `type in which ${what} are computed; auto is bfloat16 on CUDA, float32 on a CPU`,
    when,
  );

export const precision: z.ZodType<TrainConfig["precision"]> = section<PrecisionSection>({
  policy: precisionOf(
    "the policy's layers, but for its head and losses,",
    "bfloat16 on CPUs that have it; float32 when sampling/logp_diff_max is above 0.01.",
  ),
  rewards: precisionOf(
    "the reward's networks",
    "float32 when rewards of a group differ by less than a thousandth.",
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
  best: key(
    z.string().min(1),
    "eval/reward/mean",
    "metric that decides which checkpoint is the best one",
    "Take one that is no part of the reward, such as eval/lpips/mean, to see through a reward that is gamed.",
  ),
  mode: key(
    z.enum(["max", "min"]),
    "max",
    "whether more of that metric is better, or less",
    "Together with best.",
  ),
  patience: key(
    z.int().min(0),
    0,
    "evaluations without a new best after which the run ends; 0 never ends it",
    "Set 5 for runs that nobody watches.",
    "evaluations",
  ),
});

export const save: z.ZodType<SaveSection> = section<SaveSection>({
  every: key(
    every,
    100,
    "iterations between checkpoints, of which one comes after the last; 0 saves that one alone",
    "Lower it where a run may be cut short.",
    "iterations",
  ),
  keep: key(count, 3, "checkpoints that stay, beside the best one", "Raise it to look back further."),
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
  tensorboard: key(
    z.boolean(),
    true,
    "write TensorBoard's event files to tb/",
    "Switch it off to save space.",
  ),
  csv: key(z.boolean(), true, "write metrics.csv at the end", "Switch it off when nobody opens it."),
});

export const limits: z.ZodType<LimitsSection> = section<LimitsSection>({
  nonFiniteInARow: key(
    count,
    5,
    "steps in a row that may be left out because the loss or gradient is not finite; one more ends the run with exit code 4",
    "Rarely: look for the cause.",
    "steps",
  ),
  nonFinite: key(
    count,
    100,
    "such steps in the whole run; one more ends it with exit code 4",
    "Rarely: look for the cause.",
    "steps",
  ),
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
  device: key(
    z
      .string()
      .regex(/^(auto|cpu|cuda(:\d+)?)$/)
      .describe("auto, cpu, cuda or cuda:N"),
    "auto",
    "cpu, cuda or cuda:N; auto is cuda where there is one",
    "To leave the GPU to others.",
  ),
  threads: key(
    count.nullable(),
    null,
    "threads of an operator on the CPU; null leaves it to LibTorch",
    "Set 1 to share a machine.",
  ),
});
