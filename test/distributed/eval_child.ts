/** A process of `eval.test.ts`: `node eval_child.js IMAGES OUT` evaluates two policies and writes all files to OUT. */
import { join } from "node:path";
import { evaluateModels } from "../../src/evaluation/judge_models.js";
import { cellJudge, cellTokenizer, rightPolicy, SIZE, uniformPolicy } from "../support/eval_toys.js";

const [images = ".", out = "."] = process.argv.slice(2);

try {
  const { rows } = await evaluateModels({
    tokenizer: cellTokenizer(),
    policy: uniformPolicy(),
    against: rightPolicy(),
    features: [cellJudge()],
    data: { source: images, size: SIZE, evalPart: 0.4, workers: 1 },
    batch: 7, // divides neither the images nor the samples
    samples: 75,
    draws: 3,
    prefixes: [0, 3],
    temperatures: [1, 0.5],
    resamples: 20,
    seeds: [0, 1],
    out,
    json: join(out, "eval.json"),
    npz: join(out, "samples.npz"),
  });
  process.stdout.write(`${rows.length} rows\n`);
} catch (error) {
  process.stderr.write(`${(error as Error).stack}\n`);
  process.exitCode = (error as Error).name === "LostRankError" ? 5 : 1;
}
