/** What judging leaves behind besides numbers: pages of images, and samples for the evaluators of others. */
import { closeSync, mkdirSync, openSync, rmSync } from "node:fs";
import { basename, dirname, extname, join } from "node:path";
import { gridOf, writePng } from "../data/index.js";
import { type NpzArray, writeNpz } from "../data/npz.js";
import { rangesOf } from "../rl_ar_finetune/scoring.js";
import { cat, expected, fullLike, type Tensor, tensor, tidy, where } from "../torch/index.js";
import { forEachDecoded } from "./draws.js";
import { type EvalInputs, type HeldOut, imagesOf } from "./inputs.js";
import type { ModelEvalOptions, Point } from "./options.js";

/**
 * Make the folder of pages, and see that files can be written where they are to go: before hours of work, not after.
 *
 * @throws RangeError that names the option.
 */
export function prepareOutputs({ out, npz, json }: Pick<ModelEvalOptions, "out" | "npz" | "json">): void {
  const folders = [
    ...(out === undefined ? [] : [["out", out] as const]),
    ...(npz === undefined ? [] : [["npz", dirname(npz)] as const]),
    ...(json === undefined ? [] : [["json", dirname(json)] as const]),
  ];
  for (const [option, folder] of folders) {
    const probe = join(folder, `.${process.pid}.probe.tmp`);
    try {
      if (option === "out") mkdirSync(folder, { recursive: true });
      closeSync(openSync(probe, "wx"));
      rmSync(probe);
    } catch (error) {
      throw expected(
        `eval: ${option}`,
        `a folder that can be written`,
        (error as Error).message,
        `Choose another with --${option}`,
      );
    }
  }
}

/** Free samples of a policy at a point. */
export interface FreeDraw extends Point {
  readonly label: string;
  /** int64 `[N, T]`, on the CPU. */
  readonly codes: Tensor;
  /** Class of each. */
  readonly classes: readonly number[];
}

/** Completions of a policy at a point, `draws` an image in a row. */
export interface CompletionDraw extends Point {
  readonly label: string;
  readonly prefix: number;
  readonly draws: number;
  /** int64 `[H * draws, T]`, on the CPU. */
  readonly codes: Tensor;
}

/** `A_t0.9_cfg1.5`. */
export const drawName = ({ label, temperature, cfg }: Point & { label: string }): string =>
  `${label}_t${temperature}_cfg${cfg}`;

/** A page: rows of classes, at most. */
const ROWS = 12;
const COLUMNS = 10;

/** The samples of a draw that go on a page: some classes, spread over all, and some samples of each. Codes are new. */
export function shownOf(draw: FreeDraw): FreeDraw {
  const present = [...new Set(draw.classes)].sort((a, b) => a - b);
  const shown =
    present.length <= ROWS
      ? present
      : Array.from({ length: ROWS }, (_, i) => present[Math.floor((i * present.length) / ROWS)] as number);
  const each = shown.length === 1 ? ROWS * COLUMNS : COLUMNS;
  const places = shown.flatMap((c) => draw.classes.flatMap((of, i) => (of === c ? [i] : [])).slice(0, each));
  const codes = tidy(() => draw.codes.indexSelect(0, tensor(places, { dtype: "int64" })));
  return { ...draw, codes, classes: places.map((place) => draw.classes[place] as number) };
}

/** Write what {@link shownOf} chose as a page, a row for each class. Gives the file's name. */
export async function writeFreePage(folder: string, inputs: EvalInputs, draw: FreeDraw): Promise<string> {
  const shown = [...new Set(draw.classes)];
  const page = tidy(() => {
    const rows = shown.map((c) => {
      const places = draw.classes.flatMap((of, i) => (of === c ? [i] : []));
      return decodeSome(inputs, draw.codes, places);
    });
    return gridOf(rows.length === 1 ? (rows[0] as Tensor).split(COLUMNS) : rows);
  });
  return await writePage(folder, `free_${drawName(draw)}.png`, page);
}

/**
 * Write completions as a page: a row an image, with the image, its reconstruction, what of it was given, and the
 * completions of each policy.
 */
