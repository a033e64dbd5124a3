/**
 * The generic call: any operator of LibTorch by its name, with arguments in the order of its schema and options by the
 * schema's names. Conversions follow the schema; no operator is special here. Methods of tensors are in `tensor.ts`.
 */
import { inspect } from "node:util";

import { isPlainObject } from "./arguments.js";
import { ints, native, SLOTS, TAG, tags, values } from "./binding.js";
import { DTYPES, type DType } from "./dtype.js";
import { describe, expected, expectedMessage, expectedType, TorchError } from "./errors.js";
import { adopt, close, exchange, type Owned, surrender } from "./scope.js";

const DTYPE_BY_CODE: readonly (DType | undefined)[] = (() => {
  const names: (DType | undefined)[] = [];
  for (const [name, { code }] of Object.entries(DTYPES)) names[code] = name as DType;
  return names;
})();

/** The base of tensors, without operations: handle, dtype, shape, device and `dispose`. */
export class TensorHandle implements Owned {
  /** @internal */
  handle: number;
  /** @internal */
  isKept = false;
  /** @internal */
  isRegistered = false;
  #shape: readonly number[] | undefined;

  /** @internal Tensors come from creation functions and operators, not from this constructor. */
  constructor(handle: number) {
    this.handle = handle;
    adopt(this);
  }

  /** @internal The handle, or a clear error when the tensor was freed. */
  get live(): number {
    if (this.handle === 0) {
      throw new Error(
        "Tensor: expected a live tensor, got one that was freed. Return it from tidy, or keep() it.",
      );
    }
    return this.handle;
  }

  /** Sizes of the dimensions; `[]` for a scalar. */
  get shape(): readonly number[] {
    if (this.#shape === undefined) {
      const rank = native.shape(this.live);
      this.#shape = Array.from(values.subarray(0, rank));
    }
    return this.#shape;
  }

  /** @internal Give the handle to another object, which then owns the tensor. */
  take(): number {
    const handle = this.live;
    surrender(this);
    return handle;
  }

  /** @internal Take over the handle of another tensor, whose object cannot be used afterwards; this object keeps its identity. */
  become(other: TensorHandle): void {
    exchange(this, other.take());
    this.forgetShape();
  }

  /** @internal In-place operators may change the shape. */
  forgetShape(): void {
    this.#shape = undefined;
  }

  /** Stride of each dimension, in elements. */
  get strides(): readonly number[] {
    const rank = native.strides(this.live);
    return Array.from(values.subarray(0, rank));
  }

  get dtype(): DType {
    native.info(this.live);
    const dtype = DTYPE_BY_CODE[values[0] as number];
    if (dtype === undefined)
      throw expected("Tensor.dtype", "one of the supported dtypes", `code ${values[0]}`);
    return dtype;
  }

  /** `"cpu"`, `"cuda:0"`, ... or `"meta"`. */
  get device(): string {
    native.info(this.live);
    const index = values[1] as number;
    return index === -1 ? "cpu" : index === -2 ? "meta" : `cuda:${index}`;
  }

  /** Elements before the first one in the storage. */
  get storageOffset(): number {
    native.info(this.live);
    return values[3] as number;
  }

  /** Number of dimensions. */
  get ndim(): number {
    return this.shape.length;
  }

  /** Number of elements. */
  get numel(): number {
    let count = 1;
    for (const size of this.shape) count *= size;
    return count;
  }

  /** Whether `dispose()` or a scope has freed it. */
  get isDisposed(): boolean {
    return this.handle === 0;
  }

  /** Close the handle now. The memory is freed when no view and no graph needs it. Calling it twice is allowed. */
  dispose(): void {
    close(this);
  }

  [Symbol.dispose](): void {
    close(this);
  }

  /** Dtype, shape and device without values, since reading values from a GPU would wait for it. */
  toString(): string {
    if (this.handle === 0) return "Tensor (freed)";
    return `Tensor ${this.dtype}[${this.shape.join(", ")}] ${this.device}`;
  }
}

// A tensor printed with console.log shows what toString says.
Object.defineProperty(TensorHandle.prototype, inspect.custom, {
  value(this: TensorHandle): string {
    return this.toString();
  },
});

/** @internal A random generator's handle, which operators take as an argument. */
export class GeneratorHandle {
  /** @internal */
  handle: number;

  constructor(handle: number) {
    this.handle = handle;
  }

  /** @internal The handle, or a clear error when the generator was disposed of. */
  get live(): number {
    if (this.handle === 0)
      throw new Error("Generator: expected a live generator, got one that was disposed of.");
    return this.handle;
  }
}

