/** Groups with equal rewards give way to groups of further images, as in DAPO's dynamic sampling. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { resolveConfig } from "../../src/config/resolve.js";
import { constantGroups } from "../../src/rl_ar_finetune/advantages.js";
import { replaced } from "../../src/rl_ar_finetune/generate.js";
import { sampleRollout } from "../../src/rl_ar_finetune/rollout.js";
import type { Rewarded } from "../../src/rl_ar_finetune/step.js";
import { Generator, manualSeed, type Tensor, tensor, tidy } from "../../src/torch/index.js";
import { expectClose } from "../support/close.js";
import { TinyPolicy } from "../support/tiny_policy.js";
import { checkpointsOf, metricsOf, quietRun, tinyFolder, tinyRun } from "../support/train_run.js";

const F64 = { dtype: "float64" } as const;

test("a group is constant when its standard deviation is at most minStd of its largest reward", () =>
  tidy(() => {
    // Standard deviations (n - 1): 0, 0.1 / sqrt 2 = 0.0707, 1 / sqrt 2.
    const rewards = tensor(
      [
        [2, 2],
        [1, 1.1],
        [0, 1],
      ],
      F64,
    );
    const at = (minStd?: number): unknown =>
      constantGroups(rewards, minStd === undefined ? {} : { minStd }).toList();
    assert.deepEqual(at(), [1, 0, 0]);
    assert.deepEqual(at(0.07), [1, 1, 0]); // 0.0707 / 1.1 = 0.064
    assert.deepEqual(at(0.06), [1, 0, 0]);
    const byPlace = tensor(
      [
        [
          [1, 2],
          [1, 2],
        ],
        [
          [1, 2],
          [1, 3],
        ],
      ],
      F64,
    );
    assert.deepEqual(constantGroups(byPlace).toList(), [1, 0]);
  }));

test("constant groups are replaced in their places by the first varied groups, with all that belongs to them", () =>
  tidy(() => {
    manualSeed(1);
    const policy = new TinyPolicy({ vocabSize: 6, blockSize: 4, width: 8, classes: 8 });
    using generator = new Generator(2);
    const draw = (classes: number[], scores: number[][]): Rewarded => {
      const trueCodes = tensor(
        classes.map((c) => [c % 6, 1, 2, 3]),
        { dtype: "int64" },
      );
      const start = { classes: tensor(classes, { dtype: "int64" }) };
      const context = { type: "noisy_teacher_forced", noise: 0.5 } as const;
      const sampling = { topK: 3 };
      const rollout = sampleRollout(policy, start, {
        numGenerations: 2,
        trueCodes,
        context,
        sampling,
        generator,
      });
      return { rollout, trueCodes, rewards: tensor(scores, F64) };
    };
    const first = draw(
      [0, 1, 2, 3],
      [
        [1, 1],
        [0, 1],
        [0, 0],
        [2, 2],
      ],
    );
    const further = draw(
      [4, 5, 6],
      [
        [3, 3],
        [1, 2],
        [0, 4],
      ],
    );
    const got = replaced(first, further, [0, 2, 3], [1, 2]);
    assert.deepEqual(got.rewards.toList(), [
      [1, 2],
      [0, 1],
      [0, 4],
      [2, 2],
    ]);
    const [, condition] = got.rollout.start as unknown as [Tensor, { classes: Tensor }];
    assert.deepEqual(condition.classes.toList(), [5, 1, 6, 3]);
    const rowOf = (of: (from: Rewarded) => Tensor | null, i: number): Tensor => {
      const [from, row] = [
        [further, 1],
        [first, 1],
        [further, 2],
        [first, 3],
      ][i] as [Rewarded, number];
      return (of(from) as Tensor).narrow(0, row, 1);
    };
    const parts: ((from: Rewarded) => Tensor | null)[] = [
      ({ trueCodes }) => trueCodes,
      ({ rollout }) => rollout.tokens,
      ({ rollout }) => rollout.codes,
      ({ rollout }) => rollout.logprobs,
      ({ rollout }) => rollout.entropy,
      ({ rollout }) => rollout.context,
      ({ rollout }) => rollout.support,
    ];
    for (const of of parts) {
      for (const i of [0, 1, 2, 3])
        expectClose((of(got) as Tensor).narrow(0, i, 1), rowOf(of, i), { rtol: 0, atol: 0 });
    }
  }));

/** Rewards of a group differ by about 2 %. */
const CLOSE = { grpo: { minStd: 0.02 }, log: { every: 1 } };

