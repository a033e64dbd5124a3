/** The one question that a command may ask on a terminal: what to do when the folder already holds a run. */
import { join } from "node:path";
import { createInterface } from "node:readline";

import { listCheckpoints } from "../run/checkpoint.js";
import type { IfExists } from "../run/folder.js";

const ANSWERS: Readonly<Record<string, IfExists>> = {
  y: "resume",
  yes: "resume",
  resume: "resume",
  n: "fail",
  no: "fail",
  new: "new",
  overwrite: "overwrite",
};

/** Where a question is put and answered. */
interface Terminal {
  readonly input: NodeJS.ReadableStream & { readonly isTTY?: boolean };
  readonly output: NodeJS.WritableStream & { readonly isTTY?: boolean };
}

/**
 * A function that asks the user at the terminal, or undefined where there is no terminal. It asks again after an answer
 * that is not understood; the end of the input means no.
 */
export function askOnTerminal(
  { input, output }: Terminal = { input: process.stdin, output: process.stderr },
): ((folder: string) => Promise<IfExists>) | undefined {
  if (input.isTTY !== true || output.isTTY !== true) return undefined;
  return (folder) => {
    const last = listCheckpoints(join(folder, "checkpoints")).at(-1) ?? "no checkpoint";
    const question = `${folder} holds a run (${last}). Go on with it? [y]es, [n]o, new (a folder beside it), overwrite: `;
    const lines = createInterface({ input, output, terminal: false });
    return new Promise((resolve) => {
      const answer = (chosen: IfExists): void => {
        resolve(chosen);
        lines.close();
      };
      lines.on("line", (line) => {
        const chosen = ANSWERS[line.trim().toLowerCase()];
        if (chosen === undefined) output.write("y, n, new or overwrite: ");
        else answer(chosen);
      });
      lines.on("close", () => resolve("fail"));
      output.write(question);
    });
  };
}
