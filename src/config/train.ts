/**
 * The configuration of `rlar train`: its keys with their types, defaults and descriptions, the other names that they
 * have, and what may change when a run is resumed. What keys require of each other is in `rules.ts`;
 * `train_kind.ts` puts all of it together.
 */
import * as z from "zod";
import type { Loader } from "../data/index.js";
import type { Tensor } from "../torch/index.js";
import { key, keysOf, liveKey, namedSections, pathKey, section } from "./key.js";
import type { Meaning, Resumed } from "./kind.js";
import * as shared from "./shared.js";
import {
  atLeast0,
  below1,
  count,
  flag,
  integer0,
  isFunction,
  isNotPrimitive,
  positive,
  size,
  unit,
} from "./shared.js";
import type { AliasValues, ConfigInput, SnakeCase, SpelledValues } from "./spelling.js";

const number = z.number();
const ITERATORS = [Symbol.iterator, Symbol.asyncIterator];
const temperature = number
  .min(1e-4)
  .describe("a number of at least 0.0001 (below it logits overflow; topK=1 is greedy)");
const topK = integer0;
const topP = number.gt(0).max(1);
const strings = z.array(shared.text).min(1).readonly();

const tunedAr = section({
  ...shared.arKeys,
  lora: section({
    rank: size("channels").describe(
      "Rank of LoRA adapters, which are trained in place of the policy's weights; null trains the weights. Set 8 to 64 when optimizer and reference do not fit in memory; the learning rate should be about ten times higher.",
    ),
    alpha: key(positive.nullable(), null).describe(
      "LoRA scaling: the adapters' output is multiplied by alpha / rank; null is the rank. Keep it when you change the rank, so that the learning rate can stay.",
    ),
    targets: key(strings.nullable(), null).describe(
      "Layers that get adapters, by the end of their name, such as wqkv; null is every linear layer of the blocks. Set it to adapt only attention, or the head as well.",
    ),
  }),
});

const context = section({
  type: key(z.enum(["free", "prefix", "teacher_forced", "noisy_teacher_forced"]), "free").describe(
    "What the policy is conditioned on at each code: its own samples (free), some true codes and then its own samples (prefix), all true codes before it (teacher_forced), or these with noise. free is how the policy will be used; teacher_forced is far cheaper; prefix lies between.",
  ),
  length: key(integer0.nullable(), null, "codes").describe(
    "Number of true codes at the start of a prefix context; null is half of all. Lower it when completions are already good.",
  ),
  noise: key(unit, 0.5).describe(
    "Probability that noisy_teacher_forced replaces a true code by another one, drawn uniformly. Lower it, or set rollout.context.ramp, for a policy that was pre-trained without noise: 0.5 from the start ruins such a policy.",
  ),
  ramp: key(integer0, 0, "iterations").describe(
    "Iterations until the context has its full strength: noise rises from 0, a prefix shrinks from all codes but one. Set a quarter of train.iters when a new context lowers the reward at first.",
  ),
});

const guidance = section({
  scale: key(number, 1).describe(
    "Scale of classifier-free guidance, in sampling and scoring; 1 is no guidance and half the work. Raise it to train the policy as it will be sampled with guidance.",
  ),
  schedule: key(z.enum(["constant", "power_cosine"]), "constant").describe(
    "How the guidance scale changes along the sequence: constant, or rising from 1 (power_cosine). Use the one that images will be sampled with.",
  ),
  power: key(positive, 1).describe(
    "Exponent of the power_cosine schedule; above 1 guidance sets in later. Set it with power_cosine only.",
  ),
  interval: key(z.tuple([integer0, integer0]).readonly().nullable(), null, "codes").describe(
    "Positions [from, to) that are guided; null is all. Rarely changed.",
  ),
});

