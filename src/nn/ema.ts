/**
 * Exponential moving average of a network's trained parameters, after each update
 * `average <- decay * average + (1 - decay) * value`. Buffers, such as batch statistics, are not averaged.
 */
import {
  call,
  expected,
  expectedType,
  keep,
  noGrad,
  type Tensor,
  tidy,
  withDefaults,
} from "../torch/index.js";
import type { Module, Parameter, StateDict } from "./module.js";
export interface EmaOptions {
  /** EMA decay: the weight of the old average at an update. */
  decay?: number;
  /** Decay by min((1 + t) / (10 + t), decay) at update t = 0, 1, ..., so that the initial values fade quickly. */
  warmup?: boolean;
}

/** The averages: `tensors` go into a safetensors file, `updates` into JSON. */
export interface EmaState {
  /** By the parameters' state-dict keys. */
  tensors: StateDict;
  updates: number;
}

export class Ema {
  readonly decay: number;
  readonly warmup: boolean;
  #updates = 0;
  #isSwapped = false;
  readonly #names: readonly string[];
  readonly #parameters: readonly Parameter[];
  readonly #averages: readonly Tensor[];

  /** Start from the present values of the parameters that require a gradient. */
  constructor(module: Module, options: EmaOptions = {}) {
    const { decay, warmup } = withDefaults("Ema", options, { decay: 0.999, warmup: false });
    if (!(decay >= 0 && decay <= 1)) throw expected("Ema", "a decay in [0, 1]", decay);
    this.decay = decay;
    this.warmup = warmup;
    const trained = module.namedParameters().filter(([, parameter]) => parameter.requiresGrad);
    if (trained.length === 0) throw expected("Ema", "a module with trained parameters", "one without");
    this.#names = trained.map(([name]) => name);
    this.#parameters = trained.map(([, parameter]) => parameter);
    this.#averages = this.#parameters.map((parameter) => keep(noGrad(() => parameter.clone())));
  }

  /** Updates so far. */
  get updates(): number {
    return this.#updates;
  }

  /** Move the averages towards the present values. */
  update(): void {
    this.#mustNotBeSwapped("update");
    const t = this.#updates;
    const decay = this.warmup ? Math.min((1 + t) / (10 + t), this.decay) : this.decay;
    noGrad(() => call("aten::_foreach_lerp_.Scalar", [this.#averages, this.#parameters, 1 - decay]));
    this.#updates++;
  }

  /**
   * Run `fn` with the averages in the parameters; afterwards, and when `fn` throws, the parameters are bit
   * for bit what they were. Takes extra memory for one parameter at a time.
   *
   * @throws TypeError when `fn` returns a Promise: the values would be back before the work is done.
   */
  withAverage<T>(fn: () => T): T {
    this.#mustNotBeSwapped("withAverage");
    let count = 0;
    this.#isSwapped = true;
    try {
      for (; count < this.#parameters.length; count++) this.#swap(count);
      const result = fn();
      if (result instanceof Promise) {
        result.catch(() => {}); // the TypeError is reported, not the later failure of the Promise
        throw expectedType("Ema.withAverage", "a function that returns its result", "a Promise");
      }
      return result;
    } finally {
      while (count > 0) this.#swap(--count);
      this.#isSwapped = false;
    }
  }

  #swap(i: number): void {
    const parameter = this.#parameters[i] as Parameter;
    const average = this.#averages[i] as Tensor;
    if (parameter.dtype !== average.dtype) {
      // A round trip through a narrower type would lose digits of the EMA.
      throw expected(`Ema.withAverage: ${this.#names[i]}`, average.dtype, parameter.dtype, "Start a new Ema");
    }
    noGrad(() =>
      tidy(() => {
        const value = parameter.clone();
        parameter.copy_(average);
        average.copy_(value);
      }),
    );
  }

  /** The averages themselves, not copies. */
  stateDict(): EmaState {
    this.#mustNotBeSwapped("stateDict");
    const tensors = Object.fromEntries(this.#names.map((name, i) => [name, this.#averages[i] as Tensor]));
    return { tensors, updates: this.#updates };
  }

  /**
   * Take over averages, copied.
   *
   * @throws Error when names or shapes differ; nothing is copied then.
   */
  loadStateDict(state: EmaState): void {
    this.#mustNotBeSwapped("loadStateDict");
    const where = "Ema.loadStateDict";
    const { tensors, updates } = state;
    if (!(Number.isInteger(updates) && updates >= 0)) {
      throw expected(where, "a count of updates", updates);
    }
    const unexpected = Object.keys(tensors).filter((name) => !this.#names.includes(name));
    if (unexpected.length > 0) throw new Error(`${where}: unexpected ${unexpected.slice(0, 5).join(", ")}.`);
    const values = this.#names.map((name, i): Tensor => {
      const value = tensors[name];
      const { shape } = this.#averages[i] as Tensor;
      if (value === undefined) throw new Error(`${where}: missing ${name}.`);
      if (value.shape.join() === shape.join()) return value;
      throw expected(`${where}: ${name}`, `shape [${shape.join(", ")}]`, `[${value.shape.join(", ")}]`);
    });
    noGrad(() => {
      for (const [i, value] of values.entries()) (this.#averages[i] as Tensor).copy_(value);
    });
    this.#updates = updates;
  }

  /** Free the averages. */
  dispose(): void {
    for (const average of this.#averages) average.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  #mustNotBeSwapped(method: string): void {
    if (!this.#isSwapped) return;
    throw expected(`Ema.${method}`, "a call outside withAverage", "one inside it");
  }
}
