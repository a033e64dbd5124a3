import assert from "node:assert/strict";
import { appendFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";

import sharp from "sharp";

import { readRun } from "../../src/dashboard/run.js";
import { evenly, readPictures, sampleSection } from "../../src/dashboard/samples.js";
import { newFolder, writePage, writeRun } from "./run_files.js";

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
  const [picture] = pictures.shown;
  const raw = async (image: string | Buffer): Promise<Buffer> => sharp(image).removeAlpha().raw().toBuffer();
  assert.deepEqual(await raw(picture?.bytes as Buffer), await raw(picture?.page.path as string));
  const { markup } = sampleSection(pictures);
  assert.match(markup, /<img src="data:image\/webp;base64,[\w+/=]+" width="14" height="8"/);
  assert.match(
    markup,
    /flex-grow:1">input<\/span><span class="c1" style="flex-grow:1">reconstruction<\/span><span class="c2" style="flex-grow:2"/,
  );
  // 14 pixels wide, enlarged by the greatest whole factor that stays within 1,000.
  assert.match(markup, /max-width:994px.*alt="[^"]*2 samples"/);
  assert.match(markup, /<code>&lt;a&gt;\.png<\/code><\/th><td>-0\.5<\/td><td>n\/a<\/td>/);
  assert.match(markup, /classes, in turn: cat &amp; dog/);
});

test("large pages are scaled down, and there are no more than there is room for", async (t) => {
  const folder = writeRun(newFolder(t), { metrics: [] });
  for (let step = 1; step <= 6; step++) {
    const line = await writePage(folder, step, { width: 1500, height: 60 });
    appendFileSync(join(folder, "samples.jsonl"), line);
  }
  const all = await readPictures(readRun(folder), 1e9);
  assert.equal(all.shown.length, 6);
  assert.equal((await sharp(all.shown[0]?.bytes).metadata()).width, 1280);
  const size = all.shown[0]?.bytes.length as number;
  const some = await readPictures(readRun(folder), size * 3.5);
  assert.deepEqual([some.shown[0]?.page.step, some.shown.at(-1)?.page.step, some.shown.length], [1, 6, 3]);
  assert.match(sampleSection(some).markup, /3 of 6 pages are omitted/);
});
