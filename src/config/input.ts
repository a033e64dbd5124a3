/**
 * From what a user wrote to values under the names of the schema: YAML files, `key=value` of a command line, objects
 * of a program. Spellings and other names are resolved here and unknown keys found; ranges are checked in `resolve.ts`.
 */
import { readFileSync } from "node:fs";
import { type Document, isAlias, isMap, isScalar, LineCounter, type Node, parseDocument } from "yaml";

import type { Key } from "./key.js";
import type { KeyTable } from "./kind.js";

/** A value, and how to name its place in a message. */
export interface Given {
  readonly value: unknown;
  /** Such as `run.yaml:3:5: rollout.topK`. */
  readonly where: string;
}

/** What one source says, by the schema's paths, and what is wrong with it. */
export interface Layer {
  readonly values: ReadonlyMap<string, Given>;
  readonly problems: readonly string[];
}

/** One assignment as it was written. */
interface Written {
  /** As written, such as `["rollout", "max_len"]`. */
  readonly path: readonly string[];
  readonly value: unknown;
  /** Stands before the path in messages. */
  readonly place: string;
}

/** `max_len` and `max-len` as `maxLen`. */
export function camelCase(name: string): string {
  return name.replace(/(?<=[A-Za-z0-9])[_-]+([A-Za-z0-9])/g, (_, letter: string) => letter.toUpperCase());
}

/** Values that a program passes; objects of its own are taken as they are. */
export function layerOfValues(
  kind: KeyTable,
  values: Readonly<Record<string, unknown>>,
  name = "config",
): Layer {
  const written: Written[] = [];
  const visit = (value: unknown, path: readonly string[]): void => {
    if (value === undefined) return;
    if (!isPlain(value) || isWhole(kind, path)) written.push({ path, value, place: `${name}.` });
    else for (const [key, item] of Object.entries(value)) visit(item, [...path, key]);
  };
  visit(values, []);
  return layerOf(kind, written, { mayBeLive: true });
}

/** Values of a command line: `rollout.temperature=0.9`, each value in YAML's syntax. */
export function layerOfOverrides(kind: KeyTable, overrides: readonly string[]): Layer {
  const place = "command line: ";
  const problems: string[] = [];
  const written = overrides.flatMap((text): Written[] => {
    const at = text.indexOf("=");
    const path = text.slice(0, at).trim().split(".");
    if (at < 1) {
      problems.push(
        `${place}expected key=value, got ${text}. rlar config explain${kind.name === "train" ? "" : ` --for ${kind.name}`} lists the keys.`,
      );
      return [];
    }
    const source = text.slice(at + 1).trim();
    if (source === "") {
      problems.push(
        `${place}${path.join(".")}: expected a value after "=", got nothing. Write null to unset a key.`,
      );
      return [];
    }
    const { found, errors } = readYaml(kind, source, () => place, path);
    problems.push(...errors.map(({ reason }) => `${place}${path.join(".")}: ${reason}`));
    return found;
  });
  const layer = layerOf(kind, written, {});
  return { values: layer.values, problems: [...problems, ...layer.problems] };
}

/** Values of a YAML (or JSON) file; places are lines and columns. */
export function layerOfFile(kind: KeyTable, file: string): Layer {
  let text: string;
  try {
    text = readFileSync(file, "utf8");
  } catch (error) {
    const problem = `${file}: expected a configuration that can be read, got ${(error as Error).message}.`;
    return { values: new Map(), problems: [problem] };
  }
  return layerOfYaml(kind, text, file);
}

/** Values of YAML text; `name` stands for the file in messages. */
export function layerOfYaml(kind: KeyTable, text: string, name: string): Layer {
  const { found, errors } = readYaml(kind, text, ([line, column]) => `${name}:${line}:${column}: `, []);
  const problems = errors.map(({ place, reason }) => `${place}${reason}`);
  const layer = layerOf(kind, found, {});
  return { values: layer.values, problems: [...problems, ...layer.problems] };
}

type Position = readonly [line: number, column: number];

