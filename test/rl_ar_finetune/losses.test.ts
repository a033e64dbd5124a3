import assert from "node:assert/strict";
import { test } from "node:test";
import { groupAdvantages } from "../../src/rl_ar_finetune/advantages.js";
import {
  type Aggregation,
  adaptedCoef,
  bindingClips,
  cispoLoss,
  exactKl,
  explainedVariance,
  type KlEstimator,
  type KlLossKind,
  klEstimate,
  klLoss,
  pgLoss,
  reinforceLoss,
  runningMean,
  straightThroughGumbel,
  tokenDropout,
  tokenWeights,
  valueLoss,
} from "../../src/rl_ar_finetune/losses.js";
import {
  call,
  emptyLike,
  Generator,
  grad,
  manualSeed,
  ones,
  randn,
  type Tensor,
  tensor,
  zeros,
} from "../../src/torch/index.js";
import { expectClose } from "../support/close.js";
import { checkGradient } from "../support/gradcheck.js";
import { golden } from "../support/rl_golden.js";

const F64 = { dtype: "float64" } as const;
const TIGHT = { rtol: 1e-9, atol: 1e-12 };
const inputs = golden.inputs;
const logp = tensor(inputs.logp, F64);
const old = tensor(inputs.old, F64);
const ref = tensor(inputs.ref, F64);
const mask = tensor(inputs.mask, F64);
const A = tensor(golden.advantages.grpo_group, F64).unsqueeze(1);
const clip = { clipLow: golden.pg_loss.eps_low, clipHigh: golden.pg_loss.eps_high };

const NAMES: readonly (readonly [Aggregation, keyof typeof golden.kl.k1])[] = [
  ["mean", "token_mean"],
  ["grpo", "grpo"],
  ["bnpo", "token_mean"],
  ["dapo", "token_mean"],
  ["dr_grpo", "dr_grpo"],
  ["sum", "seq_mean_token_sum"],
];

function expectAggregated(loss: Tensor, wanted: Record<keyof typeof golden.kl.k1, number>): void {
  for (const [aggregation, name] of NAMES) {
    const weights = tokenWeights(mask, aggregation, golden.pg_loss.L_max);
    expectClose(loss.mul(weights).sum().item(), wanted[name], { ...TIGHT, where: aggregation });
  }
}

test("golden clipped surrogate, under every aggregation", () => {
  expectAggregated(pgLoss(logp, old, A, clip).loss, golden.pg_loss);
});

test("golden divergences, alone and added to the surrogate", () => {
  for (const kind of ["k1", "k2", "k3"] as const)
    expectAggregated(klEstimate(logp, ref, kind), golden.kl[kind]);
  const both = pgLoss(logp, old, A, clip).loss.add(klLoss(logp, ref, "k3"), 0.04);
  expectAggregated(both, golden["loss_with_k3_beta0.04"]);
  expectAggregated(klLoss(logp, ref, "k2"), golden.kl.k2);
  expectAggregated(klLoss(logp, ref, "k3_own"), golden.kl.k3);
});

test("golden sequence ratio: the geometric mean over the tokens that count", () => {
  const { loss, ratio } = pgLoss(logp, old, A, { ...clip, level: "sequence", mask });
  expectClose(ratio.squeeze(1), golden.gspo.seq_ratio, TIGHT);
  const sequenceMeans = loss.mul(mask).sum(1).div(mask.sum(1));
  expectClose(sequenceMeans.mean().item(), golden.gspo.loss, TIGHT);
  const whole = pgLoss(logp, old, A, { ...clip, level: "sequence" }).ratio;
  expectClose(whole.squeeze(1), logp.sub(old).mean(1).exp(), TIGHT);
});

