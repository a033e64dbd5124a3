/** LlamaGen: published keys, PyTorch's numbers, decoding step by step, classes and texts. */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { init } from "../../src/nn/index.js";
import { LlamaGen, type LlamaGenOptions, llamaGenPresets } from "../../src/policies/index.js";
import { manualSeed, memory, noGrad, randn, type Tensor, tensor, tidy } from "../../src/torch/index.js";
import { expectClose } from "../support/close.js";
import { noLeak } from "../support/leak.js";
import {
  checkCheckpointing,
  checkGolden,
  checkGroups,
  checkIncremental,
  type GoldenName,
  publishedShapes,
  shapesOf,
  withGolden,
} from "./support.js";

const SIZE = { vocabSize: 20, blockSize: 16, nLayer: 2, nHead: 2, dim: 16, ffnDim: 24, numClasses: 6 };
const ids = (...list: number[]): Tensor => tensor(list, { dtype: "int64" });
const codes = (...rows: number[][]): Tensor => tensor(rows, { dtype: "int64" });

describe("the state dict has the published keys and shapes, in their order", () => {
  // Memory of weights that are never written is never taken: 5.6 GB for GPT-XXL would not fit everywhere.
  const published: [file: string, options: LlamaGenOptions][] = [
    ["llamagen_c2i_GPT-B.tsv", llamaGenPresets["GPT-B"]],
    ["llamagen_c2i_GPT-XXL.tsv", { ...llamaGenPresets["GPT-XXL"], blockSize: 576 }],
    ["llamagen_t2i_GPT-XL.tsv", { ...llamaGenPresets["GPT-XL"], modelType: "t2i" }],
  ];
  for (const [file, options] of published) {
    test(file, () =>
      noLeak(() => {
        using model = init.skipInit(() => new LlamaGen(options));
        assert.deepEqual(shapesOf(model), publishedShapes(file));
      }),
    );
  }
});

test("presets have the published numbers of parameters", () => {
  const counts = Object.entries(llamaGenPresets).map(([name, { nLayer, nHead, dim }]) => {
    // Of one layer, since the larger ones are tens of gigabytes.
    using model = init.skipInit(() => new LlamaGen({ nLayer: 1, nHead, dim, blockSize: 576 }));
    const sizes = model.namedParameters().map(([key, { numel }]) => [key, numel] as const);
    const layer = sizes.filter(([key]) => key.startsWith("layers.")).reduce((sum, [, n]) => sum + n, 0);
    const rest = sizes.filter(([key]) => !key.startsWith("layers.")).reduce((sum, [, n]) => sum + n, 0);
    return [name, rest + nLayer * layer] as const;
  });
  assert.deepEqual(Object.fromEntries(counts), {
    "GPT-B": 110888448,
    "GPT-L": 342910976,
    "GPT-XL": 774699520,
    "GPT-XXL": 1410972672,
    "GPT-XXXL": 3893027840,
    "GPT-1B": 1199616000,
    "GPT-3B": 3096659200,
    "GPT-7B": 6614589440,
  });
});

for (const name of ["llamagen_c2i_kv2", "llamagen_c2i_kv1", "llamagen_t2i"] satisfies GoldenName[]) {
  describe(name, () => {
    test("logits and gradients are PyTorch's", () => withGolden(name, checkGolden));
    test("step by step is teacher-forced", () => withGolden(name, checkIncremental));
    test("a group shares its prefill", () => withGolden(name, checkGroups));
    test("checkpointing changes no gradient", () => withGolden(name, checkCheckpointing));
  });
}

