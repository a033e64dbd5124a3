import assert from "node:assert/strict";
import { test } from "node:test";
import { GPT } from "../../src/policies/index.js";
import { sampleRollout } from "../../src/rl_ar_finetune/rollout.js";
import {
  distribution,
  drawCodes,
  entropyOf,
  guidanceScale,
  mapStart,
  packSupport,
  type Sampled,
  type Sampling,
  type Start,
  sampleCodesWithLogprobs,
  startParts,
  unpackSupport,
  withoutDropout,
} from "../../src/rl_ar_finetune/sampling.js";
import { passesOf, scoreCodes } from "../../src/rl_ar_finetune/scoring.js";
import {
  arange,
  call,
  Generator,
  loadSafetensors,
  manualSeed,
  memory,
  noGrad,
  ones,
  type Tensor,
  tensor,
  tidy,
  where,
} from "../../src/torch/index.js";
import { expectClose } from "../support/close.js";
import { noLeak } from "../support/leak.js";
import { golden } from "../support/rl_golden.js";
import { TinyPolicy } from "../support/tiny_policy.js";

const F64 = { dtype: "float64" } as const;
const softmax = (logits: readonly number[]): number[] => {
  const e = logits.map((x) => Math.exp(x));
  const sum = e.reduce((a, b) => a + b, 0);
  return e.map((x) => x / sum);
};

/** Every transform, and several at once. */
const SAMPLINGS: Readonly<Record<string, Sampling>> = {
  plain: {},
  temperature: { temperature: 0.7 },
  "top-k": { topK: 4 },
  "top-p": { topP: 0.8 },
  guidance: { guidance: { scale: 2.5 } },
  "growing guidance": { guidance: { scale: 3, schedule: "power_cosine", power: 1.5 } },
  all: { temperature: 1.3, topK: 7, topP: 0.9, guidance: { scale: 1.8, interval: [0, 3] } },
};

function policyWith(seed: number, options = {}): TinyPolicy {
  manualSeed(seed);
  return new TinyPolicy(options);
}

test("temperature divides the logits", () => {
  const logp = distribution(tensor([2, 1, 0], F64), { temperature: 2 });
  expectClose(logp.exp(), softmax([1, 0.5, 0]), { rtol: 1e-12 });
});

test("top-k keeps k codes and renormalises them, as in the golden truncation", () => {
  const logits = tensor([2, 1, 0, -1, -2], F64);
  const p = distribution(logits, { topK: 3 }).exp();
  expectClose(p, [...softmax([2, 1, 0]), 0, 0], { rtol: 1e-12 });
  const full = distribution(logits).exp();
  const kept = p.gt(0).mul(full).sum().item();
  expectClose(kept, golden.topk_truncation.kept_mass, { rtol: 1e-9 });
  expectClose(
    p.mul(full.div(p).nanToNum(0, 0)).sum().item(),
    golden.topk_truncation.mean_ratio_full_over_trunc,
    { rtol: 1e-9 },
  );
  expectClose(distribution(logits, { topK: 9 }), distribution(logits), { rtol: 0 });
});

test("a code that ties with the k-th is kept", () => {
  const p = distribution(tensor([1, 0, 0, -1], F64), { topK: 2 }).exp();
  expectClose(p, [...softmax([1, 0, 0]), 0], { rtol: 1e-12 });
});

test("top-p keeps the first code above the threshold, whatever the order of the codes", () => {
  const logits = tensor([0.1, 0.4, 0.2, 0.3], F64).log();
  const kept = (topP: number): unknown => distribution(logits, { topP }).gt(-Infinity).toList();
  assert.deepEqual(kept(0.3), [0, 1, 0, 0]);
  assert.deepEqual(kept(0.5), [0, 1, 0, 1]);
  assert.deepEqual(kept(0.75), [0, 1, 1, 1]);
  assert.deepEqual(kept(0.95), [1, 1, 1, 1]);
  assert.deepEqual(kept(1e-6), [0, 1, 0, 0]);
});

test("top-p counts the mass that top-k left", () => {
  const logits = tensor([0.4, 0.3, 0.2, 0.1], F64).log();
  // Of 0.4 + 0.3 the first has 0.571: more than 0.55, though 0.4 alone is less.
  const p = distribution(logits, { topK: 2, topP: 0.55 }).exp();
  expectClose(p, [1, 0, 0, 0], { rtol: 1e-12, atol: 1e-15 });
});

