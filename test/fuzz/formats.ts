/**
 * The formats that are fuzzed: valid files to start from, changes that keep checksums and lengths right so that they get
 * past the first check, and what reads them.
 */
import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { deflateSync, gzipSync } from "node:zlib";

import sharp from "sharp";

import { resolveConfig } from "../../src/config/resolve.js";
import { readRun } from "../../src/dashboard/run.js";
import { readImage, readPixels } from "../../src/data/decode.js";
import { openIdx } from "../../src/data/idx.js";
import { featuresOfNpy, readNpy, toInt64 } from "../../src/data/npy.js";
import { openParquet } from "../../src/data/parquet.js";
import type { ImageSource } from "../../src/data/source.js";
import { openTar } from "../../src/data/tar.js";
import { loadCheckpoint, openSafetensors } from "../../src/torch/index.js";
import { tidy } from "../../src/torch/scope.js";
import { goldenData, tarOf } from "../support/data_files.js";
import { changeText, type Dice } from "./mutate.js";

/** A format. */
export interface Format {
  seeds(): Promise<Buffer[]>;
  /** A change that keeps the file's own checks right. */
  structural(bytes: Buffer, dice: Dice): Buffer;
  /** Read all of a file. What it throws is judged. @param folder - empty; the file's name is the reader's choice. */
  read(bytes: Buffer, folder: string): Promise<void>;
}

const written = (folder: string, name: string, bytes: Buffer): string => {
  writeFileSync(join(folder, name), bytes);
  return join(folder, name);
};

const golden = (folder: string, ending: RegExp): Buffer[] =>
  readdirSync(folder)
    .filter((name) => ending.test(name))
    .map((name) => readFileSync(join(folder, name)))
    .filter((bytes) => bytes.length < 200_000);

/** Locate and decode every image; one that cannot be read does not hide the others' faults. */
async function readAll(source: ImageSource): Promise<void> {
  const problems: unknown[] = [];
  for (let i = 0; i < Math.min(source.length, 20); i++) {
    try {
      const { image } = await source.locate(i, 0);
      if (image !== undefined) await readImage(image, source.idOf(i));
    } catch (error) {
      problems.push(error);
    }
  }
  if (problems.length > 0) throw problems[0];
}

const image = async (width: number): Promise<ReturnType<typeof sharp>> => {
  const raw = Buffer.from(Array.from({ length: width * width * 3 }, (_, i) => (i * 7919) % 256));
  return sharp(raw, { raw: { width, height: width, channels: 3 } });
};

async function images(): Promise<Buffer[]> {
  const some = [
    (await image(16)).png(),
    (await image(16)).png({ palette: true }),
    (await image(24)).jpeg(),
    (await image(24)).jpeg({ progressive: true }),
    (await image(16)).webp({ lossless: true }),
    (await image(16)).webp(),
    (await image(16)).gif(),
    (await image(16)).tiff({ compression: "lzw" }),
    (await image(16)).tiff({ compression: "none" }),
    (await image(16)).avif({ effort: 0 }),
  ];
  const svg = `<svg xmlns="http://www.w3.org/2000/svg" width="8" height="8"><g id="a"><rect width="8" height="4" fill="#f00"/></g><use href="#a" y="4"/></svg>`;
  return [...(await Promise.all(some.map((one) => one.toBuffer()))), Buffer.from(svg)];
}

/** A tar with a field of one header changed, and its checksum right. */
function changeHeader(bytes: Buffer, dice: Dice): Buffer {
  const made = Buffer.from(bytes);
  const blocks = Math.floor(made.length / 512);
  const headers = Array.from({ length: blocks }, (_, i) => i * 512).filter(
    (at) => made.toString("latin1", at + 257, at + 262) === "ustar",
  );
  if (headers.length === 0) return made;
  const at = dice.of(headers);
  // name, size, type, link name, prefix
  const [start, length] = dice.of([
    [0, 100],
    [124, 12],
    [156, 1],
    [157, 100],
    [345, 155],
  ] as const);
  if (start === 156) made[at + start] = dice.of([..."01234567xgLKSMDV"].map((one) => one.charCodeAt(0)));
  else {
    const place = at + start + dice.below(length);
    const text = dice.of([
      "\xff\xff\xff\xff",
      "\x80\0\0\0",
      "7777777",
      "-1",
      "0.5",
      "../",
      "a.b.",
      "\0",
      ".png",
      ".cls",
    ]);
    made.write(text, place, Math.min(text.length, at + start + length - place), "latin1");
  }
  made.write("        ", at + 148, "latin1");
  const sum = made.subarray(at, at + 512).reduce((total, byte) => total + byte, 0);
  made.write(`${sum.toString(8).padStart(6, "0")}\0 `, at + 148, "latin1");
  return made;
}

