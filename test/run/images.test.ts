/** The images of a run, as every command that trains opens them. */
import assert from "node:assert/strict";
import { mkdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { resolveConfig, type TrainConfig } from "../../src/config/resolve.js";
import type { Batch } from "../../src/data/index.js";
import { openRunParts } from "../../src/rl_ar_finetune/parts.js";
import { trainRlLoop } from "../../src/rl_ar_finetune/train_loop.js";
import { openImages, openSources, type RunImages, someOf } from "../../src/run/images.js";
import { saveSafetensors, tensor, zeros } from "../../src/torch/index.js";
import { Shown, tinyFolder, tinyRun, writeEmoji } from "../support/train_run.js";

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

test("a validation set that lacks a class, or has empty ones, keeps the ids of the training images", async (t) => {
  const folder = await tinyFolder(t, 12);
  const others = join(folder, "others");
  await writeEmoji(others, 3, 30);
  rmSync(join(others, "a"), { recursive: true });
  const data = { source: join(folder, "images"), size: 16, evalPart: 0, evalSource: others };
  using images = await open(configOf(folder, { data }));
  for await (const batch of images.evalBatches()) {
    assert.deepEqual(
      batch.ids.map((id) => id[0]),
      ["b", "c"],
    );
    assert.deepEqual(batch.classes.toList(), [1, 2]);
    batch.dispose();
  }
  assert.match(
    images.notes.join("\n"),
    /^12 images to train on; 2 are held out\n3 classes: 0 a \(4 images\), 1 b \(4\), 2 c \(4\)\n.*evaluate on has the class a$/,
  );
  mkdirSync(join(others, "d"));
  writeFileSync(join(others, "d", "1.png"), "");
  await assert.rejects(open(configOf(folder, { data })), {
    name: "RangeError",
    message: /others\/d\/1\.png: expected a class .*, got d\. .*data\.classNames/,
  });
});

test("a class that the policy does not know ends the run before its first step, with the image", async (t) => {
  const folder = await tinyFolder(t, 12);
  const config = configOf(folder, { eval: { every: 0 } });
  const openFor = async (numClasses: number): Promise<readonly string[]> => {
    using images = await openImages(config, { batchSize: 3, device: "cpu", wants: "which", numClasses });
    return images.notes;
  };
  assert.doesNotMatch((await openFor(3)).join("\n"), /the policy has/);
  assert.match((await openFor(10)).join("\n"), /the policy has 10 classes, the training images 3/);
  await assert.rejects(openFor(2), {
    name: "RangeError",
    message: /^c\/002\.png: expected a class id from 0 to 1, .*got 2 \(c\), which stands for no class\./,
  });
  const trained = resolveConfig({ values: tinyRun(folder, { ar: { extra: { classNum: 2 } } }) }).config;
  await assert.rejects(openRunParts(trained), { message: /^c\/002\.png: expected a class id from 0 to 1/ });
  using parts = await openRunParts(
    resolveConfig({
      values: tinyRun(folder, { rollout: { start: "empty" }, ar: { extra: { classNum: 2 } } }),
    }).config,
  );
  assert.ok(parts.notes.length > 0);
});

test("training and every evaluation share the threads that decode; what cannot be read is told once", async (t) => {
  const folder = await tinyFolder(t, 40);
  const others = join(folder, "others");
  await writeEmoji(others, 12, 30);
  writeFileSync(join(others, "a", "030.png"), "bad");
  const data = { source: join(folder, "images"), size: 16, evalPart: 0, evalSource: others };
  const images = await open(configOf(folder, { data, eval: { every: 1, images: 12 } }));
  for (let round = 0; round < 2; round++) await idsOf(images.evalBatches());
  const batches = images.batchesFrom(undefined);
  (await batches.next()).dispose();
  batches.close();
  (await idsOf(images.evalBatches())).at(0);
  assert.deepEqual([images.unreadable.count, images.unreadable.news().length], [1, 1]);
  assert.match(images.unreadable.problems.join(), /^a\/030\.png: expected an image/);
  assert.deepEqual(images.unreadable.news(), []);
  images[Symbol.dispose]();
  await assert.rejects(idsOf(images.evalBatches()), { name: "DecodePoolError" });
});

test("a run says its classes at the start, and each unreadable image once when it is met", async (t) => {
  const folder = await tinyFolder(t, 20);
  for (const name of ["a/900.png", "b/901.png"]) writeFileSync(join(folder, "images", name), "bad");
  writeFileSync(join(folder, "images", "c", "old.bmp"), "BM");
  const screen = new Shown();
  const changes = { data: { evalPart: 0, maxUnreadable: 5 }, eval: { every: 0 }, train: { iters: 12 } };
  await trainRlLoop(tinyRun(folder, changes), { screen });
  const lines = screen.text.split("\n");
  const count = (pattern: RegExp): number => lines.filter((line) => pattern.test(line)).length;
  assert.equal(count(/^unreadable image: a\/900\.png: expected an image/), 1);
  assert.equal(count(/^unreadable image: b\/901\.png: expected an image/), 1);
  assert.equal(count(/files that are not read: \.bmp \(1\)\. .*PNG/), 1);
  assert.equal(count(/^22 images to train on; none is held out$/), 1);
  assert.equal(count(/^3 classes: 0 a \(\d+ images\), 1 b/), 1);
});
