import assert from "node:assert/strict";
import { test } from "node:test";
import { type Grid, IBQ, type TokenizerModel, VQ_MODELS, VQModel } from "../../src/tokenizers/index.js";
import {
  enableGrad,
  functional as F,
  full,
  Generator,
  isGradEnabled,
  noGrad,
  rand,
  randint,
  randn,
  type Tensor,
  tensor,
  zeros,
} from "../../src/torch/index.js";
import { noLeak } from "../support/leak.js";
import { expectCloseToScale, golden, type Name, peakBytesOf } from "./golden.js";

const NAMES = ["ibq", "vq_cosine", "vq_l2"] satisfies Name[];

for (const name of NAMES) {
  test(`${name}: codes, images and every gradient of the trainable forward are PyTorch's`, () => {
    const { model, want } = golden(name);
    const images = want.images as Tensor;
    assert.ok(model.encode(images).equal(want.codes as Tensor), "encode");
    const { reconstruction, codes, losses } = model.forward(images);
    assert.ok(codes.equal(want.codes as Tensor), "codes");
    expectCloseToScale(reconstruction, want.reconstruction as Tensor, "reconstruction");
    let total = F.mseLoss(reconstruction, images);
    for (const loss of Object.values(losses)) total = total.add(loss);
    total.backward();
    const named = model.namedParameters();
    assert.equal(named.length, Object.keys(want).filter((key) => key.startsWith("grad.")).length);
    // A bias before a norm of its own mean has no gradient but rounding: errors are seen beside the largest gradient too.
    const scale = Math.max(...named.map(([key]) => (want[`grad.${key}`] as Tensor).abs().amax().item()));
    for (const [key, parameter] of named) {
      const error = (parameter.grad as Tensor)
        .sub(want[`grad.${key}`] as Tensor)
        .abs()
        .amax()
        .item();
      const own = (want[`grad.${key}`] as Tensor).abs().amax().item();
      assert.ok(
        error <= 1e-5 * own + 1e-6 * scale,
        `${key}: off by ${error}, largest ${own} (of all ${scale})`,
      );
    }
  });

  test(`${name}: codes on a grid that is not square become PyTorch's images`, () => {
    const { model, want } = golden(name);
    const decoded = model.decodeCode(want.codes_in as Tensor, [2, 3]);
    expectCloseToScale(decoded, want.decoded as Tensor, "decoded");
    const side = 2 * model.downsample;
    assert.deepEqual(decoded.shape, [2, 3, side, (side / 2) * 3]);
  });
}

const tiny = (): TokenizerModel => new VQModel({ ...VQ_MODELS["VQ-4-small"], ch: 8, zChannels: 8 }).eval();

test("a batch in parts is the batch at once, bit for bit; images one by one up to rounding", () => {
  const model = tiny();
  const generator = new Generator(5);
  const images = rand([5, 3, 16, 24], { generator }).mul(2).sub(1);
  const codes = randint(0, 512, [5, 24], { generator });
  const grid: Grid = [4, 6];
  const run = (budget: number): Tensor[] => {
    model.memoryBudget = budget;
    const latent = model.encodeLatent(images);
    const decoded = model.decode(model.quantize.getCodebookEntry(codes, grid));
    return [model.encode(images), model.decodeCode(codes, grid), latent, decoded];
  };
  const one = 5 * 4 * 16 * 16 * 24;
  const [wholeCodes, ...whole] = run(5 * one);
  // Four fit: three and two.
  const [partCodes, ...parts] = run(4.5 * one);
  assert.ok((partCodes as Tensor).equal(wholeCodes as Tensor));
  for (const [i, part] of parts.entries()) assert.ok(part.equal(whole[i] as Tensor), `result ${i}`);
  const [singleCodes, ...singles] = run(0);
  assert.ok((singleCodes as Tensor).equal(wholeCodes as Tensor));
  for (const [i, single] of singles.entries()) expectCloseToScale(single, whole[i] as Tensor, `result ${i}`);
});

test("the memory budget bounds the activations", () => {
  const model = tiny();
  const images = zeros([16, 3, 32, 32]);
  const one = 5 * 4 * 16 * 32 * 32;
  for (const count of [2, 4, 16]) {
    model.memoryBudget = count * one;
    const results = 16 * 3 * 32 * 32 * 4 * 2; // parts and whole
    const encode = peakBytesOf(() => model.encode(images).dispose());
    const decode = peakBytesOf(() => model.decodeCode(zeros([16, 64], { dtype: "int64" })).dispose());
    for (const peak of [encode, decode]) {
      assert.ok(peak < 1.1 * count * one + results, `${peak} bytes for ${count} at a time`);
      assert.ok(peak > 0.5 * count * one, `${peak} bytes for ${count} at a time`);
    }
  }
});

test("the budget is 256 MiB on a CPU where nothing is said, and parts are of one size", () => {
  const model = tiny();
  const sizes: number[] = [];
  Object.assign(model.decoder, {
    forward(x: Tensor): Tensor {
      sizes.push(x.size(0));
      return zeros([x.size(0), 3, 1, 1]);
    },
  });
  // 80 MiB an image of 512 x 512, so three fit.
  model.decodeCode(zeros([7, 128 * 128], { dtype: "int64" }));
  assert.deepEqual(sizes, [3, 3, 1]);
  sizes.length = 0;
  model.decodeCode(zeros([4, 128 * 128], { dtype: "int64" }));
  assert.deepEqual(sizes, [2, 2]);
});

