import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { gzipSync } from "node:zlib";

import { pack } from "tar-stream";

import { LABEL_REMEDY } from "../../src/data/labels.js";
import { type ImageSource, readSample, type SourceOptions } from "../../src/data/source.js";
import { openTar } from "../../src/data/tar.js";
import { goldenData, grey, npyOf, scratch, tarOf, writeFiles } from "../support/data_files.js";

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
    const source = await openTar(goldenData(`${form}.tar`));
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
      /set\.tar: expected one image .* first dot, got k\.in\.png and k\.out\.png\. .*ending with image/,
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
      `${LABEL_REMEDY}.`,
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
    message: `${where}: expected at least one image, got only .json (1), .txt (1).`,
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
  await refuse(whole.subarray(0, 1300), `expected 512 bytes at byte 1024, got a file of 1300 bytes. ${cut}`);
  const damaged = Buffer.from(whole);
  damaged[1024] = 0xff;
  await refuse(damaged, "expected a tar file, got no header at byte 1024. It is damaged or not a tar.");
  await refuse(
    gzipSync(whole),
    "expected a tar file, got a compressed one. Unpack it with gunzip: images are read by position.",
  );
  await refuse(new Uint8Array(), "expected a tar file, got 0 bytes. Copy it again.");
  await refuse(
    whole.subarray(0, -1024 - 100),
    /expected the padding after 2\.png, got 100 bytes less\. .*cut short/,
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
    /absent\.tar: expected a file that can be read, got ENOENT/,
  );
});

