/** Keys of `rlar tokenizer`: what they are, their defaults, presets, and what they ask of each other. */
import * as z from "zod";

import type { TokenizerPreset } from "../tokenizers/index.js";
import { type FitConfig, fitKind } from "./fit_keys.js";
import { key, section } from "./key.js";
import type { ConfigKind, Origins, Preset } from "./kind.js";
import { count, text } from "./shared_keys.js";

/** The tokenizer to train: a new one, or one in a file. */
export interface TokenizerModelSection {
  readonly preset: TokenizerPreset;
  readonly path: string | null;
  readonly wrapper: string | null;
  readonly weights: "ema" | "raw" | null;
  readonly codebookSize: number | null;
  readonly embedDim: number | null;
  readonly ch: number | null;
  readonly chMult: readonly number[] | null;
  readonly numResBlocks: number | null;
  readonly zChannels: number | null;
  readonly normGroups: number | null;
  readonly dropout: number | null;
}

/** A discriminator, and how much it has to say. */
export interface GanSection {
  readonly weight: number;
  readonly adaptive: boolean;
  readonly start: number | null;
  readonly generator: "hinge" | "vanilla" | "non_saturating";
  readonly discriminator: "hinge" | "vanilla" | "non_saturating";
  readonly lecam: number;
  readonly ndf: number;
  readonly nLayers: number;
  readonly lr: number | null;
  readonly path: string | null;
}

/** What is descended. */
export interface TokenizerLossSection {
  readonly pixel: { readonly kind: "l1" | "l2"; readonly weight: number };
  readonly perceptual: { readonly weight: number; readonly path: string | null };
  readonly codebook: number;
  readonly commitment: number;
  readonly entropy: { readonly weight: number | null; readonly temperature: number };
  readonly restartAfter: number;
  readonly gan: GanSection;
}

/** What `rlar tokenizer` is configured by. */
export interface TokenizerTrainConfig extends FitConfig {
  readonly model: TokenizerModelSection;
  readonly loss: TokenizerLossSection;
}

const weight = z.number().min(0);
const adversarial = z.enum(["hinge", "vanilla", "non_saturating"]);

const size = (help: string, when: string, unit?: string): z.ZodType<number | null> =>
  key(count.nullable(), null, `${help}; null is the preset's`, when, unit);

const model: z.ZodType<TokenizerModelSection> = section<TokenizerModelSection>({
  preset: key(
    z.enum(["VQ-4-small", "VQ-8", "VQ-16", "IBQ-4-small", "IBQ-16"]),
    "VQ-4-small",
    "family and sizes of a new tokenizer; the number is the pixels that a code stands for, along each side",
    "VQ-4-small for images of 16 to 64 px on a CPU, VQ-16 or IBQ-16 for 256 px on a GPU.",
  ),
  path: key(
    text.nullable(),
    null,
    "file of a tokenizer to go on with, in place of a new one",
    "To adapt a published tokenizer to images of another kind.",
  ),
  wrapper: key(
    text.nullable(),
    null,
    "key of the state dict in the file; null finds it",
    "Set it when a file holds several and the wrong one is taken.",
  ),
  weights: key(
    z.enum(["ema", "raw"]).nullable(),
    null,
    "the running average of the file's weights or those of the last step; null prefers the average",
    "raw goes on exactly where the file's training stopped.",
  ),
  codebookSize: size(
    "codes of the codebook",
    "Raise it for finer images; a policy then has more to choose from, and needs more data.",
    "codes",
  ),
  embedDim: size("numbers of a code", "Rarely: few keep a normalised codebook in use, IBQ likes many."),
  ch: size(
    "channels at the images' own size",
    "The first key to raise when held-out images stay blurred; time grows with its square.",
  ),
  chMult: key(
    z.array(count).min(1).nullable(),
    null,
    "factors of ch, one a resolution, each half of the one before; null is the preset's",
    "Its length sets the pixels of a code: [1, 2] is 2, [1, 2, 2] is 4, [1, 2, 2, 4] is 8.",
  ),
  numResBlocks: size(
    "residual blocks a resolution in the encoder; the decoder has one more",
    "Rarely.",
    "blocks",
  ),
  zChannels: size("channels between encoder, codebook and decoder", "Rarely."),
  normGroups: size("most groups of a norm", "Rarely.", "groups"),
  dropout: key(
    z.number().min(0).lt(1).nullable(),
    null,
    "part of the activations that is dropped in residual blocks; null is the preset's, 0",
    "Rarely: fewer epochs serve better.",
  ),
});

