/**
 * Writer of zip archives as `torch.save` writes them: entries stored, not deflated, each beginning on a multiple of
 * 64 bytes, so that a reader can map them. Every entry has 64-bit sizes, whatever its size. Format:
 * PKWARE APPNOTE.TXT 6.3.
 *
 * Written here because libraries such as fflate have neither 64-bit sizes nor alignment, and hold an entry in memory:
 * checkpoints and `.npz` archives of images exceed 4 GiB.
 */
import { writeSync } from "node:fs";
import { writeAll } from "./files.js";

/** An entry of the directory. */
interface Written {
  readonly name: Buffer;
  readonly headerOffset: number;
  readonly size: number;
  readonly crc: number;
}

const ALIGNMENT = 64;

/** Version 4.5, which has 64-bit sizes. */
const VERSION = 45;

/** Bit 11 of the flags: names are UTF-8. */
const FLAGS = 0x800;

/** 1 January 1980, the first date that the format has: the same content makes the same file. */
const DATE = 0x21;

/** Extra field of padding, as PyTorch names it. */
const PADDING_FIELD = 0x4246;

const LOCAL_BYTES = 30;
const SIZES_BYTES = 20;

/** Appends to an open, empty file. `add` the entries, then `finish`. */
export class ZipWriter {
  readonly #fd: number;
  readonly #entries: Written[] = [];
  #end = 0;

  constructor(fd: number) {
    this.#fd = fd;
  }

  /** Add an entry of `size` bytes, all of which `content` gives to its argument, in pieces. */
  add(name: string, size: number, content: (put: (bytes: Uint8Array) => void) => void): void {
    const entry = { name: Buffer.from(name), headerOffset: this.#end, size, crc: 0 };
    // The header comes before the data and holds its checksum, so it is written again at the end.
    this.#append(localHeader(entry));
    let crc = 0xffffffff;
    content((bytes) => {
      crc = crc32(crc, bytes);
      this.#append(bytes);
    });
    entry.crc = ~crc >>> 0;
    const header = localHeader(entry);
    writeSync(this.#fd, header, 0, header.length, entry.headerOffset);
    this.#entries.push(entry);
  }

  /** Write the directory. */
  finish(): void {
    const start = this.#end;
    for (const entry of this.#entries) this.#append(directoryEntry(entry));
    const record = { count: this.#entries.length, start, size: this.#end - start, end: this.#end };
    this.#append(directoryEnd(record));
  }

  #append(bytes: Uint8Array): void {
    writeAll(this.#fd, bytes);
    this.#end += bytes.length;
  }
}

/** Header before an entry's data, padded so that the data is aligned. */
function localHeader({ name, headerOffset, size, crc }: Written): Buffer {
  const least = LOCAL_BYTES + name.length + SIZES_BYTES + 4;
  const padding = (ALIGNMENT - ((headerOffset + least) % ALIGNMENT)) % ALIGNMENT;
  const header = Buffer.alloc(least + padding);
  header.writeUInt32LE(0x04034b50, 0);
  writeCommon(header, 4, crc, name.length, SIZES_BYTES + 4 + padding);
  name.copy(header, LOCAL_BYTES);
  const extra = LOCAL_BYTES + name.length;
  writeSizes(header, extra, size);
  header.writeUInt16LE(PADDING_FIELD, extra + SIZES_BYTES);
  header.writeUInt16LE(padding, extra + SIZES_BYTES + 2);
  return header;
}

function directoryEntry({ name, headerOffset, size, crc }: Written): Buffer {
  const entry = Buffer.alloc(46 + name.length + SIZES_BYTES + 8);
  entry.writeUInt32LE(0x02014b50, 0);
  entry.writeUInt16LE(VERSION, 4);
  writeCommon(entry, 6, crc, name.length, SIZES_BYTES + 8);
  entry.writeUInt32LE(0xffffffff, 42);
  name.copy(entry, 46);
  const extra = 46 + name.length;
  writeSizes(entry, extra, size);
  entry.writeUInt16LE(SIZES_BYTES + 4, extra + 2);
  entry.writeBigUInt64LE(BigInt(headerOffset), extra + SIZES_BYTES);
  return entry;
}

/** Version, flags, method (0, stored), time, date, checksum, sizes (asked of the extra field) and lengths. */
function writeCommon(to: Buffer, at: number, crc: number, nameLength: number, extraLength: number): void {
  to.writeUInt16LE(VERSION, at);
  to.writeUInt16LE(FLAGS, at + 2);
  to.writeUInt16LE(DATE, at + 8);
  to.writeUInt32LE(crc, at + 10);
  to.writeUInt32LE(0xffffffff, at + 14);
  to.writeUInt32LE(0xffffffff, at + 18);
  to.writeUInt16LE(nameLength, at + 22);
  to.writeUInt16LE(extraLength, at + 24);
}

/** Extra field 1: the size unpacked, and as stored. */
function writeSizes(to: Buffer, at: number, size: number): void {
  to.writeUInt16LE(1, at);
  to.writeUInt16LE(SIZES_BYTES - 4, at + 2);
  to.writeBigUInt64LE(BigInt(size), at + 4);
  to.writeBigUInt64LE(BigInt(size), at + 12);
}

/** The 64-bit record that closes the directory, its locator, and the short record, which refers to them. */
function directoryEnd(directory: { count: number; start: number; size: number; end: number }): Buffer {
  const bytes = Buffer.alloc(56 + 20 + 22);
  bytes.writeUInt32LE(0x06064b50, 0);
  bytes.writeBigUInt64LE(44n, 4);
  bytes.writeUInt16LE(VERSION, 12);
  bytes.writeUInt16LE(VERSION, 14);
  bytes.writeBigUInt64LE(BigInt(directory.count), 24);
  bytes.writeBigUInt64LE(BigInt(directory.count), 32);
  bytes.writeBigUInt64LE(BigInt(directory.size), 40);
  bytes.writeBigUInt64LE(BigInt(directory.start), 48);
  bytes.writeUInt32LE(0x07064b50, 56);
  bytes.writeBigUInt64LE(BigInt(directory.end), 64);
  bytes.writeUInt32LE(1, 72);
  bytes.writeUInt32LE(0x06054b50, 76);
  bytes.writeUInt16LE(0xffff, 84);
  bytes.writeUInt16LE(0xffff, 86);
  bytes.writeUInt32LE(0xffffffff, 88);
  bytes.writeUInt32LE(0xffffffff, 92);
  return bytes;
}

const CRC_TABLE: Uint32Array = Uint32Array.from({ length: 256 }, (_, i) => {
  let value = i;
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? 0xedb88320 ^ (value >>> 1) : value >>> 1;
  return value;
});

/** CRC-32 continued; it begins at all ones and is inverted at the end. Node.js has its own from 20.15 on. */
function crc32(crc: number, bytes: Uint8Array): number {
  let value = crc;
  for (let i = 0; i < bytes.length; i++) {
    value = (CRC_TABLE[(value ^ (bytes[i] as number)) & 255] as number) ^ (value >>> 8);
  }
  return value;
}
