/** Adapters: what they add, what is trained, merging, the model without them, and their state dict. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { packLinears } from "../../src/nn/index.js";
import { addLora, GPT, LlamaGen, type Lora, WithoutAdapters } from "../../src/policies/index.js";
import {
  manualSeed,
  noGrad,
  randn,
  setNumThreads,
  type Tensor,
  tensor,
  tidy,
} from "../../src/torch/index.js";
import { expectClose } from "../support/close.js";
import { noLeak } from "../support/leak.js";

setNumThreads(1); // Everything here is small.

const COMMON = { vocabSize: 20, blockSize: 16, nLayer: 2, nHead: 2 };
const SIZE = { ...COMMON, nEmbd: 16, classNum: 6 };
const tokens = (): Tensor => tensor([[1, 2, 3, 4]], { dtype: "int64" });

/** Give the adapters values, as training would. */
function train(lora: Lora): void {
  noGrad(() => {
    for (const parameter of lora.parameters()) tidy(() => parameter.copy_(randn(parameter.shape).mul(0.3)));
  });
}

test("adapters begin silent, add alpha / r B A x, and are all that is trained", () =>
  noLeak(() =>
    tidy(() => {
      manualSeed(1);
      using gpt = new GPT(SIZE).eval();
      const base = gpt.forward(tokens(), {});
      gpt.pos_emb.requiresGrad_(false);
      const lora = addLora(gpt, { rank: 4, alpha: 6 });
      expectClose(gpt.forward(tokens(), {}), base, { rtol: 0, atol: 0 });
      train(lora);
      const query = gpt.blocks[0]?.attn.query as NonNullable<(typeof gpt.blocks)[0]>["attn"]["query"];
      const x = randn([3, 16]);
      const { "blocks.0.attn.query.lora_A.weight": a, "blocks.0.attn.query.lora_B.weight": b } =
        lora.stateDict();
      const plain = x.matmul(query.weight.transpose(0, 1)).add(query.bias as Tensor);
      const added = x
        .matmul((a as Tensor).transpose(0, 1))
        .matmul((b as Tensor).transpose(0, 1))
        .mul(1.5);
      expectClose(query.forward(x), plain.add(added), { atol: 1e-6 });

      gpt.forward(tokens(), {}).sum().backward();
      assert.ok(gpt.parameters().every((parameter) => parameter.grad === null && !parameter.requiresGrad));
      assert.ok(lora.parameters().every((parameter) => (parameter.grad?.abs().sum().item() ?? 0) > 0));
      assert.equal(lora.parameters().length, 2 * 2 * 6);

      // Given back: layers, base model, and who is trained.
      lora.dispose();
      expectClose(gpt.forward(tokens(), {}), base, { rtol: 0, atol: 0 });
      const frozen = gpt.namedParameters().flatMap(([key, { requiresGrad }]) => (requiresGrad ? [] : [key]));
      assert.deepEqual(frozen, ["pos_emb"]);
    }),
  ));

test("off is the base model, merged is apart, and unmerged weights are the very ones of before", () =>
  noLeak(() =>
    tidy(() => {
      manualSeed(2);
      using gpt = new GPT(SIZE).eval();
      const run = (): Tensor => gpt.forward(tokens(), {});
      const base = run();
      const weights = gpt.parameters().map((parameter) => parameter.clone());
      using lora = addLora(gpt, { rank: 4 });
      train(lora);
      const adapted = run();
      assert.ok(adapted.sub(base).abs().amax().item() > 1e-2);
      assert.ok(lora.withAdaptersOff(run).equal(base));
      assert.throws(
        () => lora.withAdaptersOff(() => lora.withAdaptersOff(() => assert.fail("inside"))),
        /inside/,
      );
      assert.ok(run().equal(adapted), "on again after an error");

      lora.merge();
      assert.ok(lora.isMerged);
      expectClose(run(), adapted, { atol: 2e-6 });
      assert.throws(() => lora.merge(), {
        message: "Lora.merge: expected adapters that are apart, got merged ones. Call unmerge().",
      });
      assert.throws(() => lora.withAdaptersOff(run), {
        message: "Lora.withAdaptersOff: expected adapters that are apart, got merged ones. Call unmerge().",
      });
      lora.unmerge();
      assert.ok(run().equal(adapted));
      assert.ok(gpt.parameters().every((parameter, i) => parameter.equal(weights[i] as Tensor)));
      assert.throws(() => lora.unmerge(), {
        message: "Lora.unmerge: expected merged adapters, got adapters that are apart. Call merge().",
      });
    }),
  ));