const rollout = section({
  images: key(count, 16, "images").describe(
    "Images per rollout (B). Raise it for a gradient with less variance; time and memory grow with it.",
  ),
  numGenerations: key(count, 8, "sequences").describe(
    "Sequences sampled per image (G), which are compared with each other. Lower it to 4 when decoding takes most of the time; below 4 the baseline is noisy.",
  ),
  context,
  start: key(z.enum(["condition", "empty"]), "condition").describe(
    "What sequences start from: the class or text of the image, or nothing. Set empty for an unconditional policy.",
  ),
  maxLen: size("codes").describe(
    "Length of a whole sequence, given codes included; null is the number of codes of an image. Leave it at null: the decoder needs all codes of an image.",
  ),
  temperature: key(temperature, 1).describe(
    "Temperature that logits are divided by, in sampling and scoring. Leave it at 1 unless the policy will always be sampled at another temperature.",
  ),
  topK: key(topK, 0, "codes").describe(
    "Sample only from the k most likely codes; 0 is all. Leave it at 0: codes that are cut get no gradient.",
  ),
  topP: key(topP, 1).describe(
    "Sample only from the most likely codes that reach this total probability; 1 is all. Leave it at 1: codes that are cut get no gradient.",
  ),
  guidance,
  microBatch: size("images").describe(
    "Images sampled at a time; null is all. Results do not change. Lower it when sampling runs out of memory.",
  ),
  keepGraph: flag(false).describe(
    "Whether the update reuses the rollout's forward pass; for teacher-forced contexts and one optimizer step per rollout only. Switch it on when memory holds the activations of all images; it saves a third of the policy's work.",
  ),
});

/** What a reward knows of a batch beside its pixels. Lists have one entry per image, B; null where the data has none. */
export interface RewardContext {
  /** Names of the images (or captions) in the data. */
  readonly imageIds: readonly string[];
  readonly classIds: readonly number[] | null;
  readonly classNames: readonly string[] | null;
  readonly captions: readonly string[] | null;
  /** int64 `[B * G, T]`: the codes that the samples were decoded from. */
  readonly codes: Tensor;
  /** int64 `[B, T]`: the images' own codes; null without images. */
  readonly trueCodes: Tensor | null;
  /** G. */
  readonly numGenerations: number;
  /** The iteration in which the samples were drawn, from 1; in an evaluation, the iterations that are done. */
  readonly step: number;
  /** The run's. */
  readonly seed: number;
}

/** One number per sample: a float Tensor `[B * G]`, or a list of them. */
export type RewardScores = Tensor | readonly number[] | Float32Array | Float64Array;

/**
 * A reward of a program: higher is better.
 *
 * Images are float32 `[B, 3, H, W]` in [-1, 1], `[0, 3, H, W]` where the data has none; samples `[B * G, 3, H, W]`, about
 * [-1, 1]: sample n belongs to image floor(n / G).
 */
export type RewardFunction = (
  images: Tensor,
  samples: Tensor,
  context: RewardContext,
) => RewardScores | Promise<RewardScores>;

const NORMALIZERS = z.enum(["none", "batch", "group"]);
const weightOf = (value: number, of: string) => key(number, value).describe(`Weight of ${of}`);
const term = (value: number, of: string) => section({ weight: weightOf(value, of) });
const network = (of: string, file: string) =>
  section({
    weight: weightOf(0, of),
    path: pathKey().describe(`File of ${file}. Required when the weight is not 0.`),
  });

const textNetwork = (of: string, file: string) =>
  section({
    weight: weightOf(0, of),
    path: pathKey().describe(`File of ${file}. Required when the weight is not 0.`),
    template: key(shared.text, "a photo of a {}.").describe(
      "Text for a class, {} its name, where the data has no captions. Set it to what the encoder was trained on.",
    ),
  });

/** Keys of a term of the user's own. */
const ownTerm = (of: string, timeout: number, per: string) => ({
  weight: weightOf(1, `${of}; 0 disables the term. Set it to balance the terms: it multiplies the score.`),
  normalize: key(NORMALIZERS.nullable(), null).describe(
    "Whether this term is standardized over the rollout (batch) or over each group before it is weighted; null is reward.normalize. Set it for a term whose scale differs from the others'.",
  ),
  clamp: key(z.tuple([number, number]).readonly().nullable(), null).describe(
    "Lowest and highest score that counts, before normalization and weight; the log has the scores themselves. Set it when rare extreme scores dominate the gradient.",
  ),
  timeout: key(positive, timeout, "seconds").describe(
    `Longest time of ${per}; after it the run ends with a checkpoint. Raise it for a slow reward.`,
  ),
});

