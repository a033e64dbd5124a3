/**
 * An encoder of images and texts: CLIP, SigLIP or TokLIP with its weights. It gives images, texts and, for TokLIP, codes of the
 * tokenizer a vector each, in one space where a cosine says how well they agree. `load.ts` opens one from files.
 */
import { Module, Parameter } from "../nn/index.js";
import {
  arange,
  cat,
  type Device,
  expected,
  functional as F,
  noGrad,
  type Tensor,
  tensor,
  tidy,
} from "../torch/index.js";
import type { EncoderDescription } from "./description.js";
import { prepareImages } from "./preprocess.js";
import type { TextEncoder } from "./texts.js";
import { TextTower, VisionTower } from "./towers.js";

/** Which towers to build; the other takes no memory. */
export interface Towers {
  readonly vision: boolean;
  readonly text: boolean;
}

/** Inputs at a time where there are many. */
const AT_A_TIME = 16;

/** Unit vectors, `[N, E]`. */
const unit = (x: Tensor): Tensor => F.normalize(x, { dim: -1 });

export class Encoder extends Module {
  readonly description: EncoderDescription;
  readonly visual: VisionTower | null;
  readonly text: TextTower | null;
  /** Logarithm of the factor of cosines in logits, 0-d. */
  readonly logit_scale: Parameter;
  /** Added to logits, 0-d; SigLIP and TokLIP have it. */
  readonly logit_bias: Parameter | null;
  /** The text tokenizer; null where none was opened. */
  texts: TextEncoder | null = null;

  /** @param hasBias - whether logits have a bias. */
  constructor(description: EncoderDescription, towers: Towers, hasBias: boolean) {
    super();
    this.description = description;
    this.visual = towers.vision ? new VisionTower(description.vision) : null;
    this.text = towers.text ? new TextTower(description.text) : null;
    this.logit_scale = tidy(() => new Parameter(tensor(Math.log(1 / 0.07))));
    this.logit_bias = hasBias ? tidy(() => new Parameter(tensor(0))) : null;
    this.eval().requiresGrad_(false);
  }

  /** Printed beside every number made with it. */
  get name(): string {
    return this.description.name;
  }

  /** E. */
  get width(): number {
    return this.description.text.outputWidth;
  }

  /** Whether it reads codes of the tokenizer, as TokLIP does, instead of pixels. */
  get readsCodes(): boolean {
    return this.description.preprocessing === null;
  }

  /**
   * Embed images.
   *
   * @param images - float `[N, 3, H, W]` in [-1, 1], of any size; gradients flow to them.
   * @returns float32 `[N, E]`, not normalised.
   * @throws RangeError for an encoder that reads codes.
   */
  embedImages(images: Tensor): Tensor {
    const { preprocessing } = this.description;
    if (preprocessing === null) {
      throw expected(
        "embedImages",
        "an encoder that reads pixels",
        this.name,
        "Embed the tokenizer's codes: embedCodes",
      );
    }
    return inParts(images, (part) => this.embedPrepared(prepareImages(part, preprocessing)));
  }

  /** Embed prepared images, float `[N, 3, S, S]`; see {@link prepareImages}. */
  embedPrepared(pixels: Tensor): Tensor {
    const tower = this.#tower("embedImages", this.visual);
    return inParts(pixels, (part) => tower.forward(part.to({ dtype: tower.positions.dtype })));
  }

  /**
   * Embed codes of the tokenizer that the encoder was trained on.
   *
   * @param codes - int64 `[N, T]` in raster order; or rows of the codebook, float `[N, T, C]`, with a gradient to them.
   * @returns float32 `[N, E]`, not normalised.
   * @throws RangeError for an encoder that reads pixels, and for another number of codes than it was trained with.
   */
  embedCodes(codes: Tensor): Tensor {
    if (!this.readsCodes) {
      throw expected(
        "embedCodes",
        "an encoder that reads codes, such as TokLIP",
        this.name,
        "Embed images: embedImages",
      );
    }
    const tower = this.#tower("embedCodes", this.visual);
    return inParts(codes, (part) => tower.forward(part));
  }

