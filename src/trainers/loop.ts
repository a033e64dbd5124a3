/**
 * The training loop of the supervised trainers (policy, tokenizer, classifier): folder, log, checkpoints, resuming,
 * evaluation. It calls the update of a task, which is a parameter; the other files of this folder define the tasks.
 */

import { basename, join } from "node:path";
import { setImmediate } from "node:timers/promises";
import { plainConfig } from "../config/explain.js";
import type { FitConfig } from "../config/fit.js";
import { ConfigError, type ResolvedConfig } from "../config/resolve.js";
import type { Cursor, UnreadableImages } from "../data/index.js";
import { isAnyAborted, isFirst, requireSame, size } from "../distributed/index.js";
import type { StateDict } from "../nn/index.js";
import { deviceOf } from "../rl_ar_finetune/parts.js";
import { isDueAt } from "../rl_ar_finetune/settings.js";
import { machineMetrics } from "../rl_ar_finetune/step.js";
import {
  type BestCheckpoint,
  type LoadedCheckpoint,
  readCheckpoint,
  saveCheckpoint,
  writeBest,
} from "../run/checkpoint.js";
import { short } from "../run/console.js";
import { environment } from "../run/environment.js";
import { DivergedError, explainedTraining } from "../run/failure.js";
import { openRunFolder, writeConfig } from "../run/folder.js";
import type { Log, TrainOptions } from "../run/log.js";
import { busyWith, openLog } from "../run/log.js";
import { Clock } from "../run/metrics.js";
import type { PlainData } from "../run/plain_data.js";
import { byProcesses } from "../run/processes.js";
import { type Effects, forcedNotes, JUDGES, requireSameRun } from "../run/resume.js";
import { DTYPES, noGrad, requireObject, saveSafetensors, type Tensor, tidy } from "../torch/index.js";

export type { FitConfig } from "../config/fit.js";

/** The part of a supervised run that differs between the trainers: network, update, evaluation and state. */
export interface FitTask extends Disposable {
  /** Total number of updates; `updatesOf` computes it. */
  readonly total: number;
  /** Fingerprint of the training images; null for a program's loader. */
  readonly fingerprint: string | null;
  /** Fingerprints of models that are used but not trained, by role. */
  readonly frozen?: Readonly<Record<string, string>>;
  /** Metadata of model.safetensors, such as `images` and `classes`. */
  readonly about: { readonly [name: string]: PlainData | undefined };
  /** Lines for the user, before the first update. */
  readonly notes?: readonly string[];
  /** Images that could not be read so far. */
  readonly unreadable?: UnreadableImages;
  /**
   * One update. With several processes, each process computes its own images, and the result is that of all images. All
   * random numbers come from `stream(seed, name, step)`.
   *
   * @param step - counted from 0.
   * @param clock - takes marks such as `time/data`; the time after the last mark is `time/other`.
   * @param changing - call it before the first weight changes: after a failure before this call, the state can still be
   *   saved.
   */
  step(step: number, clock: Clock, changing?: () => void): Promise<FitStep>;
  /**
   * Metrics `eval/...` on held-out images, the same each time, with the EMA of the weights if there is one; `{}` without
   * held-out images.
   */
  evaluate(): Promise<Readonly<Record<string, number>>>;
  /** A picture for `samples/`: float `[1, 3, H, W]` in [-1, 1]. The loop frees it. */
  page(): Promise<{ page: Tensor; about: FitTask["about"] } | null>;
  /**
   * For a checkpoint: weights, optimizer, EMA, and the position in the images. The task keeps ownership of the tensors.
   */
  state(): FitState;
  /** Restore a state of {@link FitTask.state}; its tensors are copied. */
  load(state: FitState): void;
  /** The result of the run so far. */
  model(): FitModel;
}

/** The result of an update. */
export interface FitStep {
  /** Such as `train/loss`, `optim/lr` and `optim/grad_norm`; the loop adds `perf/tokens_per_s`. */
  readonly metrics: Readonly<Record<string, number>>;
  readonly images: number;
  /** Number of predicted codes, if any. */
  readonly tokens?: number;
  /** Whether the update was skipped because its loss or gradient is not finite. */
  readonly skipped: boolean;
  /** Where the images of the next update begin. */
  readonly cursor: Cursor;
}

