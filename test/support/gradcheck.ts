/** Gradients by central differences, to check those of autograd. */
import { grad, noGrad, Tensor, tensor } from "../../src/torch/index.js";
import { expectClose } from "./close.js";

/**
 * Check that autograd's gradient of a scalar function is that of central differences.
 *
 * @param fn - float64 tensors to a scalar, smooth around the inputs.
 */
export function checkGradient(
  fn: (...inputs: Tensor[]) => Tensor,
  inputs: readonly Tensor[],
  step = 1e-6,
): void {
  const leaves = inputs.map((input) => input.detach().clone().requiresGrad_());
  const analytic = grad([fn(...leaves)], leaves, undefined, { allowUnused: true });
  noGrad(() => {
    for (const [i, input] of inputs.entries()) {
      const numeric = Array.from({ length: input.numel }, (_, at) => {
        const moved = [step, -step].map((by) => {
          const values = input.clone();
          values.flatten().narrow(0, at, 1).add_(by);
          return fn(...inputs.map((other, j) => (j === i ? values : other))).item();
        }) as [number, number];
        return (moved[0] - moved[1]) / (2 * step);
      });
      const wanted = tensor(numeric, { dtype: "float64" }).reshape(...input.shape);
      const actual = analytic[i] ?? wanted.mul(0);
      if (!(actual instanceof Tensor)) throw new Error("no gradient");
      expectClose(actual, wanted, { rtol: 1e-6, atol: 1e-8, where: `input ${i}` });
    }
  });
}
