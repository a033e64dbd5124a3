/**
 * Batches of a data set, read ahead of the training step. Seed and cursor determine every batch; the numbers of threads
 * and of batches read ahead do not change them. Decoding is in `decode_pool.ts`, the order in `order.ts`.
 */
import { gatherValues, ownShare, size as processes } from "../distributed/index.js";
import { type Device, expected, requireObject } from "../torch/index.js";
import {
  type Batch,
  type Batches,
  type BatchShape,
  batchOf,
  type PassedOver,
  type Row,
  type Unreadable,
} from "./batch.js";
import { readCaption } from "./captions.js";
import { type Crop, readFeatures } from "./decode.js";
import { closedError, DecodePool, DecodePoolError } from "./decode_pool.js";
import { balancedOrder, type Cursor, checkCursor, draw, epochOrder, fitsWindow, START } from "./order.js";
import type { ImageSource } from "./source.js";
export interface ReadOptions {
  readonly batchSize: number;
  /** Width and height in pixels; sets of images need it. */
  readonly size?: number;
  /** Default `"center"`, as LlamaGen; `"smallest_side"`, as SEED-Voken. */
  readonly crop?: Crop;
  /** `S`, to which text features are padded; default: the longest of the batch. */
  readonly featureTokens?: number;
  /** Codes of this value and above are refused: a GPU would fail on an index beyond the embedding table. */
  readonly codebookSize?: number;
  readonly device?: Device;
  /** Threads that decode. Default: one for each processor but one, at least 1 and at most 8. */
  readonly workers?: number;
  /** A shared pool of decoding threads; it stays open when the reader is closed. */
  readonly pool?: DecodePool;
  /** Called each time that an unreadable image is skipped. */
  readonly onUnreadable?: (id: string, problem: string) => void;
  /** Batches to read ahead, default 2. */
  readonly ahead?: number;
  /**
   * Unreadable images to skip before giving up. Default: 1 in 100, but at least 10 in sets of 100 and more, and
   * 1 in 10 below.
   */
  readonly maxUnreadable?: number;
  /**
   * Whether the processes of a run share each batch: every one reads its own rows, and they tell each other which images
   * cannot be read. All then take their batches at the same time. Default false.
   */
  readonly isShared?: boolean;
}

/** Unreadable images of a set to skip before giving up, where nothing else is said: see {@link ReadOptions}. */
export const mostUnreadable = (length: number): number =>
  Math.max(length / 100, Math.min(10, Math.ceil(length / 10)));

/** {@link ReadOptions} and the order. */
export interface BatchReaderOptions extends ReadOptions {
  readonly seed?: number | bigint;
  /** Where to begin, from {@link Batch.cursor}. */
  readonly cursor?: Cursor;
  /** Images that were skipped before the cursor, from {@link Batches.passedOver}: they count, and are not read again. */
  readonly passedOver?: PassedOver;
  /** Mirror every other image, chosen anew each epoch. */
  readonly flip?: boolean;
  /** From 0, the default, to 1: how strongly classes of different sizes are balanced, see `balancedOrder`. */
  readonly balance?: number;
}

/** One image to read, and where the next one is. */
interface Place {
  readonly index: number;
  /** How many times the image was drawn before: its flip and its crop are chosen anew each time. */
  readonly round: number;
  readonly after: Cursor;
}

/** How images are varied in each epoch. */
interface Augmentation {
  readonly seed: number | bigint;
  readonly flip: boolean;
}

type Outcome = { readonly row: Row } | { readonly problem: string } | { readonly failure: Error };

/** Unreadable images that an error names. */
const NAMED = 20;

/**
 * Endless batches of a set in a random order, all of one size: a batch may begin in one epoch and end in the next. In
 * each epoch every readable image comes once, unless classes are balanced. Hold it with `using`.
 *
 * An image that cannot be read is skipped, and the next one takes its place.
 */
export class BatchReader implements Batches {
  readonly #rows: RowQueue;
  readonly #batchSize: number;
  #turn: Promise<unknown> = Promise.resolve();
  #cursor: Cursor;