test("a member of more than a million bytes of name is refused before it is read", async () => {
  const tar = readFileSync(goldenData("gnu.tar"));
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

/** A header of ustar, with its checksum. */
function headerOf(name: Uint8Array | string, size: number | string, type = "0", link = ""): Buffer {
  const block = Buffer.alloc(512);
  block.set(Buffer.from(name as string));
  const octal = typeof size === "string" ? size : size.toString(8).padStart(11, "0");
  block.write(`0000644\0${"0000000\0".repeat(2)}${octal}\0`, 100, "latin1");
  block.write(`${"0".repeat(11)}\0        ${type}`, 136, "latin1");
  block.write(link, 157, "latin1");
  block.write("ustar\x0000", 257, "latin1");
  let sum = 0;
  for (const byte of block) sum += byte;
  block.write(`${sum.toString(8).padStart(6, "0")}\0 `, 148, "latin1");
  return block;
}

const padded = (data: Uint8Array): Buffer => {
  const bytes = Buffer.alloc(Math.ceil(data.length / 512) * 512);
  bytes.set(data);
  return bytes;
};
const END = Buffer.alloc(1024);
const paxOf = (records: string, type = "x"): Buffer =>
  Buffer.concat([headerOf("pax", Buffer.byteLength(records), type), padded(Buffer.from(records))]);

async function openBytes(...parts: Uint8Array[]): Promise<ImageSource> {
  writeFiles(folder, { "made.tar": Buffer.concat(parts) });
  return await openTar(at("made.tar"));
}

test("sizes are whole numbers from 0, in headers and in pax records; damaged ones never loop", async () => {
  const image = await grey(1);
  for (const size of ["-1536", "0.5", "1e3", "", "x", "99999999999999999999"]) {
    const record = ` size=${size}\n`;
    const pax = paxOf(`${record.length + (record.length < 9 ? 1 : 2)}${record}`);
    // An empty value takes back what was said before, so the header's own counts.
    const made = openBytes(pax, headerOf("a.png", image.length), padded(image), END);
    if (size === "") assert.equal((await made).length, 1);
    else
      await assert.rejects(made, { name: "RangeError", message: /a whole number of bytes from 0 in a\.png/ });
  }
  for (const name of ["tar_loop_dir", "tar_loop_dot", "tar_pax4"]) {
    await assert.rejects(openTar(goldenData(`damaged/${name}.tar`)), {
      name: "RangeError",
      message: /a whole number of bytes from 0 in .*, got (?:-1536|0\.5)/,
    });
  }
  // GNU's binary numbers can be negative.
  const negative = headerOf("a.png", `\xff${"\xff".repeat(9)}\xfa`);
  await assert.rejects(openBytes(negative, END), { name: "RangeError", message: /whole number of bytes/ });
  for (const records of ["5 a\n", "0 a=b\n", "-9 a=b\n", "99 a=b\n", "no", "\0\0\0"]) {
    await assert.rejects(openBytes(paxOf(records), headerOf("a.png", 0), END), {
      name: "RangeError",
      message: /made\.tar: expected sound attributes, got others at byte 512/,
    });
  }
});

test("pax records for all members count, but for what a member says of itself", async () => {
  const [one, two] = [await grey(1), await grey(2)];
  const source = await openBytes(
    paxOf("19 comment=a b c d\n18 path=all/x.png\n", "g"),
    headerOf("a.png", one.length),
    padded(one),
    paxOf("18 path=own/y.png\n"),
    headerOf("b.png", two.length),
    padded(two),
    END,
  );
  assert.deepEqual([source.idOf(0), source.idOf(1)], ["made.tar/all/x.png", "made.tar/own/y.png"]);
});

test("members of any size lie where they should, those of whole blocks too", async () => {
  const image = await grey(7);
  const parts: Buffer[] = [];
  for (const size of [511, 512, 513, 1024]) {
    parts.push(headerOf(`t${size}.txt`, size), padded(Buffer.alloc(size, 65)));
    parts.push(headerOf(`i${size}.png`, image.length), padded(image));
  }
  const source = await openBytes(...parts, END);
  assert.equal(source.length, 4);
  for (let i = 0; i < 4; i++) assert.equal((await readSample(source, i)).pixels?.data[0], 7);
});

test("names with several dots: WebDataset's rule is said with the member, and no label is dropped", async () => {
  const image = await grey(1);
  const rule = /first dot/;
  const refuse = async (members: Record<string, Uint8Array | string>, message: RegExp): Promise<void> => {
    await assert.rejects(open(members), (error: Error) => {
      assert.match(error.message, message);
      assert.match(error.message, rule);
      return true;
    });
  };
  await refuse(
    { "img.v1.png": image, "img.v1.cls": "3" },
    /label of img\.v1\.png in img\.cls, got img\.v1\.cls/,
  );
  await refuse(
    { "img_0.5_1.png": image, "img_0.5_1.cls": "3" },
    /label of img_0\.5_1\.png in img_0\.cls, got img_0\.5_1\.cls/,
  );
  await refuse({ "a.png": image, "b.v1.cls": "3" }, /image b\.\* for the label in b\.v1\.cls, got none/);
  await refuse({ "a.png": image, "b.cls": "3" }, /image for the label in b\.cls, got none/);
  await refuse({ "a.b.png": image, "a.c.png": image }, /a\.b\.png and a\.c\.png/);
  const features = npyOf(Float32Array.of(1), [1, 1]);
  await refuse({ "img.v1.png": image, "img.v1.npy": features }, /features of img\.v1\.png in img\.npy/);
  assert.equal((await open({ "img.v1.png": image, "img.cls": "3" })).classOf(0), 3);
  const named = await open({ "img.v1.png": image, "img.v1.cls": "3" }, { label: "v1.cls" });
  assert.equal(named.classOf(0), 3);
  assert.equal((await open({ "img.v1.png": image, "img.v1.cls": "3" }, { label: null })).length, 1);
  assert.equal((await open({ "a.PNG": image, "a.CLS": "3" }, { image: "PNG", label: "CLS" })).classOf(0), 3);
});

test("labels that are too long, empty or negative are refused with their member", async () => {
  const image = await grey(1);
  for (const text of ["x".repeat(300), " \n"]) {
    await assert.rejects(open({ "a.png": image, "a.cls": text }), {
      name: "RangeError",
      message: new RegExp(`a\\.cls: expected a class.*, got ${text.length} bytes.*data\\.label=none`),
    });
  }
  for (const text of ["-1", "1.5"]) {
    await assert.rejects(open({ "a.png": image, "a.cls": "0", "b.png": image, "b.cls": text }), {
      name: "RangeError",
      message: new RegExp(
        `b\\.png, member \\.cls: expected a class id from 0.*, got ${text}\\. .*data\\.label=none`,
      ),
    });
  }
});

test("names that are not UTF-8 stay distinct", async () => {
  const [one, two] = [await grey(1), await grey(2)];
  const name = (byte: number): Uint8Array => Buffer.from([0x61, byte, ...Buffer.from(".png")]);
  const source = await openBytes(
    headerOf(name(0xe9), one.length),
    padded(one),
    headerOf(name(0xe8), two.length),
    padded(two),
    headerOf("aé.png", one.length),
    padded(one),
    END,
  );
  assert.deepEqual(
    [0, 1, 2].map((i) => source.idOf(i)),
    ["made.tar/a\\xE9.png", "made.tar/a\\xE8.png", "made.tar/aé.png"],
  );
  assert.equal((await readSample(source, 1)).pixels?.data[0], 2);
});

test("a hard link is the file that it links to; other links name the flag that writes files", async () => {
  const image = await grey(9);
  const source = await openBytes(
    headerOf("./a.png", image.length),
    padded(image),
    headerOf("b.png", image.length, "1", "./a.png"), // GNU tar ignores the size
    headerOf("c.png", 0, "1", "b.png"),
    END,
  );
  assert.deepEqual([source.length, source.idOf(2)], [3, "made.tar/c.png"]);
  assert.equal((await readSample(source, 2)).pixels?.data[0], 9);
  await assert.rejects(openBytes(headerOf("b.png", 0, "1", "a.png"), END), {
    message: /got b\.png, a hard link to a\.png\. .*--hard-dereference/,
  });
  await assert.rejects(openBytes(headerOf("b.png", 0, "2", "a.png"), END), {
    message: /symlink\. .*--dereference/,
  });
  await assert.rejects(openBytes(paxOf("22 GNU.sparse.major=1\n"), headerOf("b.png", 0), END), {
    message: /b\.png, a sparse one\. .*without --sparse/,
  });
});

test("where an archive ends is judged as GNU tar does", async () => {
  const image = await grey(1);
  const member = Buffer.concat([headerOf("a.png", image.length), padded(image)]);
  const bare = await openBytes(member);
  assert.equal(bare.length, 1);
  assert.match(bare.notes?.join() ?? "", /made\.tar lacks the zeros that end a tar/);
  assert.equal((await openBytes(member, Buffer.alloc(512))).length, 1);
  assert.equal((await openBytes(member, Buffer.alloc(300))).length, 1);
  const garbage = Buffer.alloc(2000, "garbage");
  for (const zeros of [512, 1024]) {
    const source = await openBytes(member, Buffer.alloc(zeros), garbage);
    assert.deepEqual([source.length, source.notes], [1, []]);
  }
  await assert.rejects(openBytes(member, garbage, member), /no header at byte 1024/);
});

test("members that are not read are counted and said once; a tar of nothing else says what to do", async () => {
  const image = await grey(1);
  const { notes, length } = await open({
    "a.png": image,
    "b.bmp": "x",
    "c.ppm": "x",
    "d.ppm": "x",
    "a.json": "{}",
  });
  assert.equal(length, 1);
  assert.match(
    notes?.join("\n") ?? "",
    /^\S+set\.tar: files that are not read: \.ppm \(2\), \.bmp \(1\), \.json \(1\)\. .*PNG/,
  );
  await assert.rejects(open({ "b.bmp": "x", "c.ppm": "x" }), {
    message: /expected at least one image, got only \.bmp \(1\), \.ppm \(1\)\. .*convert them to PNG/,
  });
});

test("tars of other forms are read: version 7, labels of volumes, dumped folders", async () => {
  const image = await grey(9);
  const old = headerOf("a.png", image.length);
  old.fill(0, 257, 265);
  old.write("        ", 148);
  const sum = old.reduce((total, byte) => total + byte, 0);
  old.write(`${sum.toString(8).padStart(6, "0")}\0 `, 148, "latin1");
  const dumped = padded(Buffer.from("Ya.png\0\0"));
  const source = await openBytes(
    headerOf("volume", 0, "V"),
    headerOf("d/", 8, "D"),
    dumped,
    old,
    padded(image),
    END,
  );
  assert.deepEqual([source.length, source.idOf(0)], [1, "made.tar/a.png"]);
  assert.equal((await readSample(source, 0)).pixels?.data[0], 9);
  await assert.rejects(openBytes(headerOf("s.png", 512, "S"), padded(image), END), {
    message: /s\.png, a sparse one/,
  });
});

test("folders that systems make are no classes; / and ../ before a name are dropped, as tar does", async () => {
  const image = await grey(1);
  const classesOf = async (...names: string[]): Promise<readonly string[]> =>
    (await open(Object.fromEntries(names.map((name) => [name, image])))).classNames;
  const made = ["__MACOSX/cat/1.png", ".ipynb_checkpoints/1.png", "@eaDir/1.png", "cat/.x/1.png"];
  assert.deepEqual(await classesOf("cat/1.png", "dog/2.png", ...made), ["cat", "dog"]);
  assert.deepEqual(await classesOf("/cat/1.png", "../dog/2.png", "./eel/3.png"), ["cat", "dog", "eel"]);
});

test("compressed files and labels that are not UTF-8 are refused as such", async () => {
  for (const begin of ["425a68393141", "fd377a585a00", "28b52ffd0000", "504b03041400"]) {
    writeFiles(folder, { "packed.tar": Buffer.from(begin, "hex") });
    await assert.rejects(openTar(at("packed.tar")), {
      message:
        /packed\.tar: expected a tar file, got a (?:compressed one|zip archive)\. Unpack it with un|bunzip/,
    });
  }
  const labels = { "1.png": await grey(1), "1.cls": Uint8Array.of(0x80, 3, 0x4b, 1, 0x2e) };
  await assert.rejects(open(labels), { message: /1\.cls: expected .*UTF-8, got other bytes\. / });
});
