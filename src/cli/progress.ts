/** A sign of life on stderr of commands that take long, so that nothing of it mixes with their output. */
import { RunConsole } from "../run/console.js";

/**
 * Run `fn`. Meanwhile a terminal shows what is done and for how many seconds, and anything else gets a line every ten
 * seconds.
 *
 * @param fn - is given a function that prints a line that stays.
 */
export async function withProgress<T>(
  what: string,
  fn: (say: (line: string) => void) => Promise<T>,
): Promise<T> {
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

/** {@link withProgress} on a terminal alone, for what usually takes less than a second. */
export async function withProgressOnTerminal<T>(what: string, fn: () => Promise<T>): Promise<T> {
  return process.stderr.isTTY ? await withProgress(what, fn) : await fn();
}
