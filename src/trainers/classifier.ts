/**
 * Trains a small classifier. Its features are then used by `reward.perceptual`, `eval.perceptual` and `rlar eval
 * --features`. The network is in `metrics/classifier.ts`, the loop in `loop.ts`.
 */

import type { ClassifierTrainConfig } from "../config/classifier.js";
import { updatesOf } from "../config/fit.js";
import { augment, type Batch, type Batches, type Cursor, labelledPage } from "../data/index.js";
import { gatherValues } from "../distributed/index.js";
import type { FeatureClassifier } from "../metrics/index.js";
import { buildClassifier } from "../rl_ar_finetune/builder.js";
import { castOf } from "../rl_ar_finetune/parts.js";
import { openImages, type RunImages } from "../run/images.js";
import type { Clock } from "../run/metrics.js";
import type { PlainData } from "../run/plain_data.js";
import {
  type AutocastState,
  autocast,
  deriveSeed,
  expected,
  functional as F,
  keep,
  manualSeed,
  stream,
  type Tensor,
  tidy,
} from "../torch/index.js";
import type { FitModel, FitState, FitStep, FitTask } from "./loop.js";
import { addedUp, FitNetwork, meansOfAll, openDevice, partOf } from "./network.js";

/** Number of misclassified images in a picture. */
const SHOWN = 48;

/** A misclassified held-out image. */
interface Mistake {
  readonly id: string;
  readonly is: string;
  readonly takenFor: string;
  /** Of the predicted class. */
  readonly probability: number;
  /** float32 `[1, 3, s, s]`. */
  readonly image: Tensor;
}

/**
 * Open the images and build the network.
 *
 * @throws RangeError for images that cannot be read, or of only one class.
 */
export async function openClassifierTask(config: ClassifierTrainConfig): Promise<FitTask> {
  const device = openDevice(config);
  const images = await openImages(config, {
    batchSize: config.train.batch,
    device,
    wants: "which are to be classified",
  });
  const { classNames, length } = images.source as NonNullable<RunImages["source"]>;
  if (classNames.length < 2) {
    const remedy =
      "A classifier of one class tells nothing: put each class into a folder of its own, or name what holds the class in data.label";
    throw expected("data.source", "images of at least 2 classes", classNames.length, remedy);
  }
  manualSeed(deriveSeed(config.seed, "init"));
  const { widths, depth } = config.classifier;
  const model = buildClassifier({ numClasses: classNames.length, classNames, widths, depth }).to({ device });
  return new ClassifierTask(config, images, length, model, castOf(config.precision.model, device));
}

class ClassifierTask implements FitTask {
  readonly total: number;
  readonly fingerprint: string | null;
  readonly about: FitTask["about"];
  readonly notes: readonly string[];
  readonly unreadable: RunImages["unreadable"];
  readonly #config: ClassifierTrainConfig;
  readonly #images: RunImages;
  readonly #network: FitNetwork<FeatureClassifier>;
  readonly #cast: AutocastState | null;
  #batches: Batches | null = null;
  #cursor: Cursor | undefined;

