/**
 * One process at a time: a lock file that holds its owner's process id and is touched while it is held, so
 * that a lock left by a killed process, on this machine or another, is recognised and taken over.
 */

import { randomUUID } from "node:crypto";
import {
  linkSync,
  mkdirSync,
  readFileSync,
  rmSync,
  statSync,
  unlinkSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { hostname } from "node:os";
import { dirname } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { say } from "./report.mjs";

const HEARTBEAT_MS = 5_000;
const STALE_MS = 60_000;
const POLL_MS = 100;

/**
 * Run `action` while holding the lock file `path`; other processes wait until it ends.
 *
 * @template T
 * @param {string} path in a folder that is created when absent.
 * @param {() => Promise<T>} action must not block the event loop for {@link STALE_MS}.
 * @returns {Promise<T>}
 */
export async function withLock(path, action) {
  mkdirSync(dirname(path), { recursive: true });
  const owner = JSON.stringify({ pid: process.pid, host: hostname(), id: randomUUID() });
  let hasSaidWaiting = false;
  while (!takeFile(path, owner)) {
    if (removeStale(path)) continue;
    if (!hasSaidWaiting)
      say(`waiting for process ${readOwner(path)?.pid ?? "that just ended"}, which holds ${path}`);
    hasSaidWaiting = true;
    await sleep(POLL_MS);
  }
  const heartbeat = setInterval(() => touch(path, owner), HEARTBEAT_MS);
  heartbeat.unref();
  try {
    return await action();
  } finally {
    clearInterval(heartbeat);
    if (readText(path) === owner) rmSync(path, { force: true });
  }
}

/** Create `path` with `content` in one step, so that no reader sees a lock without an owner; false when taken. */
function takeFile(path, content) {
  const aside = `${path}.${process.pid}.${randomUUID()}`;
  writeFileSync(aside, content);
  try {
    linkSync(aside, path);
    return true;
  } catch (error) {
    if (error.code === "EEXIST") return false;
    throw error;
  } finally {
    unlinkSync(aside);
  }
}

/**
 * Remove the lock when its owner is gone; true when the lock is worth trying again at once.
 *
 * Only the holder of the `.break` file may remove it, and looks again first: otherwise two waiters that saw
 * the same dead owner could remove it twice, the second time a living one's lock.
 */
function removeStale(path) {
  if (!isStale(path)) return false;
  const breaker = `${path}.break`;
  if (!takeFile(breaker, String(process.pid))) {
    const age = Date.now() - (statSync(breaker, { throwIfNoEntry: false })?.mtimeMs ?? Date.now());
    if (age > HEARTBEAT_MS) rmSync(breaker, { force: true });
    return false;
  }
  try {
    if (isStale(path)) rmSync(path, { force: true });
  } finally {
    rmSync(breaker, { force: true });
  }
  return true;
}

function isStale(path) {
  const owner = readOwner(path);
  const stat = statSync(path, { throwIfNoEntry: false });
  if (owner === undefined || stat === undefined) return false;
  if (Date.now() - stat.mtimeMs > STALE_MS) return true;
  return owner.host === hostname() && !isAlive(owner.pid);
}

function isAlive(pid) {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return error.code === "EPERM"; // alive, another user's
  }
}

function touch(path, owner) {
  if (readText(path) !== owner) return;
  const now = new Date();
  utimesSync(path, now, now);
}

function readOwner(path) {
  const text = readText(path);
  return text === undefined ? undefined : JSON.parse(text);
}

function readText(path) {
  try {
    return readFileSync(path, "utf8");
  } catch (error) {
    if (error.code === "ENOENT") return undefined;
    throw error;
  }
}
