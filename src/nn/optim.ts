/**
 * AdamW with parameter groups, and clipping by the global norm. One fused kernel per group on CPU and CUDA.
 *
 * After Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization", algorithm 2, as PyTorch has it:
 * the decay is scaled by the learning rate, and the bias corrections come before `eps` is added.
 */
import { gatherOwned, ownersOf, rank, shareOwned, size } from "../distributed/index.js";
import {
  call,
  type Device,
  DTYPES,
  emptyLike,
  expected,
  keep,
  noGrad,
  type OptionNames,
  readOptions,
  stack,
  type Tensor,
  tidy,
  withDefaults,
  zeros,
  zerosLike,
} from "../torch/index.js";
import type { LoadReport, StateDict } from "./module.js";

/** Tensors to train, under names of their own (`model.namedParameters()`) or numbered from 0. */
export type Trained = readonly Tensor[] | readonly (readonly [string, Tensor])[];

/** Hyperparameters of one parameter group. */
export interface AdamWOptions {
  lr?: number;
  /** Decay of the running mean of the gradient, and of its square. */
  betas?: readonly [number, number];
  eps?: number;
  /** Weight decay: a step subtracts lr * weightDecay * weight. */
  weightDecay?: number;
}

/** A parameter group as the caller gives it: parameters, and hyperparameters that differ from the optimizer's. */
export interface ParameterGroup extends AdamWOptions {
  params: Trained;
}

/** A parameter group of the optimizer; its hyperparameters may be changed between steps. */
export interface AdamWGroup extends Required<AdamWOptions> {
  readonly names: readonly string[];
  readonly params: readonly Tensor[];
}

/** The whole state of the optimizer: `tensors` go into a safetensors file, `groups` into JSON. */
export interface AdamWState {
  /** `<name>.step`, `<name>.exp_avg` and `<name>.exp_avg_sq` of each parameter that has had a step. */
  tensors: StateDict;
  groups: (Required<AdamWOptions> & { params: string[] })[];
}

interface Moments {
  /** Steps taken: float32, on the parameter's device, as the fused kernel reads it. */
  step: Tensor;
  expAvg: Tensor;
  expAvgSq: Tensor;
}

/** Key in a state dict of each of the {@link Moments}. */
const KEYS = { step: "step", expAvg: "exp_avg", expAvgSq: "exp_avg_sq" } as const;
const FIELDS = ["step", "expAvg", "expAvgSq"] as const;

/** Parameters of one group that one kernel can update together. */
interface Batch {
  params: Tensor[];
  grads: Tensor[];
  moments: Moments[];
}

const NUMBERS: OptionNames<AdamWOptions> = {
  lr: "number",
  betas: true,
  eps: "number",
  weightDecay: "number",
};
const DEFAULTS = { lr: 1e-3, betas: [0.9, 0.999] as const, eps: 1e-8, weightDecay: 0.01 };

export class AdamW {
  readonly groups: readonly AdamWGroup[];
  readonly #moments = new Map<Tensor, Moments>();
  readonly #isFused: boolean;
  /** The process that steps each parameter and has its state; null where every process has all. */
  readonly #owners: ReadonlyMap<Tensor, number> | null;

  /**
   * @param params - tensors, or groups of them; state is kept for those that get gradients.
   * @param options - hyperparameters of the groups that do not set them.
   * @param options.isSharded - divide the state among the processes of a run. Each steps its part of the parameters and gives
   *   them to the others, which all call `step` and `stateDict` together. Default false.
   * @param options.fused - `false` computes from the formula, operator by operator: slower, same result up to rounding.
   */
  constructor(
    params: Trained | readonly ParameterGroup[],
    options: AdamWOptions & { isSharded?: boolean; fused?: boolean } = {},
  ) {
    const { fused, isSharded, ...own } = withDefaults("AdamW", options, {
      ...DEFAULTS,
      isSharded: false,
      fused: true,
    });
    this.#isFused = fused;
    const given = isGroups(params) ? params : [{ params }];
    const groups: AdamWGroup[] = [];
    const names = new Set<string>();
    const seen = new Set<Tensor>();
    for (const item of given) {
      const group = readOptions<ParameterGroup>("AdamW's group", [item], {
        names: { ...NUMBERS, params: true },
      });
      const first = names.size;
      const named = group.params.map((item, i): readonly [string, Tensor] =>
        isNamed(item) ? item : [String(first + i), item],
      );
      for (const [name, param] of named) {
        if (!param.isLeaf) throw expected("AdamW", "leaves of the graph", `${name}, a computed ${param}`);
        if (names.size === names.add(name).size) throw expected("AdamW", "each name once", `${name} twice`);
        if (seen.size === seen.add(param).size) {
          throw expected("AdamW", "each parameter once", `${name} a second time`);
        }
      }
      const numbers = { ...own, ...group };
      checkNumbers(numbers);
      groups.push({
        lr: numbers.lr,
        betas: numbers.betas,
        eps: numbers.eps,
        weightDecay: numbers.weightDecay,
        names: named.map(([name]) => name),
        params: named.map(([, param]) => param),
      });
    }
    if (seen.size === 0) throw expected("AdamW", "at least one parameter", "none");
    this.groups = groups;
    const all = [...seen];
    const owners = isSharded && size() > 1 ? ownersOf(all) : null;
    this.#owners = owners && new Map(all.map((param, i) => [param, owners[i] as number]));
  }

