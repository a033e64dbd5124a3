/**
 * One process at a time: the lock of set-up and of a run's folder. A lock is a file that names its owner. One whose
 * owner is gone is taken over, also when the owner's process id belongs to another process by now, when the machine
 * was started anew, and when the owner was the first process of a container.
 *
 * This file needs Node.js alone: set-up uses it before any package is installed.
 */

import { randomUUID } from "node:crypto";
import { once } from "node:events";
import {
  closeSync,
  linkSync,
  openSync,
  readFileSync,
  readlinkSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { connect, createServer } from "node:net";
import { hostname } from "node:os";
import { basename, dirname } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { makeFolders } from "./folders.mjs";
import { say } from "./report.mjs";

const POLL_MS = 100;

/** A lock that names no owner is being written while it is younger than this, and was cut short when it is older. */
const WRITING_MS = 500;

/**
 * @typedef {object} Owner
 * @property {number} pid
 * @property {string} host
 * @property {string} [id] different for each time that a lock is taken.
 * @property {string} [boot] different for each start of the machine; Linux only, as what follows.
 * @property {string} [start] when the process started, in the kernel's clock ticks.
 * @property {string} [namespace] in which the process id counts: containers have their own.
 * @property {boolean} [hasSocket] whether the owner listens on {@link socketOf}, for processes of other namespaces.
 */

/**
 * Take the lock file `path`, unless a process holds it.
 *
 * @param {string} path in a folder that is created when absent.
 * @returns {Promise<{ owner: Owner } | { release: () => void }>} who holds it, or how to give it back.
 */
export async function tryLock(path) {
  makeFolders(dirname(path));
  for (;;) {
    const holder = await livingOwner(path);
    if (holder !== undefined) return { owner: holder };
    const me = { ...identity(), id: randomUUID() };
    const server = await listen(socketOf(path, me));
    const text = JSON.stringify({ ...me, hasSocket: server !== null });
    const release = () => {
      server?.close();
      try {
        if (readText(path) === text) rmSync(path, { force: true });
        rmSync(socketOf(path, me), { force: true });
      } catch {
        // A disk that has become read-only, or is gone. The lock is nobody's once this process has ended.
      }
    };
    try {
      if (createWhole(path, text)) return { release };
      await removeDead(path);
    } catch (error) {
      release();
      throw error;
    }
    release();
  }
}

/**
 * Run `action` while holding the lock file `path`; other processes wait until it ends.
 *
 * @template T
 * @param {string} path in a folder that is created when absent.
 * @param {() => Promise<T>} action
 * @returns {Promise<T>}
 */
export async function withLock(path, action) {
  let taken = await tryLock(path);
  if ("owner" in taken) {
    const { pid, host } = taken.owner;
    const where = host === hostname() ? "" : ` on ${host} (remove it if there is none)`;
    say(`waiting for process ${pid}, which holds ${path}${where}`);
  }
  while ("owner" in taken) {
    await sleep(POLL_MS);
    taken = await tryLock(path);
  }
  try {
    return await action();
  } finally {
    taken.release();
  }
}

/** Whether a process holds the lock; one that cannot be looked up from here counts as holding it. */
export function isLocked(path) {
  const owner = readOwner(path);
  return owner !== undefined && stateOf(owner) !== "gone";
}

/** Who holds the lock, or undefined when nobody does. */
async function livingOwner(path) {
  const owner = readOwner(path);
  if (owner === undefined) return undefined;
  const state = stateOf(owner);
  if (state !== "hidden") return state === "gone" ? undefined : owner;
  return (await answers(socketOf(path, owner))) ? owner : undefined;
}

/**
 * Remove the lock of an owner that is gone.
 *
 * Who removes one holds a lock for that, and looks again first: otherwise two processes that saw the same dead owner
 * could remove its lock twice, the second time a living one's.
 */
async function removeDead(path) {
  const breaker = await tryLock(`${path}.break`);
  if ("owner" in breaker) return void (await sleep(1));
  try {
    const text = readText(path);
    if (text === undefined || (await livingOwner(path)) !== undefined) return;
    const owner = parsed(text);
    const age = Date.now() - (statSync(path, { throwIfNoEntry: false })?.mtimeMs ?? 0);
    if (owner === undefined && age < WRITING_MS) return void (await sleep(POLL_MS));
    rmSync(path, { force: true });
    if (owner?.id !== undefined) rmSync(socketOf(path, owner), { force: true });
  } finally {
    breaker.release();
  }
}

/** Create `path` with its content in one step, so that no reader sees a lock without an owner; false when it exists. */
function createWhole(path, content) {
  const aside = `${path}.${randomUUID()}.tmp`;
  writeFileSync(aside, content);
  try {
    linkSync(aside, path);
    return true;
  } catch (error) {
    if (error.code === "EEXIST") return false;
    // A file system without hard links: there a reader can come before the content.
    if (["EPERM", "ENOSYS", "ENOTSUP", "EOPNOTSUPP", "EMLINK"].includes(error.code))
      return createEmpty(path, content);
    throw error;
  } finally {
    rmSync(aside, { force: true });
  }
}

function createEmpty(path, content) {
  try {
    writeFileSync(path, content, { flag: "wx" });
    return true;
  } catch (error) {
    if (error.code === "EEXIST") return false;
    throw error;
  }
}

/** This process. @returns {Owner} */
function identity() {
  return {
    pid: process.pid,
    host: hostname(),
    boot: readText("/proc/sys/kernel/random/boot_id")?.trim(),
    start: processOf(process.pid)?.start,
    namespace: linkOf("/proc/self/ns/pid"),
  };
}

/**
 * What becomes of an owner: `alive`, `gone`, or `hidden` in another container of this machine, where its socket tells.
 * On another machine nobody can tell: it counts as alive.
 */
function stateOf(owner) {
  const here = identity();
  const isSameBoot = owner.boot !== undefined && owner.boot === here.boot;
  if (!isSameBoot && owner.host !== here.host) return "alive";
  if (!isSameBoot && owner.boot !== undefined) return "gone"; // this machine was started anew
  if (isSameBoot && owner.namespace !== here.namespace) return owner.hasSocket ? "hidden" : "alive";
  const process_ = processOf(owner.pid);
  if (process_ !== undefined) {
    const isSame = owner.start === undefined || owner.start === process_.start;
    return isSame && !process_.isDead ? "alive" : "gone";
  }
  try {
    process.kill(owner.pid, 0);
    return "alive";
  } catch (error) {
    return error.code === "EPERM" ? "alive" : "gone"; // EPERM: another user's
  }
}

/** When a process started, and whether it has ended and its parent has not noticed yet; undefined where /proc does not tell. */
function processOf(pid) {
  if (linkOf("/proc/self") !== String(process.pid)) return undefined; // no /proc, or another namespace's
  // "pid (name) state ...": the name may hold anything; the start is field 22.
  const fields = readText(`/proc/${pid}/stat`)
    ?.replace(/^.*\) /s, "")
    .split(" ");
  return fields && { start: fields[19], isDead: fields[0] === "Z" || fields[0] === "X" };
}

