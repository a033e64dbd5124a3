import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import {
  backward,
  functional as F,
  grad,
  loadSafetensors,
  ones,
  type Tensor,
  tensor,
  zeros,
} from "../../src/torch/index.js";
import {
  type Adversarial,
  backwardThroughImage,
  balance,
  discriminatorLoss,
  generatorLoss,
  type LecamAverages,
  lecamLoss,
  pixelLoss,
  updateLecam,
} from "../../src/trainers/tokenizer_losses.js";
import { expectClose } from "../support/close.js";

const file = "../../../test/golden/rl/tokenizer_losses.safetensors";
const golden = loadSafetensors(join(fileURLToPath(new URL(".", import.meta.url)), file)).tensors;
const want = (name: string): Tensor => golden[name] as Tensor;
const leaf = (name: string): Tensor => want(name).clone().requiresGrad_();
const KINDS: readonly Adversarial[] = ["hinge", "vanilla", "non_saturating"];
const TIGHT = { rtol: 1e-5, atol: 1e-7 };

test("golden pixel losses", () => {
  for (const kind of ["l1", "l2"] as const) {
    const made = leaf("made");
    const loss = pixelLoss(want("images"), made, kind);
    expectClose(loss, want(`pixel.${kind}`), TIGHT);
    expectClose(grad([loss], [made])[0] as Tensor, want(`pixel.${kind}.grad`), TIGHT);
  }
});

test("golden losses of the generator and the discriminator", () => {
  for (const kind of KINDS) {
    const fake = leaf("fake");
    const loss = generatorLoss(fake, kind);
    expectClose(loss, want(`generator.${kind}`), { ...TIGHT, where: kind });
    expectClose(grad([loss], [fake])[0] as Tensor, want(`generator.${kind}.grad`), { ...TIGHT, where: kind });
    const [r, f] = [leaf("real"), leaf("fake")];
    const own = discriminatorLoss(r, f, kind);
    expectClose(own, want(`discriminator.${kind}`), { ...TIGHT, where: kind });
    const [ofReal, ofFake] = grad([own], [r, f]) as [Tensor, Tensor];
    expectClose(ofReal, want(`discriminator.${kind}.real_grad`), { ...TIGHT, where: kind });
    expectClose(ofFake, want(`discriminator.${kind}.fake_grad`), { ...TIGHT, where: kind });
  }
});

test("logits of half the bits are judged in float32", () => {
  const logits = want("fake").to({ dtype: "bfloat16" });
  for (const kind of KINDS) {
    assert.equal(generatorLoss(logits, kind).dtype, "float32");
    assert.equal(discriminatorLoss(logits, logits, kind).dtype, "float32");
  }
});

test("golden LeCam over three steps: averages first, then the penalty", () => {
  let averages: LecamAverages = { real: 0, fake: 0 };
  for (const step of [0, 1, 2]) {
    const r = want("real").add(step).requiresGrad_();
    const f = want("fake")
      .sub(0.5 * step)
      .requiresGrad_();
    averages = updateLecam(averages, r, f, 0.9);
    expectClose([averages.real, averages.fake], want(`lecam.${step}.averages`), { rtol: 1e-6 });
    const loss = lecamLoss(r, f, averages);
    expectClose(loss, want(`lecam.${step}`), TIGHT);
    const [ofReal, ofFake] = grad([loss], [r, f]) as [Tensor, Tensor];
    expectClose(ofReal, want(`lecam.${step}.real_grad`), TIGHT);
    expectClose(ofFake, want(`lecam.${step}.fake_grad`), TIGHT);
  }
});

test("golden gradients of a decoder: each loss once at the image is all losses at once", () => {
  for (const [name, weight, isAdaptive] of [
    ["fixed", 0.1, false],
    ["adaptive", 0.8, true],
    ["none", 0, false],
  ] as const) {
    const [first, last] = [leaf("first"), leaf("last")];
    const hidden = F.conv2d(want("latent"), first, null, { padding: 1 }).tanh();
    const image = F.conv2d(hidden, last, null, { padding: 1 });
    const critic = leaf("critic");
    let seen = 0;
    const { near, factor } = backwardThroughImage(
      image,
      last,
      (made) => {
        seen++;
        const pixels = pixelLoss(want("target"), made, "l1");
        const logits = F.conv2d(made, critic, null, { stride: 2, padding: 1 });
        return {
          near: pixels.add(pixelLoss(want("target"), made, "l2"), 0.5),
          adversarial: generatorLoss(logits, "hinge"),
        };
      },
      { weight, isAdaptive },
      [hidden.square().mean()],
    );
    assert.equal(seen, 1);
    expectClose(near, want(`through.${name}.near`), TIGHT);
    expectClose(factor, want(`through.${name}.factor`), { ...TIGHT, where: name });
    expectClose(first.grad as Tensor, want(`through.${name}.first_grad`), { ...TIGHT, where: name });
    expectClose(last.grad as Tensor, want(`through.${name}.last_grad`), { ...TIGHT, where: name });
    // The discriminator is judged by, not trained: what it learns from is a loss of its own.
    assert.equal(critic.grad, null);
  }
});

test("the discriminator's logits serve its own loss after the decoder's backward", () => {
  const last = ones([1, 1, 1, 1]).requiresGrad_();
  const critic = tensor([[[[2]]]]).requiresGrad_();
  const image = F.conv2d(ones([1, 1, 2, 2]), last);
  const { factor, logits } = backwardThroughImage(
    image,
    last,
    (made) => {
      const logits = F.conv2d(made, critic);
      return { near: made.square().mean(), adversarial: generatorLoss(logits, "hinge"), logits };
    },
    { weight: 0.5, isAdaptive: false },
    [],
  );
  assert.equal(factor, 0.5);
  // d/dlast of mean(last^2) - 0.5 * 2 * last, at 1.
  expectClose(last.grad as Tensor, [[[[1]]]], TIGHT);
  const real = tensor([[[[0.5]]]]);
  backward([discriminatorLoss(real, logits, "hinge")], [null], { inputs: [critic] });
  expectClose(critic.grad as Tensor, [[[[0.5]]]], TIGHT);
  expectClose(last.grad as Tensor, [[[[1]]]], TIGHT);
});

test("the balance is that of the gradients' norms, and bounded", () => {
  const last = ones([1, 1, 1, 1]).requiresGrad_();
  const image = F.conv2d(ones([1, 1, 2, 2]), last);
  // Gradients of the last weight: 4 * 3 = 12 and 4 * 0.5 = 2.
  const near = ones([1, 1, 2, 2]).mul(3);
  const adversarial = ones([1, 1, 2, 2]).mul(0.5);
  expectClose(balance(image, last, near, adversarial), 12 / 2.0001, { rtol: 1e-6 });
  expectClose(balance(image, last, near, zeros([1, 1, 2, 2])), 1e4, { rtol: 0 });
  expectClose(balance(image, last, zeros([1, 1, 2, 2]), adversarial), 0, { rtol: 0 });
});