/** Assignments of YAML text below a path. */
function readYaml(
  kind: KeyTable,
  text: string,
  placeOf: (at: Position) => string,
  below: readonly string[],
): { found: Written[]; errors: { place: string; reason: string }[] } {
  const lines = new LineCounter();
  const document = parseDocument(text, { lineCounter: lines, prettyErrors: false, strict: true });
  const at = (offset: number): string => {
    const { line, col } = lines.linePos(offset);
    return placeOf([line, col]);
  };
  const errors: { place: string; reason: string }[] = [];
  const refuse = (offset: number, reason: string): void => {
    errors.push({ place: at(offset), reason });
  };
  // What follows a mistake of syntax is read wrongly, so the first is all that helps.
  const isDuplicate = ({ code }: { code: string }): boolean => code === "DUPLICATE_KEY";
  const [mistake] = [...document.errors.filter((error) => !isDuplicate(error)), ...document.warnings];
  if (mistake !== undefined) refuse(mistake.pos[0], `expected YAML, got a mistake. ${mistake.message}.`);
  else {
    for (const { pos } of document.errors) {
      refuse(pos[0], `expected each key once, got ${/[^\s:]*/.exec(text.slice(pos[0]))?.[0]} again.`);
    }
  }
  const found: Written[] = [];
  if (errors.length > 0) return { found, errors };
  const visit = (given: Node | null, path: readonly string[], offset: number): void => {
    const node = isAlias(given) ? (given.resolve(document) ?? null) : given;
    if (!isMap(node) || isWhole(kind, path)) {
      if (path.length === 0) {
        const got = node === null || (isScalar(node) && node.value === null) ? null : kindOf(node);
        if (got !== null) refuse(offset, `expected keys with values, got ${got}.`);
        return;
      }
      found.push({ path, value: node?.toJS(document as Document) ?? null, place: at(offset) });
      return;
    }
    for (const pair of node.items) {
      const name = isScalar(pair.key) ? String(pair.key.value) : String(pair.key);
      visit(pair.value as Node | null, [...path, name], (pair.key as Node).range?.[0] ?? offset);
    }
  };
  visit(document.contents as Node | null, below, 0);
  return { found, errors };
}

const kindOf = (node: Node): string => (isScalar(node) ? String(node.value) : "a list");

/** A value as its literal tells: object literals have keys to look into, everything else is a value. */
export function isPlain(value: unknown): value is Record<string, unknown> {
  if (typeof value !== "object" || value === null) return false;
  const prototype = Object.getPrototypeOf(value) as unknown;
  return prototype === Object.prototype || prototype === null;
}

/** Whether what stands here is one value, even if it is written with keys. */
function isWhole(kind: KeyTable, path: readonly string[]): boolean {
  const name = path.map(camelCase).join(".");
  const key =
    kind.keyAt(name) ?? (kind.isSection(name) ? undefined : kind.keyAt(kind.aliases[name]?.[0] ?? ""));
  return key?.isRecord === true || key?.live !== undefined;
}

/** Assignments under the schema's names. */
function layerOf(kind: KeyTable, written: readonly Written[], options: { mayBeLive?: boolean }): Layer {
  const values = new Map<string, Given>();
  const problems: string[] = [];
  const isWeak = new Set<string>();
  for (const { path, value, place } of written) {
    const name = path.map(camelCase).join(".");
    const where = `${place}${path.join(".")}`;
    if (kind.isSection(name) && (value === null || kind.aliases[name] === undefined)) {
      problems.push(`${where}: expected keys with values, got ${shown(value)}.`);
      continue;
    }
    const assigned = kind.meaningOf(name, value);
    if ("expected" in assigned) {
      problems.push(`${where}: expected ${assigned.expected}, got ${shown(value)}.`);
      continue;
    }
    for (const { path: target, value: meant, isWeak: isWeaker = false } of assigned) {
      const key = kind.keyAt(target) ?? recordAt(kind, target);
      if (key === undefined) {
        problems.push(`${where}: unknown key. ${adviceOn(kind, name)}`);
        continue;
      }
      if (key.live !== undefined && meant !== null && options.mayBeLive !== true) {
        problems.push(
          `${where}: expected nothing, got ${shown(meant)}. Only a program can pass ${key.live}.`,
        );
        continue;
      }
      const before = values.get(target);
      const isSame = before !== undefined && JSON.stringify(before.value) === JSON.stringify(meant);
      if (before !== undefined && !isSame && !isWeaker && !isWeak.has(target)) {
        problems.push(`${where}: expected ${target} once, got it twice. It is given as ${before.where} too.`);
        continue;
      }
      if (before !== undefined && isWeaker && !isWeak.has(target)) continue;
      if (isWeaker) isWeak.add(target);
      else isWeak.delete(target);
      values.set(target, { value: meant, where });
    }
  }
  return { values, problems };
}

