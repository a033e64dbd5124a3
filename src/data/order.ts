/**
 * The order in which a data set is gone through, as a function of the seed and the epoch alone: a run resumes from
 * two numbers, and nothing needs to be replayed.
 */
import { deriveSeed, expected, randperm, stream, tidy } from "../torch/index.js";
import type { Block } from "./source.js";

/** A place in the endless sequence of epochs: plain data, for a checkpoint. */
export interface Cursor {
  /** From 0. */
  readonly epoch: number;
  /** Images of the epoch that have been passed, readable or not. */
  readonly position: number;
}

/** Where every run starts. */
export const START: Cursor = { epoch: 0, position: 0 };

/** @throws RangeError when the cursor is no place in a set of `length`. */
export function checkCursor(where: string, { epoch, position }: Cursor, length: number): void {
  const isCount = (value: number): boolean => Number.isSafeInteger(value) && value >= 0;
  if (isCount(epoch) && isCount(position) && position < length) return;
  throw expected(
    where,
    `an epoch from 0 and a position from 0 to ${length - 1}`,
    `epoch ${epoch}, position ${position}`,
    "Resume with the data set that the run was started with",
  );
}

/** All of `0 ... n-1` in a random order. */
export function permutation(seed: number | bigint, epoch: number, n: number): Int32Array {
  return permutationOf(seed, "order", epoch, n);
}

function permutationOf(seed: number | bigint, name: string, epoch: number, n: number): Int32Array {
  using generator = stream(seed, name, epoch);
  return tidy(() => randperm(n, { generator, dtype: "int32" }).toArray() as Int32Array);
}

/**
 * Most memory that the blocks of a window may take. A constant, because the order depends on it.
 */
const WINDOW_BYTES = 2 ** 29;

/**
 * The order of one epoch.
 *
 * With blocks, these are shuffled first and then the images within windows of as many blocks as fit into 512 MiB, so
 * that each block is opened once an epoch. A set below that size is shuffled as a whole.
 *
 * @returns each index once, `[length]`.
 */
export function epochOrder(
  source: { readonly length: number; readonly blocks?: readonly Block[] },
  seed: number | bigint,
  epoch: number,
): Int32Array {
  const { length, blocks } = source;
  const bytes = (blocks ?? []).reduce((sum, block) => sum + block.bytes, 0);
  if (blocks === undefined || bytes <= WINDOW_BYTES) return permutation(seed, epoch, length);
  const starts = new Int32Array(blocks.length + 1);
  for (const [i, block] of blocks.entries()) starts[i + 1] = (starts[i] as number) + block.length;

  const order = new Int32Array(length);
  let filled = 0;
  let window: number[] = [];
  let windowBytes = 0;
  let windows = 0;
  const flush = (): void => {
    const within = permutationOf(seed, `order/window/${windows++}`, epoch, window.length);
    for (const place of within) order[filled++] = window[place] as number;
    window = [];
    windowBytes = 0;
  };
  for (const b of permutationOf(seed, "order/blocks", epoch, blocks.length)) {
    const block = blocks[b] as Block;
    if (window.length > 0 && windowBytes + block.bytes > WINDOW_BYTES) flush();
    for (let i = 0; i < block.length; i++) window.push((starts[b] as number) + i);
    windowBytes += block.bytes;
  }
  flush();
  return order;
}

/** A number from 0 to `count - 1` for one image in one epoch: its flip, or which of its crops. */
export function draw(
  seed: number | bigint,
  name: string,
  epoch: number,
  index: number,
  count: number,
): number {
  return Number(deriveSeed(seed, `${name}/${epoch}`, index) % BigInt(count));
}
