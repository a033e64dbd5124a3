/**
 * What a run remembers from iteration to iteration, and how a checkpoint holds it. When one is made is the loop's
 * affair.
 */
import { join } from "node:path";
import { plainConfig } from "../config/explain.js";
import { ConfigError, type TrainConfig } from "../config/resolve.js";
import type { Batches, Cursor, PassedOver } from "../data/index.js";
import type { StateDict } from "../nn/index.js";
import { bestCheckpoint, type LoadedCheckpoint, requireSameRun, saveCheckpoint } from "../run/checkpoint.js";
import type { RunLog } from "../run/log.js";
import type { PlainData } from "../run/plain_data.js";
import { makeFolder } from "../torch/files.js";
import { noGrad, saveSafetensors, type Tensor, tidy } from "../torch/index.js";
import type { Evaluation } from "./evaluate.js";
import type { RunParts } from "./parts.js";
import type { Rollout } from "./rollout.js";
import { lrSchedule, lrScheduleOf } from "./settings.js";

/** What the loop itself remembers. */
export interface Progress {
  step: number;
  cursor: Cursor | undefined;
  /** Images that could not be read. */
  passedOver: PassedOver;
  skipped: number;
  skippedInARow: number;
  evaluationsSinceBest: number;
  imagesSeen: number;
  tokensSeen: number;
  /** Weight of the divergence from the reference, which `kl.target` steers. */
  klCoef: number;
  /** Running mean of that divergence, for `kl.stop`. */
  klMean: number | null;
  first: Evaluation | null;
  last: Evaluation | null;
}

/**
 * Put the parts where a checkpoint left them, and say how far that was.
 *
 * @throws ConfigError when the run would not go on as it was begun, unless forced.
 */
export function restore(
  config: TrainConfig,
  parts: RunParts,
  saved: LoadedCheckpoint | null,
  force: boolean,
): Progress {
  const begun: Progress = {
    step: 0,
    cursor: undefined,
    passedOver: {},
    skipped: 0,
    skippedInARow: 0,
    evaluationsSinceBest: 0,
    imagesSeen: 0,
    tokensSeen: 0,
    klCoef: config.kl.coef,
    klMean: null,
    first: null,
    last: null,
  };
  if (saved === null) return begun;
  const { values, tensors, step } = saved;
  const before = values.config as unknown as TrainConfig;
  if (!force) requireSameRate(before, config, step);
  const identity = {
    config: values.config as Record<string, unknown>,
    data: (values.data as string | null) ?? null,
    frozen: values.frozen as Record<string, string>,
  };
  requireSameRun(identity, { config, data: parts.fingerprint, frozen: parts.frozen }, { force });
  requireSameTrained(parts, saved);
  const { policy, lora, trained, optimizer, ema, valueHead } = parts;
  if (lora === null) policy.loadStateDict(tensors.policy ?? {});
  else lora.loadStateDict(tensors.lora ?? {});
  const groups = values.optimizer as unknown as ReturnType<RunParts["optimizer"]["stateDict"]>["groups"];
  optimizer.loadStateDict({ tensors: tensors.optimizer ?? {}, groups });
  valueHead?.loadStateDict(tensors.value_head ?? {});
  const averages = lora === null ? tensors.ema : tensors.lora_ema;
  // An average that was not kept so far starts from here.
  const present = Object.fromEntries(
    trained.namedParameters().filter(([, { requiresGrad }]) => requiresGrad),
  );
  ema?.loadStateDict(
    averages === undefined
      ? { tensors: present, updates: 0 }
      : { tensors: averages, updates: values.emaUpdates as number },
  );
  const progress = values.progress as unknown as Progress;
  const isSteered = config.kl.target !== null && before.kl.coef === config.kl.coef;
  return { ...begun, ...progress, klCoef: isSteered ? progress.klCoef : config.kl.coef, step };
}

/** @throws ConfigError when other parameters are trained than those whose values and moments were saved. */
function requireSameTrained({ trained, valueHead }: RunParts, { tensors, path }: LoadedCheckpoint): void {
  const shapesOf = (...states: (Readonly<StateDict> | undefined)[]): string =>
    states
      .flatMap((state) => Object.entries(state ?? {}).map(([name, { shape }]) => `${name} [${shape.join()}]`))
      .sort()
      .join();
  const before = shapesOf(tensors.lora ?? tensors.policy, tensors.value_head);
  if (before === shapesOf(trained.stateDict(), valueHead?.stateDict())) return;
  throw new ConfigError([
    "resume: expected the trained parameters that the run was begun with, got others (ar, ar.lora or algorithm changed). " +
      `Undo it, or start a new run with ar.path=${join(path, "policy.safetensors")}.`,
  ]);
}

