/** Captions or classes alone: what is read, what runs on them, and what needs images. */
import assert from "node:assert/strict";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { type ConfigSources, resolveConfig } from "../../src/config/resolve.js";
import type { RewardContext, RewardFunction } from "../../src/config/train.js";
import { openTexts } from "../../src/data/index.js";
import { memory } from "../../src/torch/index.js";
import { npyOf } from "../support/data_files.js";
import { checkpointsOf, metricsOf, quietRun, Shown, tinyFolder, tinyRun } from "../support/train_run.js";
import "../support/settle.js";

const brightness: RewardFunction = (_, samples) => samples.mean([1, 2, 3]);

/** A run on texts, whose reward is a function. */
const onTexts = (data: object, fn: RewardFunction, more: object = {}): object => ({
  data: { source: null, evalPart: 0.25, ...data },
  rollout: { context: { type: "free" } },
  reward: { l2: { weight: 0 }, custom: { mine: { fn } } },
  update: { auxCe: 0 },
  eval: { every: 2, images: 4, numGenerations: 2 },
  log: { imagesEvery: 2 },
  train: { iters: 4 },
  ...more,
});

test("a run on class names, class ids, captions, and classes with captions", async (t) => {
  const folder = await tinyFolder(t);
  const at = (name: string, text: string): string => {
    writeFileSync(join(folder, name), text);
    return join(folder, name);
  };
  const lines = Array.from({ length: 20 }, (_, i) => ({
    class: ["a", "b", "c"][i % 3],
    caption: `picture ${i}`,
  }));
  const jsonl = at("both.jsonl", lines.map((line) => JSON.stringify(line)).join("\n"));
  const captions = at("captions.txt", lines.map(({ caption }) => caption).join("\r\n\n"));
  const cases: readonly [string, object, object, (context: RewardContext, i: number) => void][] = [
    [
      "names",
      { classNames: ["a", "b", "c"] },
      {},
      ({ classIds, classNames, captions: none }, i) => {
        assert.equal(classNames?.[i], ["a", "b", "c"][classIds?.[i] as number]);
        assert.equal(none, null);
      },
    ],
    [
      "ids",
      { source: at("ids.txt", "0\n2\n1\n") },
      {},
      ({ classIds, classNames }, i) => {
        assert.equal(classNames?.[i], `${classIds?.[i]}`);
      },
    ],
    [
      "some",
      { source: at("some.txt", "c\nb\n"), classNames: ["a", "b", "c"] },
      {},
      ({ classIds }, i) => {
        assert.ok([1, 2].includes(classIds?.[i] as number));
      },
    ],
    [
      "both",
      { source: jsonl },
      {},
      ({ classNames, captions: texts, imageIds }, i) => {
        const { class: name, caption } = lines[Number(imageIds[i]?.split("#")[1]) - 1] as (typeof lines)[0];
        assert.deepEqual([classNames?.[i], texts?.[i]], [name, caption]);
      },
    ],
    [
      "captions",
      { source: captions },
      { start: "empty" },
      ({ captions: texts }, i) => {
        assert.match(texts?.[i] as string, /^picture \d+$/);
      },
    ],
  ];
  for (const [name, data, rollout, check] of cases) {
    const fn: RewardFunction = (images, samples, context) => {
      const { trueCodes, imageIds, numGenerations, codes } = context;
      assert.equal(trueCodes, null);
      assert.deepEqual(images.shape, [0, 3, 16, 16]);
      assert.equal(samples.size(0), imageIds.length * numGenerations);
      assert.deepEqual(codes.shape, [samples.size(0), 16]);
      for (const i of imageIds.keys()) check(context, i);
      return brightness(images, samples, context);
    };
    const dir = join(folder, `run ${name}`);
    const more = { run: { dir }, rollout: { context: { type: "free" }, ...rollout } };
    const screen = new Shown();
    await quietRun(tinyRun(folder, onTexts(data, fn, more)), { screen });
    assert.match(screen.text, /\d+ (classes|captions) to sample for, without images/, name);
    const records = metricsOf(dir);
    assert.equal(records.length, 5, name);
    for (const record of records.slice(1)) {
      assert.equal(record["reward/mean"], record["reward/mine/mean"]);
      assert.ok(Number.isFinite(record["reward/mean"]) && (record["optim/grad_norm"] as number) > 0, name);
    }
    const [first] = records;
    const held = Object.keys(first ?? {}).filter((metric) => metric.startsWith("eval/"));
    assert.ok(held.includes("eval/mine/mean") && held.includes("eval/diversity/mean"));
    assert.ok(!held.some((metric) => /psnr|nats/.test(metric)), held.join());
    assert.deepEqual(
      Object.keys(first ?? {}).filter((metric) => /ceiling|gap/.test(metric)),
      [],
    );
    // Pages of the evaluations before step 1 and after 2 and 4, and of the steps 2 and 4.
    assert.equal(readdirSync(join(dir, "samples")).length, 5);
  }
});

