/**
 * Makes the data set of the demo: emoji in two styles, Google's Noto and Microsoft's Fluent 3D, from two npm packages. A
 * class is a category in one style. `rlar emoji` downloads the packages.
 */
import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { pipeline } from "node:stream/promises";
import { createGunzip } from "node:zlib";

import sharp from "sharp";
import { extract, type Headers, pack } from "tar-stream";

import { replaceFile } from "../torch/files.js";
import { expected } from "../torch/index.js";
import { readPixels } from "./decode.js";
import { resize } from "./resample.js";

/** The packages that the set is made from: versions and contents are fixed, so the set is the same everywhere. */
export const EMOJI_PACKAGES: Readonly<
  Record<"google" | "fluent", { readonly name: string; readonly version: string; readonly sha512: string }>
> = {
  google: {
    name: "emoji-datasource-google",
    version: "16.0.0",
    sha512: "ZRexfzs7MVoLnmzZmNsO4TKhnAJp5D++Vm6PpUpH/jEQQlemp3l88CjZ+DoZ2faM9R4QxZkOPJCoT8DlPhfQ3A==",
  },
  fluent: {
    name: "@lobehub/fluent-emoji-3d",
    version: "1.1.0",
    sha512: "Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g==",
  },
};

/** Categories of the Unicode emoji list, with the first part of a class's name. The category of skin-tone swatches is omitted. */
const CATEGORIES: Readonly<Record<string, string>> = {
  "Smileys & Emotion": "smileys",
  "People & Body": "people",
  "Animals & Nature": "animals",
  "Food & Drink": "food",
  "Travel & Places": "travel",
  Activities: "activities",
  Objects: "objects",
  Symbols: "symbols",
  Flags: "flags",
};

/** The fields that are read of an entry of the list. */
interface Entry {
  readonly unified: string;
  readonly category: string;
  readonly has_img_google: boolean;
  readonly skin_variations?: Readonly<Record<string, Pick<Entry, "unified" | "has_img_google">>>;
}

/** One image to write. */
interface Emoji {
  /** Name in the tar without its ending: `class/design_codepoints_style`. */
  readonly name: string;
  readonly bytes: Buffer;
}

/** What {@link prepareEmoji} wrote. */
export interface EmojiSummary {
  readonly images: number;
  readonly designs: number;
  /** Images of each class, in the order of the names. */
  readonly classes: Readonly<Record<string, number>>;
  /** Of the tar. */
  readonly bytes: number;
}
export interface EmojiOptions {
  /** The packages as npm packs them, `.tgz`. */
  readonly google: string;
  readonly fluent: string;
  /** Width and height in pixels, at most 64, the size of Noto's images. */
  readonly size: number;
  /** The tar to write. */
  readonly out: string;
}

/**
 * Write the emoji as one tar, which `openTar` and `data.source` read.
 *
 * Members are `class/design_codepoints_style.webp`, lossless, on white. A design is everything that shows the same thing, in
 * both styles and all skin tones and genders, so `data.group: "([^/_]+)_[^/]*$"` keeps each on one side of a
 * split. A picture that several emoji share is there once. The same packages give the same bytes.
 *
 * @throws RangeError for another file, or a tar that cannot be written; no incomplete file remains.
 */
