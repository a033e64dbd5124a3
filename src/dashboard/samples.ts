/**
 * Pictures of the report: pages of images that the run and `rlar eval` wrote, embedded in the report up to a limit of bytes. A
 * slider goes through those of one kind in the order of their steps.
 */
import { existsSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { basename, join } from "node:path";
import sharp from "sharp";
import { stepOfCheckpoint } from "../run/checkpoint.js";
import { isObject } from "../torch/json.js";
import { valueText } from "./config.js";
import { type Html, html, notices, table, told } from "./page.js";
import type { Run, SamplePage } from "./run.js";
import { numberText } from "./scale.js";

/** A page of images, ready to be embedded. */
interface Picture {
  readonly page: SamplePage;
  /** WebP. */
  readonly bytes: Buffer;
  /** Of the PNG, in pixels. */
  readonly width: number;
  readonly height: number;
}

/** Pages of a kind, such as held-out images, in the order of their steps. */
interface Album {
  readonly name: string;
  readonly shown: readonly Picture[];
  /** Pages that there are. */
  readonly total: number;
}

/** All pictures of a run. */
export interface Pictures {
  readonly albums: readonly Album[];
  /** Files that are no images, with the reason. */
  readonly unread: readonly string[];
}

/** The album of held-out images: a picture per evaluation in the run, then those of `rlar eval`. */
export const HELD_OUT = "held-out images";

/** Most pages that a slider is useful for. */
const MOST = 24;

/** Pictures are scaled down to this width. */
const WIDEST = 1280;

/** Bytes up to which a picture is embedded exactly. */
const EXACT = 40_000;

/**
 * Read the pages of a run.
 *
 * The last of an album is always shown, and the first where there is room for two; those between are evenly spread.
 *
 * @param budget - bytes that all pictures may take together.
 */
export async function readPictures(run: Run, budget: number): Promise<Pictures> {
  const pages = [...run.pages.map(named), ...evalPages(run)];
  const names = [...new Set(pages.map(({ name }) => name))];
  const albums: Album[] = [];
  const unread: string[] = [];
  for (const name of names) {
    const own = pages.filter((page) => page.name === name).sort((a, b) => a.step - b.step);
    let shown: Picture[] = [];
    for (const page of evenly(own, MOST)) {
      try {
        shown.push(await readPicture(page));
      } catch (error) {
        unread.push(`${basename(page.path)}: ${(error as Error).message.split("\n")[0]}`);
      }
    }
    const bytes = (): number => shown.reduce((sum, picture) => sum + picture.bytes.length, 0);
    while (shown.length > 1 && bytes() > budget / names.length) shown = evenly(shown, shown.length - 1);
    albums.push({ name, shown, total: own.length });
  }
  return { albums, unread };
}

/** A page under the name of its album. */
function named(page: SamplePage): SamplePage {
  if (page.name === "train") return { ...page, name: "training images" };
  if (page.name !== "eval") return page;
  return { ...page, name: HELD_OUT, about: { title: "evaluated in the run", ...page.about } };
}

/** The pages that `rlar eval --out` wrote, where they lie in the run's folder. */
function evalPages({ folder, evaluations, lastStep }: Run): SamplePage[] {
  return evaluations.flatMap(({ file, evaluation: { pages, judged } }) => {
    const places = [file.replace(/\.json$/, ""), "eval", "pages", "."];
    const step = stepOfCheckpoint(judged?.checkpoint ?? "") ?? lastStep;
    return pages.flatMap((page): SamplePage[] => {
      // Names alone: a file is no reason to read from elsewhere.
      if (!/^[\w.-]+\.png$/.test(page)) return [];
      const path = places.map((place) => join(folder, place, page)).find((at) => existsSync(at));
      const name = page.startsWith("completion") ? HELD_OUT : "free samples";
      return path === undefined ? [] : [{ step, name, path, about: { title: titleOf(page) } }];
    });
  });
}

/** `completion_32_t1_cfg1.png` in words. */
function titleOf(name: string): string {
  const [, what = "", t, cfg] = /^(.+)_t([\d.]+)_cfg([\d.]+)\.png$/.exec(name) ?? [];
  const given = /^completion_(\d+)$/.exec(what)?.[1];
  if (given === undefined && !/^free(_[AB])?$/.test(what)) return name;
  const setting = `T ${t}${cfg === "1" ? "" : `, cfg ${cfg}`}`;
  if (given !== undefined) return `judged by rlar eval: completions after ${given} given codes, ${setting}`;
  const policy = { free: "before and after", free_A: "A" }[what] ?? "B, after";
  return `judged by rlar eval: ${policy}, ${setting}`;
}

/** At most `count` of a list, its ends among them, the others evenly between. */
export function evenly<T>(list: readonly T[], count: number): T[] {
  if (list.length <= count) return [...list];
  if (count === 1) return [list.at(-1) as T];
  const places = Array.from({ length: count }, (_, i) => Math.round((i * (list.length - 1)) / (count - 1)));
  return places.map((place) => list[place] as T);
}

async function readPicture(page: SamplePage): Promise<Picture> {
  const image = sharp(await readFile(page.path));
  const { width, height } = await image.metadata();
  const exact = width <= WIDEST ? await image.clone().webp({ lossless: true, effort: 4 }).toBuffer() : null;
  if (exact !== null && exact.length <= EXACT) return { page, bytes: exact, width, height };
  const scaled = image.resize({ width: WIDEST, withoutEnlargement: true });
  const bytes = await scaled.webp({ quality: 75, smartSubsample: true }).toBuffer();
  return { page, bytes, width, height };
}

/** The albums of some names, each with its slider. */
export function sampleSection({ albums, unread }: Pictures, isWanted: (name: string) => boolean): Html {
  const wanted = albums.filter(({ name, shown }) => shown.length > 0 && isWanted(name));
  return html`${wanted.map(albumOf)}${notices(
    told(
      "problem",
      unread.map((reason) => `Not read: ${reason}`),
    ),
  )}`;
}

/** Works by keyboard and by touch; without the page's script all pictures are below each other. */
function albumOf({ name, shown, total }: Album): Html {
  const last = shown.length - 1;
  const bar =
    last > 0 &&
    html`<div class="slide" hidden><button type="button" data-by="-1" aria-label="earlier">&#9664;</button><input type="range" min="0" max="${last}" value="${last}" step="1" aria-label="training step"><button type="button" data-by="1" aria-label="later">&#9654;</button><button type="button" data-by="0">first / last</button></div>`;
  const left = total - shown.length;
  return html`<div class="samples"><h3>${name.charAt(0).toUpperCase()}${name.slice(1)}${last > 0 && ", step by step"}</h3>${bar}${shown.map(figureOf)}${
    left > 0 &&
    html`<p class="about">${left} of ${total} pages are omitted to keep this file small; all are in the run's folder.</p>`
  }</div>`;
}

function figureOf({ page, bytes, width, height }: Picture): Html {
  const { title, ...about } = page.about;
  const caption = `Step ${page.step}${title === undefined ? "" : `, ${title}`}`;
  const source = `data:image/webp;base64,${bytes.toString("base64")}`;
  // Pages of older runs are small.
  const zoom = Math.max(1, Math.floor(1000 / width));
  return html`<figure class="page"><figcaption>${caption}</figcaption>
<div class="scroll" tabindex="0"><img src="${source}" width="${zoom * width}" height="${zoom * height}" alt="${caption}"></div>
${Object.keys(about).length > 0 && html`<details><summary>What these images are</summary>${aboutOf(about)}</details>`}</figure>`;
}

/** What the index says of a page: lists as the columns of a table with a row per image, the rest as text. */
function aboutOf(about: SamplePage["about"]): Html {
  const entries = Object.entries(about);
  const rest = entries.filter(([name, value]) => name === "columns" || !Array.isArray(value));
  const columns = entries.flatMap(([name, value]): [string, unknown[]][] => {
    if (name === "columns" || !Array.isArray(value)) return [];
    const keys = new Set(value.flatMap((item) => (isObject(item) ? Object.keys(item) : [])));
    if (keys.size === 0) return [[name, value]];
    return [...keys].map((key) => [key, value.map((item) => (isObject(item) ? item[key] : item))]);
  });
  const most = Math.max(0, ...columns.map(([, values]) => values.length));
  const rows = Array.from({ length: most }, (_, i) => [
    `${i + 1}`,
    ...columns.map(([, values]) => (i < values.length ? cellOf(values[i]) : "")),
  ]);
  return html`${rest.map(([name, value]) => html`<p class="about">${name}: ${valueText(value)}</p>`)}${
    most > 0 && table(["", ...columns.map(([name]) => name)], rows)
  }`;
}

function cellOf(value: unknown): string {
  if (Array.isArray(value)) return value.map(cellOf).join(", ");
  if (value === null) return "n/a";
  return typeof value === "number" ? numberText(value) : valueText(value);
}
