import assert from "node:assert/strict";
import { test } from "node:test";
import { comparabilityOf, comparison, meanAndSpread, seedGroups } from "../../src/dashboard/results.js";
import { type Run, readRun } from "../../src/dashboard/run.js";
import { newFolder, writeRun } from "./run_files.js";

const runOf = (t: Parameters<typeof newFolder>[0], seed: number, last: number, lr = 0.5): Run => ({
  ...readRun(
    writeRun(newFolder(t), {
      config: { seed, optimizer: { lr }, run: { dir: `runs/${seed}` } },
      metrics: [
        { step: 0, "eval/l2/mean": 0.5 },
        { step: 9, "eval/l2/mean": last },
      ],
    }),
  ),
  name: `run${seed}`,
});

test("mean and standard deviation over n - 1; NaN is left out", () => {
  assert.deepEqual(meanAndSpread([1, 2, 3, Number.NaN]), { mean: 2, std: 1, count: 3 });
  assert.ok(Number.isNaN(meanAndSpread([1]).std));
});

test("runs that differ by their seed and folder only are one group", (t) => {
  const runs = [runOf(t, 1, 0.1), runOf(t, 2, 0.3), runOf(t, 3, 0.2, 0.25)];
  const groups = seedGroups(runs).map((group) => group.map(({ name }) => name));
  assert.deepEqual(groups, [["run1", "run2"], ["run3"]]);
  const { markup } = comparison(runs);
  assert.match(markup, /mean of run1, run2<\/th>/);
  // 0.1 and 0.3: mean 0.2, deviation 0.141.
  assert.match(markup, /<b>0\.2000<\/b> ±0\.141<br><span class="quiet">change -0\.3000 ±0\.141<\/span>/);
  assert.match(markup, /<code>optimizer\.lr<\/code><\/th><td><code>0\.5<\/code><\/td>/);
  assert.ok(!markup.includes("run.dir"));
});

test("runs that were judged on other images, by other draws or another reward are not compared without a warning", (t) => {
  const run = (name: string, config: Record<string, unknown>, fingerprint: string): Run => ({
    ...readRun(
      writeRun(newFolder(t), {
        config,
        metrics: [],
        files: {
          "eval.json": {
            rows: [],
            data: {
              train: { images: 9, read: 9, fingerprint: "t" },
              heldOut: { images: 3, read: 3, fingerprint },
            },
          },
        },
      }),
    ),
    name,
  });
  const a = run("a", { data: { source: "x" } }, "1");
  assert.deepEqual(comparabilityOf([a, { ...a, name: "again" }]), []);
  const other = comparabilityOf([a, run("b", { data: { source: "y" }, eval: { images: 3 } }, "2")]);
  assert.match(other[0] as string, /different images.*data\.source.*eval\.images/);
  assert.match(other[1] as string, /judged b on other images.*than a/);
  const drawn = comparabilityOf([
    a,
    run("c", { data: { source: "x" }, rollout: { context: { length: 3 } } }, "1"),
  ]);
  assert.match(drawn.join(), /rollout\.context\.length/);
  const paid = comparabilityOf([a, run("d", { data: { source: "x" }, reward: { l2: { weight: 3 } } }, "1")]);
  assert.match(paid.join(), /reward\.l2\.weight/);
  assert.match(
    comparison([a, run("e", { data: { source: "z" } }, "1")]).markup,
    /<b>warning<\/b> [^<]*data\.source/,
  );
});