test("golden CISPO and dual clip", () => {
  expectAggregated(cispoLoss(logp, old, A, 5).loss, golden.cispo_eps_high_TRL_semantics_max_5);
  const capped = cispoLoss(tensor([0], F64), tensor([-2], F64), tensor([1], F64), 3);
  expectClose(capped.loss, [0], TIGHT);
  const gradient = (cap: number): number => {
    const x = tensor([-0.5], { ...F64, requiresGrad: true });
    return grad([cispoLoss(x, tensor([-2.5], F64), tensor([1.5], F64), cap).loss], [x])[0]?.item() as number;
  };
  expectClose(gradient(3), -4.5, TIGHT); // -min(e^2, 3) A
  expectClose(gradient(50), -1.5 * Math.exp(2), TIGHT);
  const { ratio, A: a, single, dual_c3 } = golden.dual_clip_example;
  const at = (dualClip?: number): number => {
    const options = { clipLow: 0.2, clipHigh: 0.2, ...(dualClip && { dualClip }) };
    return pgLoss(tensor([Math.log(ratio)], F64), tensor([0], F64), tensor([a], F64), options).loss.item();
  };
  expectClose(at(), single, TIGHT);
  expectClose(at(3), dual_c3, TIGHT);
  assert.throws(() => at(0.5), { message: "pgLoss.dualClip: expected a number above 1, got 0.5." });
});

test("which side clips depends on the advantage's sign", () => {
  // Ratio, advantage, and whether the gradient survives a clip of [0.8, 1.28].
  const cases = [
    [0.7, 1, true],
    [0.7, -1, false],
    [1.3, 1, false],
    [1.3, -1, true],
    [1.25, 1, true],
    [0.85, -1, true],
  ] as const;
  for (const [ratio, a, survives] of cases) {
    const x = tensor([Math.log(ratio)], { ...F64, requiresGrad: true });
    const { loss } = pgLoss(x, tensor([0], F64), tensor([a], F64), clip);
    const gradient = grad([loss], [x])[0]?.item() as number;
    expectClose(gradient, survives ? -ratio * a : 0, { ...TIGHT, where: `ratio ${ratio}, A ${a}` });
    const bound = a > 0 ? Math.min(ratio, 1.28) : Math.max(ratio, 0.8);
    expectClose(loss.item(), -bound * a, TIGHT);
  }
});

test("golden clip fractions count clips that bind, not ratios that are off", () => {
  const mean = (x: Tensor): number => x.mul(mask).sum().item() / mask.sum().item();
  const ratio = logp.sub(old).exp();
  const { low, high } = bindingClips(ratio, A, [clip.clipLow, clip.clipHigh]);
  expectClose(mean(low), golden.clip.low_mean, TIGHT);
  expectClose(mean(high), golden.clip.high_mean, TIGHT);
  expectClose(mean(low.logicalOr(high)), golden.clip.region_mean, TIGHT);
  expectClose(mean(ratio.sub(1).abs().gt(0.2)), golden.clip.unsigned, TIGHT);
});

test("on the policy that drew, the loss is 0, its gradient is the golden one, and all methods agree", () => {
  const a = tensor([1, -1], F64);
  for (const loss of [
    (x: Tensor) => pgLoss(x, x.detach(), a).loss,
    (x: Tensor) =>
      pgLoss(x.unsqueeze(1), x.detach().unsqueeze(1), a.unsqueeze(1), { level: "sequence" }).loss.squeeze(1),
    (x: Tensor) => cispoLoss(x, x.detach(), a).loss,
    (x: Tensor) => reinforceLoss(x, x.detach(), a).loss,
  ]) {
    const x = tensor([-0.3, -1.2], { ...F64, requiresGrad: true });
    const weighted = loss(x)
      .mul(tokenWeights(ones([2]), "mean"))
      .sum();
    expectClose(grad([weighted], [x])[0] as Tensor, golden.on_policy.grad_wrt_logp, TIGHT);
  }
  expectClose(
    pgLoss(logp, logp, tensor([[1], [-1], [1], [-1]], F64))
      .loss.sum()
      .item(),
    golden.on_policy.loss,
    { atol: 1e-12 },
  );
});