export async function writeCompletionPage(
  folder: string,
  inputs: EvalInputs,
  heldOut: HeldOut,
  draws: readonly CompletionDraw[],
): Promise<string> {
  const [first] = draws as readonly [CompletionDraw];
  const count = heldOut.images.size(0);
  const rows = Math.min(ROWS, count);
  const places = Array.from({ length: rows }, (_, i) => Math.floor((i * count) / rows));
  const page = tidy(() => {
    const isGiven = givenPixels(inputs, first.prefix);
    return gridOf(
      places.map((place) => {
        const image = imagesOf(heldOut.images, place, 1, "cpu");
        const reconstruction = decodeSome(inputs, heldOut.codes, [place]);
        const given = where(isGiven, reconstruction, fullLike(reconstruction, 0));
        const completed = draws.map(({ codes, draws: n }) =>
          decodeSome(
            inputs,
            codes,
            Array.from({ length: Math.min(n, 3) }, (_, i) => place * n + i),
          ),
        );
        return cat([image, reconstruction, given, ...completed]);
      }),
    );
  });
  return await writePage(
    folder,
    `completion_${first.prefix}_t${first.temperature}_cfg${first.cfg}.png`,
    page,
  );
}

async function writePage(folder: string, name: string, page: Tensor): Promise<string> {
  using _ = page;
  await writePng(join(folder, name), page);
  return name;
}

/** Images of some rows of codes, on the CPU. */
function decodeSome({ tokenizer, data, device }: EvalInputs, codes: Tensor, places: number[]): Tensor {
  const some = codes.indexSelect(0, tensor(places, { dtype: "int64" }));
  const parts: Tensor[] = [];
  return tidy(() => {
    forEachDecoded(tokenizer, some, { size: data.size, device }, (images) => {
      parts.push(images.cpu());
      return parts; // they outlive the piece
    });
    return cat(parts);
  });
}

/** bool `[1, 1, s, s]`: the pixels that the first codes, in raster order, stand for. */
function givenPixels({ tokenizer, data, codes }: EvalInputs, prefix: number): Tensor {
  const { downsample } = tokenizer;
  const side = data.size / downsample;
  return tidy(() => {
    const cells = Array.from({ length: codes }, (_, i) => (i < prefix ? 1 : 0));
    const grid = tensor(cells).reshape(1, 1, side, side);
    return grid.repeatInterleave(downsample, 2).repeatInterleave(downsample, 3).gt(0);
  });
}

/** Sequences that are decoded between two writes. */
const PIECE = 512;

/** Write free samples as `arr_0` uint8 `[N, H, W, 3]` and their classes as `arr_1` int64 `[N]`. */
export function writeSamples(path: string, inputs: EvalInputs, { codes, classes }: FreeDraw): void {
  const { tokenizer, device, data } = inputs;
  const n = codes.size(0);
  function* pixels(): Generator<Uint8Array> {
    for (const [from, count] of rangesOf(n, PIECE)) {
      const pieces: Uint8Array[] = [];
      forEachDecoded(tokenizer, codes.narrow(0, from, count), { size: data.size, device }, (images) => {
        const bytes = images.add(1).mul(127.5).round().to({ dtype: "uint8" }).permute(0, 2, 3, 1);
        pieces.push(bytes.toArray() as Uint8Array);
      });
      yield* pieces;
    }
  }
  const arr0: NpzArray = { type: "u1", shape: [n, data.size, data.size, 3], data: pixels() };
  const labels = new Uint8Array(BigInt64Array.from(classes, BigInt).buffer);
  writeNpz(path, { arr_0: arr0, arr_1: { type: "i8", shape: [n], data: [labels] } });
}

/** Where samples go: the file itself, or one named by policy and point where there are several. */
export function samplesPath(path: string, draw: FreeDraw, isOnly: boolean): string {
  if (isOnly) return path;
  const ending = extname(path);
  return join(dirname(path), `${basename(path, ending)}_${drawName(draw)}${ending}`);
}
