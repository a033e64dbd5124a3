/**
 * The rollout of a training step: images and their codes, G sequences for each, one decode for all terms of the reward,
 * and rewards. With `rollout.redraws`, groups whose rewards are all the same are replaced by groups of further images.
 * The parts of a rollout are in `step.ts`, the update in `train_loop.ts`.
 *
 * After the dynamic sampling of DAPO (Yu et al. 2025, sec. 3.2 and eq. 11, arXiv 2503.14476), which draws for further
 * prompts until no group of the batch is constant. Deviations:
 * - the number of further rollouts is limited; constant groups that remain after them stay in the batch;
 * - whether a group is constant is decided by its standard deviation (`minStd`), since rewards are not only 0 and 1;
 * - groups beyond those needed are dropped and not kept for the next step, where they would be off-policy.
 */
import type { TrainConfig } from "../config/resolve.js";
import type { Batch, Batches, Cursor } from "../data/index.js";
import type { Clock } from "../run/metrics.js";
import { cat, type Device, deriveSeed, expected, stream, type Tensor, tensor, tidy } from "../torch/index.js";
import { owning } from "../torch/owning.js";
import { constantGroups } from "./advantages.js";
import { type Decoded, decodeFor } from "./decode.js";
import { scoresOf } from "./own_rewards.js";
import type { RunParts } from "./parts.js";
import { type Judged, judge } from "./rewards.js";
import { keepsGraph, needsCeiling, rolloutSamplingOf } from "./settings.js";
import { creditFor, drawFor, gatherRollout, joinRollouts, type PlainRewards, type Rewarded } from "./step.js";

/** A rollout of one batch of images. It owns all its tensors. */
export interface Drawing extends Rewarded, Disposable {
  readonly batch: Batch;
  /** B: images of all processes. */
  readonly images: number;
  /** Samples of this process's images. */
  readonly decoded: Decoded;
  /** The reconstructions of these images; null where the ceiling is not measured. */
  readonly ceiling: Decoded | null;
  readonly judged: Judged;
  /** int64 `[B, G, T]`: whole sequences of this process's images. */
  readonly codes: Tensor;
  readonly plain: PlainRewards;
  /** float64 `[B, 1]`: rewards of the images' own codes. */
  readonly best: Tensor | null;
}

/** The rollout of a step as drawn, and the batch of its update. */
export interface Generated extends Disposable {
  /** The first rollout with all its groups, from which metrics are computed. */
  readonly drawing: Drawing;
  /** The same rollout, with constant groups replaced by groups of further rollouts. */
  readonly rewarded: Rewarded;
  /** Position of the images of the next step. */
  readonly cursor: Cursor;
  /** Images and drawn codes of all rollouts of the step. */
  readonly images: number;
  readonly tokens: number;
  /** Of redraws; none without `rollout.redraws`. */
  readonly metrics: Readonly<Record<string, number>>;
}

/** When a rollout is made, and where its batch is written if a reward fails. */
interface GenerateAt {
  /** From 0. */
  readonly step: number;
  readonly folder: string;
  readonly clock: Clock;
}

/** Make the rollout of a step. Its random numbers depend on the seed, the step, an image's place and the redraw alone. */
export async function generate(
  config: TrainConfig,
  parts: RunParts,
  batches: Pick<Batches, "next">,
  at: GenerateAt,
): Promise<Generated> {
  const { redraws } = config.rollout;
  return owning(async (own) => {
    const drawing = own(await drawBatch(config, parts, batches, at, 0));
    const tokensOf = ({ rollout: { tokens, mask } }: Rewarded): number =>
      mask === undefined ? tokens.numel : tidy(() => Number(mask.sum().item()));
    let rewarded: Rewarded = drawing;
    let { cursor } = drawing.batch;
    let [images, tokens] = [drawing.images, tokensOf(drawing)];
    const { constant } = redraws === 0 ? { constant: [] } : groupsOf(config, drawing);
    let open = constant;
    let redraw = 0;
    while (open.length > 0 && redraw < redraws) {
      redraw++;
      using further = await drawBatch(config, parts, batches, at, redraw);
      const { varied } = groupsOf(config, further);
      rewarded = tidy(() => replaced(rewarded, further, open, varied));
      own(owned(rewarded));
      open = open.slice(varied.length);
      ({ cursor } = further.batch);
      images += further.images;
      tokens += tokensOf(further);
    }
    const metrics = {
      "rollout/constant_frac": constant.length / drawing.images,
      "rollout/redraws": redraw,
      "rollout/replaced_groups": constant.length - open.length,
    };
    return {
      drawing,
      rewarded,
      cursor,
      images,
      tokens,
      metrics: redraws === 0 ? {} : metrics,
    };
  });
}

