/**
 * A training configuration from what a user gave: defaults, then a preset, a file, a program's values and the command
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
} from "./config_input.js";
import { missingParts, notesOf, type Origins, problemsOf } from "./config_rules.js";
import { configKeys, configSchema, isSection, keyAt } from "./config_schema.js";
import type { TrainConfig, TrainConfigInput } from "./config_types.js";
import { type PresetName, presets } from "./presets.js";

export { type BatchNumbers, batchNumbers, sharesContext } from "./config_rules.js";
export { CONFIG_ALIASES } from "./config_schema.js";
export type * from "./config_types.js";

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
export interface ConfigSources {
  /** Overridden by a `preset` in the file, and that by one in `values` or `overrides`. */
  readonly preset?: PresetName;
  /** A YAML or JSON file. */
  readonly file?: string;
  /** The same as text, as a checkpoint or an editor has it. */
  readonly text?: string;
  /** From a program: objects such as a dataloader, a policy or a reward function may be among them. */
  readonly values?: TrainConfigInput;
  /** From a command line: `rollout.temperature=0.9`, values in YAML's syntax. */
  readonly overrides?: readonly string[];
  /** Whether data, tokenizer and policy must be named; true where left out. */
  readonly isComplete?: boolean;
}

/** A configuration, and what to tell the user before it is used. */
export interface ResolvedConfig {
  /** Every key present, frozen. */
  readonly config: TrainConfig;
  /** Combinations that are allowed and likely to disappoint, a sentence or two each. */
  readonly notes: readonly string[];
}

/**
 * Read a configuration.
 *
 * Keys may be in camelCase or snake_case, and have the names in {@link CONFIG_ALIASES}. `null` unsets a value, a list
 * replaces the whole list before it.
 *
 * @throws ConfigError with every problem: unknown keys with the nearest name, values out of range, keys that do not
 *   fit together, syntax of the file with line and column.
 */
export function resolveConfig(sources: ConfigSources = {}): ResolvedConfig {
  const given: Layer[] = [];
  if (sources.file !== undefined) given.push(layerOfFile(sources.file));
  if (sources.text !== undefined) given.push(layerOfYaml(sources.text, "configuration"));
  if (sources.values !== undefined) given.push(layerOfValues(sources.values as Record<string, unknown>));
  if (sources.overrides !== undefined) given.push(layerOfOverrides(sources.overrides));
  const problems = given.flatMap((layer) => layer.problems);
  const named = given.map((layer) => layer.values.get("preset")).findLast((value) => value !== undefined);
  const preset: Given = named ?? { value: sources.preset ?? null, where: "preset" };
  const layers = [...presetLayer(preset, problems), ...given];

  const known = new Map<string, Given>();
  for (const layer of layers) for (const [path, value] of layer.values) known.set(path, value);
  const whereOf = (path: string): string => {
    const inside = [...known.keys()].findLast((name) => name === path || name.startsWith(`${path}.`));
    const found = known.get(path) ?? (inside === undefined ? undefined : known.get(inside));
    return found?.where ?? path;
  };
  const parsed = configSchema.safeParse(
    treeOf([...layers, { values: new Map([["preset", preset]]), problems: [] }]),
  );
  if (!parsed.success) problems.push(...rangeProblems(parsed.error, known));
  if (!parsed.success || problems.length > 0) throw new ConfigError([...new Set(problems)]);
  const config = freeze(parsed.data);

  const isGiven = (path: string): boolean => given.some((layer) => layer.values.has(path));
  const origins: Origins = { isGiven, whereOf };
  const wrong = problemsOf(config, origins);
  if (sources.isComplete !== false) wrong.push(...missingParts(config, origins));
  if (wrong.length > 0) throw new ConfigError(wrong);
  return { config, notes: notesOf(config, origins) };
}

function presetLayer({ value, where }: Given, problems: string[]): Layer[] {
  if (value === null) return [];
  if (typeof value === "string" && Object.hasOwn(presets, value)) {
    const layer = layerOfValues(
      presets[value as PresetName].values as Record<string, unknown>,
      `preset ${value}`,
    );
    return [layer];
  }
  problems.push(`${where}: expected ${Object.keys(presets).join(", ")} or null, got ${shown(value)}.`);
  return [];
}

/** Nested values of all layers, the later over the earlier. */
function treeOf(layers: readonly Layer[]): Record<string, unknown> {
  const tree: Record<string, unknown> = {};
  for (const { values } of layers) {
    const wholeFirst = [...values].sort(
      ([a], [b]) => Number(keyAt(b)?.isRecord ?? false) - Number(keyAt(a)?.isRecord ?? false),
    );
    for (const [path, { value }] of wholeFirst) {
      const names = path.split(".");
      let at = tree;
      for (const name of names.slice(0, -1)) {
        const next = Object.hasOwn(at, name) ? at[name] : undefined;
        at[name] = next === undefined || next === null ? {} : next;
        at = at[name] as Record<string, unknown>;
      }
      const isRecord = keyAt(path)?.isRecord === true && typeof value === "object" && value !== null;
      at[names.at(-1) as string] = isRecord ? { ...value } : value;
    }
  }
  return tree;
}

/** Messages of values that the schema refuses: one a key, in the words of its range. */
function rangeProblems(error: z.core.$ZodError, known: ReadonlyMap<string, Given>): string[] {
  const paths = new Set(
    error.issues.map(({ path }) =>
      configKeys.find((key) => key.path.every((name, i) => path[i] === name))?.path.join("."),
    ),
  );
  return [...paths].flatMap((path) => {
    const key = path === undefined ? undefined : keyAt(path);
    const given = path === undefined ? undefined : known.get(path);
    if (key === undefined || given === undefined) return [];
    return [`${given.where}: expected ${key.expects}${unitOf(key.unit)}, got ${shown(given.value)}.`];
  });
}

const unitOf = (unit: string | undefined): string => (unit === undefined ? "" : ` (${unit})`);

/** Freeze what the schema made: sections and lists, not what a program passed. */
function freeze<T extends object>(value: T, path = ""): T {
  for (const [name, item] of Object.entries(value) as [string, unknown][]) {
    const at = path === "" ? name : `${path}.${name}`;
    if (isSection(at)) freeze(item as object, at);
    else if (keyAt(at)?.live === undefined && typeof item === "object" && item !== null) Object.freeze(item);
  }
  return Object.freeze(value);
}

/** A path as a user may write it, in the schema's spelling. */
export function configPath(text: string): string {
  return text.split(".").map(camelCase).join(".");
}
