/** Counting what linear layers and convolutions really compute. */
import { Conv2d, init, Linear, type Module } from "../../src/nn/index.js";
import { noGrad, tidy } from "../../src/torch/index.js";

/** Operations of `run` in the linear layers and convolutions of these modules, an addition counted like a product. */
export function countFlops(modules: readonly Module[], run: () => void): number {
  let sum = 0;
  for (const layer of new Set(modules.flatMap((module) => module.modules()))) {
    if (!(layer instanceof Linear || layer instanceof Conv2d)) continue;
    const plain = layer.forward.bind(layer);
    layer.forward = (x) => {
      const y = plain(x);
      sum += 2 * y.numel * init.fanIn(layer.weight.shape);
      return y;
    };
  }
  noGrad(() => tidy(run));
  return sum;
}
