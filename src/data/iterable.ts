/** Batches from a program's own data loader: any iterable, or a function that returns one. */
import { ownShare, size } from "../distributed/index.js";
import {
  cat,
  type Device,
  expected,
  expectedType,
  isPlainObject,
  type OptionNames,
  readOptions,
  requireObject,
  Tensor,
  tensor,
  tidy,
  toDevice,
} from "../torch/index.js";
import { Batch, type Batches, type BatchParts, type Unreadable } from "./batch.js";
import { checkCaption } from "./captions.js";
import { type Crop, decode } from "./decode.js";
import { pixelsToTensor } from "./images.js";
import { badClass, LABEL_REMEDY } from "./labels.js";
import { type Cursor, START } from "./order.js";
import type { Pixels } from "./resample.js";

type Iterates<T> = Iterable<T> | AsyncIterable<T>;

/** One image. */
export interface LoaderImage {
  /** float `[3, H, W]` in [-1, 1], or 8-bit RGB of any size. */
  readonly image: Tensor | Pixels;
  /** Default 0. */
  readonly class?: number;
  readonly id?: string;
  readonly caption?: string;
}

/** A batch. Those of another size than the first, such as the last of an epoch, are joined and cut to its size. */
export interface LoaderBatch {
  /** float `[B, 3, H, W]` in [-1, 1]. */
  readonly images: Tensor;
  /** whole numbers `[B]`, default 0. */
  readonly classes?: Tensor | readonly number[];
  readonly ids?: readonly string[];
  readonly captions?: readonly string[];
  /** float `[B, S, C]`, with `isReal`, bool `[B, S]`, where texts are padded. */
  readonly features?: Tensor;
  readonly isReal?: Tensor;
}

/** What a loader may give: single images, or batches as objects, tensors, or pairs of images and classes. */
export type LoaderItem = LoaderImage | LoaderBatch | Tensor | readonly [Tensor, Tensor | readonly number[]];

/**
 * A loader, which is iterated once per epoch. A function gets the position to start at, so that resuming costs nothing;
 * of any other loader, the items that were used before are read again and skipped.
 */
export type Loader = Iterates<LoaderItem> | ((from: Cursor) => Iterates<LoaderItem>);
export interface LoaderOptions {
  /** Single images per batch. */
  readonly batchSize: number;
  /** Width and height to which 8-bit images are cut. */
  readonly size?: number;
  readonly crop?: Crop;
  readonly device?: Device;
  /** Classes that the model knows: another class is refused. */
  readonly numClasses?: number;
  /** Where to begin; its position counts the loader's items. */
  readonly cursor?: Cursor;
  /**
   * Whether each process of a run takes its own rows of every batch; the loader must give all of them the same items.
   * Default false.
   */
  readonly isShared?: boolean;
}

/** Rounding of a tokenizer or a resize may leave the range by a little. */
const RANGE = 1.01;

/**
 * Batches of a program's loader.
 *
 * Tensors are copied: a loader may free its own when the next item is requested.
 *
 * @throws TypeError for a value that is not iterable.
 */
export function fromIterable(loader: Loader, options: LoaderOptions): Batches {
  return new LoaderBatches(loader, options);
}

class LoaderBatches implements Batches {
  /** Nothing is counted here: a loader itself throws or skips an image that it cannot read. */
  readonly unreadable: Unreadable = { count: 0, problems: [] };
  readonly #loader: Loader;
  readonly #options: LoaderOptions;
  #cursor: Cursor;
  #items: AsyncIterator<LoaderItem> | Iterator<LoaderItem> | undefined;
  /** Images per batch: of the loader's first one, or of `batchSize` single images. */
  #size: number | undefined;
  /** The rest of an item whose first images were used. */
  #rest: BatchParts | undefined;

  constructor(loader: Loader, options: LoaderOptions) {
    const canIterate =
      loader !== null &&
      typeof loader === "object" &&
      (Symbol.asyncIterator in loader || Symbol.iterator in loader);
    if (typeof loader !== "function" && !canIterate) {
      throw expectedType("fromIterable", "an iterable of images, or a function that gives one", loader);
    }
    requireObject("fromIterable", options);
    if (!(Number.isInteger(options.batchSize) && options.batchSize >= 1)) {
      throw expected("batchSize", "a whole number from 1", options.batchSize);
    }
    this.#loader = loader;
    this.#options = options;
    this.#cursor = options.cursor ?? START;
    this.#size = this.#cursor.batch;
  }

