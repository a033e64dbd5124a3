/** Names of a state dict without the parts that wrapper modules add. */
import { expected } from "./errors.js";

/** Parts that torch.compile, data parallelism, Lightning Fabric and activation checkpointing add to names. */
const WRAPPERS: ReadonlySet<string> = new Set([
  "module",
  "_orig_mod",
  "_fsdp_wrapped_module",
  "_fpw_module",
  "_forward_module",
  "_checkpoint_wrapped_module",
]);

/** Prefix of Lightning's EMA, which removes the dots from the names: `model_ema.encoderconv_inweight`. */
const AVERAGE = "model_ema.";

/** A name as the plain module has it: `module.encoder._orig_mod.conv_in.weight` is `encoder.conv_in.weight`. */
export function plainName(name: string): string {
  const plain = name
    .split(".")
    .filter((part, i, parts) => i === parts.length - 1 || !WRAPPERS.has(part))
    .join(".");
  if (!plain.includes(AVERAGE)) return plain;
  const start = plain.indexOf(AVERAGE) + AVERAGE.length;
  return plain.slice(0, start) + plain.slice(start).replace(/^(?:module(?!_))+|_orig_mod/g, "");
}

/**
 * The names of a file by their {@link plainName}.
 *
 * @throws RangeError when two have the same.
 */
export function plainNames(where: string, names: readonly string[]): Map<string, string> {
  const plain = new Map<string, string>();
  for (const name of names) {
    const key = plainName(name);
    const other = plain.get(key);
    if (other !== undefined) throw expected(where, `one tensor ${key}`, `${other} and ${name}`);
    plain.set(key, name);
  }
  return plain;
}
