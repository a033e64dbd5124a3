/**
 * The group of a run's processes: `init` opens the one that a launcher's variables describe, `destroy` closes it. Without a
 * launcher this process is alone. The collectives are in `collectives.ts`, what is known of launchers in `environment.ts`,
 * what is said of a process that does not come in `failure.ts`.
 */
import { connect } from "node:net";
import { availableParallelism, networkInterfaces } from "node:os";
import { setTimeout as pause } from "node:timers/promises";

import { type Device, expected, expectedMessage, listed, setNumThreads, version } from "../torch/index.js";
import {
  closeGroup,
  distributedBackends,
  Store,
  type StorePlace,
  stopHeartbeat,
} from "../torch/process_group.js";
import { type ProcessPlace, readEnvironment } from "./environment.js";
import {
  aliveKey,
  CAUSE,
  LostRankError,
  nameOf,
  type Others,
  type Presence,
  presence,
  WATCHED,
} from "./failure.js";

/** The name under which operators find the group. */
export const GROUP = "rlar";

/** Seconds that a call of the store may take where it only asks. */
const ASKED = 20;

/** The open group. */
interface Group extends Others {
  readonly size: number;
  readonly isServer: boolean;
}

let group: Group | null = null;

/** @internal The open group, or null where this process is alone. */
export const openedGroup = (): Group | null => group;

/** Place of this process, from 0. */
export const rank = (): number => group?.rank ?? 0;
/** Number of processes of the run; 1 without a launcher. */
export const size = (): number => group?.size ?? 1;
/** Whether this is the process that writes files and talks to the user. */
export const isFirst = (): boolean => rank() === 0;

/** Options of {@link init}. */
export interface InitOptions {
  /** Seconds that the processes wait for each other: at the start, and in every collective. Default 600. */
  readonly timeout?: number;
  /** Where the tensors of collectives lie; CUDA needs NCCL. Default `"cpu"`. */
  readonly device?: Device;
  /** Of what computes; a process with others is refused. Default LibTorch's. */
  readonly versions?: string;
  /** Default `process.env`. */
  readonly env?: Readonly<Record<string, string | undefined>>;
}

/**
 * Open the group that the launcher's variables describe; do nothing without a launcher, or for one process.
 *
 * Threads are divided among the processes of a machine unless `OMP_NUM_THREADS` is set.
 *
 * @throws RangeError for variables that contradict each other. LostRankError, on every process that came, for one that
 *   did not within the timeout.
 */
export async function init({
  timeout = 600,
  device = "cpu",
  versions = `LibTorch ${version().torch}`,
  env = process.env,
}: InitOptions = {}): Promise<void> {
  if (group !== null) throw expected("distributed.init", "no open group", "one", "Call destroy() first");
  const place = readEnvironment(env);
  if (place === null || place.size === 1) return;
  const usesNccl = device.startsWith("cuda");
  if (usesNccl && !distributedBackends().includes("nccl")) {
    const remedy =
      "Install the package nvidia-nccl of the LibTorch in use, and run the set-up again, or use train.device=cpu";
    throw expected("distributed.init", "an addon built with NCCL for CUDA", "one without", remedy);
  }
  // The timeout of NCCL's work holds in a wait that blocks; otherwise a watchdog ends the process and names nobody.
  if (usesNccl) process.env.TORCH_NCCL_BLOCKING_WAIT ??= "1";
  const { rank, size } = place;
  const until = Date.now() + timeout * 1000;
  const isServer = rank === 0 && place.file === null && !place.isServedByLauncher;
  const at: StorePlace = {
    host: place.file === null ? place.host : "",
    port: place.port,
    file: place.file ?? "",
    prefix: `rlar/${place.runId}`,
    processes: size,
  };
  let store: Store | null = isServer ? openServer(at) : null;
  try {
    const way =
      place.file === null ? await wayTo(place, until, timeout) : { address: "127.0.0.1", reached: "" };
    store ??= openClient(at, Math.min(timeout, ASKED));
    const all = await everyone(store, place, presence({ ...way, size, versions }), until, timeout);
    group = { store, rank, size, timeout, all, isServer };
    store.startHeartbeat(aliveKey(rank));
    connectAll(group, usesNccl, env);
  } catch (error) {
    if (group !== null) await destroy(error as Error);
    else if (store !== null) throw await leftEarly(store, place, isServer, error as Error);
    throw error;
  }
  const here = group.all.filter(({ host }) => host === group?.all[rank]?.host).length;
  if ((env.OMP_NUM_THREADS ?? "") === "")
    setNumThreads(Math.max(1, Math.floor(availableParallelism() / here)));
}

