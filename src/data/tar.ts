/**
 * WebDataset shards: tar files in which the members of a sample share a name up to its first dot (`0001.jpg`,
 * `0001.cls`, `0001.npy`). They are indexed once by their headers (`tar_members.ts`), then read in any order by position.
 */
import { expected, known, listed } from "../torch/index.js";
import { type Caption, type CaptionPlace, captionPlace, haveCaptions } from "./captions.js";
import { type FilePart, IMAGE_FILE, readPart } from "./decode.js";
import { type Classes, LABEL_REMEDY, numberClasses, oneClass, requireText } from "./labels.js";
import { expandPattern, isSkipped, namesOf, unreadFiles } from "./paths.js";
import { hashListing, type ImageSource, imageSource, type SourceOptions, spread } from "./source.js";
import { type Member, membersOf } from "./tar_members.js";

interface TarSample {
  readonly id: string;
  readonly image: FilePart;
  readonly features: FilePart | undefined;
  readonly caption: Exclude<Caption, string> | undefined;
  readonly label: string | undefined;
  /** First folder of its name. */
  readonly folder: string | undefined;
}

/** The content of one shard, or of all. */
interface Shard {
  readonly samples: TarSample[];
  readonly notes: string[];
}

/** Members whose contents go into the fingerprint. */
const READ = 64;

/**
 * Open tar shards.
 *
 * The class is the number or name in the member `.cls`; without such members it is the first folder of the name, and
 * without folders all are of one class. A member `.npy` holds features of the text, float `[S, C]`, and `.txt` the caption.
 *
 * @param paths - one pattern, see `expandPattern`, or the files.
 * @throws RangeError for a compressed or cut file, for a label or features that belong to no image by WebDataset's
 *   rule, and when some samples have a label, features or a caption and others do not.
 */
export async function openTar(
  paths: string | readonly string[],
  options: SourceOptions = {},
): Promise<ImageSource> {
  const files = typeof paths === "string" ? await expandPattern("openTar", paths) : paths;
  const names = namesOf(files);
  const shards = files.map((file, i) => shardOf(file, names[i] as string, options));
  const samples = shards.flatMap((shard) => shard.samples);
  const where = listed(files, 1);
  const classes = tarClasses(where, samples, options);
  const without = samples.find((sample) => sample.features === undefined);
  if (without !== undefined && samples.some((sample) => sample.features !== undefined)) {
    const what = "a member .npy with text features in every sample or none";
    throw expected(where, what, `none in ${without.id}`);
  }

  const idOf = (i: number): string => (samples[i] as TarSample).id;
  const has = samples.map(({ caption }) => caption !== undefined);
  const hasCaptions = haveCaptions(where, has, { named: options.captions, idOf });
  const hash = hashListing(idOf, classes);
  for (const { image } of samples) hash.update(`${image.offset} ${image.length}\n`);
  for (const i of spread(samples.length, READ)) {
    const { image, features, caption } = samples[i] as TarSample;
    for (const part of [image, features, caption]) if (part !== undefined) hash.update(await readPart(part));
  }
  return imageSource(classes, {
    notes: shards.flatMap((shard) => shard.notes),
    fingerprint: hash.digest("hex"),
    ...(hasCaptions && { hasCaptions }),
    idOf,
    locate: async (i) => {
      const { image, features, caption } = samples[i] as TarSample;
      return { image, ...known({ features, caption }) };
    },
  });
}

function tarClasses(
  where: string,
  samples: readonly TarSample[],
  { label, classNames }: SourceOptions,
): Classes {
  if (label === null) return oneClass(samples.length, classNames?.[0]);
  const nameOf = (i: number): string => samples[i]?.id ?? where;
  const unlabelled = samples.filter((sample) => sample.label === undefined);
  if (unlabelled.length === 0) {
    const texts = samples.map((sample) => sample.label as string);
    const areNumbers = texts.every((text) => /^[+-]?\d+(\.\d*)?$/.test(text));
    return numberClasses(where, areNumbers ? texts.map(Number) : texts, {
      names: classNames,
      rowOf: (i) => `${nameOf(i)}, member .${label ?? "cls"}`,
    });
  }
  if (label !== undefined || unlabelled.length < samples.length) {
    const got = `none in ${unlabelled.length} of ${samples.length}, such as ${unlabelled[0]?.id}`;
    throw expected(where, `a member .${label ?? "cls"} in every sample`, got, LABEL_REMEDY);
  }
  const folders = samples.map((sample) => sample.folder);
  if (folders.every((folder) => folder === undefined)) return oneClass(samples.length, classNames?.[0]);
  const loose = folders.indexOf(undefined);
  if (loose >= 0) {
    throw expected(where, "every image in a folder, its class, or none", `none for ${samples[loose]?.id}`);
  }
  return numberClasses(where, folders as string[], { names: classNames, rowOf: nameOf });
}

