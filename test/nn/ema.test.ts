import assert from "node:assert/strict";
import { test } from "node:test";
import { BatchNorm2d, Ema, Linear, Sequential } from "../../src/nn/index.js";
import { call, noGrad, ones, type Tensor, tensor } from "../../src/torch/index.js";
import { expectClose } from "../support/close.js";
import { noLeak } from "../support/leak.js";
import { golden, under } from "./golden.js";

const exact = { rtol: 0, atol: 0 };

/** A network whose parameter is moved by hand. */
function one(value: number): Linear {
  const net = new Linear(1, 1, { bias: false });
  net.loadStateDict({ weight: tensor([[value]]) });
  return net;
}

test("averages are those of PyTorch's AveragedModel, and of the formula with warm-up", () => {
  const wanted = golden("ema");
  const model = new Linear(4, 3);
  model.loadStateDict(under(wanted, "start"));
  using plain = new Ema(model, { decay: 0.9 });
  using warmed = new Ema(model, { decay: 0.5, warmup: true });
  const steps = under(wanted, "steps");
  for (let t = 0; t < 12; t++) {
    for (const [name, parameter] of model.namedParameters()) {
      noGrad(() => parameter.copy_((steps[name] as Tensor).select(0, t)));
    }
    noLeak(() => plain.update());
    warmed.update();
  }
  assert.equal(plain.updates, 12);
  for (const [name, average] of Object.entries(under(wanted, "average"))) {
    expectClose(plain.stateDict().tensors[name] as Tensor, average, { rtol: 1e-6, atol: 1e-7, where: name });
  }
  for (const [name, average] of Object.entries(under(wanted, "warmed"))) {
    expectClose(warmed.stateDict().tensors[name] as Tensor, average, { rtol: 1e-6, atol: 1e-7, where: name });
  }
});

test("worked by hand: decay 3/4 from 8 towards 16", () => {
  const net = one(8);
  const ema = new Ema(net, { decay: 0.75 });
  noGrad(() => net.weight.fill_(16));
  ema.update();
  expectClose(ema.stateDict().tensors.weight as Tensor, [[10]], exact);
  const warmed = new Ema(net, { decay: 0.75, warmup: true });
  noGrad(() => net.weight.fill_(26));
  warmed.update(); // 16 + (26 - 16) * 9 / 10
  expectClose(warmed.stateDict().tensors.weight as Tensor, [[25]]);
});

test("withAverage puts the averages in and the parameters back, bit for bit", () => {
  const net = new Linear(3, 3);
  using ema = new Ema(net, { decay: 0.5 });
  const start = net.weight.clone();
  noGrad(() => net.weight.mul_(3.1));
  const trained = net.weight.clone();
  const version = (): number => call("aten::_version", [net.weight]) as number;
  const before = version();
  const y = ema.withAverage(() => {
    expectClose(net.weight, start, exact);
    assert.ok(version() > before); // whoever packs weights must see it
    return net.forward(ones([1, 3]));
  });
  assert.deepEqual(y.shape, [1, 3]);
  expectClose(net.weight, trained, exact);
  expectClose(ema.stateDict().tensors.weight as Tensor, start, exact);
  noLeak(() => ema.withAverage(() => 1));
});

test("the parameters come back when the work throws", () => {
  const net = one(1);
  using ema = new Ema(net);
  noGrad(() => net.weight.fill_(2));
  const fail = (): never => {
    throw new Error("no samples");
  };
  assert.throws(() => ema.withAverage(fail), { message: "no samples" });
  expectClose(net.weight, [[2]], exact);
  expectClose(
    ema.withAverage(() => net.weight.item()),
    1,
    exact,
  );
});

test("work that is not done when it returns is refused", () => {
  const net = one(1);
  using ema = new Ema(net);
  noGrad(() => net.weight.fill_(2));
  assert.throws(() => ema.withAverage(async () => 1), {
    name: "TypeError",
    message: "Ema.withAverage: expected a function that returns its result, got a Promise.",
  });
  expectClose(net.weight, [[2]], exact);
});

