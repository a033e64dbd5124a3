/** What becomes of a command whose standard output is closed or full. */
import { print } from "../run/console.js";
import { expectedMessage } from "../torch/errors.js";

/** Commands that leave files: a screen that fails ends their printing and nothing else. */
const RUNS: readonly string[] = ["demo", "train", "pretrain", "tokenizer", "classifier", "sweep"];

/**
 * Without listeners an output that is closed or full would end the process with Node.js's own words.
 *
 * @param failed - the exit code of a command whose output is not whole.
 */
export function watchOutputs(failed: number): void {
  process.stderr.on("error", () => {});
  process.stdout.on("error", ({ code, message }: NodeJS.ErrnoException) => {
    // A pipe is closed by a reader that has enough, such as `head`.
    if (code === "EPIPE" || RUNS.includes(process.argv[2] ?? "") || process.exitCode === failed) return;
    process.exitCode = failed;
    const remedy = "The output is not whole: free some room, or write it elsewhere";
    print(
      process.stderr,
      `rlar: ${expectedMessage("standard output", "room for the output", message, remedy)}\n`,
    );
  });
}
