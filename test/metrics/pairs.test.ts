import assert from "node:assert/strict";
import { test } from "node:test";

import { chunkOf, comparePairs, pairUp, portions } from "../../src/metrics/pairs.js";
import { ones, zeros } from "../../src/torch/index.js";

test("pairUp finds the number of samples an image", () => {
  assert.deepEqual(pairUp("here", zeros([2, 3, 4, 5]), zeros([6, 3, 4, 5])), {
    images: 2,
    perImage: 3,
    height: 4,
    width: 5,
  });
});

test("pairUp refuses other shapes and dtypes", () => {
  const refused = (x: number[], y: number[], message: string): void =>
    assert.throws(() => pairUp("here", zeros(x), zeros(y)), { name: "RangeError", message });
  refused(
    [2, 1, 4, 4],
    [2, 1, 4, 4],
    "here: expected images [B, 3, H, W], got Tensor float32[2, 1, 4, 4] cpu.",
  );
  refused([3, 4, 4], [3, 4, 4], "here: expected images [B, 3, H, W], got Tensor float32[3, 4, 4] cpu.");
  refused(
    [0, 3, 4, 4],
    [2, 3, 4, 4],
    "here: expected images [B, 3, H, W], got Tensor float32[0, 3, 4, 4] cpu.",
  );
  refused(
    [2, 3, 4, 4],
    [0, 3, 4, 4],
    "here: expected samples [B, 3, H, W], got Tensor float32[0, 3, 4, 4] cpu.",
  );
  refused(
    [2, 3, 4, 4],
    [2, 3, 4, 5],
    "here: expected samples [2 * G, 3, 4, 4], got Tensor float32[2, 3, 4, 5] cpu.",
  );
  refused(
    [2, 3, 4, 4],
    [1, 3, 4, 4],
    "here: expected samples [2 * G, 3, 4, 4], got Tensor float32[1, 3, 4, 4] cpu.",
  );
  assert.throws(() => pairUp("here", zeros([2, 3, 4, 4], { dtype: "uint8" }), zeros([2, 3, 4, 4])), {
    name: "TypeError",
    message:
      "here: expected images of a floating-point dtype, got Tensor uint8[2, 3, 4, 4] cpu. Map bytes to [-1, 1] by x / 127.5 - 1.",
  });
});

test("portions are whole groups where they fit and parts of one group where not", () => {
  const list = (b: number, g: number, chunk: number): number[][] =>
    portions(b, g, chunk).map((part) => [part.image, part.images, part.sample, part.samples]);
  assert.deepEqual(list(5, 2, 4), [
    [0, 2, 0, 2],
    [2, 2, 0, 2],
    [4, 1, 0, 2],
  ]);
  assert.deepEqual(list(2, 5, 2), [
    [0, 1, 0, 2],
    [0, 1, 2, 2],
    [0, 1, 4, 1],
    [1, 1, 0, 2],
    [1, 1, 2, 2],
    [1, 1, 4, 1],
  ]);
  assert.deepEqual(list(3, 4, 7), [
    [0, 1, 0, 4],
    [1, 1, 0, 4],
    [2, 1, 0, 4],
  ]);
  assert.deepEqual(list(3, 4, 100), [[0, 3, 0, 4]]);
});

test("a portion is 2^21 pixels unless its size is given", () => {
  assert.equal(chunkOf("here", {}, 256, 256), 32);
  assert.equal(chunkOf("here", {}, 384, 384), 14);
  assert.equal(chunkOf("here", {}, 4096, 4096), 1);
  assert.equal(chunkOf("here", { chunk: 5 }, 256, 256), 5);
  for (const chunk of [0, 1.5, Number.NaN]) {
    assert.throws(() => chunkOf("here", { chunk }, 8, 8), {
      name: "RangeError",
      message: `here: chunk: expected an integer of at least 1, got ${chunk}.`,
    });
  }
});

test("comparePairs hands each portion over once, in order", () => {
  const seen: string[] = [];
  const result = comparePairs("here", zeros([3, 3, 2, 2]), ones([6, 3, 2, 2]), { chunk: 4 }, (x, y) => {
    seen.push(`${x.shape} ${y.shape}`);
    return y.sub(x).sum([2, 3, 4]);
  });
  assert.deepEqual(seen, ["2,1,3,2,2 2,2,3,2,2", "1,1,3,2,2 1,2,3,2,2"]);
  assert.deepEqual(result.toList(), [12, 12, 12, 12, 12, 12]);
});
