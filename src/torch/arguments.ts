/**
 * How every public function reads its optional arguments: one object of options, or values in Python's order, in
 * camelCase or snake_case. Unknown options are refused. The function itself checks the values.
 */
import { distance } from "fastest-levenshtein";

import { expected, expectedType, shownValue } from "./errors.js";

/**
 * The names of the options of type `T`, all of them: an option that is added to `T` alone does not compile.
 *
 * `true`: null means that the option is not given, as Python's `None` does. `"nullable"`, where `T` has null among
 * the option's values: null is kept. `"boolean"` and `"number"`: as `true`, and the value's type
 * is checked.
 */
export type OptionNames<T> = {
  readonly [K in keyof T]-?: null extends T[K]
    ? "nullable"
    : [NonNullable<T[K]>] extends [boolean]
      ? "boolean"
      : [NonNullable<T[K]>] extends [number]
        ? "number"
        : true;
};

/** What {@link readOptions} accepts. */
export interface Accepted<T> {
  readonly names: OptionNames<T>;
  /** The order of values given without a name; where it is omitted, every value needs its name. */
  readonly order?: readonly (keyof T & string)[];
}

/**
 * Read the optional arguments of a call into one object with camelCase keys.
 *
 * ```ts
 * interface Options { topK?: number; topP?: number }
 * function sample(policy: Policy, ...given: unknown[]) {
 *   const { topK = 0, topP = 1 } = readOptions<Options>("sample", given, {
 *     names: { topK: true, topP: true },
 *     order: ["topK", "topP"],
 *   });
 * }
 * sample(policy, { topK: 5 });       // one object
 * sample(policy, { top_k: 5 });      // Python's names
 * sample(policy, 5, 0.9);            // Python's order; null or undefined skips a position
 * sample(policy, 5, { top_p: 0.9 }); // the object last, as Python's keyword arguments
 * sample(policy, { topk: 5 });       // RangeError: ... Did you mean "topK"?
 * ```
 *
 * Only the types of booleans and numbers are checked. Values are not copied. Options inside an option are read by a second
 * call: `readOptions("sample.guidance", [options.guidance], ...)`.
 *
 * @param where - the function, for messages.
 * @param given - all arguments after the required ones, such as a rest parameter. A plain object in the last place
 *   holds named options; an instance of a class, such as a Tensor, is a value.
 * @returns a new object with only the given options, so that destructuring defaults apply to the others.
 * @throws RangeError for an unknown name (with the nearest known one), for an option given twice, and for too many
 *   values. TypeError for a value where the function takes no values without names.
 */
export function readOptions<T extends object>(
  where: string,
  given: readonly unknown[],
  { names, order = [] }: Accepted<T>,
): T {
  const known: Readonly<Record<string, unknown>> = names;
  const options = new Map<string, unknown>();
  const last = given.at(-1);
  const values = isPlainObject(last) ? given.slice(0, -1) : given;
  for (const [place, value] of values.entries()) {
    if (value === undefined || value === null) continue;
    const name = order[place];
    if (name !== undefined) options.set(name, value);
    else if (order.length === 0) throw expectedType(where, "an object of options", value, takes(known));
    else throw expected(where, `at most ${order.length} values (${order.join(", ")})`, given.length);
  }
  for (const [spelling, value] of isPlainObject(last) ? Object.entries(last) : []) {
    const name = Object.hasOwn(known, spelling) ? spelling : camelCase(spelling);
    if (!Object.hasOwn(known, name)) throw unknownName(where, spelling, Object.keys(known));
    if (value === undefined || (value === null && known[name] !== "nullable")) continue;
    if (options.has(name)) throw expected(where, `${name} once`, "it twice", "Give it in one place");
    options.set(name, value);
  }
  for (const [name, value] of options) {
    const what = missedType(known[name], value);
    if (what !== undefined) throw expectedType(`${where}.${name}`, what, shownValue(value));
  }
  return Object.fromEntries(options) as T;
}

