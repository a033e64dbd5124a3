import assert from "node:assert/strict";
import { test } from "node:test";
import {
  AdamW,
  BatchNorm2d,
  Buffer,
  Conv2d,
  Linear,
  Module,
  Parameter,
  type Readable,
  Sequential,
} from "../../src/nn/index.js";
import { memory, noGrad, ones, randn, type Tensor, tensor, tidy, zeros } from "../../src/torch/index.js";
import { expectClose } from "../support/close.js";
import { noLeak } from "../support/leak.js";

class Block extends Module {
  readonly norm = new BatchNorm2d(2);
  readonly scale = new Parameter(tensor([1, 2]));
}

class Net extends Module {
  readonly pos_embed = new Parameter(zeros([1, 3]));
  readonly mask = new Buffer(ones([2]), { persistent: false });
  readonly embed = new Linear(3, 2, { bias: false });
  readonly blocks = [new Block(), null, new Block()] as const;
  readonly nested = [[new Parameter(zeros([1]))], [], [new Linear(1, 1, { bias: false })]] as const;
  readonly name = "net";
  readonly cache: Tensor = tensor([9]);
  readonly sizes = { width: 3, depths: [1, 2] };
  readonly head: Linear;
  readonly #teacher = new Linear(1, 1);

  constructor() {
    super();
    this.head = new Linear(3, 2);
    this.head.weight.dispose();
    Object.assign(this.head, { weight: this.embed.weight }); // tied
  }

  teacher(): Linear {
    return this.#teacher;
  }
}

const BLOCK_KEYS = [
  "scale",
  "norm.weight",
  "norm.bias",
  "norm.running_mean",
  "norm.running_var",
  "norm.num_batches_tracked",
];
const KEYS = [
  "pos_embed",
  "nested.0.0",
  "embed.weight",
  ...BLOCK_KEYS.map((key) => `blocks.0.${key}`),
  ...BLOCK_KEYS.map((key) => `blocks.2.${key}`),
  "nested.2.0.weight",
  "head.weight",
  "head.bias",
];

test("the state dict has fields, arrays and shared parameters under their names", () => {
  const net = new Net();
  const state = net.stateDict();
  assert.deepEqual(Object.keys(state), KEYS);
  assert.equal(state["head.weight"], state["embed.weight"]);
  assert.equal(state["blocks.2.scale"], net.blocks[2].scale);
});

test("parameters and buffers come once each", () => {
  const net = new Net();
  const trained = KEYS.filter((key) => !/running|tracked/.test(key) && key !== "head.weight");
  assert.deepEqual(
    net.namedParameters().map(([name]) => name),
    trained,
  );
  assert.equal(new Set(net.parameters()).size, trained.length);
  assert.deepEqual(
    net.buffers().map(({ shape }) => shape),
    [[2], [2], [2], [], [2], [2], []],
  );
});

test("modules come once each with their paths", () => {
  const shared = new Linear(1, 1);
  const net = new Sequential(shared, new Sequential(shared, new Linear(1, 1)));
  assert.deepEqual(
    [...net.namedModules()].map(([name]) => name),
    ["", "0", "1", "1.1"],
  );
  assert.deepEqual(net.modules().length, 4);
  assert.deepEqual(Object.keys(net.stateDict()), [
    "0.weight",
    "0.bias",
    "1.0.weight",
    "1.0.bias",
    "1.1.weight",
    "1.1.bias",
  ]);
  assert.deepEqual(
    net.namedParameters().map(([name]) => name),
    ["0.weight", "0.bias", "1.1.weight", "1.1.bias"],
  );
});

test("a parameter where no walk would find it is an error", () => {
  class Hidden extends Module {
    heads: unknown;
  }
  const net = new Hidden();
  const what = "expected parameters, buffers and modules in fields and arrays alone";
  const remedy = "Hold what is no part of the network in a #private field.";
  for (const [heads, kind] of [
    [{ a: 1, b: new Linear(1, 1) }, "a plain object"],
    [{ list: [new Parameter(zeros([1]))] }, "a plain object"],
    [new Map([["a", new Buffer(zeros([1]))]]), "a Map"],
    [new Set([new Linear(1, 1)]), "a Set"],
  ] as const) {
    net.heads = heads;
    const message = `Hidden.heads: ${what}, got ${kind} that holds one. ${remedy}`;
    assert.throws(() => net.stateDict(), { name: "RangeError", message });
    net.heads = [heads];
    assert.throws(() => net.parameters(), { message: message.replace("heads:", "heads.0:") });
  }
  net.heads = { config: { width: 3 }, empty: null, tensor: zeros([1]) };
  assert.deepEqual(net.stateDict(), {});
});

