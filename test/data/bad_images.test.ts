/**
 * Images as they come from anywhere: right pixels, worked out by hand, or an error that names the file. PNG files are
 * put together here byte by byte, so that no library's habits are taken for the format.
 */
import assert from "node:assert/strict";
import { chmodSync, mkdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { crc32, deflateSync, gzipSync } from "node:zlib";

import sharp from "sharp";

import { BatchReader } from "../../src/data/batch_reader.js";
import { decode, readPixels } from "../../src/data/decode.js";
import { DecodePool } from "../../src/data/decode_pool.js";
import { openSource } from "../../src/data/open_source.js";
import { goldenData, grey, scratch, writeFiles } from "../support/data_files.js";

const folder = scratch();
const at = (name: string): string => join(folder, name);

const GREY = 0;
const RGB = 2;
const PALETTE = 3;
const GREY_ALPHA = 4;
const RGBA = 6;

function chunk(type: string, data: Uint8Array): Buffer {
  const body = Buffer.concat([Buffer.from(type, "latin1"), data]);
  const ends = Buffer.alloc(8);
  ends.writeUInt32BE(data.length, 0);
  ends.writeUInt32BE(crcOf(body), 4);
  return Buffer.concat([ends.subarray(0, 4), body, ends.subarray(4)]);
}

/** Node 20 has no crc32 before its release 15. */
function crcOf(bytes: Uint8Array): number {
  if (typeof crc32 === "function") return crc32(bytes);
  let crc = 0xffffffff;
  for (const byte of bytes) {
    crc ^= byte;
    for (let k = 0; k < 8; k++) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0);
  }
  return (crc ^ 0xffffffff) >>> 0;
}

interface Png {
  readonly width: number;
  readonly height?: number;
  readonly depth: number;
  readonly type: number;
  /** Rows, each after a byte 0 that says it is not filtered. */
  readonly rows: Uint8Array;
  readonly chunks?: readonly Buffer[];
}

function pngOf({ width, height = 1, depth, type, rows, chunks = [] }: Png): Buffer {
  const head = Buffer.alloc(13);
  head.writeUInt32BE(width, 0);
  head.writeUInt32BE(height, 4);
  head.set([depth, type], 8);
  const signature = Buffer.from("89504e470d0a1a0a", "hex");
  const data = chunk("IDAT", deflateSync(rows));
  return Buffer.concat([signature, chunk("IHDR", head), ...chunks, data, chunk("IEND", Buffer.alloc(0))]);
}

/** A row of 16-bit numbers. */
function wide(...values: number[]): Buffer {
  const row = Buffer.alloc(1 + 2 * values.length);
  for (const [i, value] of values.entries()) row.writeUInt16BE(value, 1 + 2 * i);
  return row;
}

const bytesOf = async (image: Buffer): Promise<number[]> => [...(await readPixels(image, "image")).data];

test("16 bits become the upper 8", async () => {
  const rows = wide(0, 255, 256, 32767, 32768, 65280, 65535, 1000, 383);
  assert.deepEqual(
    await bytesOf(pngOf({ width: 3, depth: 16, type: RGB, rows })),
    [0, 0, 1, 127, 128, 255, 255, 3, 1],
  );
  const grey16 = pngOf({ width: 3, depth: 16, type: GREY, rows: wide(0, 32768, 65535) });
  assert.deepEqual(await bytesOf(grey16), [0, 0, 0, 128, 128, 128, 255, 255, 255]);
});

