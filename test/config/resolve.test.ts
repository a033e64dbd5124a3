/** Reading configurations: precedence, spellings, and what each message names. */
import assert from "node:assert/strict";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { homedir, tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";

import {
  ConfigError,
  type ConfigSources,
  resolveConfig,
  type TrainConfig,
  type TrainConfigInput,
} from "../../src/config/resolve.js";
import type { GPT } from "../../src/policies/index.js";
import type { ImageTokenizer } from "../../src/tokenizers/index.js";
import type { Tensor } from "../../src/torch/index.js";

const folder = mkdtempSync(join(tmpdir(), "rlar-config-"));
after(() => rmSync(folder, { recursive: true }));

/** What a configuration needs to be complete. */
const PARTS = ["data.source=images", "tokenizer.path=vq.pt", "ar.path=ar.pt"];

const resolved = (sources: ConfigSources): TrainConfig =>
  resolveConfig({ isComplete: false, ...sources }).config;
const set = (...overrides: string[]): TrainConfig => resolved({ overrides });

/** Every problem of sources that are refused. */
function problems(sources: ConfigSources<object>): readonly string[] {
  try {
    resolveConfig({ isComplete: false, ...sources } as ConfigSources);
  } catch (error) {
    assert.ok(error instanceof ConfigError, String(error));
    return error.problems;
  }
  assert.fail("nothing was refused");
}

const refused = (...overrides: string[]): readonly string[] => problems({ overrides });

/** What a problem must name: the key as it was written, the value, and more, such as the remedy. */
type Named = readonly [key: string, got: string, ...more: (string | RegExp)[]];

/** Check that there is one problem for each of `expected`, in any order, and none besides. */
function assertNamed(found: readonly string[], ...expected: Named[]): void {
  assert.equal(found.length, expected.length, found.join("\n"));
  for (const [key, got, ...more] of expected) {
    const problem = found.find((text) => text.includes(`${key}: expected `) && text.includes(`, got ${got}`));
    assert.ok(problem !== undefined, `${key}, ${got} in:\n${found.join("\n")}`);
    for (const part of more)
      assert.ok(typeof part === "string" ? problem.includes(part) : part.test(problem), problem);
  }
}

/** The same for values of a command line that are refused. */
const assertRefused = (overrides: string[], ...expected: Named[]): void =>
  assertNamed(refused(...overrides), ...expected);

test("the defaults", () => {
  const config = resolved({});
  assert.equal(config.preset, null);
  assert.equal(config.algorithm, "grpo");
  assert.equal(config.update.auxCe, 0.1);
  assert.equal(config.rollout.numGenerations, 8);
  assert.deepEqual([config.grpo.clipLow, config.grpo.clipHigh, config.grpo.advantageClip], [0.2, 0.28, 5]);
  assert.deepEqual([config.ppo.epochs, config.ppo.targetKl, config.ppo.lambda], [4, 0.02, 0.95]);
  assert.deepEqual(config.optimizer.betas, [0.9, 0.95]);
  assert.deepEqual(config.reward.l2, { weight: 1 });
  assert.deepEqual(config.ar.extra, {});
});

test("a configuration is frozen, a program's own objects are not", () => {
  const loader = { *[Symbol.iterator]() {}, items: [1] };
  const config = resolved({ values: { dataloader: loader, optimizer: { betas: [0.5, 0.5] } } });
  assert.equal(config.dataloader, loader);
  assert.ok(
    Object.isFrozen(config) &&
      Object.isFrozen(config.rollout.context) &&
      Object.isFrozen(config.optimizer.betas),
  );
  assert.ok(!Object.isFrozen(loader) && !Object.isFrozen(loader.items));
});

test("the command line wins over the program, that over the file, that over the preset, that over the defaults", () => {
  const file = join(folder, "precedence.yaml");
  writeFileSync(file, "preset: vapi\noptimizer:\n  lr: 0.3\n  eps: 0.3\nseed: 3\ntrain: {iters: 3}\n");
  const values = { optimizer: { lr: 0.4 }, train: { iters: 4 } };
  const config = resolved({ file, values, overrides: ["train.iters=5", "reward.lpips.path=vgg.pth"] });
  assert.equal(config.train.iters, 5);
  assert.equal(config.optimizer.lr, 0.4);
  assert.equal(config.optimizer.eps, 0.3);
  assert.deepEqual(config.optimizer.betas, [0.9, 0.999]); // vapi's
  assert.equal(config.optimizer.finalLr, 0.1); // the default
  assert.equal(config.preset, "vapi");
  assert.equal(resolved({ file, overrides: ["preset=completion"] }).update.auxCe, 0.3);
  assert.equal(resolved({ file, overrides: ["preset=null"] }).rollout.images, 16);
  assert.equal(resolved({ preset: "completion" }).preset, "completion");
});

test("values of a command line are YAML: numbers, lists, null, text, and keys with values", () => {
  const config = set(
    "optimizer.lr=2e-4",
    "optimizer.betas=[0.8, 0.9]",
    "grpo.advantageClip=null",
    "data.source=a=b c",
    "data.flip=true",
    "rollout={temperature: 0.5, context: {type: prefix, length: 3}}",
    "ar.extra.rope=true",
    'data.label="12"',
  );
  assert.equal(config.optimizer.lr, 2e-4);
  assert.deepEqual(config.optimizer.betas, [0.8, 0.9]);
  assert.equal(config.grpo.advantageClip, null);
  assert.equal(config.data.source, "a=b c");
  assert.equal(config.data.flip, true);
  assert.equal(config.rollout.temperature, 0.5);
  assert.deepEqual(config.rollout.context, {
    type: "prefix",
    length: 3,
    shortest: null,
    free: 0,
    noise: 0.5,
    ramp: 0,
  });
  assert.deepEqual(config.ar.extra, { rope: true });
  assert.equal(config.data.label, "12");
});

test("snake_case and kebab-case are taken everywhere", () => {
  const text =
    "rollout:\n  num_generations: 2\n  guidance: {scale: 2}\nreward:\n  ms_ssim: {weight: 0.5}\nblock-size: 64\n";
  const config = resolved({ text, overrides: ["update.micro_batch=4", "grpo.clip_high=0.5"] });
  assert.equal(config.rollout.numGenerations, 2);
  assert.equal(config.reward.msSsim.weight, 0.5);
  assert.equal(config.blockSize, 64);
  assert.equal(config.update.microBatch, 4);
  assert.equal(config.grpo.clipHigh, 0.5);
});

test("the configuration of the original description works as it is", () => {
  const MyLlamaGen = class {} as unknown as typeof GPT;
  const tokenizer = { encode() {}, decodeCode() {} } as unknown as ImageTokenizer;
  const loader: Tensor[] = [];
  const cfg: TrainConfigInput = {
    vq_model: tokenizer,
    ar: {
      type: "llammagen",
      cls: MyLlamaGen,
      n_layer: 24,
      n_head: 16,
      n_embd: 1024,
      lr: 2e-4,
      extra: { rope: true },
    },
    block_size: 1024,
    dataloader: loader,
    rollout: { max_len: 1024, temperature: 1.0 },
    reward: { type: "l2", normalize: true },
    grpo: { enabled: true, num_generations: 4, clip_range: 0.2 },
    train: { iters: 10000, device: "cuda", log_every: 50, save_every: 1000, ckpt_path: "./grpo.pt" },
  };
  const { config } = resolveConfig({ values: cfg });
  assert.equal(config.tokenizer.model, tokenizer);
  assert.equal(config.dataloader, loader);
  assert.equal(config.ar.cls, MyLlamaGen);
  const { type, nLayer, nHead, nEmbd, extra } = config.ar;
  assert.deepEqual(
    { type, nLayer, nHead, nEmbd, extra },
    { type: "llamagen", nLayer: 24, nHead: 16, nEmbd: 1024, extra: { rope: true } },
  );
  assert.equal(config.optimizer.lr, 2e-4);
  assert.deepEqual([config.blockSize, config.rollout.maxLen, config.rollout.temperature], [1024, 1024, 1]);
  assert.equal(config.reward.normalize, "batch");
  assert.equal(config.reward.l2.weight, 1);
  assert.equal(config.algorithm, "grpo");
  assert.deepEqual([config.rollout.numGenerations, config.grpo.clipLow, config.grpo.clipHigh], [4, 0.2, 0.2]);
  assert.deepEqual([config.train.iters, config.train.device, config.log.every], [10000, "cuda", 50]);
  assert.deepEqual([config.save.every, config.save.ckptPath], [1000, "./grpo.pt"]);
  assert.equal(config.rollout.context.type, "free");
});

test("grpo.enabled is a key of the original description: what that does not have is off, unless it is set", () => {
  const { config, notes } = resolveConfig({ values: { grpo: { enabled: true } }, isComplete: false });
  const own = ({ update, grpo, optimizer }: TrainConfig): unknown[] => [
    update.auxCe,
    grpo.advantageClip,
    grpo.clipLow,
    grpo.clipHigh,
    optimizer.schedule,
    optimizer.warmup,
  ];
  assert.deepEqual(own(config), [0, null, 0.2, 0.2, "constant", 0]);
  const said = notes.find((note) => note.includes("grpo.enabled")) ?? "";
  for (const part of [
    "update.auxCe 0",
    "optimizer.schedule constant",
    "grpo.advantageClip null",
    "algorithm",
  ])
    assert.ok(said.includes(part), said);
  // What is set anywhere counts, before it or after; a preset as well.
  const text = "update: {auxCe: 0.3}\n";
  const mixed = resolveConfig({
    text,
    overrides: ["grpo.enabled=true", "optimizer.warmup=0.1"],
    isComplete: false,
  });
  assert.deepEqual(own(mixed.config), [0.3, null, 0.2, 0.2, "constant", 0.1]);
  assert.doesNotMatch(mixed.notes.join(), /auxCe 0[,.]/);
  const { update } = resolveConfig({
    preset: "completion",
    overrides: ["grpo.enabled=true"],
    isComplete: false,
  }).config;
  assert.equal(update.auxCe, 0.3);
  assert.deepEqual(own(set("algorithm=grpo")), [0.1, 5, 0.2, 0.28, "cosine", 0.03]);
});

test("other names", () => {
  assert.equal(set("grpo.enabled=false").algorithm, "reinforce");
  assert.equal(set("rollout.context=teacher_forced").rollout.context.type, "teacher_forced");
  assert.equal(set("rollout.guidance=3").rollout.guidance.scale, 3);
  const { reward } = resolved({ preset: "vapi", overrides: ["reward.type=ssim"] });
  assert.deepEqual([reward.ssim.weight, reward.l2.weight, reward.lpips.weight], [1, 0, 0]);
  const mixed = set("reward.psnr.weight=2", "reward.type=l1", "reward.ssim.weight=3").reward;
  assert.deepEqual([mixed.l1.weight, mixed.l2.weight, mixed.psnr.weight, mixed.ssim.weight], [1, 0, 2, 3]);
  assert.deepEqual(set("ar.class_num=10", "ar.extra={a: 1}").ar.extra, { a: 1, classNum: 10 });
  assert.equal(set("precision.policy=bf16").precision.policy, "bfloat16");
  const Tokenizer = class {
    encode() {}
    decodeCode() {}
  } as unknown as new () => ImageTokenizer;
  const tokenizer = new Tokenizer();
  assert.equal(resolved({ values: { tokenizer } }).tokenizer.model, tokenizer);
});

test("an unknown key has its place and the nearest name", () => {
  const cases: [string, string, string | RegExp][] = [
    ["train.iter=3", "train.iter", '"train.iters"'],
    ["rolout.temprature=1", "rolout.temprature", '"rollout.temprature"'],
    ["reward.lpip.weight=1", "reward.lpip.weight", '"reward.lpips.weight"'],
    ["temperature=1", "temperature", '"rollout.temperature"'],
    ["rollout.temp=1", "rollout.temp", '"rollout.temperature"'],
    ["reward.path=x", "reward.path", '"reward.lpips.path"'],
    ["kl.ceof=1", "kl.ceof", '"kl.coef"'],
    ["ar.gizmos=1", "ar.gizmos", "ar.extra"],
    ["ema.wobbly=1", "ema.wobbly", "decay, warmup"],
    ["seed={path: x}", "seed.path", "an integer of at least 0"],
    ["qqqqqq=1", "qqqqqq", /preset, seed, run, /],
  ];
  for (const [given, key, advice] of cases) {
    const [problem = "", ...others] = refused(given);
    assert.deepEqual(others, []);
    assert.ok(problem.startsWith(`command line: ${key}: unknown key`), problem);
    assert.ok(typeof advice === "string" ? problem.includes(advice) : advice.test(problem), problem);
  }
  assert.match(
    problems({ values: { reward: { typ: "l2" } } })[0] as string,
    /^config\.reward\.typ: .*"reward\.type"/,
  );
});

test("names that every object has are unknown keys", () => {
  const names = ["toString", "constructor", "__proto__", "hasOwnProperty", "to_string", "value-of"];
  for (const name of names) {
    for (const given of [
      `${name}=3`,
      `${name}.x=3`,
      `rollout.${name}=3`,
      `ar.${name}=3`,
      `ar.extra.${name}=3`,
      `ar.extra={${name}: 3}`,
      `tokenizer.config={a: {${name}: 3}}`,
    ]) {
      assert.match(refused(given)[0] ?? "", /unknown key/, given);
    }
    assert.match(refused(`algorithm=${name}`)[0] ?? "", /algorithm: expected reinforce/);
    assert.match(refused(`preset=${name}`)[0] ?? "", /preset: expected seed/);
    assert.match(refused(`reward.type=${name}`)[0] ?? "", /reward\.type: expected/);
  }
  assert.equal(({} as Record<string, unknown>).x, undefined);
  assert.match(
    problems({ values: { ar: { extra: JSON.parse('{"__proto__": {"x": 1}}') } } })[0] ?? "",
    /unknown key/,
  );
});

test("a path holds no NUL, which no system call takes", () => {
  assertNamed(problems({ overrides: ["run.dir=a\0b"] }), [
    "command line: run.dir",
    "a\0b",
    "a path, or null",
  ]);
});

test("all problems are told at once, each with what was expected and what was given", () => {
  const sources = {
    text: "rollout:\n  temperature: hot\n  num-generations: 2.5\ndata:\n  source: 12\n",
    values: { optimizer: { betas: [0.9] }, ar: { cls: "GPT" } },
    overrides: ["rollout.topP=1.5", "algorithm=sac", "data.flip=yes", "train.device=tpu"],
  };
  assertNamed(
    problems(sources),
    ["configuration:5:3: data.source", "12", "a path, or null", '"12"'],
    ["command line: data.flip", "yes", "true or false"],
    ["config.ar.cls", "GPT", "a policy class, or null"],
    ["configuration:3:3: rollout.num-generations", "2.5", "an integer of at least 1 (sequences)"],
    ["configuration:2:3: rollout.temperature", "hot", "a number"],
    ["command line: rollout.topP", "1.5", "a number in (0, 1]"],
    ["command line: algorithm", "sac", "reinforce, rloo, grpo, ppo or ste"],
    ["config.optimizer.betas", "[0.9]", "a list of 2 numbers in [0, 1)"],
    ["command line: train.device", "tpu", "auto, cpu, cuda or cuda:N"],
  );
  assert.throws(() => resolveConfig({ overrides: ["train.iter=1", "seed=-1", ...PARTS] }), {
    name: "ConfigError",
    message:
      /^2 problems in the configuration:\n- command line: train\.iter: .*\n- command line: seed: [^\n]*$/,
  });
  assert.throws(() => resolveConfig({ overrides: ["seed=-1", ...PARTS] }), {
    name: "ConfigError",
    message: "command line: seed: expected an integer of at least 0, got -1.",
  });
});

test("text that should be a number, and the other way round, is said to be so", () => {
  assertNamed(problems({ text: 'optimizer: {lr: "1e-4"}\n' }), [
    "configuration:1:13: optimizer.lr",
    'the text "1e-4"',
    /quotes/,
  ]);
  assertNamed(problems({ values: { train: { iters: "100" } } }), [
    "config.train.iters",
    'the text "100"',
    /quotes/,
  ]);
  assertRefused(["train.iters=10_000"], ["train.iters", 'the text "10_000"', "Write 10000"]);
  assertRefused(["data.flip='true'"], ["data.flip", 'the text "true"', /quotes/]);
  assertRefused(["kl.stop='null'"], ["kl.stop", 'the text "null"', /quotes/]);
  assertNamed(problems({ text: "data: {label: 12}" }), [
    "configuration:1:8: data.label",
    "12",
    'quotes: "12"',
  ]);
  assertNamed(problems({ text: "seed: |\n  3\n" }), ["seed", 'the text "3\\n"']);
  assertRefused(["optimizer.lr='-1'"], ["optimizer.lr", 'the text "-1"']);
  assertRefused(["seed=9007199254740993"], ["seed", "9007199254740992", "9007199254740991"]);
  assertRefused(["optimizer.lr=1e999"], ["optimizer.lr", "Infinity"]);
  assertRefused(["optimizer.lr=.nan"], ["optimizer.lr", "NaN"]);
  assertRefused(["optimizer.lr=[1]"], ["optimizer.lr", "[1]."]);
  assertRefused(["rollout.temperature=1e-30"], ["rollout.temperature", "1e-30", "0.0001", "topK=1"]);
  assertRefused(["eval.temperature=0"], ["eval.temperature", "0.", "topK=1"]);
});

test("what a command line gets wrong", () => {
  for (const given of ["foo", "=3"]) {
    assert.match(
      refused(given)[0] as string,
      new RegExp(`^command line: expected key=value, got ${given}\\. .*explain`),
    );
  }
  assertRefused(["train.iters="], ["train.iters", "nothing", "null"]);
  assertRefused(["optimizer.betas=[1,"], ["optimizer.betas", "a mistake"]);
  assertRefused(["rollout=3"], ["rollout", "3."]);
  assertRefused(["rollout=null"], ["rollout", "null."]);
  assertRefused(
    ["reward.type=fid"],
    ["reward.type", "fid.", "l1, l2, psnr, ssim, msSsim, lpips, perceptual"],
  );
  assertRefused(["grpo.enabled=1"], ["grpo.enabled", "1.", "true or false"]);
  assertRefused(["preset=vapy"], ["preset", "vapy.", "seed, vapi, completion or null"]);
});

test("text on a command line needs no quotes", () => {
  const texts = ["*.tar", "@x", "#1", "{a..b}.tar", "a: b", "true", "12", "x # y", "[x]", "%x", "`x`", "!x"];
  for (const text of texts) {
    assert.equal(set(`data.source=${text}`).data.source, text);
    assert.equal(set(`train.ckpt_path=${text}`).save.ckptPath, text);
  }
  assert.equal(set("data.group=[^/]+").data.group, "[^/]+");
  assert.equal(set("data.source=null").data.source, null);
  assert.equal(set("data.source='null'").data.source, "null");
  assert.equal(set('data.source="a\\tb"').data.source, "a\tb");
});

test("nothing that is written is dropped", () => {
  assert.match(problems({ text: "data: {source: *.tar}\n" })[0] ?? "", /defined above, got \*\.tar/);
  assertRefused(["seed=*a"], ["seed", "*a"]);
  assert.match(problems({ text: "ar: {extra: {a: *b}}\n" })[0] ?? "", /defined/);
  for (const text of ["seed: {}\n", "optimizer: {lr: {}}\n", "train: {log_every: {}}\n"])
    assert.match(problems({ text })[0] ?? "", /expected .*, got \{\}/);
  assert.match(problems({ text: "foo: {}\n" })[0] ?? "", /foo: unknown key/);
  for (const value of [{}, { a: {} }]) assert.match(problems({ values: { seed: value } })[0] ?? "", /seed/);
  assert.deepEqual(resolved({ text: "rollout: {}\nar: {extra: {}}\n" }).ar.extra, {});
  assert.match(
    problems({ text: "ar: {extra: [1]}\n" })[0] ?? "",
    /ar\.extra: expected keys with values, got \[1\]/,
  );
  assert.match(problems({ values: { ar: { extra: new Map() } } })[0] ?? "", /ar\.extra: .*class Map/);
  assert.match(problems({ text: "reward: {type: [l1]}\n" })[0] ?? "", /reward\.type: .*got \["l1"\]/);
  assert.match(problems({ text: "ar: {type: [llammagen]}\n" })[0] ?? "", /ar\.type: .*got/);
  assert.match(problems({ text: "seed: 1\n---\nseed: 2\n" })[0] ?? "", /:2:1: expected one document/);
  assert.match(problems({ text: "tokenizer: vq.pt\n" })[0] ?? "", /got vq\.pt\..*tokenizer\.path/);
  assert.match(refused("ar.lr={a: 1}")[0] ?? "", /ar\.lr\.a: unknown key\. optimizer\.lr takes a number/);
  assert.match(problems({ values: { dataloader: "images" } })[0] ?? "", /dataloader: .*got images/);
  for (const values of [[], 3, "x", new Map()] as object[])
    assert.match(problems({ values })[0] ?? "", /^config: expected keys with values, got /);
  assert.equal(problems({ text: "preset: 3\n" }).length, 1);
});

test("of a key that a command line repeats, the last wins", () => {
  assert.equal(set("train.iters=7", "train.iters=8").train.iters, 8);
  assert.equal(set("log.every=7", "train.log_every=8").log.every, 8);
  assert.equal(set("train.logEvery=7", "log.every=8").log.every, 8);
  assert.equal(set("rollout={images: 4}", "rollout.images=6").rollout.images, 6);
  assert.equal(set("rollout.images=6", "rollout={images: 4}").rollout.images, 4);
  assert.deepEqual(set("reward.type=l1", "reward.type=ssim").reward.l1.weight, 0);
});

test("what a file gets wrong has its line and column", () => {
  const text = (of: string): readonly string[] => problems({ text: of });
  assert.match(
    text("train:\n  iters: 5\n  iters: 6\n")[0] as string,
    /^configuration:3:3: .*once, got iters/,
  );
  assert.match(text("train:\n  iters: 5\n bad\n")[0] as string, /^configuration:3:1: expected YAML/);
  assertNamed(text("rollout:\n  max_len: 4\n  maxLen: 5\n"), [
    "configuration:3:3: rollout.maxLen",
    "it twice",
    "configuration:2:3: rollout.max_len",
  ]);
  assertNamed(text("log: {every: 1}\ntrain: {log_every: 2}\n"), [
    "configuration:2:9: train.log_every",
    "it twice",
    "configuration:1:7: log.every",
  ]);
  assert.match(text("- 1\n")[0] as string, /^configuration:1:1: expected keys with values, got a list/);
  assert.match(text("42")[0] as string, /^configuration:1:1: expected keys with values, got 42/);
  assertNamed(text("rollout:\n"), ["configuration:1:1: rollout", "null"]);
  assert.match(text("train: {iters: !steps 3}\n")[0] as string, /^configuration:1:16: expected YAML.*!steps/);
  assert.equal(resolved({ text: "# nothing\n" }).seed, 0);
  assert.equal(resolved({ text: "" }).seed, 0);
  assert.equal(resolved({ text: '{"seed": 3}' }).seed, 3);
  const shared = resolved({ text: "optimizer: {lr: &rate 0.5}\nppo: {valueLr: *rate}\n" });
  assert.equal(shared.ppo.valueLr, 0.5);
});

test("what cannot be read as a file is said in our own words", () => {
  const write = (name: string, text: string | Uint8Array): string => {
    writeFileSync(join(folder, name), text);
    return join(folder, name);
  };
  const told = (file: string, pattern: RegExp): void => {
    const [problem = "", ...others] = problems({ file });
    assert.deepEqual(others, []);
    assert.ok(problem.startsWith(`${file}:`), problem);
    assert.match(problem, pattern);
    assert.doesNotMatch(problem, /ENOENT|EISDIR|call stack/);
  };
  told(join(folder, "missing.yaml"), /no such file/);
  told(folder, /folder/);
  told("/dev/null", /no file/);
  told(write("large.yaml", `# ${"x".repeat(2 ** 21)}`), /1 MiB/);
  told(write("binary.yaml", Uint8Array.of(0x73, 0xff, 0xfe)), /UTF-8/);
  told(
    write("merge.yaml", "train: &a {iters: 5}\nlog: {<<: *a}\n"),
    /:2:7: expected keys .* Write the keys out\.$/,
  );
  told(write("bad.yaml", "seed: x\n"), /:1:1: seed: expected an integer of at least 0, got x\.$/);
});

test("aliases and depth are bounded", () => {
  const bounded = (text: string): void => {
    const found = problems({ text });
    assert.ok(found.length <= 20, String(found.length));
    assert.match(found.join("\n"), /expected at most \d+ values in \d+ levels/);
  };
  const names = "jklmnopqrs".split("");
  const laughs = (...[open, close]: ["{", "}"] | ["[", "]"]): string => {
    const items = (of: string): string =>
      names.map((key) => (open === "{" ? `${key}: ${of}` : of)).join(", ");
    const before = (i: number): string => `*${names[i - 1] ?? "a"}`;
    return [
      "a: &a [1]",
      ...names.map((name, i) => `${name}: &${name} ${open}${items(before(i))}${close}`),
    ].join(", ");
  };
  bounded(`{${laughs("{", "}")}}`);
  bounded(`ar: {extra: {${laughs("{", "}")}}}`);
  bounded(`ar: {extra: {${laughs("[", "]")}}}`);
  bounded(`optimizer: {betas: [{${laughs("[", "]")}}]}`);
  bounded("data: &a {source: *a}\n");
  bounded("ar: {extra: &a {x: *a}}\n");
  bounded("ar:\n  extra: &e [*e]\n");
  bounded(`tokenizer: {config: ${"{a: ".repeat(40)}1${"}".repeat(40)}}\n`);
  bounded(`rollout: ${"{a: ".repeat(40)}1${"}".repeat(40)}\n`);
  bounded(`a: ${"[".repeat(20_000)}`);
  assert.match(
    refused(`ar.extra=${"{a: ".repeat(40)}1${"}".repeat(40)}`)[0] ?? "",
    /ar\.extra: expected at most/,
  );
  const loop: Record<string, unknown> = {};
  loop.rollout = loop;
  assert.match(problems({ values: loop })[0] ?? "", /levels/);
  const held: Record<string, unknown> = {};
  held.self = held;
  for (const values of [{ seed: held }, { ar: { extra: held } }, { optimizer: { betas: [held] } }])
    assert.match(problems({ values })[0] ?? "", /expected at most/);
});

test("relative paths in a file are relative to the file, those of a command line to the working directory", () => {
  const file = join(folder, "paths.yaml");
  writeFileSync(
    file,
    "data: {source: images, evalSource: /abs}\ntokenizer: {path: ../vq.pt}\nar: {path: ./ar.pt}\nrun: {dir: runs/a}\nreward: {lpips: {path: vgg.pth}}\ntrain: {ckpt_path: out.pt}\n",
  );
  const config = resolved({ file, overrides: ["ar.path=mine.pt", "eval.perceptual=c.pt"] });
  assert.equal(config.data.source, join(folder, "images"));
  assert.equal(config.data.evalSource, "/abs");
  assert.equal(config.tokenizer.path, join(folder, "..", "vq.pt"));
  assert.equal(config.run.dir, join(folder, "runs/a"));
  assert.equal(config.reward.lpips.path, join(folder, "vgg.pth"));
  assert.equal(config.save.ckptPath, join(folder, "out.pt"));
  assert.equal(config.ar.path, "mine.pt");
  assert.equal(config.eval.perceptual, "c.pt");
  assert.equal(resolved({ text: "ar: {path: a.pt}\n" }).ar.path, "a.pt");
  assert.equal(config.data.label, null);
});

test("a program's objects cannot stand in a file, and are checked", () => {
  assertNamed(problems({ text: "dataloader: my_loader\n" }), [
    "configuration:1:1: dataloader",
    "my_loader",
    "an iterable of images or batches",
  ]);
  assert.equal(resolved({ text: "dataloader: null\n" }).dataloader, null);
  assertNamed(
    problems({ values: { vqModel: new Map(), dataloader: 3, ar: { policy: { hidden: 1 } } } }),
    ["config.dataloader", "3."],
    ["config.vqModel", "an object of class Map", "encode and decodeCode"],
    ["config.ar.policy", '{"hidden":1}', "hidden and logits"],
  );
  assertNamed(problems({ values: { rollout: new Map() } }), ["config.rollout", "an object of class Map"]);
});

test("what is missing is named, unless only a part is wanted", () => {
  const missing = (overrides: string[]): readonly string[] => problems({ overrides, isComplete: true });
  assertNamed(
    missing([]),
    ["data.source", "nothing"],
    ["tokenizer.path", "nothing"],
    ["ar.path", "nothing", "ar.type"],
  );
  assertNamed(missing([...PARTS, "data.evalPart=0"]), ["data.evalSource", "nothing", "eval.every"]);
  assert.equal(
    resolveConfig({ overrides: [...PARTS, "data.evalPart=0", "eval.every=0"] }).config.eval.every,
    0,
  );
});

test("a path that begins with ~/ is below the home folder, in a file and on a command line", () => {
  const home = homedir();
  const config = resolved({
    text: "run: { dir: ~/run }",
    overrides: ["data.source=~/photos", "tokenizer.path=~x"],
  });
  assert.deepEqual(
    [config.run.dir, config.data.source, config.tokenizer.path],
    [`${home}/run`, `${home}/photos`, "~x"],
  );
});
