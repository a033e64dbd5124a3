/**
 * What a user sees of a configuration: explanations of keys, the resolved YAML, a JSON Schema for editors, and how two
 * configurations differ.
 */
import { Document, isMap, isScalar, type Pair, type Scalar, type YAMLMap } from "yaml";
import * as z from "zod";
import { isPlain } from "./input.js";
import type { Key } from "./key.js";
import type { ConfigKind, KeyTable } from "./kind.js";
import { trainKind } from "./train_kind.js";
import type { TrainConfig } from "./types.js";

/** What there is to know of one key. */
export interface KeyExplanation {
  /** Such as `rollout.temperature`. */
  readonly path: string;
  /** Its range in words. */
  readonly expects: string;
  readonly default: unknown;
  readonly unit: string | null;
  /** What it is. */
  readonly help: string;
  /** When to change it. */
  readonly when: string;
  /** Other names that set it. */
  readonly aliases: readonly string[];
  /** Whether only a program can pass a value. */
  readonly isLive: boolean;
}

/**
 * Every key, in order; with a path, that key or the keys of that section.
 *
 * @returns an empty list for a path that is none.
 */
export function explainConfig(path = "", kind: KeyTable = trainKind): KeyExplanation[] {
  const isInside = (name: string): boolean => path === "" || name === path || name.startsWith(`${path}.`);
  return kind.keys.map((key) => explain(kind, key)).filter((explanation) => isInside(explanation.path));
}

function explain(kind: KeyTable, key: Key): KeyExplanation {
  const path = key.path.join(".");
  const aliases = Object.keys(kind.aliases).filter(
    (name) => kind.aliases[name]?.includes(path) && !kind.isSection(name),
  );
  const { expects, help, when, unit = null } = key;
  return { path, expects, default: key.default, unit, help, when, aliases, isLive: key.live !== undefined };
}

/** Explanations as lines for a terminal. */
export function explanationText(explanations: readonly KeyExplanation[]): string {
  const blocks = explanations.map(({ path, expects, default: value, unit, help, when, aliases, isLive }) => {
    const also = aliases.length > 0 ? `\n  also: ${aliases.join(", ")}` : "";
    const range = `${expects}${unit === null ? "" : `; ${unit}`}${isLive ? "; from a program only" : ""}`;
    return `${path} = ${flow(value)}\n  ${sentence(help)} ${when}\n  ${range}${also}`;
  });
  return `${blocks.join("\n")}\n`;
}

/** Explanations as a table for the documentation. */
export function explanationMarkdown(explanations: readonly KeyExplanation[]): string {
  const cell = (text: string): string => text.replaceAll("|", "\\|");
  const rows = explanations.map(({ path, expects, default: value, unit, help, when }) => {
    const range = unit === null ? expects : `${expects}; ${unit}`;
    return `| \`${path}\` | \`${cell(flow(value))}\` | ${cell(range)} | ${cell(`${sentence(help)} ${when}`)} |`;
  });
  return `| key | default | range | what it is, and when to change it |\n| --- | --- | --- | --- |\n${rows.join("\n")}\n`;
}

const sentence = (phrase: string): string => `${phrase.charAt(0).toUpperCase()}${phrase.slice(1)}.`;

/** A value in YAML on one line. */
function flow(value: unknown): string {
  return value === null || typeof value !== "object"
    ? new Document(value).toString().trim()
    : JSON.stringify(value);
}

/** A JSON Schema of configuration files, for completion and checks in an editor. */
export function configJsonSchema(
  kind: KeyTable & Pick<ConfigKind<object>, "schema"> = trainKind,
): Record<string, unknown> {
  const schema = z.toJSONSchema(kind.schema, {
    io: "input",
    unrepresentable: "any",
  }) as unknown as JsonObject;
  const visit = (object: JsonObject, path: string): void => {
    delete object.default;
    for (const [name, item] of Object.entries(object.properties ?? {})) {
      const at = path === "" ? name : `${path}.${name}`;
      const key = kind.keyAt(at);
      if (key === undefined) visit(item, at);
      else if (key.live !== undefined) delete object.properties?.[name];
      else
        item.description = `${sentence(key.help)} ${key.when}${key.unit === undefined ? "" : ` Unit: ${key.unit}.`}`;
    }
  };
  visit(schema, "");
  const command = kind.name === "train" ? "" : `: rlar ${kind.name}`;
  return { ...schema, title: `Configuration of rl-ar-finetune${command}` };
}

interface JsonObject extends Record<string, unknown> {
  properties?: Record<string, JsonObject>;
}

/**
 * A configuration as plain data, in the order of the schema. A program's own objects become text such as
 * `<ImageLoader>`, which tells runs apart and cannot be read back.
 */
