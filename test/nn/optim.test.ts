import assert from "node:assert/strict";
import { test } from "node:test";
import { AdamW, type AdamWState, clipGradNorm, Linear, Parameter } from "../../src/nn/index.js";
import { call, ones, randn, type Tensor, tensor, zeros } from "../../src/torch/index.js";
import { expectClose } from "../support/close.js";
import { noLeak } from "../support/leak.js";
import { golden, under } from "./golden.js";

const exact = { rtol: 0, atol: 0 };
const adamw = golden("adamw");

interface Run {
  params: Record<string, Parameter>;
  optimizer: AdamW;
  /** Set the gradients of a step of the golden run, which leaves out b in every third step and c in all. */
  setGradients(step: number): void;
}

/** The run of scripts/golden/nn.py: two groups, their own numbers, a schedule. */
function start(dtype: string, options: { fused?: boolean } = {}): Run {
  const values = under(adamw, dtype);
  const params: Record<string, Parameter> = {};
  for (const [name, value] of Object.entries(under(values, "start")))
    params[name] = new Parameter(value.clone());
  const named = (names: string): [string, Parameter][] =>
    [...names].map((name) => [name, params[name] as Parameter]);
  const optimizer = new AdamW(
    [
      { params: named("abc"), weightDecay: 0.3 },
      { params: named("de"), lr: 1e-2, betas: [0.8, 0.9], eps: 1e-3 },
    ],
    { lr: 3e-2, ...options },
  );
  const setGradients = (step: number): void => {
    for (const [name, gradients] of Object.entries(under(values, "grads"))) {
      const parameter = params[name] as Parameter;
      parameter.grad = name === "b" && step % 3 === 0 ? null : gradients.select(0, step).clone();
    }
  };
  return { params, optimizer, setGradients };
}

const advance = ({ optimizer, setGradients }: Run, from: number, to: number): void => {
  for (let step = from; step < to; step++) {
    setGradients(step);
    optimizer.step({ lrFactor: 1 / (1 + step) });
  }
};

for (const dtype of ["float32", "float64"]) {
  for (const fused of [true, false]) {
    test(`20 steps in ${dtype} are PyTorch's, ${fused ? "fused" : "by the formula"}`, () => {
      const run = start(dtype, { fused });
      const close = dtype === "float64" ? { rtol: 1e-12, atol: 1e-14 } : { rtol: 1e-5, atol: 1e-6 };
      const wanted = under(adamw, dtype);
      for (let step = 0; step < 20; step++) {
        advance(run, step, step + 1);
        for (const [name, values] of Object.entries(under(wanted, "values"))) {
          expectClose(run.params[name] as Tensor, values.select(0, step), {
            ...close,
            where: `${name} at ${step}`,
          });
        }
      }
      expectClose(run.params.c as Tensor, wanted["start/c"] as Tensor, exact);
      const { tensors } = run.optimizer.stateDict();
      const state = under(wanted, "state");
      assert.deepEqual(Object.keys(tensors).sort(), Object.keys(state).sort());
      for (const [key, value] of Object.entries(state)) {
        expectClose(tensors[key] as Tensor, value, { ...close, where: key });
      }
    });
  }
}

test("worked by hand: the first step moves by the learning rate, and the decay is decoupled", () => {
  const parameter = new Parameter(tensor([2, -2], { dtype: "float64" }));
  using optimizer = new AdamW([parameter], { lr: 0.1, weightDecay: 0.5, eps: 0 });
  parameter.grad = tensor([1e3, 1e-3], { dtype: "float64" });
  optimizer.step();
  expectClose(parameter, tensor([2 * 0.95 - 0.1, -2 * 0.95 - 0.1], { dtype: "float64" }), { rtol: 1e-14 });
});

test("lrFactor scales step and decay alike, and 0 leaves weights alone", () => {
  const parameter = new Parameter(tensor([2], { dtype: "float64" }));
  using optimizer = new AdamW([parameter], { lr: 0.2, weightDecay: 0.5, eps: 0 });
  parameter.grad = tensor([1], { dtype: "float64" });
  optimizer.step({ lrFactor: 0 });
  expectClose(parameter, tensor([2], { dtype: "float64" }), exact);
  optimizer.step({ lrFactor: 0.5 });
  expectClose(parameter, tensor([2 * 0.95 - 0.1], { dtype: "float64" }), { rtol: 1e-14 });
  assert.throws(() => optimizer.step({ lrFactor: -1 }), {
    message: "AdamW.step: expected a finite lrFactor of at least 0, got -1.",
  });
  assert.throws(() => optimizer.step({ lrFactor: Number.NaN }), RangeError);
});

