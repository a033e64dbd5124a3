/**
 * The weights in a file, whatever wrote it: a flat list of named tensors out of safetensors or a PyTorch
 * checkpoint, with the usual wrappers taken off. Which model the names belong to is left to the models.
 */
import { type CheckpointFile, openCheckpoint } from "./checkpoint.js";
import { expected } from "./errors.js";
import { FileBytes } from "./files.js";
import { LazyTensor } from "./lazy_tensor.js";
import { kindOf } from "./python_values.js";
import { openSafetensors, type SafetensorsFile } from "./safetensors.js";
import type { Tensor } from "./tensor.js";

/**
 * Keys under which trainers store a state dict, the preferred first: an average of the weights where a file holds
 * both, since that is what the published numbers were measured with.
 */
const WRAPPERS: readonly string[] = ["ema", "model", "module", "state_dict", "model_state_dict"];

/** What data-parallel training puts before every name. */
const PARALLEL_PREFIX = "module.";

/** How to read a file's weights. */
export interface WeightsOptions {
  /** Which of the state dicts in the file, such as `"model"`; the preferred one where left out. */
  wrapper?: string;
}

/** What a file says of one tensor. */
export interface WeightInfo {
  /** PyTorch's name, or the file's own for a type that no tensor here can have. */
  readonly dtype: string;
  readonly shape: readonly number[];
}

/** Named tensors of a file, unread until asked for. Close it, or hold it with `using`. */
export class WeightsFile {
  readonly path: string;
  readonly format: "safetensors" | "zip" | "legacy";
  /** Key of the state dict in the file; empty where the file is one. */
  readonly wrapper: string;
  /** Keys of other state dicts in the file, for {@link WeightsOptions.wrapper}. */
  readonly otherWrappers: readonly string[];
  /** Whether every name began with `module.`, which is taken off. */
  readonly isParallel: boolean;
  /** Everything else at the file's top level, such as `optimizer (a dict)`. */
  readonly extras: readonly string[];
  readonly metadata: Readonly<Record<string, string>>;
  readonly #entries = new Map<string, { info: WeightInfo; read: () => Tensor }>();
  readonly #file: SafetensorsFile | CheckpointFile;

  /** @throws RangeError when the file is neither format, or holds no state dict. */
  constructor(path: string, options: WeightsOptions = {}) {
    this.path = path;
    if (isSafetensors(path)) {
      const file = openSafetensors(path);
      this.#file = file;
      this.format = "safetensors";
      this.metadata = file.metadata;
      this.wrapper = "";
      this.otherWrappers = [];
      this.extras = [];
      for (const name of file.keys) {
        this.#entries.set(name, { info: file.info(name), read: () => file.tensor(name) });
      }
    } else {
      const file = openCheckpoint(path);
      this.#file = file;
      this.format = file.format;
      this.metadata = {};
      try {
        const found = findStateDict(path, file.tree, options.wrapper);
        this.wrapper = found.wrapper;
        this.otherWrappers = found.others;
        this.extras = found.extras;
        for (const [name, lazy] of found.tensors) {
          this.#entries.set(name, { info: lazy, read: () => lazy.read() });
        }
      } catch (error) {
        file.close();
        throw error;
      }
    }
    const names = [...this.#entries.keys()];
    this.isParallel = names.length > 0 && names.every((name) => name.startsWith(PARALLEL_PREFIX));
    if (!this.isParallel) return;
    const entries = [...this.#entries];
    this.#entries.clear();
    for (const [name, entry] of entries) this.#entries.set(name.slice(PARALLEL_PREFIX.length), entry);
  }

  /** Names in the file's order. */
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
    this.#file.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  #entry(name: string): { info: WeightInfo; read: () => Tensor } {
    const entry = this.#entries.get(name);
    if (entry === undefined) throw expected(this.path, "a tensor of the file", name, "names lists them");
    return entry;
  }
}

/** Open the weights of a safetensors file or a PyTorch checkpoint; no tensor is read. */
export function openWeights(path: string, options: WeightsOptions = {}): WeightsFile {
  return new WeightsFile(path, options);
}

/** Whether the file starts as safetensors does: eight bytes of header length, then JSON. */
function isSafetensors(path: string): boolean {
  if (path.endsWith(".safetensors")) return true;
  const file = new FileBytes(path);
  try {
    return file.size > 9 && file.read(8, 1)[0] === "{".charCodeAt(0);
  } finally {
    file.close();
  }
}

interface FoundStateDict {
  wrapper: string;
  others: string[];
  extras: string[];
  tensors: Map<string, LazyTensor>;
}

function findStateDict(path: string, tree: unknown, wanted: string | undefined): FoundStateDict {
  if (!(tree instanceof Map)) {
    throw expected(path, "a state dict, or a dict that holds one", kindOf(tree), "Save model.state_dict()");
  }
  const candidates = new Map<string, Map<string, LazyTensor>>();
  const flat = tensorsOf(tree);
  if (flat.size > 0) candidates.set("", flat);
  const wrappers = [...WRAPPERS, ...[...tree.keys()].map(String).filter((key) => !WRAPPERS.includes(key))];
  for (const key of wrappers) {
    const tensors = tensorsOf(tree.get(key));
    if (tensors.size > 0) candidates.set(key, tensors);
  }
  // A flat file may still hold a dict of tensors (a buffer group, say); it is its own first candidate.
  const usual = [...candidates.keys()].filter((key) => key === "" || WRAPPERS.includes(key));
  const wrapper = wanted ?? usual[0];
  const tensors = wrapper === undefined ? undefined : candidates.get(wrapper);
  if (wrapper === undefined || tensors === undefined) {
    const keys = [...tree.keys()].map(String).slice(0, 8).join(", ");
    const what =
      wanted === undefined
        ? `a state dict, flat or under ${WRAPPERS.join(", ")}`
        : `a state dict "${wanted}"`;
    const holding = [...candidates.keys()].join(", ");
    const remedy =
      holding === "" ? "Save model.state_dict()" : `Tensors are under ${holding}: name one as wrapper`;
    throw expected(path, what, keys === "" ? "an empty dict" : `keys ${keys}`, remedy);
  }
  const others = [...candidates.keys()].filter((key) => key !== wrapper && key !== "");
  const extras = [...tree]
    .filter(
      ([key, value]) => key !== wrapper && !candidates.has(String(key)) && !(value instanceof LazyTensor),
    )
    .map(([key, value]) => `${String(key)} (${kindOf(value)})`);
  return { wrapper, others, extras, tensors };
}

/** The tensors directly in a dict; names that are no strings are no weights. */
function tensorsOf(value: unknown): Map<string, LazyTensor> {
  const tensors = new Map<string, LazyTensor>();
  if (!(value instanceof Map)) return tensors;
  for (const [key, item] of value)
    if (typeof key === "string" && item instanceof LazyTensor) tensors.set(key, item);
  return tensors;
}