test("a run on captions that is resumed ends as the one left alone, and nothing is left behind", async (t) => {
  const folder = await tinyFolder(t);
  const source = join(folder, "prompts.jsonl");
  const line = (i: number): string => JSON.stringify({ class: i % 3, caption: `picture ${i}`, id: `p${i}` });
  writeFileSync(source, Array.from({ length: 13 }, (_, i) => line(i)).join("\n"));
  const run = async (name: string, iters: number, fn: RewardFunction = brightness) => {
    const where = { dir: join(folder, name), ifExists: "resume" };
    const more = {
      run: where,
      train: { iters },
      optimizer: { schedule: "constant", warmup: 0 },
      eval: { every: 0 },
    };
    return await quietRun(tinyRun(folder, onTexts({ source, evalPart: 0 }, fn, more)));
  };
  await run("whole", 6);
  const before = memory().tensors;
  await run("parts", 2);
  await run("parts", 6);
  assert.equal(memory().tensors, before);
  assert.deepEqual(metricsOf(join(folder, "parts")), metricsOf(join(folder, "whole")));
  const weights = (name: string): Buffer =>
    readFileSync(join(folder, name, "checkpoints", "step_000006", "policy.safetensors"));
  assert.ok(weights("parts").equals(weights("whole")));
  const failing: RewardFunction = () => assert.fail("no ink");
  await assert.rejects(run("failing", 2, failing), /reward\.custom\.mine: .*no ink/);
  const dump = join(folder, "failing", "dumps", "step_000001_mine");
  const { images } = JSON.parse(readFileSync(join(dump, "batch.json"), "utf8"));
  assert.match(images[0].caption, /^picture/);
  assert.deepEqual(checkpointsOf(join(folder, "failing")), []);
  writeFileSync(source, Array.from({ length: 13 }, (_, i) => line(i + 1)).join("\n"));
  await assert.rejects(run("parts", 8), /resume: expected the images/);
});

test("what compares with images, reads them or continues them is refused without", () => {
  const read = (...overrides: string[]) => {
    const rest = ["tokenizer.path=t", "ar.path=p", "reward.custom.mine.module=m.mjs", "eval.every=0"];
    return resolveConfig({ overrides: [...rest, ...overrides] } satisfies ConfigSources).config;
  };
  const fitting = ["data.source=a.txt", "reward.l2.weight=0", "update.auxCe=0"];
  read(...fitting);
  read("data.classNames=[a, b]", ...fitting.slice(1));
  const refused: readonly [string[], RegExp][] = [
    [["data.source=a.txt", "update.auxCe=0"], /reward\.l2\.weight: expected 0 without images, got 1/],
    [[...fitting, "reward.ssim.weight=1"], /reward\.ssim\.weight: expected 0 without images/],
    [["data.source=a.jsonl", "reward.l2.weight=0"], /update\.auxCe: expected 0 without images/],
    [[...fitting, "update.codeFrequency=0.3"], /update\.codeFrequency: expected 0 without images, got 0\.3/],
    [[...fitting, "rollout.context=prefix"], /rollout\.context(\.type)?: expected free without images/],
    [[...fitting, "eval.every=5", "eval.perceptual=c.pt"], /eval\.perceptual: expected null without images/],
    [[...fitting, "eval.every=5", "eval.best=eval/psnr/mean"], /eval\.best: /],
  ];
  for (const [overrides, message] of refused)
    assert.throws(() => read(...overrides), { message }, overrides.join());
  // A preset gives way.
  const { rollout, update, reward } = read("preset=completion", "data.source=a.txt");
  assert.deepEqual([rollout.context.type, update.auxCe, reward.l2.weight], ["free", 0, 0]);
});

