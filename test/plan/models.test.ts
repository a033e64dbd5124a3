import assert from "node:assert/strict";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { rlarCommand } from "../../src/config/command.js";
import { resolveConfig, type TrainConfigInput, type TunedArSection } from "../../src/config/resolve.js";
import { backboneShapes } from "../../src/metrics/backbones.js";
import { FeatureClassifier, NLayerDiscriminator } from "../../src/metrics/index.js";
import type { Module } from "../../src/nn/index.js";
import { networkSizes, type PolicySizes, policySizes, tokenizerSizes } from "../../src/plan/models.js";
import { cacheBytes, graphBytes } from "../../src/plan/work.js";
import { type ArPolicy, addLora, GPT, IbqAr, LlamaGen } from "../../src/policies/index.js";
import { VQModel } from "../../src/tokenizers/index.js";
import {
  memory,
  noGrad,
  saveSafetensors,
  setNumThreads,
  type Tensor,
  tidy,
  zeros,
} from "../../src/torch/index.js";

setNumThreads(1);

const folder = mkdtempSync(join(tmpdir(), "sizes-"));
const at = (name: string): string => join(folder, name);
after(() => rmSync(folder, { recursive: true }));

const V = 48;
const T = 16;
const CPU = { isCuda: false, isNarrow: false };

/** A policy, what builds it without a file, and the condition of a batch. */
interface Case {
  readonly name: string;
  readonly policy: ArPolicy & Module;
  readonly ar: Record<string, unknown> | null;
  readonly condition: (rows: number) => Record<string, Tensor>;
}

const classes = (rows: number): Record<string, Tensor> => ({ classes: zeros([rows], { dtype: "int64" }) });
const features = (rows: number): Record<string, Tensor> => ({ features: zeros([rows, 5, 12]) });

const CASES: readonly Case[] = [
  {
    name: "GPT",
    policy: new GPT({ vocabSize: V, blockSize: T, nLayer: 3, nHead: 4, nEmbd: 64, classNum: 7 }),
    ar: { type: "gpt", nLayer: 3, nHead: 4, nEmbd: 64, extra: { classNum: 7 } },
    condition: classes,
  },
  {
    name: "GPT",
    policy: new GPT({
      vocabSize: V,
      blockSize: T,
      nLayer: 2,
      nHead: 2,
      nEmbd: 64,
      features: { kind: "prepend", dim: 12, tokens: 5 },
    }),
    ar: {
      type: "gpt",
      nLayer: 2,
      nHead: 2,
      nEmbd: 64,
      extra: { features: { kind: "prepend", dim: 12, tokens: 5 } },
    },
    condition: (rows) => ({ ...classes(rows), ...features(rows) }),
  },
  {
    name: "LlamaGen",
    policy: new LlamaGen({ vocabSize: V, blockSize: T, nLayer: 2, nHead: 4, dim: 128, numClasses: 7 }),
    ar: { type: "llamagen", nLayer: 2, nHead: 4, nEmbd: 128, extra: { numClasses: 7 } },
    condition: classes,
  },
  {
    name: "LlamaGen",
    policy: new LlamaGen({
      vocabSize: V,
      blockSize: T,
      nLayer: 2,
      nHead: 4,
      nKvHead: 2,
      dim: 64,
      modelType: "t2i",
      captionDim: 12,
      clsTokenNum: 5,
    }),
    ar: {
      type: "llamagen",
      nLayer: 2,
      nHead: 4,
      nEmbd: 64,
      extra: { nKvHead: 2, modelType: "t2i", captionDim: 12, clsTokenNum: 5 },
    },
    condition: features,
  },
  {
    name: "IBQ's transformer",
    policy: new IbqAr({ vocabSize: V, blockSize: T, nLayer: 2, nHead: 4, nEmbd: 64, classNum: 7 }),
    ar: null,
    condition: classes,
  },
];

const heads = (policy: ArPolicy): number => (policy.options as { nHead: number }).nHead;
const arOf = (ar: Record<string, unknown>): TunedArSection =>
  resolveConfig({ values: { ar } as TrainConfigInput, isComplete: false }).config.ar;

