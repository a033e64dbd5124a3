/**
 * How fast a policy writes codes: one GPT-B of LlamaGen (12 layers, width 768, 16384 codes) with random weights, 256
 * codes greedily, weights plain and packed, float32 and bfloat16.
 *
 *     npm run bench decode -- [batch ...] [--threads 2] [--runs 3]
 *
 * Prints tokens a second and milliseconds a step, the median of the runs. On a busy machine take one thread, and the
 * processor's time rather than the clock's.
 */
import { parseArgs } from "node:util";
import { packLinears } from "../src/nn/index.js";
import { type ArPolicy, LlamaGen, llamaGenPresets } from "../src/policies/index.js";
import {
  autocast,
  getNumThreads,
  manualSeed,
  memory,
  noGrad,
  randn,
  setNumThreads,
  type Tensor,
  tidy,
  version,
  zeros,
} from "../src/torch/index.js";

const CODES = 256;

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { threads: { type: "string" }, runs: { type: "string", default: "3" } },
});
if (values.threads !== undefined) setNumThreads(Number(values.threads));

/** Milliseconds to write all codes, by the clock and of the processor. */
function write(policy: ArPolicy, batch: number): { clock: number; processor: number } {
  using cache = policy.openCache(batch);
  const used = process.cpuUsage();
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
  const clock = performance.now() - begin;
  const { user, system } = process.cpuUsage(used);
  return { clock, processor: (user + system) / 1000 };
}

const median = (list: number[]): number => list.sort((a, b) => a - b)[Math.floor(list.length / 2)] as number;

function measure(name: string, policy: ArPolicy, batch: number): void {
  // Inside, autocast keeps the weights that it has cast from one step to the next.
  const runs = noGrad(() => Array.from({ length: Number(values.runs) }, () => write(policy, batch)));
  const [clock, processor] = [median(runs.map((run) => run.clock)), median(runs.map((run) => run.processor))];
  const rate = ((1000 * batch * CODES) / clock).toFixed(0).padStart(5);
  const step = `${(clock / CODES).toFixed(1)} ms a step, ${(processor / CODES).toFixed(1)} of the processor`;
  console.log(`batch ${batch}, ${name.padEnd(28)} ${rate} tokens/s, ${step}`);
}

/** Lengths at which the way without a cache is timed; its cost grows evenly with the length. */
const LENGTHS = [0, 85, 170, 255];

/** The same codes without a cache: every step runs over all codes before it. */
function measureNaive(policy: ArPolicy, batch: number): void {
  const times = LENGTHS.map((length) => {
    const begin = performance.now();
    noGrad(() =>
      tidy(() => {
        const classes = zeros([batch], { dtype: "int64" });
        policy
          .forward(zeros([batch, length], { dtype: "int64" }), { classes })
          .select(1, -1)
          .argmax(-1)
          .toArray();
      }),
    );
    return performance.now() - begin;
  });
  const step = times.reduce((sum, time) => sum + time, 0) / times.length;
  const rate = ((1000 * batch) / step).toFixed(0).padStart(5);
  console.log(
    `batch ${batch}, ${"float32, without a cache".padEnd(28)} ${rate} tokens/s, ${step.toFixed(1)} ms a step`,
  );
}

/** Memory above the weights that writing takes. */
function measureMemory(policy: ArPolicy, batch: number): void {
  const { bytes } = memory({ resetPeak: true });
  noGrad(() => write(policy, batch));
  const peak = (memory().peakBytes - bytes) / 2 ** 20;
  console.log(
    `batch ${batch}, ${"float32, memory".padEnd(28)} ${peak.toFixed(0)} MiB above ${(bytes / 2 ** 20).toFixed(0)} MiB of weights`,
  );
}

console.log(`LibTorch ${version().torch}, ${getNumThreads()} threads`);
for (const batch of positionals.length > 0 ? positionals.map(Number) : [16, 1]) {
  manualSeed(0);
  using policy = new LlamaGen(llamaGenPresets["GPT-B"]).eval();
  noGrad(() => tidy(() => policy.output.weight.copy_(randn(policy.output.weight.shape).mul(0.02))));
  measure("float32", policy, batch);
  measureNaive(policy, batch);
  measureMemory(policy, batch);
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
