/** The parts of a run: which images are trained and evaluated on, and what is refused. */
import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";

import { resolveConfig } from "../../src/config/resolve.js";
import { openRunParts } from "../../src/rl_ar_finetune/parts.js";
import { native } from "../../src/torch/binding.js";
import { memory, saveSafetensors } from "../../src/torch/index.js";
import { TinyPolicy } from "../support/tiny_policy.js";
import { tinyFolder, tinyRun, tinyTokenizer } from "../support/train_run.js";
import "../support/settle.js";

test("the held-out images are no training images, and the training images are all others", async (t) => {
  const folder = await tinyFolder(t, 20);
  const values = { eval: { every: 1, images: 100 }, data: { evalPart: 0.2 }, rollout: { images: 4 } };
  const { config } = resolveConfig({ values: tinyRun(folder, values) });
  const parts = await openRunParts(config);
  const idsOf = async (): Promise<string[]> => {
    const ids: string[] = [];
    for await (const batch of parts.evalBatches()) {
      ids.push(...batch.ids);
      batch.dispose();
    }
    return ids;
  };
  const held = await idsOf();
  assert.deepEqual(await idsOf(), held);
  assert.equal(held.length, parts.evalImages);
  assert.ok(held.length >= 2 && held.length <= 6, `${held.length}`);
  const batches = parts.batchesFrom(undefined);
  const seen = new Set<string>();
  for (let i = 0; i < 10; i++) {
    using batch = await batches.next();
    for (const id of batch.ids) seen.add(id);
  }
  batches.close();
  assert.equal(seen.size, 20 - held.length);
  for (const id of held) assert.ok(!seen.has(id), id);
});

test("precision.tf32 holds for as long as the parts of a run are open", async (t) => {
  const folder = await tinyFolder(t);
  const flags = (): number => {
    const now = native.tf32(0);
    native.tf32(now);
    return now;
  };
  const before = flags();
  for (const [tf32, wanted] of [
    [false, 0],
    [true, 3],
  ] as const) {
    const { config } = resolveConfig({ values: tinyRun(folder, { precision: { tf32 } }) });
    {
      using _parts = await openRunParts(config);
      assert.equal(flags(), wanted);
    }
    assert.equal(flags(), before);
  }
});

test("what a run cannot be made of", async (t) => {
  const folder = await tinyFolder(t);
  const refused = async (changes: object): Promise<string> => {
    const { config } = resolveConfig({ values: tinyRun(folder, changes) });
    return openRunParts(config).then(
      () => "nothing",
      (error: Error) => error.message,
    );
  };
  assert.equal(
    await refused({ data: { size: 18 } }),
    "data.size: expected a multiple of 4, the pixels of a code, got 18.",
  );
  assert.equal(
    await refused({ blockSize: 9 }),
    "data.size: expected images of at most 9 codes, the policy's, got 16. Use images of 12 px, or another policy.",
  );
  assert.equal(
    await refused({ rollout: { maxLen: 9 } }),
    "rollout.maxLen: expected 16, the codes of an image of 16 px, got 9. " +
      "The decoder wants all codes of an image: change data.size, or omit maxLen.",
  );
  assert.match(await refused({ tokenizer: { path: join(folder, "none.safetensors") } }), /none\.safetensors/);
  assert.match(await refused({ data: { source: join(folder, "nothing") } }), /nothing/);
});

test("what was opened or built is freed with the run, also when a later part cannot be had; a program's own is not", async (t) => {
  const folder = await tinyFolder(t);
  using model = tinyTokenizer();
  using policy = new TinyPolicy({ vocabSize: 32, blockSize: 16 });
  const before = memory();
  const whole = {
    algorithm: "ppo",
    ema: { decay: 0.9 },
    kl: { coef: 0.1 },
    ar: { lora: { rank: 2, targets: ["query"] } },
  };
  const open = (changes: object) => openRunParts(resolveConfig({ values: tinyRun(folder, changes) }).config);
  for (const changes of [{}, whole]) {
    const parts = await open(changes);
    assert.ok(memory().tensors > before.tensors);
    parts[Symbol.dispose]();
    parts[Symbol.dispose]();
    assert.equal(memory().tensors, before.tensors);
    await assert.rejects(open({ ...changes, data: { source: join(folder, "nothing") } }));
    assert.equal(memory().tensors, before.tensors);
  }
  const own = await open({ ...whole, tokenizer: { model }, ar: { ...whole.ar, type: null, policy } });
  assert.equal(own.policy, policy);
  own[Symbol.dispose]();
  assert.equal(memory().tensors, before.tensors);
  assert.ok(policy.parameters().every((parameter) => !parameter.isDisposed && parameter.requiresGrad));
  assert.ok(model.parameters().every((parameter) => !parameter.isDisposed));
});

test("who measures the divergence: a copy, the policy without adapters, a file, or nobody", async (t) => {
  const folder = await tinyFolder(t);
  const open = (changes: object) => openRunParts(resolveConfig({ values: tinyRun(folder, changes) }).config);
  using none = await open({});
  assert.equal(none.reference, null);
  using copy = await open({ kl: { stop: 1 } });
  assert.equal(copy.reference?.parameters().length, copy.policy.parameters().length);
  assert.ok(copy.reference?.parameters().every((parameter) => !parameter.requiresGrad));
  using adapted = await open({ kl: { coef: 0.1 }, ar: { lora: { rank: 2 } } });
  assert.deepEqual(adapted.reference?.parameters(), []);
  assert.equal(adapted.trained, adapted.lora);
  const path = join(folder, "base.safetensors");
  saveSafetensors(path, none.policy.stateDict(), { config: JSON.stringify(none.policy.options) });
  using file = await open({ kl: { coef: 0.1, path }, ar: { lora: { rank: 2 } } });
  assert.equal(file.reference?.parameters().length, none.policy.parameters().length);
});