test("guidance comes before temperature, and is the golden mix of conditional and null logits", () => {
  const { scale, guided, cond } = golden.cfg;
  const logits = tensor([2, 1, 0, -1], F64);
  const nullLogits = tensor([1, 1, 1, 1], F64);
  expectClose(distribution(logits, {}, { nullLogits, scale }).exp(), guided, { rtol: 1e-9 });
  expectClose(distribution(logits, {}, { nullLogits, scale: 1 }).exp(), cond, { rtol: 1e-9 });
  // A filter sees guided logits: it cuts what guidance made improbable, not what was so before.
  const swapped = distribution(
    tensor([1, 0.9], F64),
    { topK: 1 },
    { nullLogits: tensor([1, 0], F64), scale: 3 },
  );
  expectClose(swapped.exp(), [0, 1], { rtol: 0 });
});

test("guidance along the sequence: constant, growing, and only in an interval", () => {
  assert.equal(guidanceScale({ scale: 3 }, 5, 10), 3);
  assert.equal(guidanceScale({ scale: 3, schedule: "power_cosine" }, 0, 10), 1);
  expectClose(guidanceScale({ scale: 3, schedule: "power_cosine" }, 5, 10), 2, { rtol: 1e-12 });
  expectClose(
    guidanceScale({ scale: 3, schedule: "power_cosine", power: 2 }, 5, 10),
    1 + (1 - Math.SQRT1_2),
    { rtol: 1e-12 },
  );
  assert.deepEqual(
    [1, 2, 3, 4].map((i) => guidanceScale({ scale: 3, interval: [2, 4] }, i, 10)),
    [1, 3, 3, 1],
  );
});

test("log-probabilities are differentiable where codes are kept, and nothing is NaN where they are cut", () => {
  const logits = tensor([[2, 1, 0, -1]], { ...F64, requiresGrad: true });
  const logp = distribution(logits, { topK: 2 });
  logp.select(1, 0).add(entropyOf(logp)).sum().backward();
  const [p, q] = softmax([2, 1]) as [number, number];
  // d logp_0 = (1 - p, -q); dH = -p (log p + H), -q (log q + H)
  const h = -p * Math.log(p) - q * Math.log(q);
  expectClose(logits.grad as Tensor, [[1 - p - p * (Math.log(p) + h), -q - q * (Math.log(q) + h), 0, 0]], {
    rtol: 1e-9,
  });
});

test("a support comes back from its bytes, and stands for the filter", () => {
  const logits = tensor([[3, 1, 2, 0, -1, 5, 4, -2, 0.5, 6, 1.5]], F64);
  const logp = distribution(logits, { topK: 5 });
  const support = packSupport(logp);
  assert.deepEqual([support.dtype, ...support.shape], ["uint8", 1, 2]);
  assert.deepEqual(support.toList(), [[0b01100101, 0b010]]);
  assert.deepEqual(unpackSupport(support, 11).toList(), logp.gt(-Infinity).toList());
  const moved = logits.neg(); // another policy: its own five best are others
  const scored = distribution(moved, { topK: 5 }, { support });
  assert.deepEqual(scored.gt(-Infinity).toList(), logp.gt(-Infinity).toList());
  expectClose(scored.exp().sum().item(), 1, { rtol: 1e-12 });
});

test("a draw inverts the cumulative distribution", () => {
  const p = tensor([
    [0.25, 0, 0.5, 0.25],
    [0, 0, 0, 1],
  ]);
  const u = tensor(
    [
      [0, 0.2499, 0.25, 0.7499, 0.75],
      [0, 0.1, 0.5, 0.9, 1 - 2 ** -53],
    ],
    F64,
  );
  assert.deepEqual(drawCodes(p, u).toList(), [
    [0, 0, 2, 2, 3],
    [3, 3, 3, 3, 3],
  ]);
});

