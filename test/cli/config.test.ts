/** How the words of a command line become a configuration. */
import assert from "node:assert/strict";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";

import { adviceOnRefusal } from "../../src/cli/advice.js";
import { readConfig } from "../../src/cli/config.js";
import { trainKind } from "../../src/config/train_kind.js";

test("the file may stand anywhere among the keys, which override it; two files are refused", (t) => {
  const folder = mkdtempSync(join(tmpdir(), "cli-config-"));
  t.after(() => rmSync(folder, { recursive: true, force: true }));
  const file = join(folder, "run.yaml");
  writeFileSync(file, "seed: 3\r\ntrain:\r\n  iters: 7\r\n");
  const read = (...args: string[]) => readConfig(trainKind, args, { isComplete: false }).config;
  for (const args of [
    [file, "train.iters=5"],
    ["train.iters=5", file],
  ]) {
    const { seed, train } = read(...args);
    assert.deepEqual([seed, train.iters], [3, 5]);
  }
  assert.throws(() => read(file, file), /expected one configuration file and key=value, got /);
  assert.throws(
    () => read(file, "train.iters", "5"),
    /got .*run\.yaml and train\.iters and 5.* key=value\.$/,
  );
  assert.throws(
    () => read(join(folder, "none.yaml")),
    /none\.yaml: expected a configuration file .*got neither/,
  );
});

test("a key that is written as an option, and a run where an option belongs, are told apart", () => {
  const unknown = (command: string, option: string) =>
    adviceOnRefusal(command, `error: unknown option '${option}'`);
  assert.match(unknown("train", "--seed") ?? "", /without dashes: seed=VALUE/);
  assert.match(unknown("train", "--train.iters=5") ?? "", /: train\.iters=5/);
  assert.match(unknown("pretrain", "--ar.nLayer=2") ?? "", /: ar\.nLayer=2/);
  assert.match(unknown("report", "--run") ?? "", /without an option/);
  assert.equal(unknown("train", "--sead"), null);
  assert.equal(unknown("sample", "--train.iters"), null);
  const many = "error: too many arguments for 'sample'. Expected 0 arguments but got 1.";
  assert.match(adviceOnRefusal("sample", many) ?? "", /--run DIR/);
  assert.equal(adviceOnRefusal("doctor", many), null);
});
