/**
 * Parquet files with a column of images and one of labels, as Hugging Face data sets are published. Row groups are
 * read whole; the most recently used stay in memory.
 */
import { createHash } from "node:crypto";
import { statSync } from "node:fs";

import {
  type AsyncBuffer,
  type FileMetaData,
  parquetMetadataAsync,
  parquetReadObjects,
  parquetSchema,
} from "hyparquet";
import { compressors } from "hyparquet-compressors";

import { expected } from "../torch/index.js";
import { readPart } from "./decode.js";
import { type Classes, numberClasses, oneClass } from "./labels.js";
import { expandPattern, namesOf } from "./paths.js";
import { type Block, hashListing, type ImageSource, type SourceOptions } from "./source.js";

type Column = ReturnType<typeof parquetSchema>;

interface ParquetFile {
  readonly path: string;
  /** Name that identities begin with. */
  readonly name: string;
  readonly bytes: AsyncBuffer;
  readonly metadata: FileMetaData;
  readonly imageColumn: string;
  readonly labelColumn: string | null;
}

/** Rows `[start, start + length)` of a file, stored together. */
interface RowGroup extends Block {
  readonly file: ParquetFile;
  readonly start: number;
  /** Place of its first row in the source. */
  readonly first: number;
}

const LABEL_COLUMNS = ["label", "labels", "class", "cls"];

/** Memory for open row groups: as much as a window of the shuffle takes. */
const CACHE_BYTES = 2 ** 29;

/**
 * Open parquet files.
 *
 * The image column is the first that holds bytes, or records with a field `bytes`; the label column is called `label`,
 * `labels`, `class` or `cls`. Names of classes that Hugging Face keeps in the file are used.
 *
 * @param paths - one pattern, see `expandPattern`, or the files.
 * @throws RangeError when a column is missing, naming those there are.
 */
export async function openParquet(
  paths: string | readonly string[],
  options: SourceOptions = {},
): Promise<ImageSource> {
  const files = typeof paths === "string" ? await expandPattern("openParquet", paths) : paths;
  const names = namesOf(files);
  const opened: ParquetFile[] = [];
  const labels: (string | number)[] = [];
  for (const [i, path] of files.entries()) {
    const file = await openFile(path, names[i] as string, options);
    opened.push(file);
    // One by one: an argument list has a limit.
    for (const label of await labelsOf(file)) labels.push(label);
  }
  const groups = groupsOf(opened);
  const last = groups.at(-1);
  const length = last === undefined ? 0 : last.first + last.length;
  const where = files.length === 1 ? (files[0] as string) : `${files[0]} and ${files.length - 1} more`;
  if (length === 0) throw expected(where, "at least one row", "none");
  const hasLabels = opened[0]?.labelColumn !== null;
  const classNames = options.classNames ?? publishedNames(opened[0] as ParquetFile);
  const classes = hasLabels
    ? numberClasses(where, labels, classNames)
    : oneClass(length, options.classNames?.[0]);

  const groupOf = (index: number): RowGroup => {
    let [low, high] = [0, groups.length - 1];
    while (low < high) {
      const middle = Math.ceil((low + high) / 2);
      if ((groups[middle] as RowGroup).first <= index) low = middle;
      else high = middle - 1;
    }
    return groups[low] as RowGroup;
  };
  const idOf = (index: number): string => {
    const { file, start, first } = groupOf(index);
    return `${file.name}#${start + index - first}`;
  };
  const read = keepRecent(CACHE_BYTES, readGroup);
  return {
    kind: "images",
    length,
    classNames: classes.names,
    fingerprint: await fingerprintOf(opened, classes, idOf),
    variants: 1,
    blocks: groups,
    idOf,
    classOf: (index) => classes.ids[index] as number,
    locate: async (index) => {
      const group = groupOf(index);
      const bytes = (await read(group))[index - group.first];
      if (bytes === undefined)
        throw expected(idOf(index), `bytes in column ${group.file.imageColumn}`, "none");
      return { image: { bytes } };
    },
  };
}

async function openFile(path: string, name: string, options: SourceOptions): Promise<ParquetFile> {
  const size = statSync(path, { throwIfNoEntry: false })?.size;
  if (size === undefined) throw expected(path, "a parquet file", "nothing", "Check the path");
  const bytes: AsyncBuffer = {
    byteLength: size,
    slice: async (start, end = size) => {
      const part = await readPart({ path, offset: start, length: end - start });
      return part.buffer.slice(part.byteOffset, part.byteOffset + part.length) as ArrayBuffer;
    },
  };
  const metadata = await parquetMetadataAsync(bytes).catch((error: Error) => {
    throw expected(path, "a parquet file", error.message, "It is damaged, cut short or something else");
  });
  const columns = parquetSchema(metadata).children;
  const imageColumn = findImage(path, columns, options.image);
  return { path, name, bytes, metadata, imageColumn, labelColumn: findLabel(path, columns, options.label) };
}

const isBytes = ({ element, children }: Column): boolean =>
  children.length === 0 &&
  element.type === "BYTE_ARRAY" &&
  element.repetition_type !== "REPEATED" &&
  element.converted_type === undefined &&
  element.logical_type === undefined;

