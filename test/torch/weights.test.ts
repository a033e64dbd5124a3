import assert from "node:assert/strict";
import { mkdirSync, mkdtempSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";

import { memory, ones, saveTorch, tensor, tidy, zeros } from "../../src/torch/index.js";
import { saveSafetensors } from "../../src/torch/safetensors.js";
import { openWeights } from "../../src/torch/weights.js";
import { noLeak } from "../support/leak.js";
import { global, num, pickle, reduce, str, zipOf } from "../support/pickled.js";

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
      return [name, { wrapper: file.wrapper, others: file.otherWrappers, extras: file.extras }];
    }),
  );
  assert.deepEqual(found, {
    "raw.pt": { wrapper: "", others: [], extras: [] },
    "llamagen.pt": {
      wrapper: "model",
      others: [],

      extras: ["optimizer (a dict)", "steps (7)", "args (argparse.Namespace(...))"],
    },
    "averaged.pt": { wrapper: "ema", others: ["model"], extras: ["steps (7)"] },
    "deepspeed.pt": { wrapper: "module", others: [], extras: ["global_steps (3)"] },
    "lightning.ckpt": {
      wrapper: "state_dict",
      others: [],

      extras: ["epoch (1)", "callbacks (a dict)", 'pytorch-lightning_version ("2.0")'],
    },
  });
  for (const name of ["raw.pt", "llamagen.pt", "deepspeed.pt", "lightning.ckpt"])
    assert.equal(bias(golden(name)), 0.5);
});

