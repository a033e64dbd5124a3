/**
 * The training loop: one function of numbered steps. What each step does is in the file that it calls; what the numbers
 * mean is in `config_keys.ts`.
 */
import { mkdirSync } from "node:fs";
import { join } from "node:path";

import type { Cursor } from "../data/index.js";
import { autocast, memory, noGrad, saveSafetensors, stream, type Tensor, tidy } from "../torch/index.js";
import {
  bestCheckpoint,
  type LoadedCheckpoint,
  loadCheckpoint,
  requireSameRun,
  saveCheckpoint,
} from "./checkpoint.js";
import { type ResolvedConfig, resolveConfig, type TrainConfig, type TrainConfigInput } from "./config.js";
import { plainConfig } from "./config_docs.js";
import { RunConsole, type Screen } from "./console.js";
import { conditionOf, decodeFor, type Evaluation, evaluate, isHacked } from "./evaluate.js";
import { RunLog } from "./log.js";
import { spreadOf } from "./metrics.js";
import {
  grpoUpdate,
  ppoUpdate,
  reinforceUpdate,
  rlooUpdate,
  type UpdateBatch,
  type UpdateResult,
} from "./optimize.js";
import type { PlainData } from "./plain_data.js";
import { judge } from "./rewards.js";
import { type Rollout, sampleRollout } from "./rollout.js";
import { openRunFolder, writeConfig } from "./run_folder.js";
import { openRunParts, type RunParts } from "./run_parts.js";
import { samplePage } from "./sample_page.js";
import { algorithmOptions, contextAt, keepsGraph, lrScheduleOf, samplingOf } from "./settings.js";

/** What a program can do with a run beside its configuration. */
export interface TrainOptions {
  /** Ends the run after the iteration that is under way, with a checkpoint. */
  readonly signal?: AbortSignal;
  /** Go on with a run although its configuration or images changed. */
  readonly force?: boolean;
  readonly screen?: Screen;
  readonly json?: boolean;
}

/** How a run ended. */
export interface TrainResult {
  readonly dir: string;
  /** Iterations that are done. */
  readonly step: number;
  readonly end: "done" | "interrupted" | "patience";
  /** Before the first iteration and after the last, where there was an evaluation. */
  readonly first: Evaluation | null;
  readonly last: Evaluation | null;
}

/** Training went where numbers are not finite; the last checkpoint is from before. `rlar` ends with exit code 4. */
export class DivergedError extends Error {
  override readonly name = "DivergedError";
}

/** What the loop itself remembers from iteration to iteration. */
interface Progress {
  step: number;
  cursor: Cursor | undefined;
  skipped: number;
  skippedInARow: number;
  evaluationsSinceBest: number;
  imagesSeen: number;
  first: Evaluation | null;
  last: Evaluation | null;
}

/**
 * Fine-tune a policy: roll out, decode, reward, update, until the iterations are done.
 *
 * Everything random follows from the seed and the iteration, so that a run that is killed and resumed is the one that
 * was not, bit for bit on a CPU.
 *
 * @param cfg - any part of a {@link TrainConfig}, snake_case keys and the seed's own names included, or a whole one from
 *   `resolveConfig`.
 * @throws ConfigError for a configuration that cannot be used, RangeError for data or models that cannot, DivergedError.
 */
