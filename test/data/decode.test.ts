import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";

import sharp from "sharp";

import {
  type DecodeTask,
  decode,
  decodeFewAtOnce,
  readImage,
  readPart,
  readPixels,
} from "../../src/data/decode.js";
import { centerCrop, smallestSideCrop } from "../../src/data/resample.js";
import { grey, npyOf, scratch, writeFiles } from "../support/data_files.js";

const folder = scratch();
const at = (name: string): string => join(folder, name);

/** 3 x 2 pixels of different colours. */
const raw = Uint8Array.from({ length: 18 }, (_, i) => i * 14);
const pixels = { width: 3, height: 2, channels: 3, data: raw };
const task = (more: Partial<DecodeTask>): DecodeTask => {
  return { id: "x", image: { pixels }, size: 2, crop: "center", isFlipped: false, ...more };
};

test("a file, a part of one, bytes and pixels give the same image", async () => {
  const png = await sharp(raw, { raw: { width: 3, height: 2, channels: 3 } })
    .png()
    .toBuffer();
  writeFiles(folder, {
    "whole.png": png,
    archive: Buffer.concat([Buffer.alloc(100, 7), png, Buffer.alloc(9)]),
  });
  const part = { path: at("archive"), offset: 100, length: png.length };
  for (const image of [{ path: at("whole.png") }, part, { bytes: new Uint8Array(png) }, { pixels }]) {
    assert.deepEqual(await readImage(image, "x"), pixels);
  }
});

test("both crops are those of resample.ts; a flip mirrors left and right", async () => {
  const wide = {
    width: 9,
    height: 7,
    channels: 3,
    data: Uint8Array.from({ length: 189 }, (_, i) => (i * 89) % 256),
  };
  const image = { pixels: wide };
  const center = centerCrop(wide, 3).data;
  const smallest = smallestSideCrop(wide, 3).data;
  assert.notDeepEqual(center, smallest);
  assert.deepEqual((await decode(task({ image, size: 3 }))).data, center);
  assert.deepEqual((await decode(task({ image, size: 3, crop: "smallest_side" }))).data, smallest);
  const flipped = await decode(task({ image, size: 3, isFlipped: true }));
  const columns = [2, 1, 0, 5, 4, 3, 8, 7, 6];
  assert.deepEqual(
    [...flipped.data],
    columns.flatMap((i) => [...center.subarray(3 * i, 3 * i + 3)]),
  );
});

test("grey pixels become three equal channels", async () => {
  const image = { pixels: { width: 2, height: 2, channels: 1, data: Uint8Array.of(1, 2, 3, 4) } };
  assert.deepEqual([...(await decode(task({ image }))).data], [1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]);
});

test("features come with their image, and name it when they are unsound", async () => {
  writeFiles(folder, {
    "good.npy": npyOf(Float32Array.of(1, 2), [1, 2]),
    "bad.npy": npyOf(Float32Array.of(1, NaN), [1, 2]),
  });
  const decoded = await decode(task({ features: { path: at("good.npy") } }));
  assert.deepEqual(decoded.features, { data: Float32Array.of(1, 2), shape: [1, 2] });
  await assert.rejects(decode(task({ id: "cat/1.png", features: { path: at("bad.npy") } })), {
    message:
      "text features of cat/1.png: expected finite numbers, got NaN at [0, 1]. Extract the features again, in float32.",
  });
});

test("an image that is too large, empty, absent or shut off is refused by name", async () => {
  const huge = '<svg xmlns="http://www.w3.org/2000/svg" width="20000" height="20000"></svg>';
  await assert.rejects(readPixels(Buffer.from(huge), "huge.svg"), {
    message:
      "huge.svg: expected an image, got one of more than 89478485 pixels. Remove the file or convert it to PNG.",
  });
  await assert.rejects(
    readImage({ bytes: new Uint8Array() }, "empty.png"),
    /^RangeError: empty\.png: expected an image, got /,
  );
  const absent = at("absent.png");
  await assert.rejects(readPart({ path: absent }), {
    message: `${absent}: expected a file that can be read, got ENOENT: no such file or directory, open '${absent}'.`,
  });
  writeFiles(folder, { short: "12345" });
  await assert.rejects(readPart({ path: at("short"), offset: 2, length: 8 }), {
    message: `${at("short")}: expected 8 bytes at byte 2, got 3. The file was cut short.`,
  });
});

test("many at once, and again, all come back in their places, failures among them", async () => {
  const few = decodeFewAtOnce();
  const images = await Promise.all(Array.from({ length: 20 }, (_, i) => grey(i * 10)));
  for (let wave = 0; wave < 2; wave++) {
    const results = await Promise.allSettled(
      images.map((bytes, i) => few(task({ image: { bytes: i % 5 === 0 ? new Uint8Array([i]) : bytes } }))),
    );
    for (const [i, result] of results.entries()) {
      if (i % 5 === 0) assert.equal(result.status, "rejected");
      else assert.equal(result.status === "fulfilled" && result.value.data[0], i * 10);
    }
  }
});
