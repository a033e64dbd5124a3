import assert from "node:assert/strict";
import { test } from "node:test";

import { eventSection, noticesOf, rangesText } from "../../src/dashboard/events.js";
import { endOfRun, type Run, readRun } from "../../src/dashboard/run.js";
import { newFolder, type RunFiles, writeRun } from "./run_files.js";

type Context = Parameters<typeof newFolder>[0];

const runOf = (t: Context, files: RunFiles): Run => readRun(writeRun(newFolder(t), files));

const texts = (run: Run, level: string): string[] =>
  noticesOf(run)
    .filter((notice) => notice.level === level)
    .map(({ text }) => text);

test("steps are told as ranges, many of them shortened", () => {
  assert.equal(rangesText([1, 2, 3, 7, 9, 10]), "1-3, 7, 9-10");
  assert.equal(rangesText([]), "");
  const many = Array.from({ length: 20 }, (_, i) => 2 * i);
  assert.equal(rangesText(many), "0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, ... (20 in all)");
});

test("how a run ended", (t) => {
  const config = { train: { iters: 4 }, eval: { patience: 2 } };
  const metrics = (last: number): Record<string, unknown>[] => [{ step: 1 }, { step: last }];
  const saved = (step: number, since = 0): Record<string, unknown> => ({
    [`checkpoints/step_00000${step}/values.json`]: { progress: { evaluationsSinceBest: since } },
  });
  const end = (files: RunFiles): string => endOfRun(runOf(t, { config, ...files })).text;
  assert.equal(end({ metrics: metrics(4) }), "done");
  assert.equal(end({ metrics: metrics(3) }), "broken off before its first checkpoint");
  assert.equal(end({ metrics: metrics(3), files: saved(2) }), "broken off; its last checkpoint is of step 2");
  assert.equal(
    end({ metrics: metrics(3), files: saved(3) }),
    "interrupted, with a checkpoint of its last step",
  );
  assert.equal(end({ metrics: metrics(3), files: saved(3, 2) }), "stopped: the evaluation stopped improving");
  assert.equal(
    end({ metrics: [{ step: 3, "optim/skipped_total": 1000 }] }),
    "diverged: losses or gradients were not finite",
  );
  assert.equal(end({ metrics: [] }), "broken off before its first checkpoint");
});

test("alarms, updates left out, images that cannot be read, metrics without a number, lines cut short", (t) => {
  const run = runOf(t, {
    config: { train: { iters: 4 } },
    metrics: [
      { step: 1, "optim/skipped_total": 0, a: 1, b: 1, "data/unreadable": 0 },
      { step: 2, "optim/skipped_total": 1, a: null, b: null, "data/unreadable": 1 },
      { step: 3, "optim/skipped_total": 1, a: null, b: null, "eval/hacking_alarm": 0 },
      { step: 4, "optim/skipped_total": 2, "eval/hacking_alarm": 1, "data/unreadable": 2 },
      '{"step":5',
    ],
    files: { "dumps/step_000002.safetensors": "" },
  });
  assert.deepEqual(texts(run, "problem"), [
    "The reward rose while every metric outside it fell since the start, at step 4: look at the samples; update.auxCe or kl.coef may be too low.",
    "Updates were skipped because their loss or gradient was not finite, at step 2, 4. 1 of the batches are in dumps/.",
    "Images that could not be read: 2 (data/unreadable).",
    "Not a number at step 2-3: a, b.",
    "1 line of metrics.jsonl could not be read: the process was killed while it wrote, or the file was edited.",
  ]);
});

test("what looks odd: held-out metrics that got worse, diversity that fell, an entropy that fell apart", (t) => {
  const step = (n: number, l2: number, diversity: number, entropy: number): Record<string, number> => ({
    step: n,
    "eval/l2/mean": l2,
    "eval/l2/std": 0.1,
    "eval/ssim/mean": 0.5,
    "eval/diversity/mean": diversity,
    "policy/entropy": entropy,
    "advantage/frac_zero_std": 0.75,
  });
  const metrics = [step(1, 0.1, 0.2, 4), step(2, 0.2, 0.1, 1)];
  const run = runOf(t, { metrics, env: { commit: { id: "0123456789abcdef", isDirty: true } } });
  assert.deepEqual(texts(run, "note"), [
    "Held-out L2 is worse: 0.1000, then 0.2000.",
    "Held-out Diversity fell: 0.2000, then 0.1000.",
    "The entropy of the policy fell by half or more: 4, then 1.",
    "In 75 % of the groups all samples had the same reward, so the policy learnt nothing from them.",
    "The code differed from the commit: files had been changed.",
  ]);
});

test("images that could not be read are named, as the newest checkpoint has them", (t) => {
  const run = runOf(t, {
    config: { train: { iters: 1 } },
    metrics: [{ step: 1, "progress/unreadable": 2 }],
    files: {
      "checkpoints/step_000001/values.json": {
        progress: { passedOver: { 3: "a/ü 1.png: empty", 9: "b.webp: cut short." } },
      },
    },
  });
  assert.match(texts(run, "problem").join(), /: 2 \(.*a\/ü 1\.png: empty; b\.webp: cut short\.$/);
});

test("a tokenizer that leaves little to win is named, in numbers", (t) => {
  const notes = (ceiling: number): string =>
    texts(
      runOf(t, {
        config: { train: { iters: 1 } },
        metrics: [
          { step: 0, "eval/reward/mean": -2 },
          { step: 1, "reward/vq_ceiling": ceiling },
        ],
      }),
      "note",
    ).join();
  assert.match(notes(-1.8), /-1\.800.*-2\.000.*at most 10 %/);
  assert.doesNotMatch(notes(-0.3), /tokenizer/);
});

test("an evaluation that is older than the run is of other models", (t) => {
  const run = runOf(t, {
    metrics: [],
    env: { startedAt: "2999-01-01T00:00:00.000Z" },
    files: { "eval.json": { rows: [] } },
  });
  assert.ok(texts(run, "problem").includes("eval.json is older than the run: it is of other models."));
});

test("starts, the best evaluation and the end are told in order", (t) => {
  const run = runOf(t, {
    metrics: [{ step: 4, time: 1767225960 }],
    env: { startedAt: "2026-01-01T00:00:00.000Z", host: "<box>" },
    files: {
      "checkpoints/step_000004/values.json": {},
      "checkpoints/best.json": { name: "step_000002", step: 2, metric: "eval/reward/mean", value: -0.25 },
      "steer.jsonl":
        '{"step":3,"key":"kl.coef","from":0.1,"to":0.5}\n{"step":3,"refused":"steer.yaml:1:1: no"}\n{"step":4,"key":',
    },
  });
  assert.deepEqual(
    run.changes.map(({ label }) => label),
    ["kl.coef = 0.5", null],
  );
  const { markup } = eventSection(run);
  assert.match(
    markup,
    /step 3<\/span><span>kl\.coef: 0\.1 -&gt; 0\.5, by steer\.yaml\.<.*step 3<\/span><span>steer\.yaml was refused: steer\.yaml:1:1: no</s,
  );
  assert.match(
    markup,
    /step 0<\/span><span>Started 2026-01-01 00:00:00 UTC on &lt;box&gt;\..*step 2<\/span><span>Best eval\/reward\/mean: -0\.25 \(checkpoints\/step_000002\)\..*step 4<\/span><span>Ended\. It ran for 6m00s\./s,
  );
  assert.match(markup, /No update was skipped, no metric was without a number, no alarm was raised\./);
});
