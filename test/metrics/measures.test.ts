import assert from "node:assert/strict";
import { test } from "node:test";

import { verdictOf } from "../../src/dashboard/results.js";
import type { LPIPS, NLayerDiscriminator, PerceptualDistance } from "../../src/metrics/index.js";
import { MEASURES, measureOf } from "../../src/metrics/measures.js";
import {
  latentCosineTerm,
  patchGanTerm,
  reconstructionTerm,
  unrewardedTerm,
} from "../../src/rl_ar_finetune/rewards.js";

test("what a metric is follows from its whole name, then from its last part", () => {
  assert.equal(measureOf("eval/l2/mean").sign, -1);
  assert.equal(measureOf("reward/psnr/mean").sign, 1);
  assert.equal(measureOf("loss/policy").title, MEASURES["loss/policy"]?.title);
  assert.deepEqual(measureOf("eval/new_thing/mean"), { title: "new thing", about: "", sign: 0 });
});

test("no metric takes its meaning from a name that every object has", () => {
  for (const name of ["constructor", "__proto__", "toString", "eval/hasOwnProperty/mean"])
    assert.deepEqual(measureOf(name).sign, 0, name);
});

test("a reward's term has the direction of its measure: a distance counts against, a score for", () => {
  const network = { network: {} } as unknown as PerceptualDistance;
  const terms = [
    ...(["l1", "l2", "psnr", "ssim", "ms_ssim"] as const).map((type) => reconstructionTerm(type)),
    reconstructionTerm("perceptual", { perceptual: network }),
    reconstructionTerm("lpips", { lpips: network as unknown as LPIPS }),
    unrewardedTerm(network),
    patchGanTerm({} as NLayerDiscriminator),
    latentCosineTerm(),
  ];
  const signs = Object.fromEntries(terms.map(({ name, sign }) => [name, sign]));
  assert.deepEqual(signs, {
    l1: -1,
    l2: -1,
    psnr: 1,
    ssim: 1,
    ms_ssim: 1,
    perceptual: -1,
    lpips: -1,
    perceptual_held_out: -1,
    patch_gan: 1,
    latent_cosine: -1,
  });
  for (const { name, sign } of terms) {
    assert.equal(measureOf(name).sign, sign, name);
    assert.equal(verdictOf(name, 0.5, 0.25, Number.NaN), sign === 1 ? "worse" : "better", name);
  }
});
