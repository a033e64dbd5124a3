/** `rlar plan`: a training run worked out before it is started, as text or JSON. */

import type { PresetName } from "../config/presets.js";
import type { TrainConfig } from "../config/resolve.js";
import { trainKind } from "../config/train_kind.js";
import { type Fits, planTrain, type TrainPlan } from "../plan/plan.js";
import { readConfig } from "./config.js";

/** Options of `rlar plan`. */
export interface PlanCommandOptions {
  preset?: PresetName;
  /** False with `--no-measure`. */
  measure: boolean;
  json?: boolean;
}

/** Print what a run of `rlar train` with the same arguments would take. */
export async function plan(args: readonly string[], options: PlanCommandOptions): Promise<void> {
  const { config, notes } = readConfig(trainKind, args, { preset: options.preset });
  await printPlan(config, options);
  if (!options.json) for (const note of notes) process.stdout.write(`note: ${note}\n`);
}

/** Work out and print a configuration. */
export async function printPlan(
  config: TrainConfig,
  { measure, json }: Pick<PlanCommandOptions, "measure" | "json">,
): Promise<void> {
  const planned = await planTrain(config, { measure });
  process.stdout.write(json ? `${JSON.stringify(planned, null, 2)}\n` : planText(planned));
}

const count = (value: number): string => value.toLocaleString("en");

function bytes(value: number): string {
  if (value >= 2 ** 30) return `${(value / 2 ** 30).toFixed(2)} GiB`;
  return value >= 2 ** 20 ? `${(value / 2 ** 20).toFixed(1)} MiB` : `${(value / 2 ** 10).toFixed(0)} KiB`;
}

function operations(value: number): string {
  if (value === 0) return "-";
  const [unit, size] = (
    [
      ["PFLOP", 1e15],
      ["TFLOP", 1e12],
      ["GFLOP", 1e9],
      ["MFLOP", 1e6],
    ] as const
  ).find(([, least]) => value >= least) ?? ["MFLOP", 1e6];
  return `${(value / size).toPrecision(3)} ${unit}`;
}

function duration(seconds: number): string {
  if (seconds < 0.01) return `${(seconds * 1000).toFixed(1)} ms`;
  if (seconds < 1) return `${(seconds * 1000).toFixed(0)} ms`;
  if (seconds < 120) return `${seconds.toFixed(1)} s`;
  return seconds < 7200 ? `${(seconds / 60).toFixed(1)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

/** Columns, the first to the left and the others to the right, below a title. */
function table(title: string, rows: readonly (readonly string[])[]): string {
  const widths = (rows[0] ?? []).map((_, c) => Math.max(...rows.map((row) => row[c]?.length ?? 0)));
  const lines = rows.map((row) =>
    row
      .map((cell, c) => (c === 0 ? cell.padEnd(widths[c] as number) : cell.padStart(widths[c] as number)))
      .join("  ")
      .trimEnd(),
  );
  return `${title}\n${lines.map((line) => `  ${line}\n`).join("")}`;
}

const VERDICT: Readonly<Record<Fits, string>> = {
  yes: "it fits",
  tight: "it may not fit: the estimate may be off by a quarter",
  no: "it does not fit",
  unknown: "how much there is is not known",
};

/** A plan for people. */
export function planText(planned: TrainPlan): string {
  const { models, memory } = planned;
  return [
    table("models, parameters", [
      ...models.map(({ name, what, parameters, trained }) => [
        `${name}: ${what}`,
        count(parameters),
        trained === 0 ? "frozen" : trained === parameters ? "trained" : `${count(trained)} trained`,
      ]),
    ]),
    batchText(planned),
    table(`memory, ${planned.device}`, [
      ...memory.fixed.map(({ name, bytes: size }) => [name, bytes(size)]),
      ...memory.phases.flatMap(({ name, bytes: size, parts }) => [
        [`+ ${name}`, bytes(size)],
        // Where little of it is, what it is of does not matter.
        ...parts
          .filter((part) => part.bytes >= 0.02 * memory.peakBytes)
          .map((part) => [`    ${part.name}`, "", bytes(part.bytes)]),
      ]),
      [`peak, at ${memory.largestPhase}`, bytes(memory.peakBytes)],
    ]),
    `  ${memory.totalBytes === null ? "" : `of ${bytes(memory.totalBytes)}, ${bytes(memory.freeBytes ?? 0)} of it free now: `}${VERDICT[memory.fits]}\n`,
    memory.fits === "yes"
      ? ""
      : table(
          "lower first",
          memory.lower.map((key) => [key]),
        ),
    workText(planned),
    diskText(planned),
  ].join("");
}

/** A number of things, in their singular or plural. */
const some = (number: number, thing: string): string => `${count(number)} ${thing}${number === 1 ? "" : "s"}`;

function batchText({ images, batch }: TrainPlan): string {
  const { sequences, rows, codes, tokens, miniBatch, miniBatches, steps, microBatch } = batch;
  const epochs =
    batch.stepsPerEpoch === null || batch.epochs === null
      ? some(batch.iters, "step")
      : `${batch.stepsPerEpoch.toFixed(1)} steps an epoch, ${batch.epochs.toFixed(2)} epochs in ${some(batch.iters, "step")}`;
  const found =
    images === null
      ? "a program's own"
      : `${count(images.train)} to train on, ${count(images.heldOut)} set apart`;
  return table("batch", [
    [`images: ${found}; ${epochs}`],
    [
      `a rollout: ${some(batch.images, "image")} x ${batch.numGenerations} = ${some(sequences, "sequence")} of ` +
        `${codes} codes, ${count(tokens)} codes drawn`,
    ],
    [
      `an update: ${some(steps, "optimizer step")}; ${some(rows, "row")} of the policy in ` +
        `${some(miniBatches, "mini-batch").replace(/batchs$/, "batches")} of ${some(miniBatch, "image")}, ` +
        `${some(microBatch, "row")} a pass (${some(batch.microBatchesAStep, "pass").replace(/passs$/, "passes")} a step)`,
    ],
  ]);
}

function workText({ flops, time, batch }: TrainPlan): string {
  const phases = Object.entries(flops.step);
  const rows = phases.map(([phase, work]) => [
    phase,
    operations(work),
    ...(time === null ? [] : [duration(time.step[phase as keyof typeof time.step])]),
  ]);
  const step = phases.reduce((sum, [, work]) => sum + work, 0);
  rows.push(["a step", operations(step), ...(time === null ? [] : [duration(time.stepSeconds)])]);
  if (flops.evaluation > 0)
    rows.push([
      "an evaluation",
      operations(flops.evaluation),
      ...(time === null ? [] : [duration(time.evaluationSeconds)]),
    ]);
  rows.push([
    `all ${count(batch.iters)} steps`,
    operations(flops.total),
    ...(time === null ? [] : [duration(time.totalSeconds)]),
  ]);
  return table(time === null ? "work" : "work, and time as measured here now, within a factor of two", rows);
}

function diskText({ disk }: TrainPlan): string {
  const { checkpointBytes, checkpointsBytes, logBytes, freeBytes, fits } = disk;
  const free = freeBytes === null ? "" : `, ${bytes(freeBytes)} free`;
  return table("disk", [
    [
      `a checkpoint ${bytes(checkpointBytes)}, all that stay ${bytes(checkpointsBytes)}, logs ${bytes(logBytes)}${free}: ${VERDICT[fits]}`,
    ],
  ]);
}
