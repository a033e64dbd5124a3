/** Spearman's rank correlation, worked out by hand. */
import assert from "node:assert/strict";
import { test } from "node:test";

import { rankCorrelation } from "../../src/metrics/ranks.js";

test("the rank correlation is Spearman's, and equal values share a rank", () => {
  assert.equal(rankCorrelation([1, 2, 3, 4], [10, 20, 30, 400]), 1);
  assert.equal(rankCorrelation([1, 2, 3], [5, 4, 3]), -1);
  assert.equal(rankCorrelation([1, 2], [2, 1]), -1);
  // 1 - 6 (0 + 1 + 1 + 0) / (4 * 15) = 0.8
  assert.ok(Math.abs(rankCorrelation([1, 2, 3, 4], [1, 3, 2, 4]) - 0.8) < 1e-12);
  // Ranks 1.5, 1.5, 3 and 1, 2, 3: 1.5 / sqrt(1.5 * 2)
  assert.ok(Math.abs(rankCorrelation([7, 7, 9], [1, 2, 3]) - Math.sqrt(0.75)) < 1e-12);
  assert.equal(rankCorrelation([1, 1], [1, 2]), Number.NaN);
  assert.equal(rankCorrelation([1, 2, 3], [1, 1, 1]), Number.NaN);
});
