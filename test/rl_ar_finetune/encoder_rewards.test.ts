/** Rewards by meaning against cosines of the published code's embeddings. */
import assert from "node:assert/strict";
import { readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import type { RewardFunction } from "../../src/config/train.js";
import { pixelsToTensor, readPixels } from "../../src/data/index.js";
import { cosines, inTemplate } from "../../src/encoders/index.js";
import { clipTerm, toklipImageTerm } from "../../src/rl_ar_finetune/encoder_rewards.js";
import { openEncoder } from "../../src/rl_ar_finetune/open_encoders.js";
import type { Judged } from "../../src/rl_ar_finetune/rewards.js";
import { cat, loadSafetensors, type Tensor, tensor, tidy, zeros } from "../../src/torch/index.js";
import { expectClose } from "../support/close.js";
import { writeEncoders } from "../support/encoders.js";
import {
  metricsOf,
  quietRun,
  Shown,
  tinyFolder,
  tinyRun,
  tinyTokenizer,
  writeEmoji,
} from "../support/train_run.js";

const ROOT = "test/golden/encoders";

test("toklip_image is the cosine of sampled and true codes, each image's once for its samples", () => {
  tidy(() => {
    const { codes, image } = loadSafetensors(`${ROOT}/toklip/golden.safetensors`).tensors as Record<
      string,
      Tensor
    >;
    const encoder = openEncoder(`${ROOT}/toklip/TokLIP.pt`, { heads: 2, towers: { text: false } });
    const term = toklipImageTerm(encoder, { weight: 1 });
    const order = tensor([1, 0, 2, 1, 0, 0], { dtype: "int64" }); // samples of images 0, 1 and 2
    const images = zeros([3, 3, 8, 8]);
    const samples = zeros([6, 3, 8, 8]);
    const context = {
      codes: (codes as Tensor).indexSelect(0, order),
      trueCodes: codes,
      captions: null,
      classNames: null,
    };
    const found = term.measure({ images, samples, context } as unknown as Judged);
    const truth = tensor([0, 0, 1, 1, 2, 2], { dtype: "int64" });
    const wanted = cosines((image as Tensor).indexSelect(0, order), (image as Tensor).indexSelect(0, truth));
    expectClose(found, wanted, { rtol: 1e-5, atol: 1e-5 });
    assert.throws(
      () => term.measure({ images, samples } as Judged),
      /reward\.toklipImage: expected a batch with its codes/,
    );
    term.dispose?.();
  });
});

test("clip is the cosine of samples and the class names in a template", async () => {
  const names = ["a dog", "snow", "three mountains"];
  const parts: Tensor[] = [];
  for (const name of names) {
    for (let i = 0; i < 3; i++)
      parts.push(pixelsToTensor(await readPixels(`${ROOT}/zero_shot/images/${name}/${i}.png`)));
  }
  tidy(() => {
    const golden = loadSafetensors(`${ROOT}/zero_shot/golden.safetensors`).tensors as Record<string, Tensor>;
    const term = clipTerm(openEncoder(`${ROOT}/zero_shot/model`), { weight: 1, template: "a photo of {}." });
    const samples = cat(parts);
    const context = { codes: null, trueCodes: null, captions: null, classNames: names };
    const found = term.measure({ images: zeros([3, 3, 52, 40]), samples, context } as unknown as Judged);
    const words = (golden.text as Tensor).repeatInterleave(3, 0);
    expectClose(found, cosines(golden.image as Tensor, words), { rtol: 1e-4, atol: 2e-3 });
    const untold = { ...context, classNames: null };
    assert.throws(
      () => term.measure({ images: samples, samples, context: untold } as unknown as Judged),
      /reward\.clip: expected captions, or classes with names, got neither/,
    );
    term.dispose?.();
  });
  for (const part of parts) part.dispose();
});

test("a configuration opens the terms, a run logs them, and what does not fit is refused", async (t) => {
  const folder = await tinyFolder(t);
  const { model, reward } = writeEncoders(folder);
  const changes = { tokenizer: { path: null, model }, reward, eval: { every: 2, images: 4 } };
  const { dir } = await quietRun(tinyRun(folder, changes));
  const last = metricsOf(dir).at(-1) as Record<string, number>;
  for (const name of ["toklip_image", "toklip_text", "clip", "aesthetic", "dists"]) {
    for (const metric of [`reward/${name}/mean`, `eval/${name}/mean`])
      assert.ok(Number.isFinite(last[metric]), `${metric}: ${last[metric]}`);
  }
  const refused = async (more: object, message: RegExp): Promise<void> => {
    const config = tinyRun(folder, { ...changes, run: { dir: `${folder}/refused` }, ...more });
    await assert.rejects(quietRun(config), message);
  };
  await refused(
    { tokenizer: { path: null, model: tinyTokenizer() } },
    /^RangeError: reward\.toklipImage\.path: /,
  );
  await refused({ reward: { dists: { weight: 1 } } }, /reward\.dists\.path: .*reward\.dists\.weights: /s);
  const teacher = { rollout: { context: { type: "teacher_forced" } }, algorithm: "ste" };
  await refused(teacher, /reward\.toklipImage\.weight: expected 0 for ste/);
});

test("texts are captions where images have them, of the step and the evaluation; a resumed run is the same", async (t) => {
  const folder = await tinyFolder(t, 12);
  const { reward } = writeEncoders(folder);
  const names = readdirSync(join(folder, "images"), { recursive: true, encoding: "utf8" });
  for (const name of names.filter((one) => one.endsWith(".png")))
    writeFileSync(
      join(folder, "images", name.replace(".png", ".txt")),
      `fox ${"abcdefghijkl"[Number(name.slice(2, 5))]}`,
    );
  const seen: string[] = [];
  const fn: RewardFunction = (_, samples, { imageIds, captions, numGenerations }) => {
    for (const [i, id] of imageIds.entries())
      assert.equal(captions?.[i], `fox ${"abcdefghijkl"[Number(id.slice(2, 5))]}`);
    seen.push(`${captions?.length} x ${numGenerations}`);
    return samples.mean([1, 2, 3]);
  };
  const { toklipText, clip } = reward;
  const run = async (dir: string, iters: number, more: object = {}) => {
    const changes = {
      run: { dir: join(folder, dir), ifExists: "resume" },
      tokenizer: { path: join(folder, "toklip_vq.safetensors") },
      reward: { l2: { weight: 0 }, toklipText, clip, custom: { mine: { fn } } },
      optimizer: { schedule: "constant", warmup: 0 },
      eval: { every: 2, images: 2, numGenerations: 3 },
      train: { iters },
      ...more,
    };
    const screen = new Shown();
    await quietRun(tinyRun(folder, changes), { screen });
    assert.match(screen.text, /images to train on, each with a caption/);
  };
  await run("whole", 4);
  assert.deepEqual([...new Set(seen)].sort(), ["2 x 3", "4 x 1", "4 x 2"]);
  await run("parts", 2);
  await run("parts", 4);
  // The ceiling is measured in the first and the last step of a run.
  const measured = (name: string): Record<string, unknown>[] =>
    metricsOf(join(folder, name)).map((line) => ({ ...line, "reward/vq_ceiling": 0, "reward/gap": 0 }));
  const lines = measured("whole");
  assert.deepEqual(measured("parts"), lines);
  const last = lines.at(-1) as Record<string, number>;
  for (const name of ["toklip_text", "clip"]) {
    const score = last[`reward/${name}/mean`] as number;
    assert.ok(Math.abs(score) <= 1 && score !== 0, `${name}: ${score}`);
  }
  // By the names of classes the texts, and so the scores, are others.
  const dir = join(folder, "names");
  const config = {
    run: { dir },
    data: { captions: "none" },
    reward: { l2: { weight: 0 }, toklipText, clip },
    train: { iters: 1 },
  };
  await quietRun(tinyRun(folder, { tokenizer: { path: join(folder, "toklip_vq.safetensors") }, ...config }));
  assert.notEqual(metricsOf(dir)[0]?.["reward/toklip_text/mean"], lines[1]?.["reward/toklip_text/mean"]);
  // Texts of training and evaluation are of one kind.
  await writeEmoji(join(folder, "others"), 3);
  const other = { data: { evalSource: join(folder, "others") } };
  await assert.rejects(
    run("other", 1, other),
    /data\.evalSource: expected captions.*got none.*data\.captions=none/,
  );
});

test("a class's name is put into the template as it is", () => {
  assert.equal(inTemplate("a {} and {}", "$& $1 $$"), "a $& $1 $$ and $& $1 $$");
  assert.throws(() => inTemplate("a photo", "fox"), /template: expected \{\} where the name goes/);
});