const reward = section({
  normalize: key(NORMALIZERS, "none").describe(
    "Whether each term is standardized (mean 0, standard deviation 1) over the rollout or over each group before it is weighted. Set group when terms differ in scale: perceptual distances are often ten times the squared error.",
  ),
  credit: key(z.enum(["sequence", "place"]), "sequence").describe(
    "What a code is credited with: the reward of the whole image (sequence), or that of its own patch and of later ones (place). place tells the codes of an image apart; it needs terms that have a value per pixel: l1, l2, ssim, lpips or perceptual.",
  ),
  creditDecay: key(unit, 0.5).describe(
    "With credit by place: discount per place for the rewards of later places; 0 credits only the code's own place, 1 all later places alike. Raise it for free and prefix contexts, where later codes depend on this one; ppo uses ppo.lambda in its place.",
  ),
  l1: term(
    0,
    "the negative mean absolute error of pixels; 0 disables the term. Prefer it to l2 when outliers dominate.",
  ),
  l2: term(
    1,
    "the negative mean squared error of pixels; 0 disables the term. Set 0 when another term serves better.",
  ),
  psnr: term(
    0,
    "the peak signal-to-noise ratio in dB; 0 disables the term. Use it in place of l2 when errors differ widely in size.",
  ),
  ssim: term(
    0,
    "structural similarity, for images of at least 11 px; 0 disables the term. Add it when l2 makes images blurry.",
  ),
  msSsim: term(
    0,
    "multi-scale structural similarity, for images of at least 176 px; 0 disables the term. Use it for large images.",
  ),
  lpips: network(
    "the negative LPIPS distance; 0 disables the term. Set 1 beside l2, as VA-pi does: l2 alone makes images blurry.",
    "torchvision's weights of VGG16, AlexNet or SqueezeNet 1.1",
  ),
  perceptual: network(
    "the negative distance in the features of a classifier trained on such images; 0 disables the term. Use it in place of LPIPS for small images that are not photographs; check the scales of the terms before you mix them.",
    "a classifier from rlar classifier",
  ),
  latentCosine: term(
    0,
    "the negative of 1 - cosine similarity between codebook vectors and the image's latents; 0 disables the term. Rarely used.",
  ),
  patchGan: network(
    "the mean logit of a frozen PatchGAN discriminator; 0 disables the term. Add a little when samples lack detail.",
    "a discriminator from the training of a tokenizer",
  ),
  toklipImage: network(
    "the cosine of TokLIP's embeddings of the sampled codes and of the image's; 0 disables the term. Use it to keep what is in the image; nothing is decoded for it.",
    "a TokLIP whose codes the tokenizer draws",
  ),
  toklipText: textNetwork(
    "the cosine of TokLIP's embeddings of the sampled codes and of the text; 0 disables the term. Use it so that samples show their caption or class; nothing is decoded for it.",
    "a TokLIP whose codes the tokenizer draws, with the tokenizer.json of SigLIP 2 beside it",
  ),
  clip: textNetwork(
    "the cosine of CLIP's or SigLIP's embeddings of the sample and of the text; 0 disables the term. Use it so that samples show their caption or class.",
    "a CLIP or SigLIP with its text tower, or its folder",
  ),
  aesthetic: section({
    weight: weightOf(
      0,
      "LAION's aesthetic score, about 1 to 10; 0 disables the term. Use it beside a term that keeps the content.",
    ),
    path: pathKey().describe(
      "File or folder of the CLIP that the head was trained on. Required when the weight is not 0.",
    ),
    head: pathKey().describe("File of the head. Required when the weight is not 0."),
  }),
  dists: section({
    weight: weightOf(
      0,
      "the negative DISTS distance; 0 disables the term. Use it in place of LPIPS for textures.",
    ),
    path: pathKey().describe("File of torchvision's weights of VGG16. Required when the weight is not 0."),
    weights: pathKey().describe(
      "File of the published weights alpha and beta. Required when the weight is not 0.",
    ),
  }),
  custom: namedSections({
    ...ownTerm(
      "your own reward NAME",
      600,
      "one call; a function that returns no promise cannot be interrupted",
    ),
    module: pathKey().describe(
      "JavaScript module whose default export is the reward, a function of images, samples and context (docs/extending.md). Use it from the command line or a file; its content belongs to the run, which does not resume with another.",
    ),
    fn: liveKey<RewardFunction>("a function of images, samples and context", isFunction).describe(
      "The reward as a function. Pass one from a program, in place of a module.",
    ),
  }),
  http: namedSections({
    ...ownTerm("the reward of a server", 60, "a request, which is then tried again"),
    url: key(shared.text.nullable(), null).describe(
      "Address of a reward server, http for this machine, https for any other (docs/reward_servers.md). Requests go to /score below it.",
    ),
    reward: key(shared.text.nullable(), null).describe(
      "Name of the reward at the server; null is NAME. Set it when the log should have another name.",
    ),
    metric: key(shared.text.nullable(), null).describe(
      "Which of a reward's several scores to use; null is the one of the reward's name, or the only one. Set it for judges that give several.",
    ),
    batch: key(count, 16, "samples").describe(
      "Samples in one request. Raise it when the server scores large batches faster.",
    ),
    concurrency: key(count, 4, "requests").describe(
      "Requests that are under way at once. Raise it when the server has several workers.",
    ),
    retries: key(integer0, 5).describe(
      "How often a failed request is sent again, after 0.5, 1, 2, 4, ... seconds, at most 30. Raise it for a server that is restarted during a run.",
    ),
    tokenEnv: key(shared.text.nullable(), null).describe(
      "Environment variable with a bearer token for the server; null sends none. The token itself enters no file and no message.",
    ),
  }),
  chunk: size("samples").describe(
    "Samples that a reward network sees at a time; null is about two million pixels. Lower it when rewards run out of memory.",
  ),
});

