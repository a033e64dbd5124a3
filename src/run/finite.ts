/** Whether weights are finite after an update. */
import type { AdamW } from "../nn/index.js";
import { callTensor, listed, noGrad, stack, type Tensor, tidy } from "../torch/index.js";
import { DivergedError } from "./failure.js";

/** Names of float tensors with an element that is NaN or infinite. Reads values once per device. */
function notFinite(tensors: Iterable<readonly [string, Tensor]>): string[] {
  const all = [...tensors].filter(([, tensor]) => tensor.numel > 0);
  if (all.length === 0) return [];
  return noGrad(() =>
    tidy(() => {
      // The largest magnitude: NaN and infinity stay what they are.
      const largest = new Map<string, [name: string, value: Tensor][]>();
      for (const [name, tensor] of all) {
        const norm = [tensor.flatten(), Number.POSITIVE_INFINITY];
        const value = callTensor<Tensor>("aten::linalg_vector_norm", norm).float();
        largest.set(tensor.device, [...(largest.get(tensor.device) ?? []), [name, value]]);
      }
      return [...largest.values()].flatMap((found) => {
        const values = stack(found.map(([, value]) => value)).toList() as number[];
        return found.flatMap(([name], i) => (Number.isFinite(values[i]) ? [] : [name]));
      });
    }),
  );
}

/** @throws DivergedError when a weight that the optimizer has moved is not finite. */
export function requireFiniteWeights({ groups }: AdamW, step: number): void {
  const weights = groups.flatMap(({ names, params }) =>
    params.map((param, i) => [names[i] as string, param] as const),
  );
  const names = notFinite(weights);
  if (names.length === 0) return;
  throw new DivergedError(
    `step ${step}: expected finite weights after the update, got NaN or infinity in ${listed(names, 1)}. ` +
      "Lower optimizer.lr, or raise optimizer.warmup; then resume with --force.",
  );
}
