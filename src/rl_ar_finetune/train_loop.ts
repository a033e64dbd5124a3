/**
 * The training loop: one function of numbered steps. The parts of a step are in `step.ts`, the state between
 * steps in `state.ts`, the keys in `config/train.ts`.
 */
import { join } from "node:path";
import { setImmediate } from "node:timers/promises";
import { plainConfig } from "../config/explain.js";
import { type ResolvedConfig, resolvedFor, type TrainConfigInput } from "../config/resolve.js";
import { trainKind } from "../config/train_kind.js";
import { spread } from "../data/index.js";
import { allGather, isAnyAborted, isFirst, requireSame } from "../distributed/index.js";
import { readCheckpoint } from "../run/checkpoint.js";
import { explainedTraining } from "../run/failure.js";
import { requireFiniteWeights } from "../run/finite.js";
import { openRunFolder, requireWritable, writeConfig } from "../run/folder.js";
import { busyWith, openLog, type TrainOptions } from "../run/log.js";
import { Clock, joined } from "../run/metrics.js";
import { byProcesses } from "../run/processes.js";
import { stream, type Tensor, tidy } from "../torch/index.js";
import { type Decoded, decodeFor } from "./decode.js";
import { type Evaluation, evaluate, isHacked } from "./evaluate.js";
import { scoresOf } from "./own_rewards.js";
import { deviceOf, openRunParts } from "./parts.js";
import { measurePrecision, reportPrecision } from "./precision.js";
import { judge } from "./rewards.js";
import {
  decodeBatchOf,
  isDueAt,
  keepsGraph,
  lrScheduleOf,
  needsCeiling,
  rolloutSamplingOf,
} from "./settings.js";
import {
  dump,
  endOf,
  identityOf,
  noteEvaluation,
  noteUpdate,
  requireFiniteSteps,
  restore,
  rollBack,
  Saver,
  WEIGHT_FILES,
} from "./state.js";
import {
  creditFor,
  drawFor,
  gatherRollout,
  machineMetrics,
  rewardSpreads,
  rolloutMetrics,
  type SamplePage,
  samplePage,
  sampleRows,
  termsNotFinite,
  updateFor,
} from "./step.js";

export { DivergedError } from "../run/failure.js";
export type { TrainOptions } from "../run/log.js";

/** How a run ended. */
export interface TrainResult {
  readonly dir: string;
  /** Iterations that are done. */
  readonly step: number;
  /**
   * `patience`: no new best evaluation for `eval.patience` evaluations; `kl`: the KL divergence from the reference
   * exceeded `kl.stop`; `alarm`: an evaluation showed reward hacking.
   */
  readonly end: "done" | "interrupted" | "alarm" | "patience" | "kl";
  /** Before the first iteration and after the last, where there was an evaluation. */
  readonly first: Evaluation | null;
  readonly last: Evaluation | null;
}

/**
 * Fine-tune a policy: roll out, decode, reward, update, until the iterations are done.
 *
 * All random numbers follow from the seed and the iteration, so a run that is killed and resumed has the same result as
 * one that is not, bit for bit on a CPU.
 *
 * @param cfg - any part of a {@link TrainConfig}, snake_case keys and the names of the original description included,
 *   or a whole one from `resolveConfig`.
 * @throws ConfigError for a configuration that cannot be used, RangeError for data or models that cannot, DivergedError.
 */
export function trainRlLoop(
  cfg: TrainConfigInput | ResolvedConfig,
  options: TrainOptions = {},
): Promise<TrainResult> {
  return explainedTraining(trainKind.memory, async () => {
    const resolved = resolvedFor("trainRlLoop", cfg);
    const { rollout, train } = resolved.config;
    const where = { timeout: train.timeout, device: deviceOf(resolved.config) };
    const batch = { key: "rollout.images", images: rollout.images };
    return await byProcesses(where, batch, plainConfig(resolved.config), () => run(resolved, options));
  });
}

