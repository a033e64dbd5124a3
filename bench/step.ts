/**
 * VA-pi's step by phases: encode, noisy teacher-forced rollout, decode, reward (L2 and LPIPS), update. LlamaGen with random
 * weights, VQ-16, LPIPS with VGG16; in float32, and in bfloat16 as `preset: vapi` has it. With a peer's checkout its modules
 * take turns with ours in the same run.
 *
 *     PYTHON=... npm run bench -- step [--peer CHECKOUT] [--model GPT-B] [--images 2] [--size 128] [--runs 5] [--threads 2]
 *
 * The floor is arithmetic alone: FLOPs of the convolutions and matrix products over the speed that a large matrix product
 * reaches here in the same dtype. The ceiling's decode and reward are not part of a step: they are measured at shown steps.
 */
import { parseArgs } from "node:util";
import { LPIPS } from "../src/metrics/index.js";
import { AdamW } from "../src/nn/index.js";
import { backboneCosts, tokenizerCosts } from "../src/plan/costs.js";
import { LlamaGen, llamaGenPresets } from "../src/policies/index.js";
import { decodeCodes } from "../src/rl_ar_finetune/decode.js";
import { grpoUpdate } from "../src/rl_ar_finetune/optimize.js";
import type { RunParts } from "../src/rl_ar_finetune/parts.js";
import { judge, reconstructionTerm } from "../src/rl_ar_finetune/rewards.js";
import { sampleRollout } from "../src/rl_ar_finetune/rollout.js";
import { buildTokenizerFrozen, VQModel } from "../src/tokenizers/index.js";
import {
  autocast,
  getNumThreads,
  manualSeed,
  memory,
  noGrad,
  rand,
  randn,
  setNumThreads,
  type Tensor,
  tidy,
  version,
  zeros,
} from "../src/torch/index.js";
import { medians, startPeer, type Times } from "./peer.js";

const G = 8;
const PHASES = ["encode", "rollout", "decode", "reward", "update"];

const { values } = parseArgs({
  options: {
    peer: { type: "string" },
    model: { type: "string", default: "GPT-B" },
    images: { type: "string", default: "2" },
    size: { type: "string", default: "128" },
    runs: { type: "string", default: "5" },
    threads: { type: "string" },
  },
});
if (values.threads !== undefined) setNumThreads(Number(values.threads));
const [b, size, runs] = [Number(values.images), Number(values.size), Number(values.runs)];
const preset = llamaGenPresets[values.model as keyof typeof llamaGenPresets];
const t = (size / 16) ** 2;

/** VGG16's weights at random, by torchvision's keys. */
function vgg(): Record<string, Tensor> {
  const widths = [64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512];
  const state: Record<string, Tensor> = {};
  let [layer, channels] = [0, 3];
  for (const width of widths) {
    if (width > 0) {
      state[`features.${layer}.weight`] = randn([width, channels, 3, 3]).mul(Math.sqrt(2 / (9 * channels)));
      state[`features.${layer}.bias`] = zeros([width]);
      channels = width;
    }
    layer += width > 0 ? 2 : 1;
  }
  return state;
}

manualSeed(0);
const tokenizer = buildTokenizerFrozen(tidy(() => new VQModel()));
const lpips = tidy(() => new LPIPS({ net: "vgg", backbone: vgg() }));
const policy = new LlamaGen({ ...preset, blockSize: t });
noGrad(() => tidy(() => policy.output.weight.copy_(randn(policy.output.weight.shape).mul(0.02))));
const optimizer = new AdamW([{ params: policy.namedParameters() }], {
  lr: 1e-6,
  betas: [0.9, 0.999],
  weightDecay: 1e-4,
});

