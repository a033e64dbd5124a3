/** The .npz writer, read back by this project's own readers of zip and .npy. */
import assert from "node:assert/strict";
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";

import { readNpy, toFloat32, toInt64 } from "../../src/data/npy.js";
import { writeNpz } from "../../src/data/npz.js";
import { FileBytes } from "../../src/torch/files.js";
import { ZipArchive } from "../../src/torch/zip.js";

const folder = mkdtempSync(join(tmpdir(), "npz-"));
after(() => rmSync(folder, { recursive: true }));
const path = join(folder, "samples.npz");

function readBack(file: string) {
  const bytes = new FileBytes(file);
  const zip = new ZipArchive(bytes, file);
  const arrays = [...zip.entries.values()].map((entry) => {
    assert.equal(entry.isDeflated, false);
    const start = zip.dataOffset(entry) + zip.read(entry).indexOf("\n".charCodeAt(0)) + 1;
    assert.equal((start - zip.dataOffset(entry)) % 64, 0, "data begin at a multiple of 64");
    return [entry.name, readNpy(zip.read(entry), entry.name)] as const;
  });
  bytes.close();
  return Object.fromEntries(arrays);
}

test("arrays come back with their names, types, shapes and numbers, whatever the pieces", () => {
  const pixels = Uint8Array.from({ length: 2 * 3 * 3 * 3 }, (_, i) => (i * 37) % 256);
  const labels = BigInt64Array.from([7n, -1n]);
  const scores = Float32Array.from([0.5, -2, Number.POSITIVE_INFINITY]);
  writeNpz(path, {
    arr_0: { type: "u1", shape: [2, 3, 3, 3], data: [pixels.subarray(0, 5), pixels.subarray(5)] },
    arr_1: { type: "i8", shape: [2], data: [new Uint8Array(labels.buffer)] },
    scores: { type: "f4", shape: [3, 1], data: [new Uint8Array(scores.buffer)] },
    none: { type: "u1", shape: [0, 4], data: [] },
  });
  const read = readBack(path);
  assert.deepEqual(Object.keys(read), ["arr_0.npy", "arr_1.npy", "scores.npy", "none.npy"]);
  assert.deepEqual(read["arr_0.npy"]?.shape, [2, 3, 3, 3]);
  assert.equal(read["arr_0.npy"]?.type, "u1");
  assert.deepEqual(Uint8Array.from(read["arr_0.npy"]?.bytes ?? []), pixels);
  const one = read["arr_1.npy"];
  assert.ok(one && read["scores.npy"]);
  assert.deepEqual(one.shape, [2]);
  assert.deepEqual(toInt64(one, "arr_1"), labels);
  assert.deepEqual(toFloat32(read["scores.npy"], "scores"), scores);
  assert.deepEqual(read["none.npy"]?.shape, [0, 4]);
});

test("the array's header is version 1.0, padded to 128 bytes, and the checksum is of all that is stored", () => {
  writeNpz(path, { a: { type: "u1", shape: [9], data: [Buffer.from("1234"), Buffer.from("56789")] } });
  const bytes = readFileSync(path);
  const stored = bytes.readUInt32LE(14);
  const start = 30 + bytes.readUInt16LE(26) + bytes.readUInt16LE(28); // behind the name and the extra fields
  const header = bytes.subarray(start, start + 128);
  assert.equal(
    header.toString("latin1").trimEnd(),
    "\u0093NUMPY\u0001\u0000\u0076\u0000{'descr': '|u1', 'fortran_order': False, 'shape': (9,), }",
  );
  assert.equal(stored, referenceCrc(Buffer.concat([header, Buffer.from("123456789")])));
  assert.equal(referenceCrc(Buffer.from("123456789")), 0xcbf43926);
});

/** Bit by bit, as the definition has it. */
function referenceCrc(bytes: Uint8Array): number {
  let crc = 0xffffffff;
  for (const byte of bytes) {
    for (let bit = 0; bit < 8; bit++) {
      const low = (crc ^ (byte >> bit)) & 1;
      crc = (crc >>> 1) ^ (low === 1 ? 0xedb88320 : 0);
    }
  }
  return (crc ^ 0xffffffff) >>> 0;
}

test("data of another length than the shape are refused, and what was there stays", () => {
  writeNpz(path, { a: { type: "u1", shape: [1], data: [Uint8Array.of(3)] } });
  const before = readFileSync(path);
  assert.throws(() => writeNpz(path, { a: { type: "i8", shape: [2], data: [new Uint8Array(15)] } }), {
    name: "RangeError",
    message: "writeNpz: a: expected 16 bytes for i8 [2], got 15.",
  });
  const failing = (function* () {
    yield new Uint8Array(4);
    throw new Error("the decoder failed");
  })();
  assert.throws(() => writeNpz(path, { a: { type: "u1", shape: [8], data: failing } }), /the decoder failed/);
  assert.throws(() => writeNpz(join(folder, "none", "a.npz"), {}), /expected a path that can be written/);
  assert.deepEqual(readFileSync(path), before);
  assert.deepEqual(readdirSync(folder), ["samples.npz"]);
});
