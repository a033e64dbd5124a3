/** No key of the configuration is a promise that nothing keeps: runs of all kinds, and what none of them has read. */
import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";
import { type ResolvedConfig, resolveConfig } from "../../src/config/resolve.js";
import { FeatureClassifier, NLayerDiscriminator } from "../../src/metrics/index.js";
import { openRunParts } from "../../src/rl_ar_finetune/parts.js";
import { trainRlLoop } from "../../src/rl_ar_finetune/train_loop.js";
import { full, manualSeed, rand, saveSafetensors, type Tensor, tidy } from "../../src/torch/index.js";
import { watchReads } from "../support/config_reads.js";
import { writeEncoders } from "../support/encoders.js";
import { Shown, tinyFolder, tinyRun, tinyTokenizer } from "../support/train_run.js";

/** Networks of the rewards, with random weights. */
function writeNetworks(
  folder: string,
): Readonly<Record<"lpips" | "patchGan" | "perceptual" | "kernel", string>> {
  manualSeed(3);
  const at = (name: string): string => join(folder, `${name}.safetensors`);
  const convolutions: [string, number[]][] = [
    ["features.0", [64, 3, 11, 11]],
    ["features.3", [192, 64, 5, 5]],
    ["features.6", [384, 192, 3, 3]],
    ["features.8", [256, 384, 3, 3]],
    ["features.10", [256, 256, 3, 3]],
  ];
  tidy(() => {
    const alexNet = convolutions.flatMap(([name, shape]) => [
      [`${name}.weight`, rand(shape).mul(0.1)] as const,
      [`${name}.bias`, rand([shape[0] as number])] as const,
    ]);
    saveSafetensors(at("lpips"), Object.fromEntries(alexNet));
  });
  using discriminator = new NLayerDiscriminator({ ndf: 8, nLayers: 1 });
  saveSafetensors(at("patchGan"), discriminator.stateDict());
  using classifier = new FeatureClassifier({ numClasses: 3, widths: [8, 8] } as never);
  for (const name of ["perceptual", "other"])
    saveSafetensors(at(name), classifier.stateDict(), { config: JSON.stringify(classifier.config) });
  return { lpips: at("lpips"), patchGan: at("patchGan"), perceptual: at("perceptual"), kernel: at("other") };
}

async function* loader(): AsyncGenerator<Tensor> {
  while (true) {
    using images = full([2, 3, 16, 16], 0.5);
    yield images;
  }
}

test("every key is read by something", async (t) => {
  const folder = await tinyFolder(t);
  const paths = writeNetworks(folder);
  const encoders = writeEncoders(folder);
  using model = tinyTokenizer();
  process.chdir(folder); // for the run without a folder's name
  const unread = new Map<string, string[]>();
  const watch = async (
    name: string,
    changes: object,
    use: (watched: ResolvedConfig) => Promise<unknown>,
  ): Promise<void> => {
    const resolved = resolveConfig({ values: tinyRun(folder, changes) });
    const watched = watchReads(resolved.config);
    await use({ ...resolved, config: watched.config });
    unread.set(name, watched.unread());
  };
  const run = (name: string, changes: object) =>
    watch(name, { run: { dir: join(folder, name) }, ...changes }, (resolved) =>
      trainRlLoop(resolved, { screen: new Shown() }),
    );
  await run("grpo", {
    run: { dir: null },
    ema: { decay: 0.9 },
    kl: { coef: 0.1, target: 0.1 },
    ar: { lora: { rank: 2 } },
    eval: { every: 1, images: 4, numGenerations: 2 },
    log: { imagesEvery: 1 },
    save: { ckptPath: join(folder, "weights.safetensors") },
  });
  await run("place", { algorithm: "rloo", reward: { credit: "place" } });
  const fn = (_: Tensor, samples: Tensor): Tensor => samples.mean([1, 2, 3]);
  await run("reinforce", { algorithm: "reinforce", reward: { custom: { fn } } });
  await run("ppo", { algorithm: "ppo", kl: { coef: 0.1, refreshEvery: 1 } });
  await run("ste", { algorithm: "ste", rollout: { context: { type: "noisy_teacher_forced" } } });
  await run("loader", { tokenizer: { model }, dataloader: loader });
  const terms = Object.fromEntries(Object.entries(paths).map(([name, path]) => [name, { weight: 1, path }]));
  await watch(
    "networks",
    {
      tokenizer: { path: null, model: encoders.model },
      reward: { ...terms, ...encoders.reward, http: { judge: { url: "http://127.0.0.1:1" } } },
      eval: { every: 1, perceptual: join(folder, "other.safetensors") },
    },
    async ({ config }) => {
      using parts = await openRunParts(config);
      assert.deepEqual(
        parts.terms.map((term) => term.name),
        [
          ...["l2", "lpips", "perceptual", "patch_gan", "toklip_image", "toklip_text", "clip", "aesthetic"],
          ...["dists", "judge", "kernel"],
        ],
      );
    },
  );
  const [first = [], ...others] = [...unread.values()];
  const never = first.filter((path) => others.every((paths) => paths.includes(path)));
  assert.deepEqual(never, []);
});
