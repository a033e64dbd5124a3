/**
 * Pre-trains a policy: cross-entropy on the codes of images from a frozen tokenizer, with dropped classes for
 * classifier-free guidance. The training loop is in `loop.ts`, the keys are in `config/pretrain.ts`.
 *
 * After Sun et al. 2024, "Autoregressive Model Beats Diffusion: Llama for Scalable Image Generation" (LlamaGen): AdamW
 * with weight decay of matrices only, classes dropped with probability 0.1. Deviations: the learning rate has a
 * schedule by default; contexts may have noise, with another fraction for each sequence.
 */

import { updatesOf } from "../config/fit.js";
import { type PretrainConfig, type PretrainConfigInput, pretrainKind } from "../config/pretrain.js";
import { type ResolvedConfig, resolvedFor } from "../config/resolve.js";
import {
  type Batch,
  type Batches,
  BatchReader,
  type ImageSource,
  labelledPage,
  onePass,
  UnreadableImages,
} from "../data/index.js";
import type { ArPolicy, Condition } from "../policies/index.js";
import { castOf, classesOfPolicy, policyOf, tokenizerOf } from "../rl_ar_finetune/parts.js";
import { mapCondition, type Start, sampleCodesWithLogprobs } from "../rl_ar_finetune/sampling.js";
import { logitChunk, rangesOf } from "../rl_ar_finetune/scoring.js";
import { conditionOf } from "../rl_ar_finetune/step.js";
import { notesOfSources, openSources, readOptionsOf, someOf } from "../run/images.js";
import type { TrainOptions } from "../run/log.js";
import type { Clock } from "../run/metrics.js";
import type { PlainData } from "../run/plain_data.js";
import { fingerprintOf } from "../run/resume.js";
import type { FrozenTokenizer } from "../tokenizers/index.js";
import {
  type AutocastState,
  autocast,
  cat,
  checkpoint,
  type Device,
  deriveSeed,
  empty,
  expected,
  functional as F,
  type Generator,
  keep,
  manualSeed,
  rand,
  randint,
  stream,
  type Tensor,
  tensor,
  tidy,
  toDevice,
  where,
} from "../torch/index.js";
import { CodeBatches, type CodeCache, cacheCodes } from "./code_cache.js";
import {
  type FitModel,
  type FitOpening,
  type FitResult,
  type FitState,
  type FitStep,
  type FitTask,
  fitLoop,
} from "./loop.js";
import { dropoutSeed, FitNetwork, openDevice, partOf, sumsOfAll } from "./network.js";

/**
 * Train a policy on the codes of images.
 *
 * @param cfg - any part of a {@link PretrainConfig}, or a whole one from `resolveConfig(sources, pretrainKind)`.
 * @throws ConfigError for a configuration that cannot be used, RangeError for data or models that cannot, DivergedError.
 */
export async function pretrainPolicy(
  cfg: PretrainConfigInput | ResolvedConfig<PretrainConfig>,
  options: TrainOptions = {},
): Promise<FitResult> {
  const resolved = resolvedFor("pretrainPolicy", cfg, pretrainKind);
  return await fitLoop(resolved, (opening) => openPretrainTask(resolved.config, opening), options);
}

/** Sequences with their conditions. */
interface Sequences {
  /** int64 `[B, T]`. */
  readonly codes: Tensor;
  readonly condition: Condition;
}

/** Rows and columns in a picture of samples. */
const PAGE = 8;

/**
 * Open tokenizer, images and policy, and encode the images.
 *
 * @throws RangeError that names the part that cannot be opened, and what to do.
 */
