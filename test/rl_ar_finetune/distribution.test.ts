/** The one distribution of sampler and scorer, against PyTorch's numbers. */
import { test } from "node:test";

import { distribution, type Sampling } from "../../src/rl_ar_finetune/sampling.js";
import { loadSafetensors, type Tensor, tidy, where } from "../../src/torch/index.js";
import { expectClose } from "../support/close.js";

const { tensors } = loadSafetensors("test/golden/rl/distribution.safetensors");
const golden = (name: string): Tensor => tensors[name] as Tensor;

const SETTINGS: Readonly<Record<string, Sampling & { scale?: number }>> = {
  plain: {},
  temperature: { temperature: 0.7 },
  top_k: { topK: 5 },
  top_p: { topP: 0.8 },
  guidance: { scale: 2.5 },
  all: { scale: 1.5, temperature: 1.3, topK: 12, topP: 0.9 },
};

for (const [name, { scale, ...sampling }] of Object.entries(SETTINGS)) {
  test(`${name}: the same codes stay, with the same log-probabilities`, () =>
    tidy(() => {
      const guided = scale === undefined ? {} : { scale, nullLogits: golden("null_logits") };
      const logp = distribution(golden("logits"), sampling, guided);
      // -Infinity equals itself, so one comparison sees both the support and the values.
      expectClose(logp, golden(name), { rtol: 1e-5, atol: 1e-6 });
      expectClose(where(logp.isinf(), 0, logp.exp()).sum(1), golden("logits").mul(0).sum(1).add(1), {
        rtol: 1e-5,
      });
    }));
}
