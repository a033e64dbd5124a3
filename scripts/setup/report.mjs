/**
 * How set-up speaks: one line on stderr per step with the time it took, and failures that say what was
 * looked for, what was found and what to do.
 */

/** A set-up step that cannot go on, for a reason the reader can act on; printed without a stack. */
export class SetupError extends Error {
  /**
   * @param {string} headline one sentence: what is wrong.
   * @param {{ lookedFor?: string[], found?: string[], toDo?: string[] }} [detail] places in the order they
   *   were tried, what was there, and the ways out.
   */
  constructor(headline, { lookedFor = [], found = [], toDo = [] } = {}) {
    const section = (title, lines) =>
      lines.map(
        (line, i) => `  ${(i === 0 ? title : "").padEnd(11)} ${line.replace(/\n/g, "\n              ")}`,
      );
    super(
      [
        headline,
        ...section(
          "looked for:",
          lookedFor.length > 1 ? lookedFor.map((line, i) => `${i + 1}. ${line}`) : lookedFor,
        ),
        ...section("found:", found),
        ...section("to do:", toDo),
      ].join("\n"),
    );
    this.name = "SetupError";
  }
}

/** Print one line of set-up on stderr, where it cannot mix with a command's own output. */
export function say(line) {
  process.stderr.write(`set-up: ${line}\n`);
}

/** Milliseconds between two signs of life of a step on a terminal. */
const BETWEEN_MS = 1000;

/**
 * Run one step of set-up and print what it does and how long it took, on one line. On a terminal the line counts the seconds.
 *
 * @template T
 * @param {string} what such as "building the native addon".
 * @param {() => Promise<T>} action prints nothing on stderr itself.
 * @param {Pick<NodeJS.WriteStream, "write" | "isTTY" | "columns">} [screen] default stderr.
 * @returns {Promise<T>}
 */
export async function step(what, action, screen = process.stderr) {
  const start = performance.now();
  const seconds = (digits) => `${((performance.now() - start) / 1000).toFixed(digits)} s`;
  const line = `set-up: ${what}`;
  const isLive = screen.isTTY === true && process.env.TERM !== "dumb";
  // A line that the terminal breaks in two could not be written over: what counts the seconds is cut to one.
  const live = (time) => `${line.slice(0, Math.max(0, (screen.columns || 80) - 12)).trimEnd()} ... ${time}`;
  screen.write(isLive ? live("") : `${line} ... `);
  const ticker = isLive && setInterval(() => screen.write(`\r\x1b[K${live(seconds(0))}`), BETWEEN_MS);
  const end = (text) => screen.write(isLive ? `\r\x1b[K${line} ... ${text}\n` : `${text}\n`);
  try {
    const result = await action();
    end(seconds(1));
    return result;
  } catch (error) {
    end(`failed after ${seconds(1)}`);
    throw error;
  } finally {
    if (isLive) clearInterval(ticker);
  }
}

/** Refuse a Node.js too old for the compiled code, before anything else is tried. */
export function requireNode(version = process.versions.node) {
  if (Number(version.split(".")[0]) >= 20) return;
  throw new SetupError("Node.js is too old for rl-ar-finetune.", {
    lookedFor: ["Node.js 20 or newer"],
    found: [`Node.js ${version} at ${process.execPath}`],
    toDo: ["install Node.js 20 or newer and make sure that `node --version` shows it."],
  });
}
