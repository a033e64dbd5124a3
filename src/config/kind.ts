/**
 * A kind of configuration: the keys of one command, their other names, presets, and rules between keys.
 * Reading one is done in `resolve.ts`, showing one in `explain.ts`; both take the kind as a parameter.
 */
import type * as z from "zod";
import { type Key, keysOf, NAME } from "./key.js";
import { schemaName, shown } from "./spelling.js";

/** Which keys were given, and how to name them in a message. */
interface Origins {
  isGiven(path: string): boolean;
  /** Such as `run.yaml:3:5: rollout.topK`; the path itself for a default. */
  whereOf(path: string): string;
}

/** A problem between keys. */
interface Problem {
  readonly message: string;
  /** What was expected, as in the message. */
  readonly what: string;
  /** Values that would solve it, by path. One replaces the value of a preset, not one that the user gave. */
  readonly fixes: Readonly<Record<string, unknown>>;
}

/** Collects what rules find in a configuration. */
export class Findings implements Origins {
  readonly problems: Problem[] = [];
  readonly notes: string[] = [];
  readonly isGiven: Origins["isGiven"];
  readonly whereOf: Origins["whereOf"];

  constructor({ isGiven, whereOf }: Origins) {
    this.isGiven = isGiven;
    this.whereOf = whereOf;
  }

  /** A value that does not fit other keys. The remedy has no full stop. */
  readonly refuse = (
    path: string,
    what: string,
    got: unknown,
    remedy: string,
    fixes: Readonly<Record<string, unknown>> = {},
  ): void => {
    const message = `${this.whereOf(path)}: expected ${what}, got ${shown(got)}. ${remedy}.`;
    this.problems.push({ message, what, fixes });
  };

  /** A key that must be given, unless `isThere`. */
  readonly require = (path: string, what: string, isThere: boolean): void => {
    const message = `${this.whereOf(path)}: expected ${what}, got nothing.`;
    if (!isThere) this.problems.push({ message, what, fixes: {} });
  };

  /** Note which of these keys were given although they are not used. */
  readonly unread = (why: string, paths: readonly string[]): void => {
    const given = paths.filter(this.isGiven);
    if (given.length > 0) this.notes.push(`${given.join(", ")}: not used ${why}.`);
  };
}

/** Values to start from, and where they come from. */
export interface Preset {
  readonly about: string;
  readonly values: object;
}

/** A value under its own key. */
interface Assigned {
  readonly path: string;
  readonly value: unknown;
  /** `weak` gives way to the same key in the same source, `default` to every source and preset. */
  readonly rank?: "weak" | "default";
}

/** What an assignment stands for, or what was expected in place of its value. */
export type Meaning = readonly Assigned[] | { readonly expected: string };

/**
 * What a changed key does to a run that is resumed: `free` may change; `forced` is refused without --force and takes
 * effect with it; so is `fixed`, but with --force the weights stay the checkpoint's, and other shapes are refused. `rlar sweep`
 * has no --force: a sweep does not continue with other keys.
 */
export type Resumed = "free" | "forced" | "fixed";

/** The parts of a kind. */
export interface KindParts<T extends object> {
  /** The command that it configures, such as `train`. */
  readonly name: string;
  readonly schema: z.ZodType<T>;
  readonly presets: Readonly<Record<string, Preset>>;
  /** Other names of keys, and the keys that they stand for. */
  readonly aliases?: Readonly<Record<string, readonly string[]>>;
  /** Aliases whose value means another value under the key that they stand for. */
  readonly meanings?: Readonly<Record<string, (value: unknown) => Meaning>>;
  /** Values in other spellings, by path. */
  readonly spellings?: Readonly<Record<string, Readonly<Record<string, unknown>>>>;
  /** A record of a file whose values may be paths, with `inFolder` of each path; itself by default. */
  moved?(path: string, value: unknown, inFolder: (path: unknown) => unknown): unknown;
  /** Refuse values that do not fit together. */
  problems(config: T, found: Findings): void;
  /** Require what the command needs to begin. */
  missing(config: T, found: Findings): void;
  /** Note values that are allowed but probably not intended. */
  notes(config: T, found: Findings): void;
  /** What a change of a key does to a resumed run with the configuration `after` it. */
  onResume(path: string, after: T): Resumed;
  /** Which keys to lower when memory runs out: a sentence without its full stop. */
  readonly memory: string;
  /** What a run's folder is named after when it has no name, beside the time. */
  nameOf(config: T): string;
}

