/**
 * Trains a tokenizer: encoder, codebook and decoder together, with losses on pixels, perceptual features and a
 * discriminator. The losses are in `tokenizer_losses.ts` and in the model's codebook, the training loop is in
 * `loop.ts`, the keys are in `config/tokenizer.ts`.
 *
 * After LlamaGen (Sun et al. 2024) and IBQ (Shi et al. 2024). Deviations, beside those of the losses: the learning rate
 * has a schedule by default; images are center crops, optionally mirrored, not random crops; discriminator and decoder
 * are updated from the same logits, as in LlamaGen, while IBQ updates the discriminator first.
 */

import { updatesOf } from "../config/fit.js";
import { type ResolvedConfig, resolvedFor } from "../config/resolve.js";
import {
  type TokenizerTrainConfig,
  type TokenizerTrainConfigInput,
  tokenizerKind,
} from "../config/tokenizer.js";
import { type Batches, type Cursor, labelledPage } from "../data/index.js";
import { allGather, gatherValues } from "../distributed/index.js";
import type { LPIPS, NLayerDiscriminator, PerceptualDistance } from "../metrics/index.js";
import {
  buildDiscriminator,
  buildTokenizerModel,
  openDiscriminator,
  openDistance,
  openTokenizer,
} from "../rl_ar_finetune/builder.js";
import { castOf } from "../rl_ar_finetune/parts.js";
import { reconstructionTerm } from "../rl_ar_finetune/rewards.js";
import { openImages, type RunImages } from "../run/images.js";
import type { TrainOptions } from "../run/log.js";
import type { Clock } from "../run/metrics.js";
import type { PlainData } from "../run/plain_data.js";
import { fingerprintOf } from "../run/resume.js";
import type { TokenizerConfig, TokenizerModel } from "../tokenizers/index.js";
import {
  type AutocastState,
  autocast,
  backward,
  cat,
  type Device,
  deriveSeed,
  expected,
  keep,
  known,
  manualSeed,
  noGrad,
  stack,
  stream,
  type Tensor,
  tidy,
} from "../torch/index.js";
import { CodeRestarts } from "./code_restarts.js";
import { type FitModel, type FitResult, type FitState, type FitStep, type FitTask, fitLoop } from "./loop.js";
import { addedUp, dropoutSeed, FitNetwork, meansOfAll, openDevice, partOf, sumsOfAll } from "./network.js";
import {
  backwardThroughImage,
  discriminatorLoss,
  generatorLoss,
  type LecamAverages,
  lecamLoss,
  pixelLoss,
  updateLecam,
} from "./tokenizer_losses.js";

/** Images in a picture of reconstructions. */
const SHOWN = 48;

/** Smallest image side for which SSIM is defined. */
const SSIM_MIN_SIZE = 11;

/** Weight of the entropy loss, as published for IBQ. */
const IBQ_ENTROPY_WEIGHT = 0.05;

/** Number of training images below which a discriminator is expected to overfit. */
const FEW_IMAGES = 1000;

/** A network for a perceptual distance, and the name of its metric. */
interface Distance {
  readonly name: "lpips" | "perceptual";
  readonly network: LPIPS | PerceptualDistance;
}

/**
 * Train a tokenizer.
 *
 * @param cfg - any part of a {@link TokenizerTrainConfig}, or a whole one from `resolveConfig(sources, tokenizerKind)`.
 * @throws ConfigError for a configuration that cannot be used, RangeError for data or models that cannot, DivergedError.
 */
export async function trainTokenizer(
  cfg: TokenizerTrainConfigInput | ResolvedConfig<TokenizerTrainConfig>,
  options: TrainOptions = {},
): Promise<FitResult> {
  const resolved = resolvedFor("trainTokenizer", cfg, tokenizerKind);
  return await fitLoop(resolved, () => openTokenizerTask(resolved.config), options);
}

/**
 * Open the images, and build the networks or load them from files.
 *
 * @throws RangeError that names the part that cannot be opened, and what to do.
 */
