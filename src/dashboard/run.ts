/**
 * Reads the folder of a run for the report. Parts may be missing, since the run may have been killed or may still be running. This
 * file writes nothing.
 */
import { existsSync, readdirSync, readFileSync, statSync } from "node:fs";
import { basename, join, resolve } from "node:path";
import { parse } from "yaml";
import { valueAt } from "../config/key.js";
import { NETWORK_TERMS } from "../config/train_kind.js";
import { measureOf } from "../metrics/measures.js";
import { describeWeights, type ModelDescription, usedNames } from "../rl_ar_finetune/builder.js";
import { describeEncoder, isEncoder } from "../rl_ar_finetune/open_encoders.js";
import { type BestCheckpoint, listCheckpoints, stepOfCheckpoint } from "../run/checkpoint.js";
import { isHeld, runNear } from "../run/folder.js";
import { fileLines } from "../run/lines.js";
import { decodeData } from "../run/plain_data.js";
import { expected, openWeights } from "../torch/index.js";
import { isObject } from "../torch/json.js";
import {
  type EvalFile,
  objectOf,
  plainTree,
  readEnvironment,
  readEvaluations,
  type SomeEnvironment,
} from "./reading.js";
import type { Series } from "./scale.js";

/** A start of the run: the first, or one that went on from a checkpoint. */
export interface Start {
  /** Iterations that were done. */
  readonly step: number;
  readonly environment: SomeEnvironment;
}

/** A page of images, as `samples.jsonl` tells of it. */
export interface SamplePage {
  readonly step: number;
  readonly name: string;
  /** Of the PNG. */
  readonly path: string;
  readonly about: Readonly<Record<string, unknown>>;
}

/** A model of the run. */
interface ModelFacts {
  readonly role: string;
  readonly file: string;
  /** A description, or the reason why the file could not be read. */
  readonly what: string;
  /** null where they are not counted. */
  readonly parameters: number | null;
}

/** What the user did to a run on its way. */
export interface Change {
  readonly step: number;
  /** A sentence. */
  readonly text: string;
  /** The key with its new value, for curves; null where nothing changed. */
  readonly label: string | null;
}

/** A run as its folder tells it. */
export interface Run {
  readonly name: string;
  readonly folder: string;
  /** The configuration as a tree; empty where there is none. */
  readonly config: Readonly<Record<string, unknown>>;
  readonly starts: readonly Start[];
  /** Metrics by name, in the order in which they first came. */
  readonly metrics: ReadonlyMap<string, Series>;
  /** Iterations that are logged. */
  readonly lastStep: number;
  /** Seconds in which it ran, without pauses between its parts; null where no time is known. */
  readonly seconds: number | null;
  /** Lines of metrics.jsonl that are no record. */
  readonly damagedLines: number;
  readonly pages: readonly SamplePage[];
  /** What `steer.yaml` changed, and when it was refused; a change counts from the step after. */
  readonly changes: readonly Change[];
  readonly checkpoints: readonly string[];
  readonly best: BestCheckpoint | null;
  /** What the newest checkpoint says beside its tensors. */
  readonly values: Readonly<Record<string, unknown>>;
  readonly models: readonly ModelFacts[];
  readonly evaluations: readonly EvalFile[];
  /** Whether a process writes to the folder. */
  readonly isUnderWay: boolean;
  /** Batches that were kept because they had no finite update. */
  readonly dumps: number;
  /** Files that are there and could not be read, with the reason. */
  readonly unread: readonly string[];
}

/**
 * Read the folder of a run: of `rlar train` or of another trainer.
 *
 * @throws RangeError when it is no such folder.
 */
export function readRun(folder: string): Run {
  const refuse = (got: string): RangeError =>
    expected("report", "the folder of a run", `${folder}, ${got}`, runNear(folder));
  if (!existsSync(folder)) throw refuse("which is not there");
  if (!statSync(folder).isDirectory()) throw refuse("a file");
  const has = (name: string): boolean => existsSync(join(folder, name));
  if (!has("metrics.jsonl") && !has("config.yaml"))
    throw refuse("which has neither metrics.jsonl nor config.yaml");
  const unread: string[] = [];
  const attempt = <T>(name: string, otherwise: T, read: (path: string) => T): T => {
    const path = join(folder, name);
    if (!existsSync(path)) return otherwise;
    try {
      return read(path);
    } catch (error) {
      unread.push(`${name}: ${(error as Error).message}`);
      return otherwise;
    }
  };
  const { records, damaged } = attempt("metrics.jsonl", { records: [], damaged: 0 }, readRecords);
  const starts = readStarts(folder, attempt, unread);
  const checkpoints = attempt("checkpoints", [], listCheckpoints);
  const newest = checkpoints.at(-1);
  const values =
    newest === undefined
      ? {}
      : attempt(`checkpoints/${newest}/values.json`, {}, (path) =>
          keysOf(plainTree(decodeData(readFileSync(path, "utf8")))),
        );
  const config = attempt("config.yaml", {}, (path) =>
    keysOf(plainTree(parse(readFileSync(path, "utf8"), { logLevel: "error" }))),
  );
  const pages = attempt("samples.jsonl", [] as SamplePage[], (path) => readPages(folder, path, unread));
  return {
    name: basename(resolve(folder)),
    folder,
    // A resumed run may have been given other values, which its checkpoints know.
    config: { ...config, ...objectOf(values.config) },
    starts,
    metrics: seriesOf(records),
    lastStep: records.at(-1)?.step ?? 0,
    seconds: secondsOfRun(starts, records),
    damagedLines: damaged,
    pages,
    changes: attempt("steer.jsonl", [], changesOf),
    checkpoints,
    best: attempt("checkpoints/best.json", null, (path) =>
      bestOf(keysOf(decodeData(readFileSync(path, "utf8")))),
    ),
    values,
    models: modelFiles(folder, newest, objectOf({ ...config, ...objectOf(values.config) })),
    evaluations: readEvaluations(folder, unread),
    isUnderWay: isHeld(folder),
    dumps: attempt("dumps", 0, (path) => readdirSync(path).filter((name) => !name.startsWith(".")).length),
    unread,
  };
}

