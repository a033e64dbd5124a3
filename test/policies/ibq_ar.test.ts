/** IBQ's generator: published keys, PyTorch's numbers, decoding step by step, initial values. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { init } from "../../src/nn/index.js";
import { IbqAr, ibqArPresets } from "../../src/policies/index.js";
import { manualSeed, noGrad, randn, type Tensor, tensor, tidy } from "../../src/torch/index.js";
import { noLeak } from "../support/leak.js";
import {
  checkCheckpointing,
  checkGolden,
  checkGroups,
  checkIncremental,
  publishedShapes,
  shapesOf,
  withGolden,
} from "./support.js";

const SIZE = { vocabSize: 20, blockSize: 16, nLayer: 2, nHead: 2, nEmbd: 16, ffnDim: 24, classNum: 6 };
const ids = (...list: number[]): Tensor => tensor(list, { dtype: "int64" });
const codes = (...rows: number[][]): Tensor => tensor(rows, { dtype: "int64" });

test("the state dict has the published keys and shapes, in their order", () =>
  noLeak(() => {
    using model = init.skipInit(() => new IbqAr({ vocabSize: 16384, blockSize: 256, ...ibqArPresets.B }));
    const published = publishedShapes("ibq_ar_B_transformer.tsv");
    const own = published.map(([key, shape]) => [key.replace(/^transformer\./, ""), shape]);
    assert.deepEqual(shapesOf(model), own);
  }));

test("presets have the published numbers of parameters", () => {
  const counts = Object.entries(ibqArPresets).map(([name, { nLayer, nHead, nEmbd }]) => {
    const size = { vocabSize: 16384, blockSize: 256, nHead, nEmbd };
    using model = init.skipInit(() => new IbqAr({ ...size, nLayer: 1 }));
    const sizes = model.namedParameters().map(([key, { numel }]) => [key, numel] as const);
    const layer = sizes.filter(([key]) => key.startsWith("blocks.")).reduce((sum, [, n]) => sum + n, 0);
    const rest = sizes.filter(([key]) => !key.startsWith("blocks.")).reduce((sum, [, n]) => sum + n, 0);
    return [name, ((rest + nLayer * layer) / 1e6).toFixed(1)] as const;
  });
  assert.deepEqual(Object.fromEntries(counts), { B: "343.0", L: "649.6", XL: "1076.1", XXL: "2063.3" });
});

test("logits and gradients are PyTorch's", () => withGolden("ibq_ar", checkGolden));
test("step by step is teacher-forced", () => withGolden("ibq_ar", checkIncremental));
test("a group shares its prefill", () => withGolden("ibq_ar", checkGroups));
test("checkpointing changes no gradient", () => withGolden("ibq_ar", checkCheckpointing));

test("initial values are the published ones: gates nearly silent, equal logits", () => {
  manualSeed(3);
  using model = new IbqAr({ ...SIZE, nEmbd: 128, vocabSize: 200, alng: 1e-2 });
  tidy(() => {
    const std = (key: string, part?: [start: number, length: number]): number => {
      const value = model.stateDict()[key] as Tensor;
      return (part ? value.narrow(0, ...part) : value).std().item();
    };
    const near = (value: number, wanted: number): void => {
      assert.ok(Math.abs(value / wanted - 1) < 0.03, `${value} is near ${wanted}`);
    };
    near(std("blocks.1.ada_lin.1.weight", [0, 256]), 2e-4);
    near(std("blocks.1.ada_lin.1.weight", [256, 512]), 0.01);
    near(std("head_nm.ada_lin.1.weight"), 0.01);
    near(std("blocks.0.attention.wqkv.weight"), 0.02);
    near(std("tok_emb.weight"), 0.02);
    assert.equal(std("blocks.1.ada_lin.1.bias"), 0);
    assert.equal(model.head.weight.abs().amax().item(), 0);
  });
});

test("dropout acts in training alone, each rate of it", () =>
  tidy(() => {
    const rates = { tokenDrop: 0, attnDropoutP: 0, residDropoutP: 0, ffnDropoutP: 0, dropPathRate: 0 };
    for (const name of Object.keys(rates)) {
      manualSeed(2);
      using model = new IbqAr({ ...SIZE, ...rates, alng: 1, [name]: 0.5 });
      model.head.weight.detach().copy_(randn([20, 16]));
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
    const still = { tokenDrop: 0, ffnDropoutP: 0 };
    using deep = new IbqAr({ ...SIZE, ...still, dropPathRate: 1 - 1e-7, alng: 1 });
    noGrad(() => deep.head.weight.copy_(randn([20, 16])));
    using shallow = new IbqAr({ ...SIZE, ...still, nLayer: 1 });
    const known = Object.entries(deep.stateDict()).filter(([key]) => !key.startsWith("blocks.1."));
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
      using model = new IbqAr(SIZE);
      const none = codes([]).reshape(1, 0);
      assert.throws(() => new IbqAr({ ...SIZE, blockSize: 15 }), {
        message: "IbqAr: expected a square number as blockSize, got 15. 256 codes are a grid of 16 by 16.",
      });
      assert.throws(() => model.forward(none, { features: randn([1, 5, 6]) }), {
        message:
          "IbqAr.hidden: expected a condition without features, got Tensor float32[1, 5, 6] cpu. " +
          "Build the policy for features to give it some.",
      });
      assert.throws(() => model.forward(none, { classes: ids(7) }), {
        message: "condition.classes: expected classes in [0, 6], got 7. 6 itself is the null class.",
      });
    }),
  ));