test("the EMA of the weights is preferred, and another state dict can be asked for", () => {
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

test("what wrappers of a module add to names is taken off, in any order and depth, under any key", () => {
  const path = join(folder, "wrapped.pt");
  const prefixes = [
    "module.",
    "_orig_mod.",
    "module._orig_mod.",
    "_orig_mod.module.",
    "_fsdp_wrapped_module.",
    "_forward_module.",
    "_fpw_module.module.",
  ];
  for (const prefix of ["", ...prefixes]) {
    for (const inner of ["", "module.", "_orig_mod.", "_checkpoint_wrapped_module._orig_mod."]) {
      for (const key of ["model", "ema", "state_dict", "generator"]) {
        tidy(() => {
          const state = {
            [`${prefix}enc.${inner}conv.weight`]: ones([2]),
            [`${prefix}dec.module_list.0`]: ones([1]),
          };
          saveTorch(path, { [key]: state });
        });
        using file = openWeights(path, key === "generator" ? { wrapper: key } : {});
        assert.deepEqual(file.names, ["enc.conv.weight", "dec.module_list.0"]);
      }
    }
  }
  tidy(() => saveTorch(path, { "module.a": ones([1]), a: ones([1]) }));
  assert.throws(() => openWeights(path), /expected one tensor a, got module\.a and a/);
});

test("an object where the weights should be would run code, which is said", () => {
  const said = /would run code.*save model\.state_dict\(\)/s;
  for (const name of ["module.pt", "module_legacy.pt"]) {
    const path = join("test/golden/checkpoints", name);
    assert.throws(() => openWeights(path), said, name);
  }
  const object = reduce(global("my.models", "Net"));
  const path = join(folder, "object.pt");
  for (const key of ["model", "state_dict", "ema", "generator"]) {
    const data = pickle("}(", str(key), object, str("step"), num(3), "u");
    writeFileSync(path, zipOf([{ name: "archive/data.pkl", data }]));
    const options = key === "generator" ? { wrapper: key } : {};
    assert.throws(() => openWeights(path, options), said, key);
    assert.throws(
      () => openWeights(path, options),
      new RegExp(`object\\.pt: ${key}: expected a state dict.*my\\.models\\.Net`),
    );
  }
});

/** Two shards and their index in a folder of their own. */
function shards(
  name: string,
  change: (index: { weight_map: Record<string, unknown> }) => unknown = (index) => index,
) {
  const at = join(folder, name);
  mkdirSync(at);
  const file = (i: number): string => `model-0000${i}-of-00002.safetensors`;
  tidy(() => {
    saveSafetensors(join(at, file(1)), { a: ones([2, 3]), "module.b": zeros([1]) }, { format: "pt" });
    saveSafetensors(join(at, file(2)), { c: ones([4]).mul(3) });
  });
  const index = { metadata: { total_size: 44 }, weight_map: { a: file(1), "module.b": file(1), c: file(2) } };
  const path = join(at, "model.safetensors.index.json");
  writeFileSync(path, JSON.stringify(change(index)));
  return { at, path, first: join(at, file(1)), second: join(at, file(2)) };
}

test("weights in shards are read through their index, or the folder that holds it", () => {
  const { at, path } = shards("shards");
  noLeak(() => {
    for (const each of [path, at]) {
      using file = openWeights(each);
      assert.equal(file.format, "safetensors");
      assert.deepEqual(file.shapes, { b: [1], a: [2, 3], c: [4] });
      using c = file.tensor("c");
      assert.deepEqual(c.toList(), [3, 3, 3, 3]);
    }
  });
  const other = join(folder, "bin");
  mkdirSync(other);
  tidy(() => {
    saveTorch(join(other, "pytorch_model-00001-of-00002.bin"), { a: ones([1]) });
    saveTorch(join(other, "pytorch_model-00002-of-00002.bin"), { b: ones([2]) });
  });
  const weight_map = { a: "pytorch_model-00001-of-00002.bin", b: "pytorch_model-00002-of-00002.bin" };
  writeFileSync(join(other, "pytorch_model.bin.index.json"), JSON.stringify({ weight_map }));
  using file = openWeights(other);
  assert.deepEqual([file.format, file.shapes], ["zip", { a: [1], b: [2] }]);
});

test("one shard of several asks for the index; a single shard is whole", () => {
  const { first, second } = shards("one");
  assert.throws(
    () => openWeights(first),
    /got shard 1 of 2\. Give the index, model\.safetensors\.index\.json/,
  );
  assert.throws(() => openWeights(second), /got shard 2 of 2\. Give the index/);
  const alone = join(folder, "model-00001-of-00001.safetensors");
  tidy(() => saveSafetensors(alone, { a: ones([1]) }));
  using file = openWeights(alone);
  assert.deepEqual(file.names, ["a"]);
});

test("an index that does not fit its shards is refused with the name, and no file stays open", () => {
  type Index = { weight_map: Record<string, unknown> };
  const changed = (change: (map: Record<string, unknown>) => void) => (index: Index) => {
    change(index.weight_map);
    return index;
  };
  const cases: [string, (index: Index) => unknown, RegExp][] = [
    [
      "absent",
      changed((map) => Object.assign(map, { d: "model-00001-of-00002.safetensors" })),
      /expected d, as the index/,
    ],
    ["extra", changed((map) => delete map.a), /expected a in its weight_map/],
    ["other", changed((map) => Object.assign(map, { a: map.c })), /expected a, as the index says, got none/],
    [
      "file",
      changed((map) => Object.assign(map, { d: "model-3.safetensors" })),
      /model-3\.safetensors: expected a file/,
    ],
    [
      "above",
      changed((map) => Object.assign(map, { d: "../x.safetensors" })),
      /: d: expected the name of a file/,
    ],
    ["number", changed((map) => Object.assign(map, { d: 3 })), /: d: expected the name of a file/],
    [
      "itself",
      changed((map) => Object.assign(map, { d: "model.safetensors.index.json" })),
      /: d: expected the name/,
    ],
    ["empty", () => ({ weight_map: {} }), /expected a weight_map/],
    ["list", () => [], /expected a weight_map/],
    ["null", () => null, /expected a weight_map/],
  ];
  for (const [name, change, message] of cases) {
    const { path } = shards(`bad-${name}`, change);
    assert.throws(() => openWeights(path), { name: "RangeError", message }, name);
  }
  const { path, second } = shards("cut");
  truncateSync(second, 20);
  assert.throws(() => openWeights(path), /model-00002-of-00002\.safetensors: expected/);
  writeFileSync(path, `{"weight_map":${"[".repeat(100_000)}${"]".repeat(100_000)}}`);
  assert.throws(() => openWeights(path), /at most 64 lists and objects deep/);
  const empty = join(folder, "without");
  mkdirSync(empty);
  assert.throws(
    () => openWeights(empty),
    /expected a weights file, or a folder with one \*\.index\.json, got one without/,
  );
  writeFileSync(join(empty, "a_optim_states.pt"), "");
  writeFileSync(join(empty, "model-00001-of-00002.safetensors"), "");
  assert.throws(() => openWeights(empty), /Fetch the index, \*\.index\.json, that belongs to the shards/);
  writeFileSync(join(empty, "policy.safetensors"), "");
  assert.throws(() => openWeights(empty), /Name the file, such as \S+policy\.safetensors/);
});

test("describing reads headers alone: data that is not there, or huge, costs nothing until it is read", () => {
  noLeak(() => {
    const { bytes } = memory({ resetPeak: true });
    for (const name of ["raw.pt", "llamagen.pt", "deepspeed.pt"]) {
      using file = openWeights(golden(name));
      assert.ok(file.names.length > 0 && file.info(file.names[0] as string).shape.length > 0);
    }
    const header = Buffer.from(`{"w":{"dtype":"F32","shape":[${2 ** 34}],"data_offsets":[0,${2 ** 36}]}}`);
    const sparse = join(folder, "sparse.safetensors");
    const head = Buffer.alloc(8);
    head.writeBigUInt64LE(BigInt(header.length));
    writeFileSync(sparse, Buffer.concat([head, header]));
    truncateSync(sparse, 8 + header.length + 2 ** 36); // 64 GiB of nothing
    using file = openWeights(sparse);
    assert.deepEqual(file.info("w").shape, [2 ** 34]);
    assert.equal(memory().peakBytes, bytes);
  });
  rmSync(join(folder, "sparse.safetensors"));
});

test("state dicts deeper down can be asked for by their keys, and are named", () => {
  const path = join(folder, "deep.pt");
  tidy(() => {
    const weights = { "conv.weight": ones([2, 3]), "conv.bias": tensor([0.5, 0.5]) };
    saveTorch(path, {
      checkpoint: { state_dict: weights, optimizer: { state: { a: ones([1]) } } },
      models: [weights],
    });
  });
  assert.throws(() => openWeights(path), {
    message:
      /got keys checkpoint, models\. Tensors are under checkpoint\.state_dict.*: name one as wrapper\.$/,
  });
  assert.equal(bias(path, "checkpoint.state_dict"), 0.5);
});

test("what is no weights, under the name of some, is told from damage", () => {
  const refused = (name: string, content: string | Buffer, message: RegExp): void => {
    writeFileSync(join(folder, name), content);
    assert.throws(() => openWeights(join(folder, name)), { name: "RangeError", message });
  };
  refused(
    "a.safetensors",
    "version https://git-lfs.github.com/spec/v1\noid x\n",
    /got a git-lfs pointer\. Fetch/,
  );
  refused("b.safetensors", "<!DOCTYPE html><html></html>", /got a web page\. The download/);
  refused(
    "c.safetensors",
    zipOf([{ name: "x/y", data: Buffer.from("z") }]),
    /got a zip archive\. If torch\.save wrote it, rename it/,
  );
  const array = reduce(global("numpy._core.multiarray", "_reconstruct"));
  const data = pickle("}(", str("a"), array, "u");
  refused("e.pt", zipOf([{ name: "x/data.pkl", data }]), /keys a, each numpy\._core/);
});