test("a resumed run is the uninterrupted one, bit for bit", () => {
  const whole = start("float32");
  advance(whole, 0, 20);
  const first = start("float32");
  advance(first, 0, 8);
  const second = start("float32");
  for (const [name, parameter] of Object.entries(first.params))
    second.params[name]?.detach().copy_(parameter);
  const { groups, tensors } = first.optimizer.stateDict();
  const restored: AdamWState = { groups: JSON.parse(JSON.stringify(groups)), tensors };
  const report = second.optimizer.loadStateDict(restored);
  assert.deepEqual(report, { missing: ["c"], unexpected: [] });
  advance(second, 8, 20);
  for (const [name, parameter] of Object.entries(whole.params)) {
    expectClose(second.params[name] as Tensor, parameter, { ...exact, where: name });
  }
});

test("a state brings its hyperparameters, unless this optimizer's own are to be kept", () => {
  const configured = { lr: 0.5, betas: [0.1, 0.2] as const, eps: 1e-3, weightDecay: 0.25 };
  const w = ones([2], { requiresGrad: true });
  const saved = new AdamW([w], { lr: 0.125 });
  w.grad = ones([2]);
  saved.step();
  const state = saved.stateDict();
  const numbers = (optimizer: AdamW): unknown => {
    const { lr, betas, eps, weightDecay } = optimizer.groups[0] as AdamW["groups"][number];
    return { lr, betas: [...betas], eps, weightDecay };
  };
  const plain = new AdamW([w], configured);
  plain.loadStateDict(state);
  assert.deepEqual(numbers(plain), { lr: 0.125, betas: [0.9, 0.999], eps: 1e-8, weightDecay: 0.01 });
  const kept = new AdamW([w], configured);
  kept.loadStateDict(state, { keepHyperparameters: true });
  assert.deepEqual(numbers(kept), { ...configured, betas: [0.1, 0.2] });
  const moments = kept.stateDict().tensors;
  for (const [name, value] of Object.entries(state.tensors))
    expectClose(moments[name] as Tensor, value, exact);
  assert.throws(
    () => kept.loadStateDict({ tensors: state.tensors, groups: [] }, { keepHyperparameters: true }),
    /1 groups/,
  );
});

test("groups come with the state, and may be changed between steps", () => {
  const a = start("float32");
  const b = start("float32");
  for (const group of a.optimizer.groups) group.lr *= 2;
  const [group] = a.optimizer.stateDict().groups;
  assert.deepEqual(group, {
    lr: 0.06,
    betas: [0.9, 0.999],
    eps: 1e-8,
    weightDecay: 0.3,
    params: ["a", "b", "c"],
  });
  b.optimizer.loadStateDict(a.optimizer.stateDict());
  assert.deepEqual(
    b.optimizer.groups.map(({ lr }) => lr),
    [0.06, 0.02],
  );
  Object.assign(b.optimizer.groups[0] as object, { lr: -1 });
  assert.throws(() => b.optimizer.step(), { message: "AdamW: expected a finite lr of at least 0, got -1." });
});

test("loading one's own state keeps it", () => {
  const run = start("float32");
  advance(run, 0, 3);
  noLeak(() => run.optimizer.loadStateDict(run.optimizer.stateDict()));
  const other = start("float32");
  advance(other, 0, 3);
  advance(run, 3, 4);
  advance(other, 3, 4);
  expectClose(run.params.a as Tensor, other.params.a as Tensor, exact);
});

