/**
 * The training loop: one function of numbered steps. A step's rollout is in `generate.ts`, its update in `step.ts`, its record
 * in `record.ts`, the state between steps in `state.ts`, the keys in `config/train.ts`.
 */
import { join } from "node:path";
import { setImmediate } from "node:timers/promises";
import { plainConfig } from "../config/explain.js";
import { type ResolvedConfig, resolvedFor, type TrainConfigInput } from "../config/resolve.js";
import { trainKind } from "../config/train_kind.js";
import { isAnyAborted, isFirst, requireSame } from "../distributed/index.js";
import { readCheckpoint } from "../run/checkpoint.js";
import { explainedTraining } from "../run/failure.js";
import { requireFiniteWeights } from "../run/finite.js";
import { openRunFolder, requireWritable, writeConfig } from "../run/folder.js";
import { busyWith, openLog, type TrainOptions } from "../run/log.js";
import { Clock } from "../run/metrics.js";
import { byProcesses } from "../run/processes.js";
import { type Evaluation, evaluate, isHacked } from "./evaluate.js";
import { generate } from "./generate.js";
import { deviceOf, openRunParts } from "./parts.js";
import { measurePrecision, reportPrecision } from "./precision.js";
import { logStep, pageOf } from "./record.js";
import { refreshReference } from "./reference.js";
import { decodeBatchOf, isDueAt, lrScheduleOf } from "./settings.js";
import {
  coefficientsFor,
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
import { Steering } from "./steering.js";
import { type SamplePage, termsNotFinite, updateFor } from "./step.js";

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

async function run({ config: begun, notes }: ResolvedConfig, options: TrainOptions): Promise<TrainResult> {
  // 1. The run's folder, and whether there is a run in it to go on with.
  using folder = await openRunFolder(begun, { ...(options.ask && { ask: options.ask }) });
  if (begun.save.ckptPath !== null && isFirst())
    requireWritable("save.ckptPath", begun.save.ckptPath, WEIGHT_FILES);
  const checkpoints = join(folder.path, "checkpoints");
  using saved = folder.isResumed ? readCheckpoint(checkpoints) : null;
  if (saved === null && isFirst()) writeConfig(folder.path, begun);

  // 2. The parts, and their state where the run goes on.
  using parts = await busyWith("opening models and images", options, () => openRunParts(begun));
  const { progress, notes: changes } = restore(begun, parts, saved, options.force ?? false);
  saved?.dispose(); // as large as all of the run's state
  requireSame(identityOf(parts, progress.step));
  const total = begun.train.iters;
  const skippedBefore = progress.skipped; // the user has fixed the cause before resuming, so the count starts again
  const limits = { ...begun.limits, total, skippedBefore, folder: folder.path };
  const about = [...notes, ...changes, ...parts.notes];
  using log = openLog(folder.path, {
    total,
    config: plainConfig(begun),
    log: begun.log,
    saved,
    notes: about,
    options,
  });
  const lrFactor = lrScheduleOf(begun);
  using batches = disposable(parts.batchesFrom(progress.cursor, progress.passedOver));
  using saver = new Saver(begun, parts, progress, { log, folder: checkpoints, batches });
  using steering = new Steering(begun, parts, progress, { log, folder: folder.path });

  const show = async (name: string, { page, about }: SamplePage): Promise<void> => {
    await log.image(progress.step, name, page, about);
    page.dispose();
  };
  const showEval = begun.log.imagesEvery > 0 ? (page: SamplePage) => show("eval", page) : undefined;
  const evaluateNow = (): Promise<Evaluation> =>
    evaluate(steering.config, parts, { step: progress.step, folder: folder.path, show: showEval });

  // 3. The evaluation before the first iteration.
  if (saved === null && begun.eval.every > 0 && parts.evalImages > 0) {
    log.busy("evaluating before the first step");
    progress.first = await evaluateNow();
    progress.last = progress.first;
    log.step(0, progress.first.metrics, { spreads: progress.first.spreads });
    if (begun.alarm.action === "rollback") {
      noteEvaluation(begun, progress); // so that a rollback is possible
      saver.save();
    }
  }
  // A finished run stays finished, unless it is forced.
  let end: TrainResult["end"] = options.force ? "done" : endOf(begun, progress);
  let isNew = true;
  let clock = new Clock();
  if (progress.step < total && end === "done") log.busy("the first step");
  while (progress.step < total && end === "done") {
    // 4. Changes that the user made in steer.yaml: weights, coefficients, the learning rate.
    if (steering.look()) saver.save();
    const { config } = steering;
    const { step } = progress;

    // 5. The rollout: images and their codes, G sequences each, decoded once for all reward terms.
    using generated = await generate(config, parts, batches, { step, folder: folder.path, clock });
    const { drawing, rewarded } = generated;
    if (isNew) {
      const cost = measurePrecision(parts, drawing.judged, drawing.codes, decodeBatchOf(config));
      if (cost !== null) log.say(reportPrecision(config, cost, options.force ?? false));
      isNew = false;
    }

    // 6. The update.
    const coefficients = coefficientsFor(config, progress, drawing.rollout);
    const more = { ...coefficients, lrFactor: lrFactor(step), images: drawing.batch.images };
    const changing = (): void => {
      saver.isWhole = false;
    };
    const result = updateFor(config, parts, rewarded, step, { ...more, changing });
    if (result.steps > 0) {
      requireFiniteWeights(parts.optimizer, step + 1);
      parts.ema?.update();
    }
    clock.mark("time/update");
    noteUpdate(config, progress, result, generated, coefficients.entropy);
    if (isDueAt(progress.step, config.kl.refreshEvery, 0)) refreshReference(parts, config.kl.refreshMix);
    saver.isWhole = true;
    if (result.skippedSteps > 0) dump(folder.path, progress.step, generated);

    // 7. Evaluation, on the same held-out images every time.
    let evaluation: Evaluation | null = null;
    let isBest = false;
    let backAt: number | null = null;
    if (parts.evalImages > 0 && isDueAt(progress.step, config.eval.every, total)) {
      log.busy(`evaluating after step ${progress.step}`);
      evaluation = await evaluateNow();
      progress.last = evaluation;
      progress.first ??= evaluation; // where earlier ones were of another reward
      progress.isGamed = isHacked(progress.first, evaluation, new Set(parts.terms.map(({ name }) => name)));
      if (progress.isGamed && config.alarm.action === "rollback")
        backAt = rollBack(config, parts, progress, checkpoints);
      else isBest = noteEvaluation(config, progress);
      clock.mark("time/eval");
    }
    for (const line of parts.unreadable.news()) log.say(line);

    // 8. The log.
    const unreadable = batches.unreadable.count;
    const done = {
      generated,
      coefficients,
      lrFactor: lrFactor(step),
      result,
      evaluation,
      backAt,
      unreadable,
      clock,
    };
    const spreads = logStep(log, config, parts, progress, done);
    clock = new Clock(); // time from here on belongs to the next step of the log
    if (isDueAt(progress.step, config.log.imagesEvery, total))
      await show("train", pageOf(config, parts, drawing));

    // 9. The checkpoint, and whether to go on.
    await setImmediate(); // lets Node handle signals such as Ctrl-C: with batches that are read ahead nothing else waits
    end = endOf(config, progress);
    const isStopped = isAnyAborted(options.signal) || progress.step === options.until;
    if (end === "done" && progress.step < total && isStopped) end = "interrupted";
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

function disposable<T extends { close(): void }>(value: T): T & Disposable {
  return Object.assign(value, { [Symbol.dispose]: () => value.close() });
}
