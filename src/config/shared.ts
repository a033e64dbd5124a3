/**
 * Keys that several commands have: images, tokenizer, policy, and parts of how training goes. Keys that only one
 * command has are in the file of that command.
 */
import * as z from "zod";
import type { ArPolicy } from "../policies/index.js";
import type { FrozenTokenizer, ImageTokenizer } from "../tokenizers/index.js";
import { key, liveKey, pathKey, section } from "./key.js";

/** Ranges of values. */
export const count = z.int().min(1);
export const atLeast0 = z.number().min(0);
export const integer0 = z.int().min(0);
export const positive = z.number().gt(0);
export const unit = z.number().min(0).max(1);
export const below1 = z.number().min(0).lt(1);
export const text = z.string().min(1);
export const record = z.record(z.string(), z.unknown()).readonly();

/** A key for a size, null where it is chosen elsewhere. */
export const size = (unit?: string) => key(count.nullable(), null, unit);
export const flag = (value: boolean) => key(z.boolean(), value);
const textKey = () => key(text.nullable(), null);

export const isNotPrimitive = (value: unknown): boolean => typeof value === "object" && value !== null;
export const isFunction = (value: unknown): boolean => typeof value === "function";
const has = (value: unknown, method: string): boolean =>
  isNotPrimitive(value) && isFunction((value as Record<string, unknown>)[method]);

export const seed = key(integer0, 0).describe(
  "Seed of every random number of the run. Compare several seeds before you believe a small difference.",
);

export const run = section({
  dir: pathKey().describe(
    "Folder of the run; null makes one under runs/, named by date and preset. Set it to find the run again, or to resume it.",
  ),
  ifExists: key(z.enum(["ask", "resume", "new", "overwrite", "fail"]), "ask").describe(
    "What to do when the folder already holds a run; without a terminal ask is the same as fail, new adds a number to the name. Set resume in scripts that may be started again.",
  ),
});

export const data = section({
  source: pathKey().describe(
    "Training images: a folder, tar shards, parquet, IDX or code files, or a glob pattern of such files. Required, unless a program passes a dataloader. If no reward of rlar train needs images, a .txt or .jsonl file of captions or classes, or data.classNames alone, is enough.",
  ),
  evalSource: pathKey().describe(
    "Images to evaluate on; null holds out a part of data.source. Give it when you have a separate validation set.",
  ),
  evalPart: key(below1, 0.1).describe(
    "Fraction of data.source that is held out and never trained on, chosen by a hash of each image's name. Lower it for large sets. 0 trains on all images and needs data.evalSource or eval.every=0. The images stay held out when eval.every is 0.",
  ),
  label: textKey().describe(
    "Name of what holds the class of an image: a parquet column, the extension of a tar member, a tensor of a code file, a field of a JSONL file; none puts all images into one class. Set it when no class is found, or the wrong one.",
  ),
  image: textKey().describe(
    "Name of what holds the image: a parquet column, the extension of a tar member, a tensor of a code file. Set it when there are several candidates, or none is found.",
  ),
  captions: textKey().describe(
    "Name of what holds the caption of an image: the extension of a file with the same name (or of a tar member), json.FIELD for a field of such a JSON file, a parquet column, a field of a JSONL file; none reads no captions; null finds .txt files, and text columns named caption, text or prompt. Set it when captions have another name, or to none to use class names instead.",
  ),
  classNames: key(z.array(text).readonly().nullable(), null).describe(
    "Names of all classes, in the order of the policy's class ids; null sorts the names that are found. Give it when the images show only some of the classes that the policy knows.",
  ),
  size: key(count, 256, "px").describe(
    "Width and height of the images after cropping. Use the size that the tokenizer was trained on.",
  ),
  crop: key(z.enum(["center", "smallest_side"]), "center").describe(
    "How an image is resized and cropped to a square: center halves large images with box filters before it resizes them (as ADM and LlamaGen do), smallest_side resizes once. Use the one that the policy was trained with.",
  ),
  flip: flag(false).describe(
    "Whether each training image is mirrored horizontally with probability 0.5. Switch it on for small data sets in which left and right have no meaning.",
  ),
  balance: key(unit, 0).describe(
    "How often images of small classes are drawn: 0 draws every image equally often, 1 every class equally often. Raise it when a few classes have most of the images.",
  ),
  group: textKey().describe(
    "Regular expression for the part of an image's name that must not occur both among the training and among the held-out images. Set it when the data set has several images of one object, such as one emoji in several styles.",
  ),
  featureTokens: size("tokens").describe(
    "Length that text features are padded to; null pads to the longest of a batch. Set it to the length that a text-conditional policy was trained with.",
  ),
  maxUnreadable: key(integer0.nullable(), null, "images").describe(
    "Number of unreadable images that may be skipped; null is 1 % of the set. Raise it for downloaded sets that were never checked.",
  ),
  workers: size("threads").describe(
    "Threads that decode images; null is one less than the number of CPU cores, at most 8. Raise it when time/data is not close to 0.",
  ),
});

