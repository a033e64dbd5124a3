/** Policies recognised by their tensors' names and shapes, loaded strictly, and refused in plain words. */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import {
  type ArPolicy,
  buildPolicy,
  GPT,
  IbqAr,
  LlamaGen,
  loadPolicy,
  recognisePolicy,
  type Shapes,
} from "../../src/policies/index.js";
import { memory, noGrad, type Tensor, tidy } from "../../src/torch/index.js";
import { noLeak } from "../support/leak.js";
import { GOLDEN_NAMES, publishedShapes, withGolden } from "./support.js";

const published = (file: string): Record<string, number[]> =>
  Object.fromEntries(publishedShapes(file).map(([key, shape]) => [key, JSON.parse(shape) as number[]]));

/** A file with a policy's tensors under a prefix. */
function fileOf(
  policy: ArPolicy,
  prefix = "",
): { shapes: Record<string, readonly number[]>; read: (name: string) => Tensor } {
  const state = Object.fromEntries(
    Object.entries(policy.stateDict()).map(([key, value]) => [prefix + key, value]),
  );
  const shapes = Object.fromEntries(Object.entries(state).map(([name, { shape }]) => [name, shape]));
  return { shapes, read: (name) => (state[name] as Tensor).clone() };
}

test("the published files are what they are", () => {
  const configOf = (file: string, options = {}): unknown[] => {
    const found = recognisePolicy(published(file), options);
    return [found?.family, found?.config];
  };
  assert.deepEqual(configOf("llamagen_c2i_GPT-B.tsv"), [
    "llamagen",
    { vocabSize: 16384, dim: 768, blockSize: 256, nLayer: 12, nHead: 12, modelType: "c2i", numClasses: 1000 },
  ]);
  assert.deepEqual(configOf("llamagen_c2i_GPT-XXL.tsv", { blockSize: 576, numClasses: 1000 }), [
    "llamagen",
    {
      vocabSize: 16384,
      dim: 1536,
      blockSize: 576,
      nLayer: 48,
      nHead: 24,
      modelType: "c2i",
      numClasses: 1000,
    },
  ]);
  const text = { modelType: "t2i", clsTokenNum: 120, captionDim: 2048 };
  assert.deepEqual(configOf("llamagen_t2i_GPT-XL.tsv", { family: "llamagen" }), [
    "llamagen",
    { vocabSize: 16384, dim: 1280, blockSize: 256, nLayer: 36, nHead: 20, ...text },
  ]);
  assert.deepEqual(configOf("ibq_ar_B_transformer.tsv"), [
    "ibq_ar",
    { vocabSize: 16384, nEmbd: 1024, blockSize: 256, nLayer: 16, nHead: 16, classNum: 1000 },
  ]);
  assert.deepEqual(configOf("mingpt_12x768.tsv", { nHead: 8 }), [
    "gpt",
    { vocabSize: 16384, blockSize: 1024, nLayer: 12, nHead: 8, nEmbd: 768, classNum: 1000 },
  ]);
});

test("heads of LlamaGen's 3B have 100 channels", () => {
  const dim = 3200;
  const shapes: Shapes = {
    "tok_embeddings.weight": [16384, dim],
    "cls_embedding.embedding_table.weight": [1001, dim],
    "layers.0.attention.wqkv.weight": [3 * dim, dim],
    "layers.0.feed_forward.w1.weight": [8704, dim],
  };
  assert.deepEqual(recognisePolicy(shapes)?.config, {
    vocabSize: 16384,
    dim,
    blockSize: 256,
    nLayer: 1,
    nHead: 32,
    modelType: "c2i",
    numClasses: 1000,
  });
});

