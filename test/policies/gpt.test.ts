/** minGPT: published keys, PyTorch's numbers, decoding step by step, and the ways in which a condition joins. */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { init } from "../../src/nn/index.js";
import { GPT } from "../../src/policies/index.js";
import { manualSeed, randn, type Tensor, tensor, tidy } from "../../src/torch/index.js";
import { expectClose } from "../support/close.js";
import { noLeak } from "../support/leak.js";
import {
  checkCheckpointing,
  checkGolden,
  checkGroups,
  checkIncremental,
  type GoldenName,
  publishedShapes,
  shapesOf,
  withGolden,
} from "./support.js";

const SIZE = { vocabSize: 20, blockSize: 16, nLayer: 2, nHead: 2, nEmbd: 16 };
const codes = (...rows: number[][]): Tensor => tensor(rows, { dtype: "int64" });
const ids = (...list: number[]): Tensor => tensor(list, { dtype: "int64" });

test("the state dict has the published keys and shapes, without the causal masks", () => {
  using gpt = init.skipInit(() => new GPT({ vocabSize: 16384, blockSize: 1024, nHead: 12, nEmbd: 768 }));
  const published = publishedShapes("mingpt_12x768.tsv").filter(([key]) => !key.endsWith(".attn.mask"));
  assert.deepEqual(shapesOf(gpt), published);
});

test("a codebook and features add keys of their own", () => {
  const extra = (options: Partial<ConstructorParameters<typeof GPT>[0]>): string[] => {
    using plain = new GPT({ ...SIZE, nLayer: 1 });
    using gpt = new GPT({ ...SIZE, nLayer: 1, ...options });
    const known = new Set(shapesOf(plain).map(String));
    return shapesOf(gpt).flatMap(([key, shape]) => (known.has(`${key},${shape}`) ? [] : [`${key} ${shape}`]));
  };
  assert.deepEqual(extra({ usePretrainedCodebook: true, nCodebookEmbd: 8 }), [
    "tok_emb.weight [20, 8]",
    "embedding_projection.weight [16, 8]",
    "embedding_projection.bias [16]",
  ]);
  const joined = ["uncond_embedding [1, 1, 6]", "cond_proj.weight [16, 6]", "cond_proj.bias [16]"];
  const prepended = extra({ features: { kind: "prepend", dim: 6, tokens: 5 } });
  assert.deepEqual(prepended, ["pos_emb [1, 21, 16]", ...joined]);
  assert.deepEqual(extra({ features: { kind: "cross", dim: 6 } }), [
    ...joined,
    "blocks.0.ln_cross.weight [16]",
    "blocks.0.ln_cross.bias [16]",
    ...["key", "query", "value", "proj"].flatMap((name) => [
      `blocks.0.cross_attn.${name}.weight [16, 16]`,
      `blocks.0.cross_attn.${name}.bias [16]`,
    ]),
  ]);
});

for (const name of ["gpt", "gpt_codebook", "gpt_prepend", "gpt_cross"] satisfies GoldenName[]) {
  describe(name, () => {
    test("logits and gradients are PyTorch's", () => withGolden(name, checkGolden));
    test("step by step is teacher-forced", () => withGolden(name, checkIncremental));
    test("a group shares its prefill", () => withGolden(name, checkGroups));
    test("checkpointing changes no gradient", () => withGolden(name, checkCheckpointing));
  });
}

test("initial values are GPT-2's", () => {
  manualSeed(3);
  using gpt = new GPT({
    ...SIZE,
    nLayer: 3,
    nEmbd: 128,
    vocabSize: 200,
    features: { kind: "cross", dim: 40 },
  });
  tidy(() => {
    for (const [key, parameter] of gpt.namedParameters()) {
      const { mean, std } = { mean: parameter.mean().item(), std: parameter.std().item() };
      const isNorm = /(ln1|ln2|ln_cross|ln_f)\.weight$/.test(key);
      const isZero = key.endsWith("bias") || key === "pos_emb" || key.includes("cross_attn.proj");
      if (isNorm || isZero) assert.deepEqual([mean, std], [isNorm ? 1 : 0, 0], key);
      else assert.ok(Math.abs(mean) < 0.01 && Math.abs(std - 0.02) < 0.005, `${key}: ${mean} ${std}`);
    }
  });
});

