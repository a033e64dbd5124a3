/**
 * Checkpoints: a folder with the tensors as safetensors, everything else as JSON, and a manifest that lists all files and
 * names the best checkpoint so far. The training loops decide what a checkpoint holds; `resume.ts` decides whether a run may
 * continue from it.
 *
 * A save is written under a temporary name in the same folder, every file is flushed to disk, and the folder is renamed.
 * Older checkpoints are deleted after that. So a process that is killed, or a machine that loses power, leaves the state
 * before the save or the state after it.
 */
import { createHash, randomBytes } from "node:crypto";
import {
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  renameSync,
  rmSync,
  statSync,
} from "node:fs";
import { join } from "node:path";
import type { StateDict } from "../nn/index.js";
import { flushFolder, makeFolder, removeAfterFailure, replaceFile, writing } from "../torch/files.js";
import {
  emptyCache,
  expected,
  expectedType,
  loadSafetensors,
  requireObject,
  requirePath,
  saveSafetensors,
  type Tensor,
} from "../torch/index.js";
import { isCount } from "../torch/json.js";
import { type Versions, versions } from "./environment.js";
import { decodeData, encodeData, type PlainData } from "./plain_data.js";

/** The format of the folder; another number is refused. */
const FORMAT = 1;

const MANIFEST = "manifest.json";
const VALUES = "values.json";
const BEST = "best.json";

/** Name of a checkpoint's folder: its step, and a number where the step was saved again. */
const CHECKPOINT = /^step_(\d+)(?:\.\d+)?$/;

/** The content of a checkpoint. */
export interface Checkpoint {
  /** Iterations that are done. */
  readonly step: number;
  /** By part, such as `policy`, `ema`, `value_head`, `optimizer`, `random`; each becomes `<part>.safetensors`. */
  readonly tensors: Readonly<Record<string, Readonly<StateDict>>>;
  /** Everything else: cursors, controllers, windows, configuration, fingerprints, versions. */
  readonly values: { readonly [name: string]: PlainData | undefined };
}

/** Which checkpoint is the best one so far. */
export interface BestOption {
  readonly metric: string;
  readonly value: number;
  /** Folder and step of an earlier checkpoint; without them the one that is being saved is the best. */
  readonly name?: string;
  readonly step?: number;
}

/** Options of {@link saveCheckpoint}. */
export interface SaveOptions {
  /** How many of the newest checkpoints stay; default 3. */
  readonly keep?: number;
  /** The best checkpoint so far, which is never deleted; default the previous best, null for none. */
  readonly best?: BestOption | null;
  /** Texts in the header of a part's file, such as `{ policy: { config } }`, which `rlar sample` reads. */
  readonly metadata?: Readonly<Record<string, Readonly<Record<string, string>>>>;
}

/** The best checkpoint of a run. */
export interface BestCheckpoint {
  /** Its folder's name. */
  readonly name: string;
  readonly step: number;
  readonly metric: string;
  readonly value: number;
}

/** A file as the manifest knows it. */
interface FileRecord {
  readonly name: string;
  readonly bytes: number;
  readonly sha256: string;
}

interface Manifest {
  readonly format: number;
  readonly step: number;
  readonly versions: Versions;
  readonly files: readonly FileRecord[];
  /** The best checkpoint when this one was saved; absent in checkpoints of older versions, which have best.json alone. */
  readonly best?: BestCheckpoint | null;
}

/**
 * Write a checkpoint to `<folder>/step_000120`, then delete the older ones that need not stay.
 *
 * The folder must have one writer: unfinished saves in it are removed. A step that is there already is written to a
 * second folder (`step_000120.1`) before the first is deleted. `best.json` names the best checkpoint for people and other
 * programs; the manifests hold the same, and it is written anew from them when it is lost.
 *
 * @returns the checkpoint's folder.
 * @throws RangeError when the disk is full; TypeError for values that are not plain data. The checkpoints that were there
 *   are untouched then.
 */
