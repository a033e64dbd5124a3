import assert from "node:assert/strict";
import { test } from "node:test";
import {
  gae,
  groupAdvantages,
  returnsToGo,
  rlooAdvantages,
  standardizedAdvantages,
  whiten,
} from "../../src/rl_ar_finetune/advantages.js";
import { cat, manualSeed, randn, type Tensor, tensor, zeros } from "../../src/torch/index.js";
import { expectClose } from "../support/close.js";
import { golden } from "../support/rl_golden.js";

const F64 = { dtype: "float64" } as const;
const TIGHT = { rtol: 1e-9, atol: 1e-12 };
const { rewards: r, G } = golden.inputs;
const rewards = tensor(r, F64).reshape(2, G);
const flat = (advantages: { advantages: Tensor }): Tensor => advantages.advantages.flatten();

test("golden advantages: group, batch, Dr. GRPO, leave-one-out", () => {
  const trl = { epsilon: 1e-4 };
  expectClose(flat(groupAdvantages(rewards, trl)), golden.advantages.grpo_group, TIGHT);
  expectClose(
    flat(groupAdvantages(rewards, { ...trl, scale: "batch" })),
    golden.advantages.scale_batch,
    TIGHT,
  );
  expectClose(flat(groupAdvantages(rewards, { scale: "none" })), golden.advantages.dr_grpo, TIGHT);
  expectClose(flat(rlooAdvantages(rewards)), golden.advantages.rloo, TIGHT);
});

test("leave-one-out is Dr. GRPO times G / (G - 1)", () => {
  manualSeed(1);
  for (const g of [2, 3, 8]) {
    const some = randn([5, g], F64);
    const centred = groupAdvantages(some, { scale: "none" }).advantages;
    expectClose(rlooAdvantages(some).advantages, centred.mul(g / (g - 1)), TIGHT);
  }
});

test("whitened over the batch: mean 0, standard deviation 1 with n - 1, whatever the shape", () => {
  const { advantages, isConstant } = standardizedAdvantages(tensor([1, 2, 3, 6], F64));
  const std = Math.sqrt((4 + 1 + 0 + 9) / 3);
  expectClose(advantages, [-2 / std, -1 / std, 0, 3 / std], { rtol: 1e-7, atol: 1e-9 });
  assert.deepEqual(isConstant.toList(), [0]);
  const square = standardizedAdvantages(
    tensor(
      [
        [1, 2],
        [3, 6],
      ],
      F64,
    ),
  );
  expectClose(flat(square), advantages, { rtol: 0 });
});

test("a shift of the rewards changes nothing, nor does a scale where it is divided out", () => {
  manualSeed(2);
  const some = randn([4, 8], F64);
  for (const scale of ["group", "batch"] as const) {
    const base = groupAdvantages(some, { scale, epsilon: 0 }).advantages;
    expectClose(groupAdvantages(some.add(5), { scale, epsilon: 0 }).advantages, base, {
      rtol: 1e-9,
      atol: 1e-12,
    });
    expectClose(groupAdvantages(some.mul(1e-3), { scale, epsilon: 0 }).advantages, base, {
      rtol: 1e-9,
      atol: 1e-12,
    });
    const small = groupAdvantages(some.mul(1e-6), { scale }).advantages; // the default constant is relative
    expectClose(small, groupAdvantages(some, { scale }).advantages, { rtol: 1e-12, atol: 1e-14 });
  }
});

test("groups may stand in any order", () => {
  manualSeed(3);
  const some = randn([4, 3], F64);
  const order = tensor([2, 0, 3, 1], { dtype: "int64" });
  for (const of of [
    (x: Tensor) => groupAdvantages(x).advantages,
    (x: Tensor) => groupAdvantages(x, { scale: "batch" }).advantages,
    (x: Tensor) => rlooAdvantages(x).advantages,
  ]) {
    expectClose(of(some.indexSelect(0, order)), of(some).indexSelect(0, order), TIGHT);
  }
});

test("the golden bound (G - 1) / sqrt(G) is reached and never passed", () => {
  for (const [name, bound] of Object.entries(golden.max_abs_adv)) {
    const g = Number(name);
    const one = tensor([[1, ...Array<number>(g - 1).fill(0)]], F64);
    expectClose(groupAdvantages(one, { epsilon: 0 }).advantages.abs().amax().item(), bound, TIGHT);
    manualSeed(g);
    const largest = groupAdvantages(randn([50, g], F64))
      .advantages.abs()
      .amax()
      .item();
    assert.ok(largest <= bound + 1e-12);
  }
});

test("rewards that differ by 1e-4 of their size keep their spread in float32", () => {
  const { rewards: narrow, two_pass_std, true_std, naive_var } = golden.fp32_variance;
  const given = tensor([narrow]); // float32
  const { advantages } = groupAdvantages(given, { epsilon: 0 });
  const centred = groupAdvantages(given, { scale: "none" }).advantages;
  const std = centred.div(advantages).mean().item();
  expectClose(std, true_std, { rtol: 1e-6 });
  expectClose(std, two_pass_std, { rtol: 1e-6 });
  assert.ok(Math.abs(Math.sqrt(naive_var) - std) > std, "one pass in float32 would be far off");
});