/** Lines of `steer.jsonl` in words. */
function changesOf(path: string): Run["changes"] {
  return readRecords(path).records.map(({ step, key, from, to, refused }) => {
    if (typeof refused === "string") return { step, text: `steer.yaml was refused: ${refused}`, label: null };
    return { step, text: `${key}: ${from} -> ${to}, by steer.yaml.`, label: `${key} = ${to}` };
  });
}

interface LogRecord {
  readonly step: number;
  readonly [name: string]: unknown;
}

/** Lines of JSON objects with a step, a whole number from 0 on; others are counted. What stands behind the last line's end was cut short. */
function readRecords(path: string): { records: LogRecord[]; damaged: number } {
  const records: LogRecord[] = [];
  let damaged = 0;
  for (const line of fileLines(path)) {
    const record = line.endsWith("\n") ? recordOf(line) : null;
    if (record === null) damaged++;
    else records.push(record);
  }
  return { records, damaged };
}

function recordOf(line: string): LogRecord | null {
  try {
    const record = objectOf(plainTree(JSON.parse(line)));
    return Number.isSafeInteger(record.step) && (record.step as number) >= 0 ? (record as LogRecord) : null;
  } catch {
    return null; // not JSON
  }
}

/** Numbers of all records by name; null, which stands for NaN in JSON, is NaN. */
function seriesOf(records: readonly LogRecord[]): Map<string, Series> {
  const metrics = new Map<string, { steps: number[]; values: number[] }>();
  for (const { step, time: _, ...rest } of records) {
    for (const [name, value] of Object.entries(rest)) {
      if (value !== null && typeof value !== "number") continue;
      let series = metrics.get(name);
      if (series === undefined) {
        series = { steps: [], values: [] };
        metrics.set(name, series);
      }
      series.steps.push(step);
      series.values.push(value ?? Number.NaN);
    }
  }
  return metrics;
}

type Attempt = <T>(name: string, otherwise: T, read: (path: string) => T) => T;

function readStarts(folder: string, attempt: Attempt, unread: string[]): Start[] {
  return readdirSync(folder)
    .flatMap((name) => {
      const [, step = "0"] = /^env(?:\.(\d+))?\.json$/.exec(name) ?? [];
      if (!/^env(\.\d+)?\.json$/.test(name)) return [];
      const environment = attempt(name, {}, (path) =>
        readEnvironment(JSON.parse(readFileSync(path, "utf8")), name, unread),
      );
      return [{ step: Number(step), environment }];
    })
    .sort((a, b) => a.step - b.step);
}

/** From each start to the last record before the next. */
function secondsOfRun(starts: readonly Start[], records: readonly LogRecord[]): number | null {
  let total = 0;
  let isKnown = false;
  for (const [i, { step, environment }] of starts.entries()) {
    const next = starts[i + 1]?.step ?? Infinity;
    const last = records.findLast((record) => record.step <= next && (i === 0 || record.step > step));
    const began = Date.parse(environment.startedAt ?? "") / 1000;
    if (typeof last?.time !== "number" || Number.isNaN(began)) continue;
    total += Math.max(0, last.time - began);
    isKnown = true;
  }
  return isKnown ? total : null;
}

function readPages(folder: string, path: string, unread: string[]): SamplePage[] {
  const { records, damaged } = readRecords(path);
  if (damaged > 0) unread.push(`samples.jsonl: ${damaged} damaged ${damaged === 1 ? "line" : "lines"}`);
  return records.flatMap((record) => {
    const { step, name, file, ...about } = record;
    const image = join(folder, String(file));
    // Only what the run itself wrote: an index is no reason to read files from elsewhere.
    const isOwn = /^samples\/[^/\\]+\.png$/.test(String(file));
    return isOwn && existsSync(image) ? [{ step, name: String(name), path: image, about }] : [];
  });
}

/** @throws RangeError for what is no object with keys. */
function keysOf(value: unknown): Record<string, unknown> {
  if (!isObject(value)) throw new RangeError("expected keys and values, got other data.");
  return value;
}

