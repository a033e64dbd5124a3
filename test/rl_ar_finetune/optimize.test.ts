import assert from "node:assert/strict";
import { test } from "node:test";
import { groupAdvantages, standardizedAdvantages } from "../../src/rl_ar_finetune/advantages.js";
import { klEstimate, klLoss, tokenDropout } from "../../src/rl_ar_finetune/losses.js";
import {
  type GrpoOptions,
  grpoUpdate,
  type Optimizer,
  ppoUpdate,
  reinforceUpdate,
  rlooUpdate,
  type UpdateBatch,
  type UpdateOptions,
  ValueHead,
} from "../../src/rl_ar_finetune/optimize.js";
import { type RolloutContext, sampleRollout } from "../../src/rl_ar_finetune/rollout.js";
import { distribution, entropyOf } from "../../src/rl_ar_finetune/sampling.js";
import { scoreCodes } from "../../src/rl_ar_finetune/scoring.js";
import {
  Generator,
  keep,
  manualSeed,
  noGrad,
  onesLike,
  rand,
  randint,
  randn,
  type Tensor,
  tensor,
  tidy,
} from "../../src/torch/index.js";
import { expectClose } from "../support/close.js";
import { noLeak } from "../support/leak.js";
import { TinyPolicy } from "../support/tiny_policy.js";

const LONG = { dtype: "int64" } as const;
const F64 = { dtype: "float64" } as const;
type Gradients = Record<string, Tensor>;

/** Keeps the gradients that a step would use, and changes nothing. */
class Recorder implements Optimizer {
  readonly seen: Gradients[] = [];
  readonly factors: (number | undefined)[] = [];

  constructor(readonly modules: readonly { namedParameters(): [string, Tensor][] }[]) {}

  step(options: { lrFactor?: number } = {}): void {
    const named = this.modules.flatMap((module, i) =>
      module.namedParameters().map(([name, p]) => [`${i}.${name}`, p] as const),
    );
    this.factors.push(options.lrFactor);
    this.seen.push(
      Object.fromEntries(named.map(([name, p]) => [name, keep((p.grad ?? p.detach().mul(0)).clone())])),
    );
  }
  zeroGrad(): void {
    for (const module of this.modules) for (const [, p] of module.namedParameters()) p.grad = null;
  }
}

function expectSame(actual: Gradients | undefined, wanted: Gradients | undefined, tolerance = 1e-10): void {
  assert.ok(actual && wanted);
  assert.deepEqual(Object.keys(actual), Object.keys(wanted));
  let size = 0;
  for (const [name, gradient] of Object.entries(wanted)) {
    expectClose(actual[name] as Tensor, gradient, { rtol: tolerance, atol: tolerance, where: name });
    size = Math.max(size, gradient.abs().amax().item());
  }
  assert.ok(size > 1e-3, `gradients of ${size} prove nothing`);
}

function expectDifferent(actual: Gradients | undefined, other: Gradients | undefined): void {
  assert.throws(() => expectSame(actual, other, 1e-6));
}

const CONTEXTS: Readonly<Record<string, RolloutContext>> = {
  own: { type: "free" },
  prefix: { type: "prefix", length: 2 },
  shared: { type: "noisy_teacher_forced", noise: 0.3 },
};

interface Scene {
  policy: TinyPolicy;
  reference: TinyPolicy;
  batch: UpdateBatch & { rewards: Tensor };
  trueCodes: Tensor;
}

/** A rollout of a float64 policy with random rewards, B = 4 and G = 3 unless said otherwise. */
function scene(
  context: RolloutContext,
  more: { b?: number; g?: number; seed?: number; keepGraph?: boolean; sampling?: object } = {},
): Scene {
  const { b = 4, g = 3, seed = 1, keepGraph = false, sampling = {} } = more;
  manualSeed(seed);
  const policy = new TinyPolicy().to(F64);
  const reference = new TinyPolicy().to(F64);
  const classes = randint(0, 3, [b]);
  const trueCodes = randint(0, 11, [b, 6]);
  const options = {
    context,
    numGenerations: g,
    trueCodes,
    keepGraph,
    sampling,
    generator: new Generator(seed),
  };
  const rollout = sampleRollout(policy, { classes }, options);
  return { policy, reference, trueCodes, batch: { ...rollout, rewards: randn([b, g], F64), trueCodes } };
}

function gradientOf(
  policy: TinyPolicy,
  update: (optimizer: Recorder) => unknown,
  others: readonly ValueHead[] = [],
): Gradients {
  const optimizer = new Recorder([policy, ...others]);
  update(optimizer);
  assert.equal(optimizer.seen.length, 1);
  return optimizer.seen[0] as Gradients;
}

/** Gradients of a loss of the test's own. */
function own(policy: TinyPolicy, loss: () => Tensor): Gradients {
  const recorder = new Recorder([policy]);
  recorder.zeroGrad();
  tidy(() => loss().backward());
  recorder.step();
  recorder.zeroGrad();
  return recorder.seen[0] as Gradients;
}

test("REINFORCE is the seed's formula: -mean(A sum_t logp) - entropyCoef * mean entropy", () => {
  const { policy } = scene({ type: "free" });
  const classes = tensor([0, 1, 2, 1], LONG);
  const tokens = randint(0, 11, [4, 5]);
  const rewards = tensor([1, -0.5, 0.2, 0.4], F64);
  const mask = tensor(
    [
      [1, 1, 1, 1, 1],
      [1, 1, 1, 1, 0],
      [1, 0, 0, 0, 0],
      [1, 1, 1, 1, 1],
    ],
    F64,
  );
  const { logprobs } = noGrad(() => scoreCodes(policy, { tokens, start: { classes } }));
  const byHand = (): Tensor => {
    const logp = policy.forward(tokens.narrow(1, 0, 4), { classes }).logSoftmax(-1);
    const a = standardizedAdvantages(rewards).advantages;
    const picked = logp.gather(2, tokens.unsqueeze(2)).squeeze(2);
    const pg = picked.mul(mask).sum(1).mul(a).mean().neg();
    return pg.sub(entropyOf(logp).mul(mask).sum().div(mask.sum()).mul(0.02));
  };
  const batch = { tokens, logprobs, rewards, mask, start: { classes } };
  const update = (optimizer: Recorder) => reinforceUpdate(policy, optimizer, batch, { entropyCoef: 0.02 });
  expectSame(gradientOf(policy, update), own(policy, byHand));
  const result = reinforceUpdate(policy, new Recorder([policy]), batch, { entropyCoef: 0.02, lrFactor: 0.5 });
  expectClose(result.metrics["loss/total"] as number, byHand().item(), { rtol: 1e-10 });
  assert.equal(result.steps, 1);
});

