import assert from "node:assert/strict";
import { test } from "node:test";

import { latentCosine } from "../../src/metrics/index.js";
import { manualSeed, randn, tensor, zeros } from "../../src/torch/index.js";
import { expectClose } from "../support/close.js";
import { noLeak } from "../support/leak.js";
import { differences } from "./golden.js";

test("latentCosine is 0 along, 1 across and 2 against, whatever the lengths", () => {
  const images = tensor([3, 0, 0, 4, 1, 0, 0, 0]).reshape(2, 1, 2, 2);
  const samples = tensor([6, 0, 0, 8, 0, 5, 0, 0, -1, 0, 0, 0, 1, 1, 0, 0]).reshape(4, 1, 2, 2);
  expectClose(latentCosine(images, samples), [0, 1, 2, 1 - Math.SQRT1_2], { atol: 1e-7 });
});

test("latentCosine of a latent of zeros is 1", () => {
  expectClose(latentCosine(zeros([1, 4]), tensor([[1, 2, 3, 4]])), [1]);
});

test("latentCosine flattens, shares the image among its samples, and is float32 at least", () => {
  manualSeed(1);
  const [x, y] = [randn([2, 4, 3, 3]), randn([6, 4, 3, 3])];
  const plain = latentCosine(x.repeatInterleave(3, 0), y);
  assert.deepEqual(plain.shape, [6]);
  assert.ok(latentCosine(x, y).equal(plain));
  const [a, b] = [x.select(0, 1).flatten(), y.select(0, 4).flatten()];
  const cosine = a.mul(b).sum().item() / (a.norm().item() * b.norm().item());
  expectClose(plain.select(0, 4), 1 - cosine, { rtol: 1e-5 });
  assert.equal(latentCosine(x.bfloat16(), y.bfloat16()).dtype, "float32");
  assert.equal(latentCosine(x.double(), y.double()).dtype, "float64");
  noLeak(() => latentCosine(x, y).dispose());
});

test("gradients are those of finite differences", () => {
  manualSeed(2);
  const [x, y] = [randn([2, 5], { dtype: "float64" }), randn([4, 5], { dtype: "float64" })];
  for (const { analytic, numeric } of [
    differences((z) => latentCosine(x, z), y, 12),
    differences((z) => latentCosine(z, y), x, 10),
  ]) {
    expectClose(analytic, numeric, { rtol: 1e-6, atol: 1e-9 });
  }
});

test("latents that do not pair are refused", () => {
  const refused = (x: number[], y: number[], got: string, rest: string): void =>
    assert.throws(() => latentCosine(zeros(x), zeros(y)), {
      name: "RangeError",
      message: `latentCosine: expected latents [B, ...] and [B * G, ...], here [${rest}], got Tensor float32[${got}] cpu.`,
    });
  refused([2, 8, 4, 4], [3, 8, 4, 4], "3, 8, 4, 4", "2 * G, 8, 4, 4");
  refused([2, 8, 4, 4], [2, 8, 4, 5], "2, 8, 4, 5", "2 * G, 8, 4, 4");
  refused([2, 8], [0, 8], "0, 8", "2 * G, 8");
  refused([2], [4], "4", "2 * G");
});
