/**
 * A data set of codes that a tokenizer has computed: a safetensors file, or a folder of `.npy` files as LlamaGen extracts
 * them. An image may have several rows, its crops and flips.
 */
import { existsSync, readFileSync } from "node:fs";
import { basename, dirname, join } from "node:path";

import { FileBytes } from "../torch/files.js";
import { expected, openSafetensors } from "../torch/index.js";
import { readSafetensorsHeader } from "../torch/safetensors.js";
import { readPart } from "./decode.js";
import { type Classes, LABEL_REMEDY, numberClasses, oneClass, sortNames } from "./labels.js";
import { type RawArray, readNpy, toInt64 } from "./npy.js";
import { listFiles } from "./paths.js";
import { hashListing, type ImageSource, imageSource, type SourceOptions, spread } from "./source.js";

/** Types of whole numbers, as `npy.ts` calls them. */
const TYPES: Readonly<Record<string, string>> = {
  int64: "i8",
  int32: "i4",
  int16: "i2",
  uint8: "u1",
  int8: "i1",
  U16: "u2",
  U32: "u4",
};

/** Images whose codes go into the fingerprint. */
const READ = 64;

/**
 * Open a file of codes (`.safetensors`) or a folder of them (`.npy`).
 *
 * A file holds `codes`, whole numbers `[N, T]`, or `[N, R, T]` with R prepared crops of each image, and `classes`
 * `[N]`. A folder `imagenet256_codes` holds one file per image, `[T]`, `[R, T]` or `[1, R, T]`, and
 * `imagenet256_labels` beside it a class each, under the same name.
 *
 * @throws RangeError when codes or classes are missing or their numbers differ.
 */
export async function openCodes(path: string, options: SourceOptions = {}): Promise<ImageSource> {
  const open = /\.safetensors$/i.test(path) ? openCodeFile : openCodeFolder;
  return await open(path, options);
}

async function openCodeFile(path: string, options: SourceOptions): Promise<ImageSource> {
  const name = options.image ?? "codes";
  const entry = entryOf(path, name);
  const type = TYPES[entry.dtype];
  const [length = 0, ...rest] = entry.shape;
  const codeLength = rest.at(-1) ?? 0;
  const variants = rest.length === 2 ? (rest[0] as number) : 1;
  if (type === undefined || rest.length > 2 || length * codeLength * variants === 0) {
    const got = `${entry.dtype} [${entry.shape.join(", ")}]`;
    throw expected(`${path}: ${name}`, "whole numbers of shape [N, T] or [N, R, T]", got);
  }
  const classes = fileClasses(path, length, options);
  const rowBytes = codeLength * Number(type.slice(1));
  const rowOf = async (row: number): Promise<RawArray> => {
    const bytes = await readPart({ path, offset: entry.offset + row * rowBytes, length: rowBytes });
    return { type, shape: [codeLength], bytes };
  };
  const idOf = (index: number): string => `${basename(path)}#${index}`;
  const hash = hashListing(idOf, classes).update(`${type} ${entry.shape.join(" ")}`);
  for (const i of spread(length, READ)) hash.update((await rowOf(i * variants)).bytes);
  const locate: ImageSource["locate"] = async (index, variant) => {
    const raw = await rowOf(index * variants + variant);
    return { codes: checkCodes(toInt64(raw, idOf(index)), idOf(index)) };
  };
  const fingerprint = hash.digest("hex");
  return imageSource(classes, { kind: "codes", fingerprint, variants, codeLength, idOf, locate });
}

function entryOf(path: string, name: string) {
  using file = new FileBytes(path);
  const { entries } = readSafetensorsHeader(file, path);
  const entry = entries.get(name);
  if (entry !== undefined) return entry;
  throw expected(path, `a tensor ${name} with codes`, [...entries.keys()].join(", "), "Name it with image");
}

