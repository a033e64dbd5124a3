/** Keys of `rlar pretrain`: what they are, their defaults, presets, and what they ask of each other. */
import * as z from "zod";
import { type FitConfig, fitKind } from "./fit_keys.js";
import { key, section } from "./key.js";
import type { ConfigKind, Origins } from "./kind.js";
import { ar, blockSize, tokenizer } from "./model_keys.js";
import { MODEL_ALIASES, SPELLINGS } from "./train_schema.js";
import type { ArSection, TokenizerSection } from "./types.js";

/** What the policy learns from, beside the images. */
export interface PretrainSection {
  readonly start: "condition" | "empty";
  readonly classDropout: number;
  readonly noise: number;
  readonly cache: boolean;
  readonly cornerScale: number | null;
  readonly microBatch: number | null;
}

/** What `rlar pretrain` is configured by. */
export interface PretrainConfig extends FitConfig {
  readonly tokenizer: TokenizerSection;
  readonly ar: ArSection;
  readonly blockSize: number | null;
  readonly pretrain: PretrainSection;
}

const part = z.number().min(0).max(1);

const pretrain: z.ZodType<PretrainSection> = section<PretrainSection>({
  start: key(
    z.enum(["condition", "empty"]),
    "condition",
    "where sequences start: from the image's class or text, or from nothing",
    "Set empty for a policy without classes.",
  ),
  classDropout: key(
    part,
    0.1,
    "part of the sequences that are shown the null class, or text, in place of their own",
    "Leave it for guidance, which needs it; 0 where samples will never be guided.",
  ),
  noise: key(
    part,
    0,
    "most noise of a context: each sequence draws a share from 0 to this, and that share of its codes is replaced by uniform ones; what it learns to predict stays true",
    "Set 0.5 for a policy that is to be fine-tuned in noisy contexts; it costs a little likelihood without noise.",
  ),
  cache: key(
    z.boolean(),
    true,
    "encode all training images before the first update and keep their codes in memory, 2 bytes each; else each batch anew",
    "Switch it off for sets that do not fit, or that are gone through less than once.",
  ),
  cornerScale: key(
    z.number().gt(1).max(2).nullable(),
    null,
    "also cache the four corners of each image at so many times the size; null caches the whole image alone",
    "Set 1.1 for photographs, as LlamaGen does; not where things fill their frame.",
  ),
  microBatch: key(
    z.int().min(1).nullable(),
    null,
    "images a forward pass; null is all of a batch",
    "Lower it when memory runs out; the gradient stays the same.",
    "images",
  ),
});

/** What `rlar pretrain` is configured by. */
export const pretrainKind: ConfigKind<PretrainConfig> = fitKind<PretrainConfig>({
  name: "pretrain",
  defaults: {
    epochs: 20,
    batch: 64,
    lr: 1e-3,
    betas: [0.9, 0.95],
    weightDecay: 0.05,
    ema: 0.999,
    best: "eval/nats_per_token",
    mode: "min",
  },
  own: { tokenizer, ar, blockSize, pretrain },
  aliases: MODEL_ALIASES,
  spellings: SPELLINGS,
  presets: {
    small: {
      about: "A small policy for images of 32 px, to be trained on a CPU: 6 layers of width 192.",
      values: { ar: { type: "gpt", nLayer: 6, nHead: 6, nEmbd: 192 }, data: { size: 32 } },
    },
    llamagen: {
      about:
        "LlamaGen's recipe (2024) for its smallest model, GPT-B: 300 epochs, batch 256, constant 1e-4, ten crops of each " +
        "image, dropout 0.1. For a GPU.",
      values: {
        ar: {
          type: "llamagen",
          nLayer: 12,
          nHead: 12,
          nEmbd: 768,
          extra: { tokenDropoutP: 0.1, residDropoutP: 0.1, ffnDropoutP: 0.1 },
        },
        data: { flip: true },
        pretrain: { cornerScale: 1.1 },
        optimizer: { lr: 1e-4, schedule: "constant", warmup: 0 },
        ema: { decay: 0.9999 },
        train: { epochs: 300, batch: 256 },
        precision: { model: "bfloat16" },
      },
    },
  },
  problems: pretrainProblems,
  missing: (config, origins) => {
    const { tokenizer: model, ar: policy } = config;
    const problems: string[] = [];
    const want = (path: string, what: string, isThere: boolean): void => {
      if (!isThere) problems.push(`${origins.whereOf(path)}: expected ${what}, got nothing.`);
    };
    want("tokenizer.path", "a file with a tokenizer", model.path !== null || model.model !== null);
    const hasPolicy =
      policy.type !== null || policy.path !== null || policy.policy !== null || policy.cls !== null;
    want("ar.type", "gpt or llamagen, or ar.path for a policy to go on with", hasPolicy);
    return problems;
  },
  notes: (config) => {
    const { classDropout, start } = config.pretrain;
    if (classDropout > 0 || start === "empty") return [];
    return [
      "pretrain.classDropout is 0: the null class is never seen, so samples of this policy cannot be guided. Set 0.1 for that.",
    ];
  },
});

function pretrainProblems(config: PretrainConfig, origins: Origins): string[] {
  const problems: string[] = [];
  const refuse = (path: string, what: string, got: unknown, remedy: string): void => {
    problems.push(`${origins.whereOf(path)}: expected ${what}, got ${got}. ${remedy}.`);
  };
  const { pretrain: how, train } = config;
  if (how.cornerScale !== null && !how.cache) {
    refuse("pretrain.cornerScale", "null without pretrain.cache", how.cornerScale, "Switch the cache on");
  }
  if (how.microBatch !== null && train.batch % how.microBatch !== 0) {
    const divisors = Array.from({ length: train.batch }, (_, i) => i + 1).filter(
      (i) => train.batch % i === 0,
    );
    const remedy = `Set one of ${divisors.join(", ")}`;
    refuse("pretrain.microBatch", `a divisor of train.batch ${train.batch}`, how.microBatch, remedy);
  }
  return problems;
}
