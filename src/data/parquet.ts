/**
 * Parquet files with a column of images, one of labels and one of captions, as Hugging Face data sets are published. Row
 * groups are read whole; the most recently used stay in memory.
 */
import { createHash } from "node:crypto";
import { statSync } from "node:fs";

import {
  type AsyncBuffer,
  type Compressors,
  type FileMetaData,
  parquetMetadataAsync,
  parquetReadObjects,
  parquetSchema,
} from "hyparquet";

import { expected, listed } from "../torch/index.js";
import { CAPTION_REMEDY } from "./captions.js";
import { readPart } from "./decode.js";
import {
  type Classes,
  LABEL_REMEDY,
  numberClasses,
  oneClass,
  requireEachOnce,
  requireText,
} from "./labels.js";
import { expandPattern, namesOf } from "./paths.js";
import { type Block, hashListing, type ImageSource, imageSource, type SourceOptions } from "./source.js";

type Column = ReturnType<typeof parquetSchema>;

interface ParquetFile {
  readonly path: string;
  /** Name that identities begin with. */
  readonly name: string;
  readonly bytes: AsyncBuffer;
  readonly metadata: FileMetaData;
  readonly imageColumn: string;
  /** Other columns that may hold images, where none was asked for. */
  readonly otherImages: readonly string[];
  readonly labelColumn: string | null;
  readonly captionColumn: string | null;
}

/** Rows `[start, start + length)` of a file, stored together. */
interface RowGroup extends Block {
  readonly file: ParquetFile;
  /** Its number in the file, from 0. */
  readonly number: number;
  readonly start: number;
  /** Place of its first row in the source. */
  readonly first: number;
}

const LABEL_COLUMNS = ["label", "labels", "class", "cls"];
const CAPTION_COLUMNS = ["caption", "text", "prompt"];

/** Memory for open row groups: as much as a window of the shuffle takes. */
const CACHE_BYTES = 2 ** 29;

/**
 * Open parquet files.
 *
 * The image column is that called `image` or `img`, or else the first, of those that hold bytes or records with a field
 * `bytes`; a note names the others. The label column is called `label`, `labels`, `class` or `cls`. Names of classes that
 * Hugging Face keeps in the files are used, and must be the same in all. A column of text that is called
 * `caption`, `text` or `prompt` holds captions.
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
  for (const [i, path] of files.entries()) opened.push(await openFile(path, names[i] as string, options));
  const groups = await groupsOf(opened);
  const last = groups.at(-1);
  const length = last === undefined ? 0 : last.first + last.length;
  const where = listed(files, 1);
  if (length === 0) throw expected(where, "at least one row", "none");

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
  const classes = await parquetClasses(where, opened, groups, options);
  const notes = await parquetNotes(opened, groups);
  const read = keepRecent(CACHE_BYTES, async (group: RowGroup) => {
    const { captionColumn } = group.file;
    const captions = captionColumn === null ? null : await readColumn(group, captionColumn);
    return { images: await readImages(group), captions };
  });
  return imageSource(classes, {
    notes,
    fingerprint: await parquetFingerprint(opened, classes, idOf),
    blocks: groups,
    ...(haveCaptionColumn(opened) && { hasCaptions: true }),
    idOf,
    locate: async (index) => {
      const group = groupOf(index);
      const { images, captions } = await read(group);
      const bytes = images[index - group.first];
      if (bytes === undefined) {
        throw expected(idOf(index), `an image in column ${group.file.imageColumn}`, "none");
      }
      if (captions === null) return { image: { bytes } };
      const caption = captions[index - group.first];
      if (typeof caption !== "string")
        throw expected(idOf(index), `a caption in column ${group.file.captionColumn}`, "none");
      return { image: { bytes }, caption };
    },
  });
}

async function openFile(path: string, name: string, options: SourceOptions): Promise<ParquetFile> {
  const size = statSync(path, { throwIfNoEntry: false })?.size;
  if (size === undefined) throw expected(path, "a parquet file", "nothing", "Check the path");
  const bytes: AsyncBuffer = {
    byteLength: size,
    // Not async, so that invalid arguments throw at once.
    slice(start, end = size) {
      const isInside = start >= 0 && start <= end && end <= size;
      if (!(isInside && Number.isSafeInteger(start) && Number.isSafeInteger(end))) {
        throw expected(path, `a range of its ${size} bytes`, `${start} to ${end}`, DAMAGED);
      }
      const part = readPart({ path, offset: start, length: end - start }).then(
        ({ buffer, byteOffset, length }) => buffer.slice(byteOffset, byteOffset + length) as ArrayBuffer,
      );
      return answered(part);
    },
  };
  const footer = `${path}, its footer`;
  const { metadata, columns } = await guarded(footer, async () => {
    if (size >= 4 && Buffer.from(await bytes.slice(size - 4)).toString("latin1") === "PARE")
      throw expected(footer, "one that is not encrypted", "an encrypted one", DECRYPT);
    const found = await parquetMetadataAsync(bytes);
    return { metadata: found, columns: parquetSchema(found).children };
  });
  const imageColumn = findImage(path, columns, options.image);
  const labelColumn = findLabel(path, columns, options.label);
  const captionColumn = findCaptions(path, columns, labelColumn, options.captions);
  const names = columns.map((column) => column.element.name);
  for (const column of [imageColumn, labelColumn, captionColumn]) {
    if (names.indexOf(column ?? "") === names.lastIndexOf(column ?? "")) continue;
    const remedy = "Write the file with another name for one of them";
    throw expected(path, `one column ${column}`, `two, of ${listColumns(columns)}`, remedy);
  }
  await guarded(path, async () => {
    const secret = [imageColumn, labelColumn, captionColumn].find((one) => isEncrypted(metadata, one));
    if (secret != null)
      throw expected(path, "columns that are not encrypted", `${secret}, which is`, DECRYPT);
  });
  const otherImages = options.image === undefined ? imageColumns(columns) : [];
  return {
    ...{ path, name, bytes, metadata, imageColumn, labelColumn, captionColumn },
    otherImages: otherImages.filter((column) => column !== imageColumn),
  };
}

const DECRYPT = "Decrypt the file: read it with its keys and write it without";

/** Whether a column is encrypted. The footer can be read all the same. */
const isEncrypted = ({ row_groups }: FileMetaData, column: string | null): boolean =>
  row_groups.some(({ columns }) =>
    columns.some(
      ({ meta_data, crypto_metadata }) =>
        meta_data?.path_in_schema[0] === column && crypto_metadata !== undefined,
    ),
  );

