/** What metrics mean: a title, a sentence, and which way is better. */

/** What is to be known of a metric. */
export interface About {
  readonly title: string;
  readonly about: string;
  readonly better: "higher" | "lower" | "none";
  readonly unit?: "" | "%";
}

/** By the metric's name, or by its last part: terms of a reward, and what is evaluated. */
const MEASURES: Readonly<Record<string, About>> = {
  reward: {
    title: "Reward",
    about: "What a sample is worth: the weighted sum of the reward's terms.",
    better: "higher",
  },
  l1: { title: "L1", about: "Mean absolute difference from the true image, of [-1, 1].", better: "lower" },
  l2: { title: "L2", about: "Mean squared difference from the true image, of [-1, 1].", better: "lower" },
  psnr: { title: "PSNR (dB)", about: "Peak signal-to-noise ratio to the true image.", better: "higher" },
  ssim: { title: "SSIM", about: "Structural similarity to the true image; 1 is the same.", better: "higher" },
  ms_ssim: { title: "MS-SSIM", about: "Structural similarity over several scales.", better: "higher" },
  lpips: { title: "LPIPS", about: "Perceptual distance from the true image.", better: "lower" },
  perceptual: {
    title: "Perceptual distance",
    about: "Distance from the true image in a classifier's features.",
    better: "lower",
  },
  perceptual_held_out: {
    title: "Perceptual distance, unrewarded",
    about: "The same in a classifier that no reward has used.",
    better: "lower",
  },
  latent_cosine: {
    title: "Latent cosine",
    about: "Likeness of the tokenizer's latents before quantisation.",
    better: "higher",
  },
  patch_gan: { title: "PatchGAN", about: "How real a discriminator takes patches to be.", better: "higher" },
  diversity: {
    title: "Diversity",
    about: "How far an image's samples lie apart. A fall means that the policy repeats itself.",
    better: "none",
  },
  nats_per_token: {
    title: "Nats per true code",
    about:
      "How unlikely the true codes are to the policy. A rise means that it forgets what it was pre-trained on.",
    better: "lower",
  },
  "loss/total": { title: "Total", about: "What is descended: the sum of the others.", better: "none" },
  "loss/policy": {
    title: "Policy",
    about: "Near 0 by its making: its gradient counts and not its value.",
    better: "none",
  },
  "loss/aux_ce": {
    title: "Cross-entropy of true codes",
    about: "Times update.auxCe; keeps the policy from forgetting.",
    better: "lower",
  },
  "loss/kl": { title: "Divergence", about: "Times kl.coef; pulls towards the reference.", better: "none" },
  "loss/entropy": { title: "Entropy", about: "Times update.entropyCoef, negative.", better: "none" },
  "loss/value": { title: "Value head", about: "Times ppo.valueCoef.", better: "lower" },
  loss: { title: "Loss", about: "What is descended.", better: "lower" },
  ce: { title: "Cross-entropy", about: "In nats.", better: "lower" },
  perplexity: { title: "Perplexity", about: "The exponential of the cross-entropy.", better: "lower" },
  nats_first_half: {
    title: "Nats, first half",
    about: "Per true code of the first half of an image.",
    better: "lower",
  },
  nats_second_half: {
    title: "Nats, second half",
    about: "Per true code of the second half of an image, after the first.",
    better: "lower",
  },
  nats_null: {
    title: "Nats without a class",
    about: "Per true code where no class is given, as guidance needs it.",
    better: "lower",
  },
  balanced_accuracy: {
    title: "Balanced accuracy",
    about: "Share that is right, mean over the classes.",
    better: "higher",
    unit: "%",
  },
  accuracy: { title: "Accuracy", about: "Share that is right.", better: "higher", unit: "%" },
  top1: {
    title: "Top 1",
    about: "Share of which the most probable guess is right.",
    better: "higher",
    unit: "%",
  },
  top5: {
    title: "Top 5",
    about: "Share of which one of the five most probable guesses is right.",
    better: "higher",
    unit: "%",
  },
  codebook_used: {
    title: "Codebook use",
    about: "Share of the codes that occur.",
    better: "higher",
    unit: "%",
  },
  codebook_perplexity: {
    title: "Codes in effect",
    about: "As many codes, used evenly, would be as mixed as those that occur.",
    better: "higher",
  },
  codebook_usage: {
    title: "Codebook use",
    about: "Share of the codes that occur. A fall means fewer kinds of patches.",
    better: "none",
    unit: "%",
  },
};

/** What is known of a metric such as `eval/l2` or `reward/l2/mean`. */
export function aboutOf(metric: string): About {
  const parts = metric.split("/").filter((part) => !STATISTICS.includes(part));
  const last = parts.at(-1) ?? metric;
  return (
    MEASURES[parts.join("/")] ??
    MEASURES[last] ?? { title: last.replaceAll("_", " "), about: "", better: "none" }
  );
}

/** What a spread adds to a metric's name. */
export const STATISTICS: readonly string[] = ["mean", "std", "min", "max"];
