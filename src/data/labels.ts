/** From the labels that a data set gives its images to class numbers and names. */
import { expected } from "../torch/index.js";

/** Class of each image, and the names of the classes. */
export interface Classes {
  /** One a image, each below `names.length`. */
  readonly ids: Int32Array;
  readonly names: readonly string[];
}

/** More classes than any data set has: beyond it a number is something else, such as an identity. */
const MAX_CLASSES = 10_000_000;

/** One class for all. */
export function oneClass(length: number, name = "all"): Classes {
  return { ids: new Int32Array(length), names: [name] };
}

/**
 * Number the classes.
 *
 * Labels that are numbers are class ids already. Labels that are names are numbered in the order of the names, or
 * of their values where all are whole numbers (`2` before `10`, where torchvision puts `10` first).
 *
 * @param names - all classes in the order of their ids, where that is known.
 * @throws RangeError for a label that is none of the classes.
 */
export function numberClasses(
  where: string,
  labels: readonly (string | number)[],
  names?: readonly string[] | undefined,
): Classes {
  const numbers = labels.filter((label) => typeof label === "number");
  if (numbers.length === labels.length) return fromNumbers(where, numbers, names);
  const texts = labels.map(String);
  const known = names ?? sortNames(new Set(texts));
  const places = new Map(known.map((name, i) => [name, i]));
  const ids = texts.map((text) => {
    const id = places.get(text);
    if (id === undefined) {
      throw expected(where, `a class among the ${known.length} of classNames`, text, "Add it to classNames");
    }
    return id;
  });
  return { ids: Int32Array.from(ids), names: known };
}

function fromNumbers(where: string, labels: readonly number[], names?: readonly string[]): Classes {
  const count = names?.length ?? MAX_CLASSES;
  let largest = 0;
  for (const label of labels) {
    if (!Number.isInteger(label) || label < 0 || label >= count) {
      throw expected(where, `class ids from 0 to ${count - 1}`, label);
    }
    if (label > largest) largest = label;
  }
  return {
    ids: Int32Array.from(labels),
    names: names ?? Array.from({ length: largest + 1 }, (_, i) => String(i)),
  };
}

/** By value where all are whole numbers, by their characters elsewhere. */
export function sortNames(names: Iterable<string>): string[] {
  const sorted = [...names].sort();
  return sorted.every((name) => /^\d+$/.test(name)) ? sorted.sort((a, b) => Number(a) - Number(b)) : sorted;
}