/** What `model.safetensors` holds. */
export interface FitModel {
  readonly tensors: Readonly<StateDict>;
  /** Whether the tensors are a moving average of the weights. */
  readonly isAverage: boolean;
  /** The configuration from which the network can be built again. */
  readonly config: PlainData;
}

/** What a checkpoint holds of a task. */
export interface FitState {
  /** State dicts by part, such as `model`, `ema`, `optimizer`; names in snake_case. */
  readonly tensors: Readonly<Record<string, Readonly<StateDict>>>;
  readonly values: { readonly [name: string]: PlainData | undefined };
}

/** How a run ended. */
export interface FitResult {
  readonly dir: string;
  /** Updates that are done. */
  readonly step: number;
  readonly end: "done" | "interrupted" | "patience";
  /** The file with the result: the weights of the best evaluation, or of the last update where there was none. */
  readonly model: string;
  /** Metrics of the first evaluation, of the last, and of the one at which the model was saved. */
  readonly first: Readonly<Record<string, number>> | null;
  readonly last: Readonly<Record<string, number>> | null;
  readonly best: Readonly<Record<string, number>> | null;
}

/** Callbacks for a task whose creation takes long. */
export interface FitOpening {
  /** Show a line to the user. */
  say(text: string): void;
  /** Aborted when the user interrupts the run; `signal.throwIfAborted()` then ends the run before its first update. */
  readonly signal?: AbortSignal | undefined;
}

/** State of the loop itself. */
interface FitProgress {
  step: number;
  skipped: number;
  skippedInARow: number;
  evaluationsSinceBest: number;
  imagesSeen: number;
  /** The error of each image that could not be read, by the image's id. */
  passedOver: Readonly<Record<string, string>>;
  /** Seconds of all updates and evaluations, without interruptions. */
  seconds: number;
  first: Metrics | null;
  last: Metrics | null;
  best: { readonly step: number; readonly value: number; readonly metrics: Metrics } | null;
  /** The checkpoint of the best evaluation; a checkpoint's manifest holds it. */
  checkpoint: BestCheckpoint | null;
}

type Metrics = Readonly<Record<string, number>>;

/**
 * Train a task until all its updates are done.
 *
 * All random numbers follow from the seed and the update, so a run that is killed and resumed gives the same result,
 * bit for bit on a CPU. `<run>/model.safetensors` holds the weights of the best evaluation so far, and is never
 * half-written; without evaluations it holds those of the last update.
 *
 * @param resolved - as `resolveConfig(sources, kind)` gives it.
 * @param open - makes the task; called once, after the folder is known to be free.
 * @throws ConfigError for a folder or a resumed run that does not fit, RangeError for data or models that cannot be
 *   used, DivergedError.
 */
export async function fitLoop<T extends FitConfig>(
  resolved: ResolvedConfig<T>,
  open: (opening: FitOpening) => Promise<FitTask>,
  options: TrainOptions = {},
): Promise<FitResult> {
  requireObject("fitLoop", resolved, "a configuration from resolveConfig");
  requireObject("fitLoop", resolved.kind, "a configuration from resolveConfig");
  const { kind, config } = resolved;
  return await explainedTraining(kind.memory, () => {
    const where = { timeout: config.train.timeout, device: deviceOf(config) };
    const batch = { key: "train.batch", images: config.train.batch };
    return byProcesses(where, batch, plainConfig(config, kind), () => run(resolved, open, options));
  });
}

