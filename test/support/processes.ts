/** Starts several processes of one program as a launcher does, for tests of process groups. */

import { spawn } from "node:child_process";
import { fileURLToPath } from "node:url";
import { freePort } from "../../src/cli/launch.js";

/** How a process ended. */
export interface Ended {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly out: string;
  readonly err: string;
}

/** Processes that run. */
export interface Running {
  readonly pids: readonly number[];
  /** Resolves when the text has come from a process, on either stream. */
  saw(rank: number, text: string): Promise<void>;
  readonly ended: Promise<readonly Ended[]>;
}

/** What torchrun tells a process. */
export function torchrunEnvironment(rank: number, size: number, port: number): Record<string, string> {
  return {
    RANK: `${rank}`,
    LOCAL_RANK: `${rank}`,
    WORLD_SIZE: `${size}`,
    LOCAL_WORLD_SIZE: `${size}`,
    MASTER_ADDR: "127.0.0.1",
    MASTER_PORT: `${port}`,
    OMP_NUM_THREADS: "1",
  };
}

/**
 * Start `size` processes of a compiled program beside this file's folder, such as `distributed/child.js`.
 *
 * @param args - of each.
 * @param options.ranks - which of them to start; default all.
 */
export async function start(
  program: string,
  size: number,
  args: readonly string[],
  options: { env?: Record<string, string>; ranks?: readonly number[] } = {},
): Promise<Running> {
  const path = program.startsWith("/") ? program : fileURLToPath(new URL(`../${program}`, import.meta.url));
  const port = await freePort();
  const ranks = options.ranks ?? Array.from({ length: size }, (_, rank) => rank);
  const outputs = new Map<number, { out: string; err: string; watchers: Set<() => void> }>();
  const children = ranks.map((rank) => {
    const output = { out: "", err: "", watchers: new Set<() => void>() };
    outputs.set(rank, output);
    const env = { ...process.env, ...torchrunEnvironment(rank, size, port), ...options.env };
    const child = spawn(process.execPath, [path, ...args], { env, stdio: ["ignore", "pipe", "pipe"] });
    child.stdout.setEncoding("utf8").on("data", (text: string) => {
      output.out += text;
      for (const watch of output.watchers) watch();
    });
    child.stderr.setEncoding("utf8").on("data", (text: string) => {
      output.err += text;
      for (const watch of output.watchers) watch();
    });
    const ended = new Promise<Ended>((resolve) => {
      child.on("close", (code, signal) => {
        for (const watch of output.watchers) watch();
        resolve({ code, signal, out: output.out, err: output.err });
      });
    });
    return { pid: child.pid as number, ended };
  });
  return {
    pids: children.map(({ pid }) => pid),
    saw: (rank, text) =>
      new Promise((resolve) => {
        const output = outputs.get(rank);
        const watch = (): void => {
          if (output === undefined || !`${output.out}${output.err}`.includes(text)) return;
          output.watchers.delete(watch);
          resolve();
        };
        output?.watchers.add(watch);
        watch();
      }),
    ended: Promise.all(children.map(({ ended }) => ended)),
  };
}
