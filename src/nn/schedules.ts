/**
 * Learning rates over time: each schedule is a pure function of the update's number, so that a resumed run
 * needs no state. `optimizer.step({ lrFactor: schedule(step) })` applies one.
 */
import { expected, readOptions, withDefaults } from "../torch/index.js";

/** Factor of every group's learning rate at update `step`, counted from 0. */
export type Schedule = (step: number) => number;
interface DecayOptions {
  /** Updates in all, warm-up included; the factor stays at `final` from there on. */
  total: number;
  /** Updates before the factor is 1. It rises by equal steps, from 1 / (warmup + 1) at update 0. */
  warmup?: number;
  /** Factor that the decay ends at. */
  final?: number;
}

/** 1 after the warm-up. */
export function constant(options: { warmup?: number } = {}): Schedule {
  const { warmup } = withDefaults("constant", options, { warmup: 0 });
  check("constant", warmup, Infinity, 1);
  return (step) => rise(step, warmup);
}

/** From 1 down to `final` along a line. */
export function linear(options: DecayOptions): Schedule {
  return decay("linear", options, (progress) => 1 - progress);
}

/**
 * From 1 down to `final` along half a cosine.
 *
 * @see Loshchilov and Hutter 2017, "SGDR: Stochastic Gradient Descent with Warm Restarts", eq. 5.
 */
export function cosine(options: DecayOptions): Schedule {
  return decay("cosine", options, (progress) => (1 + Math.cos(Math.PI * progress)) / 2);
}

function decay(where: string, options: DecayOptions, shape: (progress: number) => number): Schedule {
  const names = { total: "number", warmup: "number", final: "number" } as const;
  const { total, warmup = 0, final = 0 } = readOptions<typeof options>(where, [options], { names });
  check(where, warmup, total, final);
  return (step) => {
    if (step < warmup) return rise(step, warmup);
    const progress = Math.min(1, (step - warmup) / (total - warmup));
    return final + (1 - final) * shape(progress);
  };
}

const rise = (step: number, warmup: number): number => Math.min(1, (step + 1) / (warmup + 1));

function check(where: string, warmup: number, total: number, final: number): void {
  if (!(Number.isInteger(warmup) && warmup >= 0)) {
    throw expected(where, "warmup to be an integer of at least 0", warmup);
  }
  if (!(total > warmup)) throw expected(where, `total above warmup ${warmup}`, total);
  if (!(final >= 0 && final <= 1)) throw expected(where, "final in [0, 1]", final);
}
