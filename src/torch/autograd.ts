/**
 * Gradients: grad mode, gradients of several tensors at once, custom backward functions, gradient checkpointing and
 * autocast. LibTorch has the backward of every operator.
 */
import { withDefaults } from "./arguments.js";
import { native, SLOTS, TAG, tags, values } from "./binding.js";
import { zeros } from "./creation.js";
import { expected, expectedMessage, expectedType } from "./errors.js";
import { type RandomState, restoreRandomState, saveRandomState } from "./random.js";
import { type Owned, surrender, tidy, tidyInto } from "./scope.js";
import { Tensor } from "./tensor.js";
import { BACKWARD, type BackwardOptions } from "./tensor_options.js";

function withGradMode<T>(on: boolean, fn: () => T): T {
  const before = native.setGradEnabled(on);
  try {
    return fn();
  } finally {
    native.setGradEnabled(before);
  }
}

/** Run `fn` without building a graph: nothing made inside requires a gradient. */
export function noGrad<T>(fn: () => T): T {
  return withGradMode(false, fn);
}

/** Run `fn` with autograd on, inside {@link noGrad}. */
export function enableGrad<T>(fn: () => T): T {
  return withGradMode(true, fn);
}

/** Whether operators called now build a graph. */
export function isGradEnabled(): boolean {
  return native.isGradEnabled();
}

function put(tensors: readonly (Tensor | null)[], slot: number): number {
  if (slot + tensors.length > SLOTS)
    throw expected("autograd", `at most ${SLOTS} tensors`, slot + tensors.length);
  for (const tensor of tensors) {
    tags[slot] = tensor === null ? TAG.none : TAG.tensor;
    values[slot++] = tensor === null ? 0 : tensor.live;
  }
  return slot;
}

function take(slot: number, count: number): (Tensor | null)[] {
  // The handles are read first: making a tensor may use the frame.
  const handles = Array.from({ length: count }, (_, i) =>
    tags[slot + i] === TAG.tensor ? (values[slot + i] as number) : 0,
  );
  return handles.map((handle) => (handle === 0 ? null : new Tensor(handle)));
}

/**
 * Accumulate gradients of several tensors into `grad` of the leaves they were made from.
 *
 * @param roots - tensors to differentiate.
 * @param gradients - gradients of the roots; null, or not given, for one-element roots.
 * @param options.inputs - accumulate only into these leaves.
 */
export function backward(
  roots: readonly Tensor[],
  gradients: readonly (Tensor | null)[] = roots.map(() => null),
  options: BackwardOptions & { inputs?: readonly Tensor[] } = {},
): void {
  const { inputs, ...graph } = withDefaults("backward", options, { ...BACKWARD, inputs: [] });
  const { createGraph, retainGraph = createGraph } = graph;
  put(inputs, put(gradients, put(roots, 0)));
  native.backward(roots.length, gradients.length, inputs.length, retainGraph, createGraph);
}

/**
 * Gradients of `roots` with respect to `inputs`, returned and not accumulated.
 *
 * @param gradients - gradients of the roots; null, or not given, for one-element roots.
 * @param options.allowUnused - give null for an input that the roots do not depend on, instead of throwing.
 */
export function grad(
  roots: readonly Tensor[],
  inputs: readonly Tensor[],
  gradients: readonly (Tensor | null)[] = roots.map(() => null),
  options: BackwardOptions & { allowUnused?: boolean } = {},
): (Tensor | null)[] {
  const { allowUnused, ...graph } = withDefaults("grad", options, { ...BACKWARD, allowUnused: false });
  const { createGraph, retainGraph = createGraph } = graph;
  put(inputs, put(gradients, put(roots, 0)));
  native.gradients(roots.length, gradients.length, inputs.length, retainGraph, createGraph, allowUnused);
  return take(0, inputs.length);
}

/**
 * Compute tensors with a custom backward function.
 *
 * @param inputs - the tensors that the outputs are differentiated by; only these receive gradients.
 * @param forward - runs at once and without a graph; returns the outputs, and the tensors to save for the backward.
 * @param backwardOf - called with the gradients of the outputs and the saved tensors, all freed when it returns;
 *   gives one gradient per input, or null. It runs without a graph unless the caller asked for second derivatives.
 *   `isForAll` is false where the caller asked only for the gradients of chosen tensors.
 * @returns the outputs, in the graph when an input requires a gradient.
 */
export function customFunction(
  inputs: readonly Tensor[],
  forward: () => { outputs: Tensor[]; saved: readonly Tensor[] },
  backwardOf: (
    gradients: readonly Tensor[],
    saved: readonly Tensor[],
    isForAll: boolean,
  ) => readonly (Tensor | null)[],
): Tensor[] {
  return tidy(() => {
    const { outputs, saved } = noGrad(forward);
    put(saved, put(outputs, put(inputs, 0)));
    native.attachBackward(
      inputs.length,
      outputs.length,
      saved.length,
      (gradientCount, savedCount, isForAll) => {
        const made = new Set<Owned>();
        const receive = (owned: Owned): void => void made.add(owned);
        const results = tidyInto(receive, () => {
          const given = take(0, gradientCount + savedCount) as Tensor[];
          const own = backwardOf(given.slice(0, gradientCount), given.slice(gradientCount), isForAll);
          checkGradients(own, inputs.length);
          return own;
        });
        put(results, 0);
        // Tensors made here are handed over; others are shared, so autograd must not use them as scratch memory.
        for (const [i, tensor] of results.entries()) {
          if (tensor === null) continue;
          if (made.delete(tensor)) surrender(tensor);
          else tags[i] = TAG.argument;
        }
      },
    );
    return take(0, outputs.length) as Tensor[];
  });
}

