/** Signals to a run as batch systems, containers and terminals send them; screens that go away. */
import assert from "node:assert/strict";
import { type ChildProcess, spawn } from "node:child_process";
import { existsSync, openSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { folderOfFile } from "../support/folder_of_file.js";
import { checkpointsOf, tinyKeys } from "../support/train_run.js";

let folder = "";
folderOfFile((made) => {
  folder = made;
});

const keys = (dir: string, iters: number): string[] => [
  `run.dir=${dir}`,
  ...tinyKeys(folder),
  "algorithm=grpo",
  "save.every=0",
  "log={every: 1, imagesEvery: 0, tensorboard: false}",
  `train={iters: ${iters}, threads: 1, device: cpu}`,
];

type Stdio = "ignore" | "pipe" | number;

/** A long run, as `npm run rlar` makes it: this program, the one that it starts, and all in one group. */
function start(
  dir: string,
  { stdout = "ignore", iters = 100_000, more = [] }: { stdout?: Stdio; iters?: number; more?: string[] } = {},
) {
  const child = spawn(process.execPath, ["scripts/rlar.mjs", "train", ...keys(dir, iters), ...more], {
    detached: true,
    stdio: ["ignore", stdout, "pipe"],
  });
  let errors = "";
  child.stderr?.on("data", (text) => {
    errors += text;
  });
  const ended = new Promise<{ code: number | null; errors: string }>((resolve) => {
    child.on("close", (code) => resolve({ code, errors }));
  });
  return { child: child as ChildProcess & { pid: number }, ended };
}

/** Wait until some steps are written. */
async function underWay(dir: string, child: ChildProcess): Promise<void> {
  const file = join(dir, "metrics.jsonl");
  while (child.exitCode === null && !(existsSync(file) && readFileSync(file, "utf8").split("\n").length > 3))
    await sleep(5);
}

const CODES = { SIGINT: 130, SIGTERM: 143, SIGHUP: 129, SIGUSR1: 138, SIGUSR2: 140 } as const;

for (const [name, code] of Object.entries(CODES)) {
  test(`${name} to the group, twice at once: one checkpoint, exit ${code}`, async () => {
    const dir = join(folder, name);
    const { child, ended } = start(dir);
    await underWay(dir, child);
    process.kill(-child.pid, name);
    await sleep(30);
    process.kill(-child.pid, name);
    const end = await ended;
    assert.equal(end.code, code, end.errors);
    assert.equal(checkpointsOf(dir).length, 1);
    assert.match(end.errors, /ending after this step/);
    assert.doesNotMatch(end.errors, /Debugger/);
    assert.ok(existsSync(join(dir, "report.html")));
  });
}

test("an error of a promise that nobody awaits ends the run in a sentence, with a checkpoint", async () => {
  const dir = join(folder, "stray");
  const module = join(folder, "stray.mjs");
  const fail = 'if (context.step === 2) Promise.reject(new Error("nobody waits"));';
  writeFileSync(module, `export default (_, y, context) => { ${fail} return y.mean([1, 2, 3]); };\n`);
  const { code, errors } = await start(dir, { more: [`reward.custom.mine.module=${module}`] }).ended;
  assert.equal(code, 3, errors);
  assert.match(errors, /^rlar: run: expected .*, got .*nobody waits\. .*await.*RLAR_DEBUG/m);
  assert.doesNotMatch(errors, /^ +at /m);
  assert.equal(checkpointsOf(dir).length, 1);
});

test("a signal to the outer process alone is passed on", async () => {
  const dir = join(folder, "outer");
  const { child, ended } = start(dir);
  await underWay(dir, child);
  child.kill("SIGTERM");
  assert.equal((await ended).code, 143);
  assert.equal(checkpointsOf(dir).length, 1);
});

test("a run that the system kills, as it does where memory runs out: exit 137, and how to go on", {
  skip: process.platform !== "linux",
}, async () => {
  const dir = join(folder, "killed");
  const { child, ended } = start(dir);
  await underWay(dir, child);
  const inner = readFileSync(`/proc/${child.pid}/task/${child.pid}/children`, "utf8").trim();
  process.kill(Number(inner), "SIGKILL");
  const { code, errors } = await ended;
  assert.equal(code, 137);
  assert.match(errors, /got SIGKILL\. .*memory.* rollout\.microBatch.* run\.ifExists=resume\.$/m);
});

test("a closed pipe ends the printing, not the run", async () => {
  const dir = join(folder, "pipe");
  const { child, ended } = start(dir, { stdout: "pipe", iters: 12 });
  child.stdout?.destroy();
  const { code, errors } = await ended;
  assert.deepEqual([code, errors], [0, ""]);
  assert.deepEqual(checkpointsOf(dir), ["step_000012"]);
});

/** Commands whose result is what they print. */
const PRINTING = (): string[][] => [
  ["--help"],
  ["config", "show"],
  ["completion", "bash"],
  ["doctor"],
  ["inspect", join(folder, "tokenizer.safetensors"), "--all"],
  ["convert", join(folder, "tokenizer.safetensors"), join(folder, "c.safetensors"), "--force"],
  [
    ...["reconstruct", join(folder, "images"), "--tokenizer", join(folder, "tokenizer.safetensors")],
    ...["--size=16", "--out", join(folder, "r.png")],
  ],
];

/** Run a command with a standard output. */
function printed(args: readonly string[], stdout: Stdio) {
  const child = spawn(process.execPath, ["dist/src/cli/main.js", ...args], {
    stdio: ["ignore", stdout, "pipe"],
  });
  child.stdout?.destroy();
  let errors = "";
  child.stderr?.on("data", (text) => {
    errors += text;
  });
  return new Promise<{ code: number | null; errors: string }>((resolve) => {
    child.on("close", (code) => resolve({ code, errors }));
  });
}

test("a pipe that its reader closes ends what a command prints, and it succeeds", async () => {
  for (const args of PRINTING()) {
    const { code, errors } = await printed(args, "pipe");
    assert.deepEqual([code, errors], [0, ""], args.join(" "));
  }
});

test("a full standard output of a command is told, in one sentence", {
  skip: !existsSync("/dev/full"),
}, async () => {
  for (const args of PRINTING()) {
    const { code, errors } = await printed(args, openSync("/dev/full", "w"));
    assert.equal(code, 3, args.join(" "));
    assert.match(errors, /^rlar: standard output: expected room for the output, got ENOSPC[^\n]+\.\n$/);
  }
});

test("a full standard output ends the printing, not the run", {
  skip: !existsSync("/dev/full"),
}, async () => {
  const dir = join(folder, "full");
  const { code, errors } = await start(dir, { stdout: openSync("/dev/full", "w"), iters: 3 }).ended;
  assert.deepEqual([code, errors], [0, ""]);
  assert.deepEqual(checkpointsOf(dir), ["step_000003"]);
});