function fileClasses(path: string, length: number, { label, classNames }: SourceOptions): Classes {
  if (label === null) return oneClass(length, classNames?.[0]);
  const name = label ?? "classes";
  using file = openSafetensors(path);
  if (!file.has(name)) {
    const keys = file.keys.join(", ");
    throw expected(path, `a tensor ${name} with the class of each image`, keys, LABEL_REMEDY);
  }
  const { dtype, shape } = file.info(name);
  if (TYPES[dtype] === undefined || shape.length !== 1 || shape[0] !== length) {
    const got = `${dtype} [${shape.join(", ")}]`;
    throw expected(`${path}: ${name}`, `whole numbers of shape [${length}]`, got);
  }
  using tensor = file.tensor(name);
  return numberClasses(`${path}: ${name}`, tensor.toList() as number[], {
    names: classNames,
    rowOf: (i) => `${path}: ${name}[${i}]`,
  });
}

async function openCodeFolder(folder: string, options: SourceOptions): Promise<ImageSource> {
  const files = (await listFiles(folder)).filter((file) => file.endsWith(".npy"));
  const parts = [...new Set(files.map((file) => dirname(file)))];
  const holders = parts.filter((part) => !part.endsWith("labels"));
  if (holders.length !== 1) {
    const got = holders.length === 0 ? "none" : `several: ${holders.join(", ")}`;
    throw expected(folder, "one folder of .npy code files", got);
  }
  const codeFolder = join(folder, holders[0] as string);
  const names = sortNames(
    files.filter((file) => dirname(file) === holders[0]).map((file) => basename(file, ".npy")),
  );
  const pathOf = (index: number): string => join(codeFolder, `${names[index]}.npy`);
  const classes = folderClasses(codeFolder, names, options);
  const first = readNpy(await readPart({ path: pathOf(0) }), pathOf(0));
  const codeLength = first.shape.at(-1) ?? 0;
  const variants = first.shape.slice(0, -1).reduce((product, size) => product * size, 1);
  if (codeLength * variants === 0) {
    throw expected(pathOf(0), "codes of shape [T], [R, T] or [1, R, T]", `[${first.shape.join(", ")}]`);
  }

  const idOf = (index: number): string => names[index] as string;
  const hash = hashListing(idOf, classes);
  for (const i of spread(names.length, READ)) {
    // An unreadable file is counted and named when a batch needs it.
    hash.update(await readPart({ path: pathOf(i) }).catch(() => ""));
  }
  const locate: ImageSource["locate"] = async (index, variant) => {
    const path = pathOf(index);
    const raw = readNpy(await readPart({ path }), path);
    if (raw.shape.join() !== first.shape.join()) {
      const got = `[${raw.shape.join(", ")}]`;
      throw expected(path, `codes of shape [${first.shape.join(", ")}], as the others`, got);
    }
    const rowBytes = raw.bytes.length / variants;
    const bytes = raw.bytes.subarray(variant * rowBytes, (variant + 1) * rowBytes);
    return { codes: checkCodes(toInt64({ ...raw, bytes }, path), path) };
  };
  const fingerprint = hash.digest("hex");
  return imageSource(classes, { kind: "codes", fingerprint, variants, codeLength, idOf, locate });
}

/** Classes of a folder of codes, one `.npy` file each under the same name. */
function folderClasses(codeFolder: string, names: readonly string[], options: SourceOptions): Classes {
  if (options.label === null) return oneClass(names.length, options.classNames?.[0]);
  const folder = codeFolder.replace(/codes$/, "labels");
  if (folder === codeFolder || !existsSync(folder)) {
    const what = "a folder of labels beside it, ending in labels for codes";
    throw expected(codeFolder, what, "none", LABEL_REMEDY);
  }
  const labels = names.map((name) => {
    const path = join(folder, `${name}.npy`);
    if (!existsSync(path)) throw expected(folder, `a label ${name}.npy`, "none");
    const values = toInt64(readNpy(readFileSync(path), path), path);
    if (values.length !== 1) throw expected(path, "one class", `${values.length} numbers`);
    return Number(values[0]);
  });
  const rowOf = (i: number): string => join(folder, `${names[i]}.npy`);
  return numberClasses(folder, labels, { names: options.classNames, rowOf });
}

function checkCodes(codes: BigInt64Array, name: string): BigInt64Array {
  const odd = codes.find((code) => code < 0n);
  if (odd !== undefined) throw expected(name, "codes from 0", odd);
  return codes;
}
