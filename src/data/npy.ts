/**
 * Arrays of numbers from NumPy's `.npy` files (format versions 1 to 3), in which LlamaGen keeps codes and text
 * features. Decoding threads use this, so it must not import the tensor library. Pickled objects are refused.
 */
import { halfToNumber } from "../torch/dtype.js";
import { expected } from "../torch/errors.js";

/** Numbers as they are stored in a file, little-endian and row-major. */
export interface RawArray {
  /** `i`, `u`, `f`, `bf` (bfloat16) and the bytes of one number: `i8` is int64. */
  readonly type: string;
  readonly shape: readonly number[];
  readonly bytes: Uint8Array;
}

/** Features of a text: float32 `[S, C]`. */
export interface Features {
  readonly data: Float32Array;
  readonly shape: readonly [number, number];
}

const MAGIC = "\u0093NUMPY";

const TYPES: ReadonlySet<string> = new Set([
  "i1",
  "i2",
  "i4",
  "i8",
  "u1",
  "u2",
  "u4",
  "u8",
  "f2",
  "f4",
  "f8",
]);

/**
 * Read a `.npy` array.
 *
 * @throws RangeError for a damaged file, for objects, and for big-endian or column-major numbers.
 */
export function readNpy(file: Uint8Array, name: string): RawArray {
  const buffer = Buffer.from(file.buffer, file.byteOffset, file.length);
  if (buffer.length < 12 || buffer.toString("latin1", 0, 6) !== MAGIC) {
    throw expected(name, "a .npy array", `${buffer.length} bytes of something else`);
  }
  const isLong = (buffer[6] as number) >= 2;
  const start = isLong ? 12 : 10;
  const end = start + (isLong ? buffer.readUInt32LE(8) : buffer.readUInt16LE(8));
  const header = buffer.toString("latin1", start, Math.min(end, buffer.length));
  const descr = /'descr':\s*'([^']*)'/.exec(header)?.[1];
  const shapeText = /'shape':\s*\(([\d\s,]*)\)/.exec(header)?.[1];
  if (end > buffer.length || descr === undefined || shapeText === undefined) {
    throw expected(
      name,
      "a .npy header with descr and shape",
      header.slice(0, 80).trim(),
      "Write the file again",
    );
  }
  const type = descr.replace(/^[<|=]/, "");
  if (!TYPES.has(type)) {
    throw expected(name, "little-endian whole numbers or floats", descr, "Convert the array with astype");
  }
  const shape = shapeText
    .split(",")
    .map((text) => text.trim())
    .filter((text) => text !== "")
    .map(Number);
  if (/'fortran_order':\s*True/.test(header) && shape.filter((size) => size > 1).length > 1) {
    throw expected(
      name,
      "rows after one another",
      "fortran_order: True",
      "Save numpy.ascontiguousarray of it",
    );
  }
  const count = shape.reduce((product, size) => product * size, 1);
  const bytes = file.subarray(end);
  if (bytes.length !== count * Number(type.slice(1))) {
    const what = `${count * Number(type.slice(1))} bytes for ${descr} [${shape.join(", ")}]`;
    throw expected(name, what, bytes.length, "The file was cut short or is damaged");
  }
  return { type, shape, bytes };
}

/** Whole numbers of an array. @throws RangeError when it holds floats. */
export function toInt64({ type, bytes }: RawArray, name: string): BigInt64Array {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const read: Record<string, (at: number) => number | bigint> = {
    i1: (at) => view.getInt8(at),
    i2: (at) => view.getInt16(at, true),
    i4: (at) => view.getInt32(at, true),
    i8: (at) => view.getBigInt64(at, true),
    u1: (at) => view.getUint8(at),
    u2: (at) => view.getUint16(at, true),
    u4: (at) => view.getUint32(at, true),
    u8: (at) => view.getBigUint64(at, true),
  };
  const readOne = read[type];
  if (readOne === undefined) throw expected(name, "whole numbers", type, "Convert the array with astype");
  const step = Number(type.slice(1));
  return BigInt64Array.from({ length: bytes.length / step }, (_, i) => BigInt(readOne(i * step)));
}

/** Numbers of an array as float32. @throws RangeError when it holds whole numbers. */
export function toFloat32({ type, bytes }: RawArray, name: string): Float32Array {
  if (type === "f4") return new Float32Array(new Uint8Array(bytes).buffer);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const read: Record<string, (at: number) => number> = {
    f2: (at) => halfToNumber(view.getUint16(at, true)),
    bf2: (at) => bfloatOf(view.getUint16(at, true)),
    f8: (at) => view.getFloat64(at, true),
  };
  const readOne = read[type];
  if (readOne === undefined) throw expected(name, "floats", type, "Convert the array with astype");
  const step = Number(/\d$/.exec(type)?.[0]);
  return Float32Array.from({ length: bytes.length / step }, (_, i) => readOne(i * step));
}

const scratch = new DataView(new ArrayBuffer(4));

function bfloatOf(bits: number): number {
  scratch.setUint16(0, bits);
  scratch.setUint16(2, 0);
  return scratch.getFloat32(0);
}

/** Text features of a `.npy` file; see {@link checkFeatures}. */
export function featuresOfNpy(file: Uint8Array, name: string): Features {
  const raw = readNpy(file, name);
  return checkFeatures(toFloat32(raw, name), raw.shape, name);
}

/**
 * Features of shape `[S, C]` or `[1, S, C]`.
 *
 * @throws RangeError for another shape, and for a value that is not finite.
 */
export function checkFeatures(data: Float32Array, shape: readonly number[], name: string): Features {
  const [length, width] = shape.slice(-2);
  if (length === undefined || width === undefined || data.length !== length * width || data.length === 0) {
    throw expected(name, "text features of shape [S, C] or [1, S, C]", `[${shape.join(", ")}]`);
  }
  const odd = data.findIndex((value) => !Number.isFinite(value));
  if (odd >= 0) {
    const place = `${data[odd]} at [${Math.floor(odd / width)}, ${odd % width}]`;
    throw expected(name, "finite numbers", place, "Extract the features again, in float32");
  }
  return { data, shape: [length, width] };
}
