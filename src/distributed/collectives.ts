/**
 * What the processes of a run compute together. All must call the same functions in the same order with tensors of the same
 * shapes; a process that is alone gets its own values back, unchanged. For a fixed number of processes sums are the same
 * from run to run, and every process gets the same bits.
 */
import { deserialize, serialize } from "node:v8";

import {
  call,
  callTensor,
  cat,
  DTYPES,
  expected,
  full,
  noGrad,
  type Tensor,
  tensor,
  tidy,
  zeros,
} from "../torch/index.js";
import { countCollective } from "../torch/process_group.js";
import { lostRank } from "./failure.js";
import { GROUP, openedGroup, rank, size } from "./group.js";
import { shares } from "./share.js";

/** How values of several processes become one. */
export type Reduction = "sum" | "max" | "min";

/** Most bytes of tensors that go through one all-reduce. */
const BUCKET = 25 * 2 ** 20;

const traffic = { seconds: 0, bytes: 0 };

/** Seconds in collectives, waiting for the others included, and bytes that this process sent, since the last call. */
export function takeTraffic(): { seconds: number; bytes: number } {
  const taken = { ...traffic };
  traffic.seconds = 0;
  traffic.bytes = 0;
  return taken;
}

/** Do something that sends tensors' sums by a ring, and count its time and its bytes. @throws LostRankError when it fails. */
export function sending(buckets: readonly (readonly Tensor[])[], fn: () => void): void {
  together(2 * ring() * bytesOf(buckets.flat()), () => {
    fn();
    return [];
  });
}

/**
 * Run a collective and wait for its tensors.
 *
 * @param bytes - that this process sends.
 * @throws LostRankError when it fails, which means that another process ended or did not come.
 */
function together<T extends Tensor | readonly Tensor[]>(bytes: number, begin: () => T): T {
  const group = openedGroup();
  if (group === null) throw expected("distributed", "an open group", "none", "Call init() first");
  const start = performance.now();
  countCollective();
  try {
    const result = noGrad(begin);
    const tensors = Array.isArray(result) ? (result as Tensor[]) : [result as Tensor];
    tidy(() => {
      for (const each of tensors) call("_c10d_functional::wait_tensor", [each]);
    });
    traffic.bytes += bytes;
    return result;
  } catch (error) {
    throw lostRank(error as Error, group);
  } finally {
    traffic.seconds += (performance.now() - start) / 1000;
  }
}

const bytesOf = (tensors: readonly Tensor[]): number =>
  tensors.reduce((sum, each) => sum + each.numel * DTYPES[each.dtype].size, 0);

/** Part of its bytes that a process sends in an all-gather or a reduce-scatter by a ring; an all-reduce is both. */
const ring = (): number => (size() - 1) / size();

/**
 * Replace each tensor by the sum (largest, smallest) of all processes' tensors at its place.
 *
 * In buckets of 25 MiB. Tensors must be contiguous.
 */
export function allReduce(tensors: readonly Tensor[], reduction: Reduction = "sum"): void {
  if (size() === 1) return;
  for (const bucket of bucketsOf(tensors)) {
    together(2 * ring() * bytesOf(bucket), () => {
      const [only] = bucket;
      if (bucket.length === 1)
        return call("_c10d_functional::all_reduce_", [only as Tensor, reduction, GROUP]) as Tensor;
      call("_c10d_functional::all_reduce_coalesced_", [bucket, reduction, GROUP]);
      return bucket;
    });
  }
}

/** Tensors of one dtype and device each, in their order, of 25 MiB at most unless one alone is larger. */
export function bucketsOf(tensors: readonly Tensor[]): Tensor[][] {
  const buckets: Tensor[][] = [];
  let bytes = 0;
  for (const each of tensors) {
    const last = buckets.at(-1);
    const own = bytesOf([each]);
    const isAlike = last?.[0]?.dtype === each.dtype && last[0].device === each.device;
    if (last !== undefined && isAlike && bytes + own <= BUCKET) last.push(each);
    else buckets.push([each]);
    bytes = last === buckets.at(-1) ? bytes + own : own;
  }
  return buckets;
}

/**
 * All processes' rows, in the order of the ranks.
 *
 * @param rows - `[n, ...]`; n may differ between processes as {@link shares} divides.
 * @param total - rows of all processes together.
 * @returns `[total, ...]`.
 */
export function allGather(rows: Tensor, total: number): Tensor {
  if (size() === 1) return rows;
  const counts = shares(total, size()).map(([, count]) => count);
  if (rows.size(0) !== counts[rank()]) throw expected("allGather", `${counts[rank()]} rows`, rows);
  return gatherCounted(rows, counts);
}

/** All processes' rows, of which each has as many as `counts` says. */
function gatherCounted(rows: Tensor, counts: readonly number[]): Tensor {
  const most = Math.max(...counts);
  return tidy(() => {
    const [mine = 0] = rows.shape;
    const rest = rows.shape.slice(1);
    const options = { dtype: rows.dtype, device: rows.device as "cpu" };
    const own = noGrad(() => rows.detach().contiguous());
    const padded = mine === most ? own : cat([own, zeros([most - mine, ...rest], options)]);
    // Rows without numbers, such as the class probabilities of a network without classes, need no sending.
    if (padded.numel === 0) return zeros([counts.reduce((a, b) => a + b), ...rest], options);
    const gathered = together((size() - 1) * bytesOf([padded]), () =>
      callTensor<Tensor>("_c10d_functional::all_gather_into_tensor", [padded, size(), GROUP]),
    );
    if (counts.every((count) => count === most)) return gathered;
    return cat(counts.map((count, from) => gathered.narrow(0, from * most, count)));
  });
}

