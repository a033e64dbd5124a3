/** One run by 1, 2 and 4 processes: the same codes, and weights that differ by the rounding of sums alone. */
import assert from "node:assert/strict";
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";

import { writeEncoders } from "../support/encoders.js";
import { start } from "../support/processes.js";
import { assertSameMetrics, difference } from "../support/same_run.js";
import { checkpointsOf, metricsOf, tinyFolder, writeEmoji } from "../support/train_run.js";

type Runs = readonly (readonly [name: string, changes: object])[];

const recordOf = (dir: string): string => readFileSync(join(dir, "steer.jsonl"), "utf8");

async function run(folder: string, size: number, runs: Runs): Promise<void> {
  const args = [folder, JSON.stringify(runs)];
  const ended = await (await start("distributed/train_child.js", size, args)).ended;
  const errors = ended.map(({ err }) => err).join("\n");
  for (const { code } of ended) assert.equal(code, 0, errors);
}

/** A folder that {@link writeEncoders} fills, and images with captions in it. */
const ENCODERS = mkdtempSync(join(tmpdir(), "encoders-"));
after(() => rmSync(ENCODERS, { recursive: true, force: true }));
const { toklipImage, toklipText, clip } = writeEncoders(ENCODERS).reward;
await writeEmoji(join(ENCODERS, "images"), 26);
for (const name of readdirSync(join(ENCODERS, "images"), { recursive: true, encoding: "utf8" }))
  if (name.endsWith(".png"))
    writeFileSync(join(ENCODERS, "images", name.replace(".png", ".txt")), `fox ${name}`);

const teacher = { context: { type: "teacher_forced" } };
const CASES: Runs = [
  [
    "grpo",
    {
      update: { miniBatch: 2, microBatch: 3, codeDistance: 0.5, codeFrequency: 0.5 },
      grpo: { epochs: 2 },
      kl: { coef: 0.1, target: 0.01 },
      rollout: { context: { shortest: 2, free: 0.3 } },
      ema: { decay: 0.9 },
    },
  ],
  [
    "free",
    {
      rollout: { context: { type: "free" }, topK: 8 },
      grpo: { scale: "batch" },
      update: { entropyCoef: 0.01, codeFrequency: 0.5 },
    },
  ],
  [
    "teacher",
    {
      rollout: { ...teacher, images: 6 },
      kl: { coef: 0.1, estimator: "exact", refreshEvery: 1, refreshMix: 0.5 },
      update: { auxCe: 0.1 },
    },
  ],
  [
    "noisy",
    { rollout: { context: { type: "noisy_teacher_forced", noise: 0.5 } }, update: { tokenDropout: 0.2 } },
  ],
  [
    "reinforce",
    {
      algorithm: "reinforce",
      reward: { normalize: "batch", l1: { weight: 1 } },
      optimizer: { maxGradNorm: 0.1 },
    },
  ],
  [
    "rloo",
    {
      algorithm: "rloo",
      ar: { lora: { rank: 2 } },
      update: { auxCe: 0.1 },
      rloo: { minStd: 0.02 },
      rollout: { redraws: 2 },
    },
  ],
  [
    "ppo",
    {
      algorithm: "ppo",
      ppo: { epochs: 2 },
      kl: { coef: 0.1, placement: "reward" },
      update: { miniBatch: 2 },
    },
  ],
  ["ppo_shared", { algorithm: "ppo", ppo: { epochs: 1 }, rollout: teacher }],
  ["ste", { algorithm: "ste", rollout: teacher, update: { auxCe: 0.1, entropyCoef: 0.01 } }],
  ["place", { reward: { credit: "place", normalize: "group" } }],
  [
    "sharded",
    {
      train: { iters: 3, shardOptimizer: true },
      save: { every: 1 },
      ar: { lora: { rank: 2 } },
      algorithm: "ppo",
    },
  ],
  ["judged", { eval: { every: 1, images: 5 }, data: { flip: true } }],
  [
    "steered",
    {
      update: {
        entropyCoef: 0.01,
        entropyTarget: 9,
        entropyDelta: 0.01,
        topEntropy: 0.5,
        constantGroups: "exclude",
      },
      train: { iters: 3 },
      steer: "optimizer: {lr: 0.002}\nupdate: {auxCe: 0.2}\nreward: {l2: {weight: 2}}\n",
    },
  ],
  [
    "own",
    {
      reward: {
        custom: { mine: { module: "test/fixtures/unlike.mjs", normalize: "batch", clamp: [0, 0.5] } },
      },
      eval: { every: 1, images: 5 },
    },
  ],
  [
    "meaning",
    {
      data: { source: join(ENCODERS, "images") },
      tokenizer: { path: join(ENCODERS, "toklip_vq.safetensors") },
      reward: { toklipImage, toklipText, clip },
      eval: { every: 1, images: 5 },
    },
  ],
  [
    "texts",
    {
      data: { source: null, classNames: ["a", "b", "c"] },
      rollout: { context: { type: "free" } },
      reward: { l2: { weight: 0 }, custom: { mine: { module: "test/fixtures/unlike.mjs" } } },
      update: { auxCe: 0 },
      eval: { every: 1, images: 5 },
      log: { imagesEvery: 1 },
    },
  ],
  [
    "alarm",
    {
      reward: {
        l1: { weight: 1e-9 },
        l2: { weight: 0 },
        psnr: { weight: 1e-9 },
        ssim: { weight: 1e-9 },
        custom: { mine: { module: "test/fixtures/unlike.mjs" } },
      },
      update: { auxCe: 0 },
      eval: { every: 1, images: 8, best: "eval/l2/mean", mode: "min" },
      seed: 4, // of which evaluations find the reward gamed, after a better one
      alarm: { action: "rollback" },
      optimizer: { lr: 1e-2 },
      train: { iters: 4 },
    },
  ],
];

