/**
 * Checkpoints that are there whole or not at all: a folder with the tensors as safetensors, everything else as JSON, and
 * a manifest of all files that is written last. What the state is made of is the training loop's affair.
 *
 * A save is written aside in the same folder, every file flushed to disk, and then renamed; older ones go only after
 * that. So a process that is killed, or a machine that loses power, leaves the state before or the state after.
 */
import { createHash, randomBytes } from "node:crypto";
import {
  closeSync,
  existsSync,
  fsyncSync,
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
import {
  type ConfigChange,
  changesText,
  changesThatMatter,
  diffConfigs,
  plainConfig,
} from "../config/explain.js";
import { ConfigError, type ConfigKind, type TrainConfig } from "../config/resolve.js";
import { trainKind } from "../config/train.js";
import type { StateDict } from "../nn/index.js";
import { makeFolder, replaceFile, writing } from "../torch/files.js";
import { expected, expectedType, loadSafetensors, saveSafetensors, type Tensor } from "../torch/index.js";
import { type Versions, versions } from "./environment.js";
import { decodeData, encodeData, type PlainData } from "./plain_data.js";

/** The format of the folder; another number is refused. */
const FORMAT = 1;

const MANIFEST = "manifest.json";
const VALUES = "values.json";
const BEST = "best.json";

/** What a checkpoint holds. */
export interface Checkpoint {
  /** Iterations that are done. */
  readonly step: number;
  /** By part, such as `policy`, `ema`, `value_head`, `optimizer`, `random`; each becomes `<part>.safetensors`. */
  readonly tensors: Readonly<Record<string, Readonly<StateDict>>>;
  /** Everything else: cursors, controllers, windows, configuration, fingerprints, versions. */
  readonly values: { readonly [name: string]: PlainData | undefined };
}

/** How {@link saveCheckpoint} writes, and what it clears away. */
export interface SaveOptions {
  /** Newest checkpoints that stay; 3 where left out. */
  readonly keep?: number;
  /** Marks this one as the best so far, which stays until another is. */
  readonly best?: { readonly metric: string; readonly value: number };
  /** Texts in the header of a part's file, such as `{ policy: { config } }`, which `rlar sample` reads. */
  readonly metadata?: Readonly<Record<string, Readonly<Record<string, string>>>>;
}

/** The best checkpoint so far. */
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
}

/**
 * Write a checkpoint to `<folder>/step_000120`, then delete those that need not stay.
 *
 * The folder has one writer: what an interrupted save left in it is removed. A step that is there already gets a second
 * folder (`step_000120.1`) before the first goes.
 *
 * @returns the checkpoint's folder.
 * @throws RangeError when the disk is full; TypeError for values that are no plain data. The checkpoints that were there
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
  let final: string;
  try {
    writing(aside, () => mkdirSync(aside));
    for (const [part, state] of Object.entries(tensors)) {
      saveSafetensors(join(aside, `${part}.safetensors`), state, metadata[part]);
    }
    replaceFile(join(aside, VALUES), text);
    const files = readdirSync(aside)
      .sort()
      .map((name) => recordOf(aside, name));
    const manifest: Manifest = { format: FORMAT, step, versions: versions(), files };
    replaceFile(join(aside, MANIFEST), `${JSON.stringify(manifest, null, 1)}\n`);
    final = join(folder, freeName(folder, step));
    renameSync(aside, final);
    flushFolder(folder);
  } catch (error) {
    rmSync(aside, { recursive: true, force: true });
    throw error;
  }
  const name = final.slice(folder.length + 1);
  if (best !== undefined) {
    const record: BestCheckpoint = { name, step, ...best };
    replaceFile(join(folder, BEST), encodeData({ ...record }));
  }
  rotate(folder, name, keep);
  return final;
}

/** Names of checkpoints in a folder, the oldest first. */
export function listCheckpoints(folder: string): string[] {
  if (!existsSync(folder)) return [];
  return readdirSync(folder)
    .flatMap((name) => {
      const [, step, revision = "0"] = /^step_(\d+)(?:\.(\d+))?$/.exec(name) ?? [];
      return step === undefined ? [] : [{ name, step: Number(step), revision: Number(revision) }];
    })
    .sort((a, b) => a.step - b.step || a.revision - b.revision)
    .map(({ name }) => name);
}

