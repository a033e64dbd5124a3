/** The straight-through baseline: its gradient by hand, how it is cut, what it draws, and that it climbs. */
import assert from "node:assert/strict";
import { test } from "node:test";

import { AdamW } from "../../src/nn/index.js";
import { straightThroughGumbel } from "../../src/rl_ar_finetune/losses.js";
import { type Judged, reconstructionTerm } from "../../src/rl_ar_finetune/rewards.js";
import { noisyContext } from "../../src/rl_ar_finetune/rollout.js";
import { type SteBatch, type SteOptions, steUpdate } from "../../src/rl_ar_finetune/ste.js";
import type { Optimizer } from "../../src/rl_ar_finetune/update.js";
import { FrozenTokenizer, VQModel } from "../../src/tokenizers/index.js";
import {
  autocast,
  cat,
  deriveSeed,
  functional as F,
  Generator,
  keep,
  manualSeed,
  noGrad,
  rand,
  randint,
  stream,
  type Tensor,
  tidy,
} from "../../src/torch/index.js";
import { expectClose } from "../support/close.js";
import { noLeak } from "../support/leak.js";
import { TinyPolicy } from "../support/tiny_policy.js";

/** 11 codes of 4 x 4 pixels, whose rows are compared, and decoded, at length 1. */
function tinyTokenizer(lookup: "cosine" | "l2" = "cosine"): FrozenTokenizer {
  const model = new VQModel({
    codebookSize: 11,
    codebookEmbedDim: 4,
    ch: 8,
    chMult: [1, 1, 1],
    numResBlocks: 1,
    zChannels: 8,
    normGroups: 4,
    codebookL2Norm: lookup === "cosine",
  });
  noGrad(() => model.quantize.embedding.weight.mul_(3)); // so that a length left in would show
  return new FrozenTokenizer(model);
}

interface Scene {
  policy: TinyPolicy;
  tokenizer: FrozenTokenizer;
  batch: SteBatch;
  options: SteOptions;
}

function scene(b = 3): Scene {
  manualSeed(1);
  const policy = new TinyPolicy({ vocabSize: 11, blockSize: 8 });
  const tokenizer = tinyTokenizer();
  const images = rand([b, 3, 8, 16]).mul(2).sub(1); // 2 x 4 codes
  const trueCodes = tokenizer.encode(images);
  const context = noisyContext(trueCodes, 0.3, 11, new Generator(2));
  const batch = { images, trueCodes, context, start: { classes: randint(0, 3, [b]) } };
  const terms = [reconstructionTerm("l2", { weight: 2 })];
  return { policy, tokenizer, batch, options: { tokenizer, terms, seed: 7 } };
}

/** Keeps the gradients of each step and changes nothing. */
class Recorder implements Optimizer {
  readonly seen: Record<string, Tensor>[] = [];
  constructor(readonly policy: TinyPolicy) {}
  step(): void {
    const named = this.policy.namedParameters();
    this.seen.push(
      Object.fromEntries(named.map(([name, { grad }]) => [name, keep((grad as Tensor).clone())])),
    );
  }
  zeroGrad(): void {
    this.policy.zeroGrad();
  }
}

function gradientsOf(
  { policy, batch, options }: Scene,
  more: Partial<SteOptions> = {},
): Record<string, Tensor>[] {
  const recorder = new Recorder(policy);
  steUpdate(policy, recorder, batch, { ...options, ...more });
  return recorder.seen;
}

function expectSame(
  actual: Record<string, Tensor> | undefined,
  wanted: Record<string, Tensor> | undefined,
  rtol = 1e-4,
): void {
  assert.ok(actual && wanted);
  const size = Math.max(...Object.values(wanted).map((gradient) => gradient.abs().amax().item()));
  for (const [name, gradient] of Object.entries(wanted))
    expectClose(actual[name] as Tensor, gradient, { rtol, atol: rtol * size, where: name });
  assert.ok(size > 1e-4, `gradients of ${size} prove nothing`);
}

