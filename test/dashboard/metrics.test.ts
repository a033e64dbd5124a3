import assert from "node:assert/strict";
import { test } from "node:test";

import { chartGroups } from "../../src/dashboard/metrics.js";

const drawn = (...names: string[]): Record<string, string[]> =>
  Object.fromEntries(
    chartGroups(names).map(({ title, charts }) => [
      title,
      charts.map((chart) => chart.lines.map(({ metric }) => metric).join("+")),
    ]),
  );

test("known metrics share charts; a spread becomes a band", () => {
  const [reward] = chartGroups([
    "reward/mean",
    "reward/std",
    "reward/min",
    "reward/max",
    "reward/vq_ceiling",
  ]);
  assert.deepEqual(
    reward?.charts.map(({ lines }) => lines.map(({ metric, spread }) => [metric, spread])),
    [
      [
        ["reward/mean", "reward/std"],
        ["reward/vq_ceiling", undefined],
      ],
    ],
  );
});

test("what the terms add to the reward is on one chart", () => {
  const { Reward, ...others } = drawn(
    "reward/mean",
    "reward/l2/weighted",
    "reward/lpips/weighted",
    "reward/l2/mean",
  );
  assert.deepEqual(Reward, ["reward/mean", "reward/l2/weighted+reward/lpips/weighted"]);
  assert.deepEqual(others, { "Terms of the reward, in their own units": ["reward/l2/mean"] });
});

test("unknown metrics get charts by their prefix, and none is left out", () => {
  assert.deepEqual(
    drawn("odd/a", "odd/b/mean", "odd/b/std", "odd/b/min", "odd/b/max", "alone", "optim/lr", "optim/new"),
    {
      Optimizer: ["optim/lr"],
      odd: ["odd/a", "odd/b/mean"],
      Other: ["alone"],
      optim: ["optim/new"],
    },
  );
});

test("a run that learns from examples: its loss beside the held-out one, and all that is evaluated", () => {
  assert.deepEqual(drawn("train/loss", "eval/loss", "eval/accuracy", "time/data", "perf/step_s"), {
    Learning: ["train/loss+eval/loss"],
    "Held-out images": ["eval/loss", "eval/accuracy"],
    "Time and memory": ["perf/step_s"],
  });
});

test("phases of a step are stacked and not drawn one by one", () => {
  const groups = chartGroups(["time/data", "time/new_phase"]);
  assert.deepEqual(groups, [
    { title: "Time and memory", charts: [], phases: ["time/data", "time/new_phase"] },
  ]);
});
