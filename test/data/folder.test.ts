import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { cpSync, rmSync, symlinkSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { gzipSync } from "node:zlib";

import sharp from "sharp";

import { openFolder } from "../../src/data/folder.js";
import { listImages } from "../../src/data/images.js";
import { openSource } from "../../src/data/open_source.js";
import { readSample } from "../../src/data/source.js";
import { saveSafetensors, tensor } from "../../src/torch/index.js";
import { grey, npyOf, scratch, writeFiles, writeImages } from "../support/data_files.js";

const folder = scratch();
const at = (name: string): string => join(folder, name);

test("subfolders are classes, and identities do not depend on where the folder lies", async () => {
  await writeImages(at("set"), 5, 3);
  writeFiles(at("set"), { "notes.txt": "", ".DS_Store": "" });
  const source = await openFolder(at("set"));
  assert.equal(source.length, 5);
  assert.deepEqual(source.classNames, ["a", "b", "c"]);
  const ids = [0, 1, 2, 3, 4].map((i) => source.idOf(i));
  assert.deepEqual(ids, ["a/000.png", "a/003.png", "b/001.png", "b/004.png", "c/002.png"]);
  assert.deepEqual(
    [0, 1, 2, 3, 4].map((i) => source.classOf(i)),
    [0, 0, 1, 1, 2],
  );
  const sample = await readSample(source, 3);
  assert.deepEqual([sample.id, sample.classId, sample.pixels?.data[0]], ["b/004.png", 1, 4]);
  await assert.rejects(readSample(source, 5), {
    message: "readSample: expected an index from 0 to 4, got 5.",
  });

  cpSync(at("set"), at("moved"), { recursive: true });
  assert.equal((await openFolder(at("moved"))).fingerprint, source.fingerprint);
});

test("a fingerprint tells a changed set: another name, class, size or content", async () => {
  await writeImages(at("print"), 4);
  const print = async (): Promise<string> => (await openFolder(at("print"))).fingerprint;
  const seen = new Set([await print()]);
  writeFiles(at("print"), { "b/003.png": await grey(200) }); // of the same size
  seen.add(await print());
  writeFiles(at("print"), { "b/004.png": await grey(1) });
  seen.add(await print());
  rmSync(at("print/b/004.png"));
  writeFiles(at("print"), { "b/003.png": await grey(200, 64) });
  seen.add(await print());
  seen.add((await openFolder(at("print"), { label: null })).fingerprint);
  assert.equal(seen.size, 5);
});

test("a fingerprint of many images tells the size of each", async () => {
  const names = Array.from({ length: 70 }, (_, i) => `${String(i).padStart(2, "0")}.png`);
  writeFiles(at("many"), Object.fromEntries(names.map((name) => [name, "x"])));
  const prints = new Set([(await openFolder(at("many"))).fingerprint]);
  for (const name of names) {
    writeFiles(at("many"), { [name]: "xx" });
    prints.add((await openFolder(at("many"))).fingerprint);
  }
  assert.equal(prints.size, 71);
});

test("images in no subfolder are of one class, and one image is a set", async () => {
  writeFiles(at("flat"), { "x.png": await grey(3) });
  const source = await openFolder(at("flat"));
  assert.deepEqual([source.length, source.classNames, source.classOf(0)], [1, ["all"], 0]);
});

test("given class names decide the ids; label null ignores the subfolders", async () => {
  await writeImages(at("some"), 4);
  const given = await openFolder(at("some"), { classNames: ["z", "b", "a"] });
  assert.deepEqual(
    [0, 2].map((i) => given.classOf(i)),
    [2, 1],
  );
  const whole = await openFolder(at("some"), { label: null });
  assert.deepEqual([whole.classNames, whole.classOf(3)], [["all"], 0]);
  await assert.rejects(openFolder(at("some"), { classNames: ["a"] }), {
    message: /some\/b\/001\.png: expected a class .*, got b\. .*data\.classNames/,
  });
  await assert.rejects(openFolder(at("some"), { label: "cls" }), {
    message: `${at("some")}: expected no label in a folder of images, got cls. Their subfolders are their classes.`,
  });
});

test("features of texts lie beside the images, for all or none", async () => {
  const one = npyOf(Float32Array.of(1, 2), [1, 1, 2]);
  writeFiles(at("text"), { "a/1.png": await grey(1), "a/2.jpg": await grey(2), "a/1.npy": one });
  await assert.rejects(openFolder(at("text")), {
    message: `${at("text")}: expected text features beside every image or none, got 1 for 2 images, none for a/2.jpg.`,
  });
  using features = tensor([
    [3, 4],
    [5, 6],
  ]);
  using half = features.to({ dtype: "float16" });
  saveSafetensors(at("text/a/2.safetensors"), { features: half });
  const source = await openFolder(at("text"));
  assert.deepEqual((await readSample(source, 0)).features, { data: Float32Array.of(1, 2), shape: [1, 2] });
  assert.deepEqual((await readSample(source, 1)).features, {
    data: Float32Array.of(3, 4, 5, 6),
    shape: [2, 2],
  });
});

test("a folder that is no set of images is refused", async () => {
  writeFiles(at("empty"), { ".keep": "" });
  await assert.rejects(openFolder(at("empty")), {
    message: `${at("empty")}: expected at least one image file, got an empty folder.`,
  });
  writeFiles(at("text only"), { "a.txt": "", "b.txt": "" });
  await assert.rejects(openFolder(at("text only")), {
    message: /text only: expected at least one image file, got only \.txt \(2\)\.$/,
  });
  writeFiles(at("mixed"), { "a/1.png": await grey(1), "loose.png": await grey(1) });
  await assert.rejects(openFolder(at("mixed")), {
    message: /mixed: expected every image in a subfolder.*loose\.png\. Move them.*data\.label=none/,
  });
});

test("an image that cannot be read is still part of the set", async () => {
  writeFiles(at("bad"), { "a/1.png": await grey(1) });
  symlinkSync(at("nowhere"), at("bad/a/2.png"));
  const source = await openFolder(at("bad"));
  assert.equal(source.length, 2);
  await assert.rejects(readSample(source, 1), /2\.png: expected a file that can be read, got ENOENT/);
});

test("folders that macOS or a Synology disk put beside the classes are none", async () => {
  const png = await grey(1);
  writeFiles(at("unzipped"), { "__MACOSX/a/._x.png": "", "@eaDir/x.png/t.jpg": "", "a/x.png": png });
  const source = await openFolder(at("unzipped"));
  assert.deepEqual([source.classNames, source.length, source.notes], [["a"], 1, []]);
});

test("an empty class folder keeps its id, so that those after it keep theirs", async () => {
  const image = await grey(1);
  writeFiles(at("gap"), { "a/1.png": image, "c/2.png": image, "b/.keep": "", "d/notes.txt": "x" });
  const source = await openFolder(at("gap"));
  assert.deepEqual(source.classNames, ["a", "b", "c", "d"]);
  assert.deepEqual([source.classOf(0), source.classOf(1)], [0, 2]);
  assert.match(source.notes?.join("\n") ?? "", /without an image keep their ids: b, d/);
});

test("folders whose names are numbers are numbered by value, and a gap is said", async () => {
  const image = await grey(1);
  writeFiles(
    at("numbers"),
    Object.fromEntries(["0", "1", "2", "10"].map((name) => [`${name}/1.png`, image])),
  );
  const source = await openFolder(at("numbers"));
  assert.deepEqual(source.classNames, ["0", "1", "2", "10"]);
  assert.match(source.notes?.join("\n") ?? "", /10 has id 3.*data\.classNames/);
  const classNames = Array.from({ length: 11 }, (_, i) => String(i));
  const listed = await openFolder(at("numbers"), { classNames });
  const ten = [0, 1, 2, 3].find((i) => listed.idOf(i).startsWith("10/")) as number;
  assert.deepEqual([listed.classOf(ten), listed.notes], [10, []]);
});

test("endings that can be decoded are read; others are counted and said, and alone they say what to do", async () => {
  const image = await grey(5);
  const jpeg = await sharp(image).jpeg().toBuffer();
  const svg = `<svg xmlns="http://www.w3.org/2000/svg" width="4" height="4"><rect width="4" height="4" fill="#f00"/></svg>`;
  writeFiles(at("endings"), {
    "a.jfif": jpeg,
    "b.jpe": jpeg,
    "c.svgz": gzipSync(svg),
    "d.bmp": "BM",
    "e.ppm": "P6",
    "f.PPM": "P6",
    "labels.csv": "a,b",
  });
  const source = await openFolder(at("endings"));
  assert.equal(source.length, 3);
  assert.deepEqual([...((await readSample(source, 2)).pixels?.data.subarray(0, 3) ?? [])], [255, 0, 0]);
  assert.match(
    source.notes?.join("\n") ?? "",
    /endings: files that are not read: \.ppm \(2\), \.bmp \(1\), \.csv \(1\)\. .*convert them to PNG/,
  );
  writeFiles(at("bitmaps"), { "a.bmp": "BM", "b.bmp": "BM" });
  for (const open of [openFolder, openSource, listImages]) {
    await assert.rejects(open(at("bitmaps")), {
      name: "RangeError",
      message: /bitmaps: expected .*, got only \.bmp \(2\)\. .*convert them to PNG/,
    });
  }
});

test("a named pipe in a folder is unreadable, and nothing waits for it", { timeout: 10_000 }, async () => {
  writeFiles(at("pipe"), { "a/1.png": await grey(1) });
  execFileSync("mkfifo", [at("pipe/a/2.png")]);
  const source = await openFolder(at("pipe"));
  assert.equal((await readSample(source, 0)).pixels?.data[0], 1);
  await assert.rejects(readSample(source, 1), {
    message: /2\.png: expected a regular file, got a device or pipe\. /,
  });
});

test("folders of splits are no classes; deeper folders are said; folders that systems make are skipped", async () => {
  const image = await grey(1);
  writeFiles(at("splits"), { "train/a/1.png": image, "val/a/2.png": image });
  await assert.rejects(openFolder(at("splits")), {
    message:
      /: expected subfolders that are classes, got train and val, .*\. Give .*splits\/train, .*data\.evalSource/,
  });
  assert.equal((await openFolder(at("splits"), { label: null })).length, 2);
  writeFiles(at("upper"), { "Test/a/1.png": image, "Train/a/2.png": image });
  await assert.rejects(openFolder(at("upper")), { message: /\. Give \S*upper\/Train\. / });
  writeFiles(at("deep"), { "animal/cat/1.png": image, "thing/2.png": image });
  assert.match((await openFolder(at("deep"))).notes?.join() ?? "", /animal\/cat\/1\.png is of class animal/);
  const made = ["$RECYCLE.BIN", "System Volume Information", "lost+found", "__pycache__", "#recycle"];
  writeFiles(at("made"), Object.fromEntries(["a", ...made].map((name) => [`${name}/1.png`, image])));
  assert.deepEqual((await openFolder(at("made"))).classNames, ["a"]);
});