export function saveCheckpoint(folder: string, checkpoint: Checkpoint, options: SaveOptions = {}): string {
  const where = "saveCheckpoint";
  const { step, tensors, values } = checkpoint;
  const { keep = 3, best, metadata = {} } = options;
  if (!Number.isSafeInteger(step) || step < 0)
    throw expected(`${where}.step`, "an integer of at least 0", step);
  if (!Number.isInteger(keep) || keep < 1) throw expected(`${where}.keep`, "an integer of at least 1", keep);
  for (const part of [...Object.keys(tensors), ...Object.keys(metadata)]) {
    if (!/^[a-z][a-z0-9_]*$/.test(part)) throw expected(where, "parts named in snake_case", part);
    if (tensors[part] === undefined)
      throw expectedType(where, `tensors of ${part}, which has metadata`, "none");
  }
  const text = encodeData(values, `${where}.values`);
  makeFolder(folder);
  removeLeftovers(folder);
  const aside = join(folder, `.${process.pid}.${randomBytes(4).toString("hex")}.tmp`);
  const name = freeName(folder, step);
  const final = join(folder, name);
  const record = best === undefined ? bestUpTo(folder, step) : best && { name, step, ...best };
  try {
    writing(aside, () => mkdirSync(aside));
    for (const [part, state] of Object.entries(tensors)) {
      saveSafetensors(join(aside, `${part}.safetensors`), state, metadata[part]);
    }
    replaceFile(join(aside, VALUES), text);
    const names = readdirSync(aside).sort();
    const files = writing(final, () => names.map((name) => recordOf(aside, name)));
    const manifest: Manifest = { format: FORMAT, step, versions: versions(), files, best: record };
    replaceFile(join(aside, MANIFEST), encodeData(manifest as unknown as PlainData));
    writing(final, () => {
      renameSync(aside, final);
      flushFolder(folder);
    });
  } catch (error) {
    removeAfterFailure(aside);
    if (error instanceof Error) error.message = error.message.replaceAll(aside, final);
    throw error;
  }
  writeBest(folder, record);
  rotate(folder, name, keep, record?.name);
  emptyCache(); // so that the memory of a run does not grow from checkpoint to checkpoint
  return final;
}

/** Make `best.json` say which checkpoint is the best one; null removes it. */
export function writeBest(folder: string, best: BestCheckpoint | null): void {
  const path = join(folder, BEST);
  if (best === null) {
    writing(path, () => rmSync(path, { force: true }));
    return;
  }
  const text = encodeData({ ...best });
  if (readText(path) !== text) replaceFile(path, text);
}

/** Iterations that were done when a checkpoint was saved, by the name of its folder; null for other names. */
export function stepOfCheckpoint(name: string): number | null {
  const step = CHECKPOINT.exec(name)?.[1];
  return step === undefined ? null : Number(step);
}

/** Names of checkpoints in a folder, the oldest first. */
export function listCheckpoints(folder: string): string[] {
  if (!existsSync(folder)) return [];
  return readdirSync(folder)
    .flatMap((name) => {
      const step = stepOfCheckpoint(name);
      return step === null ? [] : [{ name, step, revision: Number(name.split(".")[1] ?? 0) }];
    })
    .sort((a, b) => a.step - b.step || a.revision - b.revision)
    .map(({ name }) => name);
}

/** The best checkpoint of a folder as its newest readable manifest names it, or null. */
export function bestCheckpoint(folder: string): BestCheckpoint | null {
  return bestUpTo(folder, Number.POSITIVE_INFINITY);
}

function bestUpTo(folder: string, step: number): BestCheckpoint | null {
  for (const name of listCheckpoints(folder).reverse()) {
    if ((stepOfCheckpoint(name) as number) > step) continue;
    const manifest = readManifest(join(folder, name));
    if (typeof manifest !== "string") return bestAmong(folder, manifest);
  }
  return null;
}

/** The best checkpoint that a manifest names, or `best.json` for an older version's; null where it is not there. */
function bestAmong(folder: string, manifest: Manifest): BestCheckpoint | null {
  const best = manifest.best === undefined ? readBest(folder) : manifest.best;
  return best !== null && existsSync(join(folder, best.name)) ? best : null;
}

/** What `best.json` says; null where it is absent or damaged. */
function readBest(folder: string): BestCheckpoint | null {
  try {
    const best: unknown = decodeData(readFileSync(join(folder, BEST), "utf8"));
    return isBest(best) ? best : null;
  } catch {
    return null; // damaged, which `readCheckpoint` tells
  }
}

/** Why `best.json` of an older version cannot be used, or null when it can, is absent, or is not needed. */
function bestProblem(folder: string, { best }: Manifest): string | null {
  const isDamaged = best === undefined && existsSync(join(folder, BEST)) && readBest(folder) === null;
  return isDamaged ? "it does not name a checkpoint: the next evaluation makes the best one" : null;
}