test("cross-attention adds nothing before it is trained", () =>
  tidy(() => {
    using gpt = new GPT({ ...SIZE, features: { kind: "cross", dim: 6 } }).eval();
    const classes = ids(3);
    const plain = gpt.forward(codes([1, 2, 3]), { classes });
    assert.ok(gpt.forward(codes([1, 2, 3]), { classes, features: randn([1, 5, 6]) }).equal(plain));
  }));

test("rows of the codebook are the codes' table", () =>
  tidy(() => {
    const codebook = randn([20, 8]);
    using gpt = new GPT({ ...SIZE, usePretrainedCodebook: true, nCodebookEmbd: 8, codebook });
    assert.ok(gpt.tok_emb.weight.equal(codebook));
    assert.ok(gpt.tok_emb.weight.requiresGrad);
    codebook.zero_();
    assert.ok(!gpt.tok_emb.weight.equal(codebook), "copied");
    const build = (options: object) => () => new GPT({ ...SIZE, ...options });
    assert.throws(build({ codebook }), {
      message: "GPT: expected usePretrainedCodebook where a codebook is given, got false.",
    });
    assert.throws(build({ codebook, usePretrainedCodebook: true, nCodebookEmbd: 256 }), {
      message: "GPT: expected a codebook of shape [20, 256], got Tensor float32[20, 8] cpu.",
    });
    using inferred = build({ codebook, usePretrainedCodebook: true })();
    assert.deepEqual(inferred.tok_emb.weight.shape, [20, 8]);
  }));

test("an empty condition is the null class, and with classNum 0 the only start", () =>
  withGolden("gpt", ({ policy, tokens }) => {
    const context = tokens.narrow(1, 0, 5);
    const wanted = policy.forward(context, { classes: ids(6, 6) });
    assert.ok(policy.forward(context, {}).equal(wanted));
    const dropped = { classes: ids(1, 2), isDropped: tensor([1, 1], { dtype: "bool" }) };
    assert.ok(policy.forward(context, dropped).equal(wanted));
    using start = new GPT({ ...SIZE, classNum: 0 }).eval();
    assert.deepEqual(start.class_emb.embedding_table.weight.shape, [1, 16]);
    assert.deepEqual(start.forward(context, {}).shape, [2, 6, 20]);
    assert.throws(() => start.forward(context, { classes: ids(0, 0) }), {
      message:
        "GPT.hidden: expected a condition without classes, got Tensor int64[2] cpu. This policy has no class embedding.",
    });
  }));

for (const name of ["gpt_prepend", "gpt_cross"] as const) {
  test(`${name}: dropped, absent and null features are one, row by row, and train the null row`, () =>
    withGolden(name, ({ policy, tokens, condition }) => {
      const context = tokens.narrow(1, 0, 5);
      const none = policy.forward(context, policy.nullCondition(condition));
      const given = policy.forward(context, condition);
      const isDropped = tensor([0, 1], { dtype: "bool" });
      const mixed = policy.forward(context, { ...condition, isDropped });
      expectClose(mixed.select(0, 0), given.select(0, 0), { atol: 1e-6 });
      expectClose(mixed.select(0, 1), none.select(0, 1), { atol: 1e-6 });
      // Without a mask, an absent condition and one that is all dropped are the same.
      const { classes = ids(), features = randn([0]) } = condition;
      const all = tensor([1, 1], { dtype: "bool" });
      const whole = policy.forward(context, { classes, features, isDropped: all });
      expectClose(whole, policy.forward(context, {}), { atol: 2e-6, where: "absent" });
      mixed.sum().backward();
      const row = Object.fromEntries(policy.namedParameters()).uncond_embedding?.grad;
      assert.ok((row?.abs().sum().item() ?? 0) > 0);
    }));
}