async function run<T extends FitConfig>(
  resolved: ResolvedConfig<T>,
  open: (opening: FitOpening) => Promise<FitTask>,
  options: TrainOptions,
): Promise<FitResult> {
  // 1. The run's folder, and the checkpoint if there is a run to resume in it.
  const { kind, config, notes } = resolved;
  using folder = await openRunFolder(config, { kind, ...(options.ask && { ask: options.ask }) });
  const checkpoints = join(folder.path, "checkpoints");
  using saved = folder.isResumed ? readCheckpoint(checkpoints) : null;
  if (saved === null && isFirst()) writeConfig(folder.path, config, kind);

  // 2. The task, and its state if a run is resumed.
  using task = await busyWith("opening models and images", options, (say) =>
    openedUnlessAborted(() => open({ say, signal: options.signal }), options),
  );
  if (task === null) return untouched(folder.path, saved);
  const { total } = task;
  const { progress, notes: changes } = restore(resolved, task, saved, options.force ?? false);
  saved?.dispose(); // as large as all of the run's state
  requireSame({
    "images to train on": task.fingerprint,
    "frozen weights": task.frozen ?? {},
    "update to go on from": progress.step,
  });
  const skippedBefore = progress.skipped; // the user has fixed the cause before resuming, so the count starts again
  const about = [...notes, ...changes, ...(task.notes ?? [])];
  using log = openLog(folder.path, {
    total,
    config: plainConfig(config, kind),
    log: config.log,
    saved,
    notes: about,
    options,
  });
  const model = new ResultFile(join(folder.path, "model.safetensors"), resolved, task);
  using saver = new Saver(resolved, task, progress, { log, folder: checkpoints, model });

  // 3. The evaluation before the first update.
  if (saved === null && config.eval.every > 0) {
    const clock = new Clock();
    log.busy("evaluating before the first update");
    const metrics = await task.evaluate();
    progress.seconds += clock.seconds();
    if (Object.keys(metrics).length > 0) {
      progress.first = metrics;
      log.step(0, metrics);
      if (judge(config, progress, metrics) && isFirst()) model.write(progress);
    }
  }
  const isPatient = (): boolean =>
    config.eval.patience === 0 || progress.evaluationsSinceBest < config.eval.patience;
  // A finished run stays finished, unless it is forced.
  let end: FitResult["end"] = isPatient() || options.force ? "done" : "patience";
  if (progress.step < total && end === "done") log.busy("the first update");
  while (progress.step < total && end === "done") {
    const clock = new Clock();

    // 4. The update.
    const done = await task.step(progress.step, clock, () => {
      saver.isWhole = false;
    });
    progress.step++;
    progress.imagesSeen += done.images;
    progress.skipped += done.skipped ? 1 : 0;
    progress.skippedInARow = done.skipped ? progress.skippedInARow + 1 : 0;
    saver.isWhole = true;
    const isLast = progress.step === total;
    const seconds = clock.seconds();

    // 5. Evaluation, on the same held-out images every time.
    let evaluation: Metrics | null = null;
    let isBest = false;
    if (isDueAt(progress.step, config.eval.every, total)) {
      clock.mark("time/other");
      log.busy(`evaluating after update ${progress.step}`);
      const metrics = await task.evaluate();
      clock.mark("time/eval");
      if (Object.keys(metrics).length > 0) {
        evaluation = metrics;
        isBest = judge(config, progress, metrics);
      }
    }
    progress.seconds += clock.seconds();
    for (const line of task.unreadable?.news() ?? []) log.say(line);
    progress.passedOver = { ...progress.passedOver, ...task.unreadable?.byId };

    // 6. The record.
    log.step(
      progress.step,
      {
        ...done.metrics,
        "optim/skipped_total": progress.skipped,
        "progress/epoch": done.cursor.epoch,
        "progress/images_seen": progress.imagesSeen,
        ...(task.unreadable && { "progress/unreadable": Object.keys(progress.passedOver).length }),
        ...machineMetrics(seconds, done, deviceOf(config)),
        ...clock.times(),
        ...evaluation,
      },
      { count: done.images },
    );
    if (isDueAt(progress.step, config.log.imagesEvery, total)) {
      const made = await task.page();
      if (made !== null) {
        await log.image(progress.step, "eval", made.page, made.about);
        made.page.dispose();
      }
    }

    // 7. The result so far, the checkpoint, and whether the run ends.
    await setImmediate(); // lets Node handle signals such as Ctrl-C: a task that reads no files never waits
    if (!isPatient()) end = "patience";
    else if (!isLast && isAnyAborted(options.signal)) end = "interrupted";
    const isDue = progress.step % config.save.every === 0 || isLast || end !== "done" || isBest;
    if (isDue) saver.save();
    const { nonFinite, nonFiniteInARow } = config.limits;
    const skipped = progress.skipped - skippedBefore;
    if (skipped > nonFinite || progress.skippedInARow > nonFiniteInARow)
      throw notFiniteError(progress, `${progress.skippedInARow} updates in a row (${skipped} in all)`);
  }
  if (progress.step > 0 && progress.skipped === progress.step) throw notFiniteError(progress, "all updates");
  // After an interruption the file, if there is one, may be of an earlier update than the checkpoint: its line says which.
  if (end !== "interrupted" || progress.best !== null) log.say(model.summary(progress));
  const { step, first, last, best } = progress;
  return { dir: folder.path, step, end, model: model.path, first, last, best: best?.metrics ?? null };
}

