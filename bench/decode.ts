/**
 * How fast a policy writes codes: one GPT-B of LlamaGen (12 layers, width 768, 16384 codes) with random weights, 256
 * codes greedily, weights plain and packed, float32 and bfloat16.
 *
 *     npm run bench decode -- [batch ...]
 *
 * Prints tokens a second and milliseconds a step, the median of the runs; shared machines are noisy.
 */
import { packLinears } from "../src/nn/index.js";
import { type ArPolicy, LlamaGen, llamaGenPresets } from "../src/policies/index.js";
import {
  autocast,
  getNumThreads,
  manualSeed,
  noGrad,
  randn,
  type Tensor,
  tidy,
  version,
  zeros,
} from "../src/torch/index.js";

const CODES = 256;
const RUNS = 3;

/** Milliseconds to write all codes. */
function write(policy: ArPolicy, batch: number): number {
  using cache = policy.openCache(batch);
  const begin = performance.now();
  tidy(() => {
    const classes = zeros([batch], { dtype: "int64" });
    let logits = policy.prefill(cache, zeros([batch, 0], { dtype: "int64" }), { classes });
    for (let i = 1; i < CODES; i++) {
      const next: Tensor = tidy(() => policy.decode(cache, logits.argmax(-1)));
      logits.dispose();
      logits = next;
    }
    logits.argmax(-1).toArray();
  });
  return performance.now() - begin;
}

function measure(name: string, policy: ArPolicy, batch: number): void {
  // Inside, autocast keeps the weights that it has cast from one step to the next.
  const times = noGrad(() => Array.from({ length: RUNS }, () => write(policy, batch))).sort((a, b) => a - b);
  const median = times[Math.floor(RUNS / 2)] as number;
  const rate = (1000 * batch * CODES) / median;
  console.log(
    `${name.padEnd(32)} batch ${batch}: ${rate.toFixed(0)} tokens/s, ${(median / CODES).toFixed(2)} ms a step`,
  );
}

const batches = process.argv.slice(2).map(Number);
console.log(`LibTorch ${version().torch}, ${getNumThreads()} threads`);
for (const batch of batches.length > 0 ? batches : [16, 1]) {
  manualSeed(0);
  using policy = new LlamaGen(llamaGenPresets["GPT-B"]).eval();
  noGrad(() => tidy(() => policy.output.weight.copy_(randn(policy.output.weight.shape).mul(0.02))));
  measure("float32", policy, batch);
  autocast({ device: "cpu", dtype: "bfloat16" }, () => measure("float32, bfloat16 autocast", policy, batch));
  for (const dtype of ["float32", "bfloat16"] as const) {
    using _packed = packLinears(policy, { dtype });
    measure(`float32, packed as ${dtype}`, policy, batch);
  }
  policy.to({ dtype: "bfloat16" });
  measure("bfloat16", policy, batch);
  using _packed = packLinears(policy);
  measure("bfloat16, packed", policy, batch);
}