test("a module that contains itself is an error", () => {
  class Child extends Module {
    parent: Module | null = null;
  }
  class Parent extends Module {
    readonly child = new Child();
  }
  const net = new Parent();
  net.child.parent = net;
  assert.throws(() => net.stateDict(), {
    message:
      "Parent.child.parent: expected a module that does not contain itself, got Parent. " +
      "Hold what is no part of the network in a #private field.",
  });
  assert.equal(net.modules().length, 2);
});

test("loading copies into the same objects, across dtypes", () => {
  const net = new Sequential(new Linear(2, 1), new BatchNorm2d(1));
  const { weight } = net.steps[0] as Linear;
  const state = Object.fromEntries(
    Object.entries(net.stateDict()).map(([name, value], i) => [
      name,
      ones(value.shape, { dtype: "float64" }).mul(i),
    ]),
  );
  const report = net.loadStateDict(state);
  assert.deepEqual(report, { missing: [], unexpected: [] });
  assert.equal(net.stateDict()["0.weight"], weight);
  expectClose(weight, tensor([[0, 0]]));
  expectClose(net.stateDict()["1.running_var"] as Tensor, tensor([5]));
  expectClose(net.stateDict()["1.num_batches_tracked"] as Tensor, tensor(6, { dtype: "int64" }));
  assert.ok(weight.requiresGrad && weight.isLeaf);
});

test("values that are still in a file are read one at a time", () => {
  const net = new Linear(2, 1);
  let open = 0;
  const lazy = (value: number, ...shape: number[]): Readable => ({
    shape,
    read: () => {
      open = Math.max(open, memory().tensors);
      return ones(shape).mul(value);
    },
  });
  const before = memory().tensors;
  noLeak(() => net.loadStateDict({ weight: lazy(3, 1, 2), bias: lazy(4, 1) }));
  assert.equal(open, before);
  expectClose(net.weight, tensor([[3, 3]]));
  expectClose(net.bias as Tensor, tensor([4]));
});

test("a strict load says everything that does not fit, and changes nothing", () => {
  const net = new Sequential(new Linear(2, 2), new Linear(2, 3));
  const before = Object.values(net.stateDict()).map((value) => value.clone());
  const state = {
    "0.weight": ones([2, 2]),
    "0.bias": ones([3]),
    "1.weight": ones([2, 3]),
    "2.bias": ones([1]),
  };
  assert.throws(() => net.loadStateDict(state), {
    name: "Error",
    message:
      "Sequential.loadStateDict: another shape 0.bias ([2] here, [3] there), 1.weight ([3, 2] here, [2, 3] there); " +
      "missing 1.bias; unexpected 2.bias.",
  });
  for (const [i, value] of Object.values(net.stateDict()).entries()) expectClose(value, before[i] as Tensor);
});

test("long lists are cut short", () => {
  const net = new Sequential(...Array.from({ length: 4 }, () => new Linear(1, 1)));
  assert.throws(() => net.loadStateDict({ "0.weight": ones([1, 1]) }), {
    message: "Sequential.loadStateDict: missing 0.bias, 1.weight, 1.bias, 2.weight, 2.bias (+2 more).",
  });
});

test("a load that is not strict reports, but never passes other shapes or nothing at all", () => {
  const net = new Linear(2, 1);
  const report = net.loadStateDict({ weight: ones([1, 2]), extra: ones([1]) }, { strict: false });
  assert.deepEqual(report, { missing: ["bias"], unexpected: ["extra"] });
  expectClose(net.weight, tensor([[1, 1]]));
  assert.throws(() => net.loadStateDict({ weight: ones([2, 1]) }, { strict: false }), {
    message: "Linear.loadStateDict: another shape weight ([1, 2] here, [2, 1] there).",
  });
  assert.throws(() => net.loadStateDict({ "module.weight": ones([1, 2]) }, { strict: false }), {
    message: "Linear.loadStateDict: missing weight, bias; unexpected module.weight.",
  });
});

test("a value that is no live tensor is refused before anything is copied", () => {
  const net = new Linear(2, 1);
  const before = net.weight.clone();
  const freed = ones([1]);
  assert.deepEqual(freed.shape, [1]); // known, and remembered after the end
  freed.dispose();
  assert.throws(() => net.loadStateDict({ weight: ones([1, 2]), bias: freed }), {
    name: "TypeError",
    message: "Linear.loadStateDict: bias: expected a live tensor, got Tensor (freed).",
  });
  const wrong = { weight: ones([1, 2]), bias: [1] } as unknown as Record<string, Tensor>;
  assert.throws(() => net.loadStateDict(wrong), {
    message: "Linear.loadStateDict: bias: expected a live tensor, got [1].",
  });
  expectClose(net.weight, before);
});