export async function openTokenizerTask(config: TokenizerTrainConfig): Promise<FitTask> {
  const device = openDevice(config);
  const { data, loss, train, seed } = config;
  const { path } = loss.perceptual;
  const images = await openImages(config, {
    batchSize: train.batch,
    device,
    wants: "which it is to reconstruct",
  });
  const total = updatesOf(config, (images.source as NonNullable<RunImages["source"]>).length);
  const start = loss.gan.start ?? Math.floor(total / 2);
  if (loss.gan.weight !== 0 && start >= total) {
    const remedy = "Lower it, or set loss.gan.weight=0";
    throw expected("loss.gan.start", `fewer than the ${total} updates of the run`, start, remedy);
  }
  // Weights that do not come from a file are drawn with the default generator.
  manualSeed(deriveSeed(seed, "init"));
  const model = modelOf(config, device);
  if (data.size % model.downsample !== 0) {
    model.dispose();
    throw expected("data.size", `a multiple of ${model.downsample}, the pixels of a code`, data.size);
  }
  const distance = path === null ? null : openDistance(path, { device });
  manualSeed(deriveSeed(seed, "discriminator"));
  const discriminator = loss.gan.weight === 0 ? null : discriminatorOf(config, device);
  return new TokenizerTask(config, { device, images, total, start, model, discriminator, distance });
}

/** The tokenizer to train. The weights of its losses come from the configuration; a file does not have them. */
function modelOf({ model, loss }: TokenizerTrainConfig, device: Device): TokenizerModel {
  const { preset, path, wrapper, weights, ...sizes } = model;
  const { weight, temperature } = loss.entropy;
  const entropy = weight === 0 ? 0 : 1;
  const losses = {
    beta: loss.commitment,
    entropyTemperature: temperature,
    // Without these keys, the family of the model decides.
    ...(weight !== null && { sampleEntropyWeight: entropy, batchEntropyWeight: entropy }),
  };
  if (path === null) {
    const given = Object.entries(sizes).filter(([, value]) => value !== null);
    const changes: Partial<TokenizerConfig> = { ...Object.fromEntries(given), ...losses };
    return buildTokenizerModel(preset, changes).to({ device });
  }
  const { tokenizer } = openTokenizer(path, {
    device,
    config: losses,
    ...known({ wrapper, weights }),
  });
  return (tokenizer.vq as TokenizerModel).train().requiresGrad_();
}

function discriminatorOf({ loss: { gan } }: TokenizerTrainConfig, device: Device): NLayerDiscriminator {
  const { path, ndf, nLayers } = gan;
  if (path === null) return buildDiscriminator({ ndf, nLayers }).to({ device });
  return openDiscriminator(path, { device }).train().requiresGrad_();
}

/** Images and networks of a task. The task disposes of them. */
interface TokenizerParts {
  readonly device: Device;
  readonly images: RunImages;
  readonly total: number;
  /** First update of the discriminator. */
  readonly start: number;
  readonly model: TokenizerModel;
  readonly discriminator: NLayerDiscriminator | null;
  readonly distance: Distance | null;
}

/** What {@link fitLoop} runs for `rlar tokenizer`. */
class TokenizerTask implements FitTask {
  readonly total: number;
  readonly fingerprint: string | null;
  readonly frozen: Readonly<Record<string, string>>;
  readonly about: FitTask["about"];
  readonly notes: readonly string[];
  readonly unreadable: RunImages["unreadable"];
  readonly #config: TokenizerTrainConfig;
  readonly #images: RunImages;
  readonly #network: FitNetwork<TokenizerModel>;
  readonly #critic: FitNetwork<NLayerDiscriminator> | null;
  readonly #distance: Distance | null;
  readonly #restarts: CodeRestarts | null;
  readonly #cast: AutocastState | null;
  readonly #start: number;
  #lecam: LecamAverages = { real: 0, fake: 0 };
  #batches: Batches | null = null;
  #cursor: Cursor | undefined;

  constructor(config: TokenizerTrainConfig, parts: TokenizerParts) {
    const { optimizer, ema, data, loss } = config;
    const { device, images, total, start, model, discriminator, distance } = parts;
    const { length, classNames } = images.source as NonNullable<RunImages["source"]>;
    this.total = total;
    this.fingerprint = images.fingerprint;
    this.frozen = distance === null ? {} : fingerprintOf("network of loss.perceptual", distance.network);
    this.about = { images: length, classes: classNames, size: data.size };
    this.notes = [...trainingNotes(config, length), ...images.notes];
    this.unreadable = images.unreadable;
    this.#config = config;
    this.#images = images;
    this.#start = start;
    const isSharded = config.train.shardOptimizer;
    this.#network = new FitNetwork(model, { optimizer, ema, total, isSharded });
    const criticOptimizer = { ...optimizer, lr: loss.gan.lr ?? optimizer.lr };
    const criticOptions = { optimizer: criticOptimizer, ema: null, total, name: "discriminator", isSharded };
    this.#critic = discriminator === null ? null : new FitNetwork(discriminator, criticOptions);
    this.#distance = distance;
    this.#restarts = loss.restartAfter === 0 ? null : new CodeRestarts(model, loss.restartAfter);
    this.#cast = castOf(config.precision.model, device);
  }

