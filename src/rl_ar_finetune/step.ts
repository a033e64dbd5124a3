/**
 * The parts of one training step: condition and codes of a batch, rollout, decoding and rewards, update by the configured
 * algorithm, metrics, and a page of samples. Evaluation uses the first four as well.
 */
import type { TrainConfig } from "../config/resolve.js";
import { type Batch, givenPart, labelledPage, type PageRow } from "../data/index.js";
import { allGather, size, takeTraffic } from "../distributed/index.js";
import type { Condition } from "../policies/index.js";
import { type Spread, spreadOf, takePeakBytes } from "../run/metrics.js";
import type { PlainData } from "../run/plain_data.js";
import {
  autocast,
  call,
  callTensor,
  cat,
  cudaMemory,
  type Device,
  deriveSeed,
  expected,
  hasCudaStatistics,
  keep,
  memory,
  stack,
  stream,
  type Tensor,
  tensor,
  tidy,
  zeros,
} from "../torch/index.js";
import { codeGrid } from "./decode.js";
import {
  grpoUpdate,
  type Optimizer,
  ppoUpdate,
  reinforceUpdate,
  rlooUpdate,
  type UpdateBatch,
  type UpdateResult,
} from "./optimize.js";
import type { RunParts } from "./parts.js";
import {
  counted,
  factorOf,
  generationsOf,
  type Judged,
  judge,
  judgeByPlace,
  keyOf,
  type Term,
} from "./rewards.js";
import { type Rollout, type RolloutOptions, sampleRollout } from "./rollout.js";
import { readNumbers, type Start, type StartParts, startParts } from "./sampling.js";
import { algorithmOptions, contextAt } from "./settings.js";
import { steUpdate } from "./ste.js";

/** The condition of a batch for a policy: none with `rollout.start` empty, otherwise features or classes. */
export function conditionOf(batch: Batch, start: TrainConfig["rollout"]["start"]): Condition {
  if (start === "empty") return {};
  const { features, isReal } = batch;
  if (features === undefined) return { classes: batch.classes };
  return isReal === undefined ? { features } : { features, isReal };
}

/** Where the sequences of a batch start. Without images and a condition, no codes, int64 `[B, 0]`, tell how many there are. */
export function startOf(batch: Batch, start: TrainConfig["rollout"]["start"]): Start {
  if (start !== "empty" || batch.images !== undefined) return conditionOf(batch, start);
  return zeros([batch.ids.length, 0], { dtype: "int64", device: batch.classes.device as Device });
}

/**
 * Codes of images.
 *
 * @throws RangeError when a program's loader gives images of another size than `rollout.maxLen` says.
 */
function encodeFor({ rollout }: TrainConfig, { tokenizer }: RunParts, images: Tensor): Tensor {
  const codes = tokenizer.encode(images);
  const { maxLen } = rollout;
  if (maxLen === null || maxLen === codes.size(1)) return codes;
  const remedy = "The decoder needs all codes of an image: load images of another size, or omit maxLen";
  throw expected("rollout.maxLen", `${codes.size(1)}, the codes of the loader's images`, maxLen, remedy);
}

/**
 * Draw sequences in the policy's precision, with packed weights where they are faster, and with LoRA adapters merged
 * into the weights while codes are drawn one by one. In weights narrower than float32 the adapters would be lost by
 * rounding, so they are not merged there.
 */
export function rolloutFor(
  config: TrainConfig,
  parts: RunParts,
  start: Start,
  options: RolloutOptions & Required<Pick<RolloutOptions, "context">>,
): Rollout {
  const { policy, lora, policyCast, packAs } = parts;
  const { microBatch } = config.rollout;
  const all = { ...options, ...(microBatch !== null && { microBatch }), ...(packAs !== null && { packAs }) };
  const run = (): Rollout => {
    const draw = (): Rollout => sampleRollout(policy, start, all);
    return policyCast === null ? draw() : autocast(policyCast, draw);
  };
  const isOneByOne = options.context.type === "free" || options.context.type === "prefix";
  if (lora === null || !isOneByOne || policy.parameters()[0]?.dtype !== "float32") return run();
  lora.merge();
  try {
    return run();
  } finally {
    lora.unmerge();
  }
}

