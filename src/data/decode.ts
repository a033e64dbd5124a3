/**
 * Decodes an image to a square of 8-bit RGB. The threads of `decode_pool.ts` run this. They must not load LibTorch, so
 * neither this file nor its imports use it.
 */
import { constants } from "node:fs";
import { open } from "node:fs/promises";

import { expected } from "../torch/errors.js";
import { decodeApart } from "./decode_apart.js";
import { type Features, featuresOfNpy } from "./npy.js";
import { decodePixels, TooManyPixels, toRgb } from "./pixels.js";
import { centerCrop, type Pixels, smallestSideCrop } from "./resample.js";

/** How an image of any size becomes a square: see `centerCrop` and `smallestSideCrop`. */
export type Crop = "center" | "smallest_side";

/** Names of files that can be read as images. */
export const IMAGE_FILE: RegExp = /\.(png|jpe?g|jpe|jfif|webp|gif|tiff?|avif|svgz?)$/i;

/**
 * Most pixels of an image: what Pillow warns of as a decompression bomb. Beyond it a small file can take all memory.
 */
const MAX_PIXELS = 89_478_485;

/** Most pixels of an image that is decoded in this process, which is quicker; larger ones have a process of their own. */
const PIXELS_HERE = 2 ** 25;

/** The decoder's own time limit, of 60 s, needs a decoder that makes progress; this is for one that hangs. */
const HANG_SECONDS = 90;

/** Whether a decoder hangs in this process, and keeps one of the few threads for decoding. */
let isHanging = false;

/** Most bytes of an encoded image. */
const MAX_BYTES = 2 ** 29;

/**
 * Read an image as 8-bit RGB, see `decodePixels`.
 *
 * An image that makes the decoder hang is given up after {@link HANG_SECONDS}; from then on images are decoded in a
 * process of their own, which can be ended.
 *
 * @param image - a path, or the bytes of an encoded image.
 * @param decodeHere - the decoder in this process.
 * @throws RangeError naming the file and what is wrong with it, including an image that takes too much time or memory.
 */
export async function readPixels(
  image: string | Buffer,
  name: string = String(image),
  decodeHere: typeof decodePixels = decodePixels,
  hangSeconds: number = HANG_SECONDS,
): Promise<Pixels> {
  const bytes = typeof image === "string" ? await readPart({ path: image }) : image;
  try {
    if (mayBeSvg(bytes)) return await decodeApart(bytes, { maxPixels: MAX_PIXELS, cpuSeconds: 3 });
    if (isHanging) return await decodeApart(bytes, { maxPixels: MAX_PIXELS, cpuSeconds: 10 });
    const decoding = decodeHere(bytes, PIXELS_HERE);
    return await unlessItHangs(decoding, hangSeconds).catch(async (error: unknown) => {
      if (error instanceof TooManyPixels) {
        return await decodeApart(bytes, { maxPixels: MAX_PIXELS, cpuSeconds: 10 });
      }
      throw error;
    });
  } catch (error) {
    throw expected(name, "an image", (error as Error).message, "Remove the file or convert it to PNG");
  }
}

/** @throws Error when a decoder takes longer than that; nothing can end it. */
async function unlessItHangs(decoding: Promise<Pixels>, seconds: number): Promise<Pixels> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => {
      isHanging = true;
      reject(new Error(`one that the decoder hangs on for ${seconds} s`));
    }, seconds * 1000);
  });
  return await Promise.race([decoding, late]).finally(() => clearTimeout(timer));
}

/**
 * Whether a file may be an SVG, a drawing: a few hundred bytes of it can take hours. The decoder knows one by `<svg` in
 * its first 1000 characters, or unpacks it where it begins as gzip or zlib do; no other image begins so.
 */
function mayBeSvg(bytes: Buffer): boolean {
  const isPacked = (bytes[0] === 0x1f && bytes[1] === 0x8b) || bytes[0] === 0x78;
  return isPacked || /<svg/i.test(bytes.toString("latin1", 0, 4096));
}

/** A file, or `length` bytes of it from `offset` on. */
export interface FilePart {
  readonly path: string;
  readonly offset?: number;
  readonly length?: number;
}

