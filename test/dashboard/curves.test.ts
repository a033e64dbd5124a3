import assert from "node:assert/strict";
import { test } from "node:test";
import {
  bandOf,
  dotsOf,
  isStill,
  lineChart,
  pathOf,
  sparkPath,
  stackedChart,
} from "../../src/dashboard/curves.js";
import { axisOf } from "../../src/dashboard/scale.js";

const x = axisOf([0, 2], { margin: 0 });
const y = axisOf([0, 10], { margin: 0 });

test("a known series lies where it should: 1000 wide, 400 high, 0 at the bottom", () => {
  assert.equal(pathOf([0, 1, 2], [0, 5, 10], x, y), "M0 400L500 200L1000 0");
  assert.equal(dotsOf([0, 2], [2.5, 10], x, y), "M0 300h0M1000 0h0");
  assert.equal(bandOf([0, 2], [1, 4], [3, 6], x, y), "M0 280L1000 160L1000 240L0 360Z");
});

test("a line breaks where a value is no number", () => {
  assert.equal(pathOf([0, 0.5, 1, 2], [0, Number.NaN, 5, 10], x, y), "M0 400M500 200L1000 0");
  assert.equal(dotsOf([0, 1], [Number.NaN, 0], x, y), "M500 400h0");
  assert.equal(pathOf([0], [Infinity], x, y), "");
});

test("on a logarithmic axis a value of 0 has no place, and a band ends at the axis", () => {
  const log = axisOf([0.01, 1], { mayBeLog: true, margin: 0 });
  assert.equal(pathOf([0, 1, 2], [0, 0.1, 1], x, log), "M500 200L1000 0");
  assert.equal(bandOf([0, 2], [-1, 0.1], [0.1, 1], x, log), "M0 200L1000 0L1000 200L0 400Z");
});

test("a chart has its line, legend with the last value, reference, ticks, text and numbers", () => {
  const { markup } = lineChart({
    title: "Reward",
    about: "Good: rises.",
    lines: [
      { label: "a <b>", metric: "reward/mean", color: 1, series: { steps: [0, 1, 2], values: [0, 5, 10] } },
    ],
    references: [{ label: "floor", value: 5 }],
    lastStep: 2,
  });
  // Room of a twentieth above and below: 0 lies 0.5 of 11 above the foot.
  assert.match(markup, /<g class="c1"><path class="line" d="M0 381\.8L500 200L1000 18\.2"\/><\/g>/);
  assert.match(markup, /<path class="reference grey" d="M0 200L1000 200"\/>/);
  assert.match(markup, /<li><i class="key c1"><\/i>a &lt;b&gt; <b>10<\/b><\/li>/);
  assert.match(markup, /<span style="left:50%">1<\/span>/);
  assert.match(markup, /<span style="top:50%">5<\/span>/);
  assert.match(markup, /aria-label="Reward: a &lt;b&gt; 0 at step 0, 10 at step 2"/);
  const [, data] = /<script type="application\/json">(.*)<\/script>/.exec(markup) ?? [];
  assert.deepEqual(JSON.parse(data as string), {
    x: [0, 2],
    unit: "",
    lines: [{ label: "a <b>", color: 1, steps: [0, 1, 2], values: [0, 5, 10] }],
  });
  assert.ok(!(data as string).includes("<"));
});

test("changes on the way are lines up with labels; those of one step share a line", () => {
  const series = { steps: [0, 4], values: [0, 5] };
  const changes = [
    { step: 1, label: "kl.coef = 0.5" },
    { step: 1, label: "optimizer.lr = 1" },
    { step: 2, label: null },
    { step: 3, label: "kl.coef = 0" },
    { step: 9, label: "after the last step" },
  ];
  const lines = [{ label: "a", metric: "a", color: 0, series }];
  const { markup } = lineChart({ title: "A", about: "", lines, changes, lastStep: 4 });
  assert.match(markup, /<path class="change" d="M250 0v400M750 0v400"\/>/);
  const labels = [...markup.matchAll(/<span class="at grey (\w+)" style="left:([\d.]+)%[^>]*>([^<]*)</g)];
  assert.deepEqual(
    labels.map(([, ...parts]) => parts),
    [
      ["right", "25", "kl.coef = 0.5, optimizer.lr = 1"],
      ["left", "75", "kl.coef = 0"],
    ],
  );
});

test("a long line is drawn with as many points as it may have", () => {
  const steps = Array.from({ length: 1000 }, (_, i) => i);
  const { markup } = lineChart({
    title: "",
    about: "",
    lines: [{ label: "", metric: "", color: 0, series: { steps, values: steps } }],
    lastStep: 999,
    points: 100,
  });
  assert.equal(/<path class="line" d="([^"]*)"/.exec(markup)?.[1]?.split("L").length, 100);
});

test("parts are stacked, with their shares of the whole; a phase that a step lacks took no time", () => {
  const { markup } = stackedChart({ title: "Time", about: "", unit: "seconds" }, [
    { label: "one", series: { steps: [1, 2], values: [1, 1] } },
    { label: "two", series: { steps: [2], values: [2] } },
  ]);
  // Two bars from 0.5 to 2.5; the height of the axis is 3.15, a twentieth above the tallest.
  assert.match(markup, /<path class="bar c0" d="M0 400V273H500V400ZM500 400V273H1000V400Z"\/>/);
  assert.match(markup, /<path class="bar c1" d="M500 273V19H1000V273Z"\/>/);
  assert.match(markup, /one <b>50 %<\/b>.*two <b>50 %<\/b>/s);
});

test("a small line of one value, and of none", () => {
  assert.equal(sparkPath([0, 1]), "M0 366.7L1000 33.3");
  assert.equal(sparkPath([3]), "M0 200");
  assert.equal(sparkPath([]), "");
});

test("no curve is drawn of rounding: what float32 sums differ by, and differences of log-probabilities", () => {
  const series = (...values: number[]) => ({ steps: values.map((_, i) => i), values });
  assert.ok(isStill("policy/ratio_mean", series(1, 1 + 1e-6, 1 - 1e-6)));
  assert.ok(isStill("sampling/logp_diff_max", series(9e-7, 2e-6, 1.2e-6)));
  assert.ok(isStill("kl/approx", series(8e-13, 7e-13)));
  assert.ok(isStill("loss/policy", series(-3e-9, 4e-8)));
  assert.ok(isStill("eval/reward/mean", series(-2.0188, -2.0188 * (1 + 1e-7))));
  assert.ok(isStill("a", series(1)));
  // Small and real: a learning rate of VA-pi, a divergence after a step of it.
  assert.ok(!isStill("optim/lr", series(1e-7, 1e-6)));
  assert.ok(!isStill("kl/ref_k3", series(0, 3e-6)));
  assert.ok(!isStill("eval/reward/mean", series(-2.02, -2.019)));
});
