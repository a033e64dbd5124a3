/**
 * The images of a run: training and held-out images, and batches of both. Every command that trains opens them here, so that
 * the same keys mean the same images.
 */

import { type DataConfig, hasImages, type TrainConfig } from "../config/resolve.js";
import {
  type Batch,
  type Batches,
  BatchReader,
  type BatchReaderOptions,
  type Cursor,
  checkClassIds,
  classCounts,
  DecodePool,
  describeClasses,
  fromIterable,
  type ImageSource,
  type Loader,
  onePass,
  openSource,
  openTexts,
  type PassedOver,
  type ReadOptions,
  type SourceOptions,
  splitSource,
  spread,
  subset,
  UnreadableImages,
} from "../data/index.js";
import { known } from "../torch/arguments.js";
import { type Device, expected, listed } from "../torch/index.js";

/** The keys that say which images there are. */
interface ImagesConfig {
  readonly seed: number;
  readonly data: DataConfig;
  /** A program's own batches, in place of `data.source`. */
  readonly dataloader?: Loader | null;
  readonly eval: { readonly every: number; readonly images: number };
}

/** The two sides of a data set. */
interface RunSources {
  readonly train: ImageSource;
  /** All held-out images; undefined without evaluation. */
  readonly heldOut: ImageSource | undefined;
}

/** Images to train on and images to evaluate on. Disposing of them ends the threads that decode. */
export interface RunImages extends Disposable {
  /** Fingerprint of the training images, null for a program's own loader. */
  readonly fingerprint: string | null;
  /** The training images, null for a program's own loader. */
  readonly source: ImageSource | null;
  /** Batches of the training images from a cursor on; unreadable images that were skipped before it still count. */
  readonly batchesFrom: (cursor: Cursor | undefined, passedOver?: PassedOver) => Batches;
  /** The images that are evaluated on, always the same. */
  readonly evalBatches: () => AsyncIterable<Batch>;
  readonly evalImages: number;
  /** Notes for the user before the first step, see {@link notesOfSources}. */
  readonly notes: readonly string[];
  /** Images that could not be read so far, to train on or to evaluate on. */
  readonly unreadable: UnreadableImages;
}

/**
 * Open the training images of `data.source` and the held-out ones: `data.evalSource`, or a part of the source. The part does
 * not depend on the run's seed, nor on whether the run evaluates, so that all models of a chain have the same held-out
 * images.
 *
 * @param mayBeTexts - whether captions or classes alone will do.
 * @throws RangeError for a source that cannot be read or split.
 */
export async function openSources(config: ImagesConfig, mayBeTexts = false): Promise<RunSources> {
  const { data } = config;
  const options = sourceOptionsOf(config);
  const whole =
    mayBeTexts && !hasImages({ data, dataloader: null })
      ? openTexts(data.source, options)
      : await openSource(data.source as string, options);
  const own = await evalSourceOf(config, whole);
  if (own !== undefined && own.hasCaptions !== whole.hasCaptions) {
    const [what, got] = whole.hasCaptions
      ? ["captions, as data.source has", "none"]
      : ["no captions, as data.source has none", "captions"];
    throw expected("data.evalSource", what, got, "Give both captions, or set data.captions=none");
  }
  // Nothing can be held out of a list of classes, and its samples are new every time.
  if (own === undefined && whole.kind === "texts" && !whole.hasCaptions)
    return { train: whole, heldOut: whole };
  const group = groupOf(config);
  const isSplit = own === undefined && data.evalPart > 0;
  return isSplit
    ? splitSource(whole, { heldOut: data.evalPart, ...known({ groupOf: group }) })
    : { train: whole, heldOut: own };
}

const number = (count: number): string => count.toLocaleString("en");

/** The set of `data.evalSource`, whose classes have the ids that the training images give them. */
async function evalSourceOf(config: ImagesConfig, train?: ImageSource): Promise<ImageSource | undefined> {
  const { evalSource } = config.data;
  if (evalSource === null) return undefined;
  const classNames = train !== undefined && train.classNames.length > 1 && { classNames: train.classNames };
  const options = { ...classNames, ...sourceOptionsOf(config) };
  return train?.kind === "texts" ? openTexts(evalSource, options) : await openSource(evalSource, options);
}

/**
 * Check the classes of a run's images; returns notes for the user.
 *
 * @param numClasses - of the policy; undefined where classes are not used.
 * @throws RangeError for an image of a class that the policy does not know, naming it.
 */
