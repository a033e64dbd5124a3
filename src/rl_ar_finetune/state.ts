/**
 * The state of a run between iterations: progress and its parts in a checkpoint, saving and restoring. `train_loop.ts` decides when
 * to save.
 */
import { basename, join } from "node:path";
import { plainConfig } from "../config/explain.js";
import { ConfigError, type TrainConfig } from "../config/resolve.js";
import type { Steered } from "../config/steer.js";
import type { Batches, Cursor, PassedOver } from "../data/index.js";
import { allGather, isFirst, requireSame, size } from "../distributed/index.js";
import { type AdamWState, type StateDict, shapesText } from "../nn/index.js";
import {
  type BestCheckpoint,
  type LoadedCheckpoint,
  readCheckpoint,
  saveCheckpoint,
  writeBest,
} from "../run/checkpoint.js";
import { DivergedError } from "../run/failure.js";
import type { Log } from "../run/log.js";
import type { PlainData } from "../run/plain_data.js";
import { type Effects, forcedNotes, JUDGES, loadOptimizer, requireSameRun } from "../run/resume.js";
import { makeFolder } from "../torch/files.js";
import { noGrad, saveSafetensors, saveTorch, type Tensor, tidy } from "../torch/index.js";
import { policyMetadata } from "./builder.js";
import type { Evaluation } from "./evaluate.js";
import type { Generated } from "./generate.js";
import { adaptedCoef, adaptedEntropyCoef, runningMean } from "./losses.js";
import type { UpdateResult } from "./optimize.js";
import type { RunParts } from "./parts.js";
import type { Rollout } from "./rollout.js";
import { lrSchedule, lrScheduleOf } from "./settings.js";
import { meanDrawn } from "./step.js";

/** The progress of a run. */
export interface Progress {
  /** Iterations that are done. */
  step: number;
  /** Where the images of the next iteration begin. */
  cursor: Cursor | undefined;
  /** Images that could not be read. */
  passedOver: PassedOver;
  /** Steps of the optimizer, and those skipped because the loss or gradient was not finite. */
  updates: number;
  skipped: number;
  /** Since the last step of the optimizer, or since the run was resumed. */
  skippedInARow: number;
  evaluationsSinceBest: number;
  imagesSeen: number;
  tokensSeen: number;
  /** Coefficient of the KL divergence, which `kl.target` adapts. */
  klCoef: number;
  /** Weight of the entropy bonus, which `update.entropyTarget` adapts. */
  entropyCoef: number;
  /** Values that `steer.yaml` changed since the run began. */
  steered: Steered;
  /** Running mean of the KL divergence, for `kl.stop`. */
  klMean: number | null;
  /** Whether the last evaluation showed reward hacking. */
  isGamed: boolean;
  first: Evaluation | null;
  last: Evaluation | null;
  /** The best evaluation so far, with its checkpoint's name once that is saved; a manifest holds it. */
  best: (Omit<BestCheckpoint, "name"> & { readonly name?: string }) | null;
}

/** Notes for keys changed with `--force` whose effect is not only that the new value is used from now on. */
const EFFECTS: Effects = [
  [/^ema\.decay$/, "counts from now on; an average that is new starts from the present weights"],
  [
    /^kl\.refreshEvery$/,
    "counts from now on; a reference that was frozen starts from the run's first one, and so does one that is frozen now",
  ],
  [/^kl\.(path|estimator)$/, "counts from now on; the running mean for kl.stop starts anew"],
  [
    JUDGES,
    "counts from now on; the best checkpoint so far and the first evaluation are not compared with any more",
  ],
];

/** What a file of `save.ckptPath` may end in: the first is safetensors, the others are what `torch.load` reads. */
export const WEIGHT_FILES: readonly string[] = [".safetensors", ".pt", ".pth", ".ckpt", ".bin"];

/**
 * Restore the parts from a checkpoint.
 *
 * @returns the progress of the run, and notes for the user on what `force` changes.
 * @throws ConfigError when the resumed run would differ from the saved one, unless forced.
 */
