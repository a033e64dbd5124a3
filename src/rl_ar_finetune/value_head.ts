/** The value head that PPO adds to a policy: one number a position, from what the policy's own head reads. */
import { Linear, Module } from "../nn/index.js";
import { noGrad, type Tensor, tidy } from "../torch/index.js";

/**
 * `V = weight . hidden + bias`, both 0 at first: a new head must not disturb the first advantages.
 *
 * Give its parameters to the optimizer beside the policy's; a fresh head usually wants a larger learning rate.
 */
export class ValueHead extends Module {
  readonly out: Linear;

  /** @param hiddenSize - D of the policy. */
  constructor(hiddenSize: number) {
    super();
    this.out = new Linear(hiddenSize, 1);
    noGrad(() => {
      for (const parameter of this.parameters()) parameter.zero_();
    });
  }

  /** Values of hidden states: float `[..., D]` to float32 (float64 for a float64 head) `[...]`. */
  forward(hidden: Tensor): Tensor {
    return tidy(() => this.out.forward(hidden.to({ dtype: this.out.weight.dtype })).squeeze(-1));
  }
}
