/**
 * The training loop: one function of numbered steps. What each step does is in the file that it calls; what the numbers
 * mean is in `config/model_keys.ts`.
 */
import { join } from "node:path";
import { setImmediate } from "node:timers/promises";
import {
  type ResolvedConfig,
  resolveConfig,
  type TrainConfig,
  type TrainConfigInput,
} from "../config/resolve.js";
import { loadCheckpoint } from "../run/checkpoint.js";
import { Clock } from "../run/clock.js";
import { DivergedError, explained, requireFiniteWeights } from "../run/failure.js";
import { openRunFolder, requireWritable, writeConfig } from "../run/folder.js";
import { openLog } from "../run/open_log.js";
import type { TrainOptions } from "../run/options.js";
import { samplePage } from "../run/sample_page.js";
import { autocast, deriveSeed, stream, type Tensor, tidy } from "../torch/index.js";
import { type Evaluation, evaluate, isHacked } from "./evaluate.js";
import { adaptedCoef, runningMean } from "./losses.js";
import {
  grpoUpdate,
  type Optimizer,
  ppoUpdate,
  reinforceUpdate,
  rlooUpdate,
  type UpdateBatch,
  type UpdateResult,
} from "./optimize.js";
import { openRunParts, type RunParts } from "./parts.js";
import { judge } from "./rewards.js";
import { algorithmOptions, contextAt, keepsGraph, lrScheduleOf, rolloutSamplingOf } from "./settings.js";
import { dump, endOf, noteEvaluation, type Progress, restore, Saver, WEIGHT_FILES } from "./state.js";
import { steUpdate } from "./ste.js";
import {
  conditionOf,
  creditFor,
  decodeFor,
  encodeFor,
  machineMetrics,
  rewardSpreads,
  rolloutFor,
  rolloutMetrics,
  termsNotFinite,
} from "./step.js";

export { DivergedError } from "../run/failure.js";
export type { TrainOptions } from "../run/options.js";

/** What to do when memory runs out. */
const MEMORY =
  "Lower rollout.microBatch, update.microBatch, tokenizer.decodeBatch or reward.chunk, which change no result beyond rounding; " +
  "set ar.gradientCheckpointing; or lower rollout.images";

