/**
 * Other names of the keys of `rlar train` and other spellings of their values, and the type of a configuration that may use
 * them. The keys themselves are in `train.ts`.
 */
import { keysOf } from "./key.js";
import type { Meaning } from "./kind.js";
import type { AliasValues, ConfigInput, SnakeCase, SpelledValues } from "./spelling.js";
import { configSchema, type RewardFunction, type RewardTerm } from "./train.js";

const REWARD_TERMS = keysOf(configSchema).flatMap(({ path: [top, name, last] }) =>
  top === "reward" && last === "weight" ? [name as RewardTerm] : [],
);

/** Names of papers for the mean over tokens, which they all are while sequences have one length. */
const MEANS = { grpo: "mean", bnpo: "mean", dapo: "mean", dr_grpo: "mean" };

/** Values in other spellings, by path. */
export const SPELLINGS = {
  "ar.type": { llammagen: "llamagen" },
  "grpo.aggregation": MEANS,
  "ppo.aggregation": MEANS,
  "reward.normalize": { true: "batch", false: "none" },
  "precision.policy": { bf16: "bfloat16", fp32: "float32" },
  "precision.tokenizer": { bf16: "bfloat16", fp32: "float32" },
  "precision.rewards": { bf16: "bfloat16", fp32: "float32" },
};

/** Other names of keys of tokenizer, policy and optimizer, which `rlar pretrain` has as well. */
export const MODEL_ALIASES = {
  vqModel: ["tokenizer.model"],
  tokenizer: ["tokenizer.model"],
  "ar.lr": ["optimizer.lr"],
  "ar.weightDecay": ["optimizer.weightDecay"],
  "ar.betas": ["optimizer.betas"],
  "ar.attnDropoutP": ["ar.extra.attnDropoutP"],
  "ar.attnPdrop": ["ar.extra.attnPdrop"],
  "ar.captionDim": ["ar.extra.captionDim"],
  "ar.classNum": ["ar.extra.classNum"],
  "ar.clsTokenNum": ["ar.extra.clsTokenNum"],
  "ar.clsTokenNumber": ["ar.extra.clsTokenNumber"],
  "ar.dim": ["ar.extra.dim"],
  "ar.dropPathRate": ["ar.extra.dropPathRate"],
  "ar.embdPdrop": ["ar.extra.embdPdrop"],
  "ar.ffnDim": ["ar.extra.ffnDim"],
  "ar.ffnDropoutP": ["ar.extra.ffnDropoutP"],
  "ar.initializerRange": ["ar.extra.initializerRange"],
  "ar.modelType": ["ar.extra.modelType"],
  "ar.multipleOf": ["ar.extra.multipleOf"],
  "ar.nCodebookEmbd": ["ar.extra.nCodebookEmbd"],
  "ar.nKvHead": ["ar.extra.nKvHead"],
  "ar.normEps": ["ar.extra.normEps"],
  "ar.numClasses": ["ar.extra.numClasses"],
  "ar.residDropoutP": ["ar.extra.residDropoutP"],
  "ar.residPdrop": ["ar.extra.residPdrop"],
  "ar.ropeBase": ["ar.extra.ropeBase"],
  "ar.tokenDrop": ["ar.extra.tokenDrop"],
  "ar.tokenDropoutP": ["ar.extra.tokenDropoutP"],
  "ar.usePretrainedCodebook": ["ar.extra.usePretrainedCodebook"],
} as const;

/** Other names of keys, and the keys that they stand for. */
export const CONFIG_ALIASES = {
  ...MODEL_ALIASES,
  "reward.type": REWARD_TERMS.map((name) => `reward.${name}.weight`),
  "reward.custom.fn": ["reward.custom.custom.fn"],
  "reward.custom.weight": ["reward.custom.custom.weight"],
  "grpo.enabled": ["algorithm"],
  "grpo.numGenerations": ["rollout.numGenerations"],
  "grpo.clipRange": ["grpo.clipLow", "grpo.clipHigh"],
  "ppo.clipRange": ["ppo.clipLow", "ppo.clipHigh"],
  "train.logEvery": ["log.every"],
  "train.saveEvery": ["save.every"],
  "train.ckptPath": ["save.ckptPath"],
  "rollout.context": ["rollout.context.type"],
  "rollout.guidance": ["rollout.guidance.scale"],
} as const;

/** Defaults of the original description, which a run with `grpo.enabled` takes unless they are set. */
const ORIGINAL: Readonly<Record<string, unknown>> = {
  "update.auxCe": 0,
  "grpo.clipLow": 0.2,
  "grpo.clipHigh": 0.2,
  "grpo.advantageClip": null,
  "optimizer.schedule": "constant",
  "optimizer.warmup": 0,
};

/** Names whose value means another value under the key that they stand for. */
export const MEANINGS: Readonly<Record<string, (value: unknown) => Meaning>> = {
  "grpo.enabled": (value) => {
    if (typeof value !== "boolean") return { expected: "true or false" };
    return [
      { path: "algorithm", value: value ? "grpo" : "reinforce" },
      ...Object.entries(ORIGINAL).map(([path, given]) => ({ path, value: given, rank: "default" as const })),
    ];
  },
  // Sets the other weights to 0, unless they are given too.
  "reward.type": (value) => {
    const name = (typeof value === "string" ? value : "").replace(/[_-]([a-z])/g, (_, letter: string) =>
      letter.toUpperCase(),
    );
    if (!REWARD_TERMS.some((term) => term === name)) return { expected: `one of ${REWARD_TERMS.join(", ")}` };
    return REWARD_TERMS.map((term) => ({
      path: `reward.${term}.weight`,
      value: term === name ? 1 : 0,
      rank: "weak" as const,
    }));
  },
};

/**
 * What a program passes: any part of a {@link TrainConfig}. Keys may be in camelCase or snake_case, and have the other
 * names that `rlar config explain` lists, so that a configuration in the form of the original description compiles:
 * `const cfg: TrainConfigInput = { ... }`.
 */
export type TrainConfigInput = ConfigInput<
  typeof configSchema,
  AliasValues<typeof configSchema, Omit<typeof CONFIG_ALIASES, keyof OtherValues>> &
    SpelledValues<typeof SPELLINGS> &
    OtherValues
>;

/** Values of other names that are not those of the key that they stand for. */
interface OtherValues {
  "reward.type": RewardTerm | SnakeCase<RewardTerm>;
  "reward.custom.fn": RewardFunction | null;
  "reward.custom.weight": number;
  "grpo.enabled": boolean;
}
