/**
 * Prediction of a training run: its size, memory, disk space and time. Only headers of files, the index of the data set and the
 * configuration are read. `models.ts` has the sizes of models, `work.ts` what
 * each phase needs, `rates.ts` the speed of this machine.
 */
import { statfsSync } from "node:fs";
import { freemem, totalmem } from "node:os";
import { dirname, resolve } from "node:path";
import { type BatchNumbers, batchNumbers, type TrainConfig } from "../config/resolve.js";
import { castOf, deviceOf } from "../rl_ar_finetune/parts.js";
import { contextAt, decodeBatchOf } from "../rl_ar_finetune/settings.js";
import { openSources } from "../run/images.js";
import { type Device, requireDevice, setNumThreads } from "../torch/index.js";
import { modelsOf, type PlanModels } from "./models.js";
import { measureRates, type Rates, secondsOf } from "./rates.js";
import {
  costsOf,
  fixedParts,
  flopsOf,
  most,
  type Parts,
  PHASES,
  type Phase,
  sumOf,
  type Work,
} from "./work.js";

/** Whether something fits; `unknown` if the available amount is not known. */
export type Fits = "yes" | "tight" | "no" | "unknown";

/** A named number of bytes. */
export interface Share {
  readonly name: string;
  readonly bytes: number;
}

/** A planned run. */
export interface TrainPlan {
  readonly device: Device;
  readonly models: readonly {
    readonly name: string;
    readonly what: string;
    readonly parameters: number;
    readonly trained: number;
  }[];
  /** Images to train on and held out; null for a program's own loader. */
  readonly images: { readonly train: number; readonly heldOut: number } | null;
  readonly batch: BatchNumbers & {
    readonly images: number;
    readonly numGenerations: number;
    /** T, and codes that are drawn a step. */
    readonly codes: number;
    readonly tokens: number;
    readonly iters: number;
    readonly stepsPerEpoch: number | null;
    readonly epochs: number | null;
  };
  readonly memory: {
    /** What stays for the whole run, and what each phase has on top. */
    readonly fixed: readonly Share[];
    readonly phases: readonly (Share & { readonly parts: readonly Share[] })[];
    readonly peakBytes: number;
    readonly largestPhase: string;
    readonly totalBytes: number | null;
    readonly freeBytes: number | null;
    readonly fits: Fits;
    /** What to change first, as `key=value: what it lowers`. */
    readonly lower: readonly string[];
  };
  /** FLOPs: a multiplication and its addition are two. */
  readonly flops: {
    readonly step: Readonly<Record<Phase, number>>;
    readonly evaluation: number;
    readonly total: number;
  };
  /** Seconds; null where nothing was measured. */
  readonly time: {
    readonly rates: Rates;
    readonly step: Readonly<Record<Phase, number>>;
    readonly stepSeconds: number;
    readonly evaluationSeconds: number;
    readonly totalSeconds: number;
  } | null;
  readonly disk: {
    readonly checkpointBytes: number;
    /** Of all that exist at a time, with the one that is being written. */
    readonly checkpointsBytes: number;
    readonly logBytes: number;
    readonly freeBytes: number | null;
    readonly fits: Fits;
  };
}

/** Bytes of Node.js, LibTorch and the threads that decode images, before the first tensor. */
const PROCESS_BYTES = 3 * 2 ** 27;

/** Bytes that a logged step adds to metrics and events. */
const LOGGED_BYTES = 6_000;

/**
 * Plan a run. No weight and no image is read, and nothing is written.
 *
 * @param options.measure - measure this machine for about two seconds; default true. Otherwise `time` is null.
 * @throws RangeError for files that hold other models, sizes that do not fit together, and data that cannot be opened.
 */
