/**
 * Are the tests of the RL formulas and the data floor able to fail? Each mutation changes one spot of a compiled file while it is loaded
 * (nothing on disk changes) and runs the tests that must notice: a sign, a clip's side, a mean, a small constant.
 *
 *   node scripts/mutate.mjs [word]     mutations whose file or name holds the word; all of them without one
 *
 * Exit code 1 when a mutation survives, or when its spot is not found exactly once.
 */
import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { register } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { isMainThread } from "node:worker_threads";

const self = fileURLToPath(import.meta.url);
const floor = join(dirname(dirname(self)), "dist");

/** By file of src: name, spot, what it becomes, and the test file that must notice when it is not the file of the same name. */
const MUTATIONS = {
  "data/tar_members": [
    [
      "padding after whole blocks",
      "Math.ceil(length / BLOCK) * BLOCK",
      "(Math.floor(length / BLOCK) + 1) * BLOCK",
      "data/tar",
    ],
    ["sizes below 0", "length >= 0", "length >= -4096", "data/tar"],
  ],
  "data/split": [["other bytes of the hash", "readUIntBE(0, 6)", "readUIntBE(1, 6)"]],
  "data/resample": [["a window one column late", "(first + i + 0.5) * scale", "(first + i + 1.5) * scale"]],
  "data/iterable": [["rows of an item used twice on resuming", "used: used + rows", "used: rows"]],
  "rl_ar_finetune/advantages": [
    ["sign of the baseline", "r.sub(r.mean(1", "r.add(r.mean(1"],
    ["standard deviation with n", ".div((g - 1) * t)", ".div(g * t)"],
    ["batch scale over the group", 'scale === "group" ? { std, size }', 'scale !== "" ? { std, size }'],
    ["constant not relative to the rewards", "all.size.mul(RELATIVE_EPSILON)", "RELATIVE_EPSILON"],
    ["epsilon ignored", "epsilon ?? all.size", "all.size"],
    ["constant groups kept", ".mul(minStd)", ".mul(0).sub(1)"],
    ["leave-one-out without its factor", "centered.mul(g / (g - 1))", "centered"],
    ["statistics in float32", "const r = rewards.detach().double()", "const r = rewards.detach().float()"],
    ["GAE: sign of the value", "gamma).sub(value)", "gamma).add(value)"],
    ["GAE: lambda left out", "gamma * lambda", "gamma"],
    ["GAE: bootstraps after the end", "let next = zero", "let next = v.select(-1, t - 1)"],
    ["GAE: returns without values", "returns: advantages.add(v)", "returns: advantages"],
    ["GAE: mask ignored", "where(isCounted, value, next)", "value"],
    ["whitening with n", "count.sub(1).clamp(1)", "count"],
  ],
  "rl_ar_finetune/losses": [
    ["surrogate: sign", "gain.neg().expand", "gain.expand"],
    ["surrogate: max for min", "plain.minimum(clipped)", "plain.maximum(clipped)"],
    [
      "surrogate: clip sides exchanged",
      "ratio.clamp(1 - clipLow, 1 + clipHigh)",
      "ratio.clamp(1 - clipHigh, 1 + clipLow)",
    ],
    [
      "surrogate: ratio upside down",
      "const difference = logprobs.sub(oldLogprobs);",
      "const difference = oldLogprobs.sub(logprobs);",
    ],
    ["surrogate: no clip", "ratio.clamp(1 - clipLow, 1 + clipHigh).mul(advantages)", "plain"],
    [
      "dual clip on the wrong sign",
      "where(advantages.lt(0), gain.maximum",
      "where(advantages.gt(0), gain.maximum",
    ],
    ["sequence ratio: mask ignored", "difference.mul(weight).sum(-1", "difference.sum(-1"],
    ["sequence ratio: sum for mean", "{ keepdim: true }).div(count)", "{ keepdim: true })"],
    ["CISPO: cap ignored", "ratio.clamp(null, ratioCap)", "ratio"],
    ["REINFORCE: sign", "logprobs.mul(advantages).neg()", "logprobs.mul(advantages)"],
    ["exp overflows", "const LOG_LIMIT = 20", "const LOG_LIMIT = 2000"],
    ["no gradient beyond 20 nats", ".exp().add(beyondLimit(x))", ".exp()"],
    ["k3: no gradient beyond 20 nats", ".expm1().add(beyondLimit(x))", ".expm1()"],
    ["counted clips: sign of the advantage", "logicalAnd(advantages.lt(0))", "logicalAnd(advantages.gt(0))"],
    ["weights: mean by size", "m.div(m.sum().clamp(1))", "m.div(m.numel)"],
    ["weights: sum by tokens", "m.div(sequences);", "m.div(m.numel);"],
    ["k2 without its half", "d.square().div(2)", "d.square()"],
    ["k3: sign", "boundedExpm1(d.neg()).add(d)", "boundedExpm1(d).sub(d)"],
    [
      "k3 with its own gradient",
      "k2.add(k3.sub(k2.detach()))",
      'klEstimate(logprobs, referenceLogprobs, "k3")',
    ],
    ["k1 let into the loss", 'if (kind === "k1")', "if (false)"],
    [
      "exact divergence the other way",
      "logprobs.exp().mul(logprobs.sub(referenceLogprobs)",
      "referenceLogprobs.exp().mul(logprobs.sub(referenceLogprobs)",
    ],
    ["value clip: min for max", "plain.maximum(clipped).div(2)", "plain.minimum(clipped).div(2)"],
    ["value loss without its half", "plain.maximum(clipped).div(2)", "plain.maximum(clipped)"],
    ["value clip around the returns", "const near = oldValues.add", "const near = returns.add"],
    ["explained variance: no residual", "variance(r.sub(v))", "variance(v)"],
    ["explained variance: mask ignored", ".square().mul(weight)", ".square()"],
    ["token dropout upside down", "u.ge(p)", "u.lt(p)"],
    ["token dropout: all may go", ".logicalOr(best)", ""],
    ["straight-through: soft forward", "hard.add(soft.sub(soft.detach()))", "soft"],
    ["straight-through: sign of the noise", "logits.sub(race.log())", "logits.add(race.log())"],
    ["weight falls as the divergence grows", "Math.max(kl / target - 1,", "Math.max(1 - kl / target,"],
    ["error without its limit", "const LARGEST_ERROR = 0.2", "const LARGEST_ERROR = 2"],
    ["running mean turned about", "DECAY * mean + (1 - DECAY) * value", "(1 - DECAY) * mean + DECAY * value"],
  ],
  "rl_ar_finetune/sampling": [
    ["temperature multiplies", "x.div(temperature)", "x.mul(temperature)"],
    ["top-k keeps one less", "logits.lt(best.slice(-1, -1))", "logits.le(best.slice(-1, -1))"],
    ["top-p leaves the first above out", ".cumsum(-1).sub(p)", ".cumsum(-1)"],
    [
      "top-p counts the mass before top-k",
      "const p = best.softmax(-1)",
      "const p = logits.softmax(-1).sort(-1, { descending: true }).values.narrow(-1, 0, best.size(-1))",
    ],
    ["guidance the other way", "x.sub(none).mul(scale)", "none.sub(x).mul(scale)"],
    ["guidance one code late", "guidanceScale(guidance, s + t,", "guidanceScale(guidance, s + t + 1,"],
    ["support ignored", "if (support !== undefined)", "if (false)"],
    ["draw: the code before", "[sums, marks, false, true]", "[sums, marks.sub(1), false, false]"],
    ["entropy: sign", "[p, logp.clamp(-1e30)]).neg()", "[p, logp.clamp(-1e30)])"],
    ["dropout stays on", "policy.eval()", "policy.train()"],
    ["prefill not shared in groups", "logits.repeatInterleave(times, 0)", "logits.repeat(times, 1)"],
  ],
  "rl_ar_finetune/scoring": [
    [
      "reads one code too many",
      "const at = (hidden) => hidden.narrow(1, s, t)",
      "const at = (hidden) => hidden.narrow(1, 0, t)",
    ],
    ["starts in the wrong order", ".floorDivide(repeats)", ".remainder(start.given.size(0))"],
    ["truth under the sampling's transform", "isPlain(sampling) ? logp : distribution(logits)", "logp"],
    [
      "noise drawn anew in the backward",
      'stream(seed, "straight-through", i,',
      'stream(Math.floor(Math.random() * 1e9), "straight-through", i,',
    ],
    ["guidance scale one code late", "guidanceScale(guidance, s + i,", "guidanceScale(guidance, s + i + 1,"],
  ],
  "rl_ar_finetune/rollout": [
    ["noise on the others", ".lt(noise), uniformCode", ".ge(noise), uniformCode"],
    [
      "prefix forgotten",
      "given: trueCodes.narrow(1, 0, context.length)",
      "given: trueCodes.narrow(1, 1, context.length)",
    ],
    ["context one code late", "trueCodes.narrow(1, 0, t - 1)", "trueCodes.narrow(1, 1, t - 1)"],
    ["graph not kept", "keepGraph ? enableGrad(run) : noGrad(run)", "noGrad(run)"],
  ],
  "rl_ar_finetune/objective": [
    [
      "token dropout ignored",
      "tokenWeights(policyMask, objective.aggregation,",
      "tokenWeights(mask, objective.aggregation,",
      "rl_ar_finetune/optimize",
    ],
    ["entropy: sign", ".mul(-entropyCoef)", ".mul(entropyCoef)", "rl_ar_finetune/optimize"],
    ["cross-entropy: sign", "truth.sum().mul(-auxCe", "truth.sum().mul(auxCe", "rl_ar_finetune/optimize"],
    [
      "cross-entropy: mean of the micro-batch",
      "(totalRows * truth.size(1))",
      "(truth.numel)",
      "rl_ar_finetune/optimize",
    ],
    [
      "prior: mean of the micro-batch",
      "(prior.rows * logprobs.size(2))",
      "(logprobs.numel)",
      "rl_ar_finetune/optimize",
    ],
    [
      "value error trains the trunk",
      "value.detachTrunk ? states.hidden.detach() : states.hidden",
      "states.hidden",
      "rl_ar_finetune/optimize",
    ],
    [
      "divergence of old and new swapped",
      'klEstimate(oldLogprobs, logprobs, "k3")',
      'klEstimate(logprobs, oldLogprobs, "k3")',
      "rl_ar_finetune/optimize",
    ],
    ["extremes over all tokens", "gap.maskedFill(isCounted.logicalNot(), 0)", "gap"],
    ["gradient forgotten", "total.backward()", "total.detach()", "rl_ar_finetune/optimize"],
  ],
  "rl_ar_finetune/update": [
    [
      "steps on NaN",
      '!Number.isFinite(sums["loss/total"]) || !Number.isFinite(norm)',
      "false",
      "rl_ar_finetune/optimize",
    ],
    ["target KL ignored", "> 1.5 * targetKl", "> 1e9 * targetKl", "rl_ar_finetune/optimize"],
    ["ratio gap let through", "gap > maxRatioGap", "false", "rl_ar_finetune/optimize"],
    [
      "gradients pile up",
      "optimizer.zeroGrad();\n                const sums",
      "const sums",
      "rl_ar_finetune/optimize",
    ],
    [
      "advantage clip ignored",
      "signal.advantages.clamp(-advantageClip, advantageClip)",
      "signal.advantages",
      "rl_ar_finetune/optimize",
    ],
    [
      "mini-batches of the first images",
      "indices === null ? full : someImages",
      "indices === null ? full : ((w) => someImages(w, indices.mul(0)))",
      "rl_ar_finetune/optimize",
    ],
    [
      "penalty without its coefficient",
      ".mul(coef);\n        return { referenceLogprobs, penalty,",
      ";\n        return { referenceLogprobs, penalty,",
      "rl_ar_finetune/optimize",
    ],
    ["remainders let through", "images % miniBatch !== 0", "false"],
  ],
  "rl_ar_finetune/optimize": [
    ["penalty added to rewards", "rewards.sub(sums)", "rewards.add(sums)"],
    ["penalty added to returns by place", "rewardRows.sub(penalty)", "rewardRows.add(penalty)"],
    ["PPO: reward at every token", "position.eq(last).double()", "position.le(last).double()"],
    ["PPO: not whitened", "whiten(advantages, mask) : advantages", "advantages : advantages"],
    ["PPO: penalty added", "score.sub(reference.penalty", "score.add(reference.penalty"],
    [
      "clips exchanged",
      "const clip = { clipLow, clipHigh, level,",
      "const clip = { clipLow: clipHigh, clipHigh: clipLow, level,",
    ],
    ["RLOO with GRPO's advantages", "rlooAdvantages(rewards, options)", "groupAdvantages(rewards, options)"],
  ],
  "rl_ar_finetune/ste": [
    ["reward descended", "drawn.mul(-share)", "drawn.mul(share)"],
    ["every micro-batch counts whole", "const share = count / window.places.length", "const share = 1"],
    [
      "entropy punished",
      "entropy.mean().mul(-entropyCoef * share)",
      "entropy.mean().mul(entropyCoef * share)",
    ],
    ["one noise for all images", "place * g + k", "k"],
  ],
  "rl_ar_finetune/train_loop": [
    ["average moved on a skipped step", "result.steps > 0", "result.steps >= 0", "rl_ar_finetune/state"],
  ],
  "rl_ar_finetune/state": [
    [
      "eval.mode=max picks the worst",
      'mode === "max" ? value > before.value',
      'mode === "max" ? value < before.value',
    ],
    ["saved learning rate wins over a forced one", "loadOptimizer(optimizer,", "optimizer.loadStateDict("],
    ["limits count on after a resume", "progress.skipped - limits.skippedBefore", "progress.skipped"],
  ],
  "trainers/loop": [
    ["eval.mode=max picks the worst", 'mode === "max" ? value > before', 'mode === "max" ? value < before'],
  ],
  "trainers/network": [["average moved on a skipped update", "if (!skipped)", "if (true)"]],
  "trainers/policy": [
    ["cursor not restored", "this.#cursor = (state.values.cursor ?? undefined)", "this.#cursor = undefined"],
  ],
  "run/checkpoint": [
    ["best not in the manifest", "files, best: record }", "files }"],
    ["best deleted with the old", "...latest.slice(-keep), best", "...latest.slice(-keep)"],
  ],
};