/**
 * Close the store of a group that did not come about. The process that serves it stays until those that came have read why.
 *
 * @returns what to throw: where the store itself was gone, a sentence in place of LibTorch's words.
 */
async function leftEarly(store: Store, place: ProcessPlace, isServer: boolean, error: Error): Promise<Error> {
  let isGone = false;
  try {
    store.add("left", 1);
    const until = Date.now() + 5000;
    while (isServer && store.add("left", 0) < store.add("count", 0) && Date.now() < until) await pause(50);
  } catch {
    isGone = true;
  }
  store.close();
  if (!isGone || error instanceof LostRankError) return error;
  const what = `rank 0's store at ${place.file ?? `${place.host}:${place.port}`} to answer`;
  const remedy = "See what rank 0 wrote last";
  return new LostRankError(expectedMessage("distributed.init", what, "none: it ended", remedy), {
    cause: error,
  });
}

function openServer(place: StorePlace): Store {
  try {
    return new Store(place, { isServer: true, timeout: ASKED });
  } catch (error) {
    const remedy = "Another run may use it: set MASTER_PORT to a free one on every process";
    const got = (error as Error).message.split("\n")[0];
    throw expected("distributed.init", `port ${place.port} free for the store of rank 0`, got, remedy);
  }
}

function openClient(place: StorePlace, timeout: number): Store {
  try {
    return new Store(place, { isServer: false, timeout });
  } catch (error) {
    const where = place.host === "" ? place.file : `${place.host}:${place.port}`;
    const got = (error as Error).message.split("\n")[0] ?? "";
    const remedy =
      place.host === ""
        ? "Name a new file in RLAR_STORE that all processes can write"
        : "Another program may serve there: see what rank 0 wrote, and set MASTER_PORT to a free port on every process";
    throw new LostRankError(
      expectedMessage("distributed.init", `the store of rank 0 at ${where}`, `none (${got})`, remedy),
      { cause: error },
    );
  }
}

/** Wait until the store's machine takes connections. @returns both addresses of the way there. */
async function wayTo(
  { host, port }: ProcessPlace,
  until: number,
  timeout: number,
): Promise<{ address: string; reached: string }> {
  let last = "no answer";
  do {
    const found = await new Promise<{ address: string; reached: string } | Error>((resolve) => {
      const socket = connect({ host, port, timeout: 5000 });
      const end = (result: { address: string; reached: string } | Error): void => {
        socket.destroy();
        resolve(result);
      };
      socket.on("connect", () =>
        end({ address: socket.localAddress ?? "", reached: socket.remoteAddress ?? "" }),
      );
      socket.on("timeout", () => end(new Error("no answer")));
      socket.on("error", end);
    });
    if (!(found instanceof Error)) return found;
    last = found.message;
    await pause(200);
  } while (Date.now() < until);
  const remedy = "Start rank 0, and let MASTER_ADDR and MASTER_PORT name its machine and a port that is open";
  throw new LostRankError(
    expectedMessage(
      "distributed.init",
      `rank 0's store at ${host}:${port} within ${timeout} s`,
      `none (${last})`,
      remedy,
    ),
  );
}

/** Tell the store that this process is here, and wait for all others. */
async function everyone(
  store: Store,
  { rank, size, file }: ProcessPlace,
  own: Presence,
  until: number,
  timeout: number,
): Promise<Presence[]> {
  const key = (other: number): string => `here/${other}`;
  const text = JSON.stringify(own);
  const first = store.setFirst(key(rank), text);
  if (first !== text) {
    const remedy =
      file === null
        ? "Give each process a rank of its own, and each run a port or TORCHELASTIC_RUN_ID of its own"
        : `Give each process a rank of its own, and each start a new file in place of ${file}`;
    throw expected(
      "distributed.init",
      `one process of rank ${rank}`,
      nameOf(rank, JSON.parse(first) as Presence),
      remedy,
    );
  }
  store.add("count", 1);
  while (store.add("count", 0) < size) {
    const cause = store.get(CAUSE);
    if (cause !== null) throw new LostRankError(cause);
    if (Date.now() >= until) {
      const missing = Array.from({ length: size }, (_, other) => other).filter(
        (other) => store.get(key(other)) === null,
      );
      if (missing.length === 0) break;
      const got = `${size - missing.length}: rank ${listed(missing)} did not come`;
      const remedy = "See what that process wrote, or raise train.timeout";
      const message = expectedMessage(
        "distributed.init",
        `${size} processes within ${timeout} s`,
        got,
        remedy,
      );
      throw new LostRankError(store.setFirst(CAUSE, message));
    }
    await pause(50);
  }
  const all = Array.from(
    { length: size },
    (_, other) => JSON.parse(store.get(key(other)) as string) as Presence,
  );
  const misfit = misfitOf(all);
  if (misfit !== null) throw new LostRankError(store.setFirst(CAUSE, misfit));
  return all;
}

