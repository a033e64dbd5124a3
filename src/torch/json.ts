/** Parser of JSON from untrusted files: limited depth, and no key twice in an object. */
import { expected } from "./errors.js";

/** Headers of files need three levels. */
const MAX_DEPTH = 64;

/**
 * Parse UTF-8 JSON.
 *
 * @param what - what the bytes should be, for messages.
 * @throws RangeError when they are not JSON, nest deeper than 64, or name a key of an object twice.
 */
export function parseJson(bytes: Uint8Array, where: string, what: string, remedy?: string): unknown {
  let text: string;
  let value: unknown;
  try {
    text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
    value = JSON.parse(text);
  } catch (error) {
    throw expected(where, what, (error as Error).message, remedy);
  }
  checkNesting(text, where, what, remedy);
  return value;
}

/** An object with keys: no list, and not null. */
export const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === "object" && value !== null && !Array.isArray(value);

/** A size, a length, a step: a whole number from 0 that a float holds exactly. */
export const isCount = (value: unknown): value is number =>
  Number.isSafeInteger(value) && (value as number) >= 0;

/** Of two equal keys `JSON.parse` keeps the last and says nothing. The text is valid JSON. */
function checkNesting(text: string, where: string, what: string, remedy?: string): void {
  const open: Set<string>[] = [];
  let string = "";
  for (let i = 0; i < text.length; i++) {
    const char = text[i];
    if (char === "{" || char === "[") {
      open.push(new Set());
      if (open.length > MAX_DEPTH) {
        throw expected(where, `${what}, at most ${MAX_DEPTH} lists and objects deep`, "a deeper one", remedy);
      }
    } else if (char === "}" || char === "]") open.pop();
    else if (char === '"') {
      const start = i;
      for (i++; text[i] !== '"'; i++) if (text[i] === "\\") i++;
      string = text.slice(start, i + 1);
    } else if (char === ":") {
      const key = JSON.parse(string) as string;
      if (open.at(-1)?.has(key)) throw expected(where, "each key once", `"${key}" twice`, remedy);
      open.at(-1)?.add(key);
    }
  }
}
