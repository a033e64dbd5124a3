import assert from "node:assert/strict";
import { test } from "node:test";

import {
  balancedOrder,
  checkCursor,
  draw,
  epochOrder,
  fitsWindow,
  permutation,
} from "../../src/data/order.js";
import { noLeak } from "../support/leak.js";

const sorted = (order: Int32Array): number[] => [...order].sort((a, b) => a - b);
const upTo = (n: number): number[] => Array.from({ length: n }, (_, i) => i);

test("an order is a function of seed and epoch, holds each index once, and leaves no tensor", () => {
  const order = noLeak(() => permutation(7, 3, 1000));
  assert.deepEqual(sorted(order), upTo(1000));
  assert.deepEqual(permutation(7, 3, 1000), order);
  assert.notDeepEqual(permutation(7, 4, 1000), order);
  assert.notDeepEqual(permutation(8, 3, 1000), order);
  assert.notDeepEqual([...order], upTo(1000));
});

test("the order of a seed stays what it was: checkpoints depend on it", () => {
  // torch.randperm(8) of a generator seeded with the first 63 bits of SHA-256 of "0/order/0".
  assert.deepEqual([...permutation(0, 0, 8)], [5, 1, 0, 3, 2, 4, 7, 6]);
});

test("every index comes first about as often as another", () => {
  const counts = new Array<number>(5).fill(0);
  for (let epoch = 0; epoch < 1000; epoch++) (counts[permutation(1, epoch, 5)[0] as number] as number)++;
  // 200 each, with a standard deviation of 12.6.
  for (const count of counts) assert.ok(Math.abs(count - 200) < 64, String(counts));
});

test("blocks that do not fit into memory together are opened once each", () => {
  // A window holds two blocks of 200 MiB: images 0 to 9 are in the first, 10 to 19 in the second, and so on.
  const blocks = Array.from({ length: 9 }, () => ({ length: 10, bytes: 200 * 2 ** 20 }));
  const order = epochOrder({ length: 90, blocks }, 5, 2);
  assert.deepEqual(sorted(order), upTo(90));
  const windows = [0, 20, 40, 60, 80].map((start) => [...order.subarray(start, start + 20)]);
  const opened = windows.map((window) => [...new Set(window.map((index) => Math.floor(index / 10)))].sort());
  assert.deepEqual(
    opened.map((window) => window.length),
    [2, 2, 2, 2, 1],
  );
  assert.deepEqual(opened.flat().sort(), upTo(9));
  assert.notDeepEqual(opened, [[0, 1], [2, 3], [4, 5], [6, 7], [8]]);
  // Each window is shuffled in its own way, across its blocks.
  assert.equal(new Set(windows.map((window) => window.map((index) => index % 10).join())).size, 5);
  const half = (windows[0] as number[]).slice(0, 10).map((index) => Math.floor(index / 10));
  assert.equal(new Set(half).size, 2);
  assert.deepEqual(epochOrder({ length: 90, blocks }, 5, 2), order);
  assert.notDeepEqual(epochOrder({ length: 90, blocks }, 5, 3), order);
});

test("blocks that fit into memory together are shuffled as one", () => {
  const blocks = [
    { length: 40, bytes: 10 },
    { length: 60, bytes: 10 },
  ];
  assert.deepEqual(epochOrder({ length: 100, blocks }, 1, 0), permutation(1, 0, 100));
});

test("draws depend on all that they are asked by, and are fair", () => {
  assert.equal(draw(1, "flip", 2, 3, 1000), draw(1, "flip", 2, 3, 1000));
  const draws = [
    draw(1, "flip", 2, 3, 2 ** 30),
    draw(2, "flip", 2, 3, 2 ** 30),
    draw(1, "crop", 2, 3, 2 ** 30),
    draw(1, "flip", 3, 3, 2 ** 30),
    draw(1, "flip", 2, 4, 2 ** 30),
  ];
  assert.equal(new Set(draws).size, 5);
  const heads = upTo(1000).filter((i) => draw(0, "flip", 0, i, 2) === 1).length;
  assert.ok(Math.abs(heads - 500) < 80, String(heads));
});