/** Keys that every policy-gradient algorithm has, with its defaults. */
const algorithmKeys = (defaults: {
  epochs: number;
  aggregation: "mean" | "sum";
  advantageClip: number | null;
  targetKl: number | null;
}) => ({
  epochs: key(count, defaults.epochs, "epochs").describe(
    "Number of passes over each rollout. Raise it when rollouts cost far more than updates, and watch clip_ratio and kl/approx.",
  ),
  aggregation: key(z.enum(["mean", "sum"]), defaults.aggregation).describe(
    "How token losses are averaged: mean over tokens, or mean over sequences of the sum over their tokens. Rarely changed: all sequences have one length, so grpo, bnpo, dapo and dr_grpo (which are accepted) are all this mean.",
  ),
  advantageClip: key(positive.nullable(), defaults.advantageClip).describe(
    "Maximum absolute advantage; null does not clip. Lower it when a few samples dominate the gradient.",
  ),
  targetKl: key(positive.nullable(), defaults.targetKl, "nats per token").describe(
    "The update stops early when KL(old || new) exceeds 1.5 times this; null never stops it. Set it with several epochs or mini-batches.",
  ),
});

const minStd = key(atLeast0, 1e-6).describe(
  "Groups whose rewards have a standard deviation of at most this fraction of their largest |reward| get advantage 0. Raise it when advantage/frac_zero_std is 0 although rewards differ by rounding only.",
);

const spread = {
  epsilon: key(atLeast0.nullable(), null).describe(
    "Added to the standard deviation of rewards, in units of the reward; null is 1e-8 of the largest |reward|. Set it to reproduce another trainer: 1e-4 in TRL, 1e-6 in verl, 1e-8 in VA-pi.",
  ),
  minStd,
};

/** Keys of the ratio's clipping. */
const clips = (low: number, high: number) => ({
  clipLow: key(number.gt(0).max(1), low).describe(
    "Lower clip range: the ratio is clipped at 1 - clipLow. Lower it when the policy moves too far in one rollout; it has no effect with one optimizer step per rollout.",
  ),
  clipHigh: key(positive, high).describe(
    "Upper clip range: the ratio is clipped at 1 + clipHigh. Set it above clipLow to keep rare codes alive, which slows the loss of entropy.",
  ),
  dualClip: key(number.gt(1).nullable(), null).describe(
    "Dual clip: with negative advantages the loss is at most this times |advantage|; null is no limit. Set 3 when the gradient norm spikes with several epochs.",
  ),
});

