/**
 * The process that `run.ts` watches: makes one changed file after the other and reads it. It says which try it begins, so
 * that a crash, a hang or too much memory is known by its number.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

import { FORMATS, type Format } from "./formats.js";
import { changeBytes, Dice } from "./mutate.js";

/** Which tries to make. */
export interface Task {
  readonly format: string;
  readonly seed: number;
  readonly from: number;
  /** The one after the last. */
  readonly to: number;
}

/** What the process says. */
export type Report =
  | { readonly begins: number; readonly rss: number }
  | { readonly number: number; readonly fault: string }
  | { readonly read: number; readonly refused: number };

/** The file of a try. */
export function fileOf({ structural }: Format, seeds: readonly Buffer[], dice: Dice): Buffer {
  const bytes = dice.of(seeds);
  const how = dice.below(3);
  const changed = how === 0 ? bytes : structural(bytes, dice);
  return how === 1 ? changed : changeBytes(changed, dice, seeds);
}

/** What is wrong with an error's message, or undefined: `<where>: expected <what>, got <value>.`, or a ConfigError. */
export function faultOf(error: unknown): string | undefined {
  if (!(error instanceof Error)) return `no Error: ${String(error)}`;
  const { name, message } = error;
  if (name !== "ConfigError" && !/expected [\s\S]+, got [\s\S]*\.$/.test(message))
    return `not a message of ours: ${error.stack}`;
  // Words of JavaScript about our code or a library's, in a sentence of ours.
  const isOfCode = /Cannot read propert|is not a function|is not iterable|DataView/.test(message);
  return isOfCode ? `not about the file: ${error.stack}` : undefined;
}

async function main({ format, seed, from, to }: Task): Promise<void> {
  const known = FORMATS[format] as Format;
  const seeds = await known.seeds();
  const folder = mkdtempSync(join(tmpdir(), "rlar-fuzz-"));
  let [read, refused] = [0, 0];
  let number = from;
  const say = (report: Report): void => void process.send?.(report);
  const onFault = (error: unknown): void =>
    say({ number, fault: `unhandled: ${(error as Error)?.stack ?? error}` });
  process.on("unhandledRejection", onFault);
  for (; number < to; number++) {
    say({ begins: number, rss: process.memoryUsage().rss });
    const bytes = fileOf(known, seeds, new Dice(seed, format, number));
    try {
      await known.read(bytes, folder);
      read++;
    } catch (error) {
      refused++;
      const fault = faultOf(error);
      if (fault !== undefined) say({ number, fault });
    }
  }
  // A promise that nobody waits for is reported when the turn is over.
  await new Promise((resolve) => setTimeout(resolve, 50));
  rmSync(folder, { recursive: true, force: true });
  process.send?.({ read, refused } satisfies Report, () => process.disconnect());
}

// `run.ts` imports this file, and may have a channel of its own to the process that started it.
if (process.argv[1] === fileURLToPath(import.meta.url))
  process.once("message", (task: Task) => void main(task));
