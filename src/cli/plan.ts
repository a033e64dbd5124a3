/** `rlar plan`: print the predicted memory, time and disk space of a run, as text or JSON. `src/plan` computes them. */

import type { PresetName } from "../config/presets.js";
import { trainKind } from "../config/train_kind.js";
import { type Fits, planTrain, type TrainPlan } from "../plan/plan.js";
import { readConfig } from "./config.js";

/** Options of `rlar plan`. */
export interface PlanCommandOptions {
  preset?: PresetName;
  /** False with `--no-measure`. */
  measure: boolean;
  /** That share every batch; default 1. */
  processes?: number;
  json?: boolean;
}

/** Print what a run of `rlar train` with the same arguments would take. */
export async function plan(args: readonly string[], options: PlanCommandOptions): Promise<void> {
  const { config, notes } = readConfig(trainKind, args, { preset: options.preset });
  const { measure, json, processes = 1 } = options;
  const planned = await planTrain(config, { measure, processes });
  process.stdout.write(json ? `${JSON.stringify(planned, null, 2)}\n` : planText(planned));
  if (!json) for (const note of notes) process.stdout.write(`note: ${note}\n`);
}

const count = (value: number): string => value.toLocaleString("en");
/** A number of things, such as `1 pass` or `3 passes`. */
const some = (number: number, thing: string): string =>
  `${count(number)} ${number === 1 ? thing : thing.replace(/(?<=ss|ch)$/, "e")}${number === 1 ? "" : "s"}`;

/** A value in the largest unit of which there is at least one, or in the last. */
function inUnits(value: number, digits: number, units: Readonly<Record<string, number>>): string {
  const sizes = Object.entries(units);
  const [name, size] = sizes.find(([, least]) => value >= least) ?? (sizes.at(-1) as [string, number]);
  return `${Number((value / size).toPrecision(digits))} ${name}`;
}

const bytes = (value: number): string => inUnits(value, 4, { GiB: 2 ** 30, MiB: 2 ** 20, KiB: 2 ** 10 });
const flopsText = (value: number): string =>
  inUnits(value, 3, { PFLOP: 1e15, TFLOP: 1e12, GFLOP: 1e9, MFLOP: 1e6 });
const duration = (seconds: number): string => inUnits(seconds, 3, { h: 3600, min: 60, s: 1, ms: 1e-3 });

const VERDICT: Readonly<Record<Fits, string>> = {
  yes: "it fits",
  tight: "it may not fit: the estimate may be off by a quarter",
  no: "it does not fit",
  unknown: "the size of the memory or disk is not known",
};

/** A table below a title: the first column aligned left, the others right. */
function table(title: string, rows: readonly (readonly string[])[]): string {
  const widthOf = (c: number): number => Math.max(...rows.map((row) => row[c]?.length ?? 0));
  const lines = rows.map((row) => {
    const cells = row.map((cell, c) => (c === 0 ? cell.padEnd(widthOf(c)) : cell.padStart(widthOf(c))));
    return `  ${cells.join("  ").trimEnd()}\n`;
  });
  return `${title}\n${lines.join("")}`;
}

/** A plan as text. */
export function planText(plan: TrainPlan): string {
  return [modelsText(plan), batchText(plan), memoryText(plan), workText(plan), diskText(plan)].join("");
}

function modelsText({ models }: TrainPlan): string {
  const rows = models.map(({ name, what, parameters, trained }) => {
    const state = trained === 0 ? "frozen" : trained === parameters ? "trained" : `${count(trained)} trained`;
    return [`${name}: ${what}`, count(parameters), state];
  });
  return table("models, parameters", rows);
}

