/**
 * Every model and metric on LibTorch's meta device, where shapes are computed and no values: a tensor that is made on
 * the CPU by mistake meets one on another device, and LibTorch refuses. What a GPU would compute is not tested here.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { BACKBONES, backboneShapes } from "../../src/metrics/backbones.js";
import {
  FeatureClassifier,
  InceptionV3,
  LPIPS,
  type LpipsNet,
  l1,
  l1Map,
  l2,
  l2Map,
  latentCosine,
  msSsim,
  NLayerDiscriminator,
  PerceptualDistance,
  psnr,
  ssim,
  ssimMap,
} from "../../src/metrics/index.js";
import type { Module } from "../../src/nn/index.js";
import {
  type ArPolicy,
  addLora,
  type Condition,
  concatConditions,
  GPT,
  IbqAr,
  LlamaGen,
  repeatCondition,
} from "../../src/policies/index.js";
import { IBQ, type Lookup, TOKENIZER_PRESETS, VQModel } from "../../src/tokenizers/index.js";
import { functional as F, noGrad, type Tensor, tidy, zeros } from "../../src/torch/index.js";

const META = { device: "meta" } as const;
const codes = (...shape: number[]): Tensor => zeros(shape, { dtype: "int64", ...META });
const images = (...shape: number[]): Tensor => zeros(shape, META);
const bools = (...shape: number[]): Tensor => zeros(shape, { dtype: "bool", ...META });

/** Check shape, and that the tensor is on the device of the inputs. */
function is(tensor: Tensor, ...shape: number[]): void {
  assert.equal(tensor.device, "meta");
  assert.deepEqual([...tensor.shape], shape);
}

const onMeta = <M extends Module>(module: M): M => module.to(META);

const B = 2;
const T = 16;
const V = 20;
const SIZES = { vocabSize: V, blockSize: T, nLayer: 2, nHead: 2 };
const features = (): Tensor => zeros([B, 3, 6], META);

/** Policies of every family and condition, with the conditions that they take. */
const POLICIES: Readonly<Record<string, [build: () => ArPolicy, condition: () => Condition]>> = {
  gpt: [() => new GPT({ ...SIZES, nEmbd: 16, classNum: 6 }), () => ({ classes: codes(B) })],
  "gpt with a codebook": [
    () => new GPT({ ...SIZES, nEmbd: 16, classNum: 6, usePretrainedCodebook: true, nCodebookEmbd: 8 }),
    () => ({ classes: codes(B), isDropped: bools(B) }),
  ],
  "gpt after features": [
    () => new GPT({ ...SIZES, nEmbd: 16, classNum: 6, features: { kind: "prepend", dim: 6, tokens: 3 } }),
    () => ({ classes: codes(B), features: features(), isReal: bools(B, 3), isDropped: bools(B) }),
  ],
  "gpt across features": [
    () => new GPT({ ...SIZES, nEmbd: 16, classNum: 6, features: { kind: "cross", dim: 6 } }),
    () => ({ classes: codes(B), features: features(), isReal: bools(B, 3), isDropped: bools(B) }),
  ],
  llamagen: [
    () => new LlamaGen({ ...SIZES, dim: 16, nKvHead: 1, numClasses: 6, dropPathRate: 0.1 }),
    () => ({ classes: codes(B), isDropped: bools(B) }),
  ],
  "llamagen of texts": [
    () => new LlamaGen({ ...SIZES, dim: 16, modelType: "t2i", clsTokenNum: 3, captionDim: 6 }),
    () => ({ features: features(), isReal: bools(B, 3), isDropped: bools(B) }),
  ],
  ibq_ar: [
    () => new IbqAr({ ...SIZES, nEmbd: 16, classNum: 6, dropPathRate: 0.1 }),
    () => ({ classes: codes(B), isDropped: bools(B) }),
  ],
};

