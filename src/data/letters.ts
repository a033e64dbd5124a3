/**
 * Text on pages of images, in letters of 5 x 7 pixels with one row for descenders, so that it needs no fonts. Other files
 * arrange the pages.
 */
import { expected, full, type Tensor, tensor, tidy } from "../torch/index.js";

/** Pixels from one letter to the next, and the height of a line. */
export const LETTER = { width: 6, height: 9 } as const;

/** Columns of a letter from left to right, as hexadecimal bytes whose lowest bit is the top row. */
const GLYPHS: Readonly<Record<string, string>> = Object.fromEntries(
  (
    "A7E1111117E B7F49494936 C3E41414122 D7F4141221C E7F49494941 F7F09090901 G3E4149497A H7F0808087F I00417F4100 " +
    "J2040413F01 K7F08142241 L7F40404040 M7F020C027F N7F0408107F O3E4141413E P7F09090906 Q3E4151215E R7F09192946 " +
    "S4649494931 T01017F0101 U3F4040403F V1F2040201F W3F4038403F X6314081463 Y0708700807 Z6151494543 a2054545478 " +
    "b7F48444438 c3844444420 d384444487F e3854545418 f087E090102 g18A4A4A47C h7F08040478 i00447D4000 j4080847D00 " +
    "k7F10284400 l00417F4000 m7C04180478 n7C08040478 o3844444438 pFC24242418 q18242418FC r7C08040408 s4854545420 " +
    "t043F444020 u3C4040207C v1C2040201C w3C4030403C x4428102844 y1CA0A0A07C z4464544C44 03E5149453E 100427F4000 " +
    "24261514946 32141454B31 41814127F10 52745454539 63C4A494930 70171090503 83649494936 9064949291E .0060600000 " +
    ",0050300000 -0808080808 _4040404040 /2010080402 :0036360000 (001C224100 )0041221C00 [007F414100 ]0041417F00 " +
    "%2313086462 +08083E0808 =1414141414 '0005030000 &3649552250 ?0201510906 !00005F0000"
  )
    .split(" ")
    .map((glyph) => [glyph.slice(0, 1), glyph.slice(1)]),
);

/** Letters that Unicode does not take apart. */
const SPELLED = new Map(
  Object.entries({ ß: "ss", æ: "ae", Æ: "AE", œ: "oe", Œ: "OE", ø: "o", Ø: "O", ł: "l", Ł: "L" }),
);

/** The text in available letters: accents are dropped, other characters become a question mark. */
function drawable(text: string): string {
  const plain = [...text].map((letter) => SPELLED.get(letter) ?? letter).join("");
  const bare = plain.normalize("NFKD").replace(/\p{Mark}/gu, "");
  return [...bare].map((letter) => (letter === " " || Object.hasOwn(GLYPHS, letter) ? letter : "?")).join("");
}

/** Text that fits a width, its end replaced by two dots where it does not. */
export function fitted(text: string, width: number): string {
  const most = Math.floor(width / LETTER.width);
  return text.length <= most ? text : `${text.slice(0, Math.max(0, most - 2))}..`.slice(0, most);
}

/** Text in lines that fit a width, broken between words; a word that is wider has a line of its own. */
export function wrapped(text: string, width: number): string[] {
  const most = Math.floor(width / LETTER.width);
  const lines: string[] = [];
  for (const word of text.split(" ").filter(Boolean)) {
    const longer = lines.length === 0 ? word : `${lines.at(-1)} ${word}`;
    if (lines.length > 0 && longer.length > most) lines.push(word);
    else lines.splice(-1, 1, longer);
  }
  return lines;
}

/**
 * Draw a line of text in black onto a page; what does not fit is cut off.
 *
 * @param page - float32 `[1, 3, H, W]`, written to.
 * @param x - pixels from the left, 0 or more.
 * @param y - pixels from the top, 0 or more.
 */
export function drawText(page: Tensor, text: string, x: number, y: number): void {
  const [, , height, width] = page.dims(4);
  if (x < 0 || y < 0) throw expected("drawText", "a place on the page", `${x}, ${y}`);
  const letters = drawable(text).slice(0, Math.floor((width - x) / LETTER.width));
  if (letters === "" || y + LETTER.height > height) return;
  tidy(() => {
    const rows = Array.from({ length: 8 }, (_, row) =>
      [...letters].flatMap((letter) => {
        const columns = (GLYPHS[letter] ?? "0000000000").match(/../g) as string[];
        return [...columns.map((byte) => ((Number.parseInt(byte, 16) >> row) & 1 ? 0 : 1)), 1];
      }),
    );
    // Ink is -1, paper stays as it is.
    const paper = tensor(rows).float();
    const place = page.narrow(2, y + 1, 8).narrow(3, x, letters.length * LETTER.width);
    const ink = full(place.shape, -1);
    place.copy_(place.mul(paper).add(ink.mul(paper.neg().add(1))));
  });
}
