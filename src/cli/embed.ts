/** `rlar embed`: vectors of images by a network, written to a file; and zero-shot classification as a check of an encoder. */
import {
  centerCrop,
  openSource,
  pixelsToTensor,
  readSample,
  smallestSideCrop,
  spread,
  subset,
  UnreadableImages,
} from "../data/index.js";
import { classVectors, cosines, type Encoder, EncoderFeatures, prepareImages } from "../encoders/index.js";
import { hashOf } from "../evaluation/inputs.js";
import { EMBEDDINGS_KIND } from "../evaluation/reference_set.js";
import { openFeatures } from "../rl_ar_finetune/open_encoders.js";
import { requireWritable } from "../run/folder.js";
import {
  cat,
  type Device,
  expected,
  known,
  noGrad,
  saveSafetensors,
  type Tensor,
  tensor,
  tidy,
  toDevice,
} from "../torch/index.js";
import { sayNotes } from "./inspect.js";
import { imageCounter, withProgress } from "./progress.js";

/** Options of `rlar embed`. */
export interface EmbedOptions {
  data: string;
  out?: string;
  zeroShot: string[];
  textTokenizer?: string;
  size?: number;
  crop: "center" | "smallest_side";
  label?: string;
  limit?: number;
  device: Device;
  json?: boolean;
}

/** Images per forward pass. */
const BATCH = 16;

/** Side of images for networks that do not say theirs. */
const SIZE = 256;

export async function embed(path: string, options: EmbedOptions): Promise<void> {
  const { device, zeroShot: templates, out, label, textTokenizer } = options;
  if (out === undefined && templates.length === 0) {
    throw expected(
      "embed",
      "--out or --zero-shot",
      "neither",
      "--out writes the vectors; --zero-shot classifies the images",
    );
  }
  if (out !== undefined) requireWritable("--out", out, [".safetensors"]);
  for (const name of ["size", "limit"] as const) {
    const value = options[name];
    if (value !== undefined && value < 1) throw expected(`--${name}`, "at least 1", value);
  }
  if (textTokenizer !== undefined && templates.length === 0)
    throw expected("--text-tokenizer", "--zero-shot, which embeds texts", "none");
  const withTexts = templates.length > 0;
  using network = openFeatures(path, { device, withTexts, ...known({ textTokenizer }) });
  const encoder = network instanceof EncoderFeatures ? network.encoder : null;
  if (templates.length > 0 && encoder === null) {
    throw expected(
      "--zero-shot",
      "an encoder of images and texts",
      network.name,
      "Use CLIP, SigLIP or TokLIP",
    );
  }
  const whole = await openSource(
    options.data,
    label === undefined ? {} : { label: label === "none" ? null : label },
  );
  if (whole.kind !== "images") throw expected("--data", "images", "code files");
  const source = options.limit === undefined ? whole : subset(whole, spread(whole.length, options.limit));
  const isPrepared = encoder !== null && !encoder.readsCodes && options.size === undefined;
  const size = options.size ?? (encoder?.readsCodes ? encoder.description.vision.imageSize : SIZE);
  const names: string[] = [];
  const classes: number[] = [];
  const parts: Tensor[] = [];
  const unreadable = new UnreadableImages();
  /** The image `i` as the network takes it; null where it cannot be read, as in training. */
  const imageAt = async (i: number): Promise<Tensor | null> => {
    try {
      const { id, classId, pixels } = await readSample(source, i);
      if (pixels === undefined) throw expected(id, "an image", "none");
      const cropped = isPrepared
        ? pixels
        : (options.crop === "center" ? centerCrop : smallestSideCrop)(pixels, size);
      const image = pixelsToTensor(cropped);
      const spec = encoder?.description.preprocessing;
      const prepared = isPrepared && spec ? tidy(() => prepareImages(image, spec)) : image;
      if (prepared !== image) image.dispose();
      names.push(id);
      classes.push(classId);
      return prepared;
    } catch (error) {
      if (!(error instanceof RangeError)) throw error;
      unreadable.add(source.idOf(i), error.message);
      return null;
    }
  };
  sayNotes(source.notes ?? []);
  await withProgress("embedding", async (say) => {
    const count = imageCounter(source.length, say);
    for (let start = 0; start < source.length; start += BATCH) {
      count(start);
      const read: Tensor[] = [];
      for (let i = start; i < Math.min(start + BATCH, source.length); i++) {
        const image = await imageAt(i);
        if (image !== null) read.push(image);
      }
      for (const line of unreadable.news()) say(line);
      if (read.length === 0) continue;
      parts.push(
        noGrad(() =>
          tidy(() => {
            const images = toDevice(cat(read), device);
            const features =
              isPrepared && encoder !== null
                ? encoder.embedPrepared(images)
                : network.describe(images).features;
            return features.float().cpu();
          }),
        ),
      );
      for (const image of read) image.dispose();
    }
  });
  if (parts.length === 0) {
    const remedy = `The first: ${(unreadable.problems[0] ?? "").replace(/\.$/, "")}`;
    throw expected(options.data, "an image that can be read", `none of ${source.length}`, remedy);
  }
  using embeddings = cat(parts);
  for (const part of parts) part.dispose();
  const finite = tidy(() => embeddings.isfinite().all().item());
  if (finite !== 1)
    throw expected(path, "finite embeddings", "NaN or infinity", "Its weights are too large, or damaged");
  const facts: Record<string, unknown> = {
    network: network.name,
    images: names.length,
    unreadable: unreadable.count,
    width: embeddings.size(1),
  };
  if (out !== undefined) {
    using ids = tensor(classes, { dtype: "int64" });
    const metadata = {
      kind: EMBEDDINGS_KIND,
      network: network.name,
      network_sha256: hashOf(path),
      data_fingerprint: source.fingerprint,
      names: JSON.stringify(names),
      class_names: JSON.stringify(source.classNames),
    };
    saveSafetensors(out, { embeddings, classes: ids }, metadata);
    facts.out = out;
  }
  const scores =
    encoder === null || templates.length === 0
      ? null
      : classify(encoder, embeddings, classes, source.classNames, templates);
  print({ ...facts, ...scores }, options.json === true);
}