test("GRPO is the group-whitened surrogate plus the divergence and the cross-entropy, by hand", () => {
  const { policy, reference, batch, trueCodes } = scene({ type: "teacher_forced" });
  const byHand = (): Tensor => {
    const { classes } = (batch.start as unknown as [Tensor, { classes: Tensor }])[1];
    const logits = (model: TinyPolicy): Tensor =>
      model
        .forward(batch.context as Tensor, { classes })
        .logSoftmax(-1)
        .unsqueeze(1);
    const pick = (logp: Tensor): Tensor =>
      logp.expand(4, 3, 6, 11).gather(3, batch.tokens.unsqueeze(3)).squeeze(3);
    const logp = logits(policy);
    const lp = pick(logp);
    const a = groupAdvantages(batch.rewards).advantages.unsqueeze(2);
    const pg = lp.sub(lp.detach()).exp().mul(a).mean().neg(); // ratio 1: nothing is clipped
    const kl = klLoss(
      lp,
      noGrad(() => pick(logits(reference))),
      "k3",
    ).mean();
    const ce = logp.squeeze(1).gather(2, trueCodes.unsqueeze(2)).mean().neg();
    return pg.add(kl, 0.3).add(ce, 0.1);
  };
  const options: GrpoOptions = { kl: { coef: 0.3, reference }, auxCe: 0.1 };
  expectSame(
    gradientOf(policy, (o) => grpoUpdate(policy, o, batch, options)),
    own(policy, byHand),
  );
  const { metrics } = grpoUpdate(policy, new Recorder([policy]), batch, options);
  expectClose(metrics["loss/total"] as number, byHand().item(), { rtol: 1e-10 });
  expectClose(metrics["loss/policy"] as number, 0, { atol: 1e-6 });
});

test("how a window is cut into micro-batches changes nothing, with every term on", () => {
  for (const name of ["own", "shared"] as const) {
    const { policy, reference, batch } = scene(CONTEXTS[name] as RolloutContext, {
      sampling: { temperature: 0.9, topK: 8 },
    });
    const t = batch.tokens.size(2);
    const mask = rand([4, 3, t], F64).gt(0.3).double();
    const all: readonly [string, (optimizer: Recorder, microBatch: number) => unknown, ValueHead[]][] = [];
    const add = (
      what: string,
      update: (o: Recorder, microBatch: number) => unknown,
      heads: ValueHead[] = [],
    ): void => {
      (all as [string, typeof update, ValueHead[]][]).push([what, update, heads]);
    };
    const shared: UpdateOptions = { entropyCoef: 0.01, auxCe: 0.1, tokenDropout: 0.2, maxRatioGap: Infinity };
    const withMask = { ...batch, mask };
    for (const aggregation of ["mean", "sum", "grpo", "dr_grpo"] as const) {
      for (const estimator of ["k3", "exact"] as const) {
        add(`grpo ${aggregation} ${estimator}`, (o, microBatch) => {
          const kl = { coef: 0.1, reference, estimator };
          grpoUpdate(policy, o, withMask, {
            ...shared,
            aggregation,
            kl,
            microBatch,
            generator: new Generator(1),
          });
        });
      }
    }
    add("reinforce", (o, microBatch) => {
      const kl = { coef: 0.1, reference, placement: "reward" as const };
      reinforceUpdate(policy, o, withMask, { ...shared, kl, microBatch, generator: new Generator(1) });
    });
    const head = new ValueHead(8).to(F64);
    noGrad(() => head.out.weight.copy_(randn([1, 8], F64)));
    add(
      "ppo",
      (o, microBatch) => {
        const kl = { coef: 0.1, reference };
        const options = {
          ...shared,
          valueHead: head,
          detachTrunk: false,
          epochs: 1,
          kl,
          microBatch,
          generator: new Generator(1),
        };
        ppoUpdate(policy, o, withMask, options);
      },
      [head],
    );
    const rows = name === "shared" ? 4 : 12;
    for (const [what, update, heads] of all) {
      const whole = gradientOf(policy, (o) => update(o, rows), heads);
      for (const microBatch of [1, 2, 3, 5]) {
        expectSame(
          gradientOf(policy, (o) => update(o, microBatch), heads),
          whole,
          1e-10,
        );
      }
      assert.ok(what);
    }
  }
});

test("a shared context has the gradient of a pass for each sequence, to 1e-10", () => {
  const { policy, reference, batch, trueCodes } = scene(CONTEXTS.shared as RolloutContext, {
    sampling: { temperature: 0.8, topK: 7, guidance: { scale: 1.5 } },
  });
  const repeat = (x: Tensor): Tensor => x.repeatInterleave(3, 0);
  const { classes } = (batch.start as unknown as [Tensor, { classes: Tensor }])[1];
  const advantages = groupAdvantages(batch.rewards).advantages;
  const { rewards: _, ...rest } = batch;
  const separate: UpdateBatch = {
    tokens: batch.tokens.reshape(12, 1, 6),
    logprobs: batch.logprobs.reshape(12, 1, 6),
    advantages: advantages.reshape(12, 1),
    start: { classes: repeat(classes) },
    context: repeat(batch.context as Tensor),
    support: repeat(batch.support as Tensor),
    trueCodes: repeat(trueCodes),
    sampling: batch.sampling as object,
  };
  const options: GrpoOptions = { entropyCoef: 0.01, auxCe: 0.1, kl: { coef: 0.1, reference } };
  policy.rowsSeen = 0;
  const shared = gradientOf(policy, (o) => grpoUpdate(policy, o, { ...rest, advantages }, options));
  assert.equal(policy.rowsSeen, 2 * 4);
  policy.rowsSeen = 0;
  expectSame(
    shared,
    gradientOf(policy, (o) => grpoUpdate(policy, o, separate, options)),
    1e-10,
  );
  assert.equal(policy.rowsSeen, 2 * 12);
});

test("a rollout's own graph gives the same gradient with one forward pass in all", () => {
  const of = (keepGraph: boolean): [Gradients, number] => {
    const { policy, reference, batch } = scene(CONTEXTS.shared as RolloutContext, {
      keepGraph,
      sampling: { guidance: { scale: 2 } },
    });
    const head = new ValueHead(8).to(F64);
    const rows = policy.rowsSeen;
    const kl = { coef: 0.1, reference, estimator: "exact" as const, placement: "loss" as const };
    const options = { kl, auxCe: 0.1, microBatch: 1, epochs: 1, valueHead: head, detachTrunk: false };
    return [gradientOf(policy, (o) => ppoUpdate(policy, o, batch, options), [head]), policy.rowsSeen - rows];
  };
  const [kept, none] = of(true);
  const [again, twice] = of(false);
  expectSame(kept, again, 1e-10);
  assert.deepEqual([none, twice], [0, 2 * 4 * 2]); // values before the update, then the update, both guided
  const { policy, batch } = scene(CONTEXTS.shared as RolloutContext, { keepGraph: true });
  assert.throws(() => grpoUpdate(policy, new Recorder([policy]), batch, { epochs: 2 }), {
    name: "RangeError",
    message:
      "grpoUpdate: expected one optimizer step with a rollout's states, got 2. Sample with keepGraph: false: a graph serves one step.",
  });
});

