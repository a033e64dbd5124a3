/**
 * Texts to codes by the tokenizer that a family publishes, `tokenizer.json`: cleaned as the family does, cut and filled to one
 * length. The library `@huggingface/tokenizers` does the work of the tokenizer itself.
 */
import { existsSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { Tokenizer } from "@huggingface/tokenizers";
import { expected, type Tensor, tensor } from "../torch/index.js";
import { isObject, parseJson } from "../torch/json.js";

/**
 * How texts are cleaned.
 *
 * - `none`: not at all; CLIP in transformers, whose tokenizer does it.
 * - `lower`: lower case; SigLIP 2 in transformers.
 * - `punctuation`: lower case without punctuation; SigLIP in transformers.
 * - `whitespace`, `whitespace_lower`: characters repaired, spaces joined, lower case; open_clip.
 * - `canonical`: these, and without punctuation; SigLIP in open_clip, and TokLIP.
 */
export type Clean = "none" | "lower" | "punctuation" | "whitespace" | "whitespace_lower" | "canonical";

/** Python's `string.punctuation`. */
const PUNCTUATION = /[!-/:-@[-`{-~]/g;

const ENTITIES: Readonly<Record<string, string>> = {
  amp: "&",
  lt: "<",
  gt: ">",
  quot: '"',
  apos: "'",
  nbsp: "\u00a0",
};

function unescapeHtml(text: string): string {
  return text.replace(
    /&(?:#(\d+)|#[xX]([\da-fA-F]+)|(amp|lt|gt|quot|apos|nbsp));/g,
    (whole, decimal, hex, name) => {
      if (name !== undefined) return ENTITIES[name] as string;
      const code = decimal === undefined ? Number.parseInt(hex, 16) : Number(decimal);
      return code > 0 && code <= 0x10ffff && !(code >= 0xd800 && code < 0xe000)
        ? String.fromCodePoint(code)
        : whole;
    },
  );
}

/**
 * What ftfy does to text whose encoding is right: straight quotes, plain ligatures and widths, no control characters, NFC.
 * Then entities of HTML, twice, as open_clip does. Text in a wrong encoding is not repaired, and of HTML's named entities
 * only those of XML and `&nbsp;` are known.
 */
function repair(text: string): string {
  const plain = text
    .replace(/[\ufb00-\ufb06\uff01-\uffef\u3000]/g, (char) => char.normalize("NFKC"))
    .replace(/[\u02bc\u2018-\u201b]/g, "'")
    .replace(/[\u201c-\u201f]/g, '"')
    .replace(/\r\n?|[\u2028\u2029\u0085]/g, "\n")
    // biome-ignore lint/suspicious/noControlCharactersInRegex: these are what is removed
    .replace(/[\u0000-\u0008\u000b\u000e-\u001f\u007f\ufeff]/g, "")
    .normalize("NFC");
  return unescapeHtml(unescapeHtml(plain)).trim();
}

const joinSpaces = (text: string): string => text.split(/\s+/).filter(Boolean).join(" ");

/** Clean a text; see {@link Clean}. */
export function cleanText(text: string, clean: Clean): string {
  switch (clean) {
    case "none":
      return text;
    case "lower":
      return text.toLowerCase();
    case "punctuation":
      return joinSpaces(text.toLowerCase().replace(PUNCTUATION, ""));
    case "whitespace":
      return joinSpaces(repair(text));
    case "whitespace_lower":
      return joinSpaces(repair(text)).toLowerCase();
    case "canonical":
      return joinSpaces(repair(text).replaceAll("_", " ").replace(PUNCTUATION, "").toLowerCase());
  }
}

/** Codes of texts. */
export interface TextEncoder {
  /**
   * @param length - L. Longer texts are cut before the end's code, shorter ones filled.
   * @returns int64 `[N, L]`.
   */
  encode(texts: readonly string[], length: number): Tensor;
  /** One more than the highest code. */
  readonly vocabSize: number;
}

/** Read a JSON file. */
export function readJson(path: string, what: string): unknown {
  return parseJson(readFileSync(path), path, what);
}

/**
 * Open the tokenizer of a family.
 *
 * @param path - `tokenizer.json`, or the folder that holds it, with `tokenizer_config.json` beside it.
 * @param options.padId - code that fills texts; default the tokenizer's own.
 * @throws RangeError when a file is missing, or is of a kind that the library does not know.
 */
export function openTextTokenizer(
  path: string,
  options: { clean: Clean; padId?: number | null },
): TextEncoder {
  const file = path.endsWith(".json") ? path : join(path, "tokenizer.json");
  if (!existsSync(file)) {
    const remedy =
      "It is published with the weights; of TokLIP, take the one of timm/ViT-SO400M-16-SigLIP2-256. In Python, AutoTokenizer.from_pretrained(name).save_pretrained(folder) writes it";
    throw expected(file, "the text tokenizer, tokenizer.json", "no such file", remedy);
  }
  const settings = join(dirname(file), "tokenizer_config.json");
  const config = existsSync(settings) ? readJson(settings, "a tokenizer's settings in JSON") : {};
  const state = readJson(file, "a tokenizer in JSON");
  if (!isObject(state) || !isObject(config)) throw expected(file, "a tokenizer in JSON", "another value");
  let tokenizer: Tokenizer;
  try {
    tokenizer = new Tokenizer(state, config);
  } catch (error) {
    const reason = (error as Error).message.split("\n")[0];
    throw expected(
      file,
      "a tokenizer of a kind that is known here",
      reason,
      "Is it the file that transformers writes?",
    );
  }
  const padId = options.padId ?? paddingOf(file, tokenizer, state, config);
  const isLeft = config.padding_side === "left";
  const special = tokenizer.encode("").ids;
  const vocabSize = Math.max(...tokenizer.get_vocab().values()) + 1;
  const encodeOne = (text: string, length: number): number[] => {
    const cleaned = cleanText(text, options.clean);
    const all = tokenizer.encode(cleaned).ids;
    const ids = all.length <= length ? all : cut(tokenizer, cleaned, all, special, length);
    const padding = Array<number>(length - ids.length).fill(padId);
    return isLeft ? [...padding, ...ids] : [...ids, ...padding];
  };
  return {
    vocabSize,
    encode(texts, length) {
      if (length < special.length + 1) throw expected("encode", `a length above ${special.length}`, length);
      return tensor(
        texts.map((text) => encodeOne(text, length)),
        { dtype: "int64" },
      );
    },
  };
}

/** The text's own codes cut so that they and the special ones are `length`, the special ones where they were. */
function cut(tokenizer: Tokenizer, text: string, all: number[], special: number[], length: number): number[] {
  const own = tokenizer.encode(text, { add_special_tokens: false }).ids;
  const before = special.findIndex(
    (_, p) => special.slice(0, p).join() === all.slice(0, p).join() && all[p] === own[0],
  );
  const first = before < 0 ? special.length : before;
  return [...special.slice(0, first), ...own.slice(0, length - special.length), ...special.slice(first)];
}

function paddingOf(
  file: string,
  tokenizer: Tokenizer,
  state: Record<string, unknown>,
  config: Record<string, unknown>,
): number {
  const named = isObject(config.pad_token) ? config.pad_token.content : config.pad_token;
  if (typeof named === "string") {
    const id = tokenizer.token_to_id(named);
    if (id !== undefined) return id;
  }
  const stated = isObject(state.padding) ? state.padding.pad_id : undefined;
  if (typeof stated === "number") return stated;
  const remedy = "tokenizer_config.json beside it states pad_token";
  throw expected(file, "the code that fills short texts", "none", remedy);
}
