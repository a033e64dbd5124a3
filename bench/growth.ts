/**
 * How time and memory of rollout and update grow with B images, G sequences of each, T codes and V codes to choose from: a
 * LlamaGen of 4 layers and width 128 with random weights (seed 0), GRPO with a cross-entropy on the true codes.
 *
 *     npm run bench -- growth [--threads 1] [--runs 3] [--context free]
 *
 * Prints medians of the processor's time, and the peak of LibTorch's memory beyond weights and optimizer, next to the size of
 * the float32 logits `[B, G, T, V]`, which are never all held.
 */
import { parseArgs } from "node:util";
import { AdamW } from "../src/nn/index.js";
import { LlamaGen } from "../src/policies/index.js";
import { grpoUpdate } from "../src/rl_ar_finetune/optimize.js";
import { type Rollout, type RolloutContext, sampleRollout } from "../src/rl_ar_finetune/rollout.js";
import {
  manualSeed,
  memory,
  noGrad,
  randint,
  randn,
  setNumThreads,
  tidy,
  version,
  zeros,
} from "../src/torch/index.js";
import { median } from "./peer.js";

const { values } = parseArgs({
  options: {
    threads: { type: "string", default: "1" },
    runs: { type: "string", default: "3" },
    context: { type: "string" },
  },
});
setNumThreads(Number(values.threads));

interface Sizes {
  readonly B: number;
  readonly G: number;
  readonly T: number;
  readonly V: number;
}
const BASE: Sizes = { B: 4, G: 4, T: 64, V: 1024 };
const GROWN: Partial<Sizes>[] = [
  {},
  { B: 8 },
  { G: 8 },
  { G: 16 },
  { T: 144 },
  { T: 256 },
  { V: 16_384 },
  { V: 262_144 },
];
const CONTEXTS: readonly RolloutContext[] = [{ type: "noisy_teacher_forced", noise: 0.5 }, { type: "free" }];

function measure(context: RolloutContext, { B, G, T, V }: Sizes): string {
  manualSeed(0);
  using policy = new LlamaGen({ dim: 128, nLayer: 4, nHead: 4, vocabSize: V, blockSize: T, numClasses: 10 });
  noGrad(() => tidy(() => policy.output.weight.copy_(randn(policy.output.weight.shape).mul(0.02))));
  using optimizer = new AdamW([{ params: policy.namedParameters() }], { lr: 1e-6 });
  const times: Record<"rollout" | "update", number[]> = { rollout: [], update: [] };
  let peak = 0;
  tidy(() => {
    const classes = zeros([B], { dtype: "int64" });
    const trueCodes = randint(0, V, [B, T]);
    for (let run = -1; run < (V > 100_000 ? 1 : Number(values.runs)); run++) {
      const before = memory({ resetPeak: true }).bytes;
      const timed = <R>(name: "rollout" | "update", fn: () => R): R => {
        const used = process.cpuUsage();
        const result = fn();
        const { user, system } = process.cpuUsage(used);
        if (run >= 0) times[name].push((user + system) / 1000);
        return result;
      };
      tidy(() => {
        const options = { context, trueCodes, numGenerations: G, keepGraph: context.type !== "free" };
        const rollout: Rollout = timed("rollout", () => sampleRollout(policy, { classes }, options));
        const rewards = rollout.tokens.double().mean(2);
        timed("update", () =>
          grpoUpdate(policy, optimizer, { ...rollout, rewards, trueCodes }, { auxCe: 0.1 }),
        );
      });
      // The first update makes gradients and the optimizer's state.
      if (run >= 0) peak = Math.max(peak, memory().peakBytes - before);
    }
  });
  const mib = (bytes: number): string => (bytes / 2 ** 20).toFixed(0);
  const cells = [context.type, B, G, T, V, median(times.rollout).toFixed(0), median(times.update).toFixed(0)];
  return `| ${[...cells, mib(peak), mib(4 * B * G * T * V)].join(" | ")} |`;
}

console.log(`LibTorch ${version().torch}, threads ${values.threads}\n`);
console.log("| context | B | G | T | V | rollout, ms | update, ms | peak, MiB | logits [B, G, T, V], MiB |");
console.log(`|${"---|".repeat(9)}`);
for (const context of CONTEXTS.filter(({ type }) => values.context === undefined || values.context === type))
  for (const grown of GROWN) console.log(measure(context, { ...BASE, ...grown }));