/**
 * Read one object of options, each with a default where it is not given or null. The defaults name all options:
 * `const { stride, padding } = withDefaults("conv2d", options, { stride: 1, padding: 0 })`.
 *
 * @throws as {@link readOptions}.
 */
export function withDefaults<T extends object, const D extends Defaults<T>>(
  where: string,
  options: T,
  defaults: D,
): { [K in keyof T]-?: Exclude<T[K], null | undefined> | Extract<D[K], null | undefined> } {
  const names = Object.fromEntries(
    Object.entries(defaults).map(([name, value]) => [
      name,
      typeof value === "number" ? "size" : typeof value,
    ]),
  );
  return { ...defaults, ...readOptions<object>(where, [options], { names }) } as never;
}

/** The expected type where a value has another one: a number, a size (a number or a list of them) or a boolean. */
function missedType(type: unknown, value: unknown): string | undefined {
  if (type === "boolean") return typeof value === "boolean" ? undefined : "true or false";
  if (type === "number") return typeof value === "number" ? undefined : "a number";
  if (type !== "size" || typeof value === "number" || Array.isArray(value)) return undefined;
  return "a number, or a list of them";
}

/** A default for every option; null or undefined where there is none. */
type Defaults<T> = { readonly [K in keyof T]-?: T[K] | null | undefined };

/**
 * The error for an unknown name, with the nearest known one.
 *
 * @param what - what the names are, as in `expected a known option`.
 */
export function unknownName(
  where: string,
  name: string,
  known: readonly string[],
  what = "option",
): RangeError {
  const near = nearestName(name, known);
  const list = known.length === 0 ? `It takes no ${what}s` : `It takes ${known.join(", ")}`;
  const remedy = near === undefined ? list : `Did you mean "${near}"? ${list}`;
  return expected(where, `a known ${what}`, name, remedy);
}

/**
 * The name that the fewest changed letters lead to, at most a third of them, or one that begins with the given name;
 * undefined where there is none.
 */
export function nearestName(name: string, known: readonly string[]): string | undefined {
  const plain = (text: string): string => text.replaceAll("_", "").toLowerCase();
  let least = Math.ceil(plain(name).length / 3) + 1;
  let nearest: string | undefined;
  for (const candidate of known) {
    const edits = distance(plain(name), plain(candidate));
    if (edits < least) [least, nearest] = [edits, candidate];
  }
  if (nearest !== undefined || plain(name).length < 3) return nearest;
  return known.find((candidate) => plain(candidate).startsWith(plain(name)));
}

/** `max_grad_norm` as `maxGradNorm`; a name without an underscore as it is. */
export function camelCase(name: string): string {
  return name.replace(/(?<=[^_])_([a-zA-Z0-9])/g, (_, letter: string) => letter.toUpperCase());
}

/** Whether a value is an object literal, and not an instance of a class. */
export function isPlainObject(value: unknown): value is Record<string, unknown> {
  if (value === null || typeof value !== "object") return false;
  const prototype = Object.getPrototypeOf(value);
  return prototype === Object.prototype || prototype === null;
}

/** @throws TypeError unless an argument that the function cannot do without is an object. */
export function requireObject(where: string, value: unknown, what = "an object of options"): void {
  if (value !== null && typeof value === "object" && !Array.isArray(value)) return;
  throw expectedType(where, what, shownValue(value));
}

/** @throws TypeError unless the value is a path. */
export function requirePath(where: string, value: unknown): void {
  if (typeof value !== "string") throw expectedType(where, "a path", value);
}

function takes(known: Readonly<Record<string, unknown>>): string {
  const names = Object.keys(known);
  return names.length === 0 ? "It takes no options" : `It takes ${names.join(", ")}`;
}

/** The entries that are neither null nor undefined: `openPolicy(path, known({ wrapper, weights }))`. */
export function known<T extends object>(entries: T): { [K in keyof T]?: NonNullable<T[K]> } {
  return Object.fromEntries(Object.entries(entries).filter(([, value]) => (value ?? null) !== null)) as {
    [K in keyof T]?: NonNullable<T[K]>;
  };
}
