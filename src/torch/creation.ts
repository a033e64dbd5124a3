/**
 * Functions that create tensors and join them. Random ones take a generator of `random.ts`.
 */
import { isPlainObject, type OptionNames, readOptions, withDefaults } from "./arguments.js";
import { native } from "./binding.js";
import { type Argument, call, callTensor, type GeneratorHandle } from "./call.js";
import { toDevice } from "./device.js";
import type { DType, TypedArray } from "./dtype.js";
import { expected, expectedType } from "./errors.js";
import type { Device, MemoryFormat, NestedNumbers, Tensor } from "./tensor.js";

/** Dtype and device of a new tensor; default float32 on the CPU. */
export interface TensorOptions {
  dtype?: DType;
  device?: Device;
  requiresGrad?: boolean;
}

/** {@link TensorOptions} and the source of randomness: the device's default generator where none is given. */
export interface RandomOptions extends TensorOptions {
  generator?: GeneratorHandle;
}

/** Sizes, `zeros(2, 3)` or `zeros([2, 3])`, and options. */
type Sized<O> =
  | [shape: readonly number[], options?: O]
  | [...sizes: number[]]
  | [...sizes: number[], options: O];

const OPTIONS: OptionNames<TensorOptions> = { dtype: true, device: true, requiresGrad: "boolean" };
const RANDOM_OPTIONS: OptionNames<RandomOptions> = { ...OPTIONS, generator: true };

/** Split the arguments of a call into values and the options after them. */
function split<O extends object>(
  where: string,
  given: readonly unknown[],
  names: OptionNames<O>,
): { values: readonly unknown[]; options: O } {
  const hasOptions = given.length > 0 && (given.at(-1) === undefined || isPlainObject(given.at(-1)));
  const values = hasOptions ? given.slice(0, -1) : given;
  return { values, options: readOptions<O>(where, hasOptions ? [given.at(-1)] : [], { names }) };
}

const isSize = (value: unknown): boolean => Number.isInteger(value) && (value as number) >= 0;

/** One size. */
function readSize(where: string, what: string, value: unknown): number {
  if (!isSize(value)) throw expected(where, `a whole number from 0 as ${what}`, value);
  return value as number;
}

/** Sizes one by one, or as one array. */
function shapeOf(where: string, values: readonly unknown[]): readonly number[] {
  const sizes = values.length === 1 && Array.isArray(values[0]) ? values[0] : values;
  if (values.length === 0) throw expected(where, "sizes", "none", "An empty array makes a scalar");
  if (!sizes.every(isSize)) throw expected(where, "whole numbers from 0 as sizes", sizes);
  return sizes as readonly number[];
}

function numberOf(where: string, what: string, value: unknown): number {
  if (typeof value !== "number") throw expectedType(where, `a number as ${what}`, value);
  return value;
}

/** Run an operator that makes a tensor, its overload with a generator where one is given. */
function create(
  operator: string,
  args: readonly Argument[],
  options: RandomOptions,
  fallback: DType = "float32",
): Tensor {
  const { dtype = fallback, device = "cpu", generator } = options;
  const drawn = generator === undefined ? args : [...args, generator];
  const tensor = callTensor<Tensor>(operator, [...drawn, dtype, null, device]);
  return options.requiresGrad ? tensor.requiresGrad_() : tensor;
}

/** Uninitialized memory: every element must be written before it is read. */
export function empty(...given: Sized<TensorOptions & { memoryFormat?: MemoryFormat }>): Tensor {
  const names = { ...OPTIONS, memoryFormat: true } as const;
  const { values, options } = split<TensorOptions & { memoryFormat?: MemoryFormat }>("empty", given, names);
  const { dtype = "float32", device = "cpu", memoryFormat = null, requiresGrad = false } = options;
  const tensor = callTensor<Tensor>("aten::empty.memory_format", [
    shapeOf("empty", values),
    dtype,
    null,
    device,
    null,
    memoryFormat,
  ]);
  return requiresGrad ? tensor.requiresGrad_() : tensor;
}

export function zeros(...given: Sized<TensorOptions>): Tensor {
  const { values, options } = split("zeros", given, OPTIONS);
  return create("aten::zeros", [shapeOf("zeros", values)], options);
}

export function ones(...given: Sized<TensorOptions>): Tensor {
  const { values, options } = split("ones", given, OPTIONS);
  return create("aten::ones", [shapeOf("ones", values)], options);
}