  get cursor(): Cursor {
    return this.#cursor;
  }

  async next(): Promise<Batch> {
    const pieces: BatchParts[] = [];
    const count = (): number => pieces.reduce((sum, { ids }) => sum + ids.length, 0);
    let isSingle: boolean | undefined;
    try {
      while (this.#size === undefined || count() < this.#size) {
        const { parts, single } = await this.#parts();
        isSingle ??= single;
        if (isSingle !== single) {
          disposeParts(parts);
          throw expected("loader", "images alone or batches alone", "both");
        }
        this.#size ??= single ? this.#options.batchSize : parts.ids.length;
        const missing = this.#size - count();
        const length = parts.ids.length;
        pieces.push(length <= missing ? parts : batchRows(parts, 0, missing));
        this.#rest = length <= missing ? undefined : batchRows(parts, missing, length - missing);
        if (this.#rest !== undefined) disposeParts(parts);
        this.#moveOn(single, missing);
      }
      const parts = pieces.length === 1 ? (pieces.pop() as BatchParts) : tidy(() => joined(pieces));
      return new Batch({ ...this.#ownRows(parts), cursor: this.#cursor });
    } finally {
      for (const piece of pieces) disposeParts(piece);
    }
  }

  /** This process's rows of a batch, and their place in it. */
  #ownRows(parts: BatchParts): BatchParts {
    if (!this.#options.isShared || size() === 1) return parts;
    const of = parts.ids.length;
    const [from, count] = ownShare(of);
    if (count === 0) throw expected("loader", `batches of at least ${size()} images, one a process`, of);
    const own = batchRows(parts, from, count);
    disposeParts(parts);
    return { ...own, place: { from, of } };
  }

  close(): void {
    void this.#items?.return?.();
    this.#items = undefined;
    if (this.#rest !== undefined) disposeParts(this.#rest);
    this.#rest = undefined;
  }

  /** Move the cursor past the rows that were used of an item. */
  #moveOn(isSingle: boolean, rows: number): void {
    const { epoch, position, used = 0 } = this.#cursor;
    const batch = isSingle ? undefined : this.#size;
    const isWhole = this.#rest === undefined;
    this.#cursor = {
      epoch,
      position: isWhole ? position + 1 : position,
      ...(batch !== undefined && { batch }),
      ...(!isWhole && { used: used + rows }),
    };
  }

  /** The unused rows of the next item. */
  async #parts(): Promise<{ parts: BatchParts; single: boolean }> {
    if (this.#rest !== undefined) return { parts: this.#rest, single: false };
    const item = await this.#item();
    const { epoch, position, used = 0 } = this.#cursor;
    const name = `${epoch}:${position}`;
    const { device = "cpu", numClasses } = this.#options;
    if (isImage(item)) {
      return { parts: await this.#imageOf(known(item, name, IMAGE_PARTS), name), single: true };
    }
    const parts = tidy(() => ownParts(item, name, device, numClasses));
    if (used === 0) return { parts, single: false };
    try {
      return { parts: batchRows(parts, used, parts.ids.length - used), single: false };
    } finally {
      disposeParts(parts);
    }
  }

  /** The next item; at the end of an epoch the first one of the next. */
  async #item(): Promise<LoaderItem> {
    this.#items ??= await this.#begin(this.#cursor);
    let result = await this.#items.next();
    if (result.done) {
      const next = { epoch: this.#cursor.epoch + 1, position: 0 };
      this.#items = await this.#begin(next);
      result = await this.#items.next();
      if (result.done) {
        const remedy = "A generator can be gone through only once: give a function that makes one";
        throw expected("loader", `something in epoch ${next.epoch}`, "nothing", remedy);
      }
      const { batch } = this.#cursor;
      this.#cursor = { ...next, ...(batch !== undefined && { batch }) };
    }
    return result.value;
  }

  async #begin(from: Cursor): Promise<AsyncIterator<LoaderItem> | Iterator<LoaderItem>> {
    if (typeof this.#loader === "function") return iteratorOf(this.#loader(from));
    const items = iteratorOf(this.#loader);
    for (let i = 0; i < from.position; i++) {
      if ((await items.next()).done) {
        const what = `at least ${from.position} items per epoch, to resume`;
        throw expected("loader", what, i, "Resume with the same loader");
      }
    }
    return items;
  }

  async #imageOf({ image, class: id = 0, ...rest }: LoaderImage, name: string): Promise<BatchParts> {
    const { size, crop = "center", device = "cpu", numClasses } = this.#options;
    const ids = [rest.id ?? name];
    const captions = rest.caption === undefined ? {} : { captions: [rest.caption] };
    const toParts = (images: Tensor): BatchParts =>
      tidy(() => ownParts({ images, classes: [id], ids, ...captions }, name, device, numClasses));
    if (image instanceof Tensor) {
      return tidy(() => toParts(image.ndim === 3 ? image.unsqueeze(0).float() : image.float()));
    }
    if (size === undefined)
      throw expected("size", "the width of the images, as they come in 8-bit", "nothing");
    checkPixels(`loader: ${ids[0]}`, image);
    const task = { id: ids[0] as string, image: { pixels: image }, size, crop, isFlipped: false };
    const { data } = await decode(task);
    return tidy(() => toParts(pixelsToTensor({ width: size, height: size, channels: 3, data })));
  }
}

const IMAGE_PARTS: OptionNames<LoaderImage> = { image: true, class: "number", id: true, caption: true };

const BATCH_PARTS: OptionNames<LoaderBatch> = {
  images: true,
  classes: true,
  ids: true,
  captions: true,
  features: true,
  isReal: true,
};

/** Refuse unknown parts of an item, such as `label` instead of `class`. */
function known<T extends object>(item: T, name: string, names: OptionNames<T>): T {
  return isPlainObject(item) ? readOptions<T>(`loader: ${name}`, [item], { names }) : item;
}

function checkPixels(where: string, { width, height, channels, data }: Pixels): void {
  const isCount = (value: number): boolean => Number.isInteger(value) && value >= 1;
  const isSound = [width, height, channels].every(isCount) && data instanceof Uint8Array;
  if (isSound && data.length === width * height * channels) return;
  const what = "{ width, height, channels, data } with a byte for each channel of each pixel";
  throw expected(where, what, `${width} x ${height} x ${channels} and ${data?.length} bytes`);
}

const isImage = (item: LoaderItem): item is LoaderImage =>
  item !== null && typeof item === "object" && "image" in item && !(item instanceof Tensor);

function iteratorOf<T>(items: Iterates<T>): AsyncIterator<T> | Iterator<T> {
  return Symbol.asyncIterator in items ? items[Symbol.asyncIterator]() : items[Symbol.iterator]();
}

/** An item as a batch with tensors of its own; its cursor is not set yet. */
function ownParts(
  item: Exclude<LoaderItem, LoaderImage>,
  name: string,
  device: Device,
  numClasses: number | undefined,
): BatchParts {
  const batch = partsOf(item, name);
  const { images } = batch;
  if (!(images instanceof Tensor)) {
    const what = "a tensor of images, a pair of images and classes, { images, classes } or { image, class }";
    throw expectedType("loader", what, images);
  }
  if (images.ndim !== 4 || images.shape[1] !== 3 || images.shape[0] === 0) {
    throw expected("loader", "images of shape [B, 3, H, W]", images);
  }
  if (!images.dtype.startsWith("float") && images.dtype !== "bfloat16") {
    const remedy = "Divide bytes by 127.5 and subtract 1";
    throw expectedType("loader", "float images in [-1, 1]", images.dtype, remedy);
  }
  const count = images.shape[0] as number;
  const own = toDevice(images.detach().float(), device).clone();
  const [low, high] = [own.amin().item(), own.amax().item()];
  if (!(low >= -RANGE && high <= RANGE)) {
    const remedy = "Divide bytes by 127.5 and subtract 1";
    throw expected("loader", "images in [-1, 1]", `values from ${low} to ${high}`, remedy);
  }
  const ids = batch.ids ?? Array.from({ length: count }, (_, i) => `${name}/${i}`);
  if (ids.length !== count) throw expected("loader", `${count} ids, one for each image`, ids.length);
  return {
    images: own,
    classes: ownClasses(batch.classes, ids, device, numClasses),
    features: batch.features && toDevice(batch.features.detach().float(), device).clone(),
    isReal: batch.isReal && toDevice(batch.isReal, device).clone(),
    ids,
    captions: ownCaptions(batch.captions, ids),
    cursor: START,
  };
}

function ownCaptions(captions: unknown, ids: readonly string[]): readonly string[] | undefined {
  if (captions === undefined) return undefined;
  if (!Array.isArray(captions)) throw expectedType("loader", "a list of captions", captions);
  if (captions.length !== ids.length)
    throw expected("loader", `${ids.length} captions, one for each image`, captions.length);
  return captions.map((caption, i) => checkCaption(caption, `loader: caption of ${ids[i]}`));
}

function ownClasses(
  classes: LoaderBatch["classes"],
  ids: readonly string[],
  device: Device,
  numClasses: number | undefined,
): Tensor {
  const count = ids.length;
  if (classes instanceof Tensor && /float|complex|bool/.test(classes.dtype)) {
    const remedy = "Pass an array, or the tensor's .long()";
    throw expectedType("loader", "classes that are whole numbers", classes.dtype, remedy);
  }
  const odd = classes instanceof Tensor ? undefined : classes?.findIndex((id) => !Number.isInteger(id));
  if (odd !== undefined && odd >= 0) {
    const got = (classes as number[])[odd];
    throw expected(`loader: ${ids[odd]}`, "a class id, a whole number", got, LABEL_REMEDY);
  }
  const own =
    classes instanceof Tensor
      ? toDevice(classes.long(), device).clone()
      : tensor([...(classes ?? new Array<number>(count).fill(0))], { dtype: "int64", device });
  if (own.ndim !== 1 || own.shape[0] !== count) {
    throw expected("loader", `classes of shape [${count}], one for each image`, own);
  }
  if (numClasses !== undefined) {
    for (const [i, id] of (own.toList() as number[]).entries()) {
      if (id < 0 || id >= numClasses) throw badClass(`loader: ${ids[i]}`, id, numClasses);
    }
  }
  return own;
}

/** Rows of a batch, with tensors of their own. */
function batchRows(parts: BatchParts, from: number, count: number): BatchParts {
  return tidy(() => {
    const rows = (tensor: Tensor): Tensor => tensor.narrow(0, from, count).clone();
    const { images, classes, features, isReal, ids, captions, cursor } = parts;
    return {
      images: rows(images as Tensor),
      classes: rows(classes),
      features: features && rows(features),
      isReal: isReal && rows(isReal),
      ids: ids.slice(from, from + count),
      captions: captions?.slice(from, from + count),
      cursor,
    };
  });
}

/** One batch of several, with tensors of its own. */
function joined(pieces: readonly BatchParts[]): BatchParts {
  const [first] = pieces as [BatchParts];
  const all = (of: "images" | "classes" | "features" | "isReal"): Tensor | undefined => {
    const wanted = first[of]?.shape.slice(1).join(", ");
    for (const { ids, [of]: part } of pieces) {
      const got = part?.shape.slice(1).join(", ");
      if (got === wanted) continue;
      const what = `${of} of shape [${wanted ?? "none"}], as ${first.ids[0]}`;
      const remedy = "Give batches of one size, or images and features of one shape";
      throw expected("loader", what, `[${got ?? "none"}] of ${ids[0]}`, remedy);
    }
    return first[of] && cat(pieces.map((piece) => piece[of] as Tensor));
  };
  const ids = pieces.flatMap((piece) => piece.ids);
  const odd = pieces.find(({ captions }) => (captions === undefined) !== (first.captions === undefined));
  if (odd !== undefined) {
    const [some, none] = first.captions === undefined ? [odd, first] : [first, odd];
    throw expected("loader", `a caption for every image, as for ${some.ids[0]}`, `none for ${none.ids[0]}`);
  }
  const captions = first.captions && pieces.flatMap((piece) => piece.captions as string[]);
  const [images, features, isReal] = [all("images"), all("features"), all("isReal")];
  return { images, classes: all("classes") as Tensor, features, isReal, ids, captions, cursor: first.cursor };
}

function disposeParts({ images, classes, features, isReal }: BatchParts): void {
  for (const part of [images, classes, features, isReal]) part?.dispose();
}

function partsOf(item: Exclude<LoaderItem, LoaderImage>, name: string): LoaderBatch {
  if (item instanceof Tensor) return { images: item };
  if (!Array.isArray(item)) {
    const batch = Object(item ?? {}) as LoaderBatch; // a number has no parts to ask for
    // Any other item is refused, with a message on what a loader may give.
    return "images" in batch ? known(batch, name, BATCH_PARTS) : batch;
  }
  const [images, classes, ...more] = item as [Tensor, Tensor | readonly number[]];
  if (more.length > 0) {
    throw expected(`loader: ${name}`, "a pair of images and classes", `a list of ${more.length + 2}`);
  }
  return { images, classes };
}