/** What is wrong with the first process that cannot work with rank 0; null where all can. */
function misfitOf(all: readonly Presence[]): string | null {
  const first = all[0] as Presence;
  for (const [other, each] of all.entries()) {
    for (const [name, of] of [
      ["size", (of: Presence) => `${of.size} processes (WORLD_SIZE)`],
      ["versions", (of: Presence) => of.versions],
    ] as const) {
      if (each[name] === first[name]) continue;
      const remedy = "Start every process with the same command and the same version";
      const got = `${of(each)} for ${nameOf(other, each)}`;
      return expectedMessage(
        "distributed.init",
        `${of(first)} for every process, as for rank 0`,
        got,
        remedy,
      );
    }
  }
  return null;
}

function connectAll(
  { store, rank, size, timeout, all }: Group,
  usesNccl: boolean,
  env: InitOptions["env"],
): void {
  const networkInterface = env?.GLOO_SOCKET_IFNAME ?? "";
  try {
    store.openGroup(GROUP, {
      rank,
      size,
      timeout,
      address: addressOf(rank, all),
      networkInterface,
      usesNccl,
    });
  } catch (error) {
    const remedy = "If the machine has several networks, name the one to use in GLOO_SOCKET_IFNAME";
    const message = expectedMessage(
      "distributed.init",
      "connections with all processes",
      (error as Error).message,
      remedy,
    );
    throw new LostRankError(store.setFirst(CAUSE, message), { cause: error });
  }
}

/**
 * The address at which the others reach this process: the one on its way to the store. Where that is the machine's own loop
 * and other machines take part, they have reached the store by an address of this machine, which serves it.
 */
function addressOf(rank: number, all: readonly Presence[]): string {
  const own = (all[rank] as Presence).address;
  const isLoop = (address: string): boolean => /^(::ffff:)?127\.|^::1$/.test(address);
  if (!isLoop(own)) return own;
  const addresses = Object.values(networkInterfaces()).flatMap((list) =>
    (list ?? []).map(({ address }) => address),
  );
  return all.find(({ reached, address }) => !isLoop(address) && addresses.includes(reached))?.reached ?? own;
}

/** The place of this process on its machine, as the launcher says; 0 without one. It chooses the GPU. */
export const localRank = (): number => readEnvironment()?.localRank ?? 0;

/** Whether this process talks to the user, before the group is open and after it is closed as well. */
export const isSpeaker = (): boolean => (group === null ? (readEnvironment()?.rank ?? 0) : group.rank) === 0;

/**
 * Close the group. After an error the others are told of it, so that they end with its message and not with a timeout.
 */
export async function destroy(error?: Error): Promise<void> {
  const closing = group;
  if (closing === null) return;
  group = null;
  const { store, rank, size, all, isServer } = closing;
  try {
    if (error !== undefined && !(error instanceof LostRankError)) {
      const name = nameOf(rank, all[rank] as Presence);
      store.setFirst(
        CAUSE,
        expectedMessage(
          "distributed",
          `all ${size} processes to go on`,
          `an error of ${name}: ${error.message}`,
        ),
      );
      closeGroup(GROUP); // those that wait for this process are told by the connection's end
    }
    const left = store.add("left", 1);
    // The store goes with this process: the others may have to read from it why they end.
    if (isServer) await untilLeft(store, left, size);
  } catch {
    // The store is gone already: there is nobody to tell.
  }
  stopHeartbeat();
  closeGroup(GROUP);
  store.close();
}

/**
 * Run `fn` with the group of this run's processes open, the one that is open already or a new one; an error in one process
 * ends the others.
 */
export async function withGroup<T>(options: InitOptions, fn: () => Promise<T>): Promise<T> {
  if (group !== null) return await fn();
  await init(options);
  try {
    const result = await fn();
    await destroy();
    return result;
  } catch (error) {
    await destroy(error as Error);
    throw error;
  }
}

/** Wait until all processes have left, or those that have not give no sign of life. */
async function untilLeft(store: Store, left: number, size: number): Promise<void> {
  const until = Date.now() + ASKED * 1000;
  let beats = "";
  let changed = Date.now();
  for (let gone = left; gone < size && Date.now() < until; gone = store.add("left", 0)) {
    // From 1 on, as this process serves the store and is rank 0.
    const now = Array.from({ length: size - 1 }, (_, i) => store.get(aliveKey(i + 1))).join();
    if (now !== beats) changed = Date.now();
    else if (Date.now() - changed > WATCHED * 1000) return;
    beats = now;
    await pause(50);
  }
}