test("transparency lies on white: alpha in 8 and 16 bits, with grey, and colours that are declared clear", async () => {
  // 0.2 x (100, 50, 200) + 0.8 x 255 = (224, 214, 244); 128 / 255 of black leaves 127.
  const rgba = Uint8Array.of(0, 0, 0, 0, 128, 100, 50, 200, 51, 9, 9, 9, 0, 1, 2, 3, 255);
  assert.deepEqual(
    await bytesOf(pngOf({ width: 4, depth: 8, type: RGBA, rows: rgba })),
    [127, 127, 127, 224, 214, 244, 255, 255, 255, 1, 2, 3],
  );
  const rgba16 = wide(0, 0, 0, 32768, 65535, 0, 0, 65535);
  assert.deepEqual(
    await bytesOf(pngOf({ width: 2, depth: 16, type: RGBA, rows: rgba16 })),
    [127, 127, 127, 255, 0, 0],
  );
  const greyAlpha = Uint8Array.of(0, 0, 128, 200, 0);
  assert.deepEqual(
    await bytesOf(pngOf({ width: 2, depth: 8, type: GREY_ALPHA, rows: greyAlpha })),
    [127, 127, 127, 255, 255, 255],
  );
  const clear = [chunk("tRNS", Uint8Array.of(0, 20))];
  assert.deepEqual(
    await bytesOf(pngOf({ width: 2, depth: 8, type: GREY, rows: Uint8Array.of(0, 10, 20), chunks: clear })),
    [10, 10, 10, 255, 255, 255],
  );
});

test("palettes and greys of few bits are resolved", async () => {
  const colours = chunk("PLTE", Uint8Array.of(255, 0, 0, 0, 0, 255));
  const [red, blue] = [
    [255, 0, 0],
    [0, 0, 255],
  ];
  const oneBit = pngOf({
    width: 3,
    depth: 1,
    type: PALETTE,
    rows: Uint8Array.of(0, 0b10100000),
    chunks: [colours],
  });
  assert.deepEqual(await bytesOf(oneBit), [blue, red, blue].flat());
  const chunks = [colours, chunk("tRNS", Uint8Array.of(255, 0))];
  const clear = pngOf({ width: 2, depth: 8, type: PALETTE, rows: Uint8Array.of(0, 0, 1), chunks });
  assert.deepEqual(await bytesOf(clear), [...(red as number[]), 255, 255, 255]);
  const twoBits = pngOf({ width: 4, depth: 2, type: GREY, rows: Uint8Array.of(0, 0b00011011) });
  assert.deepEqual(
    await bytesOf(twoBits),
    [0, 85, 170, 255].flatMap((level) => [level, level, level]),
  );
});

test("an image is turned and mirrored as each of the eight EXIF orientations says", async () => {
  // Rows RGB and ymc, by their first letters.
  const colours: Readonly<Record<string, readonly number[]>> = {
    R: [255, 0, 0],
    G: [0, 255, 0],
    B: [0, 0, 255],
    y: [255, 255, 0],
    m: [255, 0, 255],
    c: [0, 255, 255],
  };
  const raw = { width: 3, height: 2, channels: 3 as const };
  const upright = Buffer.from([..."RGBymc"].flatMap((letter) => colours[letter] ?? []));
  const seen = ["RGB ymc", "BGR cmy", "cmy BGR", "ymc RGB", "Ry Gm Bc", "yR mG cB", "cB mG yR", "Bc Gm Ry"];
  for (const [i, wanted] of seen.entries()) {
    const image = await sharp(upright, { raw })
      .withMetadata({ orientation: i + 1 })
      .png()
      .toBuffer();
    const { width, height, data } = await readPixels(image, "turned");
    const rows = wanted.split(" ");
    assert.deepEqual([width, height], [rows[0]?.length, rows.length]);
    assert.deepEqual(
      [...data],
      [...rows.join("")].flatMap((letter) => colours[letter]),
      `orientation ${i + 1}`,
    );
  }
});

test("CMYK becomes RGB, and of an animation the first frame is taken", async () => {
  const red = sharp({ create: { width: 8, height: 8, channels: 3, background: "#f00" } });
  const cmyk = await red.toColourspace("cmyk").jpeg({ quality: 100 }).toBuffer();
  assert.equal((await sharp(cmyk).metadata()).space, "cmyk");
  const [r = 0, g = 255, b = 255] = await bytesOf(cmyk);
  assert.ok(r > 200 && g < 40 && b < 40, `${[r, g, b]}`);

  const frames = Buffer.concat([Buffer.alloc(48, 10), Buffer.alloc(48, 200)]);
  const film = sharp(frames, { raw: { width: 4, height: 8, channels: 3, pageHeight: 4 } });
  for (const bytes of [
    await film.clone().gif().toBuffer(),
    await film.clone().webp({ lossless: true }).toBuffer(),
  ]) {
    assert.equal((await sharp(bytes).metadata()).pages, 2);
    const { width, height, data } = await readPixels(bytes, "film");
    assert.deepEqual([width, height, data[0], data.at(-1)], [4, 4, 10, 10]);
  }
});