/** The best checkpoint that was saved in a folder, or null. */
export function bestCheckpoint(folder: string): BestCheckpoint | null {
  const path = join(folder, BEST);
  if (!existsSync(path)) return null;
  let best: BestCheckpoint;
  try {
    best = decodeData(readFileSync(path, "utf8")) as unknown as BestCheckpoint;
  } catch (error) {
    throw expected(
      path,
      "JSON",
      (error as Error).message,
      "Delete it: the next best checkpoint makes a new one",
    );
  }
  return existsSync(join(folder, best.name)) ? best : null;
}

function freeName(folder: string, step: number): string {
  const name = `step_${String(step).padStart(6, "0")}`;
  const taken = listCheckpoints(folder);
  if (!taken.includes(name)) return name;
  for (let revision = 1; ; revision++)
    if (!taken.includes(`${name}.${revision}`)) return `${name}.${revision}`;
}

/** What a save that was cut short left; a deletion that was cut short has the same kind of name. */
function removeLeftovers(folder: string): void {
  for (const name of readdirSync(folder)) {
    if (/^\..*\.tmp$/.test(name)) rmSync(join(folder, name), { recursive: true, force: true });
  }
}

/**
 * Delete all but the newest steps and the best. Of a step only its last revision counts; later steps than the one just
 * saved are of a course that was given up, or damaged.
 */
function rotate(folder: string, saved: string, keep: number): void {
  const names = listCheckpoints(folder);
  const course = names.slice(0, names.indexOf(saved) + 1);
  const stepOf = (name: string): string => name.split(".")[0] as string;
  const latest = course.filter((name, i) => stepOf(name) !== stepOf(course[i + 1] ?? ""));
  const best = bestCheckpoint(folder)?.name;
  if (best !== undefined && !course.includes(best)) rmSync(join(folder, BEST));
  const staying = new Set([
    ...latest.slice(-keep),
    ...(best !== undefined && course.includes(best) ? [best] : []),
  ]);
  for (const name of names.filter((name) => !staying.has(name))) {
    // Renamed first: half a checkpoint must not bear a checkpoint's name.
    const doomed = join(folder, `.${name}.deleted.tmp`);
    renameSync(join(folder, name), doomed);
    rmSync(doomed, { recursive: true, force: true });
  }
}

