/**
 * Resolves a configuration from defaults, a preset, a file, a program's values and the command line; each overrides the ones
 * before. All problems are reported at once, each with its place. `input.ts` reads the sources.
 */

import type * as z from "zod";
import { isPlainObject, type OptionNames, readOptions, requireObject } from "../torch/arguments.js";
import { expectedType } from "../torch/errors.js";
import {
  type Given,
  type Layer,
  layerOfFile,
  layerOfOverrides,
  layerOfValues,
  layerOfYaml,
} from "./input.js";
import { type Key, valueAt } from "./key.js";
import { type ConfigKind, Findings, type KeyTable } from "./kind.js";
import type { TrainConfigInput } from "./names.js";
import { shown } from "./spelling.js";
import type { TrainConfig } from "./train.js";
import { trainKind } from "./train_kind.js";

export type { ConfigKind } from "./kind.js";
export type { TrainConfigInput } from "./names.js";
export { type BatchNumbers, batchNumbers, hasImages, sharesContext } from "./rules.js";
export type * from "./train.js";

/** A configuration that cannot be used; `rlar` ends with exit code 2 on it. */
export class ConfigError extends RangeError {
  override readonly name = "ConfigError";
  /** Every problem, a sentence or two each, without a line break. */
  readonly problems: readonly string[];

  constructor(problems: readonly string[]) {
    const [first = ""] = problems;
    super(
      problems.length === 1
        ? first
        : `${problems.length} problems in the configuration:\n- ${problems.join("\n- ")}`,
    );
    this.problems = problems;
  }
}

/** Where values come from; later ones win. */
export interface ConfigSources<I extends object = TrainConfigInput> {
  /** Overridden by a `preset` in the file, and that by one in `values` or `overrides`. */
  readonly preset?: string;
  /** A YAML or JSON file. Relative paths in it are relative to the file. */
  readonly file?: string;
  /** The same as text, as a checkpoint or an editor has it. */
  readonly text?: string;
  /** From a program: objects such as a dataloader, a policy or a reward function may be among them. */
  readonly values?: I;
  /** From a command line: `rollout.temperature=0.9`, values in YAML's syntax. A later one of a key wins. */
  readonly overrides?: readonly string[];
  /** Whether data, tokenizer and policy must be named; true by default. */
  readonly isComplete?: boolean;
}

/** A configuration, and notes for the user. */
export interface ResolvedConfig<T extends object = TrainConfig> {
  readonly kind: ConfigKind<T>;
  /** Every key present, frozen. */
  readonly config: T;
  /** Combinations that are allowed but probably not intended, a sentence or two each. */
  readonly notes: readonly string[];
}

const SOURCE_NAMES: OptionNames<ConfigSources<object>> = {
  preset: true,
  file: true,
  text: true,
  values: true,
  overrides: true,
  isComplete: "boolean",
};

/**
 * The configuration that a program gave to a training function: its values, or what {@link resolveConfig} made of them.
 *
 * @throws TypeError for what is no object.
 */
export function resolvedFor<T extends object = TrainConfig>(
  where: string,
  given: object,
  kind: ConfigKind<T> = trainKind as unknown as ConfigKind<T>,
): ResolvedConfig<T> {
  requireObject(where, given, "a configuration");
  if ("config" in given && "notes" in given) return given as ResolvedConfig<T>;
  return resolveConfig({ values: given }, kind);
}

/**
 * Read a configuration.
 *
 * Keys may be in camelCase or snake_case, and have the other names that `rlar config explain` lists. `null` unsets a
 * value, a list replaces the whole list before it. A value of a preset that does not fit what the user set is replaced,
 * with a note. `kind` says which command is configured, by default `rlar train`.
 *
 * @throws ConfigError with every problem: unknown keys with the nearest name, values out of range, keys that do not
 *   fit together, syntax of the file with line and column.
 */