test("initial values are the published ones: N(0, 0.02), and equal logits", () => {
  manualSeed(3);
  for (const modelType of ["c2i", "t2i"] as const) {
    using model = new LlamaGen({
      ...SIZE,
      dim: 128,
      vocabSize: 200,
      modelType,
      captionDim: 64,
      numClasses: 100,
    });
    tidy(() => {
      for (const [key, value] of Object.entries(model.stateDict())) {
        const { mean, std } = { mean: value.mean().item(), std: value.std().item() };
        const isNorm = key.endsWith("norm.weight");
        if (isNorm || key === "output.weight") assert.deepEqual([mean, std], [isNorm ? 1 : 0, 0], key);
        // The null text's features, 1 / sqrt(C).
        else if (key.endsWith("uncond_embedding")) assert.ok(Math.abs(std - 0.125) < 0.01, `${key}: ${std}`);
        else assert.ok(Math.abs(mean) < 2e-3 && Math.abs(std - 0.02) < 1e-3, `${key}: ${mean} ${std}`);
      }
    });
  }
});

test("padding of a text changes nothing, whatever it holds; the null text keeps the padding", () =>
  withGolden("llamagen_t2i", ({ policy, tokens, condition, tensors }) => {
    const context = tokens.narrow(1, 0, 15);
    const { features, isReal } = condition as { features: Tensor; isReal: Tensor };
    const noise = randn(features.shape).mul(isReal.logicalNot().unsqueeze(-1));
    const padded = policy.forward(context, { features: features.add(noise), isReal });
    expectClose(padded, tensors.logits as Tensor, { atol: 1e-5 });
    const none = policy.nullCondition(condition);
    assert.equal(none.isReal, isReal);
    assert.deepEqual(none.features?.shape, [2, 5, 6]);
    const isDropped = tensor([0, 1], { dtype: "bool" });
    const mixed = policy.forward(context, { ...condition, isDropped });
    expectClose(mixed.select(0, 0), (tensors.logits as Tensor).select(0, 0), { atol: 1e-5 });
    expectClose(mixed.select(0, 1), (tensors.uncond as Tensor).select(0, 1), { atol: 1e-5 });
    // Nothing said is the null text, all of it.
    const absent = policy.forward(context, {});
    const { features: nothing } = none;
    expectClose(absent, policy.forward(context, nothing ? { features: nothing } : {}), { atol: 1e-6 });
  }));

test("an all-true mask is no mask", () =>
  withGolden("llamagen_t2i", ({ policy, tokens, condition }) => {
    const { features } = condition as { features: Tensor };
    const all = tensor(Array(2).fill(Array(5).fill(1)), { dtype: "bool" });
    const context = tokens.narrow(1, 0, 15);
    expectClose(policy.forward(context, { features, isReal: all }), policy.forward(context, { features }), {
      atol: 2e-6,
    });
  }));

test("codes read from memory that was used before are as from new memory", () =>
  withGolden("llamagen_t2i", ({ policy, tokens, condition }) => {
    using cache = policy.openCache(2);
    const run = (given: typeof condition): Tensor => {
      cache.reset();
      policy.prefill(cache, tokens.narrow(1, 0, 3), given);
      return policy.decode(cache, tokens.select(1, 3));
    };
    const { features } = condition as { features: Tensor };
    const masked = run(condition);
    const plain = run({ features });
    assert.ok(!masked.equal(plain), "the mask of the first text is gone");
    assert.ok(run(condition).equal(masked));
  }));

test("dropout acts in training alone, each rate of it", () =>
  tidy(() => {
    const rates = { tokenDropoutP: 0, attnDropoutP: 0, residDropoutP: 0, ffnDropoutP: 0, dropPathRate: 0 };
    for (const name of Object.keys(rates)) {
      manualSeed(2);
      using model = new LlamaGen({ ...SIZE, ...rates, [name]: 0.5 });
      model.output.weight.detach().copy_(randn([20, 16]));
      const tokens = codes([1, 2, 3, 4, 5, 6]).expand(16, 6);
      const run = (): Tensor => model.forward(tokens, { classes: ids(3).expand(16) });
      assert.ok(!run().equal(run()), `${name} in training`);
      model.eval();
      assert.ok(run().equal(run()), `${name} in evaluation`);
    }
  }));

