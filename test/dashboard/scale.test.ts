import assert from "node:assert/strict";
import { test } from "node:test";

import {
  axisOf,
  finiteMean,
  linearTicks,
  logTicks,
  movingMean,
  numberText,
  roundStep,
  rowTexts,
  smoothingOf,
  thinned,
  tickText,
} from "../../src/dashboard/scale.js";

test("steps are 1, 2 or 5 times a power of ten", () => {
  assert.deepEqual(
    [
      [10, 5],
      [9, 5],
      [11, 5],
      [0.3, 5],
      [1, 1],
      [7000, 4],
    ].map(([span, count]) => roundStep(span as number, count as number)),
    [2, 2, 5, 0.1, 1, 2000],
  );
});

test("ticks are exact multiples inside the range, its ends among them", () => {
  assert.deepEqual(linearTicks(0, 10), [0, 2, 4, 6, 8, 10]);
  assert.deepEqual(linearTicks(-0.13, 0.21), [-0.1, 0, 0.1, 0.2]);
  assert.deepEqual(linearTicks(0.1, 0.3, 2), [0.1, 0.2, 0.3]);
  assert.deepEqual(linearTicks(2.5, 1000), [200, 400, 600, 800, 1000]);
});

test("ticks of a logarithmic axis are powers of ten, with 2 and 5 times those where there are few", () => {
  assert.deepEqual(logTicks(0.0008, 20), [0.001, 0.01, 0.1, 1, 10]);
  assert.deepEqual(logTicks(1.5, 80), [2, 5, 10, 20, 50]);
  assert.deepEqual(logTicks(1e-9, 10), [1e-8, 1e-6, 1e-4, 0.01, 1]);
});

test("an axis places values, keeps 0 where asked, and is logarithmic only where all values allow it", () => {
  const plain = axisOf([0, 10], { margin: 0 });
  assert.deepEqual([plain.place(0), plain.place(2.5), plain.place(10)], [0, 0.25, 1]);
  const zero = axisOf([2, 4], { hasZero: true, margin: 0.5 });
  assert.deepEqual([zero.low, zero.high], [0, 6]);
  const log = axisOf([0.01, 1], { mayBeLog: true, margin: 0 });
  assert.equal(log.isLog, true);
  assert.ok(Math.abs(log.place(0.1) - 0.5) < 1e-12);
  assert.ok(Number.isNaN(log.place(0)));
  assert.equal(axisOf([0, 1e-3, 1], { mayBeLog: true }).isLog, false);
  assert.equal(axisOf([0.1, 1], { mayBeLog: true }).isLog, false);
});

test("an axis of one value, of none, and of values that are no numbers", () => {
  const one = axisOf([3], { margin: 0 });
  assert.deepEqual([one.low, one.high, one.place(3)], [2.7, 3.3, 0.5]);
  assert.deepEqual([axisOf([0], { margin: 0 }).low, axisOf([0], { margin: 0 }).high], [-1, 1]);
  const none = axisOf([Number.NaN, Infinity], { margin: 0 });
  assert.deepEqual([none.low, none.high], [0, 1]);
  assert.deepEqual(axisOf([0, 1], { margin: 0, isWhole: true }).ticks, [0, 1]);
});

test("ticks as text have the decimals of their step", () => {
  assert.deepEqual(
    [
      [0.5, 0.1],
      [0.5, 0.05],
      [-2, 1],
      [0, 1e-9],
      [12000, 2000],
      [12500, 500],
      [3e-7, 1e-7],
      [2e6, 1e6],
      [1e-5, 1e-5],
    ].map(([tick, step]) => tickText(tick as number, step as number)),
    ["0.5", "0.50", "-2", "0", "12k", "12.5k", "3e-7", "2e6", "1e-5"],
  );
});

test("numbers as text", () => {
  assert.equal(numberText(Number.NaN), "n/a");
  assert.equal(numberText(0.123456, "%"), "12.3 %");
  assert.deepEqual(rowTexts([-0.14163, -0.0948, 0.04683]), ["-0.1416", "-0.0948", "0.0468"]);
  assert.deepEqual(rowTexts([0.5, 0.25], "%"), ["50.00 %", "25.00 %"]);
  assert.deepEqual(rowTexts([1e-12, Number.NaN]), ["1.0e-12", "n/a"]);
});

test("a moving mean is over those that there are, and leaves NaN out", () => {
  assert.deepEqual(movingMean([1, 2, 3, 4, 5], 3), [1.5, 2, 3, 4, 4.5]);
  assert.deepEqual(movingMean([1, Number.NaN, 4], 3), [1, 2.5, 4]);
  // One huge value does not spoil those after it.
  assert.deepEqual(movingMean([1e30, 1, 1, 1, 1], 3).slice(2), [1, 1, 1]);
  assert.ok(Number.isNaN(finiteMean([Number.NaN])));
  assert.deepEqual([10, 29, 30, 60, 1000].map(smoothingOf), [1, 1, 3, 3, 51]);
});

test("a long series is cut down to means of neighbours", () => {
  const steps = [1, 2, 3, 4, 5];
  assert.deepEqual(thinned({ steps, values: [2, 4, 6, Number.NaN, 9] }, 3), {
    steps: [1.5, 3.5, 5],
    values: [3, 6, 9],
    size: 2,
  });
  assert.equal(thinned({ steps, values: steps }, 5).size, 1);
});
