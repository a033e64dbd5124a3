/** Draws for an evaluation: independent of the batch, likelihoods by hand, classes in their shares. */
import assert from "node:assert/strict";
import { test } from "node:test";

import {
  asSaved,
  classesOfFreeSamples,
  drawCompletions,
  drawFree,
  forEachDecoded,
  likelihoodOf,
} from "../../src/evaluation/draws.js";
import { manualSeed, type Tensor, tensor, tidy } from "../../src/torch/index.js";
import { expectClose } from "../support/close.js";
import {
  CODES,
  cellTokenizer,
  LEVELS,
  PATTERNS,
  rightPolicy,
  SIZE,
  TablePolicy,
  uniformPolicy,
} from "../support/eval_toys.js";
import { TinyPolicy } from "../support/tiny_policy.js";

const ids = (classes: readonly number[]): Tensor => tensor([...classes], { dtype: "int64" });

function tiny(batch: number) {
  manualSeed(3);
  const policy = new TinyPolicy({ vocabSize: 11, blockSize: 6, classes: 3 });
  return { policy, device: "cpu" as const, batch };
}

test("free samples are the same however many are drawn at a time, and other for another seed", () => {
  const condition = { classes: ids([0, 1, 2, 0, 1, 2, 2]) };
  const sampling = { temperature: 0.9, guidance: { scale: 1.5 } };
  const draw = (batch: number, seed: number): unknown =>
    drawFree(tiny(batch), condition, { count: 7, codes: 6, sampling, seed }).toList();
  const all = draw(100, 4);
  for (const batch of [1, 3, 7]) assert.deepEqual(draw(batch, 4), all);
  assert.notDeepEqual(draw(100, 5), all);
});

test("nothing as a condition draws as many as are asked for", () => {
  const drawer = { policy: uniformPolicy(), device: "cpu" as const, batch: 3 };
  const codes = drawFree(drawer, {}, { count: 400, codes: CODES, sampling: {}, seed: 0 });
  assert.deepEqual(codes.shape, [400, CODES]);
  const shares = codes
    .flatten()
    .bincount(LEVELS)
    .double()
    .div(400 * CODES);
  for (const share of shares.toList() as number[])
    assert.ok(Math.abs(share - 1 / LEVELS) < 0.05, String(share));
});

test("completions keep what was given, and the draws of an image stand together", () => {
  const trueCodes = ids([1, 2, 3, 4, 5, 6, 6, 5, 4, 3, 2, 1, 0, 0, 0, 0, 0, 0]).reshape(3, 6);
  const condition = { classes: ids([0, 1, 2]) };
  const draw = (batch: number): Tensor =>
    drawCompletions(tiny(batch), trueCodes, condition, { prefix: 4, draws: 5, sampling: {}, seed: 1 });
  const codes = draw(128);
  assert.deepEqual(codes.shape, [15, 6]);
  const given = trueCodes.narrow(1, 0, 4).repeatInterleave(5, 0);
  assert.ok(codes.narrow(1, 0, 4).equal(given));
  for (const batch of [1, 5, 11]) assert.ok(draw(batch).equal(codes), `batch ${batch}`);
  const whole = rightPolicy();
  const right = ids([...(PATTERNS[1] ?? [])]).reshape(1, CODES);
  const completed = drawCompletions(
    { policy: whole, device: "cpu", batch: 8 },
    right,
    { classes: ids([1]) },
    {
      prefix: 0,
      draws: 2,
      sampling: {},
      seed: 0,
    },
  );
  assert.ok(completed.equal(right.expand(2, CODES)), "no code given, and drawn by the class alone");
});

test("likelihoods are the mean of -log p over an image's codes, and the share that is the most probable", () => {
  // p = [1/2, 1/4, 1/8, 1/8] at every position.
  const row = [Math.log(4), Math.log(2), 0, 0];
  const policy = new TablePolicy([[row, row, row, row]]);
  const codes = ids([0, 0, 0, 0, 0, 1, 2, 3, 3, 3, 3, 3]).reshape(3, 4);
  for (const batch of [1, 2, 3]) {
    const { nats, top1 } = likelihoodOf({ policy, device: "cpu", batch }, codes, {});
    expectClose(nats, [Math.log(2), (Math.log(2) * (1 + 2 + 3 + 3)) / 4, Math.log(8)], { rtol: 1e-6 });
    expectClose(top1, [1, 0.25, 0]);
  }
  const even = likelihoodOf({ policy: uniformPolicy(), device: "cpu", batch: 8 }, codes, {});
  expectClose(even.nats, [Math.log(4), Math.log(4), Math.log(4)], { rtol: 1e-6 });
});

test("a policy that was training still is", () => {
  const { policy } = tiny(4);
  policy.train();
  likelihoodOf({ policy, device: "cpu", batch: 4 }, ids([0, 0, 0, 0, 0, 0]).reshape(1, 6), {});
  assert.equal(policy.training, true);
});

test("images are decoded in pieces, each as 8 bits a channel keep it", () => {
  const tokenizer = cellTokenizer();
  const codes = ids(PATTERNS.flat()).reshape(2, CODES);
  const many = tidy(() => codes.repeat(75, 1));
  const seen: number[] = [];
  let count = 0;
  forEachDecoded(tokenizer, many, { size: SIZE, device: "cpu", multiple: 3 }, (images, from) => {
    assert.equal(from, count);
    seen.push(images.size(0));
    count += images.size(0);
  });
  assert.equal(count, 150);
  assert.deepEqual(seen, [63, 63, 24], "64 images at a time, in threes");
  const values = asSaved(tensor([-3, -1, -0.999, 0, 0.5, 1, 7]));
  expectClose(
    values,
    [0, 0, 0, 128, 191, 255, 255].map((byte) => byte / 127.5 - 1),
    { atol: 1e-6 },
  );
});

test("classes come in the data's shares, or alike, in an order that the seed decides", () => {
  const count = (classes: number[]): number[] =>
    [0, 1, 2, 3].map((c) => classes.filter((of) => of === c).length);
  assert.deepEqual(count(classesOfFreeSamples([58, 0, 21, 21], 100, "data", 0)), [58, 0, 21, 21]);
  // 10 of 3 alike: the remainders are equal, so the first takes the rest.
  assert.deepEqual(count(classesOfFreeSamples([5, 5, 5], 10, "data", 0)), [4, 3, 3, 0]);
  assert.deepEqual(count(classesOfFreeSamples([58, 0, 21, 21], 7, "balanced", 0)), [3, 0, 2, 2]);
  assert.deepEqual(classesOfFreeSamples([3, 3], 20, "data", 1), classesOfFreeSamples([3, 3], 20, "data", 1));
  assert.notDeepEqual(
    classesOfFreeSamples([3, 3], 20, "data", 1),
    classesOfFreeSamples([3, 3], 20, "data", 2),
  );
  assert.throws(() => classesOfFreeSamples([0, 0], 4, "data", 0), {
    message: "classesOfFreeSamples: expected at least one training image, got none.",
  });
});
