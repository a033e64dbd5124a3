/**
 * How long a checkpoint keeps a run waiting: policy and moments of AdamW, written, flushed to disk and hashed.
 *
 *     npm run bench -- save [--folder DIR] [--runs 3]
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { LlamaGen } from "../src/policies/index.js";
import { saveCheckpoint } from "../src/run/checkpoint.js";
import { rand, type Tensor, version } from "../src/torch/index.js";
import { median } from "./peer.js";

const { values } = parseArgs({
  options: { folder: { type: "string", default: tmpdir() }, runs: { type: "string", default: "3" } },
});

/** Width and layers; the last are GPT-B's. */
const SIZES = [
  [64, 2],
  [192, 6],
  [768, 12],
] as const;

console.log(`LibTorch ${version().torch}\n`);
console.log("| parameters, M | written, MiB | save, s | of it one clone of the tensors, s |");
console.log(`|${"---|".repeat(4)}`);
for (const [dim, nLayer] of SIZES) {
  const vocabSize = dim === 768 ? 16_384 : 512;
  using policy = new LlamaGen({ dim, nLayer, nHead: dim / 64, vocabSize, blockSize: 256, numClasses: 1000 });
  const weights = policy.stateDict();
  const count = policy.parameters().reduce((sum, { numel }) => sum + numel, 0);
  const moments = Object.fromEntries(
    ["exp_avg", "exp_avg_sq"].flatMap((name) =>
      Object.entries(weights).map(([key, { shape }]): [string, Tensor] => [`${key}.${name}`, rand(shape)]),
    ),
  );
  const folder = mkdtempSync(join(values.folder, "rlar-save-"));
  const [saves, clones]: [number[], number[]] = [[], []];
  try {
    for (let step = 1; step <= Number(values.runs); step++) {
      let begin = performance.now();
      const copies = [...Object.values(weights), ...Object.values(moments)].map((each) => each.clone());
      clones.push((performance.now() - begin) / 1000);
      for (const copy of copies) copy.dispose();
      begin = performance.now();
      saveCheckpoint(
        folder,
        { step, tensors: { policy: weights, optimizer: moments }, values: {} },
        { keep: 1 },
      );
      saves.push((performance.now() - begin) / 1000);
    }
  } finally {
    rmSync(folder, { recursive: true });
    for (const tensor of Object.values(moments)) tensor.dispose();
  }
  const cells = [(count / 1e6).toFixed(1), ((12 * count) / 2 ** 20).toFixed(0)];
  console.log(`| ${[...cells, median(saves).toFixed(3), median(clones).toFixed(3)].join(" | ")} |`);
}
