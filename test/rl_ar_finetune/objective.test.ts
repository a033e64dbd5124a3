import assert from "node:assert/strict";
import { test } from "node:test";
import { pgLoss } from "../../src/rl_ar_finetune/losses.js";
import { type Objective, type Window, windowGradient } from "../../src/rl_ar_finetune/objective.js";
import { passesOf, scoreCodes } from "../../src/rl_ar_finetune/scoring.js";
import { manualSeed, noGrad, ones, randint, randn, type Tensor, tensor } from "../../src/torch/index.js";
import { expectClose } from "../support/close.js";
import { TinyPolicy } from "../support/tiny_policy.js";

const F64 = { dtype: "float64" } as const;

function scene(): { policy: TinyPolicy; window: Window; objective: Objective } {
  manualSeed(1);
  const policy = new TinyPolicy().to(F64);
  const tokens = randint(0, 11, [4, 1, 5]);
  const start = { classes: tensor([0, 1, 2, 0], { dtype: "int64" }) };
  const mask = ones([4, 1, 5], F64);
  mask.narrow(2, 4, 1).narrow(0, 0, 2).fill_(0);
  const window: Window = {
    passes: passesOf("here", { tokens, start }),
    states: null,
    oldLogprobs: noGrad(() => scoreCodes(policy, { tokens, start }).logprobs),
    mask,
    policyMask: mask,
    advantages: randn([4, 1, 1], F64),
    referenceLogprobs: null,
    oldValues: null,
    returns: null,
    trueCodes: null,
    targets: randint(0, 11, [4, 5]),
    prior: passesOf("here", { tokens: tokens.squeeze(1), start }),
  };
  const objective: Objective = {
    policyLoss: (logprobs, old, advantages, counts) => pgLoss(logprobs, old, advantages, { mask: counts }),
    clip: [0.2, 0.2],
    aggregation: "mean",
    entropyCoef: 0.1,
    auxCe: 0.5,
    codeDistance: { weight: 0.7, vectors: randn([11, 3], F64) },
    codeFrequency: { weight: 0.3, logRatio: randn([11], F64) },
    kl: null,
    value: null,
  };
  return { policy, window, objective };
}

test("sums of a window: its losses add up, its tokens are counted, whatever the micro-batch", () => {
  const { policy, window, objective } = scene();
  const whole = windowGradient(policy, window, objective, 4);
  assert.equal(whole.tokens, 18);
  const parts = ["policy", "entropy", "aux_ce", "code_distance", "code_frequency"].map(
    (name) => whole[`loss/${name}`] as number,
  );
  expectClose(
    parts.reduce((a, b) => a + b),
    whole["loss/total"] as number,
    { rtol: 1e-10 },
  );
  expectClose(whole.ratio as number, 18, { rtol: 1e-10 });
  const cut = windowGradient(policy, window, objective, 3);
  assert.deepEqual(Object.keys(cut).sort(), Object.keys(whole).sort());
  for (const [name, value] of Object.entries(whole))
    expectClose(cut[name] as number, value, { rtol: 1e-9, atol: 1e-12, where: name });
});

test("gradients are added to those that are there", () => {
  const { policy, window, objective } = scene();
  windowGradient(policy, window, objective, 4);
  const once = (policy.out.weight.grad as Tensor).clone();
  windowGradient(policy, window, objective, 4);
  expectClose(policy.out.weight.grad as Tensor, once.mul(2), { rtol: 1e-9, atol: 1e-12 });
});

test("extremes are those of tokens that count", () => {
  const { policy, window, objective } = scene();
  const old = window.oldLogprobs.clone();
  old.select(2, 4).narrow(0, 0, 1).fill_(-9); // does not count
  old.select(2, 3).narrow(0, 3, 1).sub_(0.5); // does
  const sums = windowGradient(policy, { ...window, oldLogprobs: old }, objective, 4);
  expectClose(sums.ratio_max as number, Math.exp(0.5), { rtol: 1e-9 });
  expectClose(sums.ratio_min as number, 1, { rtol: 1e-9 });
  expectClose(sums.logp_gap_max as number, 0.5, { rtol: 1e-9 });
  expectClose(sums.logp_gap as number, 0.5, { rtol: 1e-6 });
});