/** Every element `value`; float32 unless a dtype is given, whatever the value. */
export function full(shape: readonly number[], value: number | boolean, options: TensorOptions = {}): Tensor {
  if (!Array.isArray(shape)) throw expectedType("full", "an array of sizes", shape);
  const fill = typeof value === "boolean" ? value : numberOf("full", "value", value);
  const read = readOptions<TensorOptions>("full", [options], { names: OPTIONS });
  return create("aten::full", [shapeOf("full", [shape]), fill], read);
}
interface LikeOptions {
  dtype?: DType;
}

const like = (where: string, options: LikeOptions) => withDefaults(where, options, { dtype: null });

export function zerosLike(tensor: Tensor, options: LikeOptions = {}): Tensor {
  return callTensor("aten::zeros_like", [tensor], like("zerosLike", options));
}

export function onesLike(tensor: Tensor, options: LikeOptions = {}): Tensor {
  return callTensor("aten::ones_like", [tensor], like("onesLike", options));
}

export function emptyLike(tensor: Tensor, options: LikeOptions = {}): Tensor {
  return callTensor("aten::empty_like", [tensor], like("emptyLike", options));
}

export function fullLike(tensor: Tensor, value: number, options: LikeOptions = {}): Tensor {
  return callTensor("aten::full_like", [tensor, value], like("fullLike", options));
}

/**
 * Numbers `[start, end)` by `step`: `arange(end)`, `arange(start, end)` or `arange(start, end, step)`.
 *
 * int64, or float32 if one of them is not a whole number; another dtype when one is given.
 */
export function arange(
  ...given:
    | [end: number, options?: TensorOptions]
    | [start: number, end: number, options?: TensorOptions]
    | [start: number, end: number, step: number, options?: TensorOptions]
): Tensor {
  const { values, options } = split("arange", given, OPTIONS);
  if (values.length < 1 || values.length > 3)
    throw expected("arange", "(end), (start, end) or (start, end, step)", `${values.length} numbers`);
  const [start, end, step = 1] = (values.length === 1 ? [0, ...values] : values).map((value) =>
    numberOf("arange", "start, end and step", value),
  ) as [number, number, number?];
  const range = [start, end, step];
  if (!(range.every(Number.isFinite) && step !== 0 && (end - start) / step >= 0))
    throw expected("arange", "finite numbers, with a step from start towards end", range);
  return create(
    "aten::arange.start_step",
    range,
    options,
    range.every(Number.isInteger) ? "int64" : "float32",
  );
}

/** `steps` numbers, evenly spaced from `start` to `end`, both included. */
export function linspace(start: number, end: number, steps: number, options: TensorOptions = {}): Tensor {
  const read = readOptions<TensorOptions>("linspace", [options], { names: OPTIONS });
  const ends = [numberOf("linspace", "start", start), numberOf("linspace", "end", end)];
  return create("aten::linspace", [...ends, readSize("linspace", "steps", steps)], read);
}

/** Ones on the diagonal: `eye(n)`, or `eye(n, m)` for n rows and m columns. */
export function eye(
  ...given: [n: number, options?: TensorOptions] | [n: number, m: number, options?: TensorOptions]
): Tensor {
  const { values, options } = split("eye", given, OPTIONS);
  if (values.length < 1 || values.length > 2)
    throw expected("eye", "(n) or (n, m)", `${values.length} numbers`);
  const [n, m = n] = values;
  return create("aten::eye.m", [readSize("eye", "n", n), readSize("eye", "m", m)], options);
}

/** Standard normal. */
export function randn(...given: Sized<RandomOptions>): Tensor {
  const { values, options } = split("randn", given, RANDOM_OPTIONS);
  const operator = options.generator ? "aten::randn.generator" : "aten::randn";
  return create(operator, [shapeOf("randn", values)], options);
}

/** Uniform in [0, 1). */
export function rand(...given: Sized<RandomOptions>): Tensor {
  const { values, options } = split("rand", given, RANDOM_OPTIONS);
  const operator = options.generator ? "aten::rand.generator" : "aten::rand";
  return create(operator, [shapeOf("rand", values)], options);
}

