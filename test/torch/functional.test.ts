/** Values of these functions are compared with PyTorch's in test/native/operators.test.ts. */
import assert from "node:assert/strict";
import { test } from "node:test";

import {
  arange,
  cat,
  type DType,
  functional as F,
  grad,
  manualSeed,
  memory,
  ones,
  rand,
  randint,
  randn,
  setNumThreads,
  type Tensor,
  tensor,
  tidy,
  zeros,
} from "../../src/torch/index.js";
import { expectClose } from "../support/close.js";
import { checkGradient } from "../support/gradcheck.js";
import { noLeak } from "../support/leak.js";

setNumThreads(1);

const weigh = (y: Tensor): Tensor =>
  y
    .reshape(-1)
    .mul(arange(0, y.numel, 1, { dtype: "float64" }).cos())
    .sum();
const indices = (rows: number[][]): Tensor => tensor(rows, { dtype: "int64" });

/** The same by operators, which keep the whole log-softmax. */
const plain = (logits: Tensor, index: Tensor): Tensor =>
  index.ndim === logits.ndim
    ? logits.logSoftmax(-1).gather(-1, index)
    : logits.logSoftmax(-1).gather(-1, index.unsqueeze(-1)).squeeze(-1);

test("selectiveLogSoftmax: values and gradients at every chunk boundary, one index a row or several", () => {
  manualSeed(1);
  noLeak(() =>
    tidy(() => {
      const shapes: [number[], number[]][] = [
        [[5], []],
        [[5], [3]],
        [[7, 5], [7]],
        [
          [7, 5],
          [7, 3],
        ],
        [
          [2, 3, 5],
          [2, 3],
        ],
        [
          [2, 3, 5],
          [2, 3, 4],
        ],
        [[0, 5], [0]],
        [
          [0, 5],
          [0, 2],
        ],
      ];
      for (const [shape, indexShape] of shapes) {
        for (const chunk of [1, 2, 3, 6, 7, 8, 256]) {
          tidy(() => {
            const where = `[${shape}] [${indexShape}] chunk ${chunk}`;
            const logits = randn(shape, { dtype: "float64", requiresGrad: true });
            const index = randint(0, 5, indexShape);
            const got = F.selectiveLogSoftmax(logits, index, chunk);
            const wanted = plain(logits, index);
            expectClose(got, wanted, { rtol: 1e-12, atol: 1e-13, where });
            const weights = randn(indexShape, { dtype: "float64" });
            const [a] = grad([got], [logits], [weights]) as [Tensor];
            const [b] = grad([wanted], [logits], [weights]) as [Tensor];
            expectClose(a, b, { rtol: 1e-10, atol: 1e-12, where: `${where}, gradient` });
          });
        }
      }
    }),
  );
});

test("selectiveLogSoftmax: finite differences, an index that comes twice in a row counted twice", () => {
  manualSeed(2);
  tidy(() => {
    const logits = randn([3, 4], { dtype: "float64" });
    checkGradient(
      (x) => weigh(F.selectiveLogSoftmax(x as Tensor, tensor([0, 3, 3], { dtype: "int64" }), 2)),
      [logits],
    );
    const index = indices([
      [0, 0, 0],
      [1, 2, 1],
      [3, 0, 3],
    ]);
    checkGradient((x) => weigh(F.selectiveLogSoftmax(x as Tensor, index, 2)), [logits]);
    // By hand: two classes with equal logits, the first chosen twice: 2 (1 - 1/2) and -2/2.
    const even = zeros([1, 2], { requiresGrad: true });
    const picked = F.selectiveLogSoftmax(even, indices([[0, 0]]));
    expectClose(picked, [[-Math.LN2, -Math.LN2]]);
    picked.sum().backward();
    expectClose(even.grad as Tensor, [[1, -1]]);
  });
});

test("selectiveLogSoftmax: second derivatives", () => {
  manualSeed(3);
  tidy(() => {
    const logits = randn([3, 4], { dtype: "float64" });
    const index = indices([
      [0, 0],
      [1, 2],
      [3, 0],
    ]);
    const squaredGradient =
      (pick: typeof plain) =>
      (x: Tensor): Tensor => {
        const leaf = x.requiresGrad ? x : x.detach().requiresGrad_();
        const [g] = grad([pick(leaf, index).exp().sum()], [leaf], undefined, { createGraph: true }) as [
          Tensor,
        ];
        return g.pow(2).sum();
      };
    const ours = squaredGradient((x, i) => F.selectiveLogSoftmax(x, i, 2));
    checkGradientOf(ours, logits);
    expectClose(ours(logits), squaredGradient(plain)(logits), { rtol: 1e-12 });
  });
});