async function run({ config, notes }: ResolvedConfig, options: TrainOptions): Promise<TrainResult> {
  // 1. The run's folder, and whether there is a run in it to go on with.
  using folder = await openRunFolder(config, { ...(options.ask && { ask: options.ask }) });
  if (config.save.ckptPath !== null && isFirst())
    requireWritable("save.ckptPath", config.save.ckptPath, WEIGHT_FILES);
  const checkpoints = join(folder.path, "checkpoints");
  using saved = folder.isResumed ? readCheckpoint(checkpoints) : null;
  if (saved === null && isFirst()) writeConfig(folder.path, config);

  // 2. The parts, and their state where the run goes on.
  using parts = await busyWith("opening models and images", options, () => openRunParts(config));
  const { progress, notes: changes } = restore(config, parts, saved, options.force ?? false);
  saved?.dispose(); // as large as all of the run's state
  requireSame(identityOf(parts, progress.step));
  const total = config.train.iters;
  const skippedBefore = progress.skipped; // the user has fixed the cause before resuming, so the count starts again
  const limits = { ...config.limits, total, skippedBefore, folder: folder.path };
  const about = [...notes, ...changes, ...parts.notes];
  using log = openLog(folder.path, {
    total,
    config: plainConfig(config),
    log: config.log,
    saved,
    notes: about,
    options,
  });
  const lrFactor = lrScheduleOf(config);
  using batches = disposable(parts.batchesFrom(progress.cursor, progress.passedOver));
  using saver = new Saver(config, parts, progress, { log, folder: checkpoints, batches });

  const show = async (name: string, { page, about }: SamplePage): Promise<void> => {
    await log.image(progress.step, name, page, about);
    page.dispose();
  };
  const showEval = config.log.imagesEvery > 0 ? (page: SamplePage) => show("eval", page) : undefined;
  const evaluateNow = (): Promise<Evaluation> =>
    evaluate(config, parts, { step: progress.step, folder: folder.path, show: showEval });

  // 3. The evaluation before the first iteration.
  if (saved === null && config.eval.every > 0 && parts.evalImages > 0) {
    log.busy("evaluating before the first step");
    progress.first = await evaluateNow();
    progress.last = progress.first;
    log.step(0, progress.first.metrics, { spreads: progress.first.spreads });
    if (config.alarm.action === "rollback") {
      noteEvaluation(config, progress); // so that a rollback is possible
      saver.save();
    }
  }
  // A finished run stays finished, unless it is forced.
  let end: TrainResult["end"] = options.force ? "done" : endOf(config, progress);
  let isNew = true;
  let clock = new Clock();
  if (progress.step < total && end === "done") log.busy("the first step");
  while (progress.step < total && end === "done") {
    const step = progress.step;

    // 4. A batch of images and their codes; G sequences each; the one decode that every reward term reads.
    using batch = await batches.next();
    clock.mark("time/data");
    const { images } = batch;
    const all = batch.place?.of ?? batch.ids.length; // images of all processes
    using drawn = owned(
      tidy(() => {
        using generator = stream(config.seed, "rollout", step);
        return drawFor(config, parts, batch, {
          iteration: step,
          numGenerations: config.rollout.numGenerations,
          sampling: rolloutSamplingOf(config),
          generator,
          keepGraph: keepsGraph(config),
        });
      }),
    );
    clock.mark("time/rollout");
    const { trueCodes: own, rollout: mine } = drawn.value;
    const about = { batch, trueCodes: own, step: step + 1 };
    using decoded = await decodeFor(config, parts, { ...about, codes: mine.codes });
    using best = own !== null && needsCeiling(config, step) ? tidy(() => own.unsqueeze(1)) : null;
    using ceiling = best && (await decodeFor(config, parts, { ...about, codes: best }));
    clock.mark("time/decode");
    const at = { folder: folder.path };
    const judged = await scoresOf(parts.terms, decoded, decoded.sent, at);
    const bestJudged = ceiling && (await scoresOf(parts.terms, ceiling, ceiling.sent, at));
    using made = owned(
      tidy(() => ({
        ...creditFor(config, parts, judged, mine.tokens.size(2), all),
        best: bestJudged && judge(parts.terms, bestJudged, { batch: all }).plain,
        // From here on the batch is that of all processes, except for images, samples and hidden states.
        ...gatherRollout(drawn.value, all),
      })),
    );
    if (isNew) {
      const cost = measurePrecision(parts, judged, mine.codes, decodeBatchOf(config));
      if (cost !== null) log.say(reportPrecision(config, cost, options.force ?? false));
      isNew = false;
    }
    const { rollout, trueCodes, rewards, plain } = made.value;
    clock.mark("time/reward");

    // 5. The update.
    const tokens = rollout.tokens.numel;
    const { entropyTarget } = config.update;
    const entropy = entropyTarget === null ? null : tidy(() => Number(rollout.entropy.mean().item()));
    const isAbove = entropy !== null && entropyTarget !== null && entropy > entropyTarget;
    const update = {
      klCoef: progress.klCoef,
      entropyCoef: isAbove ? 0 : progress.entropyCoef,
      lrFactor: lrFactor(step),
      images,
      changing: () => {
        saver.isWhole = false;
      },
    };
    const rewarded = { ...rollout, rewards, ...(trueCodes && { trueCodes }) };
    const result = updateFor(config, parts, rewarded, step, update);
    if (result.steps > 0) {
      requireFiniteWeights(parts.optimizer, step + 1);
      parts.ema?.update();
    }
    clock.mark("time/update");
    noteUpdate(config, progress, result, {
      cursor: batch.cursor,
      images: all,
      tokens,
      sequences: plain.total.numel,
      entropy,
    });
    saver.isWhole = true;
    if (result.skippedSteps > 0) {
      tidy(() =>
        dump(folder.path, progress.step, { ...rewarded, ...(images && { images: allGather(images, all) }) }),
      );
    }

    // 6. Evaluation, on the same held-out images every time.
    let evaluation: Evaluation | null = null;
    let isBest = false;
    let backAt: number | null = null;
    if (parts.evalImages > 0 && isDueAt(progress.step, config.eval.every, total)) {
      evaluation = await evaluateNow();
      progress.last = evaluation;
      const names = new Set(parts.terms.map(({ name }) => name));
      progress.isGamed = progress.first !== null && isHacked(progress.first, evaluation, names);
      if (progress.isGamed && config.alarm.action === "rollback")
        backAt = rollBack(parts, progress, checkpoints);
      else isBest = noteEvaluation(config, progress);
      clock.mark("time/eval");
    }
    for (const line of parts.unreadable.news()) log.say(line);

    // 7. The log.
    const times = clock.times();
    const spreads = rewardSpreads(plain);
    const seconds = Object.values(times).reduce((sum, part) => sum + part, 0);
    if (evaluation !== null && progress.isGamed) {
      const back =
        backAt === null ? "" : `back to the weights of step ${backAt}, the best by ${config.eval.best}; `;
      log.say(
        "the reward rose while every metric outside it fell since the start: " +
          `${back}look at the samples, raise update.auxCe or kl.coef`,
      );
    }
    log.step(
      progress.step,
      joined(
        result.metrics,
        rolloutMetrics(rollout, plain, made.value.best, parts.terms, parts.tokenizer.codebookSize),
        {
          ...(parts.reference !== null && { "kl/coef": update.klCoef }),
          ...(entropy !== null && { "policy/entropy_coef": update.entropyCoef }),
          ...(progress.klMean !== null && { "kl/ref_running": progress.klMean }),
          "optim/lr": config.optimizer.lr * update.lrFactor,
          "optim/skipped_total": progress.skipped,
          "progress/epoch": batch.cursor.epoch,
          "progress/images_seen": progress.imagesSeen,
          "progress/tokens_seen": progress.tokensSeen,
          "progress/unreadable": batches.unreadable.count,
        },
        machineMetrics(seconds, { tokens, images: all }, parts.device),
        times,
        evaluation === null ? {} : { ...evaluation.metrics, "eval/hacking_alarm": progress.isGamed ? 1 : 0 },
        backAt === null ? {} : { "eval/rolled_back_to": backAt },
      ),
      { count: tokens, spreads: { ...spreads, ...(evaluation?.spreads ?? {}) } },
    );
    clock = new Clock(); // time from here on belongs to the next step of the log
    if (isDueAt(progress.step, config.log.imagesEvery, total)) {
      const given = trueCodes === null ? 0 : trueCodes.size(1) - rollout.tokens.size(2);
      const { ids, classes } = batch;
      const shown = { ids, classes, images, samples: decoded.samples, rewards: plain.total, given };
      const places = spread(ids.length, config.log.imageRows);
      const reconstruct = (at: Tensor): Tensor => (ceiling as Decoded).samples.indexSelect(0, at);
      await show("train", samplePage(sampleRows(parts, shown, places, reconstruct), shown));
    }

    // 8. The checkpoint, and whether to go on.
    await setImmediate(); // lets Node handle signals such as Ctrl-C: with batches that are read ahead nothing else waits
    end = endOf(config, progress);
    if (end === "done" && progress.step < total && isAnyAborted(options.signal)) end = "interrupted";
    const isDue =
      progress.step % config.save.every === 0 ||
      progress.step === total ||
      end !== "done" ||
      isBest ||
      backAt !== null;
    if (isDue) saver.save();
    clock.mark("time/save");
    requireFiniteSteps(progress, limits, termsNotFinite(spreads, parts.terms));
  }
  return { dir: folder.path, step: progress.step, end, first: progress.first, last: progress.last };
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
