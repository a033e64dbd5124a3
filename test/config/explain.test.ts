/** What a user is shown of a configuration. */
import assert from "node:assert/strict";
import { test } from "node:test";
import {
  changesText,
  changesThatMatter,
  configJsonSchema,
  configYaml,
  diffConfigs,
  explainConfig,
  explanationMarkdown,
  explanationText,
  plainConfig,
} from "../../src/config/explain.js";
import { resolveConfig, type TrainConfig } from "../../src/config/resolve.js";

const set = (...overrides: string[]): TrainConfig => resolveConfig({ overrides, isComplete: false }).config;

test("every key has a default, a range, what it is and when to change it", () => {
  const all = explainConfig();
  assert.ok(all.length > 140);
  assert.equal(new Set(all.map(({ path }) => path)).size, all.length);
  for (const { path, help, when, expects } of all) {
    assert.match(help, /^[^A-Z].*[^.]$|^(LPIPS|B|G)\b.*[^.]$/, `${path}: ${help}`);
    assert.match(when, /^[A-Za-z0-9].*\.$/, `${path}: ${when}`);
    assert.ok(expects.length > 0, path);
  }
});

test("an explanation", () => {
  assert.deepEqual(explainConfig("rollout.temperature"), [
    {
      path: "rollout.temperature",
      expects: "a number above 0",
      default: 1,
      unit: null,
      help: "logits are divided by it, in sampling and scoring alike",
      when: "Leave it at 1 unless the policy will always be sampled at another.",
      aliases: [],
      isLive: false,
    },
  ]);
  assert.deepEqual(explainConfig("rollout.numGenerations")[0]?.aliases, ["grpo.numGenerations"]);
  assert.deepEqual(explainConfig("ar.cls")[0]?.isLive, true);
  assert.deepEqual(
    explainConfig("ema").map(({ path }) => path),
    ["ema.decay", "ema.warmup"],
  );
  assert.deepEqual(explainConfig("rollout.temp"), []);
});

test("explanations as text and as a table", () => {
  const keys = explainConfig("grpo.clipLow");
  assert.equal(
    explanationText([...keys, ...explainConfig("tokenizer.model")]),
    "grpo.clipLow = 0.2\n" +
      "  The ratio may fall to 1 - this. Lower it when the policy moves too far in one rollout; without effect at one step a " +
      "rollout.\n" +
      "  a number in (0, 1]\n" +
      "  also: grpo.clipRange\n" +
      "tokenizer.model = null\n" +
      "  A loaded tokenizer, in place of path. Pass one from a program.\n" +
      "  a tokenizer with encode and decodeCode, or null; from a program only\n" +
      "  also: vqModel\n",
  );
  assert.equal(
    explanationMarkdown(explainConfig("grpo.advantageClip")),
    "| key | default | range | what it is, and when to change it |\n| --- | --- | --- | --- |\n" +
      "| `grpo.advantageClip` | `5` | a number above 0, or null | Largest \\|advantage\\|; null is no limit. Lower it when a " +
      "few samples dominate the gradient. |\n",
  );
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
  assert.match(text, /\n {2}# side of the square images \(an integer of at least 1; px\)\n {2}size: 256\n/);
  assert.match(text, /\n {4}interval: \[ 0, 9 \]\n/);
  assert.doesNotMatch(configYaml(config, { comments: false }), /#(?! odd)/);
});

test("a program's objects become comments and names", () => {
  class Loader {
    *[Symbol.iterator]() {}
  }
  const { config } = resolveConfig({
    values: { dataloader: new Loader(), reward: { custom: { fn: (x: never) => x } } },
    isComplete: false,
  });
  assert.equal(plainConfig(config).dataloader, "<Loader>");
  assert.deepEqual((plainConfig(config).reward as Record<string, unknown>).custom, { weight: 1, fn: "<fn>" });
  const text = configYaml(config);
  assert.match(text, /# the program passed <Loader>\ndataloader: null\n/);
  assert.equal(resolveConfig({ text, isComplete: false }).config.dataloader, null);
});

test("the JSON Schema names every key that a file may have", () => {
  const schema = configJsonSchema() as {
    properties: Record<string, Record<string, unknown>>;
    additionalProperties: boolean;
  };
  assert.equal(schema.additionalProperties, false);
  const { rollout, seed, dataloader } = schema.properties;
  assert.equal(dataloader, undefined);
  assert.deepEqual(seed, {
    default: 0,
    type: "integer",
    minimum: 0,
    maximum: Number.MAX_SAFE_INTEGER,
    description: "Decides every random number of the run. Run several before believing a small difference.",
  });
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
  assert.deepEqual(serious(["train.iters=2000"]), ["train.iters"]); // the cosine would be another one
  const constant = ["optimizer.schedule=constant", "optimizer.warmup=0"];
  assert.deepEqual(serious(["train.iters=2000", ...constant], constant), []);
});
