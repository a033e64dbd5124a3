/**
 * The log of a run: `metrics.jsonl`, `metrics.csv`, `env.json`, TensorBoard events and pages of samples, and its output on the
 * screen through `console.ts`. `events.ts` writes event files; the callers compute the metrics.
 */
import { closeSync, existsSync, fsyncSync, openSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { join } from "node:path";

import { writePng } from "../data/images.js";
import { isFirst, isSpeaker } from "../distributed/index.js";
import { makeFolder, replaceFile, writeAll, writing } from "../torch/files.js";
import { expected, type Tensor } from "../torch/index.js";
import type { LoadedCheckpoint } from "./checkpoint.js";
import { jsonLine, RunConsole, type Screen } from "./console.js";
import { environment } from "./environment.js";
import { EventWriter } from "./events.js";
import type { IfExists } from "./folder.js";
import { fileLines, replaceLines } from "./lines.js";
import { joined, MetricWindow, type Spread } from "./metrics.js";
import type { PlainData } from "./plain_data.js";

/** A file of JSON objects, one a line, each with a `step`. Every line is with the system as soon as it is added. */
export class StepLines implements Disposable {
  readonly path: string;
  /** Problems in the lines of a resumed run, for the user. */
  readonly notes: readonly string[];
  #fd: number | null;

  /**
   * @param options.resumeAt - steps that are done: later lines, and damaged ones, are dropped.
   * @param options.isComplete - the file has a line for each step, so that missing ones are noticed.
   * @throws RangeError when there is such a file and no `resumeAt`: two runs would be mixed up.
   */
  constructor(path: string, options: { resumeAt?: number; isComplete?: boolean } = {}) {
    const { resumeAt, isComplete = false } = options;
    this.path = path;
    if (resumeAt === undefined && existsSync(path))
      throw expected(path, "no file", "one of another run", "Resume that run, or take another folder");
    this.notes = resumeAt === undefined ? [] : keepLines(path, resumeAt, isComplete);
    this.#fd = writing(path, () => openSync(path, "a"));
  }

  add(record: Readonly<Record<string, unknown>>): void {
    if (this.#fd === null) throw expected("StepLines.add", "an open file", `${this.path}, which was closed`);
    const fd = this.#fd;
    writing(this.path, () => writeAll(fd, Buffer.from(`${jsonLine(record)}\n`)));
  }

  /** Wait until all lines are on the disk. */
  flush(): void {
    const fd = this.#fd;
    if (fd !== null) writing(this.path, () => fsyncSync(fd));
  }

  close(): void {
    if (this.#fd !== null) closeSync(this.#fd);
    this.#fd = null;
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

/**
 * Drop the lines after a step, and those that are damaged. The file is replaced whole, so an interruption loses nothing.
 *
 * @returns lines for the user: damaged lines, and steps without one.
 */
function keepLines(path: string, lastStep: number, isComplete: boolean): string[] {
  const steps = new Set<number>();
  let damaged = 0;
  if (existsSync(path)) replaceLines(path, kept());
  function* kept(): Generator<string> {
    for (const line of stepLines(path)) {
      if (line === null) damaged++;
      else if (line.step <= lastStep) {
        steps.add(line.step);
        yield line.text;
      }
    }
  }
  const missing = isComplete ? gapsOf(steps, lastStep) : "";
  return [
    ...(damaged === 0 ? [] : [`${path}: ${damaged} damaged line${damaged === 1 ? "" : "s"} dropped`]),
    ...(missing === ""
      ? []
      : [`${path}: no record of ${/[-,]/.test(missing) ? "steps" : "step"} ${missing}`]),
  ];
}

/** The steps from 1 to `last` that are not there, such as `3-5, 9`. */
function gapsOf(steps: ReadonlySet<number>, last: number): string {
  const gaps: string[] = [];
  for (let from = 1; from <= last; from++) {
    if (steps.has(from)) continue;
    let to = from;
    while (to < last && !steps.has(to + 1)) to++;
    gaps.push(from === to ? `${from}` : `${from}-${to}`);
    from = to;
  }
  return gaps.join(", ");
}

/** A line of a {@link StepLines} file. */
interface StepLine {
  readonly step: number;
  /** With its line break. */
  readonly text: string;
  readonly record: Readonly<Record<string, unknown>>;
}

/** The lines of a file, null for one that is no object with a step. What stands behind the last line's end was cut short. */
function* stepLines(path: string): Generator<StepLine | null> {
  let isFirst = true;
  for (const text of fileLines(path)) {
    // Editors put a byte order mark before the first line.
    if (text.endsWith("\n")) yield parsedLine(isFirst ? text.replace(/^\ufeff/, "") : text);
    isFirst = false;
  }
}

/** The records of a file with their steps, and how many lines are damaged. */
export function readLines(path: string): {
  records: Pick<StepLine, "step" | "record">[];
  damaged: number;
} {
  const records: Pick<StepLine, "step" | "record">[] = [];
  let damaged = 0;
  for (const line of stepLines(path)) {
    if (line === null) damaged++;
    else records.push({ step: line.step, record: line.record }); // without the text, which takes as much memory again
  }
  return { records, damaged };
}

function parsedLine(text: string): StepLine | null {
  try {
    const record = JSON.parse(text) as StepLine["record"] | null;
    const step = record?.step;
    return Number.isSafeInteger(step) && (step as number) >= 0
      ? { step: step as number, text, record: record as StepLine["record"] }
      : null;
  } catch {
    return null; // not JSON
  }
}

/**
 * Write records as a table: a column per name, in the order in which they first came, a line per record.
 *
 * @param records - gone through twice.
 */
export function writeCsv(path: string, records: Iterable<Readonly<Record<string, unknown>>>): void {
  const columns = new Set<string>();
  for (const record of records) for (const name of Object.keys(record)) columns.add(name);
  replaceLines(path, csvLines([...columns], records));
}

function* csvLines(
  columns: readonly string[],
  records: Iterable<Readonly<Record<string, unknown>>>,
): Generator<string> {
  yield `${columns.map(csvCell).join(",")}\n`;
  for (const record of records) yield `${columns.map((name) => csvCell(record[name])).join(",")}\n`;
}

function csvCell(value: unknown): string {
  if (value === undefined || value === null) return "";
  const text = typeof value === "object" ? JSON.stringify(value) : String(value);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

/** Options of {@link RunLog}. */
export interface RunLogOptions {
  /** Iterations between tables or lines on the screen; `log.every`. */
  readonly every: number;
  /** Iterations of the whole run. */
  readonly total: number;
  readonly console: RunConsole;
  readonly tensorboard?: boolean;
  readonly csv?: boolean;
  /** Iterations that are done, of a run that is resumed. */
  readonly resumeAt?: number;
}

/** What a run tells of itself. */
export type Log = Pick<RunLog, keyof RunLog>;

/** Takes everything and keeps nothing: for the processes of a run that do not write, and for runs without a screen. */
export const NOWHERE: Screen = { write: () => true };

/** The records of a run. Close it, or hold it with `using`. */
export class RunLog implements Disposable {
  readonly folder: string;
  /** Problems in the record of a resumed run, for the user. */
  readonly notes: readonly string[];
  readonly #options: RunLogOptions;
  readonly #lines: StepLines;
  readonly #samples: StepLines;
  readonly #events: EventWriter | null;
  readonly #window = new MetricWindow();
  #last: number;

  /**
   * @param folder - the run's; created where absent.
   * @throws RangeError when it holds another run's metrics and there is no `resumeAt`.
   */
  constructor(folder: string, options: RunLogOptions) {
    const { resumeAt, tensorboard = true } = options;
    const resume = resumeAt === undefined ? {} : { resumeAt };
    this.folder = folder;
    this.#options = options;
    this.#last = resumeAt ?? -1;
    makeFolder(join(folder, "samples"));
    this.#lines = new StepLines(join(folder, "metrics.jsonl"), { ...resume, isComplete: true });
    this.#samples = new StepLines(join(folder, "samples.jsonl"), resume);
    this.notes = [...this.#lines.notes, ...this.#samples.notes];
    const next = resumeAt === undefined ? {} : { resumeAt: resumeAt + 1 };
    this.#events = tensorboard ? new EventWriter(join(folder, "tb"), next) : null;
    const name = resumeAt === undefined ? "env.json" : `env.${resumeAt}.json`;
    const text = `${JSON.stringify(environment(), null, 2)}\n`;
    replaceFile(join(folder, name), text);
  }

  /**
   * An iteration is done, or, with step 0, what there was before the first.
   *
   * @param metrics - by name. NaN becomes null.
   * @param options.count - tokens or samples that the means are over: their weight in the interval's.
   * @param options.spreads - numbers whose spread over the interval is logged; each adds its mean, std, min and max.
   * @throws RangeError when the step is not after the one before.
   */
  step(
    step: number,
    metrics: Readonly<Record<string, number>>,
    options: { count?: number; spreads?: Readonly<Record<string, Spread>> } = {},
  ): void {
    if (!(Number.isSafeInteger(step) && step > this.#last)) {
      throw expected("RunLog.step", `a step after ${this.#last}`, step, "Log each iteration once, in order");
    }
    this.#last = step;
    const { count = 1, spreads = {} } = options;
    const all = joined(spreadMetrics(spreads), metrics);
    this.#lines.add({ step, time: Date.now() / 1000, ...all });
    this.#window.add(metrics, count);
    for (const [name, spread] of Object.entries(spreads)) this.#window.addSpread(name, spread);
    const { every, total, console } = this.#options;
    this.#events?.scalars(step, all);
    console.step(step, all);
    if (step % every !== 0 && step !== total && step !== 0) {
      console.between(step, all);
      return;
    }
    const values = this.#window.values();
    console.interval(step, values);
    this.#window.reset();
  }

  /**
   * A page of images, to `samples/` and to TensorBoard.
   *
   * @param name - such as `train` or `eval`.
   * @param image - float `[1, 3, H, W]` in [-1, 1].
   * @param about - what is on it: rewards, classes, identities.
   */
  async image(
    step: number,
    name: string,
    image: Tensor,
    about: { readonly [key: string]: PlainData | undefined } = {},
  ): Promise<void> {
    const file = `samples/step_${String(step).padStart(6, "0")}_${name}.png`;
    const path = join(this.folder, file);
    await writePng(path, image);
    this.#samples.add({ step, name, file, ...about });
    this.#events?.image(step, `samples/${name}`, await readFile(path));
  }

  /** Text for TensorBoard, such as the configuration. */
  text(step: number, name: string, text: string): void {
    this.#events?.text(step, name, text);
  }

  /**
   * The configuration as TensorBoard's hyper-parameters: a name a key, such as `optimizer.lr`. What is null is not set; a
   * list is text.
   */
  hparams(config: Readonly<Record<string, unknown>>): void {
    this.#events?.hparams(leavesOf(config));
  }

  /** Something begins that may take long, see {@link RunConsole.busy}; the next step ends it. */
  busy(what: string): void {
    this.#options.console.busy(what);
  }

  /** A line for the user. */
  say(text: string): void {
    this.#options.console.say(text);
  }

  /** Wait until all is on the disk: before a checkpoint, whose step must not outrun its metrics. */
  flush(): void {
    this.#lines.flush();
    this.#samples.flush();
    this.#events?.flush();
  }

  /** What the interval holds so far, for a checkpoint. */
  state(): PlainData {
    return { window: this.#window.state(), rewards: [...this.#options.console.state()] };
  }

  load(state: PlainData): void {
    const { window, rewards } = state as { window: PlainData; rewards: readonly number[] };
    this.#window.load(window);
    this.#options.console.load(rewards);
  }

  /** Write `metrics.csv` and close all files. */
  close(): void {
    this.#options.console.close();
    this.#lines.close();
    this.#samples.close();
    this.#events?.close();
    if (this.#options.csv === false || !existsSync(this.#lines.path)) return;
    const { path } = this.#lines;
    writeCsv(join(this.folder, "metrics.csv"), {
      *[Symbol.iterator]() {
        for (const line of stepLines(path)) if (line !== null) yield line.record;
      },
    });
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

/** Options of a run that are not in its configuration. */
export interface TrainOptions {
  /** Ends the run after the iteration that is under way, with a checkpoint. */
  readonly signal?: AbortSignal;
  /** Ends a run of `rlar train` after this iteration as the signal would, so that it can be resumed; the schedules are those of the whole run. */
  readonly until?: number;
  /** Resume a run although its configuration or images changed. */
  readonly force?: boolean;
  /** Asks the user what to do about a folder that holds a run, for `run.ifExists: ask`; without it such a folder is refused. */
  readonly ask?: (folder: string) => Promise<IfExists>;
  readonly screen?: Screen;
  readonly json?: boolean;
}

/** Options of opening a log. */
export interface OpenLog {
  /** Iterations or updates of the whole run. */
  readonly total: number;
  /** The whole configuration as plain data. */
  readonly config: Readonly<Record<string, unknown>>;
  /** Keys of it. */
  readonly log: { readonly every: number; readonly tensorboard: boolean; readonly csv: boolean };
  /** Where the run goes on from; null for a new one. */
  readonly saved: LoadedCheckpoint | null;
  /** Lines for the user, before the first step. */
  readonly notes: readonly string[];
  readonly options: TrainOptions;
}

/** Do something before a run has a log, with a sign of life where it takes long; `say` prints a line. */
export async function busyWith<T>(
  what: string,
  options: TrainOptions,
  fn: (say: (text: string) => void) => Promise<T>,
): Promise<T> {
  const console = openConsole(1, options);
  console.busy(what);
  try {
    return await fn((text) => console.say(text));
  } finally {
    console.idle();
  }
}

/** A screen for a run of so many steps. */
function openConsole(total: number, { screen, json = false }: TrainOptions): RunConsole {
  const where = isSpeaker() ? screen : NOWHERE;
  return new RunConsole({ total, json, ...(where && { screen: where }) });
}

/** The log of a run where it was left, with what the user is to know before it goes on. Close it, or hold it with `using`. */
export function openLog(folder: string, { total, config, log: keys, saved, notes, options }: OpenLog): Log {
  if (!isFirst()) return silentLog(folder);
  const { every, tensorboard, csv } = keys;
  const console = openConsole(total, options);
  const resumeAt = saved === null ? {} : { resumeAt: saved.step };
  const log = new RunLog(folder, { every, total, console, tensorboard, csv, ...resumeAt });
  if (saved?.values.log !== undefined) log.load(saved.values.log);
  log.hparams(config);
  for (const { path, reason } of saved?.damaged ?? []) log.say(`passed over ${path}: ${reason}`);
  for (const note of [...log.notes, ...notes]) log.say(note);
  return log;
}

/** The log of a process that does not write: the first one does for all. */
function silentLog(folder: string): Log {
  const nothing = (): void => {};
  return {
    folder,
    notes: [],
    step: nothing,
    image: async () => {},
    text: nothing,
    hparams: nothing,
    busy: nothing,
    say: nothing,
    flush: nothing,
    state: () => null,
    load: nothing,
    close: nothing,
    [Symbol.dispose]: nothing,
  };
}

/** The values of a configuration by their paths. */
function leavesOf(
  config: Readonly<Record<string, unknown>>,
  place = "",
): Record<string, number | boolean | string> {
  const entries = Object.entries(config).flatMap(([name, value]): [string, number | boolean | string][] => {
    const path = `${place}${name}`;
    if (value === null || value === undefined) return [];
    if (typeof value === "number" || typeof value === "boolean" || typeof value === "string")
      return [[path, value]];
    if (Array.isArray(value)) return [[path, JSON.stringify(value)]];
    return Object.entries(leavesOf(value as Record<string, unknown>, `${path}.`));
  });
  return Object.fromEntries(entries);
}

function spreadMetrics(spreads: Readonly<Record<string, Spread>>): Record<string, number> {
  const entries = Object.entries(spreads).flatMap(([name, { mean, std, min, max }]) => [
    [`${name}/mean`, mean],
    [`${name}/std`, std],
    [`${name}/min`, min],
    [`${name}/max`, max],
  ]);
  return Object.fromEntries(entries) as Record<string, number>;
}
