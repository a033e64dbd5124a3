import assert from "node:assert/strict";
import { test } from "node:test";
import { exactKl, straightThroughGumbel } from "../../src/rl_ar_finetune/losses.js";
import {
  distribution,
  entropyOf,
  guidanceScale,
  packSupport,
  type Sampling,
} from "../../src/rl_ar_finetune/sampling.js";
import {
  type Drawn,
  type ScoreOptions,
  type Scores,
  scoreCodes,
  straightThroughVectors,
} from "../../src/rl_ar_finetune/scoring.js";
import {
  cat,
  manualSeed,
  memory,
  noGrad,
  randint,
  randn,
  stack,
  stream,
  type Tensor,
  tensor,
  tidy,
} from "../../src/torch/index.js";
import { expectClose } from "../support/close.js";
import { noLeak } from "../support/leak.js";
import { TinyPolicy } from "../support/tiny_policy.js";

const LONG = { dtype: "int64" } as const;

function double(seed: number, options = {}): TinyPolicy {
  manualSeed(seed);
  return new TinyPolicy(options).to({ dtype: "float64" });
}

/** Gradients of a scalar by parameter name; those that got none are zero. */
function gradients(policy: TinyPolicy, loss: () => Tensor): Record<string, Tensor> {
  policy.zeroGrad();
  tidy(() => loss().backward());
  const result = policy
    .namedParameters()
    .map(([name, p]) => [name, (p.grad ?? p.detach().mul(0)).clone()] as const);
  policy.zeroGrad();
  return Object.fromEntries(result);
}

function expectSame(actual: Record<string, Tensor>, wanted: Record<string, Tensor>, atol = 1e-12): void {
  for (const [name, gradient] of Object.entries(wanted)) {
    expectClose(actual[name] as Tensor, gradient, { rtol: 1e-10, atol, where: name });
  }
  const size = Math.max(...Object.values(wanted).map((gradient) => gradient.abs().amax().item()));
  assert.ok(size > 1e-3, `gradients of ${size} prove nothing`);
}

/** The same scores from whole logits, without chunks and without shared contexts. */
function plainScores(
  policy: TinyPolicy,
  reference: TinyPolicy,
  drawn: Drawn,
  trueCodes: Tensor,
): Record<keyof Scores, Tensor> {
  const sampling = drawn.sampling ?? {};
  const condition = drawn.start as { classes: Tensor };
  const t = drawn.tokens.size(-1);
  const inputs = drawn.context ?? drawn.tokens.narrow(-1, 0, t - 1);
  const of = (model: TinyPolicy): [Tensor, Tensor] => {
    const logits = model.forward(inputs, condition);
    if (sampling.guidance === undefined) return [logits, distribution(logits, sampling)];
    const guidance = sampling.guidance;
    const scale = tensor(
      Array.from({ length: t }, (_, i) => guidanceScale(guidance, i, policy.blockSize)),
      { dtype: "float64" },
    );
    const nullLogits = model.forward(inputs, model.nullCondition(condition));
    return [logits, distribution(logits, sampling, { nullLogits, scale: scale.unsqueeze(1) })];
  };
  const [logits, logp] = of(policy);
  return {
    logprobs: logp.gather(-1, drawn.tokens.unsqueeze(-1)).squeeze(-1),
    entropy: entropyOf(logp),
    truth: logits.logSoftmax(-1).gather(-1, trueCodes.unsqueeze(-1)).squeeze(-1),
    kl: exactKl(
      logp,
      noGrad(() => of(reference)[1]),
    ),
  };
}

const SAMPLINGS: readonly Sampling[] = [
  {},
  { temperature: 0.6 },
  { temperature: 1.2, guidance: { scale: 2, schedule: "power_cosine" } },
];

test("scores and their gradients are those of whole logits, whatever the chunk", () => {
  const policy = double(1);
  const reference = double(2);
  const classes = tensor([0, 2, 1], LONG);
  const tokens = randint(0, 11, [3, 5]);
  const trueCodes = randint(0, 11, [3, 5]);
  for (const sampling of SAMPLINGS) {
    const drawn = { tokens, start: { classes }, sampling };
    const weigh = (scores: Scores): Tensor =>
      [scores.logprobs, scores.entropy, scores.truth, scores.kl]
        .map((part, i) =>
          (part as Tensor)
            .mul(i + 1)
            .sin()
            .sum(),
        )
        .reduce((a, b) => a.add(b));
    const wanted = plainScores(policy, reference, drawn, trueCodes);
    const wantedGradients = gradients(policy, () => weigh(plainScores(policy, reference, drawn, trueCodes)));
    for (const chunk of [1, 4, 15, 100]) {
      const options: ScoreOptions = { wantsEntropy: true, trueCodes, reference, chunk };
      const scores = scoreCodes(policy, drawn, options);
      for (const name of ["logprobs", "entropy", "truth", "kl"] as const) {
        expectClose(scores[name] as Tensor, wanted[name], {
          rtol: 1e-12,
          atol: 1e-12,
          where: `${name}, chunk ${chunk}`,
        });
      }
      expectSame(
        gradients(policy, () => weigh(scoreCodes(policy, drawn, options))),
        wantedGradients,
      );
    }
  }
});

