/**
 * The report's section on samples: pages of images embedded in the report, exact if they are small, else scaled down, up to a
 * limit of bytes.
 */
import { existsSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { basename, join } from "node:path";
import sharp from "sharp";
import { valueText } from "./config.js";
import { type Html, html, table } from "./page.js";
import type { EvalFile } from "./reading.js";
import type { Run, SamplePage } from "./run.js";
import { numberText } from "./scale.js";

/** A page of images, ready to be embedded. */
export interface Picture {
  readonly page: SamplePage;
  /** WebP. */
  readonly bytes: Buffer;
  /** Of the PNG, in pixels. */
  readonly width: number;
  readonly height: number;
}

/** Pages of a run that are shown, how many there are, and which could not be read. */
export interface Pictures {
  readonly shown: readonly Picture[];
  readonly total: number;
  /** Files that are no images, with the reason. */
  readonly unread: readonly string[];
}

/** Most pages that a slider is useful for. */
const MOST = 24;

/** Widest picture that is embedded as it is. */
const WIDEST = 640;

/** Width that pages are enlarged to, at most, by a whole factor. */
const WIDE = 1000;

/**
 * Read the pages that a run wrote while it trained.
 *
 * The last is always among them, and the first where there is room for two; those between are evenly spread.
 *
 * @param budget - bytes that all pictures may take together.
 */
export async function readPictures({ pages }: Pick<Run, "pages">, budget: number): Promise<Pictures> {
  const names = [...new Set(pages.map(({ name }) => name))];
  const shown: Picture[] = [];
  const unread: string[] = [];
  for (const name of names) {
    const own = pages.filter((page) => page.name === name);
    const most = Math.max(2, Math.floor(MOST / names.length));
    let pictures: Picture[] = [];
    for (const page of evenly(own, most)) {
      try {
        pictures.push(await readPicture(page));
      } catch (error) {
        unread.push(`${basename(page.path)}: ${(error as Error).message.split("\n")[0]}`);
      }
    }
    while (pictures.length > 1 && bytesOf(pictures) > budget / names.length)
      pictures = evenly(pictures, pictures.length - 1);
    shown.push(...pictures);
  }
  return { shown, total: pages.length, unread };
}

/**
 * Read the pages that `rlar eval --out` wrote, where they lie in the run's folder: those of completions before those of
 * free samples.
 */
export async function readEvalPictures(folder: string, { file, evaluation }: EvalFile): Promise<Pictures> {
  const stem = file.replace(/\.json$/, "");
  const pages = evaluation.pages.flatMap((name): SamplePage[] => {
    // Names alone: a file is no reason to read from elsewhere.
    if (!/^[\w.-]+\.png$/.test(name)) return [];
    const path = [stem, "eval", "pages", "."]
      .map((place) => join(folder, place, name))
      .find((at) => existsSync(at));
    return path === undefined ? [] : [{ step: 0, name: "eval", path, about: { title: titleOf(name) } }];
  });
  const isFirst = ({ path }: SamplePage): number => (basename(path).startsWith("completion") ? 0 : 1);
  return await readPictures({ pages: pages.sort((a, b) => isFirst(a) - isFirst(b)) }, EVAL_PICTURES);
}

/** Bytes that the pages of an evaluation may take. */
const EVAL_PICTURES = 1_200_000;

/** `completion_32_t1_cfg1.png` in words. */
function titleOf(name: string): string {
  const completion = /^completion_(\d+)_t([\d.]+)_cfg([\d.]+)\.png$/.exec(name);
  const free = /^free_([AB])_t([\d.]+)_cfg([\d.]+)\.png$/.exec(name);
  const setting = (t: string | undefined, cfg: string | undefined): string =>
    `T ${t}${cfg === "1" ? "" : `, cfg ${cfg}`}`;
  if (completion !== null)
    return `Completions after ${completion[1]} given codes, ${setting(completion[2], completion[3])}`;
  if (free !== null)
    return `Free samples ${free[1] === "A" ? "of A" : "of B, after"}, ${setting(free[2], free[3])}`;
  return name;
}

/** The pages of an evaluation, one below the other; nothing where there are none. */
export function evalPictures({ shown, unread }: Pictures): Html | null {
  if (shown.length + unread.length === 0) return null;
  const [first, ...rest] = shown.map(
    (picture) =>
      html`<figure class="page"><figcaption>${String(picture.page.about.title)}</figcaption>${imageOf(picture)}</figure>`,
  );
  return html`${first}${rest.length > 0 && html`<details><summary>${rest.length} more pages: free samples, other numbers of given codes</summary>${rest}</details>`}${unreadText(unread)}`;
}

const unreadText = (unread: readonly string[]): Html | null =>
  unread.length === 0
    ? null
    : html`<ul class="notices">${unread.map((reason) => html`<li class="bad"><b>problem</b> Not read: ${reason}</li>`)}</ul>`;

const bytesOf = (pictures: readonly Picture[]): number =>
  pictures.reduce((sum, { bytes }) => sum + bytes.length, 0);

/** At most `count` of a list, its ends among them, the others evenly between. */
export function evenly<T>(list: readonly T[], count: number): T[] {
  if (list.length <= count) return [...list];
  if (count === 1) return [list.at(-1) as T];
  return Array.from(
    { length: count },
    (_, i) => list[Math.round((i * (list.length - 1)) / (count - 1))] as T,
  );
}

async function readPicture(page: SamplePage): Promise<Picture> {
  const image = sharp(await readFile(page.path));
  const { width, height } = await image.metadata();
  // A page that was enlarged by whole factors stays exact: it takes little room.
  const isExact = width <= WIDEST || page.name === "eval";
  const bytes = isExact
    ? await image.webp({ lossless: true, effort: 4 }).toBuffer()
    : await image
        .resize({ width: WIDEST * 2, withoutEnlargement: true })
        .webp({ quality: 78 })
        .toBuffer();
  return { page, bytes, width, height };
}

/** The section on samples: a slider over the pages, each with what its columns are. */
export function sampleSection({ shown, total, unread }: Pictures): Html {
  if (shown.length + unread.length === 0)
    return html`<p>No page of samples was written (log.imagesEvery).</p>`;
  const names = [...new Set(shown.map(({ page }) => page.name))];
  const left = total - shown.length - unread.length;
  return html`${names.map((name) =>
    slider(
      name,
      shown.filter(({ page }) => page.name === name),
    ),
  )}${
    left > 0 &&
    html`<p class="about">${left} of ${total} pages are omitted to keep the file small; all are in samples/.</p>`
  }${unreadText(unread)}`;
}

/** What pages are of, by their names. */
const TITLES: ReadonlyMap<string, string> = new Map([
  ["train", "On training images"],
  ["eval", "From an evaluation"],
]);

function slider(name: string, pictures: readonly Picture[]): Html {
  const last = pictures.length - 1;
  const bar =
    last > 0 &&
    html`<p class="slide" hidden><label>step <output></output> <input type="range" min="0" max="${last}" value="${last}" step="1"></label></p>`;
  return html`<div class="samples"><h3>${TITLES.get(name) ?? name}</h3>${bar}${pictures.map(figureOf)}</div>`;
}

/** A page's image, enlarged by a whole factor. */
function imageOf({ page, bytes, width, height }: Picture, columns: readonly Column[] = []): Html {
  const source = `data:image/webp;base64,${bytes.toString("base64")}`;
  const zoom = Math.max(1, Math.floor(WIDE / width));
  const heads = columns.map(
    ({ label, count }, i) => html`<span class="c${i % 8}" style="flex-grow:${count}">${label}</span>`,
  );
  const alt = page.about.title ?? `Images at step ${page.step}`;
  const caption = columns.map(({ label, count }) => (count > 1 ? `${count} ${label}` : label)).join(", ");
  return html`<div style="max-width:${zoom * width}px">${heads.length > 0 && html`<div class="columns">${heads}</div>`}<img src="${source}" width="${width}" height="${height}" alt="${String(alt)}${caption !== "" && `: ${caption}`}"></div>`;
}

/** What a column of the page is, and how many columns wide. */
interface Column {
  readonly label: string;
  readonly count: number;
}

function figureOf(picture: Picture): Html {
  const { page } = picture;
  const columns = columnsOf(page);
  return html`<figure class="page" data-step="${page.step}">
<figcaption>Step ${page.step}</figcaption>
${imageOf(picture, columns)}
<details><summary>What these images are</summary>${rewardsOf(page)}${restOf(page)}</details>
</figure>`;
}

/** Columns by their names; the last one stands for all that are left. */
function columnsOf({ about }: SamplePage): Column[] {
  if (!Array.isArray(about.columns)) return [];
  const names = about.columns.map(String);
  const rewards = rewardRows(about)[0]?.length ?? 1;
  return names.map((label, i) => ({ label, count: i === names.length - 1 ? Math.max(1, rewards) : 1 }));
}

function rewardRows(about: SamplePage["about"]): readonly (readonly unknown[])[] {
  return Array.isArray(about.rewards) ? about.rewards.filter(Array.isArray) : [];
}

function rewardsOf({ about }: SamplePage): Html | null {
  const rewards = rewardRows(about);
  if (rewards.length === 0) return null;
  const ids = Array.isArray(about.ids) ? about.ids.map(String) : [];
  const most = Math.max(...rewards.map((row) => row.length));
  const rows = rewards.map((row, i) => [
    html`<code>${ids[i] ?? `row ${i + 1}`}</code>`,
    ...row.map((value) => (typeof value === "number" ? numberText(value) : "n/a")),
  ]);
  const head = ["image", ...Array.from({ length: most }, (_, i) => `sample ${i + 1}`)];
  return html`<h4>Rewards of these samples</h4>${table(head, rows)}`;
}

/** What else the index says of a page. */
function restOf({ about }: SamplePage): Html[] {
  const { columns: _, rewards, ...rest } = about;
  const told = Object.entries(rest).filter(([name]) => !(name === "ids" && rewards !== undefined));
  return told.map(([name, value]) => {
    if (!Array.isArray(value)) return html`<p class="about">${name}: ${valueText(value)}</p>`;
    if (!value.every((item) => typeof item === "object" && item !== null))
      return html`<p class="about">${name}, in turn: ${value.map(valueText).join(", ")}</p>`;
    const keys = [...new Set(value.flatMap((item) => Object.keys(item as object)))];
    const rows = value.map((item, i) => [
      `${i + 1}`,
      ...keys.map((key) => {
        const of = (item as Record<string, unknown>)[key];
        return typeof of === "number" ? numberText(of) : valueText(of);
      }),
    ]);
    return html`<h4>${name}</h4>${table(["", ...keys], rows)}`;
  });
}
