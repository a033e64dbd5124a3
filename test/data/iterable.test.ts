import assert from "node:assert/strict";
import { test } from "node:test";

import { fromIterable, type Loader, type LoaderItem } from "../../src/data/iterable.js";
import type { Cursor } from "../../src/data/order.js";
import { full, memory, type Tensor, tensor } from "../../src/torch/index.js";

/** A batch of two images of 2 x 2, of one value. */
const images = (value: number): Tensor => full([2, 3, 2, 2], value);

/** The ids and first values of the next batches. */
async function read(loader: Loader, count: number, cursor?: Cursor) {
  const batches = fromIterable(loader, { batchSize: 2, size: 2, ...(cursor && { cursor }) });
  const seen = [];
  for (let i = 0; i < count; i++) {
    using batch = await batches.next();
    seen.push({
      ids: batch.ids,
      value: batch.images?.toArray()[0],
      classes: batch.classes.toList(),
      cursor: batch.cursor,
    });
  }
  batches.close();
  return seen;
}

test("batches come as tensors, pairs or objects, and epochs follow each other", async () => {
  const before = memory().tensors;
  {
    using a = images(-1);
    using b = images(0);
    using c = images(1);
    using classes = tensor([3, 4], { dtype: "int32" });
    const loader = [a, [b, classes] as const, { images: c, classes: [5, 6], ids: ["x", "y"] }];
    const seen = await read(loader, 4);
    assert.deepEqual(seen, [
      { ids: ["0:0/0", "0:0/1"], value: -1, classes: [0, 0], cursor: { epoch: 0, position: 1 } },
      { ids: ["0:1/0", "0:1/1"], value: 0, classes: [3, 4], cursor: { epoch: 0, position: 2 } },
      { ids: ["x", "y"], value: 1, classes: [5, 6], cursor: { epoch: 0, position: 3 } },
      { ids: ["1:0/0", "1:0/1"], value: -1, classes: [0, 0], cursor: { epoch: 1, position: 1 } },
    ]);
    assert.deepEqual(await read(loader, 2, seen[1]?.cursor), seen.slice(2));
    // The loader's own tensors stay, and are not those of the batch.
    assert.equal(a.toArray()[0], -1);
    const batch = await fromIterable([[b, classes] as const], { batchSize: 2 }).next();
    b.fill_(1);
    classes.fill_(9);
    assert.deepEqual([batch.images?.toArray()[0], batch.classes.toList()], [0, [3, 4]]);
    batch.dispose();
  }
  assert.equal(memory().tensors, before);
});

test("single images, tensors or 8-bit, are gathered; their classes and ids stay with them", async () => {
  const before = memory().tensors;
  async function* loader(): AsyncGenerator<LoaderItem> {
    const pixels = { width: 4, height: 2, channels: 3, data: new Uint8Array(24).fill(255) };
    yield { image: pixels, class: 2, id: "white" };
    using image = full([3, 2, 2], 0.5);
    yield { image };
    yield { image: pixels, class: 1, id: "last" };
  }
  const seen = await read(loader, 2);
  assert.deepEqual(seen, [
    { ids: ["white", "0:1"], value: 1, classes: [2, 0], cursor: { epoch: 0, position: 2 } },
    { ids: ["last", "white"], value: 1, classes: [1, 2], cursor: { epoch: 1, position: 1 } },
  ]);
  assert.equal(memory().tensors, before);
});

test("a function is told where to begin", async () => {
  const asked: Cursor[] = [];
  const loader = (from: Cursor): LoaderItem[] => {
    asked.push(from);
    const pixels = { width: 2, height: 2, channels: 3, data: new Uint8Array(12) };
    return [0, 1, 2, 3].slice(from.position).map((i) => ({ image: pixels, id: `${from.epoch}.${i}` }));
  };
  const seen = await read(loader, 2, { epoch: 4, position: 1 });
  assert.deepEqual(
    seen.map(({ ids }) => ids),
    [
      ["4.1", "4.2"],
      ["4.3", "5.0"],
    ],
  );
  assert.deepEqual(asked, [
    { epoch: 4, position: 1 },
    { epoch: 5, position: 0 },
  ]);
});

test("features are handed on", async () => {
  using some = images(0);
  using features = full([2, 3, 4], 0.25);
  using isReal = full([2, 3], 1, { dtype: "bool" });
  using batch = await fromIterable([{ images: some, features, isReal }], { batchSize: 2 }).next();
  assert.deepEqual(
    [batch.features?.shape, batch.isReal?.shape],
    [
      [2, 3, 4],
      [2, 3],
    ],
  );
});

test("a loader that cannot go on, or gives something else, is refused in a sentence", async () => {
  const before = memory().tensors;
  const refuse = async (loader: unknown, message: string, count = 1, cursor?: Cursor): Promise<void> => {
    await assert.rejects(read(loader as Loader, count, cursor), { message });
  };
  {
    using one = images(0);
    const once = (function* (): Generator<LoaderItem> {
      yield { images: one };
    })();
    await refuse(
      once,
      "loader: expected something in epoch 1, got nothing. " +
        "A generator can be gone through only once: give a function that makes one.",
      2,
    );
    await refuse(
      [one, one],
      "loader: expected at least 5 items an epoch, to resume, got 2. Resume with the same loader.",
      1,
      { epoch: 0, position: 5 },
    );
    using bytes = images(255);
    const divide = "Divide bytes by 127.5 and subtract 1";
    await refuse([bytes], `loader: expected images in [-1, 1], got values from 255 to 255. ${divide}.`);
    using nan = images(NaN);
    await refuse([nan], `loader: expected images in [-1, 1], got values from NaN to NaN. ${divide}.`);
    using ints = full([2, 3, 2, 2], 1, { dtype: "uint8" });
    await refuse([ints], `loader: expected float images in [-1, 1], got uint8. ${divide}.`);
    using flat = full([3, 2, 2], 1);
    await refuse([flat], "loader: expected images of shape [B, 3, H, W], got Tensor float32[3, 2, 2] cpu.");
    await refuse(
      [{ images: one, classes: [1] }],
      "loader: expected classes of shape [2], one for each image, got Tensor int64[1] cpu.",
    );
    await refuse([{ images: one, ids: ["a"] }], "loader: expected 2 ids, one for each image, got 1.");
    await refuse([{ image: flat }, one], "loader: expected images alone or batches alone, got both.");
    await refuse(
      [{ pictures: 1 }],
      "loader: expected a tensor of images, a pair of images and classes, { images, classes } or { image, class }, got undefined.",
    );
    assert.throws(() => fromIterable(7 as never, { batchSize: 1 }), {
      message: "fromIterable: expected an iterable of images, or a function that gives one, got 7.",
    });
    assert.throws(() => fromIterable([], { batchSize: 0 }), {
      message: "batchSize: expected a whole number from 1, got 0.",
    });
    const pixels = { width: 2, height: 2, channels: 3, data: new Uint8Array(12) };
    await assert.rejects(fromIterable([{ image: pixels }], { batchSize: 1 }).next(), {
      message: "size: expected the width of the images, as they come in 8-bit, got nothing.",
    });
  }
  assert.equal(memory().tensors, before);
});