  constructor(
    config: ClassifierTrainConfig,
    images: RunImages,
    length: number,
    model: FeatureClassifier,
    cast: AutocastState | null,
  ) {
    const { optimizer, ema, data } = config;
    this.total = updatesOf(config, length);
    this.fingerprint = images.fingerprint;
    this.about = { images: length, classes: [...model.config.classNames], size: data.size };
    this.notes = images.notes;
    this.unreadable = images.unreadable;
    this.#config = config;
    this.#images = images;
    this.#network = new FitNetwork(model, {
      optimizer,
      ema,
      total: this.total,
      isSharded: config.train.shardOptimizer,
    });
    this.#cast = cast;
  }

  async step(step: number, clock: Clock, changing = (): void => {}): Promise<FitStep> {
    const { classifier, seed } = this.#config;
    this.#batches ??= this.#images.batchesFrom(this.#cursor);
    using batch = await this.#batches.next();
    clock.mark("time/data");
    using generator = stream(seed, "augment", step);
    const { all, share } = partOf(batch);
    const own = tidy(() => {
      const images = augment(batch.images as Tensor, classifier, generator, batch.place);
      const logits = this.#logits(images);
      const mean = F.crossEntropy(logits, batch.classes, { labelSmoothing: classifier.labelSmoothing });
      this.#network.accumulate([mean.mul(share)], (loss) => loss.backward());
      const hits = logits.argmax(1).eq(batch.classes).float().mean();
      return { loss: mean.item(), accuracy: hits.item() };
    });
    const { loss, accuracy } = meansOfAll(own, share) as typeof own;
    clock.mark("time/gradient");
    changing();
    const { skipped, metrics } = this.#network.update(step, loss);
    clock.mark("time/update");
    this.#cursor = batch.cursor;
    return {
      metrics: { "train/loss": loss, "train/accuracy": accuracy, ...metrics },
      images: all,
      skipped,
      cursor: batch.cursor,
    };
  }

  /**
   * Accuracy, balanced accuracy (the mean over the classes that occur), and the loss without label smoothing, in nats.
   */
  async evaluate(): Promise<Readonly<Record<string, number>>> {
    const { numClasses } = this.#network.module;
    const own = { hits: new Float64Array(numClasses), counts: new Float64Array(numClasses), loss: 0 };
    await this.#eachHeldOut((batch, logits) => {
      own.loss += F.crossEntropy(logits, batch.classes, { reduction: "sum" }).item();
      const found = logits.argmax(1).eq(batch.classes).toList() as number[];
      for (const [i, id] of (batch.classes.toList() as number[]).entries()) {
        own.counts[id] = (own.counts[id] as number) + 1;
        own.hits[id] = (own.hits[id] as number) + (found[i] as number);
      }
    });
    const parts = gatherValues(own);
    const hits = addedUp(parts.map((part) => part.hits));
    const counts = addedUp(parts.map((part) => part.counts));
    const loss = parts.reduce((total, part) => total + part.loss, 0);
    const sum = (values: ArrayLike<number>): number => Array.from(values).reduce((a, b) => a + b, 0);
    const images = sum(counts);
    if (images === 0) return {};
    const recalls = Array.from(counts).flatMap((count, id) =>
      count === 0 ? [] : [(hits[id] as number) / count],
    );
    return {
      "eval/accuracy": sum(hits) / images,
      "eval/balanced_accuracy": sum(recalls) / recalls.length,
      "eval/loss": loss / images,
    };
  }

  /** The misclassified held-out images with the highest confidence; null if all are classified correctly. */
  async page(): ReturnType<FitTask["page"]> {
    const { classNames } = this.#network.module.config;
    const mistakes: Mistake[] = [];
    await this.#eachHeldOut((batch, logits) => {
      const top = logits.softmax(1).max(1);
      const probabilities = top.values.toList() as number[];
      const guesses = top.indices.toList() as number[];
      for (const [i, id] of (batch.classes.toList() as number[]).entries()) {
        const guess = guesses[i] as number;
        if (guess === id) continue;
        mistakes.push({
          id: batch.ids[i] as string,
          is: classNames[id] as string,
          takenFor: classNames[guess] as string,
          probability: probabilities[i] as number,
          image: keep((batch.images as Tensor).narrow(0, i, 1).cpu().clone()),
        });
      }
      mistakes.sort((a, b) => b.probability - a.probability);
      for (const { image } of mistakes.splice(SHOWN)) image.dispose();
    });
    if (mistakes.length === 0) return null;
    const rows = mistakes.map(({ is, takenFor, image }) => ({ label: `${is}: ${takenFor}?`, images: image }));
    const page = labelledPage(rows);
    for (const { image } of mistakes) image.dispose();
    return { page, about: { mistakes: mistakes.map(({ image: _, ...rest }) => rest) } };
  }

  state(): FitState {
    const { tensors, values } = this.#network.state();
    return { tensors, values: { ...values, cursor: (this.#cursor ?? null) as PlainData } };
  }

  load(state: FitState): void {
    this.#network.load(state);
    this.#batches?.close();
    this.#batches = null;
    this.#cursor = (state.values.cursor ?? undefined) as Cursor | undefined;
  }

  model(): FitModel {
    const { config } = this.#network.module;
    return { ...this.#network.weights(), config: { ...config } as PlainData };
  }

  [Symbol.dispose](): void {
    this.#batches?.close();
    this.#images[Symbol.dispose]();
    this.#network.dispose();
  }

  /** float32 `[N, K]`, at least. */
  #logits(images: Tensor): Tensor {
    const run = (): Tensor => this.#network.module.logits(images);
    return (this.#cast === null ? run() : autocast(this.#cast, run)).float();
  }

  /** Logits of the held-out images, batch by batch, in eval mode and with the EMA of the weights if there is one. */
  async #eachHeldOut(use: (batch: Batch, logits: Tensor) => void): Promise<void> {
    for await (const batch of this.#images.evalBatches()) {
      using _ = batch;
      this.#network.asResult(() => use(batch, this.#logits(batch.images as Tensor)));
    }
  }
}
