/**
 * Starts processes that share one run on this machine, with the variables that torchrun would give them: all of them for
 * `rlar launch`, or one more beside this one. Their output goes through here, a line at a time and with the rank; what they do
 * together is in `src/distributed/`.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { createServer } from "node:net";
import { constants } from "node:os";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

import { ConfigError } from "../config/resolve.js";
import { print } from "../run/console.js";
import { SIGNALS } from "./signals.js";

/** Options of `rlar launch`. */
export interface LaunchOptions {
  processes: number;
  maxRestarts: number;
  masterPort?: number;
}

/** Commands that several processes share. */
const SHARED = ["train", "pretrain", "tokenizer", "classifier", "eval"];

/** Milliseconds that processes get to end by themselves once one has failed, and once more after SIGTERM. */
const PATIENCE = 15_000;

/**
 * Run the processes until all have ended. When one fails the others are ended, and all begin again from the last checkpoint
 * as often as `maxRestarts` says.
 *
 * @param command - of rlar, such as `["train", "config.yaml"]`.
 * A signal goes to all processes, and none are started after it.
 *
 * @returns the exit code of the first process that failed, as a shell shows it, or that of a signal while none ran; 0 where
 *   none did.
 */
export async function launch(command: readonly string[], options: LaunchOptions): Promise<number> {
  const { processes, maxRestarts } = options;
  if (!(processes >= 1)) throw new ConfigError([`--processes: expected a number from 1, got ${processes}.`]);
  if (!(maxRestarts >= 0))
    throw new ConfigError([`--max-restarts: expected a number from 0, got ${maxRestarts}.`]);
  if (!SHARED.includes(command[0] as string)) {
    throw new ConfigError([
      `launch: expected a command that processes share (${SHARED.join(", ")}), got ${command[0]}. Run it without launch.`,
    ]);
  }
  let interrupted: (typeof SIGNALS)[number] | null = null;
  let running: readonly ChildProcess[] = [];
  for (const name of SIGNALS) {
    process.on(name, () => {
      interrupted ??= name;
      for (const child of running) child.kill(name);
    });
  }
  for (let restart = 0; ; restart++) {
    const port = options.masterPort ?? (await freePort());
    if (interrupted !== null) return 128 + constants.signals[interrupted];
    running = Array.from({ length: processes }, (_, rank) => {
      const place = { rank, processes, port, restart, maxRestarts };
      return startProcess(command, place);
    });
    const code = await ended(running);
    running = [];
    if (code === 0 || interrupted !== null || restart === maxRestarts) return code;
    print(process.stderr, `launch: a process ended with ${code}; restart ${restart + 1} of ${maxRestarts}\n`);
  }
}

interface Place {
  readonly rank: number;
  readonly processes: number;
  readonly port: number;
  readonly restart: number;
  readonly maxRestarts: number;
}

/**
 * Run `fn`, which runs `command`, as the first of two processes that share the command's run. Only this one writes and prints.
 *
 * @throws what `fn` throws; LostRankError from it where the other process fails.
 */
export async function withSecondProcess<T>(command: readonly string[], fn: () => Promise<T>): Promise<T> {
  const place = { processes: 2, port: await freePort(), restart: 0, maxRestarts: 0 };
  const second = startProcess(command, { ...place, rank: 1 });
  const isOver = ended([second]);
  const variables = variablesOf({ ...place, rank: 0 });
  const before = Object.keys(variables).map((name) => [name, process.env[name]] as const);
  Object.assign(process.env, variables);
  let timer: NodeJS.Timeout | undefined;
  try {
    return await fn();
  } catch (error) {
    // The second process learns of it in the group; where there was no group yet it would wait for this one.
    timer = setTimeout(() => second.kill("SIGKILL"), PATIENCE);
    throw error;
  } finally {
    for (const [name, value] of before) {
      if (value === undefined) delete process.env[name];
      else process.env[name] = value;
    }
    await isOver;
    clearTimeout(timer);
  }
}

function variablesOf({ rank, processes, port, restart, maxRestarts }: Place): Record<string, string> {
  return {
    RANK: `${rank}`,
    LOCAL_RANK: `${rank}`,
    WORLD_SIZE: `${processes}`,
    LOCAL_WORLD_SIZE: `${processes}`,
    MASTER_ADDR: "127.0.0.1",
    MASTER_PORT: `${port}`,
    RLAR_RESTART_COUNT: `${restart}`,
    RLAR_MAX_RESTARTS: `${maxRestarts}`,
  };
}

function startProcess(command: readonly string[], place: Place): ChildProcess {
  const { rank, processes } = place;
  // What a torchrun around this launcher says is not true of its processes.
  const around = Object.entries(process.env).filter(([name]) => !name.startsWith("TORCHELASTIC_"));
  const env = { ...Object.fromEntries(around), ...variablesOf(place) };
  const main = fileURLToPath(new URL("./main.js", import.meta.url));
  const child = spawn(process.execPath, [main, ...command], { env, stdio: ["ignore", "pipe", "pipe"] });
  // Lines of JSON are for a program; the first process alone prints them.
  const prefix = processes === 1 || (command.includes("--json") && rank === 0) ? "" : `[${rank}] `;
  createInterface({ input: child.stdout }).on("line", (line) => print(process.stdout, `${prefix}${line}\n`));
  createInterface({ input: child.stderr }).on("line", (line) => print(process.stderr, `[${rank}] ${line}\n`));
  return child;
}

/** Wait for all, and end those that are left over when one fails. @returns the first code that is not 0. */
async function ended(children: readonly ChildProcess[]): Promise<number> {
  let first = 0;
  const timers: NodeJS.Timeout[] = [];
  const kill = (signal: NodeJS.Signals): void => {
    for (const child of children)
      if (child.exitCode === null && child.signalCode === null) child.kill(signal);
  };
  const codes = children.map(async (child) => {
    const code = await new Promise<number>((resolve) => {
      child.on("error", (error) => {
        print(process.stderr, `launch: ${error.message}\n`);
        resolve(1);
      });
      child.on("close", (exit, signal) => resolve(exit ?? 128 + constants.signals[signal as NodeJS.Signals]));
    });
    if (code === 0 || first !== 0) return;
    first = code;
    // The others find out themselves whom they miss, and say so.
    timers.push(
      setTimeout(() => kill("SIGTERM"), PATIENCE),
      setTimeout(() => kill("SIGKILL"), 2 * PATIENCE),
    );
  });
  await Promise.all(codes);
  for (const timer of timers) clearTimeout(timer);
  return first;
}

/** A port of this machine that nobody uses at the moment. */
export async function freePort(): Promise<number> {
  const server = createServer().listen(0, "127.0.0.1");
  await new Promise((resolve) => server.once("listening", resolve));
  const { port } = server.address() as { port: number };
  await new Promise((resolve) => server.close(resolve));
  return port;
}
