/** `rlar train`: start or resume a run of reinforcement learning, or show its configuration with `--dry-run`. */

import { join } from "node:path";
import { configYaml, plainConfig } from "../config/explain.js";
import type { PresetName } from "../config/presets.js";
import type { ResolvedConfig, TrainConfig } from "../config/resolve.js";
import { trainKind } from "../config/train_kind.js";
import { writeReport } from "../dashboard/report.js";
import { isSpeaker } from "../distributed/index.js";
import { planTrain } from "../plan/plan.js";
import { type TrainResult, trainRlLoop } from "../rl_ar_finetune/train_loop.js";
import { listCheckpoints } from "../run/checkpoint.js";
import { print } from "../run/console.js";
import { askOnTerminal } from "./ask.js";
import { readConfig } from "./config.js";
import { interruptible, interruptionCode } from "./interrupt.js";
import { evalCommand, resumeCommand, rewardText, sampleCommand } from "./next.js";
import { planText } from "./plan.js";

/** Options of `rlar train`. */
export interface TrainCommandOptions {
  preset?: PresetName;
  dryRun?: boolean;
  /** With `dryRun`: time this machine as well. */
  measure?: boolean;
  force?: boolean;
  json?: boolean;
}

/** What must be added to the command to resume a run that ended before its last iteration. */
const GO_ON: Partial<Record<TrainResult["end"], readonly string[]>> = {
  patience: ["eval.patience=0"],
  kl: ["kl.stop=null", "--force"],
  alarm: ["alarm.action=warn"],
};

/** How a run ended, in words. */
const ENDS: Readonly<Record<TrainResult["end"], string>> = {
  done: "done",
  interrupted: "interrupted",
  patience: "no better any more",
  kl: "too far from the reference (kl.stop)",
  alarm: "the reward rose while every metric outside it fell (alarm.action)",
};

/**
 * Run a configuration; a signal such as Ctrl-C ends it as `interrupt.ts` says.
 *
 * @returns the exit code: 0, or 128 and the signal's number after an interruption.
 */
export async function train(args: readonly string[], options: TrainCommandOptions): Promise<number> {
  const resolved = readConfig(trainKind, args, { preset: options.preset });
  const { config } = resolved;
  if (options.dryRun) {
    await dryRun(resolved, options);
    return 0;
  }
  const { force = false, json = false } = options;
  const ask = json ? undefined : askOnTerminal();
  const result = await interruptible((signal) =>
    trainRlLoop(resolved, { signal, force, json, ...(ask && { ask }) }),
  );
  const { dir, end } = result;
  if (!isSpeaker()) return end === "interrupted" ? interruptionCode() : 0;
  const page = await writeReport(dir);
  if (!json) print(process.stdout, endText(config, result, page));
  return end === "interrupted" ? interruptionCode() : 0;
}

/** What came of a run, and what to do next. */
function endText(config: TrainConfig, result: TrainResult, page: string): string {
  const { dir, step, end } = result;
  const reward = rewardText(result);
  const isMade = listCheckpoints(join(dir, "checkpoints")).length > 0;
  const samples = isMade ? sampleCommand(dir, config.rollout.start) : null;
  const hasHeldOut = config.data.evalSource !== null || config.data.evalPart > 0;
  return [
    `${ENDS[end]} after step ${step}: ${dir}`,
    ...(reward === null ? [] : [reward]),
    `look at it: ${page}`,
    ...(end === "done" ? [] : [`resume: ${resumeCommand("train", dir, ...(GO_ON[end] ?? []))}`]),
    ...(isMade && hasHeldOut ? [`judge it: ${evalCommand(dir, config)}`] : []),
    ...(samples === null ? [] : [`samples: ${samples}`]),
    "",
  ].join("\n");
}

/** Print the configuration, and what follows from it as comments, so that the output is a configuration file. */
async function dryRun(
  { config, notes }: ResolvedConfig,
  { measure = false, json = false }: TrainCommandOptions,
): Promise<void> {
  if (json) {
    const plan = await planTrain(config, { measure });
    process.stdout.write(`${JSON.stringify({ config: plainConfig(config), notes, plan }, null, 2)}\n`);
    return;
  }
  process.stdout.write(`${configYaml(config, { comments: true })}\n`);
  for (const note of notes) process.stdout.write(`# ${note}\n`);
  const text = planText(await planTrain(config, { measure }));
  process.stdout.write(text.replace(/^/gm, "# ").replace(/# $/, ""));
}
