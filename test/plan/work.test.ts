import assert from "node:assert/strict";
import { test } from "node:test";
import { resolveConfig, type TrainConfig, type TrainConfigInput } from "../../src/config/resolve.js";
import { type PlanModels, policySizes } from "../../src/plan/models.js";
import { secondsOf } from "../../src/plan/rates.js";
import { costsOf, flopsOf } from "../../src/plan/work.js";
import { GPT } from "../../src/policies/index.js";
import { setNumThreads, zeros } from "../../src/torch/index.js";
import { countFlops } from "../support/flops.js";

setNumThreads(1);

const [V, T, B, G, D, L] = [32, 16, 3, 4, 24, 2];
const SIZES = { nLayer: L, nHead: 2, nEmbd: D };

function configOf(values: Record<string, unknown>): TrainConfig {
  const base = {
    data: { size: 16 },
    ar: { type: "gpt", ...SIZES },
    rollout: { images: B, numGenerations: G, ...(values.rollout as object) },
    eval: { every: 10, numGenerations: 2 },
    update: { auxCe: 0, ...(values.update as object) },
  };
  const { rollout: _, update: __, ...rest } = values;
  return resolveConfig({ values: { ...base, ...rest } as TrainConfigInput, isComplete: false }).config;
}

function modelsOf(config: TrainConfig): PlanModels {
  const policy = policySizes(config.ar, { blockSize: T, vocabSize: V, codes: T });
  const costs = () => ({
    encodeFlops: 7,
    decodeFlops: 11,
    activationBytes: 1,
    partBytes: 1,
    decodeGraphBytes: 1,
  });
  const tokenizer = {
    name: "VQ",
    parameters: 1,
    decoder: 1,
    codebookSize: V,
    downsample: 4,
    channels: 8,
    costs,
  };
  return { policy, reference: 0, valueHead: 0, tokenizer, networks: {} };
}

const workOf = (config: TrainConfig, when: "step" | "evaluation" = "step") => {
  const costs = costsOf(config, modelsOf(config), { isCuda: false, isNarrow: false })[when];
  const { encode, rollout, decode, reward, update } = costs;
  return {
    encode: encode.work,
    rollout: rollout.work,
    decode: decode.work,
    reward: reward.work,
    update: update.work,
  };
};

/** Operations of the linear layers for one row of T positions, and those of its head. */
function realFlops(): { trunk: number; head: number } {
  using policy = new GPT({ vocabSize: V, blockSize: T, ...SIZES });
  const tokens = zeros([1, T - 1], { dtype: "int64" });
  const trunk = countFlops([policy], () => policy.hidden(tokens, {}));
  const head = 2 * V * D * T;
  tokens.dispose();
  return { trunk, head };
}

/** Two products of T x T positions a layer, half of them masked. */
const ATTENTION = 2 * L * D * T * T;
const { trunk, head } = realFlops();

test("an update's operations: a forward and twice that backward, the head's forward twice", () => {
  const config = configOf({ rollout: { context: { type: "prefix" } } });
  const { update } = workOf(config);
  assert.equal(update.wide, B * G * (3 * (trunk + ATTENTION) + 4 * head));
  assert.deepEqual([update.narrow, update.convolution], [0, 0]);

  const more: readonly [Record<string, unknown>, number][] = [
    // True codes are rows of their own.
    [{ update: { auxCe: 0.1 } }, (B * G + B) * (3 * (trunk + ATTENTION) + 4 * head)],
    // A group shares a context.
    [{ rollout: { context: { type: "teacher_forced" } } }, B * (3 * (trunk + ATTENTION) + 4 * head)],
    [{ grpo: { epochs: 2 } }, 2 * B * G * (3 * (trunk + ATTENTION) + 4 * head)],
    [
      { ar: { type: "gpt", ...SIZES, gradientCheckpointing: true } },
      B * G * (4 * (trunk + ATTENTION) + 4 * head),
    ],
    // The reference is asked once.
    [{ kl: { coef: 0.1 } }, B * G * (4 * (trunk + ATTENTION) + 5 * head)],
    [{ kl: { stop: 1 } }, B * G * (4 * (trunk + ATTENTION) + 5 * head)],
    [{ rollout: { guidance: { scale: 2 } } }, 2 * B * G * (3 * (trunk + ATTENTION) + 4 * head)],
  ];
  for (const [values, wanted] of more) {
    const changed = configOf({ rollout: { context: { type: "prefix" } }, ...values });
    assert.equal(workOf(changed).update.wide, wanted, JSON.stringify(values));
  }
});

test("a rollout's operations: the given codes of B images at once, then one code of all sequences a step", () => {
  const config = configOf({ rollout: { context: { type: "prefix", length: 10 } } });
  const { encode, rollout, decode, reward } = workOf(config);
  const perToken = trunk / T;
  assert.equal(rollout.wide, B * (11 * perToken + 2 * L * D * 11 * 11));
  assert.equal(rollout.narrow, 6 * B * G * (perToken + head / T));
  assert.equal(encode.convolution, B * 7);
  assert.equal(decode.convolution, (B * G + B) * 11);
  assert.equal(flopsOf(reward), 0);
  const shared = configOf({ rollout: { context: { type: "teacher_forced" } } });
  const together = workOf(shared).rollout;
  assert.deepEqual([together.wide, together.narrow], [B * (trunk + ATTENTION + head), 0]);
});

test("a batch of an evaluation decodes what was drawn, and scores the true codes once", () => {
  const config = configOf({ rollout: { context: { type: "prefix", length: 10 } } });
  const { encode, rollout, decode, update } = workOf(config, "evaluation");
  assert.equal(encode.convolution, B * 7);
  assert.equal(decode.convolution, B * 2 * 11);
  assert.equal(rollout.narrow, 6 * B * 2 * ((trunk + head) / T));
  assert.equal(update.wide, B * (trunk + ATTENTION + head));
});

test("seconds are each kind of work by its own rate", () => {
  const work = { wide: 10, narrow: 20, convolution: 30, traffic: 40, calls: 50 };
  assert.equal(secondsOf(work, { wide: 10, narrow: 10, convolution: 10, traffic: 20, calls: 100 }), 8.5);
});
