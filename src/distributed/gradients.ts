/**
 * The gradients of a step, added up over the processes.
 *
 * This happens after the backward pass and not while it runs: the head's gradient comes in several nested backward passes
 * (a chunk of positions each, computed again), so that no gradient is known to be complete before the end.
 */
import { noGrad, type Tensor, zerosLike } from "../torch/index.js";
import { allReduce, gatherValues } from "./collectives.js";
import { size } from "./group.js";

/**
 * Replace the gradient of each parameter by the sum over all processes.
 *
 * A parameter that has a gradient on one process has one on all afterwards; without any it stays without.
 */
export function reduceGradients(parameters: readonly Tensor[]): void {
  if (size() === 1) return;
  const has = gatherValues(Uint8Array.from(parameters, ({ grad }) => (grad === null ? 0 : 1)));
  const gradients = parameters.flatMap((parameter, i) => {
    if (!has.some((flags) => flags[i] === 1)) return [];
    if (parameter.grad === null) parameter.grad = noGrad(() => zerosLike(parameter));
    else if (!parameter.grad.isContiguous()) parameter.grad = parameter.grad.contiguous();
    return [parameter.grad];
  });
  allReduce(gradients);
}
