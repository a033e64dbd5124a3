/** The configuration of `rlar tokenizer`: its own keys, defaults and presets, and rules between keys. */
import * as z from "zod";
import { fitKind, fitSchema } from "./fit.js";
import { key, pathKey, section } from "./key.js";
import type { ConfigKind, Findings, Preset } from "./kind.js";
import * as shared from "./shared.js";
import { atLeast0, below1, count, flag, integer0, positive, size } from "./shared.js";
import type { ConfigInput } from "./spelling.js";

const adversarial = z.enum(["hinge", "vanilla", "non_saturating"]);

const model = section({
  preset: key(z.enum(["VQ-4-small", "VQ-8", "VQ-16", "IBQ-4-small", "IBQ-16"]), "VQ-4-small").describe(
    "Architecture of a new tokenizer; the number is the downsampling factor. VQ-4-small suits images of 16 to 64 px on a CPU, VQ-16 or IBQ-16 images of 256 px on a GPU.",
  ),
  path: pathKey().describe(
    "File of a tokenizer to continue from, in place of a new one. Give it to adapt a published tokenizer to other images.",
  ),
  wrapper: shared.wrapper,
  weights: shared.weights,
  codebookSize: size("codes").describe(
    "Number of codes in the codebook; null is the preset's. Raise it for reconstructions with more detail; the policy then needs more data.",
  ),
  embedDim: size("channels").describe(
    "Dimension of a code vector; null is the preset's. Rarely changed: with a small one more codes of a normalized codebook are used, IBQ needs a large one.",
  ),
  ch: size("channels").describe(
    "Channels at full resolution; null is the preset's. Raise it first when held-out images stay blurry; time grows with its square.",
  ),
  chMult: key(z.array(count).min(1).readonly().nullable(), null).describe(
    "Channel multipliers, one per resolution, each half of the one before; null is the preset's. Its length sets the downsampling factor: [1, 2] is 2, [1, 2, 2] is 4, [1, 2, 2, 4] is 8.",
  ),
  numResBlocks: size("blocks").describe(
    "Residual blocks per resolution in the encoder; null is the preset's, and the decoder has one more. Rarely changed.",
  ),
  zChannels: size("channels").describe(
    "Channels between encoder, codebook and decoder; null is the preset's. Rarely changed.",
  ),
  normGroups: size("groups").describe(
    "Maximum number of groups of a group norm; null is the preset's. Rarely changed.",
  ),
  dropout: key(below1.nullable(), null).describe(
    "Dropout probability in residual blocks; null is the preset's, 0. Rarely changed: against overfitting, fewer epochs work better.",
  ),
});

const gan = section({
  weight: key(atLeast0, 0).describe(
    "Weight of the adversarial loss; 0 trains no discriminator. Set 0.1 to 0.5 for images of 64 px and more, if reconstructions are good but blurry; it may add detail that is not in the image.",
  ),
  adaptive: flag(false).describe(
    "Whether the weight is multiplied by the ratio of the gradient norms of reconstruction and adversarial loss at the decoder's last layer. VQGAN sets it; LlamaGen and IBQ do not.",
  ),
  start: key(integer0.nullable(), null, "updates").describe(
    "Updates before the discriminator starts; null is half of all updates. Lower it if reconstructions are good long before.",
  ),
  generator: key(adversarial, "hinge").describe(
    "Adversarial loss of the decoder: mean logit (hinge), or cross-entropy per patch (vanilla) or per image (non_saturating). Set non_saturating as in IBQ.",
  ),
  discriminator: key(adversarial, "hinge").describe(
    "Loss of the discriminator: hinge, or cross-entropy per patch (vanilla) or per image (non_saturating). Rarely changed.",
  ),
  lecam: key(atLeast0, 0).describe(
    "Weight of the LeCam regularization, which keeps the discriminator's logits near their running means. Set 0.05, as IBQ does, when gan/real and gan/fake diverge or there are few images.",
  ),
  ndf: key(count, 64, "channels").describe(
    "Channels of the discriminator's first layer. Set 32 for images of 32 px on a CPU.",
  ),
  nLayers: key(count.max(6), 3, "layers").describe(
    "Downsampling layers of the discriminator; with 1, 2 and 3 it judges patches of 16, 34 and 70 px. Set 2 for images of 32 px, 1 for smaller ones.",
  ),
  lr: key(positive.nullable(), null).describe(
    "Learning rate of the discriminator; null is optimizer.lr. Lower it when gan/discriminator falls to 0: then it has won and gives no useful gradient.",
  ),
  path: pathKey().describe(
    "File of a discriminator to continue from, such as the one trained with model.path; null starts a new one. Give it together with model.path.",
  ),
});