test("one pixel and a thin strip become squares of any size", async () => {
  const pixel = pngOf({ width: 1, depth: 8, type: RGB, rows: Uint8Array.of(0, 1, 2, 3) });
  for (const crop of ["center", "smallest_side"] as const) {
    const task = { id: "1x1", image: { bytes: pixel }, size: 3, crop, isFlipped: false };
    assert.deepEqual([...(await decode(task)).data], Array.from({ length: 9 }, () => [1, 2, 3]).flat());
    const strip = sharp({ create: { width: 20_000, height: 10, channels: 3, background: "#123456" } });
    const image = { bytes: await strip.png().toBuffer() };
    const { data } = await decode({ ...task, id: "strip", image, size: 8 });
    assert.deepEqual([...data], Array.from({ length: 64 }, () => [0x12, 0x34, 0x56]).flat());
  }
});

const noise = Buffer.from(Array.from({ length: 64 * 64 * 3 }, (_, i) => (i * 7919) % 256));
const square = sharp(noise, { raw: { width: 64, height: 64, channels: 3 } });

test("what is cut short, damaged, no image, or far larger than its bytes is refused by name", async () => {
  const jpeg = await square.clone().jpeg().toBuffer();
  const png = await square.clone().png().toBuffer();
  const webp = await square.clone().webp().toBuffer();
  const flipped = Buffer.from(png);
  flipped[png.length >> 1] = (flipped[png.length >> 1] as number) ^ 255;
  const bomb = (side: number): Buffer =>
    pngOf({ width: side, height: side, depth: 8, type: RGB, rows: Buffer.alloc(10) });
  const broken: Readonly<Record<string, Buffer>> = {
    "half.jpg": jpeg.subarray(0, jpeg.length >> 1),
    "no_end.jpg": jpeg.subarray(0, jpeg.length - 2),
    "head.jpg": jpeg.subarray(0, 100),
    "half.png": png.subarray(0, png.length >> 1),
    "flipped.png": flipped,
    "half.webp": webp.subarray(0, webp.length >> 1),
    "text.png": Buffer.from("hello"),
    "empty.png": Buffer.alloc(0),
    "bomb.png": bomb(12_000),
    "bigger_bomb.png": bomb(20_000),
  };
  for (const [name, bytes] of Object.entries(broken)) {
    const message = new RegExp(
      `^${name.replace(".", "\\.")}: expected an image, got .+\\. Remove the file or convert it to PNG\\.$`,
    );
    await assert.rejects(readPixels(bytes, name), { name: "RangeError", message });
  }
});

test("a set passes over its bad images, names them, and ends where they are too many", async () => {
  const good = await grey(50);
  const files: Record<string, Buffer> = {};
  for (let i = 0; i < 12; i++) files[`a/${i}.png`] = good;
  const cut = (await square.clone().jpeg().toBuffer()).subarray(0, 700);
  writeFiles(at("some"), { ...files, "a/cut.jpg": cut, "a/notes.txt": "not looked at" });
  mkdirSync(at("some/a/folder.png"));
  const source = await openSource(at("some"));
  assert.equal(source.length, 13);
  using reader = new BatchReader(source, { batchSize: 13, size: 4, workers: 0 });
  (await reader.next()).dispose();
  assert.equal(reader.unreadable.count, 1);
  assert.match(
    reader.unreadable.problems[0] ?? "",
    /^a\/cut\.jpg: expected an image, got a JPEG that is damaged or cut short\. Remove/,
  );
  for (let i = 0; i < 4; i++) files[`a/${i}.png`] = Buffer.from("bad");
  writeFiles(at("many"), files);
  using other = new BatchReader(await openSource(at("many")), { batchSize: 12, size: 4, workers: 0 });
  await assert.rejects(other.next(), {
    message:
      /^data set: expected at most 2 unreadable images of 12, got 3\. Mend or remove them, or raise maxUnreadable:\n {2}a\//,
  });
});

