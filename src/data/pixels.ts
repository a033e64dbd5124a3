/**
 * Decodes an image to 8-bit RGB, within limits. Decoding threads and processes use this, so it must
 * not import the tensor library.
 */
import sharp from "sharp";

import type { Pixels } from "./resample.js";

/** An image has more pixels than the limit. */
export class TooManyPixels extends Error {
  override readonly name = "TooManyPixels";
}

/** Seconds that an image may take, however busy the machine is. */
const SECONDS = 60;

/**
 * Decode an image, upright as its EXIF says.
 *
 * Transparency is laid on white, grey becomes three equal channels, 16 bits become 8, palettes are resolved.
 *
 * @throws TooManyPixels before anything of it is decoded; Error with what is wrong in one line, also for a TIFF of
 *   numbers whose black and white are not known (floating-point, signed, or of more than 16 bits).
 */
export async function decodePixels(bytes: Buffer, maxPixels: number): Promise<Pixels> {
  try {
    if (kindOf(bytes) === TIFF) await requireKnownRange(bytes, maxPixels);
    const { data, info } = await sharp(bytes, { limitInputPixels: maxPixels, failOn: "error" })
      .timeout({ seconds: SECONDS })
      .rotate()
      .flatten({ background: "#ffffff" })
      .toColourspace("srgb")
      .raw({ depth: "uchar" })
      .toBuffer({ resolveWithObject: true });
    const { width, height, channels } = info;
    return toRgb({ width, height, channels, data: new Uint8Array(data) });
  } catch (error) {
    const { message } = error as Error;
    if (/exceeds pixel limit/.test(message)) throw new TooManyPixels(`one of more than ${maxPixels} pixels`);
    if (/^timeout/.test(message)) throw new Error(`one that takes more than ${SECONDS} s to decode`);
    throw error instanceof UnknownRange ? error : new Error(reasonOf(message, bytes));
  }
}

/** Black and white of an image are not known. */
class UnknownRange extends Error {}

/** The decoder would cut floating-point numbers in [0, 1] to black, and 32-bit integers to white. */
async function requireKnownRange(bytes: Buffer, maxPixels: number): Promise<void> {
  const { depth } = await sharp(bytes, { limitInputPixels: maxPixels }).metadata();
  if (depth === "uchar" || depth === "ushort") return;
  const numbers = /float|double/.test(depth) ? "floating-point numbers" : `${depth} numbers`;
  throw new UnknownRange(`a TIFF of ${numbers}, whose black and white are not known`);
}

const TIFF = "a TIFF";
const AVIF = "an AVIF";

/** What a file is by a text (latin-1) in its first bytes, and the place of that text. */
type Magic = readonly [kind: string, text: string, at?: number];

/** Kinds of images that are read; SVG has no such text. */
const READ_KINDS: readonly Magic[] = [
  ["a PNG", "\x89PNG"],
  ["a JPEG", "\xff\xd8\xff"],
  ["a GIF", "GIF8"],
  ["a WebP", "WEBP", 8],
  [TIFF, "II*\0"],
  [TIFF, "MM\0*"],
  [TIFF, "II+\0"],
  [TIFF, "MM\0+"],
  [AVIF, "ftypavif", 4],
  [AVIF, "ftypavis", 4],
];

/** Other kinds of files that may bear the name of an image. */
const OTHER_KINDS: readonly Magic[] = [
  ["a Git LFS pointer, which git lfs pull replaces by the image", "version https://git-lfs"],
  ["a BMP image", "BM"],
  ["a HEIC image", "ftyphei", 4],
  ["a HEIC image", "ftypmif1", 4],
  ["a video", "ftyp", 4],
  ["a JPEG XL image", "\xff\x0a"],
  ["a JPEG XL image", "JXL ", 4],
  ["a JPEG 2000 image", "jP  ", 4],
  ["a JPEG 2000 image", "\xff\x4f\xff\x51"],
  ["a Photoshop file", "8BPS"],
  ["an icon file", "\0\0\x01\0"],
  ["a PDF", "%PDF"],
  ["a gzip file", "\x1f\x8b"],
  ["a zip archive", "PK\x03\x04"],
];

/** What a file is by its first bytes; undefined where that is not known. */
function kindOf(bytes: Buffer, kinds: readonly Magic[] = READ_KINDS): string | undefined {
  const head = bytes.toString("latin1", 0, 64);
  return kinds.find(([, text, at = 0]) => head.startsWith(text, at))?.[0];
}

/** Why bytes cannot be decoded, in plain words: the decoder's own name its functions and libraries. */
function reasonOf(message: string, bytes: Buffer): string {
  if (bytes.length === 0) return "an empty file";
  if (/out of memory|unable to allocate/i.test(message)) return "one that takes too much memory to decode";
  const kind = kindOf(bytes);
  if (kind !== undefined) {
    const isOdd = /unsupported/.test(message) && (kind === AVIF || kind === TIFF);
    return `${kind} that is damaged or cut short${isOdd ? ", or of a kind that is not read" : ""}`;
  }
  const other = kindOf(bytes, OTHER_KINDS);
  if (other !== undefined) return other;
  const text = bytes.toString("latin1", 0, 4096);
  if (/^\s*<(?:!doctype html|html)/i.test(text)) return "a web page";
  if (/<svg/i.test(text)) return `an SVG ${faultOfSvg(message)}`;
  if (/^\s*[{[]/.test(text)) return "JSON text";
  if (/^P[1-7fF]\s/.test(text)) return "a PNM image";
  return "bytes of no image format that is read";
}

function faultOfSvg(message: string): string {
  if (/bad dimensions/.test(message)) return "without a usable width and height";
  const [, line, column, what = ""] = /on line (\d+) column (\d+) of data: ([^\n]*)/.exec(message) ?? [];
  if (line === undefined) return "that is damaged or cut short";
  const fault = what.replace(/ line \d+$/, "").replace(/[.:\s]+$/, "");
  return `with an error at line ${line}, column ${column}: ${fault}`;
}

/** Three channels: grey thrice, or the first three. */
export function toRgb(pixels: Pixels): Pixels {
  const { width, height, channels, data } = pixels;
  if (channels === 3) return pixels;
  const out = new Uint8Array(width * height * 3);
  for (let i = 0; i < width * height; i++) {
    for (let c = 0; c < 3; c++) out[i * 3 + c] = data[i * channels + (channels >= 3 ? c : 0)] as number;
  }
  return { width, height, channels: 3, data: out };
}
