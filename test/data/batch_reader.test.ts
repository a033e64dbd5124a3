import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";

import sharp from "sharp";

import type { Batch } from "../../src/data/batch.js";
import { BatchReader, type BatchReaderOptions, onePass } from "../../src/data/batch_reader.js";
import { openFolder } from "../../src/data/folder.js";
import { balancedOrder, permutation, START } from "../../src/data/order.js";
import type { ImageSource } from "../../src/data/source.js";
import { memory, saveSafetensors, tensor } from "../../src/torch/index.js";
import { grey, npyOf, scratch, writeFiles, writeImages } from "../support/data_files.js";
import "../support/settle.js";

const folder = scratch();
const at = (name: string): string => join(folder, name);
await writeImages(at("ten"), 10);
const ten = await openFolder(at("ten"));

/** What a batch holds, as plain values; the batch is freed. */
function plain(batch: Batch) {
  const { ids, cursor } = batch;
  const values = [batch.images, batch.codes, batch.features].map((part) => part && [...part.toArray()]);
  const classes = batch.classes.toList();
  batch.dispose();
  return { ids, cursor, values, classes };
}

type Plain = ReturnType<typeof plain>;

/** The first batches of a set. */
async function read(
  source: ImageSource,
  count: number,
  options: Partial<BatchReaderOptions> = {},
): Promise<Plain[]> {
  using reader = new BatchReader(source, { batchSize: 4, size: 4, seed: 3, workers: 0, ...options });
  const batches: Plain[] = [];
  for (let i = 0; i < count; i++) batches.push(plain(await reader.next()));
  return batches;
}

test("each epoch holds every image once, in the order of the seed; batches are full", async () => {
  const batches = await read(ten, 5);
  assert.deepEqual(
    batches.map(({ ids }) => ids.length),
    [4, 4, 4, 4, 4],
  );
  const order = [0, 1].flatMap((epoch) => [...permutation(3, epoch, 10)]);
  assert.deepEqual(
    batches.flatMap(({ ids }) => ids),
    order.map((i) => ten.idOf(i)),
  );
  assert.deepEqual(
    batches.flatMap(({ classes }) => classes),
    order.map((i) => ten.classOf(i)),
  );
  assert.deepEqual(batches[2]?.cursor, { epoch: 1, position: 2 });
  assert.deepEqual(batches[4]?.cursor, { epoch: 2, position: 0 });
  // Image i of the folder has level i, and is the number in its name.
  for (const { ids, values } of batches) {
    for (const [i, id] of ids.entries()) {
      assert.equal(values[0]?.[i * 48], Math.fround(Math.fround(Number(id.slice(2, 5)) / 127.5) - 1));
    }
  }
  assert.notDeepEqual((await read(ten, 1, { seed: 4 }))[0]?.ids, batches[0]?.ids);
});

test("resuming at any cursor gives exactly what was left, flips included", async () => {
  for (let i = 0; i < 5; i++) {
    // The left half has a colour of its own, the right one is white.
    const input = {
      create: { width: 4, height: 8, channels: 3 as const, background: { r: 50 * i, g: 0, b: 0 } },
    };
    const white = sharp({ create: { width: 8, height: 8, channels: 3, background: "#fff" } });
    const image = white.composite([{ input, left: 0, top: 0 }]).png();
    writeFiles(at("halves"), { [`${i}.png`]: await image.toBuffer() });
  }
  const source = await openFolder(at("halves"));
  const options = { batchSize: 3, size: 8, flip: true };
  const whole = await read(source, 8, options);
  for (const [i, { cursor }] of whole.entries()) {
    if (i === 7) break;
    assert.deepEqual(await read(source, 7 - i, { ...options, cursor }), whole.slice(i + 1));
  }
  // Flipped or not, an image's left edge is its own colour or white, and each comes both ways in time.
  const seen = new Map<string, Set<number>>();
  for (const { ids, values } of whole) {
    for (const [i, id] of ids.entries())
      seen.set(id, (seen.get(id) ?? new Set()).add(values[0]?.[i * 192] as number));
  }
  assert.ok([...seen.values()].some((sides) => sides.size === 2));
  const straight = await read(source, 8, { ...options, flip: false });
  for (const { ids, values } of straight) {
    for (const [i, id] of ids.entries()) {
      assert.equal(values[0]?.[i * 192], Math.fround(Math.fround((50 * Number(id[0])) / 127.5) - 1));
    }
  }
});

