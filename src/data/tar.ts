/**
 * WebDataset shards: tar files in which the members of a sample share a name up to its first dot (`0001.jpg`,
 * `0001.cls`, `0001.npy`). They are indexed once by their headers, then read in any order by position.
 */
import { closeSync, fstatSync, openSync, readSync } from "node:fs";

import headers from "tar-stream/headers.js";

import { expected } from "../torch/index.js";
import { type FilePart, IMAGE_FILE, readPart } from "./decode.js";
import { type Classes, numberClasses, oneClass } from "./labels.js";
import { expandPattern, namesOf } from "./paths.js";
import { hashListing, type ImageSource, type SourceOptions, spread } from "./source.js";

interface Member {
  readonly name: string;
  readonly offset: number;
  readonly length: number;
  /** Contents of a member that can be a label: a short one. */
  readonly text?: string;
}

interface TarSample {
  readonly id: string;
  readonly image: FilePart;
  readonly features: FilePart | undefined;
  readonly label: string | undefined;
  /** First folder of its name. */
  readonly folder: string | undefined;
}

const BLOCK = 512;

/** Longest member that is read as a label. */
const LABEL_BYTES = 256;

/** Members whose contents go into the fingerprint. */
const READ = 64;

/**
 * Open tar shards.
 *
 * The class is the number or name in the member `.cls`; without such members it is the first folder of the name, and
 * without folders all are of one class. A member `.npy` holds features of the text, float `[S, C]`.
 *
 * @param paths - one pattern, see `expandPattern`, or the files.
 * @throws RangeError for a compressed or cut file, and when some samples have a label or features and others do not.
 */
export async function openTar(
  paths: string | readonly string[],
  options: SourceOptions = {},
): Promise<ImageSource> {
  const files = typeof paths === "string" ? await expandPattern("openTar", paths) : paths;
  const names = namesOf(files);
  const samples = files.flatMap((file, i) => samplesOf(file, names[i] as string, options));
  const where = files.length === 1 ? (files[0] as string) : `${files[0]} and ${files.length - 1} more`;
  const classes = classesOf(where, samples, options);
  const without = samples.find((sample) => sample.features === undefined);
  if (without !== undefined && samples.some((sample) => sample.features !== undefined)) {
    throw expected(
      where,
      "a member .npy with text features in every sample or none",
      `none in ${without.id}`,
    );
  }

  const idOf = (i: number): string => (samples[i] as TarSample).id;
  const hash = hashListing(idOf, classes);
  for (const { image } of samples) hash.update(`${image.offset} ${image.length}\n`);
  for (const i of spread(samples.length, READ)) {
    const { image, features } = samples[i] as TarSample;
    for (const part of [image, features]) if (part !== undefined) hash.update(await readPart(part));
  }
  return {
    kind: "images",
    length: samples.length,
    classNames: classes.names,
    fingerprint: hash.digest("hex"),
    variants: 1,
    idOf,
    classOf: (i) => classes.ids[i] as number,
    locate: async (i) => {
      const { image, features } = samples[i] as TarSample;
      return features === undefined ? { image } : { image, features };
    },
  };
}

function classesOf(
  where: string,
  samples: readonly TarSample[],
  { label, classNames }: SourceOptions,
): Classes {
  if (label === null) return oneClass(samples.length, classNames?.[0]);
  const unlabelled = samples.filter((sample) => sample.label === undefined);
  if (unlabelled.length === 0) {
    const texts = samples.map((sample) => sample.label as string);
    return numberClasses(
      where,
      texts.every((text) => /^\d+$/.test(text)) ? texts.map(Number) : texts,
      classNames,
    );
  }
  if (label !== undefined || unlabelled.length < samples.length) {
    const got = `none in ${unlabelled.length} of ${samples.length}, such as ${unlabelled[0]?.id}`;
    throw expected(
      where,
      `a member .${label ?? "cls"} in every sample`,
      got,
      "Set label to null for one class",
    );
  }
  const folders = samples.map((sample) => sample.folder);
  if (folders.every((folder) => folder === undefined)) return oneClass(samples.length, classNames?.[0]);
  const loose = folders.indexOf(undefined);
  if (loose >= 0) {
    throw expected(where, "every image in a folder, its class, or none", `none for ${samples[loose]?.id}`);
  }
  return numberClasses(where, folders as string[], classNames);
}