/** Where the bytes of an encoded image are, or its pixels. */
export type ImageBytes = FilePart | { readonly bytes: Uint8Array } | { readonly pixels: Pixels };

/** One image to decode. It can be sent to another thread. */
export interface DecodeTask {
  /** Its name in messages. */
  readonly id: string;
  readonly image: ImageBytes;
  /** A `.npy` array that comes with the image. */
  readonly features?: FilePart;
  /** Width and height of the result. */
  readonly size: number;
  readonly crop: Crop;
  /** Mirror left and right. */
  readonly isFlipped: boolean;
}

/** The result of a {@link DecodeTask}. */
export interface Decoded {
  /** `size * size * 3` bytes of RGB, rows from the top. */
  readonly data: Uint8Array;
  readonly features?: Features;
}

/** @throws Error that names the image or its features. */
export async function decode(task: DecodeTask): Promise<Decoded> {
  const { id, size } = task;
  const pixels = await readImage(task.image, id);
  const { data } = task.crop === "center" ? centerCrop(pixels, size) : smallestSideCrop(pixels, size);
  if (task.isFlipped) mirror(data, size);
  if (task.features === undefined) return { data };
  return { data, features: await readFeatures(task.features, id) };
}

/** Pixels of an image, wherever its bytes are. @throws Error that names the image. */
export async function readImage(image: ImageBytes, id: string): Promise<Pixels> {
  if ("pixels" in image) return toRgb(image.pixels);
  if ("length" in image && (image.length ?? 0) > MAX_BYTES) {
    throw expected(id, `an image of at most ${MAX_BYTES} bytes`, image.length);
  }
  const bytes = "bytes" in image ? image.bytes : await readPart(image);
  return await readPixels(Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length), id);
}

/** Text features of a `.npy` file. @throws RangeError that names the image they belong to. */
export async function readFeatures(part: FilePart, id: string): Promise<Features> {
  return featuresOfNpy(await readPart(part), `text features of ${id}`);
}

/**
 * Decode images a few at a time, the others waiting: an image takes far more memory before it is cut to size than
 * after.
 */
export function decodeFewAtOnce(): (task: DecodeTask) => Promise<Decoded> {
  let running = 0;
  const waiting: (() => void)[] = [];
  return async (task) => {
    if (running >= AT_ONCE) await new Promise<void>((start) => waiting.push(start));
    else running++;
    try {
      return await decode(task);
    } finally {
      // A waiting task takes over this place, so that the count never exceeds the limit.
      const next = waiting.shift();
      if (next === undefined) running--;
      else next();
    }
  };
}

/** Enough that reading and decoding one overlaps with resizing another. */
const AT_ONCE = 3;

/** @throws RangeError when the file is absent, no regular file, or shorter than that. */
export async function readPart({ path, offset, length }: FilePart): Promise<Buffer> {
  try {
    // Otherwise opening a named pipe waits for a program that writes to it.
    const file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK);
    try {
      if (offset === undefined || length === undefined) {
        const info = await file.stat();
        const { size } = info;
        if (!info.isFile()) {
          const got = info.isDirectory() ? "a folder" : "a device or pipe";
          throw expected(path, "a regular file", got, "Remove it from the data set");
        }
        if (size > MAX_BYTES) throw expected(path, `a file of at most ${MAX_BYTES} bytes`, size);
        return await file.readFile();
      }
      const bytes = Buffer.alloc(length);
      for (let done = 0; done < length; ) {
        const { bytesRead } = await file.read(bytes, done, length - done, offset + done);
        if (bytesRead === 0) {
          throw expected(path, `${length} bytes at byte ${offset}`, `${done}`, "The file was cut short");
        }
        done += bytesRead;
      }
      return bytes;
    } finally {
      await file.close();
    }
  } catch (error) {
    if ((error as NodeJS.ErrnoException).syscall === undefined) throw error;
    throw expected(path, "a file that can be read", (error as Error).message);
  }
}

function mirror(data: Uint8Array, size: number): void {
  const row = new Uint8Array(size * 3);
  for (let y = 0; y < size; y++) {
    const first = y * size * 3;
    row.set(data.subarray(first, first + size * 3));
    for (let x = 0; x < size; x++) data.set(row.subarray(x * 3, x * 3 + 3), first + (size - 1 - x) * 3);
  }
}
