/**
 * Which keys may change while a run of `rlar train` goes on, and their new values, read from a file and checked by the
 * ranges and rules of the configuration. `rl_ar_finetune/steering.ts` watches the file and applies them.
 */
import { type Layer, layerOfFile, layerOfValues } from "./input.js";
import { valueAt } from "./key.js";
import { ConfigError, resolveLayers } from "./resolve.js";
import { shown } from "./spelling.js";
import type { TrainConfig } from "./train.js";
import { trainKind } from "./train_kind.js";

/** Values of keys that may change during a run, by path. */
export type Steered = Readonly<Record<string, number>>;

const STEERABLE =
  /^(reward\.((custom|http)\.)?[^.]+\.weight|kl\.coef|update\.(auxCe|entropyCoef)|optimizer\.lr)$/;

/**
 * The values of a file, each of a key that may change during the run.
 *
 * @param begun - the configuration that the run was begun with, which decides what is open: networks, reference.
 * @param before - values that earlier files gave.
 * @throws ConfigError with every problem: keys that may not change, values out of range, keys that do not fit together.
 */
export function readSteered(begun: TrainConfig, before: Steered, file: string): Steered {
  const layer = layerOfFile(trainKind, file);
  const problems = [...layer.problems];
  for (const [path, { value, where }] of layer.values) {
    const problem = problemOf(begun, path, value);
    if (problem !== null) problems.push(`${where}: ${problem}`);
  }
  if (problems.length > 0) throw new ConfigError(problems);
  resolved(begun, [layerOf(before), layer]);
  const given = [...layer.values].map(([path, { value }]) => [path, value as number] as const);
  return { ...before, ...Object.fromEntries(given) };
}

/** The configuration of a run with the values that have changed since it was begun. */
export function steeredConfig(begun: TrainConfig, steered: Steered): TrainConfig {
  return Object.keys(steered).length === 0 ? begun : resolved(begun, [layerOf(steered)]);
}

function resolved(begun: TrainConfig, layers: readonly Layer[]): TrainConfig {
  const whole = layerOfValues(trainKind, begun);
  return resolveLayers([whole, ...layers], { preset: null, isComplete: true }, trainKind).config;
}

function layerOf(steered: Steered): Layer {
  const values = new Map(Object.entries(steered).map(([path, value]) => [path, { value, where: path }]));
  return { values, defaults: new Map(), problems: [] };
}

/** Why a key cannot have a value while the run goes on, or null. */
function problemOf(begun: TrainConfig, path: string, value: unknown): string | null {
  if (!STEERABLE.test(path)) {
    const keys = "reward.NAME.weight, kl.coef, update.auxCe, update.entropyCoef and optimizer.lr";
    return `expected a key that may change during a run, got ${path}. These are ${keys}; stop the run and resume it with --force for others.`;
  }
  if (typeof value !== "number") return `expected a number, got ${shown(value)}.`;
  if (path === "kl.coef" && begun.kl.target !== null)
    return `expected no value with kl.target, which steers it, got ${value}. Remove it.`;
  if (path === "update.entropyCoef" && begun.update.entropyTarget !== null)
    return `expected no value with update.entropyTarget, which steers it, got ${value}. Remove it.`;
  if (value === 0) return null;
  if (path === "kl.coef" && begun.kl.coef === 0 && begun.kl.stop === null)
    return `expected 0, as the run was begun without a reference policy, got ${value}. Begin a run with kl.coef above 0.`;
  if (/^reward\./.test(path) && valueAt(begun, path) === 0)
    return `expected 0, as the run was begun without this term, got ${value}. Begin a run with a weight, which may be small.`;
  return null;
}
