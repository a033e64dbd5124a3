/** What an evaluation takes from a run's folder or a configuration: the same images, split as in training. */
import assert from "node:assert/strict";
import { cpSync, mkdirSync, rmSync, writeFileSync } from "node:fs";
import { homedir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { ConfigError, resolveConfig } from "../../src/config/resolve.js";
import { openInputs } from "../../src/evaluation/inputs.js";
import { evaluateModels } from "../../src/evaluation/judge_models.js";
import { optionsOfConfig, optionsOfRun } from "../../src/evaluation/options.js";
import { openSources } from "../../src/run/images.js";
import { readLines } from "../../src/run/log.js";
import { quietRun, tinyFolder, tinyRun } from "../support/train_run.js";

test("a run's folder gives its images, split as they were, and its policies before and after", async (t) => {
  const folder = await tinyFolder(t, 24);
  const values = tinyRun(folder, {
    seed: 11,
    eval: { every: 2, images: 4 },
    ema: { decay: 0.5 },
    data: { evalPart: 0.3 },
    log: { imagesEvery: 1 },
  });
  await quietRun(values);
  const run = join(folder, "run");
  const first = optionsOfRun(run);
  // It began with no file, so that there is nothing before it.
  assert.deepEqual(first.policy, { path: join(run, "checkpoints", "step_000002", "ema.safetensors") });
  assert.equal(first.against, undefined);
  assert.equal(first.judged?.which, "last");
  assert.match(first.judged?.text as string, /step_000002.*the last/);
  assert.deepEqual(first.rewardNetworks, []);

  const { config } = resolveConfig({ values });
  const { train, heldOut } = await openSources(config);
  const found = await evaluateModels({
    ...first,
    tokenizer: first.tokenizer as string,
    data: first.data ?? {},
    samples: 4,
    resamples: 2,
  });
  assert.equal(found.data.train.fingerprint, train.fingerprint);
  assert.equal(found.data.heldOut?.fingerprint, heldOut?.fingerprint);
  assert.ok(train.fingerprint !== heldOut?.fingerprint);
  assert.deepEqual(
    found.files.map(({ role }) => role),
    ["tokenizer", "A"],
  );
  assert.match(found.files[0]?.sha256 ?? "", /^[0-9a-f]{64}$/);

  // A second run begins where the first ended.
  const start = join(folder, "start.safetensors");
  cpSync(join(run, "checkpoints", "step_000002", "policy.safetensors"), start);
  const second = join(folder, "second");
  const next = {
    run: { dir: second },
    ar: { type: null, nLayer: null, nHead: null, nEmbd: null, path: start, extra: {} },
  };
  await quietRun(tinyRun(folder, next));
  const pair = optionsOfRun(second);
  assert.deepEqual(pair.policy, { path: start });
  assert.deepEqual(pair.against, { path: join(second, "checkpoints", "step_000002", "policy.safetensors") });
  // The best, where it was chosen on four of the held-out images.
  const chosen = optionsOfRun(run, "best");
  assert.equal(chosen.chosenOn, 4);
  assert.match(chosen.judged?.text as string, /the best by eval\/reward\/mean/);
  // The run's page of an evaluation names those four; the best is judged by all the others.
  const page = readLines(join(run, "samples.jsonl")).records.find(({ record }) => record.name === "eval");
  const used = page?.record.ids as string[];
  using inputs = await openInputs({
    ...chosen,
    tokenizer: chosen.tokenizer as string,
    data: chosen.data ?? {},
  });
  const judgedBy = Array.from({ length: inputs.heldOut?.length ?? 0 }, (_, i) => inputs.heldOut?.idOf(i));
  const all = Array.from({ length: heldOut?.length ?? 0 }, (_, i) => heldOut?.idOf(i));
  assert.equal(used.length, 4);
  assert.deepEqual([...used, ...judgedBy].sort(), all.sort());
  // A run that never evaluated has no best.
  assert.throws(
    () => optionsOfRun(second, "best"),
    /expected a run with a best checkpoint.*--checkpoint last/,
  );
  // That one held nothing out: all its images were trained on.
  assert.equal((pair.data as { evalPart?: number }).evalPart, 0);
});

test("a configuration gives its images, and both spellings of keys are known", async (t) => {
  const folder = await tinyFolder(t, 3);
  const file = join(folder, "c.yaml");
  writeFileSync(
    file,
    'seed: 4\ndata: {source: x, evalSource: ~/y, eval_part: 0.2, group: "^[^_]+"}\ntokenizer: {path: t.safetensors, weights: raw}\n' +
      "ar: {path: p.safetensors, n_head: 4}\nrollout: {start: empty}\n" +
      "reward: {l2: {weight: 1}, perceptual: {weight: 3, path: c.safetensors}, lpips: {weight: 0, path: v.pth}, " +
      "toklip_image: {weight: 1, path: k.pt}}\n",
  );
  assert.deepEqual(optionsOfConfig(file), {
    // Relative paths of a file are relative to it.
    data: { source: join(folder, "x"), evalSource: join(homedir(), "y"), eval_part: 0.2, group: "^[^_]+" },
    start: "empty",
    tokenizer: { path: join(folder, "t.safetensors"), weights: "raw" },
    policy: { path: join(folder, "p.safetensors"), nHead: 4 },
    rewardNetworks: [join(folder, "c.safetensors"), join(folder, "k.pt")],
  });
});

test("what is no run is refused", async (t) => {
  const folder = await tinyFolder(t, 3);
  const refused = (fn: () => unknown, message: string | RegExp): void => {
    assert.throws(fn, (error: Error) => {
      assert.ok(error instanceof ConfigError);
      if (typeof message === "string") assert.equal(error.message, message);
      else assert.match(error.message, message);
      return true;
    });
  };
  refused(
    () => optionsOfRun(join(folder, "images")),
    `--run: expected the folder of a run, got ${join(folder, "images")}, which has no config.yaml.`,
  );
  const young = join(folder, "young");
  mkdirSync(young);
  writeFileSync(join(young, "config.yaml"), "seed: 1\n");
  refused(
    () => optionsOfRun(young),
    /expected a run with a checkpoint, got .+young, which has none yet\. --config .+/,
  );
  writeFileSync(join(young, "config.yaml"), "- 1\n");
  refused(() => optionsOfRun(young), /config\.yaml: expected keys and values, got a list\.$/);
  rmSync(join(young, "config.yaml"));
  refused(() => optionsOfConfig(join(young, "config.yaml")), /expected a configuration in YAML, got ENOENT/);
});
