import assert from "node:assert/strict";
import { test } from "node:test";

import { hashListing, spread } from "../../src/data/source.js";

test("spread takes all of a few, and evenly of many", () => {
  assert.deepEqual(spread(3, 10), [0, 1, 2]);
  assert.deepEqual(spread(10, 4), [0, 2, 5, 7]);
  assert.equal(new Set(spread(1_000_003, 64)).size, 64);
});

test("a listing's hash tells ids, classes and class names apart", () => {
  const hash = (ids: string[], classes: number[], names: string[]): string =>
    hashListing((i) => ids[i] as string, { ids: Int32Array.from(classes), names, notes: [] }).digest("hex");
  const base = hash(["a", "b"], [0, 1], ["x", "y"]);
  assert.equal(hash(["a", "b"], [0, 1], ["x", "y"]), base);
  assert.notEqual(hash(["a", "c"], [0, 1], ["x", "y"]), base);
  assert.notEqual(hash(["a", "b"], [1, 1], ["x", "y"]), base);
  assert.notEqual(hash(["a", "b"], [0, 1], ["x", "z"]), base);
  assert.notEqual(hash(["b", "a"], [0, 1], ["x", "y"]), base);
});