test("disposed of while merged, they stay in the weights", () =>
  noLeak(() =>
    tidy(() => {
      using gpt = new GPT(SIZE).eval();
      const lora = addLora(gpt, { rank: 2 });
      train(lora);
      const adapted = gpt.forward(tokens(), {});
      lora.merge();
      lora.dispose();
      expectClose(gpt.forward(tokens(), {}), adapted, { atol: 2e-6 });
    }),
  ));

test("the state dict is the adapters' alone and loads into another copy; the base model's does not change", () =>
  tidy(() => {
    using model = new LlamaGen({ ...COMMON, dim: 16, ffnDim: 24, nLayer: 1 }).eval();
    const before = Object.keys(model.stateDict());
    using lora = addLora(model, { rank: 2, targets: ["wqkv", "layers.0.feed_forward.w2"] });
    assert.deepEqual(Object.keys(model.stateDict()), before);
    assert.deepEqual(
      Object.entries(lora.stateDict()).map(([key, { shape }]) => `${key} [${shape.join(", ")}]`),
      [
        "layers.0.attention.wqkv.lora_A.weight [2, 16]",
        "layers.0.attention.wqkv.lora_B.weight [48, 2]",
        "layers.0.feed_forward.w2.lora_A.weight [2, 24]",
        "layers.0.feed_forward.w2.lora_B.weight [16, 2]",
      ],
    );
    train(lora);
    model.output.weight.detach().copy_(randn([20, 16]));
    using copy = new LlamaGen({ ...COMMON, dim: 16, ffnDim: 24, nLayer: 1 }).eval();
    copy.loadStateDict(model.stateDict());
    using other = addLora(copy, { rank: 2, targets: (path) => /wqkv$|w2$/.test(path) });
    other.loadStateDict(lora.stateDict());
    assert.ok(copy.forward(tokens(), {}).equal(model.forward(tokens(), {})));
  }));

test("default targets are the projections of every policy's blocks", () => {
  using gpt = new GPT({ ...SIZE, nLayer: 1, features: { kind: "cross", dim: 6 } });
  using llama = new LlamaGen({ ...COMMON, dim: 16, nLayer: 1 });
  const paths = (lora: Lora): string[] => [...lora.namedChildren()].map(([path]) => path);
  using ofGpt = addLora(gpt, { rank: 1 });
  using ofLlama = addLora(llama, { rank: 1 });
  const names = ["key", "query", "value", "proj"];
  assert.deepEqual(paths(ofGpt), [
    ...names.map((name) => `blocks.0.attn.${name}`),
    "blocks.0.mlp.0",
    "blocks.0.mlp.2",
    ...names.map((name) => `blocks.0.cross_attn.${name}`),
  ]);
  const llamaNames = [
    "attention.wqkv",
    "attention.wo",
    "feed_forward.w1",
    "feed_forward.w3",
    "feed_forward.w2",
  ];
  assert.deepEqual(
    paths(ofLlama),
    llamaNames.map((name) => `layers.0.${name}`),
  );
});

test("adapters go with bfloat16 layers, dropout, checkpointing and decoding", () =>
  tidy(() => {
    manualSeed(3);
    using gpt = new GPT({ ...SIZE, tokenDrop: 0 });
    using lora = addLora(gpt, { rank: 4, dropout: 0.5 });
    train(lora);
    const run = (): Tensor => gpt.forward(tokens(), {});
    assert.ok(!run().equal(run()), "dropout in training");
    gpt.eval();
    const wanted = run();
    assert.ok(run().equal(wanted));
    using cache = gpt.openCache(1);
    gpt.prefill(cache, tokens().narrow(1, 0, 3), {});
    expectClose(gpt.decode(cache, tokens().select(1, 3)), wanted.select(1, 4), { atol: 1e-5 });

    const gradients = (again: boolean): (Tensor | null)[] => {
      gpt.gradientCheckpointing = again;
      lora.zeroGrad();
      run().square().sum().backward();
      return lora.parameters().map((parameter) => parameter.grad);
    };
    const [kept, recomputed] = [gradients(false), gradients(true)];
    assert.ok(kept.every((grad, i) => grad?.equal(recomputed[i] as Tensor)));

    gpt.to({ dtype: "bfloat16" });
    assert.ok(lora.parameters().every((parameter) => parameter.dtype === "float32"));
    const scale = wanted.abs().amax().item();
    expectClose(run(), wanted, { rtol: 1e-2, atol: 0.03 * scale });
  }));

