/**
 * State as JSON without loss: NaN, infinities, -0 and big integers are restored exactly. Tensors and other objects are refused,
 * since they have their own files.
 */
import { expectedType } from "../torch/index.js";

/** What can be written: objects without a class, lists, text, numbers, big integers, true, false and null. */
export type PlainData =
  | null
  | boolean
  | number
  | bigint
  | string
  | readonly PlainData[]
  | { readonly [name: string]: PlainData | undefined };

/** The one key of an object that stands for something else. */
const NUMBER = "$number";
const BIGINT = "$bigint";
const OBJECT = "$object";
const MARKS: readonly string[] = [NUMBER, BIGINT, OBJECT];

/**
 * JSON text of a value; keys whose value is undefined are omitted.
 *
 * @throws TypeError that names the place of a value that cannot be written.
 */
export function encodeData(value: PlainData, where = "encodeData"): string {
  return `${JSON.stringify(toJson(value, where), null, 1)}\n`;
}

function toJson(value: unknown, where: string): unknown {
  switch (typeof value) {
    case "number":
      if (Number.isFinite(value) && !Object.is(value, -0)) return value;
      return { [NUMBER]: Object.is(value, -0) ? "-0" : String(value) };
    case "bigint":
      return { [BIGINT]: String(value) };
    case "string":
    case "boolean":
      return value;
  }
  if (value === null) return null;
  if (Array.isArray(value)) return value.map((item, i) => toJson(item, `${where}[${i}]`));
  const prototype = typeof value === "object" ? (Object.getPrototypeOf(value) as unknown) : undefined;
  if (prototype !== Object.prototype && prototype !== null) {
    throw expectedType(
      where,
      "plain data",
      value,
      "Save tensors among the checkpoint's tensors, and what else there is as numbers and text",
    );
  }
  const entries = Object.entries(value as object).filter(([, item]) => item !== undefined);
  const object = Object.fromEntries(entries.map(([name, item]) => [name, toJson(item, `${where}.${name}`)]));
  return entries.length === 1 && MARKS.includes(entries[0]?.[0] as string) ? { [OBJECT]: object } : object;
}

/**
 * The value of text that {@link encodeData} wrote.
 *
 * @throws SyntaxError when the text is not JSON.
 */
export function decodeData(text: string): PlainData {
  return fromJson(JSON.parse(text) as unknown) as PlainData;
}

function fromJson(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(fromJson);
  if (typeof value !== "object" || value === null) return value;
  const entries = Object.entries(value);
  const [name, item] = entries[0] ?? [];
  if (entries.length === 1 && name === NUMBER) return Number(item);
  if (entries.length === 1 && name === BIGINT) return BigInt(item as string);
  const inner = entries.length === 1 && name === OBJECT ? Object.entries(item as object) : entries;
  return Object.fromEntries(inner.map(([key, of]) => [key, fromJson(of)]));
}
