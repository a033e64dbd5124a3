/**
 * Configurations to start from. Each is a few values over the defaults; `rlar config show preset=NAME` prints the whole.
 */
import type { Preset } from "./kind.js";
import type { TrainConfig } from "./types.js";

export type PresetName = "seed" | "vapi" | "completion";

export const presets: Readonly<Record<PresetName, Preset<TrainConfig>>> = {
  seed: {
    about:
      "GRPO on free rollouts of minGPT with the squared error as reward, as this project was first described.",
    values: {
      ar: { type: "gpt", nLayer: 12, nHead: 12, nEmbd: 768 },
      blockSize: 1024,
      rollout: { context: { type: "free" }, maxLen: 1024, temperature: 1, numGenerations: 4 },
      reward: { l2: { weight: 1 }, normalize: "batch" },
      algorithm: "grpo",
      grpo: { clipLow: 0.2, clipHigh: 0.2, advantageClip: null },
      update: { auxCe: 0 },
      optimizer: { lr: 2e-4, schedule: "constant", warmup: 0 },
      train: { iters: 10_000, device: "cuda" },
      log: { every: 50 },
      save: { every: 1000, ckptPath: "./grpo.pt" },
    },
  },
  vapi: {
    about:
      "VA-pi (2025): teacher-forced contexts of which half of the codes are noise, 128 images x 8 a step. Its released " +
      "class-conditional script has no noise: rollout.context.type=teacher_forced. Needs reward.lpips.path (VGG16).",
    values: {
      rollout: {
        context: { type: "noisy_teacher_forced", noise: 0.5 },
        images: 128,
        numGenerations: 8,
        temperature: 1,
      },
      reward: { l2: { weight: 1 }, lpips: { weight: 1 } },
      algorithm: "grpo",
      grpo: { clipLow: 0.2, clipHigh: 0.2, advantageClip: 5, epsilon: 0, absoluteEpsilon: 1e-8 },
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
      precision: { policy: "bfloat16" },
      train: { iters: 100 },
    },
  },
  completion: {
    about:
      "The policy completes an image of which it has the first half of the codes, each code paid for its own place and, " +
      "fading, for later ones; drawn at the temperature it is to be used at. Small policies (2 M) bear optimizer.lr=4e-4.",
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
