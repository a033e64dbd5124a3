import assert from "node:assert/strict";
import { test } from "node:test";

import { fromIterable, type Loader, type LoaderItem } from "../../src/data/iterable.js";
import type { Cursor } from "../../src/data/order.js";
import { cat, full, memory, type Tensor, tensor, tidy } from "../../src/torch/index.js";
import "../support/settle.js";

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
      { ids: ["0:0/0", "0:0/1"], value: -1, classes: [0, 0], cursor: { epoch: 0, position: 1, batch: 2 } },
      { ids: ["0:1/0", "0:1/1"], value: 0, classes: [3, 4], cursor: { epoch: 0, position: 2, batch: 2 } },
      { ids: ["x", "y"], value: 1, classes: [5, 6], cursor: { epoch: 0, position: 3, batch: 2 } },
      { ids: ["1:0/0", "1:0/1"], value: -1, classes: [0, 0], cursor: { epoch: 1, position: 1, batch: 2 } },
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
      "loader: expected at least 5 items per epoch, to resume, got 2. Resume with the same loader.",
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

test("batches of other sizes are joined and cut to the first one's, and resumed within an item", async () => {
  const before = memory().tensors;
  {
    // Images 0 to 9 of one epoch, as a loader of 4 gives them: the last batch is smaller.
    const values = (from: number, count: number): Tensor =>
      tidy(() => cat(Array.from({ length: count }, (_, i) => full([1, 3, 2, 2], (from + i) / 10))));
    using a = values(0, 4);
    using b = values(4, 4);
    using c = values(8, 2);
    const loader = [
      { images: a, classes: [0, 1, 2, 3] },
      { images: b, classes: [4, 5, 6, 7] },
      { images: c, classes: [8, 9] },
    ];
    const read = async (items: Loader, count: number, cursor?: Cursor) => {
      const batches = fromIterable(items, { batchSize: 7, ...(cursor && { cursor }) });
      const seen = [];
      try {
        for (let i = 0; i < count; i++) {
          using batch = await batches.next();
          seen.push({ classes: batch.classes.toList() as number[], cursor: batch.cursor, ids: batch.ids });
          const firsts = tidy(() =>
            (batch.images as Tensor).reshape(-1, 12).select(1, 0).mul(10).round().toList(),
          );
          assert.deepEqual(firsts, seen.at(-1)?.classes);
        }
        return seen;
      } finally {
        batches.close();
      }
    };
    const whole = await read(loader, 6);
    assert.deepEqual(
      whole.map(({ classes }) => classes),
      [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9, 0, 1],
        [2, 3, 4, 5],
        [6, 7, 8, 9],
        [0, 1, 2, 3],
      ],
    );
    assert.deepEqual(whole[2]?.cursor, { epoch: 1, position: 0, batch: 4, used: 2 });
    assert.deepEqual(whole[2]?.ids, ["0:2/0", "0:2/1", "1:0/0", "1:0/1"]);
    const begin = (from: Cursor): LoaderItem[] => loader.slice(from.position);
    for (const items of [loader, begin]) {
      for (let i = 0; i < 5; i++) {
        const left = JSON.parse(JSON.stringify(whole[i]?.cursor)) as Cursor;
        assert.deepEqual(await read(items, 5 - i, left), whole.slice(i + 1));
      }
    }
    // A batch that is larger than the first is cut.
    assert.deepEqual(
      (await read([{ images: c, classes: [8, 9] }, loader[1] as LoaderItem], 3)).map(
        ({ classes }) => classes,
      ),
      [
        [8, 9],
        [4, 5],
        [6, 7],
      ],
    );
    // Several batches within one item, begun anew after each.
    using many = values(0, 10);
    const long = [
      { images: c, classes: [8, 9] },
      { images: many, classes: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9] },
    ];
    const all = await read(long, 6);
    assert.deepEqual(all[3]?.cursor, { epoch: 0, position: 1, batch: 2, used: 6 });
    for (let i = 0; i < 5; i++) assert.deepEqual(await read(long, 5 - i, all[i]?.cursor), all.slice(i + 1));
    using small = full([2, 3, 1, 1], 0);
    await assert.rejects(read([{ images: a, classes: [0, 1, 2, 3] }, { images: small }], 2), {
      name: "RangeError",
      message: /^loader: expected images of shape \[3, 1, 1\].*got \[3, 2, 2\]/,
    });
  }
  assert.equal(memory().tensors, before);
});

test("classes of a loader are whole numbers that the model knows", async () => {
  using one = images(0);
  using half = tensor([0.5, 1]);
  using below = tensor([0, -1], { dtype: "int64" });
  const first = async (item: LoaderItem): Promise<void> => {
    (await fromIterable([item], { batchSize: 2, size: 2, numClasses: 3 }).next()).dispose();
  };
  await first([one, [0, 2]]);
  await assert.rejects(first([one, [0, 3]]), {
    name: "RangeError",
    message: /^loader: 0:0\/1: expected a class id from 0 to 2, .*got 3, which stands for no class/,
  });
  await assert.rejects(first({ images: one, classes: below, ids: ["x", "y"] }), {
    message: /^loader: y: expected a class id from 0 to 2, .*got -1\. .*data\.label=none/,
  });
  await assert.rejects(first([one, [0, 0.5]]), {
    message: /^loader: 0:0\/1: expected a class id, .*got 0\.5/,
  });
  await assert.rejects(first([one, half]), { name: "TypeError", message: /whole numbers, got float32/ });
});

test("images of different sizes in one batch are refused in a sentence", async () => {
  using small = full([3, 1, 1], 0);
  using large = full([3, 2, 2], 0);
  const loader = [{ image: small, id: "small" }, { image: large }];
  await assert.rejects(fromIterable(loader, { batchSize: 2 }).next(), {
    name: "RangeError",
    message: /^loader: expected images of shape \[3, 1, 1\], as small, got \[3, 2, 2\] of 0:1\./,
  });
});

test("parts of an item that nothing reads are refused, and 8-bit images that are not whole", async () => {
  using one = images(0);
  using single = full([3, 2, 2], 0);
  const first = async (item: unknown): Promise<void> => {
    (await fromIterable([item as LoaderItem], { batchSize: 1, size: 2 }).next()).dispose();
  };
  await first({ images: one, is_real: undefined });
  await assert.rejects(first({ images: one, labels: [1, 2] }), {
    name: "RangeError",
    message: /^loader: 0:0: expected a known option, got labels\. .*classes/,
  });
  await assert.rejects(first({ image: single, label: 3 }), {
    name: "RangeError",
    message: /^loader: 0:0: expected a known option, got label\. .*class/,
  });
  await assert.rejects(first([one, [1, 2], 3]), {
    message: /^loader: 0:0: expected a pair of images and classes/,
  });
  for (const odd of [null, 7, "x"]) {
    await assert.rejects(first(odd), { name: "TypeError", message: /^loader: expected a tensor of images/ });
  }
  const pixels = { width: 2, height: 2, channels: 3, data: new Uint8Array(11) };
  await assert.rejects(first({ image: pixels, id: "cut" }), {
    name: "RangeError",
    message: /^loader: cut: expected \{ width, .*got 2 x 2 x 3 and 11 bytes/,
  });
});
