/** Prefixes of several lengths in one batch, some images without any: given codes are read, and count nowhere. */
import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";
import { resolveConfig } from "../../src/config/resolve.js";
import { grpoUpdate } from "../../src/rl_ar_finetune/optimize.js";
import { type Rollout, sampleRollout } from "../../src/rl_ar_finetune/rollout.js";
import { scoreCodes } from "../../src/rl_ar_finetune/scoring.js";
import { Generator, keep, manualSeed, rand, type Tensor, tensor, tidy } from "../../src/torch/index.js";
import { expectClose } from "../support/close.js";
import { TinyPolicy } from "../support/tiny_policy.js";
import { metricsOf, quietRun, tinyFolder, tinyRun } from "../support/train_run.js";

const [B, G, T] = [8, 2, 6];
const F64 = { dtype: "float64" } as const;

/** B = 8 images with prefixes of 1 to 4 of 6 codes, about a third without. */
function scene(): {
  policy: TinyPolicy;
  trueCodes: Tensor;
  draw: (from: number, count: number, more?: object) => Rollout;
} {
  manualSeed(2);
  const policy = new TinyPolicy({ vocabSize: 9, blockSize: T, width: 8, classes: 3 }).to(F64);
  const trueCodes = tensor(
    Array.from({ length: B }, (_, b) => Array.from({ length: T }, (_, t) => (3 * b + t) % 9)),
    { dtype: "int64" },
  );
  const context = { type: "prefix", length: 4, shortest: 1, free: 0.34 } as const;
  const draw = (from: number, count: number, more: object = {}): Rollout => {
    using generator = new Generator(7);
    const codes = trueCodes.narrow(0, from, count);
    const start = { classes: codes.select(1, 0).mul(0) };
    const options = { context, numGenerations: G, trueCodes: codes, generator, ...more };
    return sampleRollout(policy, start, options);
  };
  return { policy, trueCodes, draw };
}

test("lengths come from two numbers per image; given codes are the true ones and masked, others have their log-probability", () =>
  tidy(() => {
    const { policy, trueCodes, draw } = scene();
    const rollout = draw(0, B);
    using generator = new Generator(7);
    const u = rand([B, 2], { dtype: "float64", generator }).toList() as [number, number][];
    const lengths = u.map(([isFree, place]) => (isFree < 0.34 ? 0 : 1 + Math.floor(place * 4)));
    assert.ok(lengths.includes(0) && new Set(lengths).size > 2, lengths.join());
    assert.deepEqual(rollout.tokens.shape, [B, G, T]);
    const mask = rollout.mask?.toList() as number[][][];
    const codes = rollout.codes.toList() as number[][][];
    const truth = trueCodes.toList() as number[][];
    for (const [b, length] of lengths.entries()) {
      for (let g = 0; g < G; g++) {
        assert.deepEqual(
          mask[b]?.[g],
          Array.from({ length: T }, (_, t) => (t < length ? 0 : 1)),
        );
        assert.deepEqual(codes[b]?.[g]?.slice(0, length), truth[b]?.slice(0, length));
      }
    }
    const { logprobs } = scoreCodes(policy, rollout);
    expectClose(rollout.logprobs, logprobs.to({ dtype: rollout.logprobs.dtype }), { rtol: 1e-5, atol: 1e-6 });
    // The same for any micro-batch and for a part of the batch.
    for (const part of [draw(0, B, { microBatch: 3 }), draw(5, 3, { place: { from: 5, of: B } })]) {
      const first = B - part.tokens.size(0);
      for (const name of ["tokens", "codes", "mask"] as const)
        assert.deepEqual(
          (part[name] as Tensor).toList(),
          (rollout[name] as Tensor).narrow(0, first, B - first).toList(),
          name,
        );
    }
  }));

