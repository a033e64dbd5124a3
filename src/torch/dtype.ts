/**
 * Element types: their names, LibTorch's codes, sizes in bytes and JavaScript arrays.
 */

/** Name of an element type, spelled as PyTorch spells it. */
export type DType =
  | "uint8"
  | "int8"
  | "int16"
  | "int32"
  | "int64"
  | "float16"
  | "float32"
  | "float64"
  | "bfloat16"
  | "bool"
  | "complex64"
  | "complex128";

/** JavaScript array whose elements have a dtype's exact values. */
export type TypedArray =
  | Uint8Array
  | Int8Array
  | Int16Array
  | Int32Array
  | BigInt64Array
  | Uint16Array
  | Float32Array
  | Float64Array;

interface DTypeInfo {
  /** `c10::ScalarType`, stable across LibTorch versions. */
  readonly code: number;
  /** Bytes per element. */
  readonly size: number;
  readonly isFloat: boolean;
}

/** Every dtype with its `c10::ScalarType` code and element size in bytes. */
export const DTYPES: Readonly<Record<DType, DTypeInfo>> = {
  uint8: { code: 0, size: 1, isFloat: false },
  int8: { code: 1, size: 1, isFloat: false },
  int16: { code: 2, size: 2, isFloat: false },
  int32: { code: 3, size: 4, isFloat: false },
  int64: { code: 4, size: 8, isFloat: false },
  float16: { code: 5, size: 2, isFloat: true },
  float32: { code: 6, size: 4, isFloat: true },
  float64: { code: 7, size: 8, isFloat: true },
  complex64: { code: 9, size: 8, isFloat: false },
  complex128: { code: 10, size: 16, isFloat: false },
  bool: { code: 11, size: 1, isFloat: false },
  bfloat16: { code: 15, size: 2, isFloat: true },
};

/**
 * Reads numbers of a type as NumPy names it: `i8` is int64, `u1` uint8, `f4` float32; `bf2` is bfloat16. Undefined for
 * another type.
 */
export function numberReader(
  type: string,
  view: DataView,
  isLittle = true,
): ((at: number) => number | bigint) | undefined {
  const readers: Readonly<Record<string, (at: number) => number | bigint>> = {
    i1: (at) => view.getInt8(at),
    i2: (at) => view.getInt16(at, isLittle),
    i4: (at) => view.getInt32(at, isLittle),
    i8: (at) => view.getBigInt64(at, isLittle),
    u1: (at) => view.getUint8(at),
    u2: (at) => view.getUint16(at, isLittle),
    u4: (at) => view.getUint32(at, isLittle),
    u8: (at) => view.getBigUint64(at, isLittle),
    f2: (at) => halfToNumber(view.getUint16(at, isLittle)),
    f4: (at) => view.getFloat32(at, isLittle),
    f8: (at) => view.getFloat64(at, isLittle),
    bf2: (at) => bfloatToNumber(view.getUint16(at, isLittle)),
  };
  return Object.hasOwn(readers, type) ? readers[type] : undefined;
}

const scratch = new DataView(new ArrayBuffer(4));

/** bfloat16: the upper half of a float32. */
function bfloatToNumber(bits: number): number {
  scratch.setUint16(0, bits);
  return scratch.getFloat32(0);
}

/** IEEE binary16: 1 sign, 5 exponent (bias 15), 10 fraction bits. */
function halfToNumber(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction === 0 ? sign * Infinity : NaN;
  return sign * (1024 + fraction) * 2 ** (exponent - 25);
}