  /** @throws RangeError for options that do not fit the set. */
  constructor(source: ImageSource, options: BatchReaderOptions) {
    requireObject("BatchReader", options);
    const { seed = 0, cursor = START, flip = false, balance = 0, passedOver = {} } = options;
    checkCursor("BatchReader", cursor, source.length);
    if (flip && source.kind === "codes") {
      throw expected("BatchReader", "images to flip", "codes", "Extract the codes of flipped images too");
    }
    if (!(balance >= 0 && balance <= 1)) throw expected("balance", "a number from 0 to 1", balance);
    if (balance > 0 && !fitsWindow(source)) {
      const what =
        "0 for a set whose row groups take more than 512 MiB, since a class is drawn from all of them";
      throw expected("balance", what, balance, "Use tar shards or a folder to even classes out");
    }
    this.#cursor = cursor;
    this.#batchSize = options.batchSize;
    this.#rows = new RowQueue(source, options, shuffled(source, seed, cursor, balance), { seed, flip });
    this.#rows.passedOver = passedOver;
  }

  get cursor(): Cursor {
    return this.#cursor;
  }

  get unreadable(): Unreadable {
    return this.#rows.unreadable;
  }

  get passedOver(): PassedOver {
    return this.#rows.passedOver;
  }

  /**
   * The next batch. The caller disposes of it. Calls that do not wait for each other get their batches in turn.
   *
   * @throws RangeError when too many images cannot be read, naming some. {@link DecodePoolError} when decoding threads
   *   failed, or the reader is closed.
   */
  async next(): Promise<Batch> {
    const mine = this.#turn.then(async () => {
      const batch = await this.#rows.take(this.#batchSize);
      this.#cursor = (batch as Batch).cursor; // never undefined, since the order is endless
      return batch as Batch;
    });
    this.#turn = mine.catch(() => undefined);
    return await mine;
  }

  close(): void {
    this.#rows.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

/**
 * Go once through a set in its own order, for extracting codes or evaluating a model. The last batch may be
 * smaller. The caller disposes of each.
 */
export async function* onePass(source: ImageSource, options: ReadOptions): AsyncGenerator<Batch> {
  using rows = new RowQueue(source, options, inOrder(source));
  while (true) {
    const batch = await rows.take(options.batchSize);
    if (batch === undefined) return;
    yield batch;
  }
}

function* shuffled(
  source: ImageSource,
  seed: number | bigint,
  from: Cursor,
  balance: number,
): Generator<Place, never> {
  const { length } = source;
  const classIds = balance > 0 ? Int32Array.from({ length }, (_, i) => source.classOf(i)) : undefined;
  let position = from.position;
  for (let epoch = from.epoch; ; epoch++) {
    const { order, rounds } =
      classIds === undefined
        ? { order: epochOrder(source, seed, epoch), rounds: undefined }
        : balancedOrder(classIds, balance, seed, epoch);
    for (; position < length; position++) {
      const isLast = position + 1 === length;
      const after = isLast ? { epoch: epoch + 1, position: 0 } : { epoch, position: position + 1 };
      yield { index: order[position] as number, round: rounds?.[position] ?? epoch, after };
    }
    position = 0;
  }
}

function* inOrder({ length }: ImageSource): Generator<Place> {
  for (let index = 0; index < length; index++) {
    yield { index, round: 0, after: { epoch: 0, position: index + 1 } };
  }
}

/** A row to come. */
interface Entry {
  readonly place: Place;
  /** Undefined where another process reads it. */
  outcome: Promise<Outcome> | undefined;
}

/** Reads rows ahead concurrently and returns them in order. */
class RowQueue {
  readonly #source: ImageSource;
  readonly #options: ReadOptions;
  readonly #shape: BatchShape;
  readonly #random: Augmentation | undefined;
  readonly #places: Iterator<Place>;
  readonly #pool: DecodePool | undefined;
  readonly #queue: Entry[] = [];
  /** Whether other processes read rows of the same batches. */
  readonly #isShared: boolean;
  /** Rows that have been put into the queue, without those that could not be read. */
  #queued = 0;
  readonly #ahead: number;
  readonly #maxUnreadable: number;
  #failure: Error | undefined;
  /** Problems of unreadable images, by index. */
  readonly #problems = new Map<number, string>();

  constructor(source: ImageSource, options: ReadOptions, places: Iterator<Place>, random?: Augmentation) {
    const { batchSize, size, ahead = 2, featureTokens, device = "cpu", maxUnreadable } = options;
    const isCount = (value: number): boolean => Number.isInteger(value) && value >= 1;
    if (!isCount(batchSize)) throw expected("batchSize", "a whole number from 1", batchSize);
    if (source.kind === "images" && !(size !== undefined && isCount(size))) {
      throw expected("size", "the width of the images, a whole number from 1", size);
    }
    if (!Number.isInteger(ahead) || ahead < 0) throw expected("ahead", "a whole number from 0", ahead);
    if (featureTokens !== undefined && !isCount(featureTokens)) {
      throw expected("featureTokens", "a whole number from 1", featureTokens);
    }
    this.#source = source;
    this.#options = options;
    this.#shape = { size: size ?? 0, featureTokens, device };
    this.#places = places;
    this.#random = random;
    this.#ahead = ahead * batchSize;
    this.#isShared = (options.isShared ?? false) && processes() > 1;
    this.#maxUnreadable = maxUnreadable ?? mostUnreadable(source.length);
    this.#pool = source.kind === "images" ? (options.pool ?? new DecodePool(options.workers)) : undefined;
  }

  get passedOver(): PassedOver {
    return Object.fromEntries(this.#problems);
  }

  set passedOver(known: PassedOver) {
    for (const [index, problem] of Object.entries(known)) this.#problems.set(Number(index), problem);
  }

  get unreadable(): Unreadable {
    return { count: this.#problems.size, problems: [...this.#problems.values()].slice(0, NAMED) };
  }

  /** A batch of the next `count` rows, or of those that are left; undefined when none is. */
  async take(count: number): Promise<Batch | undefined> {
    if (this.#failure !== undefined) throw this.#failure;
    try {
      return await (this.#isShared ? this.#takeShare(count) : this.#take(count));
    } catch (error) {
      // The rows taken so far are lost, so continuing would skip images.
      this.#failure = error as Error;
      throw error;
    }
  }

  async #take(count: number): Promise<Batch | undefined> {
    const rows: Row[] = [];
    let cursor: Cursor = START;
    while (rows.length < count) {
      this.#fill(this.#ahead + count - rows.length);
      const entry = this.#queue.shift();
      if (entry === undefined) break;
      const outcome = await this.#outcomeOf(entry);
      if ("problem" in outcome) this.#passOver(entry.place.index, outcome.problem);
      else rows.push(outcome.row);
      cursor = entry.place.after;
    }
    this.#fill(this.#ahead);
    return rows.length === 0 ? undefined : batchOf(rows, cursor, this.#shape);
  }

  /**
   * This process's rows of the next batch; undefined where it has none of a last batch with fewer rows than processes. Rows are divided by their place in the batch, so that an image that cannot be
   * read moves those after it, and a process may have to read one that another has read already.
   */
  async #takeShare(count: number): Promise<Batch | undefined> {
    const kept: Entry[] = [];
    let cursor: Cursor = START;
    while (kept.length < count) {
      this.#fill(this.#ahead + count - kept.length);
      const some = this.#queue.splice(0, count - kept.length);
      if (some.length === 0) break;
      const [from, own] = ownShare(kept.length + some.length);
      const problems: Record<number, string> = {};
      for (const entry of some.slice(
        Math.max(0, from - kept.length),
        Math.max(0, from + own - kept.length),
      )) {
        const outcome = await this.#outcomeOf(entry);
        if ("problem" in outcome) problems[entry.place.index] = outcome.problem;
      }
      const all = Object.assign({}, ...gatherValues(problems)) as Record<number, string>;
      for (const entry of some) {
        const { index, after } = entry.place;
        const problem = all[index] ?? this.#problems.get(index);
        if (problem === undefined) kept.push(entry);
        else {
          this.#passOver(index, problem);
          this.#queued--;
        }
        cursor = after;
      }
    }
    this.#fill(this.#ahead);
    if (kept.length === 0) return undefined;
    const [from, own] = ownShare(kept.length);
    const rows: Row[] = [];
    for (const entry of kept.slice(from, from + own)) {
      const outcome = await this.#outcomeOf(entry);
      if ("problem" in outcome) throw new Error(outcome.problem); // another process could read it
      rows.push(outcome.row);
    }
    const longest = Math.max(...gatherValues(longestFeatures(rows)));
    const featureTokens = this.#shape.featureTokens ?? (longest > 0 ? longest : undefined);
    return rows.length === 0
      ? undefined
      : batchOf(rows, cursor, { ...this.#shape, featureTokens }, { from, of: kept.length });
  }

  /** @throws DecodePoolError when decoding threads failed. */
  async #outcomeOf(entry: Entry): Promise<Exclude<Outcome, { failure: Error }>> {
    entry.outcome ??= this.#read(entry.place);
    const outcome = await entry.outcome;
    if ("failure" in outcome) throw outcome.failure;
    return outcome;
  }

  close(): void {
    this.#failure ??= closedError();
    if (this.#options.pool === undefined) this.#pool?.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  #fill(length: number): void {
    while (this.#queue.length < length) {
      const { value: place, done } = this.#places.next();
      if (done) return;
      const at = this.#queued++ % this.#options.batchSize;
      this.#queue.push({ place, outcome: this.#isOwn(at) ? this.#read(place) : undefined });
    }
  }

  /** Whether this process is to read the row at a place of a whole batch. */
  #isOwn(at: number): boolean {
    if (!this.#isShared) return true;
    const [from, count] = ownShare(this.#options.batchSize);
    return at >= from && at < from + count;
  }

  /** Never rejects: a row may fail long before its turn comes, while nobody waits for it. */
  async #read({ index, round }: Place): Promise<Outcome> {
    const known = this.#problems.get(index);
    if (known !== undefined) return { problem: known };
    const id = this.#source.idOf(index);
    try {
      return { row: await this.#readRow(id, index, round) };
    } catch (error) {
      if (error instanceof DecodePoolError) return { failure: error };
      const { message } = error as Error;
      return { problem: message.includes(id) ? message : `${id}: ${message}` };
    }
  }

  async #readRow(id: string, index: number, round: number): Promise<Row> {
    const toss = (name: string, count: number): number =>
      this.#random === undefined || count === 1 ? 0 : draw(this.#random.seed, name, round, index, count);
    const { image, codes, features, caption } = await this.#source.locate(
      index,
      toss("variant", this.#source.variants),
    );
    const classId = this.#source.classOf(index);
    const text = caption === undefined ? {} : { caption: await readCaption(caption, id) };
    if (this.#source.kind === "texts") {
      const read = features !== undefined && "path" in features ? await readFeatures(features, id) : features;
      return { id, classId, features: read, ...text };
    }
    if (image === undefined || this.#pool === undefined)
      return { id, classId, codes: this.#check(id, codes) };
    const isFile = features !== undefined && "path" in features;
    const decoded = await this.#pool.decode({
      id,
      image,
      ...(isFile && { features }),
      size: this.#shape.size,
      crop: this.#options.crop ?? "center",
      isFlipped: toss("flip", this.#random?.flip ? 2 : 1) === 1,
    });
    return { id, classId, data: decoded.data, features: isFile ? decoded.features : features, ...text };
  }

  #check(id: string, codes: BigInt64Array | undefined): BigInt64Array {
    const { codebookSize } = this.#options;
    if (codes === undefined) throw expected(id, "an image or codes", "neither");
    const odd = codebookSize === undefined ? undefined : codes.find((code) => code >= codebookSize);
    if (odd !== undefined) throw expected(id, `codes below the codebook size ${codebookSize}`, odd);
    return codes;
  }

  #passOver(index: number, problem: string): void {
    this.#problems.set(index, problem);
    this.#options.onUnreadable?.(this.#source.idOf(index), problem);
    const count = this.#problems.size;
    if (count <= this.#maxUnreadable && count < this.#source.length) return;
    const some = this.unreadable.problems.join("\n  ").replace(/\.$/, "");
    const what = `at most ${Math.floor(this.#maxUnreadable)} unreadable images of ${this.#source.length}`;
    throw expected("data set", what, count, `Mend or remove them, or raise maxUnreadable:\n  ${some}`);
  }
}

/** Tokens of the longest text of some rows; 0 without texts. */
function longestFeatures(rows: readonly Row[]): number {
  return rows.reduce((most, { features }) => Math.max(most, features?.shape[0] ?? 0), 0);
}
