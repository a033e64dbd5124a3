import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";

import { memory, tensor } from "../../src/torch/index.js";
import { saveSafetensors } from "../../src/torch/safetensors.js";
import { openWeights } from "../../src/torch/weights.js";

const golden = (name: string): string => join("test/golden/weights", name);
const folder = mkdtempSync(join(tmpdir(), "rlar-weights-"));
after(() => rmSync(folder, { recursive: true }));

function bias(path: string, wrapper?: string): number {
  using file = openWeights(path, wrapper === undefined ? {} : { wrapper });
  assert.deepEqual(file.names.sort(), ["conv.bias", "conv.weight"]);
  assert.deepEqual(file.shapes, { "conv.weight": [2, 3], "conv.bias": [2] });
  assert.equal(file.info("conv.weight").dtype, "float32");
  using read = file.tensor("conv.bias");
  return (read.toList() as number[])[0] as number;
}

test("weights are found flat and under every usual wrapper", () => {
  const found = Object.fromEntries(
    ["raw.pt", "llamagen.pt", "averaged.pt", "deepspeed.pt", "lightning.ckpt"].map((name) => {
      using file = openWeights(golden(name));
      return [
        name,
        { wrapper: file.wrapper, others: file.otherWrappers, parallel: file.isParallel, extras: file.extras },
      ];
    }),
  );
  assert.deepEqual(found, {
    "raw.pt": { wrapper: "", others: [], parallel: false, extras: [] },
    "llamagen.pt": {
      wrapper: "model",
      others: [],
      parallel: false,
      extras: ["optimizer (a dict)", "steps (7)", "args (argparse.Namespace(...))"],
    },
    "averaged.pt": { wrapper: "ema", others: ["model"], parallel: false, extras: ["steps (7)"] },
    "deepspeed.pt": { wrapper: "module", others: [], parallel: true, extras: ["global_steps (3)"] },
    "lightning.ckpt": {
      wrapper: "state_dict",
      others: [],
      parallel: false,
      extras: ["epoch (1)", "callbacks (a dict)", 'pytorch-lightning_version ("2.0")'],
    },
  });
  for (const name of ["raw.pt", "llamagen.pt", "deepspeed.pt", "lightning.ckpt"])
    assert.equal(bias(golden(name)), 0.5);
});

test("an average of the weights is preferred, and another state dict can be asked for", () => {
  assert.equal(bias(golden("averaged.pt")), 10.5);
  assert.equal(bias(golden("averaged.pt"), "model"), 0.5);
  assert.equal(bias(golden("unusual.pt"), "generator"), 0.5);
});

test("safetensors files come with their metadata, whatever their name", () => {
  using weight = tensor([
    [1, 2, 3],
    [4, 5, 6],
  ]);
  using b = tensor([0.5, 0.5]);
  const path = join(folder, "weights.bin");
  saveSafetensors(path, { "conv.weight": weight, "conv.bias": b }, { family: "test" });
  assert.equal(bias(path), 0.5);
  using file = openWeights(path);
  assert.deepEqual([file.format, file.metadata.family], ["safetensors", "test"]);
});

test("a file without weights says what it holds and what to do", () => {
  const message = (name: string, wrapper?: string): string => {
    try {
      openWeights(golden(name), wrapper === undefined ? {} : { wrapper }).close();
    } catch (error) {
      return (error as Error).message;
    }
    return "no error";
  };
  const usual = "a state dict, flat or under ema, model, module, state_dict, model_state_dict";
  assert.equal(
    message("no_weights.pt"),
    `${golden("no_weights.pt")}: expected ${usual}, got keys steps, args. Save model.state_dict().`,
  );
  assert.equal(
    message("unusual.pt"),
    `${golden("unusual.pt")}: expected ${usual}, got keys generator, steps. Tensors are under generator: name one as wrapper.`,
  );
  assert.equal(
    message("averaged.pt", "module"),
    `${golden("averaged.pt")}: expected a state dict "module", got keys model, ema, steps. Tensors are under ema, model: name one as wrapper.`,
  );
  assert.equal(
    message("list.pt"),
    `${golden("list.pt")}: expected a state dict, or a dict that holds one, got a list or tuple. Save model.state_dict().`,
  );
});

test("nothing is left open or alive", () => {
  const before = memory().tensors;
  for (let i = 0; i < 3; i++) bias(golden("raw.pt"));
  assert.equal(memory().tensors, before);
});
