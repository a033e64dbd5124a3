/**
 * Sampling, rollouts, scores, rewards and updates with every parameter and input on the meta device: a tensor or a
 * generator that is made on the CPU by mistake, which only a GPU would refuse, throws here.
 */
import assert from "node:assert/strict";
import { test } from "node:test";

import { AdamW, Ema, type Module } from "../../src/nn/index.js";
import { type ArPolicy, GPT, IbqAr, LlamaGen } from "../../src/policies/index.js";
import {
  grpoUpdate,
  ppoUpdate,
  reinforceUpdate,
  rlooUpdate,
  type UpdateBatch,
  ValueHead,
} from "../../src/rl_ar_finetune/optimize.js";
import { customTerm } from "../../src/rl_ar_finetune/own_rewards.js";
import {
  judge,
  judgeByPlace,
  latentCosineTerm,
  reconstructionReward,
  reconstructionTerm,
} from "../../src/rl_ar_finetune/rewards.js";
import { type RolloutContext, type RolloutOptions, sampleRollout } from "../../src/rl_ar_finetune/rollout.js";
import { type Sampling, sampleCodesWithLogprobs } from "../../src/rl_ar_finetune/sampling.js";
import { scoreCodes } from "../../src/rl_ar_finetune/scoring.js";
import { steUpdate } from "../../src/rl_ar_finetune/ste.js";
import { FrozenTokenizer, VQModel } from "../../src/tokenizers/index.js";
import { empty, Generator, noGrad, ones, type Tensor, tidy, zeros } from "../../src/torch/index.js";
import { auditDevices } from "../support/device_audit.js";
import { onMeta } from "../support/meta.js";
import { TinyPolicy } from "../support/tiny_policy.js";

const META = { device: "meta" } as const;
const codesOf = (...shape: number[]): Tensor => zeros(shape, { ...META, dtype: "int64" });
const imagesOf = (...shape: number[]): Tensor => empty(shape, META);

const POLICIES: Readonly<Record<string, () => ArPolicy>> = {
  tiny: () => new TinyPolicy({ blockSize: 9 }),
  gpt: () => new GPT({ vocabSize: 11, blockSize: 9, nLayer: 2, nHead: 2, nEmbd: 8, classNum: 3 }),
  llamagen: () => new LlamaGen({ dim: 16, nLayer: 2, nHead: 2, vocabSize: 11, blockSize: 9, numClasses: 3 }),
  ibq: () => new IbqAr({ vocabSize: 11, blockSize: 9, nLayer: 2, nHead: 2, nEmbd: 16, classNum: 3 }),
};

const SAMPLINGS: Readonly<Record<string, Sampling>> = {
  plain: {},
  filtered: { temperature: 0.9, topK: 7, topP: 0.9 },
  guided: { guidance: { scale: 2, schedule: "power_cosine" }, topK: 5 },
  greedy: { greedy: true },
};

const CONTEXTS: readonly RolloutContext[] = [
  { type: "free" },
  { type: "prefix", length: 2 },
  { type: "teacher_forced" },
  { type: "noisy_teacher_forced", noise: 0.5 },
];

const [B, G, T, V] = [2, 3, 9, 11];
const start = { classes: codesOf(B) };

/** A check that the audit itself can fail. */
test("a tensor or a generator of the CPU beside tensors on meta is found", () => {
  const x = imagesOf(2, 3);
  const index = zeros([2], { dtype: "int64" });
  for (const use of [
    () => x.indexSelect(0, index),
    () => x.matmul(ones([3, 2])),
    () => x.gather(1, zeros([2, 1], { dtype: "int64" })),
    () => x.add(ones([3])),
  ])
    assert.throws(() => auditDevices(use), /CPU/);
  auditDevices(() => x.add(ones([])).copy_(ones([2, 3])));
});