test("a cursor outside the set is refused", () => {
  checkCursor("BatchReader", { epoch: 4, position: 9 }, 10);
  assert.throws(() => checkCursor("BatchReader", { epoch: 4, position: 10 }, 10), {
    message:
      "BatchReader: expected an epoch from 0 and a position from 0 to 9, got epoch 4, position 10. " +
      "Resume with the data set that the run was started with.",
  });
  assert.throws(() => checkCursor("x", { epoch: 0.5, position: 0 }, 10), RangeError);
  assert.throws(() => checkCursor("x", { epoch: 0, position: -1 }, 10), RangeError);
});

/** Classes of 6, 3 and 1 images, mixed, with a gap in the ids. */
const UNEVEN = [0, 0, 4, 0, 2, 0, 4, 0, 4, 0];

/** How often each class comes in an order. */
function countsOf(order: Int32Array): Record<number, number> {
  const counts: Record<number, number> = {};
  for (const index of order) {
    const id = UNEVEN[index] as number;
    counts[id] = (counts[id] ?? 0) + 1;
  }
  return counts;
}

test("balanced classes come equally often, or as their size to a power says, in every epoch", () => {
  for (const epoch of [0, 1, 7]) {
    // 10 places for 3 classes: the first one gets what is left over.
    assert.deepEqual(countsOf(balancedOrder(UNEVEN, 1, 3, epoch).order), { 0: 4, 2: 3, 4: 3 });
    // Square roots 2.449, 1.732 and 1 of 5.181 in all: 4.73, 3.34 and 1.93 places.
    assert.deepEqual(countsOf(balancedOrder(UNEVEN, 0.5, 3, epoch).order), { 0: 5, 2: 2, 4: 3 });
    assert.deepEqual(countsOf(balancedOrder(UNEVEN, 0, 3, epoch).order), { 0: 6, 2: 1, 4: 3 });
  }
  assert.deepEqual(sorted(balancedOrder(UNEVEN, 0, 3, 5).order), upTo(10));
});

test("a class goes through all its images, in a new order each time, before one comes again", () => {
  const walked = upTo(9).flatMap((epoch) => {
    const { order, rounds } = balancedOrder(UNEVEN, 1, 8, epoch);
    return [...order].map((index, i) => ({ index, round: rounds[i] as number }));
  });
  for (const id of [0, 2, 4]) {
    const images = upTo(10).filter((i) => UNEVEN[i] === id);
    const own = walked.filter(({ index }) => UNEVEN[index] === id);
    const passes: number[][] = [];
    for (const [k, { index, round }] of own.entries()) {
      const pass = Math.floor(k / images.length);
      assert.equal(round, pass);
      if (k % images.length === 0) passes.push([]);
      passes[pass]?.push(index);
    }
    for (const pass of passes.slice(0, -1)) assert.deepEqual([...pass].sort(), images);
    if (images.length > 1) assert.ok(new Set(passes.map((pass) => pass.join())).size > 1);
  }
});

test("a balanced order is a function of seed and epoch, mixes the classes, and leaves no tensor", () => {
  const order = noLeak(() => balancedOrder(UNEVEN, 1, 8, 4));
  assert.deepEqual(balancedOrder(UNEVEN, 1, 8, 4), order);
  assert.notDeepEqual(balancedOrder(UNEVEN, 1, 9, 4).order, order.order);
  assert.notDeepEqual(balancedOrder(UNEVEN, 1, 8, 5).order, order.order);
  const sequence = (epoch: number): string =>
    [...balancedOrder(UNEVEN, 1, 8, epoch).order].map((index) => UNEVEN[index]).join();
  assert.equal(new Set(upTo(8).map(sequence)).size, 8);
  // As many classes as images: each once, whatever the balance.
  for (const balance of [0, 0.3, 1]) {
    assert.deepEqual(sorted(balancedOrder([5, 3, 9, 0], balance, 1, 2).order), upTo(4));
  }
});

test("blocks fit into the window up to 512 MiB in all", () => {
  const block = { length: 1, bytes: 2 ** 28 };
  assert.ok(fitsWindow({}));
  assert.ok(fitsWindow({ blocks: [block, block] }));
  assert.ok(!fitsWindow({ blocks: [block, block, { length: 1, bytes: 1 }] }));
});