/** The zod schema of a whole configuration. */
export const configSchema = section({
  preset: key(shared.text.describe("seed, vapi or completion").nullable(), null).describe(
    "Values to start from. Start from completion; vapi and seed reproduce what others describe.",
  ),
  seed: shared.seed,
  run: shared.run,
  data: shared.data,
  dataloader: liveKey<Loader>(
    "an iterable of images or batches, or a function that returns one",
    (value) =>
      isFunction(value) || (isNotPrimitive(value) && ITERATORS.some((of) => of in (value as object))),
  ).describe(
    "Batches of training images, in place of data.source. Pass one from a program for data that no reader here knows.",
  ),
  tokenizer: shared.tokenizer,
  ar: tunedAr,
  blockSize: shared.blockSize,
  rollout,
  reward,
  algorithm: key(z.enum(["reinforce", "rloo", "grpo", "ppo", "ste"]), "grpo").describe(
    "Learning algorithm; its options are in the section of its name, and the sections of the others are ignored. rloo has the fewest options, reinforce needs one sequence per image, ppo suits many steps per rollout; ste backpropagates through the decoder, as a baseline.",
  ),
  reinforce: section({
    ...algorithmKeys({ epochs: 1, aggregation: "sum", advantageClip: null, targetKl: null }),
    ...spread,
  }),
  rloo: section({
    ...algorithmKeys({ epochs: 1, aggregation: "sum", advantageClip: null, targetKl: null }),
    minStd,
  }),
  grpo: section({
    ...algorithmKeys({ epochs: 1, aggregation: "mean", advantageClip: 5, targetKl: null }),
    ...clips(0.2, 0.28),
    level: key(z.enum(["token", "sequence"]), "token").describe(
      "Whether there is one importance ratio per token, or one per sequence (GSPO). With sequence set clips of about 3e-4.",
    ),
    scale: key(z.enum(["group", "batch", "none"]), "group").describe(
      "What centered rewards are divided by: the standard deviation of the group or of all rewards, or nothing (as in Dr.GRPO). Set none so that images with small differences do not count as much as others.",
    ),
    objective: key(z.enum(["clip", "cispo"]), "clip").describe(
      "Whether the ratio is clipped (PPO's surrogate), or capped as a weight that keeps the gradient of every token (CISPO). Try cispo with several epochs.",
    ),
    ratioCap: key(positive, 5).describe("Maximum weight of a token with cispo. Set it with cispo only."),
    ...spread,
  }),
  ppo: section({
    ...algorithmKeys({ epochs: 4, aggregation: "mean", advantageClip: null, targetKl: 0.02 }),
    ...clips(0.2, 0.2),
    gamma: key(unit, 1).describe("Discount factor per token. Leave it at 1: sequences are finite."),
    lambda: key(unit, 0.95).describe(
      "Lambda of generalized advantage estimation (GAE): 1 is the full return, 0 a single step. Raise it to 1 while value/explained_variance is low.",
    ),
    valueCoef: key(atLeast0, 0.1).describe(
      "Weight of the value loss. Raise it when values learn too slowly.",
    ),
    valueClip: key(positive.nullable(), 0.2).describe(
      "How far a value may move from its old value in one rollout; null does not clip. Set null when rewards are far larger than 1.",
    ),
    valueLr: key(positive, 1e-4).describe(
      "Learning rate of the value head. Raise it when value/explained_variance stays low.",
    ),
    detachTrunk: flag(true).describe(
      "Whether the gradient of the value loss stops at the value head. Leave it on: a new head harms a shared trunk.",
    ),
    whiten: flag(true).describe(
      "Whether advantages are standardized over the rollout. Switch it off to keep the scale of the reward.",
    ),
  }),
  ste: section({
    tau: key(positive, 1).describe(
      "Gumbel-softmax temperature of the straight-through gradient. Lower it for less bias and more variance.",
    ),
  }),
  update: section({
    miniBatch: size("images").describe(
      "Images per optimizer step, a divisor of rollout.images; null is all. Lower it for several steps per rollout; then clipping and targetKl matter.",
    ),
    microBatch: size("rows").describe(
      "Rows per forward pass: images where a group shares its context, otherwise sequences; null is the whole mini-batch. The gradient does not change. Lower it when the update runs out of memory.",
    ),
    auxCe: key(atLeast0, 0.1).describe(
      "Weight of the cross-entropy loss on the true codes of the images. Do not set 0 with a pixel reward: without this term it ruins a generator (VA-pi's FID rises from 14 to 39, with LPIPS too).",
    ),
    entropyCoef: key(atLeast0, 0).describe(
      "Weight of the entropy bonus. Set 1e-3 when policy/entropy falls towards 0.",
    ),
    entropyTarget: key(positive.nullable(), null, "nats").describe(
      "Entropy per code that the weight of the entropy bonus is steered to: it grows by entropyDelta after each rollout below, shrinks after each above, and the bonus is off above; null keeps entropyCoef. Set it, to about the policy/entropy of the first steps, when no fixed weight holds the entropy.",
    ),
    entropyDelta: key(positive, 1e-4).describe(
      "Step of the weight of the entropy bonus with entropyTarget. Raise it when the entropy falls faster than the weight grows.",
    ),
    topEntropy: key(number.gt(0).max(1), 1).describe(
      "Fraction of the codes of a rollout, those with the highest entropy, that enter the policy loss; 1 is all. Try 0.2 when most codes are certain, and their gradient is noise.",
    ),
    constantGroups: key(z.enum(["keep", "exclude"]), "keep").describe(
      "Whether groups whose rewards are all the same count in the mean of the policy loss. With exclude the others weigh more, so that the step size does not depend on how many groups say nothing.",
    ),
    tokenDropout: key(below1, 0).describe(
      "Probability that a token is dropped from the policy loss. Rarely changed.",
    ),
  }),
  kl: section({
    coef: key(atLeast0, 0).describe(
      "Coefficient of the KL divergence from a frozen reference policy; with 0 no reference is loaded unless kl.stop needs it. Set 1e-3 to 0.1 when samples drift in spite of update.auxCe.",
    ),
    estimator: key(z.enum(["k1", "k2", "k3", "k3_own", "exact"]).nullable(), null).describe(
      "KL estimator; null is k3 with the gradient of k2 in the loss, and k1 in the reward. exact has no sampling noise and needs the reference's logits; k3_own has TRL's gradient.",
    ),
    placement: key(z.enum(["loss", "reward"]).nullable(), null).describe(
      "Where the KL divergence enters; null is the loss, and the reward for ppo. Set it to reproduce another trainer.",
    ),
    path: pathKey().describe(
      "File of the reference policy; null is the policy at the start of training. Give the base model when you continue from a fine-tuned one.",
    ),
    target: key(positive.nullable(), null, "nats per token").describe(
      "Target KL divergence: kl.coef rises while kl/ref is above it and falls while kl/ref is below it; null keeps kl.coef. Set it when one coefficient is too weak late and too strong early.",
    ),
    horizon: key(positive, 10_000, "sequences").describe(
      "Sequences over which a KL error of 20 % or more changes kl.coef by a factor of about 1.2. Lower it for runs of few iterations.",
    ),
    stop: key(positive.nullable(), null, "nats per token").describe(
      "The run ends, with a checkpoint, when the running mean of kl/ref (decay 0.9) exceeds this; null never ends it. Set 0.1 to 1 for unattended runs; with kl.coef 0 the reference is loaded just for this.",
    ),
  }),
  optimizer: section(
    shared.optimizerKeys({ lr: 1e-5, betas: [0.9, 0.95], weightDecay: 0, finalLr: 0.1 }, "iterations"),
  ),
  ema: shared.emaOf(null),
  precision: section({
    policy: shared.precisionKey.describe(
      "Type that the policy's layers compute in; head and losses stay in float32, and auto is bfloat16 on CUDA and float32 on a CPU. Set bfloat16 on CPUs that support it; set float32 when sampling/logp_diff_max exceeds 0.01.",
    ),
    tokenizer: key(z.enum(["float32", "bfloat16"]), "float32").describe(
      "Type that the decoder's convolutions compute in; norms, softmax and the last layer stay in float32, and so does encoding. bfloat16 halves the time of decoding; the first step measures what it costs, and the run ends there if samples or the order of their rewards change too much.",
    ),
    rewards: key(z.enum(["float32", "bfloat16"]), "float32").describe(
      "Type that the convolutions of the reward networks compute in. bfloat16 halves their time; the first step measures what it costs, as for precision.tokenizer.",
    ),
  }),
  eval: section({
    every: key(integer0, 50, "iterations").describe(
      "Interval between evaluations, the first before training; 0 never evaluates. Raise it when time/eval is a large part.",
    ),
    images: key(count, 64, "images").describe(
      "Held-out images to evaluate on, always the same. Raise it when the metrics fluctuate.",
    ),
    numGenerations: key(count, 4, "sequences").describe(
      "Sequences sampled per image. Raise it when the metrics fluctuate.",
    ),
    temperature: key(temperature.nullable(), null).describe(
      "Sampling temperature; null is that of rollout. Set it to watch the policy as it will be used.",
    ),
    topK: key(topK.nullable(), null, "codes").describe(
      "Top-k; null is that of rollout. Set it to watch the policy as it will be used.",
    ),
    topP: key(topP.nullable(), null).describe(
      "Top-p; null is that of rollout. Set it to watch the policy as it will be used.",
    ),
    perceptual: pathKey().describe(
      "File of a second classifier for a perceptual distance that no reward uses (eval/perceptual_held_out); null does not measure it. Set it whenever the reward uses a network: it tells whether another network agrees.",
    ),
    ...shared.bestKeys(
      "eval/reward/mean",
      "max",
      "Take one that is not part of the reward, such as eval/psnr/mean, to notice reward hacking.",
    ),
  }),
  alarm: section({
    action: key(z.enum(["warn", "stop", "rollback"]), "warn").describe(
      "What happens when an evaluation finds the reward higher than at the start and every metric outside it worse: warn says so, stop ends the run with a checkpoint, rollback goes back to the weights of the best evaluation and on from there. Set rollback for unattended runs, with an eval.best that the reward does not contain.",
    ),
  }),
  save: section({
    ...shared.saveKeys(100, 3, "iterations"),
    ckptPath: pathKey().describe(
      "File that the policy's weights are also written to at each checkpoint: safetensors for .safetensors, for .pt, .pth, .ckpt or .bin a dict with them under model, which torch.load reads. Set it for programs that expect the weights at a fixed path.",
    ),
  }),
  log: section({
    ...shared.logKeys(10, 50, "iterations"),
    imageRows: key(count, 16, "images").describe(
      "Images on a page of samples, each with its reconstruction and samples. Rarely changed.",
    ),
  }),
  limits: section({
    ...shared.limitKeys("steps"),
    ratioGap: key(positive, 0.1).describe(
      "Maximum mean |ratio - 1| before the first step of an update; above it sampler and scorer disagree, and the run ends. Raise it a little for bfloat16 policies that train well otherwise.",
    ),
  }),
  train: section({
    iters: key(count, 1000, "iterations").describe(
      "Number of iterations, each a rollout and its update. 60 to 200 show whether a reward works.",
    ),
    ...shared.machineKeys,
  }),
});