const gan: z.ZodType<GanSection> = section<GanSection>({
  weight: key(
    weight,
    0,
    "weight of the discriminator's opinion of reconstructions; 0 trains none",
    "0.1 to 0.5 for images of 64 px and more, once they are good but soft: it pays for detail that need not be the image's.",
  ),
  adaptive: key(
    z.boolean(),
    false,
    "whether the weight is multiplied by what makes the opinion pull the decoder's last layer as hard as nearness does",
    "As VQGAN has it; LlamaGen and IBQ leave it off.",
  ),
  start: key(
    z.int().min(0).nullable(),
    null,
    "updates before the discriminator begins; null is half of all",
    "Lower it when the reconstructions are good long before.",
    "updates",
  ),
  generator: key(
    adversarial,
    "hinge",
    "how the decoder is paid: by logits, by their probability a patch (vanilla), or an image (non_saturating)",
    "non_saturating as IBQ has it.",
  ),
  discriminator: key(
    adversarial,
    "hinge",
    "how the discriminator is paid: up to a margin, or by probabilities a patch (vanilla) or an image (non_saturating)",
    "Rarely.",
  ),
  lecam: key(
    weight,
    0,
    "weight of LeCam's penalty, which holds the discriminator's logits near their running means",
    "0.05, as IBQ has it, when gan/real and gan/fake run apart or there are few images.",
  ),
  ndf: key(
    count,
    64,
    "channels of the discriminator's first layer",
    "32 for images of 32 px on a CPU.",
    "channels",
  ),
  nLayers: key(
    z.int().min(1).max(6),
    3,
    "layers of the discriminator that halve the image; 1, 2 and 3 judge patches of 16, 34 and 70 px",
    "2 for images of 32 px, 1 for smaller ones.",
    "layers",
  ),
  lr: key(
    z.number().gt(0).nullable(),
    null,
    "learning rate of the discriminator; null is optimizer.lr",
    "Lower it when gan/discriminator falls to 0: it has won, and teaches nothing.",
  ),
  path: key(
    text.nullable(),
    null,
    "file of a discriminator to go on with, such as the one of model.path's training; null starts a new one",
    "Together with model.path.",
  ),
});

const loss: z.ZodType<TokenizerLossSection> = section<TokenizerLossSection>({
  pixel: section<TokenizerLossSection["pixel"]>({
    kind: key(
      z.enum(["l1", "l2"]),
      "l2",
      "mean absolute or mean squared difference of pixels",
      "l1 keeps edges sharper, l2 gives the better PSNR.",
    ),
    weight: key(weight, 1, "weight of the pixels' difference", "Rarely: raise the others instead."),
  }),
  perceptual: section<TokenizerLossSection["perceptual"]>({
    weight: key(
      weight,
      0,
      "weight of the distance in the features of perceptual.path",
      "Set 1 with LPIPS, as published; it makes reconstructions sharp where pixels alone make them soft.",
    ),
    path: key(
      text.nullable(),
      null,
      "VGG16, AlexNet or SqueezeNet 1.1 by torchvision (LPIPS), or a file of rlar classifier; with weight 0 it only evaluates",
      "Needed as soon as the weight is not 0.",
    ),
  }),
  codebook: key(
    weight,
    1,
    "weight of the codebook's own terms: codes towards features, features towards codes",
    "Rarely.",
  ),
  commitment: key(
    weight,
    0.25,
    "part of those terms that draws features towards codes (VQ), or codes towards features (IBQ)",
    "Raise it when train/commitment grows.",
  ),
  entropy: section<TokenizerLossSection["entropy"]>({
    weight: key(
      weight.nullable(),
      null,
      "weight of the term that wants each place sure of its code and all codes in use; null is 0.05 for IBQ, 0 for VQ",
      "0.05 for VQ when eval/codebook_used stays low in spite of loss.restartAfter.",
    ),
    temperature: key(
      z.number().gt(0),
      0.01,
      "divisor of a code's scores in that term",
      "Raise it when the features are small and all codes look alike.",
    ),
  }),
  restartAfter: key(
    z.int().min(0),
    100,
    "updates after which a code that no image used is put where a feature of the batch is; 0 leaves codes alone",
    "Raise it where an update has fewer places than the codebook has codes; 0 where every code must stay, as with a policy that knows them.",
    "updates",
  ),
  gan,
});