test("prefixes come off, masks and other models are left out with a reason", () => {
  const shapes = {
    ...Object.fromEntries(
      Object.entries(published("mingpt_12x768.tsv")).map(([key, shape]) => [`transformer.${key}`, shape]),
    ),
    "first_stage_model.encoder.conv_in.weight": [128, 3, 3, 3],
    "cond_stage_model.dummy": [1],
    "loss.logvar": [1],
  };
  const found = recognisePolicy(shapes);
  assert.equal(found?.used["blocks.3.attn.key.weight"], "transformer.blocks.3.attn.key.weight");
  assert.equal(found?.ignored.length, 12 + 3);
  assert.deepEqual(found?.ignored[0], {
    name: "transformer.blocks.0.attn.mask",
    reason: "a causal mask, which attention applies by itself",
  });
  assert.deepEqual(found?.ignored.slice(-3), [
    {
      name: "first_stage_model.encoder.conv_in.weight",
      reason: "the tokenizer that the policy was trained on",
    },
    { name: "cond_stage_model.dummy", reason: "the condition's encoder, which has nothing learned" },
    { name: "loss.logvar", reason: "not under transformer." },
  ]);
});

describe("every policy is built again from its own tensors", () => {
  for (const name of GOLDEN_NAMES) {
    test(name, () =>
      withGolden(name, ({ policy, tokens, condition }) => {
        const { shapes, read } = fileOf(policy, "module.transformer.");
        const nHead = 2;
        const isSaved = name.startsWith("gpt") && name !== "gpt_prepend";
        const blockSize = isSaved ? {} : { blockSize: 16 };
        using copy = loadPolicy(shapes, read, { nHead, codebookSize: 20, ...blockSize }).eval();
        assert.equal(copy.constructor, policy.constructor);
        const context = tokens.narrow(1, 0, 15);
        assert.ok(copy.forward(context, condition).equal(policy.forward(context, condition)));
        using half = loadPolicy(shapes, read, { nHead, dtype: "bfloat16", ...blockSize });
        assert.ok(
          half.parameters().every((parameter) => parameter.dtype === "bfloat16" && parameter.requiresGrad),
        );
      }),
    );
  }
});

test("tensors are read one at a time and freed", () =>
  noLeak(() => {
    using gpt = new GPT({ vocabSize: 20, blockSize: 16, nLayer: 2, nHead: 1, nEmbd: 64 });
    const { shapes, read } = fileOf(gpt);
    const before = memory().tensors;
    let most = 0;
    const counted = (name: string): Tensor => {
      most = Math.max(most, memory().tensors - before);
      return read(name);
    };
    loadPolicy(shapes, counted).dispose();
    const own = gpt.parameters().length;
    assert.ok(most < own + 4, `${most} tensors for ${own}`);
  }));