export async function openPretrainTask(
  config: PretrainConfig,
  opening: FitOpening = { say: () => {} },
): Promise<PretrainTask> {
  const device = openDevice(config);
  const ofModels: string[] = [];
  const tokenizer = tokenizerOf(config, device, ofModels);
  const { train, heldOut } = await openSources(config);
  const codes = codesPerImage(config, tokenizer, train);
  // Weights that do not come from a file are drawn with the default generator.
  manualSeed(deriveSeed(config.seed, "init"));
  const policy = policyFor(config, device, tokenizer, codes, train.classNames.length, ofModels);
  const numClasses = config.pretrain.start === "condition" ? classesOfPolicy(policy) : undefined;
  const notes = [...ofModels, ...notesOfSources({ train, heldOut }, numClasses)];
  const unreadable = new UnreadableImages();
  const { batch: batchSize } = config.train;
  const reading = {
    ...readOptionsOf({ ...config, rollout: { images: batchSize } }),
    device,
    codebookSize: tokenizer.codebookSize,
    onUnreadable: (id: string, problem: string) => unreadable.add(id, problem),
  };
  const shared = { ...reading, isShared: true };
  const cache =
    train.kind === "images" && config.pretrain.cache
      ? await cacheCodes(train, tokenizer, {
          ...reading,
          batchSize: encodeBatchOf(config),
          size: config.data.size,
          cornerScale: config.pretrain.cornerScale,
          ...opening,
        })
      : null;
  const batchesFrom: PretrainParts["batchesFrom"] = (cursor) => {
    const options = { ...shared, ...(cursor && { cursor }) };
    return cache === null ? new BatchReader(train, options) : new CodeBatches(cache, options);
  };
  const held: Sequences[] = [];
  if (heldOut !== undefined && config.eval.every > 0) {
    for await (const batch of onePass(someOf(heldOut, config.eval.images), shared)) {
      using _ = batch;
      held.push(
        tidy(() => {
          const { codes, condition } = sequencesOf(config, tokenizer, batch);
          const kept = (rows: Tensor): Tensor => keep(rows.clone()); // the batch's own tensors are freed with it
          return { codes: kept(codes), condition: mapCondition(condition, kept) };
        }),
      );
    }
  }
  return new PretrainTask(config, {
    device,
    tokenizer,
    policy,
    cache,
    held,
    batchesFrom,
    source: train,
    images: cache?.ids.length ?? train.length,
    codes,
    notes: [...notes, ...unreadable.news()],
    unreadable,
  });
}

interface PretrainParts {
  readonly device: Device;
  readonly tokenizer: FrozenTokenizer;
  readonly policy: ArPolicy;
  readonly cache: CodeCache | null;
  /** Held-out sequences. */
  readonly held: readonly Sequences[];
  readonly batchesFrom: (cursor: FitStep["cursor"] | undefined) => Batches;
  readonly source: ImageSource;
  readonly images: number;
  /** T. */
  readonly codes: number;
  /** Notes for the user. */
  readonly notes: readonly string[];
  readonly unreadable: UnreadableImages;
}

/** What `fitLoop` runs for `rlar pretrain`. */
export class PretrainTask implements FitTask {
  readonly total: number;
  readonly fingerprint: string;
  readonly frozen: Readonly<Record<string, string>>;
  readonly about: FitTask["about"];
  readonly notes: readonly string[];
  readonly unreadable: UnreadableImages;
  readonly network: FitNetwork<ArPolicy>;
  readonly #config: PretrainConfig;
  readonly #parts: PretrainParts;
  readonly #cast: AutocastState | null;
  #batches: Batches;
  #cursor: FitStep["cursor"] | undefined;
  /** Whether the data has text features. */
  #hasFeatures = false;

  constructor(config: PretrainConfig, parts: PretrainParts) {
    const { images, source, policy, tokenizer, cache, codes, device } = parts;
    const { optimizer, ema } = config;
    this.#config = config;
    this.#parts = parts;
    this.#cast = castOf(config.precision.model, device);
    this.total = updatesOf(config, images);
    this.fingerprint = source.fingerprint;
    this.frozen = fingerprintOf("tokenizer", tokenizer.vq);
    const { path } = config.tokenizer;
    const { codebookSize } = tokenizer;
    this.about = { images, classes: source.classNames, tokenizer: { path, codebookSize }, codes };
    this.notes = [...parts.notes, ...(cache === null ? [] : cacheNotes(cache))];
    this.unreadable = parts.unreadable;
    policy.gradientCheckpointing = config.ar.gradientCheckpointing;
    policy.train();
    const keepsModule = config.ar.policy !== null;
    const isSharded = config.train.shardOptimizer;
    this.network = new FitNetwork(policy, { optimizer, ema, total: this.total, keepsModule, isSharded });
    this.#batches = parts.batchesFrom(undefined);
  }