test("a dropped branch adds nothing: both of the last block's leave the model without it", () =>
  tidy(() => {
    manualSeed(2);
    const still = { tokenDropoutP: 0, residDropoutP: 0, ffnDropoutP: 0 };
    using deep = new LlamaGen({ ...SIZE, ...still, dropPathRate: 1 - 1e-7 });
    noGrad(() => deep.output.weight.copy_(randn([20, 16])));
    using shallow = new LlamaGen({ ...SIZE, ...still, nLayer: 1 });
    const known = Object.entries(deep.stateDict()).filter(([key]) => !key.startsWith("layers.1."));
    shallow.loadStateDict(Object.fromEntries(known));
    const tokens = codes([1, 2, 3, 4, 5, 6]);
    const wanted = shallow.forward(tokens, { classes: ids(3) });
    assert.ok(deep.forward(tokens, { classes: ids(3) }).equal(wanted));
    assert.ok(
      !deep
        .eval()
        .forward(tokens, { classes: ids(3) })
        .equal(wanted),
    );
  }));

test("what does not fit is refused", () =>
  noLeak(() =>
    tidy(() => {
      const fails = (fn: () => unknown, message: string): void => assert.throws(fn, { message });
      fails(
        () => new LlamaGen({ ...SIZE, blockSize: 15 }),
        "LlamaGen: expected a square number as blockSize, got 15. 256 codes are a grid of 16 by 16.",
      );
      fails(
        () => new LlamaGen({ ...SIZE, nHead: 8 }),
        "LlamaGen: expected a multiple of 4 as the width of a head, got 2.",
      );
      fails(
        () => new LlamaGen({ ...SIZE, nHead: 4, nKvHead: 3 }),
        "LlamaGen: expected a number of key heads that divides 4, got 3.",
      );
      fails(
        () => new LlamaGen({ ...SIZE, clsTokenNum: 2 }),
        "LlamaGen: expected clsTokenNum 1 for classes, got 2.",
      );
      using images = new LlamaGen(SIZE);
      using texts = new LlamaGen({ ...SIZE, modelType: "t2i", captionDim: 6, clsTokenNum: 5 });
      const none = codes([]).reshape(1, 0);
      fails(
        () => images.forward(none, { features: randn([1, 5, 6]) }),
        "LlamaGen.hidden: expected a condition without features, got Tensor float32[1, 5, 6] cpu. " +
          "Build the policy for features to give it some.",
      );
      fails(
        () => texts.forward(none, { classes: ids(1) }),
        "LlamaGen.hidden: expected a condition without classes, got Tensor int64[1] cpu. This policy has no class embedding.",
      );
      fails(
        () => texts.forward(none, { features: randn([1, 120, 6]) }),
        "condition.features: expected shape [1, 5, 6], got Tensor float32[1, 120, 6] cpu. " +
          "Pad on the left with isReal false, or cut.",
      );
      fails(
        () => images.forward(none, { classes: ids(7) }),
        "condition.classes: expected classes in [0, 6], got 7. 6 itself is the null class.",
      );
      fails(
        () => images.forward(none, { classes: ids(1, 2) }),
        "LlamaGen.hidden: expected condition.classes of shape [1], one row per sequence, got Tensor int64[2] cpu.",
      );
    }),
  ));

test("without a graph, a forward takes what one block takes, however many there are", () => {
  const peak = (nLayer: number): number =>
    tidy(() => {
      const model = new LlamaGen({ ...SIZE, nLayer, dim: 64, ffnDim: 192 });
      model.eval();
      const tokens = codes(...Array.from({ length: 64 }, () => [3, 4, 5, 6, 7, 8, 9]));
      const classes = tensor(Array(64).fill(1), { dtype: "int64" });
      const before = memory({ resetPeak: true }).bytes;
      noGrad(() => tidy(() => model.hidden(tokens, { classes })));
      return memory().peakBytes - before;
    });
  const [few, many] = [peak(1), peak(6)];
  const between = 64 * 8 * 64 * 4; // what goes from one block to the next
  const scalars = 1024; // an operator's own, some at a time; one block's temporaries are 3.3 MB
  assert.ok(many <= few + 5 * between + scalars, `${few} for one block, ${many} for six`);
});
