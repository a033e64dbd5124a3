/**
 * The tensor: unary, binary, shape and reduction operations as methods. Creation and joining are functions of
 * `creation.ts`, networks' functions are in `functional.ts`, gradients in `autograd.ts`. Names, arguments and
 * results are PyTorch's, in camelCase; a method with a trailing underscore works in place.
 */
import { withDefaults } from "./arguments.js";
import { native, TAG, tags, values } from "./binding.js";
import {
  type Argument,
  callTensor,
  call as callUntyped,
  NO_VALUES,
  setTensorClass,
  TensorHandle,
} from "./call.js";
import type { DType, TypedArray } from "./dtype.js";
import { expected } from "./errors.js";
import { tidy } from "./scope.js";
import * as given from "./tensor_options.js";

/** Where a tensor lives. */
export type Device = "cpu" | "cuda" | `cuda:${number}` | "meta";

/** How the dimensions of an image batch lie in memory. */
export type MemoryFormat = "contiguous_format" | "preserve_format" | "channels_last" | "channels_last_3d";

/** A tensor, or a number that stands for a 0-d tensor and does not decide the result's dtype. */
export type Operand = Tensor | number;

/** Numbers nested as deep as a tensor has dimensions. */
export type NestedNumbers = number | NestedNumbers[];

type ElementsOf = new (length: number) => TypedArray;

const ELEMENTS: Partial<Record<DType, ElementsOf>> = {
  float32: Float32Array,
  float64: Float64Array,
  int64: BigInt64Array,
  int32: Int32Array,
  int16: Int16Array,
  int8: Int8Array,
  uint8: Uint8Array,
};

/** Values along a dimension, and their indices. */
type Found = { values: Tensor; indices: Tensor };

type Dims = number | readonly number[];

/** Sizes or dimensions: `view(2, 3)`, or as one array `view([2, 3])`. */
type Ints = readonly number[] | readonly [readonly number[]];

const call = (name: string, args: readonly Argument[], options?: Record<string, Argument>): Tensor =>
  callTensor<Tensor>(name, args, options);

const TO = { dtype: null, device: null, memoryFormat: null, copy: false, nonBlocking: false };

const asOne = (list: Ints): readonly Argument[] =>
  list.length === 1 && Array.isArray(list[0]) ? list[0] : (list as readonly number[]);

const asList = (dims: Dims): readonly number[] => (typeof dims === "number" ? [dims] : dims);

export class Tensor extends TensorHandle {
  // ---- Type, place, values ----

  /** The same values in another dtype, device or memory format; the tensor itself if nothing changes. */
  to(options: {
    dtype?: DType;
    device?: Device;
    memoryFormat?: MemoryFormat;
    copy?: boolean;
    nonBlocking?: boolean;
  }): Tensor {
    const { dtype, device, memoryFormat, copy, nonBlocking } = withDefaults("Tensor.to", options, TO);
    const args = [this, dtype, null, device, null, nonBlocking, copy, memoryFormat];
    return call("aten::to.dtype_layout", args);
  }
  float(): Tensor {
    return this.to({ dtype: "float32" });
  }
  double(): Tensor {
    return this.to({ dtype: "float64" });
  }
  half(): Tensor {
    return this.to({ dtype: "float16" });
  }
  bfloat16(): Tensor {
    return this.to({ dtype: "bfloat16" });
  }
  long(): Tensor {
    return this.to({ dtype: "int64" });
  }
  int(): Tensor {
    return this.to({ dtype: "int32" });
  }
  bool(): Tensor {
    return this.to({ dtype: "bool" });
  }
  cpu(): Tensor {
    return this.to({ device: "cpu" });
  }
  contiguous(memoryFormat: MemoryFormat = "contiguous_format"): Tensor {
    return call("aten::contiguous", [this, memoryFormat]);
  }
  isContiguous(memoryFormat: MemoryFormat = "contiguous_format"): boolean {
    return callUntyped("aten::is_contiguous.memory_format", [this, memoryFormat]) as boolean;
  }
  clone(memoryFormat?: MemoryFormat): Tensor {
    return call("aten::clone", [this, memoryFormat ?? null]);
  }