describe("what does not fit is refused in one sentence", () => {
  const SIZE = {
    vocabSize: 20,
    blockSize: 16,
    nLayer: 1,
    nHead: 1,
    nEmbd: 64,
    dim: 64,
    ffnDim: 256,
    classNum: 6,
    numClasses: 6,
  };
  const where = "model.pt";
  const refuses = (run: () => unknown, message: string): void =>
    noLeak(() => tidy(() => assert.throws(run, { message: `${where}: ${message}` })));

  test("another family", () => {
    using gpt = new GPT(SIZE);
    refuses(
      () => recognisePolicy(fileOf(gpt, "transformer.").shapes, { where, family: "llamagen" }),
      "expected weights of llamagen, got those of gpt (it has transformer.blocks.0.attn.query.weight).",
    );
  });

  test("no policy at all", () => {
    const shapes = { "encoder.conv_in.weight": [128, 3, 3, 3], "decoder.conv_in.weight": [512, 256, 3, 3] };
    assert.equal(recognisePolicy(shapes), null);
    const read = (): Tensor => assert.fail("read");
    refuses(
      () => loadPolicy(shapes, read, { where }),
      "expected weights of gpt, llamagen or ibq_ar, got tensors such as encoder.conv_in.weight, decoder.conv_in.weight.",
    );
    refuses(
      () => loadPolicy({}, read, { where }),
      "expected weights of gpt, llamagen or ibq_ar, got no tensors.",
    );
  });

  test("two policies, and variants without an implementation", () => {
    using llama = new LlamaGen(SIZE);
    using ibq = new IbqAr(SIZE);
    const { shapes } = fileOf(llama, "ema.");
    refuses(
      () => recognisePolicy({ ...shapes, ...fileOf(llama, "model.").shapes }, { where }),
      'expected one policy, got llamagen under "ema.", llamagen under "model.". Pass the tensors of one of them.',
    );
    refuses(
      () => recognisePolicy({ "blocks.0.ada_gss": [1, 1, 6, 64] }, { where }),
      "expected an AdaLN projection in each block, got a shared one (blocks.0.ada_gss).",
    );
    refuses(
      () => recognisePolicy({ ...fileOf(ibq).shapes, "embedding_projection.fc1.weight": [64, 8] }, { where }),
      "expected codes embedded at full width, got a codebook with a projection (embedding_projection).",
    );
  });

  test("sizes that shapes do not tell, or that do not go together", () => {
    using odd = new GPT({ ...SIZE, nEmbd: 48 });
    refuses(
      () => recognisePolicy(fileOf(odd).shapes, { where }),
      "expected nHead, which shapes do not tell, got none for a width of 48.",
    );
    using prepend = new GPT({ ...SIZE, features: { kind: "prepend", dim: 6, tokens: 5 } });
    refuses(
      () => recognisePolicy(fileOf(prepend).shapes, { where }),
      "expected blockSize, the number of codes, got none. " +
        "The positions in the file are those of features and codes together.",
    );
    using gpt = new GPT(SIZE);
    refuses(
      () => recognisePolicy(fileOf(gpt).shapes, { where, blockSize: 256 }),
      "expected 256 positions in pos_emb, as blockSize, got 16.",
    );
    using llama = new LlamaGen(SIZE);
    const { shapes } = fileOf(llama);
    refuses(
      () => recognisePolicy({ ...shapes, "layers.0.attention.wqkv.weight": [200, 64] }, { where }),
      "expected rows of wqkv that are whole heads of 64 channels, got 200. Pass nHead: 1 heads were taken.",
    );
    const { "tok_embeddings.weight": _, ...rest } = shapes;
    refuses(
      () => recognisePolicy(rest, { where }),
      "expected tok_embeddings.weight with 2 dimensions, got no such tensor.",
    );
  });

  test("a class table without the null class, or of other classes", () => {
    using llama = new LlamaGen(SIZE);
    const { shapes } = fileOf(llama);
    const table = "cls_embedding.embedding_table.weight";
    refuses(
      () => recognisePolicy({ ...shapes, [table]: [1000, 64] }, { where }),
      `expected 1001 rows in ${table}, for 1000 classes and the null class, got 1000. ` +
        "A model trained without label drop has no null class; pass numClasses 999 if the last row is one.",
    );
    refuses(
      () => recognisePolicy(shapes, { where, numClasses: 10 }),
      `expected 11 rows in ${table}, for 10 classes and the null class, got 7.`,
    );
    const description = recognisePolicy({ ...shapes, [table]: [1000, 64] }, { numClasses: 999 });
    assert.ok(description?.family === "llamagen");
    assert.equal(description.config.numClasses, 999);
  });

  test("a vocabulary that is not the tokenizer's", () => {
    using llama = new LlamaGen(SIZE);
    const { shapes, read } = fileOf(llama);
    refuses(
      () => loadPolicy(shapes, read, { where, blockSize: 16, codebookSize: 8192 }),
      "expected a vocabulary of 8192, the tokenizer's codebook, got 20. " +
        "Use the tokenizer that the policy was trained on.",
    );
  });

  test("weights that are not finite", () => {
    using llama = new LlamaGen(SIZE);
    for (const value of [Number.NaN, Infinity, -Infinity]) {
      noGrad(() => tidy(() => llama.norm.weight.narrow(0, 3, 1).fill_(value)));
      const { shapes, read } = fileOf(llama, "model.");
      refuses(
        () => loadPolicy(shapes, read, { where, blockSize: 16 }),
        "model.norm.weight: expected finite weights, got NaN or infinity. The file is damaged, or training diverged.",
      );
    }
  });

  test("tensors that are missing or too many", () => {
    using llama = new LlamaGen(SIZE);
    const { shapes, read } = fileOf(llama);
    const { "norm.weight": _, ...rest } = shapes;
    const description = recognisePolicy({ ...rest, value_head: [1] }, { blockSize: 16 });
    assert.ok(description);
    assert.throws(() => buildPolicy(description, read), {
      message: "LlamaGen.loadStateDict: missing norm.weight; unexpected value_head.",
    });
  });
});
