/** Codes of a data set in memory, and batches of them. */
import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { type TestContext, test } from "node:test";

import { type Batch, type Cursor, type ImageSource, onePass, openSource } from "../../src/data/index.js";
import { buildTokenizerFrozen, type FrozenTokenizer } from "../../src/tokenizers/index.js";
import { cat, manualSeed, type Tensor, tensor } from "../../src/torch/index.js";
import { CodeBatches, type CodeCache, cacheCodes } from "../../src/trainers/code_cache.js";
import { tinyFolder, tinyTokenizer } from "../support/train_run.js";

const SIZE = 16;

async function emoji(
  t: TestContext,
  count = 9,
): Promise<{ source: ImageSource; tokenizer: FrozenTokenizer }> {
  const folder = await tinyFolder(t, count);
  manualSeed(7);
  return {
    source: await openSource(join(folder, "images")),
    tokenizer: buildTokenizerFrozen(tinyTokenizer()),
  };
}

const options = { size: SIZE, batchSize: 4, workers: 1, cornerScale: null, say: () => {} };

/** All images of a set, in its order, of a size. */
async function imagesOf(source: ImageSource, size: number): Promise<Tensor> {
  const parts: Tensor[] = [];
  for await (const batch of onePass(source, { batchSize: 4, size, workers: 1 })) {
    parts.push(batch.images as Tensor);
  }
  return cat(parts);
}

const rows = (tensor: Tensor): number[][] => tensor.toList() as number[][];

test("the codes are the tokenizer's, in the set's order, with classes and identities", async (t) => {
  const { source, tokenizer } = await emoji(t);
  using cache = await cacheCodes(source, tokenizer, options);
  assert.equal(cache.codes.dtype, "int16");
  assert.deepEqual(rows(cache.codes), rows(tokenizer.encode(await imagesOf(source, SIZE))));
  assert.deepEqual(
    [...cache.classes].map(Number),
    Array.from({ length: 9 }, (_, i) => source.classOf(i)),
  );
  assert.deepEqual(
    cache.ids,
    Array.from({ length: 9 }, (_, i) => source.idOf(i)),
  );
  assert.deepEqual([cache.variants, cache.unreadable], [1, 0]);
});

test("variants are the image, its corners, and the mirror image of each", async (t) => {
  const { source, tokenizer } = await emoji(t);
  using cache = await cacheCodes(source, tokenizer, { ...options, flip: true, cornerScale: 1.25 });
  assert.equal(cache.variants, 10);
  assert.deepEqual(cache.codes.shape, [90, 16]);
  const [whole, large] = [await imagesOf(source, SIZE), await imagesOf(source, 20)];
  const views = [whole];
  for (const [y, x] of [
    [0, 0],
    [0, 4],
    [4, 0],
    [4, 4],
  ] as const)
    views.push(large.narrow(2, y, SIZE).narrow(3, x, SIZE).contiguous());
  const byImage = cache.codes.view(9, 10, 16);
  for (const [i, view] of views.entries()) {
    assert.deepEqual(rows(byImage.select(1, 2 * i)), rows(tokenizer.encode(view)), `view ${i}`);
    const mirrored = tokenizer.encode(view.flip(3).contiguous());
    assert.deepEqual(rows(byImage.select(1, 2 * i + 1)), rows(mirrored), `mirrored view ${i}`);
  }
});

test("an image that cannot be read is left out and counted", async (t) => {
  const folder = await tinyFolder(t, 12);
  manualSeed(7);
  const tokenizer = buildTokenizerFrozen(tinyTokenizer());
  writeFileSync(join(folder, "images", "b", "001.png"), "no image");
  const source = await openSource(join(folder, "images"));
  using cache = await cacheCodes(source, tokenizer, options);
  assert.deepEqual([cache.ids.length, cache.unreadable], [11, 1]);
  assert.deepEqual(cache.codes.shape, [11, 16]);
  assert.equal(cache.classes.length, 11);
  assert.ok(!cache.ids.some((id) => id.includes("001")));
});

