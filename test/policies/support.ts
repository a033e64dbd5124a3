/** Small policies with golden weights, and the checks that every policy has to pass. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import {
  type ArPolicy,
  type Condition,
  concatConditions,
  type DecodeCache,
  GPT,
  type Guidance,
  guidanceScale,
  IbqAr,
  LlamaGen,
  repeatCondition,
} from "../../src/policies/index.js";
import {
  cat,
  functional as F,
  manualSeed,
  noGrad,
  setNumThreads,
  type Tensor,
  tidy,
} from "../../src/torch/index.js";
import { loadSafetensors } from "../../src/torch/safetensors.js";
import { expectClose } from "../support/close.js";
import { noLeak } from "../support/leak.js";

export type GoldenName =
  | "gpt"
  | "gpt_codebook"
  | "gpt_prepend"
  | "gpt_cross"
  | "llamagen_c2i_kv2"
  | "llamagen_c2i_kv1"
  | "llamagen_t2i"
  | "ibq_ar";

setNumThreads(1); // Everything here is small.

/** V, T, layers and so on of all golden policies. */
const GPT_SIZE = { vocabSize: 20, blockSize: 16, nLayer: 2, nHead: 2, nEmbd: 16, classNum: 6 };
const LLAMA_SIZE = { vocabSize: 20, blockSize: 16, nLayer: 2, nHead: 2, dim: 16, ffnDim: 24, numClasses: 6 };

/** How each golden file's policy is built. */
const BUILD: Readonly<Record<GoldenName, () => ArPolicy>> = {
  gpt: () => new GPT(GPT_SIZE),
  gpt_codebook: () => new GPT({ ...GPT_SIZE, usePretrainedCodebook: true, nCodebookEmbd: 8 }),
  gpt_prepend: () => new GPT({ ...GPT_SIZE, features: { kind: "prepend", dim: 6, tokens: 5 } }),
  gpt_cross: () => new GPT({ ...GPT_SIZE, features: { kind: "cross", dim: 6 } }),
  llamagen_c2i_kv2: () => new LlamaGen(LLAMA_SIZE),
  llamagen_c2i_kv1: () => new LlamaGen({ ...LLAMA_SIZE, nKvHead: 1 }),
  llamagen_t2i: () => new LlamaGen({ ...LLAMA_SIZE, modelType: "t2i", clsTokenNum: 5, captionDim: 6 }),
  ibq_ar: () => new IbqAr({ ...GPT_SIZE, ffnDim: 24 }),
};

export const GOLDEN_NAMES: readonly GoldenName[] = Object.keys(BUILD) as GoldenName[];

/** A policy in eval mode with a golden file's weights, and what the file says. */
export interface Golden {
  policy: ArPolicy;
  /** int64 `[2, T]`. */
  tokens: Tensor;
  condition: Condition;
  /** The file's other tensors by name. */
  tensors: Record<string, Tensor>;
}

const root = (path: string): string => fileURLToPath(new URL(`../../../${path}`, import.meta.url));

/** Run `fn` with a golden policy, free everything and check that nothing is left. */
export function withGolden(name: GoldenName, fn: (golden: Golden) => void): void {
  noLeak(() =>
    tidy(() => {
      using policy = BUILD[name]().eval();
      const { tensors } = loadSafetensors(root(`test/golden/policies/${name}.safetensors`));
      const weights = Object.entries(tensors).filter(([key]) => key.startsWith("weight."));
      policy.loadStateDict(
        Object.fromEntries(weights.map(([key, value]) => [key.slice("weight.".length), value])),
      );
      const condition: Condition = {};
      if (tensors["input.classes"]) condition.classes = tensors["input.classes"];
      if (tensors["input.features"]) condition.features = tensors["input.features"];
      if (tensors["input.is_real"]) condition.isReal = tensors["input.is_real"];
      fn({ policy, tokens: tensors.tokens as Tensor, condition, tensors });
    }),
  );
}

/** Condition and null condition as one batch, the conditional half first. */
const guided = (policy: ArPolicy, condition: Condition): Condition =>
  concatConditions(condition, policy.nullCondition(condition));

const mixed = (both: Tensor, scale: number): Tensor => {
  const [cond, uncond] = both.chunk(2) as [Tensor, Tensor];
  return uncond.lerp(cond, scale);
};

/** Teacher-forced logits `[B, n + 1, V]` of a policy run on both halves at once: `uncond + (cond - uncond) * scale`. */
export function guidedLogits(
  policy: ArPolicy,
  tokens: Tensor,
  condition: Condition,
  guidance: Guidance,
): Tensor {
  return tidy(() => {
    const both = policy.forward(cat([tokens, tokens]), guided(policy, condition));
    const scaleOf = (i: number): number => guidanceScale(guidance, i, policy.blockSize);
    return cat(
      Array.from({ length: both.size(1) }, (_, i) => mixed(both.narrow(1, i, 1), scaleOf(i))),
      1,
    );
  });
}

function guidedPrefill(
  policy: ArPolicy,
  cache: DecodeCache,
  tokens: Tensor,
  condition: Condition,
  scale: number,
): Tensor {
  return tidy(() => mixed(policy.prefill(cache, cat([tokens, tokens]), guided(policy, condition)), scale));
}

function guidedDecode(policy: ArPolicy, cache: DecodeCache, token: Tensor, scale: number): Tensor {
  return tidy(() => mixed(policy.decode(cache, cat([token, token])), scale));
}

/** Keys and shapes of a model as it was published, in their order. */
export function publishedShapes(file: string): [key: string, shape: string][] {
  const lines = readFileSync(root(`test/golden/keys/${file}`), "utf8")
    .trim()
    .split("\n");
  return lines.map((line) => line.split("\t").slice(0, 2) as [string, string]);
}

