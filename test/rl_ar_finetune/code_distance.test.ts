/** Codes as points, and the expected distance between drawn and true codes that the loss gets from them. */
import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";
import { FeatureClassifier, PerceptualDistance } from "../../src/metrics/index.js";
import { AdamW } from "../../src/nn/index.js";
import { CodeVectors, patches } from "../../src/rl_ar_finetune/code_distance.js";
import { grpoUpdate } from "../../src/rl_ar_finetune/optimize.js";
import { type RolloutContext, sampleRollout } from "../../src/rl_ar_finetune/rollout.js";
import { passesOf, scoreRows } from "../../src/rl_ar_finetune/scoring.js";
import {
  arange,
  cat,
  Generator,
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

test("points by hand: means with the overall mean as one more place, at a mean squared distance of 1", () => {
  using vectors = new CodeVectors(3);
  vectors.add(tensor([[0, 0]], INT), tensor([[[[0, 2]]]])); // [1, 2] and [1, 1, 1, 2]
  vectors.add(tensor([[1]], INT), tensor([[[[4]]]]));
  // Means (0 + 2 + 2) / 3, (4 + 2) / 2 and, of the code that did not occur, 2; mean over the places 17 / 9, variance 50 / 81.
  expectClose(vectors.points(), tensor([[-0.5], [1], [0.1]]), { rtol: 1e-6 });
});

test("points do not depend on how the images are divided; codes all alike are refused", () => {
  manualSeed(2);
  const codes = randint(0, 5, [6, 4]);
  const places = randn([6, 3, 2, 2]);
  using whole = new CodeVectors(7);
  whole.add(codes, places);
  using parts = new CodeVectors(7);
  parts.add(codes.narrow(0, 0, 2), places.narrow(0, 0, 2));
  parts.add(codes.narrow(0, 2, 4), places.narrow(0, 2, 4));
  expectClose(parts.points(), whole.points(), { rtol: 1e-6, atol: 1e-7 });
  using alike = new CodeVectors(2);
  alike.add(tensor([[0, 1]], INT), tensor([[[[3, 3]]]]));
  assert.throws(() => alike.points(), /update\.codeDistance: expected codes that stand for different things/);
});

test("patches: the squared distance of two is the mean squared error of what is at the two codes", () => {
  const images = arange(0, 3 * 16).reshape(1, 3, 4, 4);
  const points = patches(images, [2, 2]);
  assert.deepEqual(points.shape, [1, 12, 2, 2]);
  const at = (y: number, x: number): Tensor => points.select(3, x).select(2, y);
  expectClose(at(0, 0).sub(at(1, 1)).square().sum().item(), 100, { rtol: 1e-6 }); // 10 = 2 rows of 4 and 2 columns apart
});

test("points of the perceptual distance: their mean squared distance is the distance, where no map is averaged", () => {
  manualSeed(4);
  using network = new FeatureClassifier({ numClasses: 3, widths: [8, 16] });
  const perceptual = new PerceptualDistance(network);
  const [a, b] = [rand([2, 3, 16, 16]).mul(2).sub(1), rand([2, 3, 16, 16]).mul(2).sub(1)];
  noGrad(() => {
    const squared = perceptual
      .points(a, [16, 16])
      .sub(perceptual.points(b, [16, 16]))
      .square();
    expectClose(squared.sum(1).mean([1, 2]), perceptual.forward(a, b), { rtol: 1e-5 });
  });
});

/** `sum_k p_k |v_k - v_y|^2` by a table of all pairs. */
function byTable(logp: Tensor, target: Tensor, vectors: Tensor): Tensor {
  const table = vectors.unsqueeze(1).sub(vectors.unsqueeze(0)).square().sum(2); // [V, V]
  return logp.exp().mul(table.indexSelect(0, target.flatten()).reshape(logp.shape)).sum(-1);
}

test("expected distance and its gradient: those of a table of all pairs, at the temperature of the rollout", () => {
  manualSeed(5);
  const policy = new TinyPolicy().to(F64);
  const vectors = randn([11, 3], F64);
  const tokens = randint(0, 11, [4, 1, 5]);
  const target = randint(0, 11, [4, 5]);
  const passes = passesOf("here", {
    tokens,
    start: { classes: tensor([0, 1, 2, 0], INT) },
    sampling: { temperature: 0.7 },
  });
  const options = { distance: { trueCodes: target, vectors }, chunk: 7 };
  const { distance } = scoreRows(policy, passes, null, options);
  const inputs = tokens.squeeze(1).narrow(1, 0, 4);
  const hidden = policy.hidden(inputs, { classes: tensor([0, 1, 2, 0], INT) });
  const logp = policy
    .logits(hidden)
    .mul(1 / 0.7)
    .logSoftmax(-1);
  const wanted = byTable(logp, target, vectors);
  expectClose(distance as Tensor, wanted, { rtol: 1e-10 });
  const gradientOf = (loss: Tensor): Tensor[] => {
    for (const parameter of policy.parameters()) parameter.grad = null;
    loss.mean().backward();
    return policy.parameters().flatMap(({ grad }) => (grad === null ? [] : [grad]));
  };
  const own = gradientOf(distance as Tensor);
  const theirs = gradientOf(wanted);
  assert.equal(own.length, theirs.length);
  for (const [i, grad] of own.entries()) expectClose(grad, theirs[i] as Tensor, { rtol: 1e-8, atol: 1e-12 });
});

test("an update: the loss is the weight times the mean over drawn places, whatever the mini-batch; true codes are asked for", () => {
  manualSeed(6);
  const policy = new TinyPolicy().to(F64);
  const vectors = randn([11, 3], F64);
  const trueCodes = randint(0, 11, [2, 5]);
  const classes = tensor([1, 2], INT);
  const context: RolloutContext = { type: "prefix", length: 1 };
  const rollout = sampleRollout(
    policy,
    { classes },
    { context, trueCodes, numGenerations: 3, generator: new Generator(1) },
  );
  const batch = { ...rollout, rewards: randn([2, 3], F64) };
  const codeDistance = { weight: 0.5, vectors };
  const optimizer = new AdamW(policy.parameters(), { lr: 0 });
  const run = (more: object): number =>
    grpoUpdate(policy, optimizer, { ...batch, trueCodes }, { codeDistance, ...more }).metrics[
      "loss/code_distance"
    ] as number;
  const wanted = noGrad(() =>
    tidy(() => {
      const codes = trueCodes.repeatInterleave(3, 0); // [6, 5]
      const read = cat([codes.narrow(1, 0, 1), rollout.tokens.flatten(0, 1)], 1).narrow(1, 0, 4);
      const logits = policy.forward(read, { classes: classes.repeatInterleave(3, 0) }).narrow(1, 1, 4);
      return byTable(logits.logSoftmax(-1), codes.narrow(1, 1, 4), vectors)
        .mean()
        .mul(0.5)
        .item();
    }),
  );
  expectClose(run({}), wanted, { rtol: 1e-9 });
  expectClose(run({ miniBatch: 1 }), wanted, { rtol: 1e-9 });
  expectClose(run({ microBatch: 2 }), wanted, { rtol: 1e-9 });
  const wrong =
    (codeDistance: object): (() => unknown) =>
    () =>
      grpoUpdate(policy, optimizer, { ...batch, trueCodes }, { codeDistance } as object);
  assert.throws(
    wrong({ weight: 1, vectors: randn([10, 3]) }),
    /vectors: expected float \[11, D\], a row for each code/,
  );
  assert.throws(wrong({ weight: -1, vectors }), /codeDistance\.weight: expected/);
  assert.throws(wrong({ weight: 1, points: vectors }), /expected a known option, got points/);
  assert.throws(
    () => grpoUpdate(policy, optimizer, batch, { codeDistance }),
    /expected trueCodes with codeDistance, got none/,
  );
});

test("a run: drawn codes come closer to the true ones; without it nothing is measured", async (t) => {
  const folder = await tinyFolder(t);
  const distances = async (weight: number, name: string): Promise<number[]> => {
    const dir = join(folder, name);
    await quietRun(
      tinyRun(folder, {
        run: { dir },
        update: { codeDistance: weight, auxCe: 0 },
        optimizer: { lr: 1e-2 },
        train: { iters: 12 },
      }),
    );
    return metricsOf(dir).map((record) => record["loss/code_distance"] as number);
  };
  const measured = await distances(2, "with");
  const [first, last] = [measured[0], measured.at(-1)] as [number, number];
  assert.ok(first > 1 && last < 0.8 * first, `${first} to ${last}`);
  const none = await distances(0, "without");
  assert.ok(none.every((value) => value === undefined));
});