function batchText({ images, batch, processes }: TrainPlan): string {
  const { sequences, rows, codes, tokens, miniBatch, miniBatches, steps, microBatch } = batch;
  const { stepsPerEpoch, epochs, iters } = batch;
  const all = some(iters, "step");
  const found =
    images === null
      ? "a program's own"
      : `${count(images.train)} to train on, ${count(images.heldOut)} held out`;
  const length =
    stepsPerEpoch === null || epochs === null
      ? all
      : `${stepsPerEpoch.toFixed(1)} steps per epoch, ${epochs.toFixed(2)} epochs in ${all}`;
  const lines = [
    `images: ${found}; ${length}`,
    `a rollout: ${some(batch.images, "image")} x ${batch.numGenerations} = ${some(sequences, "sequence")} of ` +
      `${codes} codes, ${count(tokens)} codes drawn`,
    `an update: ${some(steps, "optimizer step")}; ${some(rows, "row")} of the policy in ` +
      `${some(miniBatches, "mini-batch")} of ${some(miniBatch, "image")}, ` +
      `${some(microBatch, "row")} per pass (${some(batch.microBatchesAStep, "pass")} per step)`,
  ];
  if (processes !== null) {
    const { count: parts, bytesAStep, bytesAnIteration } = processes;
    lines.push(
      `processes: ${parts}, each with its share of the images; memory, work and time below are of one`,
      `each sends ${bytes(bytesAStep)} in an optimizer step, ${bytes(bytesAnIteration)} in an iteration`,
    );
  }
  return table(
    "batch",
    lines.map((line) => [line]),
  );
}

function memoryText({ device, memory }: TrainPlan): string {
  const { fixed, phases, peakBytes, largestPhase, totalBytes, freeBytes, fits, lower } = memory;
  const rows = [
    ...fixed.map((share) => [share.name, bytes(share.bytes)]),
    ...phases.flatMap((phase) => [
      [`+ ${phase.name}`, bytes(phase.bytes)],
      // Small parts are not shown.
      ...phase.parts.flatMap((part) =>
        part.bytes < 0.02 * peakBytes ? [] : [[`    ${part.name}`, "", bytes(part.bytes)]],
      ),
    ]),
    [`peak, at ${largestPhase}`, bytes(peakBytes)],
  ];
  const free = `of ${bytes(totalBytes ?? 0)}, ${bytes(freeBytes ?? 0)} of it free now: `;
  const hints = table(
    "lower first",
    lower.map((hint) => [hint]),
  );
  return `${table(`memory, ${device}`, rows)}  ${totalBytes === null ? "" : free}${VERDICT[fits]}\n${fits === "yes" ? "" : hints}`;
}

function workText({ flops, time, batch }: TrainPlan): string {
  const row = (name: string, work: number, seconds = 0): string[] => [
    name,
    work === 0 ? "-" : flopsText(work),
    ...(time === null ? [] : [duration(seconds)]),
  ];
  const phases = Object.entries(flops.step);
  const step = phases.reduce((sum, [, work]) => sum + work, 0);
  return table(time === null ? "work" : "work, and time as measured here now, within a factor of two", [
    ...phases.map(([phase, work]) => row(phase, work, time?.step[phase])),
    row("a step", step, time?.stepSeconds),
    ...(batch.redraws > 0
      ? [row(`each further rollout, at most ${batch.redraws} a step`, flops.redraw, time?.redrawSeconds)]
      : []),
    ...(flops.evaluation > 0 ? [row("an evaluation", flops.evaluation, time?.evaluationSeconds)] : []),
    row(`all ${count(batch.iters)} steps`, flops.total, time?.totalSeconds),
  ]);
}

function diskText({ disk }: TrainPlan): string {
  const { checkpointBytes, checkpointsBytes, logBytes, freeBytes, fits } = disk;
  const free = freeBytes === null ? "" : `, ${bytes(freeBytes)} free`;
  const files = `a checkpoint ${bytes(checkpointBytes)}, all that are kept ${bytes(checkpointsBytes)}, logs ${bytes(logBytes)}`;
  return table("disk", [[`${files}${free}: ${VERDICT[fits]}`]]);
}