/** One step; seconds by phase. */
function step(isNarrow: boolean): Times {
  const times: Record<string, number> = {};
  let last = performance.now();
  const mark = (name: string): void => {
    const now = performance.now();
    times[name] = (now - last) / 1000;
    last = now;
  };
  const amp = { device: "cpu", dtype: "bfloat16" } as const;
  const inPrecision = <T>(fn: () => T): T => (isNarrow ? autocast(amp, fn) : fn());
  const common = isNarrow ? { amp } : {};
  const terms = [reconstructionTerm("l2"), reconstructionTerm("lpips", { ...common, lpips })];
  tidy(() => {
    const images = rand([b, 3, size, size]).mul(2).sub(1);
    const classes = zeros([b], { dtype: "int64" });
    last = performance.now();
    const trueCodes = tokenizer.encode(images);
    mark("encode");
    const rollout = inPrecision(() =>
      sampleRollout(
        policy,
        { classes },
        {
          context: { type: "noisy_teacher_forced", noise: 0.5 },
          numGenerations: G,
          trueCodes,
          keepGraph: true,
        },
      ),
    );
    mark("rollout");
    const parts = { tokenizer, terms } as unknown as RunParts;
    const judged = decodeCodes(parts, images, rollout.codes, 8);
    mark("decode");
    const { total: rewards } = judge(terms, judged);
    mark("reward");
    inPrecision(() =>
      grpoUpdate(policy, optimizer, { ...rollout, rewards, trueCodes }, { clipHigh: 0.2, auxCe: 0.1 }),
    );
    mark("update");
  });
  return times;
}

/** FLOP/s of a large matrix product. */
function speedOf(dtype: "float32" | "bfloat16"): number {
  return tidy(() => {
    const a = randn([2048, 2048]).to({ dtype });
    const seconds = [0, 1, 2].map(() => {
      const begin = performance.now();
      a.matmul(a).dispose();
      return (performance.now() - begin) / 1000;
    });
    return (2 * 2048 ** 3) / Math.min(...seconds);
  });
}

/** FLOPs of a step: two per product. The update is the backward alone, since the rollout keeps its graph. */
function flopsOf(): Record<string, number> {
  const { encodeFlops, decodeFlops } = tokenizerCosts((tokenizer.vq as VQModel).config, size ** 2);
  const weights = policy.parameters().reduce((sum, { numel }) => sum + numel, 0) - 16384 * preset.dim;
  return {
    encode: b * encodeFlops,
    rollout: 2 * weights * b * t,
    decode: b * G * decodeFlops,
    reward: b * (G + 1) * backboneCosts("vgg", size).flops,
    update: 4 * weights * b * t,
  };
}

const cells = (times: Times): string =>
  [...PHASES, "total"].map((name) => (times[name] as number).toFixed(2).padStart(9)).join("");

console.log(
  `LibTorch ${version().torch}, ${getNumThreads()} threads; ${values.model}, ${b} images of ${size} px x ${G}, medians of ${runs}`,
);
console.log(
  `seconds${" ".repeat(21)}${[...PHASES, "total"].map((name) => name.padStart(9)).join("")}   ratio`,
);
using peer = values.peer === undefined ? null : startPeer(values.peer, getNumThreads());
const [theirs, wide, narrow]: [Times[], Times[], Times[]] = [[], [], []];
let peak = 0;
for (let run = -1; run < runs; run++) {
  const request = { what: "step", model: values.model, images: b, generations: G, size } as const;
  const other = await peer?.ask(request);
  memory({ resetPeak: true });
  const own = step(false);
  peak = memory().peakBytes;
  const pack = tokenizer.narrowDecoder();
  const quick = step(true);
  pack.dispose();
  if (run < 0) continue; // warm-up
  if (other !== undefined) theirs.push(other);
  wide.push(own);
  narrow.push(quick);
}
const base = peer === null ? null : medians(theirs);
if (base !== null) console.log(`${"peer, float32".padEnd(28)}${cells(base)}`);
for (const [name, times, dtype] of [
  ["float32", medians(wide), "float32"],
  ["bfloat16", medians(narrow), "bfloat16"],
] as const) {
  const total = times.total as number;
  const flops = flopsOf();
  const speed = speedOf(dtype);
  const floors = Object.fromEntries(
    PHASES.map((phase) => {
      // Images are encoded in float32 always.
      return [phase, (flops[phase] as number) / (phase === "encode" ? speedOf("float32") : speed)];
    }),
  );
  const sum = Object.values(floors).reduce((a, c) => a + c, 0);
  const ratio = base === null ? "" : `   ${((base.total as number) / total).toFixed(2)} x`;
  console.log(`${name.padEnd(28)}${cells(times)}${ratio}`);
  const about = `floor at ${(speed / 1e9).toFixed(0)} GFLOP/s`;
  console.log(`  ${about.padEnd(26)}${cells({ ...floors, total: sum })}   ${(total / sum).toFixed(2)} of it`);
}
console.log(`memory at its peak in float32: ${(peak / 2 ** 30).toFixed(2)} GiB`);