export async function trainRlLoop(
  cfg: TrainConfigInput | ResolvedConfig,
  options: TrainOptions = {},
): Promise<TrainResult> {
  // 1. The configuration, the run's folder, and whether there is a run in it to go on with.
  const { config, notes } = isResolved(cfg) ? cfg : resolveConfig({ values: cfg });
  using folder = await openRunFolder(config);
  const checkpoints = join(folder.path, "checkpoints");
  using saved = folder.isResumed ? loadCheckpoint(checkpoints) : null;
  if (saved === null) writeConfig(folder.path, config);

  // 2. The parts, and their state where the run goes on.
  const parts = await openRunParts(config);
  const progress = restore(config, parts, saved, options.force ?? false);
  const total = config.train.iters;
  const console = new RunConsole({
    total,
    ...(options.screen && { screen: options.screen }),
    json: options.json ?? false,
  });
  using log = new RunLog(folder.path, {
    every: config.log.every,
    total,
    console,
    tensorboard: config.log.tensorboard,
    csv: config.log.csv,
    ...(saved !== null && { resumeAt: saved.step }),
  });
  if (saved?.values.log !== undefined) log.load(saved.values.log);
  for (const { path, reason } of saved?.damaged ?? []) log.say(`passed over ${path}: ${reason}`);
  for (const note of notes) log.say(note);
  const lrFactor = lrScheduleOf(config);
  using batches = disposable(parts.batchesFrom(progress.cursor));

  // 3. Where it starts from: the evaluation before the first iteration.
  if (saved === null && config.eval.every > 0 && parts.evalImages > 0) {
    progress.first = await evaluate(config, parts);
    progress.last = progress.first;
    log.step(0, progress.first.metrics, { spreads: progress.first.spreads });
  }
  let end: TrainResult["end"] = "done";
  while (progress.step < total && end === "done") {
    const step = progress.step;
    const clock = new Clock();

    // 4. A batch of images and their codes; G sequences each; the one decode that every reward term reads.
    using batch = await batches.next();
    clock.mark("time/data");
    const images = batch.images as Tensor;
    const condition = conditionOf(batch, config.rollout.start);
    using made = owned(
      tidy(() => {
        using generator = stream(config.seed, "rollout", step);
        const trueCodes = parts.tokenizer.encode(images);
        const rollout = cast(parts, () =>
          sampleRollout(parts.policy, condition, {
            context: contextAt(config, step, trueCodes.size(1)),
            numGenerations: config.rollout.numGenerations,
            trueCodes,
            sampling: samplingOf(config),
            generator,
            keepGraph: keepsGraph(config),
            ...(config.rollout.microBatch !== null && { microBatch: config.rollout.microBatch }),
          }),
        );
        clock.mark("time/rollout");
        const decodeBatch = config.tokenizer.decodeBatch ?? 8;
        const judged = decodeFor(parts, images, rollout.codes, decodeBatch);
        const ceiling = decodeFor(parts, images, trueCodes.unsqueeze(1), decodeBatch);
        clock.mark("time/decode");
        const rewards = judge(parts.terms, judged, { normalize: config.reward.normalize });
        const best = judge(parts.terms, ceiling);
        clock.mark("time/reward");
        return {
          trueCodes,
          rollout,
          rewards: rewards.total,
          plain: { total: rewards.plain, terms: rewards.terms },
          best: best.total,
          samples: judged.samples,
          ceiling: ceiling.samples,
        };
      }),
    );

    // 5. The update.
    const { rollout, rewards, trueCodes, plain, best } = made.value;
    const result = updatePolicy(config, parts, { ...rollout, rewards, trueCodes }, step, lrFactor(step));
    if (result.steps > 0) parts.ema?.update();
    clock.mark("time/update");
    progress.step++;
    progress.cursor = batch.cursor;
    progress.imagesSeen += images.size(0);
    progress.skipped += result.skippedSteps;
    progress.skippedInARow = result.steps > 0 ? 0 : progress.skippedInARow + result.skippedSteps;
    if (result.skippedSteps > 0) dump(folder.path, progress.step, made.value, images);

    // 6. Evaluation, on the same held-out images every time.
    let evaluation: Evaluation | null = null;
    if (
      config.eval.every > 0 &&
      parts.evalImages > 0 &&
      (progress.step % config.eval.every === 0 || progress.step === total)
    ) {
      evaluation = await evaluate(config, parts);
      progress.last = evaluation;
      clock.mark("time/eval");
    }

    // 7. The record.
    const rewardMean = meanOf(plain.total);
    const ceilingMean = meanOf(best);
    const tokens = rollout.tokens.numel;
    const times = clock.times();
    const seconds = Object.values(times).reduce((sum, part) => sum + part, 0);
    const hacked =
      evaluation !== null &&
      progress.first !== null &&
      isHacked(progress.first, evaluation, termNames(parts));
    if (hacked)
      log.say(
        "the reward rose while every metric outside it fell since the start: look at the samples, raise update.auxCe or kl.coef",
      );
    log.step(
      progress.step,
      {
        ...result.metrics,
        "reward/vq_ceiling": ceilingMean,
        "reward/gap": ceilingMean - rewardMean,
        "reward/group_std": tidy(() => (rewards.size(1) > 1 ? plain.total.std(1).mean().item() : 0)),
        "advantage/frac_zero_std": result.constantGroups / rewards.size(0),
        "policy/entropy": meanOf(rollout.entropy),
        "tokens/codebook_usage": tidy(() => rollout.tokens.unique().numel) / parts.tokenizer.codebookSize,
        "optim/lr": config.optimizer.lr * lrFactor(step),
        "optim/skipped_total": progress.skipped,
        "progress/epoch": batch.cursor.epoch,
        "progress/images_seen": progress.imagesSeen,
        "perf/step_s": seconds,
        "perf/tokens_per_s": tokens / seconds,
        "perf/rss_gb": process.memoryUsage.rss() / 2 ** 30,
        "perf/peak_gb": memory({ resetPeak: true }).peakBytes / 2 ** 30,
        "perf/native_tensors": memory().tensors,
        ...times,
        ...(evaluation?.metrics ?? {}),
        ...(evaluation !== null && { "eval/hacking_alarm": hacked ? 1 : 0 }),
      },
      { count: tokens, spreads: { ...spreadsOf(plain), ...(evaluation?.spreads ?? {}) } },
    );
    if (
      config.log.imagesEvery > 0 &&
      (progress.step % config.log.imagesEvery === 0 || progress.step === total)
    ) {
      const { page, about } = samplePage(
        config,
        images,
        made.value.ceiling,
        made.value.samples,
        plain.total,
        batch.ids,
      );
      await log.image(progress.step, "train", page, about);
      page.dispose();
    }

    // 8. The checkpoint, and whether to go on.
    const isBest = evaluation !== null && isNewBest(config, checkpoints, evaluation);
    if (evaluation !== null) progress.evaluationsSinceBest = isBest ? 0 : progress.evaluationsSinceBest + 1;
    if (config.eval.patience > 0 && progress.evaluationsSinceBest >= config.eval.patience) end = "patience";
    else if (options.signal?.aborted && progress.step < total) end = "interrupted";
    const isDue =
      progress.step % config.save.every === 0 || progress.step === total || end !== "done" || isBest;
    if (isDue) save(config, parts, progress, log, checkpoints, isBest ? evaluation : null);
    const { nonFinite, nonFiniteInARow } = config.limits;
    if (progress.skipped > nonFinite || progress.skippedInARow > nonFiniteInARow) {
      throw new DivergedError(
        `step ${progress.step}: expected finite losses and gradients, got ${progress.skippedInARow} steps in a row ` +
          `(${progress.skipped} in all) that were not. Their batches are in ${folder.path}/dumps; lower optimizer.lr.`,
      );
    }
  }
  return { dir: folder.path, step: progress.step, end, first: progress.first, last: progress.last };
}

