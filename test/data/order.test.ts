import assert from "node:assert/strict";
import { test } from "node:test";

import { checkCursor, draw, epochOrder, permutation } from "../../src/data/order.js";
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
