/**
 * What `precision.tokenizer` and `precision.rewards` cost, measured on the samples of a run's first step: the difference of
 * the decoded images, and whether rewards in bfloat16 put the samples of a group in the same order. A run whose rewards
 * would be noise ends there.
 */
import type { TrainConfig } from "../config/resolve.js";
import { rankCorrelation } from "../metrics/ranks.js";
import { expected, type Tensor, tidy } from "../torch/index.js";
import { decodeCodes } from "./decode.js";
import type { RunParts } from "./parts.js";
import { type Judged, judge, type Term } from "./rewards.js";
import { readNumbers } from "./sampling.js";

/** Least peak signal-to-noise ratio of images decoded in bfloat16, dB; rounding to 8 bits alone has 59. */
const LEAST_PSNR = 30;

/** Least mean rank correlation of rewards within groups. */
const LEAST_CORRELATION = 0.95;

/** Images whose samples are measured. */
const MEASURED = 4;

/** What the narrow dtype costs. */
export interface PrecisionCost {
  /** Of images decoded in bfloat16 against float32, dB, for a range of 2; null where the decoder is in float32. */
  readonly psnr: number | null;
  /** Mean over the groups of Spearman's rank correlation of rewards; NaN where all rewards of every group are equal. */
  readonly correlation: number;
  /** Images and samples that were measured. */
  readonly images: number;
  readonly samples: number;
}

/**
 * Decode and reward some samples in float32 as well, and compare.
 *
 * @param judged - of the whole step, in the run's precision.
 * @param codes - int64 `[B, G, T]`: what `judged` was decoded from.
 * @returns null where everything is in float32.
 */
export function measurePrecision(
  parts: RunParts,
  judged: Judged,
  codes: Tensor,
  decodeBatch: number,
): PrecisionCost | null {
  const { narrowDecoder } = parts;
  // Functions and servers of the user have no float32 of their own, and may draw random numbers: a resumed run would draw more.
  const terms = parts.terms.filter(({ call, send }) => call === undefined && send === undefined);
  if (narrowDecoder === null && terms.every((term) => term.exact === undefined)) return null;
  return tidy(() => {
    const [b, g] = codes.dims(3);
    // Without groups, all samples are one group.
    const images = g > 1 ? Math.min(b, MEASURED) : Math.min(b, 8);
    const first = <T extends Tensor>(rows: T, each = 1): Tensor => rows.narrow(0, 0, images * each);
    const { latents, context } = judged;
    const pixels = (): Tensor => judged.images.narrow(0, 0, Math.min(images, judged.images.size(0)));
    const told: Pick<Judged, "context"> =
      context === undefined
        ? {}
        : {
            context: {
              ...context,
              imageIds: context.imageIds.slice(0, images),
              classIds: context.classIds?.slice(0, images) ?? null,
              classNames: context.classNames?.slice(0, images) ?? null,
              captions: context.captions?.slice(0, images) ?? null,
              codes: first(context.codes, g),
              trueCodes: context.trueCodes && first(context.trueCodes),
            },
          };
    const narrow: Judged = {
      ...told,
      images: pixels(),
      samples: first(judged.samples, g),
      ...(latents && { latents: { images: first(latents.images), samples: first(latents.samples, g) } }),
    };
    const decode = (): Judged => ({
      ...decodeCodes(parts, pixels(), first(codes), decodeBatch),
      ...told,
    });
    const wide = narrowDecoder === null ? { ...narrow, images: pixels() } : narrowDecoder.without(decode);
    const rewardsOf = (some: readonly Term[], of: Judged): number[][] => {
      const values = judge(some, of).plain;
      return (g > 1 ? values : values.reshape(1, -1)).toList() as number[][];
    };
    const exactTerms = terms.map((term) => term.exact ?? term);
    const ours = terms.length > 0 ? rewardsOf(terms, narrow) : [];
    const theirs = terms.length > 0 ? rewardsOf(exactTerms, wide) : [];
    const correlations = ours.map((row, i) => rankCorrelation(row, theirs[i] as number[]));
    const known = correlations.filter((value) => !Number.isNaN(value));
    const mse = wide.samples.sub(narrow.samples).double().square().mean();
    return {
      psnr: narrowDecoder === null ? null : 10 * Math.log10(4 / (readNumbers({ mse }).mse as number)),
      correlation: known.reduce((sum, value) => sum + value, 0) / known.length,
      images,
      samples: images * g,
    };
  });
}

/**
 * Say what the precision costs.
 *
 * @throws RangeError when it costs too much, unless forced.
 */
export function reportPrecision(
  { precision }: Pick<TrainConfig, "precision">,
  cost: PrecisionCost,
  isForced: boolean,
): string {
  const { psnr, correlation, images, samples } = cost;
  const said = [
    ...(psnr === null ? [] : [`decoded images differ by a PSNR of ${psnr.toFixed(1)} dB`]),
    ...(Number.isNaN(correlation) ? [] : [`the rank correlation of rewards is ${correlation.toFixed(3)}`]),
  ].join(", ");
  const of = `${samples} samples of ${images} images`;
  if (!isForced) {
    const remedy = "Set it to float32, or use --force to go on";
    if (psnr !== null && psnr < LEAST_PSNR) {
      throw expected(
        "precision.tokenizer",
        `a PSNR of at least ${LEAST_PSNR} dB to float32`,
        `${psnr.toFixed(1)} dB for ${of}`,
        remedy,
      );
    }
    if (correlation < LEAST_CORRELATION) {
      const key = precision.tokenizer === "float32" ? "precision.rewards" : "precision.tokenizer";
      const what = `rewards whose rank correlation to those in float32 is at least ${LEAST_CORRELATION}`;
      throw expected(key, what, `${correlation.toFixed(3)} for ${of}`, remedy);
    }
  }
  return `bfloat16 against float32, ${of}: ${said}`;
}
