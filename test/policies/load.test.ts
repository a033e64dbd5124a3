/** Policies recognised by their tensors' names and shapes, loaded strictly, and refused in plain words. */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { type Shapes, shapesOf } from "../../src/nn/index.js";
import {
  type ArPolicy,
  type BuildOptions,
  buildPolicy,
  GPT,
  IbqAr,
  LlamaGen,
  type PolicyDescription,
  type RecogniseOptions,
  recognisePolicy,
} from "../../src/policies/index.js";
import { memory, noGrad, type Tensor, tidy } from "../../src/torch/index.js";
import { noLeak } from "../support/leak.js";
import { GOLDEN_NAMES, publishedShapes, withGolden } from "./support.js";

const published = (file: string): Record<string, number[]> =>
  Object.fromEntries(publishedShapes(file).map(([key, shape]) => [key, JSON.parse(shape) as number[]]));

/** The policy of a file. */
function loadPolicy(
  shapes: Shapes,
  read: (name: string) => Tensor,
  options: RecogniseOptions & BuildOptions = {},
): ArPolicy {
  const description = recognisePolicy(shapes, options);
  assert.ok(description !== null);
  return buildPolicy(description, read, options);
}

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
    { vocabSize: 16384, dim: 768, nLayer: 12, nHead: 12, modelType: "c2i", numClasses: 1000 },
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
    { vocabSize: 16384, dim: 1280, nLayer: 36, nHead: 20, ...text },
  ]);
  assert.deepEqual(configOf("ibq_ar_B_transformer.tsv", { blockSize: 256 }), [
    "ibq_ar",
    { vocabSize: 16384, nEmbd: 1024, blockSize: 256, nLayer: 16, nHead: 16, classNum: 1000 },
  ]);
  assert.deepEqual(configOf("mingpt_12x768.tsv", { nHead: 8 }), [
    "gpt",
    { vocabSize: 16384, blockSize: 1024, nLayer: 12, nHead: 8, nEmbd: 768, classNum: 1000 },
  ]);
});

/** Shapes of a policy that is never built. */
const shapesOfPolicy = (build: () => ArPolicy): Record<string, readonly number[]> => shapesOf("test", build);

/** An option of a description's configuration. */
const optionOf = (found: PolicyDescription | null, name: string): unknown =>
  (found?.config as Record<string, unknown> | undefined)?.[name];

test("what the file does not tell is assumed and said, or missing", () => {
  const dim = 3200;
  const known = recognisePolicy(shapesOfPolicy(() => new LlamaGen({ dim, nLayer: 24, nHead: 32 })));
  assert.deepEqual(known?.config, {
    vocabSize: 16384,
    dim,
    nLayer: 24,
    nHead: 32,
    modelType: "c2i",
    numClasses: 1000,
  });
  assert.match(known.notes.join("; "), /^nHead 32.*GPT-3B/);
  assert.deepEqual(known.missing, ["blockSize"]);

  const own = shapesOfPolicy(() => new LlamaGen({ dim: 64, nLayer: 2, nHead: 2, blockSize: 64 }));
  const bare = recognisePolicy(own);
  assert.deepEqual([bare?.missing, bare?.notes], [["blockSize", "nHead"], []]);
  const asked = recognisePolicy(own, { nHead: 2, blockSize: 64 });
  assert.deepEqual([asked?.missing, asked?.notes], [[], []]);
  assert.deepEqual([asked?.config.nHead, asked?.config.blockSize], [2, 64]);
  const assumed = recognisePolicy(own, { nHead: 2, assume: { blockSize: 64, nHead: 4 } });
  assert.deepEqual([assumed?.config.nHead, assumed?.config.blockSize], [2, 64]);
  assert.match(assumed?.notes.join("; ") ?? "", /^blockSize 64.*assumed/);
  const stated = recognisePolicy(own, {
    stated: { nHead: 2, blockSize: 64, ropeBase: 500, foo: 1 },
    nHead: 4,
  });
  assert.deepEqual([stated?.config.nHead, stated?.config.blockSize, stated?.missing], [4, 64, []]);
  assert.equal(optionOf(stated, "ropeBase"), 500);
  assert.match(stated?.notes.join("; ") ?? "", /nHead 4, as asked.*says 2/);
  assert.throws(
    () => recognisePolicy(own, { where: "a.pt", stated: { nLayer: 3 } }),
    /^RangeError: a.pt: .*nLayer 2/,
  );
  for (const bad of [0, -1, 1.5, "4", 2 ** 21]) {
    assert.throws(() => recognisePolicy(own, { stated: { nHead: bad } }), /metadata.config.nHead/);
    assert.throws(() => recognisePolicy(own, { blockSize: bad as number }), /blockSize/);
  }
});

