/**
 * Prediction of a training run: its size, memory, disk space and time. Only headers of files, the index of the data set and
 * the configuration are read. `models.ts` has the sizes of models, `work.ts` what each phase needs, `rates.ts` the speed
 * of this machine.
 */
import { statfsSync } from "node:fs";
import { freemem, totalmem } from "node:os";
import { dirname, resolve } from "node:path";
import { batchNumbers, type TrainConfig } from "../config/resolve.js";
import { pageLayout } from "../data/index.js";
import { castOf, deviceOf } from "../rl_ar_finetune/parts.js";
import { commonPrefix } from "../rl_ar_finetune/rollout.js";
import { contextAt, decodeBatchOf } from "../rl_ar_finetune/settings.js";
import { SHOWN } from "../rl_ar_finetune/step.js";
import { openSources } from "../run/images.js";
import { expected, requireDevice, setNumThreads } from "../torch/index.js";
import { modelsOf, type PlanModels } from "./models.js";
import { measureRates, type Rates, secondsOf } from "./rates.js";
import { costsOf, fixedParts, flopsOf, most, type Parts, PHASES, sumOf, type Work } from "./work.js";

/** Whether something fits; `unknown` if the available amount is not known. */
export type Fits = "yes" | "tight" | "no" | "unknown";

/** A planned run. */
export type TrainPlan = Awaited<ReturnType<typeof planTrain>>;

/** Bytes of Node.js, LibTorch and the threads that decode images, before the first tensor. */
const PROCESS_BYTES = 3 * 2 ** 27;

/** Bytes that a logged step adds to metrics and events. */
const LOGGED_BYTES = 6_000;

/** Bytes of a PNG file per pixel of photographs, which compress worst, and per pixel before an enlargement. */
const PNG_BYTES = { asTheyAre: 2.2, enlarged: 4.2 } as const;

/**
 * Plan a run. No weight and no image is read, and nothing is written.
 *
 * @param options.processes - that share every batch; memory, work and time are then of each, the batch of all.
 * @param options.measure - measure this machine for about two seconds; default true. Otherwise `time` is null.
 * @throws RangeError for files that hold other models, sizes that do not fit together, and data that cannot be opened.
 */
export async function planTrain(
  whole: TrainConfig,
  { measure = true, processes = 1 }: { measure?: boolean; processes?: number } = {},
) {
  const config = configOfOne(whole, processes);
  const device = deviceOf(config);
  requireDevice(device);
  const isCuda = device.startsWith("cuda");
  const where = { isCuda, isNarrow: castOf(config.precision.policy, device) !== null };
  const models = modelsOf(config);
  const images = await imageCounts(config);
  const { iters, threads } = config.train;
  const { every } = config.eval;
  const held = every > 0 ? Math.min(config.eval.images, images?.heldOut ?? 0) : 0;
  const judged = Math.ceil(held / processes);
  // Before the first step, every so often, and after the last, in batches as large as a step's.
  const evaluations = judged === 0 ? 0 : 1 + Math.ceil(iters / every);
  const evalBatch = Math.min(config.rollout.images, judged || Infinity);
  const batches = judged / evalBatch;
  const { step, evaluation } = costsOf(config, models, where, evalBatch);

  const parts = fixedParts(config, models, where);
  if (config.train.shardOptimizer) parts.optimizer = (parts.optimizer as number) / processes;
  const fixed = sharesOf(parts);
  const taken: [name: string, Parts][] = PHASES.map((phase) => [phase, step[phase].parts]);
  if (every > 0) taken.push(["evaluation", most(...PHASES.map((phase) => evaluation[phase].parts))]);
  const phases = taken.map(([name, parts]) => ({ name, bytes: sumOf(parts), parts: sharesOf(parts) }));
  const largest = phases.reduce((a, b) => (b.bytes > a.bytes ? b : a));
  const peakBytes = fixed.reduce((sum, { bytes }) => sum + bytes, largest.bytes);
  const totalBytes = isCuda ? null : memoryLimit();

  if (threads !== null) setNumThreads(threads);
  const rates = measure ? measureRates(config, models, device, where) : null;
  /** A quantity of a step by phase, of an evaluation, and of the whole run. */
  const totals = (of: (work: Work) => number) => {
    const byPhase = Object.fromEntries(PHASES.map((phase) => [phase, of(step[phase].work)]));
    const ofStep = Object.values(byPhase).reduce((sum, value) => sum + value, 0);
    const ofEvaluation = batches * PHASES.reduce((sum, phase) => sum + of(evaluation[phase].work), 0);
    const total = iters * ofStep + evaluations * ofEvaluation;
    /** A further rollout for constant groups, which has no update. */
    const redraw = ofStep - of(step.update.work);
    return { step: byPhase, ofStep, redraw, evaluation: ofEvaluation, total };
  };
  const flops = totals(flopsOf);
  const seconds = rates && totals((work) => secondsOf(work, rates));
  return {
    device,
    models: modelList(config, models),
    /** Null for a program's own loader. */
    images,
    batch: batchOf(whole, models, images?.train ?? null),
    /** Null for a process that is alone. */
    processes: processes === 1 ? null : trafficOf(whole, models, processes),
    memory: {
      /** What stays for the whole run, and what each phase has on top. */
      fixed,
      phases,
      peakBytes,
      largestPhase: largest.name,
      totalBytes,
      freeBytes: totalBytes === null ? null : Math.min(freemem(), totalBytes),
      fits: fitOf(peakBytes + PROCESS_BYTES, totalBytes),
      /** What to change first, as `key=value: what it lowers`. */
      lower: lowerFirst(config, models, largest.name),
    },
    /** A multiplication and its addition are two FLOPs. */
    flops: { step: flops.step, redraw: flops.redraw, evaluation: flops.evaluation, total: flops.total },
    /** Null where nothing was measured. */
    time: seconds && {
      rates: rates as Rates,
      step: seconds.step,
      stepSeconds: seconds.ofStep,
      redrawSeconds: seconds.redraw,
      evaluationSeconds: seconds.evaluation,
      totalSeconds: seconds.total,
    },
    disk: diskOf(config, models, { count: evaluations, images: judged }),
  };
}

