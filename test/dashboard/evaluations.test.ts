import assert from "node:assert/strict";
import { cpSync, mkdirSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { evalSection, frontiersOf } from "../../src/dashboard/evaluations.js";
import { readEvaluations } from "../../src/dashboard/reading.js";
import { readRun } from "../../src/dashboard/run.js";
import { HELD_OUT, readPictures, sampleSection } from "../../src/dashboard/samples.js";
import { newFolder, writePage, writeRun } from "./run_files.js";

const NET = "classifier <x>";

const estimate = (value: number, half: number | null = null) => ({
  value,
  low: half === null ? null : value - half,
  high: half === null ? null : value + half,
});

const row = (policy: string, temperature: number, l2: number, fd: number, half: number | null = 0.01) => ({
  policy,
  temperature,
  cfg: 1,
  free: null,
  completions: [
    {
      prefix: 8,
      measures: {
        images: 30,
        plain: { l2: estimate(l2, half) },
        networks: { [NET]: { fd_train: estimate(fd, half) } },
      },
    },
  ],
});

const EVALUATION = {
  settings: { seeds: [0], resamples: 200, samples: 10 },
  files: [
    { role: "A", path: "a.safetensors", sha256: "1" },
    { role: "B", path: "b.safetensors", sha256: "2" },
  ],
  networks: [{ name: NET, featureSize: 2, numClasses: 2 }],
  rows: [row("A", 1, 0.2, 5), row("A", 0.8, 0.18, 6), row("B", 1, 0.1, 5.005), row("B", 0.8, 0.09, 7)],
  verdicts: {
    completion: [
      {
        network: NET,
        measure: "l2",
        prefix: 8,
        standings: [
          {
            point: { temperature: 1, cfg: 1, fd: 5.005, value: 0.1 },
            rival: { temperature: 1, cfg: 1, fd: 5, value: 0.2 },
            gain: estimate(50, 2),
            standing: "beyond",
          },
        ],
      },
    ],
    free: [],
  },
  notes: ["a <note>"],
};

const read = (t: Parameters<typeof newFolder>[0], value: unknown) => {
  const unread: string[] = [];
  return {
    files: readEvaluations(writeRun(newFolder(t), { files: { "eval.json": value } }), unread),
    unread,
  };
};

test("two policies at temperature 1: values with intervals, and the change where they are apart", (t) => {
  const { files, unread } = read(t, EVALUATION);
  assert.deepEqual(unread, []);
  const { markup } = evalSection(files);
  assert.match(
    markup,
    /L2<\/summary>.*?<\/th><td>0\.2000 <span class="quiet range">\[0\.1900, 0\.2100\]<\/span><\/td><td>0\.1000 <span.*?<td>-50\.0 % <span class="better">better<\/span><\/td>/,
  );
  // 5 and 5.005, each ±0.01: not told apart.
  assert.match(markup, /FD to training images \[1\]<\/summary>.*?<td>\+0\.1 % <span class=""><\/span><\/td>/);
  assert.match(markup, /At T 1 B has L2 0\.1000, 50\.0 %.* at T 1/);
  assert.match(markup, /<b>A<\/b>: a\.safetensors \(before\)/);
  assert.match(markup, /a &lt;note&gt;/);
  assert.ok(!markup.includes(NET));
});

test("pages of an evaluation are embedded whole; a name that leads elsewhere is not read", async (t) => {
  const folder = writeRun(newFolder(t), {
    metrics: [],
    files: {
      "eval.json": { ...EVALUATION, pages: ["completion_8_t1_cfg1.png", "../../secret.png", "gone.png"] },
    },
  });
  mkdirSync(join(folder, "eval"));
  await writePage(folder, 0);
  cpSync(join(folder, "samples/step_000000_train.png"), join(folder, "eval/completion_8_t1_cfg1.png"));
  const pictures = await readPictures(readRun(folder), 1e6);
  assert.deepEqual(
    pictures.albums.map(({ name, shown, total }) => [name, shown.length, total]),
    [[HELD_OUT, 1, 1]],
  );
  const { markup } = sampleSection(pictures, () => true);
  assert.match(markup, /completions after 8 given codes, T 1<.*data:image\/webp/s);
});

test("a network that the reward used is marked beside its numbers", (t) => {
  const networks = [{ ...EVALUATION.networks[0], isRewarded: true }];
  const { markup } = evalSection(read(t, { ...EVALUATION, networks }).files);
  assert.match(markup, /FD to training images \[1, rewarded\]<\/summary>/);
  assert.match(markup, /<b>warning<\/b> The reward used \[1, rewarded\]/);
});

test("of two judges the one that learnt from other images is shown, and the other one unfolds", (t) => {
  const kin = { ...EVALUATION.networks[0], name: "kin", sharesImages: true };
  const elsewhere = { ...EVALUATION.networks[0], name: "elsewhere", sharesImages: false };
  const [one] = EVALUATION.verdicts.completion;
  const completion = [kin, elsewhere].map(({ name }) => ({ ...one, network: name }));
  const verdicts = { ...EVALUATION.verdicts, completion };
  const { markup } = evalSection(read(t, { ...EVALUATION, networks: [kin, elsewhere], verdicts }).files);
  const [shown = "", folded = ""] = markup.split("<summary>By the other networks: [1]</summary>");
  assert.match(shown, /<b>verdict<\/b>[^<]*network \[2\]/);
  assert.doesNotMatch(shown, /<b>verdict<\/b>[^<]*network \[1\]/);
  assert.match(folded, /<b>verdict<\/b>[^<]*network \[1\]/);
});

test("what a file lacks is left out: one policy, no intervals, no networks, no verdicts", (t) => {
  const { free: _, completions, ...point } = row("A", 1, 0.2, 5, null);
  const { files } = read(t, { rows: [{ ...point, completions }] });
  const { markup } = evalSection(files);
  assert.match(markup, /L2<\/summary>.*<th scope="row">A T 1<\/th><td>0\.2000<\/td>/s);
  assert.match(markup, /No intervals were computed/);
  assert.ok(!/change|verdict|Free samples|True codes/.test(markup));
  assert.deepEqual(read(t, { rows: [] }).unread, []);
});

test("frontiers: a chart a measure, with one base for runs that began from the same policy", (t) => {
  const [file] = read(t, EVALUATION).files;
  const evaluation = file?.evaluation as NonNullable<typeof file>["evaluation"];
  const series = (...labels: string[]) =>
    frontiersOf(labels.map((label, color) => ({ label, color, evaluation }))).map((chart) =>
      chart.series.map((one) => [one.label, one.isBase, one.points.length]),
    );
  assert.deepEqual(series(""), [
    [
      ["A, before", true, 2],
      ["B, fine-tuned", false, 2],
    ],
  ]);
  assert.deepEqual(series("x", "y"), [
    [
      ["before", true, 2],
      ["x", false, 2],
      ["y", false, 2],
    ],
  ]);
  const one = { ...evaluation, rows: evaluation.rows.filter(({ temperature }) => temperature === 1) };
  assert.deepEqual(frontiersOf([{ label: "", color: 0, evaluation: one }]), []);
});
