/**
 * Resizing 8-bit images exactly as Pillow does, and the two published crops made of it. Tokenizers were trained on
 * pixels prepared so, and different pixels give different codes. Reading and writing files is in `images.ts`.
 */
// Not from src/torch/index.ts: that would load LibTorch, which decoding threads must not do.
import { expected } from "../torch/errors.js";

/** An 8-bit image in memory, rows of interleaved channels. */
export interface Pixels {
  readonly width: number;
  readonly height: number;
  /** Bytes per pixel: 3 for RGB. */
  readonly channels: number;
  /** `height * width * channels` bytes. */
  readonly data: Uint8Array;
}

/** Filters by Pillow's names, with the half-width of their support in source pixels. */
export type Filter = "box" | "bilinear" | "bicubic" | "lanczos";

const SUPPORT: Readonly<Record<Filter, number>> = { box: 0.5, bilinear: 1, bicubic: 2, lanczos: 3 };

function weightOf(filter: Filter, x: number): number {
  const t = Math.abs(x);
  switch (filter) {
    case "box":
      return x > -0.5 && x <= 0.5 ? 1 : 0;
    case "bilinear":
      return t < 1 ? 1 - t : 0;
    case "bicubic":
      // Keys 1981 with a = -0.5.
      if (t < 1) return (1.5 * t - 2.5) * t * t + 1;
      return t < 2 ? ((-0.5 * t + 2.5) * t - 4) * t + 2 : 0;
    case "lanczos":
      return t < 3 ? sinc(t) * sinc(t / 3) : 0;
  }
}

function sinc(x: number): number {
  return x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x);
}

/** Bits of the fixed-point weights: 32 less 8 for the pixel and 2 for the sum's sign and overshoot. */
const PRECISION = 22;

/** Where each output position reads: its first source position, its place in the weights and how many it has. */
interface Taps {
  readonly starts: Int32Array;
  /** Place of each position's first weight, and the end after the last one. */
  readonly places: Int32Array;
  /** Fixed-point weights, position after position. */
  readonly weights: Int32Array;
}

/** Taps of the output positions `[first, first + count)` of `to`, from `from` source positions. */
function tapsOf(from: number, to: number, filter: Filter, first: number, count: number): Taps {
  const scale = from / to;
  const filterScale = Math.max(scale, 1);
  const support = SUPPORT[filter] * filterScale;
  const starts = new Int32Array(count);
  const places = new Int32Array(count + 1);
  const weights: number[] = [];
  for (let i = 0; i < count; i++) {
    const center = (first + i + 0.5) * scale;
    const start = Math.max(0, Math.trunc(center - support + 0.5));
    const end = Math.min(from, Math.trunc(center + support + 0.5));
    const raw = Array.from({ length: end - start }, (_, k) =>
      weightOf(filter, (k + start - center + 0.5) / filterScale),
    );
    const sum = raw.reduce((total, weight) => total + weight, 0);
    for (const weight of raw) {
      const scaled = (sum === 0 ? 0 : weight / sum) * 2 ** PRECISION;
      weights.push(Math.trunc(scaled < 0 ? scaled - 0.5 : scaled + 0.5));
    }
    starts[i] = start;
    places[i + 1] = weights.length;
  }
  return { starts, places, weights: Int32Array.from(weights) };
}

/** Half of the last bit that is kept, so that the shift rounds. */
const HALF = 2 ** (PRECISION - 1);

/** The source positions that taps read: the first, and the one after the last. */
function rowRange({ starts, places }: Taps): [number, number] {
  const count = starts.length;
  const taps = (places[count] as number) - (places[count - 1] as number);
  return [starts[0] as number, (starts[count - 1] as number) + taps];
}

function resizeRows(image: Pixels, { starts, places, weights }: Taps): Pixels {
  const { width, height, channels, data } = image;
  const size = starts.length;
  const out = new Uint8ClampedArray(size * height * channels);
  let at = 0;
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < size; x++) {
      const end = places[x + 1] as number;
      for (let c = 0; c < channels; c++) {
        let sum = HALF;
        let source = (y * width + (starts[x] as number)) * channels + c;
        for (let k = places[x] as number; k < end; k++) {
          sum += Math.imul(data[source] as number, weights[k] as number);
          source += channels;
        }
        out[at++] = sum >> PRECISION;
      }
    }
  }
  return { width: size, height, channels, data: new Uint8Array(out.buffer) };
}

/** @param firstRow - row of the source that the image begins with. */
function resizeColumns(image: Pixels, { starts, places, weights }: Taps, firstRow: number): Pixels {
  const { width, channels, data } = image;
  const size = starts.length;
  const rowBytes = width * channels;
  const out = new Uint8ClampedArray(size * rowBytes);
  // A whole row at a time reads memory in its order.
  const sums = new Int32Array(rowBytes);
  for (let y = 0; y < size; y++) {
    sums.fill(HALF);
    let source = ((starts[y] as number) - firstRow) * rowBytes;
    for (let k = places[y] as number; k < (places[y + 1] as number); k++) {
      const weight = weights[k] as number;
      for (let i = 0; i < rowBytes; i++) sums[i] = (sums[i] as number) + (data[source++] as number) * weight;
    }
    for (let i = 0; i < rowBytes; i++) out[y * rowBytes + i] = (sums[i] as number) >> PRECISION;
  }
  return { width, height: size, channels, data: new Uint8Array(out.buffer) };
}

/** Part of an image: `width x height` pixels at `(left, top)`. */
interface Window {
  readonly left: number;
  readonly top: number;
  readonly width: number;
  readonly height: number;
}