const loss = section({
  pixel: section({
    kind: key(z.enum(["l1", "l2"]), "l2").describe(
      "Reconstruction loss on pixels: mean absolute error (l1) or mean squared error (l2). l1 keeps edges sharper, l2 gives a better PSNR.",
    ),
    weight: key(atLeast0, 1).describe(
      "Weight of the reconstruction loss on pixels. Rarely changed: raise the other weights instead.",
    ),
  }),
  perceptual: section({
    weight: key(atLeast0, 0).describe(
      "Weight of the perceptual loss in the features of loss.perceptual.path. Set 1 with LPIPS, as published; a loss on pixels alone makes reconstructions blurry.",
    ),
    path: pathKey().describe(
      "File of torchvision's VGG16, AlexNet or SqueezeNet 1.1 (LPIPS), or of a classifier from rlar classifier. Required when the weight is not 0; with weight 0 it is used in evaluation only.",
    ),
  }),
  codebook: key(atLeast0, 1).describe(
    "Weight of the codebook loss, which moves code vectors towards the encoder's features and features towards code vectors. Rarely changed.",
  ),
  commitment: key(atLeast0, 0.25).describe(
    "Commitment coefficient: weight, within the codebook loss, of the part that moves features towards code vectors (VQ), or code vectors towards features (IBQ). Raise it when train/commitment grows.",
  ),
  entropy: section({
    weight: key(atLeast0.nullable(), null).describe(
      "Weight of the entropy loss, which lowers the entropy of the code at each position and raises the entropy of all codes together; null is 0.05 for IBQ, 0 for VQ. Set 0.05 for VQ when eval/codebook_used stays low in spite of loss.restartAfter.",
    ),
    temperature: key(positive, 0.01).describe(
      "Softmax temperature of the entropy loss. Raise it when features are small and all codes look alike.",
    ),
  }),
  restartAfter: key(integer0, 100, "updates").describe(
    "A code that was not used for this number of updates is replaced by a feature of the batch; 0 never replaces codes. Raise it if a batch has fewer positions than the codebook has codes; set 0 if codes must keep their meaning, for example for a policy that was trained on them.",
  ),
  gan,
});

const schema = fitSchema(
  { model, loss },
  {
    epochs: 10,
    batch: 32,
    lr: 1e-3,
    betas: [0.9, 0.95],
    weightDecay: 0,
    ema: 0.998,
    best: "eval/loss",
    mode: "min",
  },
  ["llamagen", "ibq"],
);

/** What `rlar tokenizer` is configured by. */
export type TokenizerTrainConfig = z.output<typeof schema>;

/** What a program passes: any part of a {@link TokenizerTrainConfig}, keys in camelCase or snake_case. */
export type TokenizerTrainConfigInput = ConfigInput<typeof schema>;

