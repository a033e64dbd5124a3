/**
 * Learning to reconstruct, on a tokenizer of 16 colours: each algorithm must close a good part of the gap between its
 * first samples and the images, on every seed, and must not where the reward says nothing. Fixed seeds, stated margins.
 */
import assert from "node:assert/strict";
import { test } from "node:test";

import { AdamW } from "../../src/nn/index.js";
import {
  grpoUpdate,
  ppoUpdate,
  reinforceUpdate,
  rlooUpdate,
  type UpdateBatch,
  ValueHead,
} from "../../src/rl_ar_finetune/optimize.js";
import { judgeByPlace, reconstructionTerm, type Term } from "../../src/rl_ar_finetune/rewards.js";
import { type RolloutContext, sampleRollout } from "../../src/rl_ar_finetune/rollout.js";
import { steUpdate } from "../../src/rl_ar_finetune/ste.js";
import { FrozenTokenizer } from "../../src/tokenizers/index.js";
import {
  deriveSeed,
  manualSeed,
  randint,
  randperm,
  stream,
  type Tensor,
  tensor,
  tidy,
} from "../../src/torch/index.js";
import { TinyPolicy } from "../support/tiny_policy.js";
import { ToyTokenizer } from "../support/toy_tokenizer.js";

const SEEDS = [1, 2, 3];
const IMAGES = 4;
const DRAWS = 8;
const CODES = 16;

interface Task {
  algorithm: "reinforce" | "rloo" | "grpo" | "ppo" | "ste";
  seed: number;
  steps?: number;
  context?: RolloutContext;
  /** Credit by place, with this decay. */
  creditDecay?: number;
  /** Whether the reward says nothing: dealt out at random, or for the baseline of random sign. */
  isShuffled?: boolean;
}

/** Part of the gap between the first five steps' samples and the images that is closed in the last tenth; 0.5 is half of it. */
function closed(task: Task): number {
  const { algorithm, seed, steps = 40, creditDecay, isShuffled = false } = task;
  const { context = { type: "teacher_forced" } } = task;
  manualSeed(seed);
  const toy = new ToyTokenizer();
  const tokenizer = new FrozenTokenizer(toy);
  using policy = new TinyPolicy({ vocabSize: 16, blockSize: CODES, width: 32, classes: IMAGES });
  using valueHead = new ValueHead(32);
  using optimizer = new AdamW([...policy.parameters(), ...valueHead.parameters()], {
    lr: 0.01,
    weightDecay: 0,
  });
  const trueCodes = randint(0, 16, [IMAGES, CODES]);
  const images = tokenizer.decodeCode(trueCodes);
  const classes = tensor([0, 1, 2, 3], { dtype: "int64" });
  const l2 = reconstructionTerm("l2");
  const means: number[] = [];
  for (let step = 0; step < steps; step++) {
    tidy(() => {
      using generator = stream(seed, "rollout", step);
      const options = { context, numGenerations: DRAWS, trueCodes, generator };
      const rollout = sampleRollout(policy, { classes }, options);
      const samples = tokenizer.decodeCode(rollout.codes.flatten(0, 1));
      const { places, plain } = judgeByPlace([l2], { images, samples }, [4, 4]);
      means.push(plain.mean().item());
      if (algorithm === "ste") {
        const sign = isShuffled && Number(deriveSeed(seed, "sign", step) % 2n) === 0 ? 1 : -1;
        const terms: Term[] = [{ ...l2, sign: sign as 1 | -1 }];
        const batch = { images, start: { classes }, trueCodes, context: rollout.context as Tensor };
        steUpdate(policy, optimizer, batch, { tokenizer, terms, seed: step, numGenerations: 2 });
        return;
      }
      const drawn = rollout.tokens.size(2);
      const fair = creditDecay === undefined ? plain : places.narrow(2, CODES - drawn, drawn).div(CODES); // [B, G (, T)]
      const order = randperm(IMAGES * DRAWS);
      const rewards = isShuffled
        ? fair.flatten(0, 1).indexSelect(0, order).unflatten(0, [IMAGES, DRAWS])
        : fair;
      const batch: UpdateBatch = { ...rollout, rewards };
      const more = creditDecay === undefined ? {} : { creditDecay };
      if (algorithm === "reinforce")
        reinforceUpdate(policy, optimizer, batch, { ...more, aggregation: "mean" });
      else if (algorithm === "rloo") rlooUpdate(policy, optimizer, batch, more);
      else if (algorithm === "grpo") grpoUpdate(policy, optimizer, batch, more);
      else ppoUpdate(policy, optimizer, batch, { valueHead, miniBatch: 2, epochs: 2 });
    });
  }
  for (const t of [toy.colours, trueCodes, images, classes]) t.dispose();
  const mean = (values: readonly number[]): number => values.reduce((a, b) => a + b) / values.length;
  // Samples of the images' own codes have reward 0.
  return 1 - mean(means.slice(-Math.ceil(steps / 10))) / mean(means.slice(0, 5));
}

/** What an algorithm must close in 40 steps with the reward, and may at most without. */
const MARGINS = {
  reinforce: [0.35, 0.2],
  rloo: [0.35, 0.2],
  grpo: [0.35, 0.2],
  ppo: [0.35, 0.2],
  ste: [0.6, 0.35],
} as const;

for (const [algorithm, [least, most]] of Object.entries(MARGINS) as [
  Task["algorithm"],
  readonly [number, number],
][]) {
  test(`${algorithm} closes ${100 * least} % of the gap to the images, on every seed`, () => {
    for (const seed of SEEDS) {
      const part = closed({ algorithm, seed });
      assert.ok(part > least, `seed ${seed}: ${part}`);
    }
  });

  test(`${algorithm} does not close it with a reward that says nothing`, () => {
    for (const seed of SEEDS) {
      const part = closed({ algorithm, seed, isShuffled: true });
      assert.ok(part < most, `seed ${seed}: ${part}`);
    }
  });
}

test("credit by place closes a tenth more of the gap in 20 steps than credit by sequence, on every seed", () => {
  for (const type of ["teacher_forced", "free"] as const) {
    for (const algorithm of ["grpo", "rloo"] as const) {
      for (const seed of SEEDS) {
        const task = { algorithm, seed, steps: 20, context: { type } };
        const [sequence, place] = [closed(task), closed({ ...task, creditDecay: 0.5 })];
        assert.ok(place > sequence + 0.1, `${type} ${algorithm} seed ${seed}: ${sequence}, ${place}`);
      }
    }
  }
});
