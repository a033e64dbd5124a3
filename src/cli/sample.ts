/** `rlar sample`: images drawn from a policy, a row for each class or text. */
import { gridOf, writePng } from "../data/images.js";
import type { Condition } from "../policies/policy.js";
import { openPolicy, openTokenizer } from "../rl_ar_finetune/builder.js";
import { sampleCodesWithLogprobs } from "../rl_ar_finetune/sampling.js";
import { type Device, expected, loadSafetensors, stream, tensor, tidy } from "../torch/index.js";

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
  dtype: "float32" | "bfloat16";
  device: Device;
  json?: boolean;
}

export async function sample(options: SampleOptions): Promise<void> {
  const { device, perClass, seed } = options;
  if (perClass < 1) throw expected("--per-class", "at least 1", perClass);
  using tokenizer = openTokenizer(options.tokenizer, { device }).tokenizer;
  using policy = openPolicy(options.policy, {
    device,
    dtype: options.dtype,
    codebookSize: tokenizer.codebookSize,
    ...(options.heads !== undefined && { nHead: options.heads }),
    ...(options.codes !== undefined && { blockSize: options.codes }),
  }).policy;
  policy.eval();
  const side = Math.sqrt(policy.blockSize);
  if (!Number.isInteger(side))
    throw expected("--codes", "a square number of codes an image", policy.blockSize);
  const started = performance.now();
  using page = tidy(() => {
    const condition = conditionOf(options);
    using generator = stream(seed, "sample", 0, device);
    const { tokens } = sampleCodesWithLogprobs(policy, condition, policy.blockSize, {
      numGenerations: perClass,
      generator,
      temperature: options.temperature,
      topK: options.topK,
      topP: options.topP,
      ...(options.cfg !== 1 && { guidance: { scale: options.cfg, schedule: options.cfgSchedule } }),
    });
    const images = tokenizer.decodeCode(tokens, [side, side]).clamp(-1, 1).cpu();
    return gridOf(images.split(perClass));
  });
  await writePng(options.out, page);
  const seconds = (performance.now() - started) / 1000;
  const rows = options.class?.length ?? 0;
  if (options.json)
    process.stdout.write(`${JSON.stringify({ out: options.out, seed, seconds, classes: options.class })}\n`);
  else {
    const what = rows > 0 ? `a row for each of classes ${options.class?.join(", ")}` : "a row for each text";
    process.stdout.write(
      `${options.out}: ${what}, ${perClass} images each, seed ${seed}, ${seconds.toFixed(1)} s\n`,
    );
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
