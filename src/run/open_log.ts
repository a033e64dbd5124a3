/** Opens a run's log and screen, for every training loop; what they hold is in `log.ts` and `console.ts`. */
import type { LoadedCheckpoint } from "./checkpoint.js";
import { RunConsole } from "./console.js";
import { RunLog } from "./log.js";
import type { TrainOptions } from "./options.js";

/** What a log is opened for. */
export interface OpenLog {
  /** Iterations or updates of the whole run. */
  readonly total: number;
  /** Keys of the configuration. */
  readonly log: { readonly every: number; readonly tensorboard: boolean; readonly csv: boolean };
  /** Where the run goes on from; null for a new one. */
  readonly saved: LoadedCheckpoint | null;
  /** Lines for the user, before the first step. */
  readonly notes: readonly string[];
  readonly options: TrainOptions;
}

/** A screen for a run of so many steps. */
export function openConsole(total: number, { screen, json = false }: TrainOptions): RunConsole {
  return new RunConsole({ total, json, ...(screen && { screen }) });
}

/** The log of a run where it was left, with what the user is to know before it goes on. Close it, or hold it with `using`. */
export function openLog(folder: string, { total, log: keys, saved, notes, options }: OpenLog): RunLog {
  const { every, tensorboard, csv } = keys;
  const console = openConsole(total, options);
  const resumeAt = saved === null ? {} : { resumeAt: saved.step };
  const log = new RunLog(folder, { every, total, console, tensorboard, csv, ...resumeAt });
  if (saved?.values.log !== undefined) log.load(saved.values.log);
  for (const { path, reason } of saved?.damaged ?? []) log.say(`passed over ${path}: ${reason}`);
  for (const note of [...log.notes, ...notes]) log.say(note);
  return log;
}
