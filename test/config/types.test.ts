/** What TypeScript accepts as a configuration: this file must compile, and each line that is marked must not. */
import assert from "node:assert/strict";
import { test } from "node:test";
import {
  type GPT,
  type PretrainConfigInput,
  pretrainPolicy,
  resolveConfig,
  type TrainConfig,
  type TrainConfigInput,
  type torch,
  trainRlLoop,
  trainTokenizer,
} from "../../src/index.js";
import type { ImageTokenizer } from "../../src/tokenizers/index.js";

declare const tokenizer: { readonly vq: ImageTokenizer };
declare const mingpt: { readonly GPT: typeof GPT };
declare const myImageLoader: Iterable<torch.Tensor>;

/** The example of the original description, key by key. */
export const seedExample = (): TrainConfigInput => ({
  vq_model: tokenizer.vq,
  ar: { type: "gpt", cls: mingpt.GPT, n_layer: 12, n_head: 12, n_embd: 768, lr: 2e-4 },
  block_size: 1024,
  dataloader: myImageLoader,
  rollout: { max_len: 1024, temperature: 1.0 },
  reward: { type: "l2", normalize: true },
  grpo: { enabled: true, num_generations: 4, clip_range: 0.2 },
  train: { iters: 10000, device: "cuda", log_every: 50, save_every: 1000, ckpt_path: "./grpo.pt" },
});

/** Either spelling, other names, values in other spellings. */
export const accepted: readonly TrainConfigInput[] = [
  {},
  { ar: { type: "llammagen", n_layer: 24, extra: { rope: true } } },
  { ar: { use_pretrained_codebook: true, nKvHead: 2, betas: [0.9, 0.95] } },
  { rollout: { context: "prefix", guidance: 2, numGenerations: 4 } },
  { rollout: { context: { type: "prefix", length: null }, guidance: { interval: [0, 4] } } },
  { reward: { ms_ssim: { weight: 1 }, custom: { fn: (_images, samples) => samples.mean([1, 2, 3]) } } },
  { reward: { type: "latent_cosine" }, precision: { policy: "bf16" } },
  { eval: { top_k: null, num_generations: 2 }, run: { if_exists: "resume" } },
];

/** What does not compile. */
export const refused: readonly TrainConfigInput[] = [
  // @ts-expect-error a misspelt key
  { trian: { iters: 3 } },
  // @ts-expect-error a misspelt key in a section
  { train: { iter: 3 } },
  // @ts-expect-error a misspelt key in snake_case
  { rollout: { num_generation: 3 } },
  // @ts-expect-error a misspelt key two sections down
  { rollout: { context: { lenght: 3 } } },
  // @ts-expect-error a key of another section
  { optimizer: { iters: 3 } },
  // @ts-expect-error text for a number
  { optimizer: { lr: "1e-4" } },
  // @ts-expect-error no such choice
  { algorithm: "sac" },
  // @ts-expect-error no such choice
  { ar: { type: "llama" } },
  // @ts-expect-error no such term
  { reward: { type: "fid" } },
  // @ts-expect-error three numbers for two
  { optimizer: { betas: [0.9, 0.95, 0.99] } },
  // @ts-expect-error null where there is none
  { rollout: { images: null } },
  // @ts-expect-error no loader
  { dataloader: 3 },
  // @ts-expect-error another command's key
  { pretrain: { noise: 0.5 } },
];

/** What only TypeScript can tell: at run time a class is a function. */
// @ts-expect-error a class that is no policy
export const noPolicy: TrainConfigInput = { ar: { cls: Map } };

export const pretraining: readonly PretrainConfigInput[] = [
  { vq_model: null, ar: { n_layer: 2, lr: 1e-3 }, pretrain: { class_dropout: 0.1 } },
  // @ts-expect-error a misspelt key
  { pretrain: { class_drop: 0.1 } },
];

/** The functions that take a configuration check it in the same way. Never called. */
export async function programs(cfg: TrainConfigInput): Promise<void> {
  await trainRlLoop(cfg);
  await trainRlLoop({ train: { iters: 3 }, rollout: { max_len: 4 } });
  await trainRlLoop(resolveConfig({ values: cfg, overrides: ["seed=1"] }));
  // @ts-expect-error a misspelt key
  await trainRlLoop({ trian: {} });
  // @ts-expect-error a misspelt key in a section
  await trainRlLoop({ train: { iter: 3 } });
  // @ts-expect-error a wrong type
  await trainRlLoop({ train: { iters: "3" } });
  // @ts-expect-error a misspelt key
  resolveConfig({ values: { rollout: { image: 3 } } });
  await pretrainPolicy({ ar: { n_layer: 2 }, train: { batch: 4 } });
  // @ts-expect-error a misspelt key
  await pretrainPolicy({ train: { batches: 4 } });
  await trainTokenizer({ model: { ch_mult: [1, 2] } });
  // @ts-expect-error a wrong type
  await trainTokenizer({ model: { ch_mult: 2 } });
}

/** The resolved types are exact and read-only. */
export function read(config: TrainConfig): number {
  const algorithm: "reinforce" | "rloo" | "grpo" | "ppo" | "ste" = config.algorithm;
  const length: number | null = config.rollout.context.length;
  // @ts-expect-error a value that may be null
  const sure: number = config.rollout.context.length;
  // @ts-expect-error read-only
  config.rollout.images = 3;
  // @ts-expect-error read-only
  config.optimizer.betas[0] = 3;
  return algorithm.length + (length ?? sure);
}

test("what the types accept is accepted, but for what only a run can tell", () => {
  for (const values of accepted) assert.ok(resolveConfig({ values, isComplete: false }).config);
});

test("what the types refuse is refused", () => {
  for (const values of refused) {
    assert.throws(
      () => resolveConfig({ values, isComplete: false }),
      { name: "ConfigError" },
      JSON.stringify(values),
    );
  }
});
