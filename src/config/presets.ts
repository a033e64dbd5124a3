/**
 * Presets of `rlar train`: a few values each that override the defaults. `rlar config show preset=NAME` prints the whole.
 */
import type * as z from "zod";
import type { Preset } from "./kind.js";
import type { configSchema } from "./train.js";

export type PresetName = "seed" | "vapi" | "completion";

interface TrainPreset extends Preset {
  readonly values: NonNullable<z.input<typeof configSchema>>;
}

export const presets: Readonly<Record<PresetName, TrainPreset>> = {
  seed: {
    about:
      "GRPO on free rollouts of minGPT with the squared error as reward, as in the original description of this project.",
    values: {
      ar: { type: "gpt", nLayer: 12, nHead: 12, nEmbd: 768 },
      // The lengths, 1024 in the description, follow from the images here, and the device from the machine.
      rollout: { context: { type: "free" }, temperature: 1, numGenerations: 4 },
      reward: { l2: { weight: 1 }, normalize: "batch" },
      algorithm: "grpo",
      grpo: { clipLow: 0.2, clipHigh: 0.2, advantageClip: null },
      update: { auxCe: 0 },
      optimizer: { lr: 2e-4, schedule: "constant", warmup: 0 },
      train: { iters: 10_000 },
      log: { every: 50 },
      save: { every: 1000, ckptPath: "./grpo.pt" },
    },
  },
  vapi: {
    about:
      "VA-pi (2025): teacher-forced contexts in which half of the codes are replaced by noise, 128 images with 8 sequences " +
      "each per step. VA-pi's released class-conditional script has no noise: for that set " +
      "rollout.context.type=teacher_forced. Needs reward.lpips.path (VGG16).",
    values: {
      rollout: {
        context: { type: "noisy_teacher_forced", noise: 0.5 },
        images: 128,
        numGenerations: 8,
        temperature: 1,
      },
      reward: { l2: { weight: 1 }, lpips: { weight: 1 } },
      algorithm: "grpo",
      grpo: { clipLow: 0.2, clipHigh: 0.2, advantageClip: 5, epsilon: 1e-8 },
      update: { auxCe: 0.1, microBatch: 8 },
      kl: { coef: 0 },
      optimizer: {
        lr: 1e-6,
        betas: [0.9, 0.999],
        weightDecay: 1e-4,
        schedule: "constant",
        warmup: 0,
        maxGradNorm: 1,
      },
      precision: { policy: "bfloat16", tokenizer: "bfloat16", rewards: "bfloat16" },
      train: { iters: 100 },
    },
  },
  completion: {
    about:
      "The policy completes images from the first half of their codes. Each code is credited with the reward of its own " +
      "place and, with a discount, of later places. Codes are sampled at temperature 0.8; use the policy at this temperature. " +
      "For small policies (2 M parameters) set optimizer.lr=4e-4.",
    values: {
      rollout: { context: { type: "prefix" }, images: 32, numGenerations: 4, temperature: 0.8 },
      reward: { credit: "place", creditDecay: 0.8 },
      algorithm: "grpo",
      update: { auxCe: 0.3 },
      optimizer: { lr: 2e-5 },
      train: { iters: 120 },
    },
  },
};
