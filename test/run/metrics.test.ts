/** Metrics over several iterations against statistics of everything at once. */
import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";

import { MetricWindow, ruleOf, spreadOf } from "../../src/run/metrics.js";
import { decodeData, encodeData } from "../../src/run/plain_data.js";

test("spreads, worked by hand", () => {
  assert.deepEqual(spreadOf([1, 2, 3, 6]), { count: 4, mean: 3, std: Math.sqrt(3.5), min: 1, max: 6 });
  assert.deepEqual(spreadOf([Number.NaN, -2]), { count: 1, mean: -2, std: 0, min: -2, max: -2 });
  const { count, ...rest } = spreadOf([Number.NaN]);
  assert.equal(count, 0);
  assert.deepEqual(rest, { mean: Number.NaN, std: Number.NaN, min: Number.NaN, max: Number.NaN });
  // Differences of 1e-5 at -0.25: one pass in float32 would be far off.
  const { std } = spreadOf([-0.25, -0.24999, -0.24998]);
  assert.ok(Math.abs(std - 1e-5 * Math.sqrt(2 / 3)) < 1e-15);
});

test("a window's spread is that of all its numbers, not a mean of spreads", () => {
  const list = fc.array(fc.double({ min: -1e3, max: 1e3, noNaN: true }), { maxLength: 8 });
  fc.assert(
    fc.property(fc.array(list, { minLength: 1, maxLength: 5 }), (parts) => {
      const window = new MetricWindow();
      for (const part of parts) window.addSpread("reward", spreadOf(part));
      const wanted = spreadOf(parts.flat());
      const values = window.values();
      for (const name of ["mean", "std", "min", "max"] as const) {
        const [got, want] = [values[`reward/${name}`] as number, wanted[name]];
        assert.ok(
          Object.is(got, want) || Math.abs(got - want) < 1e-9 * (1 + Math.abs(want)),
          `${name}: ${got}, not ${want}`,
        );
      }
    }),
    { seed: 7 },
  );
});

test("means are weighted by what they count", () => {
  const window = new MetricWindow();
  window.add(
    {
      "loss/total": 1,
      "policy/ratio_max": 3,
      "policy/ratio_min": 0.9,
      "optim/steps": 2,
      "optim/lr": 0.1,
      "progress/step": 1,
    },
    10,
  );
  window.add(
    {
      "loss/total": 4,
      "policy/ratio_max": 2,
      "policy/ratio_min": 0.8,
      "optim/steps": 3,
      "optim/lr": 0.2,
      "progress/step": 2,
    },
    30,
  );
  assert.deepEqual(window.values(), {
    "loss/total": 3.25, // uneven parts: 2.5 would be the naive mean
    "policy/ratio_max": 3,
    "policy/ratio_min": 0.8,
    "optim/steps": 5,
    "optim/lr": 0.2,
    "progress/step": 2,
  });
});

test("rules by name", () => {
  const names = [
    "advantage/max",
    "advantage/abs_max",
    "reward/min",
    "optim/skipped_steps",
    "optim/lr",
    "progress/epoch",
    "kl/approx",
    "eval/max_pool",
    "optim/skipped_total",
  ];
  assert.deepEqual(names.map(ruleOf), ["max", "max", "min", "sum", "last", "last", "mean", "mean", "last"]);
});

test("NaN is left out, and told where nothing else is there", () => {
  const window = new MetricWindow();
  window.add({ a: Number.NaN, b: Number.NaN, "c/max": 1 });
  window.add({ a: 2, b: Number.NaN, "c/max": Number.NaN });
  window.add({ a: 4 }, 0);
  assert.deepEqual(window.values(), { a: 2, b: Number.NaN, "c/max": 1 });
});

test("a window goes through a checkpoint", () => {
  const window = new MetricWindow();
  window.add({ a: 1, "b/max": 2 }, 3);
  window.addSpread("reward", spreadOf([1, 5]));
  const copy = new MetricWindow();
  copy.load(decodeData(encodeData(window.state())));
  for (const each of [window, copy]) {
    each.add({ a: 5, "b/max": 1 });
    each.addSpread("reward", spreadOf([0]));
  }
  assert.deepEqual(copy.values(), window.values());
  assert.equal(copy.values().a, 2);
  copy.reset();
  assert.ok(copy.isEmpty);
  assert.deepEqual(copy.values(), {});
});

test("what is no metric is refused", () => {
  const window = new MetricWindow();
  assert.throws(() => window.add({ a: "1" as never }), {
    message: "MetricWindow.add: a: expected a number, got 1. Read tensors with item().",
  });
  assert.throws(() => window.add({ a: 1 }, -1), {
    message: "MetricWindow.add: expected a finite count of at least 0, got -1.",
  });
  window.addSpread("x", spreadOf([1]));
  assert.throws(() => window.add({ x: 1 }), {
    message: "MetricWindow: x: expected a spread, as before, got mean.",
  });
});
