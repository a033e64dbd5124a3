/**
 * Captions of images: where they are, and their text. The files of each format find the caption of an image; it is read
 * together with the image.
 */
import { expected } from "../torch/index.js";
import { type FilePart, readPart } from "./decode.js";

/** Where the captions are: files or tar members with this extension, and which field of them where they are JSON. */
export interface CaptionPlace {
  /** In lower case, without the first dot. */
  readonly ending: string;
  /** Absent where the whole file is the caption. */
  readonly field?: string;
}

/** The caption of one image: read already, or where it is. */
export type Caption = string | (FilePart & Pick<CaptionPlace, "field">);

/** Longest caption: text encoders read at most a few hundred words. */
const MAX_BYTES = 2 ** 16;

/** Largest JSON file with a caption among other things. */
const MAX_JSON_BYTES = 2 ** 20;

/** What to do about captions that cannot be used. */
export const CAPTION_REMEDY =
  "To train without captions, set data.captions=none (in a program, captions: null)";

/**
 * Where captions are, by `data.captions`: an extension, such as `caption.txt`; `json`, whose field `caption` it is; or
 * `json.FIELD`.
 *
 * @param captions - undefined for the usual extension, `txt`.
 */
export function captionPlace(captions = "txt"): CaptionPlace {
  const field = /^json(?:\.(.+))?$/i.exec(captions);
  if (field !== null) return { ending: "json", field: field[1] ?? "caption" };
  return { ending: captions.toLowerCase() };
}

/**
 * Check that all images have a caption, or none where captions were not asked for.
 *
 * @param has - whether each image has one.
 * @param named - `data.captions`.
 * @returns whether they have captions.
 * @throws RangeError that names an image without one.
 */
export function haveCaptions(
  where: string,
  has: readonly boolean[],
  { named, idOf }: { readonly named: string | null | undefined; readonly idOf: (index: number) => string },
): boolean {
  const count = has.filter((one) => one).length;
  if (count === has.length) return true;
  if (count === 0 && typeof named !== "string") return false;
  const what = `a caption (.${captionPlace(named ?? undefined).ending}) for every image`;
  const got = `${count} for ${has.length} images, none for ${idOf(has.indexOf(false))}`;
  throw expected(where, what, got, CAPTION_REMEDY);
}

/**
 * The text of a caption, without white space around it.
 *
 * @throws RangeError that names the image, for a caption that is empty, too long, not UTF-8, or not in its JSON file.
 */
export async function readCaption(caption: Caption, id: string): Promise<string> {
  const where = `caption of ${id}`;
  if (typeof caption === "string") return checkCaption(caption, where);
  const { field, ...part } = caption;
  const most = field === undefined ? MAX_BYTES : MAX_JSON_BYTES;
  if (part.length !== undefined && part.length > most)
    throw expected(where, `at most ${most} bytes`, part.length);
  const bytes = await readPart(part);
  if (bytes.length > most) throw expected(where, `at most ${most} bytes`, bytes.length);
  let text: string;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch {
    throw expected(where, "text in UTF-8", "other bytes", "Save it as UTF-8");
  }
  return checkCaption(field === undefined ? text : fieldOf(text, field, where), where);
}

function fieldOf(text: string, field: string, where: string): unknown {
  try {
    const object: unknown = JSON.parse(text);
    return Object.hasOwn(Object(object), field) ? (object as Record<string, unknown>)[field] : undefined;
  } catch (error) {
    throw expected(where, "a JSON object", `text that is not JSON (${(error as Error).message})`);
  }
}

/** A caption without white space around it. @throws RangeError for what is no text, empty or too long. */
export function checkCaption(text: unknown, where: string): string {
  if (typeof text !== "string") throw expected(where, "text", text === undefined ? "none" : text);
  const trimmed = text.trim();
  if (trimmed === "") throw expected(where, "text", "an empty caption", CAPTION_REMEDY);
  if (Buffer.byteLength(trimmed) > MAX_BYTES)
    throw expected(where, `at most ${MAX_BYTES} bytes`, Buffer.byteLength(trimmed));
  return trimmed;
}
