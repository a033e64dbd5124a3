/**
 * A training run before it is started: how large it is, whether it fits into memory, how long it takes. Headers of
 * files, the index of the data set and the configuration are all that is read. Memory is worked out in
 * `memory.ts`, time in `time.ts`.
 */
import { statfsSync } from "node:fs";
import { freemem, totalmem } from "node:os";
import { dirname, resolve } from "node:path";
import { type BatchNumbers, batchNumbers, type TrainConfig } from "../config/resolve.js";
import { castOf, deviceOf } from "../rl_ar_finetune/parts.js";
import { openSources } from "../run/images.js";
import { type Device, expected, requireDevice, setNumThreads } from "../torch/index.js";
import { memoryParts, type PhaseShare, type PlanDevice, type PlanModels, type Share } from "./memory.js";
import { networkSizes, policySizes, tokenizerSizes, trainedParameters } from "./sizes.js";
import { flopsOf, measureRates, PHASES, type Phase, plannedWork, type Rates, secondsOf } from "./time.js";

/** Whether something fits; `unknown` where the machine does not say how much there is. */
export type Fits = "yes" | "tight" | "no" | "unknown";

/** A run, worked out. */
export interface TrainPlan {
  readonly device: Device;
  readonly models: readonly {
    readonly name: string;
    readonly what: string;
    readonly parameters: number;
    readonly trained: number;
  }[];
  /** Images to train on and set apart; null for a program's own loader. */
  readonly images: { readonly train: number; readonly heldOut: number } | null;
  readonly batch: BatchNumbers & {
    readonly images: number;
    readonly numGenerations: number;
    /** T of an image. */
    readonly codes: number;
    /** Codes that are drawn a step. */
    readonly tokens: number;
    readonly iters: number;
    readonly stepsPerEpoch: number | null;
    readonly epochs: number | null;
  };
  readonly memory: {
    readonly fixed: readonly Share[];
    /** On top of what stays. */
    readonly phases: readonly PhaseShare[];
    /** What stays and the largest phase. */
    readonly peakBytes: number;
    readonly largestPhase: string;
    readonly totalBytes: number | null;
    readonly freeBytes: number | null;
    readonly fits: Fits;
    /** What to change first, as `key=value` and what it lowers. */
    readonly lower: readonly string[];
  };
  /** Operations, a multiplication and its addition being two. */
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
    /** Of all that stay at a time, with one that is being written. */
    readonly checkpointsBytes: number;
    readonly logBytes: number;
    readonly freeBytes: number | null;
    readonly fits: Fits;
  };
}

/** Node.js, LibTorch and the threads that decode images, before the first tensor. */
const PROCESS_BYTES = 3 * 2 ** 27;

/** Lines of metrics and events of a step that is logged. */
const LOGGED_BYTES = 6_000;

/**
 * Work out a run. No weight and no image is read, and nothing is written.
 *
 * @param options.measure - time this machine for about two seconds; true where left out. Otherwise `time` is null.
 * @throws RangeError for files that hold something else, sizes that do not go together, and data that cannot be opened.
 */
export async function planTrain(
  config: TrainConfig,
  options: { measure?: boolean } = {},
): Promise<TrainPlan> {
  const device = deviceOf(config);
  requireDevice(device);
  const isCuda = device.startsWith("cuda");
  const where: PlanDevice = { isCuda, isNarrow: castOf(config.precision.policy, device) !== null };
  const models = modelsOf(config);
  const images = await imagesOf(config);
  const batch = batchOf(config, models, images?.train ?? null);
  const parts = memoryParts(config, models, where);
  const largest = parts.phases.reduce((a, b) => (b.bytes > a.bytes ? b : a));
  const peakBytes = sumOf(parts.fixed) + largest.bytes;
  const machine = isCuda ? null : { total: memoryLimit(), free: Math.min(freemem(), memoryLimit()) };
  const fits = fitOf(peakBytes + PROCESS_BYTES, machine?.total ?? null);

  const evalImages = Math.min(config.eval.images, images?.heldOut ?? 0);
  const work = plannedWork(config, models, config.eval.every > 0 ? evalImages : 0);
  const evaluations = evalImages > 0 && config.eval.every > 0 ? evaluationsOf(config) : 0;
  const evaluationFlops = PHASES.reduce((sum, phase) => sum + flopsOf(work.evaluation[phase]), 0);
  const stepFlops = byPhase((phase) => flopsOf(work.step[phase]));
  if (config.train.threads !== null) setNumThreads(config.train.threads);
  const rates = options.measure === false ? null : measureRates(config, models, device, where);
  return {
    device,
    models: [
      {
        name: "policy",
        what: models.policy.name,
        parameters: models.policy.parameters,
        trained: models.trained,
      },
      ...(models.reference > 0
        ? [{ name: "reference", what: config.kl.path ?? "a copy", parameters: models.reference, trained: 0 }]
        : []),
      ...(models.valueHead > 0
        ? [{ name: "value head", what: "linear", parameters: models.valueHead, trained: models.valueHead }]
        : []),
      { name: "tokenizer", what: models.tokenizer.name, parameters: models.tokenizer.parameters, trained: 0 },
      ...Object.entries(models.networks).map(([name, network]) => {
        return { name, what: network.name, parameters: network.parameters, trained: 0 };
      }),
    ],
    images,
    batch,
    memory: {
      ...parts,
      peakBytes,
      largestPhase: largest.name,
      totalBytes: machine?.total ?? null,
      freeBytes: machine?.free ?? null,
      fits,
      lower: lowerFirst(config, models, largest.name),
    },
    flops: {
      step: stepFlops,
      evaluation: evaluationFlops,
      total: config.train.iters * sumValues(stepFlops) + evaluations * evaluationFlops,
    },
    time: rates === null ? null : timeOf(config, work, rates, evaluations),
    disk: diskOf(config, models),
  };
}

