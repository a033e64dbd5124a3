/** The configuration of `rlar pretrain`: its own keys, defaults and presets, and rules between keys. */
import * as z from "zod";
import { fitKind, fitSchema } from "./fit.js";
import { key, section } from "./key.js";
import type { ConfigKind, Preset } from "./kind.js";
import { MODEL_ALIASES, SPELLINGS } from "./names.js";
import { checkPolicy } from "./rules.js";
import * as shared from "./shared.js";
import { flag, size, unit } from "./shared.js";
import type { AliasValues, ConfigInput } from "./spelling.js";

const schema = fitSchema(
  {
    tokenizer: shared.tokenizer,
    ar: section(shared.arKeys),
    blockSize: shared.blockSize,
    pretrain: section({
      start: key(z.enum(["condition", "empty"]), "condition").describe(
        "What a sequence is conditioned on at its start: the class or text of the image (condition), or nothing (empty). Set empty for an unconditional policy.",
      ),
      classDropout: key(unit, 0.1).describe(
        "Probability that a sequence gets the null class (or text) in place of its own. Classifier-free guidance needs it; set 0 if the policy will never be sampled with guidance.",
      ),
      noise: key(unit, 0).describe(
        "Maximum noise of a context: for each sequence a fraction between 0 and this value is drawn, and this fraction of the codes in its context is replaced by uniformly random codes; the targets stay the true codes. Set 0.5 for a policy that will be fine-tuned in noisy contexts; the likelihood without noise gets slightly worse.",
      ),
      cache: flag(true).describe(
        "Whether all training images are encoded before the first update and their codes kept in memory, at 2 bytes per code. Switch it off for data sets whose codes do not fit in memory, or for less than one epoch.",
      ),
      cornerScale: key(z.number().gt(1).max(2).nullable(), null).describe(
        "Augmentation: the codes of the four corner crops of each image, enlarged by this factor, are cached as well; null caches only the image itself. Set 1.1 for photographs, as LlamaGen does; leave it at null if objects fill the image.",
      ),
      microBatch: size("images").describe(
        "Images per forward pass; null is the whole batch. The gradient does not change. Lower it when memory runs out.",
      ),
    }),
  },
  {
    epochs: 20,
    batch: 64,
    lr: 1e-3,
    betas: [0.9, 0.95],
    weightDecay: 0.05,
    ema: 0.999,
    best: "eval/nats_per_token",
    mode: "min",
  },
  ["small", "llamagen"],
);

/** What `rlar pretrain` is configured by. */
export type PretrainConfig = z.output<typeof schema>;

/** What a program passes: any part of a {@link PretrainConfig}, keys in camelCase or snake_case. */
export type PretrainConfigInput = ConfigInput<
  typeof schema,
  AliasValues<typeof schema, typeof MODEL_ALIASES>
>;

const presets: Readonly<Record<string, Preset & { values: z.input<typeof schema> }>> = {
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
};

/** What `rlar pretrain` is configured by. */
export const pretrainKind: ConfigKind<PretrainConfig> = fitKind<PretrainConfig>({
  name: "pretrain",
  schema,
  aliases: MODEL_ALIASES,
  spellings: SPELLINGS,
  presets,
  memory:
    "Lower pretrain.microBatch, which changes no result beyond rounding; set ar.gradientCheckpointing; or lower train.batch, " +
    "ar.nLayer or ar.nEmbd",
  metrics: ({ pretrain: { classDropout, start } }) => ({
    "eval/nats_per_token": "min",
    "eval/perplexity": "min",
    "eval/accuracy": "max",
    "eval/nats_first_half": "min",
    "eval/nats_second_half": "min",
    ...(classDropout > 0 && start === "condition" && { "eval/nats_null": "min" as const }),
  }),
  problems: ({ pretrain: { cornerScale, cache }, ar }, found) => {
    checkPolicy(ar, found);
    if (cornerScale === null || cache) return;
    const remedy = "Set pretrain.cache=true, or remove pretrain.cornerScale";
    found.refuse("pretrain.cornerScale", "null without pretrain.cache", cornerScale, remedy, {
      "pretrain.cornerScale": null,
    });
  },
  missing: ({ tokenizer: { path, model }, ar: { type, path: file, policy, cls } }, found) => {
    found.require("tokenizer.path", "a file with a tokenizer", path !== null || model !== null);
    const hasPolicy = type !== null || file !== null || policy !== null || cls !== null;
    found.require("ar.type", "gpt or llamagen, or ar.path to continue from a policy", hasPolicy);
  },
  notes: ({ pretrain: { classDropout, start } }, { notes }) => {
    if (classDropout > 0 || start === "empty") return;
    notes.push(
      "pretrain.classDropout is 0: the null class is never trained, so samples of this policy cannot be guided. " +
        "Set 0.1 for guidance.",
    );
  },
});