const wrapper = textKey().describe(
  "Key of the state dict in the file; null finds it. Set it when the file holds several state dicts and the wrong one is used.",
);

/** Which weights of a file are used. */
export const weights = key(z.enum(["ema", "raw"]).nullable(), null).describe(
  "Which weights of the file to use: ema, their exponential moving average, or raw, those of the last step; null uses the EMA of a tokenizer where the file has one. Set raw to continue exactly where the training of the file stopped.",
);

export { wrapper };

export const tokenizer = section({
  path: pathKey().describe(
    "File of the frozen tokenizer: IBQ, VQ-16, VQ-8, TokLIP, or one trained by rlar tokenizer. Required, unless a program passes a model.",
  ),
  wrapper,
  weights,
  config: key(record, {}).describe(
    "Options of the architecture that do not follow from the shapes in the file, such as lookup: l2 for taming-transformers' VQGAN. Set it when rlar inspect shows the wrong architecture.",
  ),
  model: liveKey<FrozenTokenizer | ImageTokenizer>(
    "a tokenizer with encode and decodeCode",
    (value) => has(value, "encode") && has(value, "decodeCode"),
  ).describe("A loaded tokenizer, in place of tokenizer.path. Pass one from a program."),
  decodeBatch: size("images").describe(
    "Images decoded at a time; null is 8. Lower it when decoding runs out of memory; on a CPU 1 is often fastest.",
  ),
});

/** Keys of `ar` that all commands with a policy have. */
export const arKeys = {
  type: key(z.enum(["gpt", "llamagen"]).nullable(), null).describe(
    "Architecture of a new policy; with ar.path it is read from the file. Set it to train a policy from scratch.",
  ),
  path: pathKey().describe(
    "File of the policy: minGPT, LlamaGen, IBQ's transformer, or one trained here; null makes a new policy. Required for fine-tuning.",
  ),
  wrapper,
  weights: key(z.enum(["ema", "raw"]).nullable(), null).describe(
    "Which weights of ar.path to use: ema, their exponential moving average, or raw, those of the last step; null uses the raw ones where the file has both, as LlamaGen's and VA-pi's samplers do. Set ema to fine-tune the EMA.",
  ),
  nLayer: size("layers").describe("Number of layers of a new policy. Set it together with ar.type."),
  nHead: size("heads").describe(
    "Number of attention heads, for a new policy or for a file without this number. Set it together with ar.type, or when the file cannot be opened without it.",
  ),
  nEmbd: size("channels").describe("Embedding width of a new policy. Set it together with ar.type."),
  extra: key(record, {}).describe(
    "Further options of the policy's class, such as classNum or nKvHead. Use it for options that have no key of their own.",
  ),
  cls: liveKey<new (options: never) => ArPolicy>("a policy class", isFunction).describe(
    "Class to build the policy from, in place of the one that ar.type names. Pass your own policy from a program.",
  ),
  policy: liveKey<ArPolicy>(
    "a policy with hidden and logits",
    (value) => has(value, "hidden") && has(value, "logits"),
  ).describe("A loaded policy, in place of ar.path and ar.type. Pass one from a program."),
  gradientCheckpointing: flag(false).describe(
    "Whether the activations of the transformer blocks are recomputed in the backward pass instead of kept in memory. Switch it on when the update runs out of memory with a micro-batch of 1.",
  ),
};

export const blockSize = size("codes").describe(
  "Maximum sequence length of the policy; null uses that of the policy file, or the number of codes of an image. Set it for a new policy that will also serve larger images.",
);

/** Keys of AdamW and of its learning rate schedule; `steps` is what the command calls its updates. */
export const optimizerKeys = (
  defaults: { lr: number; betas: readonly [number, number]; weightDecay: number; finalLr: number },
  steps: string,
) => ({
  lr: key(positive, defaults.lr).describe(
    "Peak learning rate of AdamW. Halve it when the loss, kl/ref or the clip fraction jumps; large networks need less, small new ones more.",
  ),
  betas: key(z.tuple([below1, below1]).readonly(), [...defaults.betas]).describe(
    `AdamW's decay rates of the gradient's running mean and of its running square. 0.999 for the second suits runs of many thousand ${steps}.`,
  ),
  eps: key(positive, 1e-8).describe(
    "AdamW's term added to the denominator for numerical stability. Rarely changed.",
  ),
  weightDecay: key(atLeast0, defaults.weightDecay).describe(
    "AdamW's decoupled weight decay. Raise it when the held-out loss rises while the training loss falls; leave it at 0 for short fine-tuning.",
  ),
  schedule: key(z.enum(["constant", "linear", "cosine"]), "cosine").describe(
    "Learning rate schedule after the warm-up. With constant, train.iters can be raised when a run is resumed.",
  ),
  warmup: key(below1, 0.03).describe(
    `Fraction of all ${steps} over which the learning rate rises linearly from 0. Raise it when the first ${steps} do harm.`,
  ),
  finalLr: key(unit, defaults.finalLr).describe(
    "Fraction of optimizer.lr at which the linear and cosine schedules end. Set 0 for a run that will not be continued.",
  ),
  maxGradNorm: key(positive.nullable(), 1).describe(
    "Maximum gradient norm: larger gradients are scaled down to it; null does not clip. Watch optim/grad_norm: clipping should be the exception.",
  ),
});