export function resolveConfig(sources?: ConfigSources): ResolvedConfig;
export function resolveConfig<T extends object>(
  sources: ConfigSources<object>,
  kind: ConfigKind<T>,
): ResolvedConfig<T>;
export function resolveConfig(
  sources: ConfigSources<object> = {},
  kind: ConfigKind<object> = trainKind as ConfigKind<object>,
): ResolvedConfig<object> {
  requireObject("resolveConfig", sources, "sources of a configuration");
  readOptions<ConfigSources<object>>("resolveConfig", [sources], { names: SOURCE_NAMES });
  if (typeof kind?.keyAt !== "function") {
    throw expectedType("resolveConfig", "a kind of configuration, such as pretrainKind", kind);
  }
  const given: Layer[] = [];
  if (sources.file !== undefined) given.push(layerOfFile(kind, sources.file));
  if (sources.text !== undefined) given.push(layerOfYaml(kind, sources.text, "configuration"));
  if (sources.values !== undefined)
    given.push(layerOfValues(kind, sources.values as Record<string, unknown>));
  if (sources.overrides !== undefined) given.push(layerOfOverrides(kind, sources.overrides));
  return resolveLayers(
    given,
    { preset: sources.preset ?? null, isComplete: sources.isComplete ?? true },
    kind,
  );
}

/** Resolve layers, the later over the earlier; see {@link resolveConfig}. */
export function resolveLayers<T extends object>(
  given: readonly Layer[],
  options: { readonly preset: string | null; readonly isComplete: boolean },
  kind: ConfigKind<T>,
): ResolvedConfig<T> {
  const problems = given.flatMap((layer) => layer.problems);
  const named = given.map((layer) => layer.values.get("preset")).findLast((value) => value !== undefined);
  const preset: Given = named ?? { value: options.preset, where: "preset" };
  const ofPreset = presetOf(kind, preset, problems);
  const presetValues = ofPreset ?? new Map<string, Given>();
  const used = new Map([["preset", ofPreset === null ? { ...preset, value: null } : preset]]);
  const implied = new Map(given.flatMap(({ defaults }) => [...defaults]));
  const layers = [implied, presetValues, ...given.map(({ values }) => values)];

  const known = new Map<string, Given>(layers.flatMap((values) => [...values]));
  const whereOf = (path: string): string => {
    const inside = [...known.keys()].findLast((name) => name === path || name.startsWith(`${path}.`));
    const found = known.get(path) ?? (inside === undefined ? undefined : known.get(inside));
    return found?.where ?? path;
  };
  const isGiven = (path: string): boolean => given.some(({ values }) => values.has(path));

  // Each round replaces one value of the preset that does not fit what the user set.
  const replaced = new Map<string, Given>();
  const notes: string[] = [];
  while (true) {
    const tree = treeOf(kind, [...layers, replaced, used]);
    const parsed = kind.schema.safeParse(tree);
    if (!parsed.success) problems.push(...rangeProblems(kind, parsed.error, known));
    if (!parsed.success || problems.length > 0) throw new ConfigError([...new Set(problems)]);
    const config = parsed.data;
    const found = new Findings({ isGiven, whereOf });
    kind.problems(config, found);
    if (options.isComplete) kind.missing(config, found);
    if (found.problems.length === 0) {
      notes.push(...impliedNotes(implied, known));
      kind.notes(config, found);
      for (const [path, text] of given.flatMap(({ passed = [] }) => [...passed])) {
        if (known.get(path)?.value === null) notes.push(text);
      }
      return { kind, config, notes: [...notes, ...found.notes] };
    }
    // With a preset, all that the user did not set is the preset's.
    const yields = (path: string): boolean => preset.value !== null && !isGiven(path) && !replaced.has(path);
    const [fix] = found.problems.flatMap(({ fixes, what }) =>
      Object.entries(fixes).flatMap(([path, value]) => (yields(path) ? [{ path, value, what }] : [])),
    );
    if (fix === undefined) throw new ConfigError(found.problems.map(({ message }) => message));
    replaced.set(fix.path, { value: fix.value, where: fix.path });
    const before = valueAt(config, fix.path);
    notes.push(
      `${fix.path} is ${shown(fix.value)} in place of ${shown(before)} from preset ${preset.value}: expected ${fix.what}.`,
    );
  }
}