const sumOf = (shares: readonly Share[]): number => shares.reduce((sum, { bytes }) => sum + bytes, 0);
const sumValues = (values: Readonly<Record<string, number>>): number =>
  Object.values(values).reduce((sum, value) => sum + value, 0);
const byPhase = (of: (phase: Phase) => number): Record<Phase, number> =>
  Object.fromEntries(PHASES.map((phase) => [phase, of(phase)])) as Record<Phase, number>;

/** The models of a configuration, from the headers of their files. */
function modelsOf(config: TrainConfig): PlanModels {
  const tokenizer = tokenizerSizes(config.tokenizer);
  const { size } = config.data;
  const side = size / tokenizer.downsample;
  if (!Number.isInteger(side)) {
    throw expected("data.size", `a multiple of ${tokenizer.downsample}, the pixels of a code`, size);
  }
  const { codebookSize: vocabSize } = tokenizer;
  const of = { blockSize: config.blockSize, vocabSize, codes: side ** 2 };
  const policy = policySizes(config.ar, of);
  if (policy.blockSize !== null && policy.blockSize < side ** 2) {
    const remedy = `Use images of ${Math.sqrt(policy.blockSize) * tokenizer.downsample} px, or another policy`;
    throw expected(
      "data.size",
      `images of at most ${policy.blockSize} codes, the policy's`,
      side ** 2,
      remedy,
    );
  }
  const { coef, stop, path } = config.kl;
  const { lora: _, ...unadapted } = config.ar;
  const hasReference = (coef !== 0 || stop !== null) && (path !== null || config.ar.lora.rank === null);
  const reference = !hasReference
    ? 0
    : path === null
      ? policy.parameters
      : policySizes({ ...unadapted, path, wrapper: null, policy: null }, of).parameters;
  const { reward } = config;
  const files = {
    "reward.lpips": reward.lpips.weight === 0 ? null : reward.lpips.path,
    "reward.perceptual": reward.perceptual.weight === 0 ? null : reward.perceptual.path,
    "reward.patchGan": reward.patchGan.weight === 0 ? null : reward.patchGan.path,
    "eval.perceptual": config.eval.every > 0 ? config.eval.perceptual : null,
  };
  const networks = Object.entries(files).flatMap(([name, file]) =>
    file === null ? [] : [[name, networkSizes(file)] as const],
  );
  return {
    policy,
    trained: trainedParameters(policy, config.ar),
    reference,
    valueHead: config.algorithm === "ppo" ? policy.width + 1 : 0,
    tokenizer,
    networks: Object.fromEntries(networks),
  };
}

async function imagesOf(config: TrainConfig): Promise<TrainPlan["images"]> {
  if (config.dataloader !== null || config.data.source === null) return null;
  const { train, heldOut } = await openSources(config);
  return { train: train.length, heldOut: heldOut?.length ?? 0 };
}