test("beyond 20 nats nothing overflows, and no gradient vanishes that pulls back", () => {
  const far = tensor([200, 21, -200], { requiresGrad: true });
  const zero = zeros([3]);
  const e20 = Math.exp(20);
  const gradient = (loss: Tensor): Tensor => grad([loss.sum()], [far])[0] as Tensor;
  // The ratio goes on as the tangent of exp at 20; below it is exp itself.
  const { loss, ratio } = pgLoss(far, zero, tensor([-1, -1, 1]));
  expectClose(ratio, [181 * e20, 2 * e20, 0], { rtol: 1e-5 });
  expectClose(gradient(loss), [e20, e20, 0], { rtol: 1e-5 });
  const wide = pgLoss(far.unsqueeze(1), zeros([3, 1]), tensor([[-1], [-1], [1]]), { level: "sequence" });
  expectClose(gradient(wide.loss), [e20, e20, 0], { rtol: 1e-5 });
  // k1 and k2 are exact at any distance; k3 = exp(-d) - 1 + d goes on as its tangent for d < -20.
  const wanted = {
    k1: [
      [200, 21, -200],
      [1, 1, 1],
    ],
    k2: [
      [20_000, 220.5, 20_000],
      [200, 21, -200],
    ],
    k3: [
      [199, 20, 181 * e20 - 201],
      [1, 1, 1 - e20],
    ],
  } as const;
  for (const kind of ["k1", "k2", "k3"] as const) {
    const [value, slope] = wanted[kind];
    const estimate = klEstimate(far, zero, kind);
    expectClose(estimate, value, { rtol: 1e-6, where: kind });
    expectClose(gradient(estimate), slope, { rtol: 1e-6, where: kind });
  }
  for (const kind of ["k2", "k3"] as const) expectClose(gradient(klLoss(far, zero, kind)), [200, 21, -200]);
  expectClose(gradient(klLoss(far, zero, "k3_own")), [1, 1, 1 - e20], { rtol: 1e-6 });
  const further = klEstimate(tensor([-1e4, 1e4, -700]), zero, "k3");
  assert.equal(further.isfinite().all().item(), 1);
});

test("up to 20 nats ratios and estimates are those of exp", () => {
  const d = tensor([-20, -3, 0, 0.5, 20], F64);
  expectClose(pgLoss(d, zeros([5], F64), ones([5], F64)).ratio, d.exp(), { rtol: 0 });
  expectClose(klEstimate(d, zeros([5], F64), "k3"), d.neg().expm1().add(d), { rtol: 0 });
});

test("with sequences of one length the mean is that of GRPO, BNPO, DAPO and Dr. GRPO, and sum is T times it", () => {
  manualSeed(1);
  const loss = randn([6, 5], F64);
  const total = (aggregation: Aggregation): number =>
    loss
      .mul(tokenWeights(ones([6, 5]), aggregation))
      .sum()
      .item();
  const sums = loss.sum(1);
  for (const mean of [loss.mean(1).mean(), loss.mean(), sums.div(5).mean()])
    expectClose(total("mean"), mean.item(), TIGHT);
  expectClose(total("sum"), 5 * loss.mean().item(), TIGHT);
});

test("weights of the window make uneven micro-batches right, where the mean of their means is not", () => {
  const parts = [tensor([1, 2], F64), tensor([3, 4, 5, 6, 7], F64)];
  const weights = tokenWeights(ones([7]), "mean");
  const correct = parts.map((part, i) =>
    part
      .mul(weights.narrow(0, i * 2, part.numel))
      .sum()
      .item(),
  );
  expectClose(
    correct.reduce((a, b) => a + b),
    golden.uneven_micro.correct,
    TIGHT,
  );
  const naive = parts.map((part) =>
    part
      .mul(tokenWeights(ones([part.numel]), "mean"))
      .sum()
      .item(),
  );
  expectClose((naive.reduce((a, b) => a + b) as number) / 2, golden.uneven_micro.mean_of_means, TIGHT);
});

test("sequences without tokens that count weigh nothing", () => {
  const some = tensor(
    [
      [1, 1],
      [0, 0],
    ],
    F64,
  );
  for (const aggregation of ["mean", "sum"] as const) {
    const weights = tokenWeights(some, aggregation);
    assert.equal(weights.select(0, 1).abs().sum().item(), 0);
    assert.equal(weights.isfinite().all().item(), 1);
  }
  assert.equal(
    tokenWeights(zeros([2, 2]), "mean")
      .sum()
      .item(),
    0,
  );
});