export async function planTrain(
  config: TrainConfig,
  { measure = true }: { measure?: boolean } = {},
): Promise<TrainPlan> {
  const device = deviceOf(config);
  requireDevice(device);
  const isCuda = device.startsWith("cuda");
  const where = { isCuda, isNarrow: castOf(config.precision.policy, device) !== null };
  const models = modelsOf(config);
  const { policy, tokenizer, reference, valueHead, networks } = models;
  const images = await imageCounts(config);
  const { iters, threads } = config.train;
  const { every } = config.eval;
  const judged = every > 0 ? Math.min(config.eval.images, images?.heldOut ?? 0) : 0;
  /** Evaluations before the first step, every so often, and after the last, of batches as large as a step's. */
  const evaluations = judged === 0 ? 0 : 1 + Math.ceil(iters / every);
  const evalBatch = Math.min(config.rollout.images, judged || Infinity);
  const batches = judged / evalBatch;
  const { step, evaluation } = costsOf(config, models, where, evalBatch);

  const fixed = sharesOf(fixedParts(config, models, where));
  const taken = PHASES.map((phase) => ({ name: phase as string, parts: step[phase].parts }));
  if (every > 0)
    taken.push({ name: "evaluation", parts: most(...PHASES.map((phase) => evaluation[phase].parts)) });
  const phases = taken.map(({ name, parts }) => ({ name, bytes: sumOf(parts), parts: sharesOf(parts) }));
  const largest = phases.reduce((a, b) => (b.bytes > a.bytes ? b : a));
  const peakBytes = fixed.reduce((sum, { bytes }) => sum + bytes, largest.bytes);
  const totalBytes = isCuda ? null : memoryLimit();

  if (threads !== null) setNumThreads(threads);
  const rates = measure ? measureRates(config, models, device, where) : null;
  /** A quantity of a step by phase, of an evaluation, and of the whole run. */
  const totals = (of: (work: Work) => number) => {
    const byPhase = PHASES.map((phase) => [phase, of(step[phase].work)] as const);
    const ofStep = byPhase.reduce((sum, [, value]) => sum + value, 0);
    const ofEvaluation = batches * PHASES.reduce((sum, phase) => sum + of(evaluation[phase].work), 0);
    return {
      step: Object.fromEntries(byPhase) as Record<Phase, number>,
      ofStep,
      evaluation: ofEvaluation,
      total: iters * ofStep + evaluations * ofEvaluation,
    };
  };
  const { ofStep: _, ...flops } = totals(flopsOf);
  const seconds = rates && totals((work) => secondsOf(work, rates));
  const frozen = (name: string, what: string, parameters: number) => ({ name, what, parameters, trained: 0 });
  const trainedWhole = { what: "linear", parameters: valueHead, trained: valueHead };
  return {
    device,
    models: [
      { name: "policy", what: policy.name, parameters: policy.parameters, trained: policy.trained },
      ...(reference > 0 ? [frozen("reference", config.kl.path ?? "a copy", reference)] : []),
      ...(valueHead > 0 ? [{ name: "value head", ...trainedWhole }] : []),
      frozen("tokenizer", tokenizer.name, tokenizer.parameters),
      ...Object.entries(networks).map(([key, network]) => frozen(key, network.name, network.parameters)),
    ],
    images,
    batch: batchOf(config, models, images?.train ?? null),
    memory: {
      fixed,
      phases,
      peakBytes,
      largestPhase: largest.name,
      totalBytes,
      freeBytes: totalBytes === null ? null : Math.min(freemem(), totalBytes),
      fits: fitOf(peakBytes + PROCESS_BYTES, totalBytes),
      lower: lowerFirst(config, models, largest.name),
    },
    flops,
    time:
      rates === null || seconds === null
        ? null
        : {
            rates,
            step: seconds.step,
            stepSeconds: seconds.ofStep,
            evaluationSeconds: seconds.evaluation,
            totalSeconds: seconds.total,
          },
    disk: diskOf(config, models),
  };
}

const sharesOf = (parts: Parts): Share[] =>
  Object.entries(parts).flatMap(([name, bytes]) => (bytes > 0 ? [{ name, bytes }] : []));

