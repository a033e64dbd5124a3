/** What every training loop takes beside its configuration. */
import type { Screen } from "./console.js";
import type { IfExists } from "./folder.js";

/** What a program can do with a run beside its configuration. */
export interface TrainOptions {
  /** Ends the run after the iteration that is under way, with a checkpoint. */
  readonly signal?: AbortSignal;
  /** Go on with a run although its configuration or images changed. */
  readonly force?: boolean;
  /** Asks the user what to do about a folder that holds a run, for `run.ifExists: ask`; such a folder is refused where left out. */
  readonly ask?: (folder: string) => Promise<IfExists>;
  readonly screen?: Screen;
  readonly json?: boolean;
}
