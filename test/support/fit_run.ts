/**
 * Runs of the supervised trainers that are small enough to be made dozens of times: a pre-training of a tiny policy, and
 * a task without images for the loop itself. As a program it makes one run: `node fit_run.js FOLDER CONFIG [COMMAND]`,
 * CONFIG in JSON over that of {@link tinyPretraining}, COMMAND pretrain, tokenizer or classifier.
 */
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { classifierKind } from "../../src/config/classifier.js";
import { type FitConfig, type FitDefaults, fitKind, fitSchema } from "../../src/config/fit.js";
import type { ConfigKind } from "../../src/config/kind.js";
import { type PretrainConfig, pretrainKind } from "../../src/config/pretrain.js";
import { type ResolvedConfig, resolveConfig } from "../../src/config/resolve.js";
import { tokenizerKind } from "../../src/config/tokenizer.js";
import { Linear } from "../../src/nn/index.js";
import {
  functional as F,
  manualSeed,
  randn,
  stream,
  type Tensor,
  tidy,
  zeros,
} from "../../src/torch/index.js";
import { openClassifierTask } from "../../src/trainers/classifier.js";
import {
  type FitResult,
  type FitState,
  type FitStep,
  type FitTask,
  fitLoop,
} from "../../src/trainers/loop.js";
import { FitNetwork } from "../../src/trainers/network.js";
import { openPretrainTask } from "../../src/trainers/policy.js";
import { openTokenizerTask } from "../../src/trainers/tokenizer.js";
import { Shown } from "./train_run.js";

type Values = Record<string, unknown>;

/** Sections of `changes` over those of `values`. */
function merged(values: Values, changes: Values): Values {
  const isPlain = (value: unknown): value is Values =>
    typeof value === "object" && value !== null && Object.getPrototypeOf(value) === Object.prototype;
  const result = { ...values };
  for (const [name, value] of Object.entries(changes)) {
    const before = result[name];
    result[name] = isPlain(value) && isPlain(before) ? merged(before, value) : value;
  }
  return result;
}

/** A pre-training in a folder of `tinyFolder`, with changes. */
export function tinyPretraining(folder: string, changes: Values = {}): ResolvedConfig<PretrainConfig> {
  const isEvaluated = ((changes.eval as { every?: number } | undefined)?.every ?? 0) > 0;
  const values = {
    run: { dir: join(folder, "run"), ifExists: "fail" },
    data: { source: join(folder, "images"), size: 16, evalPart: isEvaluated ? 0.2 : 0, workers: 1 },
    tokenizer: { path: join(folder, "tokenizer.safetensors") },
    ar: { type: "gpt", nLayer: 1, nHead: 2, nEmbd: 16 },
    eval: { every: 0 },
    save: { every: 0 },
    log: { every: 100, imagesEvery: 0, tensorboard: false },
    train: { iters: 4, batch: 4, threads: 1, device: "cpu" },
  };
  return resolveConfig({ values: merged(values, changes) }, pretrainKind);
}

/** The keys that all trainers share, and none besides. */
const toyDefaults: FitDefaults = {
  epochs: 1,
  batch: 8,
  lr: 0.05,
  betas: [0.9, 0.99],
  weightDecay: 0.01,
  ema: 0.5,
  best: "eval/loss",
  mode: "min",
};

export const toyKind: ConfigKind<FitConfig> = fitKind<FitConfig>({
  name: "toy",
  schema: fitSchema({}, toyDefaults),
  memory: "Lower train.batch",
  metrics: () => ({ "eval/loss": "min", "eval/score": "max" }),
});

/** A configuration of {@link toyKind} for a run in a folder. */
export function toyConfig(dir: string, changes: Values = {}): ResolvedConfig<FitConfig> {
  const values = {
    run: { dir, ifExists: "fail" },
    data: { source: "toy images" },
    eval: { every: 2 },
    save: { every: 3 },
    log: { every: 100, imagesEvery: 4 },
    train: { iters: 8, threads: 1, device: "cpu" },
  };
  return resolveConfig({ values: merged(values, changes) }, toyKind);
}

/** What a {@link ToyTask} does otherwise than usual. */
export interface ToyChanges {
  fingerprint?: string;
  /** Called before an update, which may throw. */
  before?(step: number): void;
  /** The loss of an update, in place of the true one. */
  loss?(step: number): number | undefined;
  /** What an evaluation says, in place of the true loss. */
  evaluate?(step: number): Record<string, number>;
}

