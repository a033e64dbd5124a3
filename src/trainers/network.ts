/**
 * A network in supervised training, with its optimizer, learning rate schedule and EMA, and their state for a checkpoint.
 * The tasks compute the losses.
 */
import type { FitConfig } from "../config/fit.js";
import type { EmaSection, OptimizerSection } from "../config/resolve.js";
import type { Batch } from "../data/index.js";
import { accumulateGradients, gatherValues, rank, reduceGradients } from "../distributed/index.js";
import {
  AdamW,
  clipGradNorm,
  Ema,
  type Module,
  type Parameter,
  requireModule,
  type StateDict,
} from "../nn/index.js";
import { deviceOf } from "../rl_ar_finetune/parts.js";
import { lrSchedule } from "../rl_ar_finetune/settings.js";
import { requireFiniteWeights } from "../run/finite.js";
import type { PlainData } from "../run/plain_data.js";
import { loadOptimizer } from "../run/resume.js";
import {
  type Device,
  deriveSeed,
  expected,
  noGrad,
  requireDevice,
  requireObject,
  setNumThreads,
  type Tensor,
  tidy,
} from "../torch/index.js";
import type { FitModel, FitState } from "./loop.js";
export interface FitNetworkOptions {
  readonly optimizer: OptimizerSection;
  /** Null, or with decay null: no EMA. */
  readonly ema: EmaSection | null;
  /** Total number of updates, over which the learning rate schedule runs. */
  readonly total: number;
  /** The parts of a checkpoint are named `<name>`, `<name>_ema` and `<name>_optimizer`; default `model`. */
  readonly name?: string;
  /** Do not dispose of the module with this object; the caller owns it. */
  readonly keepsModule?: boolean;
  /** Whether the optimizer's state is sharded over the processes of a run; default false. */
  readonly isSharded?: boolean;
}

/** The result of an update. */
interface NetworkUpdate {
  /** Whether nothing was changed because the loss or the gradient is not finite. */
  readonly skipped: boolean;
  /** `optim/lr` and `optim/grad_norm`. */
  readonly metrics: Record<string, number>;
}

/** The device that a run trains on, checked; the number of threads is set as well. */
export function openDevice(config: FitConfig): Device {
  const { threads } = config.train;
  const device = deviceOf(config);
  requireDevice(device);
  if (threads !== null) setNumThreads(threads);
  return device;
}

/** A network in training, with optimizer and EMA; disposes of the network with itself, unless `keepsModule` is true. */
export class FitNetwork<M extends Module = Module> implements Disposable {
  readonly module: M;
  readonly optimizer: AdamW;
  readonly ema: Ema | null;
  readonly #options: FitNetworkOptions;
  readonly #trained: readonly Parameter[];
  readonly #factor: (step: number) => number;

  constructor(module: M, options: FitNetworkOptions) {
    requireModule("FitNetwork", module);
    requireObject("FitNetwork", options);
    const { ema, optimizer, total } = options;
    this.module = module;
    this.optimizer = adamWOf(module, optimizer, options.isSharded);
    this.ema =
      ema === null || ema.decay === null ? null : new Ema(module, { decay: ema.decay, warmup: ema.warmup });
    this.#options = options;
    this.#trained = module.parameters().filter((parameter) => parameter.requiresGrad);
    this.#factor = lrSchedule(optimizer, total);
  }

