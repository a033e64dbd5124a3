/**
 * All checks that need a GPU, in one table of a few minutes: agreement with the CPU, time and memory of a step and of the
 * decode, and whether memory grows. `scripts/gpu_check.sh` builds and runs it.
 *
 *     npm run bench -- gpu [--device cuda] [--steps 200]
 *
 * With `--device cpu` it compares the CPU with itself, which shows that the program runs.
 */
import { parseArgs } from "node:util";
import { AdamW } from "../src/nn/index.js";
import { LlamaGen, llamaGenPresets } from "../src/policies/index.js";
import { grpoUpdate } from "../src/rl_ar_finetune/optimize.js";
import { sampleRollout } from "../src/rl_ar_finetune/rollout.js";
import { sampleCodesWithLogprobs } from "../src/rl_ar_finetune/sampling.js";
import { scoreCodes } from "../src/rl_ar_finetune/scoring.js";
import { buildTokenizerFrozen, VQModel } from "../src/tokenizers/index.js";
import {
  autocast,
  captureGraph,
  cudaMemory,
  type Device,
  expected,
  hasCudaStatistics,
  manualSeed,
  memory,
  noGrad,
  rand,
  randint,
  randn,
  requireDevice,
  synchronize,
  type Tensor,
  tidy,
  version,
  zeros,
} from "../src/torch/index.js";
import { median } from "./peer.js";

const { values } = parseArgs({
  options: { device: { type: "string", default: "cuda" }, steps: { type: "string", default: "200" } },
});
const device = values.device as Device;
requireDevice(device, "--device");
const isCuda = device.startsWith("cuda");
if (isCuda && !hasCudaStatistics()) {
  const remedy = "Set CUDA_HOME to the folder of CUDA's headers and run npm run build";
  throw expected(
    "bench gpu",
    "an addon built with CUDA's headers, for memory and graphs",
    "one without",
    remedy,
  );
}
const amp = { device: isCuda ? "cuda" : "cpu", dtype: "bfloat16" } as const;

const rows: [check: string, value: string, wanted: string][] = [];
const row = (check: string, value: string, wanted: string): void => {
  rows.push([check, value, wanted]);
  console.log(`${check.padEnd(52)}${value.padStart(14)}   ${wanted}`);
};

/** Seconds of `fn`, the median of some runs after one. */
function secondsOf(fn: () => void, runs = 5): number {
  const times: number[] = [];
  for (let run = -1; run < runs; run++) {
    if (isCuda) synchronize(device);
    const begin = performance.now();
    tidy(fn);
    if (isCuda) synchronize(device);
    if (run >= 0) times.push((performance.now() - begin) / 1000);
  }
  return median(times);
}

const bytesInUse = (): number => (isCuda ? cudaMemory(device).allocated : memory().bytes);
const largest = (a: Tensor, b: Tensor): string =>
  tidy(() => Number(a.cpu().double().sub(b.cpu().double()).abs().amax().item())).toExponential(1);

/** Bytes of weights that a decode step reads: all but the embeddings of codes. */
function bytesRead(policy: LlamaGen, width: number): number {
  const all = policy.parameters().reduce((sum, { numel }) => sum + numel, 0);
  return width * (all - policy.vocabSize * policy.hiddenSize);
}

/** Bytes a second that a sum reads. */
const bandwidth = tidy(() => {
  const block = rand([isCuda ? 2 ** 28 : 2 ** 24], { device });
  return (4 * block.numel) / secondsOf(() => void block.sum());
});

function policyOf(name: "GPT-B" | "small", blockSize: number): LlamaGen {
  manualSeed(0);
  const sizes = name === "small" ? { dim: 64, nLayer: 2, nHead: 4, vocabSize: 512 } : llamaGenPresets[name];
  const policy = new LlamaGen({ ...sizes, blockSize, tokenDropoutP: 0, residDropoutP: 0, ffnDropoutP: 0 });
  noGrad(() => tidy(() => policy.output.weight.copy_(randn(policy.output.weight.shape).mul(0.02))));
  return policy;
}

/** Logits, codes, gradient and images of a device against the CPU's, in float32. */
function agreement(): void {
  const [ours, cpu] = [policyOf("small", 64), policyOf("small", 64)];
  ours.to({ device });
  tidy(() => {
    const [codes, classes] = [randint(0, 512, [2, 63]), zeros([2], { dtype: "int64" })];
    const there = { classes: classes.to({ device }) };
    const [a, b] = noGrad(() => [ours.forward(codes.to({ device }), there), cpu.forward(codes, { classes })]);
    row("logits against the CPU, largest difference", largest(a as Tensor, b as Tensor), "below 1e-4");
    const drawn = [
      sampleCodesWithLogprobs(ours, there, 64, { greedy: true }),
      sampleCodesWithLogprobs(cpu, { classes }, 64, { greedy: true }),
    ] as const;
    const same = Number(drawn[0].tokens.cpu().eq(drawn[1].tokens).double().mean().item());
    row("greedy codes equal to the CPU's", `${(100 * same).toFixed(1)} %`, "100 %, but for ties");
    for (const [policy, place] of [
      [ours, there],
      [cpu, { classes }],
    ] as const) {
      const own = drawn[1].tokens.to({ device: policy === ours ? device : "cpu" });
      scoreCodes(policy, { tokens: own, start: place }).logprobs.mean().backward();
    }
    row(
      "gradient against the CPU, largest difference",
      largest(ours.output.weight.grad as Tensor, cpu.output.weight.grad as Tensor),
      "below 1e-5",
    );
  });
  for (const policy of [ours, cpu]) policy.dispose();
}

