/** What a user is shown of a configuration. */
import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, relative } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { classifierKind } from "../../src/config/classifier.js";
import {
  changesText,
  changesThatMatter,
  configJsonSchema,
  configYaml,
  diffConfigs,
  explainConfig,
  explanationText,
  plainConfig,
} from "../../src/config/explain.js";
import type { ConfigKind } from "../../src/config/kind.js";
import { configurationPage } from "../../src/config/page.js";
import { pretrainKind } from "../../src/config/pretrain.js";
import { resolveConfig, type TrainConfig } from "../../src/config/resolve.js";
import { sweepKind } from "../../src/config/sweep.js";
import { tokenizerKind } from "../../src/config/tokenizer.js";
import { trainKind } from "../../src/config/train_kind.js";
import type { Tensor } from "../../src/torch/index.js";

const set = (...overrides: string[]): TrainConfig => resolveConfig({ overrides, isComplete: false }).config;

const kinds = [
  trainKind,
  pretrainKind,
  tokenizerKind,
  classifierKind,
  sweepKind,
] as unknown as ConfigKind<object>[];

test("every key of every command has a default, a range, what it is and when to change it", () => {
  for (const kind of kinds) {
    const all = explainConfig("", kind);
    assert.ok(all.length > 15);
    assert.equal(new Set(all.map(({ path }) => path)).size, all.length);
    for (const { path, help, when, expects } of all) {
      assert.match(help, /^[A-Z].+[.]$/, path);
      assert.match(when, /^[A-Za-z0-9].+[.]$/, path);
      assert.ok(expects.length > 0, path);
    }
  }
});

test("an explanation", () => {
  const [temperature] = explainConfig("rollout.temperature");
  assert.deepEqual(
    [temperature?.path, temperature?.default, temperature?.unit, temperature?.aliases, temperature?.isLive],
    ["rollout.temperature", 1, null, [], false],
  );
  assert.match(temperature?.expects ?? "", /^a number of at least 0\.0001/);
  assert.equal(explainConfig("rollout.images")[0]?.unit, "images");
  assert.deepEqual(explainConfig("rollout.numGenerations")[0]?.aliases, ["grpo.numGenerations"]);
  assert.equal(explainConfig("ar.cls")[0]?.isLive, true);
  assert.deepEqual(
    explainConfig("ema").map(({ path }) => path),
    ["ema.decay", "ema.warmup"],
  );
  assert.deepEqual(explainConfig("rollout.temp"), []);
  const pathsOf = (name: string): string[] => explainConfig(name).map(({ path }) => path);
  assert.deepEqual(pathsOf("rollout.num_generations"), ["rollout.numGenerations"]);
  assert.deepEqual(pathsOf("train.log_every"), ["log.every"]);
  assert.deepEqual(pathsOf("grpo.clip_range"), ["grpo.clipLow", "grpo.clipHigh"]);
  assert.deepEqual(pathsOf("rollout.context").length, 6);
  assert.deepEqual(pathsOf("toString"), []);
});

test("an explanation says what a change does to a resumed run", () => {
  const onResume = (path: string): string | undefined => explainConfig(path)[0]?.onResume;
  const cases: Record<string, string[]> = {
    free: ["run.dir", "data.workers", "log.every", "save.keep", "eval.patience", "limits.nonFinite"],
    forced: [
      "optimizer.lr",
      "optimizer.betas",
      "seed",
      "train.iters",
      "rollout.temperature",
      "kl.coef",
      "ema.decay",
    ],
    fixed: ["ar.nLayer", "ar.path", "ar.lora.rank", "ar.extra", "blockSize"],
  };
  for (const [expected, paths] of Object.entries(cases))
    for (const path of paths) assert.equal(onResume(path), expected, path);
  assert.equal(
    explainConfig("model.chMult", tokenizerKind as unknown as ConfigKind<object>)[0]?.onResume,
    "fixed",
  );
  // rlar sweep has no --force.
  const ofSweep = explainConfig("", sweepKind as unknown as ConfigKind<object>);
  const free = ofSweep.flatMap(({ path, onResume }) => (onResume === "fixed" ? [] : [[path, onResume]]));
  assert.deepEqual(free, [["dir", "free"]]);
});

