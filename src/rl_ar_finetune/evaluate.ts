/**
 * Evaluation of the policy during a run, on held-out images: the reward, metrics that are not in the reward, and the
 * likelihood of the true codes. The images and the random numbers are the same every time, so that two evaluations
 * differ by the policy alone.
 */
import type { TrainConfig } from "../config/resolve.js";
import { spread } from "../data/index.js";
import { gatherValues } from "../distributed/index.js";
import { signOf } from "../metrics/measures.js";
import { type Spread, spreadOf } from "../run/metrics.js";
import { noGrad, stream, type Tensor, tidy } from "../torch/index.js";
import type { RunParts } from "./parts.js";
import { judge, reconstructionTerm, type Term, UNREWARDED } from "./rewards.js";
import { scoreCodes } from "./scoring.js";
import { contextAt, decodeBatchOf, evalSamplingOf } from "./settings.js";
import {
  conditionOf,
  decodeFor,
  encodeFor,
  rolloutFor,
  type SamplePage,
  type SampleRow,
  samplePage,
  sampleRows,
} from "./step.js";

/** Results of an evaluation. */
export interface Evaluation {
  readonly spreads: Readonly<Record<string, Spread>>;
  readonly metrics: Readonly<Record<string, number>>;
}

/** Metrics that every evaluation measures, rewarded or not. */
const WATCHED: readonly Term[] = [
  reconstructionTerm("l1"),
  reconstructionTerm("l2"),
  reconstructionTerm("psnr"),
  reconstructionTerm("ssim"),
];

/**
 * Evaluate the policy, with the EMA of its weights where the run keeps one.
 *
 * @param show - given a page of some of the images, the same ones every time, with what was sampled for them.
 * @returns spreads over all samples of `eval/reward` and of every metric in its own units, of `eval/nats_per_token` (of
 *   the true codes) and `eval/diversity` (standard deviation per pixel between the samples of an image); and
 *   `eval/codebook_usage`, the part of the codebook that the samples use.
 */
export async function evaluate(
  config: TrainConfig,
  parts: RunParts,
  show?: (page: SamplePage) => Promise<void>,
): Promise<Evaluation> {
  // Of each batch this process's rows alone; several processes put theirs together at the end.
  const batches: Map<string, number[]>[] = [];
  const add = (name: string, tensor: Tensor): void => {
    batches.at(-1)?.set(name, tensor.flatten().toList() as number[]);
  };
  const used = new Set<number>();
  const rewarded = new Set(parts.terms.map((term) => term.name));
  const watched = WATCHED.filter((term) => !rewarded.has(term.name));
  if (parts.unrewarded !== null) watched.push(parts.unrewarded);
  // Users sample from the EMA of the weights where there is one.
  const withAverage = (fn: () => void): void =>
    parts.ema === null ? tidy(fn) : parts.ema.withAverage(() => tidy(fn));
  // Images are in the order of their classes: some that are spread over all show most classes.
  const wanted = new Set(show && spread(parts.evalImages, config.log.imageRows));
  const rows: SampleRow[] = [];
  let [index, first, given] = [0, 0, 0];
  for await (const read of parts.evalBatches()) {
    using batch = read;
    using generator = stream(config.seed, "eval", index++);
    batches.push(new Map());
    withAverage(() => {
      const images = batch.images as Tensor;
      const trueCodes = encodeFor(config, parts, images);
      const condition = conditionOf(batch, config.rollout.start);
      const rollout = rolloutFor(config, parts, condition, {
        context: contextAt(config, Number.MAX_SAFE_INTEGER, trueCodes.size(1)),
        numGenerations: config.eval.numGenerations,
        trueCodes,
        sampling: evalSamplingOf(config),
        generator,
        ...(batch.place && { place: batch.place }),
      });
      const judged = decodeFor(parts, images, rollout.codes, decodeBatchOf(config));
      const { total, terms } = judge(parts.terms, judged);
      add("eval/reward", total);
      const clamped = { ...judged, samples: judged.samples.clamp(-1, 1) };
      const others = watched.length === 0 ? {} : judge(watched, clamped).terms;
      for (const [name, tensor] of Object.entries({ ...terms, ...others })) add(`eval/${name}`, tensor);
      const [b, g] = total.dims(2);
      if (g > 1) {
        const bySample = judged.samples.unflatten(0, [b, g]);
        add("eval/diversity", bySample.std(1).mean([1, 2, 3]));
      }
      const { from, of } = batch.place ?? { from: 0, of: b };
      const places = batch.ids.flatMap((_, i) => (wanted.has(first + from + i) ? [i] : []));
      if (places.length > 0) {
        given = trueCodes.size(1) - rollout.tokens.size(2);
        const { ids, classes } = batch;
        const shown = { ids, classes, images, samples: judged.samples, rewards: total, given };
        const reconstruct = (at: Tensor): Tensor => {
          const codes = trueCodes.indexSelect(0, at).unsqueeze(1);
          return decodeFor(parts, images.indexSelect(0, at), codes, decodeBatchOf(config)).samples;
        };
        rows.push(...sampleRows(parts, shown, places, reconstruct));
      }
      first += of;
      for (const code of rollout.tokens.unique().toList() as number[]) used.add(code);
      const truth = { tokens: trueCodes, start: condition, context: null, support: null, sampling: {} };
      const micro = config.rollout.microBatch === null ? {} : { microBatch: config.rollout.microBatch };
      const { logprobs } = noGrad(() => scoreCodes(parts.policy, truth, micro));
      add("eval/nats_per_token", logprobs.neg());
    });
  }
  if (show !== undefined && rows.length > 0) await show(samplePage(rows, given));
  const all = gatherValues({ batches, used });
  const values = new Map<string, number[]>();
  const count = Math.max(...all.map((own) => own.batches.length));
  for (let i = 0; i < count; i++) {
    for (const [name, numbers] of all.flatMap((own) => [...(own.batches[i] ?? [])]))
      values.set(name, [...(values.get(name) ?? []), ...numbers]);
  }
  const spreads = Object.fromEntries([...values].map(([name, numbers]) => [name, spreadOf(numbers)]));
  const codes = new Set(all.flatMap((own) => [...own.used]));
  return { spreads, metrics: { "eval/codebook_usage": codes.size / parts.tokenizer.codebookSize } };
}

/**
 * Whether the reward is being hacked: it rose since the first evaluation while every metric outside it got worse.
 *
 * @param names - the terms of the reward.
 */
export function isHacked(first: Evaluation, now: Evaluation, names: ReadonlySet<string>): boolean {
  const mean = (evaluation: Evaluation, name: string): number =>
    evaluation.spreads[`eval/${name}`]?.mean ?? Number.NaN;
  if (!(mean(now, "reward") > mean(first, "reward"))) return false;
  const outside: Pick<Term, "name" | "sign">[] = WATCHED.filter((term) => !names.has(term.name));
  if (first.spreads[`eval/${UNREWARDED}`] !== undefined)
    outside.push({ name: UNREWARDED, sign: signOf(UNREWARDED) });
  return (
    outside.length > 0 && outside.every(({ name, sign }) => sign * (mean(now, name) - mean(first, name)) < 0)
  );
}
