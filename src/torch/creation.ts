/**
 * Making tensors and joining them. Random ones take the generator of `random.ts`.
 */
import { native } from "./binding.js";
import { type Argument, call, callTensor, type GeneratorHandle } from "./call.js";
import type { DType, TypedArray } from "./dtype.js";
import { checkOptions, expected, expectedType } from "./errors.js";
import type { Device, MemoryFormat, NestedNumbers, Tensor } from "./tensor.js";

/** Type and place of a new tensor: float32 on the CPU where nothing is said. */
export interface TensorOptions {
  dtype?: DType;
  device?: Device;
  requiresGrad?: boolean;
}

/** {@link TensorOptions} and the source of randomness: the device's default generator where none is given. */
export interface RandomOptions extends TensorOptions {
  generator?: GeneratorHandle;
}

const OPTIONS = ["dtype", "device", "requiresGrad"];
const RANDOM_OPTIONS = [...OPTIONS, "generator"];
const LIKE_OPTIONS = ["dtype"];

function create(
  name: string,
  args: readonly Argument[],
  options: RandomOptions,
  fallback: DType = "float32",
): Tensor {
  checkOptions(name, options, RANDOM_OPTIONS);
  const { dtype = fallback, device = "cpu", generator } = options;
  const drawn = generator === undefined ? args : [...args, generator];
  const tensor = callTensor<Tensor>(name, [...drawn, dtype, null, device]);
  return options.requiresGrad ? tensor.requiresGrad_() : tensor;
}

/** Memory as it comes: every element must be written before it is read. */
export function empty(
  shape: readonly number[],
  options: TensorOptions & { memoryFormat?: MemoryFormat } = {},
): Tensor {
  checkOptions("empty", options, [...OPTIONS, "memoryFormat"]);
  const { dtype = "float32", device = "cpu", memoryFormat = null, requiresGrad = false } = options;
  const tensor = callTensor<Tensor>("aten::empty.memory_format", [
    shape,
    dtype,
    null,
    device,
    null,
    memoryFormat,
  ]);
  return requiresGrad ? tensor.requiresGrad_() : tensor;
}

export function zeros(shape: readonly number[], options: TensorOptions = {}): Tensor {
  return create("aten::zeros", [shape], options);
}

export function ones(shape: readonly number[], options: TensorOptions = {}): Tensor {
  return create("aten::ones", [shape], options);
}

/** Every element `value`; float32 unless a dtype is given, whatever the value. */
export function full(shape: readonly number[], value: number | boolean, options: TensorOptions = {}): Tensor {
  return create("aten::full", [shape, value], options);
}

export function zerosLike(tensor: Tensor, options: { dtype?: DType } = {}): Tensor {
  checkOptions("zerosLike", options, LIKE_OPTIONS);
  return callTensor("aten::zeros_like", [tensor], { dtype: options.dtype ?? null });
}

export function onesLike(tensor: Tensor, options: { dtype?: DType } = {}): Tensor {
  checkOptions("onesLike", options, LIKE_OPTIONS);
  return callTensor("aten::ones_like", [tensor], { dtype: options.dtype ?? null });
}

export function emptyLike(tensor: Tensor, options: { dtype?: DType } = {}): Tensor {
  checkOptions("emptyLike", options, LIKE_OPTIONS);
  return callTensor("aten::empty_like", [tensor], { dtype: options.dtype ?? null });
}

export function fullLike(tensor: Tensor, value: number): Tensor {
  return callTensor("aten::full_like", [tensor, value]);
}

/** int64 numbers `[start, end)` by `step`; another dtype when one is given. */
export function arange(start: number, end: number, step = 1, options: TensorOptions = {}): Tensor {
  return create("aten::arange.start_step", [start, end, step], options, "int64");
}

export function linspace(start: number, end: number, steps: number, options: TensorOptions = {}): Tensor {
  return create("aten::linspace", [start, end, steps], options);
}

export function eye(n: number, options: TensorOptions = {}): Tensor {
  return create("aten::eye", [n], options);
}

/** Standard normal. */
export function randn(shape: readonly number[], options: RandomOptions = {}): Tensor {
  return create(options.generator ? "aten::randn.generator" : "aten::randn", [shape], options);
}

/** Uniform in [0, 1). */
export function rand(shape: readonly number[], options: RandomOptions = {}): Tensor {
  return create(options.generator ? "aten::rand.generator" : "aten::rand", [shape], options);
}

/** int64, uniform in `[low, high)`. */
export function randint(
  low: number,
  high: number,
  shape: readonly number[],
  options: RandomOptions = {},
): Tensor {
  return create(
    options.generator ? "aten::randint.low_generator" : "aten::randint.low",
    [low, high, shape],
    options,
    "int64",
  );
}

/** int64, a random order of 0 ... n - 1. */
export function randperm(n: number, options: RandomOptions = {}): Tensor {
  return create(options.generator ? "aten::randperm.generator" : "aten::randperm", [n], options, "int64");
}

/**
 * Draw category indices with the given weights, which need not sum to one.
 *
 * @param weights - float `[K]` or `[N, K]`, non-negative.
 * @returns int64 `[count]` or `[N, count]`.
 */
export function multinomial(
  weights: Tensor,
  count: number,
  options: { replacement?: boolean; generator?: GeneratorHandle } = {},
): Tensor {
  checkOptions("multinomial", options, ["replacement", "generator"]);
  return callTensor("aten::multinomial", [
    weights,
    count,
    options.replacement ?? false,
    options.generator ?? null,
  ]);
}

