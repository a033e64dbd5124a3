/**
 * Python values of a pickle in JavaScript: plain data where the meaning is known, else an inert record. Nothing that a file
 * names is executed.
 */
import { numberReader } from "./dtype.js";

/** A class or function that a pickle names. It is a name only: nothing is imported. */
export class PyGlobal {
  readonly module: string;
  readonly name: string;

  constructor(module: string, name: string) {
    this.module = module;
    this.name = name;
  }

  toString(): string {
    return `${this.module}.${this.name}`;
  }
}

/**
 * An object of an unknown class: a record of what the pickle says about it.
 *
 * `argparse.Namespace`, Lightning and OmegaConf objects, whole modules and calls such as `os.system("...")`
 * all come out as this: a record of the call that Python would have made.
 */
export class Opaque<Leaf = never> {
  /** What Python would have called: nearly always a {@link PyGlobal}. */
  callee: PyValue<Leaf>;
  args: PyValue<Leaf>[];
  kwargs: PyValue<Leaf> = null;
  /** What `__setstate__` would have been given: for most classes the `__dict__`, as a Map. */
  state: PyValue<Leaf> = null;
  /** Elements appended to a subclass of list or set. */
  items: PyValue<Leaf>[] = [];
  /** Entries set on a subclass of dict. */
  entries: Map<PyValue<Leaf>, PyValue<Leaf>> = new Map();

  constructor(callee: PyValue<Leaf>, args: PyValue<Leaf>[]) {
    this.callee = callee;
    this.args = args;
  }

  /** Module of the class, such as `argparse`. */
  get module(): string {
    return globalOf(this)?.module ?? "";
  }

  /** Name of the class, such as `Namespace`. */
  get name(): string {
    return globalOf(this)?.name ?? "";
  }

  toString(): string {
    return `${this.module}.${this.name}(...)`;
  }
}

/** A Python `complex`. */
export class PyComplex {
  readonly real: number;
  readonly imag: number;

  constructor(real: number, imag: number) {
    this.real = real;
    this.imag = imag;
  }
}

/**
 * A Python value in JavaScript.
 *
 * None is null; an int past 2^53 is a bigint; list and tuple (also `torch.Size`) are arrays; every dict is a
 * Map, which keeps its order and cannot collide with `__proto__` (attributes set on a dict, such as a state
 * dict's `_metadata`, are dropped); bytes and bytearray are `Uint8Array`; set and frozenset are Set; paths
 * and `torch.device` are strings. `Leaf` is a type that a reader adds, such as tensors.
 */
export type PyValue<Leaf = never> =
  | null
  | boolean
  | number
  | bigint
  | string
  | Uint8Array
  | PyComplex
  | PyGlobal
  | Opaque<Leaf>
  | PyValue<Leaf>[]
  | Set<PyValue<Leaf>>
  | Map<PyValue<Leaf>, PyValue<Leaf>>
  | Leaf;

/**
 * Follow keys down a value: entries of a Map, elements of an array, attributes of an {@link Opaque} object.
 *
 * @returns undefined when any step is absent.
 */
export function lookup<Leaf = never>(
  value: PyValue<Leaf>,
  ...path: (string | number)[]
): PyValue<Leaf> | undefined {
  let here: PyValue<Leaf> | undefined = value;
  for (const key of path) {
    if (here instanceof Map) here = here.get(key);
    else if (Array.isArray(here)) here = typeof key === "number" ? here[key] : undefined;
    else if (here instanceof Opaque) here = attribute(here as Opaque<Leaf>, key);
    else return undefined;
  }
  return here;
}

/**
 * `__dict__`, or the pair of `__dict__` and slots that classes with `__slots__` save, or a dict's own entry.
 */
function attribute<Leaf>(object: Opaque<Leaf>, key: string | number): PyValue<Leaf> | undefined {
  const states = Array.isArray(object.state) ? object.state : [object.state];
  for (const state of states) if (state instanceof Map && state.has(key)) return state.get(key);
  return object.entries.get(key);
}

/**
 * The first named class below nested calls. A loop, and bounded: a hostile file can nest them deeply, or in a
 * ring.
 */