test("balanced batches follow their order, draw flips anew each round, and resume at any cursor", async () => {
  const classOf = (i: number): number => (i < 2 ? 1 : 0);
  const uneven = { ...ten, classNames: ["many", "few"], classOf };
  const options = { balance: 1, flip: true };
  const whole = await read(uneven, 10, options);
  const classIds = Array.from({ length: 10 }, (_, i) => classOf(i));
  const order = [0, 1, 2, 3].flatMap((epoch) => [...balancedOrder(classIds, 1, 3, epoch).order]);
  assert.deepEqual(
    whole.flatMap(({ ids }) => ids),
    order.map((i) => ten.idOf(i)),
  );
  assert.equal(whole.flatMap(({ classes }) => classes).filter((id) => id === 1).length, 20);
  assert.deepEqual(whole[9]?.cursor, { epoch: 4, position: 0 });
  for (const i of [0, 2, 5, 8]) {
    const cursor = whole[i]?.cursor as Batch["cursor"];
    assert.deepEqual(await read(uneven, 9 - i, { ...options, cursor }), whole.slice(i + 1));
  }

  // An image that comes several times an epoch is mirrored at some of them.
  const black = sharp({ create: { width: 4, height: 8, channels: 3, background: "#000" } });
  writeFiles(at("alone"), { "a.png": await black.extend({ right: 4, background: "#fff" }).png().toBuffer() });
  await writeImages(at("alone"), 5);
  const mixed = await openFolder(at("alone"), { label: null });
  const only = (i: number): number => (mixed.idOf(i) === "a.png" ? 1 : 0);
  const alone = { ...mixed, classNames: ["all", "one"], classOf: only };
  const batches = await read(alone, 4, { ...options, batchSize: 6, size: 8 });
  const edges = batches.map(({ ids, values }) =>
    ids.flatMap((id, i) => (id === "a.png" ? [values[0]?.[i * 192]] : [])),
  );
  assert.deepEqual(
    edges.map((own) => own.length),
    [3, 3, 3, 3],
  );
  assert.ok(edges.some((own) => new Set(own).size === 2));
});

test("balance is refused out of its range, and for blocks that cannot all be open", () => {
  const open = (source: ImageSource, balance: number) => () =>
    new BatchReader(source, { batchSize: 1, size: 4, balance });
  for (const balance of [-0.1, 1.5, Number.NaN]) {
    assert.throws(open(ten, balance), {
      message: `balance: expected a number from 0 to 1, got ${balance}.`,
    });
  }
  const blocks = [
    { length: 5, bytes: 2 ** 29 },
    { length: 5, bytes: 2 ** 29 },
  ];
  assert.throws(open({ ...ten, blocks }, 0.5), {
    message:
      "balance: expected 0 for a set whose row groups take more than 512 MiB, since a class is drawn from all of them, got 0.5. Use tar shards or a folder to even classes out.",
  });
});

test("neither threads nor reading ahead change a batch", async () => {
  const wanted = await read(ten, 4, { ahead: 0 });
  for (const options of [
    { workers: 1, ahead: 1 },
    { workers: 2, ahead: 5 },
    { workers: 0, ahead: 3 },
  ]) {
    assert.deepEqual(await read(ten, 4, options), wanted);
  }
});

