/**
 * The safetensors format: eight bytes of header length, a JSON header, then the tensors' bytes back to back.
 * Files hold no code. Tensors are read by range and written one at a time. Specified by
 * huggingface/safetensors.
 */
import { empty } from "./creation.js";
import { DTYPES, type DType } from "./dtype.js";
import { expected, expectedType } from "./errors.js";
import {
  type ByteSource,
  FileBytes,
  forTensorData,
  mustHaveValues,
  plainValues,
  readTensorData,
  replaceFile,
  writeAll,
} from "./files.js";
import { isCount, isObject, parseJson } from "./json.js";
import { otherContent } from "./other_content.js";
import { tidy } from "./scope.js";
import { Tensor } from "./tensor.js";

/** What a file says of one tensor. */
interface SafetensorsInfo {
  /** PyTorch's name, or the file's own (`F8_E4M3`, `U16`, ...) for a dtype that is not supported here. */
  readonly dtype: string;
  readonly shape: readonly number[];
  readonly bytes: number;
}

/** Header of a safetensors file. Entries are in the order of their data. */
interface SafetensorsHeader {
  readonly entries: ReadonlyMap<string, SafetensorsInfo & { readonly offset: number }>;
  readonly metadata: Readonly<Record<string, string>>;
}

/** Names of the dtypes in the reference implementation's order, by which its writer sorts. */
const WRITE_ORDER: readonly string[] =
  "BOOL F4 F6_E2M3 F6_E3M2 U8 I8 F8_E5M2 F8_E4M3 F8_E8M0 F8_E4M3FNUZ F8_E5M2FNUZ I16 U16 F16 BF16 I32 U32 F32 C64 F64 I64 U64".split(
    " ",
  );

/** Bits of one element: the first number of the name; BOOL has a byte. */
const bitsOf = (name: string): number => Number(/\d+/.exec(name)?.[0] ?? 8);

/** Complex128 has no name in the format. */
const FILE_NAMES: Readonly<Partial<Record<DType, string>>> = {
  bool: "BOOL",
  uint8: "U8",
  int8: "I8",
  int16: "I16",
  int32: "I32",
  int64: "I64",
  float16: "F16",
  bfloat16: "BF16",
  float32: "F32",
  float64: "F64",
  complex64: "C64",
};

const DTYPE_OF: ReadonlyMap<string, DType> = new Map(
  Object.entries(FILE_NAMES).map(([dtype, name]) => [name, dtype as DType]),
);

/** The reference implementation's limit. */
const MAX_HEADER_BYTES = 100_000_000;

/** The operators' limit on dimensions. */
const MAX_DIMENSIONS = 64;

/** How zip archives begin, and with them the files of `torch.save`. */
const ZIP = Buffer.from("PK\x03\x04", "latin1");

const DAMAGED = "The file is damaged, was cut short or is not safetensors";

/**
 * Read and check the header: every range lies in the file, none overlap and none leave a gap, and each is
 * what its shape and dtype take.
 *
 * @throws RangeError otherwise.
 */
export function readSafetensorsHeader(source: ByteSource, where: string): SafetensorsHeader {
  if (source.size < 8)
    throw expected(where, "a header length of 8 bytes", `a file of ${source.size}`, DAMAGED);
  const head = source.read(0, Math.min(source.size, 64));
  const [other, remedy] = otherContent(head) ?? [];
  if (other !== undefined) throw expected(where, "a safetensors file", other, remedy);
  if (Buffer.from(head.subarray(0, 4)).equals(ZIP)) {
    const renamed = "If torch.save wrote it, rename it to end in .pt";
    throw expected(where, "a safetensors file", "a zip archive", renamed);
  }
  const length = Number(Buffer.from(source.read(0, 8)).readBigUInt64LE(0));
  const most = Math.min(source.size - 8, MAX_HEADER_BYTES);
  if (length > most) throw expected(where, `a header of at most ${most} bytes`, length, DAMAGED);
  const { metadata, tensors } = parseHeader(source.read(8, length), where);
  const start = 8 + length;
  const entries = new Map<string, SafetensorsInfo & { offset: number }>();
  let end = 0;
  for (const [name, entry] of tensors) {
    if (entry.begin !== end) {
      const what = `data at byte ${end}, behind the tensor before it`;
      throw expected(`${where}: ${name}`, what, entry.begin, DAMAGED);
    }
    end = entry.end;
    const { dtype, shape } = entry;
    entries.set(name, { dtype, shape, bytes: entry.end - entry.begin, offset: start + entry.begin });
  }
  if (start + end !== source.size) {
    throw expected(where, `${end} bytes of tensors`, source.size - start, DAMAGED);
  }
  return { entries, metadata };
}