test("explanations as text", () => {
  const keys = explainConfig("grpo.clipLow");
  const text = explanationText([...keys, ...explainConfig("tokenizer.model")]);
  assert.match(
    text,
    /^grpo\.clipLow = 0\.2\n {2}[A-Z].*\.\n {2}a number in \(0, 1\]\n {2}.*--force.*\n {2}also: grpo\.clipRange\n/,
  );
  assert.match(
    text,
    /\ntokenizer\.model = null\n.*\n.*encode and decodeCode, or null; from a program only\n.*\n {2}also: vqModel/,
  );
});

test("docs/configuration.md is what the schemas say", () => {
  const page = configurationPage(kinds);
  const file = fileURLToPath(new URL("../../../docs/configuration.md", import.meta.url));
  assert.equal(
    readFileSync(file, "utf8"),
    page,
    "npm run --silent rlar -- config docs > docs/configuration.md writes it anew",
  );
  for (const kind of kinds) {
    const section = page.split(/^## /m).find((text) => text.startsWith(`rlar ${kind.name}\n`)) ?? "";
    for (const { path } of explainConfig("", kind)) assert.ok(section.includes(`\`${path}\``), path);
  }
  for (const row of page.split("\n").filter((line) => line.startsWith("| ")))
    assert.equal(row.replaceAll("\\|", "").split("|").length, 7, row);
});

test("a configuration as YAML reads back as the same, with and without comments", () => {
  const config = set(
    "preset=vapi",
    "reward.lpips.path=vgg.pth",
    "data.source='images: # odd'",
    "data.label='12'",
    "ar.extra={rope: true, list: [1, 2]}",
    "rollout.guidance.interval=[0, 9]",
    "optimizer.lr=1e-7",
    "data.classNames=[cat, 'no', '1e3']",
  );
  for (const comments of [true, false]) {
    const again = resolveConfig({ text: configYaml(config, { comments }), isComplete: false }).config;
    assert.deepEqual(plainConfig(again), plainConfig(config));
  }
  const text = configYaml(config);
  assert.match(text, /^preset: vapi$/m);
  assert.match(text, /\n {2}# [A-Z].*\. .*an integer of at least 1; px\.\n {2}size: 256\n/);
  assert.match(text, /\n {4}interval: \[ 0, 9 \]\n/);
  assert.doesNotMatch(configYaml(config, { comments: false }), /#(?! odd)/);
});

test("YAML for a folder reads back as the same from there, wherever its paths lead", (t) => {
  const folder = mkdtempSync(join(tmpdir(), "rlar-yaml-"));
  t.after(() => rmSync(folder, { recursive: true }));
  const run = relative(process.cwd(), folder);
  const config = set(
    `run.dir=${run}`,
    "data.source=images/*.tar",
    "ar.path=/abs/ar.pt",
    `eval.perceptual=${run}/c.pt`,
    "reward.lpips.path=../vgg.pth",
    "data.label=cls",
  );
  const file = join(run, "config.yaml");
  writeFileSync(file, configYaml(config, { folder: run }));
  assert.match(readFileSync(file, "utf8"), /perceptual: c\.pt\n/);
  assert.deepEqual(plainConfig(resolveConfig({ file, isComplete: false }).config), plainConfig(config));
});

test("a program's objects become comments and names", () => {
  class Loader {
    *[Symbol.iterator]() {}
  }
  const { config } = resolveConfig({
    values: { dataloader: new Loader(), reward: { custom: { fn: (x: Tensor) => x } } },
    isComplete: false,
  });
  assert.equal(plainConfig(config).dataloader, "<Loader>");
  const { custom } = plainConfig(config).reward as { custom: Record<string, object> };
  assert.deepEqual(Object.keys(custom), ["custom"]);
  assert.deepEqual({ ...custom.custom }, { ...config.reward.custom.custom, fn: "<fn>" });
  const text = configYaml(config);
  assert.match(text, /# the program passed <Loader>\ndataloader: null\n/);
  const again = resolveConfig({ text, isComplete: false });
  assert.equal(again.config.dataloader, null);
  const passed = again.notes.filter((note) => /the program .* passed/.test(note));
  assert.deepEqual(
    passed.map((note) => note.split(":")[0]),
    ["dataloader", "reward.custom.custom.fn"],
    "whoever starts from the file is told what it is without",
  );
  assert.match(passed[0] as string, /<Loader>/);
  const own = { text, values: { dataloader: new Loader() }, isComplete: false };
  assert.equal(resolveConfig(own).notes.filter((note) => /passed <Loader>/.test(note)).length, 0);
});

test("the JSON Schema names every key that a file may have", () => {
  const schema = configJsonSchema() as {
    properties: Record<string, Record<string, unknown>>;
    additionalProperties: boolean;
  };
  assert.equal(schema.additionalProperties, false);
  const { rollout, seed, dataloader } = schema.properties;
  assert.equal(dataloader, undefined);
  const { description, ...range } = seed as { description: string };
  assert.deepEqual(range, { default: 0, type: "integer", minimum: 0, maximum: Number.MAX_SAFE_INTEGER });
  assert.match(description, /^[A-Z].*\. .*\.$/);
  assert.doesNotMatch(JSON.stringify(schema), /readOnly/);
  const { images } = (rollout?.properties ?? {}) as Record<string, { default: number; description: string }>;
  assert.equal(images?.default, 16);
  assert.match(images?.description as string, / Unit: images\.$/);
});

test("differences", () => {
  const before = plainConfig(set("seed=1", "ar.extra={a: 1, b: 2}", "optimizer.betas=[0.5, 0.5]"));
  const after = plainConfig(
    set("seed=2", "ar.extra={b: 3, c: 4}", "optimizer.betas=[0.5, 0.5]", "data.source=x y"),
  );
  const changes = diffConfigs(before, after);
  assert.deepEqual(changes, [
    { path: "seed", before: 1, after: 2 },
    { path: "data.source", before: null, after: "x y" },
    { path: "ar.extra.b", before: 2, after: 3 },
    { path: "ar.extra.c", before: undefined, after: 4 },
    { path: "ar.extra.a", before: 1, after: undefined },
  ]);
  assert.equal(
    changesText(changes),
    "seed: 1 -> 2\ndata.source: null -> x y\nar.extra.b: 2 -> 3\nar.extra.c: absent -> 4\nar.extra.a: 1 -> absent",
  );
  assert.deepEqual(diffConfigs(after, after), []);
});

test("what may change when a run is resumed", () => {
  const serious = (now: string[], then: string[] = []): string[] => {
    const after = set(...now);
    return changesThatMatter(diffConfigs(plainConfig(set(...then)), plainConfig(after)), after).map(
      ({ path }) => path,
    );
  };
  const free = [
    "run.dir=b",
    "run.ifExists=resume",
    "log.every=3",
    "save.keep=9",
    "eval.every=7",
    "data.source=moved",
    "data.workers=2",
  ];
  assert.deepEqual(serious(free), []);
  assert.deepEqual(serious(["rollout.temperature=0.9", "log.every=2"]), ["rollout.temperature"]);
  assert.deepEqual(serious(["update.microBatch=2", "train.threads=2", "tokenizer.path=x"]), [
    "tokenizer.path",
    "update.microBatch",
    "train.threads",
  ]);
  assert.deepEqual(serious(["tokenizer.path=a/../x"], [`tokenizer.path=${join(process.cwd(), "x")}`]), []);
  assert.deepEqual(serious(["train.iters=2000"]), ["train.iters"]); // the cosine would be another one
  const constant = ["optimizer.schedule=constant", "optimizer.warmup=0"];
  assert.deepEqual(serious(["train.iters=2000", ...constant], constant), []);
});