test("what an added constant does to small spreads is in the golden table; the default does nothing", () => {
  for (const [name, byEpsilon] of Object.entries(golden.eps_shrink)) {
    const std = Number(name);
    const pair = tensor([[0, std * Math.SQRT2]], F64); // n - 1: the standard deviation is `std`
    const clean = groupAdvantages(pair, { epsilon: 0 }).advantages;
    for (const [epsilon, kept] of Object.entries(byEpsilon)) {
      const { advantages } = groupAdvantages(pair, { epsilon: Number(epsilon) });
      expectClose(advantages.div(clean).select(1, 1), [kept], TIGHT);
    }
    expectClose(groupAdvantages(pair).advantages, clean, { rtol: 2e-8 });
  }
});

test("constant groups get exactly 0 and are named; rounding does not make a group differ", () => {
  const some = tensor([
    [0.3, 0.3, 0.3],
    [0.3, 0.30000004, 0.3], // one rounding of float32 apart
    [0.3, 0.301, 0.3],
    [0, 0, 0],
  ]);
  for (const of of [
    () => groupAdvantages(some),
    () => groupAdvantages(some, { scale: "batch" }),
    () => groupAdvantages(some, { scale: "none" }),
    () => rlooAdvantages(some),
  ]) {
    const { advantages, isConstant } = of();
    assert.deepEqual(isConstant.toList(), [1, 1, 0, 1]);
    assert.deepEqual(advantages.select(0, 0).toList(), [0, 0, 0]);
    assert.deepEqual(advantages.select(0, 1).toList(), [0, 0, 0]);
    assert.deepEqual(advantages.select(0, 3).toList(), [0, 0, 0]);
    assert.ok(advantages.select(0, 2).abs().amin().item() > 0);
  }
  assert.deepEqual(groupAdvantages(some, { minStd: 0 }).isConstant.toList(), [1, 0, 0, 1]);
  const all = standardizedAdvantages(tensor([2, 2, 2]));
  assert.deepEqual([all.advantages.toList(), all.isConstant.toList()], [[0, 0, 0], [1]]);
});

test("NaN rewards stay NaN, in their group alone", () => {
  const { advantages } = groupAdvantages(
    tensor(
      [
        [Number.NaN, 1, 2],
        [1, 2, 3],
      ],
      F64,
    ),
  );
  assert.deepEqual(advantages.isnan().toList(), [
    [1, 1, 1],
    [0, 0, 0],
  ]);
});

test("one reward has nothing to be compared with", () => {
  const message = (name: string, shape: string): RegExp =>
    new RegExp(`^${name}: .*2 rewards.*\\[${shape}\\].*numGenerations`);
  assert.throws(() => groupAdvantages(tensor([[1], [2]])), {
    name: "RangeError",
    message: message("groupAdvantages", "2, 1"),
  });
  assert.throws(() => rlooAdvantages(tensor([[1], [2]])), { message: message("rlooAdvantages", "2, 1") });
  assert.throws(() => standardizedAdvantages(tensor([1])), {
    message: message("standardizedAdvantages", "1, 1"),
  });
  assert.throws(() => groupAdvantages(tensor([1, 2])), {
    message: "groupAdvantages: expected rewards [B, G] or [B, G, T], got Tensor float32[2] cpu.",
  });
});

test("golden generalised advantages", () => {
  const cases = [
    [golden["gae_g1_l0.95"], 1, 0.95],
    [golden.gae_g1_l1, 1, 1],
    [golden["gae_g0.99_l0.95"], 0.99, 0.95],
    [golden.gae_g1_l0, 1, 0],
  ] as const;
  for (const [wanted, gamma, lambda] of cases) {
    const { advantages, returns } = gae(tensor(wanted.rewards, F64), tensor(wanted.values, F64), {
      gamma,
      lambda,
    });
    expectClose(advantages, wanted.adv, { rtol: 1e-9, atol: 1e-12 });
    expectClose(returns, wanted.returns, { rtol: 1e-9, atol: 1e-12 });
  }
});

test("with lambda 1 an advantage is what is still to come, less the value", () => {
  manualSeed(4);
  const [some, values] = [randn([2, 3, 5], F64), randn([2, 3, 5], F64)];
  const { advantages, returns } = gae(some, values, { gamma: 1, lambda: 1 });
  const toCome = some.flip(-1).cumsum(-1).flip(-1);
  expectClose(returns, toCome, TIGHT);
  expectClose(advantages, toCome.sub(values), TIGHT);
});