/** @throws ConfigError when another `train.iters` would give iterations to come another learning rate. */
function requireSameRate(before: TrainConfig, now: TrainConfig, step: number): void {
  const [was, is] = [before.train.iters, now.train.iters];
  if (was === is || JSON.stringify(before.optimizer) !== JSON.stringify(now.optimizer)) return;
  const [then, next] = [lrSchedule(before.optimizer, was), lrScheduleOf(now)];
  for (let at = step; at <= Math.max(step, was - 1); at++) {
    // After its last iteration a run would have gone on as it ended.
    const [wanted, got] = [then(Math.min(at, was - 1)), next(at)];
    if (wanted === got) continue;
    const { lr, schedule, warmup } = now.optimizer;
    const rate = (factor: number): string => (lr * factor).toPrecision(3);
    const what = schedule === "constant" ? `warms up over ${warmup} of it` : `follows a ${schedule} over it`;
    throw new ConfigError([
      `train.iters: expected ${was}, as the run was begun with, got ${is}. The learning rate ${what}, so that iteration ` +
        `${at + 1} would have ${rate(got)} ${at < was ? "in place of" : "after"} ${rate(wanted)}. Keep it, begin a new run ` +
        "with optimizer.schedule=constant and optimizer.warmup=0, or resume with --force.",
    ]);
  }
}

/** Whether a run is over before its iterations are done, by what its configuration says of that. */
export function endOf(
  { eval: { patience }, kl: { stop } }: TrainConfig,
  progress: Progress,
): "done" | "patience" | "kl" {
  if (patience > 0 && progress.evaluationsSinceBest >= patience) return "patience";
  if (stop !== null && (progress.klMean ?? 0) > stop) return "kl";
  return "done";
}

/** What {@link save} writes beside the parts. */
export interface SaveContext {
  readonly log: RunLog;
  /** Of the checkpoints. */
  readonly folder: string;
  readonly batches: Pick<Batches, "passedOver">;
  /** The evaluation that makes this checkpoint the best one, or null. */
  readonly best: Evaluation | null;
}

/** Write a checkpoint: `policy` and `ema` are whole policies, with adapters added to their weights. */
export function save(config: TrainConfig, parts: RunParts, progress: Progress, context: SaveContext): void {
  const { log, folder, batches, best } = context;
  log.flush();
  const { policy, lora, optimizer, ema, valueHead, fingerprint, frozen } = parts;
  const optimizerState = optimizer.stateDict();
  const average = ema?.stateDict();
  const { step, ...rest } = progress;
  const metadata = { config: JSON.stringify(policy.options) };
  tidy(() => {
    const whole = (): StateDict => ({ ...policy.stateDict(), ...lora?.mergedWeights() });
    const weights = whole();
    const averages = lora === null || ema === null ? average?.tensors : ema.withAverage(whole);
    saveCheckpoint(
      folder,
      {
        step,
        tensors: {
          policy: weights,
          optimizer: optimizerState.tensors,
          ...(averages && { ema: averages }),
          ...(lora && { lora: lora.stateDict() }),
          ...(lora && average && { lora_ema: average.tensors }),
          ...(valueHead && { value_head: valueHead.stateDict() }),
        },
        values: {
          config: plainConfig(config) as PlainData,
          data: fingerprint,
          frozen,
          optimizer: optimizerState.groups as unknown as PlainData,
          progress: { ...rest, passedOver: batches.passedOver ?? {} } as unknown as PlainData,
          log: log.state(),
          ...(average && { emaUpdates: average.updates }),
        },
      },
      {
        keep: config.save.keep,
        metadata: {
          policy: metadata,
          ...(averages && { ema: metadata }),
          ...(lora && { lora: { lora: JSON.stringify(config.ar.lora) } }),
        },
        ...(best !== null && { best: { metric: config.eval.best, value: metricOf(config, best) } }),
      },
    );
    if (config.save.ckptPath !== null) saveSafetensors(config.save.ckptPath, weights, metadata);
  });
}

/** Whether an evaluation is better than that of the best checkpoint. */
export function isNewBest(config: TrainConfig, folder: string, evaluation: Evaluation): boolean {
  const value = metricOf(config, evaluation);
  const best = bestCheckpoint(folder);
  if (!Number.isFinite(value)) return false;
  if (best === null || best.metric !== config.eval.best) return true;
  return config.eval.mode === "max" ? value > best.value : value < best.value;
}

function metricOf({ eval: { best } }: TrainConfig, { spreads, metrics }: Evaluation): number {
  if (metrics[best] !== undefined) return metrics[best];
  const cut = best.lastIndexOf("/");
  const spread = spreads[best.slice(0, cut)];
  return (spread as Record<string, number> | undefined)?.[best.slice(cut + 1)] ?? Number.NaN;
}

/** What a step that was left out had to work with, for whoever looks for the cause. */
export function dump(
  folder: string,
  step: number,
  made: { rollout: Rollout; rewards: Tensor; trueCodes: Tensor },
  images: Tensor,
): void {
  const { rollout, rewards, trueCodes } = made;
  const dumps = join(folder, "dumps");
  makeFolder(dumps);
  noGrad(() =>
    tidy(() => {
      const tensors = { images, trueCodes, rewards, tokens: rollout.tokens, logprobs: rollout.logprobs };
      saveSafetensors(join(dumps, `step_${String(step).padStart(6, "0")}.safetensors`), tensors);
    }),
  );
}