/** What one of several processes does: its share of the images, rounded up. */
function configOfOne(config: TrainConfig, processes: number): TrainConfig {
  const { rollout, update } = config;
  if (!(Number.isInteger(processes) && processes >= 1 && processes <= rollout.images)) {
    const what = `a whole number from 1 to ${rollout.images}, the images of a rollout`;
    throw expected("plan: processes", what, processes);
  }
  const share = (images: number): number => Math.ceil(images / processes);
  // Mini-batches divide the rollout of one process as they divide that of all.
  const miniBatch = update.miniBatch === null ? null : share(update.miniBatch);
  const images = miniBatch === null ? share(rollout.images) : miniBatch * batchNumbers(config).miniBatches;
  return { ...config, rollout: { ...rollout, images }, update: { ...update, miniBatch } };
}

/** What a process sends in an iteration: gradients in every optimizer step, and the weights where each steps a part. */
function trafficOf(config: TrainConfig, { policy, valueHead }: PlanModels, processes: number) {
  const bytes = (policy.trained + valueHead) * 4;
  const ring = (2 * (processes - 1)) / processes;
  const shared = config.train.shardOptimizer ? bytes / processes : 0;
  const { steps } = batchNumbers(config);
  return {
    count: processes,
    bytesAStep: ring * bytes + shared,
    bytesAnIteration: steps * (ring * bytes + shared),
  };
}

/** The models of a run, with the numbers of their parameters and of those that are trained. */
function modelList(config: TrainConfig, { policy, reference, valueHead, tokenizer, networks }: PlanModels) {
  const { parameters, trained } = policy;
  return [
    { name: "policy", what: policy.name, parameters, trained },
    { name: "reference", what: config.kl.path ?? "a copy", parameters: reference, trained: 0 },
    { name: "value head", what: "linear", parameters: valueHead, trained: valueHead },
    { name: "tokenizer", what: tokenizer.name, parameters: tokenizer.parameters, trained: 0 },
    ...Object.entries(networks).map(([name, network]) => {
      return { name, what: network.name, parameters: network.parameters, trained: 0 };
    }),
  ].filter((model) => model.parameters > 0);
}

const sharesOf = (parts: Parts): { name: string; bytes: number }[] =>
  Object.entries(parts).flatMap(([name, bytes]) => (bytes > 0 ? [{ name, bytes }] : []));

/** Images to train on and held out. */
async function imageCounts(config: TrainConfig): Promise<{ train: number; heldOut: number } | null> {
  if (config.dataloader !== null || config.data.source === null) return null;
  const { train, heldOut } = await openSources(config, true);
  return { train: train.length, heldOut: heldOut?.length ?? 0 };
}

function batchOf(config: TrainConfig, { tokenizer }: PlanModels, trained: number | null) {
  const { images, numGenerations } = config.rollout;
  const { iters } = config.train;
  const numbers = batchNumbers(config);
  const codes = (config.data.size / tokenizer.downsample) ** 2;
  const context = contextAt(config, Number.MAX_SAFE_INTEGER, codes);
  const given = commonPrefix(context);
  const stepsPerEpoch = trained === null ? null : trained / images;
  return {
    ...numbers,
    images,
    numGenerations,
    codes, // T
    tokens: numbers.sequences * (codes - given), // drawn in a step
    /** Further rollouts that a step may have for constant groups, which the totals do not count. */
    redraws: config.rollout.redraws,
    iters,
    stepsPerEpoch,
    epochs: stepsPerEpoch === null ? null : iters / stepsPerEpoch,
  };
}

/** Memory that this process may take: the machine's, or what a container allows. */
function memoryLimit(): number {
  // Newer than the types; 0 or beyond all memory where nothing limits it.
  const limit = (process as { constrainedMemory?: () => number | undefined }).constrainedMemory?.() ?? 0;
  return limit > 0 && limit < totalmem() ? limit : totalmem();
}