/**
 * Codes of a batch's images, and sequences for them.
 *
 * @param options.iteration - for the context, from 0.
 */
export function drawFor(
  config: TrainConfig,
  parts: RunParts,
  batch: Batch,
  options: Omit<RolloutOptions, "context"> & { readonly iteration: number },
): { trueCodes: Tensor | null; rollout: Rollout } {
  const { images, place } = batch;
  const { iteration, ...others } = options;
  const trueCodes = images === undefined ? null : encodeFor(config, parts, images);
  const [rows, columns] = codeGrid(config, parts, images);
  const rollout = rolloutFor(config, parts, startOf(batch, config.rollout.start), {
    context: contextAt(config, iteration, rows * columns),
    ...(trueCodes === null ? { length: rows * columns } : { trueCodes }),
    ...(place && { place }),
    ...others,
  });
  return { trueCodes, rollout };
}

/**
 * Gathers the rollouts of all processes into one, and the true codes of their images. Hidden states are not gathered:
 * each process uses only those of its own rows.
 *
 * @param batch - B: images of all processes.
 */
export function gatherRollout(
  { rollout, trueCodes }: { rollout: Rollout; trueCodes: Tensor | null },
  batch: number,
): { rollout: Rollout; trueCodes: Tensor | null } {
  if (size() === 1) return { rollout, trueCodes };
  return {
    rollout: joinRollouts([rollout], ([rows]) => allGather(rows as Tensor, batch)),
    trueCodes: trueCodes && allGather(trueCodes, batch),
  };
}

/**
 * Rollouts of one kind as one, each of whose tensors is made of theirs; the trunk's states stay those of the first.
 *
 * @param join - is given the same tensor of each rollout; all have one row per image.
 */
export function joinRollouts(
  rollouts: readonly [Rollout, ...Rollout[]],
  join: (tensors: readonly Tensor[]) => Tensor,
): Rollout {
  const [first] = rollouts;
  const joined = (of: (rollout: Rollout) => Tensor): Tensor => join(rollouts.map(of));
  const starts = rollouts.map(({ start, tokens }) => startParts("joinRollouts", start, tokens));
  const names = Object.keys((starts[0] as StartParts).condition) as (keyof Condition)[];
  const condition = names.map((name) => [name, join(starts.map((start) => start.condition[name] as Tensor))]);
  return {
    ...first,
    tokens: joined(({ tokens }) => tokens),
    logprobs: joined(({ logprobs }) => logprobs),
    entropy: joined(({ entropy }) => entropy),
    codes: joined(({ codes }) => codes),
    start: [join(starts.map(({ given }) => given)), Object.fromEntries(condition)],
    context: first.context && joined(({ context }) => context as Tensor),
    support: first.support && joined(({ support }) => support as Tensor),
    ...(first.mask && { mask: joined(({ mask }) => (mask as Tensor).to({ dtype: "uint8" })).bool() }),
  };
}

/** The rewards of a rollout. */
export interface Credited {
  /** For the update: float64 `[B, G]`, or with `reward.credit` place `[B, G, T]`, each token's part. */
  readonly rewards: Tensor;
  readonly plain: PlainRewards;
}

/**
 * Rewards of a rollout, one per sequence or one per token, as `reward.credit` says.
 *
 * By place, a token's part is the reward at its place divided by the number of places, so that the parts of an image
 * sum to its reward. Given codes have no part.
 *
 * @param drawn - T: tokens that were drawn, the last ones of each image.
 * @param batch - B: images of all processes, whose rewards these are; default those of `judged`.
 */
export function creditFor(
  config: TrainConfig,
  parts: RunParts,
  judged: Judged,
  drawn: number,
  batch: number = judged.samples.size(0) / generationsOf(judged),
): Credited {
  const { normalize, credit } = config.reward;
  if (credit === "sequence") {
    const { total, plain, terms } = judge(parts.terms, judged, { normalize, batch });
    return { rewards: total, plain: { total: plain, terms } };
  }
  return tidy(() => {
    const grid = codeGrid(config, parts, judged.images);
    const { places, plain, terms } = judgeByPlace(parts.terms, judged, grid, { normalize, batch });
    const all = places.size(2);
    const rewards = places.narrow(2, all - drawn, drawn).div(all);
    return { rewards, plain: { total: plain, terms } };
  });
}

