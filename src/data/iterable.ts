/** A user's own loader of images as batches: any iterable, or a function that makes one. */
import { cat, type Device, expected, expectedType, Tensor, tensor, tidy } from "../torch/index.js";
import { Batch, type Batches, type BatchParts, type Unreadable } from "./batch.js";
import { type Crop, decode } from "./decode.js";
import { pixelsToTensor } from "./images.js";
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
}

/** A batch, used as it is. */
export interface LoaderBatch {
  /** float `[B, 3, H, W]` in [-1, 1]. */
  readonly images: Tensor;
  /** whole numbers `[B]`; 0 where they are left out. */
  readonly classes?: Tensor | readonly number[];
  readonly ids?: readonly string[];
  /** float `[B, S, C]`, with `isReal`, bool `[B, S]`, where texts are padded. */
  readonly features?: Tensor;
  readonly isReal?: Tensor;
}

/** What a loader may give: single images, or batches as objects, tensors, or pairs of images and classes. */
export type LoaderItem = LoaderImage | LoaderBatch | Tensor | readonly [Tensor, Tensor | readonly number[]];

/**
 * A loader: gone through once an epoch. A function is given where to begin, so that resuming costs nothing; of
 * anything else, as many items as were used are gone through again.
 */
export type Loader = Iterates<LoaderItem> | ((from: Cursor) => Iterates<LoaderItem>);

/** How a loader's items become batches. */
export interface LoaderOptions {
  /** Single images a batch. */
  readonly batchSize: number;
  /** Width and height to which 8-bit images are cut. */
  readonly size?: number;
  readonly crop?: Crop;
  readonly device?: Device;
  /** Where to begin; its position counts the loader's items. */
  readonly cursor?: Cursor;
}

/** Rounding of a tokenizer or a resize may leave the range by a little. */
const RANGE = 1.01;

/**
 * Batches of a user's own loader.
 *
 * The items' tensors are copied: they stay the loader's, and a loader may free them when it is asked for the next.
 *
 * @throws TypeError for something that cannot be gone through.
 */
export function fromIterable(loader: Loader, options: LoaderOptions): Batches {
  return new LoaderBatches(loader, options);
}

class LoaderBatches implements Batches {
  /** A loader that cannot read an image throws, or leaves it out: there is nothing to count. */
  readonly unreadable: Unreadable = { count: 0, problems: [] };
  readonly #loader: Loader;
  readonly #options: LoaderOptions;
  #cursor: Cursor;
  #items: AsyncIterator<LoaderItem> | Iterator<LoaderItem> | undefined;

  constructor(loader: Loader, options: LoaderOptions) {
    const canIterate =
      loader !== null &&
      typeof loader === "object" &&
      (Symbol.asyncIterator in loader || Symbol.iterator in loader);
    if (typeof loader !== "function" && !canIterate) {
      throw expectedType("fromIterable", "an iterable of images, or a function that gives one", loader);
    }
    if (!(Number.isInteger(options.batchSize) && options.batchSize >= 1)) {
      throw expected("batchSize", "a whole number from 1", options.batchSize);
    }
    this.#loader = loader;
    this.#options = options;
    this.#cursor = options.cursor ?? START;
  }

  get cursor(): Cursor {
    return this.#cursor;
  }

