/**
 * Arrays of numbers from NumPy's `.npy` files (format versions 1 to 3), in which LlamaGen keeps codes and text
 * features. Decoding threads use this, so it must not import the tensor library. Pickled objects are refused.
 */
import { numberReader } from "../torch/dtype.js";
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
    const got = header.slice(0, 80).trim();
    throw expected(name, "a .npy header with descr and shape", got, "Write the file again");
  }
  const type = descr.replace(/^[<|=]/, "");
  if (!/^([iu][1248]|f[248])$/.test(type)) {
    throw expected(name, "little-endian whole numbers or floats", descr, "Convert the array with astype");
  }
  const shape = shapeText
    .split(",")
    .map((text) => text.trim())
    .filter((text) => text !== "")
    .map(Number);
  if (/'fortran_order':\s*True/.test(header) && shape.filter((size) => size > 1).length > 1) {
    const remedy = "Save numpy.ascontiguousarray of it";
    throw expected(name, "rows after one another", "fortran_order: True", remedy);
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
export function toInt64(array: RawArray, name: string): BigInt64Array {
  const { length, read } = numbersOf(array, name, "whole numbers", /^[iu]/);
  return BigInt64Array.from({ length }, (_, i) => BigInt(read(i)));
}

/** Numbers of an array as float32. @throws RangeError when it holds whole numbers. */
export function toFloat32(array: RawArray, name: string): Float32Array {
  if (array.type === "f4") return new Float32Array(new Uint8Array(array.bytes).buffer);
  const { length, read } = numbersOf(array, name, "floats", /f/);
  return Float32Array.from({ length }, (_, i) => Number(read(i)));
}

function numbersOf({ type, bytes }: RawArray, name: string, what: string, types: RegExp) {
  const reader = numberReader(type, new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength));
  if (reader === undefined || !types.test(type)) {
    throw expected(name, what, type, "Convert the array with astype");
  }
  const step = Number(/\d$/.exec(type)?.[0]);
  return { length: bytes.length / step, read: (i: number) => reader(i * step) };
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