test("token dropout keeps its part, and one token of each sequence whatever happens", () => {
  const counts = ones([400, 50], F64);
  const kept = tokenDropout(counts, 0.3, new Generator(1));
  const mean = kept.mean().item();
  assert.ok(Math.abs(mean - 0.7) < 0.015, `${mean}`);
  const rare = tokenDropout(
    tensor(
      [
        [1, 1, 0],
        [0, 1, 0],
      ],
      F64,
    ).repeat(200, 1),
    0.999,
    new Generator(2),
  );
  assert.ok(rare.sum(1).amin().item() === 1);
  assert.equal(rare.select(1, 2).sum().item(), 0, "what did not count stays out");
  assert.equal(
    tokenDropout(zeros([2, 3], F64), 0.5)
      .sum()
      .item(),
    0,
  );
  expectClose(tokenDropout(counts, 0), counts, { rtol: 0 });
  assert.throws(() => tokenDropout(counts, 1), {
    message: "tokenDropout: expected a probability in [0, 1), got 1.",
  });
});

/** Value and gradient of E[f] over a 4-way softmax, by enumeration, with codes drawn from it held fixed. */
function enumerated(f: (logprobs: Tensor, reference: Tensor) => Tensor): { value: number; gradient: Tensor } {
  const theta = tensor([0.3, -0.5, 1.1, 0], { ...F64, requiresGrad: true });
  const reference = tensor([0, 0.2, 0.4, -0.3], F64).logSoftmax(0);
  const logprobs = theta.logSoftmax(0);
  const expectation = f(logprobs, reference).mul(logprobs.detach().exp()).sum();
  return { value: expectation.item(), gradient: grad([expectation], [theta])[0] as Tensor };
}

test("golden expectations and gradients of the divergence's estimators, by enumeration", () => {
  const exact = golden.kl_gradient_exact;
  const of = (kind: KlEstimator): ReturnType<typeof enumerated> =>
    enumerated((p, q) => klEstimate(p, q, kind));
  expectClose(of("k1").value, exact.E_k1, TIGHT);
  expectClose(of("k2").value, exact.E_k2, TIGHT);
  expectClose(of("k3").value, exact.E_k3, TIGHT);
  expectClose(of("k1").gradient, [0, 0, 0, 0], { atol: 1e-12 });
  expectClose(of("k2").gradient, exact.true_grad, TIGHT);
  expectClose(of("k2").gradient, exact.E_grad_k2, TIGHT);
  expectClose(of("k3").gradient, exact.E_grad_k3, TIGHT);
  expectClose(of("k3").gradient, exact.grad_forward_kl, TIGHT);
  expectClose(of("k1").gradient, exact.E_grad_k1, { atol: 1e-12 });
});

test("the divergence that is descended has the true gradient and k3's value; k3_own has the other gradient", () => {
  const exact = golden.kl_gradient_exact;
  const of = (kind: KlLossKind): ReturnType<typeof enumerated> => enumerated((p, q) => klLoss(p, q, kind));
  for (const kind of ["k2", "k3"] as const) expectClose(of(kind).gradient, exact.true_grad, TIGHT);
  expectClose(of("k3").value, exact.kl, TIGHT);
  expectClose(of("k3_own").gradient, exact.grad_forward_kl, TIGHT);
  assert.throws(() => of("k1"), {
    name: "RangeError",
    message: /klLoss: .*k3_own.*got k1\..*into the reward/,
  });
});

