/**
 * The configuration of `rlar train`: its keys with their types, defaults and descriptions, and what may change when a run is
 * resumed. Other names of keys are in `names.ts`, what keys require of each other in `rules.ts`; `train_kind.ts` puts all
 * of it together.
 */
import * as z from "zod";
import type { Loader } from "../data/index.js";
import type { Tensor } from "../torch/index.js";
import { key, liveKey, namedSections, pathKey, section } from "./key.js";
import type { Resumed } from "./kind.js";
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
      "Rank of LoRA adapters, which are trained instead of the policy's weights; null trains the weights themselves. Set 8 to 64 when the optimizer's state and the reference do not fit in memory; raise the learning rate about tenfold.",
    ),
    alpha: key(positive.nullable(), null).describe(
      "LoRA scaling: the adapters' output is multiplied by alpha / rank; null is the rank. Keep it when you change the rank; then the learning rate need not change.",
    ),
    targets: key(strings.nullable(), null).describe(
      "Layers that get adapters, by the end of their name, such as wqkv; null is every linear layer of the transformer blocks. Set it to adapt only attention, or the output head as well.",
    ),
  }),
});

const context = section({
  type: key(z.enum(["free", "prefix", "teacher_forced", "noisy_teacher_forced"]), "free").describe(
    "What the policy is conditioned on when it draws a code: the codes that it drew before (free), some true codes and then its own (prefix), all true codes before this one (teacher_forced), or these with noise (noisy_teacher_forced). free is how the policy will be used, teacher_forced costs far less, prefix is in between.",
  ),
  length: key(integer0.nullable(), null, "codes").describe(
    "Number of true codes at the start of a prefix context; null is half of the codes of an image. Lower it when completions are already good.",
  ),
  shortest: key(integer0.nullable(), null, "codes").describe(
    "Shortest prefix: the length of each image's prefix is drawn uniformly from shortest to rollout.context.length; null gives all images rollout.context.length codes. Set it to train one policy for completions of several lengths.",
  ),
  free: key(below1, 0).describe(
    "Probability that an image gets no prefix in a prefix context. Set it, for example to 0.25, when a policy trained for completions should also stay good at whole images.",
  ),
  noise: key(unit, 0.5).describe(
    "Probability that noisy_teacher_forced replaces a true code by a uniformly random code. Lower it, or set rollout.context.ramp, for a policy that was pre-trained without noise: 0.5 from the start ruins such a policy.",
  ),
  ramp: key(integer0, 0, "iterations").describe(
    "Iterations over which the noise rises from 0 to rollout.context.noise, or the prefix shrinks from all codes but one to rollout.context.length. Set a quarter of train.iters when the reward falls at the start of a run.",
  ),
});

const guidance = section({
  scale: key(number, 1).describe(
    "Scale of classifier-free guidance in rollouts and updates; 1 is no guidance and halves the work. Raise it when the policy will be sampled with guidance.",
  ),
  schedule: key(z.enum(["constant", "power_cosine"]), "constant").describe(
    "How the guidance scale changes along the sequence: constant, or rising from 1 (power_cosine). Use the one that images will be sampled with.",
  ),
  power: key(positive, 1).describe(
    "Exponent of the power_cosine schedule; above 1 the scale rises later in the sequence. Set it with power_cosine only.",
  ),
  interval: key(z.tuple([integer0, integer0]).readonly().nullable(), null, "codes").describe(
    "Positions [from, to) of the codes that are drawn with guidance; null is all. Rarely changed.",
  ),
});

