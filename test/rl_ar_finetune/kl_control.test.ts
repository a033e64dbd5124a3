import assert from "node:assert/strict";
import { test } from "node:test";

import { adaptedCoef, runningMean } from "../../src/rl_ar_finetune/kl_control.js";

const options = { target: 0.02, horizon: 1000, sequences: 100 };

test("the weight follows the paper's rule, by hand", () => {
  // 10 % too much, over a tenth of the horizon: 1 %.
  assert.ok(Math.abs(adaptedCoef(0.5, 0.022, options) - 0.505) < 1e-12);
  assert.ok(Math.abs(adaptedCoef(0.5, 0.019, options) - 0.4975) < 1e-12);
  assert.equal(adaptedCoef(0.5, 0.02, options), 0.5);
  // Errors beyond a fifth count as a fifth.
  assert.ok(Math.abs(adaptedCoef(0.5, 2, options) - 0.51) < 1e-12);
  assert.ok(Math.abs(adaptedCoef(0.5, 0, options) - 0.49) < 1e-12);
});

test("the weight stays positive and finite, whatever the horizon and the divergence", () => {
  assert.equal(adaptedCoef(0.5, 0, { ...options, horizon: 1 }), 0.25);
  assert.equal(adaptedCoef(0.5, 9, { ...options, horizon: 1 }), 1);
  assert.equal(adaptedCoef(0.5, Number.NaN, options), 0.5);
  // Halved for as long as a run may last, and then doubled.
  let coef = 0.5;
  for (let i = 0; i < 5000; i++) coef = adaptedCoef(coef, 0, { ...options, horizon: 1 });
  assert.equal(coef, 1e-8);
  assert.equal(adaptedCoef(coef, 9, { ...options, horizon: 1 }), 2e-8);
});

test("steered, a divergence that falls with the weight ends at the target", () => {
  let coef = 1;
  for (let i = 0; i < 2000; i++) coef = adaptedCoef(coef, 0.001 / coef, options);
  assert.ok(Math.abs(coef - 0.05) < 1e-3, `${coef}`);
});

test("the running mean is nine parts old and one part new", () => {
  assert.equal(runningMean(null, 2), 2);
  assert.ok(Math.abs((runningMean(2, 12) as number) - 3) < 1e-12);
  assert.equal(runningMean(2, Number.NaN), 2);
  assert.equal(runningMean(null, Number.NaN), null);
});
