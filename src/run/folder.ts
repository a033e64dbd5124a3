/**
 * The folder of a run: which one, what to do when it holds a run already, and that one process at a time writes to it.
 * What is in it is written by `log.ts` and `checkpoint.ts`.
 */
import { existsSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { hostname } from "node:os";
import { join } from "node:path";
import { configYaml } from "../config/explain.js";
import { ConfigError, type ConfigKind, type RunConfig, type TrainConfig } from "../config/resolve.js";
import { trainKind } from "../config/train_kind.js";
import { makeFolder, replaceFile, writing } from "../torch/files.js";
import { listCheckpoints } from "./checkpoint.js";

/** What a run writes into its folder. Nothing else there is ever removed. */
const RUN_FILES =
  /^(checkpoints|dumps|samples|tb|metrics\.(jsonl|csv)|samples\.jsonl|config\.yaml|model\.safetensors|env(\.\d+)?\.json|report\.html|eval(\.json)?)$/;

const LOCK = ".lock";

/** What can be answered to `ask`. */
export type IfExists = Exclude<RunConfig["ifExists"], "ask">;

/** A folder to write a run to. Give it back with `dispose()`, or hold it with `using`. */
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
 * Make the folder of a run ready, as `run.dir` and `run.ifExists` say, and keep other processes out of it.
 *
 * @param options.ask - asks the user about a folder that holds a run, for `ask`; `fail` where left out.
 * @throws ConfigError when the folder holds a run and `ifExists` is `fail`, or another process writes to it.
 */
export async function openRunFolder<T extends RunOwner = TrainConfig>(
  config: T,
  options: { ask?: (folder: string) => Promise<IfExists>; now?: () => Date; kind?: ConfigKind<T> } = {},
): Promise<RunFolder> {
  const { ask = async () => "fail" as const, now = () => new Date() } = options;
  const kind = options.kind ?? (trainKind as unknown as ConfigKind<T>);
  const wanted = config.run.dir ?? freeName(join("runs", `${timeOf(now())}_${kind.nameOf(config)}`));
  const { ifExists } = config.run;
  const holdsRun = filesOf(wanted).length > 0;
  const policy = holdsRun && ifExists === "ask" ? await ask(wanted) : ifExists;
  if (holdsRun && (policy === "fail" || policy === "ask")) {
    const last = listCheckpoints(join(wanted, "checkpoints")).at(-1) ?? "no checkpoint";
    throw new ConfigError([
      `run.dir: expected a folder without a run, got ${wanted}, which holds one (${last}). ` +
        "Set run.ifExists to resume, new or overwrite, or name another folder.",
    ]);
  }
  const path = holdsRun && policy === "new" ? freeName(wanted) : wanted;
  makeFolder(path);
  takeLock(path);
  // A run that was killed before its first checkpoint has nothing to go on from.
  const isResumed = holdsRun && policy === "resume" && listCheckpoints(join(path, "checkpoints")).length > 0;
  if (holdsRun && (policy === "overwrite" || (policy === "resume" && !isResumed))) {
    for (const name of filesOf(path)) rmSync(join(path, name), { recursive: true });
  }
  if (isResumed) sweep(path);
  const dispose = (): void => rmSync(join(path, LOCK), { force: true });
  return { path, isResumed, dispose, [Symbol.dispose]: dispose };
}

/** Remove files that a run was writing when it was killed; those of checkpoints are removed where they are written. */
function sweep(path: string): void {
  for (const folder of [path, join(path, "samples"), join(path, "dumps")]) {
    if (!existsSync(folder)) continue;
    for (const name of readdirSync(folder)) {
      if (/^\..*\.tmp$/.test(name)) rmSync(join(folder, name));
    }
  }
}

/** Write the resolved configuration to `config.yaml`. */
export function writeConfig<T extends object = TrainConfig>(
  folder: string,
  config: T,
  kind: ConfigKind<T> = trainKind as unknown as ConfigKind<T>,
): void {
  const text = configYaml(config, { kind });
  replaceFile(join(folder, "config.yaml"), text);
}

const filesOf = (folder: string): string[] =>
  existsSync(folder) ? readdirSync(folder).filter((name) => RUN_FILES.test(name)) : [];

/** Such as `2026-11-22_18-30-05`. */
const timeOf = (now: Date): string => now.toISOString().slice(0, 19).replace("T", "_").replaceAll(":", "-");

function freeName(path: string): string {
  if (filesOf(path).length === 0) return path;
  for (let i = 2; ; i++) if (filesOf(`${path}-${i}`).length === 0) return `${path}-${i}`;
}

interface Owner {
  readonly pid: number;
  readonly host: string;
}

/** Only one process may append to the files and clear away the leftovers of interrupted saves. */
function takeLock(folder: string): void {
  const path = join(folder, LOCK);
  const me: Owner = { pid: process.pid, host: hostname() };
  const owner = readOwner(path);
  if (owner !== null && isAlive(owner)) {
    throw new ConfigError([
      `run.dir: expected a folder that no other process writes to, got ${folder} (process ${owner.pid} on ${owner.host}). ` +
        `End that process, or remove ${path} if there is none.`,
    ]);
  }
  writing(path, () => {
    rmSync(path, { force: true });
    writeFileSync(path, JSON.stringify(me), { flag: "wx" });
  });
}

/** Whether a process writes to a folder right now; one on another machine counts as long as its lock is there. */
export function isHeld(folder: string): boolean {
  const owner = readOwner(join(folder, LOCK));
  return owner !== null && isAlive(owner);
}

function readOwner(path: string): Owner | null {
  try {
    return JSON.parse(readFileSync(path, "utf8")) as Owner;
  } catch {
    return null; // no lock, or one that was cut short and so is nobody's
  }
}

/** Whether a lock's owner may still be there: on another machine nobody can tell. */
function isAlive({ pid, host }: Owner): boolean {
  if (host !== hostname()) return true;
  if (pid === process.pid) return true;
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "EPERM";
  }
}