  async step(step: number, clock: Clock, changing = (): void => {}): Promise<FitStep> {
    this.#batches ??= this.#images.batchesFrom(this.#cursor);
    using batch = await this.#batches.next();
    clock.mark("time/data");
    const images = batch.images as Tensor;
    const part = partOf(batch);
    const outcome = tidy(() => {
      const { codes, logits, metrics } = this.#descend(step, images, part);
      clock.mark("time/gradient");
      changing();
      const update = this.#network.update(step, metrics["train/loss"] as number);
      clock.mark("time/update");
      const critic = update.skipped || logits === null ? null : this.#judge(step, images, logits, part.share);
      if (critic !== null) clock.mark("time/discriminator");
      const restarted = update.skipped ? 0 : this.#restart(step, images, codes);
      return {
        skipped: update.skipped || critic?.skipped === true,
        metrics: {
          ...metrics,
          ...update.metrics,
          ...critic?.metrics,
          ...(this.#restarts !== null && { "train/codes_restarted": restarted }),
        },
      };
    });
    this.#cursor = batch.cursor;
    return { ...outcome, images: part.all, cursor: batch.cursor };
  }

  /**
   * Compute the gradients of the tokenizer. Codes and metrics are those of the images of all processes. `logits` are
   * the discriminator's logits of this process's reconstructions; gradients can flow from them to its weights.
   */
  #descend(
    step: number,
    images: Tensor,
    { all, share }: ReturnType<typeof partOf>,
  ): { codes: Tensor; logits: Tensor | null; metrics: Record<string, number> } {
    const { module: model } = this.#network;
    const { loss, seed } = this.#config;
    const { pixel, perceptual, gan } = loss;
    // Dropout uses the default generator.
    if (model.config.dropout > 0) manualSeed(dropoutSeed(seed, step));
    const out = this.#inCast(() => model.forward(images));
    const own = Object.entries(out.losses).map(([name, term]) =>
      term.mul(name === "entropy" ? this.#entropyWeight : loss.codebook),
    );
    const critic = this.#critic !== null && step >= this.#start ? this.#critic : null;
    const backwardOf = (reconstruction: Tensor) =>
      backwardThroughImage(
        reconstruction,
        model.decoder.conv_out.weight,
        (made) => {
          const pixels = pixelLoss(images, made, pixel.kind);
          const terms: Record<string, Tensor> = { [pixel.kind]: pixels };
          let near = pixels.mul(pixel.weight);
          if (this.#distance !== null && perceptual.weight !== 0) {
            const { name, network } = this.#distance;
            const distance = this.#inCast(() => network.forward(images, made)).mean();
            terms[name] = distance;
            near = near.add(distance, perceptual.weight);
          }
          const logits = critic === null ? null : this.#inCast(() => critic.module.forward(made));
          const adversarial = logits === null ? null : generatorLoss(logits, gan.generator);
          return { near, adversarial, logits, terms };
        },
        { weight: gan.weight, isAdaptive: gan.adaptive },
        own,
        share,
      );
    const [result] = this.#network.accumulate([out.reconstruction], backwardOf);
    const { near, adversarial, logits, terms, factor } = result as ReturnType<typeof backwardOf>;
    const sum = own.reduce((total, term) => total.add(term), near);
    const total = adversarial === null ? sum : sum.add(adversarial, factor);
    const shown = Object.entries({ loss: total, ...terms, ...out.losses });
    const codes = allGather(out.codes, all);
    const means = numbersOf({
      ...Object.fromEntries(shown.map(([name, term]) => [`train/${name}`, term])),
      ...(adversarial !== null && { "gan/generator": adversarial }),
    });
    const metrics = meansOfAll(means, share);
    if (adversarial !== null) metrics["gan/weight"] = factor;
    metrics["train/codebook_used"] = codes.unique().numel / model.codebookSize;
    return { codes, logits, metrics };
  }

  get #entropyWeight(): number {
    return this.#config.loss.entropy.weight ?? IBQ_ENTROPY_WEIGHT;
  }