test("packed layers take merged weights", () =>
  tidy(() => {
    using gpt = new GPT(SIZE).eval();
    using lora = addLora(gpt, { rank: 4 });
    train(lora);
    const wanted = gpt.forward(tokens(), {});
    using _packed = packLinears(gpt);
    expectClose(
      noGrad(() => gpt.forward(tokens(), {})),
      wanted,
      { atol: 1e-5 },
    );
    lora.merge();
    expectClose(
      noGrad(() => gpt.forward(tokens(), {})),
      wanted,
      { atol: 1e-5 },
    );
  }));

test("what does not fit is refused", () => {
  using gpt = new GPT(SIZE);
  const kinds =
    "blocks.N.attn.key, blocks.N.attn.query, blocks.N.attn.value, blocks.N.attn.proj, blocks.N.mlp.N, head";
  assert.throws(() => addLora(gpt, { rank: 2, targets: ["query", "wq"] }), {
    message: `addLora.targets: expected ends of ${kinds}, got [wq].`,
  });
  assert.throws(() => addLora(gpt, { rank: 2, targets: () => false }), {
    message: `addLora.targets: expected ends of ${kinds}, got none that matches.`,
  });
  assert.throws(() => addLora(gpt, { rank: 0 }), {
    message: "addLora.rank: expected an integer of at least 1, got 0.",
  });
  assert.throws(() => addLora(gpt, { rank: 1, dropout: 1 }), {
    message: "addLora.dropout: expected a number in [0, 1), got 1.",
  });
  for (const alpha of [0, -1, Number.NaN, Infinity]) {
    assert.throws(() => addLora(gpt, { rank: 1, alpha }, "mine"), {
      message: `mine.alpha: expected a finite number above 0, got ${alpha}. Leave it out for alpha = rank.`,
    });
  }
  assert.ok(
    gpt.parameters().every((parameter) => parameter.requiresGrad),
    "a refusal changes nothing",
  );
  using _lora = addLora(gpt, { rank: 1 });
  assert.throws(() => addLora(gpt, { rank: 1 }), {
    message:
      "addLora: expected layers without adapters, got blocks.0.attn.key. Dispose of the other adapters first.",
  });
});

test("merged weights are a policy without adapters, and leave the adapted one as it is", () =>
  noLeak(() =>
    tidy(() => {
      manualSeed(4);
      using gpt = new GPT(SIZE).eval();
      using plain = new GPT(SIZE).eval();
      using lora = addLora(gpt, { rank: 3, alpha: 5, targets: ["query", "mlp.2", "head"] });
      train(lora);
      const before = Object.entries(gpt.stateDict()).map(([key, value]) => [key, value.clone()] as const);
      const merged = lora.mergedWeights();
      const layers = [0, 1].flatMap((i) => [`blocks.${i}.attn.query.weight`, `blocks.${i}.mlp.2.weight`]);
      assert.deepEqual(Object.keys(merged).sort(), [...layers, "head.weight"].sort());
      plain.loadStateDict({ ...gpt.stateDict(), ...merged });
      const wanted = gpt.forward(tokens(), {});
      expectClose(plain.forward(tokens(), {}), wanted, { atol: 1e-5 });
      for (const [key, value] of before)
        expectClose(gpt.stateDict()[key] as Tensor, value, { rtol: 0, atol: 0, where: key });
      lora.merge();
      assert.deepEqual(lora.mergedWeights(), {});
    }),
  ));