for (const [name, make] of Object.entries(POLICIES)) {
  test(`${name}: sampling with its cache, rollouts and scores`, () => {
    const policy = onMeta(make());
    for (const sampling of Object.values(SAMPLINGS)) {
      tidy(() =>
        auditDevices(() => {
          using generator = new Generator(1);
          const options = { ...sampling, numGenerations: G, generator };
          const { tokens, logprobs, support } = sampleCodesWithLogprobs(policy, start, T, options);
          assert.deepEqual([tokens.device, tokens.shape], ["meta", [B * G, T]]);
          assert.deepEqual([logprobs.shape, support?.device ?? "meta"], [[B * G, T], "meta"]);
          sampleCodesWithLogprobs(policy, [codesOf(B, 2), start], T - 2, options);
          for (const context of sampling.guidance ? CONTEXTS : CONTEXTS.slice(0, 1)) {
            const trueCodes = codesOf(B, T);
            const more = { context, trueCodes, numGenerations: G, sampling, generator };
            const rollout = sampleRollout(policy, start, { ...more, microBatch: 1 });
            assert.deepEqual([rollout.codes.device, rollout.codes.shape], ["meta", [B, G, T]]);
            const drawn = rollout.context === null ? B * G : B;
            const wanted = {
              wantsEntropy: true,
              reference: policy,
              trueCodes: codesOf(drawn, rollout.tokens.size(2)),
            };
            noGrad(() => scoreCodes(policy, rollout, { ...wanted, microBatch: 1, chunk: 4 }));
            scoreCodes(policy, rollout, wanted).logprobs.sum().backward();
          }
        }),
      );
    }
  });
}

/** A rollout on meta with rewards; B = 2 images, G = 3. */
function batchOf(policy: ArPolicy, context: RolloutContext, options: RolloutOptions = {}): UpdateBatch {
  using generator = new Generator(2);
  const trueCodes = codesOf(B, T);
  const rollout = sampleRollout(policy, start, {
    context,
    numGenerations: G,
    trueCodes,
    generator,
    ...options,
  });
  return { ...rollout, trueCodes, rewards: empty([B, G], { ...META, dtype: "float64" }) };
}

/** Takes steps with real moments, and keeps an EMA. */
function trained(policy: ArPolicy, ...more: Module[]): { optimizer: AdamW; ema: Ema } {
  const params = [policy, ...more].flatMap((module, i) =>
    module.namedParameters().map(([name, parameter]) => [`${i}.${name}`, parameter] as const),
  );
  return { optimizer: new AdamW([{ params }], { lr: 1e-3 }), ema: new Ema(policy, { decay: 0.9 }) };
}

test("every algorithm, KL, credit and term takes its steps", () => {
  for (const context of CONTEXTS) {
    const policy = onMeta(new TinyPolicy({ blockSize: T }));
    const reference = onMeta(new TinyPolicy({ blockSize: T }));
    const head = onMeta(new ValueHead(policy.hiddenSize));
    const { optimizer, ema } = trained(policy, head);
    const shared = { auxCe: 0.1, entropyCoef: 0.01, maxGradNorm: 1, tokenDropout: 0.2, microBatch: 2 };
    tidy(() =>
      auditDevices(() => {
        using generator = new Generator(3);
        const more = { ...shared, generator };
        const sampling = { topK: 5, guidance: { scale: 2 } };
        const batch = batchOf(policy, context, { sampling });
        const t = batch.tokens.size(2);
        const places = { ...batch, rewards: empty([B, G, t], { ...META, dtype: "float64" }) };
        const masked = { ...batch, mask: ones([B, G, t], { ...META, dtype: "bool" }) };
        const results = [
          reinforceUpdate(policy, optimizer, batch, { ...more, miniBatch: 1 }),
          reinforceUpdate(policy, optimizer, places, { ...more, creditDecay: 0.5 }),
          rlooUpdate(policy, optimizer, masked, { ...more, epochs: 2 }),
          ...(["group", "batch", "none"] as const).map((scale) =>
            grpoUpdate(policy, optimizer, batch, { ...more, scale, dualClip: 3 }),
          ),
          grpoUpdate(policy, optimizer, masked, { ...more, level: "sequence" }),
          grpoUpdate(policy, optimizer, places, { ...more, objective: "cispo" }),
          ppoUpdate(policy, optimizer, batch, { ...more, valueHead: head, detachTrunk: false }),
          ppoUpdate(policy, optimizer, places, { ...more, valueHead: head, miniBatch: 1 }),
        ];
        for (const placement of ["loss", "reward"] as const) {
          for (const estimator of ["k1", "k2", "k3", "k3_own", "exact"] as const) {
            if (context.type !== "prefix") continue; // they see no context
            if (estimator === (placement === "loss" ? "k1" : "k3_own")) continue;
            const kl = { coef: 0.1, reference, placement, estimator };
            results.push(grpoUpdate(policy, optimizer, batch, { ...more, kl }));
            results.push(ppoUpdate(policy, optimizer, batch, { ...more, kl, valueHead: head }));
          }
        }
        for (const { steps, skippedSteps } of results) assert.ok(steps > 0 && skippedSteps === 0);
        ema.update();
        ema.withAverage(() => sampleCodesWithLogprobs(policy, start, T, { generator }));
        if (context.type !== "teacher_forced") return;
        const kept = batchOf(policy, context, { keepGraph: true });
        assert.equal(grpoUpdate(policy, optimizer, kept, { auxCe: 0.1 }).steps, 1);
      }),
    );
    for (const parameter of policy.parameters()) assert.equal(parameter.device, "meta");
  }
});