function presetOf(
  kind: ConfigKind<object>,
  { value, where }: Given,
  problems: string[],
): ReadonlyMap<string, Given> | null {
  if (value === null) return new Map();
  const { presets } = kind;
  const found = typeof value === "string" ? presets[value] : undefined;
  if (found !== undefined) {
    return layerOfValues(kind, found.values as Record<string, unknown>, `preset ${value}`).values;
  }
  const names = Object.keys(presets).join(", ");
  problems.push(`${where}: expected ${names === "" ? "" : `${names} or `}null, got ${shown(value)}.`);
  return null;
}

/** A note on the values that a key of the original description implies. */
function impliedNotes(implied: ReadonlyMap<string, Given>, known: ReadonlyMap<string, Given>): string[] {
  const kept = [...implied].filter(([path, value]) => known.get(path) === value);
  const [first] = kept;
  if (first === undefined) return [];
  const list = kept.map(([path, { value }]) => `${path} ${shown(value)}`).join(", ");
  return [
    `${first[1].where} is a key of the original description, so what that does not have is off: ${list}. ` +
      "Set these keys, or set algorithm in its place to get this program's defaults.",
  ];
}

/** Nested values of all layers, the later over the earlier. */
function treeOf(kind: KeyTable, layers: readonly ReadonlyMap<string, Given>[]): Record<string, unknown> {
  const tree: Record<string, unknown> = {};
  for (const values of layers) {
    const wholeFirst = [...values].sort(
      ([a], [b]) => Number(kind.keyAt(b)?.isRecord ?? false) - Number(kind.keyAt(a)?.isRecord ?? false),
    );
    for (const [path, { value }] of wholeFirst) {
      const names = path.split(".");
      let at = tree;
      for (const name of names.slice(0, -1)) {
        const next = Object.hasOwn(at, name) ? at[name] : undefined;
        at[name] = next === undefined || next === null ? {} : next;
        at = at[name] as Record<string, unknown>;
      }
      // A copy, which later values of its keys go into.
      const isRecord = kind.keyAt(path)?.isRecord === true && isPlainObject(value);
      at[names.at(-1) as string] = isRecord ? { ...value } : value;
    }
  }
  return tree;
}

/** Messages of values that the schema refuses: one a key, in the words of its range. */
function rangeProblems(kind: KeyTable, error: z.core.$ZodError, known: ReadonlyMap<string, Given>): string[] {
  const paths = new Set(
    error.issues.map(({ path }) =>
      path.map((_, i) => path.slice(0, i + 1).join(".")).find((at) => kind.keyAt(at) !== undefined),
    ),
  );
  return [...paths].flatMap((path) => {
    const key = path === undefined ? undefined : kind.keyAt(path);
    const given = path === undefined ? undefined : known.get(path);
    if (key === undefined || given === undefined) return [];
    const unit = key.unit === undefined ? "" : ` (${key.unit})`;
    return [`${given.where}: expected ${key.expects}${unit}, got ${gotOf(key, given.value)}`];
  });
}

/** A refused value, and what to do where it is text that should be a number, or the other way round. */
function gotOf({ type }: Key, value: unknown): string {
  const takes = (other: unknown): boolean => type.safeParse(other).success;
  const isNumeric = (text: string): boolean => text.trim() !== "" && Number.isFinite(Number(text));
  if (typeof value === "string") {
    const plain = value.replaceAll("_", "");
    const other = { true: true, false: false, null: null }[value];
    if (other !== undefined && takes(other)) return `the text "${value}". Remove the quotes.`;
    if (isNumeric(plain) && !takes("text")) {
      const remedy = plain === value ? "Remove the quotes." : `Write ${plain}.`;
      return `the text ${JSON.stringify(value)}${takes(Number(plain)) ? `. ${remedy}` : "."}`;
    }
  }
  if (typeof value !== "object" && takes(String(value)) && value !== undefined) {
    return `${shown(value)}. Write it in quotes: "${value}".`;
  }
  const isInexact = Number.isInteger(value) && !Number.isSafeInteger(value);
  return `${shown(value)}.${isInexact ? ` Integers are exact up to ${Number.MAX_SAFE_INTEGER}.` : ""}`;
}