export function shapesOf(policy: ArPolicy): [key: string, shape: string][] {
  return Object.entries(policy.stateDict()).map(([key, { shape }]) => [key, `[${shape.join(", ")}]`]);
}

/** Logits under condition, null condition and guidance, and the gradient of every parameter. */
export function checkGolden({ policy, tokens, condition, tensors }: Golden): void {
  const context = tokens.narrow(1, 0, policy.blockSize - 1);
  const close = { rtol: 1e-5, atol: 1e-5 };
  const logits = policy.forward(context, condition);
  expectClose(logits, tensors.logits as Tensor, { ...close, where: "logits" });
  const none = policy.nullCondition(condition);
  expectClose(policy.forward(context, none), tensors.uncond as Tensor, { ...close, where: "null condition" });
  const guidedAt = guidedLogits(policy, context, condition, { scale: 2.5 });
  expectClose(guidedAt, tensors.guided as Tensor, { rtol: 1e-5, atol: 2e-5, where: "guided" });

  F.crossEntropy(logits.flatten(0, 1), tokens.flatten()).backward();
  for (const [key, parameter] of policy.namedParameters()) {
    const wanted = tensors[`grad.${key}`];
    if (wanted === undefined) {
      // Only what stands for an absent condition goes unused.
      assert.equal(key, "uncond_embedding");
      assert.equal(parameter.grad, null);
    } else {
      expectClose(parameter.grad as Tensor, wanted, { rtol: 1e-5, atol: 3e-7, where: `gradient of ${key}` });
    }
  }
}

/** Every split of the codes into a prefix and single steps gives the teacher-forced logits, guided and not. */
export function checkIncremental({ policy, tokens, condition }: Golden): void {
  const t = policy.blockSize;
  const context = tokens.narrow(1, 0, t - 1);
  const guidance = { scale: 2.5, schedule: "power_cosine" } as const;
  const scaleOf = (i: number): number => 1 + ((1 - Math.cos((Math.PI * i) / t)) / 2) * 1.5;
  const plain = noGrad(() => policy.forward(context, condition));
  const wanted = noGrad(() => guidedLogits(policy, context, condition, guidance));
  using cache = policy.openCache(2);
  using doubled = policy.openCache(4);
  const check = (logits: Tensor, all: Tensor, i: number, where: string): void => {
    expectClose(logits, all.select(1, i), { rtol: 1e-5, atol: 5e-6, where });
    logits.dispose();
  };
  for (let k = 0; k < t; k++) {
    cache.reset();
    doubled.reset();
    const prefix = context.narrow(1, 0, k);
    check(policy.prefill(cache, prefix, condition), plain, k, `prefill of ${k}`);
    check(guidedPrefill(policy, doubled, prefix, condition, scaleOf(k)), wanted, k, `guided prefill of ${k}`);
    for (let i = k; i < t - 1; i++) {
      const token = context.select(1, i);
      check(policy.decode(cache, token), plain, i + 1, `code ${i + 1} after ${k}`);
      check(
        guidedDecode(policy, doubled, token, scaleOf(i + 1)),
        wanted,
        i + 1,
        `guided code ${i + 1} after ${k}`,
      );
    }
    assert.equal(cache.length, cache.capacity);
  }
}

/** A repeated cache gives what a prefill of the repeated sequences gives, also in memory that was used before. */
export function checkGroups({ policy, tokens, condition }: Golden): void {
  const times = 3;
  const k = 4;
  const prefix = tokens.narrow(1, 0, k);
  using cache = policy.openCache(2, { maxLen: k + 3 });
  using apart = policy.openCache(2 * times);
  policy.prefill(cache, prefix, condition);
  policy.prefill(apart, prefix.repeatInterleave(times, 0), repeatCondition(condition, times));
  const used: DecodeCache = policy.openCache(2 * times);
  policy.prefill(used, prefix.repeatInterleave(times, 0).flip(0, 1), repeatCondition(condition, times));
  using fresh = policy.repeatCache(cache, times);
  using again = policy.repeatCache(cache, times, used);
  assert.equal(again, used);
  assert.deepEqual([fresh.batch, fresh.length, again.length], [6, cache.length, cache.length]);
  for (let i = 0; i < 2; i++) {
    // Each generation goes its own way.
    const token = tokens.narrow(1, k + i, times).flatten();
    const wanted = policy.decode(apart, token);
    for (const grown of [fresh, again])
      expectClose(policy.decode(grown, token), wanted, { rtol: 1e-5, atol: 2e-6 });
  }
}

/** Recomputing the blocks gives the gradients that keeping their insides gives, bit for bit, with dropout too. */
export function checkCheckpointing({ policy, tokens, condition }: Golden): void {
  const context = tokens.narrow(1, 0, 7);
  const gradients = (again: boolean): Map<string, Tensor | null> => {
    policy.gradientCheckpointing = again;
    policy.zeroGrad();
    manualSeed(5);
    F.crossEntropy(
      policy.forward(context, condition).flatten(0, 1),
      tokens.narrow(1, 0, 8).flatten(),
    ).backward();
    return new Map(policy.namedParameters().map(([key, parameter]) => [key, parameter.grad]));
  };
  for (const training of [false, true]) {
    policy.train(training);
    const kept = gradients(false);
    const recomputed = gradients(true);
    assert.ok([...kept.values()].filter((grad) => grad !== null).length >= kept.size - 1);
    for (const [key, grad] of kept) {
      const other = recomputed.get(key) ?? null;
      assert.ok(
        grad === null ? other === null : other?.equal(grad),
        `gradient of ${key}, training ${training}`,
      );
    }
  }
}
