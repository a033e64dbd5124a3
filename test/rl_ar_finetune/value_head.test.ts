import assert from "node:assert/strict";
import { test } from "node:test";
import { ValueHead } from "../../src/rl_ar_finetune/value_head.js";
import { manualSeed, randn } from "../../src/torch/index.js";
import { expectClose } from "../support/close.js";

test("a new head says 0, and learns at once", () => {
  manualSeed(1);
  const head = new ValueHead(4);
  const hidden = randn([2, 3, 4]);
  const values = head.forward(hidden);
  assert.deepEqual(values.toList(), [
    [0, 0, 0],
    [0, 0, 0],
  ]);
  values.sum().backward();
  expectClose(head.out.weight.grad?.flatten().toList() as number[], hidden.sum([0, 1]), { rtol: 1e-5 });
  assert.deepEqual(Object.keys(head.stateDict()), ["out.weight", "out.bias"]);
});

test("hidden states of a narrow dtype give values of the head's own", () => {
  assert.equal(new ValueHead(4).forward(randn([2, 4]).bfloat16()).dtype, "float32");
});