function bestOf({ name, step, metric, value }: Record<string, unknown>): BestCheckpoint | null {
  if (typeof step !== "number" || typeof metric !== "string")
    throw new RangeError("expected a step and a metric, got other data.");
  return { name: String(name), step, metric, value: typeof value === "number" ? value : Number.NaN };
}

/** The models that the run made, then those that it was made with. */
function modelFiles(
  folder: string,
  newest: string | undefined,
  config: Readonly<Record<string, unknown>>,
): ModelFacts[] {
  const saved = newest === undefined ? [] : [["policy", join("checkpoints", newest, "policy.safetensors")]];
  const own = [["model", "model.safetensors"], ...saved] as [string, string][];
  const made = own
    .filter(([, file]) => existsSync(join(folder, file)))
    .map(([role, file]) => modelFacts(role, file, join(folder, file)));
  const given = [
    ["base policy", "ar.path"],
    ["tokenizer", "tokenizer.path"],
    ...[...NETWORK_TERMS].map(([metric, section]) => [measureOf(metric).title, `${section}.path`]),
  ].flatMap(([role, path]) => {
    const file = valueAt(config, path as string);
    return typeof file === "string" ? [modelFacts(role as string, file, file)] : [];
  });
  return [...made, ...given];
}

/** Names and parameters of a file of weights, from its header. */
function modelFacts(role: string, file: string, path: string): ModelFacts {
  if (!existsSync(path)) return { role, file, what: "not there any more", parameters: null };
  try {
    if (isEncoder(path)) return { role, file, what: describeEncoder(path).name, parameters: null };
    using weights = openWeights(path);
    const found = describeWeights(weights);
    const names = found === null ? weights.names : usedNames(found);
    const count = (name: string): number => weights.info(name).shape.reduce((a, b) => a * b, 1);
    const parameters = names.reduce((sum, name) => sum + count(name), 0);
    return { role, file, what: modelText(found), parameters };
  } catch (error) {
    return { role, file, what: `not read: ${(error as Error).message}`, parameters: null };
  }
}

function modelText(found: ModelDescription | null): string {
  if (found === null) return "unknown model";
  if (found.kind === "metric") return found.network;
  if (found.kind === "tokenizer") return found.tokenizer.name;
  if (found.kind === "classifier") return "classifier";
  return { gpt: "GPT", llamagen: "LlamaGen", ibq_ar: "IBQ's transformer" }[found.policy.family];
}

/** How a run ended. */
export interface End {
  readonly state: "done" | "under way" | "stopped";
  readonly text: string;
}

/** Iterations that were asked for; null where neither the configuration nor a checkpoint tells. */
export function totalOf(run: Run): number | null {
  const iters = valueAt(run.config, "train.iters");
  return typeof iters === "number" ? iters : null;
}

export function endOfRun(run: Run): End {
  const total = totalOf(run);
  const { lastStep } = run;
  if (run.isUnderWay) return { state: "under way", text: `under way${stepsText(run)}` };
  if (total !== null && lastStep >= total) return { state: "done", text: "done" };
  const at = (path: string): number => {
    const value = valueAt(run.config, path);
    return typeof value === "number" ? value : Number.NaN;
  };
  const skipped = run.metrics.get("optim/skipped_total")?.values.at(-1) ?? 0;
  const since = valueAt(run.values, "progress.evaluationsSinceBest");
  const saved = stepOfCheckpoint(run.checkpoints.at(-1) ?? "") ?? Number.NaN;
  if (typeof since === "number" && at("eval.patience") > 0 && since >= at("eval.patience"))
    return {
      state: "stopped",
      text: `stopped: ${run.best?.metric ?? "the evaluation"} stopped improving`,
    };
  const divergence = run.metrics.get("kl/ref_running")?.values.at(-1) ?? Number.NaN;
  if (divergence > at("kl.stop"))
    return { state: "stopped", text: `stopped: the KL divergence from the reference exceeded kl.stop` };
  if (skipped > at("limits.nonFinite") || inARow(run) > at("limits.nonFiniteInARow"))
    return { state: "stopped", text: "diverged: losses or gradients were not finite" };
  if (total === null && saved === lastStep) return { state: "done", text: "ended" };
  if (saved === lastStep)
    return { state: "stopped", text: "interrupted, with a checkpoint of its last step" };
  return {
    state: "stopped",
    text: Number.isNaN(saved)
      ? "broken off before its first checkpoint"
      : `broken off; its last checkpoint is of step ${saved}`,
  };
}

/** Skipped updates in a row at the end. */
function inARow(run: Run): number {
  const steps = run.metrics.get("optim/steps")?.values ?? [];
  const skipped = run.metrics.get("optim/skipped_steps")?.values ?? [];
  let count = 0;
  for (let i = skipped.length - 1; i >= 0 && (steps[i] ?? 1) === 0; i--) count += skipped[i] as number;
  return count;
}

export function stepsText(run: Run): string {
  const total = totalOf(run);
  return total === null ? `, step ${run.lastStep}` : `, step ${run.lastStep} of ${total}`;
}