test("the exact divergence has the golden value and gradient, and bears codes that were cut", () => {
  const theta = tensor([0.3, -0.5, 1.1, 0], { ...F64, requiresGrad: true });
  const reference = tensor([0, 0.2, 0.4, -0.3], F64).logSoftmax(0);
  const kl = exactKl(theta.logSoftmax(0), reference);
  expectClose(kl.item(), golden.kl_gradient_exact.kl, TIGHT);
  expectClose(grad([kl], [theta])[0] as Tensor, golden.kl_gradient_exact.true_grad, TIGHT);
  const { guided, cond, KL_guided_cond } = golden.cfg;
  expectClose(exactKl(tensor(guided, F64).log(), tensor(cond, F64).log()).item(), KL_guided_cond, TIGHT);
  const cut = tensor([0.3, -0.5, -Infinity, 0], { ...F64, requiresGrad: true });
  const narrow = exactKl(cut.logSoftmax(0), tensor([0, 0.2, -Infinity, -0.3], F64).logSoftmax(0));
  assert.ok(Number.isFinite(narrow.item()));
  assert.equal((grad([narrow], [cut])[0] as Tensor).isfinite().all().item(), 1);
  const beyond = exactKl(tensor([0, 0], F64).logSoftmax(0), tensor([0, -Infinity], F64).logSoftmax(0));
  assert.equal(beyond.item(), Infinity);
});

test("golden value loss, its clip, and explained variance", () => {
  const { vpred, vold, ret, clip: c, clipped, unclipped, clipfrac } = golden.value_loss;
  const [v, before, returns] = [tensor(vpred, F64), tensor(vold, F64), tensor(ret, F64)];
  const loss = valueLoss(v, before, returns, c);
  expectClose(loss.loss.mean().item(), clipped, TIGHT);
  expectClose(loss.isClipped.double().mean().item(), clipfrac, TIGHT);
  expectClose(valueLoss(v, before, returns).loss.mean().item(), unclipped, TIGHT);
  assert.equal(valueLoss(v, before, returns).isClipped.any().item(), 0);
  const { y, p, globl } = golden.explained_variance;
  expectClose(explainedVariance(tensor(y, F64), tensor(p, F64)).item(), globl, TIGHT);
  expectClose(explainedVariance(tensor(y, F64), tensor(y, F64).add(3)).item(), 1, TIGHT);
  const part = (mask: number[]): number =>
    explainedVariance(tensor(y, F64), tensor(p, F64), tensor(mask, F64)).item();
  const averaged = (part([1, 1, 0, 0]) + part([0, 0, 1, 1])) / 2; // what micro-batches would say
  expectClose(averaged, golden.explained_variance.avg_of_two_micro, { atol: 1e-9 });
  assert.ok(Number.isNaN(explainedVariance(tensor([1, 1], F64), tensor([0, 1], F64)).item()));
});

test("autograd agrees with finite differences for every loss", () => {
  manualSeed(2);
  const a = randn([4, 1], F64);
  const w = tokenWeights(mask, "mean");
  const fns: readonly ((x: Tensor) => Tensor)[] = [
    (x) => pgLoss(x, old, a, clip).loss,
    (x) => pgLoss(x, old, a, { ...clip, dualClip: 1.1 }).loss,
    (x) => pgLoss(x, old, a, { ...clip, level: "sequence", mask }).loss,
    (x) => reinforceLoss(x, old, a).loss,
    (x) => klEstimate(x, ref, "k1"),
    (x) => klEstimate(x, ref, "k2"),
    (x) => klEstimate(x, ref, "k3"),
    (x) => klLoss(x, ref, "k2"),
    (x) => klLoss(x, ref, "k3_own"),
    (x) => valueLoss(x, old, ref, 0.2).loss,
    (x) => valueLoss(x, old, ref).loss,
  ];
  for (const fn of fns) checkGradient((x) => fn(x).mul(w).sum(), [logp]);
  const logits = randn([2, 5], F64);
  const other = randn([2, 5], F64).logSoftmax(-1);
  checkGradient((x) => exactKl(x.logSoftmax(-1), other).sum(), [logits]);
});