  async next(): Promise<Batch> {
    const { batchSize, device = "cpu" } = this.#options;
    const single: { images: Tensor; classId: number; id: string }[] = [];
    try {
      while (single.length < batchSize) {
        const item = await this.#item();
        const name = `${this.#cursor.epoch}:${this.#cursor.position - 1}`;
        if (isImage(item)) {
          single.push(await this.#imageOf(item, name));
          continue;
        }
        if (single.length > 0) throw expected("loader", "images alone or batches alone", "both");
        return new Batch(tidy(() => ownParts(item, name, this.#cursor, device)));
      }
      const classes = single.map((one) => one.classId);
      const ids = single.map((one) => one.id);
      const joined = (): BatchParts => {
        const images = cat(single.map((one) => one.images));
        return ownParts({ images, classes, ids }, "", this.#cursor, device);
      };
      return new Batch(tidy(joined));
    } finally {
      for (const { images } of single) images.dispose();
    }
  }

  close(): void {
    void this.#items?.return?.();
    this.#items = undefined;
  }

  /** The next item, of the next epoch where this one is over. */
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
      this.#cursor = next;
    }
    this.#cursor = { epoch: this.#cursor.epoch, position: this.#cursor.position + 1 };
    return result.value;
  }

  async #begin(from: Cursor): Promise<AsyncIterator<LoaderItem> | Iterator<LoaderItem>> {
    if (typeof this.#loader === "function") return iteratorOf(this.#loader(from));
    const items = iteratorOf(this.#loader);
    for (let i = 0; i < from.position; i++) {
      if ((await items.next()).done) {
        throw expected(
          "loader",
          `at least ${from.position} items an epoch, to resume`,
          i,
          "Resume with the same loader",
        );
      }
    }
    return items;
  }

  async #imageOf({ image, class: classId = 0, id }: LoaderImage, name: string) {
    const own = id ?? name;
    if (image instanceof Tensor) {
      const images = tidy(() => (image.ndim === 3 ? image.unsqueeze(0) : image).detach().float().clone());
      return { images, classId, id: own };
    }
    const { size, crop = "center" } = this.#options;
    if (size === undefined)
      throw expected("size", "the width of the images, as they come in 8-bit", "nothing");
    const { data } = await decode({ id: own, image: { pixels: image }, size, crop, isFlipped: false });
    return { images: pixelsToTensor({ width: size, height: size, channels: 3, data }), classId, id: own };
  }
}

const isImage = (item: LoaderItem): item is LoaderImage =>
  item !== null && typeof item === "object" && "image" in item && !(item instanceof Tensor);

function iteratorOf<T>(items: Iterates<T>): AsyncIterator<T> | Iterator<T> {
  return Symbol.asyncIterator in items ? items[Symbol.asyncIterator]() : items[Symbol.iterator]();
}

/** A batch with tensors of its own. */
function ownParts(
  item: Exclude<LoaderItem, LoaderImage>,
  name: string,
  cursor: Cursor,
  device: Device,
): BatchParts {
  const batch = partsOf(item);
  const { images } = batch;
  if (!(images instanceof Tensor)) {
    const what = "a tensor of images, a pair of images and classes, { images, classes } or { image, class }";
    throw expectedType("loader", what, images);
  }
  if (images.ndim !== 4 || images.shape[1] !== 3 || images.shape[0] === 0) {
    throw expected("loader", "images of shape [B, 3, H, W]", images);
  }
  if (!images.dtype.startsWith("float") && images.dtype !== "bfloat16") {
    throw expectedType(
      "loader",
      "float images in [-1, 1]",
      images.dtype,
      "Divide bytes by 127.5 and subtract 1",
    );
  }
  const count = images.shape[0] as number;
  const own = images.detach().to({ dtype: "float32", device }).clone();
  const [low, high] = [own.amin().item(), own.amax().item()];
  if (!(low >= -RANGE && high <= RANGE)) {
    throw expected(
      "loader",
      "images in [-1, 1]",
      `values from ${low} to ${high}`,
      "Divide bytes by 127.5 and subtract 1",
    );
  }
  const classes =
    batch.classes instanceof Tensor
      ? batch.classes.to({ dtype: "int64", device }).clone()
      : tensor([...(batch.classes ?? new Array<number>(count).fill(0))], { dtype: "int64", device });
  if (classes.ndim !== 1 || classes.shape[0] !== count) {
    throw expected("loader", `classes of shape [${count}], one for each image`, classes);
  }
  const ids = batch.ids ?? Array.from({ length: count }, (_, i) => `${name}/${i}`);
  if (ids.length !== count) throw expected("loader", `${count} ids, one for each image`, ids.length);
  return {
    images: own,
    classes,
    features: batch.features?.detach().to({ dtype: "float32", device }).clone(),
    isReal: batch.isReal?.to({ device }).clone(),
    ids,
    cursor,
  };
}

function partsOf(item: Exclude<LoaderItem, LoaderImage>): LoaderBatch {
  if (item instanceof Tensor) return { images: item };
  if (!Array.isArray(item)) return item as LoaderBatch;
  const [images, classes] = item as [Tensor, Tensor | readonly number[]];
  return { images, classes };
}