const presets: Readonly<Record<string, Preset<TokenizerTrainConfig>>> = {
  llamagen: {
    about:
      "LlamaGen (2024): VQ-16 on 256 px with squared error, LPIPS and a discriminator from update 20,000 on, 128 images " +
      "an update, 40 epochs of ImageNet. Needs loss.perceptual.path (VGG16).",
    values: {
      data: { size: 256, flip: true },
      model: { preset: "VQ-16" },
      loss: {
        pixel: { kind: "l2" },
        perceptual: { weight: 1 },
        restartAfter: 0,
        gan: { weight: 0.5, start: 20_000 },
      },
      optimizer: {
        lr: 1e-4,
        betas: [0.9, 0.95],
        weightDecay: 0,
        schedule: "constant",
        warmup: 0,
        maxGradNorm: 1,
      },
      ema: { decay: 0.9999, warmup: false },
      train: { epochs: 40, batch: 128 },
    },
  },
  ibq: {
    about:
      "IBQ (2024, SEED-Voken): 16,384 codes on 256 px with absolute error, LPIPS, a discriminator from the start with " +
      "LeCam's penalty, 256 images an update, 330 epochs of ImageNet. Needs loss.perceptual.path (VGG16).",
    values: {
      data: { size: 256, crop: "smallest_side", flip: true },
      model: { preset: "IBQ-16" },
      loss: {
        pixel: { kind: "l1" },
        perceptual: { weight: 1 },
        entropy: { weight: 0.05, temperature: 0.01 },
        restartAfter: 0,
        gan: { weight: 0.1, start: 0, generator: "non_saturating", lecam: 0.05 },
      },
      optimizer: {
        lr: 1e-4,
        betas: [0.5, 0.9],
        weightDecay: 0,
        schedule: "constant",
        warmup: 0,
        maxGradNorm: null,
      },
      ema: { decay: 0.999, warmup: true },
      train: { epochs: 330, batch: 256 },
    },
  },
};

/** Pixels of a code along each side, where the configuration tells. */
const DOWNSAMPLES: Readonly<Record<TokenizerPreset, number>> = {
  "VQ-4-small": 4,
  "VQ-8": 8,
  "VQ-16": 16,
  "IBQ-4-small": 4,
  "IBQ-16": 16,
};

/** Codes of an image from which a policy that reads them becomes slow. */
const MANY_CODES = 1024;

/** What `rlar tokenizer` is configured by. */
export const tokenizerKind: ConfigKind<TokenizerTrainConfig> = fitKind<TokenizerTrainConfig>({
  name: "tokenizer",
  defaults: {
    epochs: 10,
    batch: 32,
    lr: 1e-3,
    betas: [0.9, 0.95],
    weightDecay: 0,
    ema: 0.998,
    best: "eval/loss",
    mode: "min",
  },
  own: { model, loss },
  presets,
  problems,
  notes,
});

function downsampleOf({ model: { path, preset, chMult } }: TokenizerTrainConfig): number | null {
  if (path !== null) return null;
  return chMult === null ? DOWNSAMPLES[preset] : 2 ** (chMult.length - 1);
}

