/** Pages of images for people: rows with labels, enlarged by a whole factor. `letters.ts` draws the text. */
import { full, fullLike, type Tensor, tensor, tidy, where } from "../torch/index.js";
import { drawText, fitted, LETTER, wrapped } from "./letters.js";

/** A row of a page. */
export interface PageRow {
  /** Above its images; empty for none. */
  readonly label: string;
  /** float32 `[K, 3, H, W]` in [-1, 1], on the CPU. */
  readonly images: Tensor;
}

/** Width that pages are enlarged to, about. */
const WIDE = 1000;

/** Least width of an image where rows stand side by side: column names need room. */
const LEAST = 64;

/** White pixels between images. */
const GAP = 2;

/** Most rows side by side. */
const BESIDE = 6;

/**
 * How `rows` rows of at most `perRow` images are laid out: rows that stand side by side, and the factor of enlargement.
 */
export function pageLayout(rows: number, perRow: number, width: number): { beside: number; factor: number } {
  const fitting = Math.floor(WIDE / (perRow * Math.max(width + GAP, LEAST)));
  const beside = Math.max(1, Math.min(BESIDE, fitting, rows));
  return { beside, factor: Math.max(1, Math.round(WIDE / (beside * perRow * (width + GAP)))) };
}

/**
 * Lay out rows of images with their labels, short rows side by side, enlarged by a whole factor to about 1,000 pixels.
 *
 * @param columns - what the images of a row are, above the first row; none for images of one kind.
 * @param caption - text below all rows, on as many lines as it needs; empty for none.
 * @returns float32 `[1, 3, H, W]`.
 */
export function labelledPage(
  rows: readonly PageRow[],
  columns: readonly string[] = [],
  caption = "",
): Tensor {
  const [first] = rows as readonly [PageRow];
  const [, , height, width] = first.images.dims(4);
  const perRow = Math.max(...rows.map(({ images }) => images.size(0)));
  const { beside, factor } = pageLayout(rows.length, perRow, width);
  const cell = { width: width * factor + GAP, height: height * factor + GAP };
  const line = LETTER.height + 2;
  const labelHeight = rows.some(({ label }) => label !== "") ? line : 0;
  const top = columns.length > 0 ? line : 0;
  const blockWidth = perRow * cell.width + 8;
  const down = Math.ceil(rows.length / beside);
  const lines = wrapped(caption, beside * blockWidth - 2 * GAP);
  const bottom = top + down * (cell.height + labelHeight) + GAP;
  return tidy(() => {
    const page = full([1, 3, bottom + lines.length * line, beside * blockWidth], 1);
    for (const [i, text] of lines.entries()) drawText(page, text, GAP, bottom + i * line);
    for (const [i, { label, images }] of rows.entries()) {
      const x = Math.floor(i / down) * blockWidth + GAP;
      const y = top + (i % down) * (cell.height + labelHeight) + GAP;
      if (i % down === 0)
        for (const [k, name] of columns.entries())
          drawText(page, fitted(name, cell.width), x + k * cell.width, 0);
      drawText(page, fitted(label, perRow * cell.width), x, y);
      const large = images.repeatInterleave(factor, 2).repeatInterleave(factor, 3);
      for (let k = 0; k < images.size(0); k++) {
        page
          .narrow(2, y + labelHeight, height * factor)
          .narrow(3, x + k * cell.width, width * factor)
          .copy_(large.narrow(0, k, 1));
      }
    }
    return page;
  });
}

/**
 * Images of which only the first codes, in raster order, are shown, the rest in grey.
 *
 * @param images - float32 `[n, 3, H, W]`.
 * @param downsample - pixels of a code, in height and width.
 */
export function givenPart(images: Tensor, given: number, downsample: number): Tensor {
  const [rows, columns] = [images.size(2) / downsample, images.size(3) / downsample];
  return tidy(() => {
    const cells = Array.from({ length: rows * columns }, (_, i) => (i < given ? 1 : 0));
    const isGiven = tensor(cells).reshape(1, 1, rows, columns).gt(0);
    const pixels = isGiven.repeatInterleave(downsample, 2).repeatInterleave(downsample, 3);
    return where(pixels, images, fullLike(images, 0));
  });
}