test("1, 2 and 4 processes make the same run, for every algorithm and context", async (t) => {
  const folder = await tinyFolder(t, 26);
  const named = (size: number): Runs => CASES.map(([name, changes]) => [`${name}-${size}`, changes]);
  await run(folder, 1, named(1));
  for (const size of [2, 4]) {
    await run(folder, size, named(size));
    for (const [name, changes] of CASES) {
      await t.test(`${name} by ${size}`, () => {
        const [one, several] = [join(folder, `${name}-1`), join(folder, `${name}-${size}`)];
        assertSameMetrics(one, several, 2e-3);
        assert.ok(difference(one, several) < 2e-5, `policy: ${difference(one, several)}`);
        assert.ok(difference(one, several, "optimizer.safetensors") < 2e-5, "optimizer");
        if (name === "alarm")
          assert.ok(
            metricsOf(several).some((line) => "eval/rolled_back_to" in line),
            name,
          );
        if (name === "rloo")
          assert.ok(
            metricsOf(several).some((line) => (line["rollout/replaced_groups"] as number) > 0),
            name,
          );
        if ("steer" in changes) assert.equal(recordOf(several), recordOf(one));
        if ("ema" in changes) assert.ok(difference(one, several, "ema.safetensors") < 2e-5);
      });
    }
  }
});

test("4 processes begin, 2 go on, 1 ends, with a sharded optimizer and without", async (t) => {
  const folder = await tinyFolder(t, 20);
  const train = { iters: 6, threads: 1, device: "cpu" };
  const changes = { train, ema: { decay: 0.9 } };
  await run(folder, 1, [["whole", changes]]);
  for (const [size, stopAt] of [
    [4, 2],
    [2, 4],
    [1, undefined],
  ] as const) {
    const stop = stopAt === undefined ? {} : { stopAt };
    await run(folder, size, [
      ["plain", { ...changes, ...stop }],
      ["sharded", { ...changes, train: { ...train, shardOptimizer: true }, ...stop }],
    ]);
    const steps = checkpointsOf(join(folder, "plain"));
    assert.equal(steps.at(-1), `step_00000${stopAt ?? 6}`);
  }
  for (const name of ["plain", "sharded"]) {
    const [one, several] = [join(folder, "whole"), join(folder, name)];
    assertSameMetrics(one, several, 2e-3);
    for (const file of ["policy.safetensors", "ema.safetensors", "optimizer.safetensors"])
      assert.ok(difference(one, several, file) < 2e-5, `${name}: ${file}`);
  }
  assert.equal(difference(join(folder, "plain"), join(folder, "sharded")), 0, "sharding changes no bit");
});