test("on the policy that drew, PPO, GRPO, CISPO, GSPO and REINFORCE have one gradient", () => {
  const { policy, batch } = scene({ type: "free" });
  const advantages = groupAdvantages(batch.rewards).advantages;
  const { rewards: _, ...rest } = batch;
  const given = { ...rest, advantages };
  const reinforce = gradientOf(policy, (o) => reinforceUpdate(policy, o, given, { aggregation: "mean" }));
  for (const options of [{}, { objective: "cispo" as const }, { level: "sequence" as const }]) {
    expectSame(
      gradientOf(policy, (o) => grpoUpdate(policy, o, given, options)),
      reinforce,
      1e-6,
    );
  }
  // PPO with values of 0, lambda 1 and no whitening has the reward itself as the advantage of every token.
  const head = new ValueHead(8).to(F64);
  const options = { valueHead: head, lambda: 1, whiten: false, epochs: 1, detachTrunk: true };
  const ppo = gradientOf(policy, (o) => ppoUpdate(policy, o, { ...rest, rewards: advantages }, options));
  expectSame(ppo, reinforce, 1e-6);
});

test("RLOO is Dr. GRPO times T G / (G - 1), and groups and their members may stand in any order", () => {
  const { policy, batch } = scene({ type: "free" });
  const drGrpo = gradientOf(policy, (o) => grpoUpdate(policy, o, batch, { scale: "none" }));
  const scaled = Object.fromEntries(Object.entries(drGrpo).map(([name, g]) => [name, g.mul((6 * 3) / 2)]));
  const rloo = gradientOf(policy, (o) => rlooUpdate(policy, o, batch));
  expectSame(rloo, scaled, 1e-6);
  const [groups, members] = [tensor([2, 0, 3, 1], LONG), tensor([1, 2, 0], LONG)];
  const pick = (x: Tensor): Tensor => x.indexSelect(0, groups).indexSelect(1, members);
  const { classes } = (batch.start as unknown as [Tensor, { classes: Tensor }])[1];
  const moved: UpdateBatch = {
    tokens: pick(batch.tokens),
    logprobs: pick(batch.logprobs),
    rewards: pick(batch.rewards),
    start: { classes: classes.indexSelect(0, groups) },
  };
  expectSame(
    gradientOf(policy, (o) => rlooUpdate(policy, o, moved)),
    rloo,
    1e-10,
  );
});

test("mini-batches are disjoint windows, each with the gradient of its images alone", () => {
  for (const context of Object.values(CONTEXTS)) {
    const { policy, batch } = scene(context);
    const advantages = groupAdvantages(batch.rewards).advantages;
    const { rewards: _, ...rest } = batch;
    const recorder = new Recorder([policy]);
    const options: GrpoOptions = { miniBatch: 2, epochs: 2, auxCe: 0.1, generator: new Generator(3) };
    const result = grpoUpdate(policy, recorder, { ...rest, advantages }, options);
    assert.equal(result.steps, 4);
    const singles = Array.from({ length: 4 }, (_, i) => {
      const rows = (x: Tensor): Tensor => x.narrow(0, i, 1);
      const [given, condition] = batch.start as unknown as [Tensor, { classes: Tensor }];
      const one: UpdateBatch = {
        tokens: rows(batch.tokens),
        logprobs: rows(batch.logprobs),
        advantages: rows(advantages),
        start: [rows(given), rows(condition.classes)],
        trueCodes: rows(batch.trueCodes as Tensor),
        ...(batch.context && { context: rows(batch.context) }),
      };
      return gradientOf(policy, (o) => grpoUpdate(policy, o, one, { auxCe: 0.1 }));
    });
    const mean = (parts: readonly Gradients[]): Gradients =>
      Object.fromEntries(
        Object.keys(parts[0] as Gradients).map((name) => [
          name,
          parts
            .map((p) => p[name] as Tensor)
            .reduce((a, b) => a.add(b))
            .div(parts.length),
        ]),
      );
    for (const epoch of [recorder.seen.slice(0, 2), recorder.seen.slice(2)]) {
      expectSame(mean(epoch), mean(singles), 1e-10);
      expectDifferent(epoch[0], epoch[1]);
    }
  }
});

test("the cross-entropy of true codes is that of true contexts, also where the rollout's are its own", () => {
  const { policy, batch, trueCodes } = scene({ type: "prefix", length: 2 });
  const { rewards, ...rest } = batch;
  const none = { ...rest, advantages: rewards.mul(0) };
  const { classes } = (batch.start as unknown as [Tensor, { classes: Tensor }])[1];
  const byHand = (): Tensor => {
    const logp = policy.forward(trueCodes.narrow(1, 0, 5), { classes }).logSoftmax(-1);
    return logp.gather(2, trueCodes.unsqueeze(2)).mean().mul(-0.25);
  };
  expectSame(
    gradientOf(policy, (o) => grpoUpdate(policy, o, none, { auxCe: 0.25 })),
    own(policy, byHand),
  );
});

test("with guidance and temperature the cross-entropy is still the policy's own", () => {
  const sampling = { temperature: 0.5, topK: 4, guidance: { scale: 3 } };
  const { policy, batch, trueCodes } = scene({ type: "teacher_forced" }, { sampling });
  const { rewards, ...rest } = batch;
  const none = { ...rest, advantages: rewards.mul(0) };
  const { classes } = (batch.start as unknown as [Tensor, { classes: Tensor }])[1];
  const byHand = (): Tensor =>
    distribution(policy.forward(trueCodes.narrow(1, 0, 5), { classes }))
      .gather(2, trueCodes.unsqueeze(2))
      .mean()
      .neg();
  expectSame(
    gradientOf(policy, (o) => grpoUpdate(policy, o, none, { auxCe: 1 })),
    own(policy, byHand),
  );
});