/** The samples of one shard, in the order of their images. */
function samplesOf(path: string, shard: string, { image, label }: SourceOptions): TarSample[] {
  const isImage = (ending: string): boolean =>
    image === undefined ? IMAGE_FILE.test(`.${ending}`) : ending === image;
  const groups = new Map<string, Map<string, Member>>();
  const endings = new Set<string>();
  for (const member of membersOf(path, label ?? "cls")) {
    const [, key = "", ending = ""] = /^((?:.*\/)?[^./][^./]*)\.([^/]+)$/.exec(member.name) ?? [];
    if (key === "") continue; // names that begin with a dot, or have none
    endings.add(ending.toLowerCase());
    const group = groups.get(key) ?? new Map<string, Member>();
    groups.set(key, group);
    if (group.has(ending.toLowerCase())) throw expected(path, `one member ${member.name}`, "two");
    group.set(ending.toLowerCase(), member);
  }
  const samples: TarSample[] = [];
  for (const [key, group] of groups) {
    const images = [...group].filter(([ending]) => isImage(ending)).map(([, member]) => member);
    const [first, second] = images;
    if (first === undefined) continue;
    if (second !== undefined) {
      const got = `${first.name} and ${second.name}`;
      throw expected(
        path,
        "one image for each name up to its first dot",
        got,
        "Choose its ending with image",
      );
    }
    const partOf = ({ offset, length }: Member): FilePart => ({ path, offset, length });
    const features = group.get("npy");
    samples.push({
      id: `${shard}/${first.name}`,
      folder: key.includes("/") ? key.slice(0, key.indexOf("/")) : undefined,
      image: partOf(first),
      features: features === undefined ? undefined : partOf(features),
      label: group.get(label ?? "cls")?.text,
    });
  }
  if (samples.length === 0) {
    const what = image === undefined ? "at least one image" : `at least one member .${image}`;
    throw expected(path, what, endings.size === 0 ? "no file" : `only .${[...endings].sort().join(", .")}`);
  }
  return samples;
}

/**
 * The files in a tar. Reading its headers alone leaves out nearly all of its bytes, which tar-stream's own extraction
 * would go through.
 */
function* membersOf(path: string, labelEnding: string): Generator<Member> {
  let fd: number;
  try {
    fd = openSync(path, "r");
  } catch (error) {
    throw expected(path, "a tar file that can be read", (error as Error).message);
  }
  try {
    const { size } = fstatSync(fd);
    // Short members and the header after them mostly lie in one piece.
    const piece = Buffer.alloc(8 * BLOCK);
    let pieceStart = 0;
    let pieceEnd = 0;
    const read = (at: number, length: number): Buffer => {
      if (at + length > size) {
        throw expected(
          path,
          `${length} bytes at byte ${at}`,
          `a file of ${size} bytes`,
          "It was cut short: copy it again",
        );
      }
      if (length > piece.length) {
        const bytes = Buffer.alloc(length);
        readSync(fd, bytes, 0, length, at);
        return bytes;
      }
      if (at < pieceStart || at + length > pieceEnd) {
        pieceStart = at;
        pieceEnd = at + readSync(fd, piece, 0, piece.length, at);
      }
      return piece.subarray(at - pieceStart, at - pieceStart + length);
    };

    const start = read(0, Math.min(size, 2));
    if (start[0] === 0x1f && start[1] === 0x8b) {
      throw expected(
        path,
        "a tar file",
        "a compressed one",
        "Unpack it with gunzip: images are read by position",
      );
    }
    let longName: string | undefined;
    let pax: Record<string, string> = {};
    let hasEnd = false;
    for (let at = 0; at < size; ) {
      const header = decodeHeader(path, read(at, BLOCK), at);
      at += BLOCK;
      // Zeros end an archive; another may follow, where shards were joined by cat.
      hasEnd = header === null;
      if (header === null) continue;
      const isAttribute = header.type?.startsWith("pax-") || header.type?.startsWith("gnu-");
      const length = isAttribute ? header.size : Number(pax.size ?? header.size);
      const next = at + Math.ceil(length / BLOCK) * BLOCK;
      if (isAttribute) {
        if (length > MAX_ATTRIBUTE_BYTES)
          throw expected(path, "a sound tar", `a name of ${length} bytes at byte ${at}`);
        const data = read(at, length);
        if (header.type === "pax-header") pax = headers.decodePax(data);
        else if (header.type === "gnu-long-path") longName = headers.decodeLongPath(data);
      } else {
        const name = (pax.path ?? longName ?? header.name).replace(/^(\.\/)+/, "");
        pax = {};
        longName = undefined;
        if (header.type === "file" || header.type === "contiguous-file") {
          if (at + length > size) {
            throw expected(
              path,
              `${length} bytes of ${name}`,
              `${size - at}`,
              "The tar was cut short: copy it again",
            );
          }
          const isLabel = name.toLowerCase().endsWith(`.${labelEnding}`) && length <= LABEL_BYTES;
          const text = isLabel ? read(at, length).toString("utf8").trim() : undefined;
          yield { name, offset: at, length, ...(text !== undefined && { text }) };
        } else if (header.type !== "directory") {
          const what = `${name}, a ${header.type ?? "member of unknown kind"}`;
          throw expected(path, "files and folders alone", what, "Write the tar with tar --dereference");
        }
      }
      at = next;
    }
    if (!hasEnd) throw expected(path, "the zeros that end a tar", "none", "It was cut short: copy it again");
  } finally {
    closeSync(fd);
  }
}

/** Longest list of attributes or long name of a member. */
const MAX_ATTRIBUTE_BYTES = 2 ** 20;

function decodeHeader(path: string, block: Buffer, at: number): ReturnType<typeof headers.decode> {
  try {
    return headers.decode(block);
  } catch {
    throw expected(path, "a tar file", `no header at byte ${at}`, "It is damaged or not a tar");
  }
}
