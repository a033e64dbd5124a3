/**
 * Changes keys of a running training: between two steps it reads `steer.yaml` in the run folder, which may set weights
 * of the reward, coefficients and the learning rate. `config/steer.ts` checks the values.
 *
 * A file with an error changes nothing: the run continues with its current values, and the error is on the screen and
 * in the log. An error here does not end the run, because a typing mistake would then cost days of training.
 *
 * Each change is followed by a checkpoint, so that a run that is killed later is resumed with the change at the same
 * step.
 */
import { existsSync, statSync } from "node:fs";
import { join } from "node:path";
import { changesText, diffConfigs, plainConfig } from "../config/explain.js";
import { valueAt } from "../config/key.js";
import { ConfigError, type TrainConfig } from "../config/resolve.js";
import { schemaName } from "../config/spelling.js";
import { readSteered, type Steered, steeredConfig } from "../config/steer.js";
import { broadcastValue, isFirst } from "../distributed/index.js";
import { type Log, StepLines } from "../run/log.js";
import type { RunParts } from "./parts.js";
import type { Term } from "./rewards.js";
import type { Progress } from "./state.js";

/** Milliseconds for which the file must not have changed: an editor may still be writing it. */
const SETTLED = 1000;

/** Reads `steer.yaml` between steps. Declare it with `using`. */
export class Steering implements Disposable {
  /** The run's configuration with all changes so far. */
  config: TrainConfig;
  readonly #begun: TrainConfig;
  readonly #parts: RunParts;
  readonly #progress: Progress;
  readonly #log: Log;
  readonly #file: string;
  readonly #record: string;
  #lines: StepLines | null;
  /** The version of the file that was read last. */
  #seen = "";

  /** @param begun - the configuration at the start of the run; changes made before a resume are in `progress`. */
  constructor(
    begun: TrainConfig,
    parts: RunParts,
    progress: Progress,
    { log, folder }: { readonly log: Log; readonly folder: string },
  ) {
    this.#begun = begun;
    this.#parts = parts;
    this.#progress = progress;
    this.#log = log;
    this.#file = join(folder, "steer.yaml");
    this.#record = join(folder, "steer.jsonl");
    this.#lines =
      isFirst() && existsSync(this.#record) ? new StepLines(this.#record, { resumeAt: progress.step }) : null;
    this.config = begun;
    this.#apply(progress.steered);
  }

  /**
   * Check the file; all processes call this together, and the first one reads it.
   *
   * @returns whether a value changed, so that a checkpoint is due.
   */
  look(): boolean {
    const steered = broadcastValue(isFirst() ? this.#read() : null);
    if (steered === null) return false;
    const [before, progress] = [this.config, this.#progress];
    progress.steered = steered;
    this.#apply(steered);
    const changes = diffConfigs(plainConfig(before), plainConfig(this.config));
    for (const { path, before: from, after: to } of changes) this.#note({ key: path, from, to });
    this.#log.say(
      `steer.yaml: ${changesText(changes).replaceAll("\n", "; ")}, from step ${progress.step + 1} on`,
    );
    if (changes.some(({ path }) => path.startsWith("reward."))) {
      // With other weights the reward is another one: later evaluations are compared with the next one.
      progress.first = null;
      progress.evaluationsSinceBest = 0;
      if (this.config.eval.best.startsWith("eval/reward/")) progress.best = null;
    }
    return true;
  }

  /** The values of the file if it is new, valid and changes something; otherwise null. */
  #read(): Steered | null {
    const { steered: before, step } = this.#progress;
    try {
      const info = statSync(this.#file, { throwIfNoEntry: false });
      const version = info === undefined ? "" : `${info.mtimeMs} ${info.size} ${info.ino}`;
      if (info === undefined || version === this.#seen) return null;
      if (Math.abs(Date.now() - info.mtimeMs) < SETTLED) return null;
      this.#seen = version;
      const steered = readSteered(this.#begun, before, this.#file);
      const isSame = Object.entries(steered).every(([path, value]) => valueAt(this.config, path) === value);
      return isSame ? null : steered;
    } catch (error) {
      if (!(error instanceof ConfigError) && (error as NodeJS.ErrnoException).code === undefined) throw error;
      const message = (error as Error).message.replaceAll(this.#file, "steer.yaml");
      this.#note({ refused: message });
      this.#log.say(`steer.yaml is refused, and nothing is changed at step ${step + 1}: ${message}`);
      return null;
    }
  }

  #apply(steered: Steered): void {
    const [parts, progress] = [this.#parts, this.#progress];
    this.config = steeredConfig(this.#begun, steered);
    const { kl, update, optimizer } = this.config;
    parts.terms = parts.terms.map((term) => reweighed(term, valueAt(this.config, weightKey(term)) as number));
    if (kl.target === null) progress.klCoef = kl.coef;
    if (update.entropyTarget === null) progress.entropyCoef = update.entropyCoef;
    const [group] = parts.optimizer.groups;
    if (group !== undefined) group.lr = optimizer.lr;
  }

  #note(record: Readonly<Record<string, unknown>>): void {
    if (!isFirst()) return;
    this.#lines ??= new StepLines(this.#record);
    this.#lines.add({ step: this.#progress.step, ...record });
    this.#lines.flush();
  }

  [Symbol.dispose](): void {
    this.#lines?.close();
  }
}

/** The key of a term's weight. */
function weightKey({ key, name }: Term): string {
  if (key === "custom") return "reward.custom.custom.weight";
  const isOwn = key !== undefined && /^(custom|http)\./.test(key);
  return `reward.${isOwn ? key : schemaName(key ?? name)}.weight`;
}

function reweighed(term: Term, weight: number): Term {
  if (term.weight === weight) return term;
  return { ...term, weight, ...(term.exact && { exact: { ...term.exact, weight } }) };
}
