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

/**
 * Run one step of set-up and print what it does and how long it took, on one line.
 *
 * @template T
 * @param {string} what such as "building the native addon".
 * @param {() => Promise<T>} action prints nothing on stderr itself.
 * @returns {Promise<T>}
 */
export async function step(what, action) {
  const start = performance.now();
  const seconds = () => `${((performance.now() - start) / 1000).toFixed(1)} s`;
  process.stderr.write(`set-up: ${what} ... `);
  try {
    const result = await action();
    process.stderr.write(`${seconds()}\n`);
    return result;
  } catch (error) {
    process.stderr.write(`failed after ${seconds()}\n`);
    throw error;
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
