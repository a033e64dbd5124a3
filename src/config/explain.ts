/**
 * Output of configurations: explanations of keys, the resolved YAML, a JSON Schema for editors, and differences between
 * two configurations.
 */
import { isAbsolute, relative, resolve } from "node:path";
import { Document, isMap, isScalar, type Pair, type Scalar, type YAMLMap } from "yaml";
import * as z from "zod";
import { isPlainObject } from "../torch/arguments.js";
import { PASSED } from "./input.js";
import { type Key, NAME, valueAt } from "./key.js";
import type { ConfigKind, KeyTable, Resumed } from "./kind.js";
import type { TrainConfig } from "./train.js";
import { trainKind } from "./train_kind.js";

/** The explanation of a key. */
export interface KeyExplanation extends Pick<Key, "expects" | "default" | "help" | "when"> {
  /** Such as `rollout.temperature`. */
  readonly path: string;
  readonly unit: string | null;
  /** Other names that set it. */
  readonly aliases: readonly string[];
  /** Whether only a program can pass a value. */
  readonly isLive: boolean;
  /** What a change does to a run that is resumed, with the defaults of the other keys. */
  readonly onResume: Resumed;
}

/**
 * Every key, in order; with a path or another name, that key or the keys of that section.
 *
 * @returns an empty list for a path that does not exist.
 */
export function explainConfig(
  path = "",
  kind: ConfigKind<object> = trainKind as ConfigKind<object>,
): KeyExplanation[] {
  const asked = kind.pathOf(path.split("."));
  const names = (kind.isSection(asked) ? [asked] : (kind.aliases[asked] ?? [asked])).map(kind.patternOf);
  const isInside = (name: string): boolean =>
    path === "" || names.some((of) => name === of || name.startsWith(`${of}.`));
  const usual = kind.schema.parse({});
  return kind.keys.filter((key) => isInside(key.path.join("."))).map((key) => explain(kind, key, usual));
}

function explain(kind: ConfigKind<object>, key: Key, usual: object): KeyExplanation {
  const path = key.path.join(".");
  const aliases = Object.keys(kind.aliases).filter(
    (name) => kind.aliases[name]?.some((of) => kind.patternOf(of) === path) && !kind.isSection(name),
  );
  const { expects, help, when, unit = null, live } = key;
  const about = { path, expects, default: key.default, unit, help, when, aliases };
  return { ...about, isLive: live !== undefined, onResume: kind.onResume(path, usual) };
}

/** The paths of a configuration's keys, in the order of the schema, with the names that the user chose. */
export function pathsIn(config: Readonly<Record<string, unknown>>, kind: KeyTable): string[] {
  return kind.keys.flatMap(({ path }) => {
    const place = path.indexOf(NAME);
    if (place < 0) return [path.join(".")];
    const names = Object.keys((valueAt(config, path.slice(0, place).join(".")) as object | undefined) ?? {});
    return names.map((name) => path.with(place, name).join("."));
  });
}

/** What a change does to a resumed run, in words. */
export const RESUMED: Readonly<Record<Resumed, string>> = {
  free: "may be changed when a run is resumed",
  forced: "may be changed when a run is resumed with --force",
  fixed: "cannot be changed: the checkpoint, or the sweep as it was begun, decides it",
};

/** Range, unit and who can set it. */
export const rangeOf = ({ expects, unit, isLive }: KeyExplanation): string =>
  `${expects}${unit === null ? "" : `; ${unit}`}${isLive ? "; from a program only" : ""}`;

/** Explanations as lines for a terminal. */
export function explanationText(explanations: readonly KeyExplanation[]): string {
  const blocks = explanations.map((key) => {
    const also = key.aliases.length > 0 ? `\n  also: ${key.aliases.join(", ")}` : "";
    const text = `${key.help} ${key.when}`.trim();
    return `${key.path} = ${flow(key.default)}\n  ${text}\n  ${rangeOf(key)}\n  ${RESUMED[key.onResume]}${also}`;
  });
  return `${blocks.join("\n")}\n`;
}

/** A value in YAML on one line. */
export function flow(value: unknown): string {
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
    override: ({ jsonSchema }) => {
      delete jsonSchema.readOnly; // an editor may write them
    },
  }) as unknown as JsonObject;
  const visit = (object: JsonObject, path: string): void => {
    delete object.default;
    if (object.additionalProperties?.properties !== undefined)
      visit(object.additionalProperties, `${path}.${NAME}`);
    for (const [name, item] of Object.entries(object.properties ?? {})) {
      const at = path === "" ? name : `${path}.${name}`;
      const key = kind.keyAt(at);
      if (key === undefined) visit(item, at);
      else if (key.live !== undefined) delete object.properties?.[name];
      else if (key.unit !== undefined) item.description = `${item.description} Unit: ${key.unit}.`;
    }
  };
  visit(schema, "");
  const command = kind.name === "train" ? "" : `: rlar ${kind.name}`;
  return { ...schema, title: `Configuration of rl-ar-finetune${command}` };
}

interface JsonObject extends Record<string, unknown> {
  description?: string;
  properties?: Record<string, JsonObject>;
  additionalProperties?: JsonObject;
}

/**
 * A configuration as plain data, in the order of the schema. A program's own objects become text such as
 * `<ImageLoader>`, which tells runs apart and cannot be read back.
 */
export function plainConfig(config: object, kind: KeyTable = trainKind): Record<string, unknown> {
  const visit = (value: unknown, path: string): unknown => {
    if (!kind.isSection(path) && path !== "")
      return kind.keyAt(path)?.live !== undefined && value !== null ? objectName(value) : plain(value);
    const entries = Object.entries(value as object);
    return Object.fromEntries(
      entries.map(([name, item]) => [name, visit(item, path === "" ? name : `${path}.${name}`)]),
    );
  };
  return visit(config, "") as Record<string, unknown>;
}

function plain(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(plain);
  if (isPlainObject(value))
    return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, plain(item)]));
  return typeof value === "function" || (typeof value === "object" && value !== null)
    ? objectName(value)
    : value;
}

const objectName = (value: unknown): string =>
  `<${(typeof value === "function" ? value.name : (value as object).constructor?.name) || "unnamed"}>`;

/**
 * A configuration as YAML that reads back as the same. A program's own objects become comments.
 *
 * @param options.comments - whether each key says what it is; true by default.
 * @param options.folder - folder that the YAML will be written to: relative paths become relative to it.
 */
export function configYaml(
  config: object,
  options: { comments?: boolean; folder?: string; kind?: KeyTable } = {},
): string {
  const { comments: isCommented = true, kind = trainKind, folder } = options;
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
      const comments = isCommented ? [` ${key.help} Range: ${range}.`] : [];
      if (key.isPath && folder !== undefined && typeof given === "string" && !isAbsolute(given)) {
        (pair.value as unknown as Scalar).value = relative(folder, given) || ".";
      }
      if (key.live !== undefined && given !== null) {
        comments.push(` ${PASSED} ${String(given)}`);
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
    if (isPlainObject(item)) flatten(item, at, into);
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
 * The changes after which a resumed run is not the same bit for bit: sizes of batches in memory, threads and
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
  const isMoved = ({ path, before, after: now }: ConfigChange): boolean =>
    !(kind.keyAt(path)?.isPath === true && typeof before === "string" && typeof now === "string") ||
    resolve(before) !== resolve(now);
  return changes.filter((change) => kind.onResume(change.path, after) !== "free" && isMoved(change));
}
