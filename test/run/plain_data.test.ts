/** State as JSON: everything comes back as it was, and what cannot is refused by its place. */
import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";

import { decodeData, encodeData, type PlainData } from "../../src/run/plain_data.js";
import { zeros } from "../../src/torch/index.js";

const back = (value: PlainData): PlainData => decodeData(encodeData(value));

test("numbers that JSON has no word for, and big integers", () => {
  const value = {
    nan: Number.NaN,
    list: [Infinity, -Infinity, -0, 0],
    big: 2n ** 70n,
    small: -3n,
    tiny: 5e-324,
    none: null,
  };
  assert.deepEqual(back(value), value);
  assert.equal(
    encodeData({ a: [1n, Number.NaN] }),
    '{\n "a": [\n  {\n   "$bigint": "1"\n  },\n  {\n   "$number": "NaN"\n  }\n ]\n}\n',
  );
});

test("objects that look like those come back as objects", () => {
  for (const value of [
    { $number: "NaN" },
    { $bigint: "1" },
    { $object: { $number: 1 } },
    { $number: 1, b: 2 },
    { __proto__: null, a: 1 },
  ]) {
    assert.deepEqual(back(value), { ...value });
  }
  const named = JSON.parse('{"__proto__": 1, "constructor": 2}') as PlainData;
  assert.deepEqual(Object.entries(back(named) as object), [
    ["__proto__", 1],
    ["constructor", 2],
  ]);
});

test("any plain data comes back", () => {
  const plain = fc.letrec<{ value: PlainData }>((tie) => ({
    value: fc.oneof(
      { maxDepth: 4 },
      fc.string(),
      fc.double(),
      fc.bigInt(),
      fc.boolean(),
      fc.constant(null),
      fc.array(tie("value"), { maxLength: 3 }),
      fc.dictionary(
        fc.oneof(fc.string(), fc.constantFrom("$number", "$bigint", "$object", "__proto__")),
        tie("value"),
        {
          maxKeys: 3,
          noNullPrototype: true,
        },
      ),
    ),
  })).value;
  fc.assert(
    fc.property(plain, (value) => assert.deepStrictEqual(back(value), value)),
    { numRuns: 300, seed: 7 },
  );
});

test("keys that are undefined are left out", () => {
  assert.deepEqual(back({ a: undefined, b: 1 }), { b: 1 });
});

test("what is no plain data is refused by its place", () => {
  const tensor = zeros([2]);
  const remedy = "Save tensors among the checkpoint's tensors, and what else there is as numbers and text.";
  const refused = (value: unknown, message: string): void => {
    assert.throws(() => encodeData(value as PlainData, "values"), { name: "TypeError", message });
  };
  refused(
    { a: [1, { b: tensor }] },
    `values.a[1].b: expected plain data, got Tensor float32[2] cpu. ${remedy}`,
  );
  refused({ a: new Map() }, `values.a: expected plain data, got Map. ${remedy}`);
  refused([undefined], `values[0]: expected plain data, got undefined. ${remedy}`);
  refused(Symbol.iterator, `values: expected plain data, got Symbol(Symbol.iterator). ${remedy}`);
  tensor.dispose();
});
