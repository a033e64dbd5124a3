/**
 * Writer of PyTorch's checkpoint format, a zip with a pickle of tensors: what `torch.load(weights_only=True)` reads.
 * Reading it is checkpoint.ts. Format after torch/serialization.py; the pickle is of protocol 2.
 */
import { isPlainObject } from "./arguments.js";
import { DTYPES, type DType } from "./dtype.js";
import { describe, expected, expectedType } from "./errors.js";
import { forTensorData, mustHaveValues, plainValues, replaceFile } from "./files.js";
import { STORAGE_DTYPES } from "./lazy_tensor.js";
import { tidy } from "./scope.js";
import { Tensor } from "./tensor.js";
import { ZipWriter } from "./zip_writer.js";

/** What {@link saveTorch} writes: tensors in plain data. A Map and a plain object become a dict, an array a list. */
export type Savable =
  | Tensor
  | null
  | boolean
  | number
  | bigint
  | string
  | readonly Savable[]
  | ReadonlyMap<string | number, Savable>
  | { readonly [key: string]: Savable };

/** Class of PyTorch's storage for a dtype, such as `FloatStorage`. */
const storageClass = (dtype: DType): string =>
  `${[...STORAGE_DTYPES.keys()].find((name) => STORAGE_DTYPES.get(name) === dtype)}Storage`;

/** Python's pickler stops near this depth. */
const MAX_DEPTH = 500;

/**
 * Write tensors and plain data to a file that `torch.load(path, weights_only=True)` reads, which appears whole or not
 * at all: `saveTorch("policy.pt", { model: policy.stateDict() })`.
 *
 * Tensors are written contiguous and load on the CPU without requiring gradients. One tensor under two names is
 * written once and is shared again when loaded; views of the same memory are written separately. Whole numbers become int
 * in Python, others float.
 *
 * @throws TypeError that names the place of a value that is not {@link Savable}; RangeError for a tensor on
 *   meta, nesting past 500, and when the file cannot be written; an existing file at `path` is then unchanged.
 */
export function saveTorch(path: string, value: Savable): void {
  const pickler = new Pickler();
  const pickle = pickler.pickle(value);
  replaceFile(path, (fd) => {
    const zip = new ZipWriter(fd);
    const put = (name: string, bytes: Uint8Array): void =>
      zip.add(`archive/${name}`, bytes.length, (write) => write(bytes));
    put("data.pkl", pickle);
    put("byteorder", Buffer.from("little"));
    for (const [tensor, key] of pickler.storages) {
      const { size } = DTYPES[tensor.dtype];
      zip.add(`archive/data/${key}`, tensor.numel * size, (write) =>
        tidy(() => forTensorData(plainValues(tensor), size, write)),
      );
    }
    put("version", Buffer.from("3\n"));
    zip.finish();
  });
}

class Pickler {
  /** The tensors to write, with the keys of their storages. */
  readonly storages = new Map<Tensor, string>();
  readonly #parts: Buffer[] = [];
  /** Containers around the current value, to find one that contains itself. */
  readonly #around = new Set<unknown>();

  pickle(value: Savable): Buffer {
    this.#op(0x80, 2); // PROTO
    this.#value(value, "");
    this.#text(".");
    return Buffer.concat(this.#parts);
  }

  #value(value: unknown, at: string): void {
    if (value instanceof Tensor) this.#tensor(value, at);
    else if (value === null) this.#text("N");
    else if (typeof value === "boolean") this.#op(value ? 0x88 : 0x89);
    else if (typeof value === "string") this.#string(value);
    else if (typeof value === "bigint") this.#int(value);
    else if (typeof value === "number") this.#number(value);
    else if (Array.isArray(value)) this.#list(value, at);
    else if (value instanceof Map) this.#dict(value, at);
    else if (isPlainObject(value)) this.#dict(new Map(Object.entries(value)), at, value);
    else {
      const what = "tensors, numbers, text, null, arrays, Maps and plain objects";
      throw expectedType(saving(at), what, valueText(value));
    }
  }

