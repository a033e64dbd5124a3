/** Logs a training step: its metrics, a warning about reward hacking, and a picture of samples. */
import type { TrainConfig } from "../config/resolve.js";
import { spread } from "../data/index.js";
import type { Log } from "../run/log.js";
import { type Clock, joined, type Spread } from "../run/metrics.js";
import type { Tensor } from "../torch/index.js";
import type { Decoded } from "./decode.js";
import type { Evaluation } from "./evaluate.js";
import type { Drawing, Generated } from "./generate.js";
import type { RunParts } from "./parts.js";
import type { Coefficients, Progress } from "./state.js";
import {
  machineMetrics,
  rewardSpreads,
  rolloutMetrics,
  type SamplePage,
  samplePage,
  sampleRows,
} from "./step.js";
import type { UpdateResult } from "./update.js";

/** A step that is done. */
export interface StepDone {
  readonly generated: Generated;
  readonly coefficients: Coefficients;
  /** Of the schedule. */
  readonly lrFactor: number;
  readonly result: UpdateResult;
  readonly evaluation: Evaluation | null;
  /** The step whose weights the run went back to; null where it did not. */
  readonly backAt: number | null;
  readonly unreadable: number;
  readonly clock: Clock;
}

/** Log the metrics of a step. @returns the spreads of the reward and of its terms. */
export function logStep(
  log: Log,
  config: TrainConfig,
  parts: RunParts,
  progress: Progress,
  done: StepDone,
): Record<string, Spread> {
  const { generated, coefficients, result, evaluation, backAt } = done;
  const { rollout, plain, best } = generated.drawing;
  const times = done.clock.times();
  const seconds = Object.values(times).reduce((sum, part) => sum + part, 0);
  if (evaluation !== null && progress.isGamed) {
    const back =
      backAt === null ? "" : `back to the weights of step ${backAt}, the best by ${config.eval.best}; `;
    log.say(
      "the reward rose while every metric outside it fell since the start: " +
        `${back}look at the samples, raise update.auxCe or kl.coef`,
    );
  }
  const { refreshEvery } = config.kl;
  const step = progress.step - 1; // steps before this one
  const spreads = rewardSpreads(plain);
  log.step(
    progress.step,
    joined(
      result.metrics,
      rolloutMetrics(rollout, plain, best, parts.terms, parts.tokenizer.codebookSize),
      generated.metrics,
      {
        ...(parts.reference !== null && { "kl/coef": coefficients.klCoef }),
        ...(parts.reference !== null &&
          refreshEvery > 0 && { "kl/reference_step": step - (step % refreshEvery) }),
        ...(coefficients.entropy !== null && { "policy/entropy_coef": coefficients.entropyCoef }),
        ...(progress.klMean !== null && { "kl/ref_running": progress.klMean }),
        "optim/lr": config.optimizer.lr * done.lrFactor,
        "optim/skipped_total": progress.skipped,
        "progress/epoch": generated.cursor.epoch,
        "progress/images_seen": progress.imagesSeen,
        "progress/tokens_seen": progress.tokensSeen,
        "progress/unreadable": done.unreadable,
      },
      machineMetrics(seconds, { tokens: generated.tokens, images: generated.images }, parts.device),
      times,
      evaluation === null ? {} : { ...evaluation.metrics, "eval/hacking_alarm": progress.isGamed ? 1 : 0 },
      backAt === null ? {} : { "eval/rolled_back_to": backAt },
    ),
    { count: rollout.tokens.numel, spreads: { ...spreads, ...(evaluation?.spreads ?? {}) } },
  );
  return spreads;
}

/** A page of samples of a step's rollout, as it was first drawn; the step must have measured the ceiling. */
export function pageOf(
  config: TrainConfig,
  parts: RunParts,
  { batch, decoded, ceiling, trueCodes, rollout, plain }: Drawing,
): SamplePage {
  const given = trueCodes === null ? 0 : trueCodes.size(1) - rollout.tokens.size(2);
  const { ids, classes, images } = batch;
  const shown = { ids, classes, images, samples: decoded.samples, rewards: plain.total, given };
  const places = spread(ids.length, config.log.imageRows);
  const reconstruct = (at: Tensor): Tensor => (ceiling as Decoded).samples.indexSelect(0, at);
  return samplePage(sampleRows(parts, shown, places, reconstruct), shown);
}