test("a shared context has exactly the gradient of a pass for each sequence", () => {
  const policy = double(3);
  const [b, g, t] = [3, 4, 5];
  const classes = tensor([0, 1, 2], LONG);
  const context = randint(0, 11, [b, t - 1]);
  const tokens = randint(0, 11, [b, g, t]);
  const sampling: Sampling = { temperature: 0.8, topK: 6, guidance: { scale: 1.5 } };
  const support = noGrad(() => {
    const all = distribution(policy.forward(context, { classes }), { topK: 6 });
    return packSupport(all.scatter(-1, tokens.transpose(1, 2), 0)); // the six best and what was drawn
  });
  policy.rowsSeen = 0;
  const shared = (): Tensor =>
    scoreCodes(policy, { tokens, start: { classes }, context, support, sampling }).logprobs;
  const separate = (): Tensor =>
    stack(
      Array.from({ length: g }, (_, i) => {
        const one = { tokens: tokens.narrow(1, i, 1), start: { classes }, context, support, sampling };
        return scoreCodes(policy, one).logprobs.squeeze(1);
      }),
      1,
    );
  const weights = tensor(
    Array.from({ length: b * g * t }, (_, i) => Math.sin(i)),
    { dtype: "float64" },
  ).reshape(b, g, t);
  expectClose(shared(), separate(), { rtol: 1e-12, atol: 1e-12 });
  assert.equal(
    policy.rowsSeen,
    2 * b + 2 * b * g,
    "one pass an image (twice for guidance), not one a sequence",
  );
  const wanted = gradients(policy, () => separate().mul(weights).sum());
  expectSame(
    gradients(policy, () => shared().mul(weights).sum()),
    wanted,
  );
});

test("a group that read itself is B * G rows, each with its image's condition", () => {
  const policy = double(4);
  const tokens = randint(0, 11, [2, 3, 5]);
  const classes = tensor([2, 0], LONG);
  const grouped = scoreCodes(policy, { tokens, start: { classes } }).logprobs;
  const rows = scoreCodes(policy, {
    tokens: tokens.flatten(0, 1),
    start: { classes: classes.repeatInterleave(3, 0) },
  });
  expectClose(grouped.flatten(0, 1), rows.logprobs, { rtol: 0 });
  const parts = noGrad(() => scoreCodes(policy, { tokens, start: { classes } }, { microBatch: 4 }).logprobs);
  expectClose(parts, grouped.detach(), { rtol: 1e-12 });
});

test("given codes are read and not scored", () => {
  const policy = double(4);
  const whole = randint(0, 11, [2, 5]);
  const classes = tensor([2, 0], LONG);
  const all = scoreCodes(policy, { tokens: whole, start: { classes } }).logprobs;
  const tail = scoreCodes(policy, {
    tokens: whole.narrow(1, 2, 3),
    start: [whole.narrow(1, 0, 2), classes],
  }).logprobs;
  expectClose(tail, all.narrow(1, 2, 3), { rtol: 1e-12 });
  const nothing = scoreCodes(policy, { tokens: whole }).logprobs;
  expectClose(nothing, scoreCodes(policy, { tokens: whole, start: {} }).logprobs, { rtol: 0 });
});

test("without a support a code that the filter cuts has no probability; with it, it keeps one", () => {
  const policy = double(5);
  const start = { classes: tensor([0], LONG) };
  const sampling = { topK: 2 };
  const logits = noGrad(() => policy.forward(tensor([[1]], LONG), start)); // [1, 2, V]
  const worst = logits.argmin(-1); // [1, 2]
  const tokens = tensor([[1, 0]], LONG).scatter(1, tensor([[1]], LONG), worst.narrow(1, 1, 1));
  const bare = noGrad(() => scoreCodes(policy, { tokens, start, sampling }).logprobs);
  assert.equal(bare.narrow(1, 1, 1).item(), -Infinity);
  const support = packSupport(distribution(logits, sampling).scatter(-1, tokens.unsqueeze(-1), 0));
  const kept = noGrad(() => scoreCodes(policy, { tokens, start, sampling, support }).logprobs);
  assert.ok(kept.isfinite().all().item() === 1);
});