const rollout = section({
  images: key(count, 16, "images").describe(
    "Images per rollout (B), over all processes. Raise it to lower the variance of the gradient; time and memory grow with it.",
  ),
  numGenerations: key(count, 8, "sequences").describe(
    "Sequences sampled per image (G), the group within which rewards are compared. Lower it to 4 when decoding takes most of the time; below 4 the baseline is noisy.",
  ),
  redraws: key(integer0, 0, "rollouts").describe(
    "Maximum number of additional rollouts per step, with new images, whose groups replace groups with equal rewards (DAPO's dynamic sampling); 0 makes none. Set 1 to 3 when advantage/frac_zero_std is large, as with rewards that have few distinct values; each costs as much as the first rollout.",
  ),
  context,
  start: key(z.enum(["condition", "empty"]), "condition").describe(
    "What a sequence is conditioned on at its start: the class or text of the image (condition), or nothing (empty). Set empty for an unconditional policy.",
  ),
  maxLen: size("codes").describe(
    "Length of a sequence, including given codes; null is the number of codes of an image. Leave it at null: the decoder needs all codes of an image.",
  ),
  temperature: key(temperature, 1).describe(
    "Sampling temperature: logits are divided by it in rollouts and updates. Leave it at 1 unless the policy will always be sampled at another temperature.",
  ),
  topK: key(topK, 0, "codes").describe(
    "Sample only from the k most likely codes; 0 is all. Leave it at 0: the other codes get no gradient.",
  ),
  topP: key(topP, 1).describe(
    "Sample only from the most likely codes whose total probability reaches this value; 1 is all. Leave it at 1: the other codes get no gradient.",
  ),
  guidance,
  microBatch: size("images").describe(
    "Images sampled at a time; null is all. Results do not change. Lower it when sampling runs out of memory.",
  ),
  keepGraph: flag(false).describe(
    "Whether the update backpropagates through the rollout's forward pass instead of computing it again; only for teacher-forced contexts with one optimizer step per rollout. Switch it on if the activations of all images fit in memory; it saves a third of the policy's FLOPs.",
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
      "Text for a class if the data has no captions; {} stands for the name of the class. Set it to a form that the encoder was trained with.",
    ),
  });

/** Keys of a term of the user's own. */
const ownTerm = (of: string, timeout: number, per: string) => ({
  weight: weightOf(1, `${of}; 0 disables the term. Set it to balance the terms: it multiplies the score.`),
  normalize: key(NORMALIZERS.nullable(), null).describe(
    "Whether this term is standardized over the rollout (batch) or over each group before it is weighted; null is reward.normalize. Set it for a term whose scale differs from the others'.",
  ),
  clamp: key(z.tuple([number, number]).readonly().nullable(), null).describe(
    "Range [lowest, highest] that scores are clamped to before normalization and weight; the log has the unclamped scores. Set it when rare extreme scores dominate the gradient.",
  ),
  timeout: key(positive, timeout, "seconds").describe(`Maximum time of ${per}. Raise it for a slow reward.`),
});

