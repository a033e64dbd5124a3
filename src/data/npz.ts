/**
 * Writer of NumPy's `.npz` archives, as `numpy.savez` lays them out: arrays in a zip that are stored, not deflated, and
 * always with 64-bit sizes. Data come a piece at a time, so that an archive may be larger than memory. Formats: NumPy's
 * NEP 1 (version 1.0), PKWARE APPNOTE.TXT 6.3.
 */
import { writeSync } from "node:fs";

import { replaceFile, writeAll } from "../torch/files.js";
import { expected } from "../torch/index.js";

/** An array to write. */
export interface NpzArray {
  /** `u1`, `i8`, `f4`, ...: `i`, `u` or `f` and the bytes of one number. */
  readonly type: string;
  readonly shape: readonly number[];
  /** Its numbers, little-endian and row-major, in pieces of any size. Gone through once. */
  readonly data: Iterable<Uint8Array>;
}

/**
 * Write arrays to an archive, which is there whole or not at all.
 *
 * @param arrays - by name; `arr_0`, `arr_1`, ... is what readers expect of arrays without one.
 * @throws RangeError when an array's data are not as long as its shape says, or the disk is full.
 */
export function writeNpz(path: string, arrays: Readonly<Record<string, NpzArray>>): void {
  replaceFile(path, (fd) => {
    const directory: Buffer[] = [];
    let at = 0;
    const write = (bytes: Uint8Array): void => {
      writeAll(fd, bytes);
      at += bytes.length;
    };
    for (const [key, { type, shape, data }] of Object.entries(arrays)) {
      const name = Buffer.from(`${key}.npy`);
      const header = npyHeader(type, shape);
      const bytes = shape.reduce((product, size) => product * size, Number(type.slice(1)));
      const entry = { name, size: header.length + bytes, offset: at, crc: 0 };
      write(localHeader(entry));
      const start = at;
      let crc = crc32(header);
      write(header);
      for (const piece of data) {
        crc = crc32(piece, crc);
        write(piece);
      }
      if (at - start !== entry.size) {
        const what = `${bytes} bytes for ${type} [${shape.join(", ")}]`;
        throw expected(`writeNpz: ${key}`, what, at - start - header.length);
      }
      // Known only now, and readers check it.
      writeSync(fd, word32(crc), 0, 4, entry.offset + CRC_AT);
      directory.push(directoryEntry({ ...entry, crc }));
    }
    write(Buffer.concat([...directory, directoryEnd(directory, at)]));
  });
}

/** The header of a `.npy` file of version 1.0; data begin at a multiple of 64. */
function npyHeader(type: string, shape: readonly number[]): Buffer {
  const descr = `${type.endsWith("1") ? "|" : "<"}${type}`;
  const sizes = shape.length === 1 ? `${shape[0]},` : shape.join(", ");
  const text = `{'descr': '${descr}', 'fortran_order': False, 'shape': (${sizes}), }`;
  const padded = text.padEnd(Math.ceil((text.length + 11) / 64) * 64 - 11);
  const head = Buffer.from("\u0093NUMPY\u0001\u0000\u0000\u0000", "latin1");
  head.writeUInt16LE(padded.length + 1, 8);
  return Buffer.concat([head, Buffer.from(`${padded}\n`, "latin1")]);
}

interface Entry {
  readonly name: Buffer;
  readonly size: number;
  /** Where its local header begins. */
  readonly offset: number;
  readonly crc: number;
}

/** Place of the checksum in a local header. */
const CRC_AT = 14;

/** Version 4.5 of the format, which has 64-bit sizes. */
const VERSION = 45;

/** Midnight of 1 January 1980: the same arrays give the same bytes. */
const DATE = 0x0021;

/** All ones in a 32-bit field sends the reader to the 64-bit one. */
const ASK_ZIP64 = 0xffffffff;

function localHeader({ name, size, crc }: Entry): Buffer {
  const extra = zip64([size, size]);
  const fields = [word32(0x04034b50), fieldsOf(crc), word16(name.length), word16(extra.length)];
  return Buffer.concat([...fields, name, extra]);
}

function directoryEntry({ name, size, offset, crc }: Entry): Buffer {
  const extra = zip64([size, size, offset]);
  const fields = [
    ...[word32(0x02014b50), word16(VERSION), fieldsOf(crc), word16(name.length), word16(extra.length)],
    // No comment, disk 0, no attributes.
    ...[word16(0), word16(0), word16(0), word32(0), word32(ASK_ZIP64)],
  ];
  return Buffer.concat([...fields, name, extra]);
}

/** Version, flags, method (stored), time, date, checksum and both sizes: the same in both headers of an entry. */
function fieldsOf(crc: number): Buffer {
  const fields = [VERSION, 0, 0, 0, DATE].map(word16);
  return Buffer.concat([...fields, word32(crc), word32(ASK_ZIP64), word32(ASK_ZIP64)]);
}

function zip64(numbers: readonly number[]): Buffer {
  return Buffer.concat([word16(1), word16(numbers.length * 8), ...numbers.map(word64)]);
}

/** The 64-bit record, where it is, and the 32-bit record that readers look for first. */
function directoryEnd(entries: readonly Buffer[], offset: number): Buffer {
  const size = entries.reduce((sum, entry) => sum + entry.length, 0);
  const count = entries.length;
  const record = [word32(0x06064b50), word64(44), word16(VERSION), word16(VERSION), word32(0), word32(0)];
  const locator = [word32(0x07064b50), word32(0), word64(offset + size), word32(1)];
  const end = [word32(0x06054b50), word16(0), word16(0), word16(count), word16(count)];
  return Buffer.concat([
    ...[...record, word64(count), word64(count), word64(size), word64(offset)],
    ...locator,
    ...[...end, word32(ASK_ZIP64), word32(ASK_ZIP64), word16(0)],
  ]);
}

function word16(value: number): Buffer {
  const bytes = Buffer.alloc(2);
  bytes.writeUInt16LE(value);
  return bytes;
}

function word32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value);
  return bytes;
}

function word64(value: number): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64LE(BigInt(value));
  return bytes;
}

/** CRC-32 of each byte: the reversed polynomial 0xedb88320. Node has a function of its own from 20.15 on only. */
const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, i) => {
  let value = i;
  for (let bit = 0; bit < 8; bit++) value = (value & 1) === 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1;
  return value >>> 0;
});

/** @param before - the checksum of what came before these bytes. */
function crc32(bytes: Uint8Array, before = 0): number {
  let crc = ~before;
  for (let i = 0; i < bytes.length; i++) {
    crc = (crc >>> 8) ^ (CRC_TABLE[(crc ^ (bytes[i] as number)) & 0xff] as number);
  }
  return ~crc >>> 0;
}
