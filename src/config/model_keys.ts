/**
 * Keys of what a run is made of: where it is kept, images, tokenizer, policy, rollout and reward. Those of learning
 * are in `update_keys.ts`.
 */
import * as z from "zod";
import { key, liveKey, section } from "./key.js";
import { count, text } from "./shared_keys.js";
import type {
  ArSection,
  ContextSection,
  DataConfig,
  GuidanceSection,
  LoraSection,
  NetworkTerm,
  RewardFunction,
  RewardSection,
  RewardTerm,
  RolloutSection,
  RunConfig,
  TokenizerSection,
  TrainConfig,
  TunedArSection,
} from "./types.js";

const number = z.number();
const part = z.number().min(0).max(1);
const record = z.record(z.string(), z.unknown());

const isObject = (value: unknown): boolean => typeof value === "object" && value !== null;
const isFunction = (value: unknown): boolean => typeof value === "function";
const isIterable = (value: unknown): boolean =>
  isObject(value) && (Symbol.iterator in Object(value) || Symbol.asyncIterator in Object(value));
const has = (value: unknown, method: string): boolean =>
  isObject(value) && isFunction((value as Record<string, unknown>)[method]);

export const run: z.ZodType<RunConfig> = section<RunConfig>({
  dir: key(
    text.nullable(),
    null,
    "folder that holds everything of the run; null makes one under runs/ named by date and preset",
    "Name it to find the run again, or to resume it.",
  ),
  ifExists: key(
    z.enum(["ask", "resume", "new", "overwrite", "fail"]),
    "ask",
    "what to do when the folder holds a run; ask is fail where nobody can answer, new takes the name with a number",
    "Set resume in scripts that may be started again.",
  ),
});

export const data: z.ZodType<DataConfig> = section<DataConfig>({
  source: key(
    text.nullable(),
    null,
    "folder, tar shards, parquet, IDX or code files of the training images, or a pattern of such files",
    "Always, unless a program passes a dataloader.",
  ),
  evalSource: key(
    text.nullable(),
    null,
    "images to evaluate on; null sets some of the source apart",
    "Give it when there is a validation set of its own.",
  ),
  evalPart: key(
    z.number().min(0).lt(1),
    0.1,
    "part of the source that is set apart and never trained on, chosen by the images' identities",
    "Lower it for large sets; 0 trains on all and needs evalSource, or eval.every at 0. It stays apart when eval.every is 0.",
  ),
  label: key(
    text.nullable(),
    null,
    "what holds the class: a parquet column, an ending of tar members, a tensor of a code file; none puts all in one",
    "Set it when the class is not found, or the wrong one is.",
  ),
  image: key(
    text.nullable(),
    null,
    "what holds the image: a parquet column, an ending of tar members, a tensor of a code file",
    "Set it when there are several, or none is found.",
  ),
  classNames: key(
    z.array(text).nullable(),
    null,
    "all classes in the order of the policy's ids; null takes those of the set in the order of their names",
    "Give it when the set has only some of the classes that the policy knows.",
  ),
  size: key(
    count,
    256,
    "side of the square images",
    "Make it the size that the tokenizer was trained for.",
    "px",
  ),
  crop: key(
    z.enum(["center", "smallest_side"]),
    "center",
    "how an image becomes a square: after halving by boxes, or one resize of the smallest side",
    "Take the one that the policy was trained with.",
  ),
  flip: key(
    z.boolean(),
    false,
    "mirror half of the training images",
    "Switch it on where left and right mean the same and the set is small.",
  ),
  balance: key(
    z.number().min(0).max(1),
    0,
    "how far classes are evened out in training: 0 shows every image as often, 1 every class",
    "Raise it when a few classes have most of the images, and the others matter as much.",
  ),
  group: key(
    text.nullable(),
    null,
    "regular expression that finds, in an image's identity, what must not be on both sides of the split",
    "Give it when the set has several images of one thing, such as one design in several styles.",
  ),
  featureTokens: key(
    count.nullable(),
    null,
    "tokens that text features are padded to; null is the most of a batch",
    "Set it to what a text-conditional policy was trained with.",
    "tokens",
  ),
  maxUnreadable: key(
    z.int().min(0).nullable(),
    null,
    "images that may be passed over because they cannot be read; null is one in a hundred",
    "Raise it for sets that were downloaded and never looked at.",
    "images",
  ),
  workers: key(
    count.nullable(),
    null,
    "threads that decode images; null is one for each processor but one, at most 8",
    "Raise it when time/data is not near 0.",
  ),
});