/** Rewards as they are measured, before normalisation and credit by place. */
export interface PlainRewards {
  /** float64 `[B, G]`: weighted sum of the terms. */
  readonly total: Tensor;
  /** float64 `[B, G]` by name, in the metrics' own units. */
  readonly terms: Readonly<Record<string, Tensor>>;
}

/** What an update learns from, of all processes; the trunk's states alone are of this process's rows. */
export interface Rewarded {
  readonly rollout: Rollout;
  /** int64 `[B, T]`; null without images. */
  readonly trueCodes: Tensor | null;
  /** float64 `[B, G]`, or with `reward.credit` place `[B, G, T]`. */
  readonly rewards: Tensor;
}

/**
 * The update of the algorithm, in the policy's precision.
 *
 * @param more.changing - called before the optimizer moves a weight.
 */
export function updateFor(
  config: TrainConfig,
  parts: RunParts,
  { rollout, trueCodes: truth, rewards }: Rewarded,
  step: number,
  more: {
    klCoef: number;
    entropyCoef: number;
    lrFactor: number;
    images: Tensor | undefined;
    changing: () => void;
  },
): UpdateResult {
  const { klCoef, entropyCoef, lrFactor, images, changing } = more;
  const batch: UpdateBatch = { ...rollout, rewards, ...(truth && { trueCodes: truth }) };
  const { policy, reference, valueHead, tokenizer, terms } = parts;
  const optimizer: Optimizer = {
    zeroGrad: () => parts.optimizer.zeroGrad(),
    step: (options) => {
      changing();
      parts.optimizer.step(options);
    },
  };
  const chosen = algorithmOptions(config, reference, klCoef, entropyCoef);
  using generator = stream(config.seed, "update", step);
  const { codeVectors: vectors, codeFrequency } = parts;
  if (codeFrequency !== null) {
    if (truth === null) throw expected("update.codeFrequency", "images, whose codes it counts", "none");
    codeFrequency.add(rollout.tokens, truth, rollout.mask);
  }
  using logRatio = codeFrequency?.logRatio(parts.device) ?? null;
  const shared = {
    generator,
    lrFactor,
    trained: parts.trained.parameters(),
    ...(vectors && { codeDistance: { weight: config.update.codeDistance, vectors } }),
    ...(logRatio && { codeFrequency: { weight: config.update.codeFrequency, logRatio } }),
  };
  const run = (): UpdateResult => {
    switch (chosen.algorithm) {
      case "reinforce":
        return reinforceUpdate(policy, optimizer, batch, { ...chosen.options, ...shared });
      case "rloo":
        return rlooUpdate(policy, optimizer, batch, { ...chosen.options, ...shared });
      case "grpo":
        return grpoUpdate(policy, optimizer, batch, { ...chosen.options, ...shared });
      case "ppo": {
        if (valueHead === null) throw new Error("ppo: expected a value head, got none.");
        return ppoUpdate(policy, optimizer, batch, { ...chosen.options, ...shared, valueHead });
      }
      case "ste": {
        const { start = {}, context, trueCodes } = batch;
        if (!context || !trueCodes || !images)
          throw new Error("ste: expected images in a teacher-forced context, got none.");
        const drawn = { tokenizer, terms, seed: deriveSeed(config.seed, "ste", step) };
        const own = { images: allGather(images, trueCodes.size(0)), start, context, trueCodes };
        return steUpdate(policy, optimizer, own, { ...chosen.options, ...shared, ...drawn });
      }
    }
  };
  return parts.policyCast === null ? run() : autocast(parts.policyCast, run);
}

/**
 * Metrics of a rollout.
 *
 * `reward/vq_ceiling` (the mean reward of the images' own codes) and `reward/gap` (ceiling minus mean reward) where the
 * ceiling is known,
 * `reward/group_std`, `reward/<term>/weighted` (means with weight and sign, which sum to `reward/mean`),
 * `policy/entropy` (nats per token) and `policy/entropy_frac` (of log V), `tokens/codebook_usage` (part of the codebook
 * that was drawn), `tokens/token_perplexity` (exp of the entropy of code frequencies), `tokens/unique_frac` (part of the
 * sequences that are distinct).
 *
 * @param ceiling - float64 `[B, 1]`: rewards of the images' own codes; null where they were not computed.
 */