test("a state that does not fit is refused, and changes nothing", () => {
  const run = start("float32");
  advance(run, 0, 2);
  const { tensors, groups } = run.optimizer.stateDict();
  const before = Object.entries(tensors).map(([name, value]) => [name, value.clone()] as const);
  const refuse = (state: Partial<AdamWState>, message: string, options = {}): void => {
    const load = (): unknown => run.optimizer.loadStateDict({ tensors, groups, ...state }, options);
    assert.throws(load, { message: `AdamW.loadStateDict${message}` });
  };
  const { "a.exp_avg": left, ...rest } = tensors;
  assert.ok(left);
  refuse({ tensors: rest }, ": missing a.exp_avg.");
  refuse({ tensors: rest }, ": missing a.exp_avg.", { strict: false });
  refuse({ tensors: { ...tensors, "z.step": zeros([]) } }, ": unexpected z.step.");
  const wrong = { ...tensors, "a.exp_avg": zeros([3, 4]) };
  refuse({ tensors: wrong }, ": a.exp_avg: expected shape [4, 3], got [3, 4].");
  refuse({ tensors: wrong }, ": a.exp_avg: expected shape [4, 3], got [3, 4].", { strict: false });
  refuse({ groups: groups.slice(0, 1) }, ": expected 2 groups, got 1.");
  const [first, second] = groups as [AdamWState["groups"][number], AdamWState["groups"][number]];
  const named = (...params: string[]): Partial<AdamWState> => ({ groups: [{ ...first, params }, second] });
  refuse(named("a", "c", "b"), ": groups[0].params[1]: expected b, got c.");
  refuse(named("a", "b"), ": groups[0].params[2]: expected c, got nothing.");
  refuse(named("a", "b", "c", "d"), ": groups[0].params[3]: expected no more parameters, got d.");
  const after = run.optimizer.stateDict().tensors;
  for (const [name, value] of before) expectClose(after[name] as Tensor, value, exact);
});

test("a load that is not strict takes what both sides name, and no numbers", () => {
  const run = start("float32");
  advance(run, 0, 2);
  const { tensors, groups } = run.optimizer.stateDict();
  const a = new Parameter(zeros([4, 3]));
  const fresh = new Parameter(zeros([2]));
  using other = new AdamW(
    [
      ["a", a],
      ["fresh", fresh],
    ],
    { lr: 0.5 },
  );
  const report = other.loadStateDict({ tensors, groups }, { strict: false });
  assert.deepEqual(report.missing, ["fresh"]);
  assert.deepEqual(
    report.unexpected.sort(),
    Object.keys(tensors)
      .filter((key) => !key.startsWith("a."))
      .sort(),
  );
  assert.equal(other.groups[0]?.lr, 0.5);
  expectClose(other.stateDict().tensors["a.exp_avg"] as Tensor, tensors["a.exp_avg"] as Tensor, exact);
  assert.notEqual(other.stateDict().tensors["a.exp_avg"], tensors["a.exp_avg"]);
});

test("parameters without names are numbered over all groups", () => {
  const params = [1, 2, 3].map((size) => new Parameter(ones([size])));
  using optimizer = new AdamW([{ params: params.slice(0, 2) }, { params: params.slice(2) }]);
  for (const parameter of params) parameter.grad = ones(parameter.shape);
  optimizer.step();
  const { tensors, groups } = optimizer.stateDict();
  assert.deepEqual(
    groups.map(({ params }) => params),
    [["0", "1"], ["2"]],
  );
  assert.deepEqual(tensors["2.exp_avg"]?.shape, [3]);
  assert.deepEqual(groups[0], {
    lr: 1e-3,
    betas: [0.9, 0.999],
    eps: 1e-8,
    weightDecay: 0.01,
    params: ["0", "1"],
  });
});

test("a step counts as a write, for packed weights and stale graphs", () => {
  for (const fused of [true, false]) {
    const net = new Linear(2, 1);
    using optimizer = new AdamW(net.parameters(), { fused });
    const version = (): unknown => call("aten::_version", [net.weight]);
    const x = ones([1, 2]).requiresGrad_();
    const y = net.forward(x).sum();
    y.backward(undefined, { retainGraph: true });
    const before = version();
    optimizer.step();
    assert.notEqual(version(), before, `fused ${fused}`);
    assert.throws(() => y.backward(), /modified by an inplace operation/, `fused ${fused}`);
  }
});

test("gradients and state follow a parameter that is laid out otherwise", () => {
  const make = (): Parameter => new Parameter(randn([2, 3, 2, 2]));
  const [a, b] = [make(), make()];
  b.detach().copy_(a);
  using first = new AdamW([a], { lr: 0.1 });
  using second = new AdamW([b], { lr: 0.1 });
  for (let step = 0; step < 4; step++) {
    const gradient = randn([2, 3, 2, 2]);
    a.grad = gradient;
    b.grad = gradient.clone("channels_last");
    if (step === 2) call("aten::set_data", [b, b.detach().clone("channels_last")]);
    first.step();
    second.step();
    expectClose(b, a, { ...exact, where: `step ${step}` });
  }
  assert.deepEqual(second.stateDict().tensors["0.exp_avg"]?.strides, b.strides);
});

