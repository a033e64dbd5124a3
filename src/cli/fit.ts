/** `rlar pretrain`, `rlar tokenizer` and `rlar classifier`: the commands of supervised training. */
import { existsSync, statSync } from "node:fs";
import { join } from "node:path";
import { classifierKind } from "../config/classifier.js";
import { rlarCommand } from "../config/command.js";
import { configYaml } from "../config/explain.js";
import { pretrainKind } from "../config/pretrain.js";
import type { ConfigKind } from "../config/resolve.js";
import { tokenizerKind } from "../config/tokenizer.js";
import { writeReport } from "../dashboard/report.js";
import { isSpeaker } from "../distributed/index.js";
import { print } from "../run/console.js";
import { openClassifierTask } from "../trainers/classifier.js";
import { type FitConfig, type FitOpening, type FitTask, fitLoop } from "../trainers/loop.js";
import { openPretrainTask } from "../trainers/policy.js";
import { openTokenizerTask } from "../trainers/tokenizer.js";
import { askOnTerminal } from "./ask.js";
import { readConfig } from "./config.js";
import { interruptible, interruptionCode } from "./interrupt.js";
import { resumeCommand, sampleCommand } from "./next.js";

/** Options of these commands. */
export interface FitCommandOptions {
  preset?: string;
  dryRun?: boolean;
  force?: boolean;
  json?: boolean;
}

/** What a command trains: its kind of configuration, and how to make a task from a configuration. */
interface Trainer<T extends FitConfig> {
  readonly kind: ConfigKind<T>;
  open(config: T, opening: FitOpening): Promise<FitTask>;
  /** What to do with the result, a line each. */
  next(config: T, dir: string, model: string): string[];
}

/** The action of a command. It returns the exit code: 0, or 128 plus the signal's number after an interruption. */
type FitCommand = (args: readonly string[], options: FitCommandOptions) => Promise<number>;

/** `rlar pretrain`. */
export const pretrain: FitCommand = command({
  kind: pretrainKind,
  open: openPretrainTask,
  next: ({ pretrain: { start } }, dir) => {
    const samples = sampleCommand(dir, start);
    return samples === null ? [] : [`samples: ${samples}`];
  },
});

/** `rlar tokenizer`. */
export const tokenizer: FitCommand = command({
  kind: tokenizerKind,
  open: openTokenizerTask,
  next: ({ data: { source, size, crop } }, dir, model) => {
    // The command reads folders of image files alone.
    if (source === null || statSync(source, { throwIfNoEntry: false })?.isDirectory() !== true) return [];
    const options = [
      "--tokenizer",
      model,
      "--size",
      String(size),
      ...(crop === "center" ? [] : ["--crop", crop]),
    ];
    return [
      `reconstructions: ${rlarCommand(["reconstruct", source, ...options, "--out", join(dir, "reconstruct.png")])}`,
    ];
  },
});

/** `rlar classifier`. */
export const classifier: FitCommand = command({
  kind: classifierKind,
  open: openClassifierTask,
  next: (_, __, model) => [`what is in it: ${rlarCommand(["inspect", model])}`],
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
    if (!isSpeaker()) return end === "interrupted" ? interruptionCode() : 0;
    const page = await writeReport(dir);
    if (!json) {
      const isOver = end === "patience";
      const resume = resumeCommand(kind.name, dir, ...(isOver ? ["eval.patience=0"] : []));
      const lines = [
        `${isOver ? "no better any more" : end} after update ${step}: ${dir}`,
        `look at it: ${page}`,
        ...(end === "done" ? [] : [`resume: ${resume}`]),
        ...(existsSync(model) ? trainer.next(resolved.config, dir, model) : []),
      ];
      print(process.stdout, `${lines.join("\n")}\n`);
    }
    return end === "interrupted" ? interruptionCode() : 0;
  };
}