function linkOf(path) {
  try {
    return readlinkSync(path);
  } catch {
    return undefined;
  }
}

const socketOf = (path, { id }) => `${path}.${String(id).slice(0, 8)}.socket`;

/**
 * Listen on a socket file: the kernel answers there for as long as this process lives, whatever namespace asks.
 *
 * @returns null where that cannot be had.
 */
async function listen(path) {
  if (process.platform !== "linux") return null;
  const server = createServer((connection) => connection.destroy());
  try {
    await atSocket(path, async (name) => {
      server.listen(name);
      await once(server, "listening");
    });
    server.unref();
    return server;
  } catch {
    server.close();
    return null;
  }
}

async function answers(path) {
  try {
    await atSocket(path, async (name) => {
      const connection = connect(name);
      await once(connection, "connect").finally(() => connection.destroy());
    });
    return true;
  } catch (error) {
    return !["ECONNREFUSED", "ENOENT"].includes(error.code); // anything else says nothing of the owner
  }
}

/** A socket's path holds about 100 bytes; by its folder's descriptor any path is short. */
async function atSocket(path, use) {
  const folder = openSync(dirname(path), "r");
  try {
    await use(`/proc/self/fd/${folder}/${basename(path)}`);
  } finally {
    closeSync(folder);
  }
}

function readOwner(path) {
  const text = readText(path);
  return text === undefined ? undefined : parsed(text);
}

/** The owner that a lock names; undefined for one that was cut short. */
function parsed(text) {
  try {
    const owner = JSON.parse(text);
    return Number.isInteger(owner?.pid) && owner.pid > 0 && isName(owner.host) ? owner : undefined;
  } catch {
    return undefined;
  }
}

/** Whether it is a text that can be shown: no control characters, which a terminal would obey. */
function isName(text) {
  return typeof text === "string" && !/\p{Cc}/u.test(text);
}

function readText(path) {
  try {
    return readFileSync(path, "utf8");
  } catch (error) {
    if (["ENOENT", "ESRCH"].includes(error.code)) return undefined;
    throw error;
  }
}