function notFiniteError({ step }: FitProgress, which: string): DivergedError {
  return new DivergedError(
    `step ${step}: expected finite losses and gradients, got ${which} that were not and were skipped. ` +
      "Lower optimizer.lr, or raise optimizer.warmup; then resume with --force.",
  );
}

/** The task, or null when the run was interrupted while it was opened. */
async function openedUnlessAborted(
  open: () => Promise<FitTask>,
  { signal }: TrainOptions,
): Promise<FitTask | null> {
  try {
    return await open();
  } catch (error) {
    if (signal?.aborted && error === signal.reason) return null;
    throw error;
  }
}

/** The result of a run that was interrupted before its next update. */
function untouched(dir: string, saved: LoadedCheckpoint | null): FitResult {
  const none = { first: null, last: null, best: null };
  const { first, last, best } = (saved?.values.progress ?? none) as unknown as FitProgress;
  const model = join(dir, "model.safetensors");
  return { dir, step: saved?.step ?? 0, end: "interrupted", model, first, last, best: best?.metrics ?? null };
}

/** Notes for keys changed with `--force` whose effect is not only that the new value is used from now on. */
const EFFECTS: Effects = [
  [/^ema\.decay$/, "counts from now on; an average that is new starts from the present weights"],
  [JUDGES, "counts from now on; earlier evaluations are not compared with any more"],
];

/**
 * Restore the task from a checkpoint.
 *
 * @returns the progress of the run, and lines for the user on what `force` changes.
 */
function restore<T extends FitConfig>(
  { kind, config }: ResolvedConfig<T>,
  task: FitTask,
  saved: LoadedCheckpoint | null,
  force: boolean,
): { progress: FitProgress; notes: string[] } {
  if (saved === null) {
    const counts = { skipped: 0, skippedInARow: 0, evaluationsSinceBest: 0, imagesSeen: 0, seconds: 0 };
    return {
      progress: { step: 0, ...counts, passedOver: {}, first: null, last: null, best: null, checkpoint: null },
      notes: [],
    };
  }
  const { values, tensors, step } = saved;
  const identity = {
    config: values.config as Record<string, unknown>,
    data: (values.data as string | null) ?? null,
    frozen: (values.frozen ?? {}) as Record<string, string>,
  };
  const now = { config, kind, data: task.fingerprint, frozen: task.frozen ?? {} };
  const changes = requireSameRun(identity, now, { force });
  task.load({ tensors, values: values.task as FitState["values"] });
  const isComparable = changes.parts.length === 0 && !changes.config.some(({ path }) => JUDGES.test(path));
  return {
    progress: {
      ...(values.progress as unknown as FitProgress),
      step,
      skippedInARow: 0, // the user has fixed the cause
      checkpoint: saved.best,
      ...(!isComparable && { best: null, checkpoint: null, evaluationsSinceBest: 0 }),
    },
    notes: forcedNotes(changes, step, EFFECTS),
  };
}

/** Record an evaluation. @returns whether it is the best so far. */
function judge({ eval: { best, mode } }: FitConfig, progress: FitProgress, metrics: Metrics): boolean {
  const value = metrics[best];
  if (value === undefined) {
    const names = Object.keys(metrics).join(", ");
    throw new ConfigError([`eval.best: expected one of ${names}, got ${best}. Name one of these.`]);
  }
  progress.last = metrics;
  const before = progress.best?.value;
  const isBetter = before === undefined || (mode === "max" ? value > before : value < before);
  const isBest = Number.isFinite(value) && isBetter;
  // The evaluation before the first update starts the count of patience and is not part of it.
  progress.evaluationsSinceBest = isBest || progress.step === 0 ? 0 : progress.evaluationsSinceBest + 1;
  if (isBest) progress.best = { step: progress.step, value, metrics };
  return isBest;
}

/** What a {@link Saver} uses beside the task and the progress. */
interface SaveContext<T extends FitConfig> {
  readonly log: Log;
  /** Folder of the checkpoints. */
  readonly folder: string;
  readonly model: ResultFile<T>;
}

/**
 * Writes the result and the checkpoints of a run. If the run fails, it also saves the state after the last complete
 * update. Declare it with `using`.
 */