test("lines that cannot be used are named", async (t) => {
  const folder = await tinyFolder(t);
  const file = (text: string | Buffer, name = "texts.jsonl"): string => {
    writeFileSync(join(folder, name), text);
    return join(folder, name);
  };
  const refused: readonly [string, RegExp][] = [
    ["", /texts\.jsonl: .*empty/],
    ['{"caption": "a"}\n{"caption": 3}', /line 2: caption: .*text/],
    ['{"caption": "a"}\n\n{"captoin": "b"}', /line 3: .*captoin/],
    ['{"caption": "a"}\n{"class": "b"}', /line 1: .*class.*none/],
    ['{"caption": "a", "class": "x"}\n{"class": "b"}', /line 2: .*caption.*none/],
    ['{"class": {}}', /line 1: /],
    ['{"id": "a"}', /line 1: .*neither/],
    ["[1]", /line 1: expected a JSON object/],
    ["caption", /line 1: .*not JSON/],
    ['{"class": -1}', /line 1: .*-1/],
    ['{"caption": "a"}\n{"caption": " "}', /line 2: caption: .*empty caption/],
    [`{"caption": "${"x".repeat(2 ** 16 + 1)}"}`, /line 1: caption: expected at most 65536 bytes/],
  ];
  for (const [text, message] of refused)
    assert.throws(() => openTexts(file(text)), { name: "RangeError", message }, text);
  assert.throws(() => openTexts(file(Buffer.from([0xff, 0xfe]))), /UTF-8/);
  assert.throws(() => openTexts(join(folder, "absent.txt")), /no such file/);
  assert.throws(
    () => openTexts(file("x".repeat(2 ** 16 + 1), "long.txt")),
    /long\.txt, line 1: .*65536 bytes/,
  );
  assert.throws(
    () => openTexts(file("a", "a.txt"), { captions: "prompt" }),
    /a \.jsonl file.*data\.captions/,
  );
  const both = '{"prompt": "a fox", "caption": "x", "class": 0}';
  assert.throws(
    () => openTexts(file(both), { captions: "prompt" }),
    /line 1: .*class, prompt, .*got caption/,
  );
  const names = { classNames: ["a", "b"] };
  assert.throws(() => openTexts(file("a\nb\nc\n", "names.txt"), names), /names\.txt, line 3: .*c/);
  const labelled = openTexts(file('{"kind": "b", "id": "x"}'), { label: "kind", ...names });
  assert.deepEqual([labelled.idOf(0), labelled.classOf(0)], ["x", 1]);
  file(npyOf(Float32Array.of(1, 2), [1, 1, 2]), "one.npy");
  const named = openTexts(file('{"prompt": "a fox"}'), { captions: "prompt" });
  assert.deepEqual([named.hasCaptions, (await named.locate(0, 0)).caption], [true, "a fox"]);
  const unread = openTexts(file('{"caption": "a fox", "class": 0}'), { captions: null });
  assert.deepEqual([unread.hasCaptions, (await unread.locate(0, 0)).caption], [undefined, undefined]);
  const { features } = await openTexts(file('{"caption": "a", "features": "one.npy"}')).locate(0, 0);
  assert.deepEqual(features, { path: join(folder, "one.npy") });
  // A policy that starts from classes needs some.
  const captions = onTexts({ source: file("a fox\na cat\n", "captions.txt"), evalPart: 0 }, brightness, {
    eval: { every: 0 },
  });
  await assert.rejects(
    quietRun(tinyRun(folder, captions)),
    /data\.source: expected classes.*data\.classNames/,
  );
});
