/** Averages of weights, against numbers worked by hand. */
import assert from "node:assert/strict";
import { test } from "node:test";

import { averageWeights } from "../../src/nn/index.js";
import { type Tensor, tensor, tidy } from "../../src/torch/index.js";

const of = (w: number[], b: number[]): Record<string, Tensor> => ({ w: tensor(w), b: tensor(b) });
const numbers = (weights: Record<string, Tensor>): Record<string, number[]> =>
  Object.fromEntries(Object.entries(weights).map(([name, each]) => [name, [...each.toArray()] as number[]]));

test("the mean of models, and points on the line from their start through it", () => {
  tidy(() => {
    const models = [of([1, 2], [3]), of([3, 6], [5])];
    assert.deepEqual(numbers(averageWeights(models).weights), { w: [2, 4], b: [4] });
    const base = of([1, 1], [2]);
    assert.deepEqual(numbers(averageWeights(models, { base }).weights), { w: [2, 4], b: [4] });
    assert.deepEqual(numbers(averageWeights(models, { base, scale: 1.5 }).weights), {
      w: [2.5, 5.5],
      b: [5],
    });
    assert.deepEqual(numbers(averageWeights(models, { base, scale: 0 }).weights), { w: [1, 1], b: [2] });
    assert.deepEqual(numbers(averageWeights(models.slice(0, 1), { base, scale: 3 }).weights), {
      w: [1, 4],
      b: [5],
    });
  });
});

test("the agreement is the mean cosine of the changes of two models over all weights", () => {
  tidy(() => {
    const base = of([1, 1], [2]);
    // Changes: (0, 1, 1), (2, 5, 3) and (0, -1, -1).
    const models = [of([1, 2], [3]), of([3, 6], [5]), of([1, 0], [1])];
    const cosine = 8 / Math.sqrt(2 * 38);
    const { agreement } = averageWeights(models.slice(0, 2), { base });
    assert.ok(Math.abs((agreement as number) - cosine) < 1e-12, `${agreement}`);
    const three = averageWeights(models, { base }).agreement as number;
    assert.ok(Math.abs(three - (cosine - cosine - 1) / 3) < 1e-12, `${three}`);
    assert.equal(averageWeights(models).agreement, null);
    assert.equal(averageWeights(models.slice(0, 1), { base }).agreement, null);
    assert.equal(averageWeights([base, base], { base }).agreement, null); // no change, no direction
  });
});

test("dtypes are kept, and sums are float64", () => {
  tidy(() => {
    const large = { w: tensor([16777216], { dtype: "float32" }) };
    const small = { w: tensor([1], { dtype: "float32" }) };
    // In float32, 2^24 + 1 + 1 would be 2^24.
    assert.deepEqual(numbers(averageWeights([large, small, small]).weights), {
      w: [Math.fround(16777218 / 3)],
    });
    const half = { w: tensor([1, 2], { dtype: "bfloat16" }) };
    assert.equal(averageWeights([half, half]).weights.w?.dtype, "bfloat16");
  });
});

test("refused: no models, other shapes, other names, values that are not finite, a scale without a base", () => {
  tidy(() => {
    const model = of([1, 2], [3]);
    const refused: [() => unknown, RegExp][] = [
      [() => averageWeights([]), /^averageWeights: expected at least one model, got 0\.$/],
      [
        () => averageWeights([model, of([1], [3])]),
        /^averageWeights: expected the 2 tensors of the first model, got w \[1\] instead of \[2\]\.$/,
      ],
      [
        () => averageWeights([model, { w: tensor([1, 2]) }]),
        /^averageWeights: expected the 2 tensors of the first model, got missing b\.$/,
      ],
      [
        () => averageWeights([model], { base: { ...model, c: tensor([1]) } }),
        /^averageWeights: expected the 2 tensors of the first model, got unknown c\.$/,
      ],
      [
        () => averageWeights([model, of([1, Number.NaN], [3])]),
        /^averageWeights: w: expected finite weights, /,
      ],
      [
        () => averageWeights([model], { base: of([1, 2], [Infinity]) }),
        /^averageWeights: b: expected finite weights, /,
      ],
      [
        () => averageWeights([model], { scale: 2 }),
        /^averageWeights: base: expected the weights that scale 2 starts from, got none\.$/,
      ],
      [
        () => averageWeights([model], { scale: Number.NaN }),
        /^averageWeights: scale: expected a finite number, got NaN\.$/,
      ],
      [
        () => averageWeights([model], { alpha: 2 } as object),
        /^averageWeights: expected a known option, got alpha\. It takes base, scale\.$/,
      ],
    ];
    for (const [call, message] of refused) assert.throws(call, { name: "RangeError", message });
  });
});