/** The exponential moving average of the weights. */
export const emaOf = (decay: number | null) =>
  section({
    decay: key(below1.nullable(), decay).describe(
      "Decay of the exponential moving average (EMA) of the weights; null keeps none. Set 0.999 for runs of a thousand steps, 0.9999 for many thousand. Evaluations use the EMA.",
    ),
    warmup: flag(true).describe(
      "Whether the EMA decay starts low and rises, so that the weight of the initial parameters falls quickly. Rarely changed.",
    ),
  });

export const precisionKey = key(z.enum(["auto", "float32", "bfloat16"]), "auto");

/** Keys that decide which checkpoint is the best; `advice` says when to take another metric. */
export const bestKeys = (best: string, mode: "max" | "min", advice: string) => ({
  best: key(text.describe("the name of a metric, such as eval/psnr/mean"), best).describe(
    `Held-out metric that chooses the best checkpoint. ${advice}`,
  ),
  mode: key(z.enum(["max", "min"]), mode).describe(
    "Whether a higher or a lower value of eval.best is better. Set it together with eval.best.",
  ),
  patience: key(integer0, 0, "evaluations").describe(
    "Evaluations without a new best after which the run stops early; 0 never stops. Set 5 for unattended runs.",
  ),
});

/** Keys of when checkpoints are saved; `steps` is what the command calls its updates. */
export const saveKeys = (every: number, keep: number, steps: string) => ({
  every: key(integer0, every, steps).describe(
    "Interval between checkpoints; one is always saved at the end, and 0 saves only that one. Lower it where a run may be killed.",
  ),
  keep: key(count, keep, "checkpoints").describe(
    "Number of latest checkpoints that are kept, beside the best one. Raise it to go back further.",
  ),
});

/** Keys of the log; `steps` is what the command calls its updates. */
export const logKeys = (every: number, imagesEvery: number, steps: string) => ({
  every: key(count, every, steps).describe(
    "Interval between lines on the console; metrics.jsonl has every step. rlar train measures reward/vq_ceiling at the same steps. Lower it for slow runs.",
  ),
  imagesEvery: key(integer0, imagesEvery, steps).describe(
    "Interval between pictures of samples in samples/; 0 makes none. Lower it to see what the run learns.",
  ),
  tensorboard: flag(true).describe(
    "Whether TensorBoard event files are written to tb/. Switch it off to save space.",
  ),
  csv: flag(true).describe("Whether metrics.csv is written at the end. Switch it off if you do not need it."),
});

/** Limits on updates whose loss or gradient is not finite; `steps` is what the command calls its updates. */
export const limitKeys = (steps: string) => ({
  nonFiniteInARow: key(count, 5, steps).describe(
    `Consecutive ${steps} that may be skipped because the loss or gradient is not finite; one more ends the run with exit code 4. Rarely changed: look for the cause instead.`,
  ),
  nonFinite: key(count, 100, steps).describe(
    `Number of ${steps} in the whole run that may be skipped because the loss or gradient is not finite; one more ends the run with exit code 4. Rarely changed: look for the cause instead.`,
  ),
});

/** Where training runs. */
export const machineKeys = {
  device: key(
    z
      .string()
      .regex(/^(auto|cpu|cuda(:\d+)?)$/)
      .describe("auto, cpu, cuda or cuda:N"),
    "auto",
  ).describe("Device to train on; auto is cuda where available. Set cpu to leave the GPU to others."),
  threads: size("threads").describe(
    "CPU threads of LibTorch; null uses LibTorch's default, divided among the processes of a machine. Set 1 to leave cores to other programs.",
  ),
  timeout: key(positive, 600, "seconds").describe(
    "How long the processes of a run wait for each other before the run ends. Raise it if one of them needs longer to read its data or to write a checkpoint.",
  ),
  shardOptimizer: flag(false).describe(
    "Whether the optimizer's state is sharded over the processes of a run. Set true when weights, gradients and optimizer state do not fit in the memory of a process; it needs several processes.",
  ),
};
