/**
 * Evaluation of the policy during a run, on held-out images: the reward, metrics that are not in the reward, and the
 * likelihood of the true codes. The images and the random numbers are the same every time, so that two evaluations
 * differ by the policy alone.
 */
import type { TrainConfig } from "../config/resolve.js";
import { spread } from "../data/index.js";
import { gatherValues, size } from "../distributed/index.js";
import { signOf } from "../metrics/measures.js";
import { type Spread, spreadOf } from "../run/metrics.js";
import { noGrad, stream, type Tensor, tidy } from "../torch/index.js";
import { decodeCodes, decodeFor } from "./decode.js";
import { scoresOf } from "./own_rewards.js";
import type { RunParts } from "./parts.js";
import { judge, reconstructionTerm, type Term, UNREWARDED } from "./rewards.js";
import { scoreCodes } from "./scoring.js";
import { decodeBatchOf, evalSamplingOf } from "./settings.js";
import {
  drawFor,
  type SamplePage,
  type SampleRow,
  type Shown,
  samplePage,
  sampleRows,
  startOf,
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
 * @param when.step - iterations that are done, for the user's own rewards.
 * @param when.folder - the run's, where a batch is written that one of these failed on.
 * @param when.show - given a page of some of the images, the same ones every time, with what was sampled for them.
 * @returns spreads over all samples of `eval/reward` and of every metric in its own units, of `eval/nats_per_token` (of
 *   the true codes) and `eval/diversity` (standard deviation per pixel between the samples of an image); and
 *   `eval/codebook_usage`, the part of the codebook that the samples use. Without images, of those that need none.
 */
export async function evaluate(
  config: TrainConfig,
  parts: RunParts,
  when: {
    readonly step?: number;
    readonly folder?: string;
    readonly show?: ((page: SamplePage) => Promise<void>) | undefined;
  } = {},
): Promise<Evaluation> {
  const { step = 0, folder, show } = when;
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
  const withAverage = <T>(fn: () => T): T =>
    parts.ema === null ? tidy(fn) : parts.ema.withAverage(() => tidy(fn));
  // Images are in the order of their classes: some that are spread over all show most classes.
  const wanted = new Set(show && spread(parts.evalImages, config.log.imageRows));
  const rows: SampleRow[] = [];
  let shown: Pick<Shown, "images" | "given"> = { images: undefined, given: 0 };
  let [index, first] = [0, 0];
  for await (const read of parts.evalBatches()) {
    using batch = read;
    using generator = stream(config.seed, "eval", index++);
    batches.push(new Map());
    const { images, ids, classes } = batch;
    const drawn = withAverage(() => {
      const { trueCodes, rollout } = drawFor(config, parts, batch, {
        iteration: Number.MAX_SAFE_INTEGER,
        numGenerations: config.eval.numGenerations,
        sampling: evalSamplingOf(config),
        generator,
      });
      for (const code of rollout.tokens.unique().toList() as number[]) used.add(code);
      const { codes } = rollout;
      if (trueCodes === null) return { codes, trueCodes, nats: null, given: 0 };
      const start = startOf(batch, config.rollout.start);
      const truth = { tokens: trueCodes, start, context: null, support: null, sampling: {} };
      const micro = config.rollout.microBatch === null ? {} : { microBatch: config.rollout.microBatch };
      const { logprobs } = noGrad(() => scoreCodes(parts.policy, truth, micro));
      return { codes, trueCodes, nats: logprobs.neg(), given: trueCodes.size(1) - rollout.tokens.size(2) };
    });
    const { codes, trueCodes, nats, given } = drawn;
    try {
      using decoded = await decodeFor(config, parts, { batch, codes, trueCodes, step });
      const at = { isEvaluation: true, ...(folder !== undefined && { folder }) };
      const judged = await scoresOf(parts.terms, decoded, decoded.sent, at);
      tidy(() => {
        // In the terms' own units: with mean 0 in every batch the reward would say nothing.
        // A process without images of a last batch is not here to be compared with.
        const all = batch.place?.of ?? 0;
        const { plain, terms } = judge(parts.terms, judged, all >= size() ? { among: all } : {});
        add("eval/reward", plain);
        const clamped = { ...judged, samples: judged.samples.clamp(-1, 1) };
        const others = images === undefined || watched.length === 0 ? {} : judge(watched, clamped).terms;
        for (const [name, tensor] of Object.entries({ ...terms, ...others })) add(`eval/${name}`, tensor);
        const [b, g] = plain.dims(2);
        if (g > 1) {
          const bySample = judged.samples.unflatten(0, [b, g]);
          add("eval/diversity", bySample.std(1).mean([1, 2, 3]));
        }
        if (nats !== null) add("eval/nats_per_token", nats);
        const { from, of } = batch.place ?? { from: 0, of: b };
        const places = ids.flatMap((_, i) => (wanted.has(first + from + i) ? [i] : []));
        first += of;
        if (places.length === 0) return;
        shown = { images, given };
        const reconstruct = (at: Tensor): Tensor => {
          const own = (trueCodes as Tensor).indexSelect(0, at).unsqueeze(1);
          return decodeCodes(parts, (images as Tensor).indexSelect(0, at), own, decodeBatchOf(config))
            .samples;
        };
        const { samples } = judged;
        rows.push(
          ...sampleRows(parts, { ids, classes, images, samples, rewards: plain, given }, places, reconstruct),
        );
      });
    } finally {
      for (const tensor of [codes, trueCodes, nats]) tensor?.dispose();
    }
  }
  if (show !== undefined && rows.length > 0) await show(samplePage(rows, shown));
  const all = gatherValues({ batches, used });
  const values = new Map<string, number[]>();
  const count = Math.max(...all.map((own) => own.batches.length));
  for (let i = 0; i < count; i++) {
    for (const [name, numbers] of all.flatMap((own) => [...(own.batches[i] ?? [])])) {
      const list = values.get(name) ?? [];
      for (const number of numbers) list.push(number);
      values.set(name, list);
    }
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
