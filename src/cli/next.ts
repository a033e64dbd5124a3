/** What is said at the end of a run: what came of it, and the commands that go on from there, each ready to be pasted. */
import { existsSync } from "node:fs";
import { join } from "node:path";

import { rlarCommand } from "../config/command.js";
import type { TrainConfig } from "../config/resolve.js";
import { optionsOfRun } from "../evaluation/options.js";
import type { TrainResult } from "../rl_ar_finetune/train_loop.js";
import { short } from "../run/console.js";
import { readLines } from "../run/log.js";
import { conditioningOfFile } from "./classes.js";

/** The command that goes on with a run. */
export function resumeCommand(command: string, dir: string, ...changes: readonly string[]): string {
  return rlarCommand([
    command,
    join(dir, "config.yaml"),
    `run.dir=${dir}`,
    "run.ifExists=resume",
    ...changes,
  ]);
}

/** Classes that a printed command draws. */
const DRAWN = 4;

/**
 * The command that draws samples from a run's policy.
 *
 * @param start - what the run's sequences started from.
 * @param averaged - file of a policy to draw from in place of the run's.
 * @returns null where the run has no policy or tokenizer in files, or draws from texts, whose features only the user has.
 */
export function sampleCommand(run: string, start: "condition" | "empty", averaged?: string): string | null {
  const { against, policy, tokenizer } = optionsOfRun(run);
  const drawn = averaged === undefined ? (against ?? policy) : { path: averaged };
  if (drawn === undefined || tokenizer === undefined) return null;
  const conditioning = conditioningOfFile(drawn.path);
  if (conditioning === null) return null;
  const { kind, numClasses, names } = conditioning;
  if (kind === "features" && start === "condition") return null;
  const isFree = start === "empty" || kind === "nothing";
  // Spread over the classes: the first are often alike.
  const known = names.length > 0 ? names.length : numClasses;
  const count = Math.min(DRAWN, known);
  const ids = Array.from({ length: count }, (_, i) => Math.floor((i * known) / count));
  const what = isFree ? ["--unconditional"] : ["--class", ids.join(",")];
  const decoder = typeof tokenizer === "string" ? tokenizer : tokenizer.path;
  const which = averaged === undefined ? ["--run", run] : ["--policy", averaged, "--tokenizer", decoder];
  return rlarCommand(["sample", ...which, ...what, "--out", join(run, "sample.png")]);
}

/** The command that judges a run before and after, or what is missing for one. */
export function evalCommand(run: string, { eval: { perceptual } }: TrainConfig): string {
  const features = perceptual === null ? [] : ["--features", perceptual];
  const made = ["--json", join(run, "eval.json"), "--out", join(run, "eval")];
  return rlarCommand(["eval", "--run", run, ...features, "--temperatures", "1,0.8", ...made]);
}

/** Steps at either end of a run whose rewards are averaged where nothing was evaluated. */
const AVERAGED = 5;

/** The reward before and after, with its ceiling; null where there is no number. */
export function rewardText({ dir, first, last }: Pick<TrainResult, "dir" | "first" | "last">): string | null {
  const path = join(dir, "metrics.jsonl");
  const records = existsSync(path) ? readLines(path).records.map(({ record }) => record) : [];
  const numbers = (name: string): number[] =>
    records.map((record) => record[name]).filter((value) => typeof value === "number");
  const mean = (values: readonly number[]): number =>
    values.reduce((sum, value) => sum + value, 0) / values.length;
  const ceilings = numbers("reward/vq_ceiling");
  const ceiling =
    ceilings.length === 0
      ? ""
      : ` (ceiling ${short(mean(ceilings))}: the tokenizer's own reconstructions of training images)`;
  const held = [first, last].map((evaluation) => evaluation?.spreads["eval/reward"]?.mean);
  if (held[0] !== undefined && held[1] !== undefined)
    return `reward of held-out images: ${short(held[0])} -> ${short(held[1])}${ceiling}`;
  const rewards = numbers("reward/mean");
  if (rewards.length === 0) return null;
  const some = Math.min(AVERAGED, Math.ceil(rewards.length / 2));
  const [before, after] = [mean(rewards.slice(0, some)), mean(rewards.slice(-some))];
  const which = some === 1 ? "the first step and the last" : `the first and last ${some} steps`;
  return `reward of training images, ${which}: ${short(before)} -> ${short(after)}${ceiling}`;
}