test("encode and decodeCode build no graph; encodeLatent, decode and forward do", () => {
  const model = tiny();
  const images = zeros([1, 3, 8, 8]);
  const latent = model.encodeLatent(images);
  assert.equal(latent.requiresGrad, true);
  assert.equal(model.decode(latent).requiresGrad, true);
  assert.equal(model.forward(images).reconstruction.requiresGrad, true);
  assert.equal(model.decodeCode(zeros([1, 4], { dtype: "int64" })).requiresGrad, false);
  assert.equal(
    noGrad(() => model.encodeLatent(images).requiresGrad),
    false,
  );
  assert.equal(enableGrad(isGradEnabled), true);
});

test("a configuration that no model has is refused", () => {
  const message = (build: () => unknown): string => {
    try {
      build();
    } catch (error) {
      assert.ok(error instanceof RangeError);
      return error.message;
    }
    return "nothing thrown";
  };
  assert.equal(
    message(() => new VQModel({ codebookSize: 0 })),
    "VQModel: expected a whole codebookSize of at least 1, got 0.",
  );
  assert.equal(
    message(() => new VQModel({ ch: 8.5 })),
    "VQModel: expected a whole ch of at least 1, got 8.5.",
  );
  assert.equal(
    message(() => new VQModel({ ch: 9, chMult: [1, 0.5] })),
    "VQModel: expected chMult with whole multiples of ch 9, got [1, 0.5].",
  );
  assert.equal(
    message(() => new VQModel({ chMult: [] })),
    "VQModel: expected chMult with whole multiples of ch 128, got [].",
  );
  const { config } = tiny();
  assert.equal(
    message(() => new IBQ({ ...config, attnLevels: [1, 3] })),
    "IBQ: expected attnLevels below 3, got 3.",
  );
});

test("images and codes that do not fit are refused", () => {
  const model = tiny();
  const refuses = (fn: () => unknown, kind: typeof TypeError | typeof RangeError, message: string): void =>
    assert.throws(fn, (error: Error) => {
      assert.ok(error instanceof kind);
      assert.equal(error.message, message);
      return true;
    });
  const pixels = full([2, 3, 8, 8], 255, { dtype: "uint8" });
  for (const method of ["encode", "encodeLatent", "forward"] as const) {
    refuses(
      () => model[method](pixels),
      TypeError,
      `VQModel.${method}: expected float32 images, got Tensor uint8[2, 3, 8, 8] cpu. Scale them: x / 127.5 - 1.`,
    );
    refuses(
      () => model[method](zeros([2, 1, 8, 8])),
      RangeError,
      `VQModel.${method}: expected images [B, 3, H, W], got Tensor float32[2, 1, 8, 8] cpu.`,
    );
    refuses(
      () => model[method](zeros([2, 3, 8, 10])),
      RangeError,
      `VQModel.${method}: expected sides that are multiples of 4, got 8 x 10. Resize or crop the images.`,
    );
  }
  refuses(
    () => model.encode(zeros([0, 3, 8, 8])),
    RangeError,
    "VQModel.encode: expected images [B, 3, H, W], got Tensor float32[0, 3, 8, 8] cpu.",
  );
  refuses(
    () => model.decodeCode(zeros([2, 4])),
    TypeError,
    "VQModel.decodeCode: expected int64 codes, got Tensor float32[2, 4] cpu.",
  );
  refuses(
    () => model.decodeCode(zeros([4], { dtype: "int64" })),
    RangeError,
    "VQModel.decodeCode: expected codes [B, T], got Tensor int64[4] cpu.",
  );
  refuses(
    () => model.decodeCode(zeros([1, 6], { dtype: "int64" })),
    RangeError,
    "VQModel.decodeCode: expected a square number of codes per image, got 6. Give the grid: [rows, columns].",
  );
  refuses(
    () => model.decodeCode(zeros([1, 6], { dtype: "int64" }), [2, 2]),
    RangeError,
    "VQModel.decodeCode: expected a grid of the 6 codes of an image, got 2 x 2.",
  );
  refuses(
    () => model.decodeCode(zeros([1, 6], { dtype: "int64" }), [1.5, 4]),
    RangeError,
    "VQModel.decodeCode: expected a grid of the 6 codes of an image, got 1.5 x 4.",
  );
  assert.throws(() => model.decodeCode(tensor([[512, 0, 0, 0]], { dtype: "int64" })), /index out of range/);
});

test("nothing is left behind but the results, in parts too", () => {
  const model = tiny();
  const images = randn([3, 3, 8, 8]).clamp(-1, 1);
  const codes = zeros([3, 4], { dtype: "int64" });
  for (const budget of [0, 2 ** 30]) {
    model.memoryBudget = budget;
    noLeak(() => {
      model.encode(images).dispose();
      model.decodeCode(codes).dispose();
      model.encodeLatent(images).dispose();
      const { reconstruction, codes: found, losses, stats } = model.forward(images);
      for (const result of [reconstruction, found, ...Object.values(losses), ...Object.values(stats)])
        result.dispose();
    });
  }
});
