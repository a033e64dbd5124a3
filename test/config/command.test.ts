import assert from "node:assert/strict";
import { dirname, join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

import { rlarCommand, shellWord } from "../../src/config/command.js";

const root = dirname(dirname(dirname(dirname(fileURLToPath(import.meta.url)))));

test("a command is typed as this process was started", () => {
  const typed = (env: NodeJS.ProcessEnv): string => rlarCommand(["report", "runs/a b"], env);
  assert.equal(typed({ npm_command: "run-script", INIT_CWD: root }), "npm run rlar -- report 'runs/a b'");
  assert.equal(typed({ npm_command: "start", INIT_CWD: root }), "npm run rlar -- report 'runs/a b'");
  const inside = { npm_command: "run-script", INIT_CWD: join(root, "docs") };
  assert.equal(typed(inside), "npm --prefix .. run rlar -- report 'runs/a b'");
  assert.equal(typed({ npm_command: "exec", RLAR_STARTED_AS: "rlar" }), "npx rlar report 'runs/a b'");
  assert.equal(typed({ RLAR_STARTED_AS: "rlar" }), "rlar report 'runs/a b'");
  assert.equal(typed({}), "npx rlar report 'runs/a b'");
});

test("words are quoted where a shell would split or change them", () => {
  assert.equal(shellWord("train.iters=100"), "train.iters=100");
  assert.equal(shellWord("it's"), "'it'\\''s'");
  assert.equal(shellWord("$(rm -r x)"), "'$(rm -r x)'");
  assert.equal(shellWord(""), "''");
  assert.equal(shellWord("Grüße/x.png"), "'Grüße/x.png'");
});