/** Sizes of a policy from its file, and from its options where it can be built from them; they must be the same. */
function sizesBothWays({ name, policy, ar }: Case): PolicySizes {
  const path = at("policy.safetensors");
  saveSafetensors(path, policy.stateDict(), { config: JSON.stringify(policy.options) });
  const options = { blockSize: T, vocabSize: V, codes: T };
  const fromFile = policySizes(arOf({ path, nHead: heads(policy) }), options);
  assert.equal(fromFile.name, name);
  if (ar !== null) assert.deepEqual(policySizes(arOf(ar), options), fromFile);
  return fromFile;
}

test("parameters of policies are those of the modules, from a file's header or from options", () => {
  for (const one of CASES) {
    const sizes = sizesBothWays(one);
    const parameters = one.policy.parameters().reduce((sum, { numel }) => sum + numel, 0);
    assert.equal(sizes.parameters, parameters, one.name);
    assert.equal(sizes.width, one.policy.hiddenSize);
    assert.equal(sizes.vocabSize, V);
    assert.equal(sizes.trained, parameters);
  }
});

test("keys and values take what a cache takes, to the byte", () => {
  for (const one of CASES) {
    const { policy, condition } = one;
    if (policy instanceof IbqAr) continue; // keeps views of the class's modulation, which are a little more
    const sizes = sizesBothWays(one);
    for (const [rows, codes] of [
      [2, T],
      [3, 7],
    ] as const) {
      const taken = noGrad(() =>
        tidy(() => {
          const given = condition(rows);
          const tokens = zeros([rows, 1], { dtype: "int64" });
          const before = memory().bytes;
          const cache = policy.openCache(rows, { maxLen: codes });
          tidy(() => {
            policy.prefill(cache, tokens, given).dispose();
          });
          const bytes = memory().bytes - before;
          cache.dispose();
          return bytes;
        }),
      );
      // The allocator rounds each of a layer's two tensors up.
      const rounding = taken - cacheBytes(sizes, rows, codes, CPU);
      assert.ok(
        rounding >= 0 && rounding < 64 * 2 * sizes.layers,
        `${one.name} ${rows} ${codes}: ${rounding}`,
      );
    }
  }
});

test("a graph keeps what is told of it, within a twentieth", () => {
  for (const one of CASES) {
    if (one.policy instanceof LlamaGen && one.condition === features) continue; // grouped heads: a few maps less
    const sizes = sizesBothWays(one);
    const rows = 6;
    const kept = tidy(() => {
      one.policy.eval();
      const tokens = zeros([rows, T - 1], { dtype: "int64" });
      const condition = one.condition(rows);
      const before = memory().bytes;
      one.policy.hidden(tokens, condition);
      return memory().bytes - before;
    });
    const positions = rows * (T + sizes.extraPositions);
    const ratio = graphBytes(sizes, positions, CPU) / kept;
    assert.ok(ratio > 0.95 && ratio < 1.05, `${one.name}: ${ratio}`);
    assert.ok(graphBytes(sizes, positions, CPU, true) < 0.7 * graphBytes(sizes, positions, CPU));
  }
});

test("adapters have the parameters that a run trains", () => {
  for (const one of CASES) {
    if (one.ar === null) continue;
    for (const targets of [null, [one.ar.type === "gpt" ? "attn.proj" : "wo"]]) {
      const ar = arOf({ ...one.ar, lora: { rank: 3, targets } });
      const sizes = policySizes(ar, { blockSize: T, vocabSize: V, codes: T });
      using lora = addLora(one.policy, { rank: 3, ...(targets && { targets }) });
      const parameters = lora.parameters().reduce((sum, { numel }) => sum + numel, 0);
      assert.equal(sizes.trained, parameters);
    }
  }
});

