import assert from "node:assert/strict";
import { test } from "node:test";

import { changeText, outcomesOf, resultSection, verdictOf } from "../../src/dashboard/results.js";
import { readRun } from "../../src/dashboard/run.js";
import { newFolder, writeRun } from "./run_files.js";

test("what was evaluated: first, best and last, the reward first; a change is of the first's size", (t) => {
  const evaluated = (l2: number, reward: number): Record<string, number> => ({
    "eval/l2/mean": l2,
    "eval/l2/std": 0.01,
    "eval/l2/min": 0,
    "eval/l2/max": 1,
    "eval/reward/mean": reward,
    "eval/hacking_alarm": 0,
  });
  const folder = writeRun(newFolder(t), {
    metrics: [
      { step: 0, ...evaluated(0.2, -0.4) },
      { step: 5, "reward/vq_ceiling": -0.1, ...evaluated(0.05, -0.1) },
      { step: 10, "reward/vq_ceiling": -0.3, ...evaluated(0.1, -0.3) },
    ],
    files: { "checkpoints/best.json": { name: "step_000005", step: 5, metric: "eval/l2/mean", value: 0.05 } },
  });
  const run = readRun(folder);
  const outcomes = outcomesOf(run).map(({ series: _, ...rest }) => rest);
  assert.deepEqual(outcomes, [
    {
      name: "reward",
      spread: Number.NaN,
      first: -0.4,
      last: -0.3,
      best: -0.1,
      change: (-0.3 + 0.4) / 0.4,
      verdict: "better",
    },
    { name: "l2", spread: 0.01, first: 0.2, last: 0.1, best: 0.05, change: -0.5, verdict: "better" },
  ]);
  const { markup } = resultSection(run);
  // Halfway from -0.4 to the ceiling's mean, -0.2.
  assert.match(
    markup,
    /The held-out reward rose: -0\.4000 before training, <b>-0\.3000<\/b> at step 10\. That is 50 % of the way/,
  );
  assert.match(
    markup,
    /<td>0\.2000<\/td><td>0\.0500<\/td><td>0\.1000<\/td>.*<td>-0\.1000<\/td><td>-50\.0 %<\/td>/,
  );
});

test("better and worse follow the metric's direction, and only where the change is worth the word", () => {
  assert.equal(verdictOf("l2", 0.2, 0.1, Number.NaN), "better");
  assert.equal(verdictOf("l2", 0.1, 0.2, Number.NaN), "worse");
  assert.equal(verdictOf("psnr", 18, 19, 2), "better");
  assert.equal(verdictOf("psnr", 18, 18.1, 2), "");
  assert.equal(verdictOf("l2", 0.1, 0.1004, Number.NaN), "");
  assert.equal(verdictOf("diversity", 0.2, 0.1, Number.NaN), "");
  assert.equal(verdictOf("l2", Number.NaN, 0.1, Number.NaN), "");
  assert.equal(verdictOf("l2", 0, 0, 0), "");
});

test("percents where they make sense", () => {
  assert.equal(changeText({ name: "l2", change: 0.125 }), "+12.5 %");
  assert.equal(changeText({ name: "l2", change: -20 }), "-2000 %");
  assert.equal(changeText({ name: "psnr", change: 0.1 }), "");
  assert.equal(changeText({ name: "accuracy", change: 0.1 }), "");
});

test("a run without an evaluation, and with one", (t) => {
  const none = readRun(writeRun(newFolder(t), { metrics: [{ step: 1, a: 1 }] }));
  assert.match(resultSection(none).markup, /Nothing was evaluated on held-out images/);
  const one = readRun(writeRun(newFolder(t), { metrics: [{ step: 0, "eval/accuracy": 0.25 }] }));
  assert.match(
    resultSection(one).markup,
    /One evaluation.*<th scope="row">Accuracy<\/th><td>25\.00 %<\/td>/s,
  );
});

test("a metric of a network that the reward used says so", (t) => {
  const metrics = [
    { step: 0, "eval/perceptual/mean": 0.5, "eval/perceptual_held_out/mean": 0.5 },
    { step: 9, "eval/perceptual/mean": 0.4, "eval/perceptual_held_out/mean": 0.4 },
  ];
  const marked = (weight: number): boolean => {
    const reward = { l2: { weight: 1 }, perceptual: { weight, path: "c.safetensors" } };
    const { markup } = resultSection(readRun(writeRun(newFolder(t), { config: { reward }, metrics })));
    assert.doesNotMatch(markup, /unrewarded network[^<]*\[rewarded\]/);
    return /Perceptual distance \[rewarded\]/.test(markup);
  };
  assert.equal(marked(3), true);
  assert.equal(marked(0), false);
});