test("straight-through vectors are rows of the codebook, the same by seed, with the soft draw's gradient in any chunk", () => {
  const policy = double(8);
  const classes = tensor([0, 1], LONG);
  const context = randint(0, 11, [2, 4]);
  const codebook = randn([11, 3], { dtype: "float64" });
  const of = (options: { seed: number; chunk?: number; tau?: number }): Tensor =>
    straightThroughVectors(
      policy,
      { hidden: policy.hidden(context, { classes }), nullHidden: null },
      codebook,
      options,
    );
  const vectors = of({ seed: 1, chunk: 4 });
  assert.deepEqual(vectors.shape, [2, 5, 3]);
  const distance = vectors.detach().unsqueeze(2).sub(codebook).abs().sum(-1).amin(-1); // to the nearest row
  assert.ok(distance.amax().item() < 1e-12);
  expectClose(of({ seed: 1, chunk: 4 }), vectors, { rtol: 0 });
  assert.ok(of({ seed: 2, chunk: 4 }).sub(vectors).abs().amax().item() > 0.1);
  const weights = randn([2, 5, 3], { dtype: "float64" });
  const byHand = (): Tensor => {
    const logits = policy.forward(context, { classes }).reshape(10, 11);
    const hard = logits.split(4).map((piece, i) => {
      using generator = stream(1, "straight-through", i);
      return straightThroughGumbel(piece, { generator, tau: 0.5 });
    });
    return cat(hard).matmul(codebook).reshape(2, 5, 3).mul(weights).sum();
  };
  const chunked = gradients(policy, () => of({ seed: 1, chunk: 4, tau: 0.5 }).mul(weights).sum());
  expectSame(chunked, gradients(policy, byHand));
});

test("memory stays far below that of the logits, forward and backward", () => {
  manualSeed(6);
  const [n, t, v] = [16, 64, 8192];
  const policy = new TinyPolicy({ vocabSize: v, blockSize: t, width: 16 });
  const tokens = randint(0, v, [n, t]);
  const start = { classes: randint(0, 3, [n]) };
  const all = n * t * v * 4;
  const peak = (work: () => void): number => {
    policy.zeroGrad();
    const before = memory({ resetPeak: true }).bytes;
    tidy(work);
    return memory().peakBytes - before;
  };
  const chunked = peak(() =>
    scoreCodes(policy, { tokens, start }, { chunk: 32, wantsEntropy: true }).logprobs.sum().backward(),
  );
  assert.ok(chunked < all / 4, `${chunked} bytes for logits of ${all}`);
  const whole = peak(() =>
    scoreCodes(policy, { tokens, start }, { chunk: n * t })
      .logprobs.sum()
      .backward(),
  );
  assert.ok(whole > 2 * all, `the measure must see whole logits: ${whole} bytes for ${all}`);
  policy.zeroGrad();
});

test("scoring leaves nothing behind", () => {
  const policy = double(7);
  const tokens = randint(0, 11, [2, 5]);
  const start = { classes: tensor([1, 2], LONG) };
  noLeak(() => {
    tidy(() =>
      scoreCodes(policy, { tokens, start }, { wantsEntropy: true, chunk: 3 }).logprobs.sum().backward(),
    );
    policy.zeroGrad();
  });
});

test("shapes that disagree are refused", () => {
  const policy = double(7);
  const tokens = randint(0, 11, [2, 3, 5]);
  const start = { classes: tensor([1, 2], LONG) };
  const context = randint(0, 11, [2, 5]);
  assert.throws(() => scoreCodes(policy, { tokens, start, context }), {
    name: "RangeError",
    message: "scoreCodes: expected a context int64 [2, 4], got Tensor int64[2, 5] cpu.",
  });
  assert.throws(() => scoreCodes(policy, { tokens, start: { classes: tensor([1], LONG) } }), {
    message: "scoreCodes: expected a start of 2 rows, as tokens has, got Tensor int64[1, 0] cpu.",
  });
  assert.throws(() => scoreCodes(policy, { tokens: tokens.flatten(), start }), {
    message: "scoreCodes: expected tokens int64 [B, G, T] or [N, T], got Tensor int64[30] cpu.",
  });
});

test("names that nobody reads are refused, and Python's spelling is taken", () => {
  manualSeed(1);
  const policy = new TinyPolicy();
  const drawn = { tokens: randint(0, 11, [2, 6]), start: { classes: tensor([0, 1], { dtype: "int64" }) } };
  const score = (of: object, options: object): unknown =>
    noGrad(() => scoreCodes(policy, of as Drawn, options)).entropy?.shape;
  assert.deepEqual(score(drawn, { wants_entropy: true, micro_batch: 1 }), [2, 6]);
  const refused = (of: object, options: object, message: RegExp): void =>
    assert.throws(() => score(of, options), { message });
  refused(drawn, { wantEntropy: true }, /^scoreCodes: .*wantEntropy.*"wantsEntropy"/);
  refused({ ...drawn, contexts: null }, {}, /^scoreCodes\.drawn: .*contexts.*"context"/);
  refused({}, {}, /^scoreCodes\.drawn: .*tokens/);
  refused(drawn, { microBatch: 0 }, /microBatch: .*0/);
});