const presets: Readonly<Record<string, Preset & { values: z.input<typeof schema> }>> = {
  llamagen: {
    about:
      "LlamaGen (2024): VQ-16 on 256 px with mean squared error, LPIPS and a discriminator from update 20,000 on, 128 images " +
      "per update, 40 epochs of ImageNet. Needs loss.perceptual.path (VGG16).",
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
      "IBQ (2024, SEED-Voken): 16,384 codes on 256 px with mean absolute error, LPIPS, a discriminator from the start with " +
      "LeCam regularization, 256 images per update, 330 epochs of ImageNet. Needs loss.perceptual.path (VGG16).",
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

/** Smallest images that SSIM is measured on, in pixels. */
const SSIM_LEAST = 11;

/** Codes of an image from which a policy that reads them becomes slow. */
const MANY_CODES = 1024;

/** What `rlar tokenizer` is configured by. */
export const tokenizerKind: ConfigKind<TokenizerTrainConfig> = fitKind<TokenizerTrainConfig>({
  name: "tokenizer",
  schema,
  presets,
  memory: "Lower train.batch, data.size or model.ch",
  metrics: ({ data: { size }, loss: { perceptual } }) => ({
    "eval/loss": "min",
    "eval/psnr": "max",
    ...(size >= SSIM_LEAST && { "eval/ssim": "max" as const }),
    "eval/l1": "min",
    "eval/l2": "min",
    // The file tells which of the two it is.
    ...(perceptual.path !== null && { "eval/lpips": "min" as const, "eval/perceptual": "min" as const }),
    "eval/codebook_used": "max",
    "eval/codebook_perplexity": "max",
  }),
  problems,
  notes,
});

/** Pixels of a code along each side, which a preset has in its name; null where a file tells. */
function downsampleOf({ model: { path, preset, chMult } }: TokenizerTrainConfig): number | null {
  if (path !== null) return null;
  return chMult === null ? Number(/\d+/.exec(preset)) : 2 ** (chMult.length - 1);
}

function problems(config: TokenizerTrainConfig, found: Findings): void {
  const { data, loss: terms, train } = config;
  const { refuse } = found;
  const step = downsampleOf(config);
  if (step !== null && data.size % step !== 0) {
    const least = Math.max(step, Math.round(data.size / step) * step);
    const remedy = `Set data.size=${least}, or another model.preset or model.chMult`;
    const what = `a multiple of ${step}, the downsampling factor`;
    refuse("data.size", what, data.size, remedy, { "data.size": least });
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
  if (gan.weight === 0) return;
  const least = 3 * 2 ** gan.nLayers;
  if (data.size < least) {
    const most = Math.floor(Math.log2(data.size / 3));
    const remedy =
      most >= 1
        ? `Set loss.gan.nLayers=${most}`
        : "Set loss.gan.weight=0: these images are too small for one";
    const what = `fewer layers with images of ${data.size} px, of which ${least} are needed for ${gan.nLayers}`;
    const fixes = most >= 1 ? { "loss.gan.nLayers": most } : { "loss.gan.weight": 0 };
    refuse("loss.gan.nLayers", what, gan.nLayers, remedy, fixes);
  }
  if (gan.start !== null && train.iters !== null && gan.start >= train.iters) {
    const what = `fewer than the ${train.iters} updates of the run`;
    refuse("loss.gan.start", what, gan.start, "Lower it, or set loss.gan.weight=0", {
      "loss.gan.start": null,
    });
  }
}

/** Keys of a new network, which a file decides otherwise, and those of the discriminator. */
const OF_NETWORK = Object.keys(model.unwrap().unwrap().shape).filter(
  (name) => !/^(path|wrapper|weights)$/.test(name),
);
const OF_GAN = Object.keys(gan.unwrap().unwrap().shape).filter((name) => name !== "weight");

function notes(config: TokenizerTrainConfig, { notes, unread }: Findings): void {
  const { data, model: tokenizer, loss: terms, eval: evaluation } = config;
  const step = downsampleOf(config);
  const codes = step === null ? 0 : (data.size / step) ** 2;
  if (codes > MANY_CODES) {
    notes.push(
      `Images of ${data.size} px become ${codes} codes each, which a policy samples one by one. Lower data.size, or set ` +
        "a model.preset with a larger downsampling factor.",
    );
  }
  if (terms.gan.weight > 0 && evaluation.every > 0 && evaluation.best.match(/^eval\/(loss|psnr|l1|l2)$/)) {
    notes.push(
      `eval.best is ${evaluation.best}, which a discriminator makes worse, so model.safetensors may be from before ` +
        "loss.gan.start. Set eval.best=eval/perceptual or eval/lpips with loss.perceptual.path, or take the last checkpoint.",
    );
  }
  const below = (section: string, names: readonly string[]): string[] =>
    names.map((name) => `${section}.${name}`);
  if (tokenizer.path !== null) unread("with model.path, whose file tells", below("model", OF_NETWORK));
  else unread("without model.path", ["model.wrapper", "model.weights"]);
  if (terms.gan.weight === 0) unread("while loss.gan.weight is 0", below("loss.gan", OF_GAN));
}
