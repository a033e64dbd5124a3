/**
 * Messages on stderr while a command runs for long, separate from its output; and the explanation of a run's progress line
 * in the help of the commands that train.
 */
// Not distributed/index.js, which loads LibTorch: the help and the version do without.
import { readEnvironment } from "../distributed/environment.js";
import { RunConsole } from "../run/console.js";

/**
 * Run `fn`. Meanwhile a terminal shows `what` and the seconds so far; a file or pipe gets a line every ten seconds. Of
 * several processes that a launcher started only the first prints.
 *
 * @param fn - gets a function that prints a line that is not overwritten.
 */
export async function withProgress<T>(
  what: string,
  fn: (say: (line: string) => void) => Promise<T>,
): Promise<T> {
  if ((readEnvironment()?.rank ?? 0) > 0) return await fn(() => {});
  const screen = new RunConsole({ total: 0, screen: process.stderr });
  screen.busy(what);
  try {
    return await fn((line) => {
      screen.say(line);
      screen.busy(what);
    });
  } finally {
    screen.idle();
  }
}

/** Milliseconds between two lines about how many images are done. */
const BETWEEN = 10_000;

/** A function that says every ten seconds how many of `total` images are done. */
export function imageCounter(total: number, say: (line: string) => void): (done: number) => void {
  let saidAt = performance.now();
  return (done) => {
    if (performance.now() - saidAt < BETWEEN) return;
    saidAt = performance.now();
    say(`${done} of ${total} images`);
  };
}

/** {@link withProgress} on a terminal alone, for what usually takes less than a second. */
export async function withProgressOnTerminal<T>(what: string, fn: () => Promise<T>): Promise<T> {
  return process.stderr.isTTY ? await withProgress(what, fn) : await fn();
}

/** Help about the progress line; `parts` are those between the step and the gradient norm. */
const progressHelp = (parts: string): string => `
The progress line on a terminal (a narrow terminal shows only the first parts):
  step 120/1000     steps done, total number of steps
${parts}  gn 0.8            gradient norm before clipping
  2.2s (update 1.1) seconds of the step, and of its longest parts
  2.8k tok/s        codes per second; img/s: images per second
Without a terminal, a line is printed every log.every steps, with the names of metrics that docs/algorithms.md explains.`;

/** For the help of `rlar train`. */
export const rlProgress: string = progressHelp(`\
  reward -0.03 ↑    mean reward, with a bar for each of the last steps; (ceil -0.01): reward of the tokenizer's own reconstructions
  21m left          time left
  kl 0.002          KL divergence per token in nats, from the reference if there is one, else from the policy that sampled
  H 5.1             entropy of the policy, nats per token
  clip 0.1/0.3%     percentage of tokens whose ratio is clipped at the lower/upper side
`);

/** For the help of the commands of supervised training. */
export const fitProgress: string = progressHelp(`\
  loss 2.31 ↓       training loss, with a bar for each of the last steps
  21m left          time left
`);
