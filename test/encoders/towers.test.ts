/** Embeddings and logits of each family, against transformers, open_clip and TokLIP themselves. */
import assert from "node:assert/strict";
import { test } from "node:test";

import { openEncoder } from "../../src/encoders/index.js";
import { loadSafetensors, noGrad, setNumThreads, type Tensor, tidy } from "../../src/torch/index.js";
import { expectClose } from "../support/close.js";
import { noLeak } from "../support/leak.js";

setNumThreads(1);

const ROOT = "test/golden/encoders";
const TOKENIZER = `${ROOT}/clip_tokenizer`;
/** float32 sums against float64 ones. */
const CLOSE = { rtol: 1e-5, atol: 1e-5 };

function golden(name: string): Record<string, Tensor> {
  return loadSafetensors(`${ROOT}/${name}/golden.safetensors`).tensors;
}

for (const name of ["hf_clip", "hf_clip_quick", "hf_siglip", "open_clip_quick", "open_clip_siglip"]) {
  test(`${name}: images, texts and logits agree with the published code`, () => {
    noLeak(() =>
      tidy(() => {
        const { pixels, tokens, image, text, logits } = golden(name) as Record<string, Tensor>;
        const encoder = openEncoder(`${ROOT}/${name}`, { tokenizer: TOKENIZER });
        try {
          noGrad(() => {
            const images = encoder.visual?.forward(pixels as Tensor) as Tensor;
            const words = encoder.embedTokens(tokens as Tensor);
            expectClose(images, image as Tensor, { ...CLOSE, where: "images" });
            expectClose(words, text as Tensor, { ...CLOSE, where: "texts" });
            expectClose(encoder.logits(images, words), logits as Tensor, {
              rtol: 1e-5,
              atol: 2e-5,
              where: "logits",
            });
          });
        } finally {
          encoder.dispose();
        }
      }),
    );
  });
}

test("TokLIP: codes and texts agree with the published code, also by the codebook's rows", () => {
  noLeak(() =>
    tidy(() => {
      const { codes, tokens, image, text, logits } = golden("toklip") as Record<string, Tensor>;
      const encoder = openEncoder(`${ROOT}/toklip/TokLIP.pt`, { tokenizer: TOKENIZER, heads: 2 });
      try {
        assert.equal(encoder.readsCodes, true);
        assert.match(encoder.name, /^TokLIP, 64 px, 4 x 4 codes, width 16$/);
        noGrad(() => {
          const images = encoder.embedCodes(codes as Tensor);
          const words = encoder.embedTokens(tokens as Tensor);
          expectClose(images, image as Tensor, { ...CLOSE, where: "codes" });
          expectClose(words, text as Tensor, { ...CLOSE, where: "texts" });
          expectClose(encoder.logits(images, words), logits as Tensor, {
            rtol: 1e-5,
            atol: 2e-5,
            where: "logits",
          });
        });
        assert.throws(
          () => encoder.embedCodes((codes as Tensor).narrow(1, 0, 9)),
          /expected 16 codes.*got 9/,
        );
        assert.throws(
          () => encoder.embedImages(image as Tensor),
          /expected an encoder that reads pixels.*embedCodes/,
        );
      } finally {
        encoder.dispose();
      }
    }),
  );
});

test("a tower that is not asked for is not loaded", () => {
  const encoder = openEncoder(`${ROOT}/hf_clip`, { towers: { text: false } });
  assert.equal(encoder.text, null);
  assert.throws(() => encoder.embedTexts(["a dog"]), /expected a text tokenizer, got none/);
  encoder.dispose();
});