/** A pax record changed to another size or name, as long as it says. */
function withPax(bytes: Buffer, dice: Dice): Buffer {
  const [key, value] = dice.of([
    ["size", "-512"],
    ["size", "0"],
    ["size", "1e9"],
    ["size", String(dice.below(4096))],
    ["path", "x/y.z.png"],
    ["path", ""],
    ["linkpath", "a.png"],
    ["GNU.sparse.major", "1"],
  ] as const);
  let record = ` ${key}=${value}\n`;
  record = `${record.length + (record.length > 8 ? 2 : 1)}${record}`;
  const header = Buffer.alloc(512);
  header.write("pax", 0);
  header.write(record.length.toString(8).padStart(11, "0"), 124);
  header.write(dice.of(["x", "g"]), 156);
  header.write("ustar\x0000", 257, "latin1");
  const data = Buffer.alloc(512);
  data.write(record);
  const at = 512 * dice.below(Math.max(1, Math.floor(bytes.length / 512)));
  header.write("        ", 148);
  const sum = header.reduce((total, byte) => total + byte, 0);
  header.write(`${sum.toString(8).padStart(6, "0")}\0 `, 148, "latin1");
  return Buffer.concat([bytes.subarray(0, at), header, data, bytes.subarray(at)]);
}

/** The JSON header of a safetensors file changed as text, with its length right or nearly. */
function changeJson(bytes: Buffer, dice: Dice): Buffer {
  if (bytes.length < 8) return bytes;
  const length = Number(bytes.readBigUInt64LE(0));
  const json = bytes.toString("utf8", 8, 8 + Math.min(length, 1e6)).replaceAll(",", ",\n");
  const changed = Buffer.from(changeText(json, dice));
  const head = Buffer.alloc(8);
  head.writeBigUInt64LE(BigInt(changed.length + (dice.below(8) === 0 ? 1 : 0)));
  return Buffer.concat([head, changed, bytes.subarray(8 + length)]);
}

/** The text header of a `.npy` file changed, with its length right. */
function changeNpy(bytes: Buffer, dice: Dice): Buffer {
  if (bytes.length < 10) return bytes;
  const length = bytes.readUInt16LE(8);
  const text = changeText(bytes.toString("latin1", 10, 10 + length), dice);
  const head = Buffer.from(bytes.subarray(0, 10));
  head.writeUInt16LE(Math.min(text.length, 65535), 8);
  return Buffer.concat([head, Buffer.from(text, "latin1"), bytes.subarray(10 + length)]);
}

/** A PNG with a field of its header changed and a right checksum; other images, and drawings, as text. */
function changeImage(bytes: Buffer, dice: Dice): Buffer {
  if (bytes.toString("latin1", 1, 4) === "PNG") {
    const body = Buffer.from(bytes.subarray(12, 29));
    const at = dice.of([4, 8]);
    if (dice.below(2) === 0) body.writeUInt32BE(dice.of([0, 1, 17, 65_535, 9_000, 20_000, 2 ** 31 - 1]), at);
    else body[12 + dice.below(5)] = dice.below(17);
    const data =
      dice.below(2) === 0 ? bytes.subarray(33) : chunkOf("IDAT", deflateSync(Buffer.alloc(dice.below(4096))));
    return Buffer.concat([bytes.subarray(0, 8), chunkOf("IHDR", body.subarray(4)), data]);
  }
  if (bytes[0] === 0x3c) {
    const changed = Buffer.from(changeText(bytes.toString("latin1").replaceAll(" ", "\n"), dice), "latin1");
    return dice.below(4) === 0 ? gzipSync(changed) : changed;
  }
  return bytes;
}

function chunkOf(type: string, data: Uint8Array): Buffer {
  const body = Buffer.concat([Buffer.from(type, "latin1"), data]);
  const ends = Buffer.alloc(8);
  ends.writeUInt32BE(data.length, 0);
  let crc = 0xffffffff;
  for (const byte of body) {
    crc ^= byte;
    for (let k = 0; k < 8; k++) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0);
  }
  ends.writeUInt32BE((crc ^ 0xffffffff) >>> 0, 4);
  return Buffer.concat([ends.subarray(0, 4), body, ends.subarray(4)]);
}

const asText = (bytes: Buffer, dice: Dice): Buffer => Buffer.from(changeText(bytes.toString("utf8"), dice));

