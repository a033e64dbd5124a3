/** PyTorch's values for these tests, made by scripts/golden/nn.py. */
import { fileURLToPath } from "node:url";
import { loadSafetensors, type Tensor } from "../../src/torch/index.js";

export type Tensors = Record<string, Tensor>;

export function golden(name: string): Tensors {
  const url = new URL(`../../../test/golden/nn/${name}.safetensors`, import.meta.url);
  return loadSafetensors(fileURLToPath(url)).tensors;
}

/** Tensors whose names begin with `prefix/`, by the rest of the name. */
export function under(tensors: Tensors, prefix: string): Tensors {
  const entries = Object.entries(tensors).filter(([name]) => name.startsWith(`${prefix}/`));
  return Object.fromEntries(entries.map(([name, tensor]) => [name.slice(prefix.length + 1), tensor]));
}
