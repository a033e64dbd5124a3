import assert from "node:assert/strict";
import { test } from "node:test";
import { noisyContext, type RolloutContext, sampleRollout } from "../../src/rl_ar_finetune/rollout.js";
import { scoreCodes } from "../../src/rl_ar_finetune/scoring.js";
import { Generator, manualSeed, noGrad, randint, type Tensor, tensor, tidy } from "../../src/torch/index.js";
import { expectClose } from "../support/close.js";
import { noLeak } from "../support/leak.js";
import { TinyPolicy } from "../support/tiny_policy.js";

const LONG = { dtype: "int64" } as const;
const CONTEXTS: readonly RolloutContext[] = [
  { type: "free" },
  { type: "prefix", length: 2 },
  { type: "teacher_forced" },
  { type: "noisy_teacher_forced", noise: 0.5 },
];

function setUp(seed = 1): { policy: TinyPolicy; start: { classes: Tensor }; trueCodes: Tensor } {
  manualSeed(seed);
  const policy = new TinyPolicy({ vocabSize: 13 });
  return { policy, start: { classes: tensor([0, 1, 2], LONG) }, trueCodes: randint(0, 13, [3, 6]) };
}

test("in every context what was drawn is what is scored, and the pieces fit", () => {
  const { policy, start, trueCodes } = setUp();
  const samplings = [{}, { temperature: 0.8, topK: 5, topP: 0.9, guidance: { scale: 1.7 } }];
  for (const context of CONTEXTS) {
    for (const sampling of samplings) {
      const where = JSON.stringify({ context, sampling });
      const options = { context, numGenerations: 4, trueCodes, sampling, generator: new Generator(3) };
      const rollout = sampleRollout(policy, start, options);
      const t = context.type === "prefix" ? 4 : 6;
      assert.deepEqual(rollout.tokens.shape, [3, 4, t], where);
      assert.deepEqual(rollout.codes.shape, [3, 4, 6], where);
      assert.deepEqual(rollout.codes.narrow(2, 6 - t, t).toList(), rollout.tokens.toList(), where);
      assert.equal(rollout.support === null, samplings.indexOf(sampling) === 0, where);
      const scores = noGrad(() => scoreCodes(policy, rollout, { wantsEntropy: true }));
      expectClose(scores.logprobs, rollout.logprobs, { rtol: 1e-4, atol: 1e-5, where });
      const entropy = rollout.context === null ? rollout.entropy.flatten(0, 1) : rollout.entropy.select(1, 0);
      expectClose(scores.entropy as Tensor, entropy, { rtol: 1e-4, atol: 1e-5, where });
    }
  }
});

test("a prefix holds the true codes", () => {
  const { policy, start, trueCodes } = setUp();
  const { codes } = sampleRollout(policy, start, {
    context: { type: "prefix", length: 2 },
    numGenerations: 3,
    trueCodes,
  });
  for (let g = 0; g < 3; g++)
    assert.deepEqual(codes.select(1, g).narrow(1, 0, 2).toList(), trueCodes.narrow(1, 0, 2).toList());
  const none = sampleRollout(policy, start, {
    context: { type: "prefix", length: 0 },
    numGenerations: 3,
    trueCodes,
    generator: new Generator(1),
  });
  const free = sampleRollout(policy, start, {
    context: { type: "free" },
    numGenerations: 3,
    generator: new Generator(1),
  });
  assert.deepEqual(none.tokens.toList(), free.tokens.toList());
});

test("a teacher-forced context is the true codes, and its G draws have the frequencies of one distribution", () => {
  const { policy, start, trueCodes } = setUp();
  const g = 4000;
  const rollout = sampleRollout(policy, start, {
    context: { type: "teacher_forced" },
    numGenerations: g,
    trueCodes,
    generator: new Generator(7),
  });
  assert.deepEqual(rollout.context?.toList(), trueCodes.narrow(1, 0, 5).toList());
  const p = noGrad(() => policy.forward(trueCodes.narrow(1, 0, 5), start).softmax(-1));
  for (const [b, t] of [
    [0, 0],
    [1, 3],
    [2, 5],
  ] as const) {
    const counts = rollout.tokens.select(0, b).select(1, t).bincount(13).double();
    const want = p.select(0, b).select(0, t).double().mul(g);
    const chi2 = counts.sub(want).square().div(want).sum().item();
    assert.ok(chi2 < 39, `chi-square ${chi2} at image ${b}, position ${t}`); // 99.99 % of 12 degrees of freedom
  }
  // Draws at different positions are independent: as many pairs agree as the two distributions say.
  const agree = rollout.tokens.select(2, 2).eq(rollout.tokens.select(2, 4)).double().mean(1);
  const expectedAgreement = p.select(1, 2).mul(p.select(1, 4)).sum(1).double();
  expectClose(agree, expectedAgreement, { rtol: 0, atol: 4 * Math.sqrt(0.25 / g) });
});

