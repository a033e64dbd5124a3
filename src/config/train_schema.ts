/**
 * The one schema of a training configuration: types, defaults, ranges, help and other spellings all come from here.
 * Reading values is done in `input.ts`, relations between keys are in `rules.ts`; `train_kind.ts` joins
 * them.
 */
import * as z from "zod";

import { type Key, key, keysOf, section } from "./key.js";
import type { Meaning } from "./kind.js";
import * as parts from "./model_keys.js";
import * as going from "./run_keys.js";
import { seed } from "./shared_keys.js";
import type { TrainConfig } from "./types.js";
import * as learning from "./update_keys.js";

/** The zod schema of a whole configuration. */
export const configSchema: z.ZodType<TrainConfig> = section<TrainConfig>({
  preset: key(
    z.string().min(1).nullable(),
    null,
    "values to start from: seed, vapi or completion",
    "Start from completion; vapi and seed repeat what others describe.",
  ),
  seed,
  run: parts.run,
  data: parts.data,
  dataloader: parts.dataloader,
  tokenizer: parts.tokenizer,
  ar: parts.tunedAr,
  blockSize: parts.blockSize,
  rollout: parts.rollout,
  reward: parts.reward,
  algorithm: learning.algorithm,
  reinforce: learning.reinforce,
  rloo: learning.rloo,
  grpo: learning.grpo,
  ppo: learning.ppo,
  ste: learning.ste,
  update: learning.update,
  kl: learning.kl,
  optimizer: going.optimizer,
  ema: going.ema,
  precision: going.precision,
  eval: going.evaluation,
  save: going.save,
  log: going.log,
  limits: going.limits,
  train: going.train,
});

/** Every key, in order. */
export const configKeys: readonly Key[] = keysOf(configSchema);

/** Options of the policies' classes that may stand in `ar` itself. */
const CLASS_OPTIONS: readonly string[] = [
  "attnDropoutP",
  "attnPdrop",
  "captionDim",
  "classNum",
  "clsTokenNum",
  "clsTokenNumber",
  "dim",
  "dropPathRate",
  "embdPdrop",
  "ffnDim",
  "ffnDropoutP",
  "initializerRange",
  "modelType",
  "multipleOf",
  "nCodebookEmbd",
  "nKvHead",
  "normEps",
  "numClasses",
  "residDropoutP",
  "residPdrop",
  "ropeBase",
  "tokenDrop",
  "tokenDropoutP",
  "usePretrainedCodebook",
];

/** Terms of the reward that `reward.type` can name. */
const REWARD_TERMS: readonly string[] = configKeys.flatMap(({ path: [top, term, last] }) =>
  top === "reward" && last === "weight" && term !== undefined && term !== "custom" ? [term] : [],
);

/** Values in other spellings, by path. */
export const SPELLINGS: Readonly<Record<string, Readonly<Record<string, unknown>>>> = {
  "ar.type": { llammagen: "llamagen" },
  "reward.normalize": { true: "batch", false: "none" },
  "precision.policy": { bf16: "bfloat16", fp32: "float32" },
  "precision.rewards": { bf16: "bfloat16", fp32: "float32" },
};

/** Other names of keys of tokenizer, policy and optimizer, which are the same wherever these are. */
export const MODEL_ALIASES: Readonly<Record<string, readonly string[]>> = {
  vqModel: ["tokenizer.model"],
  "ar.lr": ["optimizer.lr"],
  "ar.weightDecay": ["optimizer.weightDecay"],
  "ar.betas": ["optimizer.betas"],
  // A section's main key.
  tokenizer: ["tokenizer.model"],
  ...Object.fromEntries(CLASS_OPTIONS.map((name) => [`ar.${name}`, [`ar.extra.${name}`]])),
};

/** The other names of keys, and the keys that they stand for. */
export const CONFIG_ALIASES: Readonly<Record<string, readonly string[]>> = {
  ...MODEL_ALIASES,
  "reward.type": REWARD_TERMS.map((term) => `reward.${term}.weight`),
  "grpo.enabled": ["algorithm"],
  "grpo.numGenerations": ["rollout.numGenerations"],
  "grpo.clipRange": ["grpo.clipLow", "grpo.clipHigh"],
  "ppo.clipRange": ["ppo.clipLow", "ppo.clipHigh"],
  "train.logEvery": ["log.every"],
  "train.saveEvery": ["save.every"],
  "train.ckptPath": ["save.ckptPath"],
  "rollout.context": ["rollout.context.type"],
  "rollout.guidance": ["rollout.guidance.scale"],
};

/** Names whose value is another one under the key that they stand for. */
export const MEANINGS: Readonly<Record<string, (value: unknown) => Meaning>> = {
  "grpo.enabled": (value) => {
    if (typeof value !== "boolean") return { expected: "true or false" };
    return [{ path: "algorithm", value: value ? "grpo" : "reinforce" }];
  },
  // Sets the other weights to 0, unless they are given too.
  "reward.type": (value) => {
    const name = String(value).replace(/[_-]([a-z])/g, (_, letter: string) => letter.toUpperCase());
    if (!REWARD_TERMS.includes(name)) return { expected: `one of ${REWARD_TERMS.join(", ")}` };
    return REWARD_TERMS.map((term) => ({
      path: `reward.${term}.weight`,
      value: term === name ? 1 : 0,
      isWeak: true,
    }));
  },
};
