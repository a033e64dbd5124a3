/** `rlar pretrain`, `rlar tokenizer` and `rlar classifier`: the commands that learn from examples. */
import { existsSync } from "node:fs";
import { classifierKind } from "../config/classifier.js";
import { configYaml } from "../config/explain.js";
import { pretrainKind } from "../config/pretrain.js";
import type { ConfigKind } from "../config/resolve.js";
import { tokenizerKind } from "../config/tokenizer.js";
import { writeReport } from "../dashboard/report.js";
import { print } from "../run/console.js";
import { openClassifierTask } from "../trainers/classifier.js";
import { type FitConfig, type FitOpening, type FitTask, fitLoop } from "../trainers/loop.js";
import { openPretrainTask } from "../trainers/policy.js";
import { openTokenizerTask } from "../trainers/tokenizer.js";
import { askOnTerminal } from "./ask.js";
import { readConfig } from "./config.js";
import { interruptible, interruptionCode } from "./interrupt.js";

/** Options of these commands. */
export interface FitCommandOptions {
  preset?: string;
  dryRun?: boolean;
  force?: boolean;
  json?: boolean;
}

/** What is trained: its configuration, and how a task is made of one. */
interface Trainer<T extends FitConfig> {
  readonly kind: ConfigKind<T>;
  open(config: T, opening: FitOpening): Promise<FitTask>;
  /** What to do with the result. */
  next(config: T, model: string): string;
}

/** The action of a command; it gives the exit code: 0, or 128 and the signal's number after an interruption. */
type FitCommand = (args: readonly string[], options: FitCommandOptions) => Promise<number>;

/** `rlar pretrain`. */
export const pretrain: FitCommand = command({
  kind: pretrainKind,
  open: openPretrainTask,
  next: ({ tokenizer: { path } }, model) =>
    `samples: rlar sample --policy ${model} --tokenizer ${path} --class 0`,
});

/** `rlar tokenizer`. */
export const tokenizer: FitCommand = command({
  kind: tokenizerKind,
  open: openTokenizerTask,
  next: ({ data: { size } }, model) =>
    `reconstructions: rlar reconstruct IMAGES --tokenizer ${model} --size ${size}`,
});

/** `rlar classifier`. */
export const classifier: FitCommand = command({
  kind: classifierKind,
  open: openClassifierTask,
  next: (_, model) => `what is in it: rlar inspect ${model}`,
});

function command<T extends FitConfig>(trainer: Trainer<T>): FitCommand {
  return async (args, { preset, dryRun, force = false, json = false }) => {
    const { kind } = trainer;
    const resolved = readConfig(kind, args, { preset });
    if (dryRun) {
      process.stdout.write(configYaml(resolved.config, { comments: true, kind }));
      for (const note of resolved.notes) process.stdout.write(`# ${note}\n`);
      return 0;
    }
    const ask = json ? undefined : askOnTerminal();
    const { dir, step, end, model } = await interruptible((signal) =>
      fitLoop(resolved, (opening) => trainer.open(resolved.config, opening), {
        signal,
        force,
        json,
        ...(ask && { ask }),
      }),
    );
    const page = await writeReport(dir);
    if (!json) {
      const isOver = end === "patience";
      const how = isOver ? "no better any more" : end;
      print(
        process.stdout,
        `${how} after update ${step}: ${dir}\n` +
          `look at it: ${page}\n` +
          `resume: the same command with run.dir=${dir} run.ifExists=resume${isOver ? " eval.patience=0" : ""}\n` +
          (existsSync(model) ? `${trainer.next(resolved.config, model)}\n` : ""),
      );
    }
    return end === "interrupted" ? interruptionCode() : 0;
  };
}
