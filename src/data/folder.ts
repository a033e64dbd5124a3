/** A data set in a folder of image files: the first subfolder of an image is its class. */
import { statSync } from "node:fs";
import { join } from "node:path";

import { expected, known, listed, openSafetensors } from "../torch/index.js";
import { captionPlace, haveCaptions } from "./captions.js";
import { type FilePart, IMAGE_FILE, readPart } from "./decode.js";
import { type Classes, LABEL_REMEDY, numberClasses, oneClass } from "./labels.js";
import { checkFeatures, type Features } from "./npy.js";
import { listFiles, listFolders, unreadFiles } from "./paths.js";
import { hashListing, type ImageSource, imageSource, type SourceOptions, spread } from "./source.js";

/** Names of folders that are parts of a data set. */
const SPLIT = /^(?:train|training|val|valid|validation|test|testing)$/i;

const FEATURE_FILE = /\.(npy|safetensors)$/i;

/** Files whose sizes, and those whose contents, go into the fingerprint: all of a small set. */
const SIZED = 16_384;
const READ = 64;

/**
 * Open a folder of images.
 *
 * The class is the first subfolder, numbered in the order of the names, including those without images; images that lie
 * in no subfolder are all of one class. `name.npy`, or `name.safetensors` with a tensor `features`, beside `name.png`
 * holds the features of its text, float `[S, C]`, and `name.txt` its caption.
 *
 * @throws RangeError when there is no image, some lie in subfolders and others do not, or some lack features or a caption
 *   that others have.
 */
export async function openFolder(folder: string, options: SourceOptions = {}): Promise<ImageSource> {
  return await folderOf(folder, await listFiles(folder), options);
}

/** {@link openFolder} with the files listed already. */
export async function folderOf(
  folder: string,
  files: readonly string[],
  options: SourceOptions = {},
): Promise<ImageSource> {
  const ids = files.filter((file) => IMAGE_FILE.test(file));
  if (ids.length === 0) {
    const { counts, remedy } = unreadFiles(files);
    const got = files.length === 0 ? "an empty folder" : `only ${counts}`;
    throw expected(folder, "at least one image file", got, remedy);
  }
  const classes = folderClasses(folder, ids, options);
  const features = featuresOf(folder, ids, files);
  const captions = captionsOf(folder, ids, files, options);
  const read = new Set([...ids, ...(features ?? []), ...(captions?.files ?? [])]);
  const unread = unreadFiles(
    files.filter((file) => !read.has(file)),
    folder,
  );

  const hash = hashListing((i) => ids[i] as string, classes);
  const sizeOf = (file: string): number =>
    statSync(join(folder, file), { throwIfNoEntry: false })?.size ?? -1;
  for (const i of spread(ids.length, SIZED)) hash.update(`${sizeOf(ids[i] as string)}\n`);
  for (const i of spread(ids.length, READ)) {
    for (const file of [ids[i], features?.[i], captions?.files[i]]) {
      // An unreadable file is counted and named when a batch needs it.
      if (file !== undefined) hash.update(await readPart({ path: join(folder, file) }).catch(() => ""));
    }
  }
  return imageSource(classes, {
    notes: unread.notes,
    fingerprint: hash.digest("hex"),
    ...(captions !== undefined && { hasCaptions: true }),
    idOf: (i) => ids[i] as string,
    locate: async (i) => ({
      image: { path: join(folder, ids[i] as string) },
      ...(features !== undefined && { features: locateFeatures(folder, features[i] as string) }),
      ...(captions !== undefined && {
        caption: { path: join(folder, captions.files[i] as string), ...known({ field: captions.field }) },
      }),
    }),
  });
}