test("greedy in a shared context is the most probable code, the same for all of a group", () => {
  const { policy, start, trueCodes } = setUp();
  const sampling = { greedy: true, temperature: 0.7 };
  const rollout = sampleRollout(policy, start, {
    context: { type: "teacher_forced" },
    numGenerations: 3,
    trueCodes,
    sampling,
  });
  const best = noGrad(() => policy.forward(trueCodes.narrow(1, 0, 5), start).argmax(-1));
  for (let g = 0; g < 3; g++) assert.deepEqual(rollout.tokens.select(1, g).toList(), best.toList());
  expectClose(noGrad(() => scoreCodes(policy, rollout)).logprobs, rollout.logprobs, {
    rtol: 1e-4,
    atol: 1e-5,
  });
});

test("a free rollout is as long as it is told, else as the true codes, else as the policy's block", () => {
  const { policy, start, trueCodes } = setUp();
  const lengthOf = (more: object): number =>
    sampleRollout(policy, start, { context: { type: "free" }, numGenerations: 1, ...more }).codes.size(2);
  assert.deepEqual(
    [lengthOf({ length: 3 }), lengthOf({ trueCodes: trueCodes.narrow(1, 0, 4) }), lengthOf({})],
    [3, 4, 6],
  );
});

test("noise replaces its part of the codes, uniformly, once", () => {
  const codes = randint(5, 6, [200, 101]);
  const noisy = noisyContext(codes, 0.3, 8, new Generator(4));
  assert.deepEqual(noisy.shape, [200, 100]);
  const counts = Array.from(noisy.flatten().bincount(8).toArray(), Number);
  const n = 20000;
  for (const [v, count] of counts.entries()) {
    const p = 0.3 / 8 + (v === 5 ? 0.7 : 0);
    assert.ok(Math.abs(count - n * p) < 4.5 * Math.sqrt(n * p * (1 - p)), `${count} of code ${v}`);
  }
  assert.deepEqual(noisyContext(codes, 0, 8).toList(), codes.narrow(1, 0, 100).toList());
  assert.notDeepEqual(noisyContext(codes, 1, 8).toList(), codes.narrow(1, 0, 100).toList());
  assert.deepEqual(noisyContext(codes, 0.3, 8, new Generator(4)).toList(), noisy.toList());
});

test("one seed gives one rollout, whatever the micro-batch", () => {
  const { policy, start, trueCodes } = setUp();
  for (const context of CONTEXTS) {
    const draw = (seed: number, microBatch?: number): unknown => {
      const generator = new Generator(seed);
      const options = { context, numGenerations: 2, trueCodes, generator, ...(microBatch && { microBatch }) };
      return sampleRollout(policy, start, options).tokens.toList();
    };
    const whole = draw(5);
    assert.deepEqual(draw(5, 1), whole, context.type);
    assert.deepEqual(draw(5, 2), whole, context.type);
    assert.notDeepEqual(draw(6), whole, context.type);
  }
});

test("a kept graph is that of one forward pass, without dropout", () => {
  const { policy, start, trueCodes } = setUp();
  policy.rowsSeen = 0;
  const options = {
    context: { type: "teacher_forced" as const },
    numGenerations: 4,
    trueCodes,
    keepGraph: true,
    microBatch: 1,
  };
  const rollout = sampleRollout(policy, start, options);
  assert.equal(policy.rowsSeen, 3);
  assert.equal(rollout.states?.hidden.requiresGrad, true);
  assert.equal(rollout.logprobs.requiresGrad, false);
  assert.equal(sampleRollout(policy, start, { ...options, keepGraph: false }).states, null);
});

test("a rollout leaves nothing behind but its tensors", () => {
  const { policy, start, trueCodes } = setUp();
  for (const context of CONTEXTS) {
    noLeak(() => {
      tidy(() => {
        sampleRollout(policy, start, { context, numGenerations: 2, trueCodes, sampling: { topK: 3 } });
      });
    });
  }
});

test("contexts that cannot be served are refused", () => {
  const { policy, start, trueCodes } = setUp();
  const roll = (context: RolloutContext, more = {}): unknown =>
    sampleRollout(policy, start, { context, numGenerations: 2, trueCodes, ...more });
  assert.throws(() => roll({ type: "prefix", length: 6 }), {
    name: "RangeError",
    message: "sampleRollout: expected a prefix shorter than the 6 codes, got 6.",
  });
  assert.throws(() => roll({ type: "prefix", length: -1 }), {
    message: "sampleRollout.context.length: expected an integer of at least 0, got -1.",
  });
  assert.throws(() => roll({ type: "noisy_teacher_forced", noise: 1.2 }), {
    message: /context\.noise: .*\[0, 1\].*1\.2/,
  });
  assert.throws(
    () => sampleRollout(policy, start, { context: { type: "teacher_forced" }, numGenerations: 2 }),
    {
      message: "sampleRollout: expected trueCodes for the context teacher_forced, got none.",
    },
  );
  assert.throws(() => roll({ type: "free" }, { keepGraph: true }), {
    message:
      "sampleRollout: expected a teacher-forced context with keepGraph, got free. " +
      "Set keepGraph to false: codes drawn step by step have no graph.",
  });
  assert.throws(
    () =>
      sampleRollout(policy, [trueCodes, start], {
        context: { type: "teacher_forced" },
        numGenerations: 2,
        trueCodes,
      }),
    {
      message: /^sampleRollout: .*without codes.*teacher_forced.*\[3, 6\].*trueCodes/,
    },
  );
});

