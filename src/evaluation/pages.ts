/** Files of an evaluation besides numbers: pages of images, and samples for evaluators of other projects. */
import { closeSync, openSync, rmSync } from "node:fs";
import { basename, dirname, extname, join } from "node:path";
import { makeFolders } from "#folders";
import { givenPart, labelledPage, type PageRow, spread, writePng } from "../data/index.js";
import { type NpzArray, writeNpz } from "../data/npz.js";
import { gatherParts, isFirst } from "../distributed/index.js";
import { rangesOf } from "../rl_ar_finetune/scoring.js";
import { cat, expected, type Tensor, tensor, tidy } from "../torch/index.js";
import { forEachDecoded } from "./draws.js";
import { leastBy } from "./frontier.js";
import { type EvalInputs, type HeldOut, imagesFromBytes } from "./inputs.js";
import { type EvalRow, isSamePoint, type ModelEvalOptions, type Point } from "./options.js";

/**
 * Make the folder of pages, and check before hours of work that all files can be written.
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
      if (option === "out") makeFolders(folder);
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

/** Completions of a policy at a point, `draws` per image, consecutive. */
export interface CompletionDraw extends Point {
  readonly label: string;
  readonly prefix: number;
  readonly draws: number;
  /** int64 `[H * draws, T]`, on the CPU. */
  readonly codes: Tensor;
}

/** `A_t0.9_cfg1.5`. */
const drawName = ({ label, temperature, cfg }: Point & { label: string }): string =>
  `${label}_t${temperature}_cfg${cfg}`;

/** Free samples of a page of one policy: rows at most, each of a class, and samples in a row. */
const ROWS = 24;
const COLUMNS = 10;

/** Images on a page of completions, or samples on one of before and after, at most: fewer of large ones. */
const pictured = (size: number): number => (size <= 64 ? 64 : 24);

/** Free samples that a page may show. */
export interface ShownDraw extends FreeDraw {
  /** Which of the samples that were drawn. */
  readonly places: readonly number[];
  readonly of: number;
}

/** The samples of a draw that go on a page: some classes, spread over all, and the first samples of each. Codes are new. */
export function shownOf(draw: FreeDraw): ShownDraw {
  const present = evenly(
    [...new Set(draw.classes)].sort((a, b) => a - b),
    ROWS,
  );
  const each = present.length === 1 ? ROWS * COLUMNS : COLUMNS;
  const places = present.flatMap((c) =>
    draw.classes.flatMap((of, i) => (of === c ? [i] : [])).slice(0, each),
  );
  const codes = tidy(() => draw.codes.indexSelect(0, tensor(places, { dtype: "int64" })));
  const classes = places.map((place) => draw.classes[place] as number);
  return { ...draw, codes, classes, places, of: draw.classes.length };
}

/** Some of a list, evenly spread. */
function evenly<T>(list: readonly T[], most: number): T[] {
  return spread(list.length, most).map((i) => list[i] as T);
}

const classNameOf = (inputs: EvalInputs, c: number): string => inputs.train.classNames[c] ?? `class ${c}`;

const pointWords = ({ temperature, cfg }: Point): string =>
  `temperature ${temperature}${cfg === 1 ? "" : `, guidance scale ${cfg}`}`;

/** How images were chosen, below a page. */
const RULE = "chosen by index, not by eye";

/** How far a setting is from plain sampling: T 1 without guidance. */
const farness = ({ temperature, cfg }: Point): number => Math.abs(Math.log(temperature)) + Math.abs(cfg - 1);

/** What pages are made of beside the draws. */
interface PagesContext {
  readonly inputs: EvalInputs;
  readonly heldOut: HeldOut | null;
  /** The network whose Fréchet distance chooses a setting for free samples. */
  readonly judge: string | undefined;
  readonly prefixes: readonly number[];
}

/** A policy's rows, and what it drew. */
interface DrawnPolicy {
  readonly rows: readonly EvalRow[];
  readonly freeDraws: readonly ShownDraw[];
  readonly completionDraws: readonly CompletionDraw[];
}