/** 0 or 1 with probability `p` of 1, each element on its own, in the dtype of `p`. */
export function bernoulli(p: Tensor, options: { generator?: GeneratorHandle } = {}): Tensor {
  checkOptions("bernoulli", options, ["generator"]);
  return callTensor("aten::bernoulli", [p], { generator: options.generator ?? null });
}

const ARRAY_DTYPES: ReadonlyMap<unknown, DType> = new Map<unknown, DType>([
  [Float32Array, "float32"],
  [Float64Array, "float64"],
  [BigInt64Array, "int64"],
  [Int32Array, "int32"],
  [Int16Array, "int16"],
  [Int8Array, "int8"],
  [Uint8Array, "uint8"],
  [Uint8ClampedArray, "uint8"],
]);

/**
 * A tensor with the given values, copied.
 *
 * Plain numbers and nested lists of them become float32 unless a dtype is given, whatever the values: token ids
 * need `{ dtype: "int64" }`. A typed array keeps its own type and is one-dimensional.
 *
 * @throws RangeError when the lists are ragged. TypeError when a value is no number.
 */
export function tensor(data: NestedNumbers | TypedArray | bigint[], options: TensorOptions = {}): Tensor {
  checkOptions("tensor", options, OPTIONS);
  if (ArrayBuffer.isView(data)) return fromTypedArray(data, options);
  const shape: number[] = [];
  for (let level: unknown = data; Array.isArray(level); level = level[0]) shape.push(level.length);
  const flat: (number | bigint)[] = [];
  const walk = (value: unknown, dim: number): void => {
    if (Array.isArray(value)) {
      if (value.length !== shape[dim])
        throw expected(
          "tensor",
          `lists of length ${shape[dim] ?? "0 (a number)"} at depth ${dim}`,
          value.length,
        );
      for (const item of value) walk(item, dim + 1);
    } else if (dim !== shape.length) {
      throw expected("tensor", `lists nested ${shape.length} deep`, `${dim} deep`);
    } else if (typeof value === "number" || typeof value === "bigint" || typeof value === "boolean") {
      flat.push(typeof value === "boolean" ? Number(value) : value);
    } else {
      throw expectedType("tensor", "numbers or nested lists of numbers", value);
    }
  };
  walk(data, 0);
  const dtype = options.dtype ?? (typeof flat[0] === "bigint" ? "int64" : "float32");
  const bits = INTEGER_BITS[dtype];
  if (bits !== undefined) for (const value of flat) checkInteger(value, dtype, bits);
  const array = dtype === "int64" ? BigInt64Array.from(flat, BigInt) : Float64Array.from(flat, Number);
  return fromTypedArray(array, { ...options, dtype }, shape);
}

/** Bits of the integer dtypes; uint8 alone has no sign. */
const INTEGER_BITS: Partial<Record<DType, number>> = { uint8: 8, int8: 8, int16: 16, int32: 32, int64: 64 };

function checkInteger(value: number | bigint, dtype: DType, bits: number): void {
  const low = dtype === "uint8" ? 0 : -(2 ** (bits - 1));
  const isInteger = typeof value === "bigint" || Number.isInteger(value);
  if (!isInteger || value < low || value >= low + 2 ** bits) {
    throw expected("tensor", `values of ${dtype}`, value);
  }
}

function fromTypedArray(
  array: TypedArray,
  options: TensorOptions,
  shape: readonly number[] = [array.length],
): Tensor {
  const own = ARRAY_DTYPES.get(array.constructor);
  if (own === undefined)
    throw expectedType("tensor", "a typed array of a known dtype", array.constructor.name);
  using raw = empty(shape, { dtype: own });
  native.writeBytes(raw.live, array);
  const { dtype = own, device = "cpu" } = options;
  const placed = raw.to({ dtype, device });
  return options.requiresGrad ? placed.requiresGrad_() : placed;
}

/** Join along an existing dimension. */
export function cat(tensors: readonly Tensor[], dim = 0): Tensor {
  return callTensor("aten::cat", [tensors, dim]);
}

/** Join along a new dimension. */
export function stack(tensors: readonly Tensor[], dim = 0): Tensor {
  return callTensor("aten::stack", [tensors, dim]);
}

/** Elements of `a` where `condition` is true, else of `b`. */
export function where(condition: Tensor, a: Tensor | number, b: Tensor | number): Tensor {
  return callTensor("aten::where.self", [condition, a, b]);
}

/** Tensors one by one, or as one array. */
type Tensors = readonly Tensor[] | readonly [readonly Tensor[]];

const asOne = (tensors: Tensors): readonly Argument[] =>
  tensors.length === 1 && Array.isArray(tensors[0]) ? tensors[0] : (tensors as readonly Tensor[]);

/** Einstein summation, for example `einsum("bhd,bkd->bhk", a, b)`. */
export function einsum(equation: string, ...operands: Tensors): Tensor {
  return callTensor("aten::einsum", [equation, asOne(operands)]);
}

/** Coordinate grids with matrix ("ij") indexing. */
export function meshgrid(...tensors: Tensors): Tensor[] {
  return call("aten::meshgrid.indexing", [asOne(tensors)], { indexing: "ij" }) as Tensor[];
}
