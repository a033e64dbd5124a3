/**
 * Keys of learning: algorithms, updates, the pull towards a reference. Those of what a run is made of are in
 * `model_keys.ts`, those of how it goes in `run_keys.ts`.
 */
import * as z from "zod";
import { key, section } from "./key.js";
import { count, positive } from "./shared_keys.js";
import type {
  AlgorithmSection,
  GrpoSection,
  KlSection,
  PpoSection,
  ReinforceSection,
  RlooSection,
  SpreadSection,
  SteSection,
  TrainConfig,
  UpdateSection,
} from "./types.js";

const atLeast0 = z.number().min(0);

export const algorithm: z.ZodType<TrainConfig["algorithm"]> = key(
  z.enum(["reinforce", "rloo", "grpo", "ppo", "ste"]),
  "grpo",
  "how rewards become an update; the section of its name has its options, those of the others are not read",
  "rloo for the fewest knobs, reinforce for one sequence an image, ppo for many steps a rollout; ste differentiates the decoder, as a baseline.",
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

export const ste: z.ZodType<SteSection> = section<SteSection>({
  tau: key(
    positive,
    1,
    "temperature of the soft draw whose gradient stands for that of the drawn code",
    "Lower it for a gradient that is less biased and noisier.",
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
    "weight of the divergence from a frozen reference; at 0 none is loaded, unless stop wants it",
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
  target: key(
    positive.nullable(),
    null,
    "divergence that coef is steered towards, rising while kl/ref is above it and falling while it is below; null keeps coef",
    "Set it where one coef is too weak late and too strong early; coef is where it starts.",
    "nats a token",
  ),
  horizon: key(
    positive,
    10_000,
    "sequences over which an error of 20 % or more changes coef by a factor of about 1.2",
    "Lower it for runs of few iterations.",
    "sequences",
  ),
  stop: key(
    positive.nullable(),
    null,
    "running mean of kl/ref (nine parts old, one part new) above which the run ends, with a checkpoint; null never ends it",
    "Set 0.1 to 1 for runs that nobody watches; with coef 0 the reference is loaded for this alone.",
    "nats a token",
  ),
});
