/**
 * Reads YAML files, `key=value` of a command line and objects of a program into values under the names of the schema. It
 * resolves spellings and aliases and finds unknown keys; `resolve.ts` checks ranges.
 */
import { readFileSync, statSync } from "node:fs";
import { homedir } from "node:os";
import { dirname, isAbsolute, join, relative } from "node:path";
import { type Document, isAlias, isMap, isScalar, LineCounter, type Node, parseDocument } from "yaml";

import { isPlainObject, nearestName } from "../torch/arguments.js";
import { rlarCommand } from "./command.js";
import type { Key } from "./key.js";
import type { KeyTable } from "./kind.js";
import { schemaName, shown } from "./spelling.js";

/** A value, and how to name its place in a message. */
export interface Given {
  readonly value: unknown;
  /** Such as `run.yaml:3:5: rollout.topK`. */
  readonly where: string;
}

/** The values of one source by the schema's paths, and its problems. */
export interface Layer {
  readonly values: ReadonlyMap<string, Given>;
  /** Values that every other source and every preset replaces. */
  readonly defaults: ReadonlyMap<string, Given>;
  readonly problems: readonly string[];
  /** Keys whose values a program had passed when it wrote the file, with what to say of them. */
  readonly passed?: ReadonlyMap<string, string>;
}

/** What {@link configYaml} writes above a key that has a program's own object. */
export const PASSED = "the program passed";

/** One assignment as it was written. */
interface Written {
  /** As written, such as `["rollout", "max_len"]`. */
  readonly path: readonly string[];
  readonly value: unknown;
  /** Stands before the path in messages. */
  readonly place: string;
}

/** Limits of a configuration: beyond them it is a mistake or an attack. */
const MAX_BYTES = 2 ** 20;
const MAX_DEPTH = 16;
const MAX_VALUES = 10_000;

/** Values that a program passes; its own objects are passed through unchanged. */
export function layerOfValues(
  kind: KeyTable,
  values: Readonly<Record<string, unknown>>,
  name = "config",
): Layer {
  const written: Written[] = [];
  const problems: string[] = [];
  const visit = (value: unknown, path: readonly string[]): void => {
    if (value === undefined) return;
    const isValue = !isPlainObject(value) || isEmptyValue(kind, path, Object.keys(value).length);
    if (isValue || isWhole(kind, path)) written.push({ path, value, place: `${name}.` });
    else if (path.length === MAX_DEPTH) problems.push(`${name}.${path.join(".")}: ${TOO_MUCH}`);
    else for (const [key, item] of Object.entries(value)) visit(item, [...path, key]);
  };
  if (isPlainObject(values)) visit(values, []);
  else problems.push(`${name}: expected keys with values, got ${shown(values)}.`);
  return layerOf(kind, written, { mayBeLive: true, problems });
}

