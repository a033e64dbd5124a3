/** What scripts/golden/tokenizers.py wrote: small models with their inputs, outputs and gradients. */
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { IBQ, type TokenizerConfig, type TokenizerModel, VQModel } from "../../src/tokenizers/index.js";
import { memory, type Tensor } from "../../src/torch/index.js";
import { loadSafetensors } from "../../src/torch/safetensors.js";
import { expectClose } from "../support/close.js";

export type Name = "ibq" | "vq_cosine" | "vq_l2";

/** A golden model with its weights, and the other tensors of the file. */
export function golden(name: Name): {
  model: TokenizerModel;
  config: TokenizerConfig;
  want: Record<string, Tensor>;
} {
  const url = new URL(`../../../test/golden/tokenizers/${name}.safetensors`, import.meta.url);
  const { tensors: want, metadata } = loadSafetensors(fileURLToPath(url));
  const config = JSON.parse(metadata.config as string) as TokenizerConfig;
  const model = config.lookup === "dot" ? new IBQ(config) : new VQModel(config);
  const state = Object.entries(want).filter(([key]) => key.startsWith("state."));
  const given = Object.fromEntries(state.map(([key, tensor]) => [key.slice("state.".length), tensor]));
  const { missing } = model.loadStateDict(given, { strict: false });
  // The record of used codes is zeros in both, and not in the file.
  if (missing.some((key) => key !== "quantize.codebook_used")) throw new Error(`golden: missing ${missing}.`);
  return { model, config, want };
}

/** Within 1e-5 of the wanted tensor's largest element: errors of float32 sums are of that size, however small the sum. */
export function expectCloseToScale(actual: Tensor, wanted: Tensor, where: string): void {
  const scale = wanted.abs().amax().item();
  expectClose(actual, wanted, { rtol: 1e-5, atol: 1e-5 * scale, where });
}

/** Names, shapes and dtypes of a published state dict, one `key\t[shape]\tdtype` a line. */
export function publishedKeys(name: string): { key: string; shape: number[]; dtype: string }[] {
  const url = new URL(`../../../test/golden/keys/${name}.tsv`, import.meta.url);
  const lines = readFileSync(url, "utf8").trimEnd().split("\n");
  return lines.map((line) => {
    const [key = "", shape = "", dtype = ""] = line.split("\t");
    return { key, shape: JSON.parse(shape) as number[], dtype };
  });
}

/** Shapes of a published state dict by key. */
export function publishedShapes(name: string): Record<string, number[]> {
  return Object.fromEntries(publishedKeys(name).map(({ key, shape }) => [key, shape]));
}

/** The most bytes that `fn` allocates beyond what was there. */
export function peakBytesOf(fn: () => void): number {
  const { bytes } = memory({ resetPeak: true });
  fn();
  return memory().peakBytes - bytes;
}