const reward = section({
  normalize: key(NORMALIZERS, "none").describe(
    "Whether each term is standardized (mean 0, standard deviation 1) over the rollout (batch) or over each group (group) before it is weighted. Set group when terms differ in scale: perceptual distances are often ten times the squared error.",
  ),
  credit: key(z.enum(["sequence", "place"]), "sequence").describe(
    "What a code is credited with: the reward of the whole image (sequence), or the rewards of its own patch of pixels and of later patches (place). With place the codes of an image get different advantages; it needs a term that has a value per pixel: l1, l2, ssim, lpips or perceptual. Other terms count at every place.",
  ),
  creditDecay: key(unit, 0.5).describe(
    "With reward.credit=place: discount per place for the rewards of later places; 0 credits a code only with its own place, 1 equally with all later places. Raise it for free and prefix contexts, where later codes depend on this one; ppo uses ppo.lambda instead.",
  ),
  l1: term(
    0,
    "the negative mean absolute error of pixels; 0 disables the term. Prefer it to l2 when a few pixels with large errors dominate.",
  ),
  l2: term(
    1,
    "the negative mean squared error of pixels; 0 disables the term. Set 0 when another term serves better.",
  ),
  psnr: term(
    0,
    "the peak signal-to-noise ratio in dB; 0 disables the term. Use it in place of l2 when the errors of images differ by orders of magnitude.",
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
    "the negative perceptual distance in the features of a classifier from rlar classifier; 0 disables the term. Use it in place of LPIPS for small images that are not photographs; check the scales of the terms before you mix them.",
    "a classifier from rlar classifier",
  ),
  latentCosine: term(
    0,
    "the negative of 1 - cosine similarity between the vectors of the drawn codes and the latents of the image; 0 disables the term. Rarely used.",
  ),
  patchGan: network(
    "the mean logit of a frozen PatchGAN discriminator; 0 disables the term. Add it with a small weight when samples lack detail.",
    "a discriminator from the training of a tokenizer",
  ),
  kernel: section({
    weight: weightOf(
      0,
      "how much more alike a sample is to training images than to samples of other images (its share of the kernel distance); 0 disables the term. Add it when the samples' Fréchet distance rises while they come closer to their images.",
    ),
    path: pathKey().describe(
      "File of a network of features: a classifier from rlar classifier, CLIP, SigLIP or TokLIP. Required when the weight is not 0.",
    ),
    kernel: key(z.enum(["polynomial", "rbf"]), "polynomial").describe(
      "How alike two vectors of features are: polynomial is the cubic kernel of the KID, rbf a Gaussian as wide as the training images are apart. Set rbf when a few features are much larger than the others.",
    ),
    images: key(z.int().min(2), 2048, "images").describe(
      "Maximum number of training images to compare with, described once at the start. Lower it when the start takes long.",
    ),
  }),
  toklipImage: network(
    "the cosine between TokLIP's embeddings of the sampled and of the true codes; 0 disables the term. Use it to keep the content of the image; it needs no decoding.",
    "a TokLIP that uses the tokenizer's codes",
  ),
  toklipText: textNetwork(
    "the cosine between TokLIP's embeddings of the sampled codes and of the text; 0 disables the term. Use it so that samples show what their caption or class says; it needs no decoding.",
    "a TokLIP that uses the tokenizer's codes, with the tokenizer.json of SigLIP 2 in the same folder",
  ),
  clip: textNetwork(
    "the cosine between CLIP's or SigLIP's embeddings of the sample and of the text; 0 disables the term. Use it so that samples show what their caption or class says.",
    "a CLIP or SigLIP with its text tower, or its folder",
  ),
  aesthetic: section({
    weight: weightOf(
      0,
      "LAION's aesthetic score, about 1 to 10; 0 disables the term. Use it together with a term that keeps the content of the image.",
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
      "one call; after it the run ends with a checkpoint (only a function that returns a promise can be interrupted)",
    ),
    module: pathKey().describe(
      "JavaScript module whose default export is the reward, a function of images, samples and context (docs/extending.md). Use it from the command line or a file; a run does not resume if the content of the file has changed, unless forced.",
    ),
    fn: liveKey<RewardFunction>("a function of images, samples and context", isFunction).describe(
      "The reward as a function. Pass one from a program, in place of a module.",
    ),
  }),
  http: namedSections({
    ...ownTerm(
      "the reward of a server",
      60,
      "one request; after it the request is sent again, at most retries times",
    ),
    url: key(shared.text.nullable(), null).describe(
      "Address of a reward server: http for this machine, https for any other (docs/reward_servers.md). Requests are sent to /score below this address.",
    ),
    reward: key(shared.text.nullable(), null).describe(
      "Name of the reward on the server; null is NAME. Set it to use another name in the log than on the server.",
    ),
    metric: key(shared.text.nullable(), null).describe(
      "Which score to use if the server returns several for one reward; null is the only one, or the one with the reward's name. Set it for servers that return several.",
    ),
    batch: key(count, 16, "samples").describe(
      "Samples in one request. Raise it when the server scores large batches faster.",
    ),
    concurrency: key(count, 4, "requests").describe(
      "Maximum number of requests at the same time. Raise it when the server has several workers.",
    ),
    retries: key(integer0, 5).describe(
      "How often a failed request is sent again, after 0.5, 1, 2, 4, ... seconds, at most 30. Raise it for a server that is restarted during a run.",
    ),
    tokenEnv: key(shared.text.nullable(), null).describe(
      "Environment variable with a bearer token for the server; null sends none. The token itself is never written to a file or a message.",
    ),
  }),
  chunk: size("samples").describe(
    "Samples per forward pass of a reward network; null is about two million pixels. Lower it when rewards run out of memory.",
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
    "How the losses of tokens are averaged: mean over all tokens (mean), or sum over the tokens of a sequence and mean over sequences (sum). Rarely changed: all sequences have the same length, so grpo, bnpo, dapo and dr_grpo are accepted as other names of mean.",
  ),
  advantageClip: key(positive.nullable(), defaults.advantageClip).describe(
    "Maximum absolute advantage; null does not clip. Lower it when a few samples dominate the gradient.",
  ),
  targetKl: key(positive.nullable(), defaults.targetKl, "nats per token").describe(
    "KL divergence of the updated policy from the one that sampled; if it exceeds 1.5 times this value, the remaining optimizer steps on the rollout are skipped; null never skips them. Set it with several epochs or mini-batches.",
  ),
});