function isResolved(cfg: TrainConfigInput | ResolvedConfig): cfg is ResolvedConfig {
  return "config" in cfg && "notes" in cfg;
}

function cast<T>(parts: RunParts, fn: () => T): T {
  return parts.policyCast === null ? fn() : autocast(parts.policyCast, fn);
}

function updatePolicy(
  config: TrainConfig,
  parts: RunParts,
  batch: UpdateBatch,
  step: number,
  lrFactor: number,
): UpdateResult {
  const { policy, optimizer, reference, valueHead } = parts;
  const chosen = algorithmOptions(config, reference);
  using generator = stream(config.seed, "update", step);
  const more = { generator, lrFactor };
  return cast(parts, () => {
    switch (chosen.algorithm) {
      case "reinforce":
        return reinforceUpdate(policy, optimizer, batch, { ...chosen.options, ...more });
      case "rloo":
        return rlooUpdate(policy, optimizer, batch, { ...chosen.options, ...more });
      case "grpo":
        return grpoUpdate(policy, optimizer, batch, { ...chosen.options, ...more });
      case "ppo": {
        if (valueHead === null) throw new Error("ppo: expected a value head, got none.");
        return ppoUpdate(policy, optimizer, batch, { ...chosen.options, ...more, valueHead });
      }
    }
  });
}

const meanOf = (tensor: Tensor): number => tidy(() => tensor.mean().item());

const termNames = (parts: RunParts): Set<string> => new Set(parts.terms.map((term) => term.name));

function spreadsOf({ total, terms }: { total: Tensor; terms: Readonly<Record<string, Tensor>> }) {
  const named = Object.entries({
    reward: total,
    ...Object.fromEntries(Object.entries(terms).map(([k, v]) => [`reward/${k}`, v])),
  });
  return Object.fromEntries(
    named.map(([name, tensor]) => [name, spreadOf(tidy(() => tensor.flatten().toList() as number[]))]),
  );
}

