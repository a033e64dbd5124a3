/** What steers an update beside the reward: several rewards normalised alone, constant groups, certain tokens, the entropy. */
import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";
import { groupAdvantages } from "../../src/rl_ar_finetune/advantages.js";
import { adaptedEntropyCoef } from "../../src/rl_ar_finetune/losses.js";
import { type GrpoOptions, grpoUpdate, rlooUpdate } from "../../src/rl_ar_finetune/optimize.js";
import { customTerm } from "../../src/rl_ar_finetune/own_rewards.js";
import { judge } from "../../src/rl_ar_finetune/rewards.js";
import { type Rollout, sampleRollout } from "../../src/rl_ar_finetune/rollout.js";
import { scoreCodes } from "../../src/rl_ar_finetune/scoring.js";
import { Generator, keep, manualSeed, type Tensor, tensor, tidy, zeros } from "../../src/torch/index.js";
import { expectClose } from "../support/close.js";
import { TinyPolicy } from "../support/tiny_policy.js";
import { metricsOf, quietRun, tinyFolder, tinyRun } from "../support/train_run.js";

const F64 = { dtype: "float64" } as const;

test("normalize group with scale batch is GDPO: each reward over its group, their sum over the batch, by hand", () =>
  tidy(() => {
    const scores = [
      [
        [0, 1],
        [0, 2],
      ],
      [
        [1, 0],
        [4, 0],
      ],
    ];
    const [a, b] = scores as [number[][], number[][]];
    const images = zeros([2, 3, 1, 1]);
    const samples = zeros([4, 3, 1, 1]);
    const terms = [a, b].map((values, i) =>
      customTerm(`r${i}`, () => tensor(values.flat()), { weight: i + 1 }),
    );
    const { total } = judge(terms, { images, samples }, { normalize: "group" });
    // Two values of a group are at -1 / sqrt(2) and 1 / sqrt(2) standard deviations, whatever their difference.
    const h = Math.SQRT1_2;
    // Image 0: a 0, 1 and b 1, 0 with weights 1 and 2; image 1 the same.
    const sums = [
      [-h + 2 * h, h - 2 * h],
      [-h + 2 * h, h - 2 * h],
    ];
    expectClose(total, tensor(sums, F64), { rtol: 1e-12 });
    // Over the batch: mean 0, n - 1 = 3, four squares of h^2 = 1 / 2.
    const std = Math.sqrt(2 / 3);
    const { advantages } = groupAdvantages(total, { scale: "batch" });
    expectClose(
      advantages,
      tensor(
        sums.map((row) => row.map((value) => value / std)),
        F64,
      ),
      { rtol: 1e-7 },
    );
  }));

/** B = 2, G = 3, T = 4 of a small policy in float64. */
function scene(): { policy: TinyPolicy; rollout: Rollout } {
  manualSeed(4);
  const policy = new TinyPolicy({ vocabSize: 6, blockSize: 4, width: 8, classes: 2 }).to(F64);
  using generator = new Generator(5);
  const start = { classes: tensor([0, 1], { dtype: "int64" }) };
  return { policy, rollout: sampleRollout(policy, start, { numGenerations: 3, generator }) };
}

/** Gradients of one step, by name. */
function gradientsOf(
  policy: TinyPolicy,
  run: (optimizer: { step(): void; zeroGrad(): void }) => unknown,
): Record<string, Tensor> {
  const seen: Record<string, Tensor> = {};
  run({
    step: () => {
      for (const [name, { grad }] of policy.namedParameters()) if (grad) seen[name] = keep(grad.clone());
    },
    zeroGrad: () => policy.zeroGrad(),
  });
  return seen;
}

/** Gradients of -mean(A logp), worked out from the formula. */
function wantedFor(
  { policy, rollout }: ReturnType<typeof scene>,
  advantages: Tensor,
): Record<string, Tensor> {
  policy.zeroGrad();
  const { logprobs } = scoreCodes(policy, rollout);
  logprobs.mul(advantages).mean().neg().backward();
  const grads = policy
    .namedParameters()
    .flatMap(([name, { grad }]) => (grad ? [[name, keep(grad.clone())] as const] : []));
  policy.zeroGrad();
  return Object.fromEntries(grads);
}

function expectSame(got: Record<string, Tensor>, wanted: Record<string, Tensor>): void {
  assert.deepEqual(Object.keys(got), Object.keys(wanted));
  for (const [name, value] of Object.entries(wanted))
    expectClose(got[name] as Tensor, value, { rtol: 1e-6, atol: 1e-9, where: name });
}

