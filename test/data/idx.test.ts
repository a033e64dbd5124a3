import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";
import { gzipSync } from "node:zlib";

import { openIdx } from "../../src/data/idx.js";
import { LABEL_REMEDY } from "../../src/data/labels.js";
import { readSample } from "../../src/data/source.js";
import { scratch, writeFiles } from "../support/data_files.js";

const folder = scratch();

/** An IDX file of bytes: the type and rank, the sizes, the data. */
function idx(sizes: readonly number[], data: readonly number[]): Buffer {
  const head = Buffer.alloc(4 + 4 * sizes.length);
  head.writeUInt32BE(0x0800 + sizes.length);
  for (const [i, size] of sizes.entries()) head.writeUInt32BE(size, 4 + 4 * i);
  return Buffer.concat([head, Buffer.from(data)]);
}

const pixels = Array.from({ length: 3 * 2 * 4 }, (_, i) => 10 * i);
const images = idx([3, 2, 4], pixels);
const labels = idx([3], [7, 0, 7]);
const path = join(folder, "train-images-idx3-ubyte");

test("gzipped and plain files give the same grey images and classes", async () => {
  writeFiles(folder, {
    "a/train-images-idx3-ubyte.gz": gzipSync(images),
    "a/train-labels-idx1-ubyte.gz": gzipSync(labels),
    "b/train-images.idx3-ubyte": images,
    "b/train-labels.idx1-ubyte": labels,
    "c/train-images-idx3-ubyte": images,
    "c/train-labels-idx1-ubyte.gz": gzipSync(labels),
  });
  const files = ["a/train-images-idx3-ubyte.gz", "b/train-images.idx3-ubyte", "c/train-images-idx3-ubyte"];
  const prints = [];
  for (const name of files) {
    const source = await openIdx(join(folder, name));
    assert.deepEqual([source.length, source.classNames.length], [3, 8]);
    const sample = await readSample(source, 1);
    assert.deepEqual([sample.pixels?.width, sample.pixels?.height, sample.classId], [4, 2, 0]);
    assert.deepEqual(
      [...(sample.pixels?.data ?? [])],
      pixels.slice(8, 16).flatMap((level) => [level, level, level]),
    );
    assert.equal(source.classOf(2), 7);
    prints.push(source.fingerprint);
  }
  assert.equal(prints[0], prints[2]);
});

test("names of classes are given, or there is one class", async () => {
  writeFiles(folder, { "train-images-idx3-ubyte": images, "train-labels-idx1-ubyte": labels });
  const classNames = "abcdefgh".split("");
  assert.deepEqual((await openIdx(path, { classNames })).classNames, classNames);
  assert.deepEqual((await openIdx(path, { label: null })).classNames, ["all"]);
});

test("another byte of one image is another fingerprint", async () => {
  const before = (await openIdx(path)).fingerprint;
  writeFiles(folder, { "train-images-idx3-ubyte": idx([3, 2, 4], pixels.with(5, 1)) });
  assert.notEqual((await openIdx(path)).fingerprint, before);
});

test("what is damaged or missing is named", async () => {
  const refuse = async (files: Record<string, Uint8Array>, message: string): Promise<void> => {
    writeFiles(folder, { "train-images-idx3-ubyte": images, "train-labels-idx1-ubyte": labels, ...files });
    await assert.rejects(openIdx(path), { message });
  };
  const labelPath = join(folder, "train-labels-idx1-ubyte");
  await refuse(
    { "train-images-idx3-ubyte": images.subarray(0, -1) },
    `${path}: expected 24 bytes for [3, 2, 4], got 23. The file was cut short or is damaged.`,
  );
  await refuse(
    { "train-images-idx3-ubyte": idx([20], new Array<number>(20).fill(1)) },
    `${path}: expected an IDX file of bytes in 3 dimensions (00000803), got 00000801.`,
  );
  await refuse(
    { "train-labels-idx1-ubyte": idx([2], [1, 2]) },
    `${labelPath}: expected 3 labels, one for each image, got 2.`,
  );
  await refuse(
    { "train-images-idx3-ubyte": idx([0, 2, 4], []) },
    `${path}: expected at least one image, got [0, 2, 4].`,
  );
  const cut = gzipSync(images).subarray(0, -9);
  writeFiles(folder, { "train-images-idx3-ubyte": cut });
  await assert.rejects(
    openIdx(path),
    /train-images-idx3-ubyte: expected gzipped bytes, .*got unexpected end of file/,
  );
  const alone = join(folder, "alone-images-idx3-ubyte");
  writeFiles(folder, { "alone-images-idx3-ubyte": images });
  await assert.rejects(openIdx(alone), {
    message: `${alone}: expected labels in alone-labels-idx1-ubyte, got no such file. ${LABEL_REMEDY}.`,
  });
});

test("no more is unpacked than the header says, and no more than fits into memory", async () => {
  const bomb = gzipSync(Buffer.concat([idx([1, 2, 4], [1, 2, 3, 4, 5, 6, 7, 8]), Buffer.alloc(2 ** 26)]));
  const none = gzipSync(idx([2 ** 31, 2 ** 10, 2 ** 10], []));
  const before = process.memoryUsage().arrayBuffers;
  writeFiles(folder, { "bomb-images-idx3-ubyte.gz": bomb, "none-images-idx3-ubyte": none });
  await assert.rejects(openIdx(join(folder, "bomb-images-idx3-ubyte.gz"), { label: null }), {
    name: "RangeError",
    message: /bomb-images-idx3-ubyte\.gz: expected gzipped bytes, .*got more than 25 bytes/,
  });
  assert.ok(process.memoryUsage().arrayBuffers - before < 2 ** 25);
  await assert.rejects(openIdx(join(folder, "none-images-idx3-ubyte"), { label: null }), {
    name: "RangeError",
    message: /none-images-idx3-ubyte: expected at most \d+ bytes, .*got \[2147483648, 1024, 1024\]/,
  });
});
