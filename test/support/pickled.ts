/** Pickles and zip archives built byte by byte, honest and not, for the tests of their readers. */
import { deflateRawSync } from "node:zlib";
import { type ByteSource, MemoryBytes } from "../../src/torch/files.js";

/** Bytes from parts: strings are Latin-1, numbers are single bytes. */
export function bytes(...parts: (string | number | Uint8Array)[]): Buffer {
  return Buffer.concat(
    parts.map((part) => {
      if (typeof part === "string") return Buffer.from(part, "latin1");
      return typeof part === "number" ? Buffer.from([part]) : part;
    }),
  );
}

/** A little-endian integer of 1 to 6 bytes. */
export function int(value: number, length = 4): Buffer {
  const buffer = Buffer.alloc(length);
  buffer.writeIntLE(value, 0, length);
  return buffer;
}

export const int64 = (value: bigint): Buffer => Buffer.from(new BigInt64Array([value]).buffer);

export const sourceOf = (...parts: (string | number | Uint8Array)[]): ByteSource =>
  new MemoryBytes(bytes(...parts));

/** Opcodes that push text, as protocol 2 does. */
export const str = (text: string): Buffer =>
  bytes("X", int(Buffer.byteLength(text)), Buffer.from(text, "utf8"));

/** Opcodes that push a tuple of what the parts push. */
export const tuple = (...parts: Uint8Array[]): Buffer => bytes("(", ...parts, "t");

export const global = (module: string, name: string): Buffer => bytes(`c${module}\n${name}\n`);

/** Opcodes that push the result of calling a global. */
export const reduce = (callee: Uint8Array, ...args: Uint8Array[]): Buffer =>
  bytes(callee, tuple(...args), "R");

/** Opcodes that push an int32. */
export const num = (value: number): Buffer => bytes("J", int(value));

/** A whole pickle of protocol 2 around opcodes. */
export const pickle = (...parts: (string | number | Uint8Array)[]): Buffer => bytes(0x80, 2, ...parts, ".");

/** Opcodes of PyTorch's tensor over a storage: `sizes` and `strides` as given, right or wrong. */
export function tensorOps(
  storage: { type: string; key: string; count: number | Uint8Array },
  offset: number,
  sizes: readonly number[],
  strides: readonly number[],
): Buffer {
  const count = typeof storage.count === "number" ? num(storage.count) : storage.count;
  const id = tuple(str("storage"), global("torch", storage.type), str(storage.key), str("cpu"), count);
  return reduce(
    global("torch._utils", "_rebuild_tensor_v2"),
    bytes(id, "Q"),
    num(offset),
    tuple(...sizes.map(num)),
    tuple(...strides.map(num)),
    bytes(0x89),
    reduce(global("collections", "OrderedDict")),
  );
}

export interface ZipPart {
  name: string;
  data: Uint8Array;
  isDeflated?: boolean;
}

/** A zip archive. With `isZip64` every number of the directory stands in zip64 fields, as past 4 GiB. */
export function zipOf(parts: readonly ZipPart[], isZip64 = false): Buffer {
  const locals: Buffer[] = [];
  const directory: Buffer[] = [];
  let offset = 0;
  for (const { name, data, isDeflated = false } of parts) {
    const stored = isDeflated ? deflateRawSync(data) : data;
    const method = int(isDeflated ? 8 : 0, 2);
    const title = Buffer.from(name);
    const sizes = bytes(int(stored.length), int(data.length));
    const head = bytes(int(20, 2), int(0, 2), method, int(0), int(0));
    const local = bytes("PK\x03\x04", head, sizes, int(title.length, 2), int(0, 2), title, stored);
    const all = Buffer.alloc(4, 0xff);
    const wide = isZip64
      ? bytes(
          int(1, 2),
          int(24, 2),
          int64(BigInt(data.length)),
          int64(BigInt(stored.length)),
          int64(BigInt(offset)),
        )
      : Buffer.alloc(0);
    directory.push(
      bytes("PK\x01\x02", int(20, 2), head, isZip64 ? bytes(all, all) : sizes, int(title.length, 2)),
      bytes(int(wide.length, 2), Buffer.alloc(10), isZip64 ? all : int(offset), title, wide),
    );
    locals.push(local);
    offset += local.length;
  }
  const index = Buffer.concat(directory);
  const count = parts.length;
  const wide = isZip64
    ? bytes(
        ...[
          "PK\x06\x06",
          int64(44n),
          int(45, 2),
          int(45, 2),
          int(0),
          int(0),
          int64(BigInt(count)),
          int64(BigInt(count)),
        ],
        ...[int64(BigInt(index.length)), int64(BigInt(offset))],
        ...["PK\x06\x07", int(0), int64(BigInt(offset + index.length)), int(1)],
      )
    : Buffer.alloc(0);
  const counts = isZip64 ? Buffer.alloc(4, 0xff) : bytes(int(count, 2), int(count, 2));
  const place = isZip64 ? Buffer.alloc(8, 0xff) : bytes(int(index.length), int(offset));
  return bytes(...locals, index, wide, "PK\x05\x06", int(0), counts, place, int(0, 2));
}

/** A copy with bytes replaced. */
export function patched(original: Uint8Array, at: number, replacement: Uint8Array): Buffer {
  const copy = Buffer.from(original);
  copy.set(replacement, at);
  return copy;
}