  /**
   * Embed texts.
   *
   * @returns float32 `[N, E]`, not normalised.
   */
  embedTexts(texts: readonly string[]): Tensor {
    if (this.texts === null) {
      throw expected(
        "embedTexts",
        "a text tokenizer",
        "none",
        "Pass its folder or tokenizer.json as tokenizer",
      );
    }
    const tower = this.#tower("embedTexts", this.text);
    const { contextLength, vocabSize } = this.description.text;
    return tidy(() => {
      const device = tower.positions.device as Device;
      const codes = (this.texts as TextEncoder).encode(texts, contextLength);
      if (codes.amax().item() >= vocabSize) {
        throw expected(
          "embedTexts",
          `codes below ${vocabSize}`,
          codes.amax().item(),
          "This tokenizer is another model's",
        );
      }
      return this.embedTokens(codes.to({ device }));
    });
  }

  /** Embed codes of texts, int64 `[N, L]`; see {@link embedTexts}. */
  embedTokens(tokens: Tensor): Tensor {
    const tower = this.#tower("embedTokens", this.text);
    return inParts(tokens, (part) => tower.forward(part));
  }

  /** `exp(scale) * cosine + bias` of images or codes `[N, E]` and texts `[M, E]`: `[N, M]`. */
  logits(images: Tensor, texts: Tensor): Tensor {
    return tidy(() => {
      const scaled = unit(images).matmul(unit(texts).transpose(0, 1)).mul(this.logit_scale.exp());
      return this.logit_bias === null ? scaled : scaled.add(this.logit_bias);
    });
  }

  #tower<T>(where: string, tower: T | null): T {
    if (tower !== null) return tower;
    throw expected(where, "an encoder with this tower", "one that was opened without it");
  }
}

/** Apply to some rows at a time, which bounds memory where no graph is kept. */
function inParts(all: Tensor, embed: (part: Tensor) => Tensor): Tensor {
  const n = all.size(0);
  return tidy(() => {
    const parts: Tensor[] = [];
    for (let start = 0; start < n; start += AT_A_TIME) {
      parts.push(tidy(() => embed(all.narrow(0, start, Math.min(AT_A_TIME, n - start))).float()));
    }
    return parts.length === 1 ? (parts[0] as Tensor) : cat(parts);
  });
}

/**
 * Vectors of classes: the mean of the unit vectors of a class's names in several templates, of length 1.
 *
 * @param templates - each with `{}` where the name goes: `a photo of a {}.`
 * @returns float32 `[K, E]`.
 * @see Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision", section 3.1.4.
 */
export function classVectors(
  encoder: Encoder,
  names: readonly string[],
  templates: readonly string[],
): Tensor {
  return noGrad(() =>
    tidy(() => {
      const rows = names.map((name) => {
        const texts = templates.map((template) => inTemplate(template, name));
        return unit(unit(encoder.embedTexts(texts)).mean(0, { keepdim: true }));
      });
      return cat(rows);
    }),
  );
}

/** A name in a template. @throws RangeError for a template without `{}`. */
export function inTemplate(template: string, name: string): string {
  if (!template.includes("{}")) throw expected("template", "{} where the name goes", template);
  return template.replaceAll("{}", () => name); // a name may hold the signs of a pattern, such as $&
}

/** Cosine of each pair of rows, `[N, E]` and `[N, E]` to float32 `[N]`. */
export function cosines(a: Tensor, b: Tensor): Tensor {
  return tidy(() => unit(a).mul(unit(b)).sum(-1));
}

/** Row of image n for each of G samples of it: `[B, ...]` to `[B * G, ...]`. */
export function perSample(rows: Tensor, samples: number): Tensor {
  const images = rows.size(0);
  if (images === samples) return rows;
  if (images === 0 || samples % images !== 0)
    throw expected("perSample", `a multiple of ${images} samples`, samples);
  return tidy(() => {
    const index = arange(samples, { device: rows.device as "cpu" })
      .div(samples / images, "floor")
      .long();
    return rows.indexSelect(0, index);
  });
}
