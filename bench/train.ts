/**
 * Images a second of the shipped recipes, a few steps of each: the demo's reinforcement learning, the pre-training of its
 * policy, and the training of its tokenizer. With `--base` another built checkout of this project runs the same steps first.
 *
 *     npm run bench -- train [completion policy tokenizer] [--base CHECKOUT] [--steps 6] [--threads 2]
 *
 * Prints medians of the steps after the first, from `metrics.jsonl`.
 */
import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { median } from "./peer.js";

const ROOT = fileURLToPath(new URL("../..", import.meta.url));
const COMMANDS: Readonly<Record<string, string>> = {
  completion: "train",
  policy: "pretrain",
  tokenizer: "tokenizer",
};

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    base: { type: "string" },
    steps: { type: "string", default: "6" },
    threads: { type: "string", default: "2" },
  },
});

type Step = Readonly<Record<string, number>>;

/** Medians of a run's steps. */
function measure(checkout: string, recipe: string): { images: number; phases: string } {
  const models = join(ROOT, "models", "emoji_32px");
  const dir = mkdtempSync(join(tmpdir(), "bench-train-"));
  try {
    const result = spawnSync(
      process.execPath,
      [
        join(checkout, "scripts", "rlar.mjs"),
        COMMANDS[recipe] as string,
        join(models, `${recipe}.yaml`),
        `run.dir=${join(dir, "run")}`,
        `train.iters=${values.steps}`,
        `train.threads=${values.threads}`,
        "eval.every=0",
        "log.imagesEvery=0",
        ...(recipe === "completion" ? ["eval.perceptual=null"] : []),
      ],
      { encoding: "utf8" },
    );
    if (result.status !== 0)
      throw new Error(`bench: ${recipe} ended with ${result.status}.\n${result.stderr}`);
    const lines = readFileSync(join(dir, "run", "metrics.jsonl"), "utf8")
      .trim()
      .split("\n");
    const steps = lines.map((line) => JSON.parse(line) as Step).slice(1);
    const of = (name: string): number =>
      median(steps.flatMap((step) => (step[name] === undefined ? [] : [step[name]])));
    const names = Object.keys(steps.at(-1) ?? {}).filter((name) => name.startsWith("time/"));
    return {
      images: of("perf/images_per_s"),
      phases: names.map((name) => `${name.slice(5)} ${of(name).toFixed(2)}`).join("  "),
    };
  } finally {
    rmSync(dir, { recursive: true, force: true });
  }
}

for (const recipe of positionals.length > 0 ? positionals : Object.keys(COMMANDS)) {
  const base = values.base === undefined ? null : measure(values.base, recipe);
  const own = measure(ROOT, recipe);
  if (base !== null)
    console.log(
      `${recipe}, base`.padEnd(22),
      `${base.images.toFixed(1).padStart(7)} images/s  ${base.phases}`,
    );
  const ratio = base === null ? "" : `   ${(own.images / base.images).toFixed(2)} x`;
  console.log(recipe.padEnd(22), `${own.images.toFixed(1).padStart(7)} images/s  ${own.phases}${ratio}`);
}
