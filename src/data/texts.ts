/**
 * Data without images: captions or classes alone, for rollouts that no image is compared with. A text file has one per
 * line, a JSONL file one object per line; a list of class names is a set of its own.
 */
import { readFileSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { describe } from "../torch/errors.js";
import { expected, known } from "../torch/index.js";
import { isObject } from "../torch/json.js";
import { checkCaption } from "./captions.js";
import { type Classes, numberClasses, oneClass } from "./labels.js";
import { hashListing, type ImageSource, type SourceOptions } from "./source.js";

/** Most bytes of a file: all of it is read into memory. */
const MAX_BYTES = 2 ** 30;

/** One line of a file. */
interface Line {
  /** From 1. */
  readonly number: number;
  readonly caption?: string;
  readonly label?: string | number;
  readonly id?: string;
  /** A `.npy` file, relative to the list. */
  readonly features?: string;
}

/**
 * Open captions or classes.
 *
 * A line of a text file is a class where `classNames` are given or all lines are whole numbers, class ids; else it is a
 * caption. An object of a JSONL file has `class` (a name or id; `label` names another field), `caption` (`captions` names
 * another field), or both; `id` is its name in the log, and `features` a `.npy` file with the features of its text, float
 * `[S, C]`. Empty lines are skipped.
 *
 * @param path - `.txt` or `.jsonl`; null for each of `classNames` once.
 * @throws RangeError that names the line that cannot be used.
 */
export function openTexts(path: string | null, options: SourceOptions = {}): ImageSource {
  const { label, classNames, captions } = options;
  const isJson = path !== null && /\.jsonl$/i.test(path);
  if (captions !== undefined && !isJson) {
    const remedy = "Remove data.captions: each line of a text file is a caption or a class";
    throw expected(
      path ?? "data.classNames",
      "a .jsonl file, whose fields data.captions names",
      captions,
      remedy,
    );
  }
  if (path === null) {
    const names = classNames ?? [];
    return sourceOf(
      "data.classNames",
      names.map((name, i) => ({ number: i + 1, label: name })),
      options,
    );
  }
  const texts = readLines(path);
  if (texts.length === 0) throw expected(path, "a caption or class per line", "an empty file");
  if (isJson)
    return sourceOf(
      path,
      texts.map((line) => parsed(path, line, options)),
      options,
    );
  const isNumber = texts.every(({ text }) => /^\d+$/.test(text));
  const areClasses = label !== null && (classNames !== undefined || isNumber);
  const lines = texts.map(({ number, text }): Line => {
    if (!areClasses) return { number, caption: checkCaption(text, `${path}, line ${number}`) };
    return { number, label: isNumber ? Number(text) : text };
  });
  return sourceOf(path, lines, options);
}

function readLines(path: string): { number: number; text: string }[] {
  let bytes: Buffer;
  try {
    bytes = readFileSync(path);
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    throw expected(path, "a file of captions or classes", code === "ENOENT" ? "no such file" : message);
  }
  if (bytes.length > MAX_BYTES) throw expected(path, `at most ${MAX_BYTES} bytes`, bytes.length);
  let text: string;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch {
    throw expected(path, "text in UTF-8", "other bytes");
  }
  return text
    .split(/\r?\n/)
    .map((line, i) => ({ number: i + 1, text: line.trim() }))
    .filter((line) => line.text !== "");
}

/** Fields of an object, beside those that hold the class and the caption. */
const FIELDS = ["id", "features"] as const;

function parsed(
  path: string,
  line: { number: number; text: string },
  { label, captions }: SourceOptions,
): Line {
  const where = `${path}, line ${line.number}`;
  let object: unknown;
  try {
    object = JSON.parse(line.text);
  } catch (error) {
    throw expected(where, "a JSON object", `text that is not JSON (${(error as Error).message})`);
  }
  if (!isObject(object)) throw expected(where, "a JSON object", object);
  const [field, captionField] = [label ?? "class", captions ?? "caption"];
  const fields = [field, captionField, ...FIELDS];
  const odd = Object.keys(object).find((name) => !fields.includes(name));
  if (odd !== undefined) {
    const remedy =
      "Remove it, or name the field with the class in data.label, with the caption in data.captions";
    throw expected(where, `the fields ${fields.join(", ")}`, odd, remedy);
  }
  for (const name of FIELDS) {
    if (object[name] === undefined || (typeof object[name] === "string" && object[name] !== "")) continue;
    throw expected(`${where}: ${name}`, "text", describe(object[name]));
  }
  const given = label === null ? undefined : object[field];
  const caption = captions === null ? undefined : object[captionField];
  if (given === undefined && caption === undefined)
    throw expected(where, `a ${field} or a ${captionField}`, "neither");
  const { id, features } = object as Pick<Line, (typeof FIELDS)[number]>;
  return {
    number: line.number,
    ...known({ id, features }),
    ...(given !== undefined && { label: given as string }),
    ...(caption !== undefined && { caption: checkCaption(caption, `${where}: ${captionField}`) }),
  };
}

/** @param where - the file, or the key of the configuration that lists the classes. */
function sourceOf(where: string, lines: readonly Line[], { classNames }: SourceOptions): ImageSource {
  const rowOf = (i: number): string => `${where}, line ${lines[i]?.number}`;
  const all = (name: "label" | "caption" | "features"): boolean => {
    const without = lines.findIndex((line) => line[name] === undefined);
    const isSome = lines.some((line) => line[name] !== undefined);
    if (isSome && without >= 0)
      throw expected(rowOf(without), `a ${name === "label" ? "class" : name}, as other lines have`, "none");
    return isSome;
  };
  const hasClasses = all("label");
  const hasCaptions = all("caption");
  const hasFeatures = all("features");
  const classes: Classes = hasClasses
    ? numberClasses(
        where,
        lines.map(({ label }) => label),
        { names: classNames, rowOf },
      )
    : oneClass(lines.length, classNames?.[0]);
  const name = basename(where);
  const idOf = (i: number): string => lines[i]?.id ?? `${name}#${lines[i]?.number}`;
  const hash = hashListing(idOf, classes).update(JSON.stringify(lines));
  return {
    kind: "texts",
    length: lines.length,
    classNames: classes.names,
    notes: classes.notes,
    fingerprint: hash.digest("hex"),
    variants: 1,
    hasClasses,
    idOf,
    classOf: (i) => classes.ids[i] as number,
    ...(hasCaptions && { hasCaptions }),
    locate: async (i) => ({
      ...(hasCaptions && { caption: lines[i]?.caption as string }),
      ...(hasFeatures && { features: { path: join(dirname(where), lines[i]?.features as string) } }),
    }),
  };
}