export function rolloutMetrics(
  rollout: Rollout,
  plain: PlainRewards,
  ceiling: Tensor | null,
  terms: readonly Term[],
  codebookSize: number,
): Record<string, number> {
  return tidy(() => {
    const { tokens, entropy, mask } = rollout;
    const drawn = mask === undefined ? tokens.flatten() : tokens.maskedSelect(mask);
    const counts = drawn.bincount(codebookSize).double();
    const used = counts.div(counts.sum());
    const sequences = tokens.flatten(0, 1); // [N, T]
    const distinct = (call("aten::unique_dim", [sequences, 0]) as Tensor[])[0] as Tensor;
    const read = readNumbers({
      mean: plain.total.mean(),
      ...(ceiling && { ceiling: ceiling.mean() }),
      groupStd:
        plain.total.size(1) > 1 ? plain.total.std(1).mean() : zeros([], { device: tokens.device as Device }),
      nats: meanDrawn(entropy, rollout),
      codes: counts.ne(0).sum(),
      perplexity: callTensor<Tensor>("aten::special_entr", [used]).sum().exp(),
      ...Object.fromEntries(
        terms.map((term) => [
          `term ${term.name}`,
          counted(term, plain.terms[term.name] as Tensor)
            .mean()
            .mul(factorOf(term)),
        ]),
      ),
    });
    const {
      mean,
      ceiling: best,
      groupStd,
      nats,
      codes,
      perplexity,
    } = read as Record<"mean" | "groupStd" | "nats" | "codes" | "perplexity", number> & { ceiling?: number };
    const weighted = terms.map(({ name }) => {
      return [`reward/${name}/weighted`, read[`term ${name}`] as number] as const;
    });
    return {
      ...(best !== undefined && { "reward/vq_ceiling": best, "reward/gap": best - mean }),
      "reward/group_std": groupStd,
      ...Object.fromEntries(weighted),
      "policy/entropy": nats,
      "policy/entropy_frac": nats / Math.log(codebookSize),
      "tokens/codebook_usage": codes / codebookSize,
      "tokens/token_perplexity": perplexity,
      "tokens/unique_frac": distinct.size(0) / sequences.size(0),
    };
  });
}

/** The mean over the tokens that were drawn, of a value per token `[B, G, T]`. */
export const meanDrawn = (values: Tensor, { mask }: Pick<Rollout, "mask">): Tensor =>
  mask === undefined ? values.mean() : values.maskedSelect(mask).mean();

/** Spreads (mean, std, min, max) of the reward and of its terms, by name. */
export function rewardSpreads({ total, terms }: PlainRewards): Record<string, Spread> {
  const named = Object.entries(terms).map(([name, values]) => [`reward/${name}`, values] as const);
  const all = [["reward", total] as const, ...named];
  const read = tidy(() => stack(all.map(([, values]) => values.flatten().double())).toList() as number[][]);
  return Object.fromEntries(all.map(([name], i) => [name, spreadOf(read[i] as number[])]));
}

/**
 * The configuration's keys of the terms whose value was NaN or infinite for a sample.
 *
 * @param spreads - of {@link rewardSpreads}.
 */
export function termsNotFinite(spreads: Readonly<Record<string, Spread>>, terms: readonly Term[]): string[] {
  return terms.filter(({ name }) => !Number.isFinite(spreads[`reward/${name}`]?.mean ?? 0)).map(keyOf);
}

/** Speed and memory, `perf/...`; peaks are since the previous call. The GPU's memory needs {@link hasCudaStatistics}. */
export function machineMetrics(
  seconds: number,
  { tokens, images }: { readonly tokens?: number | undefined; readonly images: number },
  device: Device,
): Record<string, number> {
  return {
    "perf/step_s": seconds,
    ...(tokens !== undefined && { "perf/tokens_per_s": tokens / seconds }),
    "perf/images_per_s": images / seconds,
    "perf/rss_gb": process.memoryUsage.rss() / 2 ** 30,
    "perf/peak_gb": takePeakBytes() / 2 ** 30,
    ...(device.startsWith("cuda") &&
      hasCudaStatistics() && {
        "perf/gpu_mem_peak_gb": cudaMemory(device, { resetPeak: true }).peakAllocated / 2 ** 30,
      }),
    "perf/native_tensors": memory().tensors,
    ...trafficMetrics(),
  };
}

