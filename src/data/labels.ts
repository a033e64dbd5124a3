/** Class ids and names from the labels of a data set, messages about classes, and the check against a policy. */
import { expected, listed } from "../torch/index.js";

/** Class of each image, and the names of the classes. */
export interface Classes {
  /** One per image, each below `names.length`. */
  readonly ids: Int32Array;
  readonly names: readonly string[];
  /** Notes for the user on how the classes were numbered. */
  readonly notes: readonly string[];
}
interface NumberingOptions {
  /** All classes in the order of their ids, where that is known. */
  readonly names?: readonly string[] | undefined;
  /** File, row and column of a label, for messages. */
  readonly rowOf?: (index: number) => string;
}

/** More classes than any data set has: a larger number is something else, such as an identity. */
const MAX_CLASSES = 10_000_000;

/** What to do about labels that cannot be used. */
export const LABEL_REMEDY = "To train without labels, set data.label=none (in a program, label: null)";

/** One class for all. */
export function oneClass(length: number, name = "all"): Classes {
  return { ids: new Int32Array(length), names: [name], notes: [] };
}

/**
 * Number the classes.
 *
 * Labels that are numbers are class ids already. Labels that are names are numbered in the order of the names, or
 * of their values where all are whole numbers (`2` before `10`, where torchvision puts `10` first).
 *
 * @param labels - a number or name an image; anything else is refused.
 * @throws RangeError for a label that is not among the classes, naming its row.
 */
export function numberClasses(
  where: string,
  labels: readonly unknown[],
  { names, rowOf = () => where }: NumberingOptions = {},
): Classes {
  if (names !== undefined) requireEachOnce("classNames", names);
  const odd = labels.findIndex((label) => typeof label !== "number" && typeof label !== "string");
  if (odd >= 0) throw expected(rowOf(odd), "a class, its number or name", labels[odd], LABEL_REMEDY);
  if (labels.every((label) => typeof label === "number"))
    return fromNumbers(labels as number[], rowOf, names);
  const number = labels.findIndex((label) => typeof label === "number");
  if (number >= 0) {
    throw expected(
      rowOf(number),
      "a name, as other labels are",
      `the number ${labels[number]}`,
      LABEL_REMEDY,
    );
  }
  const texts = labels as string[];
  const empty = texts.indexOf("");
  if (empty >= 0) throw expected(rowOf(empty), "a class, its number or name", "an empty text", LABEL_REMEDY);
  const known = names ?? sortNames(new Set(texts));
  const places = new Map(known.map((name, i) => [name, i]));
  const ids = texts.map((text, i) => {
    const id = places.get(text);
    if (id !== undefined) return id;
    const alike = known.find((name) => looseName(name) === looseName(text));
    const got = alike === undefined ? text : `${text}, which differs from ${alike} ${IN_FORM}`;
    const remedy = "Add it to data.classNames, which lists all classes in the order of their ids";
    throw expected(rowOf(i), `a class among the ${known.length} that are known`, got, remedy);
  });
  const notes = names === undefined ? [...labelNotes(known), ...alikeNotes(known)] : [];
  return { ids: Int32Array.from(ids), names: known, notes };
}

/** @throws RangeError for a class that is listed twice. */
export function requireEachOnce(where: string, names: readonly string[], remedy?: string): void {
  const seen = new Set<string>();
  for (const name of names) {
    if (seen.has(name)) throw expected(where, "each class once", `${name} twice`, remedy);
    seen.add(name);
  }
}

/** A label that was read from bytes. @throws RangeError for bytes that are not UTF-8, which would fall together. */
export function requireText(where: string, label: string): string {
  if (!label.includes("\ufffd")) return label;
  throw expected(where, "a class, its number or name as text in UTF-8", "other bytes", LABEL_REMEDY);
}

/** Where a difference is that is hard to see. */
const IN_FORM = "only in upper and lower case, spaces or Unicode form";

const looseName = (name: string): string => name.normalize("NFKC").trim().toLowerCase();

/** A note for names that are told apart by what is hard to see. */
function alikeNotes(names: readonly string[]): string[] {
  const first = new Map<string, string>();
  for (const name of names) {
    const other = first.get(looseName(name));
    if (other !== undefined) return [`the classes ${other} and ${name} differ ${IN_FORM}`];
    first.set(looseName(name), name);
  }
  return [];
}

