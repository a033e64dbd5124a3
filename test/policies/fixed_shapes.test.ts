/**
 * Decoding in fixed shapes, as on a GPU: the numbers of a growing cache, and steps that all call the same operators with the
 * same arguments, so that one captured step serves every position. Nothing in a step reads a value from the device.
 */
import assert from "node:assert/strict";
import { test } from "node:test";

import { type ArPolicy, type Condition, GPT, IbqAr, LlamaGen } from "../../src/policies/index.js";
import { KvCache } from "../../src/policies/kv_cache.js";
import { native, TAG, tags, values } from "../../src/torch/binding.js";
import {
  manualSeed,
  noGrad,
  ones,
  randint,
  randn,
  setNumThreads,
  type Tensor,
  tensor,
  tidy,
} from "../../src/torch/index.js";
import { expectClose } from "../support/close.js";
import { noLeak } from "../support/leak.js";
import { onMeta, toMeta } from "../support/meta.js";

setNumThreads(1); // Everything here is small.

const COMMON = { vocabSize: 11, blockSize: 9, nLayer: 2, nHead: 2 };
const LLAMA = { ...COMMON, dim: 16, ffnDim: 16 };
const classes = (): Condition => ({ classes: tensor([0, 2], { dtype: "int64" }) });
/** Three features each, of which the first image has one of padding. */
const texts = (): Condition => ({
  features: randn([2, 3, 5]),
  isReal: tensor(
    [
      [0, 1, 1],
      [1, 1, 1],
    ],
    { dtype: "bool" },
  ),
});

interface Case {
  readonly make: () => ArPolicy;
  readonly condition: () => Condition;
  /** Positions before the first code. */
  readonly leading: number;
}

const CASES: Readonly<Record<string, Case>> = {
  GPT: { make: () => new GPT({ ...COMMON, nEmbd: 16, classNum: 3 }), condition: classes, leading: 1 },
  "GPT after features": {
    make: () =>
      new GPT({ ...COMMON, nEmbd: 16, classNum: 0, features: { kind: "prepend", dim: 5, tokens: 3 } }),
    condition: texts,
    leading: 4,
  },
  LlamaGen: { make: () => new LlamaGen({ ...LLAMA, numClasses: 3 }), condition: classes, leading: 1 },
  "LlamaGen after texts": {
    make: () => new LlamaGen({ ...LLAMA, modelType: "t2i", captionDim: 5, clsTokenNum: 3 }),
    condition: texts,
    leading: 3,
  },
  "LlamaGen with shared keys": {
    make: () => new LlamaGen({ ...LLAMA, numClasses: 3, nHead: 4, nKvHead: 2 }),
    condition: classes,
    leading: 1,
  },
  IbqAr: {
    make: () => new IbqAr({ ...COMMON, ffnDim: 16, nEmbd: 16, classNum: 3, alng: 1 }),
    condition: classes,
    leading: 1,
  },
};

/** A policy whose logits depend on what it reads. */
function policyOf({ make }: Case): ArPolicy {
  manualSeed(3);
  const policy = make().eval();
  noGrad(() => {
    for (const [, parameter] of policy.namedParameters()) parameter.add_(randn(parameter.shape).mul(0.2));
  });
  return policy;
}

const fixedCache = (policy: ArPolicy, batch: number): KvCache => {
  using open = policy.openCache(batch) as KvCache;
  return new KvCache({ ...open.size, isFixed: true });
};

for (const [name, one] of Object.entries(CASES)) {
  test(`${name}: a cache of fixed shapes gives the logits of one that grows, after reset and repetition too`, () =>
    noLeak(() =>
      tidy(() => {
        const policy = policyOf(one);
        using growing = policy.openCache(2);
        using fixed = fixedCache(policy, 2);
        using four = fixedCache(policy, 4);
        for (const given of [3, 0]) {
          growing.reset();
          fixed.reset();
          const condition = one.condition();
          const start = randint(0, 11, [2, given]);
          const first = [growing, fixed].map((cache) => policy.prefill(cache, start, condition));
          expectClose(first[1] as Tensor, first[0] as Tensor, { rtol: 0, atol: 0, where: "prefill" });
          policy.repeatCache(fixed, 2, four);
          for (let t = given; t < 8; t++) {
            const token = randint(0, 11, [2]);
            const wanted = policy.decode(growing, token);
            const bounds = { rtol: 1e-5, atol: 1e-5, where: `code ${t} after ${given}` };
            expectClose(policy.decode(fixed, token), wanted, bounds);
            const twice = policy.decode(four, token.repeatInterleave(2, 0));
            expectClose(twice, wanted.repeatInterleave(2, 0), bounds);
          }
        }
        policy.dispose();
      }),
    ));

  test(`${name}: steps on a device other than the CPU call the same operators with the same arguments, and read no value`, () =>
    tidy(() => {
      const policy = onMeta(policyOf(one));
      using cache = policy.openCache(2);
      policy.prefill(cache, toMeta(randint(0, 11, [2, 2])), toMeta(one.condition()));
      const token = toMeta(ones([2], { dtype: "int64" }));
      const steps = [1, 2, 3].map(() => frameOf(() => void policy.decode(cache, token)));
      assert.ok((steps[0] as Frame).calls.length > 20);
      assert.deepEqual(steps[1], steps[0]);
      assert.deepEqual(steps[2], steps[0]);
      assert.equal((steps[0] as Frame).reads, 0);
    }));
}

test("a cache that grows calls operators with other arguments at every step, which the test above would find", () =>
  tidy(() => {
    const policy = policyOf(CASES.LlamaGen as Case);
    using cache = policy.openCache(2);
    policy.prefill(cache, randint(0, 11, [2, 2]), classes());
    const token = ones([2], { dtype: "int64" });
    const [a, b] = [1, 2].map(() => frameOf(() => void policy.decode(cache, token)));
    assert.notDeepEqual(a, b);
    assert.equal(frameOf(() => void token.sum().item()).reads, 1);
  }));

interface Frame {
  /** Each operator with all its arguments but tensors, of which only the shapes. */
  readonly calls: readonly string[];
  /** Values that were read from a tensor. */
  readonly reads: number;
}

function frameOf(fn: () => void): Frame {
  const { call, readBytes } = native;
  const calls: string[] = [];
  let reads = 0;
  native.readBytes = (tensor, array) => {
    reads++;
    readBytes(tensor, array);
  };
  native.call = (operator, count) => {
    const [savedTags, saved] = [tags.slice(0, count), values.slice()];
    const shown = Array.from(savedTags, (tag, slot) => {
      if (tag === TAG.none || tag === TAG.default) return `${tag}`; // the slot holds what was there before
      if (tag !== TAG.tensor) return `${tag}:${saved[slot]}`;
      const rank = native.shape(saved[slot] as number);
      return `[${values.slice(0, rank).join()}]`;
    });
    tags.set(savedTags);
    values.set(saved);
    const name = native.operatorSchema(operator).split("(")[0] as string;
    if (/item|local_scalar|is_nonzero|equal$/.test(name)) reads++;
    calls.push(`${name} ${shown.join(" ")}`);
    return call(operator, count);
  };
  try {
    tidy(fn);
  } finally {
    Object.assign(native, { call, readBytes });
  }
  return { calls, reads };
}
