/** Options: unknown names are refused, PyTorch's names and places are taken, in the tensor floor and in nn. */
import assert from "node:assert/strict";
import { test } from "node:test";
import * as nn from "../../src/nn/index.js";
import * as torch from "../../src/torch/index.js";

const { functional: F, tidy } = torch;

test("what a call lacks or has in the wrong place is said in our own words, with what to do", () => {
  tidy(() => {
    const x = torch.ones([2, 2]);
    const wrong = (value: unknown) => value as never;
    const uses: readonly (readonly [() => unknown, where: RegExp, what: RegExp, remedy: RegExp])[] = [
      [() => x.max(wrong(undefined)), /^Tensor\.max/, /a dimension, got none/, /amax\(\)/],
      [() => x.min(wrong(undefined)), /^Tensor\.min/, /a dimension, got none/, /amin\(\)/],
      [() => x.clamp(null), /^Tensor\.clamp/, /a minimum or a maximum, got none/, /clamp\(0, 1\)/],
      [
        () => x.clamp(wrong(undefined)),
        /^Tensor\.clamp/,
        /a minimum or a maximum, got none/,
        /clamp\(0, 1\)/,
      ],
      [() => x.clamp_(null, null), /^Tensor\.clamp_/, /a minimum or a maximum, got none/, /clamp_\(0, 1\)/],
      [() => x.clamp(wrong({ min: 0 })), /clamp/, /got Object/, /without its name/],
      [() => x.clamp_(wrong({ min: 0 })), /clamp_/, /got Object/, /without its name/],
      [() => x.softmax(wrong({ dim: 1 })), /softmax/, /got Object/, /without its name/],
      [() => x.sum(wrong({ dim: 1 })), /sum/, /got Object/, /without its name/],
      [() => x.amax(wrong({ dim: 1 })), /amax/, /got Object/, /without its name/],
      [() => x.view(wrong({ size: 1 })), /view/, /got Object/, /without its name/],
      [() => x.softmax(wrong(undefined)), /softmax/, /argument 'dim', got none/, /./],
      [() => x.logsumexp(wrong(undefined)), /logsumexp/, /argument 'dim', got none/, /./],
      [() => torch.cat([]), /^cat/, /at least one tensor, got none/, /./],
      [() => torch.stack([]), /^stack/, /at least one tensor, got none/, /./],
      [() => torch.einsum("ij"), /^einsum/, /at least one tensor, got none/, /./],
      [() => torch.meshgrid(), /^meshgrid/, /at least one tensor, got none/, /./],
      [() => torch.meshgrid([]), /^meshgrid/, /at least one tensor, got none/, /./],
      [() => torch.cat(wrong(x)), /^cat/, /a list of tensors, got Tensor float32\[2, 2\]/, /./],
      [() => torch.cat(wrong(undefined)), /^cat/, /a list of tensors, got undefined/, /./],
      [() => F.mseLoss(x, x, wrong("avg")), /^mseLoss/, /none, mean or sum as reduction, got avg/, /./],
      [() => F.l1Loss(x, x, wrong("avg")), /^l1Loss/, /none, mean or sum as reduction, got avg/, /./],
      [
        () => F.smoothL1Loss(x, x, wrong("avg")),
        /^smoothL1Loss/,
        /none, mean or sum as reduction, got avg/,
        /./,
      ],
      [
        () => F.binaryCrossEntropyWithLogits(x, x, wrong("avg")),
        /^binaryCrossEntropyWithLogits/,
        /none, mean or sum as reduction, got avg/,
        /./,
      ],
      [
        () => F.klDiv(x, x, { reduction: wrong("batchmean") }),
        /^klDiv/,
        /none, mean or sum .*got batchmean/,
        /./,
      ],
      [
        () => F.crossEntropy(x, x, { reduction: wrong("avg") }),
        /^crossEntropy/,
        /none, mean or sum .*got avg/,
        /./,
      ],
    ];
    for (const [use, ...parts] of uses) {
      assert.throws(use, ({ message }: Error) => {
        for (const part of parts) assert.match(message, part);
        assert.doesNotMatch(message, /torch\.|TensorList|missing argument/);
        return true;
      });
    }
  });
});