/** {@link checkGradient} for a function that needs a graph inside, which it runs without one. */
function checkGradientOf(fn: (x: Tensor) => Tensor, input: Tensor): void {
  const leaf = input.detach().requiresGrad_();
  const [analytic] = grad([fn(leaf)], [leaf]) as [Tensor];
  const step = 1e-6;
  const numeric = Array.from({ length: input.numel }, (_, i) => {
    const [above, below] = [step, -step].map((by) => {
      const moved = input.clone();
      moved.flatten().narrow(0, i, 1).add_(by);
      return fn(moved).item();
    }) as [number, number];
    return (above - below) / (2 * step);
  });
  expectClose(analytic.reshape(-1), numeric, { rtol: 1e-6, atol: 1e-8, where: "second derivative" });
}

test("selectiveLogSoftmax: narrow logits give float32 results and gradients in their own dtype", () => {
  manualSeed(4);
  tidy(() => {
    for (const dtype of ["bfloat16", "float16", "float32"] as const) {
      const logits = randn([9, 33]).mul(3).to({ dtype }).requiresGrad_();
      const index = randint(0, 33, [9, 2]);
      const got = F.selectiveLogSoftmax(logits, index, 4);
      const wide = logits.detach().double().requiresGrad_();
      const wanted = plain(wide, index);
      assert.equal(got.dtype, "float32");
      expectClose(got.double(), wanted, { rtol: 1e-6, atol: 1e-6, where: dtype });
      const weights = randn([9, 2]);
      const [g] = grad([got], [logits], [weights]) as [Tensor];
      const [w] = grad([wanted], [wide], [weights.double()]) as [Tensor];
      assert.equal(g.dtype, dtype);
      const step = { bfloat16: 2 ** -8, float16: 2 ** -11, float32: 1e-6 }[dtype];
      expectClose(g.double(), w, { rtol: step, atol: 1e-6, where: `${dtype}, gradient` });
    }
  });
});

test("selectiveLogSoftmax: large logits, -Infinity and logits that are no block of memory", () => {
  tidy(() => {
    const logits = tensor([
      [1e4, 0, -Infinity],
      [-1e4, -1e4, -Infinity],
    ]).requiresGrad_();
    const got = F.selectiveLogSoftmax(
      logits,
      indices([
        [0, 2],
        [1, 1],
      ]),
    );
    expectClose(got, [
      [0, -Infinity],
      [-Math.LN2, -Math.LN2],
    ]);
    got.select(1, 0).sum().backward();
    expectClose(logits.grad as Tensor, [
      [0, 0, 0],
      [-0.5, 0.5, 0],
    ]);
    const turned = randn([5, 7], { requiresGrad: true });
    const index = randint(0, 5, [7]);
    const a = F.selectiveLogSoftmax(turned.transpose(0, 1), index, 3);
    expectClose(a, plain(turned.transpose(0, 1), index), { rtol: 1e-6, atol: 1e-6 });
    const [g] = grad([a.pow(2).sum()], [turned]) as [Tensor];
    const [w] = grad([plain(turned.transpose(0, 1), index).pow(2).sum()], [turned]) as [Tensor];
    expectClose(g, w, { rtol: 1e-5, atol: 1e-6 });
  });
});

test("selectiveLogSoftmax: needs one array of the logits' size, for their gradient", () => {
  noLeak(() =>
    tidy(() => {
      const logits = rand([4096, 256], { requiresGrad: true });
      const size = 4096 * 256 * 4;
      const index = randint(0, 256, [4096]);
      const before = memory({ resetPeak: true }).bytes;
      const picked = F.selectiveLogSoftmax(logits, index);
      assert.ok(memory().peakBytes - before < 0.2 * size, "forward");
      const loss = picked.sum();
      loss.backward();
      assert.ok(memory().peakBytes - before < 1.3 * size, "backward");
    }),
  );
});

test("selectiveLogSoftmax: an index of another shape or out of range is refused", () => {
  tidy(() => {
    const logits = zeros([2, 3, 5]);
    const refused: [number[], string][] = [
      [[2], "int64[2]"],
      [[3, 3], "int64[3, 3]"],
      [[2, 2, 4], "int64[2, 2, 4]"],
      [[2, 3, 1, 1], "int64[2, 3, 1, 1]"],
    ];
    for (const [shape, shown] of refused) {
      assert.throws(() => F.selectiveLogSoftmax(logits, zeros(shape, { dtype: "int64" })), {
        name: "RangeError",
        message: `selectiveLogSoftmax: expected index [2, 3] or [2, 3, K], got Tensor ${shown} cpu.`,
      });
    }
    const outside = zeros([2, 3], { dtype: "int64" }).fill_(5);
    assert.throws(
      () => F.selectiveLogSoftmax(logits, outside),
      /index 5 is out of bounds for dimension 1 with size 5/,
    );
    assert.throws(
      () => F.selectiveLogSoftmax(logits, zeros([2, 3], { dtype: "float32" })),
      /gather\(\): Expected dtype int32\/int64 for index/,
    );
  });
});

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
