import assert from "node:assert/strict";
import { appendFileSync, cpSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";

import sharp from "sharp";

import { readRun } from "../../src/dashboard/run.js";
import { evenly, HELD_OUT, readPictures, sampleSection } from "../../src/dashboard/samples.js";
import { newFolder, writePage, writeRun } from "./run_files.js";

const judgedAt = (checkpoint: string) => ({ run: "r", checkpoint, which: "last", text: checkpoint });

test("some of a list: its ends, the others evenly between", () => {
  assert.deepEqual(evenly([0, 1, 2, 3, 4, 5, 6], 4), [0, 2, 4, 6]);
  assert.deepEqual(evenly([1, 2], 4), [1, 2]);
  assert.deepEqual(evenly([1, 2, 3], 1), [3]);
});

test("small pages are embedded pixel by pixel, with what their columns are", async (t) => {
  const folder = writeRun(newFolder(t), { metrics: [] });
  const about = {
    columns: ["input", "reconstruction", "samples"],
    ids: ["<a>.png"],
    rewards: [[-0.5, null]],
    classes: ["cat & dog"],
  };
  appendFileSync(join(folder, "samples.jsonl"), await writePage(folder, 1, { about }));
  const pictures = await readPictures(readRun(folder), 1e6);
  const [picture] = pictures.albums[0]?.shown ?? [];
  const raw = async (image: string | Buffer): Promise<Buffer> => sharp(image).removeAlpha().raw().toBuffer();
  assert.deepEqual(await raw(picture?.bytes as Buffer), await raw(picture?.page.path as string));
  const { markup } = sampleSection(pictures, () => true);
  // 14 pixels wide, enlarged by the greatest whole factor that stays within 1,000.
  assert.match(markup, /<img src="data:image\/webp;base64,[\w+/=]+" width="994" height="568"/);
  const cells = ["&lt;a&gt;.png", "-0.5, n/a", "cat &amp; dog"].map((text) => `<td>${text}</td>`);
  assert.ok(markup.includes(`<th scope="row">1</th>${cells.join("")}`), markup);
  assert.match(markup, /input.*reconstruction.*samples/);
  assert.ok(!markup.includes('type="range"'), "one picture needs no slider");
});

test("large pages are scaled down, and there are no more than there is room for", async (t) => {
  const folder = writeRun(newFolder(t), { metrics: [] });
  for (let step = 1; step <= 6; step++) {
    const line = await writePage(folder, step, { width: 1500, height: 60 });
    appendFileSync(join(folder, "samples.jsonl"), line);
  }
  const all = await readPictures(readRun(folder), 1e9);
  const pictures = all.albums[0]?.shown ?? [];
  assert.equal(pictures.length, 6);
  assert.equal((await sharp(pictures[0]?.bytes).metadata()).width, 1280);
  const size = pictures[0]?.bytes.length as number;
  const some = await readPictures(readRun(folder), size * 3.5);
  const kept = some.albums[0]?.shown ?? [];
  assert.deepEqual([kept[0]?.page.step, kept.at(-1)?.page.step, kept.length], [1, 6, 3]);
  assert.match(sampleSection(some, () => true).markup, /3 of 6 pages are omitted/);
});

test("one slider goes through the evaluations of a run and those of rlar eval, in the order of step", async (t) => {
  const folder = writeRun(newFolder(t), {
    metrics: [{ step: 9, a: 1 }],
    files: {
      "eval_5.json": { rows: [], pages: ["completion_8_t1_cfg1.png"], judged: judgedAt("step_000005") },
      "eval_9.json": {
        rows: [],
        pages: ["completion_8_t0.8_cfg2.png", "free_t1_cfg1.png"],
        judged: judgedAt("step_000009"),
      },
    },
  });
  for (const step of [0, 5, 9]) {
    const line = await writePage(folder, step);
    const eval_ = line.replace('"name":"train"', '"name":"eval"');
    appendFileSync(join(folder, "samples.jsonl"), line + eval_);
  }
  const source = join(folder, "samples/step_000000_train.png");
  cpSync(source, join(folder, "eval_5/completion_8_t1_cfg1.png"));
  cpSync(source, join(folder, "eval_9/completion_8_t0.8_cfg2.png"));
  cpSync(source, join(folder, "eval_9/free_t1_cfg1.png"));
  const pictures = await readPictures(readRun(folder), 1e6);
  const names = pictures.albums.map(({ name, shown }) => [name, shown.map(({ page }) => page.step)]);
  assert.deepEqual(Object.fromEntries(names), {
    "training images": [0, 5, 9],
    [HELD_OUT]: [0, 5, 5, 9, 9],
    "free samples": [9],
  });
  const free = sampleSection(pictures, (name) => name === "free samples");
  assert.match(free.markup, /before and after, T 1</);
  const { markup } = sampleSection(pictures, (name) => name === HELD_OUT);
  const captions = [...markup.matchAll(/<figcaption>(.*?)<\/figcaption>/g)].map(([, text]) => text as string);
  assert.match(captions[2] as string, /^Step 5, .*8 given codes, T 1$/);
  assert.match(captions[4] as string, /^Step 9, .*8 given codes, T 0\.8, cfg 2$/);
  // The bar appears by the script alone; keyboard and touch have the range and its buttons.
  assert.match(
    markup,
    /<div class="slide" hidden>.*<button type="button".*<input type="range" min="0" max="4" value="4"/,
  );
});
