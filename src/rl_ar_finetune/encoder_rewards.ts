/**
 * Rewards by meaning: TokLIP's of codes, without a decode; CLIP's and SigLIP's of images and texts; LAION's aesthetic score; and
 * DISTS. The terms own the networks that they are given. `rewards.ts` weighs and adds terms.
 */
import type { RewardContext, TrainConfig } from "../config/resolve.js";
import { type AestheticHead, cosines, type Encoder, inTemplate, perSample } from "../encoders/index.js";
import type { DISTS } from "../metrics/index.js";
import { signOf } from "../metrics/measures.js";
import type { Module } from "../nn/index.js";
import { fingerprintOf } from "../run/resume.js";
import type { FrozenTokenizer } from "../tokenizers/index.js";
import { cat, type Device, expected, keep, noGrad, type Tensor, tidy } from "../torch/index.js";
import { openAesthetic, openDists, openEncoder, requireTokenizerOf } from "./open_encoders.js";
import type { Judged, Term } from "./rewards.js";

function toldOf(key: string, { context }: Judged): RewardContext {
  if (context !== undefined) return context;
  const remedy = "Use another algorithm than ste, which draws no codes to tell of";
  throw expected(`reward.${key}`, "a batch with its codes and texts", "pixels alone", remedy);
}

/** A text per image: its caption, or its class's name in the template. */
function textsOf(key: string, { captions, classNames }: RewardContext, template: string): readonly string[] {
  if (captions !== null) return captions;
  if (classNames !== null) return classNames.map((name) => inTemplate(template, name));
  throw expected(
    `reward.${key}`,
    "captions, or classes with names",
    "neither",
    "Set data.classNames, or use data with texts",
  );
}

/**
 * Embeddings of texts that were met, `[1, E]` each: a data set repeats its classes. Each text is embedded alone, since sums of
 * several rows round in another way: a run that is resumed, and so has met none yet, has the same numbers.
 */
class TextMemory implements Disposable {
  readonly #encoder: Encoder;
  readonly #known = new Map<string, Tensor>();

  constructor(encoder: Encoder) {
    this.#encoder = encoder;
  }

