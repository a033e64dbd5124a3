/** `rlar eval` as a user runs it, on small models made here. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import type { ModelEvaluation } from "../../src/evaluation/judge_models.js";
import { buildArPolicy, buildClassifier } from "../../src/rl_ar_finetune/builder.js";
import { manualSeed, saveSafetensors } from "../../src/torch/index.js";
import { tinyFolder } from "../support/train_run.js";

function rlar(...args: string[]): { code: number | null; out: string; err: string } {
  const { status, stdout, stderr } = spawnSync(process.execPath, ["dist/src/cli/main.js", "eval", ...args], {
    encoding: "utf8",
  });
  return { code: status, out: stdout, err: stderr };
}

function savePolicy(path: string, seed: number): void {
  manualSeed(seed);
  const sizes = { nLayer: 1, nHead: 2, nEmbd: 16, extra: { classNum: 3 } };
  const { policy, optimizer } = buildArPolicy(32, 16, { type: "gpt", ...sizes });
  saveSafetensors(path, policy.stateDict(), { config: JSON.stringify(policy.options) });
  optimizer.dispose();
  policy.dispose();
}

test("two policies, two networks, a frontier: tables, verdict, pages, samples and numbers", async (t) => {
  const folder = await tinyFolder(t, 40);
  const at = (name: string): string => join(folder, name);
  for (const [name, seed] of [["a.safetensors", 1] as const, ["b.safetensors", 2] as const])
    savePolicy(at(name), seed);
  for (const seed of [3, 4]) {
    manualSeed(seed);
    using network = buildClassifier({ numClasses: 3, classNames: ["a", "b", "c"], widths: [8, 16] });
    saveSafetensors(at(`c${seed}.safetensors`), network.stateDict(), {
      config: JSON.stringify(network.config),
    });
  }
  const models = ["--tokenizer", at("tokenizer.safetensors"), "--policy", at("a.safetensors")];
  const networks = ["--features", at("c3.safetensors"), "--features", at("c4.safetensors")];
  const images = ["--data", at("images"), "--size", "16", "--eval-part", "0.4", "--threads", "1"];
  const draw = [
    "--samples",
    "24",
    "--temperatures",
    "1,0.5",
    "--prefix",
    "4,12",
    "--draws",
    "2",
    "--resamples",
    "20",
  ];
  const all = [...models, "--against", at("b.safetensors"), ...networks, ...images, ...draw];
  const { code, out, err } = rlar(
    ...all,
    "--out",
    at("pages"),
    "--json",
    at("eval.json"),
    "--npz",
    at("s.npz"),
  );
  assert.equal(code, 0, err);
  assert.match(out, /^tokenizer +\S+tokenizer\.safetensors \(sha256 [0-9a-f]{12}\)$/m);
  assert.match(out, /^\[2\] +classifier of 3 classes \(\S+c4\.safetensors\)$/m);
  assert.match(out, /^Completions of \d+ held-out images, 12 of 16 codes given, 2 draws per image$/m);
  assert.match(out, /^ +FD train +KD train +score +accuracy$/m);
  assert.match(out, /^ +B T 0\.5( +\S+( ±\S+)?)+$/m);
  assert.match(out, /^B .*A's frontier in L2 at (none|\d) of 2 settings/m);
  assert.match(out, /^Free samples: B's (least|lowest) FD is/m);
  assert.match(out, /numbers compare only with others of this very network\.$/m);
  assert.match(err, /^B T 0\.5 cfg 1: [\d.]+ s$/m);
  const pages = readdirSync(at("pages"));
  assert.deepEqual(
    pages.filter((name) => name.startsWith("completion")),
    ["completion_12_t1_cfg1.png", "completion_4_t1_cfg1.png"],
  );
  // One page has the free samples of both policies.
  assert.ok(pages.includes("free_t1_cfg1.png") && !pages.some((name) => /^free_[AB]/.test(name)), `${pages}`);
  assert.deepEqual(
    readdirSync(folder).filter((name) => name.endsWith(".npz")),
    ["s_A_t0.5_cfg1.npz", "s_A_t1_cfg1.npz", "s_B_t0.5_cfg1.npz", "s_B_t1_cfg1.npz"],
  );
  const found = JSON.parse(readFileSync(at("eval.json"), "utf8")) as ModelEvaluation;
  assert.equal(found.rows.length, 4);
  assert.equal(found.networks.length, 2);
  assert.deepEqual(found.settings.prefixes, [4, 12]);
  // Two prefixes, two networks, l2 and the network's own distance.
  assert.equal(found.verdicts.completion.length, 8);
  // Random weights know nothing of 32 codes.
  assert.ok(Math.abs((found.likelihoods[0]?.natsPerToken.value as number) - Math.log(32)) < 0.2);

  // The tokenizer alone, with the split's own note.
  const alone = rlar("--tokenizer", at("tokenizer.safetensors"), ...images, "--resamples", "0");
  assert.equal(alone.code, 0, alone.err);
  assert.match(
    alone.out,
    /^Reconstruction of \d+ held-out images\n +l1 +l2 +psnr +ssim +codes used\n( +[\d.-]+){5}$/m,
  );
  assert.doesNotMatch(alone.out, /Free samples|Verdict|±\d/);
});

test("what cannot be evaluated is refused in a sentence: a wrong command line with 2, files with 3", async (t) => {
  const folder = await tinyFolder(t, 20);
  const at = (name: string): string => join(folder, name);
  mkdirSync(at("empty"));
  const tokenizer = ["--tokenizer", at("tokenizer.safetensors")];
  const images = ["--data", at("images"), "--size", "16", "--eval-part", "0.4"];
  const cases: [string[], number, RegExp][] = [
    [[], 2, /--tokenizer, the weights of the tokenizer, got none.+\n- eval: expected --data\b/],
    [["--run", at("empty")], 2, /expected the folder of a run, got .+empty, which has no config\.yaml/],
    [[...tokenizer, ...images, "--temperatures", "1,hot"], 2, /Expected a number/],
    [[...tokenizer, ...images, "--eval-part", "2"], 2, /config\.data\.evalPart: expected/],
    [
      [...tokenizer, ...images, "--features", at("tokenizer.safetensors")],
      3,
      /expected a classifier of rlar classifier, or/,
    ],
    [
      [...tokenizer, ...images, "--json", at("none/x.json")],
      3,
      /eval: json: expected a folder that can be written, got ENOENT/,
    ],
  ];
  for (const [args, code, message] of cases) {
    const found = rlar(...args);
    assert.match(found.err, message);
    assert.equal(found.code, code, args.join(" "));
    assert.equal(found.out, "");
  }
  assert.ok(!existsSync(at("none")));
  assert.match(rlar("--explain").out, /^ +fd_train +Fréchet distance .*lower$/m);
});