function fromNumbers(
  labels: readonly number[],
  rowOf: (index: number) => string,
  names?: readonly string[],
): Classes {
  const count = names?.length ?? MAX_CLASSES;
  let largest = 0;
  for (const [i, label] of labels.entries()) {
    if (!Number.isInteger(label) || label < 0 || label >= count) {
      throw expected(rowOf(i), `a class id from 0 to ${count - 1}`, label, LABEL_REMEDY);
    }
    if (label > largest) largest = label;
  }
  return {
    ids: Int32Array.from(labels),
    names: names ?? Array.from({ length: largest + 1 }, (_, i) => String(i)),
    notes: [],
  };
}

/** Sorted by value if all names are whole numbers, otherwise as text. */
export function sortNames(names: Iterable<string>): string[] {
  const sorted = [...names].sort();
  return sorted.every(isWhole) ? sorted.sort((a, b) => Number(a) - Number(b)) : sorted;
}

const isWhole = (name: string): boolean => /^-?\d+$/.test(name);

/** A note for names that are numbers other than their ids. */
function labelNotes(names: readonly string[]): string[] {
  const moved = names.findIndex((name, i) => name !== String(i));
  if (moved < 0 || !names.every((name) => /^[+-]?\d+(?:\.\d+)?$/.test(name))) return [];
  return [
    `the classes' names are numbers, but not 0 to ${names.length - 1}: ${names[moved]} has id ${moved}. They are ` +
      `numbered in the order of their ${names.every(isWhole) ? "values" : "names as text"}. If they are the ids of a model's classes, list all of these in data.classNames`,
  ];
}

/** The classes of a set, for messages and checks. */
interface Classed {
  readonly length: number;
  readonly classNames: readonly string[];
  idOf(index: number): string;
  classOf(index: number): number;
}

/** A class of a data set. */
export interface ClassCount {
  readonly id: number;
  readonly name: string;
  readonly images: number;
}

/** Ids, names and numbers of images of all classes. */
export function classCounts(source: Classed): ClassCount[] {
  const counts = new Int32Array(source.classNames.length);
  for (let i = 0; i < source.length; i++) (counts[source.classOf(i)] as number)++;
  return source.classNames.map((name, id) => ({ id, name, images: counts[id] as number }));
}

/** Classes that {@link describeClasses} lists. */
const LISTED = 8;

/** The classes on one line, the middle ones of many omitted: `3 classes: 0 cat (12 images), 1 dog (9), 2 eel (4)`. */
export function describeClasses(source: Classed): string {
  const counts = classCounts(source);
  const shown = counts.map(
    ({ id, name, images }) => `${id} ${name} (${images}${id > 0 ? "" : images === 1 ? " image" : " images"})`,
  );
  const list = shown.length <= LISTED ? shown : [...shown.slice(0, LISTED - 2), "...", shown.at(-1)];
  const empty = counts.filter(({ images }) => images === 0).map(({ name }) => name);
  const none = empty.length === 0 ? "" : `; no image of ${listed(empty, LISTED)}`;
  return `${counts.length === 1 ? "1 class" : `${counts.length} classes`}: ${list.join(", ")}${none}`;
}

/**
 * Check that a model knows the class of every image.
 *
 * @param numClasses - classes of the model; this number itself is the id of its null class, which no image may have.
 * @throws RangeError naming the image's file and row, and its class.
 */
export function checkClassIds(source: Classed, numClasses: number): void {
  for (let i = 0; i < source.length; i++) {
    const id = source.classOf(i);
    if (id < numClasses) continue;
    throw badClass(source.idOf(i), id, numClasses, source.classNames[id]);
  }
}

/** The error for a class that a model does not know. */
export function badClass(where: string, id: number, numClasses: number, name?: string): RangeError {
  const got = `${id}${name === undefined || name === String(id) ? "" : ` (${name})`}`;
  const what = id === numClasses ? `${got}, which stands for no class` : got;
  const remedy = `Give the policy's classes in data.classNames, or a policy of more classes. ${LABEL_REMEDY}`;
  const ids = `a class id from 0 to ${numClasses - 1}, as the policy has ${numClasses} classes`;
  return expected(where, ids, what, remedy);
}
