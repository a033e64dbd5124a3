/** `rlar eval`: evaluate a tokenizer or a policy, or compare two policies. The work is done in `src/evaluation`. */
import { ConfigError, type DataConfig } from "../config/resolve.js";
import { isSpeaker } from "../distributed/index.js";
import { evaluateModels } from "../evaluation/judge_models.js";
import { optionsOfConfig, optionsOfRun } from "../evaluation/options.js";
import { evaluationText, measuresText } from "../evaluation/verdict.js";
import { deviceOf } from "../rl_ar_finetune/parts.js";
import { withProcesses } from "../run/processes.js";
import { known as given } from "../torch/arguments.js";
import { type Device, setNumThreads } from "../torch/index.js";
import { withProgress } from "./progress.js";

/** Options of `rlar eval`. */
export interface EvalCommandOptions {
  run?: string;
  config?: string;
  checkpoint: "last" | "best";
  tokenizer?: string;
  policy?: string;
  against?: string;
  features: string[];
  lpips?: string;
  reference?: string;
  data?: string;
  evalData?: string;
  evalPart?: number;
  group?: string;
  label?: string;
  size?: number;
  crop?: "center" | "smallest_side";
  unconditional?: boolean;
  samples: number;
  classes: "data" | "balanced";
  prefix?: number[];
  draws: number;
  images: number;
  chosenOn?: number;
  trainImages: number;
  temperatures: number[];
  cfg: number[];
  cfgSchedule: "constant" | "power_cosine";
  topK: number;
  topP: number;
  seeds: number[];
  resamples: number;
  batch: number;
  heads?: number;
  codes?: number;
  dtype: "float32" | "bfloat16";
  device: Device;
  threads?: number;
  out?: string;
  npz?: string;
  json?: string;
  explain?: boolean;
}

/** The processes of a launcher share the work; the first one prints and writes. */
export async function evaluate(options: EvalCommandOptions): Promise<void> {
  if (options.explain) {
    if (isSpeaker()) process.stdout.write(`${measuresText()}\n`);
    return;
  }
  if (options.run !== undefined && options.config !== undefined) {
    throw new ConfigError([
      "eval: expected --run or --config, got both. A run's folder has its configuration.",
    ]);
  }
  const { run, config } = options;
  const known =
    run !== undefined
      ? optionsOfRun(run, options.checkpoint)
      : config !== undefined
        ? optionsOfConfig(config)
        : {};
  const data = { ...known.data, ...dataOf(options) } as Partial<DataConfig>;
  const tokenizer = options.tokenizer ?? known.tokenizer;
  const missing = [
    ...(tokenizer === undefined ? ["--tokenizer, the weights of the tokenizer"] : []),
    ...((data.source ?? null) === null ? ["--data, the training images"] : []),
  ];
  if (tokenizer === undefined || missing.length > 0) {
    throw new ConfigError(
      missing.map((what) => `eval: expected ${what}, got none. --run or --config may give it.`),
    );
  }
  const sizes = given({ nHead: options.heads, blockSize: options.codes });
  const policy = options.policy === undefined ? known.policy : { path: options.policy, ...sizes };
  const against = options.against === undefined ? known.against : { path: options.against, ...sizes };
  // A policy that the command line names replaces the run's own, so it is not the run's checkpoint.
  const own = [
    known.against === undefined ? known.policy : known.against,
    known.policy === undefined ? known.tokenizer : undefined,
  ];
  const isOwn = [policy, against, tokenizer].some((part) => part !== undefined && own.includes(part));
  const judged = isOwn ? known.judged : undefined;
  if (judged !== undefined && isSpeaker()) process.stderr.write(`judges ${judged.text}\n`);
  const started = performance.now();
  const { lpips, samples, classes, draws, images, trainImages, temperatures, cfg, cfgSchedule } = options;
  const {
    prefix: prefixes,
    topK,
    topP,
    seeds,
    resamples,
    batch,
    dtype,
    threads,
    reference,
    out,
    npz,
    json,
  } = options;
  const { rewardNetworks } = known;
  const chosenOn = options.chosenOn ?? (isOwn ? known.chosenOn : undefined);
  const device = deviceOf({ train: { device: options.device } });
  const evaluation = await withProgress("evaluating", (say) =>
    withProcesses({ device }, async () => {
      if (threads !== undefined) setNumThreads(threads);
      return await evaluateModels({
        ...{ tokenizer, data, samples, classes, draws, images, trainImages, temperatures, cfg, cfgSchedule },
        ...{ topK, topP, seeds, resamples, batch, dtype, device },
        ...given({
          policy,
          against,
          lpips,
          reference,
          judged,
          rewardNetworks,
          prefixes,
          out,
          npz,
          json,
          chosenOn,
        }),
        features: options.features.length > 0 ? options.features : (known.features ?? []),
        start: options.unconditional ? "empty" : (known.start ?? "condition"),
        say,
      });
    }),
  );
  if (!isSpeaker()) return;
  process.stderr.write(`${((performance.now() - started) / 1000).toFixed(1)} s in all\n`);
  process.stdout.write(`${evaluationText(evaluation)}\n`);
  if (out !== undefined) process.stdout.write(`\n${out}: ${evaluation.pages.join(", ")}\n`);
}

/** The keys of `data` that the command line sets. */
function dataOf(options: EvalCommandOptions): Record<string, unknown> {
  const { data: source, evalData: evalSource, evalPart, group, label, size, crop } = options;
  return given({ source, evalSource, evalPart, group, label, size, crop });
}
