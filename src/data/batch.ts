/** A batch of images or codes from any data set, and the count of unreadable images. Reading is in `batch_reader.ts`. */
import { type Device, expected, type Tensor, tensor, tidy } from "../torch/index.js";
import type { Features } from "./npy.js";
import type { Cursor } from "./order.js";

/** Tensors of a batch. */
export interface BatchParts {
  /** float32 `[B, 3, s, s]` in [-1, 1]; only of images. */
  readonly images?: Tensor | undefined;
  /** int64 `[B, T]`; only of code files. */
  readonly codes?: Tensor | undefined;
  /** int64 `[B]`. */
  readonly classes: Tensor;
  /** Text features, float32 `[B, S, C]`, padded on the left with zeros; only of sets that have them. */
  readonly features?: Tensor | undefined;
  /** bool `[B, S]`: false where `features` is padding. */
  readonly isReal?: Tensor | undefined;
  readonly ids: readonly string[];
  /** Only of sets that have them. */
  readonly captions?: readonly string[] | undefined;
  /** Where the next batch begins; a reader that starts here gives the batches that follow this one. */
  readonly cursor: Cursor;
  /** Where the rows stand in the batch that several processes share; absent for a process that is alone. */
  readonly place?: { readonly from: number; readonly of: number };
}

/** The images or codes of one step, with classes and text features. It owns its tensors: `using batch = ...` */
export class Batch implements BatchParts {
  readonly images: Tensor | undefined;
  readonly codes: Tensor | undefined;
  readonly classes: Tensor;
  readonly features: Tensor | undefined;
  readonly isReal: Tensor | undefined;
  readonly ids: readonly string[];
  readonly captions: readonly string[] | undefined;
  readonly cursor: Cursor;
  readonly place?: { readonly from: number; readonly of: number };

  constructor(parts: BatchParts) {
    this.images = parts.images;
    this.codes = parts.codes;
    this.classes = parts.classes;
    this.features = parts.features;
    this.isReal = parts.isReal;
    this.ids = parts.ids;
    this.captions = parts.captions;
    this.cursor = parts.cursor;
    if (parts.place !== undefined) this.place = parts.place;
  }