test("a divergence in the reward is taken from it: a sequence's sum, or in PPO a token's", () => {
  const { policy, reference, batch } = scene({ type: "free" });
  const ref = noGrad(() => scoreCodes(reference, batch).logprobs);
  for (const estimator of ["k1", "k3"] as const) {
    const penalty = klEstimate(batch.logprobs, ref, estimator).double();
    const kl = { coef: 0.2, reference, placement: "reward" as const, estimator };
    const adjusted = { ...batch, rewards: batch.rewards.sub(penalty.sum(2).mul(0.2)) };
    const wanted = gradientOf(policy, (o) => rlooUpdate(policy, o, adjusted));
    expectSame(
      gradientOf(policy, (o) => rlooUpdate(policy, o, batch, { kl })),
      wanted,
      1e-9,
    );
    expectDifferent(
      wanted,
      gradientOf(policy, (o) => rlooUpdate(policy, o, batch)),
    );
  }
  const head = new ValueHead(8).to(F64);
  const options = { valueHead: head, lambda: 1, whiten: false, epochs: 1 };
  const penalty = klEstimate(batch.logprobs, ref, "k1").double().mul(0.2);
  const toCome = batch.rewards.unsqueeze(2).sub(penalty.flip(2).cumsum(2).flip(2));
  const { rewards: _, ...rest } = batch;
  const wanted = gradientOf(policy, (o) =>
    grpoUpdate(policy, o, { ...rest, advantages: toCome }, { advantageClip: 100 }),
  );
  expectSame(
    gradientOf(policy, (o) => ppoUpdate(policy, o, batch, { ...options, kl: { coef: 0.2, reference } })),
    wanted,
    1e-9,
  );
});

test("with rewards a token each is credited with its own and, decayed, with later ones: by hand", () => {
  for (const context of [CONTEXTS.own, CONTEXTS.shared, CONTEXTS.prefix] as RolloutContext[]) {
    const { policy, reference, batch } = scene(context);
    const { rewards: _, ...rest } = batch;
    const places = randn(batch.tokens.shape, F64);
    const t = places.size(2);
    const toCome = (rewards: Tensor, decay: number): Tensor => {
      const powers = tensor(
        Array.from({ length: t }, (_, s) =>
          Array.from({ length: t }, (_, i) => (s < i ? 0 : decay ** (s - i))),
        ),
        F64,
      ); // [s, t]
      return rewards.matmul(powers);
    };
    for (const creditDecay of [0, 0.7]) {
      const returns = toCome(places, creditDecay);
      const centred = returns.sub(returns.mean(1, { keepdim: true }));
      const std = centred
        .square()
        .sum([1, 2], { keepdim: true })
        .div(2 * t)
        .sqrt();
      const whole = returns.sub(returns.mean([0, 1], { keepdim: true }));
      const wholeStd = whole
        .square()
        .sum()
        .div(11 * t)
        .sqrt();
      const cases = [
        [rlooUpdate, centred.mul(1.5)],
        [grpoUpdate, centred.div(std)],
        [reinforceUpdate, whole.div(wholeStd)],
      ] as const;
      for (const [update, advantages] of cases) {
        const where = `${update.name} ${context.type} ${creditDecay}`;
        const options = { creditDecay, aggregation: "mean" as const };
        const byHand = (): Tensor => scoreCodes(policy, batch).logprobs.mul(advantages).mean().neg();
        const got = gradientOf(policy, (o) => update(policy, o, { ...rest, rewards: places }, options));
        try {
          expectSame(got, own(policy, byHand), 1e-6);
        } catch (error) {
          throw new Error(where, { cause: error });
        }
      }
      // With values of 0, PPO's lambda is the decay.
      const valueHead = new ValueHead(8).to(F64);
      const ppo = { valueHead, lambda: creditDecay, whiten: false, epochs: 1 };
      const ahead = (): Tensor => scoreCodes(policy, batch).logprobs.mul(returns).mean().neg();
      expectSame(
        gradientOf(policy, (o) => ppoUpdate(policy, o, { ...rest, rewards: places }, ppo)),
        own(policy, ahead),
        1e-6,
      );
      // The divergence of each token is taken from that token's reward.
      const penalty = klEstimate(
        batch.logprobs,
        noGrad(() => scoreCodes(reference, batch).logprobs),
        "k1",
      ).double();
      const kl = { coef: 0.2, reference, placement: "reward" as const };
      const less = toCome(places.sub(penalty.mul(0.2)), creditDecay);
      const advantages = less.sub(less.mean(1, { keepdim: true })).mul(1.5);
      expectSame(
        gradientOf(policy, (o) =>
          rlooUpdate(policy, o, { ...rest, rewards: places }, { creditDecay, kl, aggregation: "mean" }),
        ),
        own(policy, () => scoreCodes(policy, batch).logprobs.mul(advantages).mean().neg()),
        1e-6,
      );
    }
  }
});

test("a reward that comes with the last token alone is the sequence's, in every algorithm", () => {
  for (const context of [CONTEXTS.own, CONTEXTS.shared] as RolloutContext[]) {
    const { policy, batch } = scene(context);
    const places = batch.rewards.unsqueeze(2).mul(tensor([0, 0, 0, 0, 0, 1], F64));
    const head = new ValueHead(8).to(F64);
    noGrad(() => head.out.weight.copy_(randn([1, 8], F64)));
    const valueHead = head;
    const updates: ((o: Recorder, b: UpdateBatch) => unknown)[] = [
      (o, b) => reinforceUpdate(policy, o, b),
      (o, b) => rlooUpdate(policy, o, b),
      (o, b) => grpoUpdate(policy, o, b),
      (o, b) => grpoUpdate(policy, o, b, { scale: "batch" }),
      (o, b) => ppoUpdate(policy, o, b, { valueHead, epochs: 1 }),
    ];
    for (const update of updates) {
      const wanted = gradientOf(policy, (o) => update(o, batch));
      expectSame(
        gradientOf(policy, (o) => update(o, { ...batch, rewards: places })),
        wanted,
        1e-9,
      );
    }
    const early = { ...batch, rewards: places.flip(2) };
    for (const update of updates) {
      const wanted = gradientOf(policy, (o) => update(o, batch));
      expectDifferent(
        gradientOf(policy, (o) => update(o, early)),
        wanted,
      );
    }
  }
});

test("kl/ref is the divergence from the reference, wherever it counts; at coefficient 0 it is only measured", () => {
  const { policy, reference, batch } = scene({ type: "free" });
  const head = new ValueHead(8).to(F64);
  const measured = (kl: object): number | undefined => {
    const optimizer = new Recorder([policy]);
    const { metrics } = rlooUpdate(policy, optimizer, batch, { kl: { coef: 0.3, reference, ...kl } });
    return metrics["kl/ref"];
  };
  const scores = noGrad(() => scoreCodes(policy, batch, { reference }));
  const ref = noGrad(() => scoreCodes(reference, batch).logprobs);
  const k3 = klEstimate(scores.logprobs, ref, "k3").mean().item();
  const exact = (scores.kl as Tensor).mean().item();
  assert.ok(k3 > 0.01 && Math.abs(k3 - exact) > 1e-4);
  for (const placement of ["loss", "reward"]) {
    expectClose(measured({ placement, estimator: "exact" }) as number, exact, { rtol: 1e-9 });
    expectClose(measured({ placement, estimator: "k2" }) as number, k3, { rtol: 1e-9 });
  }
  for (const kl of [{ coef: 0 }, { coef: 0, estimator: "exact" }, { coef: 0, placement: "reward" }])
    expectClose(measured(kl) as number, k3, { rtol: 1e-9 });
  const free = gradientOf(policy, (o) => rlooUpdate(policy, o, batch));
  expectSame(
    gradientOf(policy, (o) => rlooUpdate(policy, o, batch, { kl: { coef: 0, reference } })),
    free,
    1e-12,
  );
  const { metrics } = ppoUpdate(policy, new Recorder([policy]), batch, {
    valueHead: head,
    epochs: 1,
    kl: { coef: 0, reference },
  });
  assert.equal(metrics["loss/kl"], undefined);
  expectClose(metrics["kl/ref"] as number, k3, { rtol: 1e-9 });
  assert.equal(rlooUpdate(policy, new Recorder([policy]), batch).metrics["kl/ref"], undefined);
});

