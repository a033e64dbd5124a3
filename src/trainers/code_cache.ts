/**
 * Keeps the codes of a whole data set in memory and makes batches of them. The tokenizer runs once, before training, so
 * reading a batch takes almost no time. `data/order.ts` determines the order.
 */
import {
  Batch,
  type Batches,
  type Crop,
  type Cursor,
  epochOrder,
  type ImageSource,
  mostUnreadable,
  onePass,
  type ReadOptions,
  START,
  subset,
  type Unreadable,
} from "../data/index.js";
import { balancedOrder } from "../data/order.js";
import { gatherParts, gatherValues, ownParts, ownShare, size as processes } from "../distributed/index.js";
import { rangesOf } from "../rl_ar_finetune/scoring.js";
import type { FrozenTokenizer } from "../tokenizers/index.js";
import {
  type Device,
  type DType,
  expected,
  keep,
  randint,
  stack,
  stream,
  type Tensor,
  tensor,
  tidy,
  toDevice,
  zeros,
} from "../torch/index.js";

/** Codes of images, R variants of each. */
export interface CodeCache extends Disposable {
  /** int16 or int32 `[N * R, T]`, on the CPU; the variants of an image are consecutive rows. */
  readonly codes: Tensor;
  /** `[N]`. */
  readonly classes: BigInt64Array;
  readonly ids: readonly string[];
  /** R. */
  readonly variants: number;
  /** Number of images that could not be read; they are not in the cache. */
  readonly unreadable: number;
}
interface CacheOptions extends ReadOptions {
  readonly size: number;
  readonly crop?: Crop;
  /** Whether the mirrored image is encoded as well. */
  readonly flip?: boolean;
  /** Factor by which the image is enlarged for four corner crops; null makes none. */
  readonly cornerScale: number | null;
  /** Called with the progress every ten seconds. */
  say(text: string): void;
  /** Checked after each batch. */
  readonly signal?: AbortSignal | undefined;
}

/**
 * Encode every image of a set, in the set's order. Several processes share the batches, and all get the codes of all.
 *
 * @throws RangeError when too many images cannot be read, or they have text features, which are not kept; the signal's
 *   reason when it is aborted.
 */
export async function cacheCodes(
  source: ImageSource,
  tokenizer: FrozenTokenizer,
  options: CacheOptions,
): Promise<CodeCache> {
  if (processes() === 1) return await encodedSet(source, tokenizer, options);
  const own = ownParts(rangesOf(source.length, options.batchSize));
  const indices = own.flatMap(([from, count]) => Array.from({ length: count }, (_, i) => from + i));
  const { maxUnreadable = mostUnreadable(source.length) } = options;
  using cache =
    indices.length === 0
      ? null
      : await encodedSet(subset(source, indices), tokenizer, { ...options, maxUnreadable });
  const { classes, ids, unreadable } = cache ?? { classes: new BigInt64Array(), ids: [], unreadable: 0 };
  const all = gatherValues({ classes, ids, unreadable, about: cache && [cache.codes.dtype, cache.variants] });
  const [dtype, variants] = all.flatMap(({ about }) => (about === null ? [] : [about]))[0] as [DType, number];
  // Gloo sends no int16.
  const parts = cache === null ? [] : [tidy(() => keep(cache.codes.to({ dtype: "int32" })))];
  const codes = tidy(() => keep(gatherParts(parts).to({ dtype })));
  for (const part of parts) part.dispose();
  return {
    codes,
    classes: BigInt64Array.from(all.flatMap((each) => [...each.classes])),
    ids: all.flatMap((each) => each.ids),
    variants,
    unreadable: all.reduce((sum, each) => sum + each.unreadable, 0),
    [Symbol.dispose]: () => codes.dispose(),
  };
}