interface RawEntry {
  readonly dtype: string;
  readonly shape: readonly number[];
  readonly begin: number;
  readonly end: number;
}

type RawHeader = { metadata: Record<string, string>; tensors: [string, RawEntry][] };

function parseHeader(bytes: Uint8Array, where: string): RawHeader {
  const json = parseJson(bytes, where, "a header of JSON", DAMAGED);
  if (!isObject(json)) throw expected(where, "a header that is a JSON object", shown(json), DAMAGED);
  // No prototype: a tensor may be named `__proto__` or `constructor`.
  const metadata: Record<string, string> = Object.create(null);
  const tensors: [string, RawEntry][] = [];
  for (const [name, value] of Object.entries(json)) {
    if (name !== "__metadata__") {
      tensors.push([name, parseEntry(value, `${where}: ${name}`)]);
      continue;
    }
    if (value === null) continue;
    if (!isObject(value)) throw expected(where, "metadata that is a JSON object", String(value), DAMAGED);
    for (const [key, entry] of Object.entries(value)) {
      if (typeof entry !== "string")
        throw expected(`${where}: metadata.${key}`, "a string", String(entry), DAMAGED);
      metadata[key] = entry;
    }
  }
  tensors.sort(([, a], [, b]) => a.begin - b.begin || a.end - b.end);
  return { metadata, tensors };
}

function parseEntry(value: unknown, where: string): RawEntry {
  if (!isObject(value)) throw expected(where, "dtype, shape and data_offsets", shown(value), DAMAGED);
  const { dtype, shape, data_offsets: offsets } = value;
  if (typeof dtype !== "string" || !WRITE_ORDER.includes(dtype)) {
    throw expected(where, `a dtype among ${WRITE_ORDER.join(" ")}`, shown(dtype));
  }
  const bits = bitsOf(dtype);
  if (!Array.isArray(shape) || shape.length > MAX_DIMENSIONS || !shape.every(isCount)) {
    throw expected(where, `a shape of at most ${MAX_DIMENSIONS} whole numbers`, shown(shape), DAMAGED);
  }
  if (!Array.isArray(offsets) || offsets.length !== 2 || !offsets.every(isCount)) {
    throw expected(where, "data_offsets that are two whole numbers", shown(offsets), DAMAGED);
  }
  const [begin, end] = offsets as [number, number];
  // A dimension of 0 hides the others from the count, but LibTorch still multiplies them into strides.
  const extent = shape.reduce((product: number, size: number) => product * Math.max(size, 1), 1);
  if (!Number.isSafeInteger(extent * bits)) {
    throw expected(where, "a shape whose product is below 2^53 bits", shown(shape), DAMAGED);
  }
  const bytes = shape.includes(0) ? 0 : (extent * bits) / 8;
  if (end - begin !== bytes) {
    throw expected(where, `${bytes} bytes for ${dtype} ${shown(shape)}`, end - begin, DAMAGED);
  }
  return { dtype: DTYPE_OF.get(dtype) ?? dtype, shape, begin, end };
}

/** A value of the header in an error message: a hostile one may be of any length. */
function shown(value: unknown): string {
  const text = JSON.stringify(value) ?? "nothing";
  return text.length > 80 ? `${text.slice(0, 80)}...` : text;
}

/** An open safetensors file, whose tensors are read one by one. Close it, or hold it with `using`. */
export class SafetensorsFile {
  readonly path: string;
  /** Names in the order of their data. */
  readonly keys: readonly string[];
  readonly metadata: Readonly<Record<string, string>>;
  readonly #file: FileBytes;
  readonly #entries: SafetensorsHeader["entries"];