/** 11 codes of 4 x 4 pixels. */
const tinyTokenizer = (): VQModel =>
  onMeta(
    new VQModel({
      codebookSize: V,
      codebookEmbedDim: 4,
      ch: 8,
      chMult: [1, 1, 1],
      numResBlocks: 1,
      zChannels: 8,
      normGroups: 4,
    }),
  );

test("decoded images are judged by every term, as a whole and by place", () => {
  const tokenizer = tinyTokenizer();
  const images = imagesOf(B, 3, 12, 12);
  tidy(() =>
    auditDevices(() => {
      const samples = tokenizer.decodeCode(codesOf(B * G, 9), [3, 3]);
      const latents = { images: imagesOf(B, 4, 3, 3), samples: imagesOf(B * G, 4, 3, 3) };
      const maps = (["l1", "l2", "ssim"] as const).map((type) => reconstructionTerm(type, { weight: 2 }));
      const own = customTerm("own", (x, y) => y.sub(x.repeatInterleave(G, 0)).abs().mean([1, 2, 3]));
      const terms = [...maps, reconstructionTerm("psnr", { chunk: 2 }), latentCosineTerm(), own];
      for (const normalize of ["none", "batch", "group"] as const) {
        const { total, terms: values } = judge(terms, { images, samples, latents }, { normalize });
        for (const value of [total, ...Object.values(values)]) assert.equal(value.device, "meta");
        judgeByPlace(maps, { images, samples }, [3, 3], { normalize });
      }
      assert.equal(reconstructionReward(images, samples, "l1", true).device, "meta");
      // A reward that computes on the CPU is brought to the device of the samples.
      const cpu = judge([own, customTerm("cpu", () => ones([B * G]))], { images, samples });
      assert.equal(cpu.total.device, "meta");
    }),
  );
});

test("the straight-through baseline draws, decodes and steps", () => {
  const policy = onMeta(new TinyPolicy({ blockSize: T }));
  const tokenizer = new FrozenTokenizer(tinyTokenizer());
  const { optimizer } = trained(policy);
  const images = imagesOf(B, 3, 12, 12);
  const batch = { images, start, trueCodes: codesOf(B, T), context: codesOf(B, T - 1) };
  const terms = [reconstructionTerm("l2")];
  tidy(() =>
    auditDevices(() => {
      using generator = new Generator(4);
      const options = { tokenizer, terms, seed: 1, numGenerations: 2, auxCe: 0.1, entropyCoef: 0.1 };
      const { steps, skippedSteps } = steUpdate(policy, optimizer, batch, {
        ...options,
        miniBatch: 1,
        generator,
      });
      assert.deepEqual([steps, skippedSteps], [B, 0]);
    }),
  );
});

test("tensors of another device than the policy's are refused in words", () => {
  const policy = onMeta(new TinyPolicy({ blockSize: T }));
  const { optimizer } = trained(policy);
  const cpu = { classes: zeros([B], { dtype: "int64" }) };
  const trueCodes = zeros([B, T], { dtype: "int64" });
  const refused = (fn: () => unknown, name: string): void =>
    assert.throws(fn, { name: "RangeError", message: new RegExp(`${name}: .*on meta.*cpu.*to\\(`) });
  refused(() => sampleCodesWithLogprobs(policy, cpu, T), "start\\.classes");
  refused(() => sampleRollout(policy, cpu, {}), "start\\.classes");
  refused(
    () => sampleRollout(policy, start, { context: { type: "teacher_forced" }, trueCodes }),
    "trueCodes",
  );
  refused(() => scoreCodes(policy, { tokens: trueCodes, start }), "drawn\\.tokens");
  const batch = { ...batchOf(policy, { type: "free" }), rewards: zeros([B, G]) };
  for (const update of [reinforceUpdate, rlooUpdate, grpoUpdate])
    refused(() => update(policy, optimizer, batch), "batch\\.rewards");
});