  /** Free the tensors. */
  dispose(): void {
    for (const part of [this.images, this.codes, this.classes, this.features, this.isReal]) part?.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

/** A source of batches without end: `BatchReader`, or a program's loader through `batchesOf`. */
export interface Batches {
  /** Where the batch that `next` will give begins. */
  readonly cursor: Cursor;
  readonly unreadable: Unreadable;
  /**
   * Unreadable images that were skipped so far: index in the set and problem of each. Plain data for a
   * checkpoint: a reader that resumes from the cursor skips them and counts them. Absent where nothing can be skipped.
   */
  readonly passedOver?: PassedOver;
  /** The next batch, which the caller disposes of. */
  next(): Promise<Batch>;
  close(): void;
}

/** Unreadable images: the problem of each, by its index in the set. */
export type PassedOver = Readonly<Record<string, string>>;

/** Unreadable images that were skipped. */
export interface Unreadable {
  /** How many different ones. */
  readonly count: number;
  /** What is wrong with the first of them, each naming its image. */
  readonly problems: readonly string[];
}

/** Unreadable images that {@link UnreadableImages.news} names. */
const NAMED = 10;

/** Unreadable images of a run, from all its readers, each once, and the messages about them. */
export class UnreadableImages implements Unreadable {
  readonly #problems = new Map<string, string>();
  #told = 0;

  get count(): number {
    return this.#problems.size;
  }

  get problems(): readonly string[] {
    return [...this.#problems.values()].slice(0, NAMED);
  }

  /** What is wrong with each, by its identity: plain data, for a checkpoint. */
  get byId(): Readonly<Record<string, string>> {
    return Object.fromEntries(this.#problems);
  }

  /** Take note of an image by its identity. */
  add(id: string, problem: string): void {
    this.#problems.set(id, problem);
  }

  /**
   * Lines for what is new since the last call: the first ten images with what is wrong, then the count whenever it
   * has doubled.
   */
  news(): string[] {
    const [before, now] = [this.#told, this.count];
    this.#told = now;
    const lines = this.problems.slice(before).map((problem) => `unreadable image: ${problem}`);
    const step = (count: number): number => Math.floor(Math.log2(Math.max(count, NAMED) / NAMED));
    const isMore = now > NAMED && (before <= NAMED || step(now) > step(before));
    return isMore
      ? [...lines, `${now} images could not be read so far; the first ${NAMED} are named`]
      : lines;
  }
}

/** One row of a future batch. It is plain memory, so that rows read ahead hold no tensor. */
export interface Row {
  readonly id: string;
  readonly classId: number;
  /** `size * size * 3` bytes. */
  readonly data?: Uint8Array;
  readonly codes?: BigInt64Array;
  readonly features?: Features | undefined;
  readonly caption?: string | undefined;
}

/** How rows become tensors. */
export interface BatchShape {
  /** Width and height of the images. */
  readonly size: number;
  /** `S`; the longest text of the batch where it is undefined. Longer texts are cut. */
  readonly featureTokens: number | undefined;
  readonly device: Device;
}

/** @throws RangeError when rows have features of different widths. */
export function batchOf(
  rows: readonly Row[],
  cursor: Cursor,
  { size, featureTokens, device }: BatchShape,
  place?: BatchParts["place"],
): Batch {
  const ids = rows.map((row) => row.id);
  const parts = tidy(() => ({
    images: rows[0]?.data === undefined ? undefined : imagesOf(rows, size, device),
    codes: rows[0]?.codes === undefined ? undefined : codesOf(rows, device),
    classes: tensor(
      BigInt64Array.from(rows, (row) => BigInt(row.classId)),
      { device },
    ),
    ...(rows[0]?.features !== undefined && featuresOf(rows, featureTokens, device)),
  }));
  const captions = rows[0]?.caption === undefined ? undefined : rows.map(({ caption }) => caption as string);
  return new Batch({ ...parts, ids, captions, cursor, ...(place && { place }) });
}

function imagesOf(rows: readonly Row[], size: number, device: Device): Tensor {
  const bytes = new Uint8Array(rows.length * size * size * 3);
  for (const [i, { data }] of rows.entries()) bytes.set(data as Uint8Array, i * size * size * 3);
  // Bytes are copied to the device: a quarter of the size of floats.
  const images = tensor(bytes, { device }).view(rows.length, size, size, 3).permute(0, 3, 1, 2).contiguous();
  return images.float().div_(127.5).sub_(1);
}

function codesOf(rows: readonly Row[], device: Device): Tensor {
  const length = rows[0]?.codes?.length ?? 0;
  const codes = new BigInt64Array(rows.length * length);
  for (const [i, row] of rows.entries()) codes.set(row.codes as BigInt64Array, i * length);
  return tensor(codes, { device }).view(rows.length, length);
}

function featuresOf(rows: readonly Row[], tokens: number | undefined, device: Device) {
  const all = rows.map((row) => row.features as Features);
  const width = (all[0] as Features).shape[1];
  const length = tokens ?? Math.max(...all.map(({ shape }) => shape[0]));
  const features = new Float32Array(rows.length * length * width);
  const isReal = new Uint8Array(rows.length * length);
  for (const [i, { data, shape }] of all.entries()) {
    if (shape[1] !== width) {
      const got = `${shape[1]} for ${rows[i]?.id}`;
      throw expected("text features", `the same width for all, ${width} for ${rows[0]?.id}`, got);
    }
    const kept = Math.min(shape[0], length);
    const end = (i + 1) * length;
    features.set(data.subarray(0, kept * width), (end - kept) * width);
    isReal.fill(1, end - kept, end);
  }
  return {
    features: tensor(features, { device }).view(rows.length, length, width),
    isReal: tensor(isReal, { device }).view(rows.length, length).to({ dtype: "bool" }),
  };
}
