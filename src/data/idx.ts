/** A data set in IDX files, as MNIST is published: grey images of one size, and their labels in a second file. */
import { createHash } from "node:crypto";
import { existsSync, readFileSync } from "node:fs";
import { basename } from "node:path";
import { constants, gunzipSync, type ZlibOptions } from "node:zlib";

import { expected } from "../torch/index.js";
import { type Classes, LABEL_REMEDY, numberClasses, oneClass } from "./labels.js";
import { hashListing, type ImageSource, imageSource, type SourceOptions } from "./source.js";

/** `train-images-idx3-ubyte`, with or without `.gz`. */
export const IDX_IMAGES: RegExp = /images[-.]idx3-ubyte(\.gz)?$/;

/** Type of the elements: unsigned bytes, the only one images are published in. */
const UBYTE = 8;

const DAMAGED = "The file was cut short or is damaged";

/** Most bytes of images. */
const MAX_BYTES = 2 ** 30;

interface Idx {
  readonly shape: readonly number[];
  readonly data: Uint8Array;
}

/**
 * Open images in IDX format, gzipped or not. The labels are in the file whose name has `labels-idx1` in the place of
 * `images-idx3`. All is read into memory.
 *
 * @throws RangeError for a damaged file, or labels that are missing or too few.
 */
export async function openIdx(path: string, options: SourceOptions = {}): Promise<ImageSource> {
  const { shape, data } = readIdx(path, 3);
  const [length = 0, height = 0, width = 0] = shape;
  if (length * height * width === 0) throw expected(path, "at least one image", `[${shape.join(", ")}]`);
  const classes = idxClasses(path, length, options);
  // The archive's own name for the file comes with no folder.
  const name = basename(path).replace(/\.gz$/, "");
  const idOf = (index: number): string => `${name}#${index}`;
  const hash = hashListing(idOf, classes).update(createHash("sha256").update(data).digest());
  return imageSource(classes, {
    fingerprint: hash.digest("hex"),
    idOf,
    locate: async (index) => {
      const pixels = data.slice(index * height * width, (index + 1) * height * width);
      return { image: { pixels: { width, height, channels: 1, data: pixels } } };
    },
  });
}

function idxClasses(path: string, length: number, { label, classNames }: SourceOptions): Classes {
  if (label === null) return oneClass(length, classNames?.[0]);
  const plain = path.replace(/images([-.])idx3/, "labels$1idx1").replace(/\.gz$/, "");
  const file = [plain, `${plain}.gz`].find((one) => one !== path && existsSync(one));
  if (file === undefined) {
    throw expected(path, `labels in ${basename(plain)}`, "no such file", LABEL_REMEDY);
  }
  const { shape, data } = readIdx(file, 1);
  if (shape[0] !== length) throw expected(file, `${length} labels, one for each image`, shape[0]);
  return numberClasses(file, [...data], { names: classNames, rowOf: (i) => `${file}, label ${i}` });
}

function readIdx(path: string, rank: number): Idx {
  let raw: Buffer;
  try {
    raw = readFileSync(path);
  } catch (error) {
    throw expected(path, "a file that can be read", (error as Error).message);
  }
  const start = 4 + 4 * rank;
  const isPacked = raw[0] === 0x1f && raw[1] === 0x8b;
  // The header is in the first packed bytes. No more is unpacked than the header states.
  const head = isPacked ? unpack(path, raw.subarray(0, 1024), { finishFlush: constants.Z_SYNC_FLUSH }) : raw;
  if (head.length < start || head.readUInt16BE(0) !== 0 || head[2] !== UBYTE || head[3] !== rank) {
    const got = head.subarray(0, 4).toString("hex");
    throw expected(path, `an IDX file of bytes in ${rank} dimensions (0000080${rank})`, got);
  }
  const shape = Array.from({ length: rank }, (_, i) => head.readUInt32BE(4 + 4 * i));
  const count = shape.reduce((product, size) => product * size, 1);
  if (count > MAX_BYTES) {
    throw expected(path, `at most ${MAX_BYTES} bytes, as all is read into memory`, `[${shape.join(", ")}]`);
  }
  const bytes = isPacked ? unpack(path, raw, { maxOutputLength: start + count + 1 }) : raw;
  if (bytes.length - start !== count) {
    const got = bytes.length - start > count ? "more" : bytes.length - start;
    throw expected(path, `${count} bytes for [${shape.join(", ")}]`, got, DAMAGED);
  }
  return { shape, data: new Uint8Array(bytes.subarray(start)) };
}

function unpack(path: string, packed: Buffer, options: ZlibOptions): Buffer {
  try {
    return gunzipSync(packed, options);
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    const got = code === "ERR_BUFFER_TOO_LARGE" ? `more than ${options.maxOutputLength} bytes` : message;
    throw expected(path, "gzipped bytes, as many as its header says", got, DAMAGED);
  }
}