/**
 * The rows of all processes' parts, in the order of the ranks.
 *
 * @param parts - `[n, ...]` each, on the CPU: those that this process made, or none where another one has some.
 * @returns `[rows of all, ...]`.
 */
export function gatherParts(parts: readonly Tensor[]): Tensor {
  if (size() === 1) return cat([...parts]);
  return tidy(() => {
    const own = parts.length === 0 ? null : cat([...parts]);
    const all = gatherValues(own && { shape: [...own.shape], dtype: own.dtype });
    const like = all.find((each) => each !== null);
    if (like === undefined || like === null) throw expected("gatherParts", "rows of any process", "none");
    const rows = own ?? zeros([0, ...like.shape.slice(1)], { dtype: like.dtype });
    return gatherCounted(
      rows,
      all.map((each) => each?.shape[0] ?? 0),
    );
  });
}

/** The sum over the processes of `[size * n, ...]`, of which each gets its own n rows. */
export function reduceScatter(tensor: Tensor): Tensor {
  if (size() === 1) return tensor;
  if (tensor.size(0) % size() !== 0) throw expected("reduceScatter", `a multiple of ${size()} rows`, tensor);
  return together(ring() * bytesOf([tensor]), () =>
    callTensor<Tensor>("_c10d_functional::reduce_scatter_tensor", [tensor, "sum", size(), GROUP]),
  );
}

/** Replace the values of tensors by those of rank `from`. Tensors must be contiguous. */
export function broadcast(tensors: readonly Tensor[], from = 0): void {
  if (size() === 1) return;
  for (const each of tensors) {
    const sent = rank() === from ? bytesOf([each]) : 0;
    together(sent, () => call("_c10d_functional::broadcast_", [each, from, GROUP]) as Tensor);
  }
}

/** Wait until all processes are here. */
export function barrier(): void {
  if (size() === 1) return;
  tidy(() => allReduce([zeros([1])]));
}

/** Bytes of a value that go with its length in one collective. */
const SHORT = 1016;

/** Every process's value, by rank: plain data, such as numbers, texts, lists and maps. NaN and Infinity stay what they are. */
export function gatherValues<T>(value: T): T[] {
  if (size() === 1) return [value];
  const own = serialize(value);
  return tidy(() => {
    const begin = Buffer.alloc(8 + SHORT);
    begin.writeDoubleLE(own.length);
    own.copy(begin, 8, 0, SHORT);
    const begins = gatherBytes(begin);
    const lengths = begins.map((bytes) => bytes.readDoubleLE());
    const longest = Math.max(...lengths);
    // Most values are short; for longer ones a second collective brings what is left of them.
    const rest = longest <= SHORT ? [] : gatherBytes(Buffer.concat([own.subarray(SHORT)], longest - SHORT));
    return begins.map((bytes, from) => {
      const whole = Buffer.concat([bytes.subarray(8), rest[from] ?? Buffer.alloc(0)]);
      return deserialize(whole.subarray(0, lengths[from])) as T;
    });
  });
}

/** Every process's bytes, by rank; all have as many. */
function gatherBytes(own: Uint8Array): Buffer[] {
  const all = allGather(tensor(new Uint8Array(own), { dtype: "uint8" }).unsqueeze(0), size());
  const bytes = Buffer.from(all.contiguous().toArray() as Uint8Array);
  return Array.from({ length: size() }, (_, from) =>
    bytes.subarray(from * own.length, (from + 1) * own.length),
  );
}

/** The value of rank `from`. */
export function broadcastValue<T>(value: T, from = 0): T {
  return gatherValues(rank() === from ? value : null)[from] as T;
}

/**
 * Check that all processes have the same.
 *
 * @param what - that is compared, by name: plain data. The message names the part of it, such as `optimizer.lr`.
 * @throws RangeError on every process for the first that differs, naming the process.
 */
export function requireSame(what: Readonly<Record<string, unknown>>): void {
  const all = gatherValues(leavesOf(what));
  const first = all[0] as Map<string, string>;
  for (const [other, own] of all.entries()) {
    const name = [...first.keys(), ...own.keys()].find((each) => first.get(each) !== own.get(each));
    if (name === undefined) continue;
    const remedy = "Start every process with the same command, the same files and the same version";
    const shown = (of: Map<string, string>): string => of.get(name) ?? "nothing";
    throw expected(
      name,
      `the same on all processes, ${shown(first)} on rank 0`,
      `${shown(own)} on rank ${other}`,
      remedy,
    );
  }
}

/** Values by their paths, such as `optimizer.lr`, as JSON. */
function leavesOf(what: Readonly<Record<string, unknown>>, place = ""): Map<string, string> {
  const entries = Object.entries(what).flatMap(([name, value]): [string, string][] => {
    const isSection = typeof value === "object" && value !== null && Object.keys(value).length > 0;
    if (isSection) return [...leavesOf(value as Record<string, unknown>, `${place}${name}.`)];
    return [[`${place}${name}`, JSON.stringify(value) ?? "nothing"]];
  });
  return new Map(entries);
}

/** Whether the signal of any process is aborted, so that all end after the same step. */
export function isAnyAborted(signal: AbortSignal | undefined): boolean {
  const isAborted = signal?.aborted ?? false;
  if (size() === 1) return isAborted;
  return tidy(() => {
    const flag = full([1], isAborted ? 1 : 0);
    allReduce([flag], "max");
    return flag.item() === 1;
  });
}
