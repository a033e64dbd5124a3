/**
 * The folder of a run: choosing it, handling a run that it already holds, and a lock against other processes. `log.ts` and
 * `checkpoint.ts` write its content.
 */
import { closeSync, existsSync, openSync, readdirSync, readFileSync, rmSync, statSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { isLocked, tryLock } from "#lock";

import { configYaml } from "../config/explain.js";
import { ConfigError, type ConfigKind, type RunConfig, type TrainConfig } from "../config/resolve.js";
import { trainKind } from "../config/train_kind.js";
import { broadcastValue, isFirst, restartsOf } from "../distributed/index.js";
import { expected } from "../torch/errors.js";
import { makeFolder, replaceFile, writing } from "../torch/files.js";
import { listCheckpoints } from "./checkpoint.js";

/** What a run writes into its folder. Nothing else there is ever removed. */
const RUN_FILES =
  /^(checkpoints|dumps|samples|tb|metrics\.(jsonl|csv)|samples\.jsonl|steer\.jsonl|config\.yaml|model\.safetensors|env(\.\d+)?\.json|report\.html|eval(\.json)?)$/;

const LOCK = ".lock";

/** Answers to `ask`. */
export type IfExists = Exclude<RunConfig["ifExists"], "ask">;

/** A folder to write a run to. Release it with `dispose()`, or hold it with `using`. */
export interface RunFolder extends Disposable {
  readonly path: string;
  /** Whether it holds a run that is to go on. */
  readonly isResumed: boolean;
  dispose(): void;
}

/** What a configuration must say of its run. */
interface RunOwner {
  readonly run: RunConfig;
}

/**
 * Make the folder of a run ready, as `run.dir` and `run.ifExists` say, and keep other processes out of it. Of the processes
 * of one run the first does so and tells the others.
 *
 * @param options.ask - asks the user about a folder that holds a run, for `ask`; without it such a folder is refused.
 * @throws ConfigError when the folder holds a run and `ifExists` is `fail`, or another process writes to it.
 */
export async function openRunFolder<T extends RunOwner = TrainConfig>(
  config: T,
  options: { ask?: (folder: string) => Promise<IfExists>; now?: () => Date; kind?: ConfigKind<T> } = {},
): Promise<RunFolder> {
  const own = isFirst() ? await openOwnFolder(config, options) : null;
  const { path, isResumed } = broadcastValue(
    own && { path: own.path, isResumed: own.isResumed },
  ) as RunFolder;
  return own ?? { path, isResumed, dispose: () => {}, [Symbol.dispose]: () => {} };
}

/** The folder of a process that writes. */
async function openOwnFolder<T extends RunOwner>(
  config: T,
  options: { ask?: (folder: string) => Promise<IfExists>; now?: () => Date; kind?: ConfigKind<T> },
): Promise<RunFolder> {
  const { ask = async () => "fail" as const, now = () => new Date() } = options;
  const kind = options.kind ?? (trainKind as unknown as ConfigKind<T>);
  const { dir } = config.run;
  const ifExists = afterRestart(config.run);
  const wanted = dir ?? join("runs", `${timeOf(now())}_${kind.nameOf(config)}`);
  const chosen = dir === null ? "new" : ifExists;
  const answer = holdsRun(wanted) && chosen === "ask" ? await ask(wanted) : chosen;
  const mustBeNew = answer === "fail" || answer === "ask";
  if (mustBeNew) requireNoRun(wanted);
  const { path, release } = await (answer === "new" ? lockFree(wanted) : lock(wanted));
  try {
    if (mustBeNew) requireNoRun(path); // another process may have begun and ended one meanwhile
    // A run that was killed before its first checkpoint has nothing to go on from.
    const isResumed = answer === "resume" && listCheckpoints(join(path, "checkpoints")).length > 0;
    if (isResumed) removeUnfinished(path);
    else for (const name of filesOf(path)) writing(path, () => rmSync(join(path, name), { recursive: true }));
    return { path, isResumed, dispose: release, [Symbol.dispose]: release };
  } catch (error) {
    release();
    throw error;
  }
}

/**
 * What to do with a folder that holds a run: what is configured, or to go on with it where a launcher starts the processes
 * of a run again after one failed.
 *
 * @throws ConfigError where the launcher starts them again and it is not known in which folder the run was.
 */
function afterRestart({ dir, ifExists }: RunConfig): RunConfig["ifExists"] {
  if (restartsOf() === 0) return ifExists;
  if (dir !== null && ifExists !== "new") return "resume";
  throw new ConfigError([
    `run.dir: expected a folder to go on in after a restart, got ${dir ?? "none"} with run.ifExists ${ifExists}. ` +
      "Name the folder, and set run.ifExists to fail, overwrite or resume.",
  ]);
}

/** @throws ConfigError when a folder holds a run. */
function requireNoRun(folder: string): void {
  if (!holdsRun(folder)) return;
  const last = listCheckpoints(join(folder, "checkpoints")).at(-1) ?? "no checkpoint";
  throw new ConfigError([
    `run.dir: expected a folder without a run, got ${folder}, which holds one (${last}). ` +
      "Set run.ifExists to resume, new or overwrite, or name another folder.",
  ]);
}

/** Remove files and checkpoints that a run was writing when it was killed. */
function removeUnfinished(path: string): void {
  for (const folder of [path, ...["checkpoints", "samples", "dumps"].map((name) => join(path, name))]) {
    if (!existsSync(folder)) continue;
    for (const name of readdirSync(folder)) {
      const file = join(folder, name);
      if (/^\..*\.tmp$/.test(name)) writing(file, () => rmSync(file, { recursive: true, force: true }));
    }
  }
}

/** Refuse to replace a file. @param force - what allows it. */
export function requireNew(path: string, force = false): void {
  if (existsSync(path) && !force)
    throw expected(path, "a file that does not exist yet", "one that does", "Use --force");
}

/**
 * Check that a file can be written, before hours of work. An existing file at `path` is unchanged, and no new one remains.
 *
 * @param key - of the configuration, for the message.
 * @param endings - what its name may end in, such as `[".pt"]`.
 * @throws ConfigError when it cannot.
 */
export function requireWritable(key: string, path: string, endings: readonly string[]): void {
  const refuse = (what: string, got: string, remedy: string): ConfigError =>
    new ConfigError([`${key}: expected ${what}, got ${got}. ${remedy}.`]);
  if (!endings.some((ending) => path.toLowerCase().endsWith(ending)))
    throw refuse(`a name that ends in ${endings.join(", ")}`, path, "The ending decides the format");
  if (existsSync(path) && !statSync(path).isFile())
    throw refuse("a file to write", `${path}, which is a folder or device`, "Name another");
  const probe = join(dirname(path), `.${basename(path)}.${process.pid}.tmp`);
  try {
    closeSync(openSync(probe, "wx"));
    rmSync(probe);
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    const remedy =
      code === "ENOENT"
        ? `Make the folder ${dirname(path)} first`
        : "Name another, or change its permissions";
    throw refuse("a file that can be written", `${path} (${message})`, remedy);
  }
}

/** Write the resolved configuration to `config.yaml`. */
export function writeConfig<T extends object = TrainConfig>(
  folder: string,
  config: T,
  kind: ConfigKind<T> = trainKind as unknown as ConfigKind<T>,
): void {
  const text = configYaml(config, { kind, folder });
  replaceFile(join(folder, "config.yaml"), `${WRITTEN}\n\n${text}`);
}

/** What a run wrote into a folder; nothing where there is no such folder. @throws ConfigError for a file in a folder's place. */
function filesOf(folder: string): string[] {
  if (!existsSync(folder)) return [];
  if (!statSync(folder).isDirectory())
    throw new ConfigError([`run.dir: expected a folder, got ${folder}, which is a file. Name another.`]);
  const names = readdirSync(folder).filter((name) => RUN_FILES.test(name));
  const isFile = (name: string): boolean =>
    statSync(join(folder, name), { throwIfNoEntry: false })?.isFile() === true;
  const blocked = names.find((name) => /^(checkpoints|dumps|samples|tb)$/.test(name) && isFile(name));
  if (blocked !== undefined) {
    throw new ConfigError([
      `run.dir: expected a folder ${blocked} in ${folder}, got a file. Move it away, or choose another run.dir.`,
    ]);
  }
  return names;
}

/** First line of a run's `config.yaml`: a file of that name without it is the user's own. */
const WRITTEN = "# Every key of this run, as it was begun.";

/** Whether a folder holds a run: more than a start leaves that failed before there was a record or a checkpoint. */
function holdsRun(folder: string): boolean {
  return filesOf(folder).some((name) => !isLeftByStart(join(folder, name), name));
}

function isLeftByStart(path: string, name: string): boolean {
  switch (name) {
    case "config.yaml":
      return readFileSync(path, "utf8").startsWith(WRITTEN);
    case "env.json":
    case "tb":
      return true;
    case "metrics.jsonl":
    case "metrics.csv":
    case "samples.jsonl":
      return statSync(path).size <= 1; // a table without a record is an empty line
    case "samples":
    case "dumps":
    case "checkpoints":
      return readdirSync(path).every((inner) => /^\..*\.tmp$/.test(inner));
    default:
      return false;
  }
}

/** Such as `2026-11-22_18-30-05`. */
const timeOf = (now: Date): string => now.toISOString().slice(0, 19).replace("T", "_").replaceAll(":", "-");

/** A folder that this process alone may write to until `release` is called. */
interface Locked {
  readonly path: string;
  readonly release: () => void;
}

/** The first of `path`, `path-2`, `path-3`, ... without a run, which no other process writes to. */
async function lockFree(path: string): Promise<Locked> {
  for (let i = 1; ; i++) {
    const free = i === 1 ? path : `${path}-${i}`;
    if (holdsRun(free)) continue;
    const taken = await tryTake(free);
    if ("release" in taken && !holdsRun(free)) return { path: free, release: taken.release };
    if ("release" in taken) taken.release();
  }
}

/** @throws ConfigError when another process writes to the folder. */
async function lock(path: string): Promise<Locked> {
  const taken = await tryTake(path);
  if ("release" in taken) return { path, release: taken.release };
  const { pid, host } = taken.owner;
  throw new ConfigError([
    `run.dir: expected a folder that no other process writes to, got ${path} (process ${pid} on ${host}). ` +
      `End that process, or remove ${join(path, LOCK)} if there is none.`,
  ]);
}

async function tryTake(folder: string): ReturnType<typeof tryLock> {
  makeFolder(folder);
  try {
    return await tryLock(join(folder, LOCK));
  } catch (error) {
    const isFolder = (error as NodeJS.ErrnoException).code === "EISDIR"; // one with the lock's name
    return writing(isFolder ? join(folder, LOCK) : folder, () => {
      throw error;
    });
  }
}

/** Whether a process writes to a folder right now; one on another machine counts as long as its lock is there. */
export function isHeld(folder: string): boolean {
  return isLocked(join(folder, LOCK));
}

/**
 * What to do where a folder or file is no run: the run that it is part of, or the runs in it.
 *
 * @returns a sentence without its full stop; undefined where there is no run near it.
 */
export function runNear(path: string): string | undefined {
  const has = (folder: string, name: string): boolean => existsSync(join(folder, name));
  const isRun = (folder: string): boolean =>
    has(folder, "metrics.jsonl") || (has(folder, "config.yaml") && has(folder, "env.json"));
  const above = [dirname(path), dirname(dirname(path))].find(isRun);
  if (above !== undefined) return `Name the run that it is part of: ${above}`;
  const entries =
    existsSync(path) && statSync(path).isDirectory() ? readdirSync(path, { withFileTypes: true }) : [];
  const inside = entries.filter((entry) => entry.isDirectory()).map(({ name }) => join(path, name));
  const runs = inside.filter(isRun);
  return runs.length === 0 ? undefined : `Name a run in it: ${runs.slice(0, 3).join(", ")}`;
}