test("the norm that is limited is that of what is trained", () => {
  const { policy, batch } = scene({ type: "free" });
  const whole = rlooUpdate(policy, new Recorder([policy]), batch).metrics["optim/grad_norm"] as number;
  const recorder = new Recorder([policy]);
  const { metrics } = rlooUpdate(policy, recorder, batch, { trained: [policy.out.weight] });
  const { "0.out.weight": gradient } = recorder.seen[0] as Gradients;
  const norm = (gradient as Tensor).square().sum().sqrt().item();
  expectClose(metrics["optim/grad_norm"] as number, norm, { rtol: 1e-6 });
  assert.ok(norm < whole * 0.999);
});

test("an exact divergence in the reward is the mean of the sampled one", () => {
  const { policy, reference, batch } = scene({ type: "teacher_forced" }, { g: 3000, b: 2 });
  const ref = noGrad(() => scoreCodes(reference, batch).logprobs);
  const exact = noGrad(() => scoreCodes(policy, batch, { reference }).kl) as Tensor; // [B, T]
  const k1 = klEstimate(batch.logprobs, ref, "k1").double();
  const error = k1.std(1).div(Math.sqrt(3000)).mul(4.5);
  assert.ok(k1.mean(1).sub(exact).abs().le(error).all().item() === 1);
});

test("constant groups are skipped and counted", () => {
  const { policy, batch } = scene({ type: "teacher_forced" });
  const rewards = batch.rewards.clone();
  rewards.select(0, 1).fill_(0.7);
  rewards.select(0, 3).fill_(-0.1);
  const result = grpoUpdate(policy, new Recorder([policy]), { ...batch, rewards });
  assert.equal(result.constantGroups, 2);
  assert.equal(result.metrics["advantage/frac_zero_std"], 0.5);
  const advantages = groupAdvantages(rewards).advantages;
  const kept = { ...batch, rewards: rewards.clone() };
  for (const i of [1, 3]) kept.rewards.select(0, i).copy_(tensor([1, 2, 3], F64));
  const { rewards: _, ...rest } = batch;
  const zeroed = advantages.clone();
  const wanted = gradientOf(policy, (o) => grpoUpdate(policy, o, { ...rest, advantages: zeroed }));
  expectSame(
    gradientOf(policy, (o) => grpoUpdate(policy, o, { ...batch, rewards })),
    wanted,
    1e-9,
  );
  expectDifferent(
    gradientOf(policy, (o) => grpoUpdate(policy, o, kept)),
    wanted,
  );
});

test("advantages are clipped, and may be given for each token", () => {
  const { policy, batch } = scene({ type: "free" });
  const { rewards: _, ...rest } = batch;
  const advantages = randn([4, 3, 6], F64).mul(3);
  const clipped = gradientOf(policy, (o) =>
    grpoUpdate(policy, o, { ...rest, advantages }, { advantageClip: 2 }),
  );
  const byHand = (): Tensor => scoreCodes(policy, batch).logprobs.mul(advantages.clamp(-2, 2)).mean().neg();
  expectSame(clipped, own(policy, byHand), 1e-6);
  const { metrics } = grpoUpdate(
    policy,
    new Recorder([policy]),
    { ...rest, advantages },
    { advantageClip: 2 },
  );
  assert.equal(metrics["advantage/abs_max"], 2);
});

test("a reward, a logit or a gradient that is not finite skips the step and is counted", () => {
  for (const spoil of [
    (s: Scene) => s.batch.rewards.narrow(0, 0, 1).fill_(Number.NaN),
    (s: Scene) => s.batch.logprobs.narrow(0, 0, 1).fill_(Number.NaN),
    (s: Scene) => noGrad(() => s.policy.out.bias?.narrow(0, 0, 1).fill_(Number.NaN)),
  ]) {
    const s = scene({ type: "free" });
    spoil(s);
    const recorder = new Recorder([s.policy]);
    const result = grpoUpdate(s.policy, recorder, s.batch, { maxRatioGap: Infinity });
    assert.deepEqual([result.steps, result.skippedSteps, recorder.seen.length], [0, 1, 0]);
    assert.equal(result.metrics["optim/skipped_steps"], 1);
    assert.ok(s.policy.parameters().every((p) => p.grad === null));
  }
  const s = scene({ type: "free" });
  s.batch.rewards.narrow(0, 0, 1).fill_(Number.NaN);
  const recorder = new Recorder([s.policy]);
  const result = grpoUpdate(s.policy, recorder, s.batch, { miniBatch: 1, generator: new Generator(1) });
  assert.deepEqual([result.steps, result.skippedSteps], [3, 1], "other mini-batches are not lost");
  assert.ok(Number.isFinite(result.metrics["loss/total"]));
});

test("a batch that another policy drew is refused before any step, unless it is meant", () => {
  const { policy, batch } = scene({ type: "free" }, { sampling: { temperature: 0.5 } });
  const recorder = new Recorder([policy]);
  const message =
    /^Error: grpoUpdate: expected mean \|ratio - 1\| of at most 0\.1 before the first step, got \d\.\d+\. Score with the sampling, start and context that drew the codes and with the weights that did, or raise maxRatioGap for a stale rollout\.$/;
  assert.throws(() => grpoUpdate(policy, recorder, { ...batch, sampling: {} }), message);
  assert.equal(recorder.seen.length, 0);
  assert.ok(policy.parameters().every((p) => p.grad === null));
  grpoUpdate(policy, recorder, { ...batch, sampling: {} }, { maxRatioGap: Infinity });
  assert.equal(recorder.seen.length, 1);
});

