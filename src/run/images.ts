/**
 * The images of a run: the data set, what is set apart of it, and batches of both. Every command that trains opens
 * them here, so that the same keys mean the same images.
 */

import type { DataConfig, TrainConfig } from "../config/resolve.js";
import {
  type Batch,
  type Batches,
  BatchReader,
  type BatchReaderOptions,
  type Cursor,
  fromIterable,
  type ImageSource,
  type Loader,
  onePass,
  openSource,
  type PassedOver,
  type ReadOptions,
  type SourceOptions,
  splitSource,
  subset,
} from "../data/index.js";
import { type Device, expected } from "../torch/index.js";

/** The keys that say which images there are. */
export interface ImagesConfig {
  readonly seed: number;
  readonly data: DataConfig;
  /** A program's own batches, in place of `data.source`. */
  readonly dataloader?: Loader | null;
  readonly eval: { readonly every: number; readonly images: number };
}

/** The two sides of a data set. */
export interface RunSources {
  readonly train: ImageSource;
  /** What is set apart, whole; undefined where nothing is evaluated. */
  readonly heldOut: ImageSource | undefined;
}

/** Images to train on and images to evaluate on. */
export interface RunImages {
  /** Fingerprint of the training images, null for a program's own loader. */
  readonly fingerprint: string | null;
  /** The training images, null for a program's own loader. */
  readonly source: ImageSource | null;
  /** Batches of the training images from a cursor on; what was passed over before it counts on. */
  readonly batchesFrom: (cursor: Cursor | undefined, passedOver?: PassedOver) => Batches;
  /** The images that are evaluated on, always the same. */
  readonly evalBatches: () => AsyncIterable<Batch>;
  readonly evalImages: number;
}

/**
 * Open the data set of `data.source`, and set apart what is evaluated on: `data.evalSource`, or a part of the source. The
 * part is the same whatever the run's seed, and whether or not the run evaluates on it: models that are trained one
 * after the other share what they never saw.
 *
 * @throws RangeError for a source that cannot be read or split.
 */
export async function openSources(config: ImagesConfig): Promise<RunSources> {
  const { data } = config;
  const options = sourceOptionsOf(config);
  const whole = await openSource(data.source as string, options);
  const own = await evalSourceOf(config);
  const group = groupOf(config);
  const isSplit = own === undefined && data.evalPart > 0;
  return isSplit
    ? splitSource(whole, { heldOut: data.evalPart, ...(group && { groupOf: group }) })
    : { train: whole, heldOut: own };
}

async function evalSourceOf(config: ImagesConfig): Promise<ImageSource | undefined> {
  const { evalSource } = config.data;
  return evalSource === null ? undefined : await openSource(evalSource, sourceOptionsOf(config));
}

/**
 * Open images, in batches.
 *
 * @param options.batchSize - images of a training batch, and at most of one to evaluate on.
 * @param options.wants - what the images are for, which code files cannot serve.
 * @throws RangeError for a source that cannot be read or split, or that holds codes.
 */
export async function openImages(
  config: ImagesConfig,
  options: { batchSize: number; device: Device; codebookSize?: number; wants: string },
): Promise<RunImages> {
  const { data } = config;
  const { wants, batchSize, ...where } = options;
  const reading = { ...readOptionsOf({ ...config, rollout: { images: batchSize } }), ...where };
  const { flip: _, seed: __, ...shape } = reading;
  const dataloader = config.dataloader ?? null;
  if (dataloader !== null) {
    const { size, crop } = data;
    const same = { batchSize, size, crop, device: options.device };
    return {
      fingerprint: null,
      source: null,
      batchesFrom: (cursor) => fromIterable(dataloader, { ...same, ...(cursor && { cursor }) }),
      ...evalOf(config, await evalSourceOf(config), shape),
    };
  }
  const { train, heldOut } = await openSources(config);
  if (train.kind !== "images") {
    throw expected("data.source", `images, ${wants}`, "code files", "Use them to pre-train");
  }
  return {
    fingerprint: train.fingerprint,
    source: train,
    batchesFrom: (cursor, passedOver) =>
      new BatchReader(train, {
        ...reading,
        ...(cursor && { cursor }),
        ...(passedOver && { passedOver }),
      }),
    ...evalOf(config, heldOut, shape),
  };
}

/** At most `count` images of a set, spread over it: its order is often that of its classes. */
export function someOf(source: ImageSource, count: number): ImageSource {
  const some = Math.min(count, source.length);
  return subset(
    source,
    Array.from({ length: some }, (_, i) => Math.floor((i * source.length) / some)),
  );
}

function evalOf(
  config: ImagesConfig,
  heldOut: ImageSource | undefined,
  shape: ReadOptions,
): Pick<RunImages, "evalBatches" | "evalImages"> {
  if (heldOut === undefined || config.eval.every === 0) {
    return { evalImages: 0, evalBatches: async function* () {} };
  }
  const chosen = someOf(heldOut, config.eval.images);
  const batchSize = Math.min(shape.batchSize, chosen.length);
  return { evalImages: chosen.length, evalBatches: () => onePass(chosen, { ...shape, batchSize }) };
}

/** How the training images are opened. */
export function sourceOptionsOf({ data }: Pick<TrainConfig, "data">): SourceOptions {
  const { label, image, classNames } = data;
  return {
    ...(label !== null && { label: label === "none" ? null : label }),
    ...(image !== null && { image }),
    ...(classNames !== null && { classNames }),
  };
}

/** What an image shows, from its identity: the first group of `data.group`, or all that it matches. */
export function groupOf({ data }: Pick<TrainConfig, "data">): ((id: string) => string) | undefined {
  if (data.group === null) return undefined;
  const pattern = new RegExp(data.group);
  return (id) => {
    const match = pattern.exec(id);
    return match?.[1] ?? match?.[0] ?? id;
  };
}

/** How images become batches, but for cursor, device and codebook. */
export function readOptionsOf({
  data,
  rollout,
  seed,
}: Pick<TrainConfig, "data" | "seed"> & {
  readonly rollout: { readonly images: number };
}): BatchReaderOptions {
  const { size, crop, flip, balance, featureTokens, maxUnreadable, workers } = data;
  return {
    batchSize: rollout.images,
    size,
    crop,
    flip,
    balance,
    seed,
    ...(featureTokens !== null && { featureTokens }),
    ...(maxUnreadable !== null && { maxUnreadable }),
    ...(workers !== null && { workers }),
  };
}
