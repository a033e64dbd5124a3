/**
 * Reader of zip archives as `torch.save` writes them: entries found through the central directory and read by
 * range, so that opening a large archive reads only its index. Checksums are not computed, as PyTorch does
 * not by default. Format: PKWARE APPNOTE.TXT 6.3.
 */
import { inflateRawSync } from "node:zlib";
import { expected } from "./errors.js";
import type { ByteSource } from "./files.js";

/** One file inside an archive. */
export interface ZipEntry {
  readonly name: string;
  /** Bytes once unpacked. */
  readonly size: number;
  readonly storedSize: number;
  readonly isDeflated: boolean;
  /** Where its local header begins. */
  readonly headerOffset: number;
  /** Where the next entry, or the directory, begins: its data must end before. */
  readonly limit: number;
}

const LOCAL_HEADER = 0x04034b50;
const DIRECTORY_ENTRY = 0x02014b50;
const DIRECTORY_END = 0x06054b50;
const DIRECTORY_END_64 = 0x06064b50;
const DIRECTORY_LOCATOR_64 = 0x07064b50;

/** A 32-bit field of all ones, or a 16-bit one, says that the zip64 record has the number. */
const ASK_ZIP64 = 0xffffffff;
const ASK_ZIP64_16 = 0xffff;

/** A directory of a million entries is smaller. */
const MAX_DIRECTORY_BYTES = 256 * 2 ** 20;

/** Deflated entries are unpacked in memory. `torch.save` never deflates. */
const MAX_INFLATED_BYTES = 2 ** 30;

const DAMAGED = "The file is damaged or was cut short; fetch it again";

/** The index of an open archive. Holds no data of its entries. */
export class ZipArchive {
  readonly entries: ReadonlyMap<string, ZipEntry>;
  readonly #source: ByteSource;
  readonly #where: string;

  /**
   * Read and check the directory.
   *
   * @throws RangeError when the directory is damaged, lies about sizes, or has entries that overlap.
   */
  constructor(source: ByteSource, where: string) {
    this.#source = source;
    this.#where = where;
    this.entries = readDirectory(source, where);
  }

