/**
 * The table of measures: title, explanation, unit and direction of each. Rewards take the signs of their terms from it;
 * evaluations, logs and reports take "better" and "worse" from it.
 */

import { expected } from "../torch/index.js";

/** A measure. */
export interface Measure {
  /** For headings. */
  readonly title: string;
  /** One or two sentences. */
  readonly about: string;
  /** 1: higher is better, -1: lower is better, 0: neither. As a term's sign: value times sign is better the higher it is. */
  readonly sign: 1 | -1 | 0;
  /** `%`: a share of 1 that is shown as per cent. */
  readonly unit?: "%";
}

/** By the measure's name, or by the whole name of a metric where its last part would say too little. */
export const MEASURES: Readonly<Record<string, Measure>> = {
  reward: {
    title: "Reward",
    about: "Weighted sum of the reward's terms.",
    sign: 1,
  },
  l1: { title: "L1", about: "Mean absolute difference from the true image, in [-1, 1].", sign: -1 },
  l2: { title: "L2", about: "Mean squared difference from the true image, in [-1, 1].", sign: -1 },
  psnr: { title: "PSNR (dB)", about: "Peak signal-to-noise ratio to the true image, in dB.", sign: 1 },
  ssim: { title: "SSIM", about: "Structural similarity to the true image; 1 is the same image.", sign: 1 },
  ms_ssim: { title: "MS-SSIM", about: "Structural similarity over five scales, from 176 px on.", sign: 1 },
  lpips: { title: "LPIPS", about: "LPIPS distance from the true image.", sign: -1 },
  perceptual: {
    title: "Perceptual distance",
    about: "Distance from the true image in the feature maps of a network.",
    sign: -1,
  },
  perceptual_held_out: {
    title: "Perceptual distance, unrewarded network",
    about: "Distance from the true image in the feature maps of a classifier that no reward has used.",
    sign: -1,
  },
  latent_cosine: {
    title: "Latent cosine distance",
    about:
      "1 - cosine of the angle between the tokenizer's latents of sample and image, before quantisation.",
    sign: -1,
  },
  patch_gan: {
    title: "PatchGAN",
    about: "Mean logit of a discriminator; higher means that patches look more real to it.",
    sign: 1,
  },
  kernel: {
    title: "Kernel witness",
    about:
      "How much more alike samples are to training images than to samples of other images: minus their share of the " +
      "kernel distance.",
    sign: 1,
  },
  toklip_image: {
    title: "TokLIP, image",
    about: "Cosine between TokLIP's embeddings of the sampled and of the true codes.",
    sign: 1,
  },
  toklip_text: {
    title: "TokLIP, text",
    about: "Cosine between TokLIP's embeddings of the sampled codes and of the caption or class.",
    sign: 1,
  },
  clip: {
    title: "CLIP, text",
    about: "Cosine between CLIP's or SigLIP's embeddings of the sample and of the caption or class.",
    sign: 1,
  },
  aesthetic: { title: "Aesthetic score", about: "Score of LAION's aesthetic predictor.", sign: 1 },
  dists: { title: "DISTS", about: "Distance from the true image in structure and texture.", sign: -1 },
  codes_used: { title: "Codes used", about: "Fraction of the codebook that occurs.", sign: 0, unit: "%" },
  fd_train: { title: "FD to training images", about: "Fréchet distance from the training images.", sign: -1 },
  fd_held_out: {
    title: "FD to held-out images",
    about: "Fréchet distance from the held-out images.",
    sign: -1,
  },
  fd_reference: {
    title: "FD to the reference set",
    about:
      "Fréchet distance from the set of --reference, in the features of the network that it was made with.",
    sign: -1,
  },
  kd_train: {
    title: "KD to training images",
    about: "Kernel distance (cubic kernel) from the training images, of at most 10,000 images.",
    sign: -1,
  },
  kd_held_out: {
    title: "KD to held-out images",
    about: "Kernel distance (cubic kernel) from the held-out images, of at most 10,000 images.",
    sign: -1,
  },
  score: {
    title: "Score",
    about: "Inception score with this network: high if samples have clear classes, and many different ones.",
    sign: 1,
  },
  accuracy: {
    title: "Accuracy",
    about: "Share of images whose most probable class is the right one.",
    sign: 1,
    unit: "%",
  },
  balanced_accuracy: {
    title: "Balanced accuracy",
    about: "Share of images whose most probable class is the right one, mean over the classes.",
    sign: 1,
    unit: "%",
  },
  precision: {
    title: "Precision",
    about:
      "Fraction of samples that lie among the training images (3 nearest neighbours, of at most 10,000 images).",
    sign: 1,
    unit: "%",
  },
  recall: {
    title: "Recall",
    about: "Fraction of training images that lie among the samples (3 nearest neighbours).",
    sign: 1,
    unit: "%",
  },
  density: {
    title: "Density",
    about:
      "Number of training images whose neighbourhood (5 nearest neighbours) contains a sample, divided by 5; mean over samples.",
    sign: 1,
  },
  coverage: {
    title: "Coverage",
    about: "Share of training images with a sample in their neighbourhood (5 nearest neighbours).",
    sign: 1,
    unit: "%",
  },
  diversity: {
    title: "Diversity",
    about:
      "How far samples of one image (during training) or of one class (rlar eval) lie apart. A fall means that the " +
      "policy repeats itself.",
    sign: 0,
  },
  nearest: {
    title: "Nearest training image",
    about: "Mean distance of features from the nearest training image.",
    sign: 0,
  },
  nearest_ratio: {
    title: "Nearest, relative",
    about:
      "Mean distance of samples from the nearest training image, divided by that of held-out images. Well below 1 means memorized training images.",
    sign: 0,
  },
  nats_per_token: {
    title: "Nats per true code",
    about:
      "Negative log-likelihood of the true codes. A rise means that the policy forgets its pre-training.",
    sign: -1,
  },
  perplexity: {
    title: "Perplexity",
    about: "The exponential of the mean negative log-likelihood.",
    sign: -1,
  },
  top1: {
    title: "Top 1",
    about: "Fraction of codes whose most probable prediction is right.",
    sign: 1,
    unit: "%",
  },
  top5: {
    title: "Top 5",
    about: "Fraction of codes for which one of the five most probable predictions is right.",
    sign: 1,
    unit: "%",
  },
  nats_first_half: {
    title: "Nats, first half",
    about: "Negative log-likelihood per true code of the first half of an image.",
    sign: -1,
  },
  nats_second_half: {
    title: "Nats, second half",
    about: "Negative log-likelihood per true code of the second half of an image, given the first.",
    sign: -1,
  },
  nats_null: {
    title: "Nats without a class",
    about: "Negative log-likelihood per true code under the null class, which classifier-free guidance uses.",
    sign: -1,
  },
  ce: { title: "Cross-entropy", about: "Cross-entropy, in nats.", sign: -1 },
  loss: { title: "Loss", about: "The training loss.", sign: -1 },
  "loss/total": { title: "Total loss", about: "The training loss: the sum of the other losses.", sign: 0 },
  "loss/policy": {
    title: "Policy loss",
    about: "Loss of the policy gradient; its value is near 0 by construction, but not its gradient.",
    sign: 0,
  },
  "loss/aux_ce": {
    title: "Cross-entropy of true codes",
    about:
      "Cross-entropy of the true codes times update.auxCe. It keeps the policy from forgetting its pre-training.",
    sign: -1,
  },
  "loss/code_distance": {
    title: "Distance of codes",
    about:
      "Expected distance between drawn and true codes times update.codeDistance: 1 is that of two codes by chance.",
    sign: -1,
  },
  "loss/code_frequency": {
    title: "Frequency of codes",
    about:
      "KL divergence of the frequencies of drawn codes from those of true codes over the run so far, times update.codeFrequency.",
    sign: -1,
  },
  "loss/kl": {
    title: "KL loss",
    about: "KL divergence times kl.coef. It pulls the policy towards the reference.",
    sign: 0,
  },
  "loss/entropy": { title: "Entropy loss", about: "Minus the entropy times update.entropyCoef.", sign: 0 },
  "loss/value": { title: "Value loss", about: "Loss of the value head times ppo.valueCoef.", sign: -1 },
  codebook_used: { title: "Codebook use", about: "Fraction of the codes that occur.", sign: 1, unit: "%" },
  codebook_usage: {
    title: "Codebook use",
    about: "Share of the codes that occur. A fall means fewer kinds of patches.",
    sign: 0,
    unit: "%",
  },
  codebook_perplexity: {
    title: "Effective codes",
    about: "Perplexity of the codes: exponential of the entropy of their frequencies.",
    sign: 1,
  },
};

/** What a spread adds to a metric's name. */
export const STATISTICS: readonly string[] = ["mean", "std", "min", "max"];

/** The entry of a measure or of a metric such as `eval/l2` or `reward/l2/mean`; its name alone for an unknown one. */
export function measureOf(metric: string): Measure {
  const parts = metric.split("/").filter((part) => !STATISTICS.includes(part));
  const last = parts.at(-1) ?? metric;
  for (const name of [parts.join("/"), last])
    if (Object.hasOwn(MEASURES, name)) return MEASURES[name] as Measure;
  return { title: last.replaceAll("_", " "), about: "", sign: 0 };
}

/**
 * The sign of a reward's term.
 *
 * @throws RangeError for a measure without a direction, which cannot be rewarded.
 */
export function signOf(name: string): 1 | -1 {
  const { sign } = measureOf(name);
  if (sign === 0) throw expected("signOf", "a measure of which higher or lower is better", name);
  return sign;
}

/** Which way is better, in a word. */
export function betterOf({ sign }: Pick<Measure, "sign">): "higher" | "lower" | "none" {
  return sign === 0 ? "none" : sign === 1 ? "higher" : "lower";
}