  /** float32 `[N, E]`. */
  embed(texts: readonly string[]): Tensor {
    const wanted = new Set(texts);
    if (this.#known.size + wanted.size > MOST_TEXTS) this[Symbol.dispose]();
    for (const text of wanted) {
      if (this.#known.has(text)) continue;
      this.#known.set(text, keep(noGrad(() => tidy(() => this.#encoder.embedTexts([text])))));
    }
    return tidy(() => cat(texts.map((text) => this.#known.get(text) as Tensor)));
  }

  [Symbol.dispose](): void {
    for (const row of this.#known.values()) row.dispose();
    this.#known.clear();
  }
}

/** 4096 rows of width 1152 are 19 MB. */
const MOST_TEXTS = 4096;

/** Options of the terms. */
export interface EncoderTermOptions {
  readonly weight: number;
}

/**
 * How near the meaning of the sampled codes is to that of the image's: the cosine of TokLIP's embeddings, at most 1. Nothing
 * is decoded for it.
 */
export function toklipImageTerm(encoder: Encoder, { weight }: EncoderTermOptions): Term {
  return {
    name: "toklip_image",
    key: "toklipImage",
    isTold: true,
    weight,
    sign: signOf("toklip_image"),
    measure: (judged) => {
      const { codes, trueCodes } = toldOf("toklipImage", judged);
      if (trueCodes === null) {
        throw expected("reward.toklipImage", "images to compare with", "none", "Use reward.toklipText");
      }
      const samples = encoder.embedCodes(codes);
      return cosines(samples, perSample(encoder.embedCodes(trueCodes), samples.size(0)));
    },
    dispose: () => encoder.dispose(),
  };
}

/** How well the sampled codes agree with the caption, or the class's name in a template: the cosine of TokLIP's embeddings. */
function toklipTextTerm(
  encoder: Encoder,
  { weight, template }: EncoderTermOptions & { readonly template: string },
): Term {
  return textTerm("toklip_text", "toklipText", encoder, weight, template, (judged) =>
    encoder.embedCodes(toldOf("toklipText", judged).codes),
  );
}

/** How well the decoded samples agree with the caption, or the class's name in a template: the cosine of CLIP's embeddings. */
export function clipTerm(
  encoder: Encoder,
  { weight, template }: EncoderTermOptions & { readonly template: string },
): Term {
  return textTerm("clip", "clip", encoder, weight, template, ({ samples }) => encoder.embedImages(samples));
}

function textTerm(
  name: string,
  key: string,
  encoder: Encoder,
  weight: number,
  template: string,
  embed: (judged: Judged) => Tensor,
): Term {
  const texts = new TextMemory(encoder);
  return {
    name,
    key,
    isTold: true,
    weight,
    sign: signOf(name),
    measure: (judged) => {
      const wanted = texts.embed(textsOf(key, toldOf(key, judged), template));
      return cosines(embed(judged), perSample(wanted, judged.samples.size(0)));
    },
    dispose: () => {
      texts[Symbol.dispose]();
      encoder.dispose();
    },
  };
}

/** LAION's aesthetic score of the decoded samples, about 1 to 10. */
function aestheticTerm(
  { encoder, head }: { readonly encoder: Encoder; readonly head: AestheticHead },
  { weight }: EncoderTermOptions,
): Term {
  return {
    name: "aesthetic",
    weight,
    sign: signOf("aesthetic"),
    measure: ({ samples }) => head.forward(encoder.embedImages(samples)),
    dispose: () => {
      head.dispose();
      encoder.dispose();
    },
  };
}

/** DISTS of the decoded samples from their images: lower is closer. */
function distsTerm(dists: DISTS, { weight, chunk }: EncoderTermOptions & { readonly chunk?: number }): Term {
  return {
    name: "dists",
    weight,
    sign: signOf("dists"),
    measure: ({ images, samples }) => dists.forward(images, samples, chunk === undefined ? {} : { chunk }),
    dispose: () => dists.dispose(),
  };
}

/**
 * Open the terms of this file that a configuration asks for.
 *
 * @param tokenizer - of the run, whose codes TokLIP must read.
 * @param opened - is given each term, to be freed.
 * @param networks - is given the fingerprint of each network.
 * @throws RangeError for a file that holds something else, or a TokLIP of another tokenizer.
 */
export function openEncoderTerms(
  { reward }: Pick<TrainConfig, "reward">,
  { tokenizer, device }: { readonly tokenizer: FrozenTokenizer; readonly device: Device },
  opened: (term: Term) => Term,
  networks: Record<string, string>,
): Term[] {
  const { toklipImage, toklipText, clip, aesthetic, dists, chunk } = reward;
  const terms: Term[] = [];
  const add = (key: string, term: Term, ...parts: readonly Module[]): void => {
    terms.push(opened(term));
    for (const [i, part] of parts.entries())
      Object.assign(networks, fingerprintOf(`${i === 0 ? "network" : "head"} of reward.${key}`, part));
  };
  const file = (path: string | null): string => path as string; // the rules require it
  if (toklipImage.weight !== 0) {
    const path = file(toklipImage.path);
    const encoder = openEncoder(path, { device, towers: { text: false } });
    add("toklipImage", toklipImageTerm(encoder, toklipImage), encoder);
    requireTokenizerOf("reward.toklipImage.path", encoder, tokenizer);
  }
  if (toklipText.weight !== 0) {
    const encoder = openEncoder(file(toklipText.path), { device });
    add("toklipText", toklipTextTerm(encoder, toklipText), encoder);
    requireTokenizerOf("reward.toklipText.path", encoder, tokenizer);
  }
  if (clip.weight !== 0) {
    const encoder = openEncoder(file(clip.path), { device });
    add("clip", clipTerm(encoder, clip), encoder);
  }
  if (aesthetic.weight !== 0) {
    const { encoder, head } = openAesthetic(file(aesthetic.path), file(aesthetic.head), { device });
    add("aesthetic", aestheticTerm({ encoder, head }, aesthetic), encoder, head);
  }
  if (dists.weight !== 0) {
    const network = openDists(file(dists.path), file(dists.weights), { device });
    const options = { weight: dists.weight, ...(chunk !== null && { chunk }) };
    add("dists", distsTerm(network, options), network);
  }
  return terms;
}