test("samples have the frequencies of the distribution, under every transform", () => {
  const policy = policyWith(3, { vocabSize: 9, blockSize: 4 });
  const n = 6000;
  for (const [name, sampling] of Object.entries(SAMPLINGS)) {
    tidy(() => {
      const one = tensor([1], { dtype: "int64" });
      const { tokens } = sampleCodesWithLogprobs(policy, { classes: one }, 1, {
        ...sampling,
        numGenerations: n,
        generator: new Generator(11),
      });
      const logits = policy
        .forward(tensor([[]], { dtype: "int64" }).reshape(1, 0), { classes: one })
        .select(1, 0);
      const nullLogits = policy.forward(tensor([[]], { dtype: "int64" }).reshape(1, 0), {}).select(1, 0);
      const scale = sampling.guidance ? guidanceScale(sampling.guidance, 0, policy.blockSize) : 1;
      const p = distribution(logits, sampling, sampling.guidance ? { nullLogits, scale } : {})
        .exp()
        .toArray();
      const counts = tokens.flatten().bincount(9).toArray();
      let chi2 = 0;
      let cells = 0;
      for (let v = 0; v < 9; v++) {
        const want = n * (p[v] as number);
        if (want === 0) assert.equal(Number(counts[v]), 0, `${name}: code ${v} was cut and drawn`);
        else {
          chi2 += (Number(counts[v]) - want) ** 2 / want;
          cells++;
        }
      }
      // The 99.99 % quantile of chi-square with 8 degrees of freedom is 31.8, and less with fewer.
      assert.ok(cells > 1 && chi2 < 31.8, `${name}: chi-square ${chi2} over ${cells} codes`);
    });
  }
});

test("what is sampled is what is scored, under every transform", () => {
  const policy = policyWith(5);
  for (const [name, sampling] of Object.entries(SAMPLINGS)) {
    tidy(() => {
      const start = { classes: tensor([0, 1, 2], { dtype: "int64" }) };
      const drawn = sampleCodesWithLogprobs(policy, start, 6, { ...sampling, generator: new Generator(2) });
      const scored = noGrad(() => scoreCodes(policy, { ...drawn, start, sampling }, { wantsEntropy: true }));
      expectClose(scored.logprobs, drawn.logprobs, { rtol: 1e-4, atol: 1e-5, where: name });
      expectClose(scored.entropy as Tensor, drawn.entropy, { rtol: 1e-4, atol: 1e-5, where: name });
      const again = noGrad(() => scoreCodes(policy, { tokens: drawn.tokens, start, sampling }));
      expectClose(again.logprobs, drawn.logprobs, {
        rtol: 1e-4,
        atol: 1e-5,
        where: `${name}, without a support`,
      });
      const bare = noGrad(() => scoreCodes(policy, { tokens: drawn.tokens, start }));
      const off = bare.logprobs.sub(drawn.logprobs).abs().amax().item();
      if (name !== "plain")
        assert.ok(off > 0.05, `${name}: scoring without the transform must show, got ${off}`);
    });
  }
});

test("a seed repeats, rows do not depend on the rows after them, and sampling in parts is sampling at once", () => {
  const policy = policyWith(7);
  const classes = tensor([0, 1, 2, 0, 1], { dtype: "int64" });
  const draw = (rows: Tensor, generator: Generator, numGenerations = 2): unknown[] =>
    sampleCodesWithLogprobs(policy, { classes: rows }, 5, {
      generator,
      numGenerations,
    }).tokens.toList() as unknown[];
  const whole = draw(classes, new Generator(9));
  assert.deepEqual(draw(classes, new Generator(9)), whole);
  assert.notDeepEqual(draw(classes, new Generator(10)), whole);
  assert.deepEqual(draw(classes.narrow(0, 0, 2), new Generator(9)), whole.slice(0, 4));
  const generator = new Generator(9);
  const parts = [draw(classes.narrow(0, 0, 3), generator), draw(classes.narrow(0, 3, 2), generator)];
  assert.deepEqual(parts.flat(), whole);
});

test("a group that shares its prefill draws what repeated starts draw", () => {
  const policy = policyWith(7);
  const classes = tensor([0, 2], { dtype: "int64" });
  const given = tensor(
    [
      [1, 2],
      [3, 4],
    ],
    { dtype: "int64" },
  );
  const shared = sampleCodesWithLogprobs(policy, [given, classes], 4, {
    numGenerations: 3,
    generator: new Generator(1),
  });
  const start = [given.repeatInterleave(3, 0), classes.repeatInterleave(3, 0)] as const;
  const repeated = sampleCodesWithLogprobs(policy, start, 4, { generator: new Generator(1) });
  assert.deepEqual(shared.tokens.toList(), repeated.tokens.toList());
  expectClose(shared.logprobs, repeated.logprobs, { rtol: 1e-5 });
});