test("calls that do not wait for each other get their batches in turn", async () => {
  const wanted = await read(ten, 3);
  using reader = new BatchReader(ten, { batchSize: 4, size: 4, seed: 3, workers: 0 });
  const batches = await Promise.all([reader.next(), reader.next(), reader.next()]);
  assert.deepEqual(batches.map(plain), wanted);
  assert.deepEqual(reader.cursor, wanted[2]?.cursor);
});

test("unreadable images are passed over, counted once and named; the next takes their place", async () => {
  await writeImages(at("bad"), 20);
  writeFiles(at("bad"), { "a/004.png": "no image", "b/007.png": "" });
  const source = await openFolder(at("bad"));
  const wanted = [0, 1].flatMap((epoch) => [...permutation(3, epoch, 20)].map((i) => source.idOf(i)));
  const readable = wanted.filter((id) => id !== "a/004.png" && id !== "b/007.png");
  for (const workers of [0, 1]) {
    using reader = new BatchReader(source, { batchSize: 6, size: 4, seed: 3, workers });
    const batches: Plain[] = [];
    for (let i = 0; i < 6; i++) batches.push(plain(await reader.next()));
    assert.deepEqual(
      batches.flatMap(({ ids }) => ids),
      readable,
    );
    const { count, problems } = reader.unreadable;
    assert.equal(count, 2);
    assert.ok(problems.some((problem) => problem.startsWith("a/004.png: expected an image, got ")));
    assert.ok(problems.some((problem) => problem.startsWith("b/007.png: expected an image, got ")));
    // The cursor counts those that were passed over, so a resumed run is where this one is.
    const { cursor } = batches[1] as Plain;
    assert.deepEqual(await read(source, 3, { batchSize: 6, cursor, workers }), batches.slice(2, 5));
  }
});

test("too many unreadable images end the run, naming them", async () => {
  await writeImages(at("worse"), 20);
  writeFiles(at("worse"), { "a/000.png": "no", "a/002.png": "no", "a/004.png": "no" });
  const source = await openFolder(at("worse"));
  const before = memory().tensors;
  using reader = new BatchReader(source, { batchSize: 20, size: 4, workers: 0 });
  const problem =
    "expected an image, got bytes of no image format that is read. Remove the file or convert it to PNG.";
  const bad = [...permutation(0, 0, 20)].map((i) => source.idOf(i)).filter((id) => /a.00[024]/.test(id));
  const message =
    "data set: expected at most 2 unreadable images of 20, got 3. Mend or remove them, or raise maxUnreadable:\n" +
    bad.map((id) => `  ${id}: ${problem}`).join("\n");
  await assert.rejects(reader.next(), { message });
  // The rows of the lost batch do not come back, so neither does the reader.
  using small = new BatchReader(source, { batchSize: 1, size: 4, workers: 0 });
  const readAll = async (): Promise<void> => {
    while (true) (await small.next()).dispose();
  };
  await assert.rejects(readAll, { message });
  const { cursor } = small;
  await assert.rejects(small.next(), { message });
  assert.deepEqual(small.cursor, cursor);
  assert.equal(memory().tensors, before);
  const lenient = await read(source, 1, { batchSize: 17, maxUnreadable: 3 });
  assert.equal(lenient[0]?.ids.length, 17);
  await assert.rejects(
    read(source, 1, { batchSize: 18, maxUnreadable: 2 }),
    /expected at most 2 unreadable images/,
  );
});

test("a set without a readable image ends the run, however many may be missing", async () => {
  writeFiles(at("none"), { "1.png": "no", "2.png": "no" });
  const source = await openFolder(at("none"));
  await assert.rejects(
    read(source, 1, { maxUnreadable: 100 }),
    /^RangeError: data set: expected at most 100 unreadable images of 2, got 2\./,
  );
});

test("one image fills a batch", async () => {
  writeFiles(at("one"), { "1.png": await grey(7) });
  const [single] = await read(await openFolder(at("one")), 1);
  assert.deepEqual(single?.ids, ["1.png", "1.png", "1.png", "1.png"]);
  assert.deepEqual(single?.cursor, { epoch: 4, position: 0 });
});

