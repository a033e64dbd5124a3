/** Small data sets on disk, for tests. */
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { after } from "node:test";
import { fileURLToPath } from "node:url";

import sharp from "sharp";
import { pack } from "tar-stream";

/** A folder that is gone when the tests of the file are over. */
export function scratch(): string {
  const folder = mkdtempSync(join(tmpdir(), "rlar-data-"));
  after(() => rmSync(folder, { recursive: true }));
  return folder;
}

/** A PNG of one grey level. */
export async function grey(level: number, width = 4, height: number = width): Promise<Buffer> {
  const background = { r: level, g: level, b: level };
  return await sharp({ create: { width, height, channels: 3, background } })
    .png()
    .toBuffer();
}

/** Write files below a folder, by their names. */
export function writeFiles(folder: string, files: Readonly<Record<string, Uint8Array | string>>): void {
  for (const [name, data] of Object.entries(files)) {
    mkdirSync(dirname(join(folder, name)), { recursive: true });
    writeFileSync(join(folder, name), data);
  }
}

/** `count` grey images in `classes` subfolders: image `i` has level `i`, is called `i.png` and is of class `i % classes`. */
export async function writeImages(folder: string, count: number, classes = 2): Promise<void> {
  for (let i = 0; i < count; i++) {
    const name = `${"abcdef"[i % classes]}/${String(i).padStart(3, "0")}.png`;
    writeFiles(folder, { [name]: await grey(i) });
  }
}

/** The bytes of a tar with these members. */
export async function tarOf(members: Readonly<Record<string, Uint8Array | string>>): Promise<Buffer> {
  const tar = pack();
  for (const [name, data] of Object.entries(members)) tar.entry({ name }, Buffer.from(data));
  tar.finalize();
  const chunks: Uint8Array[] = [];
  for await (const chunk of tar) chunks.push(chunk as Uint8Array);
  return Buffer.concat(chunks);
}

/** A `.npy` file of version 1. */
export function npyOf(
  data: BigInt64Array | Float32Array | Uint16Array | Int32Array,
  shape: readonly number[],
): Buffer {
  const types = { BigInt64Array: "<i8", Float32Array: "<f4", Uint16Array: "<u2", Int32Array: "<i4" };
  const descr = types[data.constructor.name as keyof typeof types];
  const text = `{'descr': '${descr}', 'fortran_order': False, 'shape': (${shape.join(", ")},), }\n`;
  const head = Buffer.alloc(10);
  head.write("\u0093NUMPY\u0001\u0000", "latin1");
  head.writeUInt16LE(text.length, 8);
  return Buffer.concat([head, Buffer.from(text), Buffer.from(data.buffer, data.byteOffset, data.byteLength)]);
}

/** A file of `test/golden/data`, wherever the tests are run from. */
export function goldenData(name: string): string {
  return fileURLToPath(new URL(`../../../test/golden/data/${name}`, import.meta.url));
}
