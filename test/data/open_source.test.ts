import assert from "node:assert/strict";
import { copyFileSync, symlinkSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";

import { openSource } from "../../src/data/open_source.js";
import { saveSafetensors, tensor } from "../../src/torch/index.js";
import { goldenData, grey, npyOf, scratch, tarOf, writeFiles, writeImages } from "../support/data_files.js";

const folder = scratch();
const at = (name: string): string => join(folder, name);

const ACCEPTED =
  "a folder of images, tar shards (.tar), parquet files, IDX files (images-idx3-ubyte) or codes (.safetensors, .npy)";

/** IDX bytes of one image of 1 x 1, or of one label. */
const idx = (rank: number): Buffer => {
  const ones = Array.from({ length: rank }, () => [0, 0, 0, 1]).flat();
  return Buffer.from([0, 0, 8, rank, ...ones, 5]);
};

test("what lies at the path decides how it is read", async () => {
  await writeImages(at("images"), 2);
  writeFiles(at("images"), {
    "a/000.npy": npyOf(Float32Array.of(1), [1, 1]),
    "b/001.npy": npyOf(Float32Array.of(1), [1, 1]),
  });
  const shard = await tarOf({ "1.png": await grey(1) });
  writeFiles(folder, { "tars/s-0.tar": shard, "tars/s-1.tar": shard });
  writeFiles(folder, {
    "idx/t10k-images-idx3-ubyte": idx(3),
    "idx/t10k-labels-idx1-ubyte": idx(1),
    "idx/train-images-idx3-ubyte": idx(3),
    "idx/train-labels-idx1-ubyte": idx(1),
    "npy/x_codes/0.npy": npyOf(BigInt64Array.of(1n), [1]),
    "npy/x_labels/0.npy": npyOf(BigInt64Array.of(1n), [1]),
    "codes/.keep": "",
    "parquet/.keep": "",
  });
  copyFileSync(goldenData("plain.parquet"), at("parquet/a.parquet"));
  using codes = tensor([[1]], { dtype: "int64" });
  using classes = tensor([0], { dtype: "int64" });
  saveSafetensors(at("codes/c.safetensors"), { codes, classes });

  const firstId = async (path: string): Promise<string> => (await openSource(at(path))).idOf(0);
  assert.equal(await firstId("images"), "a/000.png");
  assert.equal(await firstId("tars"), "s-0.tar/1.png");
  assert.equal(await firstId("tars/s-1.tar"), "s-1.tar/1.png");
  assert.equal(await firstId("tars/s-{1..1}.tar"), "s-1.tar/1.png");
  assert.equal(await firstId("parquet"), "a.parquet#0");
  assert.equal(await firstId("parquet/*.parquet"), "a.parquet#0");
  assert.equal(await firstId("idx"), "train-images-idx3-ubyte#0");
  assert.equal(await firstId("idx/t10k-images-idx3-ubyte"), "t10k-images-idx3-ubyte#0");
  assert.equal(await firstId("codes"), "c.safetensors#0");
  assert.equal(await firstId("codes/c.safetensors"), "c.safetensors#0");
  assert.equal(await firstId("npy"), "0");
  assert.equal((await openSource(at("images"), { label: null })).classNames[0], "all");
});

test("what cannot be opened is answered with what can, and what to do", async () => {
  const refuse = async (path: string, got: string): Promise<void> => {
    await assert.rejects(openSource(at(path)), { message: `openSource: expected ${ACCEPTED}, got ${got}` });
  };
  writeFiles(folder, { "x.tar.gz": "", "x.zip": "", "x.csv": "", "x.png": "" });
  await refuse("x.tar.gz", `${at("x.tar.gz")}. Unpack it to a .tar: images are read by position.`);
  await refuse("x.zip", `${at("x.zip")}. Unpack it to a folder.`);
  await refuse("x.csv", `${at("x.csv")}.`);
  await refuse("x.png", `${at("x.png")}. Give the folder that the image is in.`);
  const absent = `ENOENT: no such file or directory, stat '${at("absent")}'`;
  await refuse("absent", `nothing that can be read at ${at("absent")} (${absent}).`);
  // A link to itself cannot be followed even by a user who may read everything.
  symlinkSync(at("shut"), at("shut"));
  await assert.rejects(openSource(at("shut")), /got nothing that can be read at .*shut \(ELOOP/);
});

test("folders without data, of several kinds or of several splits are refused", async () => {
  const refuse = async (path: string, message: string): Promise<void> => {
    await assert.rejects(openSource(at(path)), { message: `${at(path)}: ${message}` });
  };
  writeFiles(folder, { "empty/.keep": "", "texts/a.txt": "", "texts/b.md": "", "texts/README": "" });
  await refuse("empty", `expected ${ACCEPTED}, got an empty one.`);
  await refuse("texts", `expected ${ACCEPTED}, got only .md (1), .txt (1), without an ending (1).`);
  writeFiles(folder, { "both/a.tar": "", "both/b.png": "" });
  await refuse(
    "both",
    "expected one kind of data, got 1 of tar (a.tar), 1 of images (b.png). Name the files with a pattern, as in train-*.tar.",
  );
  writeFiles(folder, { "splits/train-00-of-01.parquet": "", "splits/test-00-of-01.parquet": "" });
  await refuse(
    "splits",
    `expected files of one split, got test and train. Name them with a pattern, as in ${at("splits/*train*")}.`,
  );
  writeFiles(folder, { "codes2/a.safetensors": "", "codes2/b.safetensors": "" });
  await refuse("codes2", "expected one .safetensors file of codes, got 2. Name the file.");
});
