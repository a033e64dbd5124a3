/**
 * The gradients of a step, added up over the processes in buckets of 25 MiB, those of the last layers first.
 *
 * A bucket is sent while the last backward pass of the step still runs, as soon as its gradients are complete. That is known of
 * gradients that come at once. Those that come in parts are sent after the pass: of the policy's head, whose positions are
 * computed again in chunks, each with a backward pass of its own, and of all layers with `gradientCheckpointing`. Which
 * they are is learnt from the steps before. What is sum of what, and in which order, is the same in either case, bit for bit.
 */
import { noGrad, type Tensor, zerosLike } from "../torch/index.js";
import { GRADIENT, Reducer } from "../torch/process_group.js";
import { allReduce, bucketsOf, gatherValues, sending } from "./collectives.js";
import { GROUP, openedGroup, size } from "./group.js";

/** The reducer of some parameters and what is known of them; the parameters in the order of the buckets. */
class GradientSum {
  readonly group: object | null;
  readonly parameters: readonly Tensor[];
  readonly #buckets: readonly (readonly Tensor[])[];
  readonly #reducer: Reducer;
  /** {@link GRADIENT} of each parameter, of all processes and all steps so far. */
  readonly #known: Uint8Array;
  #isEarly: readonly boolean[];
  /** Of this process and this step; null where it has not submitted. */
  #found: Uint8Array | null = null;
  /** Buckets that were sent during the last backward pass. */
  inTime = 0;

  constructor(parameters: readonly Tensor[]) {
    this.group = openedGroup();
    this.#buckets = bucketsOf([...parameters].reverse());
    this.parameters = this.#buckets.flat();
    this.#reducer = new Reducer(GROUP, this.#buckets);
    this.#known = new Uint8Array(this.parameters.length);
    this.#isEarly = this.#buckets.map(() => false);
  }

  isOf(parameters: readonly Tensor[]): boolean {
    const { length } = parameters;
    return (
      this.group === openedGroup() &&
      length === this.parameters.length &&
      parameters.every((parameter, i) => parameter === this.parameters[length - 1 - i])
    );
  }

  arm(): void {
    this.#reducer.arm(this.#isEarly);
  }

  /** Send the early buckets, before any other collective. */
  submit(): void {
    if (this.#found !== null) return;
    const early = this.#buckets.filter((_, b) => this.#isEarly[b]);
    sending(early, () => {
      const { found, inTime } = this.#reducer.submit(this.#isEarly);
      this.#found = found;
      this.inTime = inTime;
    });
  }

  /** Wait for the early buckets, and sum the others. */
  finish(): void {
    this.submit();
    sending([], () => this.#reducer.wait());
    const all = gatherValues(this.#found as Uint8Array);
    this.#found = null;
    const now = this.#known.map((_, i) => all.reduce((or, found) => or | (found[i] as number), 0));
    let first = 0;
    const late: Tensor[][] = [];
    for (const [b, bucket] of this.#buckets.entries()) {
      const flags = now.subarray(first, first + bucket.length);
      first += bucket.length;
      // A bucket is whole also where some gradients are missing: sums in a ring depend on the place.
      if (!this.#isEarly[b] && flags.some(isThere)) late.push(bucket.map(gradientOf));
    }
    for (const bucket of late) allReduce(bucket);
    for (const [i, parameter] of this.parameters.entries())
      if (!isThere(now[i] as number)) parameter.grad = null;
    this.#learn(now);
  }

  /** From the next step on a bucket is early when each of its gradients has come at once and never in parts. */
  #learn(now: Uint8Array): void {
    for (const [i, flags] of now.entries()) this.#known[i] = (this.#known[i] as number) | flags;
    let next = 0;
    this.#isEarly = this.#buckets.map((bucket) =>
      bucket
        .map(() => this.#known[next++] as number)
        .every((flags) => (flags & GRADIENT.once) !== 0 && (flags & GRADIENT.inParts) === 0),
    );
  }

  close(): void {
    this.#reducer.close();
  }
}

const isThere = (flags: number): boolean => (flags & GRADIENT.is) !== 0;

/** The gradient of a parameter, contiguous; zeros where it has none. */
function gradientOf(parameter: Tensor): Tensor {
  if (parameter.grad === null) parameter.grad = noGrad(() => zerosLike(parameter));
  else if (!parameter.grad.isContiguous()) parameter.grad = parameter.grad.contiguous();
  return parameter.grad as Tensor;
}

/** By the first parameter: a network has one list of those that are trained. */
const sums = new WeakMap<Tensor, GradientSum>();

function sumOf(parameters: readonly Tensor[]): GradientSum {
  const first = parameters[0] as Tensor;
  const known = sums.get(first);
  if (known?.isOf(parameters)) return known;
  if (known?.group === openedGroup()) known?.close(); // otherwise it went with its group
  const made = new GradientSum(parameters);
  sums.set(first, made);
  return made;
}

/**
 * Go through the parts of a step, each with a backward pass, and begin to add up the gradients of all processes during the last
 * one. {@link reduceGradients} ends it; no collective may come in between on some of the processes alone.
 *
 * @param parts - of this process; none where it has no rows.
 * @param backwardOf - forward, loss and backward of a part; what it returns is returned.
 */
export function accumulateGradients<T, R>(
  parameters: readonly Tensor[],
  parts: readonly T[],
  backwardOf: (part: T) => R,
): R[] {
  if (size() === 1 || parameters.length === 0) return parts.map(backwardOf);
  const sum = sumOf(parameters);
  const results = parts.map((part, i) => {
    if (i === parts.length - 1) sum.arm();
    return backwardOf(part);
  });
  sum.submit();
  return results;
}

/**
 * Replace the gradient of each parameter by the sum over all processes.
 *
 * A parameter that has a gradient on one process has one on all afterwards; without any it stays without.
 */
export function reduceGradients(parameters: readonly Tensor[]): void {
  if (size() > 1 && parameters.length > 0) sumOf(parameters).finish();
}

/** @internal Buckets of these parameters, and how many of them were sent during the last backward pass. */
export function bucketsInTime(parameters: readonly Tensor[]): { buckets: number; inTime: number } {
  return { buckets: bucketsOf([...parameters].reverse()).length, inTime: sumOf(parameters).inTime };
}