test("without free images the shortest prefix is no part of the tokens; one length is the plain prefix", () =>
  tidy(() => {
    const { draw } = scene();
    const varied = draw(0, B, { context: { type: "prefix", length: 3, shortest: 2 } });
    assert.deepEqual(
      [varied.tokens.shape, varied.codes.shape],
      [
        [B, G, T - 2],
        [B, G, T],
      ],
    );
    const plain = draw(0, B, { context: { type: "prefix", length: 3 } });
    const same = draw(0, B, { context: { type: "prefix", length: 3, shortest: 3, free: 0 } });
    assert.deepEqual([plain.mask, same.mask], [undefined, undefined]);
    assert.deepEqual(same.codes.toList(), plain.codes.toList());
    for (const [context, pattern] of [
      [
        { type: "prefix", length: 3, shortest: 4 },
        /shortest: expected an integer from 0 to the length 3, got 4/,
      ],
      [{ type: "prefix", length: 3, free: 2 }, /free: expected a number in \[0, 1\], got 2/],
      [{ type: "free", shortest: 1 }, /shortest/],
    ] as const)
      assert.throws(() => draw(0, B, { context }), pattern);
    const context = { type: "prefix", length: 3, shortest: 1 };
    assert.throws(() => draw(0, B, { context, sampling: { topK: 2 } }), /no top-k and top-p with prefixes/);
  }));

test("the loss is the mean over the codes that were drawn", () =>
  tidy(() => {
    const { policy, draw } = scene();
    const rollout = draw(0, B);
    const rewards = tensor(
      Array.from({ length: B }, (_, b) => [b % 3, 1]),
      F64,
    );
    const gradients = (): Record<string, Tensor> =>
      Object.fromEntries(
        policy
          .namedParameters()
          .flatMap(([name, { grad }]) => (grad ? [[name, keep(grad.clone())] as const] : [])),
      );
    let got: Record<string, Tensor> = {};
    const optimizer = {
      step: () => {
        got = gradients();
      },
      zeroGrad: () => policy.zeroGrad(),
    };
    const { metrics } = grpoUpdate(policy, optimizer, { ...rollout, rewards }, { scale: "none" });
    assert.ok((metrics["sampling/logp_diff_max"] as number) < 1e-5);
    const mask = (rollout.mask as Tensor).double();
    const advantages = rewards.sub(rewards.mean(1, { keepdim: true })).unsqueeze(2);
    const { logprobs } = scoreCodes(policy, rollout);
    logprobs.mul(advantages).mul(mask).sum().div(mask.sum()).neg().backward();
    const wanted = gradients();
    assert.deepEqual(Object.keys(got), Object.keys(wanted));
    for (const [name, value] of Object.entries(wanted))
      expectClose(got[name] as Tensor, value, { rtol: 1e-6, atol: 1e-9, where: name });
  }));

test("runs of every algorithm, the same after a resume; what does not go together is refused", async (t) => {
  const folder = await tinyFolder(t);
  const context = { type: "prefix", length: 10, shortest: 2, free: 0.3 };
  const run = async (name: string, algorithm: string, iters: number) => {
    const where = { dir: join(folder, name), ifExists: "resume" };
    const optimizer = { schedule: "constant", warmup: 0 };
    const common = { run: where, rollout: { context }, optimizer, log: { every: 1 } };
    await quietRun(tinyRun(folder, { ...common, algorithm, kl: { coef: 0.1 }, train: { iters } }));
    return metricsOf(where.dir) as Record<string, number>[];
  };
  for (const algorithm of ["reinforce", "rloo", "grpo", "ppo"]) {
    for (const line of await run(algorithm, algorithm, 2)) {
      assert.ok((line["sampling/logp_diff_max"] as number) < 1e-4, algorithm);
      assert.ok((line["optim/grad_norm"] as number) > 0, algorithm);
      assert.ok((line["progress/tokens_seen"] as number) < 2 * 4 * 2 * 16, algorithm);
    }
  }
  await run("parts", "grpo", 1);
  assert.deepEqual(await run("parts", "grpo", 2), await run("grpo", "grpo", 2));
  const refused = (changes: object): (() => unknown) => {
    return () => resolveConfig({ values: changes, isComplete: false });
  };
  const prefix = { type: "prefix", length: 4 };
  assert.throws(
    refused({ rollout: { context: { ...prefix, shortest: 5 } } }),
    /shortest: expected at most rollout\.context\.length 4, got 5/,
  );
  assert.throws(
    refused({ rollout: { context: { ...prefix, shortest: 1 }, topK: 5 } }),
    /topK: expected 0 with prefixes/,
  );
  assert.throws(
    refused({ rollout: { context: { ...prefix, free: 0.5 } }, reward: { credit: "place" } }),
    /credit: expected sequence/,
  );
});