test("what cannot be optimized is refused", () => {
  const parameter = new Parameter(ones([1]));
  const refuse = (make: () => unknown, message: string): void => {
    assert.throws(make, { name: "RangeError", message: `AdamW: expected ${message}` });
  };
  refuse(() => new AdamW([]), "at least one parameter, got none.");
  refuse(() => new AdamW([parameter, parameter]), "each parameter once, got 1 a second time.");
  refuse(
    () =>
      new AdamW([
        ["w", parameter],
        ["w", new Parameter(ones([1]))],
      ]),
    "each name once, got w twice.",
  );
  refuse(
    () => new AdamW([parameter.mul(2)]),
    "leaves of the graph, got 0, a computed Tensor float32[1] cpu.",
  );
  refuse(() => new AdamW([parameter], { lr: -1 }), "a finite lr of at least 0, got -1.");
  refuse(
    () => new AdamW([parameter], { weightDecay: Infinity }),
    "a finite weightDecay of at least 0, got Infinity.",
  );
  refuse(() => new AdamW([parameter], { eps: Number.NaN }), "a finite eps of at least 0, got NaN.");
  refuse(() => new AdamW([parameter], { betas: [0.9, 1] }), "two betas in [0, 1), got [0.9, 1].");
  refuse(() => new AdamW([{ params: [parameter], lr: -2 }]), "a finite lr of at least 0, got -2.");
});

test("steps and their end leave nothing behind", () => {
  const run = start("float32");
  advance(run, 0, 2);
  noLeak(() => {
    run.optimizer.step();
    run.optimizer.zeroGrad();
  });
  assert.ok(Object.values(run.params).every(({ grad }) => grad === null));
  const before = run.params.a?.clone() as Tensor;
  run.optimizer.step(); // without gradients there is nothing to do
  expectClose(run.params.a as Tensor, before, exact);
  run.setGradients(1);
  noLeak(() => {
    using optimizer = new AdamW(Object.values(run.params));
    optimizer.step();
  });
});

const gradients = golden("clip");
const withGradients = (): Parameter[] =>
  Object.values(under(gradients, "before")).map((gradient) => {
    const parameter = new Parameter(zeros(gradient.shape, { dtype: gradient.dtype }));
    parameter.grad = gradient.clone();
    return parameter;
  });

test("gradients are clipped as PyTorch clips them", () => {
  const parameters = withGradients();
  const untouched = new Parameter(zeros([3]));
  for (const maxNorm of [100, 0.5]) {
    const norm = noLeak(() => clipGradNorm([...parameters, untouched], maxNorm));
    expectClose(norm, (gradients[`norm/${maxNorm}`] as Tensor).item(), { rtol: 1e-6 });
    for (const [i, gradient] of Object.entries(under(gradients, `after/${maxNorm}`))) {
      expectClose(parameters[Number(i)]?.grad as Tensor, gradient, { rtol: 1e-6, where: `${maxNorm}: ${i}` });
    }
  }
});

test("worked by hand: 3-4-5, and a maximum that is not reached changes no bit", () => {
  const [a, b] = [new Parameter(zeros([])), new Parameter(zeros([1]))] as const;
  a.grad = tensor(3);
  b.grad = tensor([-4]);
  assert.equal(clipGradNorm([a, b], Infinity), 5);
  assert.equal(clipGradNorm([a, b], 5.1), 5);
  expectClose(a.grad as Tensor, 3, exact);
  assert.equal(clipGradNorm([a, b], 1), 5);
  expectClose(b.grad as Tensor, [-0.8]);
  assert.equal(clipGradNorm([new Parameter(zeros([1]))], 1), 0);
});

test("narrow gradients are measured in float32", () => {
  const parameter = new Parameter(zeros([2], { dtype: "float16" }));
  parameter.grad = tensor([3e4, 4e4], { dtype: "float16" });
  expectClose(clipGradNorm([parameter], Infinity), 5e4, { rtol: 1e-4 });
  const wide = new Parameter(zeros([2], { dtype: "bfloat16" }));
  wide.grad = tensor([1, 0.125], { dtype: "bfloat16" });
  expectClose(clipGradNorm([wide], Infinity), Math.hypot(1, 0.125), { rtol: 1e-6 });
});

test("a norm that is no number is reported, and the gradients stay for a look", () => {
  for (const bad of [Number.NaN, Infinity]) {
    const parameter = new Parameter(zeros([2]));
    parameter.grad = tensor([bad, 8]);
    const norm = clipGradNorm([parameter], 1);
    assert.ok(Object.is(norm, bad), String(norm));
    expectClose((parameter.grad as Tensor).select(0, 1), 8, exact);
  }
  assert.throws(() => clipGradNorm([], 0), { message: "clipGradNorm: expected a maxNorm above 0, got 0." });
});
