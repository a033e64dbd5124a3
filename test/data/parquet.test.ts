import assert from "node:assert/strict";
import { copyFileSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";

import { LABEL_REMEDY } from "../../src/data/labels.js";
import { openParquet } from "../../src/data/parquet.js";
import { readSample } from "../../src/data/source.js";
import { goldenData, scratch, writeFiles } from "../support/data_files.js";

const folder = scratch();
const at = (name: string): string => join(folder, name);
const PUBLISHED = goldenData("hugging_face.parquet");
const PLAIN = goldenData("plain.parquet");

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
    message: /^plain\.parquet#1: expected .* column img, got none/,
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
    message: `${PLAIN}: expected images in column caption, got ${columns}. Name img with data.image.`,
  });
  await assert.rejects(openParquet(PLAIN, { label: "kind" }), {
    message:
      `${PLAIN}: expected a column kind with the class, got ${columns}. ` +
      `Name the right one with data.label. ${LABEL_REMEDY}.`,
  });
  assert.deepEqual((await openParquet(PLAIN, { label: null })).classNames, ["all"]);
  await assert.rejects(openParquet(goldenData("no_image.parquet")), {
    message:
      `${goldenData("no_image.parquet")}: expected a column of images, bytes or records with bytes, ` +
      "got text (string), size (int64). Write the encoded images as a column of bytes.",
  });
  await assert.rejects(openParquet(PUBLISHED, { label: "image" }), {
    message: `${PUBLISHED}: expected one class per row in column image, got records of bytes and path. ${LABEL_REMEDY}.`,
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
    /^RangeError: .*cut\.parquet, its footer: expected .*, got .* damaged, cut short/,
  );
  await assert.rejects(openParquet(at("absent.parquet")), {
    message: `${at("absent.parquet")}: expected a parquet file, got nothing. Check the path.`,
  });
  const damaged = Buffer.from(whole);
  damaged.fill(0xff, 4, 300);
  writeFiles(folder, { "damaged.parquet": damaged });
  const source = await openParquet(at("damaged.parquet"));
  const notParquet = { empty: "", magic: "PAR1", footer: "PAR1\0\0\0\0\0\0\0\0PAR1" };
  for (const [name, text] of Object.entries(notParquet)) {
    writeFiles(folder, { [`${name}.parquet`]: text });
    const wanted =
      /its footer: expected sound parquet data, got bytes that do not fit together\. The file is/;
    await assert.rejects(openParquet(at(`${name}.parquet`)), wanted, name);
  }
  const message = /damaged\.parquet, row group 0, column image: expected sound parquet data, got /;
  await assert.rejects(readSample(source, 0), message);
  await assert.rejects(readSample(source, 1), message);
  assert.equal((await readSample(source, 6)).pixels?.data[0], 60);
});

test("lists are refused as lists, with advice that can be followed", async () => {
  for (const [name, column] of [
    ["image_list", "images"],
    ["byte_list", "images"],
  ] as const) {
    for (const options of [{}, { image: column }]) {
      const message = new RegExp(`${name}\\.parquet: expected .*images \\(a list\\).* rows of their own\\.$`);
      await assert.rejects(openParquet(goldenData(`${name}.parquet`), options), {
        name: "RangeError",
        message,
      });
    }
  }
  await assert.rejects(openParquet(goldenData("label_list.parquet")), {
    message: /expected one class per row in column label, got a list\. .*data\.label=none/,
  });
  assert.equal((await openParquet(goldenData("label_list.parquet"), { label: null })).length, 3);
});

test("encrypted files and columns, encodings that are not read and a list inside of a record have a remedy", async () => {
  await assert.rejects(openParquet(goldenData("encrypted.parquet")), {
    name: "RangeError",
    message: /encrypted\.parquet, its footer: expected .*, got an encrypted one\. Decrypt/,
  });
  await assert.rejects(openParquet(goldenData("encrypted_label.parquet")), {
    name: "RangeError",
    message: /encrypted_label\.parquet: expected .*, got label, which is\. Decrypt/,
  });
  const open = await openParquet(goldenData("encrypted_label.parquet"), { label: null });
  assert.equal((await readSample(open, 2)).pixels?.data[0], 30);
  const delta = await openParquet(goldenData("delta_bytes.parquet"));
  await assert.rejects(readSample(delta, 0), {
    message:
      /delta_bytes\.parquet, row group 0, column image: .* got DELTA_BYTE_ARRAY\. Write the file again/,
  });
  await assert.rejects(openParquet(goldenData("record_list.parquet")), {
    message: /image \(records of bytes and path\).* rows of their own\.$/,
  });
});