class Saver<T extends FitConfig> implements Disposable {
  /** False while an update has changed only some of the weights: that state is not saved. */
  isWhole = true;
  #savedStep: number;
  readonly #resolved: ResolvedConfig<T>;
  readonly #task: FitTask;
  readonly #progress: FitProgress;
  readonly #context: SaveContext<T>;

  constructor(resolved: ResolvedConfig<T>, task: FitTask, progress: FitProgress, context: SaveContext<T>) {
    this.#resolved = resolved;
    this.#task = task;
    this.#progress = progress;
    this.#context = context;
    this.#savedStep = progress.step;
    // A run that was killed after its best checkpoint may not have written this.
    if (progress.step > 0 && isFirst()) writeBest(context.folder, progress.checkpoint);
  }

  /**
   * The result is written first: a run that is killed in between resumes from the previous checkpoint and writes it again.
   */
  save(): void {
    const { kind, config } = this.#resolved;
    const [task, progress] = [this.#task, this.#progress];
    const { log, folder, model } = this.#context;
    const { step, checkpoint, ...rest } = progress;
    const isBest = progress.best?.step === step;
    this.#savedStep = tidy(() => {
      const { tensors, values } = task.state(); // with a sharded optimizer, the first process gets the whole state
      if (!isFirst()) return step;
      if (isBest || progress.best === null) model.write(progress);
      log.flush();
      const best = isBest ? { metric: config.eval.best, value: progress.best?.value as number } : checkpoint;
      const path = saveCheckpoint(
        folder,
        {
          step,
          tensors,
          values: {
            config: plainConfig(config, kind) as PlainData,
            data: task.fingerprint,
            frozen: task.frozen ?? {},
            task: values,
            progress: rest as unknown as PlainData,
            log: log.state(),
          },
        },
        { keep: config.save.keep, best },
      );
      if (best !== null) progress.checkpoint = { name: basename(path), step, ...best };
      return step;
    });
  }

  [Symbol.dispose](): void {
    const { step } = this.#progress;
    if (!this.isWhole || step <= this.#savedStep) return;
    // After a failure the other processes do not take part in gathering a sharded state.
    if (this.#resolved.config.train.shardOptimizer && size() > 1) return;
    this.save();
    this.#context.log.say(`saved after step ${step}, to go on with run.ifExists=resume`);
  }
}

/**
 * The result of a run: weights, the configuration from which the network can be built again, and how they were trained.
 */
class ResultFile<T extends FitConfig> {
  readonly path: string;
  readonly #resolved: ResolvedConfig<T>;
  readonly #task: FitTask;
  readonly #commit: PlainData;

  constructor(path: string, resolved: ResolvedConfig<T>, task: FitTask) {
    this.path = path;
    this.#resolved = resolved;
    this.#task = task;
    const { commit } = environment();
    this.#commit = commit === null ? null : `${commit.id}${commit.isDirty ? " with changes" : ""}`;
  }

  write({ step, seconds, best }: FitProgress): void {
    const { kind, config } = this.#resolved;
    const { tensors, isAverage, config: built } = this.#task.model();
    const training = {
      command: kind.name,
      seed: config.seed,
      data: { source: config.data.source, fingerprint: this.#task.fingerprint, size: config.data.size },
      ...this.#task.about,
      steps: step,
      seconds: Math.round(seconds),
      commit: this.#commit,
      metrics: best?.metrics ?? {},
    };
    const metadata = {
      config: JSON.stringify(built),
      format: "pt",
      training: JSON.stringify(training),
      ...(isAverage && { weights: "ema" }),
    };
    noGrad(() =>
      tidy(() => {
        const entries = Object.entries(tensors).map(([name, tensor]) => {
          return [name, DTYPES[tensor.dtype].isFloat ? tensor.to({ dtype: "float32" }) : tensor] as const;
        });
        saveSafetensors(this.path, Object.fromEntries(entries), metadata);
      }),
    );
  }

  /** One line with the file and its metrics. */
  summary({ step, best }: FitProgress): string {
    if (best === null) return `model: ${this.path} (update ${step}; nothing was evaluated)`;
    const numbers = Object.entries(best.metrics).map(([name, value]) => `${name} ${short(value)}`);
    return `model: ${this.path} (update ${best.step}: ${numbers.join(", ")})`;
  }
}