test("tokens that do not count are stepped over, wherever they stand", () => {
  manualSeed(5);
  const [some, values] = [randn([1, 6], F64), randn([1, 6], F64)];
  const mask = tensor([[0, 1, 1, 0, 1, 0]], F64);
  const keep = tensor([1, 2, 4], { dtype: "int64" });
  const dense = gae(some.indexSelect(1, keep), values.indexSelect(1, keep), { gamma: 0.9 });
  const { advantages } = gae(some, values, { gamma: 0.9, mask });
  expectClose(advantages.indexSelect(1, keep), dense.advantages, TIGHT);
  assert.deepEqual(advantages.mul(mask.rsub(1)).abs().sum().item(), 0);
});

test("whitening has mean 0 and standard deviation 1 over what counts, and leaves a lone value at 0", () => {
  manualSeed(6);
  const values = randn([3, 4], F64).add(7);
  const mask = tensor(
    [
      [1, 1, 0, 1],
      [1, 1, 1, 1],
      [0, 0, 0, 1],
    ],
    F64,
  );
  const counted = whiten(values, mask).maskedSelect(mask.bool());
  expectClose(counted.mean().item(), 0, { atol: 1e-12 });
  expectClose(counted.std().item(), 1, { rtol: 1e-12 });
  assert.equal(whiten(values, mask).mul(mask.rsub(1)).abs().sum().item(), 0);
  expectClose(whiten(tensor([[3, 5]], F64)), [[-Math.SQRT1_2, Math.SQRT1_2]], { rtol: 1e-12 });
  assert.deepEqual(whiten(tensor([[3]], F64)).toList(), [[0]]);
  assert.deepEqual(whiten(tensor([[3, 3]], F64)).toList(), [[0, 0]]);
});

/** One group of two sequences of three codes, a reward a code. */
const byPlace = tensor(
  [
    [
      [1, 2, 3],
      [3, 2, -1],
    ],
  ],
  F64,
);

test("returns to go, by hand: 0 is the place's own, 1 all that comes, a half in between", () => {
  expectClose(returnsToGo(byPlace, 0), byPlace, TIGHT);
  expectClose(
    returnsToGo(byPlace, 1),
    tensor(
      [
        [
          [6, 5, 3],
          [4, 1, -1],
        ],
      ],
      F64,
    ),
    TIGHT,
  );
  expectClose(
    returnsToGo(byPlace, 0.5),
    tensor(
      [
        [
          [2.75, 3.5, 3],
          [3.75, 1.5, -1],
        ],
      ],
      F64,
    ),
    TIGHT,
  );
  assert.throws(() => returnsToGo(byPlace, 1.5), {
    message: "returnsToGo: expected a decay in [0, 1], got 1.5.",
  });
});

test("returns by place, by hand: the mean is the place's, the deviation the whole group's", () => {
  const returns = returnsToGo(byPlace, 0.5);
  const centred = tensor(
    [
      [
        [-0.5, 1, 2],
        [0.5, -1, -2],
      ],
    ],
    F64,
  ); // means 3.25, 2.5, 1
  expectClose(groupAdvantages(returns, { scale: "none" }).advantages, centred, TIGHT);
  expectClose(rlooAdvantages(returns).advantages, centred.mul(2), TIGHT);
  const std = Math.sqrt(10.5 / 3); // 2 (0.25 + 1 + 4), over (G - 1) T
  for (const scale of ["group", "batch"] as const) {
    const { advantages, isConstant } = groupAdvantages(returns, { scale, epsilon: 0 });
    expectClose(advantages, centred.div(std), TIGHT);
    assert.deepEqual(isConstant.toList(), [0]);
  }
  expectClose(standardizedAdvantages(returns, { epsilon: 0 }).advantages, centred.div(std), TIGHT);
});

test("over a batch, a return by place is compared with all sequences' at that place", () => {
  const rewards = cat([byPlace, byPlace.mul(3)]); // place 0: 1, 3, 3, 9, mean 4
  const { advantages } = standardizedAdvantages(rewards, { epsilon: 0 });
  assert.deepEqual(advantages.shape, [2, 2, 3]);
  const centred = rewards.sub(tensor([4, 4, 2], F64));
  // 27 + 9 + ... : squares 9 1 1 25, 4 4 4 4, 1 9 49 25
  expectClose(advantages, centred.div(Math.sqrt((36 + 16 + 84) / 9)), TIGHT);
});

test("a group is constant when no place differs; one place that does keeps its size", () => {
  const same = zeros([1, 3, 4], F64).add(tensor([1, 5, 2, 0], F64)); // places differ, sequences do not
  const one = same.clone();
  one.select(0, 0).select(0, 1).select(0, 2).fill_(3);
  const { advantages, isConstant } = groupAdvantages(cat([same, one]), { epsilon: 0 });
  assert.deepEqual(isConstant.toList(), [1, 0]);
  expectClose(advantages.abs().amax([1, 2]), [0, (2 / Math.sqrt(3)) * Math.sqrt(4)], TIGHT); // (G - 1) sqrt(T / G)
  assert.deepEqual(rlooAdvantages(cat([same, one])).isConstant.toList(), [1, 0]);
});