/** Values of a command line: `rollout.temperature=0.9`, each value in YAML's syntax. A later one of a key wins. */
export function layerOfOverrides(kind: KeyTable, overrides: readonly string[]): Layer {
  const place = "command line: ";
  const problems: string[] = [];
  const explain = ["config", "explain", ...(kind.name === "train" ? [] : ["--for", kind.name])];
  const written = overrides.flatMap((text): Written[] => {
    const at = text.indexOf("=");
    const path = text.slice(0, at).trim().split(".");
    if (at < 1) {
      problems.push(`${place}expected key=value, got ${text}. ${rlarCommand(explain)} lists the keys.`);
      return [];
    }
    const source = text.slice(at + 1).trim();
    if (source === "") {
      problems.push(
        `${place}${path.join(".")}: expected a value after "=", got nothing. Write null to unset a key.`,
      );
      return [];
    }
    if (isText(kind, path) && !/^(["']|null$|~$)/.test(source)) return [{ path, value: source, place }];
    const { found, errors } = readYaml(kind, source, () => place, path);
    problems.push(...errors.map(({ reason }) => `${place}${path.join(".")}: ${reason}`));
    return found;
  });
  return layerOf(kind, written, { lastWins: true, problems });
}

/** Values of a YAML (or JSON) file; places are lines and columns. Relative paths in it are relative to the file. */
export function layerOfFile(kind: KeyTable, file: string): Layer {
  const refused = (what: string, got: string): Layer => ({
    values: new Map(),
    defaults: new Map(),
    problems: [`${file}: expected ${what}, got ${got}.`],
  });
  let text: string;
  let folder = dirname(file);
  try {
    const info = statSync(file);
    if (info.isFIFO() || file === "/dev/stdin")
      folder = "."; // what a shell's <(...) and < give
    else if (!info.isFile())
      return refused("a configuration file", info.isDirectory() ? "a folder" : "no file");
    if (info.size > MAX_BYTES) return refused("a configuration of at most 1 MiB", `${info.size} bytes`);
    text = new TextDecoder("utf-8", { fatal: true }).decode(readFileSync(file));
  } catch (error) {
    if (error instanceof TypeError) return refused("text in UTF-8", "other bytes");
    const { code } = error as NodeJS.ErrnoException;
    const got =
      code === "ENOENT" ? "no such file" : code === "EACCES" ? "no permission to read it" : `${code}`;
    return refused("a configuration that can be read", got);
  }
  return layerOfYaml(kind, text, file, folder);
}

/** Values of YAML text; `name` stands for the file in messages, and relative paths are relative to `folder`. */
export function layerOfYaml(kind: KeyTable, text: string, name: string, folder = "."): Layer {
  const { found, errors, passed } = readYaml(
    kind,
    text,
    ([line, column]) => `${name}:${line}:${column}: `,
    [],
  );
  const problems = errors.map(({ place, reason }) => `${place}${reason}`);
  const layer = layerOf(kind, found, { problems });
  const inFolder = (value: unknown): unknown => onPaths(value, (path) => pathIn(folder, path));
  const values = [...layer.values].map(([path, given]): [string, Given] => [
    path,
    { ...given, value: kind.moved(path, given.value, inFolder) },
  ]);
  const told = passed.map(
    ([path, what]) =>
      [
        path,
        `${path}: the program whose run wrote ${name} passed ${what}, which this run is without.`,
      ] as const,
  );
  return { ...layer, values: new Map(values), passed: new Map(told) };
}

/** A path or a list of paths with a function of each; other values as they are. */
function onPaths(value: unknown, of: (path: string) => string): unknown {
  if (Array.isArray(value)) return value.map((each) => onPaths(each, of));
  return typeof value === "string" ? of(value) : value;
}

/**
 * A path that a configuration file in `folder` has, as a path of this process: relative to the working directory, or
 * absolute where the file lies elsewhere.
 */
export function pathIn(folder: string, given: string): string {
  const path = homePath(given);
  if (isAbsolute(path) || folder === ".") return path;
  const whole = join(folder, path);
  const near = relative("", whole) || ".";
  return isAbsolute(folder) && near.startsWith("..") ? whole : near;
}

type Position = readonly [line: number, column: number];

const TOO_MUCH = `expected at most ${MAX_VALUES} values in ${MAX_DEPTH} levels, got more.`;

/** Assignments of YAML text below a path. */
function readYaml(
  kind: KeyTable,
  text: string,
  placeOf: (at: Position) => string,
  below: readonly string[],
): { found: Written[]; errors: { place: string; reason: string }[]; passed: [path: string, what: string][] } {
  const found: Written[] = [];
  const passed: [path: string, what: string][] = [];
  const errors: { place: string; reason: string }[] = [];
  const lines = new LineCounter();
  const refuse = (offset: number, reason: string): void => {
    const { line, col } = lines.linePos(offset);
    errors.push({ place: placeOf([line, col]), reason });
  };
  const document = parsed(text, lines);
  if (document === null) {
    refuse(0, TOO_MUCH);
    return { found, errors, passed };
  }
  // Text after a syntax error is misread, so only the first error is reported.
  const isDuplicate = ({ code }: { code: string }): boolean => code === "DUPLICATE_KEY";
  const [mistake] = [...document.errors.filter((error) => !isDuplicate(error)), ...document.warnings];
  if (mistake?.code === "MULTIPLE_DOCS") refuse(mistake.pos[0], "expected one document, got another one.");
  else if (mistake !== undefined) {
    refuse(mistake.pos[0], `expected YAML, got a mistake. ${mistake.message.replace(/\.$/, "")}.`);
  } else {
    for (const { pos } of document.errors) {
      refuse(pos[0], `expected each key once, got ${/[^\s:]*/.exec(text.slice(pos[0]))?.[0]} again.`);
    }
  }
  if (errors.length > 0) return { found, errors, passed };
  const visit = (given: Node | null, path: readonly string[], offset: number): void => {
    if (errors.length > 0) return;
    const node = isAlias(given) ? given.resolve(document) : given;
    if (node === undefined) {
      refuse(offset, undefinedName(String(given)));
      return;
    }
    if (!isMap(node) || isWhole(kind, path) || isEmptyValue(kind, path, node.items.length)) {
      if (path.length === 0) {
        const got = node === null || (isScalar(node) && node.value === null) ? null : nodeText(node);
        if (got !== null) refuse(offset, `expected keys with values, got ${got}.`);
        return;
      }
      const value = plainOf(node, document);
      if (value instanceof Error) refuse(offset, value.message);
      else if (found.length === MAX_VALUES) refuse(offset, TOO_MUCH);
      else found.push({ path, value, place: placeAt(offset) });
      return;
    }
    if (path.length === MAX_DEPTH) {
      refuse(offset, TOO_MUCH);
      return;
    }
    for (const pair of node.items) {
      const name = isScalar(pair.key) ? String(pair.key.value) : String(pair.key);
      if (name === "<<") {
        refuse(
          (pair.key as Node).range?.[0] ?? offset,
          "expected keys with values, got a merge key (<<), which is not read. Write the keys out.",
        );
        return;
      }
      const [, what] = PASSED_COMMENT.exec((pair.key as Node).commentBefore ?? "") ?? [];
      if (what !== undefined) passed.push([[...path, name].map(schemaName).join("."), what]);
      visit(pair.value as Node | null, [...path, name], (pair.key as Node).range?.[0] ?? offset);
    }
  };
  const placeAt = (offset: number): string => {
    const { line, col } = lines.linePos(offset);
    return placeOf([line, col]);
  };
  visit(document.contents as Node | null, below, 0);
  return { found: errors.length > 0 ? [] : found, errors, passed };
}

const PASSED_COMMENT = new RegExp(`^ ${PASSED} (.+)$`, "m");

/** Parsed YAML, or null for one that is nested too deeply for the parser. */
function parsed(text: string, lineCounter: LineCounter): Document.Parsed | null {
  try {
    const document = parseDocument(text, { lineCounter, prettyErrors: false, strict: true });
    return document.errors.some(({ message }) => message.includes("call stack")) ? null : document;
  } catch (error) {
    if (error instanceof RangeError) return null; // the stack is full
    throw error;
  }
}

const undefinedName = (name: string): string =>
  `expected a name that is defined above, got ${name}. Quote text that begins with *.`;

/** The value of a node, or what is wrong with it: it contains itself, grows without bounds by aliases, or has an unknown one. */
function plainOf(node: Node | null, document: Document.Parsed): unknown {
  try {
    return node?.toJS(document as Document, { maxAliasCount: 100 }) ?? null;
  } catch (error) {
    if (!(error instanceof ReferenceError || error instanceof RangeError)) throw error;
    const [, name] = /^Unresolved alias.*: (.*)$/.exec(error.message) ?? [];
    return new RangeError(name === undefined ? TOO_MUCH : undefinedName(`*${name}`));
  }
}

/** Whether lists and objects lie in each other more than {@link MAX_DEPTH} levels deep, as those that hold themselves. */
function isDeep(value: unknown, depth = 0): boolean {
  if (!Array.isArray(value) && !isPlainObject(value)) return false;
  return depth === MAX_DEPTH || Object.values(value).some((item) => isDeep(item, depth + 1));
}

const nodeText = (node: Node): string => (isScalar(node) ? String(node.value) : "a list");

/** Whether an empty object is a value: its path is not that of a section. */
const isEmptyValue = (kind: KeyTable, path: readonly string[], items: number): boolean =>
  items === 0 && path.length > 0 && !kind.isSection(kind.pathOf(path));

/** The key that a path as written names, or the first key that another name stands for. */
function keyOf(kind: KeyTable, path: readonly string[]): Key | undefined {
  const name = kind.pathOf(path);
  return kind.keyAt(name) ?? (kind.isSection(name) ? undefined : kind.keyAt(kind.aliases[name]?.[0] ?? ""));
}

/** Whether a key takes any text, so that a command line need not quote it. */
function isText(kind: KeyTable, path: readonly string[]): boolean {
  const key = keyOf(kind, path);
  return key?.live === undefined && key?.type.safeParse("any text").success === true;
}

/** Whether a path has one value, even if it is written as keys with values. */
function isWhole(kind: KeyTable, path: readonly string[]): boolean {
  const key = keyOf(kind, path);
  return key?.isRecord === true || key?.live !== undefined;
}

/** A name that every JavaScript object has, such as `toString`, which is not safe to assign. */
function inheritedName(names: readonly string[], value: unknown): string | undefined {
  const found = names.find((name) => name in Object.prototype || schemaName(name) in Object.prototype);
  if (found !== undefined || !isPlainObject(value)) return found;
  for (const [name, item] of Object.entries(value)) {
    const inside = inheritedName([name], item);
    if (inside !== undefined) return inside;
  }
  return undefined;
}

/** Assignments under the schema's names. */
function layerOf(
  kind: KeyTable,
  written: readonly Written[],
  options: { mayBeLive?: boolean; lastWins?: boolean; problems: readonly string[] },
): Layer {
  const values = new Map<string, Given>();
  const defaults = new Map<string, Given>();
  const problems = [...options.problems];
  const isWeak = new Set<string>();
  for (const { path, value, place } of written) {
    const name = kind.pathOf(path);
    const where = `${place}${path.join(".")}`;
    if (kind.keyAt(name)?.live === undefined && isDeep(value)) {
      problems.push(`${where}: ${TOO_MUCH}`);
      continue;
    }
    const inherited = inheritedName(path, kind.keyAt(name)?.live === undefined ? value : null);
    if (inherited !== undefined) {
      problems.push(`${where}: unknown key ${inherited}.`);
      continue;
    }
    if (kind.isSection(name) && (value === null || kind.aliases[name] === undefined)) {
      problems.push(`${where}: expected keys with values, got ${shown(value)}.`);
      continue;
    }
    const assigned = kind.meaningOf(name, value);
    if ("expected" in assigned) {
      problems.push(`${where}: expected ${assigned.expected}, got ${shown(value)}.`);
      continue;
    }
    for (const { path: target, value: meant, rank } of assigned) {
      const key = kind.keyAt(target) ?? recordAt(kind, target);
      if (key === undefined) {
        problems.push(`${where}: unknown key. ${adviceOn(kind, name)}`);
        continue;
      }
      if (key.live !== undefined && meant !== null && options.mayBeLive !== true) {
        const file = target.replace(/[^.]+$/, "path");
        const remedy = kind.keyAt(file) === undefined ? "" : ` Set ${file} for a file.`;
        problems.push(
          `${where}: expected nothing, got ${shown(meant)}. Only a program can pass ${key.live}.${remedy}`,
        );
        continue;
      }
      const own = options.mayBeLive !== true && key.isPath === true ? onPaths(meant, homePath) : meant;
      if (rank === "default") {
        defaults.set(target, { value: own, where });
        continue;
      }
      const before = values.get(target);
      const isSame = before !== undefined && JSON.stringify(before.value) === JSON.stringify(own);
      const isWeaker = rank === "weak";
      if (before !== undefined && !isSame && !isWeaker && !isWeak.has(target) && options.lastWins !== true) {
        problems.push(`${where}: expected ${target} once, got it twice. It is given as ${before.where} too.`);
        continue;
      }
      if (before !== undefined && isWeaker && !isWeak.has(target)) continue;
      if (isWeaker) isWeak.add(target);
      else isWeak.delete(target);
      values.delete(target); // so that the order is that of the last assignments
      values.set(target, { value: own, where });
    }
  }
  return { values, defaults, problems };
}

/** A path below the home folder: shells leave `~/` as it is behind `key=`. */
const homePath = (path: string): string => (path.startsWith("~/") ? join(homedir(), path.slice(2)) : path);

/** The key whose record a path goes into, such as `ar.extra` for `ar.extra.rope`. */
function recordAt(kind: KeyTable, path: string): Key | undefined {
  return kind.keys.find((key) => key.isRecord && path.startsWith(`${key.path.join(".")}.`));
}

const namesOf = (kind: KeyTable): string[] => [
  ...kind.keys.map((key) => key.path.join(".")),
  ...Object.keys(kind.aliases),
];

/** The known key that an unknown one resembles. */
export function adviceOn(kind: KeyTable, text: string): string {
  const names = kind.pathOf(text.split(".")).split(".");
  const above = names.map((_, i) => keyOf(kind, names.slice(0, i))).find((key) => key !== undefined);
  if (above !== undefined) return `${above.path.join(".")} takes ${above.expects}, and no keys.`;
  const depth = names.findIndex((_, i) => !kind.isSection(names.slice(0, i + 1).join(".")));
  const parent = names.slice(0, depth);
  const siblings = childrenOf(kind, parent);
  const name = names[depth] as string;
  const begun = siblings.find((sibling) => name.length > 2 && sibling.startsWith(name));
  const near = begun ?? nearestName(name, siblings);
  if (near !== undefined) return `Did you mean "${[...parent, near, ...names.slice(depth + 1)].join(".")}"?`;
  const last = (names.at(-1) as string).toLowerCase();
  const elsewhere = namesOf(kind).filter((name) => name.split(".").at(-1)?.toLowerCase() === last);
  // A key further down in the same section is likelier than one of another section.
  const inside = elsewhere.filter((name) => depth > 0 && name.startsWith(`${parent.join(".")}.`));
  const meant = inside.length > 0 ? inside : elsewhere.slice(0, 1);
  if (depth === names.length - 1 && meant.length > 0) return `Did you mean "${meant.join('" or "')}"?`;
  if (parent.join() === "ar") return "Options of the policy's own class belong in ar.extra.";
  const of = depth === 0 ? "Keys are" : `Keys of ${parent.join(".")} are`;
  return `${of} ${siblings.join(", ")}.`;
}

/** Names of the keys and sections in a section. */
function childrenOf(kind: KeyTable, parent: readonly string[]): string[] {
  const start = parent.length === 0 ? "" : `${kind.patternOf(parent.join("."))}.`;
  const inside = namesOf(kind).filter((name) => name.startsWith(start));
  return [...new Set(inside.map((name) => name.slice(start.length).split(".")[0] as string))];
}