  /** Whether each process has a part of the state. */
  get isSharded(): boolean {
    return this.#owners !== null;
  }

  /**
   * Update every parameter that has a gradient; the others keep their values and state.
   *
   * @param options.lrFactor - factor of every group's learning rate in this step, from a schedule.
   */
  step(options: { lrFactor?: number } = {}): void {
    const { lrFactor } = withDefaults("AdamW.step", options, { lrFactor: 1 });
    if (!(lrFactor >= 0 && lrFactor < Infinity)) {
      throw expected("AdamW.step", "a finite lrFactor of at least 0", lrFactor);
    }
    noGrad(() => {
      for (const group of this.groups) {
        checkNumbers(group);
        tidy(() => {
          for (const batch of this.#batches(group)) {
            call("aten::_foreach_add_.Scalar", [batch.moments.map(({ step }) => step), 1]);
            const update = this.#isFused && canFuse(batch) ? updateFused : updatePlain;
            update(batch, group, group.lr * lrFactor);
          }
        });
      }
    });
    if (this.#owners === null) return;
    const changed = this.groups.flatMap(({ params }) => params.filter(({ grad }) => grad !== null));
    shareOwned(
      changed,
      changed.map((param) => this.#owners?.get(param) as number),
    );
  }

  /** Drop the gradients. */
  zeroGrad(): void {
    for (const { params } of this.groups) for (const param of params) param.grad = null;
  }

  /**
   * The state itself, not a copy; parameters that never had a gradient have none. Where it is sharded, all of it on the first
   * process, which disposes of it, and nothing on the others.
   */
  stateDict(): AdamWState {
    const tensors: StateDict = {};
    const groups = this.groups.map(({ lr, betas: [beta1, beta2], eps, weightDecay, names, params }) => {
      for (const [i, param] of params.entries()) {
        const moments = this.#moments.get(param);
        if (moments === undefined) continue;
        for (const field of FIELDS) tensors[`${names[i]}.${KEYS[field]}`] = moments[field];
      }
      return { lr, betas: [beta1, beta2] as const, eps, weightDecay, params: [...names] };
    });
    return { tensors: this.isSharded ? gatherOwned(tensors) : tensors, groups };
  }

  /**
   * Take over a state, copied. As in PyTorch the groups' saved lr, betas, eps and weight decay replace those that
   * this optimizer was made with.
   *
   * Nothing changes unless everything fits.
   *
   * @param options.keepHyperparameters - `true` keeps this optimizer's own lr, betas, eps and weight decay, and takes
   *   only the moments: for a run that continues with other settings.
   * @param options.strict - `false` takes the state of those parameters that both sides name, starts the
   *   others from zero, and keeps the hyperparameters.
   * @returns parameters of this optimizer that got no state, and entries that were not used.
   * @throws Error when names or shapes differ; shapes that differ even when `strict` is off.
   */
  loadStateDict(
    state: AdamWState,
    options: { strict?: boolean; keepHyperparameters?: boolean } = {},
  ): LoadReport {
    const { strict = true, keepHyperparameters = !strict } = readOptions<typeof options>(LOAD, [options], {
      names: { strict: "boolean", keepHyperparameters: "boolean" },
    });
    if (strict) this.#checkGroups(state.groups);
    const unexpected = new Set(Object.keys(state.tensors));
    const missing: string[] = [];
    const found: [Tensor, Moments][] = [];
    for (const { names, params } of this.groups) {
      for (const [i, param] of params.entries()) {
        const name = names[i] as string;
        const parts = momentsOf(name, param, state.tensors);
        for (const field of FIELDS) unexpected.delete(`${name}.${KEYS[field]}`);
        if (!this.#isOwn(param)) continue;
        if (parts === undefined) missing.push(name);
        else found.push([param, parts]);
      }
    }
    if (strict && unexpected.size > 0) {
      throw new Error(`${LOAD}: unexpected ${[...unexpected].slice(0, 5).join(", ")}.`);
    }
    // Copied before the current state is freed: `state` may be this optimizer's own.
    const loaded = found.map(([param, parts]) => [param, startMoments(param, parts)] as const);
    this.dispose();
    for (const [param, moments] of loaded) this.#moments.set(param, moments);
    if (!keepHyperparameters) {
      for (const [i, { lr, betas, eps, weightDecay }] of state.groups.entries()) {
        Object.assign(this.groups[i] as AdamWGroup, { lr, betas, eps, weightDecay });
      }
    }
    return { missing, unexpected: [...unexpected] };
  }

  /** Free the state. The next step starts from zero moments. */
  dispose(): void {
    for (const moments of this.#moments.values()) free(moments);
    this.#moments.clear();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  #checkGroups(groups: AdamWState["groups"]): void {
    if (groups.length !== this.groups.length) {
      throw expected(LOAD, `${this.groups.length} groups`, groups.length);
    }
    for (const [i, { names }] of this.groups.entries()) {
      const given = groups[i] as AdamWState["groups"][number];
      checkNumbers(given);
      const at = names.findIndex((name, j) => given.params[j] !== name);
      if (at >= 0 || given.params.length !== names.length) {
        const position = at >= 0 ? at : names.length;
        const [wanted, got] = [names[position] ?? "no more parameters", given.params[position] ?? "nothing"];
        throw expected(`${LOAD}: groups[${i}].params[${position}]`, wanted, got);
      }
    }
  }

  /** Parameters with gradients by device and dtype, with their state made ready. */
  #batches(group: AdamWGroup): Iterable<Batch> {
    const batches = new Map<string, Batch>();
    for (const param of group.params) {
      const { grad } = param;
      if (grad === null || !this.#isOwn(param)) continue;
      const key = `${param.device} ${param.dtype}`;
      let batch = batches.get(key);
      if (batch === undefined) {
        batch = { params: [], grads: [], moments: [] };
        batches.set(key, batch);
      }
      batch.params.push(param);
      batch.grads.push(fits(grad, param) ? grad : laidOutAs(param, grad));
      batch.moments.push(this.#ready(param));
    }
    return batches.values();
  }

  #isOwn(param: Tensor): boolean {
    return this.#owners === null || this.#owners.get(param) === rank();
  }

  #ready(param: Tensor): Moments {
    const old = this.#moments.get(param);
    if (old !== undefined && fits(old.expAvg, param)) return old;
    // New, or the module was moved or its layout changed: the kernel walks all arrays in the order of memory.
    const moments = startMoments(param, old);
    if (old !== undefined) free(old);
    this.#moments.set(param, moments);
    return moments;
  }
}

const LOAD = "AdamW.loadStateDict";

const isNamed = (item: Tensor | readonly [string, Tensor]): item is readonly [string, Tensor] =>
  Array.isArray(item);

const isGroups = (params: Trained | readonly ParameterGroup[]): params is readonly ParameterGroup[] =>
  params.length > 0 && "params" in (params[0] as object);

function checkNumbers({ lr, betas, eps, weightDecay }: Required<AdamWOptions>): void {
  const numbers = { lr, eps, weightDecay };
  for (const [name, value] of Object.entries(numbers)) {
    if (!(value >= 0 && value < Infinity)) throw expected("AdamW", `a finite ${name} of at least 0`, value);
  }
  if (betas.length !== 2 || !betas.every((beta) => beta >= 0 && beta < 1)) {
    throw expected("AdamW", "two betas in [0, 1)", betas);
  }
}

/** State of a parameter, in its dtype, on its device and laid out as it is: zero, or copied from another. */
function startMoments(param: Tensor, from?: Moments): Moments {
  return noGrad(() => {
    const device = param.device as Device;
    const moments = { step: zeros([], { device }), expAvg: zerosLike(param), expAvgSq: zerosLike(param) };
    for (const field of FIELDS) {
      keep(moments[field]);
      if (from !== undefined) moments[field].copy_(from[field]);
    }
    return moments;
  });
}

function free({ step, expAvg, expAvgSq }: Moments): void {
  step.dispose();
  expAvg.dispose();
  expAvgSq.dispose();
}

/** A parameter's entries of a state; undefined when it has none. */
function momentsOf(name: string, param: Tensor, tensors: Readonly<StateDict>): Moments | undefined {
  if (FIELDS.every((field) => tensors[`${name}.${KEYS[field]}`] === undefined)) return undefined;
  const entry = (field: keyof Moments): Tensor => {
    const key = `${name}.${KEYS[field]}`;
    const tensor = tensors[key];
    if (tensor === undefined) throw new Error(`${LOAD}: missing ${key}.`);
    const shape = field === "step" ? [] : param.shape;
    if (tensor.shape.join() === shape.join()) return tensor;
    throw expected(`${LOAD}: ${key}`, `shape [${shape.join(", ")}]`, `[${tensor.shape.join(", ")}]`);
  };
  return { step: entry("step"), expAvg: entry("expAvg"), expAvgSq: entry("expAvgSq") };
}

/** Whether both tensors have their elements in the same order in memory, for a kernel that walks through it. */
function fits(tensor: Tensor, param: Tensor): boolean {
  const strides = param.strides;
  return (
    tensor.strides.every((stride, i) => stride === strides[i]) &&
    tensor.dtype === param.dtype &&
    tensor.device === param.device
  );
}

const laidOutAs = (param: Tensor, tensor: Tensor): Tensor => emptyLike(param).copy_(tensor);

const canFuse = ({ params }: Batch): boolean => /^(cpu|cuda)/.test((params[0] as Tensor).device);

function updateFused({ params, grads, moments }: Batch, group: AdamWGroup, lr: number): void {
  const [beta1, beta2] = group.betas;
  call("aten::_fused_adamw_", [
    params,
    grads,
    moments.map(({ expAvg }) => expAvg),
    moments.map(({ expAvgSq }) => expAvgSq),
    [],
    moments.map(({ step }) => step),
    lr,
    beta1,
    beta2,
    group.weightDecay,
    group.eps,
    false,
    false,
  ]);
  // The fused kernel does not count its writes, so packed weights and stale graphs would go unnoticed.
  // An empty view shares the counter.
  call("aten::_foreach_zero_", [params.map((param) => param.asStrided([0], [1]))]);
}

function updatePlain({ params, grads, moments }: Batch, group: AdamWGroup, lr: number): void {
  const [beta1, beta2] = group.betas;
  for (const [i, param] of params.entries()) {
    const grad = grads[i] as Tensor;
    const { step, expAvg, expAvgSq } = moments[i] as Moments;
    tidy(() => {
      // Waits for a GPU, which has the fused kernel. On meta any number gives the shapes.
      const t = step.device === "meta" ? 1 : step.item();
      param.mul_(1 - lr * group.weightDecay);
      expAvg.lerp_(grad, 1 - beta1);
      expAvgSq.mul_(beta2).addcmul_(grad, grad, 1 - beta2);
      const root = expAvgSq
        .sqrt()
        .div_(Math.sqrt(1 - beta2 ** t))
        .add_(group.eps);
      param.addcdiv_(expAvg, root, -lr / (1 - beta1 ** t));
    });
  }
}

/**
 * Scale all gradients so that their norm, taken as one vector, is at most `maxNorm`.
 *
 * A norm that is infinite or NaN is returned as it is and the gradients are left alone: look at it before the
 * step. Reads one number from each device.
 *
 * @param maxNorm - `Infinity` only measures.
 * @returns the 2-norm before scaling; 0 when there is no gradient.
 */
export function clipGradNorm(parameters: Iterable<Tensor>, maxNorm: number): number {
  if (!(maxNorm > 0)) throw expected("clipGradNorm", "a maxNorm above 0", maxNorm);
  return noGrad(() =>
    tidy(() => {
      const batches = new Map<string, Tensor[]>();
      for (const { grad } of parameters) {
        if (grad === null) continue;
        const key = `${grad.device} ${grad.dtype}`;
        const batch = batches.get(key);
        if (batch === undefined) batches.set(key, [grad]);
        else batch.push(grad);
      }
      const norms: Record<string, Tensor[]> = {};
      for (const batch of batches.values()) {
        const { device, dtype } = batch[0] as Tensor;
        const wide = DTYPES[dtype].size < 4 ? "float32" : null; // float16 overflows, bfloat16 has few digits
        norms[device] ??= [];
        norms[device].push(...(call("aten::_foreach_norm.Scalar", [batch, 2, wide]) as Tensor[]));
      }
      const norm = Math.hypot(
        // Tensors on meta have no values.
        ...Object.entries(norms).map(([device, list]) => (device === "meta" ? 0 : stack(list).norm().item())),
      );
      const factor = maxNorm / (norm + 1e-6);
      if (Number.isFinite(norm) && factor < 1) {
        for (const batch of batches.values()) call("aten::_foreach_mul_.Scalar", [batch, factor]);
      }
      return norm;
    }),
  );
}
