/**
 * How fast a policy writes codes: one GPT-B of LlamaGen (12 layers, width 768, 16384 codes) with random weights, 256
 * codes greedily, weights plain and packed, float32 and bfloat16.
 *
 *     PYTHON=... npm run bench -- decode [batch ...] [--threads 2] [--runs 3] [--codes 256] [--peer CHECKOUT]
 *
 * Prints tokens a second and milliseconds a step, the median of the runs. On a busy machine take one thread, and the
 * processor's time rather than the clock's. With a clone of LlamaGen its `generate` and our sampling on packed weights take
 * turns, and nothing else is measured; the floor is one reading of the weights from memory, or the arithmetic, whichever is
 * longer.
 */
import { parseArgs } from "node:util";
import { packLinears } from "../src/nn/index.js";
import { type ArPolicy, LlamaGen, llamaGenPresets } from "../src/policies/index.js";
import { sampleCodesWithLogprobs } from "../src/rl_ar_finetune/sampling.js";
import {
  autocast,
  getNumThreads,
  manualSeed,
  memory,
  noGrad,
  ones,
  randn,
  setNumThreads,
  type Tensor,
  tidy,
  version,
  zeros,
} from "../src/torch/index.js";
import { median, startPeer } from "./peer.js";

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    threads: { type: "string" },
    runs: { type: "string", default: "3" },
    codes: { type: "string", default: "256" },
    peer: { type: "string" },
  },
});
if (values.threads !== undefined) setNumThreads(Number(values.threads));
const CODES = Number(values.codes);

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

/** Bytes a second of reading memory that no cache holds, and FLOP/s of a large product. */
function machine(dtype: "float32" | "bfloat16"): { bandwidth: number; speed: number } {
  return tidy(() => {
    const [large, square] = [ones([2 ** 28]), randn([2048, 2048]).to({ dtype })];
    const fastest = (fn: () => Tensor): number =>
      Math.min(
        ...[0, 1, 2].map(() => {
          const begin = performance.now();
          tidy(() => void fn());
          return (performance.now() - begin) / 1000;
        }),
      );
    return {
      bandwidth: 2 ** 30 / fastest(() => large.sum()),
      speed: (2 * 2048 ** 3) / fastest(() => square.matmul(square)),
    };
  });
}

/** Our sampling beside the peer's `generate`. */
async function beside(checkout: string, policy: LlamaGen, batch: number): Promise<void> {
  using peer = startPeer(checkout, getNumThreads());
  const seconds: Record<string, number[]> = {};
  const note = (name: string, value: number): void => {
    seconds[name] = [...(seconds[name] ?? []), value];
  };
  for (let run = -1; run < Number(values.runs); run++) {
    for (const dtype of ["float32", "bfloat16"] as const) {
      const theirs = await peer.ask({ what: "rollout", model: "GPT-B", batch, codes: CODES, dtype });
      using _packed = packLinears(policy, { dtype });
      const begin = performance.now();
      tidy(() => sampleCodesWithLogprobs(policy, { classes: zeros([batch], { dtype: "int64" }) }, CODES));
      const own = (performance.now() - begin) / 1000;
      if (run < 0) continue; // warm-up
      note(`peer, ${dtype}`, theirs.rollout as number);
      note(`packed, ${dtype}`, own);
    }
  }
  const best = Math.min(
    ...Object.entries(seconds).flatMap(([name, all]) => (name.startsWith("peer") ? [median(all)] : [])),
  );
  const weights =
    policy.parameters().reduce((sum, { numel }) => sum + numel, 0) - policy.vocabSize * policy.hiddenSize;
  for (const [name, all] of Object.entries(seconds)) {
    const time = median(all);
    const dtype = name.endsWith("bfloat16") ? "bfloat16" : "float32";
    const { bandwidth, speed } = machine(dtype);
    const floor = Math.max(
      (weights * (dtype === "bfloat16" ? 2 : 4)) / bandwidth,
      (2 * weights * batch) / speed,
    );
    const step = time / CODES;
    console.log(
      `batch ${batch}, ${name.padEnd(18)} ${((batch * CODES) / time).toFixed(0).padStart(5)} tokens/s, ` +
        `${(1000 * step).toFixed(1)} ms a step, ${(step / floor).toFixed(1)} times the floor of ${(1000 * floor).toFixed(1)} ms; ` +
        `${(best / time).toFixed(2)} times the peer's best`,
    );
  }
}

console.log(`LibTorch ${version().torch}, ${getNumThreads()} threads`);
for (const batch of positionals.length > 0 ? positionals.map(Number) : [16, 1]) {
  manualSeed(0);
  using policy = new LlamaGen(llamaGenPresets["GPT-B"]).eval();
  noGrad(() => tidy(() => policy.output.weight.copy_(randn(policy.output.weight.shape).mul(0.02))));
  if (values.peer !== undefined) {
    await beside(values.peer, policy, batch);
    continue;
  }
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