/** {@link cacheCodes} by this process alone. */
async function encodedSet(
  source: ImageSource,
  tokenizer: FrozenTokenizer,
  options: CacheOptions,
): Promise<CodeCache> {
  const { flip = false, cornerScale, size, signal, ...reading } = options;
  const crops = cornerScale === null ? 1 : 5;
  const variants = crops * (flip ? 2 : 1);
  const t = (size / tokenizer.downsample) ** 2;
  const dtype = tokenizer.codebookSize <= 2 ** 15 ? "int16" : "int32";
  const codes = keep(zeros([source.length * variants, t], { dtype }));
  const classes = new BigInt64Array(source.length);
  const ids: string[] = [];
  let said = performance.now();
  try {
    for (const corners of cornerScale === null ? [null] : [null, cornerScale]) {
      const seen = Math.round(size * (corners ?? 1));
      let done = 0;
      for await (const batch of onePass(source, { ...reading, size: seen })) {
        using _ = batch;
        if (batch.features !== undefined) {
          const remedy = "Set pretrain.cache: false";
          throw expected("pretrain.cache", "images without text features", batch.ids[0], remedy);
        }
        const [from, b] = [done, batch.ids.length];
        tidy(() => {
          const images = batch.images as Tensor;
          const cut = corners === null ? [images] : cornersOf(images, size);
          const views = flip ? cut.flatMap((view) => [view, view.flip(3)]) : cut;
          const first = corners === null ? 0 : variants - views.length;
          const encoded = views.map((view) =>
            tokenizer.encode(view.contiguous()).to({ device: "cpu", dtype }),
          );
          const rows = codes.narrow(0, from * variants, b * variants).view(b, variants, t);
          rows.narrow(1, first, views.length).copy_(stack(encoded, 1));
          if (corners === null) classes.set(batch.classes.toArray() as BigInt64Array, from);
        });
        if (corners === null) ids.push(...batch.ids);
        done += b;
        signal?.throwIfAborted();
        if (performance.now() - said > 10_000) {
          said = performance.now();
          options.say(`encoding ${corners === null ? "images" : "corners"}: ${done} of ${source.length}`);
        }
      }
      if (done !== ids.length) {
        const remedy = "Something changes the set: leave it alone and start again";
        throw expected("data.source", `${ids.length} images that can be read, as before`, done, remedy);
      }
    }
  } catch (error) {
    codes.dispose();
    throw error;
  }
  const n = ids.length;
  const unreadable = source.length - n;
  const whole = unreadable === 0 ? codes : tidy(() => keep(codes.narrow(0, 0, n * variants).clone()));
  if (whole !== codes) codes.dispose();
  return {
    codes: whole,
    classes: classes.slice(0, n),
    ids,
    variants,
    unreadable,
    [Symbol.dispose]: () => whole.dispose(),
  };
}

/** The four corners, `[B, 3, size, size]` each, of larger images. */
function cornersOf(images: Tensor, size: number): Tensor[] {
  const rest = images.size(2) - size;
  return [
    [0, 0],
    [0, rest],
    [rest, 0],
    [rest, rest],
  ].map(([y = 0, x = 0]) => images.narrow(2, y, size).narrow(3, x, size));
}
interface CodeBatchOptions {
  readonly batchSize: number;
  readonly seed?: number | bigint;
  readonly device?: Device;
  /** From 0, the default, to 1: how strongly classes of different sizes are balanced. */
  readonly balance?: number;
  readonly cursor?: Cursor;
  /** Whether each process of a run takes its own rows of every batch; default false. */
  readonly isShared?: boolean;
}

/** The order of an epoch, and which variant of each image it shows. */
interface Plan {
  readonly epoch: number;
  readonly order: Int32Array;
  readonly variants: Int32Array | null;
}

/**
 * Endless batches of a cache in random order; a batch may begin in one epoch and end in the next. The seed and the
 * cursor alone determine which images and variants a batch has.
 */
export class CodeBatches implements Batches {
  readonly unreadable: Unreadable = { count: 0, problems: [] };
  readonly #cache: CodeCache;
  readonly #options: CodeBatchOptions;
  #cursor: Cursor;
  #plan: Plan | null = null;

  /** @param cache - the caller disposes of it. */
  constructor(cache: CodeCache, options: CodeBatchOptions) {
    this.#cache = cache;
    this.#options = options;
    this.#cursor = options.cursor ?? START;
  }

  get cursor(): Cursor {
    return this.#cursor;
  }

  async next(): Promise<Batch> {
    const { batchSize, device = "cpu", isShared = false } = this.#options;
    const { codes, classes, ids, variants } = this.#cache;
    const images: number[] = [];
    const rows = new Int32Array(batchSize);
    let { epoch, position } = this.#cursor;
    for (let i = 0; i < batchSize; i++) {
      const plan = this.#planOf(epoch);
      const image = plan.order[position] as number;
      images.push(image);
      rows[i] = image * variants + (plan.variants?.[position] ?? 0);
      position++;
      if (position === plan.order.length) [epoch, position] = [epoch + 1, 0];
    }
    this.#cursor = { epoch, position };
    const [from, count] = isShared ? ownShare(batchSize) : [0, batchSize];
    const own = images.slice(from, from + count);
    const parts = tidy(() => ({
      codes: toDevice(codes.indexSelect(0, tensor(rows.slice(from, from + count))).long(), device), // [B, T]
      classes: tensor(
        BigInt64Array.from(own, (image) => classes[image] as bigint),
        { device },
      ),
    }));
    const place = count < batchSize && { place: { from, of: batchSize } };
    return new Batch({
      ...parts,
      ...place,
      ids: own.map((image) => ids[image] as string),
      cursor: this.#cursor,
    });
  }

  close(): void {
    this.#plan = null;
  }

  #planOf(epoch: number): Plan {
    if (this.#plan?.epoch === epoch) return this.#plan;
    const { seed = 0, balance = 0 } = this.#options;
    const { classes, variants } = this.#cache;
    const order =
      balance === 0
        ? epochOrder(classes, seed, epoch)
        : balancedOrder(Int32Array.from(classes, Number), balance, seed, epoch).order;
    let chosen: Int32Array | null = null;
    if (variants > 1) {
      using generator = stream(seed, "variant", epoch);
      const options = { generator, dtype: "int32" } as const;
      chosen = tidy(() => randint(0, variants, [order.length], options).toArray() as Int32Array);
    }
    this.#plan = { epoch, order, variants: chosen };
    return this.#plan;
  }
}