test("encoding ends where it is interrupted", async (t) => {
  const { source, tokenizer } = await emoji(t);
  const { signal } = new AbortController();
  const aborted = AbortSignal.abort("enough");
  await assert.rejects(
    cacheCodes(source, tokenizer, { ...options, signal: aborted }),
    (reason) => reason === "enough",
  );
  using cache = await cacheCodes(source, tokenizer, { ...options, signal });
  assert.equal(cache.ids.length, 9);
});

/** A cache of N images of two variants: code 10 * image + variant, twice. */
function madeUp(n: number, classOf: (image: number) => number = (image) => image % 2): CodeCache {
  const codes = Array.from({ length: n * 2 }, (_, i) => 10 * Math.floor(i / 2) + (i % 2));
  const made = tensor(
    codes.map((code) => [code, code]),
    { dtype: "int16" },
  );
  return {
    codes: made,
    classes: BigInt64Array.from({ length: n }, (_, i) => BigInt(classOf(i))),
    ids: Array.from({ length: n }, (_, i) => `image ${i}`),
    variants: 2,
    unreadable: 0,
    [Symbol.dispose]: () => made.dispose(),
  };
}

interface Seen {
  codes: number[][];
  classes: number[];
  ids: readonly string[];
  cursor: Cursor;
}

function seenIn(batch: Batch): Seen {
  const { codes, classes, ids, cursor } = batch;
  assert.equal(codes?.dtype, "int64");
  return { codes: rows(codes as Tensor), classes: classes.toList() as number[], ids, cursor };
}

async function take(batches: CodeBatches, count: number): Promise<Seen[]> {
  const seen: Seen[] = [];
  for (let i = 0; i < count; i++) {
    using batch = await batches.next();
    seen.push(seenIn(batch));
  }
  return seen;
}

test("each epoch shows every image once, with its own class and one of its variants", async () => {
  using cache = madeUp(10);
  const seen = await take(new CodeBatches(cache, { batchSize: 4, seed: 1 }), 5);
  const images = seen.flatMap(({ ids }) => ids.map((id) => Number(id.split(" ")[1])));
  const sorted = (part: number[]): number[] => [...part].sort((a, b) => a - b);
  const all = Array.from({ length: 10 }, (_, i) => i);
  assert.deepEqual(sorted(images.slice(0, 10)), all);
  assert.deepEqual(sorted(images.slice(10)), all);
  assert.notDeepEqual(images.slice(0, 10), images.slice(10));
  const codes = seen.flatMap((batch) => batch.codes);
  assert.deepEqual(
    codes.map(([a]) => Math.floor((a as number) / 10)),
    images,
  );
  const variants = codes.map(([a]) => (a as number) % 10);
  assert.ok(variants.includes(0) && variants.includes(1));
  assert.notDeepEqual(variants.slice(0, 10), variants.slice(10));
  assert.deepEqual(
    seen.flatMap(({ classes }) => classes),
    images.map((image) => image % 2),
  );
  assert.deepEqual(
    seen.map(({ cursor }) => cursor),
    [
      { epoch: 0, position: 4 },
      { epoch: 0, position: 8 },
      { epoch: 1, position: 2 },
      { epoch: 1, position: 6 },
      { epoch: 2, position: 0 },
    ],
  );
});

test("a cursor goes on where it was; another seed is another order", async () => {
  using cache = madeUp(10);
  const whole = await take(new CodeBatches(cache, { batchSize: 4, seed: 1 }), 6);
  for (let i = 0; i < 5; i++) {
    const { cursor } = whole[i] as Seen;
    const rest = await take(new CodeBatches(cache, { batchSize: 4, seed: 1, cursor }), 5 - i);
    assert.deepEqual(rest, whole.slice(i + 1));
  }
  const other = await take(new CodeBatches(cache, { batchSize: 4, seed: 2 }), 6);
  assert.notDeepEqual(other, whole);
});

test("classes of different sizes are evened out when asked", async () => {
  using cache = madeUp(20, (image) => (image < 4 ? 0 : 1));
  const batches = new CodeBatches(cache, { batchSize: 20, seed: 1, balance: 1 });
  const [first] = await take(batches, 1);
  assert.equal(first?.classes.filter((id) => id === 0).length, 10);
});
