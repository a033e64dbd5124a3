import assert from "node:assert/strict";
import { test } from "node:test";
import { tensor } from "../../src/torch/index.js";
import { expectClose } from "./close.js";

test("equal numbers in every form pass", () => {
  expectClose(
    tensor([
      [1, 2],
      [3, 4],
    ]),
    [
      [1, 2],
      [3, 4],
    ],
  );
  expectClose(tensor([1, 2]), new Float32Array([1, 2]));
  expectClose(tensor(3), 3);
  expectClose([], []);
  expectClose([Infinity, -Infinity], [Infinity, -Infinity]);
  expectClose(tensor([2n ** 62n]), tensor([2n ** 62n]), { rtol: 0, atol: 0 });
});

test("the tolerance is atol + rtol * |wanted|", () => {
  expectClose(101, 100, { rtol: 1e-2, atol: 0 });
  expectClose(100.5, 100, { rtol: 0, atol: 0.5 });
  expectClose(-101.5, -100, { rtol: 1e-2, atol: 0.5 });
  assert.throws(() => expectClose(101.01, 100, { rtol: 1e-2, atol: 0 }));
  assert.throws(() => expectClose(100, 101.02, { rtol: 0, atol: 1 }));
});

test("the message has the largest error, its index, both values and the count", () => {
  assert.throws(
    () =>
      expectClose(
        tensor([
          [1, 2, 3],
          [4, 5, 6],
        ]),
        [
          [1, 2.25, 3],
          [4, 5, 4],
        ],
        { where: "logits" },
      ),
    {
      name: "AssertionError",
      message:
        "logits: expected 6 elements within rtol 0.00001 and atol 1e-8, got 2 that differ. " +
        "Largest error 2.000 at [1, 2]: 6, wanted 4.",
    },
  );
});

test("shapes and dtypes must be the same", () => {
  assert.throws(() => expectClose(tensor([1, 2]), [[1, 2]]), {
    message: "expectClose: expected shape [1, 2], got [2].",
  });
  assert.throws(() => expectClose([1], 1), { message: "expectClose: expected shape [], got [1]." });
  assert.throws(() => expectClose(tensor([1]), tensor([1], { dtype: "float64" })), {
    message: "expectClose: expected dtype float64, got float32.",
  });
  assert.throws(() => expectClose([[1, 2], [3]], 1), {
    message: "expectClose: expected numbers in nested lists of shape [2, 2], got [3].",
  });
});

test("NaN and infinities equal nothing they should not", () => {
  const pairs = [
    [NaN, NaN],
    [NaN, 1],
    [1, NaN],
    [Infinity, 1],
    [1, Infinity],
    [-Infinity, Infinity],
  ] as const;
  for (const [a, b] of pairs) {
    assert.throws(
      () => expectClose(a, b, { rtol: 1e-2, atol: 1e6 }),
      /Largest error Infinity at \[\]/,
      `${a} and ${b}`,
    );
  }
});

test("int64 is compared beyond what a double holds", () => {
  assert.throws(
    () => expectClose(tensor([2n ** 62n + 1n]), tensor([2n ** 62n]), { rtol: 0, atol: 0 }),
    /1 that differ/,
  );
});

test("a tolerance that would pass wrong numbers is refused", () => {
  assert.throws(() => expectClose(1, 1, { rtol: 0.011 }), {
    name: "RangeError",
    message: "expectClose: expected rtol in [0, 1e-2], got 0.011.",
  });
  assert.throws(() => expectClose(1, 1, { rtol: NaN }), RangeError);
  assert.throws(() => expectClose(1, 1, { atol: Infinity }), RangeError);
});
