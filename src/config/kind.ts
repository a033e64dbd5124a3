/**
 * A kind of configuration: the keys of one command, their other names, presets, and what they ask of each other. Reading
 * one is done in `resolve.ts`, showing one in `explain.ts`; both take the kind as a parameter.
 */
import type * as z from "zod";

import { type Key, keysOf } from "./key.js";
import type { PartialDeep } from "./types.js";

/** Which keys were given, and how to name them in a message. */
export interface Origins {
  isGiven(path: string): boolean;
  /** Such as `run.yaml:3:5: rollout.topK`; the path itself for a default. */
  whereOf(path: string): string;
}

/** Values to start from, and where they come from. */
export interface Preset<T> {
  readonly about: string;
  readonly values: PartialDeep<T>;
}

/** A value under its own key. */
export interface Assigned {
  readonly path: string;
  readonly value: unknown;
  /** Whether it gives way to the same key where that is given too. */
  readonly isWeak?: boolean;
}

/** What an assignment stands for, or what was expected in place of its value. */
export type Meaning = readonly Assigned[] | { readonly expected: string };

/** What a kind is made of. */
export interface KindParts<T extends object> {
  /** The command that it configures, such as `train`. */
  readonly name: string;
  readonly schema: z.ZodType<T>;
  readonly presets: Readonly<Record<string, Preset<T>>>;
  /** Other names of keys, and the keys that they stand for. */
  readonly aliases?: Readonly<Record<string, readonly string[]>>;
  /** Aliases whose value is another one under the key that they stand for. */
  readonly meanings?: Readonly<Record<string, (value: unknown) => Meaning>>;
  /** Values in other spellings, by path. */
  readonly spellings?: Readonly<Record<string, Readonly<Record<string, unknown>>>>;
  /** What is wrong between keys, as whole messages. */
  problems(config: T, origins: Origins): string[];
  /** What is missing before the command can begin. */
  missing(config: T, origins: Origins): string[];
  /** What is allowed and likely not meant, or worth knowing before a run starts. */
  notes(config: T, origins: Origins): string[];
  /** Whether a resumed run may have another value here and be the same, bit for bit. */
  mayChange(path: string, after: T): boolean;
  /** What a run's folder is named after where it has no name, beside the time. */
  nameOf(config: T): string;
}

/** The keys of a kind, and the names that they are found by. */
export interface KeyTable {
  readonly name: string;
  /** Every key, in order. */
  readonly keys: readonly Key[];
  readonly aliases: Readonly<Record<string, readonly string[]>>;
  /** The key at a path such as `rollout.temperature`. */
  keyAt(path: string): Key | undefined;
  /** Whether a path such as `rollout.guidance` names keys and not a value. */
  isSection(path: string): boolean;
  /** What an assignment to another name or in another spelling stands for, itself where it is none. */
  meaningOf(path: string, value: unknown): Meaning;
}

/** A kind of configuration; `resolveConfig(sources, kind)` makes a `T`. */
export interface ConfigKind<T extends object>
  extends KeyTable,
    Omit<KindParts<T>, "aliases" | "meanings" | "spellings"> {}

/** Make a kind from its parts. */
export function configKind<T extends object>(parts: KindParts<T>): ConfigKind<T> {
  const { aliases = {}, meanings = {}, spellings = {}, ...rest } = parts;
  const keys = keysOf(parts.schema);
  const byPath = new Map(keys.map((key) => [key.path.join("."), key]));
  const sections = new Set(
    keys.flatMap(({ path }) => path.slice(0, -1).map((_, i) => path.slice(0, i + 1).join("."))),
  );
  return {
    ...rest,
    keys,
    aliases,
    keyAt: (path) => byPath.get(path),
    isSection: (path) => sections.has(path),
    meaningOf: (path, value) => {
      if (Object.hasOwn(meanings, path)) return (meanings[path] as (value: unknown) => Meaning)(value);
      const targets = Object.hasOwn(aliases, path) ? (aliases[path] as readonly string[]) : [path];
      return targets.map((target) => {
        const own = Object.hasOwn(spellings, target) ? (spellings[target] as Record<string, unknown>) : {};
        return { path: target, value: Object.hasOwn(own, String(value)) ? own[String(value)] : value };
      });
    },
  };
}