/**
 * Free samples at T 1, or next to it, and where the Fréchet distance of a policy is least: of two policies side by side.
 * Completions at T 1.
 */
export async function writePages(
  folder: string,
  { inputs, heldOut, judge, prefixes }: PagesContext,
  results: readonly DrawnPolicy[],
): Promise<string[]> {
  const pages: string[] = [];
  const fdOf = ({ free }: EvalRow): number => free?.networks[judge ?? ""]?.fd_train?.value ?? Infinity;
  const wanted = results.flatMap(({ rows }) => [
    leastBy(rows, farness),
    judge === undefined ? undefined : leastBy(rows, fdOf),
  ]);
  const [a, b] = results;
  for (const draw of a?.freeDraws ?? []) {
    if (!wanted.some((point) => point && isSamePoint(point, draw))) continue;
    const after = b?.freeDraws.find((each) => isSamePoint(each, draw));
    const page =
      after === undefined
        ? writeFreePage(folder, inputs, draw)
        : writeFreePairs(folder, inputs, [draw, after]);
    pages.push(await page);
  }
  if (heldOut === null) return pages;
  for (const prefix of prefixes) {
    const draws = results.flatMap(({ completionDraws }) => {
      const draw = leastBy(
        completionDraws.filter((each) => each.prefix === prefix),
        farness,
      );
      return draw === undefined ? [] : [draw];
    });
    if (draws.length > 0) pages.push(await writeCompletionPage(folder, inputs, heldOut, draws));
  }
  return pages;
}

/** Write what {@link shownOf} chose of one policy as a page, a row for each class. Gives the file's name. */
async function writeFreePage(folder: string, inputs: EvalInputs, draw: ShownDraw): Promise<string> {
  const shown = [...new Set(draw.classes)];
  const page = tidy(() => {
    const rows = shown.flatMap((c): PageRow[] => {
      const places = draw.classes.flatMap((of, i) => (of === c ? [i] : []));
      const images = decodeSome(inputs, draw.codes, places);
      return shown.length === 1
        ? images.split(COLUMNS).map((part) => ({ label: "", images: part }))
        : [{ label: classNameOf(inputs, c), images }];
    });
    const which = shown.length === 1 ? "the first" : "the first of each class";
    const text = `Free samples, ${pointWords(draw)}: ${draw.places.length} of ${draw.of}, ${RULE}: ${which}.`;
    return labelledPage(rows, [], text);
  });
  return await writePage(folder, `free_${drawName(draw)}.png`, page);
}

/** Write the same free samples of two policies as a page: each before and after, drawn with the same random numbers. */
async function writeFreePairs(
  folder: string,
  inputs: EvalInputs,
  [before, after]: readonly [ShownDraw, ShownDraw],
): Promise<string> {
  const chosen = overClasses(before.classes, pictured(inputs.data.size));
  const page = tidy(() => {
    const images = [before, after].map(({ codes }) => decodeSome(inputs, codes, chosen));
    const rows = chosen.map((i, row): PageRow => {
      const label = `${before.places[i]}: ${classNameOf(inputs, before.classes[i] as number)}`;
      return { label, images: cat(images.map((all) => all.narrow(0, row, 1))) };
    });
    const text =
      `Free samples, ${pointWords(before)}, before and after with the same random numbers: ${chosen.length} of ${before.of}, ` +
      `${RULE}: of each class, evenly spread. Numbers count the samples from 0.`;
    return labelledPage(rows, ["before", "after"], text);
  });
  const { temperature, cfg } = before;
  return await writePage(folder, `free_t${temperature}_cfg${cfg}.png`, page);
}

/**
 * Write completions as a page: of each image itself, its reconstruction, what of it was given, and the completions of each
 * policy. Images are of all classes, as far as there is room.
 */