test("grouped key heads are told once the heads are known", () => {
  const shapes = shapesOfPolicy(() => new LlamaGen({ dim: 64, nLayer: 1, nHead: 4, nKvHead: 2 }));
  const bare = recognisePolicy(shapes);
  assert.deepEqual([bare?.config.nHead, optionOf(bare, "nKvHead")], [undefined, undefined]);
  assert.equal(optionOf(recognisePolicy(shapes, { nHead: 4 }), "nKvHead"), 2);
  assert.throws(() => recognisePolicy(shapes, { nHead: 3 }), /3 heads/);
});

test("numbers in names are counted without a gap, and huge ones build nothing", () => {
  const own = shapesOfPolicy(() => new GPT({ vocabSize: 8, blockSize: 4, nLayer: 2, nHead: 1, nEmbd: 8 }));
  const stray = { ...own, "blocks.999999999.ln1.weight": [8] };
  assert.throws(
    () => recognisePolicy(stray, { where: "a.pt" }),
    /^RangeError: a.pt: .*unknown blocks.999999999/,
  );
  const { "blocks.1.ln1.weight": _, ...rest } = own;
  assert.throws(
    () => recognisePolicy(rest, { where: "a.pt" }),
    /^RangeError: a.pt: .*missing blocks.1.ln1.weight/,
  );
  const wrong = { ...own, "blocks.1.mlp.0.weight": [31, 8] };
  assert.throws(() => recognisePolicy(wrong), /blocks.1.mlp.0.weight \[31, 8\] instead of \[32, 8\]/);
  const huge = Object.fromEntries(
    Object.entries(own).map(([key, shape]) => [key, shape.map((size) => (size === 8 ? 2 ** 50 : size))]),
  );
  assert.throws(() => recognisePolicy(huge, { where: "a.pt" }), /^RangeError: a.pt: expected/);
});

test("what compiling and distributing put into names comes off, in any order and at any depth", () => {
  const own = shapesOfPolicy(() => new GPT({ vocabSize: 8, blockSize: 4, nLayer: 1, nHead: 1, nEmbd: 8 }));
  for (const name of [
    (key: string) => `_orig_mod.${key}`,
    (key: string) => `module._orig_mod.${key}`,
    (key: string) => `_orig_mod.module.transformer.${key}`,
    (key: string) => key.replace("blocks.0.", "blocks.0._orig_mod.module."),
    (key: string) =>
      `_fsdp_wrapped_module.${key.replace("blocks.0.", "blocks.0._checkpoint_wrapped_module.")}`,
  ]) {
    const shapes = Object.fromEntries(Object.entries(own).map(([key, shape]) => [name(key), shape]));
    const found = recognisePolicy(shapes, { nHead: 1 });
    assert.deepEqual(
      found?.used,
      Object.fromEntries(Object.keys(own).map((key) => [key, name(key)])),
      Object.keys(shapes)[1],
    );
  }
  const twice = { ...own, "module.head.weight": [8, 8] };
  assert.throws(() => recognisePolicy(twice, { where: "a.pt" }), /a.pt: expected one tensor head.weight/);
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
    { name: "cond_stage_model.dummy", reason: "the condition's encoder, which has no trained weights" },
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
    loadPolicy(shapes, counted, { nHead: 1 }).dispose();
    const own = gpt.parameters().length;
    assert.ok(most < own + 4, `${most} tensors for ${own}`);
  }));