  #number(value: number): void {
    if (Number.isSafeInteger(value) && !Object.is(value, -0)) {
      this.#int(BigInt(value));
      return;
    }
    const bytes = Buffer.alloc(9, "G"); // BINFLOAT
    bytes.writeDoubleBE(value, 1);
    this.#parts.push(bytes);
  }

  /** BININT where 32 bits hold it, else LONG1: two's complement, little-endian. */
  #int(value: bigint): void {
    if (BigInt.asIntN(32, value) === value) {
      const bytes = Buffer.alloc(5, "J");
      bytes.writeInt32LE(Number(value), 1);
      this.#parts.push(bytes);
      return;
    }
    const bytes: number[] = [];
    while (BigInt.asIntN(bytes.length * 8, value) !== value) {
      bytes.push(Number((value >> BigInt(bytes.length * 8)) & 255n));
    }
    if (bytes.length > 255) throw expected("saveTorch", "an integer of at most 255 bytes", bytes.length);
    this.#op(0x8a, bytes.length, ...bytes);
  }

  #string(value: string): void {
    const text = Buffer.from(value);
    const head = Buffer.alloc(5, "X"); // BINUNICODE
    head.writeUInt32LE(text.length, 1);
    this.#parts.push(head, text);
  }

  #list(items: readonly unknown[], at: string): void {
    this.#inside(items, at, () => {
      this.#text("](");
      for (const [i, item] of items.entries()) this.#value(item, under(at, i));
      this.#text("e");
    });
  }

  #dict(entries: ReadonlyMap<unknown, unknown>, at: string, owner: unknown = entries): void {
    this.#inside(owner, at, () => {
      this.#text("}(");
      for (const [key, item] of entries) {
        if (typeof key !== "string" && typeof key !== "number") {
          throw expectedType(saving(at), "keys that are text or numbers", valueText(key));
        }
        this.#value(key, at);
        this.#value(item, under(at, key));
      }
      this.#text("u");
    });
  }

  #inside(container: unknown, at: string, write: () => void): void {
    if (this.#around.has(container)) throw expected(saving(at), "data that ends", "one that holds itself");
    if (this.#around.size === MAX_DEPTH) {
      throw expected("saveTorch", `at most ${MAX_DEPTH} containers inside each other`, "more");
    }
    this.#around.add(container);
    write();
    this.#around.delete(container);
  }

  /** `torch._utils._rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks)`. */
  #tensor(tensor: Tensor, at: string): void {
    const { dtype, shape } = tensor;
    mustHaveValues(saving(at), tensor);
    let key = this.storages.get(tensor);
    if (key === undefined) {
      key = String(this.storages.size);
      this.storages.set(tensor, key);
    }
    const strides = shape.map((_, i) =>
      shape.slice(i + 1).reduce((product, size) => product * Math.max(size, 1), 1),
    );
    this.#text("ctorch._utils\n_rebuild_tensor_v2\n((");
    this.#string("storage");
    this.#text(`ctorch\n${storageClass(dtype)}\n`);
    this.#string(key);
    this.#string("cpu");
    this.#number(tensor.numel);
    this.#text("tQ"); // the tuple is the storage's persistent id
    this.#number(0);
    this.#tuple(shape);
    this.#tuple(strides);
    this.#op(0x89);
    this.#text("ccollections\nOrderedDict\n)RtR");
  }

  #tuple(numbers: readonly number[]): void {
    this.#text("(");
    for (const number of numbers) this.#number(number);
    this.#text("t");
  }

  /** Opcodes that are letters, and names. */
  #text(text: string): void {
    this.#parts.push(Buffer.from(text, "latin1"));
  }

  #op(...bytes: number[]): void {
    this.#parts.push(Buffer.from(bytes));
  }
}

const under = (at: string, key: string | number): string => (at === "" ? String(key) : `${at}.${key}`);

const saving = (at: string): string => (at === "" ? "saveTorch" : `saveTorch: ${at}`);

const valueText = (value: unknown): string => (typeof value === "function" ? "a function" : describe(value));