export function restore(
  config: TrainConfig,
  parts: RunParts,
  saved: LoadedCheckpoint | null,
  force: boolean,
): { progress: Progress; notes: string[] } {
  const begun: Progress = {
    step: 0,
    cursor: undefined,
    passedOver: {},
    updates: 0,
    skipped: 0,
    skippedInARow: 0,
    evaluationsSinceBest: 0,
    imagesSeen: 0,
    tokensSeen: 0,
    klCoef: config.kl.coef,
    entropyCoef: config.update.entropyCoef,
    steered: {},
    klMean: null,
    isGamed: false,
    first: null,
    last: null,
    best: null,
  };
  if (saved === null) return { progress: begun, notes: [] };
  const { values, step } = saved;
  const before = values.config as unknown as TrainConfig;
  if (!force) requireSameRate(before, config, step);
  const identity = {
    config: values.config as Record<string, unknown>,
    data: (values.data as string | null) ?? null,
    frozen: values.frozen as Record<string, string>,
  };
  const now = { config, data: parts.fingerprint, frozen: parts.frozen };
  if (force) requireSameTrained(parts, saved); // its message is clearer than the names of the changed keys
  const changes = requireSameRun(identity, now, { force });
  if (!force) requireSameTrained(parts, saved);
  loadParts(config, parts, saved);
  const isChanged = (key: RegExp): boolean => changes.config.some(({ path }) => key.test(path));
  const isComparable = !isChanged(JUDGES) && !changes.parts.some((name) => !/^(reference|policy)/.test(name));
  const isOtherReference = isChanged(/^kl\.(path|estimator)$/) || changes.parts.includes("reference");
  const isSteered = config.kl.target !== null && before.kl.coef === config.kl.coef;
  const isSteadied =
    config.update.entropyTarget !== null && before.update.entropyCoef === config.update.entropyCoef;
  // Older checkpoints do not count the optimizer's steps.
  const progress: Progress = { ...begun, ...(values.progress as unknown as Progress) };
  if (!("updates" in (values.progress as object))) progress.updates = Number.NaN;
  return {
    progress: {
      ...progress,
      step,
      skippedInARow: 0, // the user has fixed the cause
      isGamed: !force && progress.isGamed,
      klCoef: isSteered ? progress.klCoef : config.kl.coef,
      ...(!isSteadied && { entropyCoef: config.update.entropyCoef }),
      // A key that is changed by force has the value of the configuration again.
      steered: Object.fromEntries(
        Object.entries(progress.steered).filter(([path]) =>
          changes.config.every((change) => change.path !== path),
        ),
      ),
      ...(isOtherReference && { klMean: null }),
      best: isComparable ? saved.best : null,
      ...(!isComparable && { first: null, evaluationsSinceBest: 0 }),
    },
    notes: forcedNotes(changes, step, EFFECTS),
  };
}

/** Load what a checkpoint holds of the parts that are trained. */
function loadParts({ kl }: TrainConfig, parts: RunParts, { tensors, values }: LoadedCheckpoint): void {
  const { policy, lora, trained, optimizer, ema, valueHead, reference, codeFrequency } = parts;
  if (lora === null) policy.loadStateDict(tensors.policy ?? {});
  else lora.loadStateDict(tensors.lora ?? {});
  const groups = values.optimizer as unknown as AdamWState["groups"];
  loadOptimizer(optimizer, { tensors: tensors.optimizer ?? {}, groups });
  valueHead?.loadStateDict(tensors.value_head ?? {});
  // Counts that did not exist so far start at 0.
  if (tensors.code_frequency !== undefined) codeFrequency?.loadStateDict(tensors.code_frequency);
  if (kl.refreshEvery > 0 && tensors.reference !== undefined) reference?.loadStateDict(tensors.reference);
  const averages = lora === null ? tensors.ema : tensors.lora_ema;
  // An EMA that did not exist so far starts from the current weights.
  const present = Object.fromEntries(
    trained.namedParameters().filter(([, { requiresGrad }]) => requiresGrad),
  );
  ema?.loadStateDict(
    averages === undefined
      ? { tensors: present, updates: 0 }
      : { tensors: averages, updates: values.emaUpdates as number },
  );
}