test("merged weights of bfloat16 layers keep small adapters", () =>
  tidy(() => {
    manualSeed(6);
    using gpt = new GPT(SIZE).eval().to({ dtype: "bfloat16" });
    using plain = new GPT(SIZE).eval();
    using lora = addLora(gpt, { rank: 2, targets: ["query"] });
    noGrad(() => {
      for (const parameter of lora.parameters())
        tidy(() => parameter.copy_(randn(parameter.shape).mul(1e-2)));
    });
    const query = (gpt.blocks[0] as (typeof gpt.blocks)[number]).attn.query;
    const { "blocks.0.attn.query.lora_A.weight": a, "blocks.0.attn.query.lora_B.weight": b } =
      lora.stateDict() as Record<string, Tensor>;
    const merged = lora.mergedWeights();
    const weight = merged["blocks.0.attn.query.weight"] as Tensor;
    assert.equal(weight.dtype, "float32");
    expectClose(weight.sub(query.weight.float()), b?.matmul(a as Tensor) as Tensor, { atol: 1e-7 });
    // A policy of either type takes them.
    plain.loadStateDict({ ...gpt.stateDict(), ...merged });
    expectClose(plain.blocks[0]?.attn.query.weight as Tensor, weight, { rtol: 0, atol: 0 });
    lora.merge();
    assert.equal(query.weight.dtype, "bfloat16");
    expectClose(query.weight, weight.to({ dtype: "bfloat16" }), { rtol: 0, atol: 0 });
  }));

test("without adapters there is no graph, which a checkpointed block would compute again with them", () =>
  tidy(() => {
    manualSeed(7);
    using gpt = new GPT(SIZE).eval();
    using lora = addLora(gpt, { rank: 2 });
    train(lora);
    for (const again of [false, true]) {
      gpt.gradientCheckpointing = again;
      assert.equal(lora.withAdaptersOff(() => gpt.forward(tokens(), {})).requiresGrad, false);
      assert.ok(gpt.forward(tokens(), {}).requiresGrad);
    }
  }));

test("dropout is switched through the policy without adapters as through the policy", () =>
  tidy(() => {
    manualSeed(8);
    using gpt = new GPT({ ...SIZE, embdPdrop: 0.5, residPdrop: 0.5 });
    using lora = addLora(gpt, { rank: 2 });
    const without = new WithoutAdapters(gpt, lora);
    const run = (): Tensor => without.forward(tokens(), {});
    assert.ok(!run().equal(run()));
    without.eval();
    assert.ok(gpt.modules().every(({ training }) => !training));
    assert.ok(run().equal(run()));
    without.train();
    assert.ok(gpt.modules().every(({ training }) => training));
  }));

test("the policy without its adapters is the one that got them, in every call, and adds no memory", () =>
  noLeak(() =>
    tidy(() => {
      manualSeed(5);
      using gpt = new GPT({ ...SIZE, classNum: 6 }).eval();
      const classes = tensor([2], { dtype: "int64" });
      const base = gpt.forward(tokens(), { classes });
      using lora = addLora(gpt, { rank: 3, targets: ["query", "value", "mlp.0", "head"] });
      train(lora);
      const without = new WithoutAdapters(gpt, lora);
      const exact = { rtol: 0, atol: 0 };
      const isBase = (): void => {
        expectClose(without.forward(tokens(), { classes }), base, exact);
        expectClose(without.logits(without.hidden(tokens(), { classes })), base, exact);
        using cache = without.openCache(1);
        const first = without.prefill(cache, tokens().narrow(1, 0, 3), { classes });
        expectClose(first, base.select(1, 3), { atol: 1e-5 });
        using twice = without.repeatCache(cache, 2);
        const next = without.decode(twice, tensor([4, 4], { dtype: "int64" }));
        expectClose(next.narrow(0, 1, 1), base.select(1, 4), { atol: 1e-5 });
      };
      isBase();
      const other = gpt.forward(tokens(), { classes });
      assert.throws(() => expectClose(other, base, { atol: 1e-3 }));
      isBase();
      expectClose(gpt.forward(tokens(), { classes }), other, exact);
      assert.deepEqual(without.parameters(), []);
      assert.deepEqual(
        [without.vocabSize, without.blockSize, without.hiddenSize, without.options],
        [gpt.vocabSize, gpt.blockSize, gpt.hiddenSize, gpt.options],
      );
      assert.deepEqual(without.nullCondition({ classes }).classes?.toList(), [6]);
    }),
  ));
