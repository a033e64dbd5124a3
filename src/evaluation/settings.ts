/** How an evaluation draws and measures: defaults, and what cannot be asked for. */

import { checkSampling } from "../rl_ar_finetune/sampling.js";
import { expected } from "../torch/index.js";
import type { ModelEvalOptions } from "./types.js";

/** {@link ModelEvalOptions} that are plain numbers and words, none left out. */
export type EvalSettings = Required<
  Pick<
    ModelEvalOptions,
    | "start"
    | "samples"
    | "classes"
    | "prefixes"
    | "draws"
    | "images"
    | "trainImages"
    | "temperatures"
    | "cfg"
    | "cfgSchedule"
    | "topK"
    | "topP"
    | "seeds"
    | "resamples"
    | "batch"
  >
>;

/**
 * Fill in defaults and check every number.
 *
 * @param codes - T: codes of an image.
 * @throws RangeError on the first that cannot be served.
 */
export function settingsOf(options: ModelEvalOptions, codes: number): EvalSettings {
  const settings: EvalSettings = {
    start: options.start ?? "condition",
    samples: options.samples ?? 2000,
    classes: options.classes ?? "data",
    prefixes: options.prefixes ?? [Math.floor(codes / 2)],
    draws: options.draws ?? 1,
    images: options.images ?? 1000,
    trainImages: options.trainImages ?? 50_000,
    temperatures: options.temperatures ?? [1],
    cfg: options.cfg ?? [1],
    cfgSchedule: options.cfgSchedule ?? "constant",
    topK: options.topK ?? 0,
    topP: options.topP ?? 1,
    seeds: options.seeds ?? [0],
    resamples: options.resamples ?? 200,
    batch: options.batch ?? 128,
  };
  for (const [name, least] of [
    ["samples", 0],
    ["draws", 1],
    ["images", 1],
    ["trainImages", 2],
    ["resamples", 0],
    ["batch", 1],
  ] as const) {
    const value = settings[name];
    if (!Number.isInteger(value) || value < least) {
      throw expected(`eval: ${name}`, `an integer of at least ${least}`, value);
    }
  }
  if (settings.samples === 1) throw expected("eval: samples", "0 for none, or at least 2", 1);
  if (settings.resamples === 1) throw expected("eval: resamples", "0 for none, or at least 2", 1);
  for (const name of ["temperatures", "cfg", "seeds"] as const) {
    if (settings[name].length === 0) throw expected(`eval: ${name}`, "at least one", "none");
  }
  for (const name of ["temperatures", "cfg", "seeds", "prefixes"] as const) {
    const values: readonly number[] = settings[name];
    const twice = values.find((value, i) => values.indexOf(value) !== i);
    if (twice !== undefined) throw expected(`eval: ${name}`, "each value once", `${twice} twice`);
  }
  for (const seed of settings.seeds) {
    if (!Number.isSafeInteger(seed)) throw expected("eval: seeds", "integers", seed);
  }
  for (const prefix of settings.prefixes) {
    if (Number.isInteger(prefix) && prefix >= 0 && prefix < codes) continue;
    throw expected("eval: prefixes", `integers from 0 to ${codes - 1}, with ${codes} codes an image`, prefix);
  }
  const { topK, topP, cfgSchedule: schedule } = settings;
  for (const temperature of settings.temperatures) {
    for (const scale of settings.cfg) {
      checkSampling("eval", { temperature, topK, topP, guidance: { scale, schedule } });
    }
  }
  return settings;
}