/** A whole configuration, every key present. `resolveConfig` makes one. */
export type TrainConfig = z.output<typeof configSchema>;

/** Sections that other folders import separately. */
export type RunConfig = TrainConfig["run"];
export type DataConfig = TrainConfig["data"];
export type TokenizerSection = TrainConfig["tokenizer"];
export type TunedArSection = TrainConfig["ar"];
export type ArSection = Omit<TunedArSection, "lora">;
export type LoraSection = TunedArSection["lora"];
export type OptimizerSection = TrainConfig["optimizer"];
export type EmaSection = TrainConfig["ema"];
export type Precision = TrainConfig["precision"]["policy"];

/** Terms of the reward that `reward.type` can name. */
export type RewardTerm = {
  [K in keyof TrainConfig["reward"]]: TrainConfig["reward"][K] extends { weight: number } ? K : never;
}[keyof TrainConfig["reward"]];
const REWARD_TERMS = keysOf(configSchema).flatMap(({ path: [top, name, last] }) =>
  top === "reward" && last === "weight" ? [name as RewardTerm] : [],
);

/** Names of papers for the mean over tokens, which they all are while sequences have one length. */
const MEANS = { grpo: "mean", bnpo: "mean", dapo: "mean", dr_grpo: "mean" };

/** Values in other spellings, by path. */
export const SPELLINGS = {
  "ar.type": { llammagen: "llamagen" },
  "grpo.aggregation": MEANS,
  "ppo.aggregation": MEANS,
  "reward.normalize": { true: "batch", false: "none" },
  "precision.policy": { bf16: "bfloat16", fp32: "float32" },
  "precision.tokenizer": { bf16: "bfloat16", fp32: "float32" },
  "precision.rewards": { bf16: "bfloat16", fp32: "float32" },
};

