/**
 * Tensors of a PyTorch checkpoint before they are read: type, shape and place in a storage, all checked
 * against the file. Turns the calls that PyTorch's pickles make (`torch._utils._rebuild_tensor_v2` and others)
 * into them.
 */
import { inspect } from "node:util";
import { callTensor } from "./call.js";
import { empty } from "./creation.js";
import { DTYPES, type DType } from "./dtype.js";
import { expected } from "./errors.js";
import { type ByteSource, readTensorData } from "./files.js";
import { isCount } from "./json.js";
import { kindOf, PyGlobal } from "./python_values.js";
import type { Tensor } from "./tensor.js";

/** Memory that tensors of a file share. */
export interface Storage {
  readonly bytes: number;
  /** Where its bytes are. Asked only when a tensor is read. */
  locate(): { source: ByteSource; offset: number };
}

/** How elements lie in a storage, counted in elements. */
interface Layout {
  readonly shape: readonly number[];
  readonly strides: readonly number[];
  readonly storageOffset: number;
}

/** Flags of a view whose values are the conjugate or the negative of those in memory. */
interface Pending {
  readonly isConjugate: boolean;
  readonly isNegative: boolean;
}

/** A tensor of a file, described and not yet read. A bare storage is a flat tensor. */
export class LazyTensor {
  /**
   * PyTorch's name. A dtype that is not supported here (`float8_e4m3fn`, `uint16`, ...) can be shown but not
   * read.
   */
  readonly dtype: string;
  readonly shape: readonly number[];
  readonly strides: readonly number[];
  /** Elements before the first in the storage. */
  readonly storageOffset: number;
  /** As saved. What is read never requires gradients. */
  readonly requiresGrad: boolean;
  /** @internal */
  readonly storage: Storage;
  readonly #pending: Pending;

  /** @internal Opening a checkpoint makes these, and checks that the layout lies in the storage. */
  constructor(storage: Storage, dtype: string, layout: Layout, requiresGrad: boolean, pending: Pending) {
    this.storage = storage;
    this.dtype = dtype;
    this.shape = layout.shape;
    this.strides = layout.strides;
    this.storageOffset = layout.storageOffset;
    this.requiresGrad = requiresGrad;
    this.#pending = pending;
  }

  get numel(): number {
    return this.shape.reduce((product, size) => product * size, 1);
  }

  toString(): string {
    return `LazyTensor ${this.dtype}[${this.shape.join(", ")}]`;
  }