export async function prepareEmoji(options: EmojiOptions): Promise<EmojiSummary> {
  const { google, fluent, size, out } = options;
  if (!(Number.isInteger(size) && size >= 8 && size <= 64)) {
    throw expected("prepareEmoji", "a size from 8 to 64 px", size, "Noto's images have 64");
  }
  const noto = await readPackage(google, /^package\/(?:emoji\.json|img\/google\/64\/[^/]+\.png)$/);
  const three = await readPackage(fluent, /^package\/assets\/[^/]+\.webp$/);
  const list = noto.get("package/emoji.json");
  if (list === undefined) {
    throw expected(google, "the package emoji-datasource-google", "one without emoji.json");
  }
  const images = {
    noto: byCodepoints(google, noto, ".png"),
    fluent: byCodepoints(fluent, three, ".webp"),
  };
  const emoji = emojiOf(google, list.toString("utf8"), images);
  const tar = pack();
  const chunks: Buffer[] = [];
  tar.on("data", (chunk: Buffer) => chunks.push(chunk));
  const ended = new Promise<void>((resolve, reject) => tar.once("end", resolve).once("error", reject));
  tar.entry(headerOf("LICENCES.txt"), LICENCES);
  const kept: string[] = [];
  const seen = new Set<string>();
  for (let i = 0; i < emoji.length; i += AT_ONCE) {
    const some = emoji.slice(i, i + AT_ONCE);
    const files = await Promise.all(some.map(async (one) => await shrink(one, size)));
    for (const [k, file] of files.entries()) {
      // Some emoji share a picture, such as the flags of Norway and Svalbard.
      const { name } = some[k] as Emoji;
      const hash = createHash("sha256").update(file).digest("hex");
      if (seen.has(hash)) continue;
      seen.add(hash);
      kept.push(name);
      tar.entry(headerOf(`${name}.webp`), file);
    }
  }
  tar.finalize();
  await ended;
  const bytes = Buffer.concat(chunks);
  replaceFile(out, bytes);
  return summaryOf(kept, bytes.length);
}

/** Images that are decoded side by side. */
const AT_ONCE = 8;

/** Fixed owner and time, so that the same images give the same bytes. */
const headerOf = (name: string): Headers => ({ name, mode: 0o644, mtime: new Date(0) });

/** On white, in the size of the set, without loss. */
async function shrink({ name, bytes }: Emoji, size: number): Promise<Buffer> {
  const whole = await readPixels(bytes, name);
  const { data, width, height } = resize(whole, size, size, "bicubic");
  return await sharp(data, { raw: { width, height, channels: 3 } })
    .webp({ lossless: true, effort: 6 })
    .toBuffer();
}

/** Files of an npm package whose names match. @throws RangeError for what is no gzipped tar. */
async function readPackage(path: string, wanted: RegExp): Promise<Map<string, Buffer>> {
  const files = new Map<string, Buffer>();
  const reader = extract();
  reader.on("entry", (header, stream, next) => {
    stream.once("error", next);
    if (!wanted.test(header.name)) {
      stream.once("end", next).resume();
      return;
    }
    const chunks: Buffer[] = [];
    stream.on("data", (chunk: Buffer) => chunks.push(chunk));
    stream.once("end", () => {
      files.set(header.name, Buffer.concat(chunks));
      next();
    });
  });
  try {
    await pipeline(createReadStream(path), createGunzip(), reader);
  } catch (error) {
    throw expected(path, "a package as npm packs it, .tgz", (error as Error).message);
  }
  return files;
}

/** Images by their codepoints in one spelling: lower case, four digits, hyphens, no variation selector. */
function byCodepoints(path: string, files: ReadonlyMap<string, Buffer>, ending: string): Map<string, Buffer> {
  const found = new Map<string, Buffer>();
  for (const [file, bytes] of files) {
    if (!file.endsWith(ending)) continue;
    const name = file.slice(file.lastIndexOf("/") + 1, -ending.length);
    const codepoints = spell(name);
    // Some are there twice, under two spellings of one name.
    if (!found.has(codepoints) || name === codepoints) found.set(codepoints, bytes);
  }
  if (found.size === 0) throw expected(path, `images ${ending} named by their codepoints`, "none");
  return found;
}

function spell(name: string): string {
  const parts = name.toLowerCase().split(/[-_]/);
  return parts
    .map((part) => part.padStart(4, "0"))
    .filter((part) => part !== "fe0f")
    .join("-");
}