/**
 * A promise whose failure counts as handled, like that of the promises derived from it. hyparquet requests several parts
 * of a file at once and stops at the first error; an unhandled failure of another part would end the process.
 */
function answered<T>(promise: Promise<T>): Promise<T> {
  promise.catch(() => {});
  const own: Promise<T>["then"] = (...handlers) =>
    answered(Promise.prototype.then.apply(promise, handlers as never)) as never;
  // biome-ignore lint/suspicious/noThenProperty: it is a promise's own, with an answer for what comes of it
  return Object.assign(promise, { then: own });
}

const DAMAGED = "The file is damaged, cut short or no parquet file";

const REWRITE = "Write the file again with the default encodings; if it is damaged, fetch it again";

/** Call the library, and name the file if it fails. */
async function guarded<T>(where: string, run: () => Promise<T>): Promise<T> {
  try {
    return await run();
  } catch (error) {
    const { message } = error as Error;
    // Our own error has a clearer message than the library's.
    if (message.startsWith(where)) throw error;
    const [, encoding] = /unsupported (?:encoding|compression codec): ([A-Z0-9_]+)$/.exec(message) ?? [];
    if (encoding !== undefined) throw expected(where, "an encoding that can be read", encoding, REWRITE);
    // Where the library trips over what it read, its words are about its own code.
    const isOfCode = error instanceof TypeError || /DataView|Array|call stack/.test(message);
    const got = isOfCode ? "bytes that do not fit together" : message.replace(/\.$/, "");
    throw expected(where, "sound parquet data", got, DAMAGED);
  }
}

/** Rows of one column of a row group. */
async function readColumn(
  { file: { path, bytes, metadata }, number, start, length }: RowGroup,
  column: string,
  options: { readonly utf8?: boolean } = {},
): Promise<unknown[]> {
  const where = `${path}, row group ${number}, column ${column}`;
  const compressors = await limitedCompressors();
  return await guarded(where, async () => {
    const rows = await parquetReadObjects({
      file: bytes,
      metadata,
      columns: [column],
      rowStart: start,
      rowEnd: start + length,
      compressors,
      ...options,
    });
    if (rows.length !== length) throw expected(where, `${length} rows`, rows.length, DAMAGED);
    return rows.map((row) => row[column] as unknown);
  });
}

