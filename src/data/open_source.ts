/** Open a data set of any format, recognised by its path. The formats are in the other files of this folder. */
import { stat } from "node:fs/promises";
import { join } from "node:path";

import { expected, requirePath } from "../torch/index.js";
import { openCodes } from "./codes.js";
import { IMAGE_FILE } from "./decode.js";
import { folderOf } from "./folder.js";
import { IDX_IMAGES, openIdx } from "./idx.js";
import { openParquet } from "./parquet.js";
import { expandPattern, listFiles, unreadFiles } from "./paths.js";
import type { ImageSource, SourceOptions } from "./source.js";
import { openTar } from "./tar.js";

/** The formats, for messages. */
const ACCEPTED =
  "a folder of images, tar shards (.tar), parquet files, IDX files (images-idx3-ubyte) or codes (.safetensors, .npy)";

const KINDS = {
  tar: /\.tar$/i,
  parquet: /\.parquet$/i,
  idx: IDX_IMAGES,
  images: IMAGE_FILE,
  codes: /\.(npy|safetensors)$/i,
} as const;

/**
 * Open a data set.
 *
 * @param path - a folder, a file, or files named by a pattern such as `shards/train-{0000..0099}.tar` or
 *   `data/train-*.parquet`.
 * @throws RangeError that names what was found and what can be opened.
 */
export async function openSource(path: string, options: SourceOptions = {}): Promise<ImageSource> {
  requirePath("openSource", path);
  const paths = await expandPattern("openSource", path);
  const [first] = paths as [string];
  const info = await stat(first).catch((error: Error) => {
    throw expected("openSource", ACCEPTED, `nothing that can be read at ${first} (${error.message})`);
  });
  if (info.isDirectory()) return await openFolderOf(first, options);
  if (paths.every((file) => KINDS.tar.test(file))) return await openTar(paths, options);
  if (paths.every((file) => KINDS.parquet.test(file))) return await openParquet(paths, options);
  refuseCaptions(first, options);
  if (paths.length === 1 && KINDS.idx.test(first)) return await openIdx(first, options);
  if (paths.length === 1 && /\.safetensors$/i.test(first)) return await openCodes(first, options);
  const got = paths.length === 1 ? first : `${first} and others`;
  throw expected("openSource", ACCEPTED, got, remedyFor(first));
}

function remedyFor(path: string): string | undefined {
  if (/\.(tar\.gz|tgz|tar\.zst|tar\.bz2|tar\.xz)$/i.test(path)) {
    return "Unpack it to a .tar: images are read by position";
  }
  if (/\.zip$/i.test(path)) return "Unpack it to a folder";
  if (IMAGE_FILE.test(path)) return "Give the folder that the image is in";
  return undefined;
}

async function openFolderOf(folder: string, options: SourceOptions): Promise<ImageSource> {
  const files = await listFiles(folder);
  const found = Object.entries(KINDS)
    .map(([kind, name]) => ({ kind, files: files.filter((file) => name.test(file)) }))
    .filter((entry) => entry.files.length > 0);
  // Beside images these are features of their texts.
  const kinds = found.filter(
    ({ kind }) => kind !== "codes" || found.every((other) => other.kind !== "images"),
  );
  const [only, other] = kinds;
  if (only === undefined) {
    const { counts, remedy } = unreadFiles(files);
    throw expected(folder, ACCEPTED, files.length === 0 ? "an empty one" : `only ${counts}`, remedy);
  }
  if (other !== undefined) {
    const got = kinds.map((entry) => `${entry.files.length} of ${entry.kind} (${entry.files[0]})`).join(", ");
    throw expected(folder, "one kind of data", got, "Name the files with a pattern, as in train-*.tar");
  }
  const paths = only.files.map((file) => join(folder, file));
  switch (only.kind) {
    case "tar":
      refuseSplits(folder, only.files);
      return await openTar(paths, options);
    case "parquet":
      refuseSplits(folder, only.files);
      return await openParquet(paths, options);
    case "idx":
      refuseCaptions(folder, options);
      // The test images are published beside those to train on.
      return await openIdx(paths.find((path) => path.includes("train-")) ?? (paths[0] as string), options);
    case "codes":
      refuseCaptions(folder, options);
      if (/\.safetensors$/i.test(paths[0] as string)) {
        if (paths.length === 1) return await openCodes(paths[0] as string, options);
        throw expected(folder, "one .safetensors file of codes", `${paths.length}`, "Name the file");
      }
      return await openCodes(folder, options);
    default:
      return await folderOf(folder, files, options);
  }
}

/** IDX files and files of codes hold none. */
function refuseCaptions(path: string, { captions }: SourceOptions): void {
  if (typeof captions !== "string") return;
  const what = "a folder of images, tar shards or parquet files, as data.captions is set";
  throw expected(path, what, "files without captions", "Remove data.captions");
}

/** Shards for training and those for testing are often published in one folder. */
function refuseSplits(folder: string, files: readonly string[]): void {
  const splits = new Set(
    files.map((file) =>
      /(?:^|[/_-])(train|val|valid|validation|test)(?=[/._-])/i.exec(file)?.[1]?.toLowerCase(),
    ),
  );
  if (splits.size < 2) return;
  const got = [...splits].map((split) => split ?? "others").join(" and ");
  const remedy = `Name them with a pattern, as in ${join(folder, "*train*")}`;
  throw expected(folder, "files of one split", got, remedy);
}
