/** Listing the files of a data set, and expanding patterns of shard names. */
import { readdirSync, statSync } from "node:fs";
import { readdir, realpath, stat } from "node:fs/promises";
import { basename, dirname, join, relative, resolve, sep } from "node:path";

import { expected } from "../torch/index.js";

/**
 * Hidden names, and folders that systems and programs make: macOS in a zip, disks of Synology, Windows, Linux's ext, Python. A
 * folder is a class, so these would shift ids.
 */
const SKIPPED =
  /^(?:\.|(?:__MACOSX|@eaDir|#recycle|\$RECYCLE\.BIN|System Volume Information|lost\+found|__pycache__)$)/;

/** Whether a file or folder of this name, without its path, is no part of a data set. */
export const isSkipped = (name: string): boolean => SKIPPED.test(name);

/**
 * Files below a folder, however deep, as paths below it with forward slashes, sorted by their characters. Links are
 * followed. Names that begin with a dot are skipped, and what other systems put beside files.
 *
 * @throws RangeError when the folder, or one below it, cannot be read.
 */
export async function listFiles(folder: string): Promise<string[]> {
  const files: string[] = [];
  const visit = async (below: string, above: readonly string[]): Promise<void> => {
    const path = join(folder, below);
    const real = await realpath(path);
    if (above.includes(real))
      throw expected(path, "a folder", "a link to a folder around it", "Remove the link");
    for (const entry of await readdir(path, { withFileTypes: true })) {
      if (isSkipped(entry.name)) continue;
      const name = below === "" ? entry.name : `${below}/${entry.name}`;
      // A link that leads nowhere is listed, so that it is counted among the unreadable.
      const info = entry.isSymbolicLink() ? await stat(join(folder, name)).catch(() => undefined) : entry;
      if (info?.isDirectory()) await visit(name, [...above, real]);
      else files.push(name);
    }
  };
  try {
    await visit("", []);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).syscall === undefined) throw error;
    throw expected(folder, "a folder that can be read", (error as Error).message);
  }
  return files.sort();
}

/** Folders directly in a folder, sorted; the same names are skipped, links are followed. */
export function listFolders(folder: string): string[] {
  return readdirSync(folder)
    .filter((name) => !isSkipped(name))
    .filter((name) => statSync(join(folder, name), { throwIfNoEntry: false })?.isDirectory())
    .sort();
}

/**
 * The files that a path or pattern names. In its last part `{0000..0099}` stands for every number between, all of which
 * must exist, and `*` for any characters.
 *
 * @throws RangeError when no file matches, or one of a range is missing.
 */
export async function expandPattern(where: string, pattern: string): Promise<string[]> {
  const name = basename(pattern);
  if (!/[*{]/.test(name) || (await stat(pattern).catch(() => undefined)) !== undefined) return [pattern];
  const folder = dirname(pattern);
  const present = await readdir(folder).catch((error: Error) => {
    throw expected(where, `a folder ${folder} that can be read`, error.message);
  });
  const found = expandRanges(where, name).flatMap((one) => {
    const test = new RegExp(`^${one.split("*").map(escapeRegExp).join(".*")}$`);
    const hits = present.filter((file) => test.test(file) && !file.startsWith("."));
    if (hits.length === 0) throw expected(where, `a file ${join(folder, one)}`, "none", "Check the pattern");
    return hits.sort();
  });
  return [...new Set(found)].map((file) => join(folder, file));
}

/** Most files of a pattern's range. */
const MAX_FILES = 1_000_000;

/** `a{08..10}b` becomes `a08b`, `a09b`, `a10b`. */
function expandRanges(where: string, name: string): string[] {
  const match = /^(.*?)\{(\d+)\.\.(\d+)\}(.*)$/.exec(name);
  if (match === null) return [name];
  const [, head = "", first = "", last = "", tail = ""] = match;
  const rests = expandRanges(where, tail);
  const count = Number(last) - Number(first) + 1;
  if (!(count >= 1 && count * rests.length <= MAX_FILES)) {
    const got = `${first}..${last}`;
    throw expected(where, `a range that rises, of at most ${MAX_FILES} files`, got, "Check the pattern");
  }
  const numbers = Array.from({ length: count }, (_, i) =>
    String(Number(first) + i).padStart(first.length, "0"),
  );
  return numbers.flatMap((number) => rests.map((rest) => `${head}${number}${rest}`));
}

const escapeRegExp = (text: string): string => text.replace(/[.+?^${}()|[\]\\]/g, "\\$&");

/** Names of files below the folder that they have in common, so that identities do not depend on where it lies. */
export function namesOf(paths: readonly string[]): string[] {
  const whole = paths.map((path) => resolve(path));
  let common = dirname(whole[0] ?? sep);
  while (!whole.every((path) => path.startsWith(common.endsWith(sep) ? common : common + sep)))
    common = dirname(common);
  return whole.map((path) => relative(common, path).split(sep).join("/"));
}

/** Endings of images that cannot be decoded here. */
const OTHER_IMAGE = /\.(bmp|dib|p[bgnp]m|pfm|tga|ico|hei[cf]|jp2|j2k|jxl|psd|exr|hdr|dng|cr2|nef|arw|raw)$/i;

/** Endings that {@link unreadFiles} names. */
const NAMED = 8;

/**
 * Messages about files that are not read.
 *
 * @param where - the set that they are in.
 */
export function unreadFiles(
  files: readonly string[],
  where = "",
): { readonly counts: string; readonly remedy: string | undefined; readonly notes: readonly string[] } {
  const endings = new Map<string, number>();
  for (const file of files) {
    const ending = /(?<=[^/])\.[^./]*$/.exec(file)?.[0].toLowerCase() ?? "without an ending";
    endings.set(ending, (endings.get(ending) ?? 0) + 1);
  }
  const most = [...endings].sort(([a, m], [b, n]) => n - m || (a < b ? -1 : 1));
  const more = most.length > NAMED ? `, and ${most.length - NAMED} other endings` : "";
  const counts = `${most
    .slice(0, NAMED)
    .map(([ending, count]) => `${ending} (${count})`)
    .join(", ")}${more}`;
  const image = files.find((file) => OTHER_IMAGE.test(file));
  const remedy =
    image === undefined ? undefined : `Images such as ${image} are not read: convert them to PNG or JPEG`;
  if (files.length === 0) return { counts, remedy, notes: [] };
  return {
    counts,
    remedy,
    notes: [`${where}: files that are not read: ${counts}${remedy ? `. ${remedy}` : ""}`],
  };
}
