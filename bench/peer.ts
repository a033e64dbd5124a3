/** Talks to `peer.py`, which runs LlamaGen's own modules in a Python process of the user's. */
import { spawn } from "node:child_process";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

/** Seconds by phase. */
export type Times = Readonly<Record<string, number>>;

/** The peer, which answers one request after another. */
export interface Peer extends Disposable {
  ask(request: { what: "step" | "rollout" } & Record<string, unknown>): Promise<Times>;
}

const PROGRAM = fileURLToPath(new URL("../../bench/peer.py", import.meta.url));

/**
 * Start the peer.
 *
 * @param checkout - a clone of LlamaGen. The Python with torch is the environment's `PYTHON`, else `python3`.
 */
export function startPeer(checkout: string, threads: number): Peer {
  const python = process.env.PYTHON ?? "python3";
  const child = spawn(python, [PROGRAM, checkout, String(threads)], { stdio: ["pipe", "pipe", "inherit"] });
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  return {
    ask: async (request) => {
      child.stdin.write(`${JSON.stringify(request)}\n`);
      const { value, done } = await lines.next();
      if (done) throw new Error(`bench: expected times from ${python}, got its end. Its message is above.`);
      return JSON.parse(value as string) as Times;
    },
    [Symbol.dispose]: () => child.stdin.end(),
  };
}

/** The middle one of some numbers. */
export const median = (values: readonly number[]): number =>
  values.toSorted((a, b) => a - b)[values.length >> 1] as number;

/** The medians of several runs, phase by phase; `total` is the median of their sums. */
export function medians(runs: readonly Times[]): Times {
  const names = Object.keys(runs[0] ?? {});
  const phases = names.map((name) => [name, median(runs.map((run) => run[name] as number))]);
  const sums = runs.map((run) => Object.values(run).reduce((sum, part) => sum + part, 0));
  return { ...Object.fromEntries(phases), total: median(sums) };
}