  /**
   * Where the data of an entry that is not deflated begins in the archive.
   *
   * @throws RangeError when the entry's own header disagrees with the directory.
   */
  dataOffset(entry: ZipEntry): number {
    const where = `${this.#where}, entry ${entry.name}`;
    // The header fits: the directory was checked to leave room for it.
    const header = view(this.#source.read(entry.headerOffset, 30));
    if (header.getUint32(0, true) !== LOCAL_HEADER) throw damaged(where, "a local header", "other bytes");
    const nameLength = header.getUint16(26, true);
    const start = entry.headerOffset + 30 + nameLength + header.getUint16(28, true);
    const end = start + entry.storedSize;
    if (end > entry.limit) throw damaged(where, `data that ends by byte ${entry.limit}`, end);
    const name = decodeName(this.#source.read(entry.headerOffset + 30, nameLength));
    if (name !== entry.name) throw damaged(where, "the same name in its local header", name);
    if ((header.getUint16(8, true) === 8) !== entry.isDeflated) {
      throw damaged(where, "the same compression in its local header", header.getUint16(8, true));
    }
    // Sizes are zero here when they were not known yet as the header was written, and all ones under zip64.
    for (const [at, size] of [
      [18, entry.storedSize],
      [22, entry.size],
    ] as const) {
      const local = header.getUint32(at, true);
      if (local !== 0 && local !== ASK_ZIP64 && local !== size) {
        throw damaged(where, `${size} bytes in its local header`, local);
      }
    }
    return start;
  }

  /** The bytes of one entry, unpacked if needed. `limit` bounds the memory. */
  read(entry: ZipEntry, limit: number = MAX_INFLATED_BYTES): Uint8Array {
    const where = `${this.#where}, entry ${entry.name}`;
    if (entry.size > limit) throw expected(where, `at most ${limit} bytes`, entry.size);
    const stored = this.#source.read(this.dataOffset(entry), entry.storedSize);
    if (!entry.isDeflated) return stored;
    let bytes: Uint8Array;
    try {
      bytes = inflateRawSync(stored, { maxOutputLength: Math.max(entry.size, 1) });
    } catch (error) {
      throw damaged(where, `${entry.size} deflated bytes`, (error as Error).message);
    }
    if (bytes.length !== entry.size) throw damaged(where, `${entry.size} bytes`, bytes.length);
    return bytes;
  }
}

function damaged(where: string, what: string, got: unknown): RangeError {
  return expected(where, what, got, DAMAGED);
}

const view = (bytes: Uint8Array): DataView => new DataView(bytes.buffer, bytes.byteOffset, bytes.length);

const decodeName = (bytes: Uint8Array): string => Buffer.from(bytes).toString("utf8");

/** An int64 as a number: past 2^53 it is inexact and then larger than any file. */
const uint64 = (at: DataView, offset: number): number => Number(at.getBigUint64(offset, true));

interface Directory {
  readonly count: number;
  readonly offset: number;
  readonly size: number;
  /** Where the record that closes the directory begins. */
  readonly end: number;
}

/** An entry as the directory gives it. */
type RawEntry = Omit<ZipEntry, "limit"> & { readonly nameLength: number };

/** Find the record at the end of the archive, behind which only a comment may stand. */
function findDirectory(source: ByteSource, where: string): Directory {
  const tailStart = Math.max(0, source.size - 22 - 65535);
  const tail = view(source.read(tailStart, source.size - tailStart));
  for (let at = tail.byteLength - 22; at >= 0; at--) {
    if (tail.getUint32(at, true) !== DIRECTORY_END) continue;
    if (at + 22 + tail.getUint16(at + 20, true) !== tail.byteLength) continue;
    const plain = {
      count: tail.getUint16(at + 10, true),
      size: tail.getUint32(at + 12, true),
      offset: tail.getUint32(at + 16, true),
      end: tailStart + at,
    };
    if (at >= 20 && tail.getUint32(at - 20, true) === DIRECTORY_LOCATOR_64) {
      return findDirectory64(source, where, uint64(tail, at - 12), tailStart + at - 20);
    }
    if (plain.count === ASK_ZIP64_16 || plain.size === ASK_ZIP64 || plain.offset === ASK_ZIP64) {
      throw damaged(where, "a zip64 directory", "none");
    }
    return plain;
  }
  throw damaged(where, "a zip directory at the end", "none");
}

function findDirectory64(source: ByteSource, where: string, offset: number, locator: number): Directory {
  if (offset + 56 > locator) throw damaged(where, `a zip64 record before byte ${locator}`, offset);
  const record = view(source.read(offset, 56));
  if (record.getUint32(0, true) !== DIRECTORY_END_64) throw damaged(where, "a zip64 record", "other bytes");
  return { count: uint64(record, 32), size: uint64(record, 40), offset: uint64(record, 48), end: offset };
}

function readDirectory(source: ByteSource, where: string): Map<string, ZipEntry> {
  const { count, offset, size, end } = findDirectory(source, where);
  if (offset + size > end)
    throw damaged(where, `a directory that ends by byte ${end}`, `${offset} + ${size}`);
  if (size > MAX_DIRECTORY_BYTES) {
    throw damaged(where, `a directory of at most ${MAX_DIRECTORY_BYTES} bytes`, size);
  }
  const bytes = source.read(offset, size);
  const entries: RawEntry[] = [];
  let at = 0;
  while (at + 46 <= size && entries.length < count) {
    const { entry, next } = readEntry(bytes, at, where);
    entries.push(entry);
    at = next;
  }
  if (entries.length !== count || at !== size) {
    throw damaged(where, `${count} entries in ${size} bytes of directory`, `${entries.length} in ${at}`);
  }
  return withLimits(entries, offset, where);
}

function readEntry(bytes: Uint8Array, at: number, where: string): { entry: RawEntry; next: number } {
  const head = view(bytes.subarray(at));
  if (head.getUint32(0, true) !== DIRECTORY_ENTRY) throw damaged(where, "a directory entry", "other bytes");
  const flags = head.getUint16(8, true);
  const method = head.getUint16(10, true);
  const nameEnd = 46 + head.getUint16(28, true);
  const extraEnd = nameEnd + head.getUint16(30, true);
  const next = at + extraEnd + head.getUint16(32, true);
  if (next > bytes.length) throw damaged(where, "a directory entry", "one cut short");
  const nameLength = nameEnd - 46;
  const name = decodeName(bytes.subarray(at + 46, at + nameEnd));
  if ((flags & 1) !== 0) throw expected(`${where}, entry ${name}`, "no encryption", "an encrypted entry");
  if (method !== 0 && method !== 8) {
    throw expected(`${where}, entry ${name}`, "data stored or deflated", `compression ${method}`);
  }
  let storedSize = head.getUint32(20, true);
  let size = head.getUint32(24, true);
  let headerOffset = head.getUint32(42, true);
  const wide = zip64Numbers(bytes.subarray(at + nameEnd, at + extraEnd));
  const takeWide = (): number => {
    const value = wide.shift();
    if (value === undefined) throw damaged(`${where}, entry ${name}`, "its size in a zip64 field", "none");
    return value;
  };
  // The field holds, in this order, only those that the entry itself leaves out.
  if (size === ASK_ZIP64) size = takeWide();
  if (storedSize === ASK_ZIP64) storedSize = takeWide();
  if (headerOffset === ASK_ZIP64) headerOffset = takeWide();
  if (method === 0 && size !== storedSize) {
    throw damaged(`${where}, entry ${name}`, `${storedSize} bytes, as stored`, size);
  }
  return { entry: { name, nameLength, size, storedSize, isDeflated: method === 8, headerOffset }, next };
}

/** The 64-bit numbers of extra field 1. */
function zip64Numbers(extra: Uint8Array): number[] {
  const fields = view(extra);
  for (let at = 0; at + 4 <= extra.length; ) {
    const end = at + 4 + fields.getUint16(at + 2, true);
    if (fields.getUint16(at, true) === 1 && end <= extra.length) {
      const numbers: number[] = [];
      for (let i = at + 4; i + 8 <= end; i += 8) numbers.push(uint64(fields, i));
      return numbers;
    }
    at = end;
  }
  return [];
}

/** Give each entry the room up to the next, and refuse overlap: a bomb counts the same bytes many times. */
function withLimits(entries: RawEntry[], end: number, where: string): Map<string, ZipEntry> {
  const byOffset = [...entries].sort((a, b) => a.headerOffset - b.headerOffset);
  const limits = new Map<string, number>();
  for (const [i, entry] of byOffset.entries()) {
    const limit = byOffset[i + 1]?.headerOffset ?? end;
    const least = entry.headerOffset + 30 + entry.nameLength + entry.storedSize;
    if (least > limit)
      throw damaged(`${where}, entry ${entry.name}`, `data that ends by byte ${limit}`, least);
    if (limits.has(entry.name)) throw damaged(where, "one entry of each name", `two named ${entry.name}`);
    limits.set(entry.name, limit);
  }
  return new Map(entries.map((entry) => [entry.name, { ...entry, limit: limits.get(entry.name) as number }]));
}
