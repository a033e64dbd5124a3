/**
 * c10d's stores and process groups, as LibTorch has them. `src/distributed/` says who opens which and what is done when a
 * process does not answer; the collectives are operators of `_c10d_functional`.
 */
import { native, SLOTS, TAG, tags, values } from "./binding.js";
import { expected } from "./errors.js";
import type { Tensor } from "./tensor.js";

/** Where the store of a run is: a TCP server, or a file that all processes can reach. */
export interface StorePlace {
  /** Empty for a file. */
  readonly host: string;
  readonly port: number;
  readonly file: string;
  /** Put before every key, to keep runs apart that share a store. */
  readonly prefix: string;
  readonly processes: number;
}

/** What this addon can send tensors through. */
export function distributedBackends(): readonly string[] {
  return native.distributedBackends().split(",").filter(Boolean);
}

/** A table of texts that all processes of a run share. No call takes longer than `timeout`, also where the store is gone. */
export class Store {
  #handle: number;
  readonly place: StorePlace;
  /** Seconds. */
  readonly timeout: number;

  /** @throws Error when the place cannot be reached, or the port to serve at is taken. */
  constructor(place: StorePlace, options: { isServer: boolean; timeout: number }) {
    if (!distributedBackends().includes("gloo")) {
      const remedy = "Use PyTorch's own wheels, or build LibTorch with USE_DISTRIBUTED=1";
      throw expected("distributed", "a LibTorch with c10d and Gloo", "one without", remedy);
    }
    this.place = place;
    this.timeout = options.timeout;
    const { host, prefix, processes } = place;
    this.#handle = native.openStore(
      host,
      portOf(place),
      prefix,
      processes,
      options.isServer,
      options.timeout,
    );
  }

  get(key: string): string | null {
    return native.storeGet(this.#handle, key, this.timeout);
  }

  set(key: string, value: string): void {
    native.storeSet(this.#handle, key, value, this.timeout);
  }

  /** Set what nobody has set yet. @returns the value that stands there. */
  setFirst(key: string, value: string): string {
    return native.storeSetFirst(this.#handle, key, value, this.timeout);
  }

  /** Add to a number that begins at 0. @returns the sum. */
  add(key: string, amount: number): number {
    return native.storeAdd(this.#handle, key, amount, this.timeout);
  }

  close(): void {
    if (this.#handle !== 0) native.closeStore(this.#handle);
    this.#handle = 0;
  }

  /** Tell under `key`, once a second and from a thread, that this process lives, and how many collectives it has begun. */
  startHeartbeat(key: string): void {
    const { host, prefix, processes } = this.place;
    native.startHeartbeat(host, portOf(this.place), prefix, processes, key, this.timeout);
  }

  /**
   * Connect with all other processes, and register the group under a name, by which operators find it.
   *
   * @param options.address - at which Gloo listens, unless `networkInterface` names one.
   * @param options.timeout - seconds, of the connection and of every collective.
   */
  openGroup(
    name: string,
    options: {
      rank: number;
      size: number;
      timeout: number;
      address: string;
      networkInterface: string;
      usesNccl: boolean;
    },
  ): void {
    const { rank, size, timeout, address, networkInterface, usesNccl } = options;
    native.openGroup(this.#handle, name, rank, size, timeout, address, networkInterface, usesNccl);
  }
}

const portOf = ({ host, port, file }: StorePlace): string => (host === "" ? file : String(port));

export const stopHeartbeat = (): void => native.stopHeartbeat();
export const closeGroup = (name: string): void => native.closeGroup(name);
/** Count a collective that this process begins; the heartbeat tells it. */
export const countCollective = (): void => native.countCollective();

/** What is known of each parameter's gradient after a backward pass: bits of a number. */
export const GRADIENT = {
  /** There is one. */
  is: 1,
  /** It came at once, in the pass that was told to be the last. */
  once: 2,
  /** It came in parts, of which no one knows which is the last. */
  inParts: 4,
} as const;

/**
 * Sums gradients of parameters over the processes of a group, in buckets, of which some are sent while the backward pass still
 * runs. Closed with the group, or by `close`.
 */
export class Reducer {
  readonly #id: number;

  /** @param buckets - parameters of one dtype and device each; at most 65,536 of them. */
  constructor(group: string, buckets: readonly (readonly Tensor[])[]) {
    const all = buckets.flat();
    if (all.length > SLOTS) throw expected("Reducer", `at most ${SLOTS} parameters`, all.length);
    for (const [slot, parameter] of all.entries()) {
      tags[slot] = TAG.tensor;
      values[slot] = parameter.live;
    }
    this.#id = native.openReducer(group, buckets.map(({ length }) => length).join());
  }

  /** The next backward pass is the last one of a step. @param early - whether each bucket may be sent during it. */
  arm(early: readonly boolean[]): void {
    native.armReducer(this.#id, bits(early));
  }

  /**
   * Send what is left of the early buckets.
   *
   * @returns bits of {@link GRADIENT} of each parameter, and how many buckets were sent while the backward pass ran.
   */
  submit(early: readonly boolean[]): { found: Uint8Array; inTime: number } {
    const [found = "", inTime] = native.submitReducer(this.#id, bits(early)).split(" ");
    return { found: Uint8Array.from(found, Number), inTime: Number(inTime) };
  }

  /** Wait until all that was sent is there. */
  wait(): void {
    native.waitReducer(this.#id);
  }

  close(): void {
    native.closeReducer(this.#id);
  }
}

const bits = (flags: readonly boolean[]): string => flags.map((flag) => (flag ? "1" : "0")).join("");