test("one pass goes through the set in its own order, with a smaller batch at the end", async () => {
  const before = memory().tensors;
  const batches: Plain[] = [];
  for await (const batch of onePass(ten, { batchSize: 4, size: 4, workers: 0 })) batches.push(plain(batch));
  assert.deepEqual(
    batches.map(({ ids }) => ids.length),
    [4, 4, 2],
  );
  assert.deepEqual(
    batches.flatMap(({ ids }) => ids),
    Array.from({ length: 10 }, (_, i) => ten.idOf(i)),
  );
  assert.equal(memory().tensors, before);
});

test("features of texts come from .npy in the threads and from safetensors, padded to one length", async () => {
  writeFiles(at("texts"), {
    "1.png": await grey(1),
    "1.npy": npyOf(Float32Array.of(1, 2, 3, 4), [2, 2]),
    "2.png": await grey(2),
  });
  using features = tensor([[5, 6]]);
  saveSafetensors(at("texts/2.safetensors"), { features });
  const source = await openFolder(at("texts"));
  for (const workers of [0, 1]) {
    for await (const batch of onePass(source, { batchSize: 2, size: 4, featureTokens: 3, workers })) {
      assert.deepEqual(batch.features?.shape, [2, 3, 2]);
      assert.deepEqual(plain(batch).values[2], [0, 0, 1, 2, 3, 4, 0, 0, 0, 0, 5, 6]);
    }
  }
  writeFiles(at("texts"), { "1.npy": npyOf(Float32Array.of(1, NaN, 3, 4), [2, 2]) });
  using reader = new BatchReader(await openFolder(at("texts")), { batchSize: 1, size: 4, workers: 0 });
  assert.deepEqual(plain(await reader.next()).ids, ["2.png"]);
  assert.deepEqual(plain(await reader.next()).ids, ["2.png"]);
  assert.deepEqual(reader.unreadable.problems, [
    "text features of 1.png: expected finite numbers, got NaN at [0, 1]. Extract the features again, in float32.",
  ]);
});

/** 6 images with 5 rows of codes each; row r of image i is [i, r]. */
const codeSource: ImageSource = {
  kind: "codes",
  length: 6,
  classNames: ["a"],
  fingerprint: "",
  variants: 5,
  codeLength: 2,
  idOf: (i) => `#${i}`,
  classOf: () => 0,
  locate: async (i, variant) => ({ codes: BigInt64Array.of(BigInt(i), BigInt(variant)) }),
};

test("one of an image's rows of codes is drawn anew each epoch, and again when resumed", async () => {
  const batches = await read(codeSource, 8, { batchSize: 3 });
  const rows = batches.flatMap(({ ids, values }) =>
    ids.map((id, i) => [id, Number(values[1]?.[2 * i + 1])] as const),
  );
  for (const [k, [id]] of rows.entries())
    assert.equal(Number(batches[Math.floor(k / 3)]?.values[1]?.[2 * (k % 3)]), Number(id.slice(1)));
  const drawn = new Map<string, Set<number>>();
  for (const [id, variant] of rows) drawn.set(id, (drawn.get(id) ?? new Set()).add(variant));
  assert.ok([...drawn.values()].some((variants) => variants.size >= 3));
  assert.deepEqual(
    await read(codeSource, 5, { batchSize: 3, cursor: (batches[2] as Plain).cursor }),
    batches.slice(3),
  );
  for await (const batch of onePass(codeSource, { batchSize: 6 })) {
    assert.deepEqual(plain(batch).values[1]?.map(Number), [0, 0, 1, 0, 2, 0, 3, 0, 4, 0, 5, 0]);
  }
});

test("codes beyond the codebook are passed over by name", async () => {
  using reader = new BatchReader(codeSource, { batchSize: 5, codebookSize: 5 });
  plain(await reader.next());
  plain(await reader.next());
  assert.deepEqual(reader.unreadable.problems, ["#5: expected codes below the codebook size 5, got 5n."]);
});

