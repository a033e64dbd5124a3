/** The images of a run, as every command that trains opens them. */
import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";
import { resolveConfig, type TrainConfig } from "../../src/config/resolve.js";
import type { Batch } from "../../src/data/index.js";
import { openImages, openSources, type RunImages, someOf } from "../../src/run/images.js";
import { saveSafetensors, tensor, zeros } from "../../src/torch/index.js";
import { tinyFolder, tinyRun, writeEmoji } from "../support/train_run.js";

const configOf = (folder: string, changes: object): TrainConfig =>
  resolveConfig({ values: tinyRun(folder, { eval: { every: 1, images: 5 }, ...changes }) }).config;

const open = (config: TrainConfig): Promise<RunImages> =>
  openImages(config, { batchSize: 3, device: "cpu", wants: "which this test looks at" });

async function idsOf(batches: AsyncIterable<Batch>): Promise<string[][]> {
  const ids: string[][] = [];
  for await (const batch of batches) {
    ids.push([...batch.ids]);
    batch.dispose();
  }
  return ids;
}

test("a part is set apart, spread over the set and always the same; the rest is trained on", async (t) => {
  const folder = await tinyFolder(t, 40);
  const config = configOf(folder, {});
  const { train, heldOut } = await openSources(config);
  const held = new Set(Array.from({ length: heldOut?.length ?? 0 }, (_, i) => heldOut?.idOf(i)));
  assert.equal(train.length + held.size, 40);
  const images = await open(config);
  assert.equal(images.evalImages, Math.min(5, held.size));
  assert.equal(images.fingerprint, train.fingerprint);
  assert.equal(images.source?.length, train.length);
  const once = await idsOf(images.evalBatches());
  assert.deepEqual(
    once.map((ids) => ids.length),
    [3, images.evalImages - 3],
  );
  assert.deepEqual(await idsOf(images.evalBatches()), once);
  assert.ok(once.flat().every((id) => held.has(id)));
  const batches = images.batchesFrom(undefined);
  const seen: string[] = [];
  for (let i = 0; i < Math.floor(train.length / 3); i++) {
    using batch = await batches.next();
    seen.push(...batch.ids);
  }
  batches.close();
  assert.ok(seen.every((id) => !held.has(id)));
  assert.equal(new Set(seen).size, seen.length);
});

test("a part stays apart where nothing is evaluated; none is where the images have others for it", async (t) => {
  const folder = await tinyFolder(t, 20);
  const data = { source: join(folder, "images"), size: 16 };
  const evaluated = await openSources(configOf(folder, { data: { ...data, evalPart: 0.3 } }));
  const silent = await open(configOf(folder, { data: { ...data, evalPart: 0.3 }, eval: { every: 0 } }));
  assert.equal(silent.fingerprint, evaluated.train.fingerprint);
  assert.ok((silent.source?.length ?? 0) < 20);
  assert.equal(silent.evalImages, 0);
  assert.deepEqual(await idsOf(silent.evalBatches()), []);
  const all = await open(configOf(folder, { data: { ...data, evalPart: 0 }, eval: { every: 0 } }));
  assert.equal(all.source?.length, 20);
  const others = join(folder, "others");
  await writeEmoji(others, 4, 30);
  const own = await open(configOf(folder, { data: { ...data, evalSource: others } }));
  assert.equal(own.source?.length, 20);
  assert.deepEqual((await idsOf(own.evalBatches())).flat().sort(), [
    "a/030.png",
    "a/033.png",
    "b/031.png",
    "c/032.png",
  ]);
  // A program's own loader is evaluated on such images too.
  const dataloader = [{ images: zeros([1, 3, 16, 16]) }];
  const loaded = await open(configOf(folder, { data: { ...data, evalSource: others }, dataloader }));
  assert.deepEqual([loaded.fingerprint, loaded.source, loaded.evalImages], [null, null, 4]);
});

test("images of a set are chosen evenly", async (t) => {
  const folder = await tinyFolder(t, 10);
  const { train } = await openSources(configOf(folder, { data: { evalPart: 0 }, eval: { every: 0 } }));
  const chosen = someOf(train, 3);
  assert.deepEqual(
    Array.from({ length: 3 }, (_, i) => chosen.idOf(i)),
    [0, 3, 6].map((i) => train.idOf(i)),
  );
  assert.equal(someOf(train, 99).length, 10);
});

test("code files are refused where images are wanted", async (t) => {
  const folder = await tinyFolder(t, 3);
  const source = join(folder, "codes.safetensors");
  saveSafetensors(source, {
    codes: zeros([9, 16], { dtype: "int32" }),
    classes: tensor([0, 0, 0, 0, 0, 0, 0, 0, 0], { dtype: "int64" }),
  });
  await assert.rejects(
    open(configOf(folder, { data: { source, size: 16 }, eval: { every: 0 } })),
    /^RangeError: data\.source: expected images, which this test looks at, got code files\. Use them to pre-train\.$/,
  );
});
