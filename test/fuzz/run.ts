/**
 * Fuzzing of everything that reads files: `npm run fuzz -- [--tries N] [--format NAME] [--seed S] [--from K]`.
 *
 * Each format is read in a process of its own, which is watched: a crash, a try of more than 10 s, more than 2 GiB, an
 * unhandled rejection and a message that is not ours are faults. The same seed makes the same files; a fault is printed
 * with what replays it, and its file is kept in `build/fuzz`.
 */
import { fork } from "node:child_process";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

import { fileOf, type Report, type Task } from "./child.js";
import { FORMATS, type Format } from "./formats.js";
import { Dice } from "./mutate.js";

/** A try that went wrong. */
export interface Fault {
  readonly format: string;
  readonly number: number;
  readonly what: string;
}

/** What became of the tries of a format. */
export interface Outcome {
  readonly faults: readonly Fault[];
  /** Files that were read whole, and those that were refused with a message of ours. */
  readonly read: number;
  readonly refused: number;
}

const SECONDS = 10;
const BYTES = 2 ** 31;

/** Make the tries `[from, from + tries)` of a format. */
export async function fuzz(format: string, tries: number, seed: number, from = 0): Promise<Outcome> {
  const faults: Fault[] = [];
  let [read, refused] = [0, 0];
  const to = from + tries;
  for (let next = from; next < to; ) {
    const part = await watch({ format, seed, from: next, to });
    faults.push(...part.faults);
    read += part.read;
    refused += part.refused;
    next = part.next;
  }
  return { faults, read, refused };
}

async function watch(task: Task): Promise<Outcome & { readonly next: number }> {
  const { format, from, to } = task;
  const child = fork(fileURLToPath(new URL("./child.js", import.meta.url)), [], { execArgv: [] });
  const faults: Fault[] = [];
  let current = from;
  let busy = cpuSeconds(child.pid);
  let began = performance.now();
  let last = { read: 0, refused: 0 };
  let killed: string | undefined;
  return await new Promise((resolve) => {
    const end = (what: string): void => {
      killed ??= what;
      child.kill("SIGKILL");
    };
    const timer = setInterval(() => {
      if (rssOf(child.pid) > BYTES) end("more than 2 GiB");
      // Time that it waits for a processor does not count, unless it does nothing at all.
      const seconds = (performance.now() - began) / 1000;
      const worked = cpuSeconds(child.pid) - busy;
      if (seconds > SECONDS && (worked > SECONDS || seconds > 12 * SECONDS)) end(`more than ${SECONDS} s`);
    }, 100);
    child.on("message", (report: Report) => {
      if ("begins" in report) {
        current = report.begins;
        began = performance.now();
        busy = cpuSeconds(child.pid);
        if (report.rss > BYTES) end("more than 2 GiB");
      } else if ("fault" in report) faults.push({ format, number: report.number, what: report.fault });
      else last = report;
    });
    child.on("close", (code, signal) => {
      clearInterval(timer);
      const isDone = last.read + last.refused > 0 && code === 0;
      const what = killed ?? `the process ended with ${signal ?? `code ${code}`}`;
      if (!isDone) faults.push({ format, number: current, what });
      resolve({ faults, ...last, next: isDone ? to : current + 1 });
    });
    child.send(task);
  });
}

/** Memory of a process, 0 where the system does not say. */
function rssOf(pid: number | undefined): number {
  try {
    return Number(/^VmRSS:\s*(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1] ?? 0) * 1024;
  } catch {
    return 0; // it is over, or this is not Linux
  }
}

/** Processor time of a process, infinite where the system does not say. */
function cpuSeconds(pid: number | undefined): number {
  try {
    const fields = readFileSync(`/proc/${pid}/stat`, "latin1").split(") ")[1]?.split(" ") ?? [];
    return (Number(fields[11]) + Number(fields[12])) / 100;
  } catch {
    return Number.POSITIVE_INFINITY;
  }
}

const USAGE = "Usage: npm run fuzz -- [--tries N] [--format NAME,NAME] [--seed S] [--from K]";

/** What a command line asks for, or what is wrong with it. */
export function fuzzOptions(args: string[]):
  | string
  | {
      readonly formats: readonly string[];
      readonly tries: number;
      readonly seed: number;
      readonly from: number;
    } {
  const names = Object.keys(FORMATS);
  const text = (value: string) => ({ type: "string", default: value }) as const;
  try {
    const { values } = parseArgs({
      args,
      options: { tries: text("1000"), format: text(names.join(",")), seed: text("0"), from: text("0") },
    });
    const formats = values.format.split(",");
    const unknown = formats.find((name) => !Object.hasOwn(FORMATS, name));
    if (unknown !== undefined) return `fuzz: expected one of ${names.join(", ")}, got ${unknown}. ${USAGE}`;
    const numbers = { tries: values.tries, seed: values.seed, from: values.from };
    for (const [name, value] of Object.entries(numbers)) {
      if (!/^\d{1,15}$/.test(value))
        return `fuzz: --${name}: expected a whole number from 0, got ${value}. ${USAGE}`;
    }
    return { formats, tries: Number(values.tries), seed: Number(values.seed), from: Number(values.from) };
  } catch (error) {
    // Of parseArgs: its own words name the option.
    return `fuzz: ${(error as Error).message.split(". ")[0]}. ${USAGE}`;
  }
}

async function main(): Promise<void> {
  const asked = fuzzOptions(process.argv.slice(2));
  if (typeof asked === "string") {
    console.error(asked);
    process.exitCode = 2;
    return;
  }
  const { formats, tries, seed, from } = asked;
  const folder = fileURLToPath(new URL("../../../build/fuzz/", import.meta.url));
  let count = 0;
  for (const format of formats) {
    const known = FORMATS[format] as Format;
    const { faults, read, refused } = await fuzz(format, tries, seed, from);
    console.log(`${format}: ${tries} tries, ${read} read, ${refused} refused, ${faults.length} faults`);
    const seeds = await known.seeds();
    for (const { number, what } of faults) {
      mkdirSync(folder, { recursive: true });
      const file = `${folder}${format}-${seed}-${number}`;
      writeFileSync(file, fileOf(known, seeds, new Dice(seed, format, number)));
      console.log(`  npm run fuzz -- --format ${format} --seed ${seed} --from ${number} --tries 1: ${what}`);
    }
    count += faults.length;
  }
  process.exitCode = count === 0 ? 0 : 1;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) await main();
