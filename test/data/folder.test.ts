import assert from "node:assert/strict";
import { cpSync, rmSync, symlinkSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";

import { openFolder } from "../../src/data/folder.js";
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
    message: `${at("some")}: expected a class among the 1 of classNames, got b. Add it to classNames.`,
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
    message: `${at("text only")}: expected at least one image file, got 2 others.`,
  });
  writeFiles(at("mixed"), { "a/1.png": await grey(1), "loose.png": await grey(1) });
  await assert.rejects(openFolder(at("mixed")), {
    message:
      `${at("mixed")}: expected every image in a subfolder, its class, got 1 beside the subfolders, such as loose.png. ` +
      "Move them, or set label to null.",
  });
});

test("an image that cannot be read is still part of the set", async () => {
  writeFiles(at("bad"), { "a/1.png": await grey(1) });
  symlinkSync(at("nowhere"), at("bad/a/2.png"));
  const source = await openFolder(at("bad"));
  assert.equal(source.length, 2);
  await assert.rejects(readSample(source, 1), /2\.png: expected a file that can be read, got ENOENT/);
});
