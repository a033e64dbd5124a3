/** What is asked about a run that is in the way, and what answers mean. */
import assert from "node:assert/strict";
import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { PassThrough } from "node:stream";
import { after, test } from "node:test";

import { askOnTerminal } from "../../src/cli/ask.js";

const folder = mkdtempSync(join(tmpdir(), "rlar-ask-"));
after(() => rmSync(folder, { recursive: true }));
mkdirSync(join(folder, "checkpoints", "step_000120"), { recursive: true });

const QUESTION = `${folder} holds a run (step_000120). Go on with it? [y]es, [n]o, new (a folder beside it), overwrite: `;

async function answered(text: string, ends = false): Promise<{ answer: string | undefined; shown: string }> {
  const input = Object.assign(new PassThrough(), { isTTY: true });
  const output = Object.assign(new PassThrough(), { isTTY: true });
  const asked = askOnTerminal({ input, output })?.(folder);
  input.write(text);
  if (ends) input.end();
  return { answer: await asked, shown: String(output.read()) };
}

test("answers", async () => {
  const wanted = {
    "y\n": "resume",
    "YES\n": "resume",
    " resume \n": "resume",
    "n\n": "fail",
    "no\n": "fail",
    "new\n": "new",
    "overwrite\n": "overwrite",
  };
  for (const [text, answer] of Object.entries(wanted))
    assert.deepEqual(await answered(text), { answer, shown: QUESTION }, text);
});

test("what is no answer is asked for again; the end of the input is a no", async () => {
  assert.deepEqual(await answered("\nwhat\nnew\n"), {
    answer: "new",
    shown: `${QUESTION}${"y, n, new or overwrite: ".repeat(2)}`,
  });
  assert.equal((await answered("", true)).answer, "fail");
});

test("nobody is asked where nobody can answer", () => {
  const silent = new PassThrough();
  const terminal = Object.assign(new PassThrough(), { isTTY: true });
  assert.equal(askOnTerminal({ input: silent, output: terminal }), undefined);
  assert.equal(askOnTerminal({ input: terminal, output: silent }), undefined);
});
