/** The classes of a policy: how many there are, what they are called, and which ones the command line means. */
import type { PolicyDescription } from "../policies/index.js";
import { describeWeights } from "../rl_ar_finetune/builder.js";
import { expected, isPlainObject, listed, nearestName, openWeights } from "../torch/index.js";

/** What a policy is conditioned on. */
export interface Conditioning {
  readonly kind: "classes" | "features" | "nothing";
  /** Classes, the null class not counted; its id is this number. */
  readonly numClasses: number;
  /** Names in the order of the ids, as far as the file's metadata tells them. */
  readonly names: readonly string[];
}

/** What the policy of a file is conditioned on. */
export function conditioningOf(
  { config }: PolicyDescription,
  metadata: Readonly<Record<string, string>> = {},
): Conditioning {
  const isText = "modelType" in config && config.modelType === "t2i";
  if (isText || ("features" in config && (config.features ?? null) !== null))
    return { kind: "features", numClasses: 0, names: [] };
  const count = "classNum" in config ? config.classNum : "numClasses" in config ? config.numClasses : 0;
  const numClasses = count ?? 0;
  const kind = numClasses > 0 ? "classes" : "nothing";
  return { kind, numClasses, names: namesIn(metadata).slice(0, numClasses) };
}

/** The same, read from the file's header alone; null where the file holds no policy. */
export function conditioningOfFile(path: string): Conditioning | null {
  using file = openWeights(path);
  const found = describeWeights(file);
  return found?.kind === "policy" ? conditioningOf(found.policy, file.metadata) : null;
}

/** Names of classes in a file's metadata: `classes` as `rlar train` writes it, or `training.classes` of the other commands. */
export function namesIn(metadata: Readonly<Record<string, string>>): string[] {
  for (const [key, read] of [
    ["classes", (value: unknown): unknown => value],
    ["training", (value: unknown): unknown => (isPlainObject(value) ? value.classes : undefined)],
  ] as const) {
    const names = read(parsed(metadata[key]));
    if (Array.isArray(names) && names.every((name) => typeof name === "string")) return names;
  }
  return [];
}

/** Metadata may be anyone's: what is no JSON names no classes. */
function parsed(text: string | undefined): unknown {
  try {
    return JSON.parse(text ?? "null");
  } catch {
    return null;
  }
}

/**
 * The classes that a command line means.
 *
 * @param given - one or several a text: ids or names, separated by commas. A text that is a name as a whole is that class.
 * @returns ids in [0, numClasses]; the last is the null class.
 * @throws RangeError for what is neither, with the nearest name.
 */
export function classIds(given: readonly string[], { numClasses, names }: Conditioning): number[] {
  return given.flatMap((text) => {
    const words = names.includes(text.trim()) ? [text] : text.split(",");
    return words.map((word) => classId(word.trim(), { numClasses, names }));
  });
}

function classId(word: string, { numClasses, names }: Pick<Conditioning, "numClasses" | "names">): number {
  const id = Number(word);
  if (/^\d+$/.test(word) && id <= numClasses) return id;
  const named = names.indexOf(word);
  if (named >= 0) return named;
  const what = `a class in [0, ${numClasses}], of which ${numClasses} is the null class${names.length > 0 ? ", or the name of one" : ""}`;
  throw expected("--class", what, word === "" ? "nothing" : word, adviceOn(word, names));
}

/** Names that a message lists. */
const LISTED = 12;

function adviceOn(word: string, names: readonly string[]): string {
  if (names.length === 0)
    return /^[-+]?[\d.]*$/.test(word)
      ? "Take one of these"
      : "The policy's file holds no names of classes: give the number, or --data IMAGES, whose classes have names";
  const near =
    nearestName(word, names) ?? names.find((name) => name.toLowerCase().includes(word.toLowerCase()));
  return `${near === undefined || word === "" ? "" : `Did you mean ${near}? `}Classes are ${listed(names, LISTED)}`;
}

/** A class for people: `3 (cat)`, or `3` where it has no other name. */
export function classText(id: number, { numClasses, names }: Conditioning): string {
  if (id === numClasses) return `${id} (the null class)`;
  const name = names[id];
  return name === undefined || name === String(id) ? String(id) : `${id} (${name})`;
}