test("greedy takes the most probable code and reports its log-probability", () => {
  const policy = policyWith(8);
  const start = { classes: tensor([0, 1], { dtype: "int64" }) };
  const { tokens, logprobs } = sampleCodesWithLogprobs(policy, start, 6, { greedy: true, temperature: 0.5 });
  const logits = policy.forward(tokens.narrow(1, 0, 5), start);
  assert.deepEqual(logits.argmax(-1).toList(), tokens.toList());
  const wanted = distribution(logits, { temperature: 0.5 }).amax(-1);
  expectClose(logprobs, wanted, { rtol: 1e-5, atol: 1e-6 });
});

test("a start may be codes, a condition, or both; given codes are read and not returned", () => {
  const policy = policyWith(8);
  const given = tensor([[4, 4, 4]], { dtype: "int64" });
  const classes = tensor([1], { dtype: "int64" });
  const options = { greedy: true };
  const list = (start: Parameters<typeof sampleCodesWithLogprobs>[1]): unknown =>
    sampleCodesWithLogprobs(policy, start, 3, options).tokens.toList();
  assert.deepEqual(list([given, classes]), list([given, { classes }]));
  assert.deepEqual(list(given), list([given, {}]));
  assert.deepEqual(list({ classes }), list([given.narrow(1, 0, 0), classes]));
  assert.equal((list(given) as number[][])[0]?.length, 3);
  const logits = policy.forward(given, { classes }).select(1, 3);
  assert.equal(logits.argmax(-1).item(), (list([given, classes]) as number[][])[0]?.[0]);
});

test("dropout is off while sampling, and every module's flag comes back", () => {
  const policy = policyWith(4, { dropout: 0.5 });
  policy.train();
  policy.key.eval();
  const start = { classes: tensor([0], { dtype: "int64" }) };
  const once = sampleCodesWithLogprobs(policy, start, 6, { generator: new Generator(3) });
  const twice = sampleCodesWithLogprobs(policy, start, 6, { generator: new Generator(3) });
  expectClose(once.logprobs, twice.logprobs, { rtol: 0 });
  assert.deepEqual([policy.training, policy.key.training, policy.drop.training], [true, false, true]);
  assert.throws(() => withoutDropout([policy], () => assert.fail("inside")));
  assert.equal(policy.drop.training, true);
});

test("options are named as in JavaScript or Python, or stand in Python's order; others are refused", () => {
  const policy = policyWith(4);
  const start = { classes: tensor([0, 1], { dtype: "int64" }) };
  const codes = (...given: readonly unknown[]): unknown => {
    manualSeed(3);
    const sample = sampleCodesWithLogprobs as (...args: readonly unknown[]) => Sampled;
    return sample(policy, start, 4, ...given).tokens.toList();
  };
  const options = { temperature: 0.5, topK: 3, topP: 0.9 };
  const wanted = codes(options);
  assert.deepEqual(codes({ temperature: 0.5, top_k: 3, top_p: 0.9 }), wanted);
  assert.deepEqual(codes(0.5, 3, 0.9), wanted);
  assert.deepEqual(codes(0.5, 3, { top_p: 0.9, num_generations: 1 }), wanted);
  assert.deepEqual(codes(null, 1), codes({ greedy: true }));
  assert.notDeepEqual(codes(), wanted);
  const refused = (given: unknown, message: RegExp): void =>
    assert.throws(() => codes(given), { name: "RangeError", message });
  refused({ topk: 1 }, /^sampleCodesWithLogprobs: .*topk.*"topK"/);
  refused({ temprature: 1 }, /temprature.*"temperature"/);
  refused({ guidance: { scale: 2, scedule: "constant" } }, /guidance: .*scedule.*"schedule"/);
  refused({ guidance: {} }, /guidance\.scale: .*undefined/);
  assert.throws(
    () => passesOf("here", { tokens: tensor([[1]], LONG), start: {}, sampling: { topk: 2 } as object }),
    {
      message: /^here\.sampling: .*topk.*"topK"/,
    },
  );
});

test("a generator of another device than the CPU is refused: draws are made there for every device", () => {
  const policy = policyWith(4);
  const start = { classes: tensor([0, 1], LONG) };
  using generator = new Generator(1, "meta");
  const message = /generator: .*on the CPU.*meta.*new Generator\(seed\)/;
  assert.throws(() => sampleCodesWithLogprobs(policy, start, 4, { generator }), {
    name: "RangeError",
    message,
  });
  const context = { type: "teacher_forced" } as const;
  const trueCodes = tensor(
    [
      [1, 2],
      [3, 4],
    ],
    LONG,
  );
  assert.throws(() => sampleRollout(policy, start, { context, trueCodes, generator }), { message });
});