  async step(step: number, clock: Clock, changing = (): void => {}): Promise<FitStep> {
    const { pretrain, seed } = this.#config;
    const { tokenizer, policy } = this.#parts;
    using batch = await this.#batches.next();
    this.#hasFeatures = batch.features !== undefined;
    const { all } = partOf(batch);
    const own = tidy(() => {
      const { codes, condition } = sequencesOf(this.#config, tokenizer, batch);
      clock.mark("time/data");
      manualSeed(dropoutSeed(seed, step)); // dropout draws from the default generator
      using generator = stream(seed, "pretrain", step);
      const [b, t] = codes.dims(2);
      const place = batch.place ?? { from: 0, of: b };
      const shown = withDropped(condition, codes, pretrain.classDropout, generator, place);
      const context = mixedNoise(codes, pretrain.noise, policy.vocabSize, generator, place);
      const losses = this.network.accumulate(rangesOf(b, pretrain.microBatch ?? b), ([from, count]) => {
        const rows = (tensor: Tensor): Tensor => tensor.narrow(0, from, count);
        return tidy(() => {
          const loss = this.#loss(rows(context), mapCondition(shown, rows), rows(codes)).div(all * t);
          loss.backward();
          return loss.detach();
        });
      });
      return { loss: losses.reduce((a, b) => a.add(b)).item(), tokens: all * t };
    });
    const { loss } = sumsOfAll({ loss: own.loss }) as { loss: number };
    clock.mark("time/gradient");
    changing();
    const { skipped, metrics } = this.network.update(step, loss);
    clock.mark("time/update");
    this.#cursor = batch.cursor;
    const { tokens } = own;
    return {
      metrics: { "train/loss": loss, ...metrics },
      images: all,
      tokens,
      skipped,
      cursor: batch.cursor,
    };
  }

  /** Sum of the cross-entropies of codes `[B, T]` after contexts `[B, T - 1]`, nats. */
  #loss(context: Tensor, condition: Condition, codes: Tensor): Tensor {
    const { policy } = this.#parts;
    const run = (): Tensor => crossEntropySum(policy, policy.hidden(context, condition), codes);
    return this.#cast === null ? run() : autocast(this.#cast, run);
  }

  async evaluate(): Promise<Record<string, number>> {
    const { held, codes: t } = this.#parts;
    const own = { first: 0, second: 0, right: 0, none: 0, rows: 0 };
    const half = Math.floor(t / 2);
    const hasNull =
      this.#config.pretrain.classDropout > 0 && held[0] !== undefined && hasParts(held[0].condition);
    const sumOf = (part: Tensor): number => part.sum().item();
    this.network.asResult(() => {
      for (const { codes, condition } of held) {
        tidy(() => {
          const { nats, isRight } = this.#predict(codes, condition);
          own.first += sumOf(nats.narrow(1, 0, half));
          own.second += sumOf(nats.narrow(1, half, t - half));
          own.right += sumOf(isRight);
          own.rows += codes.size(0);
          if (!hasNull) return;
          const none = { ...condition, isDropped: codes.select(1, 0).ge(0) };
          own.none += sumOf(this.#predict(codes, none).nats);
        });
      }
    });
    const sums = sumsOfAll({ ...own, hasNull: hasNull ? 1 : 0 }) as typeof own & { hasNull: number };
    if (sums.rows === 0) return {};
    const tokens = sums.rows * t;
    const mean = (sums.first + sums.second) / tokens;
    return {
      "eval/nats_per_token": mean,
      "eval/perplexity": Math.exp(mean),
      "eval/accuracy": sums.right / tokens,
      ...(half > 0 && { "eval/nats_first_half": sums.first / (sums.rows * half) }),
      "eval/nats_second_half": sums.second / (sums.rows * (t - half)),
      ...(sums.hasNull > 0 && { "eval/nats_null": sums.none / tokens }),
    };
  }

  /**
   * For each code: its negative log-probability, float32 `[B, T]`, and whether it is the most likely code, bool `[B,
   * T]`.
   */
  #predict(codes: Tensor, condition: Condition): { nats: Tensor; isRight: Tensor } {
    const { policy } = this.#parts;
    const context = codes.narrow(1, 0, codes.size(1) - 1);
    const run = (): Tensor => policy.forward(context, condition); // [B, T, V]
    const logits = this.#cast === null ? run() : autocast(this.#cast, run);
    const nats = F.crossEntropy(logits.flatten(0, 1), codes.flatten(), { reduction: "none" });
    return { nats: nats.reshape(...codes.shape), isRight: logits.argmax(-1).eq(codes) };
  }

