import assert from "node:assert/strict";
import { test } from "node:test";
import * as nn from "../../src/nn/index.js";
import { init } from "../../src/nn/index.js";
import { manualSeed, type Tensor } from "../../src/torch/index.js";
import { expectClose } from "../support/close.js";
import { golden } from "./golden.js";

test("one seed gives PyTorch's initial values, module after module", () => {
  const wanted = golden("init");
  manualSeed(7);
  const modules = {
    linear: new nn.Linear(6, 4),
    conv: new nn.Conv2d(4, 6, [3, 2], { groups: 2 }),
    embedding: new nn.Embedding(5, 3),
    linear_no_bias: new nn.Linear(3, 5, { bias: false }),
    layer_norm: new nn.LayerNorm(4),
  };
  const drawn: Record<string, Tensor> = {
    xavier: init.xavierUniform([4, 3, 2, 2], 0.5),
    kaiming: init.kaimingUniform([4, 6], 1),
    normal: init.normal([4, 5], 0.5, 0.02),
    uniform: init.uniform([17], -2, 3),
  };
  for (const [key, module] of Object.entries(modules)) {
    for (const [name, value] of Object.entries(module.stateDict())) drawn[`${key}.${name}`] = value;
  }
  for (const [name, value] of Object.entries(wanted)) {
    expectClose(drawn[name] as Tensor, value, { rtol: 1e-6, atol: 0, where: name });
  }
});

test("skipInit draws nothing", () => {
  manualSeed(1);
  const first = init.uniform([3], 0, 1);
  manualSeed(1);
  init.skipInit(() => new nn.Sequential(new nn.Linear(8, 8), new nn.Conv2d(2, 2, 3), new nn.Embedding(4, 4)));
  expectClose(init.uniform([3], 0, 1), first, { rtol: 0, atol: 0 });
});

test("skipInit ends when building throws", () => {
  const build = (): never => {
    throw new Error("no such model");
  };
  assert.throws(() => init.skipInit(build), { message: "no such model" });
  manualSeed(1);
  const first = init.uniform([3], 0, 1);
  manualSeed(1);
  expectClose(init.uniform([3], 0, 1), first, { rtol: 0, atol: 0 });
  expectClose(init.ones([2]), [1, 1]);
});
