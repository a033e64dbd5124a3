import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { gzipSync } from "node:zlib";

import { pack } from "tar-stream";

import { type ImageSource, readSample, type SourceOptions } from "../../src/data/source.js";
import { openTar } from "../../src/data/tar.js";
import { grey, npyOf, scratch, tarOf, writeFiles } from "../support/data_files.js";

const folder = scratch();
const at = (name: string): string => join(folder, name);

/** A tar of these members, open. */
async function open(
  members: Record<string, Uint8Array | string>,
  options?: SourceOptions,
): Promise<ImageSource> {
  writeFiles(folder, { "set.tar": await tarOf(members) });
  return await openTar(at("set.tar"), options);
}

test("tars that Python writes are read, long names and others than ASCII too", async () => {
  const long = `${"c".repeat(30)}/${"d".repeat(60)}/${"e".repeat(40)}`;
  for (const form of ["gnu", "pax", "ustar"]) {
    const source = await openTar(`test/golden/data/${form}.tar`);
    const ids = ["a/0001", "b/0002", long, "b/häuser"].map((key) => `${form}.tar/${key}.png`);
    assert.deepEqual(
      [0, 1, 2, 3].map((i) => source.idOf(i)),
      ids,
    );
    assert.deepEqual(
      [0, 1, 2, 3].map((i) => source.classOf(i)),
      [1, 2, 3, 4],
    );
    assert.deepEqual(source.classNames, ["0", "1", "2", "3", "4"]);
    for (let i = 0; i < 4; i++) assert.equal((await readSample(source, i)).pixels?.data[0], 10 * (i + 1));
  }
});

test("several shards are one set, in their order", async () => {
  const shards = { "s-00.tar": { "x.png": await grey(1) }, "s-01.tar": { "x.png": await grey(2) } };
  for (const [name, members] of Object.entries(shards)) writeFiles(folder, { [name]: await tarOf(members) });
  const source = await openTar(at("s-{00..01}.tar"));
  assert.deepEqual([source.idOf(0), source.idOf(1)], ["s-00.tar/x.png", "s-01.tar/x.png"]);
  assert.equal((await readSample(source, 1)).pixels?.data[0], 2);
  assert.notEqual((await openTar(at("s-00.tar"))).fingerprint, source.fingerprint);
});

test("tars that were joined by cat are read to the end", async () => {
  const parts = [await tarOf({ "x.png": await grey(1) }), await tarOf({ "y.png": await grey(2) })];
  writeFiles(folder, { "cat.tar": Buffer.concat(parts) });
  assert.equal((await openTar(at("cat.tar"))).length, 2);
});

test("classes are names in .cls, or folders, or one for all", async () => {
  const image = await grey(1);
  const named = await open({ "1.png": image, "1.cls": "dog\n", "2.png": image, "2.cls": "cat" });
  assert.deepEqual([named.classNames, named.classOf(0)], [["cat", "dog"], 1]);
  const folders = await open({ "./dog/1.png": image, "./cat/2.png": image });
  assert.deepEqual([folders.classNames, folders.classOf(0)], [["cat", "dog"], 1]);
  assert.deepEqual((await open({ "1.png": image, "2.png": image })).classNames, ["all"]);
  const other = await open({ "1.png": image, "1.cls": "0", "1.kind": "7" }, { label: "kind" });
  assert.equal(other.classOf(0), 7);
  const none = await open({ "1.png": image, "1.cls": "5" }, { label: null });
  assert.equal(none.classOf(0), 0);
});

test("a sample's members are known by the name up to its first dot", async () => {
  const [first, second] = [await grey(1), await grey(2)];
  const both = { "k.in.png": first, "k.out.png": second };
  const chosen = await open(both, { image: "out.png" });
  assert.equal((await readSample(chosen, 0)).pixels?.data[0], 2);
  await assert.rejects(open(both), {
    message:
      `${at("set.tar")}: expected one image for each name up to its first dot, got k.in.png and k.out.png. ` +
      "Choose its ending with image.",
  });
  const features = npyOf(Float32Array.of(1, 2), [1, 2]);
  const texts = await open({ "v1.2/k.png": first, "v1.2/k.npy": features, "._k.png": "junk" });
  assert.equal(texts.length, 1);
  assert.deepEqual((await readSample(texts, 0)).features?.data, Float32Array.of(1, 2));
});