/**
 * Resize with Pillow's arithmetic: columns first, then rows, each rounded to 8 bits.
 *
 * @param window - part of the result to make, all of it by default. Only what it needs is computed, so a strip of one
 *   row takes no more memory than its window.
 */
export function resize(
  image: Pixels,
  width: number,
  height: number,
  filter: Filter,
  window: Window = { left: 0, top: 0, width, height },
): Pixels {
  if (width < 1 || height < 1) throw expected("resize", "a size of at least 1 x 1", `${width} x ${height}`);
  // An axis that keeps its length is cut, not resized.
  const down =
    height === image.height ? undefined : tapsOf(image.height, height, filter, window.top, window.height);
  const across =
    width === image.width ? undefined : tapsOf(image.width, width, filter, window.left, window.width);
  const [first, last] = down === undefined ? [window.top, window.top + window.height] : rowRange(down);
  const [left, columns] = across === undefined ? [window.left, window.width] : [0, image.width];
  const isWhole = columns === image.width && last - first === image.height;
  if (isWhole && across === undefined && down === undefined) return image;
  const part = isWhole ? image : cropTo(image, left, first, columns, last - first);
  const wide = across === undefined ? part : resizeRows(part, across);
  return down === undefined ? wide : resizeColumns(wide, down, first);
}

/** The window `[left, left + width) x [top, top + height)`, which must be inside the image. */
export function cropTo(image: Pixels, left: number, top: number, width: number, height: number): Pixels {
  const { channels, data } = image;
  if (left < 0 || top < 0 || left + width > image.width || top + height > image.height) {
    const window = `${width} x ${height} at (${left}, ${top})`;
    throw expected("cropTo", `a window inside ${image.width} x ${image.height}`, window);
  }
  const out = new Uint8Array(width * height * channels);
  for (let y = 0; y < height; y++) {
    const first = ((top + y) * image.width + left) * channels;
    out.set(data.subarray(first, first + width * channels), y * width * channels);
  }
  return { width, height, channels, data: out };
}

/** Python's rounding: halves go to the even neighbour. */
function roundHalfEven(x: number): number {
  const floor = Math.floor(x);
  if (x - floor !== 0.5) return Math.round(x);
  return floor % 2 === 0 ? floor : floor + 1;
}

/**
 * The centre square as guided diffusion and LlamaGen prepare it: halve with a box filter while the shorter side
 * is at least twice `size`, resize bicubically so that it is `size`, cut out the middle.
 *
 * @see Dhariwal and Nichol 2021, "Diffusion Models Beat GANs on Image Synthesis", released code.
 */
export function centerCrop(image: Pixels, size: number): Pixels {
  let current = image;
  while (Math.min(current.width, current.height) >= 2 * size) {
    current = resize(current, Math.floor(current.width / 2), Math.floor(current.height / 2), "box");
  }
  const scale = size / Math.min(current.width, current.height);
  const width = roundHalfEven(current.width * scale);
  const height = roundHalfEven(current.height * scale);
  const square = resize(current, width, height, "bicubic", middle(width, height, size));
  // The caller owns the result.
  return square === image ? { ...image, data: image.data.slice() } : square;
}

/**
 * The centre square as SEED-Voken prepares it: resize bilinearly, without smoothing, so that the shorter side is
 * `size`, cut out the middle.
 *
 * Differs from OpenCV's fixed-point arithmetic by at most one level of 255.
 */
export function smallestSideCrop(image: Pixels, size: number): Pixels {
  const scale = size / Math.min(image.width, image.height);
  const width = roundHalfEven(image.width * scale);
  const height = roundHalfEven(image.height * scale);
  return resizeBilinear(image, width, height, middle(width, height, size));
}

/** The square in the middle of an image. */
function middle(width: number, height: number, size: number): Window {
  return {
    left: Math.floor((width - size) / 2),
    top: Math.floor((height - size) / 2),
    width: size,
    height: size,
  };
}

/** A part of the image resized bilinearly between the four nearest pixels, whatever the scale. */
function resizeBilinear(image: Pixels, toWidth: number, toHeight: number, window: Window): Pixels {
  const { channels, data } = image;
  const { left, top, width, height } = window;
  if (toWidth === image.width && toHeight === image.height) return cropTo(image, left, top, width, height);
  const out = new Uint8Array(width * height * channels);
  const axis = (from: number, to: number, first: number, count: number) =>
    Array.from({ length: count }, (_, i) => {
      const at = Math.min(Math.max((first + i + 0.5) * (from / to) - 0.5, 0), from - 1);
      const low = Math.min(Math.floor(at), Math.max(from - 2, 0));
      return { low, high: Math.min(low + 1, from - 1), weight: at - low };
    });
  const columns = axis(image.width, toWidth, left, width);
  for (const [y, row] of axis(image.height, toHeight, top, height).entries()) {
    for (const [x, column] of columns.entries()) {
      for (let c = 0; c < channels; c++) {
        const at = (r: number, k: number): number => data[(r * image.width + k) * channels + c] as number;
        const upper =
          at(row.low, column.low) * (1 - column.weight) + at(row.low, column.high) * column.weight;
        const lower =
          at(row.high, column.low) * (1 - column.weight) + at(row.high, column.high) * column.weight;
        out[(y * width + x) * channels + c] = Math.floor(upper * (1 - row.weight) + lower * row.weight + 0.5);
      }
    }
  }
  return { width, height, channels, data: out };
}