function isBest(value: unknown): value is BestCheckpoint {
  if (typeof value !== "object" || value === null) return false;
  const { name, step, metric, value: number } = value as Partial<BestCheckpoint>;
  return (
    typeof name === "string" &&
    CHECKPOINT.test(name) &&
    isCount(step) &&
    typeof metric === "string" &&
    typeof number === "number"
  );
}

function readText(path: string): string | null {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return null;
  }
}

function freeName(folder: string, step: number): string {
  const name = `step_${String(step).padStart(6, "0")}`;
  const taken = listCheckpoints(folder);
  if (!taken.includes(name)) return name;
  for (let revision = 1; ; revision++)
    if (!taken.includes(`${name}.${revision}`)) return `${name}.${revision}`;
}

/** Remove what an interrupted save or deletion left. */
function removeLeftovers(folder: string): void {
  for (const name of readdirSync(folder)) {
    const path = join(folder, name);
    if (/^\..*\.tmp$/.test(name)) writing(path, () => rmSync(path, { recursive: true, force: true }));
  }
}

/**
 * Delete all but the newest `keep` steps and the best. Of a step only its last folder counts. Steps after the one just
 * saved are damaged, or from before the run was resumed at an earlier step.
 */
function rotate(folder: string, saved: string, keep: number, best: string | undefined): void {
  const names = listCheckpoints(folder);
  const course = names.slice(0, names.indexOf(saved) + 1);
  const latest = course.filter((name, i) => stepOfCheckpoint(name) !== stepOfCheckpoint(course[i + 1] ?? ""));
  const staying = new Set([...latest.slice(-keep), best]);
  for (const name of names.filter((name) => !staying.has(name))) {
    // Renamed first, so that a half-deleted folder does not look like a checkpoint.
    const doomed = join(folder, `.${name}.deleted.tmp`);
    writing(join(folder, name), () => {
      renameSync(join(folder, name), doomed);
      rmSync(doomed, { recursive: true, force: true });
    });
  }
}

function recordOf(folder: string, name: string): FileRecord {
  const path = join(folder, name);
  return { name, bytes: statSync(path).size, sha256: sha256Of(path) };
}

/** SHA-256 of a file, in hexadecimal. */
export function sha256Of(path: string): string {
  const hash = createHash("sha256");
  const buffer = Buffer.allocUnsafe(2 ** 20);
  const fd = openSync(path, "r");
  try {
    for (let count = readSync(fd, buffer); count > 0; count = readSync(fd, buffer))
      hash.update(buffer.subarray(0, count));
  } finally {
    closeSync(fd);
  }
  return hash.digest("hex");
}

/** A checkpoint as read back. Free its tensors with `dispose()`, or hold it with `using`. */
export interface LoadedCheckpoint extends Checkpoint, Disposable {
  readonly path: string;
  /** On the CPU. */
  readonly tensors: Readonly<Record<string, Readonly<Record<string, Tensor>>>>;
  readonly metadata: Readonly<Record<string, Readonly<Record<string, string>>>>;
  /** The best checkpoint when this one was saved, where it is still there. */
  readonly best: BestCheckpoint | null;
  /** Newer checkpoints and a best.json that could not be used, and why. */
  readonly damaged: readonly { readonly path: string; readonly reason: string }[];
  dispose(): void;
}

/**
 * Read the newest complete checkpoint, the best one, or one by name.
 *
 * Every file is first compared with the manifest. A damaged newest checkpoint is skipped for the one before and
 * named in `damaged`: tell the user.
 *
 * @param folder - the folder that {@link saveCheckpoint} wrote to.
 * @param options.which - `"newest"` (default), `"best"`, or the name of a checkpoint in the folder. For the last two no
 *   other checkpoint is taken.
 * @param options.parts - parts to read, such as `["policy"]`; default all.
 * @returns null when the folder holds no checkpoint.
 * @throws Error when no checkpoint is whole, with what is wrong with each.
 */
export function readCheckpoint(
  folder: string,
  options: { which?: string; parts?: readonly string[] } = {},
): LoadedCheckpoint | null {
  requirePath("loadCheckpoint", folder);
  requireObject("loadCheckpoint", options);
  const { which = "newest", parts } = options;
  const all = listCheckpoints(folder).reverse();
  if (all.length === 0 && which === "newest") return null;
  const damaged: { path: string; reason: string }[] = [];
  for (const name of candidates(folder, all, which)) {
    const path = join(folder, name);
    const manifest = checkedManifest(path);
    if (typeof manifest === "string") {
      damaged.push({ path, reason: manifest });
      continue;
    }
    const reason = bestProblem(folder, manifest);
    if (reason !== null) damaged.push({ path: join(folder, BEST), reason });
    return readParts(path, manifest, { damaged, best: bestAmong(folder, manifest) }, parts);
  }
  const list = damaged.map(({ path, reason }) => `\n- ${path}: ${reason}`).join("");
  throw new Error(`${folder}: expected a checkpoint that is whole, got ${damaged.length} damaged:${list}`);
}