/** VQ-16 at 256 px: a CPU's image against the device's, and the time of the decode. */
function decoding(): void {
  const size = isCuda ? 256 : 32;
  manualSeed(0);
  using tokenizer = buildTokenizerFrozen(tidy(() => new VQModel()));
  tidy(() => {
    const codes = randint(0, 16_384, [8, (size / 16) ** 2]);
    const wanted = tokenizer.decodeCode(codes.narrow(0, 0, 1));
    (tokenizer.vq as VQModel).to({ device });
    const there = codes.to({ device });
    row(
      "image against the CPU's, largest difference",
      largest(tokenizer.decodeCode(there.narrow(0, 0, 1)), wanted),
      "below 1e-3, TF32 off",
    );
    row("decode, ms per image, float32", (125 * secondsOf(() => tokenizer.decodeCode(there))).toFixed(2), "");
    using _ = tokenizer.narrowDecoder();
    row(
      "decode, ms per image, bfloat16",
      (125 * secondsOf(() => tokenizer.decodeCode(there))).toFixed(2),
      "half of float32",
    );
  });
}

/** GPT-B: free rollouts against one reading of the weights, teacher-forced steps, memory, and what is left after many. */
function steps(): void {
  const t = isCuda ? 256 : 16;
  using policy = isCuda ? policyOf("GPT-B", t) : policyOf("small", t);
  policy.to({ device });
  using optimizer = new AdamW([{ params: policy.namedParameters() }], { lr: 1e-6 });
  tidy(() => {
    const classes = zeros([16], { dtype: "int64", device });
    const step = secondsOf(() => autocast(amp, () => sampleCodesWithLogprobs(policy, { classes }, t)), 3) / t;
    row("rollout, batch 16, ms per code", (1000 * step).toFixed(2), "");
    row(
      "rollout, times one reading of bfloat16 weights",
      (step / (bytesRead(policy, 2) / bandwidth)).toFixed(1),
      "",
    );
    const trueCodes = randint(0, policy.vocabSize, [16, t]).to({ device });
    const train = (): void => {
      autocast(amp, () => {
        const context = { type: "noisy_teacher_forced", noise: 0.5 } as const;
        const rollout = sampleRollout(
          policy,
          { classes },
          { context, trueCodes, numGenerations: 8, keepGraph: true },
        );
        const rewards = rollout.tokens.double().mean(2);
        grpoUpdate(policy, optimizer, { ...rollout, rewards, trueCodes }, { auxCe: 0.1 });
      });
    };
    row("rollout and update, 16 x 8, s", secondsOf(train).toFixed(3), "");
    const before = bytesInUse();
    const count = Number(values.steps);
    const begin = performance.now();
    for (let i = 0; i < count && performance.now() - begin < 180_000; i++) tidy(train);
    row(`memory after ${count} more steps`, `+${bytesInUse() - before} B`, "+0 B");
    if (isCuda)
      row("memory at its peak", `${(cudaMemory(device).peakAllocated / 2 ** 30).toFixed(2)} GiB`, "");
  });
}

/** One decode step as a CUDA graph: the codes of eager steps, and its time against one reading of the weights. */
function graph(): void {
  const t = 256;
  using policy = policyOf("GPT-B", t).to({ device, dtype: "bfloat16" }).eval();
  using cache = policy.openCache(16);
  tidy(() => {
    const classes = zeros([16], { dtype: "int64", device });
    const begin = (): Tensor => {
      cache.reset();
      return policy.prefill(cache, zeros([16, 0], { dtype: "int64", device }), { classes }).argmax(-1);
    };
    const token = begin();
    const step = (): void => void token.copy_(policy.decode(cache, token).argmax(-1));
    const codes = [zeros([t, 16], { dtype: "int64", device }), zeros([t, 16], { dtype: "int64", device })];
    const [eager, replayed] = codes as [Tensor, Tensor];
    const note = (to: Tensor, i: number): void => tidy(() => void to.select(0, i).copy_(token));
    for (let i = 1; i < t; i++) {
      tidy(step);
      note(eager, i);
    }
    token.copy_(begin());
    const warmUp = 4;
    for (let i = 1; i < warmUp; i++) {
      tidy(step);
      note(replayed, i);
    }
    using captured = captureGraph(step);
    synchronize(device);
    const started = performance.now();
    for (let i = warmUp; i < t; i++) {
      captured.replay();
      note(replayed, i);
    }
    synchronize(device);
    const ms = (performance.now() - started) / (t - warmUp);
    const same = Number(eager.eq(replayed).double().mean().item());
    row("graph of a decode step, codes equal to eager ones", `${(100 * same).toFixed(1)} %`, "100 %");
    row("graph, batch 16, ms per code", ms.toFixed(2), "");
    const read = bytesRead(policy, 2) / bandwidth;
    row("graph, times one reading of bfloat16 weights", (ms / 1000 / read).toFixed(1), "at most 2");
  });
}

console.log(`LibTorch ${version().torch}, ${device}, ${(bandwidth / 1e9).toFixed(0)} GB/s\n`);
agreement();
decoding();
steps();
if (isCuda) graph();
else console.log("Graphs are captured on a GPU alone.");