/** int64, uniform in `[low, high)`: `randint(high, shape)` from 0, or `randint(low, high, shape)`. */
export function randint(
  ...given:
    | [high: number, shape: readonly number[], options?: RandomOptions]
    | [low: number, high: number, shape: readonly number[], options?: RandomOptions]
): Tensor {
  const { values, options } = split("randint", given, RANDOM_OPTIONS);
  const shape = values.at(-1);
  if (!Array.isArray(shape) || values.length < 2 || values.length > 3)
    throw expected("randint", "(high, shape) or (low, high, shape), with an array of sizes", values);
  const [low, high] = values.length === 2 ? [0, values[0]] : values;
  if (!(Number.isInteger(low) && Number.isInteger(high) && (low as number) < (high as number)))
    throw expected("randint", "whole numbers low < high", [low, high]);
  const operator = options.generator ? "aten::randint.low_generator" : "aten::randint.low";
  const args = [low as number, high as number, shapeOf("randint", [shape])];
  return create(operator, args, options, "int64");
}

/** int64, a random order of 0 ... n - 1. */
export function randperm(n: number, options: RandomOptions = {}): Tensor {
  const read = readOptions<RandomOptions>("randperm", [options], { names: RANDOM_OPTIONS });
  const operator = read.generator ? "aten::randperm.generator" : "aten::randperm";
  return create(operator, [readSize("randperm", "n", n)], read, "int64");
}
interface DrawOptions {
  replacement?: boolean;
  generator?: GeneratorHandle;
}

/**
 * Draw category indices with the given weights, which need not sum to one.
 *
 * @param weights - float `[K]` or `[N, K]`, non-negative.
 * @param given - `replacement`, or an object of options.
 * @returns int64 `[count]` or `[N, count]`.
 */
export function multinomial(
  weights: Tensor,
  count: number,
  ...given: [options?: DrawOptions] | [replacement: boolean, options?: DrawOptions]
): Tensor {
  const { replacement = false, generator = null } = readOptions<DrawOptions>("multinomial", given, {
    names: { replacement: "boolean", generator: true },
    order: ["replacement"],
  });
  return callTensor("aten::multinomial", [weights, count, replacement, generator]);
}

/** 1 with probability `p`, else 0, independently for each element, in the dtype of `p`. */
export function bernoulli(p: Tensor, options: { generator?: GeneratorHandle } = {}): Tensor {
  const { generator } = withDefaults("bernoulli", options, { generator: null });
  return callTensor("aten::bernoulli", [p], { generator });
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
 * @throws RangeError when the lists are ragged. TypeError when a value is not a number.
 */
export function tensor(data: NestedNumbers | TypedArray | bigint[], options: TensorOptions = {}): Tensor {
  options = readOptions<TensorOptions>("tensor", [options], { names: OPTIONS });
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
  const typed = raw.to({ dtype });
  const placed = device === "cpu" ? typed : toDevice(typed, device);
  if (placed !== typed) typed.dispose();
  return options.requiresGrad ? placed.requiresGrad_() : placed;
}

/** Refuse an empty list, and a value that is not a list. */
function tensorsOf(where: string, tensors: readonly Argument[]): readonly Argument[] {
  if (!Array.isArray(tensors)) throw expectedType(where, "a list of tensors", tensors);
  if (tensors.length === 0) throw expected(where, "at least one tensor", "none");
  return tensors;
}

/** Join along an existing dimension. */
export function cat(tensors: readonly Tensor[], dim = 0): Tensor {
  return callTensor("aten::cat", [tensorsOf("cat", tensors), dim]);
}

/** Join along a new dimension. */
export function stack(tensors: readonly Tensor[], dim = 0): Tensor {
  return callTensor("aten::stack", [tensorsOf("stack", tensors), dim]);
}

/** Elements of `a` where `condition` is true, else of `b`. */
export function where(condition: Tensor, a: Tensor | number, b: Tensor | number): Tensor {
  return callTensor("aten::where.self", [condition, a, b]);
}

/** Tensors one by one, or as one array. */
type Tensors = readonly Tensor[] | readonly [readonly Tensor[]];

const spread = (where: string, tensors: Tensors): readonly Argument[] =>
  tensorsOf(
    where,
    tensors.length === 1 && Array.isArray(tensors[0]) ? tensors[0] : (tensors as readonly Tensor[]),
  );

/** Einstein summation, for example `einsum("bhd,bkd->bhk", a, b)`. */
export function einsum(equation: string, ...operands: Tensors): Tensor {
  return callTensor("aten::einsum", [equation, spread("einsum", operands)]);
}

/** Coordinate grids with matrix ("ij") indexing. */
export function meshgrid(...tensors: Tensors): Tensor[] {
  return call("aten::meshgrid.indexing", [spread("meshgrid", tensors)], { indexing: "ij" }) as Tensor[];
}