export const dataloader: z.ZodType<TrainConfig["dataloader"]> = liveKey<
  NonNullable<TrainConfig["dataloader"]>
>(
  "an iterable of images or batches, or a function that makes one",
  (value) => isIterable(value) || isFunction(value),
  "batches of images from a program, in place of data.source",
  "Pass one for data that no reader here knows.",
);

export const tokenizer: z.ZodType<TokenizerSection> = section<TokenizerSection>({
  path: key(
    text.nullable(),
    null,
    "file of the frozen tokenizer: IBQ, VQ-16, VQ-8, TokLIP or one of ours",
    "Always, unless a program passes the model.",
  ),
  wrapper: key(
    text.nullable(),
    null,
    "key of the state dict in the file; null finds it",
    "Set it when a file holds several and the wrong one is taken.",
  ),
  weights: key(
    z.enum(["ema", "raw"]).nullable(),
    null,
    "the running average of the weights or those of the last step; null prefers the average",
    "Set raw to compare with results that were measured so.",
  ),
  config: key(
    record,
    {},
    "what the file's shapes do not tell, such as lookup: l2 for taming's VQGAN",
    "Set it when rlar inspect shows the wrong architecture.",
  ),
  model: liveKey<NonNullable<TokenizerSection["model"]>>(
    "a tokenizer with encode and decodeCode",
    (value) => has(value, "encode") && has(value, "decodeCode"),
    "a loaded tokenizer, in place of path",
    "Pass one from a program.",
  ),
  decodeBatch: key(
    count.nullable(),
    null,
    "images decoded at a time; null is 8",
    "Lower it when decoding runs out of memory; 1 is often fastest on a CPU.",
    "images",
  ),
});

const arKeys: { readonly [K in keyof ArSection]-?: z.ZodType<ArSection[K]> } = {
  type: key(
    z.enum(["gpt", "llamagen"]).nullable(),
    null,
    "family of a new policy; with path the file tells",
    "Set it to train a policy that has no weights yet.",
  ),
  path: key(
    text.nullable(),
    null,
    "file of the policy: minGPT, LlamaGen, IBQ's transformer or one of ours; null makes a new one",
    "Always when fine-tuning.",
  ),
  wrapper: key(
    text.nullable(),
    null,
    "key of the state dict in the file; null finds it",
    "Set it when a file holds several and the wrong one is taken.",
  ),
  nLayer: key(count.nullable(), null, "layers of a new policy", "Together with type."),
  nHead: key(
    count.nullable(),
    null,
    "attention heads of a new policy, or of a file that does not tell",
    "Together with type, or when the file is refused for lack of it.",
  ),
  nEmbd: key(count.nullable(), null, "width of a new policy", "Together with type."),
  extra: key(
    record,
    {},
    "further options of the policy's class, such as classNum or nKvHead",
    "When the class has an option that is not listed here.",
  ),
  cls: liveKey<NonNullable<ArSection["cls"]>>(
    "a class of policies",
    isFunction,
    "class to build the policy from, in place of the one that type names",
    "Pass a policy of your own design from a program.",
  ),
  policy: liveKey<NonNullable<ArSection["policy"]>>(
    "a policy with hidden and logits",
    (value) => has(value, "hidden") && has(value, "logits"),
    "a policy that is there already, in place of path and type",
    "Pass one from a program.",
  ),
  gradientCheckpointing: key(
    z.boolean(),
    false,
    "compute the blocks again in the backward pass instead of keeping what they computed",
    "Switch it on when an update runs out of memory and microBatch is 1 already.",
  ),
};

export const ar: z.ZodType<ArSection> = section<ArSection>(arKeys);

