/**
 * The lock: one holder at a time among processes, and no lock that outlives its owner.
 */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { hostname } from "node:os";
import { dirname, join } from "node:path";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { tryLock, withLock } from "../../scripts/setup/lock.mjs";
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

/** Whether the lock at `path` is waited for; then the lock is removed, and the process that waited must go on. */
async function isWaitedFor(path) {
  const waiting = inProcess(path, "await lock(async () => {});");
  const first = await Promise.race([waiting, new Promise((resolve) => setTimeout(resolve, 1000, "waits"))]);
  if (first === "waits") rmSync(path);
  const { code, stderr } = await waiting;
  assert.equal(code, 0, stderr);
  return first === "waits" ? stderr : false;
}

const isLinux = process.platform === "linux";
const start = (pid) =>
  readFileSync(`/proc/${pid}/stat`, "utf8")
    .replace(/^.*\) /s, "")
    .split(" ")[19];
const boot = () => readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim();
const namespace = () => readlinkSync("/proc/self/ns/pid");

test("a living owner is waited for and named", async () => {
  const path = new Machine().path("locks/.lock");
  leaveLock(path, { pid: process.pid });
  assert.match(await isWaitedFor(path), new RegExp(`waiting for process ${process.pid}, which holds `));
});

test("a process of another machine with the same id is not taken for dead", async () => {
  const path = new Machine().path("locks/.lock");
  leaveLock(path, { pid: await deadPid(), host: "elsewhere" });
  assert.match(await isWaitedFor(path), / on elsewhere .*remove it/);
  leaveLock(path, { pid: await deadPid(), host: "elsewhere", boot: "another" });
  assert.match(await isWaitedFor(path), / on elsewhere /);
});

test("an owner is known by its start and the machine's, not by a process id alone", {
  skip: !isLinux,
}, async () => {
  const path = new Machine().path("locks/.lock");
  const own = { pid: process.pid, boot: boot(), namespace: namespace() };
  const cases = [
    [{ ...own, start: start(process.pid) }, true],
    [{ ...own, start: "1" }, false], // another process has the id by now
    [{ ...own, start: start(process.pid), boot: "before" }, false], // the machine was started anew
    [{ ...own, start: start(process.pid), boot: "before", host: "elsewhere" }, true],
    [{ ...own, host: "renamed", start: "1" }, false], // a container of this machine, by its boot id
    // In another namespace, where its socket tells.
    [{ ...own, start: "1", namespace: "pid:[1]", hasSocket: true }, false],
    [{ ...own, start: "1", namespace: "pid:[1]", hasSocket: false }, true],
  ];
  for (const [owner, isHeld] of cases) {
    leaveLock(path, owner);
    assert.equal((await isWaitedFor(path)) !== false, isHeld, JSON.stringify(owner));
  }
});

test("a process that was killed and not yet reaped holds nothing", { skip: !isLinux }, async () => {
  const machine = new Machine();
  const path = machine.path("locks/.lock");
  // A shell that becomes a program which never reaps its child.
  const parent = spawn("sh", ["-c", "sh -c 'sleep 0.3' & echo $!; exec sleep 30"], {
    stdio: ["ignore", "pipe", 2],
  });
  const [line] = await once(parent.stdout, "data");
  const pid = Number(String(line));
  while (!/\) Z /.test(readFileSync(`/proc/${pid}/stat`, "utf8"))) await sleep(5);
  leaveLock(path, { pid, boot: boot(), namespace: namespace(), start: start(pid) });
  assert.equal(await isWaitedFor(path), false);
  parent.kill("SIGKILL");
});

test("the socket of a living owner answers, though its process id means another process", {
  skip: !isLinux,
}, async () => {
  const machine = new Machine();
  // Longer than a socket's path may be.
  const path = machine.path(`locks/${"long".repeat(30)}/.lock`);
  const ready = machine.path("ready");
  const owner = inProcess(
    path,
    `await lock(async () => {
  const owner = JSON.parse(fs.readFileSync(${JSON.stringify(path)}, "utf8"));
  fs.writeFileSync(${JSON.stringify(path)}, JSON.stringify({ ...owner, pid: 1, start: "1", namespace: "pid:[1]" }));
  fs.writeFileSync(${JSON.stringify(ready)}, "");
  const end = Date.now() + 3000;
  while (Date.now() < end); // busy, as a long step is
  process.kill(process.pid, "SIGKILL");
});`,
  );
  while (!existsSync(ready)) await sleep(5);
  const { owner: holder } = await tryLock(path);
  assert.deepEqual([holder?.pid, holder?.start], [1, "1"]);
  await owner;
  const taken = await tryLock(path);
  assert.ok("release" in taken);
  taken.release();
  assert.deepEqual(readdirSync(dirname(path)), []);
});

test("of two processes that begin together exactly one gets the lock, whatever was there before", async () => {
  const machine = new Machine();
  const dead = await deadPid();
  const rounds = 300;
  for (const before of [null, JSON.stringify({ pid: dead, host: hostname() })]) {
    const folder = machine.path(`barrier-${before === null}`);
    mkdirSync(folder);
    if (before !== null) for (let i = 0; i < rounds; i++) writeFileSync(join(folder, `${i}`), before);
    // Each waits for the other's mark of a round before it tries.
    const racer = (me, other) => `
const { tryLock } = await import(${JSON.stringify(LOCK)});
for (let i = 0; i < ${rounds}; i++) {
  fs.writeFileSync(${JSON.stringify(folder)} + "/${me}" + i, "");
  while (!fs.existsSync(${JSON.stringify(folder)} + "/${other}" + i));
  const taken = await tryLock(${JSON.stringify(folder)} + "/" + i);
  process.stderr.write("release" in taken ? "1" : "0");
}
fs.writeFileSync(${JSON.stringify(folder)} + "/${me}end", "");
while (!fs.existsSync(${JSON.stringify(folder)} + "/${other}end")) await sleep(5);`;
    const [a, b] = await Promise.all([inProcess("", racer("a", "b")), inProcess("", racer("b", "a"))]);
    assert.deepEqual([a.code, b.code, a.stderr.length], [0, 0, rounds], a.stderr + b.stderr);
    for (let i = 0; i < rounds; i++) assert.equal(Number(a.stderr[i]) + Number(b.stderr[i]), 1, `round ${i}`);
  }
});

test("a lock that was cut short is nobody's", async () => {
  const path = new Machine().path("locks/.lock");
  const shown = '{"pid":1,"host":"a\\u001b[31m"}';
  for (const text of ["", "{", "null", "\0\0\0", '{"pid":-1,"host":"x"}', "[1]", shown]) {
    mkdirSync(dirname(path), { recursive: true });
    writeFileSync(path, text);
    assert.equal(await isWaitedFor(path), false, text);
  }
});