/** A rename lives in the folder, and is lost in a power cut unless the folder is flushed. */
function flushFolder(folder: string): void {
  const fd = openSync(folder, "r");
  try {
    fsyncSync(fd);
  } finally {
    closeSync(fd);
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

/** SHA-256 of weights, in hexadecimal: of their names, types, shapes and every bit. Waits for a GPU. */
export function weightsFingerprint(state: Readonly<StateDict>): string {
  const hash = createHash("sha256");
  for (const [name, tensor] of Object.entries(state)) {
    hash.update(`${name} ${tensor.dtype} [${tensor.shape.join()}]\n`);
    const { buffer, byteOffset, byteLength } = tensor.toArray();
    hash.update(new Uint8Array(buffer, byteOffset, byteLength));
  }
  return hash.digest("hex");
}

/** What makes a run the one that it is; a checkpoint has it among its values. */
export interface RunIdentity {
  /** As `plainConfig` gives it. */
  readonly config: Readonly<Record<string, unknown>>;
  /** Fingerprint of the data set. */
  readonly data: string | null;
  /** Fingerprints of models that it works with and does not train, by what they are. */
  readonly frozen?: Readonly<Record<string, string>>;
}

/**
 * Refuse to go on with a run under another configuration, on other images or with other frozen models than it was begun
 * with.
 *
 * Keys that say only where the run is kept and what is watched may differ; so may `train.iters` where the learning rate
 * does not depend on it.
 *
 * @param options.force - go on all the same.
 * @returns all keys that differ, to be told to the user.
 * @throws ConfigError with every difference that matters, unless forced.
 */
export function requireSameRun<T extends object = TrainConfig>(
  saved: RunIdentity,
  now: Omit<RunIdentity, "config"> & { readonly config: T; readonly kind?: ConfigKind<T> },
  options: { force?: boolean } = {},
): ConfigChange[] {
  const { config, kind = trainKind as unknown as ConfigKind<T> } = now;
  const changes = diffConfigs(saved.config, plainConfig(config, kind));
  if (options.force === true) return changes;
  const serious = changesThatMatter(changes, config, kind);
  const problems: string[] = [];
  if (serious.length > 0) {
    const list = changesText(serious).replaceAll("\n", "; ");
    problems.push(
      `resume: expected the configuration that the run was begun with, got ${list}. ` +
        "Undo it, start a new run, or resume with --force.",
    );
  }
  if (saved.data !== now.data) {
    problems.push(
      `resume: expected the images that the run was begun with (fingerprint ${short(saved.data)}), got others (${short(now.data)}). ` +
        "Give the same data set, start a new run, or resume with --force.",
    );
  }
  for (const [name, before] of Object.entries(saved.frozen ?? {})) {
    const here = now.frozen?.[name];
    if (here === undefined || here === before) continue;
    problems.push(
      `resume: expected the ${name} that the run was begun with (weights ${short(before)}), got another (${short(here)}). ` +
        "Give the same one (a program's own policy as it was before the run), start a new run, or resume with --force.",
    );
  }
  if (problems.length > 0) throw new ConfigError(problems);
  return changes;
}

const short = (fingerprint: string | null): string => fingerprint?.slice(0, 12) ?? "none";

/** A checkpoint as read back. Free its tensors with `dispose()`, or hold it with `using`. */
export interface LoadedCheckpoint extends Checkpoint, Disposable {
  readonly path: string;
  /** On the CPU. */
  readonly tensors: Readonly<Record<string, Readonly<Record<string, Tensor>>>>;
  readonly metadata: Readonly<Record<string, Readonly<Record<string, string>>>>;
  /** Newer checkpoints that could not be used, and why. */
  readonly damaged: readonly { readonly path: string; readonly reason: string }[];
  dispose(): void;
}

/**
 * Read the newest checkpoint that is whole, the best one, or the one at a path.
 *
 * Every file is compared with the manifest first. A damaged newest one is stepped over and named in `damaged`: tell
 * the user.
 *
 * @param folder - the folder that {@link saveCheckpoint} wrote to.
 * @param options.which - `"newest"` where left out; `"best"`; or the name of a checkpoint in the folder. The last two
 *   have no substitute.
 * @param options.parts - parts to read, such as `["policy"]`; all of them where left out.
 * @returns null when the folder holds no checkpoint.
 * @throws Error when no checkpoint is whole, with what is wrong with each.
 */
export function loadCheckpoint(
  folder: string,
  options: { which?: string; parts?: readonly string[] } = {},
): LoadedCheckpoint | null {
  const { which = "newest", parts } = options;
  const all = listCheckpoints(folder).reverse();
  if (all.length === 0 && which === "newest") return null;
  const damaged: { path: string; reason: string }[] = [];
  for (const name of candidates(folder, all, which)) {
    const path = join(folder, name);
    const manifest = readManifest(path);
    if (typeof manifest === "string") damaged.push({ path, reason: manifest });
    else return readParts(path, manifest, damaged, parts);
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

/** The manifest of a checkpoint whose files are all as it says, or what is wrong. */
function readManifest(path: string): Manifest | string {
  let manifest: Manifest;
  try {
    manifest = JSON.parse(readFileSync(join(path, MANIFEST), "utf8")) as Manifest;
  } catch (error) {
    return `manifest.json cannot be read (${(error as Error).message})`;
  }
  if (!Array.isArray(manifest.files)) return "manifest.json lists no files";
  if (manifest.format !== FORMAT)
    return `its format is ${manifest.format}, not ${FORMAT}: another version wrote it`;
  for (const { name, bytes, sha256 } of manifest.files) {
    const file = join(path, name);
    const size = statSync(file, { throwIfNoEntry: false })?.size;
    if (size === undefined) return `${name} is missing`;
    if (size !== bytes) return `${name} has ${size} bytes, not ${bytes}`;
    if (sha256Of(file) !== sha256) return `${name} is not what was written (its SHA-256 differs)`;
  }
  return manifest;
}

function readParts(
  path: string,
  manifest: Manifest,
  damaged: LoadedCheckpoint["damaged"],
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
      damaged,
      dispose,
      [Symbol.dispose]: dispose,
    };
  } catch (error) {
    dispose();
    throw error;
  }
}