/** A backward is JavaScript: it may return anything. */
function checkGradients(gradients: unknown, count: number): void {
  const where = "customFunction";
  if (!Array.isArray(gradients)) throw expectedType(where, "a backward that returns an array", gradients);
  if (gradients.length !== count) {
    throw expected(where, `${count} gradients from the backward`, gradients.length);
  }
  const at = gradients.findIndex((item) => item !== null && !(item instanceof Tensor));
  if (at >= 0) throw expectedType(where, `a Tensor or null as gradient ${at} of the backward`, gradients[at]);
}

/**
 * Compute `fn(...inputs)` now without a graph and again in the backward, so that only the inputs are kept in
 * between: less memory for more time. Random numbers and autocast are the same both times.
 *
 * Gradients reach the inputs and every parameter that `fn` uses. The numbers that `fn` draws must come from the
 * default generators: others are not put back.
 *
 * @throws Error in the backward, when it is {@link grad} or for chosen inputs, or asks for second derivatives.
 * @see Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost".
 */
export function checkpoint(fn: (...inputs: Tensor[]) => Tensor, inputs: readonly Tensor[]): Tensor {
  if (!isGradEnabled()) return fn(...inputs);
  const cast = currentAutocast;
  const follows = inputs.map((tensor) => tensor.requiresGrad);
  const recompute = (gradient: Tensor, saved: readonly Tensor[], random: RandomState): (Tensor | null)[] => {
    const leaves = saved.map((tensor, i) => tensor.detach().requiresGrad_(follows[i]));
    const now = saveRandomState();
    restoreRandomState(random);
    let output: Tensor;
    try {
      output = enableGrad(() => withAutocast(cast, () => fn(...leaves)));
    } finally {
      restoreRandomState(now);
    }
    if (output.requiresGrad) backward([output], [gradient]);
    return [null, ...leaves.map((leaf, i) => (follows[i] ? leaf.grad : null))];
  };
  return tidy(() => {
    // Parameters inside `fn` may be all that requires a gradient: the anchor puts the result into the graph.
    const anchor = zeros([0], { requiresGrad: true });
    const random = saveRandomState();
    const devices = Object.keys(random);
    const outputs = customFunction(
      [anchor, ...inputs],
      () => ({ outputs: [fn(...inputs)], saved: [...inputs, ...Object.values(random)] }),
      ([gradient], saved, isForAll) => {
        if (!isForAll) {
          const what = "backward() into every leaf";
          throw new Error(
            expectedMessage("checkpoint", what, "grad() or chosen inputs", "Leave checkpoint out there"),
          );
        }
        if (isGradEnabled()) {
          throw new Error(
            expectedMessage(
              "checkpoint",
              "first derivatives alone",
              "createGraph",
              "Leave checkpoint out there",
            ),
          );
        }
        const states = Object.fromEntries(
          devices.map((device, i) => [device, saved[inputs.length + i] as Tensor]),
        );
        return recompute(gradient as Tensor, saved.slice(0, inputs.length), states);
      },
    );
    return outputs[0] as Tensor;
  });
}

/** Where and in what dtype autocast computes; null switches it off. */
export interface AutocastState {
  device: "cpu" | "cuda";
  dtype: "bfloat16" | "float16" | null;
}

type AutocastDtypes = Readonly<Record<AutocastState["device"], AutocastState["dtype"]>>;
let currentAutocast: AutocastDtypes = { cpu: null, cuda: null };

/**
 * Run `fn` with matrix products and convolutions in a narrow dtype, and with reductions, norms and losses in
 * float32, as PyTorch's lists for the device say. Weights are cast once inside the outermost autocast.
 */
export function autocast<T>(state: AutocastState, fn: () => T): T {
  const { device, dtype } = state;
  const outer = currentAutocast;
  if (!Object.hasOwn(outer, device)) throw expected("autocast", 'device "cpu" or "cuda"', device);
  if (dtype !== null && dtype !== "bfloat16" && dtype !== "float16") {
    throw expected("autocast", 'dtype "bfloat16", "float16" or null', dtype);
  }
  const before = native.enterAutocast(device, dtype ?? "");
  currentAutocast = { ...outer, [device]: dtype };
  try {
    return fn();
  } finally {
    currentAutocast = outer;
    native.leaveAutocast(device, before);
  }
}

/** Run `fn` outside autocast on the device of `like`: in the dtypes of its tensors. */
export function withoutAutocast<T>(like: Tensor, fn: () => T): T {
  return autocast({ device: like.device.startsWith("cuda") ? "cuda" : "cpu", dtype: null }, fn);
}

function withAutocast<T>({ cpu, cuda }: AutocastDtypes, fn: () => T): T {
  return autocast({ device: "cpu", dtype: cpu }, () => autocast({ device: "cuda", dtype: cuda }, fn));
}
