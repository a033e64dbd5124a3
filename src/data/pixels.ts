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
 * @throws TooManyPixels before anything of it is decoded; Error with what is wrong in one line.
 */
export async function decodePixels(bytes: Buffer, maxPixels: number): Promise<Pixels> {
  try {
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
    const reason = ((error as Error).message.split("\n")[0] ?? "").replace(/[.:\s]+$/, "");
    if (/exceeds pixel limit/.test(reason)) throw new TooManyPixels(`one of more than ${maxPixels} pixels`);
    if (/^timeout/.test(reason)) throw new Error(`one that takes more than ${SECONDS} s to decode`);
    // The library sometimes loses its message when several images are decoded at once.
    throw new Error(/^unknown error$/i.test(reason) ? "bytes that cannot be decoded" : reason);
  }
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
