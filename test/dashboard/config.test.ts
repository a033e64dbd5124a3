import assert from "node:assert/strict";
import { test } from "node:test";

import { rlarCommand } from "../../src/config/command.js";
import {
  changedKeys,
  commandSection,
  commandText,
  configNotes,
  configSection,
  kindOfRun,
  summaryOf,
} from "../../src/dashboard/config.js";
import { escapeText } from "../../src/dashboard/page.js";
import { type Run, readRun } from "../../src/dashboard/run.js";
import { newFolder, writeRun } from "./run_files.js";

const CONFIG = {
  seed: 3,
  algorithm: "grpo",
  data: { source: "my <images>" },
  rollout: { context: { type: "noisy_teacher_forced" } },
  optimizer: { lr: 0.5 },
};

const runOf = (t: Parameters<typeof newFolder>[0]): Run =>
  readRun(writeRun(newFolder(t), { metrics: [], config: CONFIG, env: { command: ["node", "a b.mjs"] } }));

test("the keys tell whose configuration it is, and which values are not the defaults", (t) => {
  const run = runOf(t);
  assert.equal(kindOfRun(run)?.name, "train");
  assert.equal(summaryOf(run), "GRPO · noisy teacher forced contexts · seed 3");
  assert.deepEqual(
    changedKeys(run)?.map(({ path, value }) => [path, value]),
    [
      ["seed", 3],
      ["data.source", "my <images>"],
      ["rollout.context.type", "noisy_teacher_forced"],
      ["optimizer.lr", 0.5],
    ],
  );
  assert.deepEqual(kindOfRun({ ...run, config: { ...run.config, other: 1 } }), null);
  assert.deepEqual(kindOfRun({ ...run, config: {} }), null);
  const { rollout: _, ...older } = run.config;
  assert.equal(kindOfRun({ ...run, config: older })?.name, "train");
});

test("values are escaped, changed ones come first", (t) => {
  const { markup } = configSection(runOf(t));
  assert.ok(!markup.includes("<images>"));
  assert.ok(markup.indexOf("my &lt;images&gt;") < markup.indexOf("<details>"));
  assert.match(markup, /<summary>All \d{3} keys<\/summary>/);
  const unknown = { ...runOf(t), config: { strange: { deep: [1, 2] } } };
  assert.match(configSection(unknown).markup, /<code>strange.deep<\/code>.*<code>\[1,2\]<\/code>/s);
});

test("what rlar says of such a configuration is said again", (t) => {
  const notes = configNotes({ ...runOf(t) });
  assert.ok(notes.some((note) => note.includes("rollout.context.noise")));
  assert.deepEqual(configNotes({ ...runOf(t), config: { seed: 1 } }), []);
});

test("command lines are quoted for a shell, and rlar is called as the command line prints it", () => {
  const train = rlarCommand(["train", "a=b c"]);
  assert.ok(train.endsWith(" train 'a=b c'"));
  assert.equal(commandText(["/usr/bin/node", "/x/scripts/rlar.mjs", "train", "a=b c"]), train);
  assert.equal(commandText(["/usr/bin/node", "/x/node_modules/.bin/rlar", "train", "a=b c"]), train);
  assert.equal(commandText(["node", "/x/scripts/run.mjs", "rlar", "train", "a=b c"]), train);
  assert.equal(commandText(["node", "/x/mine.mjs", "1"]), "node /x/mine.mjs 1");
});

test("how to do it again; not from a file where a program passed objects", (t) => {
  const run = { ...runOf(t), folder: "runs/a b" };
  const { markup } = commandSection(run);
  assert.match(markup, /<pre>node &#39;a b.mjs&#39;<\/pre>/);
  const resume = rlarCommand(["train", "runs/a b/config.yaml", "run.dir=runs/a b", "run.ifExists=resume"]);
  assert.ok(markup.includes(`<pre>${escapeText(resume)}</pre>`), markup);
  const passed = commandSection({ ...run, config: { ...run.config, dataloader: "<Loader>" } }).markup;
  assert.ok(!passed.includes("resume"));
  assert.match(passed, /A program passed dataloader, which no file holds/);
});
