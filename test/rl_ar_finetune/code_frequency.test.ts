/** Counts of drawn and true codes, and the KL divergence of their frequencies as a term of the loss. */
import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";
import { AdamW } from "../../src/nn/index.js";
import { CodeFrequency } from "../../src/rl_ar_finetune/code_frequency.js";
import { grpoUpdate } from "../../src/rl_ar_finetune/optimize.js";
import { type RolloutContext, sampleRollout } from "../../src/rl_ar_finetune/rollout.js";
import { passesOf, scoreRows, sliceRows } from "../../src/rl_ar_finetune/scoring.js";
import {
  Generator,
  loadSafetensors,
  manualSeed,
  noGrad,
  rand,
  randint,
  randn,
  type Tensor,
  tensor,
  tidy,
} from "../../src/torch/index.js";
import { expectClose } from "../support/close.js";
import { TinyPolicy } from "../support/tiny_policy.js";
import { metricsOf, quietRun, tinyFolder, tinyRun } from "../support/train_run.js";
import "../support/settle.js";

const F64 = { dtype: "float64" } as const;
const INT = { dtype: "int64" } as const;

test("by hand: counts of where codes were drawn, over steps; smoothed by a fifth of the places", () => {
  using frequency = new CodeFrequency(4);
  expectClose(frequency.logRatio("cpu"), tensor([0, 0, 0, 0]));
  // The first code of the image is given. Drawn: 0 0 1 2, true: 1 2 1 2.
  frequency.add(tensor([0, 0, 1, 2], INT).reshape(1, 2, 2), tensor([[3, 1, 2]], INT));
  // 4 places, 0.8 more in equal parts: (2.2, 1.2, 1.2, 0.2) over (0.2, 2.2, 2.2, 0.2).
  const wanted = [Math.log(11), Math.log(6 / 11), Math.log(6 / 11), 0];
  expectClose(frequency.logRatio("cpu"), tensor(wanted), { rtol: 1e-6 });
  // Of these two only the second counts: drawn 3, true 0. 5 places, 1 more.
  frequency.add(tensor([[[1, 3]]], INT), tensor([[2, 0]], INT), tensor([[[0, 1]]]).bool());
  const second = [Math.log(2.25 / 1.25), Math.log(1.25 / 2.25), Math.log(1.25 / 2.25), Math.log(1.25 / 0.25)];
  expectClose(frequency.logRatio("cpu"), tensor(second), { rtol: 1e-6 });
  using other = new CodeFrequency(4);
  other.loadStateDict(frequency.stateDict());
  expectClose(other.logRatio("cpu"), tensor(second), { rtol: 1e-6 });
  using larger = new CodeFrequency(5);
  assert.throws(() => larger.loadStateDict(frequency.stateDict()), /expected drawn \[5\],true \[5\], got/);
  const wrong = (): void => frequency.add(tensor([[[1, 3]]], INT), tensor([[2]], INT));
  assert.throws(wrong, /CodeFrequency\.add: expected trueCodes int64 \[1, at least 2\]/);
});

test("the gradient of expected costs is that of the KL divergence of frequencies, where the costs are its logarithms", () => {
  manualSeed(3);
  const policy = new TinyPolicy().to(F64);
  const passes = passesOf("here", {
    tokens: randint(0, 11, [4, 1, 5]),
    start: { classes: tensor([0, 1, 2, 0], INT) },
    sampling: { temperature: 0.7 },
  });
  const q = tidy(() => rand([11], F64).add(0.1)).div(8);
  const inputs = passes.tokens.squeeze(1).narrow(1, 0, 4);
  const logits = policy.forward(inputs, { classes: tensor([0, 1, 2, 0], INT) });
  const p = logits
    .mul(1 / 0.7)
    .softmax(-1)
    .mean([0, 1]);
  const ratio = p.div(q).log();
  const gradientOf = (loss: Tensor): Tensor[] => {
    for (const parameter of policy.parameters()) parameter.grad = null;
    loss.backward();
    return policy.parameters().flatMap(({ grad }) => (grad === null ? [] : [grad]));
  };
  const theirs = gradientOf(p.mul(ratio).sum());
  const { cost } = scoreRows(policy, passes, null, { costs: ratio.detach(), chunk: 7 });
  assert.ok(cost !== null);
  assert.deepEqual(cost.shape, [4, 5]);
  expectClose(cost.mean(), p.mul(ratio).sum(), { rtol: 1e-10 });
  const own = gradientOf(cost.mean());
  assert.equal(own.length, theirs.length);
  // They differ by the gradient of sum_k p_k, which is 0.
  for (const [i, grad] of own.entries()) expectClose(grad, theirs[i] as Tensor, { rtol: 1e-8, atol: 1e-12 });
});