/** How a run ended. */
export interface TrainResult {
  readonly dir: string;
  /** Iterations that are done. */
  readonly step: number;
  /** `patience`: nothing got better for long; `kl`: the divergence from the reference went past `kl.stop`. */
  readonly end: "done" | "interrupted" | "patience" | "kl";
  /** Before the first iteration and after the last, where there was an evaluation. */
  readonly first: Evaluation | null;
  readonly last: Evaluation | null;
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
export function trainRlLoop(
  cfg: TrainConfigInput | ResolvedConfig,
  options: TrainOptions = {},
): Promise<TrainResult> {
  return explained(MEMORY, () => run(cfg, options));
}

async function run(cfg: TrainConfigInput | ResolvedConfig, options: TrainOptions): Promise<TrainResult> {
  // 1. The configuration, the run's folder, and whether there is a run in it to go on with.
  const { config, notes } = isResolved(cfg) ? cfg : resolveConfig({ values: cfg });
  using folder = await openRunFolder(config, { ...(options.ask && { ask: options.ask }) });
  if (config.save.ckptPath !== null) requireWritable("save.ckptPath", config.save.ckptPath, WEIGHT_FILES);
  const checkpoints = join(folder.path, "checkpoints");
  using saved = folder.isResumed ? loadCheckpoint(checkpoints) : null;
  if (saved === null) writeConfig(folder.path, config);

  // 2. The parts, and their state where the run goes on.
  using parts = await openRunParts(config);
  const { progress, notes: changes } = restore(config, parts, saved, options.force ?? false);
  saved?.dispose(); // as large as all of the run's state
  const total = config.train.iters;
  const skippedBefore = progress.skipped; // whoever resumes has mended the cause: the limit counts anew
  const about = [...notes, ...changes, ...parts.notes];
  using log = openLog(folder.path, { total, log: config.log, saved, notes: about, options });
  const lrFactor = lrScheduleOf(config);
  using batches = disposable(parts.batchesFrom(progress.cursor, progress.passedOver));
  using saver = new Saver(config, parts, progress, { log, folder: checkpoints, batches });

  // 3. Where it starts from: the evaluation before the first iteration.
  if (saved === null && config.eval.every > 0 && parts.evalImages > 0) {
    progress.first = await evaluate(config, parts);
    progress.last = progress.first;
    log.step(0, progress.first.metrics, { spreads: progress.first.spreads });
  }
  // A run that was over stays so, unless it is forced on.
  let end: TrainResult["end"] = options.force ? "done" : endOf(config, progress);
  let clock = new Clock();
  let broken: readonly string[] = [];
  while (progress.step < total && end === "done") {
    const step = progress.step;
    await setImmediate(); // lets Ctrl-C through: batches that are read ahead never wait

    // 4. A batch of images and their codes; G sequences each; the one decode that every reward term reads.
    using batch = await batches.next();
    clock.mark("time/data");
    const images = batch.images as Tensor;
    const condition = conditionOf(batch, config.rollout.start);
    using made = owned(
      tidy(() => {
        using generator = stream(config.seed, "rollout", step);
        const trueCodes = encodeFor(config, parts, images);
        const rollout = rolloutFor(config, parts, condition, {
          context: contextAt(config, step, trueCodes.size(1)),
          numGenerations: config.rollout.numGenerations,
          trueCodes,
          sampling: rolloutSamplingOf(config),
          generator,
          keepGraph: keepsGraph(config),
        });
        clock.mark("time/rollout");
        const decodeBatch = config.tokenizer.decodeBatch ?? 8;
        const judged = decodeFor(parts, images, rollout.codes, decodeBatch);
        const ceiling = decodeFor(parts, images, trueCodes.unsqueeze(1), decodeBatch);
        clock.mark("time/decode");
        const { rewards, plain } = creditFor(config, parts, judged, rollout.tokens.size(2));
        const best = judge(parts.terms, ceiling).total;
        clock.mark("time/reward");
        return {
          trueCodes,
          rollout,
          rewards,
          plain,
          best,
          samples: judged.samples,
          ceiling: ceiling.samples,
        };
      }),
    );

    // 5. The update.
    const { rollout, rewards, trueCodes, plain, best } = made.value;
    const tokens = rollout.tokens.numel;
    const update = { klCoef: progress.klCoef, lrFactor: lrFactor(step), images, saver };
    const result = updatePolicy(config, parts, { ...rollout, rewards, trueCodes }, step, update);
    if (result.steps > 0) {
      requireFiniteWeights(namedWeights(parts), step + 1);
      parts.ema?.update();
    }
    clock.mark("time/update");
    progress.step++;
    progress.updates += result.steps;
    progress.cursor = batch.cursor;
    progress.imagesSeen += images.size(0);
    progress.tokensSeen += tokens;
    progress.skipped += result.skippedSteps;
    progress.skippedInARow = result.steps > 0 ? 0 : progress.skippedInARow + result.skippedSteps;
    const kl = result.metrics["kl/ref"] ?? Number.NaN;
    progress.klMean = runningMean(progress.klMean, kl);
    const { target, horizon } = config.kl;
    const sequences = plain.total.numel;
    if (target !== null) progress.klCoef = adaptedCoef(update.klCoef, kl, { target, horizon, sequences });
    saver.isWhole = true;
    if (result.skippedSteps > 0) dump(folder.path, progress.step, made.value, images);

    // 6. Evaluation, on the same held-out images every time.
    let evaluation: Evaluation | null = null;
    let isBest = false;
    if (
      config.eval.every > 0 &&
      parts.evalImages > 0 &&
      (progress.step % config.eval.every === 0 || progress.step === total)
    ) {
      evaluation = await evaluate(config, parts);
      progress.last = evaluation;
      isBest = noteEvaluation(config, progress);
      clock.mark("time/eval");
    }
    for (const line of parts.unreadable.news()) log.say(line);

    // 7. The record.
    const times = clock.times();
    const spreads = rewardSpreads(plain);
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
        ...rolloutMetrics(rollout, plain, best, parts.terms, parts.tokenizer.codebookSize),
        ...(parts.reference !== null && { "kl/coef": update.klCoef }),
        ...(progress.klMean !== null && { "kl/ref_running": progress.klMean }),
        "optim/lr": config.optimizer.lr * update.lrFactor,
        "optim/skipped_total": progress.skipped,
        "progress/epoch": batch.cursor.epoch,
        "progress/images_seen": progress.imagesSeen,
        "progress/tokens_seen": progress.tokensSeen,
        "progress/unreadable": batches.unreadable.count,
        ...machineMetrics(seconds, { tokens, images: images.size(0) }, parts.device),
        ...times,
        ...(evaluation?.metrics ?? {}),
        ...(evaluation !== null && { "eval/hacking_alarm": hacked ? 1 : 0 }),
      },
      { count: tokens, spreads: { ...spreads, ...(evaluation?.spreads ?? {}) } },
    );
    clock = new Clock(); // what comes now belongs to the next record
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
    end = endOf(config, progress);
    if (end === "done" && options.signal?.aborted && progress.step < total) end = "interrupted";
    const isDue =
      progress.step % config.save.every === 0 || progress.step === total || end !== "done" || isBest;
    if (isDue) saver.save();
    clock.mark("time/save");
    const { nonFinite, nonFiniteInARow } = config.limits;
    const skipped = progress.skipped - skippedBefore;
    broken = termsNotFinite(spreads);
    if (skipped > nonFinite || progress.skippedInARow > nonFiniteInARow)
      throw notFiniteError(
        progress,
        `${progress.skippedInARow} steps in a row (${skipped} in all)`,
        folder.path,
        broken,
      );
  }
  if (progress.skipped > 0 && progress.updates === 0)
    throw notFiniteError(progress, `all ${progress.skipped} steps`, folder.path, broken);
  return { dir: folder.path, step: progress.step, end, first: progress.first, last: progress.last };
}