/** Other names of keys of tokenizer, policy and optimizer, which `rlar pretrain` has as well. */
export const MODEL_ALIASES = {
  vqModel: ["tokenizer.model"],
  tokenizer: ["tokenizer.model"],
  "ar.lr": ["optimizer.lr"],
  "ar.weightDecay": ["optimizer.weightDecay"],
  "ar.betas": ["optimizer.betas"],
  "ar.attnDropoutP": ["ar.extra.attnDropoutP"],
  "ar.attnPdrop": ["ar.extra.attnPdrop"],
  "ar.captionDim": ["ar.extra.captionDim"],
  "ar.classNum": ["ar.extra.classNum"],
  "ar.clsTokenNum": ["ar.extra.clsTokenNum"],
  "ar.clsTokenNumber": ["ar.extra.clsTokenNumber"],
  "ar.dim": ["ar.extra.dim"],
  "ar.dropPathRate": ["ar.extra.dropPathRate"],
  "ar.embdPdrop": ["ar.extra.embdPdrop"],
  "ar.ffnDim": ["ar.extra.ffnDim"],
  "ar.ffnDropoutP": ["ar.extra.ffnDropoutP"],
  "ar.initializerRange": ["ar.extra.initializerRange"],
  "ar.modelType": ["ar.extra.modelType"],
  "ar.multipleOf": ["ar.extra.multipleOf"],
  "ar.nCodebookEmbd": ["ar.extra.nCodebookEmbd"],
  "ar.nKvHead": ["ar.extra.nKvHead"],
  "ar.normEps": ["ar.extra.normEps"],
  "ar.numClasses": ["ar.extra.numClasses"],
  "ar.residDropoutP": ["ar.extra.residDropoutP"],
  "ar.residPdrop": ["ar.extra.residPdrop"],
  "ar.ropeBase": ["ar.extra.ropeBase"],
  "ar.tokenDrop": ["ar.extra.tokenDrop"],
  "ar.tokenDropoutP": ["ar.extra.tokenDropoutP"],
  "ar.usePretrainedCodebook": ["ar.extra.usePretrainedCodebook"],
} as const;