test("tokenizers and networks have the parameters of their files", () => {
  using tokenizer = new VQModel({ ch: 16, chMult: [1, 2, 2], zChannels: 16, codebookSize: V, normGroups: 8 });
  const path = at("tokenizer.safetensors");
  saveSafetensors(path, tokenizer.stateDict(), { config: JSON.stringify({ normGroups: 8 }) });
  const { tokenizer: section } = resolveConfig({ values: { tokenizer: { path } }, isComplete: false }).config;
  const { costs, ...sizes } = tokenizerSizes(section);
  const numbers = Object.values(tokenizer.stateDict()).reduce((sum, { numel }) => sum + numel, 0);
  assert.deepEqual(sizes, {
    name: "VQ-4 (LlamaGen)",
    parameters: numbers,
    decoder: Object.values(tokenizer.decoder.stateDict()).reduce((sum, { numel }) => sum + numel, 0),
    codebookSize: V,
    downsample: 4,
    channels: 16,
  });
  assert.ok(costs(32).decodeFlops > costs(32).encodeFlops);

  using classifier = new FeatureClassifier({ numClasses: 3, widths: [8, 16], depth: 1 });
  saveSafetensors(at("classifier.safetensors"), classifier.stateDict());
  using discriminator = new NLayerDiscriminator({ ndf: 4, nLayers: 2 });
  const nested = Object.entries(discriminator.stateDict()).map(
    ([k, v]) => [`loss.discriminator.${k}`, v] as const,
  );
  saveSafetensors(at("discriminator.safetensors"), Object.fromEntries(nested));
  const squeeze = Object.entries(backboneShapes("squeeze")).map(([k, shape]) => [k, zeros(shape)] as const);
  saveSafetensors(at("squeeze.safetensors"), Object.fromEntries(squeeze));
  const count = (module: Module): number => module.parameters().reduce((sum, { numel }) => sum + numel, 0);
  const found = ["classifier", "discriminator", "squeeze"].map((name) =>
    networkSizes(at(`${name}.safetensors`)),
  );
  assert.deepEqual(
    found.map(({ name, parameters }) => [name, parameters]),
    [
      ["classifier of 3 classes", count(classifier)],
      // Batch statistics are held too.
      [
        "PatchGAN discriminator",
        Object.values(discriminator.stateDict()).reduce((sum, v) => sum + v.numel, 0),
      ],
      ["LPIPS squeeze", squeeze.reduce((sum, [, tensor]) => sum + tensor.numel, 0)],
    ],
  );
  for (const [, tensor] of squeeze) tensor.dispose();
});

test("nothing is loaded: no tensor stays, and no memory is taken", () => {
  const before = memory();
  const ar = arOf({ type: "gpt", nLayer: 24, nHead: 16, nEmbd: 1024 });
  const sizes = policySizes(ar, { blockSize: 256, vocabSize: 16384, codes: 256 });
  assert.equal(
    sizes.parameters,
    24 * (12 * 1024 ** 2 + 13 * 1024) + 2 * 16384 * 1024 + 256 * 1024 + 1001 * 1024 + 2 * 1024,
  );
  const now = memory();
  assert.deepEqual([now.tensors, now.bytes], [before.tensors, before.bytes]);
});

test("files that hold something else are refused by name", () => {
  const options = { blockSize: T, vocabSize: V, codes: T };
  saveSafetensors(at("other.safetensors"), { some: zeros([2]) });
  writeFileSync(at("text.safetensors"), "no tensors");
  const path = at("other.safetensors");
  const unknown = (what: string): { message: string } => ({
    message: `${path}: expected ${what}, got 1 tensors of an unknown model (some, ...). ${rlarCommand(["inspect", path])} shows what is in it.`,
  });
  assert.throws(() => policySizes(arOf({ path }), options), unknown("a policy"));
  assert.throws(
    () => networkSizes(path),
    unknown("LPIPS's backbone, a classifier or a PatchGAN discriminator"),
  );
  const section = (values: TrainConfigInput) => resolveConfig({ values, isComplete: false }).config.tokenizer;
  assert.throws(() => tokenizerSizes(section({ tokenizer: { path } })), unknown("a tokenizer"));
  assert.throws(() => tokenizerSizes(section({})), {
    message: "plan: expected a tokenizer's file, got none. A plan needs tokenizer.path.",
  });
  assert.throws(
    () => networkSizes(at("absent.safetensors")),
    /absent\.safetensors: expected a file that can be read, got ENOENT/,
  );
  assert.throws(() => networkSizes(at("text.safetensors")), /text\.safetensors: expected/);
  const [first] = CASES as [Case];
  sizesBothWays(first);
  assert.throws(
    () => policySizes(arOf({ path: at("policy.safetensors"), nHead: 4 }), { ...options, vocabSize: 50 }),
    {
      message: `${at("policy.safetensors")}: expected a vocabulary of 50, the tokenizer's codebook, got ${V}. Use the tokenizer that the policy was trained on.`,
    },
  );
});