/** Most bytes that a page may unpack to. */
const PAGE_BYTES = 2 ** 30;

/**
 * hyparquet's own, with a limit: the size comes from the file and is allocated before anything is unpacked. Loaded where a
 * parquet file is read: one of them reserves 10 GB of address space, which batch systems may not grant.
 */
async function limitedCompressors(): Promise<Compressors> {
  const { compressors } = await import("hyparquet-compressors");
  return Object.fromEntries(
    Object.entries(compressors).map(([codec, unpack]) => [
      codec,
      (input: Uint8Array, length: number) => {
        if (!(length >= 0 && length <= PAGE_BYTES)) throw new Error(`a page of ${length} bytes`);
        return unpack(input, length);
      },
    ]),
  );
}

const isList = ({ element }: Column): boolean =>
  element.repetition_type === "REPEATED" ||
  /^(LIST|MAP)$/.test(element.converted_type ?? element.logical_type?.type ?? "");

const isBytes = ({ element, children }: Column): boolean =>
  children.length === 0 &&
  element.type === "BYTE_ARRAY" &&
  element.converted_type === undefined &&
  element.logical_type === undefined;

/** Records whose field `bytes` is a list. */
const hasListOfBytes = ({ children }: Column): boolean =>
  children.some((child) => child.element.name === "bytes" && isList(child));

/** The leaf with the images' bytes, as its path below the column; undefined for a column of something else. */
function imageLeaf(column: Column): readonly string[] | undefined {
  if (isList(column)) return undefined;
  if (isBytes(column)) return [];
  const field = column.children.find((child) => child.element.name === "bytes");
  return field !== undefined && isBytes(field) && !isList(field) ? ["bytes"] : undefined;
}

const imageColumns = (columns: readonly Column[]): string[] =>
  columns.filter((column) => imageLeaf(column) !== undefined).map((column) => column.element.name);

function findImage(path: string, columns: readonly Column[], name: string | undefined): string {
  const usable = columns.filter((column) => imageLeaf(column) !== undefined);
  const called = (wanted: string): Column | undefined =>
    usable.find((column) => column.element.name === wanted);
  const found = name === undefined ? (called("image") ?? called("img") ?? usable[0]) : called(name);
  if (found !== undefined) return found.element.name;
  const what =
    name === undefined ? "a column of images, bytes or records with bytes" : `images in column ${name}`;
  throw expected(path, what, listColumns(columns), remedyFor(columns, usable, name));
}

/** What to do about a file without images, or without those that were asked for. */
function remedyFor(columns: readonly Column[], usable: readonly Column[], name: string | undefined): string {
  const asked = columns.filter((column) => name === undefined || column.element.name === name);
  const names = usable.map((column) => column.element.name).join(" or ");
  const other = names === "" ? "" : `. Or name ${names} with data.image`;
  if (asked.some(isList) || asked.some(hasListOfBytes))
    return `A row has one image: write the images of a list as rows of their own${other}`;
  if (asked.some(({ children }) => children.some(({ element }) => element.name === "path"))) {
    return `The images themselves are not in the file, only their paths: give the folder that they are in${other}`;
  }
  return names === "" ? "Write the encoded images as a column of bytes" : `Name ${names} with data.image`;
}

function findLabel(path: string, columns: readonly Column[], name: string | null | undefined): string | null {
  if (name === null) return null;
  const names = columns.map((column) => column.element.name);
  const found = name === undefined ? LABEL_COLUMNS.find((one) => names.includes(one)) : name;
  const column = columns.find(({ element }) => element.name === found);
  if (found === undefined || column === undefined) {
    const what = `a column ${name ?? LABEL_COLUMNS.join(", ")} with the class`;
    throw expected(path, what, listColumns(columns), `Name the right one with data.label. ${LABEL_REMEDY}`);
  }
  if (isList(column) || column.children.length > 0) {
    throw expected(path, `one class per row in column ${found}`, columnType(column), LABEL_REMEDY);
  }
  return found;
}

/** A column of text. */
const isText = ({ element, children }: Column): boolean =>
  children.length === 0 && (element.converted_type === "UTF8" || element.logical_type?.type === "STRING");