/** The loss without chunks, parts or the update's machinery. */
function byHand(
  { policy, batch, tokenizer }: Scene,
  draws: number,
  auxCe: number,
  entropyCoef: number,
): Tensor {
  const { images, trueCodes, context, start } = batch;
  const vq = tokenizer.vq as VQModel;
  const logits = policy.forward(context, start as object); // [B, T, V]
  const rows = F.normalize(vq.quantize.embedding.weight);
  let loss = logits.sum().mul(0);
  const [b, t] = trueCodes.dims(2);
  for (let i = 0; i < b; i++) {
    for (let k = 0; k < draws; k++) {
      using generator = stream(deriveSeed(7, "draw", i * draws + k), "straight-through", 0);
      const hot = straightThroughGumbel(logits.select(0, i), { generator, tau: 0.7 });
      const sample = vq.decode(hot.matmul(rows).transpose(0, 1).reshape(1, 4, 2, 4));
      loss = loss.add(
        sample
          .sub(images.narrow(0, i, 1))
          .square()
          .mean(),
        2 / (b * draws),
      );
    }
  }
  const logp = logits.logSoftmax(-1);
  const truth = logp.gather(2, trueCodes.unsqueeze(2)).mean();
  const entropy = logp.exp().mul(logp).sum(-1).mean().neg();
  assert.equal(logp.size(1), t);
  return loss.sub(truth, auxCe).sub(entropy, entropyCoef);
}

test("the gradient is that of the reward through decoder and codebook, of the cross-entropy and of the entropy, by hand", () => {
  const all = scene();
  const more = { tau: 0.7, numGenerations: 2, auxCe: 0.3, entropyCoef: 0.05 };
  const [got] = gradientsOf(all, more);
  all.policy.zeroGrad();
  tidy(() => byHand(all, 2, 0.3, 0.05).backward());
  const wanted = Object.fromEntries(
    all.policy.namedParameters().map(([name, p]) => [name, p.grad as Tensor]),
  );
  expectSame(got, wanted);
});

test("how rows are cut changes memory alone; another seed draws others", () => {
  const all = scene(4);
  const more = { numGenerations: 2, auxCe: 0.1, entropyCoef: 0.01 };
  const [whole] = gradientsOf(all, more);
  for (const microBatch of [1, 3]) expectSame(gradientsOf(all, { ...more, microBatch })[0], whole);
  assert.throws(() => expectSame(gradientsOf(all, { ...more, seed: 8 })[0], whole, 1e-3));
  const first = gradientsOf(all, { ...more, miniBatch: 2, generator: new Generator(1) });
  assert.equal(first.length, 2);
  // Two steps of half the images each, which changed nothing, average to one of all.
  const mean = Object.fromEntries(
    Object.entries(first[0] as Record<string, Tensor>).map(([name, gradient]) => [
      name,
      gradient.add(first[1]?.[name] as Tensor).div(2),
    ]),
  );
  expectSame(mean, whole);
});

test("what is drawn are the images of codes, also where the policy is computed in bfloat16", () => {
  const all = scene();
  const seen: Tensor[] = [];
  const watch = {
    ...reconstructionTerm("l2"),
    measure: ({ samples }: { samples: Tensor }) => {
      seen.push(keep(samples.detach()));
      return samples.mean([1, 2, 3]);
    },
  };
  autocast({ device: "cpu", dtype: "bfloat16" }, () => gradientsOf(all, { terms: [watch] }));
  const [samples] = seen as [Tensor];
  assert.equal(samples.dtype, "float32");
  const vq = all.tokenizer.vq as VQModel;
  // Every sample is the decoded image of some codes: search them place by place from the draw itself.
  const codes = noGrad(() =>
    tidy(() => {
      const drawn = [0, 1, 2].map((i) => {
        using generator = stream(deriveSeed(7, "draw", i), "straight-through", 0);
        const { context, start } = all.batch;
        const logits = autocast({ device: "cpu", dtype: "bfloat16" }, () =>
          all.policy.forward(context, start as object).select(0, i),
        );
        return straightThroughGumbel(logits.float(), { generator }).argmax(-1).unsqueeze(0);
      });
      return cat(drawn);
    }),
  );
  expectClose(samples, all.tokenizer.decodeCode(codes, [2, 4]), { rtol: 1e-4, atol: 1e-5 });
  assert.ok(vq.quantize.embedding.weight.norm(2, 1).amin().item() !== 1);
});