test("options are named as in JavaScript or Python; a context may be its type alone; others are refused", () => {
  manualSeed(1);
  const policy = new TinyPolicy();
  const start = { classes: tensor([0, 1], LONG) };
  const trueCodes = randint(0, 11, [2, 6]);
  const sample = (options: object): unknown =>
    sampleRollout(policy, start, { generator: new Generator(3), ...options }).tokens.toList();
  assert.deepEqual(sample({}), sample({ context: { type: "free" }, num_generations: 1 }));
  assert.deepEqual(
    sample({ context: "teacher_forced", true_codes: trueCodes }),
    sample({ context: { type: "teacher_forced" }, trueCodes }),
  );
  const refused = (options: object, message: RegExp, name = "RangeError"): void =>
    assert.throws(() => sample({ trueCodes, ...options }), { name, message });
  refused({ numGenerationz: 2 }, /^sampleRollout: .*numGenerationz.*"numGenerations"/);
  refused({ context: { type: "teacher-forced" } }, /context\.type: .*teacher_forced.*teacher-forced/);
  refused({ context: { type: "free", noise: 0.5 } }, /context: .*noise/);
  refused({ context: { type: "prefix", lenght: 2 } }, /context: .*lenght.*"length"/);
  refused({ context: { type: "prefix" } }, /context\.length: .*undefined/);
  refused({ context: { type: "noisy_teacher_forced" } }, /context\.noise: .*undefined/);
  refused({ numGenerations: 1.5 }, /numGenerations: .*1\.5/);
  refused({ microBatch: 0 }, /microBatch: .*0/);
  refused({ sampling: { topk: 1 } }, /sampling: .*topk.*"topK"/);
  refused({ trueCodes: [[1, 2]] }, /trueCodes: .*Tensor/, "TypeError");
});

/** Says whether its head ran packed at each step. */
class Watched extends TinyPolicy {
  readonly seen: boolean[] = [];
  override logits(hidden: Tensor): Tensor {
    this.seen?.push(this.out.packed !== null);
    return super.logits(hidden);
  }
}

test("weights are packed where that pays, for the draws alone, and scoring agrees", () => {
  manualSeed(2);
  using policy = new Watched({ vocabSize: 13, width: 192, blockSize: 40 });
  const start = { classes: tensor([0, 1], LONG) };
  const free = { context: { type: "free" }, numGenerations: 4 } as const;
  const packed = (options: object): boolean[] => {
    policy.seen.length = 0;
    tidy(() => sampleRollout(policy, start, { ...free, generator: new Generator(3), ...options }));
    return [...new Set(policy.seen)];
  };
  assert.deepEqual(packed({ packAs: "float32" }), [true]);
  assert.deepEqual(packed({}), [false]);
  assert.deepEqual(packed({ packAs: "float32", length: 31 }), [false], "few steps");
  assert.deepEqual(packed({ packAs: "float32", numGenerations: 1 }), [false], "few rows");
  assert.deepEqual(packed({ packAs: "float32", microBatch: 1, numGenerations: 3 }), [false], "few rows");
  const trueCodes = randint(0, 13, [2, 40]);
  const shared = { context: { type: "teacher_forced" }, trueCodes, packAs: "float32" };
  assert.deepEqual(packed(shared), [false], "one pass");
  assert.equal(policy.out.packed, null);
  using narrow = new Watched({ vocabSize: 13, width: 184, blockSize: 40 });
  sampleRollout(narrow, start, { ...free, packAs: "float32" });
  assert.deepEqual([...new Set(narrow.seen)], [false], "narrow layers");
  const rollout = sampleRollout(policy, start, { ...free, packAs: "float32", generator: new Generator(3) });
  expectClose(noGrad(() => scoreCodes(policy, rollout)).logprobs, rollout.logprobs, { atol: 1e-5 });
});

test("a policy that is packed is given back plain also when the draw fails", () => {
  using policy = new Watched({ vocabSize: 13, width: 192, blockSize: 40 });
  noGrad(() => policy.out.weight.fill_(Number.NaN));
  const start = { classes: tensor([0, 1], LONG) };
  const draw = () =>
    sampleRollout(policy, start, { context: { type: "free" }, numGenerations: 4, packAs: "float32" });
  assert.throws(draw, /expected finite logits/);
  assert.equal(policy.out.packed, null);
});