test("dropout is off: the first ratio is 1, and every module's flag comes back", () => {
  manualSeed(1);
  const policy = new TinyPolicy({ dropout: 0.5 });
  policy.train();
  const classes = tensor([0, 1], LONG);
  const rollout = sampleRollout(policy, { classes }, { context: { type: "free" }, numGenerations: 4 });
  const { metrics } = grpoUpdate(policy, new Recorder([policy]), { ...rollout, rewards: randn([2, 4]) });
  expectClose(metrics["policy/ratio_mean"] as number, 1, { rtol: 1e-4 });
  assert.ok((metrics["sampling/logp_diff_max"] as number) < 1e-4);
  assert.ok(policy.drop.training);
});

test("target KL ends the update before the step that would follow", () => {
  const { policy, batch } = scene({ type: "free" });
  const moving: Optimizer = {
    step: () => noGrad(() => policy.out.bias?.add_(tensor([3, ...Array<number>(10).fill(0)], F64))),
    zeroGrad: () => policy.zeroGrad(),
  };
  const result = grpoUpdate(policy, moving, batch, { epochs: 5, targetKl: 0.05 });
  assert.deepEqual([result.steps, result.stoppedEarly], [1, true]);
  const lax = grpoUpdate(policy, new Recorder([policy]), batch, {
    epochs: 3,
    targetKl: 1e9,
    maxRatioGap: Infinity,
  });
  assert.deepEqual([lax.steps, lax.stoppedEarly], [3, false]);
  // KL(old || new) by its definition, over codes that the old policy drew.
  const logp = noGrad(() => scoreCodes(policy, batch).logprobs);
  expectClose(
    lax.metrics["kl/approx"] as number,
    klEstimate(batch.logprobs.double(), logp, "k3").mean().item(),
    { rtol: 1e-6 },
  );
  expectClose(lax.metrics["kl/approx_k1"] as number, batch.logprobs.double().sub(logp).mean().item(), {
    rtol: 1e-6,
  });
  const ratio = logp.sub(batch.logprobs).exp();
  expectClose(lax.metrics["policy/ratio_mean"] as number, ratio.mean().item(), { rtol: 1e-6 });
  expectClose(lax.metrics["policy/ratio_max"] as number, ratio.amax().item(), { rtol: 1e-6 });
  const a = groupAdvantages(batch.rewards).advantages.unsqueeze(2);
  const low = ratio.lt(0.8).logicalAnd(a.lt(0)).double().mean().item();
  const high = ratio.gt(1.28).logicalAnd(a.gt(0)).double().mean().item();
  expectClose(lax.metrics["clip_ratio/low_mean"] as number, low, { rtol: 1e-12 });
  expectClose(lax.metrics["clip_ratio/high_mean"] as number, high, { rtol: 1e-12 });
  assert.ok(low + high > 0, "something must be clipped for this to tell");
});

test("what was drawn by another policy is clipped at 1 - 0.2 and 1 + 0.28, or where the options say", () => {
  const { policy, batch } = scene({ type: "free" });
  const old = batch.logprobs.double().add(randn([4, 3, 6], F64).mul(0.3));
  const moved = { ...batch, logprobs: old };
  const a = groupAdvantages(batch.rewards).advantages.unsqueeze(2);
  const byHand = (low: number, high: number): Gradients =>
    own(policy, () => {
      const ratio = scoreCodes(policy, batch).logprobs.sub(old).exp();
      return ratio.mul(a).minimum(ratio.clamp(low, high).mul(a)).mean().neg();
    });
  const of = (options: GrpoOptions): Gradients =>
    gradientOf(policy, (o) => grpoUpdate(policy, o, moved, { maxRatioGap: Infinity, ...options }));
  expectSame(of({}), byHand(0.8, 1.28));
  expectSame(of({ clipLow: 0.1, clipHigh: 0.4 }), byHand(0.9, 1.4));
  expectDifferent(of({}), byHand(0.72, 1.2));
});

test("token dropout takes tokens out of the policy's loss and its mean, and leaves the others theirs", () => {
  const { policy, batch } = scene({ type: "free" });
  const kept = tokenDropout(onesLike(batch.tokens, F64).reshape(12, 1, 6), 0.5, new Generator(5)).reshape(
    4,
    3,
    6,
  );
  const a = groupAdvantages(batch.rewards).advantages.unsqueeze(2);
  const byHand = (): Tensor => {
    const scores = scoreCodes(policy, batch, { wantsEntropy: true });
    const pg = scores.logprobs.mul(a).mul(kept).sum().div(kept.sum()).neg();
    return pg.sub((scores.entropy as Tensor).mean().mul(0.1));
  };
  const options = { tokenDropout: 0.5, entropyCoef: 0.1, generator: new Generator(5) };
  expectSame(
    gradientOf(policy, (o) => grpoUpdate(policy, o, batch, options)),
    own(policy, byHand),
    1e-6,
  );
});

test("gradients that were there before the update do not count", () => {
  const { policy, batch } = scene({ type: "free" });
  const wanted = gradientOf(policy, (o) => grpoUpdate(policy, o, batch));
  for (const p of policy.parameters()) p.grad = p.detach().mul(0).add(7);
  expectSame(
    gradientOf(policy, (o) => grpoUpdate(policy, o, batch)),
    wanted,
  );
});

test("the gradient's norm is limited, reported as it was, and the learning rate's factor passed on", () => {
  const { policy, batch } = scene({ type: "free" });
  const free = new Recorder([policy]);
  const result = grpoUpdate(policy, free, batch);
  const norm = Math.sqrt(
    Object.values(free.seen[0] as Gradients)
      .map((g) => g.square().sum().item())
      .reduce((a, b) => a + b),
  );
  expectClose(result.metrics["optim/grad_norm"] as number, norm, { rtol: 1e-10 });
  const tight = new Recorder([policy]);
  const clipped = grpoUpdate(policy, tight, batch, { maxGradNorm: norm / 10, lrFactor: 0.25 });
  expectClose(clipped.metrics["optim/grad_norm"] as number, norm, { rtol: 1e-10 });
  assert.equal(clipped.metrics["optim/grad_norm_clipped_frac"], 1);
  const scaled = Object.fromEntries(
    Object.entries(free.seen[0] as Gradients).map(([name, g]) => [name, g.div(10)]),
  );
  expectSame(tight.seen[0], scaled, 1e-4);
  assert.deepEqual(tight.factors, [0.25]);
});

