/** Initial values, dropped branches, and the class table. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { init } from "../../src/nn/index.js";
import {
  dropPath,
  dropPathRate,
  embedding,
  LabelEmbedder,
  linear,
  zeroLinear,
} from "../../src/policies/layers.js";
import { manualSeed, ones, type Tensor, tensor, tidy } from "../../src/torch/index.js";
import { expectClose } from "../support/close.js";
import { noLeak } from "../support/leak.js";

const ids = (...list: number[]): Tensor => tensor(list, { dtype: "int64" });

test("weights are N(0, std), drawn once, and biases zero", () =>
  noLeak(() =>
    tidy(() => {
      manualSeed(7);
      const wanted = init.normal([30, 20], 0, 0.5);
      manualSeed(7);
      using layer = linear(20, 30, { bias: true, std: 0.5 });
      assert.ok(layer.weight.equal(wanted));
      assert.ok(layer.weight.requiresGrad);
      assert.equal(layer.bias?.abs().amax().item(), 0);
      manualSeed(7);
      using table = embedding(30, 20, 0.5);
      assert.ok(table.weight.equal(wanted));
      using silent = zeroLinear(4, 3, { bias: true });
      assert.equal(
        silent
          .forward(ones([2, 4]))
          .abs()
          .amax()
          .item(),
        0,
      );
      assert.ok(silent.weight.requiresGrad);
    }),
  ));

test("whole branches are dropped, and the others scaled up", () =>
  tidy(() => {
    manualSeed(1);
    const x = ones([4000, 2, 3]);
    const rows = dropPath(x, 0.25, true).flatten(1);
    assert.ok(rows.amin(1).equal(rows.amax(1)), "one factor a sequence");
    const [low, high] = [rows.amin().item(), rows.amax().item()];
    expectClose([low, high], [0, 4 / 3]);
    assert.ok(Math.abs(rows.mean().item() - 1) < 0.03);
    assert.equal(dropPath(x, 0.25, false), x);
    assert.deepEqual(
      [0, 1, 2].map((i) => dropPathRate(0.2, i, 3)),
      [0, 0.1, 0.2],
    );
    assert.equal(dropPathRate(0.2, 0, 1), 0);
  }));

test("a class has its row, and the last row stands for none", () =>
  tidy(() => {
    using table = new LabelEmbedder(3, 4);
    const rows = table.embedding_table.weight;
    assert.deepEqual(rows.shape, [4, 4]);
    const at = (...list: number[]): Tensor => rows.indexSelect(0, ids(...list)).unsqueeze(1);
    assert.ok(table.forward(ids(2, 0, 3), undefined, 3).equal(at(2, 0, 3)));
    assert.ok(table.forward(undefined, undefined, 2).equal(at(3, 3)));
    assert.ok(table.forward(ids(2, 0), tensor([0, 1], { dtype: "bool" }), 2).equal(at(2, 3)));
    assert.deepEqual(table.nullCondition({ classes: ids(2, 0) }).classes?.toList(), [3, 3]);
    assert.deepEqual(table.nullCondition({}), {});
    assert.throws(() => table.forward(ids(0, 4), undefined, 2), {
      message: "condition.classes: expected classes in [0, 3], got 4. 3 itself is the null class.",
    });
  }));
