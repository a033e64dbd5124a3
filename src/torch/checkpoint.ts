/**
 * Checkpoints that `torch.save` wrote, zip and legacy, read without Python: a tree of plain values in which
 * each tensor is a {@link LazyTensor} until it is read. Nothing in a file is executed (pickle.ts). The
 * callers know what the tree means and where the weights are in it. Formats after torch/serialization.py.
 */
import { withDefaults } from "./arguments.js";
import { expected } from "./errors.js";
import { type ByteSource, FileBytes, MemoryBytes } from "./files.js";
import { LazyTensor, persistentTensor, readStorage, type Storage, tensorCall } from "./lazy_tensor.js";
import { otherContent } from "./other_content.js";
import { unpickle } from "./pickle.js";
import { kindOf, Opaque, type PyValue } from "./python_values.js";
import type { Tensor } from "./tensor.js";
import { ZipArchive } from "./zip.js";

/** What {@link loadCheckpoint} reads. */
interface LoadOptions {
  /**
   * Whether to read the tensor at a path, such as `state_dict.encoder.conv_in.weight`: keys, indices and
   * attribute names joined by dots. The others stay {@link LazyTensor}, described but no longer readable. A
   * container that several places share is seen under the first.
   */
  only?: (path: string) => boolean;
}

/** An open checkpoint. Close it, or hold it with `using`; after that its lazy tensors cannot be read. */
export class CheckpointFile {
  readonly path: string;
  /** `zip` since PyTorch 1.6, `legacy` before. */
  readonly format: "zip" | "legacy";
  /** The saved object, with tensors not yet read. */
  readonly tree: PyValue<LazyTensor>;
  readonly #file: FileBytes;