export function notesOfSources({ train, heldOut }: Partial<RunSources>, numClasses?: number): string[] {
  for (const source of [train, heldOut]) {
    if (source === undefined || numClasses === undefined) continue;
    if (source.hasClasses === false) {
      const remedy =
        "List all classes of the policy in data.classNames, so that lines are read as classes; or set rollout.start=empty";
      throw expected("data.source", "classes, which the policy starts from", "captions alone", remedy);
    }
    checkClassIds(source, numClasses);
  }
  const notes = [...new Set([...(train?.notes ?? []), ...(heldOut?.notes ?? [])])];
  if (train === undefined) return notes;
  const held = heldOut === undefined ? "none is held out" : `${number(heldOut.length)} are held out`;
  const count = train.classNames.length;
  if (train.kind === "texts") {
    const what = train.hasCaptions ? "captions" : "classes";
    const same = heldOut === train ? "the same ones to evaluate on" : held;
    notes.push(`${number(train.length)} ${what} to sample for, without images; ${same}`);
    return notes;
  }
  const captions = train.hasCaptions ? ", each with a caption" : "";
  notes.push(`${number(train.length)} images to train on${captions}; ${held}`);
  if (count > 1) notes.push(describeClasses(train));
  if (numClasses !== undefined && numClasses !== count) {
    notes.push(
      `the policy has ${numClasses} classes, the training images ${count}: their ids are those of the policy's first ones`,
    );
  }
  const counts = heldOut === undefined ? [] : classCounts(heldOut);
  const missing = counts.filter(({ images }) => images === 0).map(({ name }) => name);
  if (count > 1 && missing.length > 0) {
    notes.push(`no image to evaluate on has the class ${listed(missing)}`);
  }
  return notes;
}

/**
 * Open images, in batches.
 *
 * @param options.batchSize - images of a training batch, and at most of one to evaluate on.
 * @param options.wants - what the images are needed for, for the message that refuses code files.
 * @param options.numClasses - of the policy, where it is told the classes of images.
 * @param options.mayBeTexts - whether captions or classes alone will do.
 * @throws RangeError for a source that cannot be read or split, that holds codes, or that has a class the policy does
 *   not know.
 */
export async function openImages(
  config: ImagesConfig,
  options: {
    batchSize: number;
    device: Device;
    codebookSize?: number;
    wants: string;
    numClasses?: number;
    mayBeTexts?: boolean;
  },
): Promise<RunImages> {
  const { data } = config;
  const { wants, batchSize, numClasses, mayBeTexts = false, ...where } = options;
  const unreadable = new UnreadableImages();
  const pool = new DecodePool(data.workers ?? undefined);
  const reading = {
    ...readOptionsOf({ ...config, rollout: { images: batchSize } }),
    ...where,
    onUnreadable: (id: string, problem: string) => unreadable.add(id, problem),
    isShared: true,
    pool, // the same threads for training and every evaluation
  };
  const shared = { unreadable, [Symbol.dispose]: () => pool.close() };
  const { flip: _, seed: __, ...shape } = reading;
  const dataloader = config.dataloader ?? null;
  if (dataloader !== null) {
    const { size, crop } = data;
    const same = {
      batchSize,
      size,
      crop,
      device: options.device,
      isShared: true,
      ...known({ numClasses }),
    };
    const heldOut = await evalSourceOf(config);
    return {
      ...shared,
      notes: notesOfSources({ heldOut }, numClasses),
      fingerprint: null,
      source: null,
      batchesFrom: (cursor) => fromIterable(dataloader, { ...same, ...known({ cursor }) }),
      ...evalOf(config, heldOut, shape),
    };
  }
  const { train, heldOut } = await openSources(config, mayBeTexts);
  if (train.kind === "codes") {
    throw expected("data.source", `images, ${wants}`, "code files", "Use them to pre-train");
  }
  return {
    ...shared,
    notes: notesOfSources({ train, heldOut }, numClasses),
    fingerprint: train.fingerprint,
    source: train,
    batchesFrom: (cursor, passedOver) =>
      new BatchReader(train, { ...reading, ...known({ cursor, passedOver }) }),
    ...evalOf(config, heldOut, shape),
  };
}

/** At most `count` images of a set, spread over it: its order is often that of its classes. */
export function someOf(source: ImageSource, count: number): ImageSource {
  return subset(source, spread(source.length, count));
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
  const { label, image, classNames, captions } = data;
  // null stands for images without labels or captions there, and for an unset key here.
  return {
    ...known({ image, classNames, label, captions }),
    ...(label === "none" && { label: null }),
    ...(captions === "none" && { captions: null }),
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
  const optional = known({ featureTokens, maxUnreadable, workers });
  return { batchSize: rollout.images, size, crop, flip, balance, seed, ...optional };
}