const holdsImages = (column: Column): boolean =>
  isBytes(column) || column.children.some((child) => child.element.name === "bytes" && isBytes(child));

function findImage(path: string, columns: readonly Column[], name: string | undefined): string {
  const column =
    name === undefined ? columns.find(holdsImages) : columns.find((c) => c.element.name === name);
  if (column === undefined || !holdsImages(column)) {
    const what =
      name === undefined ? "a column of images, bytes or records with bytes" : `images in column ${name}`;
    throw expected(path, what, listColumns(columns), "Name it with image");
  }
  return column.element.name;
}

function findLabel(path: string, columns: readonly Column[], name: string | null | undefined): string | null {
  if (name === null) return null;
  const names = columns.map((column) => column.element.name);
  const found = name === undefined ? LABEL_COLUMNS.find((one) => names.includes(one)) : name;
  if (found === undefined || !names.includes(found)) {
    const what = `a column ${name ?? LABEL_COLUMNS.join(", ")} with the class`;
    throw expected(
      path,
      what,
      listColumns(columns),
      "Name it with label, or set label to null for one class",
    );
  }
  return found;
}

function listColumns(columns: readonly Column[]): string {
  return columns
    .map(({ element, children }) => {
      const kind = children.length > 0 ? "records" : (element.logical_type?.type ?? element.type);
      return `${element.name} (${kind?.toLowerCase()})`;
    })
    .join(", ");
}

async function labelsOf({ path, bytes, metadata, labelColumn }: ParquetFile): Promise<(string | number)[]> {
  if (labelColumn === null) return [];
  const rows = await parquetReadObjects({ file: bytes, metadata, columns: [labelColumn], compressors });
  return rows.map((row, i) => {
    const label: unknown = row[labelColumn];
    if (typeof label === "bigint") return Number(label);
    if (typeof label === "number" || typeof label === "string") return label;
    throw expected(`${path}#${i}`, `a number or name in column ${labelColumn}`, label);
  });
}

/** Names that Hugging Face's own description of the columns gives the label's values. */
function publishedNames({ metadata, labelColumn }: ParquetFile): string[] | undefined {
  const text = metadata.key_value_metadata?.find(({ key }) => key === "huggingface")?.value;
  if (text === undefined || labelColumn === null) return undefined;
  try {
    const names: unknown = JSON.parse(text).info?.features?.[labelColumn]?.names;
    return Array.isArray(names) && names.every((name) => typeof name === "string") ? names : undefined;
  } catch {
    // A remark of another program: the set can be read without it.
    return undefined;
  }
}

function groupsOf(files: readonly ParquetFile[]): RowGroup[] {
  const groups: RowGroup[] = [];
  let first = 0;
  for (const file of files) {
    let start = 0;
    for (const { num_rows, columns } of file.metadata.row_groups) {
      const length = Number(num_rows);
      const bytes = columns
        .filter(({ meta_data }) => meta_data?.path_in_schema[0] === file.imageColumn)
        .reduce((sum, { meta_data }) => sum + Number(meta_data?.total_uncompressed_size ?? 0), 0);
      if (length > 0) groups.push({ file, start, first, length, bytes });
      start += length;
      first += length;
    }
  }
  return groups;
}

/** Encoded images of a row group; undefined for a row without. */
async function readGroup({ file, start, length }: RowGroup): Promise<(Uint8Array | undefined)[]> {
  const { path, bytes, metadata, imageColumn } = file;
  try {
    const rows = await parquetReadObjects({
      file: bytes,
      metadata,
      columns: [imageColumn],
      rowStart: start,
      rowEnd: start + length,
      compressors,
      utf8: false,
    });
    return rows.map((row) => {
      const value = row[imageColumn];
      const data: unknown = value instanceof Uint8Array ? value : value?.bytes;
      return data instanceof Uint8Array ? data : undefined;
    });
  } catch (error) {
    throw expected(
      `${path}, rows ${start} to ${start + length - 1}`,
      "a sound row group",
      (error as Error).message,
    );
  }
}

/** Remember what `read` gave for the most recent blocks, up to `limit` bytes, the current one aside. */
function keepRecent<B extends Block, T>(
  limit: number,
  read: (block: B) => Promise<T>,
): (block: B) => Promise<T> {
  const open = new Map<B, Promise<T>>();
  let bytes = 0;
  return async (block) => {
    let result = open.get(block);
    if (result === undefined) {
      result = read(block);
      bytes += block.bytes;
    } else {
      open.delete(block);
    }
    open.set(block, result); // a Map keeps the order of insertion: the oldest first
    for (const old of open.keys()) {
      if (bytes <= limit || old === block) break;
      open.delete(old);
      bytes -= old.bytes;
    }
    return await result;
  };
}

/** The files' own ends, which hold sizes, checksums and extremes of every column, stand for their contents. */
async function fingerprintOf(
  files: readonly ParquetFile[],
  classes: Classes,
  idOf: (index: number) => string,
): Promise<string> {
  const hash = hashListing(idOf, classes);
  for (const { bytes, metadata } of files) {
    const footer = await bytes.slice(bytes.byteLength - metadata.metadata_length - 8);
    hash.update(createHash("sha256").update(new Uint8Array(footer)).digest());
  }
  return hash.digest("hex");
}