function problems(config: TokenizerTrainConfig, { whereOf }: Origins): string[] {
  const { data, loss: terms, train } = config;
  const found: string[] = [];
  const refuse = (path: string, what: string, got: unknown, remedy: string): void => {
    found.push(`${whereOf(path)}: expected ${what}, got ${String(got)}. ${remedy}.`);
  };
  const step = downsampleOf(config);
  if (step !== null && data.size % step !== 0) {
    const least = Math.max(step, Math.round(data.size / step) * step);
    const remedy = `Set data.size=${least}, or another model.preset or model.chMult`;
    refuse("data.size", `a multiple of ${step}, the pixels of a code`, data.size, remedy);
  }
  const { pixel, perceptual, gan } = terms;
  if (pixel.weight === 0 && perceptual.weight === 0) {
    const remedy = "Set loss.pixel.weight=1: without either, reconstructions need not look like the images";
    refuse("loss.pixel.weight", "a weight above 0, or loss.perceptual.weight above 0", 0, remedy);
  }
  if (perceptual.weight !== 0 && perceptual.path === null) {
    const remedy =
      "Give torchvision's VGG16, AlexNet or SqueezeNet 1.1, or a file of rlar classifier; or set loss.perceptual.weight=0";
    const what = `a network with loss.perceptual.weight ${perceptual.weight}`;
    refuse("loss.perceptual.path", what, null, remedy);
  }
  if (gan.weight !== 0) {
    const least = 3 * 2 ** gan.nLayers;
    if (data.size < least) {
      const most = Math.floor(Math.log2(data.size / 3));
      const remedy =
        most >= 1
          ? `Set loss.gan.nLayers=${most}`
          : "Set loss.gan.weight=0: these images are too small for one";
      const what = `fewer layers with images of ${data.size} px, of which ${least} are needed for ${gan.nLayers}`;
      refuse("loss.gan.nLayers", what, gan.nLayers, remedy);
    }
    if (gan.start !== null && train.iters !== null && gan.start >= train.iters) {
      const remedy = "Lower it, or set loss.gan.weight=0";
      refuse("loss.gan.start", `fewer than the ${train.iters} updates of the run`, gan.start, remedy);
    }
  }
  return found;
}

function notes(config: TokenizerTrainConfig, { isGiven }: Origins): string[] {
  const { data, model: tokenizer, loss: terms, eval: evaluated } = config;
  const found: string[] = [];
  const idle = (paths: readonly string[], why: string): void => {
    const given = paths.filter(isGiven);
    if (given.length > 0) found.push(`${given.join(", ")}: not read ${why}.`);
  };
  const step = downsampleOf(config);
  const codes = step === null ? 0 : (data.size / step) ** 2;
  if (codes > MANY_CODES) {
    found.push(
      `Images of ${data.size} px become ${codes} codes each, which a policy draws one after another. Set ` +
        "data.size lower, or a model.preset whose codes stand for more pixels.",
    );
  }
  if (terms.gan.weight > 0 && evaluated.every > 0 && evaluated.best.match(/^eval\/(loss|psnr|l1|l2)$/)) {
    found.push(
      `eval.best is ${evaluated.best}, which a discriminator makes worse, so model.safetensors may be from before ` +
        "loss.gan.start. Set eval.best=eval/perceptual or eval/lpips with loss.perceptual.path, or take the last checkpoint.",
    );
  }
  const parts = [
    "codebookSize",
    "embedDim",
    "ch",
    "chMult",
    "numResBlocks",
    "zChannels",
    "normGroups",
    "dropout",
  ];
  if (tokenizer.path !== null) {
    idle(
      ["preset", ...parts].map((name) => `model.${name}`),
      "with model.path, whose file tells",
    );
  } else {
    idle(["model.wrapper", "model.weights"], "without model.path");
  }
  if (terms.gan.weight === 0) {
    const others = [
      "adaptive",
      "start",
      "generator",
      "discriminator",
      "lecam",
      "ndf",
      "nLayers",
      "lr",
      "path",
    ];
    idle(
      others.map((name) => `loss.gan.${name}`),
      "while loss.gan.weight is 0",
    );
  }
  return found;
}
