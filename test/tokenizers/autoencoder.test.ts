import assert from "node:assert/strict";
import { test } from "node:test";
import {
  type AutoencoderConfig,
  activationBytes,
  Decoder,
  Encoder,
} from "../../src/tokenizers/autoencoder.js";
import { functional as F, noGrad, randn, type Tensor, tidy } from "../../src/torch/index.js";
import { expectClose } from "../support/close.js";
import { noLeak } from "../support/leak.js";
import { expectCloseToScale, golden, type Name, peakBytesOf } from "./golden.js";

const SMALL: AutoencoderConfig = {
  naming: "ibq",
  inChannels: 3,
  outChannels: 3,
  ch: 8,
  chMult: [1, 2],
  numResBlocks: 1,
  attnLevels: [],
  zChannels: 4,
  dropout: 0,
  normGroups: 4,
};

for (const name of ["ibq", "vq_cosine", "vq_l2"] satisfies Name[]) {
  test(`${name}: encoder and decoder give PyTorch's numbers, with and without a graph`, () => {
    const { model, want } = golden(name);
    const run = (): Tensor[] => [
      model.encodeLatent(want.images as Tensor),
      model.decode(want.quantized as Tensor),
    ];
    for (const [latent, images] of [run(), noGrad(run)]) {
      expectCloseToScale(latent as Tensor, want.latent as Tensor, "latent");
      expectCloseToScale(images as Tensor, want.reconstruction as Tensor, "reconstruction");
    }
  });
}

test("a norm has 32 groups, or their greatest common divisor with its channels", () => {
  const encoder = new Encoder({ ...SMALL, ch: 64, chMult: [1], normGroups: 32 });
  const grouped = new Encoder({ ...SMALL, ch: 48, chMult: [1], normGroups: 32 });
  for (const [model, groups] of [
    [encoder, 32],
    [grouped, 16],
  ] as const) {
    const { weight, bias } = model.norm_out;
    const x = randn([2, weight.size(0), 4, 4]);
    expectClose(model.norm_out.forward(x), F.groupNorm(x, groups, weight, bias, 1e-6), { rtol: 0, atol: 0 });
  }
});

test("a norm's epsilon is 1e-6", () => {
  const { norm_out: norm } = new Encoder(SMALL);
  const x = randn([1, 16, 2, 2]).mul(1e-3);
  const grouped = x.reshape(4, 16);
  const centred = grouped.sub(grouped.mean(1, { keepdim: true }));
  const want = centred.div(centred.square().mean(1, { keepdim: true }).add(1e-6).sqrt()).reshape(1, 16, 2, 2);
  expectClose(norm.forward(x), want, { rtol: 1e-5, atol: 1e-6 });
});

test("dropout acts in training alone", () => {
  const encoder = new Encoder({ ...SMALL, dropout: 0.5 });
  const x = randn([1, 3, 8, 8]);
  assert.equal(encoder.forward(x).equal(encoder.forward(x)), false);
  encoder.eval();
  assert.equal(encoder.forward(x).equal(encoder.forward(x)), true);
});

test("the input is left as it was, with and without a graph", () => {
  const decoder = new Decoder(SMALL);
  const x = randn([1, 4, 4, 4]);
  const before = x.clone();
  decoder.forward(x);
  noGrad(() => decoder.forward(x));
  assert.ok(x.equal(before));
});

test("nothing is left behind but the result", () => {
  const encoder = new Encoder({ ...SMALL, attnLevels: [0, 1] });
  const x = randn([2, 3, 8, 8]);
  noLeak(() => encoder.forward(x).dispose());
  noLeak(() => noGrad(() => encoder.forward(x).dispose()));
});

test("activations without a graph stay within what activationBytes says of them", () => {
  const config = { ...SMALL, ch: 16, chMult: [1, 1, 2], numResBlocks: 3, zChannels: 16, normGroups: 8 };
  const encoder = new Encoder(config);
  const decoder = new Decoder(config);
  const images = randn([4, 3, 64, 64]);
  const features = randn([4, 16, 16, 16]);
  const said = activationBytes(config, 64 * 64);
  assert.equal(said, ((5 * 4 * 32 * 64 * 64) / 4) * 2);
  for (const run of [() => encoder.forward(images), () => decoder.forward(features)]) {
    const peak = peakBytesOf(() => noGrad(() => tidy(run)));
    // A norm's means and deviations come on top.
    assert.ok(peak < 4.05 * said && peak > 3 * said, `${peak} bytes for 4 images, ${said} said of one`);
  }
});
