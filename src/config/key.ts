/**
 * The parts of a schema: keys with a default and a description, and sections of keys. The first sentence of a description says
 * what the key is, the others when to change it.
 */
import * as z from "zod";
import { isObject } from "../torch/json.js";

/** Further facts about a key. */
interface KeyInfo {
  readonly unit?: string;
  /** What a program passes here, for a key whose value cannot stand in a file. */
  readonly live?: string;
  /** Whether the value is a path, or a list of paths. One in a file is relative to that file. */
  readonly isPath?: boolean;
}

const INFO = z.registry<KeyInfo>();

/** A key with its default. Describe it with `.describe("What it is. When to change it.")`. */
export function key<S extends z.ZodType>(
  type: S,
  fallback: z.util.NoUndefined<z.output<S>>,
  unit?: string,
): z.ZodDefault<S> {
  const made = z._default(type, fallback as never);
  INFO.add(made, unit === undefined ? {} : { unit });
  return made;
}

/** The type of a path. */
const pathText = z
  .string()
  .min(1)
  .refine((text) => !text.includes("\0"))
  .describe("a path");

/** A key for the path of a file or folder, null where none is given. */
export function pathKey(): z.ZodDefault<z.ZodNullable<z.ZodString>> {
  return pathText.nullable().default(null).register(INFO, { isPath: true });
}

/** A key for the paths of files, null where none are given. */
export function pathsKey(): z.ZodDefault<z.ZodNullable<z.ZodReadonly<z.ZodArray<z.ZodString>>>> {
  return z.array(pathText).min(1).readonly().nullable().default(null).register(INFO, { isPath: true });
}

/** A key for an object that only a program can pass, null where none is given. */
export function liveKey<T>(
  live: string,
  accepts: (value: unknown) => boolean,
): z.ZodDefault<z.ZodNullable<z.ZodCustom<T, T>>> {
  return z.custom<T>(accepts).nullable().default(null).register(INFO, { live });
}

/** Keys under one name. */
export type Section<S extends z.ZodRawShape = z.ZodRawShape> = z.ZodPrefault<
  z.ZodReadonly<z.ZodObject<S, z.core.$strict>>
>;

/** Keys under one name: unknown keys are refused, and each key has a default. What is parsed is frozen. */
export function section<S extends z.ZodRawShape>(shape: S): Section<S> {
  return z.prefault(z.strictObject(shape).readonly(), {} as never) as unknown as Section<S>;
}

/** Sections under names of the user's choice, all with the same keys. */
export type NamedSections<S extends z.ZodRawShape = z.ZodRawShape> = z.ZodPrefault<
  z.ZodReadonly<z.ZodRecord<z.ZodString, Section<S>>>
>;

/** Any number of sections with the same keys, under names that the user chooses. */
export function namedSections<S extends z.ZodRawShape>(shape: S): NamedSections<S> {
  const sections = z.record(z.string(), section(shape)).readonly();
  return z.prefault(sections, {} as never) as unknown as NamedSections<S>;
}

/** Stands in the path of a {@link Key} for the name that the user chooses. */
export const NAME = "NAME";

/** The value at a path such as `rollout.temperature` of nested objects; undefined where there is none. */
export function valueAt(tree: object, path: string): unknown {
  return path.split(".").reduce<unknown>((at, name) => (isObject(at) ? at[name] : undefined), tree);
}

/** A key with its place, range, default and description. */
export interface Key extends KeyInfo {
  /** Names from the top, such as `["rollout", "temperature"]`; {@link NAME} where the user chooses one. */
  readonly path: readonly string[];
  readonly type: z.ZodType;
  readonly default: unknown;
  /** Its range in words, such as `an integer of at least 1, or null`. */
  readonly expects: string;
  /** Whether its value is a record with keys that are not checked here. */
  readonly isRecord: boolean;
  /** What it is: one sentence. */
  readonly help: string;
  /** When to change it: further sentences. */
  readonly when: string;
}

/** Every key of a section, in order. */
export function keysOf(type: z.ZodType, path: readonly string[] = []): Key[] {
  if (type instanceof z.ZodPrefault) {
    const inner = (type as Section | NamedSections).unwrap().unwrap();
    if (inner instanceof z.ZodRecord) return keysOf(inner.valueType as z.ZodType, [...path, NAME]);
    const { shape } = inner;
    return Object.entries(shape).flatMap(([name, of]) => keysOf(of as z.ZodType, [...path, name]));
  }
  const info: KeyInfo = INFO.get(type) ?? {};
  const inner = (type as z.ZodDefault<z.ZodType>).unwrap();
  const json = z.toJSONSchema(inner, { unrepresentable: "any" }) as Json;
  const [, help = "", when = ""] = /^(.*?[.])(?:\s+(.*))?$/s.exec(type.description ?? "") ?? [];
  return [
    {
      ...info,
      path,
      type: inner,
      default: (type as z.ZodDefault<z.ZodType>).parse(undefined),
      expects: info.live === undefined ? rangeOf(json) : `${info.live}, or null`,
      isRecord: json.additionalProperties !== undefined,
      help,
      when,
    },
  ];
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
      const what = rangeOf(prefixItems?.[0] ?? (items as Json)).replace(/^an? (integer|number|path)/, "$1s");
      return prefixItems === undefined ? `a list of ${what}` : `a list of ${prefixItems.length} ${what}`;
    }
    default:
      return "keys with values";
  }
}

/** Names as `a, b or c`. */
const oneOf = (names: readonly string[]): string =>
  names.length < 2 ? names.join() : `${names.slice(0, -1).join(", ")} or ${names.at(-1)}`;

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