const fileOf = (module) => join(floor, "src", `${module}.js`);
const testOf = (module) => join(floor, "test", `${module}.test.js`);

/** Loader hook: give the mutated source for the one file that is mutated. */
export async function load(url, context, next) {
  const { file, spot, change } = JSON.parse(process.env.RLAR_MUTATION);
  if (!url.startsWith("file:") || fileURLToPath(url) !== file) return next(url, context);
  return { format: "module", shortCircuit: true, source: mutate(readFileSync(file, "utf8"), spot, change) };
}

/** The source with its one spot changed, however the compiler broke its lines; undefined when there is not just one. */
function mutate(source, spot, change) {
  const escaped = spot.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
  const pattern = escaped.replace(/\s+/g, "\\s*").replaceAll("\\)\\.", "\\)\\s*\\.");
  const parts = source.split(new RegExp(pattern));
  return parts.length === 2 ? parts.join(change) : undefined;
}

function run(word = "") {
  let failures = 0;
  let count = 0;
  const passing = new Set();
  for (const [module, mutations] of Object.entries(MUTATIONS)) {
    for (const [name, spot, change, tests = module] of mutations) {
      if (!`${module} ${name}`.includes(word)) continue;
      count++;
      // A test that fails anyway would notice everything: without a mutation it has to pass.
      if (!passing.has(tests) && judge(fileOf(module), spot, spot, testOf(tests)) === "noticed") {
        throw new Error(`mutate: expected ${tests}.test.js to pass without a mutation. Build, and run it.`);
      }
      passing.add(tests);
      const verdict = judge(fileOf(module), spot, change, testOf(tests));
      if (verdict !== "noticed") failures++;
      console.log(`${verdict.padEnd(9)} ${module}: ${name}`);
    }
  }
  console.log(`${count - failures} of ${count} mutations noticed`);
  return failures === 0 && count > 0 ? 0 : 1;
}

function judge(file, spot, change, testFile) {
  if (mutate(readFileSync(file, "utf8"), spot, change) === undefined) return "NOT FOUND";
  const env = { ...process.env, RLAR_MUTATION: JSON.stringify({ file, spot, change }) };
  const { status } = spawnSync(process.execPath, ["--import", self, testFile], { env, stdio: "ignore" });
  return status === 0 ? "SURVIVED" : "noticed";
}

if (isMainThread) {
  if (process.env.RLAR_MUTATION !== undefined) register(import.meta.url);
  else process.exitCode = run(process.argv[2]);
}