  async page(): ReturnType<FitTask["page"]> {
    const { tokenizer, policy, codes: t } = this.#parts;
    const side = Math.sqrt(t);
    return this.network.asResult(() => {
      const wanted = this.#pageStart();
      if (wanted === null || !Number.isInteger(side)) return null;
      const { start, rows, labels, about } = wanted;
      using generator = stream(this.#config.seed, "page", 0);
      const numGenerations = rows === 1 ? PAGE * PAGE : PAGE;
      const { tokens } = sampleCodesWithLogprobs(policy, start, t, { numGenerations, generator });
      const pieces = tokens.split(encodeBatchOf(this.#config));
      const images = cat(pieces.map((piece) => tokenizer.decodeCode(piece, [side, side])));
      const shown = images.clamp(-1, 1).cpu().split(PAGE);
      return { page: labelledPage(shown.map((row, i) => ({ label: labels[i] ?? "", images: row }))), about };
    });
  }

  /**
   * Conditions of the samples of a picture: one row per class or text, one row in all for an unconditional policy; null
   * if unknown.
   */
  #pageStart(): {
    start: Start;
    rows: number;
    labels: readonly string[];
    about: { readonly [name: string]: PlainData };
  } | null {
    const { held, source, device } = this.#parts;
    const none = empty([1, 0], { dtype: "int64", device });
    const { seed } = this.#config;
    if (this.#config.pretrain.start === "empty") return { start: none, rows: 1, labels: [], about: { seed } };
    if (this.#hasFeatures) {
      const texts = held[0];
      if (texts === undefined) return null;
      const rows = Math.min(PAGE, texts.codes.size(0));
      const start = mapCondition(texts.condition, (all) => all.narrow(0, 0, rows));
      return { start, rows, labels: [], about: { seed } };
    }
    const { classNames } = source;
    const rows = Math.min(PAGE, classNames.length);
    const ids = Array.from({ length: rows }, (_, i) => Math.floor((i * classNames.length) / rows));
    const classes = tensor(ids, { dtype: "int64", device });
    const labels = ids.map((id) => classNames[id] as string);
    return { start: { classes }, rows, labels, about: { classes: labels, seed } };
  }

  state(): FitState {
    const { tensors, values } = this.network.state();
    return { tensors, values: { ...values, cursor: (this.#cursor ?? null) as PlainData } };
  }

  load(state: FitState): void {
    this.network.load(state);
    this.#batches.close();
    this.#cursor = (state.values.cursor ?? undefined) as FitStep["cursor"] | undefined;
    this.#batches = this.#parts.batchesFrom(this.#cursor);
  }

  model(): FitModel {
    return { ...this.network.weights(), config: this.network.module.options as PlainData };
  }

  [Symbol.dispose](): void {
    this.#batches.close();
    const { cache, held, tokenizer } = this.#parts;
    cache?.[Symbol.dispose]();
    for (const { codes, condition } of held)
      for (const tensor of [codes, ...Object.values(condition)]) tensor?.dispose();
    this.network.dispose();
    if (this.#config.tokenizer.model === null) tokenizer.dispose();
  }
}

/** T, the codes of an image. */
function codesPerImage(config: PretrainConfig, tokenizer: FrozenTokenizer, source: ImageSource): number {
  if (source.codeLength !== undefined) return source.codeLength;
  const side = config.data.size / tokenizer.downsample;
  if (Number.isInteger(side)) return side * side;
  const what = `a multiple of ${tokenizer.downsample}, the pixels of a code`;
  throw expected("data.size", what, config.data.size);
}

/** The policy to train; a new one has as many classes as the data set, unless `ar.extra` sets another number. */
function policyFor(
  config: PretrainConfig,
  device: Device,
  tokenizer: FrozenTokenizer,
  codes: number,
  classes: number,
  notes: string[],
): ArPolicy {
  const { type, extra, cls } = config.ar;
  const known = {
    ...(cls === null && type === "gpt" && { classNum: classes }),
    ...(cls === null && type === "llamagen" && extra.modelType !== "t2i" && { numClasses: classes }),
  };
  const ar = { ...config.ar, extra: { ...known, ...extra } };
  const policy = policyOf({ ...config, ar }, device, tokenizer, codes, notes);
  if (policy.blockSize < codes) {
    const remedy = `Use images of ${Math.sqrt(policy.blockSize) * tokenizer.downsample} px, or another policy`;
    throw expected("data.size", `images of at most ${policy.blockSize} codes, the policy's`, codes, remedy);
  }
  const { classNum, numClasses = classNum } = policy.options as { classNum?: unknown; numClasses?: unknown };
  if (config.pretrain.start === "condition" && typeof numClasses === "number" && classes > numClasses) {
    const remedy = "Name them in data.classNames, or set pretrain.start: empty for a policy without classes";
    throw expected("data.source", `at most ${numClasses} classes, the policy's`, classes, remedy);
  }
  return policy;
}

/** Images per forward pass of the tokenizer; default half a million pixels. */
const encodeBatchOf = ({ tokenizer, data: { size } }: PretrainConfig): number =>
  tokenizer.decodeBatch ?? Math.min(32, Math.max(1, Math.floor(2 ** 19 / size ** 2)));

function cacheNotes({ codes, classes, variants, unreadable }: CodeCache): string[] {
  const [rows, t] = codes.dims(2);
  const bytes = rows * t * (codes.dtype === "int16" ? 2 : 4);
  const each = variants === 1 ? "" : ` x ${variants} variants`;
  const size = bytes < 1e8 ? `${(bytes / 1e6).toFixed(1)} MB` : `${(bytes / 1e9).toFixed(1)} GB`;
  return [
    `codes in memory: ${classes.length} images${each} x ${t} codes, ${size}`,
    ...(unreadable === 0 ? [] : [`${unreadable} images could not be read and are not trained on`]),
  ];
}

/** Codes and condition of a batch; images are encoded. Within a `tidy`. */
function sequencesOf(config: PretrainConfig, tokenizer: FrozenTokenizer, batch: Batch): Sequences {
  const condition = conditionOf(batch, config.pretrain.start);
  if (batch.codes !== undefined) return { codes: batch.codes, condition };
  const pieces = (batch.images as Tensor).split(encodeBatchOf(config));
  return { codes: cat(pieces.map((piece) => tokenizer.encode(piece))), condition };
}

/** Index of this process's first row in the batch of all processes, and the number of rows of that batch. */
type Place = NonNullable<Batch["place"]>;

const hasParts = (condition: Condition): boolean => Object.keys(condition).length > 0;

/**
 * The condition, replaced by the null condition with probability `p` for each sequence.
 *
 * @param place - of the sequences in the batch of all processes; it determines their random numbers.
 */
export function withDropped(
  condition: Condition,
  codes: Tensor,
  p: number,
  generator: Generator,
  place: Place = { from: 0, of: codes.size(0) },
): Condition {
  if (p === 0 || !hasParts(condition)) return condition;
  const isDropped = rand([place.of], { generator, dtype: "float64" })
    .narrow(0, place.from, codes.size(0))
    .lt(p);
  return { ...condition, isDropped: toDevice(isDropped, codes.device as Device) };
}

/**
 * The context of codes 1 ... T - 1, with noise: a probability from [0, noise] is drawn for each sequence, and each of
 * its codes is replaced by a uniformly random code with this probability.
 *
 * @param codes - int64 `[B, T]`.
 * @param place - as for {@link withDropped}.
 * @returns int64 `[B, T - 1]`.
 */
export function mixedNoise(
  codes: Tensor,
  noise: number,
  vocabSize: number,
  generator: Generator,
  place: Place = { from: 0, of: codes.size(0) },
): Tensor {
  return tidy(() => {
    const [b, t] = codes.dims(2);
    const before = codes.narrow(1, 0, t - 1);
    if (noise === 0) return before;
    const device = codes.device as Device;
    const own = (rows: Tensor): Tensor => rows.narrow(0, place.from, b);
    const share = own(rand([place.of, 1], { generator, dtype: "float64" })).mul(noise);
    const isNoise = own(rand([place.of, t - 1], { generator, dtype: "float64" })).lt(share);
    const uniform = own(randint(0, vocabSize, [place.of, t - 1], { generator }));
    return where(toDevice(isNoise, device), toDevice(uniform, device), before);
  });
}

/**
 * Sum over all positions of the negative log-probability of codes, nats.
 *
 * @param hidden - float `[B, T, D]`: states at the positions that predict the codes.
 * @param targets - int64 `[B, T]`.
 * @param chunk - number of positions whose logits are in memory at a time; by default such that there are about 16
 *   million logits.
 */
export function crossEntropySum(
  policy: ArPolicy,
  hidden: Tensor,
  targets: Tensor,
  chunk: number = 4 * logitChunk(policy),
): Tensor {
  const sum = (states: Tensor, codes: Tensor): Tensor =>
    tidy(() => F.crossEntropy(policy.logits(states), codes, { reduction: "sum" }));
  const [states, codes] = [hidden.flatten(0, 1), targets.flatten()];
  if (states.size(0) <= chunk) return sum(states, codes);
  // The backward pass recomputes the logits: with a large vocabulary they would take more memory than everything else.
  const targetsOf = codes.split(chunk);
  const parts = states.split(chunk).map((piece, i) => checkpoint(sum, [piece, targetsOf[i] as Tensor]));
  return parts.reduce((a, b) => a.add(b));
}