  /**
   * The value of a one-element tensor; booleans give 0 or 1. Waits for a GPU.
   *
   * @throws RangeError when an int64 is beyond 2^53: read it with {@link itemBigInt}.
   */
  item(): number {
    const value = this.#value("Tensor.item");
    if (typeof value === "bigint")
      throw expected("Tensor.item", "an integer within 2^53", value, "Use itemBigInt()");
    return Number(value);
  }

  /** The value of a one-element integer tensor, all 64 bits. Waits for a GPU. */
  itemBigInt(): bigint {
    return BigInt(this.#value("Tensor.itemBigInt"));
  }

  #value(where: string): number | bigint | boolean {
    this.#mustHaveValues(where);
    if (this.numel !== 1) throw expected(where, "a tensor of one element", this, "Use toList() or toArray()");
    return callUntyped("aten::item", [this]) as number | bigint | boolean;
  }

  #mustHaveValues(where: string): void {
    if (this.device === "meta") throw expected(where, "a tensor with values", this, NO_VALUES);
  }

  /**
   * The elements in row-major order, copied: `BigInt64Array` for int64, `Float32Array` for float16 and bfloat16,
   * `Uint8Array` for bool. Waits for a GPU.
   */
  toArray(): TypedArray {
    this.#mustHaveValues("Tensor.toArray");
    const dtype = this.dtype;
    const wide = dtype === "float16" || dtype === "bfloat16" ? "float32" : dtype;
    const Elements = wide === "bool" ? Uint8Array : ELEMENTS[wide];
    if (Elements === undefined)
      throw expected("Tensor.toArray", "a real dtype", dtype, "Take real or imag first");
    const array = new Elements(this.numel);
    tidy(() => {
      const plain = this.detach().to({ dtype: wide, device: "cpu" }).contiguous();
      native.readBytes(plain.live, array);
    });
    return array;
  }

  /**
   * The elements as plain numbers, nested as the shape is; booleans give 0 and 1. Waits for a GPU.
   *
   * @throws RangeError when an int64 is beyond 2^53.
   */
  toList(): NestedNumbers {
    const flat = Array.from(this.toArray(), (value: number | bigint) => {
      const number = Number(value);
      if (typeof value === "bigint" && !Number.isSafeInteger(number)) {
        throw expected("Tensor.toList", "integers within 2^53", value, "Use toArray()");
      }
      return number;
    });
    const nest = (dim: number, start: number, count: number): NestedNumbers => {
      if (dim === this.ndim) return flat[start] as number;
      const size = this.shape[dim] as number;
      const step = size === 0 ? 0 : count / size;
      return Array.from({ length: size }, (_, i) => nest(dim + 1, start + i * step, step));
    };
    return nest(0, 0, flat.length);
  }

  /**
   * The shape, after checking that it has `rank` dimensions: `const [n, t, v] = logits.dims(3)`.
   *
   * @throws RangeError otherwise.
   */
  dims(rank: 1): [number];
  dims(rank: 2): [number, number];
  dims(rank: 3): [number, number, number];
  dims(rank: 4): [number, number, number, number];
  dims(rank: number): number[];
  dims(rank: number): number[] {
    if (this.ndim !== rank) throw expected("Tensor.dims", `${rank} dimensions`, this);
    return [...this.shape];
  }

  /** Size of one dimension; a negative index counts from the last. */
  size(dim: number): number {
    const size = this.shape.at(dim);
    if (size === undefined) throw expected("Tensor.size", `a dimension of ${this}`, dim);
    return size;
  }

  // ---- Gradients ----

  /** Whether autograd follows this tensor. */
  get requiresGrad(): boolean {
    return native.requiresGrad(this.live);
  }
  /** Make autograd follow this leaf, or not; returns the tensor itself. */
  requiresGrad_(on = true): this {
    native.setRequiresGrad(this.live, on);
    return this;
  }
  get isLeaf(): boolean {
    return native.isLeaf(this.live);
  }
  /** The gradient that `backward` left, a new handle to it; null before. */
  get grad(): Tensor | null {
    const handle = native.getGrad(this.live);
    return handle === 0 ? null : new Tensor(handle);
  }
  set grad(grad: Tensor | null) {
    if (grad !== null && String(grad) !== String(this))
      throw expected("Tensor.grad", `one like the ${this}`, grad);
    native.setGrad(this.live, grad === null ? 0 : grad.live);
  }
  /**
   * Accumulate the gradient of this tensor into the leaves that it was made from.
   *
   * @param gradient - gradient of this tensor, same shape; not needed for one element.
   * @param options.retainGraph - keep the tensors that the graph saved, for a second backward.
   * @param options.createGraph - build the graph of the gradients too, for second derivatives.
   */
  backward(gradient?: Tensor, options: given.BackwardOptions = {}): void {
    const read = withDefaults("Tensor.backward", options, given.BACKWARD);
    const { createGraph, retainGraph = createGraph } = read;
    tags[0] = TAG.tensor;
    values[0] = this.live;
    if (gradient !== undefined) {
      tags[1] = TAG.tensor;
      values[1] = gradient.live;
    }
    native.backward(1, gradient === undefined ? 0 : 1, 0, retainGraph, createGraph);
  }
  /** The same memory outside the graph. */
  detach(): Tensor {
    return call("aten::detach", [this]);
  }
  /** Keep the gradient of this non-leaf at the next backward. */
  retainGrad(): this {
    callUntyped("aten::retain_grad", [this]);
    return this;
  }

  // ---- Unary ----

  abs(): Tensor {
    return call("aten::abs", [this]);
  }
  neg(): Tensor {
    return call("aten::neg", [this]);
  }
  exp(): Tensor {
    return call("aten::exp", [this]);
  }
  expm1(): Tensor {
    return call("aten::expm1", [this]);
  }
  log(): Tensor {
    return call("aten::log", [this]);
  }
  log2(): Tensor {
    return call("aten::log2", [this]);
  }
  log1p(): Tensor {
    return call("aten::log1p", [this]);
  }
  sqrt(): Tensor {
    return call("aten::sqrt", [this]);
  }
  rsqrt(): Tensor {
    return call("aten::rsqrt", [this]);
  }
  square(): Tensor {
    return call("aten::square", [this]);
  }
  reciprocal(): Tensor {
    return call("aten::reciprocal", [this]);
  }
  sin(): Tensor {
    return call("aten::sin", [this]);
  }
  cos(): Tensor {
    return call("aten::cos", [this]);
  }
  tanh(): Tensor {
    return call("aten::tanh", [this]);
  }
  sigmoid(): Tensor {
    return call("aten::sigmoid", [this]);
  }
  floor(): Tensor {
    return call("aten::floor", [this]);
  }
  ceil(): Tensor {
    return call("aten::ceil", [this]);
  }
  round(): Tensor {
    return call("aten::round", [this]);
  }
  trunc(): Tensor {
    return call("aten::trunc", [this]);
  }
  sign(): Tensor {
    return call("aten::sign", [this]);
  }
  relu(): Tensor {
    return call("aten::relu", [this]);
  }
  silu(): Tensor {
    return call("aten::silu", [this]);
  }
  isnan(): Tensor {
    return call("aten::isnan", [this]);
  }
  isinf(): Tensor {
    return call("aten::isinf", [this]);
  }
  isfinite(): Tensor {
    return call("aten::isfinite", [this]);
  }
  logicalNot(): Tensor {
    return call("aten::logical_not", [this]);
  }
  /** At least `min` and at most `max`, one of which may be null. */
  clamp(min: Operand | null, max: Operand | null = null): Tensor {
    requireBound("clamp", min ?? max);
    const isTensor = min instanceof Tensor || max instanceof Tensor;
    return call(isTensor ? "aten::clamp.Tensor" : "aten::clamp", [this, min, max]);
  }
  gelu(approximate: "none" | "tanh" = "none"): Tensor {
    return call("aten::gelu", [this, approximate]);
  }
  leakyRelu(negativeSlope = 0.01): Tensor {
    return call("aten::leaky_relu", [this, negativeSlope]);
  }
  softplus(beta = 1, threshold = 20): Tensor {
    return call("aten::softplus", [this, beta, threshold]);
  }
  softmax(dim: number, dtype?: DType): Tensor {
    return call("aten::softmax.int", [this, dim, dtype ?? null]);
  }
  logSoftmax(dim: number, dtype?: DType): Tensor {
    return call("aten::log_softmax.int", [this, dim, dtype ?? null]);
  }
  nanToNum(nan = 0, posinf?: number, neginf?: number): Tensor {
    return call("aten::nan_to_num", [this, nan, posinf ?? null, neginf ?? null]);
  }
  tril(diagonal = 0): Tensor {
    return call("aten::tril", [this, diagonal]);
  }
  triu(diagonal = 0): Tensor {
    return call("aten::triu", [this, diagonal]);
  }

  // ---- Binary ----

  add(other: Operand, alpha = 1): Tensor {
    return call("aten::add.Tensor", [this, other, alpha]);
  }
  sub(other: Operand, alpha = 1): Tensor {
    return call("aten::sub.Tensor", [this, other, alpha]);
  }
  mul(other: Operand): Tensor {
    return call("aten::mul.Tensor", [this, other]);
  }
  div(other: Operand, roundingMode: "trunc" | "floor" | null = null): Tensor {
    if (roundingMode === null) return call("aten::div.Tensor", [this, other]);
    return call("aten::div.Tensor_mode", [this, other, roundingMode]);
  }
  /** `other - this`. */
  rsub(other: Operand): Tensor {
    return call("aten::rsub.Tensor", [this, other]);
  }
  pow(exponent: Operand): Tensor {
    const name = exponent instanceof Tensor ? "aten::pow.Tensor_Tensor" : "aten::pow.Tensor_Scalar";
    return call(name, [this, exponent]);
  }
  remainder(other: Operand): Tensor {
    return call("aten::remainder.Tensor", [this, other]);
  }
  floorDivide(other: Operand): Tensor {
    return call("aten::floor_divide", [this, other]);
  }
  maximum(other: Operand): Tensor {
    return call("aten::maximum", [this, other]);
  }
  minimum(other: Operand): Tensor {
    return call("aten::minimum", [this, other]);
  }
  eq(other: Operand): Tensor {
    return call("aten::eq.Tensor", [this, other]);
  }
  ne(other: Operand): Tensor {
    return call("aten::ne.Tensor", [this, other]);
  }
  lt(other: Operand): Tensor {
    return call("aten::lt.Tensor", [this, other]);
  }
  le(other: Operand): Tensor {
    return call("aten::le.Tensor", [this, other]);
  }
  gt(other: Operand): Tensor {
    return call("aten::gt.Tensor", [this, other]);
  }
  ge(other: Operand): Tensor {
    return call("aten::ge.Tensor", [this, other]);
  }
  bitwiseAnd(other: Operand): Tensor {
    return call("aten::bitwise_and.Tensor", [this, other]);
  }
  bitwiseOr(other: Operand): Tensor {
    return call("aten::bitwise_or.Tensor", [this, other]);
  }
  logicalAnd(other: Operand): Tensor {
    return call("aten::logical_and", [this, other]);
  }
  logicalOr(other: Operand): Tensor {
    return call("aten::logical_or", [this, other]);
  }
  /** Linear step from this to `end`: `this + weight * (end - this)`. */
  lerp(end: Tensor, weight: Operand): Tensor {
    return call(weight instanceof Tensor ? "aten::lerp.Tensor" : "aten::lerp.Scalar", [this, end, weight]);
  }
  /** `this + value * a * b`. */
  addcmul(a: Tensor, b: Tensor, value = 1): Tensor {
    return call("aten::addcmul", [this, a, b, value]);
  }
  matmul(other: Tensor): Tensor {
    return call("aten::matmul", [this, other]);
  }
  bmm(other: Tensor): Tensor {
    return call("aten::bmm", [this, other]);
  }
  /** `beta * this + alpha * (a @ b)`. */
  addmm(a: Tensor, b: Tensor, options: { beta?: number; alpha?: number } = {}): Tensor {
    return call("aten::addmm", [this, a, b, options.beta, options.alpha]);
  }

  // ---- In place: the operator returns the tensor that it was given ----

  copy_(source: Tensor, nonBlocking = false): this {
    return call("aten::copy_", [this, source, nonBlocking]) as this;
  }
  fill_(value: number): this {
    return call("aten::fill_.Scalar", [this, value]) as this;
  }
  zero_(): this {
    return call("aten::zero_", [this]) as this;
  }
  add_(other: Operand, alpha = 1): this {
    return call("aten::add_.Tensor", [this, other, alpha]) as this;
  }
  sub_(other: Operand, alpha = 1): this {
    return call("aten::sub_.Tensor", [this, other, alpha]) as this;
  }
  mul_(other: Operand): this {
    return call("aten::mul_.Tensor", [this, other]) as this;
  }
  div_(other: Operand): this {
    return call("aten::div_.Tensor", [this, other]) as this;
  }
  addcmul_(a: Tensor, b: Tensor, value = 1): this {
    return call("aten::addcmul_", [this, a, b, value]) as this;
  }
  addcdiv_(a: Tensor, b: Tensor, value = 1): this {
    return call("aten::addcdiv_", [this, a, b, value]) as this;
  }
  lerp_(end: Tensor, weight: number): this {
    return call("aten::lerp_.Scalar", [this, end, weight]) as this;
  }
  clamp_(min: number | null, max: number | null = null): this {
    requireBound("clamp_", min ?? max);
    return call("aten::clamp_", [this, min, max]) as this;
  }
  maskedFill_(mask: Tensor, value: number): this {
    return call("aten::masked_fill_.Scalar", [this, mask, value]) as this;
  }
  scatter_(dim: number, index: Tensor, source: Operand): this {
    const name = source instanceof Tensor ? "aten::scatter_.src" : "aten::scatter_.value";
    return call(name, [this, dim, index, source]) as this;
  }
  scatterAdd_(dim: number, index: Tensor, source: Tensor): this {
    return call("aten::scatter_add_", [this, dim, index, source]) as this;
  }
  indexCopy_(dim: number, index: Tensor, source: Tensor): this {
    return call("aten::index_copy_", [this, dim, index, source]) as this;
  }

  // ---- Shape ----

  view(...shape: Ints): Tensor {
    return call("aten::view", [this, asOne(shape)]);
  }
  reshape(...shape: Ints): Tensor {
    return call("aten::reshape", [this, asOne(shape)]);
  }
  expand(...shape: Ints): Tensor {
    return call("aten::expand", [this, asOne(shape)]);
  }
  repeat(...times: Ints): Tensor {
    return call("aten::repeat", [this, asOne(times)]);
  }
  permute(...dims: Ints): Tensor {
    return call("aten::permute", [this, asOne(dims)]);
  }
  transpose(dim0: number, dim1: number): Tensor {
    return call("aten::transpose.int", [this, dim0, dim1]);
  }
  movedim(source: Dims, destination: Dims): Tensor {
    return call("aten::movedim.intlist", [this, asList(source), asList(destination)]);
  }
  unsqueeze(dim: number): Tensor {
    return call("aten::unsqueeze", [this, dim]);
  }
  /** Without the dimensions of size 1, or without those among `dim`. */
  squeeze(dim: Dims | null = null): Tensor {
    return dim === null ? call("aten::squeeze", [this]) : call("aten::squeeze.dims", [this, asList(dim)]);
  }
  flatten(startDim = 0, endDim = -1): Tensor {
    return call("aten::flatten.using_ints", [this, startDim, endDim]);
  }
  unflatten(dim: number, sizes: readonly number[]): Tensor {
    return call("aten::unflatten.int", [this, dim, sizes]);
  }
  flip(...dims: Ints): Tensor {
    return call("aten::flip", [this, asOne(dims)]);
  }
  roll(shifts: Dims, dims: Dims): Tensor {
    return call("aten::roll", [this, asList(shifts), asList(dims)]);
  }
  repeatInterleave(repeats: number, dim: number): Tensor {
    return call("aten::repeat_interleave.self_int", [this, repeats, dim]);
  }
  /** A view with the given sizes and strides, in elements, over the same storage. */
  asStrided(size: readonly number[], stride: readonly number[], storageOffset: number | null = null): Tensor {
    return call("aten::as_strided", [this, size, stride, storageOffset]);
  }
  /** One index of a dimension, which is removed. */
  select(dim: number, index: number): Tensor {
    return call("aten::select.int", [this, dim, index]);
  }
  /** `length` indices of a dimension from `start`. */
  narrow(dim: number, start: number, length: number): Tensor {
    return call("aten::narrow", [this, dim, start, length]);
  }
  /** Indices `[start, end)` of a dimension; `null` and negative numbers as in Python's slices. */
  slice(dim: number, start: number | null, end: number | null = null, step = 1): Tensor {
    return call("aten::slice.Tensor", [this, dim, start, end, step]);
  }
  split(size: Dims, dim = 0): Tensor[] {
    const name = typeof size === "number" ? "aten::split.Tensor" : "aten::split_with_sizes";
    return callUntyped(name, [this, size, dim]) as Tensor[];
  }
  chunk(chunks: number, dim = 0): Tensor[] {
    return callUntyped("aten::chunk", [this, chunks, dim]) as Tensor[];
  }
  unbind(dim = 0): Tensor[] {
    return callUntyped("aten::unbind.int", [this, dim]) as Tensor[];
  }
  gather(dim: number, index: Tensor): Tensor {
    return call("aten::gather", [this, dim, index]);
  }
  scatter(dim: number, index: Tensor, source: Operand): Tensor {
    const name = source instanceof Tensor ? "aten::scatter.src" : "aten::scatter.value";
    return call(name, [this, dim, index, source]);
  }
  indexSelect(dim: number, index: Tensor): Tensor {
    return call("aten::index_select", [this, dim, index]);
  }
  /** Advanced indexing, one index tensor (int64 or bool) a leading dimension; null takes all of it. */
  index(...indices: (Tensor | null)[]): Tensor {
    return call("aten::index.Tensor", [this, indices]);
  }
  maskedFill(mask: Tensor, value: number): Tensor {
    return call("aten::masked_fill.Scalar", [this, mask, value]);
  }
  maskedSelect(mask: Tensor): Tensor {
    return call("aten::masked_select", [this, mask]);
  }
  nonzero(): Tensor {
    return call("aten::nonzero", [this]);
  }
  diagonal(offset = 0, dim0 = 0, dim1 = 1): Tensor {
    return call("aten::diagonal", [this, offset, dim0, dim1]);
  }

  // ---- Reductions ----

  /** Sum over all elements, or over `dim`. */
  sum(dim: Dims | null = null, ...options: given.SumOptions): Tensor {
    const { keepdim, dtype } = given.readSum("Tensor.sum", options);
    return call("aten::sum.dim_IntList", [this, dim, keepdim, dtype]);
  }
  mean(dim: Dims | null = null, ...options: given.SumOptions): Tensor {
    const { keepdim, dtype } = given.readSum("Tensor.mean", options);
    return call("aten::mean.dim", [this, dim, keepdim, dtype]);
  }
  /** Standard deviation; `correction` 1 divides by n - 1, as PyTorch does. */
  std(dim: Dims | null = null, options: given.SpreadOptions = {}): Tensor {
    const { keepdim, correction = 1 } = given.readSpread("Tensor.std", options);
    return call("aten::std.correction", [this, dim, correction, keepdim]);
  }
  var(dim: Dims | null = null, options: given.SpreadOptions = {}): Tensor {
    const { keepdim, correction = 1 } = given.readSpread("Tensor.var", options);
    return call("aten::var.correction", [this, dim, correction, keepdim]);
  }
  /** p-norm over all elements, or over `dim`. */
  norm(p = 2, dim: Dims | null = null, keepdim = false): Tensor {
    return call("aten::linalg_vector_norm", [this, p, dim === null ? null : asList(dim), keepdim]);
  }
  prod(): Tensor {
    return call("aten::prod", [this]);
  }
  amax(dim: Dims = [], keepdim = false): Tensor {
    return call("aten::amax", [this, asList(dim), keepdim]);
  }
  amin(dim: Dims = [], keepdim = false): Tensor {
    return call("aten::amin", [this, asList(dim), keepdim]);
  }
  argmax(dim: number | null = null, keepdim = false): Tensor {
    return call("aten::argmax", [this, dim, keepdim]);
  }
  argmin(dim: number | null = null, keepdim = false): Tensor {
    return call("aten::argmin", [this, dim, keepdim]);
  }
  /** Largest values along `dim` and their indices. */
  max(dim: number, keepdim = false): Found {
    return extreme("max", this, dim, keepdim);
  }
  min(dim: number, keepdim = false): Found {
    return extreme("min", this, dim, keepdim);
  }
  topk(k: number, dim = -1, ...options: given.TopKOptions): Found {
    const { largest, sorted } = given.readTopK(options);
    return found(callUntyped("aten::topk", [this, k, dim, largest, sorted]));
  }
  sort(dim = -1, ...options: given.SortOptions): Found {
    const { descending, stable = false } = given.readSort(options);
    return found(callUntyped("aten::sort.stable", [this, stable, dim, descending]));
  }
  argsort(dim = -1, descending = false): Tensor {
    return call("aten::argsort", [this, dim, descending]);
  }
  logsumexp(dim: Dims, keepdim = false): Tensor {
    return call("aten::logsumexp", [this, asList(dim), keepdim]);
  }
  cumsum(dim: number, dtype?: DType): Tensor {
    return call("aten::cumsum", [this, dim, dtype]);
  }
  all(dim: Dims | null = null, keepdim = false): Tensor {
    return call("aten::all.dims", [this, dim === null ? null : asList(dim), keepdim]);
  }
  any(dim: Dims | null = null, keepdim = false): Tensor {
    return call("aten::any.dims", [this, dim === null ? null : asList(dim), keepdim]);
  }
  /** Counts of 0, 1, 2, ... in a 1-d integer tensor. */
  bincount(minlength = 0): Tensor {
    return call("aten::bincount", [this, null, minlength]);
  }
  /** Sorted distinct values of all elements. */
  unique(): Tensor {
    return (callUntyped("aten::_unique2", [this]) as Tensor[])[0] as Tensor;
  }
  /** Whether shape and every element are the same; NaN is not equal to NaN. */
  equal(other: Tensor): boolean {
    return callUntyped("aten::equal", [this, other]) as boolean;
  }
}

function requireBound(name: "clamp" | "clamp_", bound: unknown): void {
  if (bound === null || bound === undefined)
    throw expected(`Tensor.${name}`, "a minimum or a maximum", "none", `An example is ${name}(0, 1)`);
}

function extreme(name: "max" | "min", tensor: Tensor, dim: number | undefined, keepdim: boolean): Found {
  if (dim === undefined)
    throw expected(`Tensor.${name}`, "a dimension", "none", `Use a${name}() for all elements`);
  return found(callUntyped(`aten::${name}.dim`, [tensor, dim, keepdim]));
}

function found(result: unknown): Found {
  const [values, indices] = result as [Tensor, Tensor];
  return { values, indices };
}

setTensorClass(Tensor);