/** {@link ar} for a policy that is fine-tuned. */
export const tunedAr: z.ZodType<TunedArSection> = section<TunedArSection>({
  ...arKeys,
  lora: section<LoraSection>({
    rank: key(
      count.nullable(),
      null,
      "width of low-rank adapters, which are trained in place of the policy's weights; null trains the weights",
      "Set 8 to 64 when optimizer and reference do not fit in memory; the learning rate wants about ten times more.",
    ),
    alpha: key(
      z.number().gt(0).nullable(),
      null,
      "the adapters' outputs are multiplied by this over the rank; null is the rank",
      "Keep it when the rank changes, so that the learning rate can stay.",
    ),
    targets: key(
      z.array(text).min(1).nullable(),
      null,
      "ends of the paths of the layers that get adapters, such as wqkv; null is every projection of the blocks",
      "To adapt attention alone, or the head too.",
    ),
  }),
});

export const blockSize: z.ZodType<number | null> = key(
  count.nullable(),
  null,
  "most codes of a sequence; null takes the policy file's, or as many as an image has",
  "Set it for a new policy that is to serve larger images.",
  "codes",
);

const context: z.ZodType<ContextSection> = section<ContextSection>({
  type: key(
    z.enum(["free", "prefix", "teacher_forced", "noisy_teacher_forced"]),
    "free",
    "what the policy reads before each code: its own codes, some true ones and then its own, the true ones, or those with noise",
    "teacher_forced is far cheaper, free is how the policy is used; prefix lies between.",
  ),
  length: key(
    z.int().min(0).nullable(),
    null,
    "true codes at the start of a prefix context; null is half of them",
    "Lower it when completions are good already.",
    "codes",
  ),
  noise: key(
    part,
    0.5,
    "probability that noisy_teacher_forced replaces a true code by any other",
    "Lower it, or set ramp, for a policy that was not pre-trained with noise: 0.5 at once ruins such a one.",
  ),
  ramp: key(
    z.int().min(0),
    0,
    "iterations until a context is at full strength: noise rises from 0, a prefix shrinks from all codes but one",
    "Set a quarter of train.iters when a new context makes the reward fall at first.",
    "iterations",
  ),
});

const guidance: z.ZodType<GuidanceSection> = section<GuidanceSection>({
  scale: key(
    number,
    1,
    "strength of classifier-free guidance in sampling and scoring alike; 1 is none and saves half of the work",
    "Raise it to train the policy as it will be sampled with guidance.",
  ),
  schedule: key(
    z.enum(["constant", "power_cosine"]),
    "constant",
    "how the strength runs along the sequence: the same throughout, or rising from 1",
    "Take the one that samples will be drawn with.",
  ),
  power: key(
    z.number().gt(0),
    1,
    "exponent of power_cosine; above 1 strength comes later",
    "With power_cosine only.",
  ),
  interval: key(
    z.tuple([z.int().min(0), z.int().min(0)]).nullable(),
    null,
    "codes [from, to) that are guided; null is all",
    "Rarely.",
    "codes",
  ),
});

export const rollout: z.ZodType<RolloutSection> = section<RolloutSection>({
  images: key(
    count,
    16,
    "B: images of a rollout",
    "Raise it for a steadier gradient; time and memory of a rollout grow with it.",
    "images",
  ),
  numGenerations: key(
    count,
    8,
    "G: sequences an image, compared with each other",
    "Lower it to 4 when decoding takes most of the time; below 4 the baseline is noisy.",
    "sequences",
  ),
  context,
  start: key(
    z.enum(["condition", "empty"]),
    "condition",
    "where sequences start: from the image's class or text, or from nothing",
    "Set empty for a policy without classes.",
  ),
  maxLen: key(
    count.nullable(),
    null,
    "codes of a whole sequence, given ones counted; null is all of an image",
    "Leave it: a decoder wants all codes of an image.",
    "codes",
  ),
  temperature: key(
    z.number().gt(0),
    1,
    "logits are divided by it, in sampling and scoring alike",
    "Leave it at 1 unless the policy will always be sampled at another.",
  ),
  topK: key(
    z.int().min(0),
    0,
    "keep the k likeliest codes; 0 keeps all",
    "Leave it at 0: what is cut is not learnt about.",
    "codes",
  ),
  topP: key(
    z.number().gt(0).max(1),
    1,
    "keep the likeliest codes of this total probability; 1 keeps all",
    "Leave it at 1: what is cut is not learnt about.",
  ),
  guidance,
  microBatch: key(
    count.nullable(),
    null,
    "images sampled at a time, with the same codes as a result; null is all of them",
    "Lower it when sampling runs out of memory.",
    "images",
  ),
  keepGraph: key(
    z.boolean(),
    false,
    "use the rollout's forward pass for the update: teacher-forced contexts and one optimizer step a rollout only",
    "Switch it on when memory holds the activations of all images at once; it saves a third of the policy's work.",
  ),
});

