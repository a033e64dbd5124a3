/** A thousand training steps hold no more at the end than after the first: handles, LibTorch's bytes, the process. */
import assert from "node:assert/strict";
import { test } from "node:test";

import {
  autocast,
  cat,
  checkpoint,
  customFunction,
  functional as F,
  Generator,
  manualSeed,
  memory,
  noGrad,
  ones,
  rand,
  randint,
  randn,
  saveRandomState,
  setNumThreads,
  stream,
  type Tensor,
  tidy,
} from "../../src/torch/index.js";
import "../support/settle.js";

setNumThreads(1);

const STEPS = 1000;
const WARM_UP = 100;
/** What V8 and the C library may take up or give back at their pleasure; a leaked step would be more than this. */
const SLACK = process.env.ASAN_OPTIONS === undefined ? 24 << 20 : 400 << 20; // the sanitizer keeps what was freed

/** Run `step` a thousand times after a warm-up and compare what is held before and after. */
async function expectFlat(step: (i: number) => void, slack: number = SLACK): Promise<void> {
  // Between turns, as in a real loop: there the collector works and graphs' functions are let go.
  const run = async (count: number): Promise<void> => {
    for (let i = 0; i < count; i++) {
      step(i);
      if (i % 50 === 49) await new Promise((resolve) => setImmediate(resolve));
    }
  };
  await run(WARM_UP);
  const before = memory();
  const rss = process.memoryUsage.rss();
  await run(STEPS);
  const after = memory();
  assert.deepEqual(
    { tensors: after.tensors, generators: after.generators, bytes: after.bytes },
    { tensors: before.tensors, generators: before.generators, bytes: before.bytes },
  );
  const grown = process.memoryUsage.rss() - rss;
  assert.ok(grown < slack, `the process grew by ${(grown / 2 ** 20).toFixed(1)} MiB in ${STEPS} steps`);
}

const D = 64;

interface Model {
  weights: Tensor[];
  momenta: Tensor[];
}

/** Kept until the process ends, so that no collector changes the counts. */
const models: Model[] = [];

function newModel(): Model {
  manualSeed(0);
  const model = tidy(() => {
    const weights = [randn([D, D]), randn([D, D]), ones([D])].map((each) => each.mul(0.1).requiresGrad_());
    return { weights, momenta: weights.map((each) => each.detach().mul(0)) };
  });
  models.push(model);
  return model;
}

function update({ weights, momenta }: Model): void {
  noGrad(() =>
    tidy(() => {
      for (const [i, weight] of weights.entries()) {
        const momentum = momenta[i] as Tensor;
        momentum.mul_(0.9).add_(weight.grad as Tensor);
        weight.sub_(momentum, 1e-3);
        weight.grad = null;
      }
    }),
  );
}

/** 32 KiB of activations a tensor: a thousand leaked ones would be seen in every count. */
const batch = (): Tensor => rand([128, D]);

const block = ({ weights }: Model, x: Tensor): Tensor => {
  const [w1, w2, gain] = weights as [Tensor, Tensor, Tensor];
  return tidy(() => F.layerNorm(x.matmul(w1).gelu().matmul(w2).add(x), [D], gain));
};

test("forward, backward and update", async () => {
  const model = newModel();
  await expectFlat(() =>
    tidy(() => {
      const loss = F.mseLoss(block(model, block(model, batch())), batch());
      loss.backward();
      update(model);
      assert.ok(Number.isFinite(loss.item()));
    }),
  );
});

test("with functions of one's own, checkpoints, autocast, streams and losses over a vocabulary", async () => {
  const model = newModel();
  await expectFlat((i) =>
    tidy(() => {
      using generator = stream(1, "batch", i);
      const x = rand([128, D], { generator });
      const targets = randint(0, D, [128], { generator });
      const loss = autocast({ device: "cpu", dtype: "bfloat16" }, () => {
        const hidden = checkpoint(
          (y) => F.dropout(block(model, y), 0.1, true),
          [checkpoint((y) => block(model, y), [x])],
        );
        const [doubled] = customFunction(
          [hidden],
          () => ({ outputs: [hidden.mul(2)], saved: [hidden] }),
          ([gradient]) => [(gradient as Tensor).mul(2)],
        ) as [Tensor];
        return F.crossEntropy(doubled, targets);
      });
      loss.backward();
      update(model);
    }),
  );
});

test("with an error in every step: in an operator, in tidy, in a backward, in a checkpoint", async () => {
  const model = newModel();
  await expectFlat((i) => {
    const fail = (..._: unknown[]): never => {
      throw new Error("step");
    };
    const x = (): Tensor => block(model, batch());
    const ways: (() => void)[] = [
      () => x().matmul(ones([3])),
      () => fail(cat([x(), x()])),
      () =>
        (customFunction([x()], () => ({ outputs: [x().sum()], saved: [x()] }), fail)[0] as Tensor).backward(),
      () => {
        let runs = 0;
        checkpoint((y) => (runs++ === 0 ? block(model, y) : fail()), [x()])
          .sum()
          .backward();
      },
      () => customFunction([x()], fail, () => []),
      () => tidy(async () => x()),
      () => new Generator(0.5),
    ];
    assert.throws(() => tidy(ways[i % ways.length] as () => void));
    for (const weight of model.weights) weight.grad = null;
  });
});

test("tensors outside scopes, disposed of or left to the collector", async () => {
  await expectFlat(() => {
    for (let i = 0; i < 20; i++) rand([128]).dispose();
    const state = saveRandomState();
    for (const each of Object.values(state)) each.dispose();
  });
  const before = memory().tensors;
  for (let i = 0; i < 200; i++) {
    for (let j = 0; j < 50; j++) rand([1024]);
    await new Promise((resolve) => setImmediate(resolve));
  }
  // The collector comes when it likes, but it knows of 40 MB behind 10,000 small objects, and it comes.
  assert.ok(memory().tensors - before < 10_000, `${memory().tensors - before} of 10,000 are still open`);
});

test("large temporaries are used again: the process does not grow", async () => {
  const step = (i: number): void => {
    tidy(
      () =>
        void ones([512 + (i % 7) * 64, 512])
          .add(1)
          .mul(2)
          .sum()
          .item(),
    );
  };
  // One to two MiB a tensor: those of a hundred steps would pass this.
  await expectFlat(step, 4 * SLACK);
});