  /** @throws RangeError when the file cannot be read or its header is damaged. */
  constructor(path: string) {
    this.path = path;
    this.#file = new FileBytes(path);
    try {
      const header = readSafetensorsHeader(this.#file, path);
      this.#entries = header.entries;
      this.metadata = header.metadata;
      this.keys = [...header.entries.keys()];
    } catch (error) {
      this.close();
      throw error;
    }
  }

  has(name: string): boolean {
    return this.#entries.has(name);
  }

  /** Type, shape and size of one tensor, from the header alone. */
  info(name: string): SafetensorsInfo {
    const { dtype, shape, bytes } = this.#entry(name);
    return { dtype, shape, bytes };
  }

  /**
   * Read one tensor into memory of its own, on the CPU.
   *
   * @throws RangeError when there is no such tensor, or its dtype is not supported here.
   */
  tensor(name: string): Tensor {
    const { dtype, shape, offset } = this.#entry(name);
    if (!isDType(dtype)) {
      const what = `a dtype among ${Object.keys(FILE_NAMES).join(", ")}`;
      throw expected(`${this.path}: ${name}`, what, dtype, "Convert it where it was written");
    }
    const tensor = empty(shape, { dtype });
    try {
      readTensorData(this.#file, offset, tensor, DTYPES[dtype].size);
    } catch (error) {
      tensor.dispose();
      throw error;
    }
    return tensor;
  }

  close(): void {
    this.#file.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  #entry(name: string): SafetensorsInfo & { offset: number } {
    const entry = this.#entries.get(name);
    if (entry === undefined) {
      throw expected(`${this.path}: ${name}`, "a tensor of the file", "none of that name", "keys lists them");
    }
    return entry;
  }
}

const isDType = (name: string): name is DType => Object.hasOwn(DTYPES, name);

/** Open a file and read its header, no tensor. */
export function openSafetensors(path: string): SafetensorsFile {
  return new SafetensorsFile(path);
}

/**
 * Read every tensor of a file.
 *
 * @returns tensors by name in a record without prototype, in the order of their data, except that
 *   JavaScript puts names that are whole numbers first.
 */
export function loadSafetensors(path: string): {
  tensors: Record<string, Tensor>;
  metadata: Readonly<Record<string, string>>;
} {
  using file = openSafetensors(path);
  const tensors: Record<string, Tensor> = Object.create(null);
  try {
    for (const name of file.keys) tensors[name] = file.tensor(name);
  } catch (error) {
    for (const tensor of Object.values(tensors)) tensor.dispose();
    throw error;
  }
  return { tensors, metadata: file.metadata };
}

/**
 * Write tensors to a file that appears whole or not at all, byte for byte as the reference implementation
 * lays it out.
 *
 * Tensors are made contiguous and brought to the CPU one at a time, so memory grows by the largest only. Tensors that share memory are each written whole.
 *
 * @param metadata - free text; keys are written in the order given.
 * @throws TypeError for a value that is not a tensor, or metadata that is not a string. RangeError for complex128,
 *   and when the file cannot be written; an existing file at `path` is then unchanged.
 */
export function saveSafetensors(
  path: string,
  tensors: Readonly<Record<string, Tensor>>,
  metadata: Readonly<Record<string, string>> = {},
): void {
  const sorted = Object.entries(tensors).map(([name, tensor]) => {
    if (!(tensor instanceof Tensor)) throw expectedType(`saveSafetensors: ${name}`, "a Tensor", tensor);
    mustHaveValues(`saveSafetensors: ${name}`, tensor);
    if (name === "__metadata__")
      throw expected("saveSafetensors", "another tensor name", name, "The format reserves it");
    const dtype = FILE_NAMES[tensor.dtype];
    if (dtype === undefined) {
      const remedy = "Save real and imag apart";
      throw expected(`saveSafetensors: ${name}`, "a dtype of the format", tensor.dtype, remedy);
    }
    return { name, tensor, dtype };
  });
  sorted.sort(
    (a, b) => WRITE_ORDER.indexOf(b.dtype) - WRITE_ORDER.indexOf(a.dtype) || compareUtf8(a.name, b.name),
  );
  const entries: string[] = [];
  const texts = Object.entries(metadata);
  for (const [key, value] of texts) {
    if (typeof value !== "string") throw expectedType(`saveSafetensors: metadata.${key}`, "a string", value);
  }
  if (texts.length > 0) entries.push(`"__metadata__":${JSON.stringify(metadata)}`);
  let end = 0;
  for (const { name, tensor, dtype } of sorted) {
    const begin = end;
    end += tensor.numel * DTYPES[tensor.dtype].size;
    const info = { dtype, shape: tensor.shape, data_offsets: [begin, end] };
    entries.push(`${JSON.stringify(name)}:${JSON.stringify(info)}`);
  }
  const json = Buffer.from(`{${entries.join(",")}}`);
  // Spaces keep the data, and so every element, on a multiple of 8 bytes.
  const length = Math.ceil(json.length / 8) * 8;
  if (length > MAX_HEADER_BYTES) {
    const what = `a header of at most ${MAX_HEADER_BYTES} bytes`;
    throw expected("saveSafetensors", what, length, "Use several files");
  }
  const head = Buffer.alloc(8 + length, " ");
  head.writeBigUInt64LE(BigInt(length));
  json.copy(head, 8);
  replaceFile(path, (fd) => {
    writeAll(fd, head);
    for (const { tensor } of sorted) {
      const { size } = DTYPES[tensor.dtype];
      tidy(() => forTensorData(plainValues(tensor), size, (bytes) => writeAll(fd, bytes)));
    }
  });
}

/** Order of the bytes, as Rust compares strings; JavaScript's own order differs past U+FFFF. */
const compareUtf8 = (a: string, b: string): number => Buffer.compare(Buffer.from(a), Buffer.from(b));
