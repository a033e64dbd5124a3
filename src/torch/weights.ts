/**
 * The weights in a file as a flat list of named tensors, from safetensors (one file or shards) or a PyTorch checkpoint, with
 * prefixes of the usual wrappers removed. Opening reads only headers. The models recognise themselves by these names.
 */
import { existsSync, readdirSync, statSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { requirePath, withDefaults } from "./arguments.js";
import { openCheckpoint } from "./checkpoint.js";
import { expected } from "./errors.js";
import { FileBytes } from "./files.js";
import { isObject, parseJson } from "./json.js";
import { LazyTensor } from "./lazy_tensor.js";
import { plainNames } from "./plain_names.js";
import { kindOf, Opaque } from "./python_values.js";
import { openSafetensors } from "./safetensors.js";
import type { Tensor } from "./tensor.js";

/**
 * Keys under which trainers store a state dict, the preferred first: the EMA where a file holds both, since published
 * numbers were measured with it.
 */
const WRAPPERS: readonly string[] = ["ema", "model", "module", "state_dict", "model_state_dict"];

/** How to read a file's weights. */
export interface WeightsOptions {
  /** Which of the state dicts in the file, such as `"model"`; default the preferred one. */
  wrapper?: string;
}

/** What a file says of one tensor. */
export interface WeightInfo {
  /** PyTorch's name, or the file's own for a dtype that is not supported here. */
  readonly dtype: string;
  readonly shape: readonly number[];
}

/** A tensor of a file, not yet read. */
interface Entry {
  readonly info: WeightInfo;
  read(): Tensor;
}

/** An open file, or several that hold parts of one state dict. */
interface Source {
  readonly format: "safetensors" | "zip" | "legacy";
  readonly wrapper: string;
  readonly otherWrappers: readonly string[];
  readonly extras: readonly string[];
  readonly metadata: Readonly<Record<string, string>>;
  readonly entries: readonly (readonly [string, Entry])[];
  close(): void;
}

/** Named tensors of a file, unread until asked for. Close it, or hold it with `using`. */
export class WeightsFile {
  readonly path: string;
  readonly format: "safetensors" | "zip" | "legacy";
  /** Key of the state dict in the file; empty where the file is one. */
  readonly wrapper: string;
  /** Keys of other state dicts in the file, for {@link WeightsOptions.wrapper}. */
  readonly otherWrappers: readonly string[];
  /** Everything else at the file's top level, such as `optimizer (a dict)`. */
  readonly extras: readonly string[];
  readonly metadata: Readonly<Record<string, string>>;
  readonly #entries = new Map<string, Entry>();
  readonly #source: Source;

  /** @throws RangeError when the file is neither format, holds no state dict, or is one shard of several. */
  constructor(path: string, options: WeightsOptions = {}) {
    this.path = path;
    const { wrapper } = withDefaults("openWeights", options, { wrapper: undefined });
    const source = openSource(path, wrapper);
    this.#source = source;
    this.format = source.format;
    this.wrapper = source.wrapper;
    this.otherWrappers = source.otherWrappers;
    this.extras = source.extras;
    this.metadata = source.metadata;
    try {
      const entries = new Map(source.entries);
      for (const [plain, name] of plainNames(path, [...entries.keys()]))
        this.#entries.set(plain, entries.get(name) as Entry);
    } catch (error) {
      source.close();
      throw error;
    }
  }

  /** Names in the file's order, without what wrappers of a module add to them, such as `module.`. */
  get names(): string[] {
    return [...this.#entries.keys()];
  }

  /** Shapes by name: what the models recognise themselves by. */
  get shapes(): Record<string, readonly number[]> {
    return Object.fromEntries([...this.#entries].map(([name, { info }]) => [name, info.shape]));
  }

  info(name: string): WeightInfo {
    return this.#entry(name).info;
  }

  /** Read one tensor, on the CPU. */
  tensor(name: string): Tensor {
    return this.#entry(name).read();
  }

  close(): void {
    this.#source.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  #entry(name: string): Entry {
    const entry = this.#entries.get(name);
    if (entry === undefined) throw expected(this.path, "a tensor of the file", name, "names lists them");
    return entry;
  }
}

/**
 * Open the weights of a safetensors file or a PyTorch checkpoint; no tensor is read.
 *
 * @param path - a file; for weights in several files their index, such as `model.safetensors.index.json`, or the
 *   folder that holds it.
 */
export function openWeights(path: string, options: WeightsOptions = {}): WeightsFile {
  requirePath("openWeights", path);
  return new WeightsFile(path, options);
}

function openSource(path: string, wrapper: string | undefined): Source {
  if (statSync(path, { throwIfNoEntry: false })?.isDirectory()) return openIndex(indexIn(path), wrapper);
  if (path.endsWith(INDEX)) return openIndex(path, wrapper);
  const [, shard, count] = SHARD.exec(basename(path)) ?? [];
  if (count !== undefined && Number(count) > 1) {
    const indices = existsSync(path) ? indicesIn(dirname(path)) : [];
    const name = indices.length === 1 ? (indices[0] as string) : `*.safetensors${INDEX}`;
    const got = `shard ${Number(shard)} of ${Number(count)}`;
    throw expected(path, "all of the weights", got, `Give the index, ${name}, with all shards beside it`);
  }
  return openOne(path, wrapper);
}

function openOne(path: string, wanted: string | undefined): Source {
  if (isSafetensors(path)) {
    const file = openSafetensors(path);
    return {
      format: "safetensors",
      wrapper: "",
      otherWrappers: [],
      extras: [],
      metadata: file.metadata,
      entries: file.keys.map((name) => [name, { info: file.info(name), read: () => file.tensor(name) }]),
      close: () => file.close(),
    };
  }
  const file = openCheckpoint(path);
  try {
    const { wrapper, others, extras, tensors } = findStateDict(path, file.tree, wanted);
    return {
      format: file.format,
      wrapper,
      otherWrappers: others,
      extras,
      metadata: metadataIn(file.tree),
      entries: [...tensors].map(([name, lazy]) => [
        name,
        { info: lazy, read: () => lazy.read(`${path}: ${name}`) },
      ]),
      close: () => file.close(),
    };
  } catch (error) {
    file.close();
    throw error;
  }
}

/**
 * The model's options, which our runs write under `config` into a PyTorch file. Files of other programs may
 * have a `config` too, whose names are Python's.
 */
function metadataIn(tree: unknown): Record<string, string> {
  const config = tree instanceof Map ? plainOf(tree.get("config")) : undefined;
  return isObject(config) && "vocabSize" in config ? { config: JSON.stringify(config) } : {};
}

/** Dicts, lists and plain values of a pickle as JSON has them; undefined for anything else. */
function plainOf(value: unknown): unknown {
  if (typeof value === "bigint") return Number(value);
  if (Array.isArray(value)) return value.map(plainOf);
  if (value instanceof Map) {
    return Object.fromEntries([...value].map(([key, item]) => [String(key), plainOf(item)]));
  }
  const isPlain = value === null || ["string", "number", "boolean"].includes(typeof value);
  return isPlain ? value : undefined;
}

const INDEX = ".index.json";

/** Name of one of several files that hold the weights together, as Hugging Face names them. */
const SHARD = /-(\d+)-of-(\d+)\.\w+$/;

/** An index of a million tensors is smaller. */
const MAX_INDEX_BYTES = 2 ** 28;

const indicesIn = (folder: string): string[] => readdirSync(folder).filter((name) => name.endsWith(INDEX));

function indexIn(folder: string): string {
  const indices = indicesIn(folder);
  if (indices.length !== 1) {
    const got = indices.length === 0 ? "one without" : `one with ${indices.sort().join(", ")}`;
    const files = readdirSync(folder).filter((name) => /\.(safetensors|pt|pth|ckpt|bin)$/.test(name));
    // Neither the optimizer's state beside the weights nor one shard of several is what to name.
    const file = files.sort().find((name) => !/optim/i.test(name) && !SHARD.test(name));
    const some = file === undefined ? "" : `, such as ${join(folder, file)}`;
    const areShards = file === undefined && files.some((name) => SHARD.test(name));
    const remedy = areShards
      ? `Fetch the index, *${INDEX}, that belongs to the shards`
      : `Name the file${some}`;
    throw expected(folder, `a weights file, or a folder with one *${INDEX}`, got, remedy);
  }
  return join(folder, indices[0] as string);
}

/** The shards that an index names: `{"weight_map": {"<tensor>": "<file beside the index>"}}`. */
function openIndex(path: string, wrapper: string | undefined): Source {
  using file = new FileBytes(path);
  if (file.size > MAX_INDEX_BYTES) throw expected(path, `at most ${MAX_INDEX_BYTES} bytes`, file.size);
  const index = parseJson(file.read(0, file.size), path, "an index of weights in JSON");
  const map = isObject(index) ? index.weight_map : undefined;
  if (!isObject(map) || Object.keys(map).length === 0) {
    throw expected(path, "a weight_map from tensors to files", isObject(index) ? "none" : "no JSON object");
  }
  const shards = new Map<string, Source>();
  const close = (): void => {
    for (const shard of shards.values()) shard.close();
  };
  try {
    for (const [name, shard] of Object.entries(map)) {
      if (typeof shard !== "string" || shard === "" || basename(shard) !== shard || shard.endsWith(INDEX)) {
        throw expected(`${path}: ${name}`, "the name of a file beside the index", kindOf(shard));
      }
      if (!shards.has(shard)) shards.set(shard, openOne(join(dirname(path), shard), wrapper));
    }
    const entries = [...shards].flatMap(([shard, source]) => {
      const wanted = Object.keys(map).filter((name) => map[name] === shard);
      const has = new Set(source.entries.map(([name]) => name));
      const missing = wanted.find((name) => !has.has(name));
      const other = source.entries.find(([name]) => map[name] !== shard);
      if (missing !== undefined)
        throw expected(join(dirname(path), shard), `${missing}, as the index says`, "none");
      if (other !== undefined) {
        throw expected(path, `${other[0]} in its weight_map, as in ${shard}`, "none", "Fetch both again");
      }
      return source.entries;
    });
    const [first] = shards.values() as unknown as [Source];
    return { ...first, entries, close };
  } catch (error) {
    close();
    throw error;
  }
}

/** Whether the file starts as safetensors does: eight bytes of header length, then JSON. */
function isSafetensors(path: string): boolean {
  if (path.endsWith(".safetensors")) return true;
  using file = new FileBytes(path);
  return file.size > 9 && file.read(8, 1)[0] === "{".charCodeAt(0);
}

const OBJECT_REMEDY =
  "Making the object would run code that the file names, which is never done. In Python, save model.state_dict()";

interface FoundStateDict {
  wrapper: string;
  others: string[];
  extras: string[];
  tensors: Map<string, LazyTensor>;
}

function findStateDict(path: string, tree: unknown, wanted: string | undefined): FoundStateDict {
  if (!(tree instanceof Map)) {
    const remedy = tree instanceof Opaque ? OBJECT_REMEDY : "Save model.state_dict()";
    const got = tree instanceof LazyTensor ? "a tensor" : kindOf(tree);
    throw expected(path, "a state dict, or a dict that holds one", got, remedy);
  }
  const candidates = new Map<string, Map<string, LazyTensor>>();
  const flat = tensorsOf(tree);
  if (flat.size > 0) candidates.set("", flat);
  const wrappers = [...WRAPPERS, ...[...tree.keys()].map(String).filter((key) => !WRAPPERS.includes(key))];
  for (const key of wrappers) {
    const tensors = tensorsOf(tree.get(key));
    if (tensors.size > 0) candidates.set(key, tensors);
  }
  // Deeper ones are never chosen, but can be asked for.
  if (candidates.size === 0) for (const [key, tensors] of deeperTensors(tree)) candidates.set(key, tensors);
  // A flat file may still hold a dict of tensors (a buffer group, say); it is its own first candidate.
  const usual = [...candidates.keys()].filter((key) => key === "" || WRAPPERS.includes(key));
  const wrapper = wanted ?? usual[0];
  const tensors = wrapper === undefined ? undefined : candidates.get(wrapper);
  if (wrapper === undefined || tensors === undefined) {
    const isAsked = (key: unknown): boolean =>
      wanted === undefined ? WRAPPERS.includes(String(key)) : key === wanted;
    const [key, object] = [...tree].find(([key, value]) => value instanceof Opaque && isAsked(key)) ?? [];
    if (object !== undefined && (wanted !== undefined || candidates.size === 0)) {
      const got = `an object, ${kindOf(object)}`;
      throw expected(`${path}: ${String(key)}`, "a state dict", got, OBJECT_REMEDY);
    }
    const keys = [...tree.keys()].map(String).slice(0, 8).join(", ");
    const what =
      wanted === undefined
        ? `a state dict, flat or under ${WRAPPERS.join(", ")}`
        : `a state dict "${wanted}"`;
    const holding = [...candidates.keys()].join(", ");
    const remedy =
      holding === "" ? "Save model.state_dict()" : `Tensors are under ${holding}: name one as wrapper`;
    // NumPy arrays, quantized tensors and those of the device meta are records of calls.
    const values = [...tree.values()];
    const others = values.every((value) => value instanceof Opaque) ? `, each ${kindOf(values[0])}` : "";
    throw expected(path, what, keys === "" ? "an empty dict" : `keys ${keys}${others}`, remedy);
  }
  const others = [...candidates.keys()].filter((key) => key !== wrapper && key !== "");
  const isUsed = (key: unknown): boolean => key === wrapper || candidates.has(String(key));
  const extras = [...tree]
    .filter(([key, value]) => !isUsed(key) && !(value instanceof LazyTensor))
    .map(([key, value]) => `${String(key)} (${kindOf(value)})`);
  return { wrapper, others, extras, tensors };
}

/** Levels of dicts and lists in which state dicts are looked for. */
const MAX_LEVELS = 4;

/** Dicts of tensors inside other dicts and lists, by their keys joined by dots: `checkpoint.state_dict`, `models.0`. */
function deeperTensors(tree: unknown): Map<string, Map<string, LazyTensor>> {
  const found = new Map<string, Map<string, LazyTensor>>();
  const seen = new Set<unknown>(); // lists may hold each other, or themselves
  const visit = (value: unknown, place: readonly string[]): void => {
    if (seen.has(value)) return;
    seen.add(value);
    const entries = value instanceof Map || Array.isArray(value) ? [...value.entries()] : [];
    const tensors = place.length > 1 ? tensorsOf(value) : new Map();
    if (tensors.size > 0) found.set(place.join("."), tensors);
    else if (place.length < MAX_LEVELS) {
      for (const [key, item] of entries)
        if (!/optim/i.test(String(key))) visit(item, [...place, String(key)]);
    }
  };
  visit(tree, []);
  return found;
}

/** The tensors directly in a dict; entries whose names are not strings are skipped. */
function tensorsOf(value: unknown): Map<string, LazyTensor> {
  const tensors = new Map<string, LazyTensor>();
  if (!(value instanceof Map)) return tensors;
  for (const [key, item] of value)
    if (typeof key === "string" && item instanceof LazyTensor) tensors.set(key, item);
  return tensors;
}
