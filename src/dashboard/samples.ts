/**
 * Pages of samples as part of the page itself: exact where their images are small, else scaled down, and as many as
 * there is room for.
 */
import { readFile } from "node:fs/promises";
import sharp from "sharp";
import { valueText } from "./config.js";
import { type Html, html, table } from "./page.js";
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

/** Pages of a run that are shown, and how many there are. */
export interface Pictures {
  readonly shown: readonly Picture[];
  readonly total: number;
}

/** Most pages that a slider is useful for. */
const MOST = 24;

/** Widest picture that is embedded as it is. */
const WIDEST = 640;

/**
 * Read the pages of a run.
 *
 * The last is always among them, and the first where there is room for two; those between are evenly spread.
 *
 * @param budget - bytes that all pictures may take together.
 */
export async function readPictures(run: Run, budget: number): Promise<Pictures> {
  const names = [...new Set(run.pages.map(({ name }) => name))];
  const shown: Picture[] = [];
  for (const name of names) {
    const pages = run.pages.filter((page) => page.name === name);
    const most = Math.max(2, Math.floor(MOST / names.length));
    let pictures = await Promise.all(spread(pages, most).map(readPicture));
    while (pictures.length > 1 && sizeOf(pictures) > budget / names.length)
      pictures = spread(pictures, pictures.length - 1);
    shown.push(...pictures);
  }
  return { shown, total: run.pages.length };
}

const sizeOf = (pictures: readonly Picture[]): number =>
  pictures.reduce((sum, { bytes }) => sum + bytes.length, 0);

/** At most `count` of a list, its ends among them, the others evenly between. */
export function spread<T>(list: readonly T[], count: number): T[] {
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
  const isSmall = width <= WIDEST;
  const bytes = isSmall
    ? await image.webp({ lossless: true, effort: 4 }).toBuffer()
    : await image
        .resize({ width: WIDEST * 2, withoutEnlargement: true })
        .webp({ quality: 78 })
        .toBuffer();
  return { page, bytes, width, height };
}

/** The section on samples: a slider over the pages, each with what its columns are. */
export function sampleSection({ shown, total }: Pictures): Html {
  if (shown.length === 0) return html`<p>No page of samples was written (log.imagesEvery).</p>`;
  const names = [...new Set(shown.map(({ page }) => page.name))];
  const left = total - shown.length;
  return html`${names.map((name) =>
    slider(
      name,
      shown.filter(({ page }) => page.name === name),
    ),
  )}${
    left > 0 &&
    html`<p class="about">${left} of ${total} pages are left out to keep the file small; all are in samples/.</p>`
  }`;
}

/** What pages are of, by their names. */
const TITLES: Readonly<Record<string, string>> = { train: "On training images", eval: "From an evaluation" };

function slider(name: string, pictures: readonly Picture[]): Html {
  const last = pictures.length - 1;
  const bar =
    last > 0 &&
    html`<p class="slide" hidden><label>step <output></output> <input type="range" min="0" max="${last}" value="${last}" step="1"></label></p>`;
  return html`<div class="samples"><h3>${TITLES[name] ?? name}</h3>${bar}${pictures.map(figureOf)}</div>`;
}

/** What a column of the page is, and how many columns wide. */
interface Column {
  readonly label: string;
  readonly count: number;
}

function figureOf({ page, bytes, width, height }: Picture): Html {
  const columns = columnsOf(page);
  const source = `data:image/webp;base64,${bytes.toString("base64")}`;
  const zoom = Math.max(1, Math.round(720 / width));
  const total = columns.reduce((sum, { count }) => sum + count, 0);
  const bars = columns.map(
    ({ count }, i) => html`<i class="solid c${i % 8}" style="flex-grow:${count}"></i>`,
  );
  const keys = columns.map(
    ({ label, count }, i) =>
      html`<li><i class="key solid c${i % 8}"></i>${count > 1 ? `${count} ${label}` : label}</li>`,
  );
  const caption = columns.map(({ label, count }) => (count > 1 ? `${count} ${label}` : label)).join(", ");
  return html`<figure class="page" data-step="${page.step}">
<figcaption>Step ${page.step}</figcaption>
<div style="max-width:${zoom * width}px">${total > 1 && html`<div class="columns">${bars}</div>`}<img src="${source}" width="${width}" height="${height}" alt="Images at step ${page.step}: ${caption || "samples"}"></div>
<ul class="legend">${keys}</ul>
${rewardsOf(page)}${restOf(page)}
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
  return html`<details><summary>Rewards of these samples</summary>${table(head, rows)}</details>`;
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
    return html`<details><summary>${name}</summary>${table(["", ...keys], rows)}</details>`;
  });
}