test("a file that may not be read counts among the bad ones", async (t) => {
  if (process.getuid?.() === 0) return t.skip("everything may be read by this user");
  const good = await grey(50);
  writeFiles(at("locked"), Object.fromEntries(Array.from({ length: 12 }, (_, i) => [`a/${i}.png`, good])));
  chmodSync(at("locked/a/3.png"), 0);
  using reader = new BatchReader(await openSource(at("locked")), { batchSize: 12, size: 4, workers: 0 });
  (await reader.next()).dispose();
  assert.match(
    reader.unreadable.problems[0] ?? "",
    /a\/3\.png: expected a file that can be read, got EACCES/,
  );
});

const svgOf = (side: number, effects: number): Buffer =>
  Buffer.from(
    `<svg xmlns="http://www.w3.org/2000/svg" width="${side}" height="${side}"><filter id="f">` +
      `${'<feGaussianBlur stdDeviation="500"/><feTurbulence baseFrequency="0.05" numOctaves="9"/>'.repeat(effects)}` +
      `</filter><rect width="${side}" height="${side}" fill="#f00" ${effects > 0 ? 'filter="url(#f)"' : ""}/></svg>`,
  );

test("a drawing that takes too long is ended and named; the next one is read", async () => {
  using pool = new DecodePool(1);
  const task = { size: 4, crop: "center", isFlipped: false } as const;
  const bad = pool.decode({ ...task, id: "costly.svg", image: { bytes: svgOf(3000, 50) } });
  const good = pool.decode({ ...task, id: "plain.svg", image: { bytes: svgOf(9, 0) } });
  await assert.rejects(bad, {
    name: "RangeError",
    message: /^costly\.svg: expected an image, got one that takes more than 3 s to decode\. Remove/,
  });
  assert.deepEqual([...(await good).data.subarray(0, 3)], [255, 0, 0]);
});

test("a drawing of millions of pixels, packed or not, is refused or ended for its memory", async () => {
  const huge = readFileSync(goldenData("damaged/svg_huge.svg"));
  for (const bytes of [huge, gzipSync(huge)]) {
    const message = /^huge\.svg: expected an image, got one of more than 89478485 pixels\./;
    await assert.rejects(readPixels(bytes, "huge.svg"), { name: "RangeError", message });
  }
  const message = /^wide\.svg: expected an image, got one that takes more than (?:1\.5 GiB|3 s) to decode\./;
  await assert.rejects(readPixels(svgOf(9400, 4), "wide.svg"), { name: "RangeError", message });
});

test("a large image is read, and a strip of one row becomes a square without taking memory", async () => {
  const large = sharp({ create: { width: 6000, height: 6000, channels: 3, background: "#123456" } });
  const { width, data } = await readPixels(await large.png({ compressionLevel: 1 }).toBuffer(), "large");
  assert.deepEqual([width, data.length, data[0], data.at(-1)], [6000, 6000 * 6000 * 3, 0x12, 0x56]);
  for (const [w, h] of [
    [60_000, 1],
    [1, 60_000],
  ] as const) {
    const pixels = { width: w, height: h, channels: 3, data: new Uint8Array(w * h * 3).fill(77) };
    for (const crop of ["center", "smallest_side"] as const) {
      const square = await decode({ id: "strip", image: { pixels }, size: 256, crop, isFlipped: false });
      assert.ok(square.data.length === 256 * 256 * 3 && square.data.every((byte) => byte === 77));
    }
  }
});