/** With several processes: seconds in collectives, waiting for the others included, and bytes that this one sent. */
function trafficMetrics(): Record<string, number> {
  if (size() === 1) return {};
  const { seconds, bytes } = takeTraffic();
  return { "perf/processes": size(), "perf/collectives_s": seconds, "perf/sent_mb": bytes / 2 ** 20 };
}

/** Samples of an image that are shown. */
export const SHOWN = 6;

/** Images with what was made of them. */
export interface Shown {
  readonly ids: readonly string[];
  /** int64 `[B]`. */
  readonly classes: Tensor;
  /** float `[B, 3, H, W]` in [-1, 1]; undefined where the data has no images. */
  readonly images: Tensor | undefined;
  /** float `[B * G, 3, H, W]`. */
  readonly samples: Tensor;
  /** float `[B, G]`. */
  readonly rewards: Tensor;
  /** Codes of an image that its samples were given; 0 where all were drawn. */
  readonly given: number;
}

/** A row of a page of samples. */
export interface SampleRow extends PageRow {
  readonly id: string;
  readonly rewards: readonly number[];
}

/**
 * Rows of a page of samples: an image's class, the input, the reconstruction, the part that was given, samples; without images,
 * samples alone. With several processes, of the images of the first.
 *
 * @param places - of the images that are shown.
 * @param reconstruct - reconstructions of these images, float `[n, 3, H, W]`, by their places as int64 `[n]`.
 * @returns rows whose tensors are the caller's.
 */
export function sampleRows(
  { tokenizer, source }: Pick<RunParts, "tokenizer" | "source">,
  { ids, images, samples, rewards, classes, given }: Shown,
  places: readonly number[],
  reconstruct: (places: Tensor) => Tensor,
): SampleRow[] {
  const names = source?.classNames ?? [];
  const g = rewards.size(1);
  const most = Math.min(g, SHOWN);
  const device = samples.device as Device;
  return tidy(() => {
    const values = rewards.toList() as number[][];
    const classIds = classes.toList() as number[];
    const at = tensor([...places], { dtype: "int64", device });
    const reconstructions = images && reconstruct(at).clamp(-1, 1).cpu();
    return places.map((i, k) => {
      const reconstruction = reconstructions?.narrow(0, k, 1);
      const drawn = samples
        .narrow(0, i * g, most)
        .clamp(-1, 1)
        .cpu();
      const before =
        images === undefined || reconstruction === undefined
          ? []
          : [
              images.narrow(0, i, 1).cpu(),
              reconstruction,
              ...(given === 0 ? [] : [givenPart(reconstruction, given, tokenizer.downsample)]),
            ];
      const c = classIds[i] as number;
      return {
        id: ids[i] as string,
        rewards: (values[i] as number[]).slice(0, most),
        label: names.length === 1 ? "" : (names[c] ?? `class ${c}`),
        images: keep(cat([...before, drawn])),
      };
    });
  });
}

/** A picture of samples, float32 `[1, 3, H, W]`, and a description of its rows. */
export interface SamplePage {
  readonly page: Tensor;
  readonly about: { readonly [key: string]: PlainData };
}

/**
 * Draws rows as one picture; frees their images.
 *
 * @param shown - the images and samples from which the rows were made.
 */
export function samplePage(
  rows: readonly SampleRow[],
  { images, given }: Pick<Shown, "images" | "given">,
): SamplePage {
  const before = images === undefined ? [] : ["input", "reconstr.", ...(given > 0 ? ["given"] : [])];
  const page = labelledPage(rows, [...before, "sampled"]);
  for (const { images } of rows) images.dispose();
  return { page, about: { ids: rows.map(({ id }) => id), rewards: rows.map(({ rewards }) => [...rewards]) } };
}