const checkpoints = goldenData("../checkpoints");

/** By name, as `--format` takes it. */
export const FORMATS: Readonly<Record<string, Format>> = {
  tar: {
    seeds: async () => {
      const png = await (await image(8)).png().toBuffer();
      return [
        ...golden(goldenData(""), /\.tar$/),
        await tarOf({ "a.png": png, "a.cls": "1", "b.png": png, "b.cls": "0" }),
        await tarOf({ "x/a.png": png, "y/b.png": png, "y/c.bmp": "BM" }),
      ];
    },
    structural: (bytes, dice) => (dice.below(2) === 0 ? changeHeader(bytes, dice) : withPax(bytes, dice)),
    read: async (bytes, folder) => await readAll(await openTar(written(folder, "f.tar", bytes))),
  },
  parquet: {
    seeds: async () => golden(goldenData(""), /\.parquet$/),
    // Checksums are optional there: changes of bytes get everywhere.
    structural: (bytes, dice) => {
      const made = Buffer.from(bytes);
      const footer = made.length >= 8 ? made.readUInt32LE(made.length - 8) : 0;
      const from = Math.max(4, made.length - 8 - footer);
      for (let left = 1 + dice.below(3); left > 0 && from < made.length - 8; left--) {
        made[from + dice.below(made.length - 8 - from)] = dice.below(256);
      }
      return made;
    },
    read: async (bytes, folder) => {
      const path = written(folder, "f.parquet", bytes);
      await readAll(await openParquet([path], { label: null }));
      await readAll(await openParquet([path]));
    },
  },
  idx: {
    seeds: async () => {
      const plain = Buffer.from([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0, 2, 1, 2, 3, 4, 5, 6, 7, 8]);
      return [plain, gzipSync(plain)];
    },
    structural: (bytes, dice) => {
      const plain = Buffer.from([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0, 2, 1, 2, 3, 4, 5, 6, 7, 8]);
      plain.writeUInt32BE(dice.of([0, 1, 2, 2 ** 16, 2 ** 31, 2 ** 32 - 1]), 4 + 4 * dice.below(3));
      const long = Buffer.concat([plain, Buffer.alloc(dice.of([0, 1, 1e6]))]);
      return bytes[0] === 0x1f ? gzipSync(long) : long;
    },
    read: async (bytes, folder) =>
      await readAll(await openIdx(written(folder, "f-images-idx3-ubyte", bytes), { label: null })),
  },
  npy: {
    seeds: async () => golden(goldenData("npy"), /\.npy$/),
    structural: changeNpy,
    read: async (bytes) => {
      const raw = readNpy(bytes, "f.npy");
      if (raw.type.startsWith("f")) featuresOfNpy(bytes, "f.npy");
      else toInt64(raw, "f.npy");
    },
  },
  image: {
    seeds: images,
    structural: changeImage,
    read: async (bytes) => void (await readPixels(bytes, "f.png")),
  },
  pt: {
    seeds: async () => golden(checkpoints, /\.(pt|ckpt)$/),
    structural: (bytes) => bytes,
    read: async (bytes, folder) => {
      const path = written(folder, "f.pt", bytes);
      tidy(() => void loadCheckpoint(path));
    },
  },
  safetensors: {
    seeds: async () => golden(checkpoints, /\.safetensors$/),
    structural: changeJson,
    read: async (bytes, folder) => {
      using file = openSafetensors(written(folder, "f.safetensors", bytes));
      for (const key of file.keys) file.tensor(key).dispose();
    },
  },
  yaml: {
    seeds: async () =>
      golden(goldenData("../../../examples"), /\.yaml$/).concat(
        Buffer.from(
          "data: &a { source: x, size: 64 }\nrollout:\n  images: 4\n  context: { type: prefix, length: 4 }\nar: *a\n",
        ),
      ),
    structural: asText,
    read: async (bytes) => void resolveConfig({ text: bytes.toString("utf8"), isComplete: false }),
  },
  metrics: {
    seeds: async () => {
      const line = (step: number): string =>
        JSON.stringify({ step, time: 1e9 + step, "reward/mean": -0.1 * step, "eval/l2": null });
      return [Buffer.from(Array.from({ length: 12 }, (_, i) => `${line(i + 1)}\n`).join(""))];
    },
    structural: asText,
    read: async (bytes, folder) => {
      const run = join(folder, "run");
      rmSync(run, { recursive: true, force: true });
      mkdirSync(run);
      written(run, "metrics.jsonl", bytes);
      readRun(run);
    },
  },
};
