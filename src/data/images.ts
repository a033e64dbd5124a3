/**
 * Images between files and tensors: reading a few as a batch, writing PNG, arranging grids. `decode.ts` decodes,
 * `resample.ts` resizes, `open_source.ts` opens data sets.
 */
import { stat } from "node:fs/promises";
import { join } from "node:path";

import sharp from "sharp";

import { replaceFile } from "../torch/files.js";
import { cat, expected, expectedType, requirePath, Tensor, tensor, tidy } from "../torch/index.js";
import { type Crop, IMAGE_FILE, readPixels } from "./decode.js";
import { listFiles, unreadFiles } from "./paths.js";
import { centerCrop, type Pixels, smallestSideCrop } from "./resample.js";

export { type Crop, readPixels } from "./decode.js";

/** `[1, 3, H, W]` float32 in [-1, 1] of 8-bit RGB: `x / 127.5 - 1`. */
export function pixelsToTensor(pixels: Pixels): Tensor {
  return tidy(() => {
    const bytes = tensor(pixels.data).view(1, pixels.height, pixels.width, pixels.channels);
    return bytes.permute(0, 3, 1, 2).float().div(127.5).sub(1).contiguous();
  });
}

/** 8-bit RGB of `[1, 3, H, W]` or `[3, H, W]` in [-1, 1], clamped and rounded. */
export function tensorToPixels(image: Tensor): Pixels {
  return tidy(() => {
    const [channels, height, width] = image.shape.slice(-3) as [number, number, number];
    const flat = image.detach().reshape(channels, height, width).float();
    const bytes = flat.add(1).mul(127.5).clamp(0, 255).round().to({ dtype: "uint8" });
    return { width, height, channels, data: bytes.permute(1, 2, 0).contiguous().toArray() as Uint8Array };
  });
}

/**
 * Read images as a batch of squares.
 *
 * @returns float32 `[B, 3, size, size]` in [-1, 1].
 */
export async function readImages(
  paths: readonly string[],
  size: number,
  crop: Crop = "center",
): Promise<Tensor> {
  if (!Array.isArray(paths)) throw expectedType("readImages", "a list of paths", paths);
  const squares: Tensor[] = [];
  for (const path of paths) {
    const pixels = await readPixels(path);
    squares.push(
      pixelsToTensor(crop === "center" ? centerCrop(pixels, size) : smallestSideCrop(pixels, size)),
    );
  }
  const batch = cat(squares);
  for (const square of squares) square.dispose();
  return batch;
}

/**
 * Image files at a path: the file itself, or all below a folder, in the order of their names; links are followed.
 *
 * @returns `files`, and `notes` on the files of the folder that are no images.
 * @throws RangeError when there are no images.
 */
export async function listImages(path: string): Promise<{ files: string[]; notes: readonly string[] }> {
  const info = await stat(path).catch(() => undefined);
  if (info === undefined) throw expected("images", "a file or folder", path, "Check the path");
  if (info.isFile()) return { files: [path], notes: [] };
  const all = await listFiles(path);
  const files = all.filter((name) => IMAGE_FILE.test(name));
  if (files.length === 0) {
    const { counts, remedy } = unreadFiles(all);
    const got = all.length === 0 ? "an empty folder" : `only ${counts}`;
    throw expected(path, "at least one image file", got, remedy);
  }
  const { notes } = unreadFiles(
    all.filter((name) => !IMAGE_FILE.test(name)),
    path,
  );
  return { files: files.map((name) => join(path, name)), notes };
}

/** The bytes of a PNG file. */
export async function encodePng({ width, height, channels, data }: Pixels): Promise<Buffer> {
  return await sharp(data, { raw: { width, height, channels: channels as 3 } })
    .png()
    .toBuffer();
}

/** Write `[1, 3, H, W]` or `[3, H, W]` in [-1, 1] as PNG; the file appears whole or not at all. */
export async function writePng(path: string, image: Tensor): Promise<void> {
  requirePath("writePng", path);
  if (!(image instanceof Tensor)) throw expectedType("writePng", "an image, a Tensor [3, H, W]", image);
  replaceFile(path, await encodePng(tensorToPixels(image)));
}
