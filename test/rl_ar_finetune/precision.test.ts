/** What bfloat16 in the decoder and in reward networks costs, as the first step of a run measures and judges it. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { FeatureClassifier, PerceptualDistance } from "../../src/metrics/index.js";
import { decodeCodes } from "../../src/rl_ar_finetune/decode.js";
import { customTerm } from "../../src/rl_ar_finetune/own_rewards.js";
import type { RunParts } from "../../src/rl_ar_finetune/parts.js";
import { measurePrecision, reportPrecision } from "../../src/rl_ar_finetune/precision.js";
import { reconstructionTerm, type Term } from "../../src/rl_ar_finetune/rewards.js";
import { buildTokenizerFrozen, VQModel } from "../../src/tokenizers/index.js";
import { manualSeed, memory, noGrad, rand, randint, type Tensor, zeros } from "../../src/torch/index.js";
import { expectClose } from "../support/close.js";
import { noLeak } from "../support/leak.js";
import { metricsOf, quietRun, Shown, tinyFolder, tinyRun, tinyTokenizer } from "../support/train_run.js";

test("a decoder in bfloat16 is close to float32, gives float32 images, and is measured", () => {
  manualSeed(3);
  using tokenizer = buildTokenizerFrozen(tinyTokenizer());
  const codes = randint(0, 32, [2, 3, 16]);
  const images = rand([2, 3, 16, 16]).mul(2).sub(1);
  const exact = noGrad(() => tokenizer.decodeCode(codes.flatten(0, 1)));
  using narrowDecoder = tokenizer.narrowDecoder();
  const terms = [reconstructionTerm("l2")];
  const parts = { tokenizer, terms, narrowDecoder } as unknown as RunParts;
  const judged = decodeCodes(parts, images, codes, 4);
  assert.equal(judged.samples.dtype, "float32");
  const error = judged.samples.sub(exact);
  const cost = noLeak(() => measurePrecision(parts, judged, codes, 4));
  const psnr = 10 * Math.log10(4 / Number(error.double().square().mean().item()));
  assert.ok(Math.abs((cost?.psnr as number) - psnr) < 1e-3, `${cost?.psnr}, not ${psnr}`);
  assert.ok(psnr > 35 && psnr < 80, `${psnr}`);
  assert.deepEqual([cost?.images, cost?.samples], [2, 6]);
  assert.ok((cost?.correlation as number) > 0.4);
  const again = decodeCodes(parts, images, codes, 4);
  assert.ok(again.samples.equal(judged.samples), "the decoder is in bfloat16 again");
  const plain = { tokenizer, terms, narrowDecoder: null } as unknown as RunParts;
  assert.equal(measurePrecision(plain, judged, codes, 4), null);
});

test("a custom reward, which may draw random numbers, is not computed again", () => {
  using tokenizer = buildTokenizerFrozen(tinyTokenizer());
  using narrowDecoder = tokenizer.narrowDecoder();
  let calls = 0;
  const custom = customTerm("custom", (_, samples: Tensor) => {
    calls++;
    return zeros([samples.size(0)]);
  });
  const parts = { tokenizer, terms: [custom], narrowDecoder } as unknown as RunParts;
  const codes = randint(0, 32, [1, 2, 16]);
  const judged = decodeCodes(parts, rand([1, 3, 16, 16]), codes, 2);
  const cost = measurePrecision(parts, judged, codes, 2);
  assert.equal(calls, 0);
  assert.ok(Number.isNaN(cost?.correlation));
});

test("a cost that is too high is refused with its key, unless forced", () => {
  const precision = { policy: "auto", tokenizer: "bfloat16", rewards: "float32", tf32: false } as const;
  const cost = { psnr: 45, correlation: 0.99, images: 4, samples: 32 };
  assert.match(reportPrecision({ precision }, cost, false), /45\.0 dB.*0\.990/);
  const noisy = { ...cost, psnr: 20 };
  assert.throws(
    () => reportPrecision({ precision }, noisy, false),
    /precision\.tokenizer: .*20\.0 dB.*float32/,
  );
  assert.match(reportPrecision({ precision }, noisy, true), /20\.0 dB/);
  const shuffled = { ...cost, correlation: 0.5 };
  assert.throws(() => reportPrecision({ precision }, shuffled, false), /precision\.tokenizer: .*0\.500/);
  const rewards = { ...precision, tokenizer: "float32", rewards: "bfloat16", tf32: false } as const;
  assert.throws(
    () => reportPrecision({ precision: rewards }, { ...shuffled, psnr: null }, false),
    /precision\.rewards/,
  );
});

test("identical samples are decoded once", () => {
  const model = tinyTokenizer();
  using tokenizer = buildTokenizerFrozen(model);
  const parts = { tokenizer, terms: [] } as unknown as RunParts;
  const images = rand([1, 3, 16, 16]);
  const codes = randint(0, 32, [1, 4, 16]);
  codes.select(1, 3).copy_(codes.select(1, 0));
  const decoded: number[] = [];
  const decode = model.decodeCode.bind(model);
  model.decodeCode = (some, grid) => {
    decoded.push(some.size(0));
    return decode(some, grid);
  };
  const { samples } = decodeCodes(parts, images, codes, 8);
  assert.deepEqual(decoded, [3]);
  assert.ok(samples.select(0, 0).equal(samples.select(0, 3)));
  const wanted = decode(codes.flatten(0, 1), [4, 4]);
  assert.ok(Number(samples.sub(wanted).abs().amax().item()) < 1e-5);
});

test("a run in bfloat16 says what it costs, and resumes bit for bit", async (t) => {
  const folder = await tinyFolder(t);
  const precision = { tokenizer: "bfloat16" };
  const changes = { precision, rollout: { numGenerations: 4 }, train: { iters: 4 }, save: { every: 2 } };
  const screen = new Shown();
  const whole = tinyRun(folder, { ...changes, run: { dir: `${folder}/whole` } });
  const options = { screen, force: true };
  const { dir } = await quietRun(whole, options);
  assert.match(screen.text, /bfloat16 against float32, 16 samples of 4 images/);
  const abort = new AbortController();
  abort.abort();
  const parted = tinyRun(folder, { ...changes, run: { dir: `${folder}/parted`, ifExists: "resume" } });
  for (let i = 0; i < 4; i++) await quietRun(parted, { ...options, signal: abort.signal });
  assert.deepEqual(metricsOf(`${folder}/parted`), metricsOf(dir));
});

test("a tokenizer of another library has no bfloat16 decoder", () => {
  const model = new VQModel({
    codebookSize: 8,
    codebookEmbedDim: 4,
    ch: 8,
    chMult: [1],
    numResBlocks: 1,
    zChannels: 8,
    normGroups: 4,
  });
  const other = {
    codebookSize: 8,
    downsample: 1,
    encode: model.encode.bind(model),
    decodeCode: model.decodeCode.bind(model),
  };
  assert.throws(() => buildTokenizerFrozen(other).narrowDecoder(), /IBQ or a VQModel.*float32/);
  model.dispose();
});

test("a network in bfloat16 has a narrow copy of its convolutions, and computes in float32 elsewhere", () => {
  manualSeed(5);
  const network = new FeatureClassifier({ widths: [16, 32], numClasses: 3 });
  using _ = { [Symbol.dispose]: () => term.dispose?.() };
  const perceptual = new PerceptualDistance(network.eval().requiresGrad_(false));
  const amp = { device: "cpu", dtype: "bfloat16" } as const;
  const term = reconstructionTerm("perceptual", { perceptual, amp });
  const [images, samples] = [rand([1, 3, 16, 16]), rand([3, 3, 16, 16])];
  const exact = noGrad(() => perceptual.forward(images, samples));
  const narrow = noGrad(() => term.measure({ images, samples }));
  const bytes = memory().bytes;
  const again = noGrad(() => term.measure({ images, samples }));
  assert.ok(again.equal(narrow));
  again.dispose();
  assert.equal(memory().bytes, bytes, "the copy is made once");
  expectClose(narrow, exact, { rtol: 1e-2 });
  assert.ok(!narrow.equal(exact));
  const alike = { images: images.clone(), samples };
  assert.ok(noGrad(() => (term.exact as Term).measure(alike)).equal(exact));
  assert.ok(
    noGrad(() => perceptual.forward(images, samples)).equal(exact),
    "the network itself is as before",
  );
});
