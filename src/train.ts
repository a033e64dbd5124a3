/** The functions that train, as programs call them: each run ends with its page. */
import type { ResolvedConfig, TrainConfigInput } from "./config/resolve.js";
import { writeReport } from "./dashboard/report.js";
import { isSpeaker } from "./distributed/index.js";
import { trainRlLoop as loop, type TrainOptions, type TrainResult } from "./rl_ar_finetune/train_loop.js";
import { pretrainPolicy as fitPolicy } from "./trainers/policy.js";
import { trainTokenizer as fitTokenizer } from "./trainers/tokenizer.js";

/**
 * Fine-tune a policy: roll out, decode, reward, update, until the iterations are done. `report.html` is in the run's
 * folder then.
 *
 * Everything random follows from the seed and the iteration, so that a run that is killed and resumed is the one that was
 * not, bit for bit on a CPU.
 *
 * @param cfg - any part of a {@link TrainConfig}, snake_case keys and the names of the original description included,
 *   or a whole one from `resolveConfig`.
 * @throws ConfigError for a configuration that cannot be used, RangeError for data or models that cannot, DivergedError.
 */
export const trainRlLoop: (
  cfg: TrainConfigInput | ResolvedConfig,
  options?: TrainOptions,
) => Promise<TrainResult> = withReport(loop);

/** Train a policy on codes, see `trainers/policy.ts`; `report.html` is in the run's folder then. */
export const pretrainPolicy: typeof fitPolicy = withReport(fitPolicy);

/** Train a tokenizer on images, see `trainers/tokenizer.ts`; `report.html` is in the run's folder then. */
export const trainTokenizer: typeof fitTokenizer = withReport(fitTokenizer);

function withReport<A extends unknown[], R extends { readonly dir: string }>(
  train: (...args: A) => Promise<R>,
): (...args: A) => Promise<R> {
  return async (...args) => {
    const result = await train(...args);
    if (isSpeaker()) await writeReport(result.dir);
    return result;
  };
}
