/**
 * Compares the shapes in a file with those of a module before the module is built. `src/torch` reads files, and models
 * recognise themselves by the shapes.
 */
import { expected, TorchError } from "../torch/index.js";
import { onMeta } from "./init.js";
import type { Module } from "./module.js";

/** Shapes by name, as a file's header gives them. */
export type Shapes = Readonly<Record<string, readonly number[]>>;

/**
 * Shapes of a module's state dict, without the memory of its weights.
 *
 * @param where - the file that the sizes are from, for messages.
 * @throws RangeError when no tensor can have such sizes.
 */
export function shapesOf(where: string, build: () => Module): Record<string, readonly number[]> {
  try {
    using module = onMeta(build);
    return Object.fromEntries(Object.entries(module.stateDict()).map(([key, { shape }]) => [key, shape]));
  } catch (error) {
    if (!(error instanceof TorchError)) throw error;
    throw expected(where, "sizes that a model can have", "shapes too large for any memory");
  }
}

/** Names and shapes of parameters as one text, which is the same for models of the same architecture. */
export function shapesText(
  named: Iterable<readonly [string, { readonly shape: readonly number[] }]>,
): string {
  return [...named]
    .map(([name, { shape }]) => `${name} [${shape.join()}]`)
    .sort()
    .join();
}

/**
 * Check that a file has the tensors of a model, all of them, in their shapes.
 *
 * @param what - the model, for messages.
 * @param wanted - shapes by the model's keys.
 * @param used - names in the file by the model's keys, including names that the model does not have.
 * @throws RangeError that lists missing, unknown and misshapen tensors.
 */
export function requireShapes(
  where: string,
  what: string,
  wanted: Shapes,
  used: Readonly<Record<string, string>>,
  shapes: Shapes,
): void {
  const keys = Object.keys(wanted);
  const nameOf = (key: string): string => (Object.hasOwn(used, key) ? (used[key] as string) : key);
  const missing = keys.filter((key) => !Object.hasOwn(shapes, nameOf(key))).map(nameOf);
  const unknown = Object.keys(used)
    .filter((key) => !Object.hasOwn(wanted, key))
    .map(nameOf);
  const misshapen = keys.flatMap((key) => {
    const shape = shapes[nameOf(key)];
    if (shape === undefined || shape.join() === wanted[key]?.join()) return [];
    return [`${nameOf(key)} [${shape.join(", ")}] instead of [${wanted[key]?.join(", ")}]`];
  });
  const problems = [
    ...(missing.length > 0 ? [`missing ${some(missing)}`] : []),
    ...(unknown.length > 0 ? [`unknown ${some(unknown)}`] : []),
    ...(misshapen.length > 0 ? [some(misshapen)] : []),
  ];
  if (problems.length === 0) return;
  throw expected(where, `the ${keys.length} tensors of ${what}`, problems.join("; "));
}

/** How many parts are numbered from 0 without a gap: 2 for `blocks.0.a`, `blocks.1.a`, `blocks.7.a`. */
export function countParts(keys: Iterable<string>, part: string): number {
  const numbers = new Set<string>();
  for (const key of keys) {
    if (key.startsWith(`${part}.`)) numbers.add(key.slice(part.length + 1).split(".", 1)[0] as string);
  }
  let count = 0;
  while (numbers.has(`${count}`)) count++;
  return count;
}

function some(texts: readonly string[]): string {
  const shown = texts.slice(0, 3).join(", ");
  return texts.length > 3 ? `${shown} (+${texts.length - 3} more)` : shown;
}
