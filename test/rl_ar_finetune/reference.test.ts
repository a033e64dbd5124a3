/** The reference policy: refreshed by TRL's formula, with adapters, saved and restored. */
import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { addLora } from "../../src/policies/index.js";
import { clonePolicy } from "../../src/rl_ar_finetune/builder.js";
import { refreshReference } from "../../src/rl_ar_finetune/reference.js";
import { loadSafetensors, manualSeed, noGrad, randn, type Tensor, tidy } from "../../src/torch/index.js";
import { expectClose } from "../support/close.js";
import { TinyPolicy } from "../support/tiny_policy.js";
import { metricsOf, quietRun, tinyFolder, tinyRun } from "../support/train_run.js";

const policies = (): { policy: TinyPolicy; reference: TinyPolicy } => {
  manualSeed(3);
  const policy = new TinyPolicy({ vocabSize: 6, blockSize: 4, width: 8, classes: 2 });
  return { policy, reference: clonePolicy(policy) as TinyPolicy };
};

test("mix * policy + (1 - mix) * reference, by hand", () => {
  const { policy, reference } = policies();
  const fill = (of: TinyPolicy, value: number): void =>
    noGrad(() => {
      for (const parameter of of.parameters()) parameter.fill_(value);
    });
  fill(policy, 2);
  fill(reference, 1);
  const all = (): number[] => [
    ...new Set(reference.parameters().flatMap((p) => [...p.flatten().toArray()].map(Number))),
  ];
  // 0.75 * 2 + 0.25 * 1, then 0.75 * 2 + 0.25 * 1.75: exact in binary.
  refreshReference({ policy, lora: null, reference }, 0.75);
  assert.deepEqual(all(), [1.75]);
  refreshReference({ policy, lora: null, reference }, 0.75);
  assert.deepEqual(all(), [1.9375]);
  refreshReference({ policy, lora: null, reference }, 1);
  assert.deepEqual(all(), [2]);
  fill(policy, -1);
  assert.deepEqual(all(), [2], "it shares nothing with the policy");
});

test("TRL's own operations give the same bits, and adapters count", () =>
  tidy(() => {
    const { policy, reference } = policies();
    const lora = addLora(policy, { rank: 2, targets: ["query", "out"] });
    noGrad(() => {
      for (const parameter of lora.parameters()) parameter.copy_(randn(parameter.shape));
      for (const parameter of policy.parameters()) parameter.add_(0.1);
    });
    const whole = { ...policy.stateDict(), ...lora.mergedWeights() } as Record<string, Tensor>;
    // trl.trainer.callbacks: target.data.mul_(1.0 - alpha).add_(copy.data, alpha=alpha)
    const wanted = reference.namedParameters().map(
      ([name, value]) =>
        [
          name,
          noGrad(() =>
            value
              .clone()
              .mul_(1 - 0.6)
              .add_(whole[name] as Tensor, 0.6),
          ),
        ] as const,
    );
    refreshReference({ policy, lora, reference }, 0.6);
    const got = reference.stateDict();
    for (const [name, value] of wanted)
      expectClose(got[name] as Tensor, value, { rtol: 0, atol: 0, where: name });
    refreshReference({ policy, lora, reference }, 1);
    expectClose(reference.stateDict()["query.weight"] as Tensor, whole["query.weight"] as Tensor, {
      rtol: 0,
      atol: 0,
    });
    lora.dispose();
  }));

/** A part of a checkpoint. */
const partOf = (dir: string, step: number, part: string): Record<string, Tensor> =>
  loadSafetensors(join(dir, "checkpoints", `step_00000${step}`, `${part}.safetensors`)).tensors as Record<
    string,
    Tensor
  >;

test("a run refreshes its reference when it is due, and goes on with it after a resume", async (t) => {
  const folder = await tinyFolder(t);
  for (const [name, ar] of [
    ["plain", {}],
    ["adapted", { lora: { rank: 2 } }],
  ] as const) {
    const run = async (
      of: string,
      iters: number,
      kl: object = { coef: 0.1, refreshEvery: 2, refreshMix: 0.25 },
    ) => {
      const dir = join(folder, `${name}_${of}`);
      const optimizer = { schedule: "constant", warmup: 0, lr: 1e-2 };
      const save = { every: 1, keep: 9 };
      const log = { every: 1 };
      const where = { dir, ifExists: "resume" };
      await quietRun(tinyRun(folder, { ar, kl, optimizer, save, log, run: where, train: { iters } }));
      return dir;
    };
    const whole = await run("whole", 5);
    const steps = metricsOf(whole).map((line) => line["kl/reference_step"]);
    assert.deepEqual(steps, [0, 0, 2, 2, 4]);
    tidy(() => {
      for (const [at, before] of [
        [2, 1],
        [4, 3],
      ] as const) {
        const [policy, old, now] = [
          partOf(whole, at, "policy"),
          partOf(whole, before, "reference"),
          partOf(whole, at, "reference"),
        ];
        for (const [key, value] of Object.entries(now))
          expectClose(value, (old[key] as Tensor).mul(0.75).add(policy[key] as Tensor, 0.25), {
            rtol: 1e-6,
            atol: 1e-7,
            where: key,
          });
      }
      expectClose(
        Object.values(partOf(whole, 3, "reference"))[0] as Tensor,
        Object.values(partOf(whole, 2, "reference"))[0] as Tensor,
        { rtol: 0, atol: 0 },
      );
    });
    await run("parts", 3);
    const parts = await run("parts", 5);
    assert.deepEqual(metricsOf(parts), metricsOf(whole));
    for (const part of readdirSync(join(whole, "checkpoints", "step_000005")).filter((file) =>
      file.endsWith(".safetensors"),
    )) {
      const [a, b] = [whole, parts].map((dir) => readFileSync(join(dir, "checkpoints", "step_000005", part)));
      assert.ok((a as Buffer).equals(b as Buffer), `${name}: ${part}`);
    }
    const frozen = await run("frozen", 1, { coef: 0.1 });
    assert.ok(!readdirSync(join(frozen, "checkpoints", "step_000001")).includes("reference.safetensors"));
    assert.ok(!("kl/reference_step" in (metricsOf(frozen)[0] as object)));
  }
});