test("what cannot be served is refused", () => {
  const policy = policyWith(4);
  const start = { classes: tensor([0, 1], { dtype: "int64" }) };
  const sample = (maxLen: number, options: Sampling = {}): unknown =>
    sampleCodesWithLogprobs(policy, start, maxLen, options);
  const name = "sampleCodesWithLogprobs";
  assert.throws(() => sampleCodesWithLogprobs(policy, tensor([[1, 2]], { dtype: "int64" }), 5), {
    name: "RangeError",
    message: `${name}: expected given codes + maxLen <= blockSize 6, got 2 + 5. Lower maxLen or raise the policy's block size.`,
  });
  for (const temperature of [0, 1e-45, 1e-38, -1, Number.NaN, Infinity]) {
    assert.throws(() => sample(3, { temperature }), {
      name: "RangeError",
      message: new RegExp(`^${name}\\.temperature: .*0\\.0001.*${temperature}.*greedy: true`),
    });
  }
  sample(3, { temperature: 1e-4 });
  for (const name of ["temperature", "topK", "topP"])
    assert.throws(() => sample(3, { [name]: "1" }), { message: new RegExp(`${name}: .*the text "1"`) });
  assert.throws(() => sample(3, { topK: 1.5 }), {
    message: `${name}.topK: expected an integer of at least 0, got 1.5.`,
  });
  assert.throws(() => sample(3, { topP: 0 }), {
    message: `${name}.topP: expected a number in (0, 1], got 0.`,
  });
  assert.throws(() => sample(0), { message: `${name}: expected maxLen, an integer of at least 1, got 0.` });
  assert.throws(() => sampleCodesWithLogprobs(policy, {}, 3), {
    name: "TypeError",
    message: new RegExp(`^${name}: .*start codes or a condition.*neither.*classes`),
  });
  assert.throws(() => sampleCodesWithLogprobs(policy, [tensor([[1]], { dtype: "int64" }), start], 3), {
    message: `${name}: expected 1 rows in the start's classes, got Tensor int64[2] cpu.`,
  });
  noGrad(() => policy.out.weight.fill_(Number.NaN));
  assert.throws(() => sample(3), {
    message:
      `${name}: expected finite logits from the policy, got NaN or Infinity. ` +
      "Check the weights: a diverged update or a half-loaded checkpoint gives such logits.",
  });
});

test("sampling leaves nothing behind but its result", () => {
  const policy = policyWith(4);
  const classes = tensor([0, 1], { dtype: "int64" });
  const options = { topK: 3, guidance: { scale: 2 }, numGenerations: 2 };
  const first = noLeak(() => {
    const drawn = sampleCodesWithLogprobs(policy, { classes }, 6, options);
    const made = memory().tensors;
    for (const part of [drawn.tokens, drawn.logprobs, drawn.entropy, drawn.support as Tensor]) part.dispose();
    return made - memory().tensors;
  });
  assert.equal(first, 4);
});

test("a draw's cost in numbers does not depend on the codes: one uniform each, row after row", () => {
  const policy = policyWith(4);
  const generator = new Generator(5);
  sampleCodesWithLogprobs(policy, { classes: tensor([0, 1], { dtype: "int64" }) }, 3, {
    generator,
    numGenerations: 2,
  });
  const next = call("aten::rand.generator", [[1]], { generator, dtype: "float64" }) as Tensor;
  const other = call("aten::rand.generator", [[13]], {
    generator: new Generator(5),
    dtype: "float64",
  }) as Tensor;
  assert.equal(next.item(), other.narrow(0, 12, 1).item());
});

const LONG = { dtype: "int64" } as const;
const lists = (parts: Readonly<Record<string, Tensor | undefined>>): unknown =>
  Object.fromEntries(Object.entries(parts).map(([name, value]) => [name, value?.toList()]));