function globalOf(object: Opaque<unknown>): PyGlobal | undefined {
  let callee: unknown = object.callee;
  for (let depth = 0; callee instanceof Opaque && depth < 100; depth++) callee = callee.callee;
  return callee instanceof PyGlobal ? callee : undefined;
}

/** A value in an error message: its Python type, and the value itself where that is short. */
export function kindOf(value: unknown): string {
  if (value === null) return "None";
  if (typeof value === "string") return value.length > 80 ? `"${value.slice(0, 80)}..."` : `"${value}"`;
  if (typeof value === "number" || typeof value === "boolean") return String(value);
  if (typeof value === "bigint") return "a long int";
  if (Array.isArray(value)) return "a list or tuple";
  if (value instanceof Map) return "a dict";
  if (value instanceof Set) return "a set";
  if (value instanceof Uint8Array) return "bytes";
  if (value instanceof PyGlobal || value instanceof Opaque) return value.toString();
  return value === undefined ? "nothing" : (value.constructor?.name ?? "an object");
}

/** Every value that lies directly inside another. */
export function* childrenOf(value: unknown): Generator<unknown> {
  if (Array.isArray(value) || value instanceof Set) yield* value;
  else if (value instanceof Map) {
    for (const [key, child] of value) {
      yield key;
      yield child;
    }
  } else if (value instanceof Opaque) {
    yield value.callee;
    yield value.args;
    yield value.kwargs;
    yield value.state;
    yield value.items;
    yield value.entries;
  }
}

/** Whether some value lies more than `limit` containers deep. Rings and shared parts are visited once. */
export function isDeeperThan(value: unknown, limit: number): boolean {
  const seen = new Set<unknown>([value]);
  const open = [childrenOf(value)];
  while (open.length > 0) {
    const next = (open.at(-1) as Generator<unknown>).next();
    if (next.done) {
      open.pop();
    } else if (typeof next.value === "object" && next.value !== null && !seen.has(next.value)) {
      seen.add(next.value);
      open.push(childrenOf(next.value));
      if (open.length > limit) return true;
    }
  }
  return false;
}

/** Modules that Python 3 renamed: protocols 0 to 2 write the old names. */
const PYTHON2_MODULES: ReadonlyMap<string, string> = new Map([
  ["__builtin__", "builtins"],
  ["copy_reg", "copyreg"],
  ["exceptions", "builtins"],
]);

const PYTHON2_BUILTINS: ReadonlyMap<string, string> = new Map([
  ["xrange", "range"],
  ["unicode", "str"],
  ["long", "int"],
]);

/** A global under its Python 3 name. */
export function pyGlobal(module: string, name: string): PyGlobal {
  const renamed = PYTHON2_MODULES.get(module);
  if (renamed === undefined) return new PyGlobal(module, name);
  return new PyGlobal(renamed, (renamed === "builtins" && PYTHON2_BUILTINS.get(name)) || name);
}

/**
 * What a call of a well-known Python function gives, or undefined when it is to stay an {@link Opaque}
 * record.
 *
 * @param charge - told of the size of every copy before it is made, so that a file which copies one long
 *   value many times can be refused.
 */
export function callKnown(
  callee: PyGlobal,
  args: readonly unknown[],
  charge: (size: number) => void,
): unknown {
  const [first, second] = args;
  switch (callee.toString()) {
    case "collections.OrderedDict":
    case "collections.Counter":
    case "builtins.dict":
      return args.length === 0 ? new Map() : mapOf(first, charge);
    case "collections.defaultdict":
      return args.length <= 1 ? new Map() : mapOf(second, charge);
    case "builtins.list":
    case "builtins.tuple":
      return args.length === 0 ? [] : elementsOf(first, charge);
    case "torch.Size":
      return Array.isArray(first) ? first : undefined;
    case "builtins.set":
    case "builtins.frozenset": {
      const elements = args.length === 0 ? [] : elementsOf(first, charge);
      return elements && new Set(elements);
    }
    case "_codecs.encode":
      return typeof first === "string" ? encode(first, second, charge) : undefined;
    case "builtins.bytes":
    case "builtins.bytearray":
      if (args.length === 0) return new Uint8Array();
      if (typeof first === "string") return encode(first, second, charge);
      if (!(first instanceof Uint8Array)) return undefined;
      charge(first.length);
      return new Uint8Array(first);
    case "builtins.complex":
      return typeof first === "number" && typeof second === "number"
        ? new PyComplex(first, second)
        : undefined;
    case "builtins.int":
    case "builtins.float":
    case "builtins.bool":
      return typeof first === "number" || typeof first === "boolean" || typeof first === "bigint"
        ? first
        : undefined;
    case "torch.device":
      return typeof first === "string" ? first + (typeof second === "number" ? `:${second}` : "") : undefined;
    case "torch.serialization._get_layout":
      return typeof first === "string" ? first : undefined;
    case "numpy.core.multiarray.scalar":
    case "numpy._core.multiarray.scalar":
      return numpyScalar(first, second);
  }
  if (callee.module.startsWith("pathlib") && callee.name.endsWith("Path"))
    return pathOf(args, callee.name, charge);
  return undefined;
}

