/** `rlar launch`: one run by several processes, signals to all of them, a killed one, and restarts. */
import assert from "node:assert/strict";
import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";

import { launch as inProcess } from "../../src/cli/launch.js";
import { folderOfFile } from "../support/folder_of_file.js";
import { checkpointsOf, metricsOf, tinyKeys } from "../support/train_run.js";

let folder = "";
folderOfFile((made) => {
  folder = made;
});

interface Launched {
  readonly child: ChildProcess & { pid: number };
  readonly ended: Promise<{ code: number | null; out: string; err: string; seconds: number }>;
}

function launch(dir: string, iters: number, options: readonly string[] = [], processes = 2): Launched {
  const keys = [
    `run.dir=${dir}`,
    ...tinyKeys(folder),
    "save.every=5",
    "log={every: 1, imagesEvery: 0, tensorboard: false}",
    `train={iters: ${iters}, threads: 1, device: cpu, timeout: 20}`,
  ];
  const args = ["scripts/rlar.mjs", "launch", "--processes", `${processes}`, ...options, "train", ...keys];
  // A torchrun around the launcher says nothing of the launcher's processes.
  const around = { TORCHELASTIC_USE_AGENT_STORE: "True", TORCHELASTIC_RESTART_COUNT: "1" };
  const env = { ...process.env, ...around };
  const child = spawn(process.execPath, args, { env, detached: true, stdio: ["ignore", "pipe", "pipe"] });
  const begun = performance.now();
  const texts = { out: "", err: "" };
  child.stdout.on("data", (text) => (texts.out += text));
  child.stderr.on("data", (text) => (texts.err += text));
  const ended = new Promise<Awaited<Launched["ended"]>>((resolve) => {
    child.on("close", (code) => resolve({ code, ...texts, seconds: (performance.now() - begun) / 1000 }));
  });
  return { child: child as Launched["child"], ended };
}

/** Wait until some steps are written. */
async function underWay(dir: string, steps: number, { child }: Launched): Promise<void> {
  const file = join(dir, "metrics.jsonl");
  while (
    child.exitCode === null &&
    !(existsSync(file) && readFileSync(file, "utf8").split("\n").length > steps)
  )
    await sleep(10);
}

/** The process of a rank below a launcher. */
function processOf(rank: number, launcher: number): number {
  const children = (pid: number): number[] => {
    try {
      const text = execFileSync("ps", ["-o", "pid=", "--ppid", `${pid}`], { encoding: "utf8" });
      return text.split(/\s+/).filter(Boolean).map(Number);
    } catch {
      return []; // none
    }
  };
  const all = [launcher];
  for (const pid of all) all.push(...children(pid));
  const found = all.find((pid) => {
    const env = readFileSync(`/proc/${pid}/environ`, "utf8").split("\0");
    return env.includes(`LOCAL_RANK=${rank}`) && env.some((entry) => entry.startsWith("WORLD_SIZE="));
  });
  assert.ok(found !== undefined, `no process of rank ${rank}`);
  return found;
}

test("one run, one folder, one record, whose lines have the rank", async () => {
  const dir = join(folder, "whole");
  const { code, out, err } = await launch(dir, 3).ended;
  assert.equal(code, 0, err);
  assert.equal(metricsOf(dir).length, 3);
  assert.match(out, /^\[0\] .*done after step 3/m);
  assert.doesNotMatch(out, /^\[1\]/m);
});

test("SIGTERM to the group is a checkpoint, once, and 143", async () => {
  const dir = join(folder, "stopped");
  const run = launch(dir, 100_000);
  await underWay(dir, 3, run);
  process.kill(-run.child.pid, "SIGTERM"); // to all of the group, and the launcher passes it on
  const { code, err } = await run.ended;
  assert.equal(code, 143, err);
  assert.equal(metricsOf(dir).at(-1)?.step, Number(checkpointsOf(dir).at(-1)?.slice("step_".length)));
});

test("a killed process ends the other, which names it; restarted, the run goes on from the last checkpoint", async () => {
  const dir = join(folder, "killed");
  const run = launch(dir, 60, ["--max-restarts", "1"]);
  await underWay(dir, 12, run);
  const pid = processOf(1, run.child.pid);
  process.kill(pid, "SIGKILL");
  const { code, err } = await run.ended;
  assert.equal(code, 0, err);
  assert.match(err, new RegExp(`\\[0\\] .*no sign of life from rank 1 \\(process ${pid} on `));
  assert.match(err, /restart 1 of 1/);
  assert.deepEqual(
    metricsOf(dir).map(({ step }) => step),
    Array.from({ length: 60 }, (_, i) => i + 1),
  );
});

test("where the first process is killed, which serves the store, the other names it without LibTorch's own words", async () => {
  const run = launch(join(folder, "first"), 100_000);
  await underWay(join(folder, "first"), 2, run);
  const pid = processOf(0, run.child.pid);
  process.kill(pid, "SIGKILL");
  const { code, err } = await run.ended;
  assert.equal(code, 137, err);
  assert.match(err, new RegExp(`^\\[1\\] rlar: distributed: .*rank 0 \\(process ${pid} on `, "m"));
  assert.doesNotMatch(err, /TCPStore|frame #/);
});

test("after a signal between two starts none follows", async () => {
  const write = process.stderr.write;
  let text = "";
  process.stderr.write = ((line: string) => {
    text += line;
    if (/restart 1 of 5/.test(line)) process.emit("SIGTERM");
    return true;
  }) as typeof write;
  try {
    const code = await inProcess(["eval", "--no-such-option"], { processes: 1, maxRestarts: 5 });
    assert.equal(code, 143, text);
  } finally {
    process.stderr.write = write;
  }
  assert.doesNotMatch(text, /restart 2/);
});

test("an error of the configuration ends all with its code", async () => {
  const dir = join(folder, "wrong");
  const run = launch(dir, 3, [], 5);
  const { code, err } = await run.ended;
  assert.equal(code, 2, err);
  assert.match(err, /rollout\.images: expected at least 5/);
});