/** A grey TIFF of one pixel. @param sampleFormat - 1 unsigned, 2 signed, 3 floating-point. */
function tiffOf(bits: number, sampleFormat: number, pixel: Buffer): Buffer {
  const tags = [
    [256, 4, 1],
    [257, 4, 1],
    [258, 3, bits],
    [259, 3, 1],
    [262, 3, 1],
    [273, 4, 8],
    [277, 3, 1],
    [278, 4, 1],
    [279, 4, pixel.length],
    [339, 3, sampleFormat],
  ] as const;
  const file = Buffer.alloc(16 + 2 + 12 * tags.length + 4);
  file.write("II*\0", "latin1");
  file.writeUInt32LE(16, 4);
  pixel.copy(file, 8);
  file.writeUInt16LE(tags.length, 16);
  for (const [i, [tag, type, value]] of tags.entries()) {
    const at = 18 + 12 * i;
    file.writeUInt16LE(tag, at);
    file.writeUInt16LE(type, at + 2);
    file.writeUInt32LE(1, at + 4);
    file.writeUInt32LE(value, at + 8);
  }
  return file;
}

test("a TIFF of numbers whose black and white are not known is refused", async () => {
  const float = Buffer.alloc(4);
  float.writeFloatLE(0.5);
  const refused =
    /^image: expected an image, got a TIFF of .* numbers, whose black and white are not known\. .*PNG/;
  for (const image of [
    tiffOf(32, 3, float),
    tiffOf(32, 1, Buffer.alloc(4, 9)),
    tiffOf(16, 2, Buffer.alloc(2)),
  ]) {
    await assert.rejects(readPixels(image, "image"), { message: refused });
  }
  assert.deepEqual(await bytesOf(tiffOf(16, 1, Buffer.of(0, 128))), [128, 128, 128]);
  assert.deepEqual(await bytesOf(tiffOf(8, 1, Buffer.of(7))), [7, 7, 7]);
});

test("why an image is not read is said in plain words", async () => {
  const png = await grey(1);
  const ftyp = (brand: string): Buffer =>
    Buffer.from(`\0\0\0\x18ftyp${brand}\0\0\0\0${"\0".repeat(40)}`, "latin1");
  const cases: readonly (readonly [Buffer, RegExp])[] = [
    [Buffer.alloc(0), /an empty file/],
    [png.subarray(0, 40), /a PNG that is damaged or cut short/],
    [Buffer.from("GIF89a"), /a GIF that is damaged or cut short/],
    [Buffer.from("RIFF\x10\0\0\0WEBPVP8 ", "latin1"), /a WebP that is damaged or cut short/],
    [Buffer.from("II*\0\x08\0\0\0\x01", "latin1"), /a TIFF that is damaged or cut short, or of a kind/],
    [ftyp("avif"), /an AVIF that is damaged/],
    [ftyp("heic"), /a HEIC image/],
    [ftyp("isom"), /a video/],
    [Buffer.from("<!DOCTYPE html><html><svg></svg></html>"), /a web page/],
    [Buffer.from('{"error": "not found"}'), /JSON text/],
    [Buffer.from("version https://git-lfs.github.com/spec/v1\n"), /a Git LFS pointer, which git lfs pull/],
    [Buffer.from("BM\0\0\0\0\0\0\0\0", "latin1"), /a BMP image/],
    [Buffer.from("\xff\x0a\0\0\0\0", "latin1"), /a JPEG XL image/],
    [Buffer.from("P6\n1 1\n255\nabc"), /a PNM image/],
    [gzipSync("hello"), /a gzip file/],
    [Buffer.from("no image"), /bytes of no image format that is read/],
    [
      Buffer.from('<svg xmlns="http://www.w3.org/2000/svg" width="4"><g'),
      /an SVG with an error at line 1, column \d+: /,
    ],
    [
      Buffer.from('<svg xmlns="http://www.w3.org/2000/svg" width="0" height="0"/>'),
      /an SVG without a usable width/,
    ],
  ];
  for (const [image, reason] of cases) {
    const message = new RegExp(`^image: expected an image, got ${reason.source}`);
    await assert.rejects(readPixels(image, "image"), { message });
  }
});