/** Elements of an array or a set, as a new array: the file may go on to change the original. */
function elementsOf(value: unknown, charge: (size: number) => void): unknown[] | undefined {
  if (Array.isArray(value)) charge(value.length);
  else if (value instanceof Set) charge(value.size);
  else return undefined;
  return [...value];
}

function mapOf(value: unknown, charge: (size: number) => void): Map<unknown, unknown> | undefined {
  if (value instanceof Map) {
    charge(value.size);
    return new Map(value);
  }
  if (!Array.isArray(value)) return undefined;
  charge(value.length);
  const map = new Map<unknown, unknown>();
  for (const pair of value) {
    if (!Array.isArray(pair) || pair.length !== 2) return undefined;
    map.set(pair[0], pair[1]);
  }
  return map;
}

/** `text.encode(encoding)`: how protocol 2 writes bytes. */
function encode(text: string, encoding: unknown, charge: (size: number) => void): Uint8Array | undefined {
  charge(text.length);
  const name =
    typeof encoding === "string" && encoding.length < 20 ? encoding.toLowerCase().replace("_", "-") : "";
  if (name === "latin1" || name === "latin-1" || name === "iso-8859-1") {
    // Characters past U+00FF have no Latin-1 byte: Python refuses them, and so the call stays a record.
    return /^[\0-\xff]*$/.test(text) ? new Uint8Array(Buffer.from(text, "latin1")) : undefined;
  }
  return name === "utf-8" || name === "utf8" ? new Uint8Array(Buffer.from(text, "utf8")) : undefined;
}

function pathOf(parts: readonly unknown[], name: string, charge: (size: number) => void): string | undefined {
  const separator = name.includes("Windows") ? "\\" : "/";
  let path = "";
  for (const part of parts) {
    if (typeof part !== "string") return undefined;
    charge(part.length + 1);
    path += path === "" || path.endsWith(separator) ? part : separator + part;
  }
  return path === "" ? "." : path;
}

/** The number in a NumPy scalar such as `numpy.float32(1.5)`; strings, dates and structures stay records. */
function numpyScalar(dtype: unknown, data: unknown): unknown {
  if (!(dtype instanceof Opaque) || dtype.module !== "numpy" || dtype.name !== "dtype") return undefined;
  const [code] = dtype.args;
  if (typeof code !== "string" || !/^[fiub][1248]$/.test(code)) return undefined;
  const size = Number(code[1]);
  const bytes = typeof data === "string" && data.length === size ? Buffer.from(data, "latin1") : data;
  if (!(bytes instanceof Uint8Array) || bytes.length !== size) return undefined;
  const isLittle = !(Array.isArray(dtype.state) && dtype.state[1] === ">");
  const view = new DataView(bytes.buffer, bytes.byteOffset, size);
  if (code === "b1") return view.getUint8(0) !== 0;
  const value = numberReader(code, view, isLittle)?.(0);
  return typeof value === "bigint" ? integer(value) : value;
}

/** A number where it is exact, else the bigint itself. */
export function integer(value: bigint): number | bigint {
  const number = Number(value);
  return Number.isSafeInteger(number) ? number : value;
}