/** Every image that a package has of an emoji in the list, in the order of the names. */
function emojiOf(
  path: string,
  list: string,
  images: Readonly<Record<string, ReadonlyMap<string, Buffer>>>,
): Emoji[] {
  const emoji: Emoji[] = [];
  for (const entry of parseList(path, list)) {
    const category = CATEGORIES[entry.category];
    if (category === undefined) continue;
    const design = designOf(spell(entry.unified));
    for (const { unified } of [entry, ...Object.values(entry.skin_variations ?? {})]) {
      const codepoints = spell(unified);
      for (const [style, set] of Object.entries(images)) {
        const bytes = set.get(codepoints);
        // Fluent draws no countries' flags: those in its package are Noto's, which would be in two classes.
        if (bytes === undefined || (style === "fluent" && category === "flags")) continue;
        emoji.push({ name: `${category}-${style}/${design}_${codepoints}_${style}`, bytes });
      }
    }
  }
  return emoji.sort((a, b) => (a.name < b.name ? -1 : 1));
}

function parseList(path: string, text: string): Entry[] {
  let list: unknown;
  try {
    list = JSON.parse(text);
  } catch (error) {
    throw expected(path, "emoji.json to be JSON", (error as Error).message);
  }
  const isEntry = (entry: unknown): entry is Entry => {
    const { unified, category } = (entry ?? {}) as Partial<Entry>;
    return typeof unified === "string" && typeof category === "string";
  };
  if (Array.isArray(list) && list.every(isEntry)) return list;
  throw expected(path, "emoji.json to be a list of entries with unified and category", "something else");
}

/** Man and woman become the person, an older, younger or royal one likewise, and so do others that look the same. */
const ALIKE: Readonly<Record<string, string>> = {
  "1f468": "1f9d1",
  "1f469": "1f9d1",
  "1f466": "1f9d2",
  "1f467": "1f9d2",
  "1f474": "1f9d3",
  "1f475": "1f9d3",
  "1f478": "1fac5",
  "1f934": "1fac5",
  "1f385": "1f9d1-200d-1f384",
  "1f936": "1f9d1-200d-1f384",
  "1f57a": "1f483",
  "1f930": "1fac4",
  "1fac3": "1fac4",
  "1f46c": "1f46b",
  "1f46d": "1f46b",
  "1f471": "1f9d1",
  "26c4": "2603",
};

/** Couples, which are one emoji without genders and a sequence of two persons with them. */
const PAIRS: Readonly<Record<string, string>> = {
  "1f9d1-200d-2764-200d-1f48b-200d-1f9d1": "1f48f",
  "1f9d1-200d-2764-200d-1f9d1": "1f491",
  "1f9d1-200d-1f91d-200d-1f9d1": "1f46b",
};

/** The design of an emoji: its codepoints without gender, skin tone and direction. */
function designOf(codepoints: string): string {
  const plain = codepoints.replace(/-200d-(?:2640|2642|27a1)/g, "").replace(/-1f3f[b-f]/g, "");
  const alike = plain
    .split("-")
    .map((part) => ALIKE[part] ?? part)
    .join("-");
  return PAIRS[alike] ?? alike;
}

function summaryOf(names: readonly string[], bytes: number): EmojiSummary {
  const classes: Record<string, number> = {};
  const designs = new Set<string>();
  for (const name of names) {
    const [folder = "", file = ""] = name.split("/");
    classes[folder] = (classes[folder] ?? 0) + 1;
    designs.add(file.slice(0, file.indexOf("_")));
  }
  return { images: names.length, designs: designs.size, classes, bytes };
}

/** `LICENCES.txt` of the tar, as the licences require. */
const LICENCES = `Emoji images on a white background, resized.

*_noto.webp
  Noto Emoji v2.048 (https://github.com/googlefonts/noto-emoji), copyright Google LLC,
  Apache License, Version 2.0: https://www.apache.org/licenses/LICENSE-2.0
  Taken from the npm package ${EMOJI_PACKAGES.google.name} ${EMOJI_PACKAGES.google.version}, whose list of emoji names and
  groups the images: copyright (c) 2013 Cal Henderson, MIT licence (below).

*_fluent.webp
  Fluent Emoji (https://github.com/microsoft/fluentui-emoji), copyright (c) Microsoft Corporation, MIT licence (below).
  Taken from the npm package ${EMOJI_PACKAGES.fluent.name} ${EMOJI_PACKAGES.fluent.version}, copyright (c) 2023 LobeHub, MIT
  licence (below).

The MIT licence

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
`;
