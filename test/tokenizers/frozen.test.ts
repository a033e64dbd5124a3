import assert from "node:assert/strict";
import { test } from "node:test";
import {
  buildTokenizerFrozen,
  type FrozenTokenizer,
  type Grid,
  VQ_MODELS,
  VQModel,
} from "../../src/tokenizers/index.js";
import {
  full,
  isGradEnabled,
  noGrad,
  rand,
  randint,
  type Tensor,
  tensor,
  zeros,
} from "../../src/torch/index.js";
import { noLeak } from "../support/leak.js";

const build = (): FrozenTokenizer =>
  buildTokenizerFrozen(new VQModel({ ...VQ_MODELS["VQ-4-small"], ch: 8, zChannels: 8, dropoutP: 0.5 }));

const refuses = (fn: () => unknown, kind: typeof TypeError | typeof RangeError, message: string): void =>
  assert.throws(fn, (error: Error) => {
    assert.ok(error instanceof kind);
    assert.equal(error.message, message);
    return true;
  });

test("the model is frozen and serves the same codes and images", () => {
  const frozen = build();
  const vq = frozen.vq as VQModel;
  assert.equal(vq.training, false);
  assert.equal(vq.encoder.training, false);
  assert.ok(vq.parameters().every((parameter) => !parameter.requiresGrad));
  assert.equal(frozen.codebookSize, 512);
  assert.equal(frozen.downsample, 4);
  const images = rand([2, 3, 8, 12]).mul(2).sub(1).requiresGrad_();
  const codes = frozen.encode(images);
  assert.ok(codes.equal(vq.encode(images)));
  const decoded = frozen.decodeCode(codes, [2, 3]);
  assert.ok(decoded.equal(vq.decodeCode(codes, [2, 3])));
  assert.equal(decoded.requiresGrad, false);
  frozen.dispose();
  assert.ok(vq.quant_conv.weight.isDisposed);
});

test("anything that serves as a tokenizer can be frozen, and runs without a graph", () => {
  const seen: unknown[] = [];
  const model = {
    codebookSize: 9,
    downsample: 2,
    encode(images: Tensor): Tensor {
      seen.push(isGradEnabled());
      return zeros([images.size(0), 4], { dtype: "int64" });
    },
    decodeCode(codes: Tensor, grid?: Grid): Tensor {
      seen.push(isGradEnabled(), grid);
      return zeros([codes.size(0), 3, 4, 4]);
    },
  };
  using frozen = buildTokenizerFrozen(model);
  assert.equal(frozen.vq, model);
  frozen.decodeCode(frozen.encode(zeros([1, 3, 4, 4])));
  assert.deepEqual(seen, [false, false, [2, 2]]);
});

test("a tokenizer whose weights are not finite is refused when it first decodes", () => {
  for (const value of [Number.NaN, Number.POSITIVE_INFINITY]) {
    using frozen = build();
    const codes = zeros([1, 4], { dtype: "int64" });
    noGrad(() => (frozen.vq as VQModel).post_quant_conv.bias?.fill_(value));
    for (let again = 0; again < 2; again++)
      assert.throws(() => frozen.decodeCode(codes), {
        name: "RangeError",
        message: /^FrozenTokenizer\.decodeCode: expected finite images from VQModel, got .*weights/,
      });
  }
});

test("images of another type, shape or range are refused", () => {
  const frozen = build();
  const where = "FrozenTokenizer.encode: expected";
  refuses(
    () => frozen.encode(zeros([1, 3, 8, 8], { dtype: "uint8" })),
    TypeError,
    `${where} float32 images, got Tensor uint8[1, 3, 8, 8] cpu. Scale them: x / 127.5 - 1.`,
  );
  refuses(
    () => frozen.encode(zeros([3, 8, 8])),
    RangeError,
    `${where} images [B, 3, H, W], got Tensor float32[3, 8, 8] cpu.`,
  );
  refuses(
    () => frozen.encode(zeros([1, 3, 6, 8])),
    RangeError,
    `${where} sides that are multiples of 4, got 6 x 8. Resize or crop the images.`,
  );
  const scaled = zeros([1, 3, 8, 8]);
  scaled.narrow(2, 3, 1).fill_(255);
  refuses(
    () => frozen.encode(scaled),
    RangeError,
    `${where} images in [-1, 1], got values from 0 to 255. Scale them: x / 127.5 - 1.`,
  );
  refuses(
    () => frozen.encode(full([1, 3, 8, 8], -1.5)),
    RangeError,
    `${where} images in [-1, 1], got values from -1.5 to -1.5. Scale them: x / 127.5 - 1.`,
  );
  const torn = zeros([1, 3, 8, 8]);
  torn.narrow(2, 0, 1).fill_(Number.NaN);
  refuses(
    () => frozen.encode(torn),
    RangeError,
    `${where} images in [-1, 1], got values from NaN to NaN. Scale them: x / 127.5 - 1.`,
  );
  frozen.encode(full([1, 3, 8, 8], 1.0005)); // rounding of a resize
});

test("codes of another type, shape or range are refused", () => {
  const frozen = build();
  const where = "FrozenTokenizer.decodeCode: expected";
  const codes = (values: number[][]): Tensor => tensor(values, { dtype: "int64" });
  refuses(
    () => frozen.decodeCode(zeros([1, 4], { dtype: "int32" })),
    TypeError,
    `${where} int64 codes, got Tensor int32[1, 4] cpu.`,
  );
  refuses(
    () => frozen.decodeCode(codes([[0, 1, 2, 512]])),
    RangeError,
    `${where} codes in [0, 512), got codes from 0 to 512.`,
  );
  refuses(
    () => frozen.decodeCode(codes([[0, 1, 2, -1]])),
    RangeError,
    `${where} codes in [0, 512), got codes from -1 to 2.`,
  );
  refuses(
    () => frozen.decodeCode(codes([[0, 1, 2, 3]]), [1, 3]),
    RangeError,
    `${where} a grid of the 4 codes of an image, got 1 x 3.`,
  );
  refuses(
    () => frozen.decodeCode(codes([[0, 1, 2]])),
    RangeError,
    `${where} a square number of codes per image, got 3. Give the grid: [rows, columns].`,
  );
  frozen.decodeCode(codes([[0, 1, 2, 511]]));
});

test("nothing is left behind but the results", () => {
  const frozen = build();
  const images = zeros([2, 3, 8, 8]);
  const codes = randint(0, 512, [2, 4]);
  noLeak(() => {
    frozen.encode(images).dispose();
    frozen.decodeCode(codes).dispose();
  });
});
