/** Scores of aesthetic heads against PyTorch's. */
import assert from "node:assert/strict";
import { mkdtempSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";

import { openAestheticHead } from "../../src/encoders/index.js";
import { loadSafetensors, saveSafetensors, type Tensor, tidy, zeros } from "../../src/torch/index.js";
import { expectClose } from "../support/close.js";

const ROOT = "test/golden/encoders/aesthetic";

for (const name of ["linear", "five", "relu"]) {
  test(`${name}: scores agree with PyTorch's`, () => {
    tidy(() => {
      const { tensors } = loadSafetensors(`${ROOT}/golden.safetensors`);
      const head = openAestheticHead(`${ROOT}/${name}.pth`);
      assert.equal(head.width, 6);
      expectClose(head.forward(tensors.x as Tensor), tensors[name] as Tensor, { rtol: 1e-5, atol: 1e-6 });
      head.dispose();
    });
  });
}

test("layers at other places, and a missing bias, are refused by name", () => {
  const path = join(mkdtempSync(join(tmpdir(), "head-")), "head.safetensors");
  saveSafetensors(path, { "layers.0.weight": zeros([2, 3]), "layers.1.weight": zeros([1, 2]) });
  assert.throws(() => openAestheticHead(path), /expected an aesthetic head.*got layers 0, 1/);
  saveSafetensors(path, { weight: zeros([1, 3]), scale: zeros([1]) });
  assert.throws(() => openAestheticHead(path), /missing bias; unknown scale/);
});