/** @param broken - terms of the last step's reward that were not finite. */
function notFiniteError(
  { step }: Progress,
  which: string,
  folder: string,
  broken: readonly string[],
): DivergedError {
  const remedy =
    broken.length > 0
      ? `reward.${broken.join(" and reward.")} gave NaN or Infinity: look at its values there, mend it, then resume`
      : "Lower optimizer.lr, then resume";
  return new DivergedError(
    `step ${step}: expected finite losses and gradients, got ${which} that were not and were skipped. ` +
      `Their batches are in ${folder}/dumps. ${remedy} with --force.`,
  );
}

function isResolved(cfg: TrainConfigInput | ResolvedConfig): cfg is ResolvedConfig {
  return "config" in cfg && "notes" in cfg;
}

/** The update of the algorithm, in the policy's precision. */
function updatePolicy(
  config: TrainConfig,
  parts: RunParts,
  batch: UpdateBatch & { trueCodes: Tensor },
  step: number,
  { klCoef, lrFactor, images, saver }: { klCoef: number; lrFactor: number; images: Tensor; saver: Saver },
): UpdateResult {
  const { policy, reference, valueHead, tokenizer, terms } = parts;
  const optimizer: Optimizer = {
    zeroGrad: () => parts.optimizer.zeroGrad(),
    step: (options) => {
      saver.isWhole = false;
      parts.optimizer.step(options);
    },
  };
  const chosen = algorithmOptions(config, reference, klCoef);
  using generator = stream(config.seed, "update", step);
  const more = { generator, lrFactor, trained: parts.trained.parameters() };
  const run = (): UpdateResult => {
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
      case "ste": {
        const { start = {}, context, trueCodes } = batch;
        if (!context) throw new Error("ste: expected a teacher-forced context, got none.");
        const drawn = { tokenizer, terms, seed: deriveSeed(config.seed, "ste", step) };
        const own = { images, start, context, trueCodes };
        return steUpdate(policy, optimizer, own, { ...chosen.options, ...more, ...drawn });
      }
    }
  };
  return parts.policyCast === null ? run() : autocast(parts.policyCast, run);
}

/** What the optimizer moves. */
function namedWeights({ trained, valueHead }: RunParts): (readonly [string, Tensor])[] {
  const head = valueHead?.namedParameters() ?? [];
  return [
    ...trained.namedParameters(),
    ...head.map(([name, value]) => [`value_head.${name}`, value] as const),
  ];
}

const termNames = (parts: RunParts): Set<string> => new Set(parts.terms.map((term) => term.name));

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
