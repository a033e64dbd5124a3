/**
 * The random order of a data set, a function of only seed and epoch. A run therefore resumes from two numbers without replaying
 * anything.
 */
import { deriveSeed, expected, randperm, stream, tidy } from "../torch/index.js";
import type { Block } from "./source.js";

/** A place in the endless sequence of epochs: plain data, for a checkpoint. */
export interface Cursor {
  /** From 0. */
  readonly epoch: number;
  /** Images of the epoch that have been passed, readable or not; items of a program's own loader. */
  readonly position: number;
  /** Of a program's own loader: images of every batch, which are those of its first one. */
  readonly batch?: number;
  /** Of a program's own loader: images of the next item that have been passed, where a batch ended within it. */
  readonly used?: number;
}

/** The start of a run. */
export const START: Cursor = { epoch: 0, position: 0 };

/** @throws RangeError when the cursor is not inside a set of `length`. */
export function checkCursor(where: string, { epoch, position }: Cursor, length: number): void {
  const isCount = (value: number): boolean => Number.isSafeInteger(value) && value >= 0;
  if (isCount(epoch) && isCount(position) && position < length) return;
  const what = `an epoch from 0 and a position from 0 to ${length - 1}`;
  const remedy = "Resume with the data set that the run was started with";
  throw expected(where, what, `epoch ${epoch}, position ${position}`, remedy);
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

/** Whether the blocks of a set, if it has any, may all be open at once. */
export function fitsWindow({ blocks = [] }: { readonly blocks?: readonly Block[] }): boolean {
  return blocks.reduce((sum, block) => sum + block.bytes, 0) <= WINDOW_BYTES;
}

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
  if (blocks === undefined || fitsWindow({ blocks })) return permutation(seed, epoch, length);
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

/** The order of an epoch in which an image may come several times. */
export interface BalancedOrder {
  /** Indices, `[length]`. */
  readonly order: Int32Array;
  /** How many times each was drawn before, in all epochs, `[length]`. */
  readonly rounds: Int32Array;
}

/**
 * The order of one epoch with balanced classes: a class of `n` images gets places in proportion to
 * `n ** (1 - balance)`, so with 1 all classes get equally many.
 *
 * An epoch has as many places as there are images, and each class gets the same number in every epoch. A class goes
 * through its images in a new random order each round, across epochs: no image repeats before all images of its class
 * were used. Blocks are ignored.
 *
 * @param classIds - class of each image.
 * @param balance - from 0 to 1.
 */
export function balancedOrder(
  classIds: ArrayLike<number>,
  balance: number,
  seed: number | bigint,
  epoch: number,
): BalancedOrder {
  const { length } = classIds;
  const members = new Map<number, number[]>();
  for (let i = 0; i < length; i++) {
    const id = classIds[i] as number;
    const own = members.get(id);
    if (own === undefined) members.set(id, [i]);
    else own.push(i);
  }
  const classes = [...members].sort(([a], [b]) => a - b);
  const places = apportion(
    classes.map(([, images]) => images.length ** (1 - balance)),
    length,
  );
  const walks = classes.map(([id, images], c) =>
    walk(images, epoch * (places[c] as number), (round) =>
      permutationOf(seed, `order/class/${id}`, round, images.length),
    ),
  );
  const classOf = new Int32Array(length);
  let start = 0;
  for (const [c, count] of places.entries()) {
    classOf.fill(c, start, start + count);
    start += count;
  }
  const order = new Int32Array(length);
  const rounds = new Int32Array(length);
  for (const [i, place] of permutation(seed, epoch, length).entries()) {
    const { index, round } = (walks[classOf[place] as number] as Walk).next().value;
    order[i] = index;
    rounds[i] = round;
  }
  return { order, rounds };
}

type Walk = Generator<{ readonly index: number; readonly round: number }, never>;

/** Endless draws of the images of a class, beginning with draw `start`. */
function* walk(images: readonly number[], start: number, orderOf: (round: number) => Int32Array): Walk {
  let at = start % images.length;
  for (let round = Math.floor(start / images.length); ; round++) {
    const order = orderOf(round);
    for (; at < images.length; at++) yield { index: images[order[at] as number] as number, round };
    at = 0;
  }
}

/** Whole numbers in proportion to `weights` that sum to `total`: those with the largest remainders are rounded up. */
function apportion(weights: readonly number[], total: number): Int32Array {
  const sum = weights.reduce((all, weight) => all + weight, 0);
  const exact = weights.map((weight) => (weight / sum) * total);
  const shares = Int32Array.from(exact, Math.floor);
  const left = total - shares.reduce((all, share) => all + share, 0);
  const byRemainder = exact
    .map((value, c) => ({ c, remainder: value - Math.floor(value) }))
    .sort((a, b) => b.remainder - a.remainder || a.c - b.c);
  for (const { c } of byRemainder.slice(0, left)) (shares[c] as number)++;
  return shares;
}

/** A number from 0 to `count - 1` for one image in one round: its flip, or which of its crops. */
export function draw(
  seed: number | bigint,
  name: string,
  round: number,
  index: number,
  count: number,
): number {
  return Number(deriveSeed(seed, `${name}/${round}`, index) % BigInt(count));
}
