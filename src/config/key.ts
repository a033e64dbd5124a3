/**
 * What a key of the configuration is made of: a zod type, a default, and what a user is told of it. The keys
 * themselves are in `model_keys.ts` and `update_keys.ts`.
 */
import * as z from "zod";

/** What a user is told of a key, beside its range and default. */
export interface KeyInfo {
  /** What it is: a phrase that goes on after the key's name. */
  readonly help: string;
  /** One sentence on when to change it. */
  readonly when: string;
  readonly unit?: string;
  /** What a program passes here, for keys whose value is no text or number and so cannot stand in a file. */
  readonly live?: string;
}

const INFO = z.registry<KeyInfo>();
const SHAPES = new WeakMap<z.ZodType, Readonly<Record<string, z.ZodType>>>();

/** A key: its type, its default, what it is, and when to change it. */
export function key<T>(
  type: z.ZodType<T>,
  fallback: NoInfer<T>,
  help: string,
  when: string,
  unit?: string,
): z.ZodType<T> {
  const info = { help, when, ...(unit !== undefined && { unit }) };
  return z._default(type, fallback as never).register(INFO, info) as z.ZodType as z.ZodType<T>;
}

/** A key that holds an object of the program's, null where there is none. */
export function liveKey<T>(
  live: string,
  accepts: (value: unknown) => boolean,
  help: string,
  when: string,
): z.ZodType<T | null> {
  const type = z.custom<T>(accepts).nullable();
  return z._default(type, null).register(INFO, { help, when, live }) as z.ZodType as z.ZodType<T | null>;
}

/** Keys under one name: exactly those of `T`. */
export function section<T extends object>(
  shape: { readonly [K in keyof T]-?: z.ZodType<T[K]> },
): z.ZodType<T> {
  const fields = shape as Readonly<Record<string, z.ZodType>>;
  const type = z.strictObject(fields).prefault({});
  SHAPES.set(type, fields);
  return type as z.ZodType as z.ZodType<T>;
}

/** A key with its place, range and default. */
export interface Key extends KeyInfo {
  /** Names from the top, such as `["rollout", "temperature"]`. */
  readonly path: readonly string[];
  readonly default: unknown;
  /** Its range in words, such as `an integer of at least 1, or null`. */
  readonly expects: string;
  /** Whether its value is a record of keys that are not checked here. */
  readonly isRecord: boolean;
}

/** Every key of a section, in order. */
export function keysOf(type: z.ZodType, path: readonly string[] = []): Key[] {
  const shape = SHAPES.get(type);
  if (shape !== undefined) return Object.entries(shape).flatMap(([name, of]) => keysOf(of, [...path, name]));
  const info = INFO.get(type) as KeyInfo;
  const json = z.toJSONSchema(type, { unrepresentable: "any" }) as Json;
  const { additionalProperties, default: value = null } = json;
  const expects = info.live === undefined ? rangeOf(json) : `${info.live}, or null`;
  return [{ ...info, path, default: value, expects, isRecord: additionalProperties !== undefined }];
}

/** The part of JSON Schema that keys make use of. */
interface Json {
  description?: string;
  type?: string;
  enum?: unknown[];
  anyOf?: Json[];
  items?: Json | false;
  prefixItems?: Json[];
  minimum?: number;
  maximum?: number;
  exclusiveMinimum?: number;
  exclusiveMaximum?: number;
  additionalProperties?: unknown;
  default?: unknown;
}

function rangeOf(json: Json): string {
  if (json.description !== undefined) return json.description;
  if (json.anyOf !== undefined) {
    const [type, none] = json.anyOf as [Json, Json];
    return type.enum === undefined
      ? `${rangeOf(type)}, or ${rangeOf(none)}`
      : rangeOf({ enum: [...type.enum, "null"] });
  }
  if (json.enum !== undefined) return oneOf(json.enum.map(String));
  switch (json.type) {
    case "integer":
      return `an integer${boundsOf(json)}`;
    case "number":
      return `a number${boundsOf(json)}`;
    case "boolean":
      return "true or false";
    case "string":
      return "text";
    case "null":
      return "null";
    case "array": {
      const { prefixItems, items } = json;
      const what = rangeOf(prefixItems?.[0] ?? (items as Json)).replace(/^an? (integer|number)/, "$1s");
      return prefixItems === undefined ? `a list of ${what}` : `a list of ${prefixItems.length} ${what}`;
    }
    default:
      return "keys with values";
  }
}

const oneOf = (names: string[]): string =>
  names.length === 1 ? (names[0] as string) : `${names.slice(0, -1).join(", ")} or ${names.at(-1)}`;

function boundsOf({ minimum, maximum, exclusiveMinimum, exclusiveMaximum }: Json): string {
  // The limits of exact integers stand in every integer's schema.
  const low = exclusiveMinimum ?? (minimum === Number.MIN_SAFE_INTEGER ? undefined : minimum);
  const high = exclusiveMaximum ?? (maximum === Number.MAX_SAFE_INTEGER ? undefined : maximum);
  if (low !== undefined && high !== undefined) {
    return ` in ${exclusiveMinimum === undefined ? "[" : "("}${low}, ${high}${exclusiveMaximum === undefined ? "]" : ")"}`;
  }
  if (low !== undefined) return exclusiveMinimum === undefined ? ` of at least ${low}` : ` above ${low}`;
  if (high !== undefined) return exclusiveMaximum === undefined ? ` of at most ${high}` : ` below ${high}`;
  return "";
}