function findCaptions(
  path: string,
  columns: readonly Column[],
  labelColumn: string | null,
  name: string | null | undefined,
): string | null {
  if (name === null) return null;
  const usable = columns
    .filter((column) => isText(column) && !isList(column))
    .map(({ element }) => element.name);
  if (name === undefined) {
    return CAPTION_COLUMNS.find((one) => one !== labelColumn && usable.includes(one)) ?? null;
  }
  if (usable.includes(name)) return name;
  const remedy = usable.length === 0 ? "" : `Name ${usable.join(" or ")} with data.captions. `;
  throw expected(
    path,
    `captions, text, in column ${name}`,
    listColumns(columns),
    `${remedy}${CAPTION_REMEDY}`,
  );
}

/** Whether files have captions. @throws RangeError where only some do. */
function haveCaptionColumn(files: readonly ParquetFile[]): boolean {
  const without = files.find(({ captionColumn }) => captionColumn === null);
  if (without === undefined) return true;
  const other = files.find(({ captionColumn }) => captionColumn !== null);
  if (other === undefined) return false;
  const what = `a column of captions, as ${other.path} has (${other.captionColumn})`;
  throw expected(without.path, what, "none", CAPTION_REMEDY);
}

function columnType(column: Column): string {
  if (isList(column)) return "a list";
  const { element, children } = column;
  if (children.length > 0) return `records of ${children.map((child) => child.element.name).join(" and ")}`;
  return (element.logical_type?.type ?? element.type ?? "unknown").toLowerCase();
}

const listColumns = (columns: readonly Column[]): string =>
  columns.map((column) => `${column.element.name} (${columnType(column)})`).join(", ");

async function parquetClasses(
  where: string,
  files: readonly ParquetFile[],
  groups: readonly RowGroup[],
  { classNames }: SourceOptions,
): Promise<Classes> {
  const [{ labelColumn }] = files as [ParquetFile];
  if (labelColumn === null) {
    const last = groups.at(-1) as RowGroup;
    return oneClass(last.first + last.length, classNames?.[0]);
  }
  const labels: unknown[] = [];
  for (const group of groups) {
    // Where classes are given, those of the file are known by their names: its ids may be others.
    const own = classNames === undefined ? undefined : publishedNames(group.file);
    const byId = own?.some((name) => classNames?.includes(name)) ? own : [];
    // One by one: an argument list has a limit.
    for (const label of await readColumn(group, group.file.labelColumn as string)) {
      const value = typeof label === "bigint" ? Number(label) : label;
      labels.push(byId[value as number] ?? value);
    }
  }
  const rowOf = (index: number): string => {
    const group = groups.findLast(({ first }) => first <= index) as RowGroup;
    return `${group.file.path}, row ${group.start + index - group.first}, column ${group.file.labelColumn}`;
  };
  for (const [i, label] of labels.entries()) if (typeof label === "string") requireText(rowOf(i), label);
  const names = classNames ?? commonNames(files);
  return numberClasses(where, labels, { names, rowOf });
}

/** The names of classes in the files; of files without them nothing is asked. @throws RangeError where they differ. */
function commonNames(files: readonly ParquetFile[]): string[] | undefined {
  const remedy = "Give all classes in the order of their ids with data.classNames";
  let [longest, from]: [string[] | undefined, string] = [undefined, ""];
  for (const file of files) {
    const names = publishedNames(file);
    if (names === undefined) continue;
    requireEachOnce(`${file.path}, classes of column ${file.labelColumn}`, names, remedy);
    const id = names.findIndex((name, i) => name !== (longest?.[i] ?? name));
    if (id >= 0) {
      const got = `${names[id]}, which is ${longest?.[id]} in ${from}`;
      throw expected(file.path, `the same class ${id} as in other files`, got, remedy);
    }
    if (names.length > (longest?.length ?? 0)) [longest, from] = [names, file.path];
  }
  return longest;
}

/** Names that Hugging Face's own description of the columns gives the label's values. */
function publishedNames({ metadata, labelColumn }: ParquetFile): string[] | undefined {
  const text = metadata.key_value_metadata?.find(({ key }) => key === "huggingface")?.value;
  if (text === undefined || labelColumn === null) return undefined;
  try {
    const names: unknown = JSON.parse(text).info?.features?.[labelColumn]?.names;
    const areNames = Array.isArray(names) && names.every((name) => typeof name === "string");
    return areNames && names.length > 0 ? names : undefined;
  } catch {
    // Metadata of another program: the set can be read without it.
    return undefined;
  }
}