  /** An update of the discriminator. */
  #judge(
    step: number,
    images: Tensor,
    fake: Tensor,
    share: number,
  ): { skipped: boolean; metrics: Record<string, number> } {
    const critic = this.#critic as FitNetwork<NLayerDiscriminator>;
    const { discriminator, lecam } = this.#config.loss.gan;
    const real = this.#inCast(() => critic.module.forward(images));
    const terms: Record<string, Tensor> = {
      "gan/discriminator": discriminatorLoss(real, fake, discriminator),
      "gan/real": real.float().mean(),
      "gan/fake": fake.float().mean(),
    };
    let loss = terms["gan/discriminator"] as Tensor;
    const averages = lecam > 0 ? updateLecam(this.#lecam, real, fake, undefined, share) : this.#lecam;
    if (lecam > 0) {
      const penalty = lecamLoss(real, fake, averages);
      terms["gan/lecam"] = penalty;
      loss = loss.add(penalty, lecam);
    }
    backward([loss.mul(share)], [null], { inputs: critic.module.parameters() });
    const means = meansOfAll({ ...numbersOf(terms), loss: loss.item() }, share);
    const { loss: whole, ...shown } = means;
    const { skipped, metrics } = critic.update(step, whole as number);
    if (!skipped) this.#lecam = averages;
    return {
      skipped,
      metrics: { ...shown, "gan/grad_norm": metrics["optim/grad_norm"] as number },
    };
  }

  #restart(step: number, images: Tensor, codes: Tensor): number {
    if (this.#restarts === null) return 0;
    const { module: model, ema } = this.#network;
    using generator = stream(this.#config.seed, "restarts", step);
    const average = ema?.stateDict().tensors["quantize.embedding.weight"];
    const latentsOf = (indices: Tensor): Tensor => {
      const all = allGather(images, codes.size(0)); // every process moves the same codes to the same features
      return this.#inCast(() => model.encodeLatent(all.indexSelect(0, indices)));
    };
    return this.#restarts.update(codes, latentsOf, generator, average === undefined ? [] : [average]);
  }

  async evaluate(): Promise<Readonly<Record<string, number>>> {
    const { loss } = this.#config;
    const { module: model } = this.#network;
    const sums: Record<string, number> = {};
    const counts = new Float64Array(model.codebookSize);
    let own = 0;
    for await (const batch of this.#images.evalBatches()) {
      using _ = batch;
      this.#network.asResult(() => {
        const real = batch.images as Tensor;
        const { codes, reconstruction } = this.#reconstruct(real);
        for (const [name, values] of Object.entries(this.#compare(real, reconstruction))) {
          sums[name] = (sums[name] ?? 0) + values.sum().item();
        }
        const found = codes.flatten().bincount(model.codebookSize).toList() as number[];
        for (const [code, count] of found.entries()) counts[code] = (counts[code] as number) + count;
        own += real.size(0);
      });
    }
    const { images = 0, ...totals } = sumsOfAll({ ...sums, images: own });
    if (images === 0) return {};
    const means = Object.fromEntries(
      Object.entries(totals).map(([name, sum]) => [`eval/${name}`, sum / images]),
    );
    const pixels = loss.pixel.weight * (means[`eval/${loss.pixel.kind}`] as number);
    const distance =
      this.#distance === null ? 0 : loss.perceptual.weight * (means[`eval/${this.#distance.name}`] as number);
    const used = addedUp(gatherValues(counts)).filter((count) => count > 0);
    const total = used.reduce((sum, count) => sum + count, 0);
    const entropy = used.reduce((sum, count) => sum - (count / total) * Math.log(count / total), 0);
    return {
      "eval/loss": pixels + distance,
      ...means,
      "eval/codebook_used": used.length / model.codebookSize,
      "eval/codebook_perplexity": Math.exp(entropy),
    };
  }

  /** Held-out images with their reconstructions; null without held-out images. */
  async page(): ReturnType<FitTask["page"]> {
    const images: Tensor[] = [];
    const made: Tensor[] = [];
    const ids: string[] = [];
    const classes: number[] = [];
    let seen = 0; // by all processes, so that all end the loop together
    for await (const batch of this.#images.evalBatches()) {
      using _ = batch;
      const count = Math.min(batch.ids.length, SHOWN - ids.length);
      classes.push(...(batch.classes.toList() as number[]).slice(0, count));
      this.#network.asResult(() => {
        const some = (batch.images as Tensor).narrow(0, 0, count);
        images.push(keep(some.cpu().clone()));
        made.push(keep(this.#reconstruct(some).reconstruction.cpu()));
      });
      ids.push(...batch.ids.slice(0, count));
      seen += partOf(batch).all;
      if (seen >= SHOWN) break;
    }
    if (ids.length === 0) return null;
    const names = this.#images.source?.classNames ?? [];
    const page = tidy(() => {
      const [inputs, outputs] = [cat(images), cat(made)];
      const rows = classes.map((c, i) => {
        const pair = cat([inputs.narrow(0, i, 1), outputs.narrow(0, i, 1)]);
        return { label: names.length > 1 ? (names[c] ?? `class ${c}`) : "", images: pair };
      });
      return labelledPage(rows, ["input", "reconstr."]);
    });
    for (const part of [...images, ...made]) part.dispose();
    return { page, about: { columns: ["input", "reconstruction"], ids } };
  }

  state(): FitState {
    const model = this.#network.state();
    const critic = this.#critic?.state();
    return {
      tensors: {
        ...model.tensors,
        ...critic?.tensors,
        ...(this.#restarts !== null && { restarts: this.#restarts.stateDict() }),
      },
      values: {
        ...model.values,
        ...critic?.values,
        lecam: { ...this.#lecam },
        cursor: (this.#cursor ?? null) as PlainData,
      },
    };
  }

  load(state: FitState): void {
    this.#network.load(state);
    this.#critic?.load(state);
    this.#restarts?.loadStateDict(state.tensors.restarts ?? {});
    this.#lecam = state.values.lecam as unknown as LecamAverages;
    this.#batches?.close();
    this.#batches = null;
    this.#cursor = (state.values.cursor ?? undefined) as Cursor | undefined;
  }

  model(): FitModel {
    const { config } = this.#network.module;
    return { ...this.#network.weights(), config: { ...config } as unknown as PlainData };
  }

  [Symbol.dispose](): void {
    this.#batches?.close();
    this.#images[Symbol.dispose]();
    this.#network.dispose();
    this.#critic?.dispose();
    this.#restarts?.dispose();
    const network = this.#distance?.network;
    if (network !== undefined) ("network" in network ? network.network : network).dispose();
  }

  #inCast<T>(fn: () => T): T {
    return this.#cast === null ? fn() : autocast(this.#cast, fn);
  }

  /**
   * Codes int64 `[B, T]` of images, and reconstructions float32 `[B, 3, H, W]`, clamped to [-1, 1]. Computed in
   * float32, as by a frozen tokenizer.
   */
  #reconstruct(images: Tensor): { codes: Tensor; reconstruction: Tensor } {
    const { module: model } = this.#network;
    const grid = [images.size(2) / model.downsample, images.size(3) / model.downsample] as const;
    const codes = model.encode(images);
    return { codes, reconstruction: model.decodeCode(codes, grid).clamp_(-1, 1) };
  }

  /** Metrics of reconstructions by name, float `[B]` each. */
  #compare(images: Tensor, samples: Tensor): Record<string, Tensor> {
    const isLarge = Math.min(images.size(2), images.size(3)) >= SSIM_MIN_SIZE;
    const types = isLarge ? (["psnr", "ssim", "l1", "l2"] as const) : (["psnr", "l1", "l2"] as const);
    const found = types.map((type) => [type, reconstructionTerm(type).measure({ images, samples })] as const);
    const { name, network } = this.#distance ?? {};
    const distance =
      network === undefined ? [] : [[name as string, network.forward(images, samples)] as const];
    return Object.fromEntries([...found, ...distance]);
  }
}

/** Notes that depend on the number of images. */
function trainingNotes({ loss: { gan } }: TokenizerTrainConfig, images: number): string[] {
  if (gan.weight === 0 || images >= FEW_IMAGES) return [];
  return [
    `${images} training images are few for a discriminator, which learns them by heart and then rewards noise: watch ` +
      "gan/real and gan/fake; set loss.gan.lecam=0.05, or loss.gan.weight=0.",
  ];
}

/** Values of 0-d tensors, copied from a GPU in one transfer. */
function numbersOf(terms: Readonly<Record<string, Tensor>>): Record<string, number> {
  const names = Object.keys(terms);
  const values = noGrad(() =>
    tidy(() => stack(names.map((name) => (terms[name] as Tensor).detach().float())).toList()),
  ) as number[];
  return Object.fromEntries(names.map((name, i) => [name, values[i] as number]));
}
