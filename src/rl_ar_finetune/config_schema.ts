/**
 * The one schema of a training configuration: types, defaults, ranges, help and other spellings all come from here.
 * Reading values is done in `config_input.ts`, relations between keys are in `config_rules.ts`.
 */
import * as z from "zod";

import { type Key, key, keysOf, section } from "./config_key.js";
import * as parts from "./config_keys.js";
import type { TrainConfig } from "./config_types.js";
import * as learning from "./config_update_keys.js";

/** The zod schema of a whole configuration. */
export const configSchema: z.ZodType<TrainConfig> = section<TrainConfig>({
  preset: key(
    z.string().min(1).nullable(),
    null,
    "values to start from: seed, vapi or completion",
    "Start from completion; vapi and seed repeat what others describe.",
  ),
  seed: key(
    z.int().min(0),
    0,
    "decides every random number of the run",
    "Run several before believing a small difference.",
  ),
  run: parts.run,
  data: parts.data,
  dataloader: parts.dataloader,
  tokenizer: parts.tokenizer,
  ar: parts.ar,
  blockSize: parts.blockSize,
  rollout: parts.rollout,
  reward: parts.reward,
  algorithm: learning.algorithm,
  reinforce: learning.reinforce,
  rloo: learning.rloo,
  grpo: learning.grpo,
  ppo: learning.ppo,
  update: learning.update,
  kl: learning.kl,
  optimizer: learning.optimizer,
  ema: learning.ema,
  precision: learning.precision,
  eval: learning.evaluation,
  save: learning.save,
  log: learning.log,
  limits: learning.limits,
  train: learning.train,
});

/** Every key, in order. */
export const configKeys: readonly Key[] = keysOf(configSchema);

const byPath: ReadonlyMap<string, Key> = new Map(configKeys.map((key) => [key.path.join("."), key]));

const sections: ReadonlySet<string> = new Set(
  configKeys.flatMap(({ path }) => path.slice(0, -1).map((_, i) => path.slice(0, i + 1).join("."))),
);

/** The key at a path such as `rollout.temperature`. */
export function keyAt(path: string): Key | undefined {
  return byPath.get(path);
}

/** Whether a path such as `rollout.guidance` names keys and not a value. */
export function isSection(path: string): boolean {
  return sections.has(path);
}

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
const VALUES: Readonly<Record<string, Readonly<Record<string, unknown>>>> = {
  "ar.type": { llammagen: "llamagen" },
  "reward.normalize": { true: "batch", false: "none" },
  "precision.policy": { bf16: "bfloat16", fp32: "float32" },
  "precision.rewards": { bf16: "bfloat16", fp32: "float32" },
};

/** The other names of keys, and the keys that they stand for. */
export const CONFIG_ALIASES: Readonly<Record<string, readonly string[]>> = {
  vqModel: ["tokenizer.model"],
  "ar.lr": ["optimizer.lr"],
  "ar.weightDecay": ["optimizer.weightDecay"],
  "ar.betas": ["optimizer.betas"],
  "reward.type": REWARD_TERMS.map((term) => `reward.${term}.weight`),
  "grpo.enabled": ["algorithm"],
  "grpo.numGenerations": ["rollout.numGenerations"],
  "grpo.clipRange": ["grpo.clipLow", "grpo.clipHigh"],
  "ppo.clipRange": ["ppo.clipLow", "ppo.clipHigh"],
  "train.logEvery": ["log.every"],
  "train.saveEvery": ["save.every"],
  "train.ckptPath": ["save.ckptPath"],
  // A section's main key.
  tokenizer: ["tokenizer.model"],
  "rollout.context": ["rollout.context.type"],
  "rollout.guidance": ["rollout.guidance.scale"],
  ...Object.fromEntries(CLASS_OPTIONS.map((name) => [`ar.${name}`, [`ar.extra.${name}`]])),
};

/** A value under its own key. */
export interface Assigned {
  readonly path: string;
  readonly value: unknown;
}

/** What an assignment to another name or in another spelling stands for, itself where it is none; or what was expected. */
export function withoutAlias(
  path: string,
  value: unknown,
): readonly Assigned[] | { readonly expected: string } {
  const targets = Object.hasOwn(CONFIG_ALIASES, path)
    ? (CONFIG_ALIASES[path] as readonly string[])
    : undefined;
  if (targets === undefined) {
    const spellings = Object.hasOwn(VALUES, path) ? VALUES[path] : undefined;
    const isSpelling = spellings !== undefined && Object.hasOwn(spellings, String(value));
    return [{ path, value: isSpelling ? spellings[String(value)] : value }];
  }
  if (path === "grpo.enabled") {
    if (typeof value !== "boolean") return { expected: "true or false" };
    return [{ path: "algorithm", value: value ? "grpo" : "reinforce" }];
  }
  if (path === "reward.type") {
    const name = String(value).replace(/[_-]([a-z])/g, (_, letter: string) => letter.toUpperCase());
    if (!REWARD_TERMS.includes(name)) return { expected: `one of ${REWARD_TERMS.join(", ")}` };
    return REWARD_TERMS.map((term) => ({ path: `reward.${term}.weight`, value: term === name ? 1 : 0 }));
  }
  return targets.map((target) => ({ path: target, value }));
}