  /** @internal The same tensor with another flag. */
  withGrad(requiresGrad: boolean): LazyTensor {
    return new LazyTensor(this.storage, this.dtype, this, requiresGrad, this.#pending);
  }

  /**
   * Read this tensor alone, with its strides, into memory of its own on the CPU. The file must be open.
   *
   * @param where - named at the head of an error.
   * @throws RangeError when the dtype is not supported here.
   */
  read(where = "LazyTensor.read"): Tensor {
    const flat = readElements(this, where, this.numel === 0 ? 0 : this.storageOffset, spanOf(this));
    try {
      return this.over(flat, 0);
    } finally {
      flat.dispose();
    }
  }

  /** @internal This tensor as a view of a flat one, in which its first element is element `start`. */
  over(flat: Tensor, start: number): Tensor {
    const view = flat.asStrided(this.shape, this.strides, this.numel === 0 ? 0 : start);
    const { isConjugate, isNegative } = this.#pending;
    if (!isConjugate && !isNegative) return view;
    // A conjugated or negated view shares memory through a flag; here its values are computed and stored.
    const conjugate = isConjugate ? callTensor<Tensor>("aten::conj_physical", [view]) : view;
    const result = isNegative ? conjugate.neg() : conjugate;
    for (const step of [view, conjugate]) if (step !== result) step.dispose();
    return result;
  }
}

Object.defineProperty(LazyTensor.prototype, inspect.custom, { value: LazyTensor.prototype.toString });

/** Elements from the first that a layout touches to the last. */
function spanOf({ shape, strides }: Pick<Layout, "shape" | "strides">): number {
  if (shape.includes(0)) return 0;
  return shape.reduce((span, size, i) => span + (size - 1) * (strides[i] as number), 1);
}

/** Elements `[start, start + count)` of a lazy tensor's storage, as a flat tensor. */
function readElements(lazy: LazyTensor, where: string, start: number, count: number): Tensor {
  const { dtype, storage } = lazy;
  if (!Object.hasOwn(DTYPES, dtype)) {
    const known = Object.keys(DTYPES).join(", ");
    throw expected(where, `a dtype among ${known}`, lazy, "Convert it in Python, or omit it");
  }
  const { size } = DTYPES[dtype as DType];
  const flat = empty([count], { dtype: dtype as DType });
  if (count === 0) return flat;
  try {
    const { source, offset } = storage.locate();
    readTensorData(source, offset + start * size, flat, size);
  } catch (error) {
    flat.dispose();
    throw error;
  }
  return flat;
}

/**
 * @internal The whole storage of a lazy tensor, flat, in the tensor's dtype.
 *
 * @throws RangeError when the dtype is not supported here.
 */
export function readStorage(lazy: LazyTensor, where: string): Tensor {
  return readElements(lazy, where, 0, Math.floor(lazy.storage.bytes / (elementSize(lazy.dtype) ?? 1)));
}

/**
 * Bytes per element of dtypes that are not supported here, so that their storages can be checked and skipped.
 */
const OTHER_SIZES: ReadonlyMap<string, number> = new Map([
  ["uint16", 2],
  ["uint32", 4],
  ["uint64", 8],
  ["complex32", 4],
  ["qint8", 1],
  ["quint8", 1],
  ["qint32", 4],
  ["quint4x2", 1],
  ["quint2x4", 1],
  ["float8_e5m2", 1],
  ["float8_e4m3fn", 1],
  ["float8_e5m2fnuz", 1],
  ["float8_e4m3fnuz", 1],
  ["float8_e8m0fnu", 1],
  ["float4_e2m1fn_x2", 1],
  ["bits8", 1],
  ["bits16", 2],
  ["bits1x8", 1],
  ["bits2x4", 1],
  ["bits4x2", 1],
]);

function elementSize(dtype: string): number | undefined {
  return Object.hasOwn(DTYPES, dtype) ? DTYPES[dtype as DType].size : OTHER_SIZES.get(dtype);
}

/** Element type by the name of a storage class, without `Storage`. The first name of a dtype is the one that is written. */
export const STORAGE_DTYPES: ReadonlyMap<string, string> = new Map([
  ["Double", "float64"],
  ["Float", "float32"],
  ["Half", "float16"],
  ["BFloat16", "bfloat16"],
  ["Long", "int64"],
  ["Int", "int32"],
  ["Short", "int16"],
  ["Char", "int8"],
  ["Byte", "uint8"],
  ["Bool", "bool"],
  ["ComplexDouble", "complex128"],
  ["ComplexFloat", "complex64"],
  ["Untyped", "uint8"],
  ["_Untyped", "uint8"],
  ["QInt8", "qint8"],
  ["QInt32", "qint32"],
  ["QUInt8", "quint8"],
  ["QUInt4x2", "quint4x2"],
  ["QUInt2x4", "quint2x4"],
]);

const DAMAGED = "The file is damaged or hostile";

/** LibTorch's operators take no more. */
const MAX_DIMENSIONS = 64;

/**
 * The storage that a persistent id names, `("storage", class, key, place, elements, view)`, as a flat tensor;
 * for `("module", class, ...)`, which legacy files have, the class.
 *
 * @param find - gives the storage of a key and checks that the file has that many bytes of it.
 */
export function persistentTensor(
  id: unknown,
  where: string,
  find: (key: string, bytes: number, elementBytes: number, where: string) => Storage,
): unknown {
  const [kind, storageClass, key, , count, view] = Array.isArray(id) ? id : [];
  if (kind === "module") return storageClass;
  if (kind !== "storage") throw expected(where, 'a persistent id of "storage"', kindOf(kind ?? id), DAMAGED);
  const name = storageClass instanceof PyGlobal ? storageClass.name : "";
  const dtype = STORAGE_DTYPES.get(name.replace(/Storage$/, ""));
  if (dtype === undefined || !name.endsWith("Storage")) {
    throw expected(where, "a storage class of PyTorch", kindOf(storageClass));
  }
  if (typeof key !== "string") throw expected(where, "a storage key", kindOf(key), DAMAGED);
  const size = elementSize(dtype) as number;
  const numel = count as number;
  if (!isCount(numel) || !Number.isSafeInteger(numel * size)) {
    throw expected(where, "a number of elements", kindOf(count), DAMAGED);
  }
  const storage = find(key, numel * size, size, where);
  // The oldest files name parts of a storage by (key, first element, elements).
  const [, first, length] = Array.isArray(view) ? view : [null, 0, numel];
  return checkedTensor({ storage, dtype, size: [length], stride: [1], offset: first }, where);
}

interface Claim {
  storage: Storage;
  dtype: string;
  size: unknown;
  stride: unknown;
  offset: unknown;
  requiresGrad?: unknown;
  metadata?: unknown;
}

/** Check that a tensor lies inside its storage, and describe it. */
function checkedTensor(claim: Claim, where: string): LazyTensor {
  const { storage, dtype, size, stride, offset } = claim;
  const isList = (list: unknown): list is number[] =>
    Array.isArray(list) && list.length <= MAX_DIMENSIONS && list.every(isCount);
  if (!isList(size)) {
    throw expected(where, `a shape of at most ${MAX_DIMENSIONS} whole numbers`, shown(size), DAMAGED);
  }
  if (!isList(stride) || stride.length !== size.length) {
    throw expected(where, `${size.length} strides that are whole numbers`, shown(stride), DAMAGED);
  }
  if (!isCount(offset)) throw expected(where, "an offset in the storage", kindOf(offset), DAMAGED);
  const elementBytes = elementSize(dtype);
  const extent = size.reduce((product, n) => product * Math.max(n, 1), elementBytes ?? 16);
  if (!Number.isSafeInteger(extent))
    throw expected(where, "a shape of less than 2^53 bytes", shown(size), DAMAGED);
  const layout: Layout = { shape: [...size], strides: [...stride], storageOffset: offset };
  const span = spanOf(layout);
  const needed = span === 0 ? 0 : (offset + span) * (elementBytes ?? 0);
  if (!(needed <= storage.bytes)) {
    const what = `a tensor inside its storage of ${storage.bytes} bytes`;
    const got = `${dtype} ${shown(size)}, strides ${shown(stride)}, offset ${offset}`;
    throw expected(where, what, got, DAMAGED);
  }
  const flag = (name: string): boolean => claim.metadata instanceof Map && claim.metadata.get(name) === true;
  const pending = { isConjugate: flag("conj"), isNegative: flag("neg") };
  return new LazyTensor(storage, dtype, layout, claim.requiresGrad === true, pending);
}

/** A list of numbers in an error message; a hostile file may have anything there. */
function shown(list: unknown): string {
  if (!Array.isArray(list)) return kindOf(list);
  return `[${list.slice(0, 8).map(kindOf).join(", ")}${list.length > 8 ? `, ... ${list.length} in all` : ""}]`;
}

/**
 * The tensor that a call in the pickle makes, or undefined when the call is of no kind that makes one.
 *
 * Sparse, nested, quantised and meta tensors stay records of the call, with their parts inside. Subclasses
 * become plain tensors, and attributes set on a tensor are dropped.
 */
export function tensorCall(
  callee: PyGlobal,
  args: readonly unknown[],
  where: string,
): LazyTensor | undefined {
  const [first, second] = args;
  switch (callee.toString()) {
    case "torch._utils._rebuild_tensor":
    case "torch._utils._rebuild_tensor_v2":
    case "torch._utils._rebuild_tensor_v3": {
      const isV3 = callee.name.endsWith("v3");
      const [, offset, size, stride, requiresGrad, , sixth, seventh] = args;
      if (!(first instanceof LazyTensor)) throw expected(where, "a storage", kindOf(first), DAMAGED);
      const dtype = isV3 ? dtypeName(sixth, where) : first.dtype;
      const metadata = isV3 ? seventh : sixth;
      // A storage that is itself a part begins where the part does.
      const base = first.storageOffset;
      const at = isCount(offset) && base > 0 ? base + offset : offset;
      return checkedTensor(
        { storage: first.storage, dtype, size, stride, offset: at, requiresGrad, metadata },
        where,
      );
    }
    case "torch._utils._rebuild_parameter":
    case "torch._utils._rebuild_parameter_with_state":
    case "torch.nn.parameter.Parameter":
      return first instanceof LazyTensor ? first.withGrad(second === true) : undefined;
    case "torch._utils._rebuild_device_tensor_from_cpu_tensor":
      return first instanceof LazyTensor && first.dtype === dtypeName(second, where) ? first : undefined;
    case "torch._tensor._rebuild_from_type":
    case "torch._tensor._rebuild_from_type_v2":
    case "torch.tensor._rebuild_from_type": {
      const [, , inner] = args;
      if (!(first instanceof PyGlobal) || first.name.startsWith("_rebuild_from") || !Array.isArray(inner))
        return undefined;
      return tensorCall(first, inner, where);
    }
    default:
      return undefined;
  }
}

function dtypeName(value: unknown, where: string): string {
  if (value instanceof PyGlobal && value.module === "torch") return value.name;
  throw expected(where, "a dtype of torch", kindOf(value), DAMAGED);
}
