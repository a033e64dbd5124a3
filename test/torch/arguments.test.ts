import assert from "node:assert/strict";
import { test } from "node:test";

import {
  camelCase,
  isPlainObject,
  nearestName,
  readOptions,
  unknownName,
} from "../../src/torch/arguments.js";
import { ones } from "../../src/torch/index.js";

interface Options {
  topK?: number;
  topP?: number;
  mask?: unknown;
  valueClip?: number | null;
}

const read = (...given: unknown[]): Options =>
  readOptions<Options>("f", given, {
    names: { topK: "number", topP: "number", mask: "nullable", valueClip: "nullable" },
    order: ["topK", "topP", "mask"],
  });

test("options are read by name, in either spelling", () => {
  assert.deepEqual(read(), {});
  assert.deepEqual(read(undefined), {});
  assert.deepEqual(read({}), {});
  assert.deepEqual(read({ topK: 5 }), { topK: 5 });
  assert.deepEqual(read({ top_k: 5, topP: 0.5 }), { topK: 5, topP: 0.5 });
  assert.deepEqual(read(Object.assign(Object.create(null), { top_k: 5 })), { topK: 5 });
});

test("options are read by place, with names behind", () => {
  using mask = ones([2]);
  assert.deepEqual(read(5), { topK: 5 });
  assert.deepEqual(read(5, 0.5), { topK: 5, topP: 0.5 });
  assert.deepEqual(read(null, 0.5), { topP: 0.5 });
  assert.equal(read(undefined, undefined, mask).mask, mask);
  assert.deepEqual(read(5, { top_p: 0.5 }), { topK: 5, topP: 0.5 });
});

test("null is a value where the option has it, and absence elsewhere", () => {
  assert.deepEqual(read({ topK: null, valueClip: null }), { valueClip: null });
  assert.deepEqual(read({ topK: undefined, valueClip: undefined }), {});
});

test("what a function does not know is refused, with the nearest name", () => {
  const near = (name: string, wanted: string): void =>
    assert.throws(() => read({ [name]: 1 }), {
      name: "RangeError",
      message: new RegExp(`^f: .*${name}.*"${wanted}"`),
    });
  near("topk", "topK");
  near("topKk", "topK");
  near("tpoK", "topK");
  near("vlaue_clip", "valueClip");
  near("value_clipp", "valueClip");
  for (const name of ["toString", "constructor", "__proto__", "hasOwnProperty", "completely", ""]) {
    const given = JSON.parse(`{${JSON.stringify(name)}: 3}`) as object;
    assert.throws(
      () => read(given),
      { name: "RangeError", message: /^f: .*topK, topP, mask, valueClip/ },
      name,
    );
  }
  assert.throws(() => read({ topk: undefined }), RangeError);
});

test("values too many, twice or unexpected are refused", () => {
  assert.throws(() => read(1, 2, null, 4), { name: "RangeError", message: /3 values.*topK, topP, mask/ });
  assert.throws(() => read(1, { topK: 2 }), { name: "RangeError", message: /topK once/ });
  assert.throws(() => read({ topK: 1, top_k: 2 }), { name: "RangeError", message: /topK once/ });
  const named = (...given: unknown[]): object =>
    readOptions<{ a?: number }>("g", given, { names: { a: "number" } });
  assert.throws(() => named("l1"), { name: "TypeError", message: /^g: .*object of options.*l1.*a/ });
  assert.throws(() => named({ a: 1 }, "l1"), { name: "TypeError", message: /^g: / });
  const none = (...given: unknown[]): object => readOptions("h", given, { names: {} });
  assert.deepEqual(none({}), {});
  assert.throws(() => none({ a: 1 }), { name: "RangeError", message: /no options/ });
});

test("an instance of a class is a value, not options", () => {
  class Own {
    topK = 3;
  }
  const own = new Own();
  assert.equal(read(null, null, own).mask, own);
  assert.ok(isPlainObject({}) && isPlainObject(Object.create(null)));
  for (const value of [null, undefined, 3, "a", [], own, new Map()]) assert.ok(!isPlainObject(value));
});

test("the nearest name is within a third of the letters", () => {
  assert.equal(nearestName("n_layers", ["nLayer", "nHead"]), "nLayer");
  assert.equal(nearestName("NLAYER", ["nLayer"]), "nLayer");
  assert.equal(nearestName("rl", ["lr"]), undefined);
  assert.equal(nearestName("lrr", ["lr"]), "lr");
  assert.equal(nearestName("gradNorm", ["maxGradNorm", "normalize"]), "maxGradNorm");
  assert.equal(nearestName("ckpt", ["device", "ckptPath"]), "ckptPath");
  assert.equal(nearestName("ck", ["device", "ckptPath"]), undefined);
  assert.equal(nearestName("whatever", ["lr", "betas"]), undefined);
  assert.equal(nearestName("x", []), undefined);
});

test("names of Python become names of JavaScript", () => {
  const names = {
    max_grad_norm: "maxGradNorm",
    n_embd: "nEmbd",
    l1: "l1",
    w_2: "w2",
    _own: "_own",
    topK: "topK",
  };
  for (const [python, wanted] of Object.entries(names)) assert.equal(camelCase(python), wanted);
  assert.match(
    unknownName("cfg", "colour", ["color"], "key").message,
    /^cfg: expected a known key, got colour\. .*"color"/,
  );
});