/** The part of a row group that holds one leaf of a column. */
function columnChunk(file: ParquetFile, number: number, column: string, leaf?: string) {
  const found = file.metadata.row_groups[number]?.columns.find(({ meta_data }) => {
    const [name, field] = meta_data?.path_in_schema ?? [];
    return name === column && (leaf === undefined || field === undefined || field === leaf);
  })?.meta_data;
  if (found !== undefined) return found;
  const where = `${file.path}, row group ${number}, column ${column}`;
  throw expected(where, "sound parquet data", "none", DAMAGED);
}

async function groupsOf(files: readonly ParquetFile[]): Promise<RowGroup[]> {
  const groups: RowGroup[] = [];
  let first = 0;
  for (const file of files) {
    await guarded(file.path, async () => {
      let start = 0;
      for (const [number, { num_rows, columns }] of file.metadata.row_groups.entries()) {
        const length = Number(num_rows);
        const image = columnChunk(file, number, file.imageColumn, "bytes");
        // Every row takes a byte at least: a damaged number must not make a list of billions.
        const isSound = length >= 0 && start + length <= file.bytes.byteLength;
        if (!isSound || Number(image.num_values) !== length) {
          const where = `${file.path}, row group ${number}, column ${file.imageColumn}`;
          const got = `${image.num_values} values for ${num_rows} rows in ${file.bytes.byteLength} bytes`;
          throw expected(where, "a value per row", got, DAMAGED);
        }
        const bytes = columns
          .filter(({ meta_data }) => meta_data?.path_in_schema[0] === file.imageColumn)
          .reduce((sum, { meta_data }) => sum + Number(meta_data?.total_uncompressed_size ?? 0), 0);
        if (length > 0) groups.push({ file, number, start, first, length, bytes });
        start += length;
        first += length;
      }
    });
  }
  return groups;
}

/** What the files' footers say of rows without an image. @throws RangeError where no row has one. */
async function parquetNotes(files: readonly ParquetFile[], groups: readonly RowGroup[]): Promise<string[]> {
  const notes: string[] = [];
  const [{ otherImages, imageColumn, path }] = files as [ParquetFile];
  if (otherImages.length > 0) {
    const others = otherImages.join(", ");
    notes.push(`${path}: images are read from column ${imageColumn}; data.image names another of ${others}`);
  }
  for (const file of files) {
    const own = groups.filter((group) => group.file === file);
    const chunks = own.map(({ number }) => columnChunk(file, number, file.imageColumn, "bytes"));
    const rows = own.reduce((sum, { length }) => sum + length, 0);
    const nulls = chunks.reduce((sum, { statistics }) => sum + Number(statistics?.null_count ?? 0), 0);
    const size = chunks.reduce((sum, chunk) => sum + Number(chunk.total_uncompressed_size), 0);
    // Not every writer counts them. Fewer bytes per row than any image has are a reason to look.
    const isEmpty =
      nulls === rows ||
      (size < 32 * rows && (await readImages(own[0] as RowGroup)).every((one) => one === undefined));
    if (rows > 0 && isEmpty) {
      const remedy =
        "The file may hold the images' paths alone: write it with the images themselves, or give the folder that they are in";
      throw expected(file.path, `images in column ${file.imageColumn}`, `none in its ${rows} rows`, remedy);
    }
    if (nulls > 0)
      notes.push(`${file.path}: ${nulls} of ${rows} rows have no image in column ${file.imageColumn}`);
  }
  return notes;
}

/** Encoded images of a row group; undefined for a row without. */
async function readImages(group: RowGroup): Promise<(Uint8Array | undefined)[]> {
  const values = await readColumn(group, group.file.imageColumn, { utf8: false });
  return values.map((value) => {
    const data: unknown = value instanceof Uint8Array ? value : (value as { bytes?: unknown } | null)?.bytes;
    return data instanceof Uint8Array ? data : undefined;
  });
}

/** Cache the results of `read` for the most recent blocks, up to `limit` bytes besides the current one. */
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

/** A fingerprint of the footers, which hold sizes, checksums and extremes of every column. */
async function parquetFingerprint(
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