test("PPO's value head explains deterministic returns; its error does not touch the policy unless asked to", () => {
  const { policy } = scene({ type: "free" });
  const head = new ValueHead(8).to(F64);
  const classes = tensor([0, 1, 2, 1, 0, 2], LONG);
  const batch = sampleRollout(
    policy,
    { classes },
    { context: { type: "free" }, numGenerations: 3, length: 2 },
  );
  const rewards = classes.double().unsqueeze(1).expand(6, 3).contiguous(); // what the class says, and nothing else
  noGrad(() => head.out.weight.copy_(randn([1, 8], F64)));
  const options = { valueHead: head, epochs: 1, lambda: 1, valueCoef: 1 };
  const of = (more: object): [Gradients, Tensor] => {
    const all = gradientOf(
      policy,
      (o) => ppoUpdate(policy, o, { ...batch, rewards }, { ...options, ...more }),
      [head],
    );
    const names = Object.keys(all).filter((name) => name.startsWith("0."));
    return [
      Object.fromEntries(names.map((name) => [name, all[name] as Tensor])),
      all["1.out.weight"] as Tensor,
    ];
  };
  const [policyAlone, untouched] = of({ valueCoef: 0 });
  const [detached, learning] = of({});
  assert.equal(untouched.abs().amax().item(), 0);
  assert.ok(learning.abs().amax().item() > 1e-3);
  expectSame(detached, policyAlone);
  expectDifferent(of({ detachTrunk: false })[0], policyAlone);
  const sgd: Optimizer = {
    step: () =>
      noGrad(() => {
        for (const p of head.parameters()) if (p.grad) p.sub_(p.grad, 0.5);
      }),
    zeroGrad: () => {
      head.zeroGrad();
      policy.zeroGrad();
    },
  };
  const learn = { ...options, epochs: 100, valueClip: null };
  ppoUpdate(policy, sgd, { ...batch, rewards }, learn);
  const after = ppoUpdate(policy, sgd, { ...batch, rewards }, { ...learn, epochs: 1 });
  const explained = after.metrics["value/explained_variance"] as number;
  assert.ok(explained > 0.8 && explained <= 1, `explained variance ${explained}`);
});

test("PPO by hand: advantages from values, whitened, with the clipped value loss", () => {
  const { policy, batch } = scene({ type: "teacher_forced" });
  const head = new ValueHead(8).to(F64);
  noGrad(() => head.out.weight.copy_(randn([1, 8], F64)));
  const { classes } = (batch.start as unknown as [Tensor, { classes: Tensor }])[1];
  const hidden = (): Tensor => policy.hidden(batch.context as Tensor, { classes });
  const gamma = 0.9;
  const lambda = 0.8;
  const byHand = (): Tensor => {
    const values = head.forward(hidden()).unsqueeze(1).expand(4, 3, 6); // with the trunk's graph
    const v = values.detach();
    const columns: Tensor[] = [];
    let ahead = v.select(2, 0).mul(0);
    for (let t = 5; t >= 0; t--) {
      const next = t === 5 ? v.select(2, 0).mul(0) : v.select(2, t + 1);
      const reward = t === 5 ? batch.rewards : batch.rewards.mul(0);
      ahead = reward
        .add(next.mul(gamma))
        .sub(v.select(2, t))
        .add(ahead.mul(gamma * lambda));
      columns.unshift(ahead);
    }
    const a = tensor(
      columns.map((c) => c.toList() as number[][]),
      F64,
    ).permute(1, 2, 0);
    const returns = a.add(v);
    const white = a.sub(a.mean()).div(a.std());
    const pg = scoreCodes(policy, batch).logprobs.mul(white).mean().neg();
    return pg.add(values.sub(returns).square().mean().div(2), 0.3);
  };
  const options = { valueHead: head, gamma, lambda, epochs: 1, valueCoef: 0.3, detachTrunk: false };
  expectSame(
    gradientOf(policy, (o) => ppoUpdate(policy, o, batch, options)),
    own(policy, byHand),
    1e-6,
  );
});

test("an update leaves nothing behind", () => {
  const { policy, reference, batch } = scene(CONTEXTS.shared as RolloutContext, { sampling: { topK: 6 } });
  const head = new ValueHead(8).to(F64);
  const still: Optimizer = {
    step: () => {},
    zeroGrad: () => {
      policy.zeroGrad();
      head.zeroGrad();
    },
  };
  const kl = { coef: 0.1, reference };
  noLeak(() => {
    grpoUpdate(policy, still, batch, {
      kl,
      auxCe: 0.1,
      entropyCoef: 0.1,
      epochs: 2,
      miniBatch: 2,
      microBatch: 1,
      tokenDropout: 0.5,
    });
    ppoUpdate(policy, still, batch, { valueHead: head, kl });
    assert.throws(() => reinforceUpdate(policy, still, { ...batch, sampling: { temperature: 9 } }));
  });
});