function candidates(folder: string, all: readonly string[], which: string): readonly string[] {
  if (which === "newest") return all;
  const name = which === "best" ? bestCheckpoint(folder)?.name : which;
  if (name !== undefined && all.includes(name)) return [name];
  const there = all.length === 0 ? "none" : all.join(", ");
  throw expected(folder, which === "best" ? "a best checkpoint" : `a checkpoint ${which}`, there);
}

/** The manifest of a checkpoint whose files are all as it says, or what is wrong with it. */
function checkedManifest(path: string): Manifest | string {
  const manifest = readManifest(path);
  if (typeof manifest === "string") return manifest;
  for (const { name, bytes, sha256 } of manifest.files) {
    const file = join(path, name);
    const size = statSync(file, { throwIfNoEntry: false })?.size;
    if (size === undefined) return `${name} is missing`;
    if (size !== bytes) return `${name} has ${size} bytes, not ${bytes}`;
    if (sha256Of(file) !== sha256) return `${name} is not what was written (its SHA-256 differs)`;
  }
  return manifest;
}

/** A checkpoint's manifest, or what is wrong with it; the files that it lists are not looked at. */
function readManifest(path: string): Manifest | string {
  let manifest: Partial<Manifest> | null;
  try {
    manifest = decodeData(readFileSync(join(path, MANIFEST), "utf8")) as Partial<Manifest> | null;
  } catch (error) {
    const why = error instanceof SyntaxError ? "it is not JSON" : (error as Error).message;
    return `${MANIFEST} cannot be read (${why})`;
  }
  if (typeof manifest !== "object" || manifest === null) return `${MANIFEST} holds no object`;
  const { format, step, files, best } = manifest;
  if (format !== undefined && format !== FORMAT)
    return `its format is ${String(format)}, not ${FORMAT}: another version wrote it`;
  if (!Array.isArray(files) || !files.every(isFileRecord)) return `${MANIFEST} does not list files`;
  if (format === undefined || !isCount(step)) return `${MANIFEST} does not name a format and a step`;
  if (!files.some(({ name }) => name === VALUES)) return `${MANIFEST} does not list ${VALUES}`;
  if (best !== undefined && best !== null && !isBest(best))
    return `${MANIFEST} does not name a best checkpoint`;
  return manifest as Manifest;
}

function isFileRecord(value: unknown): value is FileRecord {
  if (typeof value !== "object" || value === null) return false;
  const { name, bytes, sha256 } = value as Partial<FileRecord>;
  return typeof name === "string" && /^\w[\w.]*$/.test(name) && isCount(bytes) && typeof sha256 === "string";
}

function readParts(
  path: string,
  manifest: Manifest,
  more: Pick<LoadedCheckpoint, "damaged" | "best">,
  wanted: readonly string[] | undefined,
): LoadedCheckpoint {
  const names = manifest.files.flatMap(({ name }) => /^(.*)\.safetensors$/.exec(name)?.[1] ?? []);
  const missing = wanted?.find((part) => !names.includes(part));
  if (missing !== undefined) throw expected(path, `the part ${missing}`, names.join(", "));
  const tensors: Record<string, Record<string, Tensor>> = {};
  const metadata: Record<string, Readonly<Record<string, string>>> = {};
  const dispose = (): void => {
    for (const part of Object.values(tensors)) for (const tensor of Object.values(part)) tensor.dispose();
  };
  try {
    const values = decodeData(readFileSync(join(path, VALUES), "utf8")) as Checkpoint["values"];
    for (const part of names.filter((name) => wanted?.includes(name) ?? true)) {
      const file = loadSafetensors(join(path, `${part}.safetensors`));
      tensors[part] = file.tensors;
      metadata[part] = file.metadata;
    }
    return {
      path,
      step: manifest.step,
      values,
      tensors,
      metadata,
      ...more,
      dispose,
      [Symbol.dispose]: dispose,
    };
  } catch (error) {
    dispose();
    throw error;
  }
}
