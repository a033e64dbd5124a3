/** Finds out, after a collective failed, which process is to blame, so that all others say the same. */
import { hostname } from "node:os";

import { expectedMessage, listed } from "../torch/errors.js";
import type { Store } from "../torch/process_group.js";

/** Another process of the run ended, cannot be reached or did not come. `rlar` ends with exit code 5. */
export class LostRankError extends Error {
  override readonly name = "LostRankError";
}

/** What each process tells of itself when it comes. */
export interface Presence {
  readonly host: string;
  readonly pid: number;
  /** Its address on the way to the store, and the store's as it reached it; empty without a network. */
  readonly address: string;
  readonly reached: string;
  /** Number of the run's processes, as its launcher says. */
  readonly size: number;
  /** Of what computes: with others the processes would send each other what they do not expect. */
  readonly versions: string;
}

/** Key under which the first process that knows says why the run ends. */
export const CAUSE = "cause";
/** Key of the heartbeat of a rank. */
export const aliveKey = (rank: number): string => `alive/${rank}`;

/** Seconds in which three heartbeats should have come. */
export const WATCHED = 3.5;

export function presence(about: Omit<Presence, "host" | "pid">): Presence {
  return { host: hostname(), pid: process.pid, ...about };
}

/** `rank 2 (process 311 on gpu-7)`. */
export function nameOf(rank: number, { host, pid }: Presence): string {
  return `rank ${rank} (process ${pid} on ${host})`;
}

/** What the processes know of each other. */
export interface Others {
  readonly store: Store;
  readonly rank: number;
  readonly timeout: number;
  readonly all: readonly Presence[];
}

/**
 * Why a collective failed, after up to some seconds: what another process has said already, or whose heartbeat is still,
 * or who has begun fewer collectives.
 */
export function lostRank(error: Error, others: Others): LostRankError {
  const message = (() => {
    try {
      const told = others.store.get(CAUSE);
      if (told !== null) return told;
      return others.store.setFirst(CAUSE, findCause(error, others));
    } catch {
      return storeIsGone(others);
    }
  })();
  return new LostRankError(message, { cause: error });
}

function storeIsGone({ store: { place }, all }: Others): string {
  if (place.host === "")
    return expectedMessage("distributed", `a store in ${place.file}`, "no answer from the file", REMEDY);
  const server = all[0] === undefined ? "rank 0" : nameOf(0, all[0]);
  const where = `the store at ${place.host}:${place.port}`;
  return expectedMessage(
    "distributed",
    `an answer from ${where}`,
    `none: ${server} ended or cannot be reached`,
    REMEDY,
  );
}

const REMEDY =
  "See what that process wrote last; the same command with run.ifExists=resume goes on from the last checkpoint";

function findCause(error: Error, { store, rank, timeout, all }: Others): string {
  const read = (): (string | null)[] => all.map((_, other) => store.get(aliveKey(other)));
  const before = read();
  sleep(WATCHED);
  const after = read();
  const isOther = (other: number): boolean => other !== rank;
  const silent = [...all.keys()].filter((other) => isOther(other) && after[other] === before[other]);
  const what = `all ${all.length} processes to go on`;
  if (silent.length > 0) {
    return expectedMessage("distributed", what, `no sign of life from ${named(silent, all)}`, REMEDY);
  }
  const begun = after.map((beat) => Number(beat?.split(" ")[1] ?? 0));
  const late = [...all.keys()].filter((other) => (begun[other] as number) < Math.max(...begun));
  if (late.length > 0) {
    const got = `${named(late, all)} alive and not there after ${timeout} s`;
    return expectedMessage("distributed", what, got, "Raise train.timeout if that process only needs longer");
  }
  return expectedMessage("distributed", what, `a connection that failed: ${error.message}`, REMEDY);
}

function named(ranks: readonly number[], all: readonly Presence[]): string {
  return listed(ranks.map((rank) => nameOf(rank, all[rank] as Presence)));
}

/** Wait without giving the thread away. */
export function sleep(seconds: number): void {
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, seconds * 1000);
}
