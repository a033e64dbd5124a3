/**
 * A configuration from what a user gave: defaults, then a preset, a file, a program's values and the command
 * line, each over the one before. Every problem is found at once, each with its place.
 */
import type * as z from "zod";

import {
  camelCase,
  type Given,
  type Layer,
  layerOfFile,
  layerOfOverrides,
  layerOfValues,
  layerOfYaml,
  shown,
} from "./input.js";
import type { ConfigKind, KeyTable, Origins } from "./kind.js";
import { trainKind } from "./train_kind.js";
import type { ConfigInput, TrainConfig } from "./types.js";

export type { ConfigKind } from "./kind.js";
export { type BatchNumbers, batchNumbers, sharesContext } from "./rules.js";
export { CONFIG_ALIASES } from "./train_schema.js";
export type * from "./types.js";

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
export interface ConfigSources<T extends object = TrainConfig> {
  /** Overridden by a `preset` in the file, and that by one in `values` or `overrides`. */
  readonly preset?: string;
  /** A YAML or JSON file. */
  readonly file?: string;
  /** The same as text, as a checkpoint or an editor has it. */
  readonly text?: string;
  /** From a program: objects such as a dataloader, a policy or a reward function may be among them. */
  readonly values?: ConfigInput<T>;
  /** From a command line: `rollout.temperature=0.9`, values in YAML's syntax. */
  readonly overrides?: readonly string[];
  /** Whether data, tokenizer and policy must be named; true where left out. */
  readonly isComplete?: boolean;
}

/** A configuration, and what to tell the user before it is used. */
export interface ResolvedConfig<T extends object = TrainConfig> {
  readonly kind: ConfigKind<T>;
  /** Every key present, frozen. */
  readonly config: T;
  /** Combinations that are allowed and likely to disappoint, a sentence or two each. */
  readonly notes: readonly string[];
}

/**
 * Read a configuration.
 *
 * Keys may be in camelCase or snake_case, and have the names in `CONFIG_ALIASES`. `null` unsets a value, a list
 * replaces the whole list before it. `kind` says which command is configured; `rlar train` by default.
 *
 * @throws ConfigError with every problem: unknown keys with the nearest name, values out of range, keys that do not
 *   fit together, syntax of the file with line and column.
 */
export function resolveConfig(sources?: ConfigSources): ResolvedConfig;
export function resolveConfig<T extends object>(
  sources: ConfigSources<T>,
  kind: ConfigKind<T>,
): ResolvedConfig<T>;
export function resolveConfig(
  sources: ConfigSources<object> = {},
  kind: ConfigKind<object> = trainKind as ConfigKind<object>,
): ResolvedConfig<object> {
  const given: Layer[] = [];
  if (sources.file !== undefined) given.push(layerOfFile(kind, sources.file));
  if (sources.text !== undefined) given.push(layerOfYaml(kind, sources.text, "configuration"));
  if (sources.values !== undefined)
    given.push(layerOfValues(kind, sources.values as Record<string, unknown>));
  if (sources.overrides !== undefined) given.push(layerOfOverrides(kind, sources.overrides));
  const problems = given.flatMap((layer) => layer.problems);
  const named = given.map((layer) => layer.values.get("preset")).findLast((value) => value !== undefined);
  const preset: Given = named ?? { value: sources.preset ?? null, where: "preset" };
  const layers = [...presetLayer(kind, preset, problems), ...given];

  const known = new Map<string, Given>();
  for (const layer of layers) for (const [path, value] of layer.values) known.set(path, value);
  const whereOf = (path: string): string => {
    const inside = [...known.keys()].findLast((name) => name === path || name.startsWith(`${path}.`));
    const found = known.get(path) ?? (inside === undefined ? undefined : known.get(inside));
    return found?.where ?? path;
  };
  const parsed = kind.schema.safeParse(
    treeOf(kind, [...layers, { values: new Map([["preset", preset]]), problems: [] }]),
  );
  if (!parsed.success) problems.push(...rangeProblems(kind, parsed.error, known));
  if (!parsed.success || problems.length > 0) throw new ConfigError([...new Set(problems)]);
  const config = freeze(kind, parsed.data);

  const isGiven = (path: string): boolean => given.some((layer) => layer.values.has(path));
  const origins: Origins = { isGiven, whereOf };
  const wrong = kind.problems(config, origins);
  if (sources.isComplete !== false) wrong.push(...kind.missing(config, origins));
  if (wrong.length > 0) throw new ConfigError(wrong);
  return { kind, config, notes: kind.notes(config, origins) };
}

function presetLayer(kind: ConfigKind<object>, { value, where }: Given, problems: string[]): Layer[] {
  if (value === null) return [];
  const { presets } = kind;
  if (typeof value === "string" && Object.hasOwn(presets, value)) {
    return [layerOfValues(kind, presets[value]?.values as Record<string, unknown>, `preset ${value}`)];
  }
  const names = Object.keys(presets).join(", ");
  problems.push(`${where}: expected ${names === "" ? "" : `${names} or `}null, got ${shown(value)}.`);
  return [];
}

/** Nested values of all layers, the later over the earlier. */
function treeOf(kind: KeyTable, layers: readonly Layer[]): Record<string, unknown> {
  const tree: Record<string, unknown> = {};
  for (const { values } of layers) {
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
      const isRecord = kind.keyAt(path)?.isRecord === true && typeof value === "object" && value !== null;
      at[names.at(-1) as string] = isRecord ? { ...value } : value;
    }
  }
  return tree;
}

/** Messages of values that the schema refuses: one a key, in the words of its range. */
function rangeProblems(kind: KeyTable, error: z.core.$ZodError, known: ReadonlyMap<string, Given>): string[] {
  const paths = new Set(
    error.issues.map(({ path }) =>
      kind.keys.find((key) => key.path.every((name, i) => path[i] === name))?.path.join("."),
    ),
  );
  return [...paths].flatMap((path) => {
    const key = path === undefined ? undefined : kind.keyAt(path);
    const given = path === undefined ? undefined : known.get(path);
    if (key === undefined || given === undefined) return [];
    return [`${given.where}: expected ${key.expects}${unitOf(key.unit)}, got ${shown(given.value)}.`];
  });
}

const unitOf = (unit: string | undefined): string => (unit === undefined ? "" : ` (${unit})`);

/** Freeze what the schema made: sections and lists, not what a program passed. */
function freeze<T extends object>(kind: KeyTable, value: T, path = ""): T {
  for (const [name, item] of Object.entries(value) as [string, unknown][]) {
    const at = path === "" ? name : `${path}.${name}`;
    if (kind.isSection(at)) freeze(kind, item as object, at);
    else if (kind.keyAt(at)?.live === undefined && typeof item === "object" && item !== null)
      Object.freeze(item);
  }
  return Object.freeze(value);
}

/** A path as a user may write it, in the schema's spelling. */
export function configPath(text: string): string {
  return text.split(".").map(camelCase).join(".");
}