test("images that are not in the file are said at the opening", async () => {
  for (const name of ["paths_only", "paths_only_unknown"]) {
    await assert.rejects(openParquet(goldenData(`${name}.parquet`)), {
      name: "RangeError",
      message: /column image, got none in its 3 rows\. .*paths.*folder/,
    });
  }
  await assert.rejects(openParquet(goldenData("path_struct.parquet")), {
    message: /got image \(records of path\), .*only their paths.*folder/,
  });
  const { notes } = await openParquet(PLAIN);
  assert.match(notes?.join() ?? "", /plain\.parquet: 1 of 4 rows have no image in column img/);
});

test("labels -1 and null name file, row and column, and say how to train without labels", async () => {
  for (const [name, row, got] of [
    ["label_unknown", 1, "-1"],
    ["label_null", 2, "(null|undefined)"],
  ] as const) {
    await assert.rejects(openParquet(goldenData(`${name}.parquet`)), {
      name: "RangeError",
      message: new RegExp(
        `${name}\\.parquet, row ${row}, column label: expected .*, got ${got}\\. .*data\\.label=none`,
      ),
    });
    assert.equal((await openParquet(goldenData(`${name}.parquet`), { label: null })).classNames.length, 1);
  }
});

test("whatever is damaged, the message names file, row group and column, and nothing is left unhandled", async () => {
  const unhandled: unknown[] = [];
  const note = (error: unknown) => unhandled.push(error);
  process.on("unhandledRejection", note);
  const ours =
    /^RangeError: .*\.parquet(?:, its footer|, row group \d+, column \w+)?: expected .*, got |^RangeError: \S+\.parquet#\d+: expected/;
  for (const name of readdirSync(goldenData("damaged")).filter((one) => one.endsWith(".parquet"))) {
    const problems: unknown[] = [];
    try {
      const source = await openParquet(goldenData(`damaged/${name}`));
      for (let i = 0; i < source.length; i++) {
        await readSample(source, i).catch((error: unknown) => problems.push(error));
      }
    } catch (error) {
      problems.push(error);
    }
    for (const error of problems) assert.match(String(error), ours, name);
  }
  // A promise that nobody waits for is reported when the turn is over.
  await new Promise((resolve) => setTimeout(resolve, 20));
  process.off("unhandledRejection", note);
  assert.deepEqual(unhandled, []);
});

test("what could be taken for something else is refused, or said", async () => {
  const refused = async (path: string, message: RegExp): Promise<void> =>
    await assert.rejects(openParquet(path), { name: "RangeError", message });
  await refused(
    goldenData("column_twice.parquet"),
    /: expected one column label, got two, .*\. Write the file/,
  );
  await refused(
    goldenData("label_bytes.parquet"),
    /row 0, column label: expected .*UTF-8, got other bytes\./,
  );
  await refused(
    goldenData("names_twice.parquet"),
    /classes of column label: .*got a twice\. .*data\.classNames/,
  );
  const masks = await openParquet(goldenData("mask_and_image.parquet"));
  assert.equal((await readSample(masks, 0)).pixels?.data[0], 10);
  assert.match(masks.notes?.join() ?? "", /from column image; data\.image names another of mask/);
});

test("files that give one id to different classes are refused, unless the classes are given", async () => {
  for (const name of ["names_ab.parquet", "names_ba.parquet"]) copyFileSync(goldenData(name), at(name));
  await assert.rejects(openParquet(at("names_*.parquet")), {
    message:
      /names_ba\.parquet: expected the same class 0 .*, got b, which is a in .*names_ab\.parquet\. Give all/,
  });
  const idsBy = async (...classNames: string[]): Promise<number[]> => {
    const source = await openParquet(at("names_*.parquet"), { classNames });
    assert.deepEqual(source.classNames, classNames);
    return Array.from({ length: source.length }, (_, i) => source.classOf(i));
  };
  // Names that the files have decide; where the files have other names, their ids do.
  assert.deepEqual(await idsBy("a", "b", "c"), [0, 1, 0, 1, 0, 1]);
  assert.deepEqual(await idsBy("x", "y"), [0, 1, 0, 0, 1, 0]);
});