test("a step draws again up to the bound; the update has fewer constant groups, metrics are of the first rollout", async (t) => {
  const folder = await tinyFolder(t);
  const run = async (name: string, changes: object, iters = 3) => {
    const where = { dir: join(folder, name), ifExists: "resume" };
    const optimizer = { schedule: "constant", warmup: 0 };
    await quietRun(tinyRun(folder, { ...CLOSE, ...changes, run: where, optimizer, train: { iters } }));
    return metricsOf(where.dir);
  };
  const plain = await run("plain", {}, 1);
  const redrawn = await run("redrawn", { rollout: { redraws: 2 } });
  const before = plain[0] as Record<string, number>;
  const line = redrawn[0] as Record<string, number>;
  assert.ok((before["advantage/frac_zero_std"] as number) > 0, "the scene has constant groups");
  assert.equal(line["rollout/constant_frac"], before["advantage/frac_zero_std"]);
  for (const name of ["reward/mean", "tokens/unique_frac", "policy/entropy"])
    assert.equal(line[name], before[name], name);
  let seen = 0;
  for (const each of redrawn as Record<string, number>[]) {
    const [constant, redraws, groups] = ["constant_frac", "redraws", "replaced_groups"].map(
      (name) => each[`rollout/${name}`] as number,
    ) as [number, number, number];
    assert.equal(each["advantage/frac_zero_std"], constant - groups / 4);
    assert.ok(constant === 0 ? redraws === 0 : redraws >= 1 && redraws <= 2);
    seen += 4 * (1 + redraws);
    assert.equal(each["progress/images_seen"], seen);
  }
  // Nothing to be found: as often as may be, and the groups stay.
  const same = (_: Tensor, samples: Tensor): Tensor => tidy(() => samples.mean([1, 2, 3]).mul(0));
  const reward = { l2: { weight: 0 }, custom: { fn: same } };
  const [none] = (await run("none", { reward, rollout: { redraws: 2 } }, 1)) as Record<string, number>[];
  assert.deepEqual(
    ["rollout/constant_frac", "rollout/redraws", "rollout/replaced_groups", "advantage/frac_zero_std"].map(
      (name) => none?.[name],
    ),
    [1, 2, 0, 1],
  );
  // In two parts: the same run, bit for bit.
  await run("parts", { rollout: { redraws: 2 } }, 2);
  assert.deepEqual(await run("parts", { rollout: { redraws: 2 } }), redrawn);
  const weights = (name: string): Buffer => {
    const dir = join(folder, name);
    return readFileSync(join(dir, "checkpoints", checkpointsOf(dir).at(-1) as string, "policy.safetensors"));
  };
  assert.ok(weights("parts").equals(weights("redrawn")));
});

test("redraws are refused where there are no groups, and with a kept graph", () => {
  for (const [changes, pattern] of [
    [{ algorithm: "ppo" }, /rollout\.redraws: expected 0 with ppo.*algorithm=grpo/],
    [{ algorithm: "reinforce" }, /rollout\.redraws: expected 0 with reinforce/],
    [
      { algorithm: "ste", rollout: { context: { type: "teacher_forced" }, redraws: 1 } },
      /rollout\.redraws: .*ste/,
    ],
    [
      { rollout: { context: { type: "teacher_forced" }, keepGraph: true, redraws: 1 } },
      /rollout\.redraws: expected 0 with rollout\.keepGraph/,
    ],
  ] as const) {
    const values = { rollout: { redraws: 1 }, ...changes } as object;
    assert.throws(() => resolveConfig({ values, isComplete: false }), pattern);
  }
});