/**
 * Restore the weights, optimizer state, EMA, reference and adapted coefficients of the best checkpoint. The position in the
 * images, the iteration and the values from `steer.yaml` do not change.
 *
 * @param folder - of the checkpoints.
 * @returns the step of that checkpoint.
 * @throws Error when it is damaged.
 */
export function rollBack(config: TrainConfig, parts: RunParts, progress: Progress, folder: string): number {
  using best = readCheckpoint(folder, { which: "best" }) as LoadedCheckpoint;
  loadParts(config, parts, best);
  requireSame({ "step of the best checkpoint": best.step }); // no process writes before all have read
  const { klCoef, klMean, entropyCoef } = best.values.progress as unknown as Progress;
  const { kl, update } = config;
  Object.assign(progress, {
    klMean,
    ...(kl.target !== null && { klCoef }),
    ...(update.entropyTarget !== null && { entropyCoef }),
  });
  progress.evaluationsSinceBest++;
  return best.step;
}

/** @throws ConfigError when other parameters are trained than those whose values and moments were saved. */
function requireSameTrained({ trained, valueHead }: RunParts, { tensors, path }: LoadedCheckpoint): void {
  const shapesOf = (...states: (Readonly<StateDict> | undefined)[]): string =>
    shapesText(states.flatMap((state) => Object.entries(state ?? {})));
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

/** What all processes of a run must have in common before its first step, by names for the message. */
export function identityOf(parts: RunParts, step: number): Record<string, unknown> {
  const { trained, fingerprint, frozen } = parts;
  return {
    "images to train on": fingerprint,
    "frozen weights": frozen,
    "step to go on from": step,
    "trained weights": weightNorms(trained.parameters()),
  };
}

/** Norms of tensors, to detect whether two sets of weights differ. */
function weightNorms(tensors: readonly Tensor[]): number[] {
  if (size() === 1) return [];
  return tidy(() => tensors.map((tensor) => Number(noGrad(() => tensor.double().norm()).item())));
}

/** Coefficients of an update, and the rollout's mean entropy where `update.entropyTarget` steers by it. */
export interface Coefficients {
  readonly klCoef: number;
  /** 0 while the entropy is above its target. */
  readonly entropyCoef: number;
  /** Nats per token. */
  readonly entropy: number | null;
}

/** The coefficients of the update after a rollout. */
export function coefficientsFor(
  { update: { entropyTarget } }: TrainConfig,
  { klCoef, entropyCoef }: Progress,
  rollout: Pick<Rollout, "entropy" | "mask">,
): Coefficients {
  if (entropyTarget === null) return { klCoef, entropyCoef, entropy: null };
  const entropy = tidy(() => Number(meanDrawn(rollout.entropy, rollout).item()));
  return { klCoef, entropyCoef: entropy > entropyTarget ? 0 : entropyCoef, entropy };
}

/** Whether the configuration ends the run before its last iteration. */
export function endOf(
  { eval: { patience }, kl: { stop }, alarm: { action } }: TrainConfig,
  progress: Progress,
): "done" | "alarm" | "patience" | "kl" {
  if (action === "stop" && progress.isGamed) return "alarm";
  if (patience > 0 && progress.evaluationsSinceBest >= patience) return "patience";
  if (stop !== null && (progress.klMean ?? 0) > stop) return "kl";
  return "done";
}

/** What a {@link Saver} writes beside the parts and the progress. */
export interface SaveContext {
  readonly log: Log;
  /** Of the checkpoints. */
  readonly folder: string;
  readonly batches: Pick<Batches, "passedOver">;
}

/**
 * Writes the checkpoints of a run. If the run fails, it also saves the state after the last complete step. Declare it
 * with `using`.
 */
export class Saver implements Disposable {
  /** False while an update has changed only some of the weights: that state is not saved. */
  isWhole = true;
  #savedStep: number;
  readonly #config: TrainConfig;
  readonly #parts: RunParts;
  readonly #progress: Progress;
  readonly #context: SaveContext;

  constructor(config: TrainConfig, parts: RunParts, progress: Progress, context: SaveContext) {
    this.#config = config;
    this.#parts = parts;
    this.#progress = progress;
    this.#context = context;
    this.#savedStep = progress.step;
    // A run that was killed after its best checkpoint may not have written this.
    if (progress.step > 0 && isFirst()) writeBest(context.folder, progress.best as BestCheckpoint | null);
  }

  /** All processes call this together; the first writes. */
  save(): void {
    const { optimizer } = this.#parts;
    tidy(() => {
      const state = optimizer.stateDict();
      if (isFirst()) this.#write(state);
      else this.#savedStep = this.#progress.step;
    });
  }

  #write(optimizerState: AdamWState): void {
    const [config, progress] = [this.#config, this.#progress];
    const { ckptPath } = config.save;
    const { log, folder, batches } = this.#context;
    const { policy, lora, ema, valueHead, reference, codeFrequency } = this.#parts;
    const { fingerprint, frozen, source } = this.#parts;
    log.flush();
    const average = ema?.stateDict();
    const { step, best, ...rest } = progress;
    const metadata: Record<string, string> = {
      ...policyMetadata(policy),
      ...(source !== null && { classes: JSON.stringify(source.classNames) }),
    };
    tidy(() => {
      // `policy` and `ema` are whole policies, with adapters added to their weights.
      const whole = (): StateDict => ({ ...policy.stateDict(), ...lora?.mergedWeights() });
      const weights = whole();
      const averages = lora === null || ema === null ? average?.tensors : ema.withAverage(whole);
      const path = saveCheckpoint(
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
            ...(codeFrequency && { code_frequency: codeFrequency.stateDict() }),
            ...(config.kl.refreshEvery > 0 && reference && { reference: reference.stateDict() }),
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
          best,
          metadata: {
            policy: metadata,
            ...(averages && { ema: { ...metadata, weights: "ema" } }),
            ...(lora && { lora: { lora: JSON.stringify(config.ar.lora) } }),
          },
        },
      );
      this.#savedStep = step;
      if (best !== null) progress.best = { name: basename(path), ...best };
      if (ckptPath === null) return;
      if (/\.safetensors$/i.test(ckptPath)) saveSafetensors(ckptPath, weights, metadata);
      else saveTorch(ckptPath, { model: weights, config: JSON.parse(metadata.config as string) });
    });
  }

  [Symbol.dispose](): void {
    const { step } = this.#progress;
    if (!this.isWhole || step <= this.#savedStep) return;
    // After a failure the other processes do not take part in gathering a sharded state.
    if (this.#parts.optimizer.isSharded) return;
    this.save();
    this.#context.log.say(`saved after step ${step}, to go on with run.ifExists=resume`);
  }
}

/**
 * Count an update of any algorithm.
 *
 * @param entropy - mean of the rollout, nats per token; null where nothing adapts to it.
 */
export function noteUpdate(
  { kl, update }: TrainConfig,
  progress: Progress,
  { steps, skippedSteps, metrics }: UpdateResult,
  from: Pick<Generated, "cursor" | "images" | "tokens" | "rewarded">,
  entropy: number | null,
): void {
  progress.step++;
  progress.cursor = from.cursor;
  progress.imagesSeen += from.images;
  progress.tokensSeen += from.tokens;
  progress.updates += steps;
  progress.skipped += skippedSteps;
  progress.skippedInARow = steps > 0 ? 0 : progress.skippedInARow + skippedSteps;
  const divergence = metrics["kl/ref"] ?? Number.NaN;
  progress.klMean = runningMean(progress.klMean, divergence);
  const { target, horizon } = kl;
  const [b, g] = from.rewarded.rollout.tokens.dims(3);
  const sequences = b * g;
  if (target !== null)
    progress.klCoef = adaptedCoef(progress.klCoef, divergence, { target, horizon, sequences });
  const { entropyTarget, entropyDelta: delta } = update;
  if (entropyTarget !== null && entropy !== null) {
    const options = { target: entropyTarget, delta };
    progress.entropyCoef = adaptedEntropyCoef(progress.entropyCoef, entropy, options);
  }
}

/**
 * @param limits.skippedBefore - steps skipped before the run was last resumed.
 * @param broken - terms of the last reward that were not finite.
 * @throws DivergedError when too many steps were skipped, or all of a run that is at its end.
 */
export function requireFiniteSteps(
  progress: Progress,
  limits: TrainConfig["limits"] & { total: number; skippedBefore: number; folder: string },
  broken: readonly string[],
): void {
  const { step, skippedInARow, updates } = progress;
  const { nonFinite, nonFiniteInARow, total, folder } = limits;
  const skipped = progress.skipped - limits.skippedBefore;
  const isNothingDone = step >= total && updates === 0 && progress.skipped > 0;
  if (!isNothingDone && skipped <= nonFinite && skippedInARow <= nonFiniteInARow) return;
  const which = isNothingDone
    ? `all ${progress.skipped} steps`
    : `${skippedInARow} steps in a row (${skipped} in all)`;
  const remedy =
    broken.length > 0
      ? `${broken.join(" and ")} gave NaN or Infinity: look at its values there, mend it, then resume`
      : "Lower optimizer.lr, then resume";
  throw new DivergedError(
    `step ${step}: expected finite losses and gradients, got ${which} that were not and were skipped. ` +
      `Their batches are in ${folder}/dumps. ${remedy} with --force.`,
  );
}

/** Take note of an evaluation. @returns whether it is the best so far. */
export function noteEvaluation({ eval: { best: metric, mode } }: TrainConfig, progress: Progress): boolean {
  const { step, best: before, last } = progress;
  const value = last === null ? Number.NaN : metricOf(metric, last);
  const isFirst = before === null || before.metric !== metric;
  const isBest =
    Number.isFinite(value) && (isFirst || (mode === "max" ? value > before.value : value < before.value));
  if (isBest) progress.best = { step, metric, value };
  progress.evaluationsSinceBest = isBest ? 0 : progress.evaluationsSinceBest + 1;
  return isBest;
}

function metricOf(best: string, { spreads, metrics }: Evaluation): number {
  if (metrics[best] !== undefined) return metrics[best];
  const cut = best.lastIndexOf("/");
  const spread = spreads[best.slice(0, cut)];
  return (spread as Record<string, number> | undefined)?.[best.slice(cut + 1)] ?? Number.NaN;
}

/**
 * Write what a skipped step would have learnt from, for debugging. Images are those of the first rollout, and are there
 * where no group was drawn again. All processes call this together.
 */
export function dump(folder: string, step: number, { drawing, rewarded }: Generated): void {
  const { images } = drawing.batch;
  noGrad(() =>
    tidy(() => {
      const isWhole = images !== undefined && rewarded === drawing;
      const { rollout, trueCodes, rewards } = rewarded;
      const tensors = {
        ...(isWhole && { images: allGather(images, drawing.images) }),
        ...(trueCodes && { trueCodes }),
        rewards,
        tokens: rollout.tokens,
        logprobs: rollout.logprobs,
      };
      if (!isFirst()) return;
      const dumps = join(folder, "dumps");
      makeFolder(dumps);
      saveSafetensors(join(dumps, `step_${String(step).padStart(6, "0")}.safetensors`), tensors);
    }),
  );
}