async function imageCounts(config: TrainConfig): Promise<TrainPlan["images"]> {
  if (config.dataloader !== null || config.data.source === null) return null;
  const { train, heldOut } = await openSources(config);
  return { train: train.length, heldOut: heldOut?.length ?? 0 };
}

function batchOf(config: TrainConfig, { tokenizer }: PlanModels, trained: number | null): TrainPlan["batch"] {
  const { images, numGenerations } = config.rollout;
  const { iters } = config.train;
  const numbers = batchNumbers(config);
  const codes = (config.data.size / tokenizer.downsample) ** 2;
  const context = contextAt(config, Number.MAX_SAFE_INTEGER, codes);
  const given = context.type === "prefix" ? context.length : 0;
  const stepsPerEpoch = trained === null ? null : trained / images;
  return {
    ...numbers,
    images,
    numGenerations,
    codes,
    tokens: numbers.sequences * (codes - given),
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
  const reference = [
    ...(kl.coef === 0 ? [] : ["kl.coef=0"]),
    ...(kl.target === null ? [] : ["kl.target=null"]),
    ...(kl.stop === null ? [] : ["kl.stop=null"]),
  ].join(" ");
  const isUpdate = phase === "update";
  const draws = phase === "rollout" || phase === "evaluation";
  const hints: readonly (readonly [isUseful: boolean, hint: string])[] = [
    [isUpdate && microBatch > 1, `update.microBatch=${half(microBatch)}: activations of the update`],
    [
      isUpdate && !ar.gradientCheckpointing,
      "ar.gradientCheckpointing=true: activations, for a third more time",
    ],
    [draws && some > 1, `rollout.microBatch=${half(some)}: keys and values of the rollout`],
    [
      phase === "decode" && decodeBatch > 1,
      `tokenizer.decodeBatch=${half(decodeBatch)}: activations of the decoder`,
    ],
    [phase === "reward", `reward.chunk=${half(reward.chunk ?? 32)}: activations of the rewards`],
    [rollout.images > 1, `rollout.images=${half(rollout.images)}: everything of a rollout`],
    [models.reference > 0, `${reference}: the reference`],
    [ema.decay !== null, "ema.decay=null: no EMA of the weights"],
    [ar.lora.rank === null, "ar.lora.rank=16: gradients, moments and averages of all but adapters"],
  ];
  return hints.flatMap(([isUseful, hint]) => (isUseful ? [hint] : []));
}

function diskOf(config: TrainConfig, { policy, valueHead }: PlanModels): TrainPlan["disk"] {
  const { save, log, train, rollout, ema, run, data } = config;
  const adapters = config.ar.lora.rank === null ? 0 : policy.trained;
  // With LoRA a checkpoint holds the EMA of the adapters, and a whole policy with it, which other programs can open.
  const average = ema.decay === null ? 0 : policy.trained + (adapters === 0 ? 0 : policy.parameters);
  const moments = 2 * (policy.trained + valueHead);
  const checkpointBytes = 4 * (policy.parameters + adapters + moments + valueHead + average);
  // The best one is kept besides the newest, and a new one is complete before an old one is deleted.
  const kept = save.keep + (config.eval.every > 0 ? 2 : 1);
  const checkpointsBytes = Math.min(kept, Math.ceil(train.iters / save.every)) * checkpointBytes;
  const pages = log.imagesEvery > 0 ? Math.ceil(train.iters / log.imagesEvery) : 0;
  const pageBytes = log.imageRows * (2 + rollout.numGenerations) * 3 * data.size ** 2 * 0.6;
  const logBytes = Math.ceil(train.iters / log.every) * LOGGED_BYTES + pages * pageBytes;
  const freeBytes = freeDisk(run.dir ?? "runs");
  return {
    checkpointBytes,
    checkpointsBytes,
    logBytes,
    freeBytes,
    fits: fitOf(checkpointsBytes + logBytes, freeBytes),
  };
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
