/** Values of these functions are compared with PyTorch's in test/native/operators.test.ts. */
import assert from "node:assert/strict";
import { test } from "node:test";

import {
  cat,
  type DType,
  functional as F,
  manualSeed,
  ones,
  randn,
  type Tensor,
  tensor,
  tidy,
  zeros,
} from "../../src/torch/index.js";
import { expectClose } from "../support/close.js";

test("dropout scales what it keeps, and does nothing out of training", () => {
  manualSeed(5);
  tidy(() => {
    const x = ones([10000]);
    const y = F.dropout(x, 0.25, true);
    expectClose(y.unique(), [0, 4 / 3], { rtol: 1e-6 });
    expectClose(y.mean(), 1, { atol: 0.02 });
    assert.ok(F.dropout(x, 0.25, false).equal(x));
    assert.throws(
      () => F.dropout(x, 1.5, true),
      /dropout probability has to be between 0 and 1, but got 1\.5/,
    );
  });
});

test("interpolate takes a size or a scale", () => {
  tidy(() => {
    const x = zeros([1, 1, 4, 4]);
    for (const [options, got] of [
      [{}, "neither"],
      [{ size: [2, 2] as const, scale: 2 }, "both"],
    ] as const) {
      assert.throws(() => F.interpolate(x, options), {
        name: "RangeError",
        message: `interpolate: expected either size or scale, got ${got}.`,
      });
    }
    assert.throws(() => F.interpolate(x, { scale: 2, mode: "cubic" as "bicubic" }), {
      name: "RangeError",
      message: "interpolate: expected a known mode, got cubic.",
    });
  });
});

test("options left out are PyTorch's defaults", () => {
  tidy(() => {
    const x = randn([1, 4, 5, 5]);
    const w = randn([4, 4, 2, 2]);
    const plain = { stride: 1, padding: 0, dilation: 1, groups: 1 };
    const same: [Tensor, Tensor][] = [
      [F.conv2d(x, w), F.conv2d(x, w, null, plain)],
      [F.convTranspose2d(x, w), F.convTranspose2d(x, w, null, { ...plain, outputPadding: 0 })],
      [
        F.avgPool2d(x, 2),
        F.avgPool2d(x, 2, { stride: 2, padding: 0, ceilMode: false, countIncludePad: true }),
      ],
      [F.maxPool2d(x, 2), F.maxPool2d(x, 2, { stride: 2, padding: 0, ceilMode: false })],
    ];
    const sizes = same.map(([each]) => each.size(-1));
    assert.deepEqual(sizes, [4, 6, 2, 2]);
    same.push([F.cosineSimilarity(x, x.add(1)), F.cosineSimilarity(x, x.add(1), 1, 1e-8)]);
    same.push([F.normalize(x), F.normalize(x, { p: 2, dim: 1, eps: 1e-12 })]);
    const heads = (count: number): Tensor => ones([1, count, 2, 4]);
    assert.throws(() => F.scaledDotProductAttention(heads(4), heads(2), heads(2)), /must match the size/);
    for (const [each, wanted] of same) assert.ok(each.equal(wanted));
  });
});

test("losses take their reductions, and refuse targets that do not fit", () => {
  tidy(() => {
    const [x, y] = [tensor([1, 2, 4]), tensor([1, 4, 8])];
    const all = (loss: (reduction: F.Reduction) => Tensor): unknown[] =>
      (["none", "sum", "mean"] as const).map((reduction) => loss(reduction).toList());
    assert.deepEqual(
      all((r) => F.mseLoss(x, y, r)),
      [[0, 4, 16], 20, Math.fround(20 / 3)],
    );
    assert.deepEqual(
      all((r) => F.l1Loss(x, y, r)),
      [[0, 2, 4], 6, 2],
    );
    assert.deepEqual(
      all((r) => F.smoothL1Loss(x, y, r)),
      [[0, 1.5, 3.5], 5, F.smoothL1Loss(x, y).item()],
    );
    expectClose(F.mseLoss(x, y), 20 / 3);
    expectClose(F.smoothL1Loss(x, y), 5 / 3);
    assert.throws(
      () => F.crossEntropy(zeros([2, 3]), tensor([0, 3], { dtype: "int64" })),
      /Target 3 is out of bounds/,
    );
    assert.throws(
      () => F.crossEntropy(zeros([2, 3]), tensor([0], { dtype: "int64" })),
      /Expected input batch_size \(2\) to match target batch_size \(1\)/,
    );
  });
});

test("results keep the dtype of their inputs where PyTorch's do", () => {
  tidy(() => {
    for (const dtype of ["float64", "bfloat16"] as DType[]) {
      const x = ones([2, 4, 4, 4], { dtype });
      const w = ones([4], { dtype });
      const results = [
        F.groupNorm(x, 2, w, w),
        F.layerNorm(x, [4], w, w),
        F.rmsNorm(x, [4], w),
        F.normalize(x),
        F.interpolate(x, { scale: 2 }),
        F.pad(x, [1, 1]),
        F.avgPool2d(x, 2),
        F.scaledDotProductAttention(x, x, x),
        cat([x, x]),
      ];
      assert.deepEqual(
        results.map((each) => each.dtype),
        results.map(() => dtype),
      );
    }
  });
});
