/**
 * Programs that are killed with SIGKILL at random moments, every other time inside a save. `RLAR_TEST_KILLS` sets how
 * often, `RLAR_TEST_SEED` draws other moments.
 */
import { spawn } from "node:child_process";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

import { Generator, rand } from "../../src/torch/index.js";

export const SEED: number = Number(process.env.RLAR_TEST_SEED ?? Date.now() % 1_000_000);

/** Kills for each program: what the environment asks for, or `usual`. */
export const killsOr = (usual: number): number => Number(process.env.RLAR_TEST_KILLS ?? usual);

/** When a program is killed. */
export interface Moment {
  /** After a save has begun, rather than after {@link Kill.isDue}. */
  readonly isInSave: boolean;
  /** In [0, 1): how much later. */
  readonly draw: number;
}

/** Moments of one program; other names get others. */
export function moments(name: string, count: number): Moment[] {
  const offset = [...name].reduce((sum, letter) => (sum * 31 + letter.charCodeAt(0)) % 100_003, 7);
  using generator = new Generator(SEED * 1000 + offset);
  using draws = rand([count], { generator });
  return (draws.toList() as number[]).map((draw, i) => ({ isInSave: i % 2 === 1, draw }));
}

/** How a program ended. */
export interface Ended {
  /** Whether the kill came before its end. */
  readonly isKilled: boolean;
  readonly code: number | null;
  readonly errors: string;
}

/** How a program is killed: once it is due, when a save begins where that is asked for, and after a delay. */
export interface Kill {
  isDue(): boolean;
  /** Folders in which a save's temporary file or folder appears. */
  readonly savesIn?: readonly string[];
  readonly delayMs: number;
}

/** Run a program of Node's to its end, or kill it. */
export async function life(args: readonly string[], kill?: Kill): Promise<Ended> {
  const child = spawn(process.execPath, args, { stdio: ["ignore", "ignore", "pipe"] });
  let errors = "";
  child.stderr.on("data", (text) => {
    errors += text;
  });
  let isAlive = true;
  const ended = new Promise<Ended>((resolve) => {
    child.on("close", (code, signal) => {
      isAlive = false;
      resolve({ isKilled: signal === "SIGKILL", code, errors });
    });
  });
  if (kill !== undefined) {
    while (isAlive && !kill.isDue()) await sleep(3);
    const { savesIn } = kill;
    if (savesIn !== undefined) {
      const before = new Set(savesIn.flatMap(unfinishedIn)); // of an earlier life
      const isSaving = (): boolean =>
        savesIn.some((folder) => unfinishedIn(folder).some((path) => !before.has(path)));
      while (isAlive && !isSaving()) await sleep(1);
    }
    await sleep(kill.delayMs);
    child.kill("SIGKILL");
  }
  return await ended;
}

/** What saves in a folder have begun and not ended. */
export function unfinishedIn(folder: string): string[] {
  if (!existsSync(folder)) return [];
  return readdirSync(folder).flatMap((name) => (/^\..*\.tmp$/.test(name) ? [join(folder, name)] : []));
}

/** Lines of a run's metrics but the first, of the evaluation before training; -1 where there are none. */
export function stepsOf(dir: string): number {
  const file = join(dir, "metrics.jsonl");
  return existsSync(file) ? readFileSync(file, "utf8").split("\n").length - 2 : -1;
}

/**
 * Every file of all checkpoints of a run that are kept, the best one among them, as it must be whenever the run was
 * killed.
 */
export function checkpointFiles(dir: string): Record<string, Buffer | object> {
  const folder = join(dir, "checkpoints");
  const files = readdirSync(folder, { recursive: true, withFileTypes: true }).filter((entry) =>
    entry.isFile(),
  );
  return Object.fromEntries(
    files.map(({ parentPath, name }) => {
      const path = join(parentPath, name);
      const bytes = readFileSync(path);
      return [path.slice(folder.length + 1), name.endsWith(".json") ? plainJson(bytes, dir) : bytes];
    }),
  );
}

/** JSON without what depends on the folder's name and the machine's speed, nor the hash of values.json, where it stands. */
function plainJson(bytes: Buffer, dir: string): object {
  const isPlain = (item: { name?: unknown } | null): boolean => !/^(time|perf)\//.test(String(item?.name));
  return JSON.parse(bytes.toString().replaceAll(dir, "RUN"), (key, value) => {
    if (key === "seconds") return undefined;
    if (Array.isArray(value)) return value.filter(isPlain);
    return value?.name === "values.json" ? value.name : value;
  }) as object;
}

/** A random moment of a run that goes on for two steps a kill: the first while it starts. */
export function killOfRun(dir: string, { isInSave, draw }: Moment, i: number): Kill {
  return {
    isDue: () => stepsOf(dir) >= (i === 0 ? -1 : 2 * i),
    ...(isInSave && { savesIn: [join(dir, "checkpoints")] }),
    delayMs: draw * (isInSave ? SAVE_MS : i === 0 ? 800 : 300),
  };
}

/** About as long as a save of a tiny run takes: most of it waits for the disk. */
const SAVE_MS = 50;