function fitOf(bytes: number, limit: number | null): Fits {
  if (limit === null) return "unknown";
  if (bytes > 0.95 * limit) return "no";
  return bytes > 0.75 * limit ? "tight" : "yes"; // the estimate may be off by a quarter
}

/** What to change first if memory does not suffice. */
function lowerFirst(config: TrainConfig, models: PlanModels, phase: string): string[] {
  const { rollout, reward, ar, kl, ema } = config;
  const { microBatch } = batchNumbers(config);
  const some = rollout.microBatch ?? rollout.images;
  const decodeBatch = decodeBatchOf(config);
  const half = (value: number): number => Math.max(1, Math.floor(value / 2));
  const offReference = [
    ...(kl.coef === 0 ? [] : ["kl.coef=0"]),
    ...(kl.target === null ? [] : ["kl.target=null"]),
    ...(kl.stop === null ? [] : ["kl.stop=null"]),
  ].join(" ");
  const isUpdate = phase === "update";
  const draws = phase === "rollout" || phase === "evaluation";
  const checkpointing = "ar.gradientCheckpointing=true: activations, for a third more time";
  const decoding = `tokenizer.decodeBatch=${half(decodeBatch)}: activations of the decoder`;
  const hints: readonly (readonly [isUseful: boolean, hint: string])[] = [
    [isUpdate && microBatch > 1, `update.microBatch=${half(microBatch)}: activations of the update`],
    [isUpdate && !ar.gradientCheckpointing, checkpointing],
    [draws && some > 1, `rollout.microBatch=${half(some)}: keys and values of the rollout`],
    [phase === "decode" && decodeBatch > 1, decoding],
    [phase === "reward", `reward.chunk=${half(reward.chunk ?? 32)}: activations of the rewards`],
    [rollout.images > 1, `rollout.images=${half(rollout.images)}: everything of a rollout`],
    [models.reference > 0, `${offReference}: the reference`],
    [ema.decay !== null, "ema.decay=null: no EMA of the weights"],
    [ar.lora.rank === null, "ar.lora.rank=16: gradients, moments and averages of all but adapters"],
  ];
  return hints.flatMap(([isUseful, hint]) => (isUseful ? [hint] : []));
}

/** How often a run is evaluated, and on how many images. */
interface Evaluations {
  readonly count: number;
  readonly images: number;
}

function diskOf(config: TrainConfig, { policy, reference, valueHead }: PlanModels, evaluations: Evaluations) {
  const { save, log, train, ema, kl, run } = config;
  const adapters = config.ar.lora.rank === null ? 0 : policy.trained;
  // With LoRA a checkpoint holds the EMA of the adapters, and a whole policy with it, which other programs can open.
  const average = ema.decay === null ? 0 : policy.trained + (adapters === 0 ? 0 : policy.parameters);
  const moments = 2 * (policy.trained + valueHead);
  const moving = kl.refreshEvery > 0 ? reference : 0; // a frozen one is not saved
  const checkpointBytes = 4 * (policy.parameters + adapters + moments + valueHead + average + moving);
  // Of all that exist at a time: the best one is kept besides the newest, and a new one is complete before an old one is deleted.
  const kept = save.keep + (config.eval.every > 0 ? 2 : 1);
  const checkpointsBytes = Math.min(kept, Math.ceil(train.iters / save.every)) * checkpointBytes;
  const logBytes = Math.ceil(train.iters / log.every) * LOGGED_BYTES + pagesBytes(config, evaluations);
  const freeBytes = freeDisk(run.dir ?? "runs");
  return {
    checkpointBytes,
    checkpointsBytes,
    logBytes,
    freeBytes,
    fits: fitOf(checkpointsBytes + logBytes, freeBytes),
  };
}

/** Bytes of the pages of samples, of training steps and of evaluations; TensorBoard has each once more. */
function pagesBytes(
  { log, train, rollout, eval: evaluation, data }: TrainConfig,
  evaluations: Evaluations,
): number {
  if (log.imagesEvery === 0) return 0;
  const pageBytes = (images: number, samples: number): number => {
    const rows = Math.min(log.imageRows, images);
    const perRow = 3 + Math.min(samples, SHOWN); // the image, its reconstruction, what is given of it
    const { factor } = pageLayout(rows, perRow, data.size);
    return rows * perRow * data.size ** 2 * (factor > 1 ? PNG_BYTES.enlarged : PNG_BYTES.asTheyAre);
  };
  const ofSteps =
    Math.ceil(train.iters / log.imagesEvery) * pageBytes(rollout.images, rollout.numGenerations);
  const { count, images } = evaluations;
  const bytes = ofSteps + (count === 0 ? 0 : count * pageBytes(images, evaluation.numGenerations));
  return Math.ceil(log.tensorboard ? 2 * bytes : bytes);
}

/** Free bytes where a folder is, or will be. */
function freeDisk(folder: string): number | null {
  for (let path = resolve(folder); ; path = dirname(path)) {
    try {
      const { bavail, bsize } = statfsSync(path);
      return bavail * bsize;
    } catch {
      if (dirname(path) === path) return null;
    }
  }
}
