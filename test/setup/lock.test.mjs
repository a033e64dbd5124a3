/**
 * The lock: one holder at a time among processes, and no lock that outlives its owner.
 */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { existsSync, mkdirSync, readFileSync, utimesSync, writeFileSync } from "node:fs";
import { hostname } from "node:os";
import { dirname, join } from "node:path";
import { test } from "node:test";
import { withLock } from "../../scripts/setup/lock.mjs";
import { Machine, repository } from "./support.mjs";

const LOCK = new URL(`file://${join(repository, "scripts/setup/lock.mjs")}`).href;

/** Run code with `lock(action)` in a process of its own; resolves to what it prints on stderr. */
function inProcess(path, code) {
  const program = `import { withLock } from ${JSON.stringify(LOCK)};
import fs from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
const lock = (action) => withLock(${JSON.stringify(path)}, action);
${code}`;
  const child = spawn(process.execPath, ["--input-type=module", "-e", program], {
    stdio: ["ignore", 2, "pipe"],
  });
  let stderr = "";
  child.stderr.setEncoding("utf8").on("data", (text) => {
    stderr += text;
  });
  return new Promise((resolve) => child.on("close", (code) => resolve({ code, stderr })));
}

/** A lock as a process that is gone would have left it. */
function leaveLock(path, owner) {
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(path, JSON.stringify({ pid: 1, host: hostname(), id: "left", ...owner }));
}

/** The id of a process that has ended. */
async function deadPid() {
  const child = spawn(process.execPath, ["-e", ""]);
  await new Promise((resolve) => child.on("close", resolve));
  return child.pid;
}

test("one process at a time, even when all find the lock of a dead one", async () => {
  const machine = new Machine();
  const path = machine.path("locks/.lock");
  leaveLock(path, { pid: await deadPid() });
  const counter = machine.path("counter");
  writeFileSync(counter, "0");
  // Without the lock, additions between reading and writing would be lost.
  const code = `for (let i = 0; i < 5; i++) {
  await lock(async () => {
    const count = Number(fs.readFileSync(${JSON.stringify(counter)}, "utf8"));
    await sleep(5);
    fs.writeFileSync(${JSON.stringify(counter)}, String(count + 1));
  });
}`;
  const results = await Promise.all(Array.from({ length: 6 }, () => inProcess(path, code)));
  for (const { code: exit, stderr } of results) assert.equal(exit, 0, stderr);
  assert.equal(readFileSync(counter, "utf8"), "30");
  assert.equal(existsSync(path), false);
});

test("the lock is given back when the action fails", async () => {
  const machine = new Machine();
  const path = machine.path("locks/.lock");
  const fails = withLock(path, async () => {
    throw new Error("as it should");
  });
  await assert.rejects(fails, { message: "as it should" });
  assert.equal(existsSync(path), false);
});

test("a living owner is waited for and named; one that shows no life for a minute is not", async () => {
  const machine = new Machine();
  const path = machine.path("locks/.lock");
  leaveLock(path, { pid: process.pid });
  const waiting = inProcess(path, "await lock(async () => {});");
  const first = await Promise.race([waiting, new Promise((resolve) => setTimeout(resolve, 500, "waits"))]);
  assert.equal(first, "waits");
  const longAgo = new Date(Date.now() - 61_000);
  utimesSync(path, longAgo, longAgo);
  const { code, stderr } = await waiting;
  assert.deepEqual([code, stderr], [0, `set-up: waiting for process ${process.pid}, which holds ${path}\n`]);
});

test("a process of another machine with the same id is not taken for dead", async () => {
  const machine = new Machine();
  const path = machine.path("locks/.lock");
  leaveLock(path, { pid: await deadPid(), host: "elsewhere" });
  const waiting = inProcess(path, "await lock(async () => {});");
  const first = await Promise.race([waiting, new Promise((resolve) => setTimeout(resolve, 300, "waits"))]);
  assert.equal(first, "waits");
  const longAgo = new Date(Date.now() - 61_000);
  utimesSync(path, longAgo, longAgo);
  assert.equal((await waiting).code, 0);
});
