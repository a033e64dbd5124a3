/**
 * What packed weights bring to free rollouts: codes drawn one by one with the policy's linear layers plain and packed,
 * the packing itself counted. `paysToPack` in rollout.ts has its numbers from here.
 *
 *     npm run bench -- rollout [--threads 1] [--runs 3] [--large]
 *
 * Prints codes a second of the processor's time, the median of the runs, plain and packed runs taking turns.
 */

import { parseArgs } from "node:util";
import { packLinears } from "../src/nn/index.js";
import { type ArPolicy, GPT, LlamaGen } from "../src/policies/index.js";
import { paysToPack, sampleRollout } from "../src/rl_ar_finetune/rollout.js";
import { type DType, manualSeed, setNumThreads, stream, tidy, version, zeros } from "../src/torch/index.js";
import { median } from "./peer.js";

const { values } = parseArgs({
  args: process.argv.slice(2).filter((argument) => argument !== "--"),
  options: {
    threads: { type: "string", default: "1" },
    runs: { type: "string", default: "3" },
    large: { type: "boolean", default: false },
  },
});
setNumThreads(Number(values.threads));

/** Milliseconds of the processor for a rollout of `rows` sequences of 64 codes. */
function time(policy: ArPolicy, rows: number, packAs: DType | null): number {
  const used = process.cpuUsage();
  tidy(() => {
    // Here, not by the rollout itself, which packs only where that pays.
    using _packed = packAs === null ? null : packLinears(policy, { dtype: packAs });
    using generator = stream(0, "rollout", 0);
    const group = Math.min(8, rows);
    const classes = zeros([rows / group], { dtype: "int64" });
    sampleRollout(
      policy,
      { classes },
      { context: { type: "free" }, numGenerations: group, length: 64, generator },
    );
  });
  const { user, system } = process.cpuUsage(used);
  return (user + system) / 1000;
}

interface Size {
  readonly kind: "gpt" | "llamagen";
  readonly layers: number;
  readonly width: number;
  readonly codes: number;
}

const small: readonly Size[] = [
  { kind: "gpt", layers: 2, width: 64, codes: 512 },
  { kind: "gpt", layers: 4, width: 128, codes: 512 },
  { kind: "gpt", layers: 6, width: 192, codes: 512 },
  { kind: "llamagen", layers: 6, width: 192, codes: 512 },
  { kind: "llamagen", layers: 6, width: 384, codes: 512 },
];
const sizes = values.large
  ? [{ kind: "llamagen", layers: 12, width: 768, codes: 16384 } satisfies Size]
  : small;

console.log(`LibTorch ${version().torch}, threads ${values.threads}, 64 codes a sequence`);
for (const { kind, layers, width, codes } of sizes) {
  manualSeed(0);
  const nHead = Math.max(2, width / 64);
  const shared = { vocabSize: codes, blockSize: 64, nLayer: layers, nHead };
  using policy =
    kind === "gpt"
      ? new GPT({ ...shared, nEmbd: width, classNum: 10 })
      : new LlamaGen({ ...shared, dim: width, numClasses: 10 });
  for (const rows of values.large ? [16, 64] : [1, 8, 16, 128]) {
    time(policy, rows, "float32");
    const [plain, packed]: [number[], number[]] = [[], []];
    for (let run = 0; run < Number(values.runs); run++) {
      plain.push(time(policy, rows, null));
      packed.push(time(policy, rows, "float32"));
    }
    const rate = (times: number[]): number => (1000 * rows * 64) / median(times);
    const [before, after] = [rate(plain), rate(packed)];
    const name = `${kind} ${layers} x ${width}, ${rows} rows`;
    const verdict = paysToPack(policy, rows, 64) ? "packed" : "left plain";
    console.log(
      `${name.padEnd(28)} ${before.toFixed(0).padStart(6)} plain, ${after.toFixed(0).padStart(6)} packed, ` +
        `${(after / before).toFixed(2)} x: ${verdict}`,
    );
  }
}