test("features change what is said, padding does not", () =>
  withGolden("gpt_cross", ({ policy, tokens, condition }) => {
    const context = tokens.narrow(1, 0, 5);
    const { features, isReal } = condition as { features: Tensor; isReal: Tensor };
    const plain = policy.forward(context, condition);
    const padding = features.add(isReal.logicalNot().unsqueeze(-1).float());
    expectClose(policy.forward(context, { ...condition, features: padding }), plain, { atol: 1e-6 });
    const real = features.add(isReal.unsqueeze(-1).float());
    const moved = policy
      .forward(context, { ...condition, features: real })
      .sub(plain)
      .abs()
      .amax([1, 2]);
    assert.ok(moved.amin().item() > 1e-2);
  }));

test("dropout acts in training alone", () =>
  tidy(() => {
    const rates = { embdPdrop: 0.3, residPdrop: 0.3, attnPdrop: 0.3, tokenDrop: 0.3 };
    for (const [name, p] of Object.entries(rates)) {
      using gpt = new GPT({ ...SIZE, tokenDrop: 0, [name]: p });
      for (const parameter of gpt.parameters()) parameter.detach().add_(0.1);
      const run = (): Tensor => gpt.forward(codes([1, 2, 3, 4, 5, 6]), { classes: ids(3) });
      assert.ok(!run().equal(run()), `${name} in training`);
      gpt.eval();
      assert.ok(run().equal(run()), `${name} in evaluation`);
    }
  }));

test("what does not fit is refused", () =>
  noLeak(() =>
    tidy(() => {
      using gpt = new GPT(SIZE).eval();
      using cache = gpt.openCache(1, { maxLen: 4 });
      const classes = ids(3);
      const none = codes([]).reshape(1, 0);
      const fails = (fn: () => unknown, message: string): void => assert.throws(fn, { message });
      fails(() => new GPT({ ...SIZE, nHead: 3 }), "GPT: expected a number of heads that divides 16, got 3.");
      fails(
        () => gpt.forward(codes(Array(16).fill(0)), { classes }),
        "GPT.hidden: expected at most 15 tokens before the predicted ones, got 16. " +
          "The last code of an image predicts nothing: omit it.",
      );
      fails(
        () => gpt.forward(ids(1, 2), { classes }),
        "GPT.hidden: expected int64 tokens of shape [B, n], got Tensor int64[2] cpu.",
      );
      fails(
        () => gpt.forward(none, { classes: ids(1001) }),
        "condition.classes: expected classes in [0, 1000], got 1001. 1000 itself is the null class.",
      );
      fails(
        () => gpt.forward(none, { classes: ids(-1) }),
        "condition.classes: expected classes in [0, 1000], got -1. 1000 itself is the null class.",
      );
      fails(
        () => gpt.forward(none, { features: randn([1, 2, 3]) }),
        "GPT.hidden: expected a condition without features, got Tensor float32[1, 2, 3] cpu. " +
          "Build the policy for features to give it some.",
      );
      fails(
        () => gpt.decode(cache, ids(1)),
        "GPT.decode: expected a cache with a condition in it, got an empty one. Call prefill first.",
      );
      gpt.prefill(cache, codes([1, 2, 3]), { classes });
      fails(
        () => gpt.prefill(cache, none, { classes }),
        "GPT.prefill: expected an empty cache, got one of length 4. Call reset() first.",
      );
      fails(
        () => gpt.decode(cache, ids(1)),
        "GPT.decode: expected at most 4 positions, condition included, got 5. " +
          "Open a cache with a larger maxLen; the last code of an image is not fed.",
      );
      fails(
        () => gpt.decode(cache, ids(1, 2)),
        "GPT.decode: expected int64 token of shape [1], got Tensor int64[2] cpu.",
      );
      fails(
        () => gpt.openCache(1, { maxLen: 17 }),
        "GPT.openCache: expected an integer in [1, 16] as maxLen, got 17.",
      );
      using prepend = new GPT({ ...SIZE, features: { kind: "prepend", dim: 6, tokens: 5 } });
      fails(
        () => prepend.forward(none, { classes, features: randn([1, 4, 6]) }),
        "condition.features: expected shape [1, 5, 6], got Tensor float32[1, 4, 6] cpu. " +
          "Pad on the left with isReal false, or cut.",
      );
    }),
  ));