  /**
   * @throws RangeError when the file is no checkpoint of `torch.save`, saying what it is, or is damaged or
   * hostile.
   */
  constructor(path: string) {
    this.path = path;
    this.#file = new FileBytes(path);
    try {
      this.format = formatOf(this.#file);
      const tree = this.format === "zip" ? openZip(this.#file) : openLegacy(this.#file);
      this.tree = tree as PyValue<LazyTensor>;
    } catch (error) {
      this.close();
      throw error;
    }
  }

  /**
   * The tree with its tensors read, all or those asked for, on the CPU.
   *
   * Tensors that shared a storage share it again, and each storage is read once, into memory of its own size.
   *
   * @throws RangeError when a tensor asked for has a dtype that LibTorch's tensors here do not support.
   */
  load(options: LoadOptions = {}): PyValue<Tensor | LazyTensor> {
    const { only } = withDefaults("loadCheckpoint", options, { only: () => true });
    const tensors = new Map<LazyTensor, Tensor>();
    const storages = new Map<Storage, Map<string, Tensor>>();
    const read = (lazy: LazyTensor, path: string): Tensor | LazyTensor => {
      if (!only(path)) return lazy;
      let tensor = tensors.get(lazy);
      if (tensor === undefined) {
        const flat = flatStorage(lazy, `${this.path}: ${path}`, storages);
        tensor = lazy.over(flat, lazy.storageOffset);
        tensors.set(lazy, tensor);
      }
      return tensor;
    };
    try {
      return replaceTensors(this.tree, read);
    } catch (error) {
      for (const tensor of tensors.values()) tensor.dispose();
      throw error;
    } finally {
      // The tensors are views that keep the memory; these handles are not needed any more.
      for (const byDtype of storages.values()) for (const flat of byDtype.values()) flat.dispose();
    }
  }

  close(): void {
    this.#file.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

/**
 * Open a checkpoint without reading any tensor, so that one of many gigabytes can be looked through.
 *
 * @throws RangeError when the file is no checkpoint of `torch.save`, saying what it is, or is damaged or
 *   hostile.
 */
export function openCheckpoint(path: string): CheckpointFile {
  return new CheckpointFile(path);
}

/**
 * Read a checkpoint of `torch.save`: `lookup(loadCheckpoint(path), "state_dict")`.
 *
 * Parameters become plain tensors that do not require gradients, and all tensors are on the CPU wherever they
 * were. Objects of classes unknown here become {@link Opaque} records. `tidy` does not look for tensors
 * inside those.
 *
 * @throws RangeError when the file is no such checkpoint, saying what it is, or is damaged or hostile.
 */
export function loadCheckpoint(path: string, options: LoadOptions = {}): PyValue<Tensor | LazyTensor> {
  using file = openCheckpoint(path);
  return file.load(options);
}

function flatStorage(lazy: LazyTensor, where: string, storages: Map<Storage, Map<string, Tensor>>): Tensor {
  const byDtype = storages.get(lazy.storage) ?? new Map<string, Tensor>();
  storages.set(lazy.storage, byDtype);
  const flat = byDtype.get(lazy.dtype) ?? readStorage(lazy, where);
  byDtype.set(lazy.dtype, flat);
  return flat;
}

type Replace = (lazy: LazyTensor, path: string) => Tensor | LazyTensor;
type Source = PyValue<LazyTensor>;
type Result = PyValue<Tensor | LazyTensor>;

/**
 * Copy a tree, replacing its tensors. Shared parts stay shared, cycles stay cycles. It is a loop, so depth needs no
 * stack.
 */
function replaceTensors(tree: Source, replace: Replace): Result {
  const copies = new Map<Source, Result>();
  const pending: (() => void)[] = [];
  const copyOf = (value: Source, path: string): Result => {
    if (value instanceof LazyTensor) return replace(value, path);
    const known = copies.get(value);
    if (known !== undefined) return known;
    const under = (key: unknown): string => (path === "" ? keyName(key) : `${path}.${keyName(key)}`);
    let copy: Result;
    if (Array.isArray(value)) {
      const list: Result[] = [];
      pending.push(() => {
        for (const [i, item] of value.entries()) list.push(copyOf(item, under(i)));
      });
      copy = list;
    } else if (value instanceof Map) {
      const map = new Map<Result, Result>();
      pending.push(() => {
        for (const [key, item] of value) map.set(copyOf(key, under("key")), copyOf(item, under(key)));
      });
      copy = map;
    } else if (value instanceof Set) {
      const set = new Set<Result>();
      pending.push(() => {
        for (const item of value) set.add(copyOf(item, under("item")));
      });
      copy = set;
    } else if (value instanceof Opaque) {
      const object = new Opaque<Tensor | LazyTensor>(null, []);
      pending.push(() => {
        object.callee = copyOf(value.callee, under("callee"));
        object.args = copyOf(value.args, under("args")) as Result[];
        object.kwargs = copyOf(value.kwargs, under("kwargs"));
        object.state = copyOf(value.state, path);
        object.items = copyOf(value.items, path) as Result[];
        object.entries = copyOf(value.entries, path) as Map<Result, Result>;
      });
      copy = object;
    } else {
      return value;
    }
    copies.set(value, copy);
    return copy;
  };
  const result = copyOf(tree, "");
  for (let next = pending.pop(); next !== undefined; next = pending.pop()) next();
  return result;
}

const keyName = (key: unknown): string => (typeof key === "string" ? key : kindOf(key));

const TORCH_SAVE = "a checkpoint of torch.save";

/** Which of the two formats a file has, or an error that says what it is instead. */
function formatOf(file: FileBytes): "zip" | "legacy" {
  const { path, size } = file;
  const head = Buffer.from(file.read(0, Math.min(size, 512)));
  const text = head.toString("latin1");
  if (text.startsWith("PK\x03\x04")) return "zip";
  if (endOfLegacyMagic(head) !== undefined) return "legacy";
  const [other, remedyForOther] = otherContent(head) ?? [];
  if (other !== undefined) throw expected(path, TORCH_SAVE, other, remedyForOther);
  if (size > 9 && text[8] === "{" && head.readBigUInt64LE(0) <= BigInt(size - 8)) {
    throw expected(path, TORCH_SAVE, "a safetensors file", "Read it with loadSafetensors");
  }
  if (text.slice(257, 262) === "ustar") {
    const remedy =
      "PyTorch 0.1.9 and older saved so; in Python: torch.save(torch.load(path, weights_only=False), new)";
    throw expected(path, TORCH_SAVE, "a tar archive", remedy);
  }
  if (isPickle(head)) {
    const remedy = "In Python: torch.save(pickle.load(open(path, 'rb')), new)";
    throw expected(path, TORCH_SAVE, "a bare pickle", remedy);
  }
  for (const [magic, what, advice] of OTHER_FORMATS)
    if (text.startsWith(magic)) throw expected(path, TORCH_SAVE, what, advice);
  const begin = /^[\t\n\r -~]+/.exec(text)?.[0] ?? "";
  const got =
    begin.length >= Math.min(text.length, 64)
      ? `text that begins with ${JSON.stringify(begin.slice(0, 40))}`
      : `a file that begins with bytes ${head.subarray(0, 16).toString("hex")}`;
  throw expected(path, TORCH_SAVE, got);
}

const OTHER_FORMATS: readonly (readonly [magic: string, what: string, remedy?: string])[] = [
  ["\x89HDF", "an HDF5 file"],
  ["GGUF", "a GGUF file"],
  ["\x93NUMPY", "a NumPy array"],
  ["\x1f\x8b", "a gzip file", "Unpack it with gunzip"],
];

/** LONG1 of 0x1950a86a20f9469cfc6c, which legacy files begin with, and STOP. */
const LEGACY_MAGIC = Buffer.from("8a0a6cfc9c46f9206aa850192e", "hex");

/**
 * Where the first pickle of a legacy file ends; undefined for other files. PROTO and perhaps FRAME stand
 * before.
 */
function endOfLegacyMagic(head: Buffer): number | undefined {
  const start = head[2] === 0x95 ? 11 : 2;
  const end = start + LEGACY_MAGIC.length;
  return isPickle(head) && head.subarray(start, end).equals(LEGACY_MAGIC) ? end : undefined;
}

/** PROTO with a protocol of 2 to 5. */
function isPickle(head: Buffer): boolean {
  return head[0] === 0x80 && (head[1] as number) >= 2 && (head[1] as number) <= 5;
}

const LEGACY_PROTOCOL = 1001;

/** Container formats that PyTorch reads; torch.save writes 3. */
const MAX_ZIP_VERSION = 10;

function openZip(file: FileBytes): unknown {
  const { path } = file;
  const zip = new ZipArchive(file, path);
  const names = [...zip.entries.keys()];
  const pickles = names.filter((name) => /^[^/]*\/data\.pkl$/.test(name));
  const [pickle] = pickles;
  if (pickle === undefined) {
    const shown = names.slice(0, 3).join(", ");
    const got = `a zip archive of ${names.length} files (${shown}, ...) without data.pkl`;
    throw expected(path, TORCH_SAVE, got);
  }
  if (pickles.length > 1) throw expected(path, "one data.pkl", pickles);
  const folder = pickle.slice(0, -"data.pkl".length);
  if (zip.entries.has(`${folder}constants.pkl`)) {
    const remedy = "In Python: torch.save(torch.jit.load(path).state_dict(), new)";
    throw expected(path, TORCH_SAVE, "a TorchScript archive, which holds a program", remedy);
  }
  const text = (name: string, fallback: string): string => {
    const entry = zip.entries.get(folder + name);
    return entry === undefined ? fallback : Buffer.from(zip.read(entry, 64)).toString("latin1").trim();
  };
  const order = text("byteorder", "little");
  if (order !== "little") {
    const remedy = "Load and save it with torch on a common machine";
    throw expected(path, "little-endian data", `${order}-endian`, remedy);
  }
  const version = text("version", "3");
  if (!/^\d+$/.test(version) || Number(version) > MAX_ZIP_VERSION) {
    throw expected(path, `a container version up to ${MAX_ZIP_VERSION}`, version);
  }
  const storages = new Map<string, Storage>();
  const find = (key: string, bytes: number, _elementBytes: number, where: string): Storage => {
    const entry = zip.entries.get(`${folder}data/${key}`);
    if (entry === undefined) throw expected(where, `an entry data/${key}`, "none", "The file is damaged");
    if (entry.size !== bytes)
      throw expected(where, `${bytes} bytes in data/${key}`, entry.size, "The file is damaged");
    let storage = storages.get(key);
    if (storage === undefined) {
      const locate = (): ReturnType<Storage["locate"]> =>
        entry.isDeflated
          ? { source: new MemoryBytes(zip.read(entry)), offset: 0 }
          : { source: file, offset: zip.dataOffset(entry) };
      storage = { bytes, locate };
      storages.set(key, storage);
    }
    return storage;
  };
  const source = new MemoryBytes(zip.read(zip.entries.get(pickle) as Parameters<ZipArchive["read"]>[0]));
  return unpickle(source, {
    where: `${path}: data.pkl`,
    persistentLoad: (id, where) => persistentTensor(id, where, find),
    call: tensorCall,
  }).value;
}

/** Where a storage of a legacy file is: known only once the object before it has been read. */
class LegacyStorage implements Storage {
  readonly bytes: number;
  readonly elementBytes: number;
  offset = -1;
  readonly #file: FileBytes;

  constructor(file: FileBytes, bytes: number, elementBytes: number) {
    this.#file = file;
    this.bytes = bytes;
    this.elementBytes = elementBytes;
  }

  locate(): { source: ByteSource; offset: number } {
    return { source: this.#file, offset: this.offset };
  }
}

/**
 * Five pickles (magic, protocol, system, object, storage keys), then each storage: an int64 count and its
 * elements.
 */
function openLegacy(file: FileBytes): unknown {
  const { path } = file;
  const begin = endOfLegacyMagic(Buffer.from(file.read(0, Math.min(file.size, 64)))) as number;
  const protocol = unpickle(file, { where: path, start: begin });
  if (protocol.value !== LEGACY_PROTOCOL) {
    throw expected(path, `legacy protocol ${LEGACY_PROTOCOL}`, kindOf(protocol.value));
  }
  const system = unpickle(file, { where: path, start: protocol.end });
  const storages = new Map<string, LegacyStorage>();
  const find = (key: string, bytes: number, elementBytes: number, where: string): Storage => {
    let found = storages.get(key);
    if (found === undefined) {
      found = new LegacyStorage(file, bytes, elementBytes);
      storages.set(key, found);
    }
    if (found.bytes !== bytes)
      throw expected(where, `${found.bytes} bytes of storage ${key}, as before`, bytes);
    return found;
  };
  const object = unpickle(file, {
    where: path,
    start: system.end,
    persistentLoad: (id, where) => persistentTensor(id, where, find),
    call: tensorCall,
  });
  const keys = unpickle(file, { where: path, start: object.end });
  if (!Array.isArray(keys.value)) throw expected(path, "a list of storage keys", kindOf(keys.value));
  let at = keys.end;
  for (const key of keys.value) {
    const found = storages.get(String(key));
    if (found === undefined)
      throw expected(path, "a storage that the object uses", kindOf(key), "The file is damaged");
    const where = `${path}: storage ${key}`;
    if (at + 8 > file.size)
      throw expected(where, `8 bytes at byte ${at}`, "the end of the file", "It was cut short");
    const count = Buffer.from(file.read(at, 8)).readBigInt64LE(0);
    if (count * BigInt(found.elementBytes) !== BigInt(found.bytes)) {
      throw expected(where, `${found.bytes / found.elementBytes} elements`, count, "The file is damaged");
    }
    found.offset = at + 8;
    at = found.offset + found.bytes;
    if (at > file.size)
      throw expected(where, `${found.bytes} bytes`, file.size - found.offset, "The file was cut short");
  }
  for (const [key, { offset }] of storages) {
    if (offset < 0) throw expected(path, `the data of storage ${key}`, "none", "The file is damaged");
  }
  return object.value;
}