const weight = (fallback: number, help: string, when: string): z.ZodType<number> =>
  key(number, fallback, `weight of ${help}; 0 leaves it out`, when);

const term = (fallback: number, help: string, when: string): z.ZodType<RewardTerm> =>
  section<RewardTerm>({ weight: weight(fallback, help, when) });

export const reward: z.ZodType<RewardSection> = section<RewardSection>({
  normalize: key(
    z.enum(["none", "batch", "group"]),
    "none",
    "whether terms are centred and divided by their standard deviation, over the rollout or each group, before the weights",
    "Set group when terms differ in scale: perceptual distances are often ten times the squared error.",
  ),
  credit: key(
    z.enum(["sequence", "place"]),
    "sequence",
    "what a code is credited for: the whole image, or the pixels of its own place and of later ones",
    "place tells T codes apart where sequence pays all of them alike; l1, l2, ssim, lpips and perceptual have values by place.",
  ),
  creditDecay: key(
    part,
    0.5,
    "with credit by place, how much of a later place's reward a code gets for each place in between: 0 is its own place alone, 1 all later ones alike",
    "Raise it for free and prefix contexts, where later codes follow from this one; lower it for teacher-forced ones. Ppo has lambda for that.",
  ),
  l1: term(
    0,
    "the mean absolute difference of pixels, counted negatively",
    "Prefer it to l2 where outliers dominate.",
  ),
  l2: term(
    1,
    "the mean squared difference of pixels, counted negatively",
    "Set 0 when another term says it better.",
  ),
  psnr: term(
    0,
    "the peak signal-to-noise ratio in dB",
    "Use it in place of l2 when errors differ widely in size.",
  ),
  ssim: term(0, "structural similarity; images of at least 11 px", "Add it when l2 makes images soft."),
  msSsim: term(0, "structural similarity over five scales; images of at least 176 px", "For large images."),
  lpips: section<NetworkTerm>({
    weight: weight(
      0,
      "LPIPS, counted negatively",
      "Set 1 beside l2, as VA-pi does: l2 alone makes images soft.",
    ),
    path: key(
      text.nullable(),
      null,
      "torchvision's weights of VGG16, AlexNet or SqueezeNet 1.1",
      "Needed as soon as the weight is not 0.",
    ),
  }),
  perceptual: section<NetworkTerm>({
    weight: weight(
      0,
      "the distance in the features of a classifier that was trained on such images, counted negatively",
      "In place of LPIPS for small images that are no photographs; look at the terms' scales before mixing.",
    ),
    path: key(text.nullable(), null, "file of rlar classifier", "Needed as soon as the weight is not 0."),
  }),
  latentCosine: term(
    0,
    "1 - cosine between codebook vectors and the image's latent, counted negatively",
    "Rarely.",
  ),
  patchGan: section<NetworkTerm>({
    weight: weight(0, "the mean logit of a frozen discriminator", "Add a little when samples lack detail."),
    path: key(
      text.nullable(),
      null,
      "weights of the discriminator out of a tokenizer's training",
      "Needed as soon as the weight is not 0.",
    ),
  }),
  custom: section<RewardSection["custom"]>({
    weight: weight(1, "the reward that fn computes", "To balance it with the other terms."),
    fn: liveKey<RewardFunction>(
      "a function of images and samples",
      isFunction,
      "a reward of your own",
      "Pass one from a program.",
    ),
  }),
  chunk: key(
    count.nullable(),
    null,
    "samples that the reward's networks see at a time; null is about two million pixels",
    "Lower it when rewards run out of memory.",
    "samples",
  ),
});
