/**
 * Text as HTML: everything that is put into a template is escaped unless it came out of one.
 */

/** Markup that may stand in a page as it is. */
export interface Html {
  readonly markup: string;
}

/** What a template can hold; null, undefined and false leave nothing. */
export type Piece = Html | string | number | null | undefined | false | readonly Piece[];

/** A template whose text is escaped. Attribute values must be in double quotes. */
export function html(parts: TemplateStringsArray, ...pieces: readonly Piece[]): Html {
  let markup = parts[0] as string;
  for (const [i, piece] of pieces.entries()) markup += markupOf(piece) + (parts[i + 1] as string);
  return { markup };
}

/** Markup of our own that is no text of anybody's, such as a style sheet. */
export const raw = (markup: string): Html => ({ markup });

function markupOf(piece: Piece): string {
  if (piece === null || piece === undefined || piece === false) return "";
  if (typeof piece === "string") return escapeText(piece);
  if (typeof piece === "number") return String(piece);
  if ("markup" in piece) return piece.markup;
  return piece.map(markupOf).join("");
}

const ESCAPES: Readonly<Record<string, string>> = {
  "&": "&amp;",
  "<": "&lt;",
  ">": "&gt;",
  '"': "&quot;",
  "'": "&#39;",
};

/** Text that reads the same between tags and in quoted attributes. */
export function escapeText(text: string): string {
  return text.replace(/[&<>"']/g, (sign) => ESCAPES[sign] as string);
}

/** Data for the page's script, in an element that no parser takes for markup or code. */
export function dataElement(data: unknown): Html {
  const text = JSON.stringify(data).replaceAll("<", "\\u003c");
  return { markup: `<script type="application/json">${text}</script>` };
}

/** A table whose first column names the rows. */
export function table(head: readonly Piece[], rows: readonly (readonly Piece[])[]): Html {
  const cells = rows.map((row) => {
    const [name, ...rest] = row;
    return html`<tr><th scope="row">${name}</th>${rest.map((cell) => html`<td>${cell}</td>`)}</tr>`;
  });
  const titles = head.map((title) => html`<th scope="col">${title}</th>`);
  const top = head.length === 0 ? null : html`<thead><tr>${titles}</tr></thead>`;
  return html`<div class="scroll"><table>${top}<tbody>${cells}</tbody></table></div>`;
}
