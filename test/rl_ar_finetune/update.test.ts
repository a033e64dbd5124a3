import assert from "node:assert/strict";
import { test } from "node:test";
import { planBatches } from "../../src/rl_ar_finetune/optimize.js";

test("rollout, mini-batch and micro-batch are three numbers that say how many steps and passes there are", () => {
  assert.deepEqual(planBatches({ images: 16, rowsAnImage: 1 }), {
    rows: 16,
    miniBatches: 1,
    steps: 1,
    microBatchesAStep: 1,
  });
  assert.deepEqual(planBatches({ images: 16, rowsAnImage: 8, epochs: 2, miniBatch: 4, microBatch: 8 }), {
    rows: 128,
    miniBatches: 4,
    steps: 8,
    microBatchesAStep: 4,
  });
  assert.equal(planBatches({ images: 16, rowsAnImage: 1, microBatch: 5 }).microBatchesAStep, 4);
});

test("sizes that do not fit are refused", () => {
  assert.throws(() => planBatches({ images: 16, rowsAnImage: 1, miniBatch: 6 }), {
    name: "RangeError",
    message: "planBatches.miniBatch: expected a divisor of the rollout's 16 images, got 6.",
  });
  for (const [name, value] of [
    ["epochs", 0],
    ["miniBatch", 1.5],
    ["microBatch", -1],
  ] as const) {
    assert.throws(() => planBatches({ images: 16, rowsAnImage: 1, [name]: value }, "here"), {
      message: `here.${name}: expected an integer of at least 1, got ${value}.`,
    });
  }
});