/** Places of the groups whose rewards are all the same, by the algorithm's `minStd`, and of the others. */
function groupsOf(config: TrainConfig, { rewards }: Rewarded): { constant: number[]; varied: number[] } {
  const { minStd } = config.algorithm === "rloo" ? config.rloo : config.grpo;
  const isConstant = tidy(() => constantGroups(rewards, { minStd }).toList() as number[]);
  const places = [...isConstant.keys()];
  return {
    constant: places.filter((i) => isConstant[i] === 1),
    varied: places.filter((i) => isConstant[i] === 0),
  };
}

/** A rollout with the groups at some places replaced by the first groups of another that are at `varied`. */
export function replaced(
  before: Rewarded,
  further: Rewarded,
  places: readonly number[],
  varied: readonly number[],
): Rewarded {
  const [lengthBefore, length] = [before.rollout.tokens.size(2), further.rollout.tokens.size(2)];
  if (length !== lengthBefore) {
    const remedy = "Load images of one size, or set rollout.redraws=0";
    throw expected("rollout.redraws", `further images of ${lengthBefore} codes to draw`, length, remedy);
  }
  const b = before.rewards.size(0);
  const rows = Array.from({ length: b }, (_, i) => i);
  for (const [i, place] of places.slice(0, varied.length).entries()) rows[place] = b + (varied[i] as number);
  const index = tensor(rows, { dtype: "int64", device: before.rewards.device as Device });
  const join = ([first, second]: readonly Tensor[]): Tensor =>
    cat([first as Tensor, second as Tensor]).indexSelect(0, index);
  return {
    rollout: joinRollouts([before.rollout, further.rollout], join),
    trueCodes: before.trueCodes && join([before.trueCodes, further.trueCodes as Tensor]),
    rewards: join([before.rewards, further.rewards]),
  };
}

/** Draw for the next batch of images, decode and reward. */
async function drawBatch(
  config: TrainConfig,
  parts: RunParts,
  batches: Pick<Batches, "next">,
  { step, folder, clock }: GenerateAt,
  redraw: number,
): Promise<Drawing> {
  return owning(async (own) => {
    const batch = own(await batches.next());
    clock.mark("time/data");
    const images = batch.place?.of ?? batch.ids.length;
    const drawn = tidy(() => {
      using generator = stream(seedOf(config, redraw), "rollout", step);
      return drawFor(config, parts, batch, {
        iteration: step,
        numGenerations: config.rollout.numGenerations,
        sampling: rolloutSamplingOf(config),
        generator,
        keepGraph: keepsGraph(config),
      });
    });
    own(owned(drawn));
    clock.mark("time/rollout");
    const { trueCodes: truth, rollout: mine } = drawn;
    const about = { batch, trueCodes: truth, step: step + 1 };
    const decoded = own(await decodeFor(config, parts, { ...about, codes: mine.codes }));
    const wantsCeiling = truth !== null && redraw === 0 && needsCeiling(config, step);
    const codes = own(wantsCeiling ? tidy(() => truth.unsqueeze(1)) : null);
    const ceiling = own(codes && (await decodeFor(config, parts, { ...about, codes })));
    clock.mark("time/decode");
    const judged = await scoresOf(parts.terms, decoded, decoded.sent, { folder });
    const bestJudged = ceiling && (await scoresOf(parts.terms, ceiling, ceiling.sent, { folder }));
    const rewarded = tidy(() => ({
      ...creditFor(config, parts, judged, mine.tokens.size(2), images),
      best: bestJudged && judge(parts.terms, bestJudged, { batch: images }).plain,
      ...gatherRollout(drawn, images),
    }));
    own(owned(rewarded));
    clock.mark("time/reward");
    return {
      batch,
      images,
      decoded,
      ceiling,
      judged,
      codes: mine.codes,
      ...rewarded,
    };
  });
}

/** The seed of a step's rollout, or of a further one, which has its own numbers. */
const seedOf = ({ seed }: TrainConfig, redraw: number): number | bigint =>
  redraw === 0 ? seed : deriveSeed(seed, "redraw", redraw);

/** Frees every tensor in a value when the block ends. */
function owned(value: object): Disposable {
  const free = (item: unknown): void => {
    if (item === null || typeof item !== "object") return;
    if ("dispose" in item && typeof item.dispose === "function") item.dispose();
    else for (const inner of Object.values(item)) free(inner);
  };
  return { [Symbol.dispose]: () => free(value) };
}
