/** `rlar average` as a user runs it, on runs of a small policy and on files. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { cpSync, existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";

import { average } from "../../src/cli/average.js";
import { LlamaGen } from "../../src/policies/index.js";
import { loadSafetensors, saveSafetensors, type Tensor } from "../../src/torch/index.js";
import { expectClose } from "../support/close.js";
import { quietRun, tinyFolder, tinyRun } from "../support/train_run.js";

function rlar(...args: string[]): { code: number | null; out: string; err: string } {
  const { status, stdout, stderr } = spawnSync(process.execPath, ["dist/src/cli/main.js", ...args], {
    encoding: "utf8",
  });
  return { code: status, out: stdout, err: stderr };
}

test("runs are averaged and scaled from the policy that they began with; what cannot be averaged is refused", async (t) => {
  const folder = await tinyFolder(t, 24);
  const at = (name: string): string => join(folder, name);
  await quietRun(tinyRun(folder));
  const last = (run: string): string => at(join(run, "checkpoints", "step_000002", "policy.safetensors"));
  cpSync(last("run"), at("start.safetensors"));
  const ar = { type: null, nLayer: null, nHead: null, nEmbd: null, path: at("start.safetensors"), extra: {} };
  for (const seed of [1, 2]) await quietRun(tinyRun(folder, { ar, seed, run: { dir: at(`seed_${seed}`) } }));

  await quietRun(tinyRun(folder, { ar: { ...ar, path: last("seed_1") }, run: { dir: at("later") } }));

  const runs = [at("seed_1"), at("seed_2")];
  const made = rlar("average", ...runs, "--scale", "1.5", "--out", at("out.safetensors"), "--json");
  assert.equal(made.code, 0, made.err);
  const facts = JSON.parse(made.out);
  assert.deepEqual(facts.policies, [last("seed_1"), last("seed_2")]);
  assert.equal(facts.base, at("start.safetensors"));
  assert.ok(facts.agreement > -1 && facts.agreement < 1);
  const { tensors, metadata } = loadSafetensors(at("out.safetensors"));
  assert.equal(JSON.parse(metadata.config as string).nHead, 2);
  assert.equal(JSON.parse(metadata.average as string).scale, 1.5);
  const [base, one, two] = ["start.safetensors", last("seed_1"), last("seed_2")].map(
    (path) => loadSafetensors(path.startsWith("/") ? path : at(path)).tensors,
  ) as [Record<string, Tensor>, Record<string, Tensor>, Record<string, Tensor>];
  let moved = 0;
  for (const [name, tensor] of Object.entries(tensors)) {
    const start = base[name] as Tensor;
    const mean = (one[name] as Tensor).add(two[name] as Tensor).div(2);
    expectClose(tensor, start.add(mean.sub(start).mul(1.5)), { rtol: 1e-6, atol: 1e-7, where: name });
    moved += tensor.sub(start).abs().sum().item() as number;
  }
  assert.ok(moved > 0);
  const sampled = rlar(
    ...["sample", "--policy", at("out.safetensors"), "--tokenizer", at("tokenizer.safetensors")],
    ...["--class", "0", "--out", at("sample.png")],
  );
  assert.equal(sampled.code, 0, sampled.err);

  // Without --json, and by files.
  const told = rlar("average", ...runs, "--out", at("mean.safetensors"));
  assert.match(told.out, /mean\.safetensors: the average of 2 policies\ncosine similarity .*: -?0\.\d{3} /);
  const byFiles = rlar(
    ...["average", last("seed_1"), last("seed_2"), "--base", at("start.safetensors"), "--scale", "1.5"],
    ...["--out", at("files.safetensors")],
  );
  assert.equal(byFiles.code, 0, byFiles.err);
  assert.deepEqual(Object.keys(loadSafetensors(at("files.safetensors")).tensors), Object.keys(tensors));
  for (const [name, tensor] of Object.entries(loadSafetensors(at("files.safetensors")).tensors))
    assert.ok(tensor.equal(tensors[name] as Tensor), name);

  using other = new LlamaGen({ vocabSize: 16, dim: 32, nLayer: 1, nHead: 4, blockSize: 16, numClasses: 5 });
  saveSafetensors(at("other.safetensors"), other.stateDict(), { config: JSON.stringify(other.options) });
  const before = readFileSync(at("out.safetensors"));
  const asked = { out: at("refused.safetensors"), scale: 1 };
  const files = [last("seed_1"), last("seed_2")];
  const refused: [string[], object, RegExp][] = [
    [
      runs,
      { out: at("out.safetensors") },
      /out\.safetensors: expected a file that does not exist yet, .*Use --force\./,
    ],
    [runs, { out: at("out.pt") }, /--out: expected a name that ends in \.safetensors/],
    [[...files, last("seed_1")], {}, /average: expected each policy once, got .*policy\.safetensors twice\./],
    [
      files,
      { scale: 2 },
      /--base: expected the policy that scale 2 starts from, got none\. Folders of runs know it/,
    ],
    [
      [at("seed_1"), at("images")],
      {},
      /average: expected the folder of a run, got .*images, which has no config\.yaml\./,
    ],
    [[at("seed_1"), at("absent.safetensors")], {}, /absent\.safetensors: expected/],
    [
      [at("seed_1"), at("other.safetensors")],
      {},
      /averageWeights: expected the 22 tensors of the first model, got missing blocks\..* unknown cls_embedding/,
    ],
    [
      [at("seed_1"), at("tokenizer.safetensors")],
      {},
      /tokenizer\.safetensors: expected a policy, got a tokenizer \(/,
    ],
    [
      [at("seed_1"), at("later")],
      {},
      /average: expected policies that were fine-tuned from the same one, got .* and .*--base/,
    ],
  ];
  for (const [paths, options, message] of refused)
    assert.throws(() => average(paths, { ...asked, ...options }), { message });
  const code = rlar("average", ...files, "--scale", "2", "--out", asked.out);
  assert.deepEqual([code.code, code.out], [2, ""], code.err);
  assert.ok(!existsSync(at("refused.safetensors")));
  assert.deepEqual(readFileSync(at("out.safetensors")), before);
});
