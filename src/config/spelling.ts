/**
 * The ways in which a key may be written: in camelCase, snake_case or kebab-case, and under its other names; and how a
 * value is written in a message.
 */
import type * as z from "zod";
import { isPlainObject } from "../torch/arguments.js";
import type { NamedSections, Section } from "./key.js";

/** `max_len` and `max-len` as `maxLen`. */
export function schemaName(name: string): string {
  return name.replace(/(?<=[A-Za-z0-9])[_-]+([A-Za-z0-9])/g, (_, letter: string) => letter.toUpperCase());
}

/** `maxLen` as `max_len`. */
export type SnakeCase<S extends string> = S extends `${infer First}${infer Rest}`
  ? `${First extends Lowercase<First> ? First : `_${Lowercase<First>}`}${SnakeCase<Rest>}`
  : S;

/** Type of the value at a path such as `optimizer.lr`. */
type ValueAt<S, Path extends string> =
  S extends Section<infer Shape>
    ? Path extends `${infer Name}.${infer Rest}`
      ? Name extends keyof Shape
        ? ValueAt<Shape[Name], Rest>
        : never
      : Path extends keyof Shape
        ? z.input<Shape[Path]>
        : never
    : unknown;

/** Types of the values of other names: each that of the first key that it stands for. */
export type AliasValues<S, Aliases extends Readonly<Record<string, readonly string[]>>> = {
  readonly [Name in keyof Aliases]: ValueAt<S, Aliases[Name][0] & string>;
};

/** Types of values in other spellings: their names, or a boolean for `true` and `false`. */
export type SpelledValues<Spellings> = {
  readonly [Path in keyof Spellings]: keyof Spellings[Path] extends "true" | "false"
    ? boolean
    : keyof Spellings[Path];
};

/** Other names directly below a path that ends in a dot, or at the top for `""`. */
type NamesBelow<Names, Path extends string> = Names extends `${Path}${infer Name}`
  ? Name extends `${string}.${string}`
    ? never
    : Name
  : never;

/** Any part of what a schema takes, keys in camelCase or snake_case, with the values of other names. */
export type ConfigInput<S, Names = Record<never, never>, Path extends string = ""> =
  S extends Section<infer Shape>
    ? {
        readonly [K in (keyof Shape & string) | NamesBelow<keyof Names, Path> as K | SnakeCase<K>]?:
          | (K extends keyof Shape ? ConfigInput<Shape[K], Names, `${Path}${K}.`> : never)
          | (`${Path}${K}` extends keyof Names ? Names[`${Path}${K}`] : never);
      }
    : S extends NamedSections<infer Shape>
      ?
          | { readonly [name: string]: ConfigInput<Section<Shape>> }
          | { readonly [K in NamesBelow<keyof Names, Path>]?: Names[`${Path}${K}` & keyof Names] }
      : z.input<S>;

/** A value in a message, on one line and short. */
export function shown(value: unknown): string {
  if (typeof value === "string") return value === "" ? "empty text" : value;
  if (typeof value === "function") return value.name === "" ? "a function" : `the function ${value.name}`;
  if (typeof value === "object" && value !== null && !isPlainObject(value) && !Array.isArray(value)) {
    return `an object of class ${value.constructor?.name ?? "unknown"}`;
  }
  const text = typeof value === "number" ? String(value) : jsonOf(value);
  return text.length > 60 ? `${text.slice(0, 60)}...` : text;
}

/** JSON of a value, or what it is where it has none: a bigint, an object that contains itself. */
function jsonOf(value: unknown): string {
  try {
    return JSON.stringify(value) ?? String(value);
  } catch {
    return typeof value === "object" ? "an object that JSON cannot hold" : String(value);
  }
}