/** The keys of a kind, and the names that they are found by. */
export interface KeyTable {
  readonly name: string;
  /** Every key, in order. */
  readonly keys: readonly Key[];
  /** Without a prototype, so that it holds no names but its own. */
  readonly aliases: Readonly<Record<string, readonly string[]>>;
  /** A path as written, such as `["rollout", "max_len"]`, in the spelling of the schema; names that the user chose stay. */
  pathOf(written: readonly string[]): string;
  /** A path with `NAME` in place of a name that the user chose: `reward.custom.NAME.weight`. */
  patternOf(path: string): string;
  /** The key at a path such as `rollout.temperature`. */
  keyAt(path: string): Key | undefined;
  /** Whether a path such as `rollout.guidance` names keys and not a value. */
  isSection(path: string): boolean;
  /** The value of a file at a path, with `inFolder` of each path in it. */
  moved(path: string, value: unknown, inFolder: (path: unknown) => unknown): unknown;
  /** What an assignment to another name or in another spelling stands for; itself where there is none. */
  meaningOf(path: string, value: unknown): Meaning;
}

/** A kind of configuration; `resolveConfig(sources, kind)` makes a `T`. */
export interface ConfigKind<T extends object>
  extends KeyTable,
    Omit<KindParts<T>, "aliases" | "meanings" | "spellings" | "moved"> {}

/** A record that has no names but its own. */
const own = <V>(record: Readonly<Record<string, V>> = {}): Readonly<Record<string, V>> =>
  Object.assign(Object.create(null), record) as Record<string, V>;

/** Make a kind from its parts. */
export function configKind<T extends object>(parts: KindParts<T>): ConfigKind<T> {
  const [aliases, meanings, spellings] = [own(parts.aliases), own(parts.meanings), own(parts.spellings)];
  const keys = keysOf(parts.schema);
  const byPath = new Map(keys.map((key) => [key.path.join("."), key]));
  const sections = new Set(
    keys.flatMap(({ path }) => path.slice(0, -1).map((_, i) => path.slice(0, i + 1).join("."))),
  );
  // Sections whose names the user chooses, such as reward.custom; other names of keys are no such names.
  const named = new Set(
    keys.flatMap(({ path }) => {
      return path.includes(NAME) ? [path.slice(0, path.indexOf(NAME)).join(".")] : [];
    }),
  );
  const isChosen = (section: string, name: string): boolean =>
    named.has(section) && aliases[`${section}.${schemaName(name)}`] === undefined;
  const joined = (names: readonly string[], spelled: (name: string, isChosen: boolean) => string): string =>
    names.reduce(
      (above, name, i) =>
        i === 0 ? spelled(name, false) : `${above}.${spelled(name, isChosen(above, name))}`,
      "",
    );
  const patternOf = (path: string): string =>
    joined(path.split("."), (name, chosen) => (chosen ? NAME : name));
  return {
    ...parts,
    presets: own(parts.presets),
    keys,
    aliases,
    pathOf: (written) => joined(written, (name, chosen) => (chosen ? name : schemaName(name))),
    patternOf,
    keyAt: (path) => byPath.get(patternOf(path)),
    isSection: (path) => sections.has(patternOf(path)),
    moved: (path, value, inFolder) =>
      byPath.get(patternOf(path))?.isPath === true
        ? inFolder(value)
        : (parts.moved?.(path, value, inFolder) ?? value),
    meaningOf: (path, value) =>
      meanings[path]?.(value) ??
      (aliases[path] ?? [path]).map((target) => {
        const spelled = own(spellings[target]);
        const isPlain = typeof value === "string" || typeof value === "boolean";
        return { path: target, value: isPlain && `${value}` in spelled ? spelled[`${value}`] : value };
      }),
  };
}