export function plainConfig(config: TrainConfig): Record<string, unknown>;
export function plainConfig<T extends object>(config: T, kind: ConfigKind<T>): Record<string, unknown>;
export function plainConfig(config: object, kind: KeyTable = trainKind): Record<string, unknown> {
  const visit = (value: unknown, path: string): unknown => {
    if (!kind.isSection(path) && path !== "")
      return kind.keyAt(path)?.live !== undefined && value !== null ? nameOf(value) : plain(value);
    const entries = Object.entries(value as object);
    return Object.fromEntries(
      entries.map(([name, item]) => [name, visit(item, path === "" ? name : `${path}.${name}`)]),
    );
  };
  return visit(config, "") as Record<string, unknown>;
}

function plain(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(plain);
  if (isPlain(value))
    return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, plain(item)]));
  return typeof value === "function" || (typeof value === "object" && value !== null) ? nameOf(value) : value;
}

const nameOf = (value: unknown): string =>
  `<${(typeof value === "function" ? value.name : (value as object).constructor?.name) || "unnamed"}>`;

/**
 * A configuration as YAML that reads back as the same. A program's own objects become comments.
 *
 * @param options.comments - whether each key says what it is; true where left out.
 */
export function configYaml(config: TrainConfig, options?: { comments?: boolean }): string;
export function configYaml<T extends object>(
  config: T,
  options: { comments?: boolean; kind: ConfigKind<T> },
): string;
export function configYaml(
  config: object,
  options: { comments?: boolean; kind?: ConfigKind<object> } = {},
): string {
  const { comments: isCommented = true, kind = trainKind as ConfigKind<object> } = options;
  const document = new Document(plainConfig(config, kind));
  const visit = (map: YAMLMap, path: string): void => {
    for (const pair of map.items as Pair<Scalar<string>>[]) {
      const at = path === "" ? pair.key.value : `${path}.${pair.key.value}`;
      const key = kind.keyAt(at);
      if (key === undefined) {
        if (path === "") pair.key.spaceBefore = true;
        if (isMap(pair.value)) visit(pair.value, at);
        continue;
      }
      const given = isScalar(pair.value) ? pair.value.value : null;
      const range = `${key.expects}${key.unit === undefined ? "" : `; ${key.unit}`}`;
      const comments = !isCommented ? [] : [` ${key.help} (${range})`];
      if (key.live !== undefined && given !== null) {
        comments.push(` the program passed ${String(given)}`);
        (pair.value as unknown as Scalar).value = null;
      }
      if (comments.length > 0) pair.key.commentBefore = comments.join("\n");
      if (!isScalar(pair.value) && pair.value !== null) (pair.value as unknown as YAMLMap).flow = true;
    }
  };
  visit(document.contents as unknown as YAMLMap, "");
  return document.toString({ lineWidth: 0 });
}

/** A key that differs. */
export interface ConfigChange {
  readonly path: string;
  readonly before: unknown;
  readonly after: unknown;
}

/** Keys that differ, in the order of the schema; both sides as {@link plainConfig} gives them. */
export function diffConfigs(
  before: Readonly<Record<string, unknown>>,
  after: Readonly<Record<string, unknown>>,
): ConfigChange[] {
  const [a, b] = [flatten(before), flatten(after)];
  const changes = [...new Set([...b.keys(), ...a.keys()])].filter(
    (path) => JSON.stringify(a.get(path)) !== JSON.stringify(b.get(path)),
  );
  return changes.map((path) => ({ path, before: a.get(path), after: b.get(path) }));
}

function flatten(
  value: Readonly<Record<string, unknown>>,
  path = "",
  into: Map<string, unknown> = new Map(),
): Map<string, unknown> {
  for (const [name, item] of Object.entries(value)) {
    const at = path === "" ? name : `${path}.${name}`;
    if (isPlain(item)) flatten(item, at, into);
    else into.set(at, item);
  }
  return into;
}

/** Changes as lines `rollout.temperature: 1 -> 0.9`. */
export function changesText(changes: readonly ConfigChange[]): string {
  const value = (given: unknown): string => (given === undefined ? "absent" : flow(given));
  return changes.map(({ path, before, after }) => `${path}: ${value(before)} -> ${value(after)}`).join("\n");
}

/**
 * The changes that make a resumed run another one than it was, bit for bit: sizes of batches in memory, threads and
 * the device are among them, since they change the rounding. A data set counts by its fingerprint, not by its place.
 */
export function changesThatMatter(changes: readonly ConfigChange[], after: TrainConfig): ConfigChange[];
export function changesThatMatter<T extends object>(
  changes: readonly ConfigChange[],
  after: T,
  kind: ConfigKind<T>,
): ConfigChange[];
export function changesThatMatter(
  changes: readonly ConfigChange[],
  after: object,
  kind: ConfigKind<object> = trainKind as ConfigKind<object>,
): ConfigChange[] {
  return changes.filter(({ path }) => !kind.mayChange(path, after));
}