/** Linear regression towards y = x1 - 2 x2 + 3 from inputs that follow from the step. */
export class ToyTask implements FitTask {
  readonly total: number;
  readonly fingerprint: string;
  readonly about: FitTask["about"] = { classes: ["all"] };
  readonly network: FitNetwork<Linear>;
  readonly #changes: ToyChanges;
  readonly #seed: number;
  #steps = 0;

  constructor(config: FitConfig, changes: ToyChanges = {}) {
    manualSeed(config.seed);
    this.total = config.train.iters ?? 1;
    this.fingerprint = changes.fingerprint ?? "f1";
    const { optimizer, ema } = config;
    this.network = new FitNetwork(new Linear(2, 1), { optimizer, ema, total: this.total });
    this.#changes = changes;
    this.#seed = config.seed;
  }

  #lossAt(name: string, step: number): Tensor {
    using generator = stream(this.#seed, name, step);
    const x = randn([8, 2], { generator });
    const y = x
      .narrow(1, 0, 1)
      .sub(x.narrow(1, 1, 1).mul(2))
      .add(3);
    return F.mseLoss(this.network.module.forward(x), y);
  }

  async step(step: number): Promise<FitStep> {
    this.#changes.before?.(step);
    const loss = tidy(() => {
      const loss = this.#lossAt("toy", step);
      loss.backward();
      return this.#changes.loss?.(step) ?? loss.item();
    });
    const { skipped, metrics } = this.network.update(step, loss);
    this.#steps = step + 1;
    const cursor = { epoch: 0, position: this.#steps };
    return { metrics: { "train/loss": loss, ...metrics }, images: 8, skipped, cursor };
  }

  async evaluate(): Promise<Record<string, number>> {
    const said = this.#changes.evaluate?.(this.#steps);
    return (
      said ?? {
        "eval/loss": this.network.asResult(() => tidy(() => this.#lossAt("eval", 0).item())),
      }
    );
  }

  async page(): ReturnType<FitTask["page"]> {
    return { page: zeros([1, 3, 4, 4]), about: { updates: this.#steps } };
  }

  state(): FitState {
    const { tensors, values } = this.network.state();
    return { tensors, values: { ...values, steps: this.#steps } };
  }

  load(state: FitState): void {
    this.network.load(state);
    this.#steps = state.values.steps as number;
  }

  model(): ReturnType<FitTask["model"]> {
    return { ...this.network.weights(), config: { inFeatures: 2 } };
  }

  [Symbol.dispose](): void {
    this.network.dispose();
  }
}

/** Values of a run of each command, over those that {@link tinyPretraining} shares with it. */
const OTHERS: Readonly<Record<string, Values>> = {
  tokenizer: {
    model: { ch: 8, chMult: [1, 2], numResBlocks: 1, zChannels: 8, normGroups: 4, codebookSize: 32 },
    loss: { gan: { weight: 0.1, start: 3, lecam: 0.01, ndf: 8, nLayers: 1 }, restartAfter: 2 },
  },
  classifier: { classifier: { widths: [8, 8], shift: 1 } },
};

/** A run of one command in a folder of `tinyFolder`, with changes. */
function runOf(command: string, folder: string, changes: Values): Promise<FitResult> {
  const options = { screen: new Shown() };
  if (command === "pretrain") {
    const resolved = tinyPretraining(folder, changes);
    return fitLoop(resolved, () => openPretrainTask(resolved.config), options);
  }
  const values = {
    run: { dir: join(folder, "run"), ifExists: "fail" },
    data: { source: join(folder, "images"), size: 16, evalPart: 0.2, workers: 1 },
    log: { every: 3, imagesEvery: 4 },
    train: { batch: 4, threads: 1, device: "cpu" },
    ...OTHERS[command],
  };
  if (command === "tokenizer") {
    const resolved = resolveConfig({ values: merged(values, changes) }, tokenizerKind);
    return fitLoop(resolved, () => openTokenizerTask(resolved.config), options);
  }
  const resolved = resolveConfig({ values: merged(values, changes) }, classifierKind);
  return fitLoop(resolved, () => openClassifierTask(resolved.config), options);
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const [, , folder = ".", changes = "{}", command = "pretrain"] = process.argv;
  const { step, end } = await runOf(command, folder, JSON.parse(changes) as Values);
  process.stdout.write(JSON.stringify({ step, end }));
}
