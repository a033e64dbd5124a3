/** A network in training: its updates, its average, its state. */
import assert from "node:assert/strict";
import { test } from "node:test";
import type { OptimizerSection } from "../../src/config/resolve.js";
import { AdamW, clipGradNorm, Dropout, Ema, Linear, Module, schedules } from "../../src/nn/index.js";
import { manualSeed, noGrad, type Tensor, tensor, tidy } from "../../src/torch/index.js";
import { FitNetwork } from "../../src/trainers/network.js";
import { expectClose } from "../support/close.js";

class Net extends Module {
  readonly first: Linear;
  readonly drop: Dropout;
  /** The same weights under a second name. */
  readonly again: Linear;
  readonly frozen: Linear;

  constructor() {
    super();
    manualSeed(3);
    this.first = new Linear(2, 2);
    this.drop = new Dropout(0.5);
    this.again = this.first;
    this.frozen = new Linear(1, 1);
    this.frozen.requiresGrad_(false);
  }
}

const optimizer: OptimizerSection = {
  lr: 0.1,
  betas: [0.9, 0.95],
  eps: 1e-8,
  weightDecay: 0.5,
  schedule: "linear",
  warmup: 0.2,
  finalLr: 0.1,
  maxGradNorm: 1,
};

/** Give the network the same gradient each time, of norm 5. */
function backward(net: Net): void {
  net.first.weight.grad = tensor([
    [3, 0],
    [0, 4],
  ]);
  net.first.bias?.requiresGrad_(true);
  if (net.first.bias !== null) net.first.bias.grad = tensor([0, 0]);
}

const copyOf = (tensors: Readonly<Record<string, Tensor>>): Record<string, unknown> =>
  Object.fromEntries(Object.entries(tensors).map(([name, value]) => [name, value.toList()]));

test("an update clips, steps by the schedule, averages, and spares biases the decay", () => {
  using network = new FitNetwork(new Net(), {
    optimizer,
    ema: { decay: 0.9, warmup: false },
    total: 10,
  });
  // The same by hand.
  const other = new Net();
  const groups = [
    { params: [["first.weight", other.first.weight] as const] },
    { params: [["first.bias", other.first.bias as Tensor] as const], weightDecay: 0 },
  ];
  const { lr, betas, eps, weightDecay } = optimizer;
  const adam = new AdamW(groups, { lr, betas, eps, weightDecay });
  const average = new Ema(other, { decay: 0.9 });
  const schedule = schedules.linear({ total: 10, warmup: 2, final: 0.1 });
  for (let step = 0; step < 4; step++) {
    backward(network.module);
    const { skipped, metrics } = network.update(step, 1);
    assert.equal(skipped, false);
    assert.equal(metrics["optim/grad_norm"], 5);
    assert.equal(metrics["optim/lr"], lr * schedule(step));
    assert.equal(network.module.first.weight.grad, null);
    backward(other);
    clipGradNorm(other.parameters(), 1);
    adam.step({ lrFactor: schedule(step) });
    average.update();
  }
  assert.deepEqual(copyOf(network.module.stateDict()), copyOf(other.stateDict()));
  assert.deepEqual(copyOf(network.ema?.stateDict().tensors ?? {}), copyOf(average.stateDict().tensors));
  // A gradient of 0 and no decay: the bias stays.
  expectClose(network.module.first.bias as Tensor, new Net().first.bias as Tensor);
});

test("an update that is not finite changes nothing and drops the gradients", () => {
  using network = new FitNetwork(new Net(), { optimizer, ema: { decay: 0.9, warmup: false }, total: 10 });
  const before = copyOf(network.module.stateDict());
  backward(network.module);
  assert.equal(network.update(0, Number.NaN).skipped, true);
  network.module.first.weight.grad = tensor([
    [Infinity, 0],
    [0, 0],
  ]);
  assert.equal(network.update(1, 1).skipped, true);
  assert.deepEqual(copyOf(network.module.stateDict()), before);
  assert.equal(network.ema?.updates, 0);
  for (const [name, average] of Object.entries(copyOf(network.ema?.stateDict().tensors ?? {})))
    assert.deepEqual(average, before[name], name);
  assert.equal(network.module.first.weight.grad, null);
  assert.deepEqual(network.optimizer.stateDict().tensors, {});
});

test("as a result it has no dropout and the averaged weights, under every name and for that time only", () => {
  using network = new FitNetwork(new Net(), { optimizer, ema: { decay: 0.5, warmup: false }, total: 10 });
  network.module.train();
  backward(network.module);
  network.update(0, 1);
  const raw = network.module.first.weight.toList();
  const averaged = network.ema?.stateDict().tensors["first.weight"]?.toList();
  assert.notDeepEqual(averaged, raw);
  network.asResult(() => {
    assert.equal(network.module.drop.training, false);
    assert.deepEqual(network.module.first.weight.toList(), averaged);
  });
  assert.equal(network.module.drop.training, true);
  assert.deepEqual(network.module.first.weight.toList(), raw);
  const weights = copyOf(network.weights().tensors);
  assert.deepEqual(weights["first.weight"], averaged);
  assert.deepEqual(weights["again.weight"], averaged);
  assert.deepEqual(weights["frozen.weight"], network.module.frozen.weight.toList());
  assert.deepEqual(Object.keys(weights), Object.keys(network.module.stateDict()));
});

test("a state that is loaded goes on as if nothing had been", () => {
  const options = { optimizer, ema: { decay: 0.9, warmup: true }, total: 10, name: "critic" };
  using a = new FitNetwork(new Net(), options);
  using b = new FitNetwork(new Net(), options);
  b.load(a.state()); // before the first update there is no moment to load
  for (let step = 0; step < 3; step++) {
    backward(a.module);
    a.update(step, 1);
  }
  assert.deepEqual(Object.keys(a.state().tensors), ["critic", "critic_optimizer", "critic_ema"]);
  b.load(a.state());
  for (const network of [a, b]) {
    backward(network.module);
    network.update(3, 1);
  }
  assert.deepEqual(copyOf(b.weights().tensors), copyOf(a.weights().tensors));
  assert.deepEqual(copyOf(b.module.stateDict()), copyOf(a.module.stateDict()));
  // Without an average in the checkpoint, one that is new starts from the weights.
  const { critic_ema: _, ...rest } = a.state().tensors;
  b.load({ tensors: rest, values: a.state().values });
  assert.deepEqual(copyOf(b.weights().tensors), copyOf(a.module.stateDict()));
  const { critic: __, ...nothing } = rest;
  assert.throws(
    () => b.load({ tensors: nothing, values: a.state().values }),
    /expected a checkpoint with critic, got/,
  );
});

test("a module of the caller's outlives the network", () => {
  const module = new Net();
  const network = new FitNetwork(module, { optimizer, ema: null, total: 1, keepsModule: true });
  network.dispose();
  assert.deepEqual(
    noGrad(() => tidy(() => module.first.forward(tensor([[0, 0]])).shape)),
    [1, 2],
  );
});