test("inside withAverage the averages are not there to update, save or swap", () => {
  const net = one(1);
  using ema = new Ema(net);
  const state = ema.stateDict();
  ema.withAverage(() => {
    const uses = {
      update: () => ema.update(),
      stateDict: () => ema.stateDict(),
      loadStateDict: () => ema.loadStateDict(state),
      withAverage: () => ema.withAverage(() => 1),
    };
    for (const [name, use] of Object.entries(uses)) {
      assert.throws(use, { message: `Ema.${name}: expected a call outside withAverage, got one inside it.` });
    }
  });
});

test("an average is not squeezed through a narrower parameter", () => {
  const net = one(1);
  using ema = new Ema(net);
  net.to({ dtype: "bfloat16" });
  assert.throws(() => ema.withAverage(() => 1), {
    message: "Ema.withAverage: weight: expected float32, got bfloat16. Start a new Ema.",
  });
});

test("state goes out and in; what does not fit changes nothing", () => {
  const net = one(4);
  using ema = new Ema(net, { decay: 0.5, warmup: true });
  noGrad(() => net.weight.fill_(8));
  ema.update();
  const other = one(0);
  using loaded = new Ema(other, { decay: 0.5, warmup: true });
  loaded.loadStateDict(ema.stateDict());
  assert.equal(loaded.updates, 1);
  noGrad(() => other.weight.fill_(3));
  noGrad(() => net.weight.fill_(3));
  ema.update();
  loaded.update();
  expectClose(loaded.stateDict().tensors.weight as Tensor, ema.stateDict().tensors.weight as Tensor, exact);
  const load =
    (tensors: Record<string, Tensor>, updates = 2) =>
    () =>
      loaded.loadStateDict({ tensors, updates });
  assert.throws(load({}), { message: "Ema.loadStateDict: missing weight." });
  assert.throws(load({ weight: ones([1, 1]), bias: ones([1]) }), {
    message: "Ema.loadStateDict: unexpected bias.",
  });
  assert.throws(load({ weight: ones([2]) }), {
    message: "Ema.loadStateDict: weight: expected shape [1, 1], got [2].",
  });
  assert.throws(load({ weight: ones([1, 1]) }, -1), {
    message: "Ema.loadStateDict: expected a count of updates, got -1.",
  });
  assert.equal(loaded.updates, 2);
  expectClose(loaded.stateDict().tensors.weight as Tensor, ema.stateDict().tensors.weight as Tensor, exact);
});

test("averages that are loaded enter no graph, whatever they are loaded from", () => {
  const net = one(1);
  using ema = new Ema(net, { decay: 0.5 });
  const loaded = tensor([[3]], { requiresGrad: true });
  ema.loadStateDict({ tensors: { weight: loaded }, updates: 0 });
  const average = ema.stateDict().tensors.weight as Tensor;
  assert.deepEqual([average.requiresGrad, average.isLeaf], [false, true]);
  noGrad(() => loaded.fill_(7));
  ema.update();
  expectClose(average, [[2]], exact);
});

test("only trained parameters are averaged, and a module must have some", () => {
  const net = new Sequential(new Linear(1, 1), new BatchNorm2d(1));
  net.steps[0] instanceof Linear && net.steps[0].requiresGrad_(false);
  using ema = new Ema(net);
  assert.deepEqual(Object.keys(ema.stateDict().tensors), ["1.weight", "1.bias"]);
  assert.throws(() => new Ema(net.requiresGrad_(false)), {
    message: "Ema: expected a module with trained parameters, got one without.",
  });
  assert.throws(() => new Ema(net, { decay: 1.1 }), { message: "Ema: expected a decay in [0, 1], got 1.1." });
  noLeak(() => new Ema(net.requiresGrad_()).dispose());
});
