/** The kind of configuration that `rlar train` reads: its schema, presets, rules and names, as one value. */
import { type ConfigKind, configKind } from "./kind.js";
import { CONFIG_ALIASES, MEANINGS, SPELLINGS } from "./names.js";
import { presets } from "./presets.js";
import { missingParts, notesOf, problemsOf, TERMS } from "./rules.js";
import { configSchema, type RewardTerm, resumedBy, type TrainConfig } from "./train.js";

/** Keys that say which weights adapters are added to: a checkpoint of adapters does not hold those. */
const ADAPTED = /^ar\.(path|wrapper|weights|policy)$/;

/** What `rlar train` is configured by. */
export const trainKind: ConfigKind<TrainConfig> = configKind<TrainConfig>({
  name: "train",
  schema: configSchema,
  presets,
  aliases: CONFIG_ALIASES,
  meanings: MEANINGS,
  spellings: SPELLINGS,
  problems: problemsOf,
  missing: missingParts,
  notes: notesOf,
  onResume: (path, after) => {
    // Nothing else depends on where the run ends; whether its warm-up is over, the run knows.
    if (path === "train.iters") return after.optimizer.schedule === "constant" ? "free" : "forced";
    if (after.ar.lora.rank !== null && ADAPTED.test(path)) return "forced";
    return resumedBy(path);
  },
  memory:
    "Lower rollout.microBatch, update.microBatch, tokenizer.decodeBatch or reward.chunk, which change no result beyond rounding; " +
    "set ar.gradientCheckpointing; or lower rollout.images or rollout.numGenerations",
  nameOf: ({ preset, algorithm }) => preset ?? algorithm,
});

/** Terms of the reward with the file of a network: the section of each, such as `reward.patchGan`, by its name in metrics. */
export const NETWORK_TERMS: ReadonlyMap<string, string> = new Map(
  trainKind.keys.flatMap(({ path: [section, term, key] }) =>
    section === "reward" && key === "path" ? [[TERMS[term as RewardTerm].metric, `reward.${term}`]] : [],
  ),
);