/** The key whose record a path goes into, such as `ar.extra` for `ar.extra.rope`. */
export function recordAt(kind: KeyTable, path: string): Key | undefined {
  return kind.keys.find((key) => key.isRecord && path.startsWith(`${key.path.join(".")}.`));
}

/** A value in a message, on one line and short. */
export function shown(value: unknown): string {
  if (typeof value === "string") return value === "" ? "empty text" : value;
  if (typeof value === "function") return value.name === "" ? "a function" : `the function ${value.name}`;
  if (typeof value === "object" && value !== null && !isPlain(value) && !Array.isArray(value)) {
    return `an object of class ${value.constructor?.name ?? "unknown"}`;
  }
  const text = typeof value === "number" ? String(value) : (JSON.stringify(value) ?? String(value));
  return text.length > 60 ? `${text.slice(0, 60)}...` : text;
}

const namesOf = (kind: KeyTable): string[] => [
  ...kind.keys.map((key) => key.path.join(".")),
  ...Object.keys(kind.aliases),
];

/** What an unknown key may have been meant to be. */
function adviceOn(kind: KeyTable, path: string): string {
  const names = path.split(".");
  const above = names.map((_, i) => kind.keyAt(names.slice(0, i).join("."))).find((key) => key !== undefined);
  if (above !== undefined) return `${above.path.join(".")} takes ${above.expects}, and no keys.`;
  const depth = names.findIndex((_, i) => !kind.isSection(names.slice(0, i + 1).join(".")));
  const parent = names.slice(0, depth);
  const siblings = childrenOf(kind, parent);
  const near = nearest(names[depth] as string, siblings);
  if (near !== undefined) return `Did you mean "${[...parent, near, ...names.slice(depth + 1)].join(".")}"?`;
  const last = (names.at(-1) as string).toLowerCase();
  const elsewhere = namesOf(kind).find((name) => name.split(".").at(-1)?.toLowerCase() === last);
  if (depth === names.length - 1 && elsewhere !== undefined) return `Did you mean "${elsewhere}"?`;
  if (parent.join() === "ar") return "An option of the policy's own class goes into ar.extra.";
  const of = depth === 0 ? "Keys are" : `Keys of ${parent.join(".")} are`;
  return `${of} ${siblings.join(", ")}.`;
}

/** Names of the keys and sections in a section. */
function childrenOf(kind: KeyTable, parent: readonly string[]): string[] {
  const start = parent.map((name) => `${name}.`).join("");
  const inside = namesOf(kind).filter((name) => name.startsWith(start));
  return [...new Set(inside.map((name) => name.slice(start.length).split(".")[0] as string))];
}

/** The name with the fewest edits, when they are few for its length. */
function nearest(name: string, names: readonly string[]): string | undefined {
  const most = Math.max(1, Math.floor(name.length / 3));
  let best: string | undefined;
  let least = most + 1;
  for (const candidate of names) {
    const edits = editDistance(name.toLowerCase(), candidate.toLowerCase());
    if (edits < least) [best, least] = [candidate, edits];
  }
  return best;
}

/** Insertions, deletions, replacements and swaps of neighbours that turn one text into the other. */
function editDistance(a: string, b: string): number {
  const rows = Array.from({ length: a.length + 1 }, (_, i) => {
    return Array.from({ length: b.length + 1 }, (_, j) => (i === 0 ? j : j === 0 ? i : 0));
  });
  const at = (i: number, j: number): number => (rows[i] as number[])[j] as number;
  for (let i = 1; i <= a.length; i++) {
    for (let j = 1; j <= b.length; j++) {
      const isSame = a[i - 1] === b[j - 1];
      let edits = Math.min(at(i - 1, j) + 1, at(i, j - 1) + 1, at(i - 1, j - 1) + (isSame ? 0 : 1));
      const isSwap = i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1];
      if (isSwap) edits = Math.min(edits, at(i - 2, j - 2) + 1);
      (rows[i] as number[])[j] = edits;
    }
  }
  return at(a.length, b.length);
}