test("metrics; a step that is not finite is left out; nothing is left behind", () => {
  const all = scene();
  const { policy, batch, options } = all;
  const still: Optimizer = { step: () => {}, zeroGrad: () => policy.zeroGrad() };
  const { metrics, steps } = steUpdate(policy, still, batch, { ...options, auxCe: 0.2, entropyCoef: 0.1 });
  assert.equal(steps, 1);
  const get = (name: string): number => metrics[name] as number;
  expectClose(get("loss/reward"), -get("reward/straight_through"), { rtol: 1e-6 });
  expectClose(get("loss/total"), get("loss/reward") + get("loss/aux_ce") + get("loss/entropy"), {
    rtol: 1e-5,
  });
  expectClose(get("loss/entropy"), -0.1 * get("policy/update_entropy"), { rtol: 1e-5 });
  assert.ok(get("optim/grad_norm") > 0 && get("reward/straight_through") < 0);
  noLeak(() => steUpdate(policy, still, batch, { ...options, auxCe: 0.2, microBatch: 2 }));

  const nan = {
    ...reconstructionTerm("l2"),
    measure: (j: { samples: Tensor }) => j.samples.mul(Number.NaN).mean([1, 2, 3]),
  };
  let stepped = 0;
  const counting: Optimizer = { step: () => stepped++, zeroGrad: () => policy.zeroGrad() };
  const result = steUpdate(policy, counting, batch, { ...options, terms: [nan] });
  assert.deepEqual([result.steps, result.skippedSteps, stepped], [0, 1, 0]);
});

test("a tokenizer whose decoder is not known is refused", () => {
  const { policy, batch, options } = scene();
  const foreign = {
    codebookSize: 11,
    downsample: 4,
    encode: () => batch.trueCodes,
    decodeCode: () => batch.images,
  };
  assert.throws(
    () =>
      steUpdate(policy, new Recorder(policy), batch, { ...options, tokenizer: new FrozenTokenizer(foreign) }),
    {
      name: "RangeError",
      message: /^steUpdate\.tokenizer: expected an IBQ or VQ tokenizer, got .* Use another algorithm: /s,
    },
  );
});

test("a term without a gradient to the samples is refused, also beside one that has it", () => {
  const { policy, batch, options } = scene();
  const [l2] = options.terms;
  assert.ok(l2);
  const still = { ...l2, name: "custom", measure: (j: Judged) => noGrad(() => l2.measure(j)) };
  const recorder = new Recorder(policy);
  const run = () => steUpdate(policy, recorder, batch, { ...options, auxCe: 0.1, terms: [l2, still] });
  assert.throws(run, {
    name: "RangeError",
    message: /^reward\.custom: .*gradient to the samples.*another algorithm/,
  });
  assert.deepEqual(recorder.seen, []);
});

test("it climbs: what is drawn comes closer to the images", () => {
  const all = scene(4);
  using optimizer = new AdamW(all.policy.parameters(), { lr: 0.02, weightDecay: 0 });
  const rewards: number[] = [];
  for (let step = 0; step < 40; step++) {
    const { metrics } = steUpdate(all.policy, optimizer, all.batch, {
      ...all.options,
      numGenerations: 4,
      seed: step,
    });
    rewards.push(metrics["reward/straight_through"] as number);
  }
  const mean = (part: number[]): number => part.reduce((a, b) => a + b) / part.length;
  const [first, last] = [mean(rewards.slice(0, 5)), mean(rewards.slice(-5))];
  assert.ok(last > first + 0.01, `${first} -> ${last}`);
});