function batchOf(config: TrainConfig, { tokenizer }: PlanModels, images: number | null): TrainPlan["batch"] {
  const numbers = batchNumbers(config);
  const codes = (config.data.size / tokenizer.downsample) ** 2;
  const { iters } = config.train;
  const { context } = config.rollout;
  const given = context.type === "prefix" ? (context.length ?? Math.floor(codes / 2)) : 0;
  const stepsPerEpoch = images === null ? null : images / config.rollout.images;
  return {
    ...numbers,
    images: config.rollout.images,
    numGenerations: config.rollout.numGenerations,
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
  // A quarter is how far the estimate may be off.
  return bytes > 0.75 * limit ? "tight" : "yes";
}

/** Evaluations of a run: before the first step, every so often, and after the last. */
function evaluationsOf({ eval: { every }, train: { iters } }: TrainConfig): number {
  return 1 + Math.floor(iters / every) + (iters % every === 0 ? 0 : 1);
}

/** What to change first where memory is short. */
function lowerFirst(config: TrainConfig, models: PlanModels, phase: string): string[] {
  const { rollout, reward, tokenizer, ar } = config;
  const { microBatch } = batchNumbers(config);
  const half = (value: number): number => Math.max(1, Math.floor(value / 2));
  const some = rollout.microBatch ?? rollout.images;
  const keys: string[] = [];
  if (phase === "update") {
    if (microBatch > 1) keys.push(`update.microBatch=${half(microBatch)}: activations of the update`);
    if (!ar.gradientCheckpointing)
      keys.push("ar.gradientCheckpointing=true: activations, for a third more time");
  }
  if (phase === "rollout" || phase === "evaluation") {
    if (some > 1) keys.push(`rollout.microBatch=${half(some)}: keys and values of the rollout`);
  }
  if (phase === "decode" && (tokenizer.decodeBatch ?? 8) > 1)
    keys.push(`tokenizer.decodeBatch=${half(tokenizer.decodeBatch ?? 8)}: activations of the decoder`);
  if (phase === "reward") keys.push(`reward.chunk=${half(reward.chunk ?? 32)}: activations of the rewards`);
  if (rollout.images > 1) keys.push(`rollout.images=${half(rollout.images)}: everything of a rollout`);
  if (models.reference > 0) keys.push(`${withoutReference(config)}: the reference`);
  if (config.ema.decay !== null) keys.push("ema.decay=null: the average of the weights");
  if (ar.lora.rank === null)
    keys.push("ar.lora.rank=16: gradients, moments and averages of all but adapters");
  return keys;
}

/** The keys that end every use of the reference. */
function withoutReference({ kl: { coef, target, stop } }: TrainConfig): string {
  const keys = [
    ...(coef === 0 ? [] : ["kl.coef=0"]),
    ...(target === null ? [] : ["kl.target=null"]),
    ...(stop === null ? [] : ["kl.stop=null"]),
  ];
  return keys.join(" ");
}

function timeOf(
  config: TrainConfig,
  work: ReturnType<typeof plannedWork>,
  rates: Rates,
  evaluations: number,
): NonNullable<TrainPlan["time"]> {
  const step = byPhase((phase) => secondsOf(work.step[phase], rates));
  const stepSeconds = sumValues(step);
  const evaluationSeconds = sumValues(byPhase((phase) => secondsOf(work.evaluation[phase], rates)));
  const totalSeconds = config.train.iters * stepSeconds + evaluations * evaluationSeconds;
  return { rates, step, stepSeconds, evaluationSeconds, totalSeconds };
}

function diskOf(config: TrainConfig, { policy, trained, valueHead }: PlanModels): TrainPlan["disk"] {
  const adapters = config.ar.lora.rank === null ? 0 : trained;
  const moved = trained + valueHead;
  // With adapters it is kept as theirs, and as a whole policy for whoever opens it.
  const average = config.ema.decay === null ? 0 : trained + (adapters === 0 ? 0 : policy.parameters);
  const checkpointBytes = 4 * (policy.parameters + adapters + 2 * moved + valueHead + average);
  // The best one stays beside the newest, and a new one is whole before an old one goes.
  const kept = config.save.keep + (config.eval.every > 0 ? 2 : 1);
  const written = Math.min(kept, Math.ceil(config.train.iters / config.save.every));
  const { every, imagesEvery, imageRows } = config.log;
  const { iters } = config.train;
  const pages = imagesEvery > 0 ? Math.ceil(iters / imagesEvery) : 0;
  const pageBytes = imageRows * (2 + config.rollout.numGenerations) * 3 * config.data.size ** 2 * 0.6;
  const logBytes = Math.ceil(iters / every) * LOGGED_BYTES + pages * pageBytes;
  const checkpointsBytes = written * checkpointBytes;
  const free = freeDisk(config.run.dir ?? "runs");
  return {
    checkpointBytes,
    checkpointsBytes,
    logBytes,
    freeBytes: free,
    fits: fitOf(checkpointsBytes + logBytes, free),
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