test("what is missing is named", async () => {
  const image = await grey(1);
  const where = at("set.tar");
  await assert.rejects(open({ "1.png": image, "1.cls": "0", "2.png": image }), {
    message:
      `${where}: expected a member .cls in every sample, got none in 1 of 2, such as set.tar/2.png. ` +
      "Set label to null for one class.",
  });
  await assert.rejects(
    open({ "1.png": image }, { label: "kind" }),
    /expected a member \.kind in every sample/,
  );
  await assert.rejects(open({ "a/1.png": image, "2.png": image }), {
    message: `${where}: expected every image in a folder, its class, or none, got none for set.tar/2.png.`,
  });
  const features = npyOf(Float32Array.of(1), [1, 1]);
  await assert.rejects(open({ "1.png": image, "1.npy": features, "2.png": image }), {
    message: `${where}: expected a member .npy with text features in every sample or none, got none in set.tar/2.png.`,
  });
  await assert.rejects(open({ "1.txt": "a", "1.json": "{}" }), {
    message: `${where}: expected at least one image, got only .json, .txt.`,
  });
  await assert.rejects(open({}), { message: `${where}: expected at least one image, got no file.` });
});

test("cut, damaged, compressed and linked tars are refused", async () => {
  const whole = await tarOf({ "1.png": await grey(1), "2.png": await grey(2, 64) });
  const refuse = async (bytes: Uint8Array, message: RegExp | string): Promise<void> => {
    writeFiles(folder, { "odd.tar": bytes });
    const where = at("odd.tar");
    if (message instanceof RegExp) await assert.rejects(openTar(where), message);
    else await assert.rejects(openTar(where), { name: "RangeError", message: `${where}: ${message}` });
  };
  const cut = "The tar was cut short: copy it again.";
  await refuse(
    whole.subarray(0, 1536 + 60),
    `expected ${(await grey(2, 64)).length} bytes of 2.png, got 60. ${cut}`,
  );
  await refuse(
    whole.subarray(0, 1300),
    "expected 512 bytes at byte 1024, got a file of 1300 bytes. It was cut short: copy it again.",
  );
  await refuse(
    whole.subarray(0, 1024),
    "expected the zeros that end a tar, got none. It was cut short: copy it again.",
  );
  const damaged = Buffer.from(whole);
  damaged[1024] = 0xff;
  await refuse(damaged, "expected a tar file, got no header at byte 1024. It is damaged or not a tar.");
  await refuse(
    gzipSync(whole),
    "expected a tar file, got a compressed one. Unpack it with gunzip: images are read by position.",
  );
  await refuse(
    new Uint8Array(),
    "expected the zeros that end a tar, got none. It was cut short: copy it again.",
  );
  const tar = pack();
  tar.entry({ name: "1.png", type: "symlink", linkname: "0.png" });
  tar.finalize();
  const linked: Uint8Array[] = [];
  for await (const chunk of tar) linked.push(chunk as Uint8Array);
  await refuse(
    Buffer.concat(linked),
    "expected files and folders alone, got 1.png, a symlink. Write the tar with tar --dereference.",
  );
  const twice = Buffer.concat([whole.subarray(0, 1024), whole]);
  await refuse(twice, "expected one member 1.png, got two.");
  await assert.rejects(
    openTar(at("absent.tar")),
    /absent\.tar: expected a tar file that can be read, got ENOENT/,
  );
});

test("a member of more than a million bytes of name is refused before it is read", async () => {
  const tar = readFileSync("test/golden/data/gnu.tar");
  let start = 0;
  while (tar[start + 156] !== "L".charCodeAt(0)) start += 512; // GNU's mark of a long name
  const block = Buffer.from(tar.subarray(start, start + 512));
  block.write("77777777777\0", 124);
  block.write("        ", 148);
  let sum = 0;
  for (const byte of block) sum += byte;
  block.write(`${sum.toString(8).padStart(6, "0")}\0 `, 148);
  writeFiles(folder, { "huge.tar": block });
  await assert.rejects(openTar(at("huge.tar")), {
    message: `${at("huge.tar")}: expected a sound tar, got a name of 8589934591 bytes at byte 512.`,
  });
});