test("every form of a start is codes and a condition", () => {
  const given = tensor(
    [
      [1, 2],
      [3, 4],
    ],
    LONG,
  );
  const classes = tensor([5, 6], LONG);
  const pair = startParts("here", [given, classes]);
  assert.deepEqual(
    [pair.given.toList(), lists({ ...pair.condition })],
    [
      [
        [1, 2],
        [3, 4],
      ],
      { classes: [5, 6] },
    ],
  );
  assert.deepEqual(startParts("here", given).condition, {});
  const condition = startParts("here", { classes });
  assert.deepEqual([condition.given.shape, condition.given.dtype], [[2, 0], "int64"]);
  assert.deepEqual(startParts("here", {}, given).given.shape, [2, 0]);
  const features = ones([2, 3, 4]);
  assert.equal(startParts("here", [given, { features }]).condition.features, features);
});

test("starts that do not say how many, or say two numbers, are refused", () => {
  assert.throws(() => startParts("here", {}), {
    name: "TypeError",
    message: /^here: .*start codes or a condition.*neither.*classes/,
  });
  assert.throws(() => startParts("here", { classes: tensor([1, 2], LONG), features: ones([3, 1, 1]) }), {
    name: "RangeError",
    message: "here: expected 2 rows in the start's features, got Tensor float32[3, 1, 1] cpu.",
  });
  assert.throws(() => startParts("here", tensor([1, 2], LONG)), {
    message: "here: expected start codes int64 [B, S], got Tensor int64[2] cpu.",
  });
});

test("a start that nobody could read is refused by name", () => {
  const classes = tensor([5, 6], LONG);
  const refused = (start: unknown, message: RegExp, name = "RangeError"): void =>
    assert.throws(() => startParts("here", start as Start), { name, message });
  refused({ clases: classes }, /here\.start: .*clases.*"classes"/);
  refused({ label: classes }, /here\.start: .*label.*classes, features/);
  refused({ classes: [5, 6] }, /here\.start\.classes: .*Tensor.*5, 6/, "TypeError");
  refused([[1, 2], classes], /here: .*start codes/, "TypeError");
  refused(3, /here: .*3/, "TypeError");
  const isDropped = ones([2]).bool();
  const snake = startParts("here", { classes, is_dropped: isDropped } as Start);
  assert.equal(snake.condition.isDropped, isDropped);
});

test("rows of a start go together", () => {
  const start = startParts("here", [
    arange(0, 6).reshape(3, 2),
    { classes: tensor([7, 8, 9], LONG), isDropped: ones([3]).bool() },
  ]);
  const some = mapStart(start, (rows) => rows.narrow(0, 1, 2));
  assert.deepEqual(
    [some.given.toList(), lists({ ...some.condition })],
    [
      [
        [2, 3],
        [4, 5],
      ],
      { classes: [8, 9], isDropped: [1, 1] },
    ],
  );
});

const { tensors } = loadSafetensors("test/golden/rl/distribution.safetensors");
const goldenTensor = (name: string): Tensor => tensors[name] as Tensor;

const SETTINGS: Readonly<Record<string, Sampling & { scale?: number }>> = {
  plain: {},
  temperature: { temperature: 0.7 },
  top_k: { topK: 5 },
  top_p: { topP: 0.8 },
  guidance: { scale: 2.5 },
  all: { scale: 1.5, temperature: 1.3, topK: 12, topP: 0.9 },
};

for (const [name, { scale, ...sampling }] of Object.entries(SETTINGS)) {
  test(`${name}: the same codes stay, with the same log-probabilities`, () =>
    tidy(() => {
      const guided = scale === undefined ? {} : { scale, nullLogits: goldenTensor("null_logits") };
      const logp = distribution(goldenTensor("logits"), sampling, guided);
      // -Infinity equals itself, so one comparison sees both the support and the values.
      expectClose(logp, goldenTensor(name), { rtol: 1e-5, atol: 1e-6 });
      expectClose(where(logp.isinf(), 0, logp.exp()).sum(1), goldenTensor("logits").mul(0).sum(1).add(1), {
        rtol: 1e-5,
      });
    }));
}

test("start codes outside the vocabulary are refused before the policy reads them", () => {
  const policy = new GPT({ vocabSize: 5, blockSize: 8, nLayer: 1, nHead: 1, nEmbd: 4 });
  for (const bad of [5, -1]) {
    assert.throws(() => sampleCodesWithLogprobs(policy, tensor([[0, bad]], { dtype: "int64" }), 2), {
      name: "RangeError",
      message: new RegExp(`start: .*\\[0, 5\\).*${bad}`),
    });
  }
  assert.throws(() => sampleCodesWithLogprobs(policy, tensor([[0]]), 2), /start: .*int64/);
});
