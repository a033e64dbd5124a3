/** The configuration of `rlar train`: schema, presets and rules as one. */
import { type ConfigKind, configKind } from "./kind.js";
import { presets } from "./presets.js";
import { missingParts, notesOf, problemsOf } from "./rules.js";
import { CONFIG_ALIASES, configSchema, MEANINGS, SPELLINGS } from "./train_schema.js";
import type { TrainConfig } from "./types.js";

/** Keys that say where a run goes and what is watched, and not what it computes. */
const FREE: ReadonlySet<string> = new Set([
  "preset",
  "run.dir",
  "run.ifExists",
  "data.source",
  "data.workers",
  "ar.gradientCheckpointing",
  "eval.every",
  "eval.patience",
]);

/** Whether a key of any kind only says where a run goes and what is watched. */
export function isFree(path: string): boolean {
  return FREE.has(path) || /^(save|log|limits)\./.test(path);
}

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
  mayChange: (path, after) => {
    // Nothing else depends on where the run ends; whether its warm-up is over, the run knows.
    if (path === "train.iters") return after.optimizer.schedule === "constant";
    return isFree(path);
  },
  nameOf: ({ preset, algorithm }) => preset ?? algorithm,
});
