/** `rlar convert`: the weights that a model takes from any file, as safetensors that say what they are. */
import { existsSync } from "node:fs";
import { basename } from "node:path";

import { describeWeights, type ModelDescription } from "../rl_ar_finetune/builder.js";
import { expected, openWeights, saveSafetensors, type Tensor } from "../torch/index.js";
import { nameOf } from "./inspect.js";

/** Options of `rlar convert`. */
export interface ConvertOptions {
  wrapper?: string;
  weights?: "ema" | "raw";
  heads?: number;
  codes?: number;
  force?: boolean;
}

/** Values are copied bit for bit, under the model's own keys; what a model does not use is left out. */
export function convert(path: string, out: string, options: ConvertOptions): void {
  if (existsSync(out) && !options.force)
    throw expected(out, "a file that does not exist yet", "one that does", "Use --force");
  using file = openWeights(path, options.wrapper === undefined ? {} : { wrapper: options.wrapper });
  const found = describeWeights(file, {
    ...(options.weights && { weights: options.weights }),
    ...(options.heads !== undefined && { nHead: options.heads }),
    ...(options.codes !== undefined && { blockSize: options.codes }),
  });
  if (found === null) {
    throw expected(
      path,
      "a tokenizer, a policy or a metric's network",
      `${file.names.length} tensors of an unknown model`,
    );
  }
  const used = usedNames(found) ?? Object.fromEntries(file.names.map((name) => [name, name]));
  const tensors: Record<string, Tensor> = {};
  for (const [key, name] of Object.entries(used)) tensors[key] = file.tensor(name);
  saveSafetensors(out, tensors, { model: nameOf(found), ...configMetadata(found), source: basename(path) });
  process.stdout.write(`${out}: ${nameOf(found)}, ${Object.keys(tensors).length} tensors\n`);
}

function usedNames(found: ModelDescription): Readonly<Record<string, string>> | null {
  if (found.kind === "tokenizer") return found.tokenizer.used;
  return found.kind === "policy" ? found.policy.used : null;
}

function configMetadata(found: ModelDescription): Record<string, string> {
  if (found.kind === "tokenizer") return { config: JSON.stringify(found.tokenizer.config) };
  if (found.kind === "classifier") return { config: JSON.stringify(found.config) };
  return found.kind === "policy" ? { config: JSON.stringify(found.policy.config) } : {};
}