/** Anything an operator can take. `undefined` asks for the schema's default, `null` is None. */
export type Argument =
  | TensorHandle
  | GeneratorHandle
  | number
  | bigint
  | boolean
  | string
  | null
  | undefined
  | readonly Argument[];

interface Operator {
  readonly id: number;
  readonly schema: string;
  readonly argumentNames: readonly string[];
}

const operators = new Map<string, Operator>();
const strings = new Map<string, number>();
let tensorClass: new (handle: number) => TensorHandle = TensorHandle;

/** @internal The class whose methods results have; set by `tensor.ts`. */
export function setTensorClass(made: new (handle: number) => TensorHandle): void {
  tensorClass = made;
}

/**
 * Call an operator, for example `call("aten::add.Tensor", [a, b], { alpha: 2 })`.
 *
 * @param name - operator and overload as LibTorch registers them.
 * @param args - arguments in the schema's order; those not given take the schema's defaults.
 * @param options - further arguments by the schema's names.
 * @returns a Tensor, number, bigint, boolean, string, null or a list of them, as the schema says; in-place
 *   operators return the very object they were given.
 * @throws TorchError with the schema and the operands when the operator refuses.
 */
export function call(name: string, args: readonly Argument[], options?: Record<string, Argument>): unknown {
  const operator = operators.get(name) ?? findOperator(name);
  const all = options === undefined ? args : withOptions(name, operator, args, options);
  let slot = 0;
  for (let i = 0; i < all.length; i++) slot = write(name, all[i], slot);
  if (slot > SLOTS) throw expected(name, `at most ${SLOTS} values in one call`, slot);
  let handle: number;
  try {
    handle = native.call(operator.id, slot);
  } catch (error) {
    throw refusal(name, operator, all, error as Error);
  }
  if (handle !== 0) return new tensorClass(handle);
  return read(all, 0).value;
}

/** Call an operator that has one tensor as its result. */
export function callTensor<T extends TensorHandle>(
  name: string,
  args: readonly Argument[],
  options?: Record<string, Argument>,
): T {
  return call(name, args, options) as T;
}

/** The schema of an operator as LibTorch prints it, for example `aten::relu(Tensor self) -> Tensor`. */
export function schemaOf(name: string): string {
  return (operators.get(name) ?? findOperator(name)).schema;
}

/** Names of every operator that the loaded LibTorch has registered, overloads included. */
export function operatorNames(): string[] {
  return native.operatorNames();
}

function findOperator(name: string): Operator {
  const dot = name.indexOf(".", name.indexOf("::"));
  const id =
    dot < 0 ? native.findOperator(name, "") : native.findOperator(name.slice(0, dot), name.slice(dot + 1));
  if (id === 0) {
    const base = dot < 0 ? name : name.slice(0, dot);
    const overloads = native
      .operatorNames()
      .filter((other) => other === base || other.startsWith(`${base}.`));
    const remedy = overloads.length > 0 ? `Its overloads are ${overloads.join(", ")}` : "See operatorNames()";
    throw new TorchError(name, "", expectedMessage("call", "a registered operator", name, remedy));
  }
  const operator = { id, schema: native.operatorSchema(id), argumentNames: native.operatorArguments(id) };
  operators.set(name, operator);
  return operator;
}

function withOptions(
  name: string,
  operator: Operator,
  args: readonly Argument[],
  options: Record<string, Argument>,
): Argument[] {
  const all = args.slice();
  for (const [key, value] of Object.entries(options)) {
    const index = operator.argumentNames.indexOf(key);
    if (index < 0) {
      throw new TorchError(
        name,
        operator.schema,
        expectedMessage(operator.schema, "an argument of the schema", key),
      );
    }
    if (index < args.length && args[index] !== undefined) {
      throw new TorchError(
        name,
        operator.schema,
        expectedMessage(operator.schema, `'${key}' once`, "it twice"),
      );
    }
    while (all.length < index) all.push(undefined);
    all[index] = value;
  }
  return all;
}