const minStd = key(atLeast0, 1e-6).describe(
  "Groups whose rewards have a standard deviation of at most this fraction of their largest |reward| get advantage 0. Raise it if advantage/frac_zero_std is 0 although the rewards of some groups differ only by rounding.",
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
    "Upper clip range: the ratio is clipped at 1 + clipHigh. Set it above clipLow to let the probability of rare codes rise more; entropy then falls more slowly.",
  ),
  dualClip: key(number.gt(1).nullable(), null).describe(
    "Dual clip: with negative advantages the loss is at most this times |advantage|; null is no limit. Set 3 when the gradient norm spikes with several epochs.",
  ),
});

/** The zod schema of a whole configuration. */
export const configSchema = section({
  preset: key(shared.text.describe("seed, vapi or completion").nullable(), null).describe(
    "Preset whose values override the defaults. Start with completion; vapi and seed follow published descriptions.",
  ),
  seed: shared.seed,
  run: shared.run,
  data: shared.data,
  dataloader: liveKey<Loader>(
    "an iterable of images or batches, or a function that returns one",
    (value) =>
      isFunction(value) || (isNotPrimitive(value) && ITERATORS.some((of) => of in (value as object))),
  ).describe(
    "Batches of training images, in place of data.source. Pass one from a program for data in a format that data.source does not read.",
  ),
  tokenizer: shared.tokenizer,
  ar: tunedAr,
  blockSize: shared.blockSize,
  rollout,
  reward,
  algorithm: key(z.enum(["reinforce", "rloo", "grpo", "ppo", "ste"]), "grpo").describe(
    "Algorithm; its options are in the section of the same name, and the sections of other algorithms are ignored. rloo has the fewest options, reinforce works with one sequence per image, ppo suits several optimizer steps per rollout, and ste is a baseline that backpropagates the reward through the decoder.",
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
      "Whether there is one importance ratio per token, or one per sequence (GSPO). With sequence, set clipLow and clipHigh to about 3e-4.",
    ),
    scale: key(z.enum(["group", "batch", "none"]), "group").describe(
      "What rewards minus their group's mean are divided by: the standard deviation of the group (group) or of all rewards (batch), or nothing (none, as in Dr. GRPO). Set batch or none if images whose samples differ little should count less.",
    ),
    objective: key(z.enum(["clip", "cispo"]), "clip").describe(
      "Policy loss: PPO's surrogate with a clipped ratio (clip), or CISPO, in which the capped ratio is a constant weight and every token keeps its gradient (cispo). Try cispo with several epochs.",
    ),
    ratioCap: key(positive, 5).describe("Maximum weight of a token with cispo. Set it with cispo only."),
    ...spread,
  }),
  ppo: section({
    ...algorithmKeys({ epochs: 4, aggregation: "mean", advantageClip: null, targetKl: 0.02 }),
    ...clips(0.2, 0.2),
    gamma: key(unit, 1).describe("Discount factor per token. Leave it at 1: sequences are finite."),
    lambda: key(unit, 0.95).describe(
      "Lambda of generalized advantage estimation (GAE): 1 uses the full return, 0 only the one-step error. Raise it to 1 while value/explained_variance is low.",
    ),
    valueCoef: key(atLeast0, 0.1).describe(
      "Weight of the value loss. Raise it when values learn too slowly.",
    ),
    valueClip: key(positive.nullable(), 0.2).describe(
      "Clip range of the value loss: how far a value may move from its value before the update; null does not clip. Set null when rewards are far larger than 1.",
    ),
    valueLr: key(positive, 1e-4).describe(
      "Learning rate of the value head. Raise it when value/explained_variance stays low.",
    ),
    detachTrunk: flag(true).describe(
      "Whether the value loss trains only the value head, not the policy's hidden states. Leave it on: the gradient of a new value head harms the policy.",
    ),
    whiten: flag(true).describe(
      "Whether advantages are standardized (mean 0, standard deviation 1) over the rollout. Switch it off to keep the scale of the reward.",
    ),
  }),
  ste: section({
    tau: key(positive, 1).describe(
      "Temperature of the Gumbel-softmax whose gradient is used. Lower it for less bias and more variance.",
    ),
  }),
  update: section({
    miniBatch: size("images").describe(
      "Images per optimizer step, a divisor of rollout.images; null is all. Lower it for several optimizer steps per rollout; clipping and targetKl then have an effect.",
    ),
    microBatch: size("rows").describe(
      "Rows per forward pass: images where a group shares its context, otherwise sequences; null is the whole mini-batch. The gradient does not change. Lower it when the update runs out of memory.",
    ),
    auxCe: key(atLeast0, 0.1).describe(
      "Weight of the cross-entropy loss on the true codes of the images. Do not set 0 with a pixel reward: without this term it ruins a generator (in VA-pi, FID rises from 14 to 39, although the reward has LPIPS too).",
    ),
    codeDistance: key(atLeast0, 0).describe(
      "Weight of the expected distance between the code that is drawn and the true one: over all codes, their probability times how far what they stand for is from what the true code stands for, in what reward.l2, reward.perceptual and reward.lpips compare; 1 is the mean distance of two codes. It knows all codes, not only those that were drawn, so its gradient has far less noise than the rewards'. At the start up to 2,048 training images are encoded for it. Set 0.5 to 1.2 beside rewards that compare samples with images, with update.codeFrequency; lower it when samples lose variety or realism.",
    ),
    codeFrequency: key(atLeast0, 0).describe(
      "Weight of the KL divergence of how often the policy draws each code from how often images have it, both counted over the run so far: over all codes, their probability times the logarithm of the two frequencies' ratio. It holds the look of samples as a whole, which rewards that compare each sample with its image do not see. Set 0.5 beside such rewards, with rollout.temperature at the temperature that you sample with; lower it when samples come no closer to their images.",
    ),
    entropyCoef: key(atLeast0, 0).describe(
      "Weight of the entropy bonus. Set 1e-3 when policy/entropy falls towards 0.",
    ),
    entropyTarget: key(positive.nullable(), null, "nats").describe(
      "Target of policy/entropy: after each rollout with a lower entropy the weight of the entropy bonus grows by update.entropyDelta, after each with a higher one it shrinks, and the bonus is off while the entropy is higher; null keeps update.entropyCoef. Set it to about the policy/entropy of the first steps if no fixed weight keeps the entropy stable.",
    ),
    entropyDelta: key(positive, 1e-4).describe(
      "With update.entropyTarget: change of the weight of the entropy bonus per rollout. Raise it when the entropy falls faster than the weight grows.",
    ),
    topEntropy: key(number.gt(0).max(1), 1).describe(
      "Fraction of the codes of a rollout, those with the highest entropy, that enter the policy loss; 1 is all. Try 0.2 when the policy is certain of most codes, so that their gradient is mostly noise.",
    ),
    constantGroups: key(z.enum(["keep", "exclude"]), "keep").describe(
      "Whether groups whose rewards are all the same (after rollout.redraws) count in the mean of the policy loss. With exclude the other groups get a larger weight, so that the size of the gradient does not depend on the number of such groups.",
    ),
    tokenDropout: key(below1, 0).describe(
      "Probability that a token is dropped from the policy loss. Rarely changed.",
    ),
  }),
  kl: section({
    coef: key(atLeast0, 0).describe(
      "Coefficient of the KL divergence from a reference policy; with 0 no reference is loaded unless kl.stop needs it. Set 1e-3 to 0.1 when samples drift in spite of update.auxCe.",
    ),
    estimator: key(z.enum(["k1", "k2", "k3", "k3_own", "exact"]).nullable(), null).describe(
      "KL estimator; null is k3 in the loss (with the gradient of k2), and k1 in the reward. exact has no sampling noise but compares all logits; k3_own is k3 with its own gradient, as in TRL.",
    ),
    placement: key(z.enum(["loss", "reward"]).nullable(), null).describe(
      "Whether the KL divergence is added to the loss or subtracted from the reward; null is reward for ppo, loss for the other algorithms. Set it to reproduce another trainer.",
    ),
    path: pathKey().describe(
      "File of the reference policy; null is the policy at the start of training. Give the base model when you continue to train a fine-tuned one.",
    ),
    refreshEvery: key(integer0, 0, "iterations").describe(
      "Interval between updates of the reference towards the current policy; 0 keeps the reference frozen. Set it for long runs, in which the KL divergence from the initial policy would limit learning.",
    ),
    refreshMix: key(number.gt(0).max(1), 0.6).describe(
      "Weight of the policy in an update of the reference: reference = refreshMix * policy + (1 - refreshMix) * reference; 1 copies the policy. Set 0.01 with kl.refreshEvery=1 to make the reference an exponential moving average of the policy.",
    ),
    target: key(positive.nullable(), null, "nats per token").describe(
      "Target KL divergence: kl.coef rises while kl/ref is above it and falls while kl/ref is below it; null keeps kl.coef. Set it if a fixed coefficient is too strong early and too weak late.",
    ),
    horizon: key(positive, 10_000, "sequences").describe(
      "Sequences over which a KL error of 20 % or more changes kl.coef by a factor of about 1.2. Lower it for runs of few iterations.",
    ),
    stop: key(positive.nullable(), null, "nats per token").describe(
      "The run ends, with a checkpoint, when the running mean of kl/ref (decay 0.9) exceeds this value; null never ends it. Set 0.1 to 1 for unattended runs; with kl.coef=0 it costs the memory and time of a reference.",
    ),
  }),
  optimizer: section(
    shared.optimizerKeys({ lr: 1e-5, betas: [0.9, 0.95], weightDecay: 0, finalLr: 0.1 }, "iterations"),
  ),
  ema: shared.emaOf(null),
  precision: section({
    policy: shared.precisionKey.describe(
      "Dtype that the policy's layers compute in; output head and losses stay in float32, and auto is bfloat16 on CUDA and float32 on a CPU. Set bfloat16 on CPUs that support it; set float32 when sampling/logp_diff_max exceeds 0.01.",
    ),
    tokenizer: key(z.enum(["float32", "bfloat16"]), "float32").describe(
      "Dtype that the decoder's convolutions compute in; norms, softmax, the last layer and the encoder stay in float32. bfloat16 halves the time of decoding; the first step measures the loss of accuracy, and the run ends if images or the order of their rewards change too much.",
    ),
    rewards: key(z.enum(["float32", "bfloat16"]), "float32").describe(
      "Dtype that the convolutions of the reward networks compute in. bfloat16 halves their time; the first step measures the loss of accuracy, as for precision.tokenizer.",
    ),
    tf32: flag(false).describe(
      "Whether float32 matrix products and convolutions on CUDA may use TF32, which has 10 bits of mantissa. Switch it on when float32 is too slow on a GPU.",
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
      "Sampling temperature of evaluations; null is that of rollout. Set it to evaluate the policy at the temperature at which it will be used.",
    ),
    topK: key(topK.nullable(), null, "codes").describe(
      "Top-k of evaluations; null is that of rollout. Set it to evaluate the policy with the value with which it will be used.",
    ),
    topP: key(topP.nullable(), null).describe(
      "Top-p of evaluations; null is that of rollout. Set it to evaluate the policy with the value with which it will be used.",
    ),
    perceptual: pathKey().describe(
      "File of a second classifier for a perceptual distance that no reward uses (eval/perceptual_held_out); null does not measure it. Set it whenever the reward uses a network, to see whether another network agrees.",
    ),
    ...shared.bestKeys(
      "eval/reward/mean",
      "max",
      "Choose one that is not part of the reward, such as eval/psnr/mean, so that reward hacking does not choose the checkpoint.",
    ),
  }),
  alarm: section({
    action: key(z.enum(["warn", "stop", "rollback"]), "warn").describe(
      "What happens when an evaluation shows reward hacking, which means a higher reward than at the start while every metric outside the reward is worse: warn prints a warning, stop ends the run with a checkpoint, rollback continues from the weights of the best evaluation. Set rollback for unattended runs, with an eval.best that is not part of the reward.",
    ),
  }),
  save: section({
    ...shared.saveKeys(100, 3, "iterations"),
    ckptPath: pathKey().describe(
      "File to which the policy's weights are also written at each checkpoint: .safetensors, or .pt, .pth, .ckpt or .bin with a dict for torch.load that has the weights under model. Set it for programs that expect the weights at a fixed path.",
    ),
  }),
  log: section({
    ...shared.logKeys(10, 50, "iterations"),
    imageRows: key(count, 16, "images").describe(
      "Images in a picture of samples, each with its reconstruction and samples. Rarely changed.",
    ),
  }),
  limits: section({
    ...shared.limitKeys("steps"),
    ratioGap: key(positive, 0.1).describe(
      "Maximum mean of |ratio - 1| before the first optimizer step on a rollout; above it the log-probabilities of rollout and update disagree, and the run ends. Raise it a little for bfloat16 policies that train well otherwise.",
    ),
  }),
  train: section({
    iters: key(count, 1000, "iterations").describe(
      "Number of iterations, each a rollout and an update. 60 to 200 are enough to see whether a reward works.",
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
