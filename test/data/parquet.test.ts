import assert from "node:assert/strict";
import { copyFileSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";

import { openParquet } from "../../src/data/parquet.js";
import { readSample } from "../../src/data/source.js";
import { scratch, writeFiles } from "../support/data_files.js";

const folder = scratch();
const at = (name: string): string => join(folder, name);
const PUBLISHED = "test/golden/data/hugging_face.parquet";
const PLAIN = "test/golden/data/plain.parquet";

test("a set as Hugging Face publishes it: records of bytes, class names, row groups", async () => {
  const source = await openParquet(PUBLISHED);
  assert.deepEqual([source.length, source.classNames], [7, ["cat", "dog", "eel"]]);
  for (const i of [6, 0, 3, 2, 5, 1, 4]) {
    const sample = await readSample(source, i);
    assert.deepEqual([sample.id, sample.classId], [`hugging_face.parquet#${i}`, i % 3]);
    assert.deepEqual([sample.pixels?.width, sample.pixels?.data[0]], [4, 10 * i]);
  }
  assert.deepEqual(
    source.blocks?.map((block) => block.length),
    [3, 3, 1],
  );
  assert.ok(source.blocks?.every((block) => block.bytes > 70));
});

test("plain columns: the first of bytes, names as classes, a row without an image", async () => {
  const source = await openParquet(PLAIN);
  assert.deepEqual(source.classNames, ["cat", "eel"]);
  assert.deepEqual(
    [0, 1, 2, 3].map((i) => source.classOf(i)),
    [1, 0, 1, 0],
  );
  assert.equal((await readSample(source, 3)).pixels?.data[0], 130);
  await assert.rejects(readSample(source, 1), {
    message: "plain.parquet#1: expected bytes in column img, got none.",
  });
});

test("several files are one set", async () => {
  for (const name of ["p-0.parquet", "p-1.parquet"]) copyFileSync(PUBLISHED, at(name));
  const source = await openParquet(at("p-*.parquet"));
  assert.equal(source.length, 14);
  assert.deepEqual(
    [source.idOf(6), source.idOf(7), source.idOf(13)],
    ["p-0.parquet#6", "p-1.parquet#0", "p-1.parquet#6"],
  );
  assert.equal((await readSample(source, 13)).pixels?.data[0], 60);
  assert.notEqual(source.fingerprint, (await openParquet(at("p-0.parquet"))).fingerprint);
  assert.equal((await openParquet(PUBLISHED, { classNames: ["x", "y", "z", "w"] })).classNames.length, 4);
});

test("a column that is missing is answered with those there are", async () => {
  const columns = "caption (string), img (byte_array), class (string)";
  await assert.rejects(openParquet(PLAIN, { image: "caption" }), {
    message: `${PLAIN}: expected images in column caption, got ${columns}. Name it with image.`,
  });
  await assert.rejects(openParquet(PLAIN, { label: "kind" }), {
    message:
      `${PLAIN}: expected a column kind with the class, got ${columns}. ` +
      "Name it with label, or set label to null for one class.",
  });
  assert.deepEqual((await openParquet(PLAIN, { label: null })).classNames, ["all"]);
  await assert.rejects(openParquet("test/golden/data/no_image.parquet"), {
    message:
      "test/golden/data/no_image.parquet: expected a column of images, bytes or records with bytes, " +
      "got text (string), size (int64). Name it with image.",
  });
  await assert.rejects(openParquet(PUBLISHED, { label: "image" }), {
    message: `${PUBLISHED}#0: expected a number or name in column image, got Object.`,
  });
});

test("a file with another end has another fingerprint", async () => {
  const whole = readFileSync(PUBLISHED);
  const other = Buffer.from(whole);
  other.write("PARQUET-CPP", whole.indexOf("parquet-cpp")); // what wrote it
  writeFiles(folder, { "a/x.parquet": whole, "b/x.parquet": other, "c/x.parquet": whole });
  const prints = [];
  for (const name of ["a", "b", "c"]) prints.push((await openParquet(at(`${name}/x.parquet`))).fingerprint);
  assert.notEqual(prints[0], prints[1]);
  assert.equal(prints[0], prints[2]);
});

test("cut and damaged files are refused", async () => {
  const whole = readFileSync(PUBLISHED);
  writeFiles(folder, { "cut.parquet": whole.subarray(0, -20) });
  await assert.rejects(
    openParquet(at("cut.parquet")),
    /^RangeError: .*cut\.parquet: expected a parquet file, got .* It is damaged, cut short or something else\.$/,
  );
  await assert.rejects(openParquet(at("absent.parquet")), {
    message: `${at("absent.parquet")}: expected a parquet file, got nothing. Check the path.`,
  });
  const damaged = Buffer.from(whole);
  damaged.fill(0xff, 4, 300);
  writeFiles(folder, { "damaged.parquet": damaged });
  const source = await openParquet(at("damaged.parquet"));
  const message = /damaged\.parquet, rows 0 to 2: expected a sound row group, got /;
  await assert.rejects(readSample(source, 0), message);
  await assert.rejects(readSample(source, 1), message);
  assert.equal((await readSample(source, 6)).pixels?.data[0], 60);
});