test("to changes dtype and layout and keeps objects, gradients and the optimizer's hold", () => {
  const net = new Sequential(new Conv2d(3, 4, 2), new BatchNorm2d(4));
  const conv = net.steps[0] as Conv2d;
  const { weight } = conv;
  const optimizer = new AdamW(net.parameters(), { lr: 0.1 });
  const run = (x: Tensor): void => {
    optimizer.zeroGrad();
    net.forward(x).square().sum().backward();
    optimizer.step();
  };
  run(randn([2, 3, 4, 4]));
  noLeak(() => net.to({ dtype: "float64" }));
  assert.equal(conv.weight, weight);
  assert.equal(weight.dtype, "float64");
  assert.equal(weight.grad?.dtype, "float64");
  assert.ok(weight.requiresGrad && weight.isLeaf);
  assert.deepEqual(
    net.buffers().map(({ dtype }) => dtype),
    ["float64", "float64", "int64"],
  );
  const before = weight.clone();
  run(randn([2, 3, 4, 4], { dtype: "float64" }));
  assert.ok(weight.sub(before).abs().amax().item() > 1e-3);
  net.to({ memoryFormat: "channels_last" });
  assert.ok(weight.isContiguous("channels_last") && !weight.isContiguous());
  assert.deepEqual(weight.shape, [4, 3, 2, 2]);
  run(randn([2, 3, 4, 4], { dtype: "float64" }));
  assert.throws(() => net.to({ dtype: "int64" }), {
    name: "RangeError",
    message: "Module.to: expected a floating-point dtype, got int64.",
  });
});

test("to without a change keeps the values", () => {
  const net = new Linear(2, 2);
  const before = net.weight.clone();
  net.to({ device: "cpu", dtype: "float32" });
  expectClose(net.weight, before, { rtol: 0, atol: 0 });
});

test("training behaviour, frozen parameters and gradients are switched for the whole tree", () => {
  const net = new Net();
  net.eval();
  assert.ok(net.modules().every(({ training }) => !training));
  net.blocks[0].train();
  assert.deepEqual([net.training, net.blocks[0].norm.training, net.blocks[2].training], [false, true, false]);
  net.requiresGrad_(false);
  assert.ok(net.parameters().every(({ requiresGrad }) => !requiresGrad));
  net.requiresGrad_();
  net.embed
    .forward(ones([1, 3]))
    .sum()
    .backward();
  assert.notEqual(net.head.weight.grad, null);
  net.zeroGrad();
  assert.ok(net.parameters().every(({ grad }) => grad === null));
  assert.ok(net.teacher().training); // no part of the network
});

test("dispose frees every parameter and buffer, and the memory with them", () => {
  const { bytes } = memory();
  const net = tidy(() => new Sequential(new Linear(512, 512), new BatchNorm2d(4)));
  assert.ok(memory().bytes >= bytes + 512 * 512 * 4);
  const all = Object.values(net.stateDict());
  net.dispose();
  assert.ok(all.every(({ isDisposed }) => isDisposed));
  assert.equal(memory().bytes, bytes);
  noLeak(() => {
    using short = tidy(() => new Net());
    short.teacher().dispose();
    short.cache.dispose();
  });
});

test("a parameter shares the memory of its data and is no part of any graph", () => {
  const data = tensor([1, 2]);
  const parameter = new Parameter(data);
  noGrad(() => data.mul_(2));
  expectClose(parameter, tensor([2, 4]));
  const computed = new Parameter(parameter.mul(3), { requiresGrad: false });
  assert.ok(computed.isLeaf && !computed.requiresGrad);
  const kept = tidy(() => new Parameter(tensor([5])));
  expectClose(kept, tensor([5]));
});

test("a sequence applies layers and functions in order", () => {
  const net = new Sequential(
    (x) => x.add(1),
    new Linear(1, 1),
    (x) => x.mul(10),
  );
  net.loadStateDict({ "1.weight": tensor([[2]]), "1.bias": tensor([3]) });
  expectClose(net.forward(tensor([[4]])), [[130]]);
  assert.equal(net.steps.length, 3);
});

test("integers and complex numbers are no weights, in memory or in a file", () => {
  const net = new Linear(2, 1, { bias: false });
  const read = (): Tensor => ones([1, 2], { dtype: "int64" });
  const given: Record<string, Tensor | Readable>[] = [
    { weight: ones([1, 2], { dtype: "int64" }) },
    { weight: ones([1, 2], { dtype: "bool" }) },
    { weight: ones([1, 2], { dtype: "complex64" }) },
    { weight: { shape: [1, 2], dtype: "int64", read: () => assert.fail("not read") } },
    { weight: { shape: [1, 2], read } },
  ];
  for (const state of given) {
    assert.throws(() => net.loadStateDict(state), /Linear\.loadStateDict: weight: expected floating-point/);
  }
  for (const dtype of ["float64", "float16", "bfloat16"] as const) {
    net.loadStateDict({ weight: ones([1, 2], { dtype }) });
  }
  assert.deepEqual(net.weight.toList(), [[1, 1]]);
});
