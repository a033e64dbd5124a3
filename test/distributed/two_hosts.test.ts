/**
 * Two machines, as far as the network knows: two network namespaces with a link between them, a process in each. The link is
 * cut during a step, and the run goes on from its last checkpoint when it is back. Needs the right to make namespaces.
 */
import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";

import { freePort } from "../../src/cli/launch.js";
import { checkpointsOf, metricsOf, tinyFolder, tinyKeys } from "../support/train_run.js";

const MAIN = fileURLToPath(new URL("../../src/cli/main.js", import.meta.url));
const HOSTS = [`rlar-a-${process.pid}`, `rlar-b-${process.pid}`] as const;
const ADDRESSES = ["10.77.31.1", "10.77.31.2"] as const;

const ip = (...args: string[]): void =>
  void execFileSync("ip", args, { stdio: ["ignore", "ignore", "pipe"] });

/** Make both hosts and the link. @returns why that cannot be done, or null. */
function makeHosts(): string | null {
  try {
    for (const host of HOSTS) ip("netns", "add", host);
    const ends = ["rlar0", "rlar1"] as const;
    ip("-n", HOSTS[0], "link", "add", ends[0], "type", "veth", "peer", "name", ends[1], "netns", HOSTS[1]);
    for (const [i, host] of HOSTS.entries()) {
      ip("-n", host, "address", "add", `${ADDRESSES[i]}/24`, "dev", ends[i] as string);
      ip("-n", host, "link", "set", ends[i] as string, "up");
      ip("-n", host, "link", "set", "lo", "up");
    }
    return null;
  } catch (error) {
    removeHosts();
    return `network namespaces cannot be made here: ${(error as Error).message.split("\n").at(-1)}`;
  }
}

function removeHosts(): void {
  for (const host of HOSTS) {
    try {
      ip("netns", "delete", host);
    } catch {
      // was not made
    }
  }
}

function startOn(rank: number, port: number, keys: readonly string[]) {
  const env = {
    ...process.env,
    RANK: `${rank}`,
    WORLD_SIZE: "2",
    MASTER_ADDR: ADDRESSES[0],
    MASTER_PORT: `${port}`,
    OMP_NUM_THREADS: "1",
  };
  const args = ["netns", "exec", HOSTS[rank] as string, process.execPath, MAIN, "train", ...keys];
  const child = spawn("ip", args, { env, stdio: ["ignore", "ignore", "pipe"] });
  let err = "";
  child.stderr.on("data", (text) => {
    err += text;
  });
  return new Promise<{ code: number | null; err: string; at: number }>((resolve) => {
    child.on("close", (code) => resolve({ code, err, at: performance.now() }));
  });
}

test("two hosts: the link is cut during a step, both name the other, and the run goes on", async (t) => {
  const reason = makeHosts();
  if (reason !== null) return t.skip(reason);
  t.after(removeHosts);
  const folder = await tinyFolder(t, 20);
  const dir = join(folder, "run");
  const keysOf = (iters: number): string[] => [
    `run={dir: ${dir}, ifExists: resume}`,
    ...tinyKeys(folder),
    "save.every=5",
    "optimizer={schedule: constant, warmup: 0}", // so that the number of iterations may change
    "log={every: 1, imagesEvery: 0, tensorboard: false}",
    `train={iters: ${iters}, threads: 1, device: cpu, timeout: 8}`,
  ];
  const both = async (iters: number): Promise<ReturnType<typeof startOn>[]> => {
    const [port, keys] = [await freePort(), keysOf(iters)];
    return [startOn(0, port, keys), startOn(1, port, keys)];
  };
  // More than can be done before the link is cut.
  const first = await both(100_000);
  const file = join(dir, "metrics.jsonl");
  while (!(existsSync(file) && readFileSync(file, "utf8").split("\n").length > 7)) await sleep(10);
  ip("-n", HOSTS[0], "link", "set", "rlar0", "down");
  const cut = performance.now();
  const [a, b] = (await Promise.all(first)) as [Awaited<(typeof first)[0]>, Awaited<(typeof first)[0]>];
  assert.equal(a.code, 5, a.err);
  assert.equal(b.code, 5, b.err);
  assert.match(a.err, /no sign of life from rank 1 \(process \d+ on /);
  assert.match(b.err, /rank 0 \(process \d+ on .*\) ended or cannot be reached/);
  t.diagnostic(
    `ended ${((a.at - cut) / 1000).toFixed(1)} s and ${((b.at - cut) / 1000).toFixed(1)} s after the cut`,
  );
  assert.ok(checkpointsOf(dir).length > 0);
  ip("-n", HOSTS[0], "link", "set", "rlar0", "up");
  const iters = (metricsOf(dir).at(-1)?.step as number) + 5;
  for (const { code, err } of await Promise.all(await both(iters))) assert.equal(code, 0, err);
  assert.deepEqual(
    metricsOf(dir).map(({ step }) => step),
    Array.from({ length: iters }, (_, i) => i + 1),
  );
});