/** Other names of keys, and the keys that they stand for. */
export const CONFIG_ALIASES = {
  ...MODEL_ALIASES,
  "reward.type": REWARD_TERMS.map((name) => `reward.${name}.weight`),
  "reward.custom.fn": ["reward.custom.custom.fn"],
  "reward.custom.weight": ["reward.custom.custom.weight"],
  "grpo.enabled": ["algorithm"],
  "grpo.numGenerations": ["rollout.numGenerations"],
  "grpo.clipRange": ["grpo.clipLow", "grpo.clipHigh"],
  "ppo.clipRange": ["ppo.clipLow", "ppo.clipHigh"],
  "train.logEvery": ["log.every"],
  "train.saveEvery": ["save.every"],
  "train.ckptPath": ["save.ckptPath"],
  "rollout.context": ["rollout.context.type"],
  "rollout.guidance": ["rollout.guidance.scale"],
} as const;

/** Defaults of the original description, which a run with `grpo.enabled` takes unless they are set. */
const ORIGINAL: Readonly<Record<string, unknown>> = {
  "update.auxCe": 0,
  "grpo.clipLow": 0.2,
  "grpo.clipHigh": 0.2,
  "grpo.advantageClip": null,
  "optimizer.schedule": "constant",
  "optimizer.warmup": 0,
};

/** Names whose value means another value under the key that they stand for. */
export const MEANINGS: Readonly<Record<string, (value: unknown) => Meaning>> = {
  "grpo.enabled": (value) => {
    if (typeof value !== "boolean") return { expected: "true or false" };
    return [
      { path: "algorithm", value: value ? "grpo" : "reinforce" },
      ...Object.entries(ORIGINAL).map(([path, given]) => ({ path, value: given, rank: "default" as const })),
    ];
  },
  // Sets the other weights to 0, unless they are given too.
  "reward.type": (value) => {
    const name = (typeof value === "string" ? value : "").replace(/[_-]([a-z])/g, (_, letter: string) =>
      letter.toUpperCase(),
    );
    if (!REWARD_TERMS.some((term) => term === name)) return { expected: `one of ${REWARD_TERMS.join(", ")}` };
    return REWARD_TERMS.map((term) => ({
      path: `reward.${term}.weight`,
      value: term === name ? 1 : 0,
      rank: "weak" as const,
    }));
  },
};

/**
 * What a program passes: any part of a {@link TrainConfig}. Keys may be in camelCase or snake_case, and have the other
 * names that `rlar config explain` lists, so that a configuration in the form of the original description compiles:
 * `const cfg: TrainConfigInput = { ... }`.
 */
export type TrainConfigInput = ConfigInput<
  typeof configSchema,
  AliasValues<typeof configSchema, Omit<typeof CONFIG_ALIASES, keyof OtherValues>> &
    SpelledValues<typeof SPELLINGS> &
    OtherValues
>;

/** Values of other names that are not those of the key that they stand for. */
interface OtherValues {
  "reward.type": RewardTerm | SnakeCase<RewardTerm>;
  "reward.custom.fn": RewardFunction | null;
  "reward.custom.weight": number;
  "grpo.enabled": boolean;
}

/** Keys that may change between the parts of a run: they say where it goes and what is shown, not what it computes. */
const FREE =
  /^(preset|run\..*|data\.(source|workers)|ar\.gradientCheckpointing|eval\.(every|patience)|train\.(timeout|shardOptimizer)|(save|log|limits|alarm)\..*|reward\.(custom|http)\.[^.]+\.timeout|reward\.http\.[^.]+\.(url|retries|concurrency|tokenEnv))$/;

/** Keys that a checkpoint's weights decide, so that a resumed run cannot take other values. */
const FIXED =
  /^(ar\.(type|path|wrapper|weights|nLayer|nHead|nEmbd|extra|extra\..*|cls|policy|lora\.(rank|targets))|blockSize|model\..*|loss\.gan\.path|classifier\.(widths|depth))$/;

/** What a change of a key of any command does to a resumed run, but for the length of the run. */
export function resumedBy(path: string): Resumed {
  if (FREE.test(path)) return "free";
  return FIXED.test(path) ? "fixed" : "forced";
}