function isNewBest(config: TrainConfig, folder: string, evaluation: Evaluation): boolean {
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

/** Put the parts where a checkpoint left them, and say how far that was. */
function restore(
  config: TrainConfig,
  parts: RunParts,
  saved: LoadedCheckpoint | null,
  force: boolean,
): Progress {
  if (saved === null) {
    const none = { cursor: undefined, skipped: 0, skippedInARow: 0, evaluationsSinceBest: 0, imagesSeen: 0 };
    return { step: 0, ...none, first: null, last: null };
  }
  const { values, tensors } = saved;
  const identity = {
    config: values.config as Record<string, unknown>,
    data: (values.data as string | null) ?? null,
  };
  requireSameRun(identity, { config, data: parts.fingerprint }, { force });
  parts.policy.loadStateDict(tensors.policy ?? {});
  const groups = values.optimizer as unknown as ReturnType<RunParts["optimizer"]["stateDict"]>["groups"];
  parts.optimizer.loadStateDict({ tensors: tensors.optimizer ?? {}, groups });
  if (parts.ema !== null)
    parts.ema.loadStateDict({ tensors: tensors.ema ?? {}, updates: values.emaUpdates as number });
  parts.valueHead?.loadStateDict(tensors.value_head ?? {});
  return { ...(values.progress as unknown as Omit<Progress, "step">), step: saved.step };
}

function save(
  config: TrainConfig,
  parts: RunParts,
  progress: Progress,
  log: RunLog,
  folder: string,
  best: Evaluation | null,
): void {
  log.flush();
  const { policy, optimizer, ema, valueHead } = parts;
  const optimizerState = optimizer.stateDict();
  const average = ema?.stateDict();
  const { step, ...rest } = progress;
  const metadata = { config: JSON.stringify(policy.options) };
  saveCheckpoint(
    folder,
    {
      step,
      tensors: {
        policy: policy.stateDict(),
        optimizer: optimizerState.tensors,
        ...(average && { ema: average.tensors }),
        ...(valueHead && { value_head: valueHead.stateDict() }),
      },
      values: {
        config: plainConfig(config) as PlainData,
        data: parts.fingerprint,
        optimizer: optimizerState.groups as unknown as PlainData,
        progress: rest as unknown as PlainData,
        log: log.state(),
        ...(average && { emaUpdates: average.updates }),
      },
    },
    {
      keep: config.save.keep,
      metadata: { policy: metadata, ...(average && { ema: metadata }) },
      ...(best !== null && { best: { metric: config.eval.best, value: metricOf(config, best) } }),
    },
  );
  if (config.save.ckptPath !== null) saveSafetensors(config.save.ckptPath, policy.stateDict(), metadata);
}

/** What a step that was left out had to work with, for whoever looks for the cause. */
function dump(
  folder: string,
  step: number,
  made: { rollout: Rollout; rewards: Tensor; trueCodes: Tensor },
  images: Tensor,
): void {
  const { rollout, rewards, trueCodes } = made;
  mkdirSync(join(folder, "dumps"), { recursive: true });
  noGrad(() =>
    tidy(() => {
      const tensors = { images, trueCodes, rewards, tokens: rollout.tokens, logprobs: rollout.logprobs };
      saveSafetensors(join(folder, "dumps", `step_${String(step).padStart(6, "0")}.safetensors`), tensors);
    }),
  );
}

/** Seconds since the last mark, by name. */
class Clock {
  #last = performance.now();
  readonly #times: Record<string, number> = {};

  mark(name: string): void {
    const now = performance.now();
    this.#times[name] = (now - this.#last) / 1000;
    this.#last = now;
  }

  /** All marks, and what lies after the last, so that they sum to the step's seconds. */
  times(): Record<string, number> {
    return { ...this.#times, "time/other": (performance.now() - this.#last) / 1000 };
  }
}

/** Free every tensor in a value when the block ends. */
function owned<T extends object>(value: T): Disposable & { value: T } {
  const free = (item: unknown): void => {
    if (item === null || typeof item !== "object") return;
    if ("dispose" in item && typeof item.dispose === "function") item.dispose();
    else for (const inner of Object.values(item)) free(inner);
  };
  return { value, [Symbol.dispose]: () => free(value) };
}

function disposable<T extends { close(): void }>(value: T): T & Disposable {
  return Object.assign(value, { [Symbol.dispose]: () => value.close() });
}
