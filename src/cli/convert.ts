/** `rlar convert`: write the weights of a model in any file as safetensors, with its configuration as metadata. */
import { basename } from "node:path";
import { rlarCommand } from "../config/command.js";
import { type ModelDescription, openModel, usedBy, weightsOf } from "../rl_ar_finetune/builder.js";
import { isAdapter, knownConfig, MERGE } from "../rl_ar_finetune/describe_weights.js";
import { requireNew, requireWritable } from "../run/folder.js";
import { expected, saveSafetensors, type Tensor, tidy } from "../torch/index.js";
import { namesIn } from "./classes.js";
import { askedOf, type FileOptions, nameOf, sayNotes } from "./inspect.js";

/** Options of `rlar convert`. */
export interface ConvertOptions extends FileOptions {
  force?: boolean;
}

/**
 * Convert a file. Values are copied bit for bit, under the model's own keys; tensors that the model does not use are not
 * copied. Nothing is written unless every weight is there and finite.
 */
export function convert(path: string, out: string, options: ConvertOptions): void {
  requireWritable("out", out, [".safetensors"]);
  requireNew(out, options.force);
  using opened = openModel(path, askedOf(options));
  const { file, found } = opened;
  if (found === null) {
    throw expected(
      path,
      "a tokenizer, a policy or a metric's network",
      `${file.names.length} tensors of an unknown model`,
      isAdapter(file) ? MERGE : `${rlarCommand(["inspect", path, "--all"])} lists them`,
    );
  }
  const weights = weightsOf(found);
  tidy(() => {
    const tensors: Record<string, Tensor> = {};
    for (const [key, name] of Object.entries(usedBy(found))) {
      tensors[key] = requireFinite(`${path}: ${name}`, file.tensor(name));
    }
    const classes = found.kind === "policy" ? namesIn(file.metadata) : [];
    const metadata = {
      model: nameOf(found),
      ...configMetadata(found),
      ...(classes.length > 0 && { classes: JSON.stringify(classes) }),
      weights,
      source: basename(path),
    };
    saveSafetensors(out, tensors, metadata);
    const which = weights === "ema" ? "the EMA of the weights" : "raw weights";
    const under = file.wrapper === "" ? "" : ` (${file.wrapper})`;
    process.stdout.write(
      `${out}: ${nameOf(found)}, ${Object.keys(tensors).length} tensors, ${which}${under}\n`,
    );
  });
  sayNotes(opened.notes);
  const missing = found.kind === "policy" ? found.policy.missing : [];
  if (missing.length === 0) return;
  process.stderr.write(
    `note: ${missing.join(" and ")}: not in the file, so not written. --heads and --codes store them.\n`,
  );
}

function requireFinite(where: string, tensor: Tensor): Tensor {
  if (tidy(() => tensor.isfinite().all().item()) === 1) return tensor;
  throw expected(where, "finite weights", "NaN or infinity", "The file is damaged, or its training diverged");
}

/** The part of the configuration that the file states. Assumed values are not written, so that they stay recognisable as such. */
function configMetadata(found: ModelDescription): Record<string, string> {
  if (found.kind === "tokenizer") return { config: JSON.stringify(found.tokenizer.config) };
  if (found.kind === "classifier") return { config: JSON.stringify(found.config) };
  if (found.kind === "metric") return {};
  return { config: JSON.stringify(knownConfig(found.policy)) };
}