/** Where captions are; undefined where none are read, also where the usual members hold the labels. */
function captionsIn({ captions, label: named }: SourceOptions, label: string): CaptionPlace | undefined {
  if (captions === null) return undefined;
  const place = captionPlace(captions);
  return captions === undefined && named != null && place.ending === label ? undefined : place;
}

/** How WebDataset pairs members, for messages. */
const RULE = "A sample's members share their name up to its first dot";

/** The samples of one shard, in the order of their images. */
function shardOf(path: string, shard: string, options: SourceOptions): Shard {
  const label = options.label?.toLowerCase() ?? "cls";
  const image = options.image?.toLowerCase();
  const captions = captionsIn(options, label);
  const isImage = (ending: string): boolean =>
    image === undefined ? IMAGE_FILE.test(`.${ending}`) : ending === image;
  const groups = new Map<string, Map<string, Member>>();
  const members = membersOf(path, `.${label}`);
  for (const member of members.list) {
    const [, key = "", ending = ""] = /^((?:.*\/)?[^./][^./]*)\.([^/]+)$/.exec(member.key) ?? [];
    if (key === "") continue; // names that begin with a dot, or have none
    if (key.split("/").some(isSkipped)) continue; // as in folders
    const group = groups.get(key) ?? new Map<string, Member>();
    groups.set(key, group);
    if (group.has(ending.toLowerCase())) throw expected(path, `one member ${member.name}`, "two");
    group.set(ending.toLowerCase(), member);
  }
  const samples: TarSample[] = [];
  const unread: string[] = [];
  for (const [key, group] of groups) {
    const images = [...group].filter(([ending]) => isImage(ending)).map(([, member]) => member);
    const [first, second] = images;
    if (second !== undefined && first !== undefined) {
      const got = `${first.name} and ${second.name}`;
      const remedy = `${RULE}. Choose an ending with image, or take the dots out of the names`;
      throw expected(path, "one image for each name up to its first dot", got, remedy);
    }
    const [labelled, features] = [group.get(label), group.get("npy")];
    const caption = captions && group.get(captions.ending);
    for (const [ending, member] of group) {
      const isPart = member === labelled || member === features || member === caption;
      if (member === first || (first !== undefined && isPart)) continue;
      refusePart(path, ending, member, first, options.label === null ? ["npy"] : [label, "npy"]);
      unread.push(member.name);
    }
    if (first === undefined) continue;
    const partOf = ({ offset, length }: Member): FilePart => ({ path, offset, length });
    samples.push({
      id: `${shard}/${first.name}`,
      folder: key.includes("/") ? first.name.slice(0, first.name.indexOf("/")) : undefined,
      image: partOf(first),
      features: features === undefined ? undefined : partOf(features),
      caption:
        caption === undefined ? undefined : { ...partOf(caption), ...known({ field: captions?.field }) },
      label: options.label === null || labelled === undefined ? undefined : labelOf(path, labelled),
    });
  }
  if (samples.length === 0) {
    const what = image === undefined ? "at least one image" : `at least one member .${image}`;
    const { counts, remedy } = unreadFiles(unread);
    throw expected(path, what, unread.length === 0 ? "no file" : `only ${counts}`, remedy);
  }
  const stray = unread.find((name) => name.toLowerCase().endsWith(`.${label}`));
  if (options.label !== null && stray !== undefined && samples.every((one) => one.label === undefined)) {
    throw expected(path, `an image for the label in ${stray}`, "none", `${RULE}. ${LABEL_REMEDY}`);
  }
  return { samples, notes: [...members.notes, ...unreadFiles(unread, path).notes] };
}

/** @throws RangeError for a label or features that no image of their name goes with. */
function refusePart(
  path: string,
  ending: string,
  { name }: Member,
  image: Member | undefined,
  parts: readonly string[],
): void {
  const part = parts.find((one) => ending === one || ending.endsWith(`.${one}`));
  if (part === undefined) return;
  const what = part === "npy" ? "the features" : "the label";
  const stem = name.slice(0, name.length - ending.length);
  if (image === undefined) {
    // The image may have an ending that is not read; the message says so.
    if (ending === part) return;
    const remedy = `${RULE}. Take the other dots out of the names`;
    throw expected(path, `an image ${stem}* for ${what} in ${name}`, "none", remedy);
  }
  const remedy = part === "npy" ? "" : `, or name the ending with label, as in data.label=${ending}`;
  const advice = `${RULE}. Take the other dots out of the names${remedy}`;
  throw expected(path, `${what} of ${image.name} in ${stem}${part}`, name, advice);
}

function labelOf(path: string, { name, length, text }: Member): string {
  if (text === undefined || text === "") {
    throw expected(`${path}: ${name}`, "a class, its number or name", `${length} bytes`, LABEL_REMEDY);
  }
  return requireText(`${path}: ${name}`, text);
}