test("what is known to be unreadable is not read again", async () => {
  let reads = 0;
  const source: ImageSource = {
    ...codeSource,
    locate: async (i, variant) => {
      if (i !== 3) return await codeSource.locate(i, variant);
      reads++;
      throw new Error("shut");
    },
  };
  using reader = new BatchReader(source, { batchSize: 5, ahead: 0 });
  for (let epoch = 0; epoch < 3; epoch++) plain(await reader.next());
  assert.equal(reads, 1);
  assert.deepEqual(reader.unreadable, { count: 1, problems: ["#3: shut"] });
});

test("a reader that goes on counts what was passed over before it, and gives up at the same image", async () => {
  const reads: number[] = [];
  const order = permutation(1, 0, codeSource.length);
  const source: ImageSource = {
    ...codeSource,
    locate: async (i, variant) => {
      reads.push(i);
      if (i === order[1] || i === order[3]) throw new Error("shut");
      return await codeSource.locate(i, variant);
    },
  };
  const options = { batchSize: 1, ahead: 0, seed: 1 };
  using whole = new BatchReader(source, { ...options, maxUnreadable: 2 });
  const first = plain(await whole.next());
  while (whole.unreadable.count < 1) plain(await whole.next());
  const { cursor, passedOver } = whole;
  assert.deepEqual(Object.values(passedOver).length, 1);
  const [known] = Object.keys(passedOver).map(Number);
  assert.equal(passedOver[known as number], `#${known}: shut`);
  reads.length = 0;
  using resumed = new BatchReader(source, { ...options, maxUnreadable: 2, cursor, passedOver });
  for (let i = 0; i < 6; i++) assert.deepEqual(plain(await resumed.next()), plain(await whole.next()));
  assert.ok(!reads.includes(known as number));
  assert.deepEqual(resumed.unreadable, whole.unreadable);
  assert.equal(resumed.unreadable.count, 2);
  using strict = new BatchReader(source, { ...options, maxUnreadable: 1, cursor, passedOver });
  await assert.rejects(async () => {
    for (let i = 0; i < 6; i++) plain(await strict.next());
  }, /expected at most 1 unreadable images of \d+, got 2/);
  assert.ok(first.ids.length === 1);
});

test("options that do not fit are refused", () => {
  const refuse = (source: ImageSource, options: Partial<BatchReaderOptions>, message: string): void => {
    assert.throws(() => new BatchReader(source, { batchSize: 4, size: 4, workers: 0, ...options }), {
      message,
    });
  };
  refuse(ten, { batchSize: 0 }, "batchSize: expected a whole number from 1, got 0.");
  refuse(ten, { size: 0.5 }, "size: expected the width of the images, a whole number from 1, got 0.5.");
  refuse(ten, { ahead: -1 }, "ahead: expected a whole number from 0, got -1.");
  refuse(ten, { featureTokens: 0 }, "featureTokens: expected a whole number from 1, got 0.");
  refuse(
    codeSource,
    { flip: true },
    "BatchReader: expected images to flip, got codes. Extract the codes of flipped images too.",
  );
  assert.throws(
    () => new BatchReader(ten, { batchSize: 4, size: 4, cursor: { epoch: 0, position: 10 } }),
    RangeError,
  );
});

test("a closed reader gives nothing, and reading leaves no tensor", async () => {
  const before = memory().tensors;
  for (const workers of [0, 1]) {
    const reader = new BatchReader(ten, { batchSize: 4, size: 4, workers });
    assert.deepEqual(reader.cursor, START);
    (await reader.next()).dispose();
    reader.close();
    await assert.rejects(
      async () => {
        while (true) (await reader.next()).dispose();
      },
      { name: "DecodePoolError", message: "decode: expected an open reader, got a closed one." },
    );
  }
  assert.equal(memory().tensors, before);
});