test("an option that a function does not know is refused", () => {
  tidy(() => {
    const x = torch.ones([2, 2]);
    const image = torch.ones([1, 1, 4, 4]);
    const linear = new nn.Linear(2, 2);
    const odd = { colour: true } as never;
    const uses: Record<string, () => unknown> = {
      zeros: () => torch.zeros([2], odd),
      ones: () => torch.ones([2], odd),
      full: () => torch.full([2], 1, odd),
      empty: () => torch.empty([2], odd),
      randn: () => torch.randn([2], odd),
      randint: () => torch.randint(0, 2, [2], odd),
      arange: () => torch.arange(0, 2, 1, odd),
      zerosLike: () => torch.zerosLike(x, odd),
      multinomial: () => torch.multinomial(x, 1, odd),
      tensor: () => torch.tensor([1], odd),
      "tensor of a typed array": () => torch.tensor(new Float32Array(1), odd),
      to: () => x.to(odd),
      sum: () => x.sum(0, odd),
      mean: () => x.mean(0, odd),
      std: () => x.std(0, odd),
      var: () => x.var(0, odd),
      topk: () => x.topk(1, 0, odd),
      sort: () => x.sort(0, odd),
      backward: () => x.sum().backward(undefined, odd),
      grad: () => torch.grad([x], [x], undefined, odd),
      conv2d: () => F.conv2d(image, image, null, odd),
      attention: () => F.scaledDotProductAttention(x, x, x, odd),
      interpolate: () => F.interpolate(image, odd),
      avgPool2d: () => F.avgPool2d(image, 2, odd),
      maxPool2d: () => F.maxPool2d(image, 2, odd),
      normalize: () => F.normalize(x, odd),
      crossEntropy: () => F.crossEntropy(x, x, odd),
      klDiv: () => F.klDiv(x, x, odd),
      Linear: () => new nn.Linear(2, 2, odd),
      LayerNorm: () => new nn.LayerNorm(2, odd),
      RMSNorm: () => new nn.RMSNorm(2, odd),
      GroupNorm: () => new nn.GroupNorm(1, 2, odd),
      BatchNorm2d: () => new nn.BatchNorm2d(2, odd),
      Conv2d: () => new nn.Conv2d(1, 1, 1, odd),
      AdamW: () => new nn.AdamW(linear.parameters(), odd),
      "AdamW's group": () => new nn.AdamW([{ params: linear.parameters(), colour: true } as never]),
      "AdamW.step": () => new nn.AdamW(linear.parameters()).step(odd),
      "AdamW.loadStateDict": () =>
        new nn.AdamW(linear.parameters()).loadStateDict({ tensors: {}, groups: [] }, odd),
      Ema: () => new nn.Ema(linear, odd),
      "Module.to": () => linear.to(odd),
      "Module.loadStateDict": () => linear.loadStateDict(linear.stateDict(), odd),
      packLinears: () => nn.packLinears(linear, odd),
      constant: () => nn.schedules.constant(odd),
      cosine: () => nn.schedules.cosine({ total: 2, colour: true } as never),
      openWeights: () => torch.openWeights("nowhere", odd),
    };
    for (const [name, use] of Object.entries(uses)) {
      assert.throws(use, { name: "RangeError", message: /: expected a known option, got colour\. / }, name);
    }
  });
});

test("options are taken under PyTorch's names, and in its places", () => {
  tidy(() => {
    assert.equal(torch.zeros([2], { requires_grad: true } as never).requiresGrad, true);
    const linear = new nn.Linear(2, 2, { bias: false });
    new nn.AdamW(linear.parameters(), { weight_decay: 0.5 } as never);
    const x = torch.tensor([
      [1, 3],
      [2, 4],
    ]);
    assert.deepEqual(x.sum(0, true).shape, [1, 2]);
    assert.deepEqual(x.mean(1, true).shape, [2, 1]);
    assert.deepEqual(x.sort(1, true).values.toList(), [
      [3, 1],
      [4, 2],
    ]);
    assert.deepEqual(x.topk(1, 1, false).values.toList(), [[1], [2]]);
    const thrice = torch.multinomial(torch.tensor([0, 1]), 3, true);
    assert.deepEqual(thrice.toList(), [1, 1, 1]);
    // PyTorch's second place is `unbiased`, which is no option here.
    assert.throws(() => x.std(0, true as never), {
      name: "TypeError",
      message: /^Tensor\.std: expected an object/,
    });
  });
});