test("an update: the weight times the mean over drawn places, whatever the mini-batch; wrong numbers are refused", () => {
  manualSeed(6);
  const policy = new TinyPolicy().to(F64);
  const logRatio = randn([11], F64);
  const trueCodes = randint(0, 11, [2, 5]);
  const classes = tensor([1, 2], INT);
  const context: RolloutContext = { type: "prefix", length: 1 };
  const drawn = { context, trueCodes, numGenerations: 3, generator: new Generator(1) };
  const rollout = sampleRollout(policy, { classes }, drawn);
  const batch = { ...rollout, rewards: randn([2, 3], F64) };
  const optimizer = new AdamW(policy.parameters(), { lr: 0 });
  const run = (more: object): number | undefined =>
    grpoUpdate(policy, optimizer, batch, { codeFrequency: { weight: 0.5, logRatio }, ...more }).metrics[
      "loss/code_frequency"
    ];
  const wanted = noGrad(() =>
    tidy(() => {
      const { cost } = scoreRows(policy, sliceRows(passesOf("here", rollout), 0, 6), null, {
        costs: logRatio,
      });
      return (cost as Tensor).mean().mul(0.5).item();
    }),
  );
  expectClose(run({}) as number, wanted, { rtol: 1e-9 });
  expectClose(run({ miniBatch: 1 }) as number, wanted, { rtol: 1e-9 });
  expectClose(run({ microBatch: 2 }) as number, wanted, { rtol: 1e-9 });
  assert.equal(run({ codeFrequency: { weight: 0, logRatio } }), undefined);
  const wrong = (codeFrequency: object) => () => run({ codeFrequency });
  assert.throws(wrong({ weight: 1, logRatio: randn([10]) }), /logRatio: expected float \[11\], a number for/);
  assert.throws(wrong({ weight: -1, logRatio }), /codeFrequency\.weight: expected/);
  assert.throws(wrong({ weight: 1, costs: logRatio }), /expected a known option, got costs/);
});

test("a run: frequencies come closer than without; the counts go on after a resume", async (t) => {
  const folder = await tinyFolder(t);
  const counts = (name: string): Record<string, Tensor> =>
    loadSafetensors(join(folder, name, "checkpoints", "step_000012", "code_frequency.safetensors")).tensors;
  const run = async (name: string, weight: number, iters = 12): Promise<void> => {
    await quietRun(
      tinyRun(folder, {
        run: { dir: join(folder, name), ifExists: "resume" },
        update: { codeFrequency: weight, auxCe: 0 },
        optimizer: { lr: 1e-2, schedule: "constant", warmup: 0 },
        save: { every: 4 },
        train: { iters },
      }),
    );
  };
  const divergence = (name: string): number =>
    tidy(() => {
      const { drawn, true: truth } = counts(name) as { drawn: Tensor; true: Tensor };
      const [p, q] = [drawn.div(drawn.sum()), truth.add(1).div(truth.sum())];
      return p.mul(p.add(1e-9).div(q).log()).sum().item();
    });
  await run("held", 2);
  await run("free", 1e-9);
  assert.ok(divergence("held") < 0.7 * divergence("free"), `${divergence("held")}, ${divergence("free")}`);
  await run("resumed", 2, 6);
  await run("resumed", 2);
  for (const name of ["drawn", "true"])
    expectClose(counts("resumed")[name] as Tensor, counts("held")[name] as Tensor, { rtol: 0, atol: 0 });
  const losses = (name: string): unknown[] =>
    metricsOf(join(folder, name)).map((record) => record["loss/code_frequency"]);
  assert.deepEqual(losses("resumed"), losses("held"));
});