async function writeCompletionPage(
  folder: string,
  inputs: EvalInputs,
  heldOut: HeldOut,
  draws: readonly CompletionDraw[],
): Promise<string> {
  const [first] = draws as readonly [CompletionDraw];
  const ids = heldOut.classes.toList() as number[];
  const places = overClasses(ids, pictured(inputs.data.size));
  const each = Math.min(first.draws, 3);
  const completed = draws.flatMap(({ label }) => {
    const name = draws.length === 1 ? "completed" : label === "A" ? "before" : "after";
    return Array.from({ length: each }, (_, i) => (each === 1 ? name : `${name} ${i + 1}`));
  });
  const page = tidy(() => {
    const rows = places.map((place): PageRow => {
      const image = imagesFromBytes(heldOut.images, place, 1, "cpu");
      const reconstruction = decodeSome(inputs, heldOut.codes, [place]);
      const given = givenPart(reconstruction, first.prefix, inputs.tokenizer.downsample);
      const drawn = draws.map(({ codes, draws: n }) =>
        decodeSome(
          inputs,
          codes,
          Array.from({ length: each }, (_, i) => place * n + i),
        ),
      );
      const label = `${place}: ${classNameOf(inputs, ids[place] as number)}`;
      return { label, images: cat([image, reconstruction, given, ...drawn]) };
    });
    const both = draws.length === 1 ? "" : ", before and after with the same random numbers";
    const text =
      `Completions after ${first.prefix} codes, ${pointWords(first)}${both}: ${places.length} of ${ids.length} held-out images, ` +
      `${RULE}: of each class, evenly spread. Numbers count the images that were judged, from 0.`;
    return labelledPage(rows, ["input", "reconstr.", "given", ...completed], text);
  });
  return await writePage(
    folder,
    `completion_${first.prefix}_t${first.temperature}_cfg${first.cfg}.png`,
    page,
  );
}

/**
 * Images to show, by their places: of each class in turn, the first of all before the second of any, so that every
 * class is there as far as there is room; in the order of the classes.
 *
 * @param classes - of the images, in their order.
 */
export function overClasses(classes: readonly number[], most: number): number[] {
  const byClass = new Map<number, number[]>();
  for (const [place, c] of classes.entries()) byClass.set(c, [...(byClass.get(c) ?? []), place]);
  const groups = evenly(
    [...byClass].sort(([a], [b]) => a - b).map(([, places]) => places),
    most,
  );
  const each = Math.ceil(most / Math.max(1, groups.length));
  const ranked = groups.flatMap((places, g) =>
    evenly(places, each).map((place, rank) => ({ place, rank, g })),
  );
  const chosen = ranked.sort((a, b) => a.rank - b.rank || a.g - b.g).slice(0, most);
  return chosen.sort((a, b) => a.g - b.g || a.rank - b.rank).map(({ place }) => place);
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

/** Sequences that are decoded between two writes. */
const PIECE = 512;

/**
 * Write free samples as `arr_0` uint8 `[N, H, W, 3]` and their classes as `arr_1` int64 `[N]`. Several processes share the
 * decoding, and the first one writes.
 */
export function writeSamples(path: string, inputs: EvalInputs, { codes, classes }: FreeDraw): void {
  const { tokenizer, device, data } = inputs;
  const n = codes.size(0);
  function* pixels(): Generator<Uint8Array> {
    for (const [from, count] of rangesOf(n, PIECE)) {
      yield tidy(() => {
        const pieces: Tensor[] = [];
        const options = { size: data.size, device, isShared: true };
        forEachDecoded(tokenizer, codes.narrow(0, from, count), options, (images) => {
          const bytes = images.add(1).mul(127.5).round().to({ dtype: "uint8" });
          pieces.push(bytes.permute(0, 2, 3, 1).contiguous().cpu());
          return pieces; // they outlive the piece
        });
        return gatherParts(pieces).toArray() as Uint8Array;
      });
    }
  }
  if (!isFirst()) {
    for (const _ of pixels());
    return;
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