function folderClasses(
  folder: string,
  ids: readonly string[],
  { label, classNames }: SourceOptions,
): Classes {
  if (typeof label === "string") {
    throw expected(folder, "no label in a folder of images", label, "Their subfolders are their classes");
  }
  const nested = ids.filter((id) => id.includes("/"));
  if (label === null || nested.length === 0) return oneClass(ids.length, classNames?.[0]);
  if (nested.length < ids.length) {
    const loose = ids.find((id) => !id.includes("/"));
    const what = `${ids.length - nested.length} beside the subfolders, such as ${loose}`;
    throw expected(folder, "every image in a subfolder, its class", what, `Move them. ${LABEL_REMEDY}`);
  }
  const names = ids.map((id) => id.slice(0, id.indexOf("/")));
  const splits = [...new Set(names)];
  if (splits.length > 1 && splits.every((name) => SPLIT.test(name))) {
    const [train, other] = [/^train/i, /^val/i].map((begin) => splits.find((name) => begin.test(name)));
    const first = join(folder, train ?? (splits[0] as string));
    const held = other === undefined ? "" : `, and ${join(folder, other)} as data.evalSource`;
    const remedy = `Give ${first}${held}. ${LABEL_REMEDY}`;
    throw expected(folder, "subfolders that are classes", `${splits.join(" and ")}, parts of a set`, remedy);
  }
  const deep = ids.find((id) => id.split("/").length > 2);
  const deepNote = `${folder}: classes are the first subfolders; ${deep} is of class ${deep?.split("/")[0]}`;
  const notes = deep === undefined ? [] : [deepNote];
  if (classNames !== undefined) {
    const rowOf = (i: number): string => join(folder, ids[i] as string);
    return { ...numberClasses(folder, names, { names: classNames, rowOf }), notes };
  }
  // A folder without images keeps its id, so that those after it keep theirs.
  const folders = listFolders(folder);
  const empty = folders.filter((name) => !names.includes(name));
  const classes = numberClasses(folder, [...names, ...empty]);
  const note = `${folder}: classes without an image keep their ids: ${listed(empty)}`;
  return {
    ...classes,
    ids: classes.ids.subarray(0, ids.length),
    notes: [...notes, ...classes.notes, ...(empty.length === 0 ? [] : [note])],
  };
}

const stem = (file: string): string => file.replace(/\.[^./]*$/, "");

/** The file with the caption of each image, and the field of it; undefined where there are none. */
function captionsOf(
  folder: string,
  ids: readonly string[],
  files: readonly string[],
  { captions: named }: SourceOptions,
): { readonly files: readonly string[]; readonly field: string | undefined } | undefined {
  if (named === null) return undefined;
  const place = captionPlace(named);
  const ending = `.${place.ending}`;
  const byStem = new Map(
    files
      .filter((file) => file.toLowerCase().endsWith(ending))
      .map((file) => [file.slice(0, -ending.length), file] as const),
  );
  const found = ids.map((id) => byStem.get(stem(id)));
  const has = found.map((file) => file !== undefined);
  if (!haveCaptions(folder, has, { named, idOf: (i) => ids[i] as string })) return undefined;
  return { files: found as string[], field: place.field };
}

/** The file of features of each image, or undefined when there are none. */
function featuresOf(folder: string, ids: readonly string[], files: readonly string[]): string[] | undefined {
  const byStem = new Map(files.filter((file) => FEATURE_FILE.test(file)).map((file) => [stem(file), file]));
  const found = ids.map((id) => byStem.get(stem(id)));
  const lacking = found.indexOf(undefined);
  if (lacking < 0) return found as string[];
  const count = found.filter((file) => file !== undefined).length;
  if (count === 0) return undefined;
  const got = `${count} for ${ids.length} images, none for ${ids[lacking]}`;
  throw expected(folder, "text features beside every image or none", got);
}

/** `.npy` files are read by the threads that decode, safetensors here. */
function locateFeatures(folder: string, file: string): Features | FilePart {
  const path = join(folder, file);
  if (/\.npy$/i.test(file)) return { path };
  using opened = openSafetensors(path);
  using tensor = opened.tensor("features");
  using wide = tensor.float();
  return checkFeatures(wide.toArray() as Float32Array, wide.shape, path);
}