/** Share of images whose class's vector is nearest, and among the five nearest. */
function classify(
  encoder: Encoder,
  embeddings: Tensor,
  classes: readonly number[],
  classNames: readonly string[],
  templates: readonly string[],
): Record<string, unknown> {
  if (classNames.length < 2) {
    throw expected(
      "--data",
      "images of at least 2 classes, such as a folder each",
      classNames.length,
      "Set --label",
    );
  }
  return tidy(() => {
    const vectors = classVectors(encoder, classNames, templates).cpu();
    const pairs = classNames.map((_, k) =>
      cosines(embeddings, vectors.narrow(0, k, 1).expand(embeddings.size(0), -1)),
    );
    const scores = cat(
      pairs.map((each) => each.unsqueeze(1)),
      1,
    ); // [N, K]
    const truth = tensor([...classes], { dtype: "int64" });
    const ranks = scores.gt(scores.gather(1, truth.unsqueeze(1))).sum(1);
    const within = (k: number): number => ranks.lt(k).double().mean().item();
    return {
      templates,
      classes: classNames.length,
      top1: within(1),
      ...(classNames.length > 5 && { top5: within(5) }),
      predicted: (scores.argmax(1).toList() as number[]).map((k) => classNames[k]),
    };
  });
}

function print(facts: Record<string, unknown>, isJson: boolean): void {
  if (isJson) {
    process.stdout.write(`${JSON.stringify(facts, null, 2)}\n`);
    return;
  }
  const { network, images, unreadable, width, out, classes, top1, top5 } = facts;
  const percent = (share: unknown): string => `${(Number(share) * 100).toFixed(2)} %`;
  const lines = [
    `${network}: ${images} images${unreadable === 0 ? "" : `, ${unreadable} not readable`}, vectors of width ${width}`,
    ...(out === undefined ? [] : [`${out}: embeddings, classes and names`]),
    ...(top1 === undefined
      ? []
      : [
          `zero-shot among ${classes} classes: top 1 ${percent(top1)}${top5 === undefined ? "" : `, top 5 ${percent(top5)}`}`,
        ]),
  ];
  process.stdout.write(`${lines.join("\n")}\n`);
}
