/** `rlar sample`: images drawn from a policy, a row for each class or text. */
import { imageGrid, writePng } from "../data/images.js";
import type { PolicyDescription } from "../policies/index.js";
import type { Condition } from "../policies/policy.js";
import { openPolicy, openTokenizer } from "../rl_ar_finetune/builder.js";
import { sampleCodesWithLogprobs } from "../rl_ar_finetune/sampling.js";
import { type Device, expected, loadSafetensors, stream, tensor, tidy } from "../torch/index.js";
import { askedOf, sayNotes } from "./inspect.js";

/** Options of `rlar sample`. */
export interface SampleOptions {
  policy: string;
  tokenizer: string;
  out: string;
  class?: number[];
  features?: string;
  perClass: number;
  cfg: number;
  cfgSchedule: "constant" | "power_cosine";
  temperature: number;
  topK: number;
  topP: number;
  seed: number;
  heads?: number;
  codes?: number;
  wrapper?: string;
  weights?: "ema" | "raw";
  dtype: "float32" | "bfloat16";
  device: Device;
  json?: boolean;
}

export async function sample(options: SampleOptions): Promise<void> {
  const { device, perClass, seed } = options;
  if (perClass < 1) throw expected("--per-class", "at least 1", perClass);
  const { tokenizer, description: decoder, notes } = openTokenizer(options.tokenizer, { device });
  using _tokenizer = tokenizer;
  const { policy, description, ...opened } = openPolicy(options.policy, {
    device,
    dtype: options.dtype,
    codebookSize: tokenizer.codebookSize,
    ...askedOf(options),
  });
  using _policy = policy;
  policy.eval();
  sayNotes([...notes, ...opened.notes]);
  requireKind(options, description);
  const side = Math.sqrt(policy.blockSize);
  if (!Number.isInteger(side))
    throw expected("--codes", "a square number of codes an image", policy.blockSize);
  const started = performance.now();
  using page = tidy(() => {
    const condition = conditionOf(options);
    // Codes are drawn on the CPU, where the same seed gives the same codes whatever the device.
    using generator = stream(seed, "sample", 0);
    const { tokens } = sampleCodesWithLogprobs(policy, condition, policy.blockSize, {
      numGenerations: perClass,
      generator,
      temperature: options.temperature,
      topK: options.topK,
      topP: options.topP,
      ...(options.cfg !== 1 && { guidance: { scale: options.cfg, schedule: options.cfgSchedule } }),
    });
    const images = tokenizer.decodeCode(tokens, [side, side]).clamp(-1, 1).cpu();
    return imageGrid(images.split(perClass));
  });
  await writePng(options.out, page);
  const seconds = (performance.now() - started) / 1000;
  const rows = options.class?.length ?? 0;
  const weights = { policy: description.weights, tokenizer: decoder.weights };
  if (options.json) {
    const facts = { out: options.out, seed, seconds, classes: options.class, weights };
    process.stdout.write(`${JSON.stringify(facts)}\n`);
  } else {
    const what = rows > 0 ? `a row for each of classes ${options.class?.join(", ")}` : "a row for each text";
    process.stdout.write(
      `${options.out}: ${what}, ${perClass} images each, seed ${seed}, ${seconds.toFixed(1)} s\n` +
        `weights: ${weights.policy} of the policy, ${weights.tokenizer} of the tokenizer\n`,
    );
  }
}

/** Check that the policy is conditioned on what the command line gives. */
function requireKind(
  { class: classes, features }: SampleOptions,
  { where, config }: PolicyDescription,
): void {
  const isText = "modelType" in config && config.modelType === "t2i";
  if (isText && classes !== undefined) {
    const remedy = "Give the texts' features as a file: --features FILE";
    throw expected("--class", "none: the policy draws from text features", classes.join(","), remedy);
  }
  const numClasses = "classNum" in config ? config.classNum : "numClasses" in config ? config.numClasses : 0;
  if (!isText && features !== undefined && !("features" in config)) {
    throw expected("--features", `none: ${where} draws from classes`, features, "Use --class");
  }
  const stray = classes?.find((id) => id < 0 || id > (numClasses ?? 0));
  if (stray !== undefined) {
    const remedy = `${numClasses} is the null class`;
    throw expected("--class", `classes in [0, ${numClasses}]`, stray, remedy);
  }
}

/** The classes, or the features of a file, as the policy takes them. */
function conditionOf({ class: classes, features, device }: SampleOptions): Condition {
  if ((classes === undefined) === (features === undefined)) {
    throw expected("sample", "either --class or --features", classes === undefined ? "neither" : "both");
  }
  if (classes !== undefined) return { classes: tensor(classes, { dtype: "int64", device }) };
  const path = features as string;
  const { tensors } = loadSafetensors(path);
  if (tensors.features === undefined) {
    throw expected(path, 'a tensor "features" [B, S, C]', Object.keys(tensors).join(", "));
  }
  const condition: Condition = { features: tensors.features.to({ device }) };
  if (tensors.isReal !== undefined) condition.isReal = tensors.isReal.to({ device });
  return condition;
}