test("updates take Python's names and the seed's order of arguments, and refuse what they do not know", () => {
  const { policy, batch } = scene({ type: "free" });
  const classes = (batch.start as unknown as [Tensor, { classes: Tensor }])[1].classes.repeatInterleave(3, 0);
  const flat = {
    tokens: batch.tokens.flatten(0, 1),
    logprobs: batch.logprobs.flatten(0, 1),
    rewards: batch.rewards.flatten(),
  };
  const { tokens, logprobs, rewards } = flat;
  const mask = rand([12, 6], F64).gt(0.3);
  type Any = (policy: unknown, optimizer: unknown, ...rest: readonly unknown[]) => unknown;
  const gradient = (...rest: readonly unknown[]): Gradients =>
    gradientOf(policy, (o) => (reinforceUpdate as Any)(policy, o, ...rest));
  const wanted = gradient({ ...flat, start: { classes }, mask }, { entropyCoef: 0.1, maxGradNorm: 0.5 });
  expectSame(
    gradient({ ...flat, start: { classes }, mask }, { entropy_coef: 0.1, max_grad_norm: 0.5 }),
    wanted,
  );
  expectSame(gradient(tokens, logprobs, rewards, mask, 0.1, 0.5, { start: { classes } }), wanted);
  // The same with types.
  const typed = (o: Recorder): unknown =>
    reinforceUpdate(policy, o, tokens, logprobs, rewards, mask, 0.1, 0.5, { start: { classes } });
  expectSame(gradientOf(policy, typed), wanted);
  const byName = (o: Recorder): unknown =>
    reinforceUpdate(policy, o, tokens, logprobs, rewards, {
      mask,
      entropyCoef: 0.1,
      maxGradNorm: 0.5,
      start: { classes },
    });
  expectSame(gradientOf(policy, byName), wanted);
  const named = { mask, entropy_coef: 0.1, max_grad_norm: 0.5, start: { classes } };
  expectSame(gradient(tokens, logprobs, rewards, named), wanted);
  expectDifferent(gradient(tokens, logprobs, rewards, null, 0.1, null, { start: { classes } }), wanted);

  const head = new ValueHead(8).to(F64);
  const reference = policy;
  const refused = (
    update: unknown,
    of: object,
    options: object,
    message: RegExp,
    name = "RangeError",
  ): void =>
    assert.throws(() => (update as Any)(policy, new Recorder([policy]), { ...batch, ...of }, options), {
      name,
      message,
    });
  for (const update of [reinforceUpdate, rlooUpdate, grpoUpdate, ppoUpdate]) {
    const more = update === ppoUpdate ? { valueHead: head } : {};
    const name = update.name;
    const of = (options: object, message: RegExp): void =>
      refused(update, {}, { ...more, ...options }, message);
    of({ entropyCoeff: 1 }, new RegExp(`^${name}: .*entropyCoeff.*"entropyCoef"`));
    of({ maxLen: 0 }, /maxLen: /);
    of({ aggregation: "meen" }, /aggregation: .*mean.*dr_grpo.*meen/);
    of({ kl: { coef: 1, reference, estimater: "k1" } }, /kl: .*estimater.*"estimator"/);
    of({ kl: { coef: 1, reference, estimator: "k4" } }, /kl\.estimator: .*k3_own.*k4/);
    of({ kl: { reference } }, /kl\.coef: /);
    of({ maxGradNorm: 0 }, /maxGradNorm: .*above 0/);
    of({ auxCe: Number.NaN }, /auxCe: .*NaN/);
    of({ creditDecay: 2 }, /creditDecay: .*\[0, 1\].*2/);
    refused(update, { reward: rewards }, more, new RegExp(`^${name}\\.batch: .*reward.*"rewards"`));
    refused(update, { rewards: [1, 2] }, more, /batch\.rewards: .*Tensor/, "TypeError");
    refused(update, {}, { ...more, kl: { coef: 1, reference: {} } }, /kl\.reference: /, "TypeError");
  }
  refused(grpoUpdate, {}, { clip: 0.2 }, /"clip|clipLow/);
  refused(grpoUpdate, {}, { level: "sequences" }, /level: .*token or sequence.*sequences/);
  refused(grpoUpdate, {}, { scale: "groups" }, /scale: .*group, batch or none.*groups/);
  refused(grpoUpdate, {}, { objective: "cipso" }, /objective: .*clip or cispo.*cipso/);
  refused(grpoUpdate, {}, { objective: "cispo", level: "sequence" }, /level: .*token/);
  refused(rlooUpdate, {}, { epsilon: 1 }, /epsilon/);
  refused(grpoUpdate, {}, { maxGradNorm: "1" }, /maxGradNorm: .*number.*the text "1"/, "TypeError");
  refused(grpoUpdate, {}, { auxCe: "0.1" }, /auxCe: .*the text "0\.1"/, "TypeError");
  refused(grpoUpdate, {}, { generator: 7 }, /generator: .*Generator.*7/, "TypeError");
  assert.throws(() => new ValueHead(0), { name: "RangeError", message: /^ValueHead: .*policy\.hiddenSize/ });
  refused(ppoUpdate, {}, {}, /ppoUpdate\.valueHead: .*new ValueHead/, "TypeError");
  assert.throws(() => (reinforceUpdate as Any)(policy, new Recorder([policy]), tokens, logprobs), {
    name: "TypeError",
    message: /either rewards or advantages/,
  });
});

test("batches and options that make no sense are refused", () => {
  const { policy, reference, batch } = scene({ type: "free" });
  const optimizer = new Recorder([policy]);
  const grpo = (more: object, options: GrpoOptions = {}): unknown =>
    grpoUpdate(policy, optimizer, { ...batch, ...more }, options);
  const { rewards, ...rest } = batch;
  assert.throws(() => grpoUpdate(policy, optimizer, rest), {
    name: "TypeError",
    message: "grpoUpdate: expected either rewards or advantages, got neither.",
  });
  assert.throws(() => grpo({ advantages: rewards }), {
    message: "grpoUpdate: expected either rewards or advantages, got both.",
  });
  assert.throws(() => grpo({ rewards: rewards.flatten() }), {
    message: "grpoUpdate: expected rewards [4, 3] or in the shape of the tokens, got Tensor float64[12] cpu.",
  });
  const places = randn([4, 3, 6], F64);
  assert.throws(() => grpo({ rewards: places }, { level: "sequence" }), {
    message:
      "grpoUpdate: expected one number per sequence with level sequence, got Tensor float64[4, 3, 6] cpu.",
  });
  assert.throws(() => grpo({ rewards: places, mask: onesLike(batch.tokens) }), {
    message:
      "grpoUpdate: expected no mask with rewards per token, got one. Set the rewards of such tokens to 0.",
  });
  const flat = { tokens: batch.tokens.flatten(0, 1), logprobs: batch.logprobs.flatten(0, 1) };
  const start = { classes: randint(0, 3, [12]) };
  assert.throws(() => grpo({ ...flat, start, trueCodes: undefined, rewards: places.flatten(0, 1) }), {
    message: /2 rewards.*\[12, 1, 6\].*numGenerations/,
  });
  assert.throws(() => grpo({ logprobs: rewards }), {
    message: "grpoUpdate: expected logprobs [4, 3, 6], got Tensor float64[4, 3] cpu.",
  });
  assert.throws(() => grpo({ trueCodes: undefined }, { auxCe: 0.1 }), {
    message: "grpoUpdate: expected trueCodes with auxCe, got none.",
  });
  assert.throws(() => grpo({ trueCodes: batch.tokens.select(1, 0).narrow(1, 0, 3) }, { auxCe: 0.1 }), {
    message: "grpoUpdate: expected trueCodes int64 [4, 6], got Tensor int64[4, 3] cpu.",
  });
  const k1 = { coef: 0.1, reference, estimator: "k1" as const };
  assert.throws(
    () => grpo({}, { kl: k1 }),
    /^RangeError: klLoss: expected k2, k3 or k3_own in the loss, got k1\./,
  );
  assert.throws(() => grpo({}, { kl: { coef: 0.1, reference, placement: "reward", estimator: "k3_own" } }), {
    message: /^kl\.estimator: .*k1, k2, k3 or exact.*k3_own/,
  });
  assert.throws(() => ppoUpdate(policy, optimizer, rest, { valueHead: new ValueHead(8) }), {
    name: "TypeError",
  });
  assert.equal(optimizer.seen.length, 0);
});

test("a new head says 0, and learns at once", () => {
  manualSeed(1);
  const head = new ValueHead(4);
  const hidden = randn([2, 3, 4]);
  const values = head.forward(hidden);
  assert.deepEqual(values.toList(), [
    [0, 0, 0],
    [0, 0, 0],
  ]);
  values.sum().backward();
  expectClose(head.out.weight.grad?.flatten().toList() as number[], hidden.sum([0, 1]), { rtol: 1e-5 });
  assert.deepEqual(Object.keys(head.stateDict()), ["out.weight", "out.bias"]);
});

test("hidden states of a narrow dtype give values of the head's own", () => {
  assert.equal(new ValueHead(4).forward(randn([2, 4]).bfloat16()).dtype, "float32");
});