test("constant groups are excluded from the mean: the loss is the mean over the others", () =>
  tidy(() => {
    const all = scene();
    const { policy, rollout } = all;
    const rewards = tensor(
      [
        [1, 2, 6],
        [3, 3, 3],
      ],
      F64,
    );
    const run = (options: GrpoOptions) =>
      gradientsOf(policy, (optimizer) =>
        grpoUpdate(policy, optimizer, { ...rollout, rewards }, { scale: "none", ...options }),
      );
    // Group 0: mean 3, advantages -2, -1, 3.
    const advantages = tensor(
      [
        [-2, -1, 3],
        [0, 0, 0],
      ],
      F64,
    ).unsqueeze(2);
    expectSame(run({}), wantedFor(all, advantages));
    expectSame(run({ constantGroups: "keep" }), wantedFor(all, advantages));
    expectSame(run({ constantGroups: "exclude" }), wantedFor(all, advantages.mul(2)));
    // The clip of advantages comes first.
    const clipped = tensor(
      [
        [-2, -1, 2],
        [0, 0, 0],
      ],
      F64,
    ).unsqueeze(2);
    expectSame(run({ constantGroups: "exclude", advantageClip: 2 }), wantedFor(all, clipped.mul(2)));
    const same = { ...rollout, rewards: rewards.mul(0) };
    for (const grad of Object.values(
      gradientsOf(policy, (optimizer) => rlooUpdate(policy, optimizer, same, { constantGroups: "exclude" })),
    ))
      expectClose(grad, grad.mul(0), { rtol: 0 });
    assert.throws(() => run({ constantGroups: "drop" as never }), /constantGroups: .*keep.*exclude.*drop/);
  }));

test("only the tokens with the highest entropy have a gradient, and the mean is over all", () =>
  tidy(() => {
    const all = scene();
    const { policy, rollout } = all;
    const rewards = tensor(
      [
        [1, 2, 6],
        [2, 2, 5],
      ],
      F64,
    );
    // 24 tokens, their entropy given: the six highest are a quarter.
    const entropy = tensor(
      Array.from({ length: 24 }, (_, i) => (i * 7) % 24),
      F64,
    ).view(2, 3, 4);
    const batch = { ...rollout, rewards, entropy };
    const run = (options: GrpoOptions, given: object = batch) =>
      gradientsOf(policy, (optimizer) =>
        grpoUpdate(policy, optimizer, given as typeof batch, { scale: "none", ...options }),
      );
    const advantages = tensor(
      [
        [-2, -1, 3],
        [-1, -1, 2],
      ],
      F64,
    ).unsqueeze(2);
    expectSame(run({ topEntropy: 0.25 }), wantedFor(all, advantages.mul(entropy.ge(18).double())));
    expectSame(run({ topEntropy: 0.01 }), wantedFor(all, advantages.mul(entropy.ge(23).double())));
    expectSame(run({ topEntropy: 1 }), wantedFor(all, advantages));
    for (const topEntropy of [0, 1.5, Number.NaN]) assert.throws(() => run({ topEntropy }), /topEntropy/);
    const { entropy: _, ...without } = batch;
    assert.throws(() => run({ topEntropy: 0.5 }, without), /entropy \[2, 3, 4\] with topEntropy/);
  }));

test("the weight of the entropy bonus moves by its step towards the target, and is off above it", async (t) => {
  const options = { target: 2, delta: 0.25 };
  assert.equal(adaptedEntropyCoef(0.5, 1.9, options), 0.75);
  assert.equal(adaptedEntropyCoef(0.5, 2.1, options), 0.25);
  assert.equal(adaptedEntropyCoef(0.1, 2.1, options), 0);
  assert.equal(adaptedEntropyCoef(0.5, 2, options), 0.5);
  assert.equal(adaptedEntropyCoef(0.5, Number.NaN, options), 0.5);
  const folder = await tinyFolder(t);
  const run = async (name: string, target: number, iters: number) => {
    const update = { entropyCoef: 0.01, entropyTarget: target, entropyDelta: 0.002 };
    const where = { dir: join(folder, name), ifExists: "resume" };
    const optimizer = { schedule: "constant", warmup: 0 };
    const log = { every: 1 };
    await quietRun(tinyRun(folder, { run: where, update, optimizer, train: { iters }, log }));
    return metricsOf(join(folder, name));
  };
  // 32 codes: an entropy of at most log 32 = 3.47.
  const below = await run("below", 9, 3);
  assert.deepEqual(
    below.map((line) => (line["policy/entropy_coef"] as number).toFixed(6)),
    ["0.010000", "0.012000", "0.014000"],
  );
  const above = await run("above", 0.01, 3);
  assert.deepEqual(
    above.map((line) => line["policy/entropy_coef"]),
    [0, 0, 0],
  );
  await run("parts", 9, 2);
  assert.deepEqual(await run("parts", 9, 3), below);
});
