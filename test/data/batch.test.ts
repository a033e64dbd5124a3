import assert from "node:assert/strict";
import { test } from "node:test";

import { type BatchShape, batchOf, type Row, UnreadableImages } from "../../src/data/batch.js";
import { START } from "../../src/data/order.js";
import { memory } from "../../src/torch/index.js";
import { noLeak } from "../support/leak.js";

const shape: BatchShape = { size: 2, featureTokens: undefined, device: "cpu" };
const row = (id: string, more: Partial<Row>): Row => ({ id, classId: 0, ...more });

test("images are channels first in [-1, 1], classes int64, ids in order", () => {
  noLeak(() => {
    const first = Uint8Array.of(0, 1, 2, 10, 11, 12, 20, 21, 22, 255, 31, 32);
    using batch = batchOf(
      [row("a", { data: first, classId: 3 }), row("b", { data: new Uint8Array(12) })],
      { epoch: 1, position: 5 },
      shape,
    );
    assert.deepEqual(batch.images?.shape, [2, 3, 2, 2]);
    const levels = [0, 10, 20, 255, 1, 11, 21, 31, 2, 12, 22, 32];
    using flat = batch.images.view(24);
    assert.deepEqual(
      flat.toList(),
      [...levels, ...new Array<number>(12).fill(0)].map((level) =>
        Math.fround(Math.fround(level / 127.5) - 1),
      ),
    );
    assert.deepEqual([batch.classes.dtype, batch.classes.toList()], ["int64", [3, 0]]);
    assert.deepEqual([batch.ids, batch.cursor], [["a", "b"], { epoch: 1, position: 5 }]);
    assert.deepEqual([batch.codes, batch.features, batch.isReal], [undefined, undefined, undefined]);
  });
});

test("codes are int64 rows", () => {
  noLeak(() => {
    using batch = batchOf(
      [row("a", { codes: BigInt64Array.of(1n, 2n, 3n) }), row("b", { codes: BigInt64Array.of(4n, 5n, 6n) })],
      START,
      shape,
    );
    assert.deepEqual(
      [batch.codes?.dtype, batch.codes?.toList()],
      [
        "int64",
        [
          [1, 2, 3],
          [4, 5, 6],
        ],
      ],
    );
    assert.equal(batch.images, undefined);
  });
});

test("texts are padded on the left, or cut at the end", () => {
  const features = (...data: number[]) => ({
    data: Float32Array.from(data),
    shape: [data.length / 2, 2] as const,
  });
  const rows = [
    row("a", { data: new Uint8Array(12), features: features(1, 2) }),
    row("b", { data: new Uint8Array(12), features: features(3, 4, 5, 6, 7, 8) }),
  ];
  noLeak(() => {
    using longest = batchOf(rows, START, shape);
    assert.deepEqual(longest.features?.toList(), [
      [
        [0, 0],
        [0, 0],
        [1, 2],
      ],
      [
        [3, 4],
        [5, 6],
        [7, 8],
      ],
    ]);
    assert.equal(longest.isReal?.dtype, "bool");
    assert.deepEqual([...(longest.isReal?.toArray() ?? [])].map(Number), [0, 0, 1, 1, 1, 1]);
    using two = batchOf(rows, START, { ...shape, featureTokens: 2 });
    assert.deepEqual(two.features?.toList(), [
      [
        [0, 0],
        [1, 2],
      ],
      [
        [3, 4],
        [5, 6],
      ],
    ]);
  });
  const before = memory().tensors;
  const wide = row("c", { data: new Uint8Array(12), features: { data: new Float32Array(3), shape: [1, 3] } });
  assert.throws(() => batchOf([...rows, wide], START, shape), {
    message: "text features: expected the same width for all, 2 for a, got 3 for c.",
  });
  assert.equal(memory().tensors, before);
});

test("unreadable images are told once: the first ten by name, then the count when it has doubled", () => {
  const images = new UnreadableImages();
  assert.deepEqual(images.news(), []);
  for (let i = 0; i < 3; i++) images.add(`${i}.png`, `${i}.png: bad`);
  images.add("1.png", "1.png: bad");
  assert.deepEqual(
    [images.count, images.news()],
    [3, [0, 1, 2].map((i) => `unreadable image: ${i}.png: bad`)],
  );
  assert.deepEqual(images.news(), []);
  const told: string[] = [];
  for (let i = 3; i < 50; i++) {
    images.add(`${i}.png`, `${i}.png: bad`);
    told.push(...images.news());
  }
  assert.deepEqual(
    told.slice(0, 7).map((line) => line.slice(18)),
    [3, 4, 5, 6, 7, 8, 9].map((i) => `${i}.png: bad`),
  );
  assert.deepEqual(
    told.slice(7).map((line) => Number.parseInt(line, 10)),
    [11, 20, 40],
  );
});