for (const [name, [build, conditionOf]] of Object.entries(POLICIES)) {
  test(`policy: ${name}`, () =>
    tidy(() => {
      using policy = onMeta(build());
      const given = conditionOf();
      for (const condition of [given, {}]) {
        const guided = concatConditions(condition, policy.nullCondition(condition));
        for (const training of [true, false]) {
          policy.train(training);
          for (const again of training ? [false, true] : [false]) {
            policy.gradientCheckpointing = again;
            const logits = policy.forward(codes(B, T - 1), condition);
            is(logits, B, T, V);
            F.crossEntropy(logits.flatten(0, 1), codes(B * T)).backward();
          }
          is(policy.forward(codes(2 * B, T - 1), guided), 2 * B, T, V);
          if ("features" in condition) is(policy.forward(codes(B, 0), { ...condition }), B, 1, V);
        }
      }
      noGrad(() => {
        for (const condition of [given, policy.nullCondition(given), {}]) {
          using cache = policy.openCache(B);
          using doubled = policy.openCache(2 * B);
          is(policy.prefill(cache, codes(B, 3), condition), B, V);
          is(policy.decode(cache, codes(B)), B, V);
          const both = concatConditions(condition, policy.nullCondition(condition));
          is(policy.prefill(doubled, codes(2 * B, 0), both), 2 * B, V);
          is(policy.decode(doubled, codes(2 * B)), 2 * B, V);
          using grown = policy.repeatCache(cache, 3);
          is(policy.decode(grown, codes(3 * B)), 3 * B, V);
          is(policy.forward(codes(3 * B, 2), repeatCondition(condition, 3)), 3 * B, 3, V);
        }
      });
      using lora = addLora(policy, { rank: 2, dropout: 0.1 });
      F.crossEntropy(
        policy
          .train()
          .forward(codes(B, T - 1), given)
          .flatten(0, 1),
        codes(B * T),
      ).backward();
      for (const parameter of lora.parameters()) is(parameter.grad as Tensor, ...parameter.shape);
      is(
        lora.withAdaptersOff(() => policy.forward(codes(B, 1), given)),
        B,
        2,
        V,
      );
      for (const weight of Object.values(lora.mergedWeights())) assert.equal(weight.device, "meta");
      lora.merge();
      is(policy.forward(codes(B, 1), given), B, 2, V);
      lora.unmerge();
    }));
}

for (const lookup of ["dot", "cosine", "l2"] as const satisfies readonly Lookup[]) {
  test(`tokenizer: ${lookup}`, () =>
    tidy(() => {
      const small = lookup === "dot" ? TOKENIZER_PRESETS["IBQ-4-small"] : TOKENIZER_PRESETS["VQ-4-small"];
      const weights = { sampleEntropyWeight: 1, batchEntropyWeight: 1 };
      const config = { ...small, ch: 8, zChannels: 8, normGroups: 8, codebookSize: V, lookup, ...weights };
      using model = onMeta(lookup === "dot" ? new IBQ(config) : new VQModel(config));
      for (const training of [true, false]) {
        model.train(training);
        const { reconstruction, codes: chosen, losses, stats } = model.forward(images(B, 3, 16, 16));
        is(reconstruction, B, 3, 16, 16);
        is(chosen, B, 16);
        for (const value of [...Object.values(losses), ...Object.values(stats)]) is(value);
        const total = Object.values(losses).reduce((sum, loss) => sum.add(loss), reconstruction.mean());
        if (training) total.backward();
      }
      is(model.encode(images(B, 3, 16, 16)), B, 16);
      is(model.encodeLatent(images(B, 3, 16, 16)), B, config.embedDim, 4, 4);
      is(model.decodeCode(codes(B, 16)), B, 3, 16, 16);
      model.memoryBudget = 1; // one image at a time
      is(model.encode(images(B, 3, 16, 16)), B, 16);
      is(model.decodeCode(codes(B, 16), [2, 8]), B, 3, 8, 32);
    }));
}

test("metrics of pixels and latents", () =>
  tidy(() => {
    const [x, y] = [images(B, 3, 176, 176), images(2 * B, 3, 176, 176)];
    for (const metric of [l1, l2, psnr, ssim, msSsim]) is(metric(x, y, { chunk: 3 }), 2 * B);
    for (const map of [l1Map, l2Map, ssimMap]) is(map(x, y, { chunk: 3 }), 2 * B, 176, 176);
    is(latentCosine(images(B, 4, 2, 2), images(2 * B, 4, 2, 2)), 2 * B);
  }));

test("networks of metrics", () =>
  tidy(() => {
    const [x, y] = [images(B, 3, 64, 64), images(2 * B, 3, 64, 64)];
    for (const net of Object.keys(BACKBONES) as LpipsNet[]) {
      const backbone = Object.fromEntries(
        Object.entries(backboneShapes(net)).map(([key, shape]) => [key, zeros(shape)]),
      );
      using lpips = onMeta(new LPIPS({ net, backbone, checkRange: false }));
      is(lpips.forward(x, y, { chunk: 3 }), 2 * B);
      const reference = lpips.reference(x);
      is(lpips.distance(reference, y), 2 * B);
      is(lpips.distanceMap(reference, y), 2 * B, 64, 64);
    }
    using classifier = onMeta(new FeatureClassifier({ numClasses: 3, widths: [8, 16] }));
    is(classifier.logits(x), B, 3);
    is(classifier.describe(x).features, B, 16);
    is(classifier.describe(x).probabilities, B, 3);
    const perceptual = new PerceptualDistance(classifier, { checkRange: false });
    is(perceptual.forward(x, y), 2 * B);
    is(perceptual.distanceMap(perceptual.reference(x), y), 2 * B, 64, 64);
    using discriminator = onMeta(new NLayerDiscriminator({ ndf: 8 }));
    discriminator.forward(x).mean().backward();
    is(discriminator.eval().score(x, { chunk: 1 }), B);
    using inception = onMeta(new InceptionV3(1008));
    is(inception.logits(images(B, 2048)), B, 1008);
  }));