test("a straight-through draw is one-hot, drawn from the softmax, with the soft draw's gradient", () => {
  const logits = tensor([1, 0, -1, 0.5], F64);
  const n = 20000;
  const drawn = straightThroughGumbel(logits.expand(n, 4), { generator: new Generator(1) });
  expectClose(drawn.sum(-1), Array<number>(n).fill(1), { rtol: 1e-9 });
  const p = logits.softmax(0);
  const counts = drawn.sum(0);
  const chi2 = counts.sub(p.mul(n)).square().div(p.mul(n)).sum().item();
  assert.ok(chi2 < 21, `chi-square ${chi2}`); // 99.99 % of 3 degrees of freedom
  manualSeed(3);
  const x = randn([3, 6], F64).requiresGrad_();
  const codebook = randn([6, 2], F64);
  const weights = randn([3, 2], F64);
  const tau = 0.7;
  const hard = straightThroughGumbel(x, { tau, generator: new Generator(4) });
  const gradient = grad([hard.matmul(codebook).mul(weights).sum()], [x])[0] as Tensor;
  // By hand: with s the soft draw, d/dx_j = s_j / tau (g_j - sum_k s_k g_k), g = weights @ codebook^T.
  const race = call("aten::exponential_", [emptyLike(x.detach()), 1, new Generator(4)]) as Tensor;
  const s = x.detach().sub(race.log()).div(tau).softmax(-1);
  const g = weights.matmul(codebook.transpose(0, 1));
  expectClose(gradient, s.div(tau).mul(g.sub(s.mul(g).sum(-1, { keepdim: true }))), TIGHT);
  assert.deepEqual(hard.argmax(-1).toList(), s.argmax(-1).toList());
  assert.throws(() => straightThroughGumbel(x, { tau: 0 }), {
    message: "straightThroughGumbel.tau: expected a positive number, got 0.",
  });
});

test("advantages and surrogate together: raising a better sequence lowers the loss", () => {
  const { advantages } = groupAdvantages(tensor([[1, 0]], F64));
  const at = (up: number): number =>
    pgLoss(tensor([[up, 0]], F64), zeros([1, 2], F64), advantages, { clipLow: 0.5 })
      .loss.sum()
      .item();
  assert.ok(at(0.1) < at(0) && at(0) < at(-0.1));
});

const options = { target: 0.02, horizon: 1000, sequences: 100 };

test("the weight follows the paper's rule, by hand", () => {
  // 10 % too much, over a tenth of the horizon: 1 %.
  assert.ok(Math.abs(adaptedCoef(0.5, 0.022, options) - 0.505) < 1e-12);
  assert.ok(Math.abs(adaptedCoef(0.5, 0.019, options) - 0.4975) < 1e-12);
  assert.equal(adaptedCoef(0.5, 0.02, options), 0.5);
  // Errors beyond a fifth count as a fifth.
  assert.ok(Math.abs(adaptedCoef(0.5, 2, options) - 0.51) < 1e-12);
  assert.ok(Math.abs(adaptedCoef(0.5, 0, options) - 0.49) < 1e-12);
});

test("the weight stays positive and finite, whatever the horizon and the divergence", () => {
  assert.equal(adaptedCoef(0.5, 0, { ...options, horizon: 1 }), 0.25);
  assert.equal(adaptedCoef(0.5, 9, { ...options, horizon: 1 }), 1);
  assert.equal(adaptedCoef(0.5, Number.NaN, options), 0.5);
  // Halved for as long as a run may last, and then doubled.
  let coef = 0.5;
  for (let i = 0; i < 5000; i++) coef = adaptedCoef(coef, 0, { ...options, horizon: 1 });
  assert.equal(coef, 1e-8);
  assert.equal(adaptedCoef(coef, 9, { ...options, horizon: 1 }), 2e-8);
});

test("steered, a divergence that falls with the weight ends at the target", () => {
  let coef = 1;
  for (let i = 0; i < 2000; i++) coef = adaptedCoef(coef, 0.001 / coef, options);
  assert.ok(Math.abs(coef - 0.05) < 1e-3, `${coef}`);
});

test("the running mean is nine parts old and one part new", () => {
  assert.equal(runningMean(null, 2), 2);
  assert.ok(Math.abs((runningMean(2, 12) as number) - 3) < 1e-12);
  assert.equal(runningMean(2, Number.NaN), 2);
  assert.equal(runningMean(null, Number.NaN), null);
});