  /** Forward, loss and backward of the parts of an update, see {@link accumulateGradients}; {@link update} comes after it. */
  accumulate<T, R>(parts: readonly T[], backwardOf: (part: T) => R): R[] {
    return accumulateGradients(this.#trained, parts, backwardOf);
  }

  /**
   * All-reduce the gradients, clip them, step the optimizer, update the EMA, and clear the gradients.
   *
   * @param step - counted from 0.
   * @param loss - of the images of all processes, as a number: the update is skipped when it is not finite.
   * @throws DivergedError when a weight is not finite after the step.
   */
  update(step: number, loss: number): NetworkUpdate {
    const { lr, maxGradNorm } = this.#options.optimizer;
    const lrFactor = this.#factor(step);
    reduceGradients(this.#trained);
    const norm = clipGradNorm(this.#trained, maxGradNorm ?? Infinity);
    const skipped = !Number.isFinite(loss) || !Number.isFinite(norm);
    if (!skipped) {
      this.optimizer.step({ lrFactor });
      requireFiniteWeights(this.optimizer, step + 1);
      this.ema?.update();
    }
    this.optimizer.zeroGrad();
    return { skipped, metrics: { "optim/lr": lr * lrFactor, "optim/grad_norm": norm } };
  }

  /**
   * Run `fn` in eval mode and without autograd, with the EMA of the weights if there is one; frees tensors as `tidy`
   * does.
   */
  asResult<T>(fn: () => T): T {
    const wasTraining = this.module.training;
    const run = (): T => noGrad(() => tidy(fn));
    this.module.eval();
    try {
      return this.ema === null ? run() : this.ema.withAverage(run);
    } finally {
      this.module.train(wasTraining);
    }
  }

  /**
   * The weights that the result file gets, not copied: the EMA where there is one, otherwise the weights themselves.
   */
  weights(): Pick<FitModel, "tensors" | "isAverage"> {
    const own = this.module.stateDict();
    if (this.ema === null) return { tensors: own, isAverage: false };
    const { tensors } = this.ema.stateDict();
    const averageOf = new Map<Tensor, Tensor>(
      this.module.namedParameters().flatMap(([name, parameter]) => {
        const average = tensors[name];
        return average === undefined ? [] : [[parameter, average] as const];
      }),
    );
    const used = Object.entries(own).map(([name, tensor]) => [name, averageOf.get(tensor) ?? tensor]);
    return { tensors: Object.fromEntries(used), isAverage: true };
  }

  /** For a checkpoint; the network still owns the tensors. */
  state(): FitState {
    const { name = "model" } = this.#options;
    const optimizer = this.optimizer.stateDict();
    const average = this.ema?.stateDict();
    return {
      tensors: {
        [name]: this.module.stateDict(),
        [`${name}_optimizer`]: optimizer.tensors,
        ...(average && { [`${name}_ema`]: average.tensors }),
      },
      values: {
        [`${name}_optimizer`]: optimizer.groups as unknown as PlainData,
        ...(average && { [`${name}_ema_updates`]: average.updates }),
      },
    };
  }

  /** Restore a {@link state}; its tensors are copied. */
  load({ tensors, values }: FitState): void {
    const { name = "model" } = this.#options;
    const part = (key: string): Readonly<StateDict> => {
      const found = tensors[key];
      if (found !== undefined) return found;
      throw expected("resume", `a checkpoint with ${key}`, Object.keys(tensors).join(", "));
    };
    this.module.loadStateDict(part(name));
    const groups = values[`${name}_optimizer`] as unknown as ReturnType<AdamW["stateDict"]>["groups"];
    // An optimizer that has made no step has no tensors, and so no file.
    loadOptimizer(this.optimizer, { tensors: tensors[`${name}_optimizer`] ?? {}, groups });
    const average = tensors[`${name}_ema`];
    const updates = values[`${name}_ema_updates`] as number;
    // An EMA that did not exist so far starts from the current weights.
    const present = Object.fromEntries(
      this.module.namedParameters().filter(([, { requiresGrad }]) => requiresGrad),
    );
    this.ema?.loadStateDict(
      average === undefined ? { tensors: present, updates: 0 } : { tensors: average, updates },
    );
  }

  dispose(): void {
    this.optimizer.dispose();
    this.ema?.dispose();
    if (this.#options.keepsModule !== true) this.module.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

/**
 * AdamW over the trained parameters. Weight decay applies to those with at least two dimensions, not to biases, norms
 * and scales.
 */
function adamWOf(
  module: Module,
  { lr, betas, eps, weightDecay }: OptimizerSection,
  isSharded = false,
): AdamW {
  const trained = module.namedParameters().filter(([, parameter]) => parameter.requiresGrad);
  const isMatrix = ([, parameter]: readonly [string, Parameter]): boolean => parameter.ndim >= 2;
  const groups = [
    { params: trained.filter(isMatrix) },
    { params: trained.filter((named) => !isMatrix(named)), weightDecay: 0 },
  ].filter(({ params }) => params.length > 0);
  return new AdamW(groups, { lr, betas, eps, weightDecay, isSharded });
}

/** Number of images of a batch on this process and on all processes, and the first divided by the second. */
export function partOf(batch: Batch): { own: number; all: number; share: number } {
  const own = batch.ids.length;
  const all = batch.place?.of ?? own;
  return { own, all, share: own / all };
}

/** The seed of dropout at a step; each process draws its own masks. */
export function dropoutSeed(seed: number | bigint, step: number): bigint {
  return deriveSeed(seed, rank() === 0 ? "dropout" : `dropout/${rank()}`, step);
}

/**
 * Turn means over this process's images into means over the images of all processes; `share` is this process's fraction
 * of the images.
 */
export function meansOfAll(means: Record<string, number>, share: number): Record<string, number> {
  const parts = gatherValues({ means, share });
  if (parts.length === 1) return means;
  const names = Object.keys(means);
  return Object.fromEntries(
    names.map((name) => [
      name,
      parts.reduce((sum, part) => sum + (part.means[name] as number) * part.share, 0),
    ]),
  );
}

/** Sum of arrays of equal length, added in their order. */
export function addedUp(arrays: readonly Float64Array[]): Float64Array {
  const [first = new Float64Array(), ...others] = arrays;
  return others.reduce((sums, array) => sums.map((sum, i) => sum + (array[i] as number)), first);
}

/** Sums over all processes, by name; a process without images contributes none. */
export function sumsOfAll(own: Readonly<Record<string, number>>): Record<string, number> {
  const sums: Record<string, number> = {};
  for (const [name, value] of gatherValues(own).flatMap((part) => Object.entries(part)))
    sums[name] = (sums[name] ?? 0) + value;
  return sums;
}
