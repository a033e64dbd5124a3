/**
 * The form of all error messages of this package, and the error class for LibTorch's operators.
 */
import { fileURLToPath } from "node:url";

/**
 * Build the message `<where>: expected <what>, got <value>. <what to do>`.
 *
 * @param where - the function, file or configuration key that was asked.
 * @param what - the expected value, as a noun phrase.
 * @param got - the actual value; strings are printed unquoted.
 * @param remedy - what the reader can do about it, a sentence without its full stop.
 */
export function expectedMessage(where: string, what: string, got: unknown, remedy?: string): string {
  const head = `${shortened(where)}: expected ${what}, got ${shortened(withoutStop(describe(got)))}.`;
  return remedy === undefined ? head : `${head} ${withoutStop(remedy)}.`;
}

/** Longest name or value in a message: those of a hostile file may be of any length. */
const LONGEST = 4000;

/** A long text without its middle. */
function shortened(text: string): string {
  return text.length > LONGEST ? `${text.slice(0, 200)} ... ${text.slice(-200)}` : text;
}

/** Without the full stop of a sentence that a message quotes, such as an error of another process or of a library. */
function withoutStop(text: string): string {
  return text.replace(/(?<=[\w)\]"'`])\.\s*$/, "");
}

/** Names on one line, those past the first few as their number: `a, b and 3 more`. */
export function listed(names: readonly (string | number)[], most = 8): string {
  const more = names.length > most ? ` and ${names.length - most} more` : "";
  return `${names.slice(0, most).join(", ")}${more}`;
}

/** A `RangeError` with {@link expectedMessage}: the argument has the right type, and a value that is not allowed. */
export function expected(where: string, what: string, got: unknown, remedy?: string): RangeError {
  return new RangeError(expectedMessage(where, what, got, remedy));
}

/** A `TypeError` with {@link expectedMessage}: the argument has the wrong type. */
export function expectedType(where: string, what: string, got: unknown, remedy?: string): TypeError {
  return new TypeError(expectedMessage(where, what, got, remedy));
}

/** A LibTorch operator refused its operands, or failed while it ran. Its stack opens at the caller's line. */
export class TorchError extends Error {
  override readonly name = "TorchError";
  /** Operator with overload, such as `aten::add.Tensor`. */
  readonly op: string;
  /** The operator's schema as LibTorch prints it; empty when the operator does not exist. */
  readonly schema: string;

  constructor(op: string, schema: string, message: string) {
    super(message);
    this.op = op;
    this.schema = schema;
    const frames = (this.stack ?? "").slice(`Error: ${message}`.length).split("\n").slice(1);
    const first = frames.findIndex((frame) => !FOLDERS.some((folder) => frame.includes(folder)));
    this.stack = [`TorchError: ${message}`, ...frames.slice(Math.max(first, 0))].join("\n");
  }
}

/** Paths of this folder in stack frames, compiled and translated by source maps. */
const FOLDERS: readonly string[] = [
  new URL(".", import.meta.url),
  new URL("../../../src/torch/", import.meta.url),
].flatMap((folder) => [folder.href, fileURLToPath(folder)]);

/** A value as `got` of a message: text in quotes, so that "5" is not read as 5. */
export function shownValue(value: unknown): unknown {
  return typeof value === "string" ? `the text "${value}"` : value;
}

/** Print a value for an error message: short, never reading a tensor's elements. */
export function describe(value: unknown): string {
  if (typeof value === "string") return value;
  if (typeof value === "bigint") return `${value}n`;
  if (Array.isArray(value)) {
    const shown = value.slice(0, 8).map(describe).join(", ");
    return value.length > 8 ? `[${shown}, ... ${value.length} in all]` : `[${shown}]`;
  }
  if (ArrayBuffer.isView(value)) return `${value.constructor.name} of ${value.byteLength} bytes`;
  if (value !== null && typeof value === "object") {
    const own = "toString" in value && value.toString !== Object.prototype.toString;
    return own ? String(value) : value.constructor?.name || "object";
  }
  return String(value);
}
