import assert from "node:assert/strict";
import { test } from "node:test";
import type { Condition } from "../../src/policies/index.js";
import { GPT, UncachedPolicy } from "../../src/policies/index.js";
import { sampleCodesWithLogprobs } from "../../src/rl_ar_finetune/sampling.js";
import {
  Generator,
  manualSeed,
  memory,
  setNumThreads,
  type Tensor,
  tensor,
  tidy,
} from "../../src/torch/index.js";

setNumThreads(1);

/** GPT without its cache. */
class Plain extends UncachedPolicy {
  readonly vocabSize = 20;
  readonly blockSize = 6;
  readonly hiddenSize = 16;
  readonly gpt = new GPT({ vocabSize: 20, blockSize: 6, nLayer: 2, nHead: 2, nEmbd: 16, classNum: 3 });

  hidden(tokens: Tensor, condition: Condition): Tensor {
    return this.gpt.hidden(tokens, condition);
  }

  logits(hidden: Tensor): Tensor {
    return this.gpt.logits(hidden);
  }
}

test("a policy without a cache draws the codes of one with a cache, and frees what it kept", () => {
  manualSeed(3);
  using policy = new Plain();
  using classes = tensor([2, 0], { dtype: "int64" });
  const drawWith = (model: Plain | GPT): [codes: unknown, logprobs: number[]] =>
    tidy(() => {
      using generator = new Generator(5);
      const { tokens, logprobs } = sampleCodesWithLogprobs(model, { classes }, 6, {
        numGenerations: 3,
        generator,
      });
      return [tokens.toList(), logprobs.flatten().toList() as number[]];
    });
  const before = memory().tensors;
  const [codes, logprobs] = drawWith(policy);
  assert.equal(memory().tensors, before);
  const [wanted, exact] = drawWith(policy.gpt);
  assert.deepEqual(codes, wanted);
  for (const [i, value] of logprobs.entries()) assert.ok(Math.abs(value - (exact[i] as number)) < 1e-5);
});

test("guidance without a null class and the caches of other policies are refused", () => {
  using policy = new Plain();
  using classes = tensor([1], { dtype: "int64" });
  assert.throws(
    () => sampleCodesWithLogprobs(policy, { classes }, 2, { guidance: { scale: 2 } }),
    /expected classes in both conditions/,
  );
  using other = policy.gpt.openCache(1);
  assert.throws(() => policy.decode(other, classes), /UncachedPolicy: expected a cache of openCache/);
  using empty = policy.openCache(1);
  assert.throws(() => policy.decode(empty, classes), /decode: expected a cache with a condition/);
});