/** Write one value at `slot` and return the next free slot. */
function write(where: string, value: Argument, slot: number): number {
  if (value instanceof TensorHandle) {
    tags[slot] = TAG.tensor;
    values[slot] = value.live;
    return slot + 1;
  }
  switch (typeof value) {
    case "number":
      // -0 is passed as a float, since an integer would lose its sign.
      tags[slot] = Number.isSafeInteger(value) && !Object.is(value, -0) ? TAG.int : TAG.double;
      values[slot] = value;
      return slot + 1;
    case "boolean":
      tags[slot] = TAG.bool;
      values[slot] = value ? 1 : 0;
      return slot + 1;
    case "undefined":
      tags[slot] = TAG.default;
      return slot + 1;
    case "string":
      tags[slot] = TAG.string;
      values[slot] = internString(value);
      return slot + 1;
    case "bigint":
      if (BigInt.asIntN(64, value) !== value) throw expected(where, "an integer of 64 bits", value);
      tags[slot] = TAG.bigint;
      ints[slot] = value;
      return slot + 1;
  }
  if (value === null) {
    tags[slot] = TAG.none;
    return slot + 1;
  }
  if (Array.isArray(value)) {
    tags[slot] = TAG.list;
    values[slot] = value.length;
    let next = slot + 1;
    for (const item of value) next = write(where, item, next);
    return next;
  }
  if (value instanceof GeneratorHandle) {
    tags[slot] = TAG.generator;
    values[slot] = value.live;
    return slot + 1;
  }
  const remedy = isPlainObject(value)
    ? "This argument has its place in the call: give its value, without its name"
    : undefined;
  throw expectedType(where, "tensors, numbers, booleans, strings, null or lists of them", value, remedy);
}

function internString(text: string): number {
  let id = strings.get(text);
  if (id === undefined) {
    id = native.intern(text);
    strings.set(text, id);
  }
  return id;
}

/** Read the value at `slot`; `args` are the call's arguments, of which a result may be one. */
function read(args: readonly Argument[], slot: number): { value: unknown; next: number } {
  const value = values[slot] as number;
  const next = slot + 1;
  switch (tags[slot]) {
    case TAG.none:
      return { value: null, next };
    case TAG.tensor:
      return { value: new tensorClass(value), next };
    case TAG.int:
    case TAG.double:
      return { value, next };
    case TAG.bigint:
      return { value: ints[slot], next };
    case TAG.bool:
      return { value: value !== 0, next };
    case TAG.string:
      return { value: native.interned(value), next };
    case TAG.argument: {
      const argument = args[value] as TensorHandle;
      argument.forgetShape();
      return { value: argument, next };
    }
    case TAG.list: {
      const list: unknown[] = [];
      let position = next;
      for (let i = 0; i < value; i++) {
        const item = read(args, position);
        list.push(item.value);
        position = item.next;
      }
      return { value: list, next: position };
    }
    default:
      throw expected("call", "a known tag in the frame", tags[slot]);
  }
}

/** @internal What to do where a value of a tensor on meta is asked for. */
export const NO_VALUES = "A tensor on meta has a shape alone: put it on the CPU or a GPU to compute values";

/** What LibTorch says where an operator reads values and the tensor is on meta. */
const READS_META = /with Meta tensors|out of meta tensor|on meta tensors?/i;

/** What LibTorch says where memory ends, with the bytes, or where the bytes cannot be counted. */
const LACKS_MEMORY =
  /tried to allocate (\d+ bytes|[\d.]+ [KMGT]iB)|Storage size calculation overflowed|integer multiplication overflow/i;

function refusal(name: string, operator: Operator, args: readonly Argument[], error: Error): TorchError {
  const { schema } = operator;
  const refused = (message: string): TorchError => new TorchError(name, schema, message);
  if (READS_META.test(error.message) && args.flat(2).some(isOnMeta)) {
    return refused(expectedMessage(schema, "tensors with values", "one on meta", NO_VALUES));
  }
  const operands = args.flatMap((value, i) => {
    const text = summary(value);
    return text === undefined ? [] : [`${operator.argumentNames[i] ?? i} ${text}`];
  });
  const tail = operands.length > 0 ? `; ${operands.join(", ")}` : "";
  const missing = /^missing argument ('\w+')/.exec(error.message)?.[1];
  if (missing !== undefined) return refused(expectedMessage(schema, `argument ${missing}`, `none${tail}`));
  const [lacksMemory, wanted] = LACKS_MEMORY.exec(error.message) ?? [];
  if (lacksMemory === undefined) return refused(`${schema}: ${error.message.trimEnd()}${tail}`);
  const what = wanted === undefined ? "a size below 2^63 bytes" : `${wanted} of free memory`;
  const got = wanted === undefined ? "a larger one" : "less";
  return refused(expectedMessage(schema, what, `${got}${tail}`, "Use smaller tensors, or fewer at a time"));
}

const isOnMeta = (value: unknown): boolean => value instanceof TensorHandle && value.device === "meta";

function summary(value: Argument): string | undefined {
  if (value instanceof TensorHandle) return describe(value).replace("Tensor ", "");
  if (!Array.isArray(value) || !value.some((item) => item instanceof TensorHandle)) return undefined;
  const shown = value.slice(0, 4).map((item) => summary(item) ?? describe(item));
  return `[${shown.join(", ")}${value.length > 4 ? `, ... ${value.length} in all` : ""}]`;
}
