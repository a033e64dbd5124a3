/**
 * The published tokenizers at their real size, with random weights, on images of 256 px: seconds an image and peak
 * memory above the weights, in parts against the whole batch at once; and the search of a codebook against the scores
 * of all codes.
 *
 *   npm run bench -- tokenizers [images, default 4]
 */
import { IBQ, nearestCodes, type TokenizerModel, VQModel } from "../src/tokenizers/index.js";
import { getNumThreads, manualSeed, memory, noGrad, rand, randn, tidy, version } from "../src/torch/index.js";

const count = Number(process.argv[2] ?? 4);

interface Cost {
  seconds: number;
  peakMiB: number;
}

/** The median time of three runs, and the most memory that one of them added. */
function cost(fn: () => void): Cost {
  const times: number[] = [];
  let peakMiB = 0;
  for (let i = 0; i < 3; i++) {
    const { bytes } = memory({ resetPeak: true });
    const start = performance.now();
    noGrad(() => tidy(fn));
    times.push((performance.now() - start) / 1000);
    peakMiB = Math.max(peakMiB, (memory().peakBytes - bytes) / 2 ** 20);
  }
  return { seconds: times.sort((a, b) => a - b)[1] as number, peakMiB };
}

function row(name: string, ours: Cost, naive: Cost, units: number): void {
  const cells = [ours, naive].map(
    ({ seconds, peakMiB }) => `${(seconds / units).toFixed(3)} s  ${peakMiB.toFixed(0)} MiB`,
  );
  const ratios = `${(naive.seconds / ours.seconds).toFixed(2)}x time, ${(naive.peakMiB / ours.peakMiB).toFixed(1)}x memory`;
  console.log(`${name.padEnd(26)} ${cells.map((cell) => cell.padEnd(20)).join(" ")} ${ratios}`);
}

console.log(`LibTorch ${version().torch}, ${getNumThreads()} threads, ${count} images of 256 px`);
console.log(`${"".padEnd(26)} ${"in parts".padEnd(20)} ${"all at once".padEnd(20)} all at once costs`);
manualSeed(0);
for (const [name, build] of [
  ["VQ-16", () => new VQModel()],
  ["IBQ-16384", () => new IBQ({ nEmbed: 16_384 })],
] as [string, () => TokenizerModel][]) {
  using model = tidy(build).eval();
  using images = rand([count, 3, 256, 256]).mul(2).sub(1);
  using codes = model.encode(images);
  const budget = model.memoryBudget;
  const both = (fn: () => void): [Cost, Cost] => {
    model.memoryBudget = budget;
    const ours = cost(fn);
    model.memoryBudget = Number.MAX_SAFE_INTEGER;
    return [ours, cost(fn)];
  };
  row(`${name} encode, an image`, ...both(() => model.encode(images)), count);
  row(`${name} decode, an image`, ...both(() => model.decodeCode(codes)), count);
}

using table = randn([262_144, 256]);
using rows = randn([count * 256, 256]);
const search = cost(() => nearestCodes(rows, table, "dot"));
const scores = cost(() => rows.matmul(table.transpose(0, 1)).argmax(1));
row("262,144 codes, an image", search, scores, count);