describe("what does not fit is refused in one sentence", () => {
  const COMMON = { vocabSize: 20, blockSize: 16, nLayer: 1, nHead: 1 };
  const SIZE = { ...COMMON, nEmbd: 64, classNum: 6 };
  const LLAMA = { ...COMMON, dim: 64, ffnDim: 256, numClasses: 6 };
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
  });

  test("two policies, and variants without an implementation", () => {
    using llama = new LlamaGen(LLAMA);
    using ibq = new IbqAr({ ...SIZE, ffnDim: 256 });
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
    const { shapes: oddShapes, read } = fileOf(odd);
    refuses(
      () => loadPolicy(oddShapes, read, { where }),
      "expected nHead, which its weights do not tell, got none. " +
        "Pass nHead, the attention heads (--heads, or ar.nHead in a configuration).",
    );
    using prepend = new GPT({ ...SIZE, features: { kind: "prepend", dim: 6, tokens: 5 } });
    refuses(
      () => loadPolicy(fileOf(prepend).shapes, fileOf(prepend).read, { where, nHead: 1 }),
      "expected blockSize, which its weights do not tell, got none. " +
        "Pass blockSize, the codes of an image (--codes, or blockSize in a configuration), such as 256 for 256 px at 16 px per code.",
    );
    using gpt = new GPT(SIZE);
    refuses(
      () => recognisePolicy(fileOf(gpt).shapes, { where, blockSize: 256 }),
      "expected 256 positions in pos_emb, as blockSize, got 16.",
    );
    using llama = new LlamaGen(LLAMA);
    const { shapes } = fileOf(llama);
    refuses(
      () => recognisePolicy({ ...shapes, "layers.0.attention.wqkv.weight": [200, 64] }, { where }),
      "expected rows of wqkv that make whole heads and their keys and values, got 200. " +
        "Pass another nHead, or check the file.",
    );
    const { "tok_embeddings.weight": _, ...rest } = shapes;
    refuses(
      () => recognisePolicy(rest, { where }),
      "expected tok_embeddings.weight with 2 dimensions, got no such tensor.",
    );
  });

  test("a class table without the null class, or of other classes", () => {
    using llama = new LlamaGen(LLAMA);
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
    using llama = new LlamaGen(LLAMA);
    const { shapes, read } = fileOf(llama);
    refuses(
      () => loadPolicy(shapes, read, { where, blockSize: 16, codebookSize: 8192 }),
      "expected a vocabulary of 8192, the tokenizer's codebook, got 20. " +
        "Use the tokenizer that the policy was trained on.",
    );
  });

  test("weights that are not finite", () => {
    using llama = new LlamaGen(LLAMA);
    for (const value of [Number.NaN, Infinity, -Infinity]) {
      noGrad(() => tidy(() => llama.norm.weight.narrow(0, 3, 1).fill_(value)));
      const { shapes, read } = fileOf(llama, "model.");
      refuses(
        () => loadPolicy(shapes, read, { where, blockSize: 16, nHead: 1 }),
        "model.norm.weight: expected finite weights in float32, got NaN or infinity. " +
          "The file is damaged, or training diverged.",
      );
    }
  });

  test("tensors that are missing, too many or no floats", () => {
    using llama = new LlamaGen(LLAMA);
    const { shapes, read } = fileOf(llama);
    const { "norm.weight": _, ...rest } = shapes;
    refuses(
      () => recognisePolicy({ ...rest, value_head: [1] }, { where }),
      "expected the 11 tensors of LlamaGen, got missing norm.weight; unknown value_head.",
    );
    const whole = (name: string): Tensor => (name === "norm.weight" ? read(name).long() : read(name));
    assert.throws(() => loadPolicy(shapes, whole, { where, blockSize: 16, nHead: 1 }), {
      name: "RangeError",
      message: /^model.pt: norm.weight: expected a floating-point tensor, got .*int64/,
    });
  });

  test("weights that overflow in the policy's own type", () => {
    using llama = new LlamaGen(LLAMA);
    const { shapes, read } = fileOf(llama);
    const wide = (name: string): Tensor => tidy(() => read(name).double().add(1e300));
    refuses(
      () => loadPolicy(shapes, wide, { where, blockSize: 16, nHead: 1 }),
      "cls_embedding.embedding_table.weight: expected finite weights in float32, got NaN or infinity. " +
        "The file is damaged, or training diverged.",
    );
  });
});
