/** Evaluations of models whose numbers are known: a policy that is always right, one that knows nothing. */
import assert from "node:assert/strict";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { readPixels } from "../../src/data/index.js";
import { readNpy, toInt64 } from "../../src/data/npy.js";
import { evaluateModels, type ModelEvaluation } from "../../src/evaluation/judge_models.js";
import type { Estimates, Judge, ModelEvalOptions } from "../../src/evaluation/options.js";
import { overClasses } from "../../src/evaluation/pages.js";
import { evaluationText } from "../../src/evaluation/verdict.js";
import { frechetDistance } from "../../src/metrics/distribution.js";
import type { Condition } from "../../src/policies/policy.js";
import { mapCondition } from "../../src/rl_ar_finetune/sampling.js";
import { FileBytes } from "../../src/torch/files.js";
import { keep, memory, type Tensor, tensor } from "../../src/torch/index.js";
import { ZipArchive } from "../../src/torch/zip.js";
import { npyOf } from "../support/data_files.js";
import {
  CODES,
  cellJudge,
  cellTokenizer,
  PATTERNS,
  rightPolicy,
  SIZE,
  uniformPolicy,
  writeCells,
} from "../support/eval_toys.js";
import "../support/settle.js";

const folder = mkdtempSync(join(tmpdir(), "model-eval-"));
const at = (...names: string[]): string => join(folder, ...names);
before(async () => await writeCells(at("images"), 60));
after(() => rmSync(folder, { recursive: true, force: true }));

const options = (more: Partial<ModelEvalOptions> = {}): ModelEvalOptions => ({
  tokenizer: cellTokenizer(),
  features: [cellJudge()],
  data: { source: at("images"), size: SIZE, evalPart: 0.4 },
  samples: 40,
  resamples: 20,
  ...more,
});

const names = (folder: string): string[] => readdirSync(folder).sort();

test("a policy that is always right completes images as well as the tokenizer can keep them", async () => {
  const found = await evaluateModels(options({ policy: rightPolicy(), prefixes: [0, 3], draws: 2 }));
  const { reconstruction, rows, likelihoods, data } = found;
  assert.equal(data.train.images + (data.heldOut?.images ?? 0), 60);
  assert.ok(reconstruction !== null && data.heldOut !== null);
  // Each cell is off by at most 8 of 255, and the tokenizer gives the cell's own grey back.
  const l1 = reconstruction.plain.l1?.value as number;
  assert.ok(l1 > 0.005 && l1 <= 8 / 127.5, String(l1));
  const [row] = rows;
  assert.deepEqual(
    row?.completions.map(({ prefix }) => prefix),
    [0, 3],
  );
  for (const { measures } of row?.completions ?? []) {
    assert.equal(measures.images, reconstruction.images, "images, not completions");
    for (const name of ["l1", "l2", "psnr", "ssim"]) {
      assert.deepEqual(measures.plain[name], reconstruction.plain[name], name);
    }
    const own: Estimates | undefined = measures.networks.cells;
    const ceiling: Estimates | undefined = reconstruction.networks.cells;
    assert.deepEqual(own?.perceptual, ceiling?.perceptual);
    // Of one draw an image: as many images as the reconstructions are.
    assert.deepEqual(own?.fd_train, ceiling?.fd_train);
    assert.deepEqual(own?.fd_held_out, ceiling?.fd_held_out);
  }
  const free = row?.free;
  assert.equal(free?.images, 40);
  assert.equal(free?.networks.cells?.accuracy?.value, 1);
  assert.equal(free?.plain.codes_used?.value, 1, "the classes' patterns have all four codes");
  // All samples of a class are one image.
  assert.equal(free?.networks.cells?.diversity?.value, 0);
  assert.equal(found.real.training?.images, Math.min(40, data.train.images));
  const [likelihood] = likelihoods;
  assert.ok((likelihood?.natsPerToken.value as number) < 1e-6);
  assert.equal(likelihood?.top1.value, 1);
  assert.ok(Math.abs((likelihood?.perplexity.value as number) - 1) < 1e-6);
});

test("a policy that knows nothing has the codebook as its perplexity, and is far from the images", async () => {
  const { likelihoods, rows, reconstruction, real } = await evaluateModels(
    options({ policy: uniformPolicy(), prefixes: [2], samples: 200 }),
  );
  const [likelihood] = likelihoods;
  assert.ok(Math.abs((likelihood?.perplexity.value as number) - 4) < 1e-5);
  const [completion] = rows[0]?.completions ?? [];
  assert.ok(
    (completion?.measures.plain.l2?.value as number) > 20 * (reconstruction?.plain.l2?.value as number),
  );
  const cells = rows[0]?.free?.networks.cells;
  assert.ok(
    (cells?.fd_train?.value as number) > 20 * (real.reconstructed?.networks.cells?.fd_train?.value as number),
  );
  assert.ok(Math.abs((cells?.accuracy?.value as number) - 0.5) < 0.15);
  assert.ok((cells?.precision?.value as number) < 0.2);
  const nearest = cells?.nearest?.value as number;
  const usual = real.heldOut?.networks.cells?.nearest?.value as number;
  assert.ok(nearest > usual && usual > 0);
  const heldOut = real.heldOut?.networks.cells;
  assert.ok(heldOut?.fd_train !== undefined && cells?.fd_held_out !== undefined);
  assert.equal(heldOut.fd_held_out, undefined, "not from themselves");
  assert.ok(Math.abs((cells?.nearest_ratio?.value as number) - nearest / usual) < 1e-9);
  // Of a half-known image, half of the other cells are wrong: an interval that holds the value, and is narrow.
  const { value, low, high } = completion?.measures.plain.l2 ?? { value: 0, low: 0, high: 0 };
  assert.ok(
    (low as number) < value && value < (high as number) && (high as number) - (low as number) < value,
  );
});

test("distances of sets are of one draw an image, and the mean over the draws", async () => {
  const judge = cellJudge();
  const seen: number[][] = [];
  const network = {
    ...judge.network,
    describe: (images: Tensor) => {
      const described = judge.network.describe(images);
      seen.push(...(described.features.toList() as number[][]));
      return described;
    },
  };
  const more = {
    policy: uniformPolicy(),
    features: [{ ...judge, network }],
    prefixes: [1],
    draws: 3,
    samples: 0,
  };
  const { rows, data, real } = await evaluateModels(options(more));
  assert.equal(real.training, null, "no free samples, nothing to set beside them");
  const train = tensor(seen.slice(0, data.train.read));
  const completions = seen.slice(-3 * (data.heldOut?.read as number));
  const each = [0, 1, 2].map((j) =>
    frechetDistance(train, tensor(completions.filter((_, i) => i % 3 === j))),
  );
  const mean = each.reduce((sum, of) => sum + of, 0) / 3;
  const found = rows[0]?.completions[0]?.measures.networks.cells?.fd_train?.value as number;
  assert.ok(Math.abs(found - mean) < 1e-6 * mean, `${found} of ${each}`);
});

test("a tokenizer alone is judged by reconstructions", async () => {
  const { rows, likelihoods, reconstruction, verdicts, real } = await evaluateModels(
    options({ features: [] }),
  );
  assert.deepEqual([rows, likelihoods, verdicts], [[], [], { completion: [], free: [] }]);
  assert.deepEqual(real, { training: null, reconstructed: null, heldOut: null });
  assert.deepEqual(Object.keys(reconstruction?.plain ?? {}), ["l1", "l2", "psnr", "ssim", "codes_used"]);
});

test("the same options give the same JSON whatever the batch; another seed gives other samples", async () => {
  const run = async (name: string, more: Partial<ModelEvalOptions>): Promise<string> => {
    const policy = uniformPolicy();
    await evaluateModels(options({ policy, temperatures: [1, 0.7], json: at(name), resamples: 20, ...more }));
    return readFileSync(at(name), "utf8");
  };
  const first = await run("first.json", {});
  assert.equal(await run("again.json", {}), first);
  const batched = await run("batched.json", { batch: 7 });
  assert.equal(batched.replace('"batch": 7', '"batch": 128'), first);
  assert.notEqual(await run("other.json", { seeds: [1] }), first.replace("0", "1"));
  const { rows } = JSON.parse(first) as ModelEvaluation;
  assert.deepEqual(
    rows.map(({ policy, temperature, cfg }) => [policy, temperature, cfg]),
    [
      ["A", 1, 1],
      ["A", 0.7, 1],
    ],
  );
});

test("with several seeds a number is the mean over them, from the least to the greatest", async () => {
  const policy = uniformPolicy();
  const value = async (seeds: number[]) => {
    const { rows } = await evaluateModels(options({ policy, seeds, prefixes: [1], resamples: 10 }));
    const [row] = rows;
    return [row?.free?.networks.cells?.fd_train, row?.completions[0]?.measures.plain.l2] as const;
  };
  const single = [await value([3]), await value([5]), await value([9])];
  const [fd, l2] = await value([3, 5, 9]);
  for (const [k, joined] of [fd, l2].entries()) {
    const each = single.map((of) => of[k]?.value as number);
    assert.deepEqual(joined?.seeds, each);
    assert.ok(Math.abs((joined?.value as number) - each.reduce((a, b) => a + b, 0) / 3) < 1e-12);
    assert.equal(joined?.low, Math.min(...each));
    assert.equal(joined?.high, Math.max(...each));
  }
});

test("a policy that is right lies beyond the frontier of one that knows nothing, and not the other way", async () => {
  const pair = options({
    policy: uniformPolicy(),
    against: rightPolicy(),
    temperatures: [1, 0.5],
    prefixes: [2],
  });
  const { verdicts, rows } = await evaluateModels(pair);
  assert.equal(rows.length, 4);
  assert.deepEqual(
    verdicts.completion.map(({ network, measure, prefix }) => [network, measure, prefix]),
    [
      ["cells", "l2", 2],
      ["cells", "perceptual", 2],
    ],
  );
  for (const { standings } of verdicts.completion) {
    // Right completions are nearer to the data than any of A's, and nearer to their images.
    assert.deepEqual(
      standings.map(({ standing }) => standing),
      ["beyond", "beyond"],
    );
  }
  const [free] = verdicts.free;
  assert.ok((free?.b.fd.value as number) < (free?.a.fd.value as number));
  const back = await evaluateModels({ ...pair, policy: rightPolicy(), against: uniformPolicy() });
  for (const { standings } of back.verdicts.completion) {
    assert.deepEqual(
      standings.map(({ standing }) => standing),
      ["behind", "behind"],
    );
    const l2 = standings[0]?.gain;
    assert.ok((l2?.high as number) < 0, "surely worse");
  }
  const text = evaluationText(back);
  assert.match(text, /frontier in L2 at none of 2 settings \(2 not better\)/);
  assert.match(text, /reconstruction \(ceiling\)/);
});

test("pages, samples and numbers are written, and the samples are those that were measured", async () => {
  const out = at("pages");
  const npz = at("samples.npz");
  const policy = rightPolicy();
  const found = await evaluateModels(
    options({ policy, out, npz, samples: 30, prefixes: [2], classes: "balanced" }),
  );
  assert.equal(found.real.training?.images, 30, "as many as samples, of more");
  assert.deepEqual(found.pages, ["free_A_t1_cfg1.png", "completion_2_t1_cfg1.png"]);
  assert.deepEqual(names(out), ["completion_2_t1_cfg1.png", "free_A_t1_cfg1.png"]);
  // 16 px images, ten a row, enlarged six times: (16 * 6 + 2) * 10 and the margin; a label above each of two classes.
  const page = await readPixels(join(out, "free_A_t1_cfg1.png"));
  assert.deepEqual([page.width, page.height], [10 * 98 + 8, 2 * (98 + 11) + 2 + 11]);
  // Of both classes: the image, its reconstruction, what was given (the upper half), the completion.
  const completion = await readPixels(join(out, "completion_2_t1_cfg1.png"));
  const [cell, factor] = [82, 5]; // three rows beside each other: 1,000 / (3 * 4 * 18) is 4.6
  assert.equal(completion.width, 3 * (4 * cell + 8));
  const pixel = (column: number, x: number, y: number): number => {
    const [left, top] = [column * cell + 2 + x * factor, 11 + 2 + 11 + y * factor];
    return completion.data[(top * completion.width + left) * 3] as number;
  };
  assert.equal(pixel(2, 12, 4), pixel(1, 12, 4), "given");
  assert.equal(pixel(2, 12, 14), 128, "not given: grey");
  assert.equal(pixel(3, 12, 14), pixel(1, 12, 14), "completed as it was");
  const dark = (top: number, height: number): number => {
    const bytes = completion.data.subarray(top * completion.width * 3, (top + height) * completion.width * 3);
    return bytes.filter((byte) => byte === 0).length;
  };
  assert.ok(dark(0, 9) > 100, "columns have labels");

  const bytes = new FileBytes(npz);
  const zip = new ZipArchive(bytes, npz);
  const read = (name: string) => readNpy(zip.read(zip.entries.get(name) as never), name);
  const [pixels, labels] = [read("arr_0.npy"), read("arr_1.npy")];
  bytes.close();
  assert.deepEqual(pixels.shape, [30, SIZE, SIZE, 3]);
  const classes = [...toInt64(labels, "arr_1")].map(Number);
  assert.deepEqual([classes.filter((c) => c === 0).length, classes.length], [15, 30]);
  for (const [i, c] of classes.entries()) {
    const corners = [0, SIZE - 1, SIZE * (SIZE - 1), SIZE * SIZE - 1].map(
      (p) => pixels.bytes[(i * SIZE * SIZE + p) * 3],
    );
    assert.deepEqual(
      corners,
      (PATTERNS[c] as readonly number[]).map((level) => level * 85),
      `sample ${i}`,
    );
  }
});

test("completions that are shown are of all classes, whatever the order of the files", () => {
  const classes = [...Array(50).fill(0), ...Array(3).fill(4), 2];
  const shown = overClasses(classes, 6);
  // Two of each class, but for the class that has one.
  assert.deepEqual(
    shown.map((place) => classes[place]),
    [0, 0, 2, 4, 4],
  );
  // More classes than there is room for: some of them, evenly spread.
  const many = Array.from({ length: 40 }, (_, i) => i);
  assert.deepEqual(overClasses(many, 4), [0, 10, 20, 30]);
  assert.deepEqual(overClasses([7], 24), [0]);
});

test("networks that the reward used are marked in the result; where that is not known, it is null", async () => {
  const found = async (more: Partial<ModelEvalOptions>) => {
    const { networks } = await evaluateModels(
      options({ policy: uniformPolicy(), prefixes: [], samples: 4, ...more }),
    );
    return networks.map(({ isRewarded }) => isRewarded);
  };
  assert.deepEqual(await found({}), [null]);
});

test("options may be spelt as in Python; one that there is not is refused with the nearest name", async () => {
  const snake = { train_images: 5, cfg_schedule: "constant" } as Partial<ModelEvalOptions>;
  const { settings } = await evaluateModels(
    options({ ...snake, policy: uniformPolicy(), prefixes: [], samples: 2 }),
  );
  assert.equal(settings.trainImages, 5);
  const wrong = { tempratures: [1] } as Partial<ModelEvalOptions>;
  await assert.rejects(evaluateModels(options(wrong)), /evaluateModels: .*tempratures.*"temperatures"/);
  const { tokenizer: _, ...rest } = options();
  await assert.rejects(
    evaluateModels(rest as ModelEvalOptions),
    /evaluateModels: expected a tokenizer, got none/,
  );
});

test("files of weights that are not there are named with what to do", async () => {
  const nowhere = "/nowhere/judge.safetensors";
  for (const files of [
    { features: [nowhere] },
    { lpips: nowhere },
    { policy: nowhere },
    { tokenizer: nowhere },
  ]) {
    await assert.rejects(
      evaluateModels(options(files as Partial<ModelEvalOptions>)),
      /^RangeError: \/nowhere\/judge\.safetensors: expected a file of weights, got nothing there\. \w/,
    );
  }
});

test("a best checkpoint is not judged by the images that it was chosen on", async () => {
  const whole = await evaluateModels(options({ features: [] }));
  const rest = await evaluateModels(options({ features: [], chosenOn: 10 }));
  assert.equal(rest.data.heldOut?.images, (whole.data.heldOut?.images as number) - 10);
  assert.ok(rest.notes.some((note) => /10 held-out images/.test(note)));
  await assert.rejects(
    evaluateModels(options({ features: [], chosenOn: 1000 })),
    /checkpoint best: expected held-out images .* got none/,
  );
});

test("samples of several points go to files of their own", async () => {
  const where = at("several");
  mkdirSync(where);
  const pair = { policy: uniformPolicy(), against: rightPolicy(), cfg: [1, 1.5], prefixes: [], features: [] };
  await evaluateModels(options({ ...pair, npz: join(where, "s.npz"), samples: 2 }));
  assert.deepEqual(names(where), [
    "s_A_t1_cfg1.5.npz",
    "s_A_t1_cfg1.npz",
    "s_B_t1_cfg1.5.npz",
    "s_B_t1_cfg1.npz",
  ]);
});

test("guidance is drawn with: the null condition knows nothing, so half of it knows less", async () => {
  const { rows } = await evaluateModels(
    options({ policy: rightPolicy(2), cfg: [0, 1, 4], prefixes: [], samples: 300, resamples: 0 }),
  );
  const accuracy = rows.map(({ free }) => free?.networks.cells?.accuracy?.value as number);
  assert.ok(
    (accuracy[0] as number) < (accuracy[1] as number) && (accuracy[1] as number) < (accuracy[2] as number),
  );
  assert.deepEqual(rows[0]?.free?.networks.cells?.fd_train?.low, null, "no resamples, no interval");
});

test("text features go with their images, padded to the longest, and free samples take those of held-out images", async () => {
  await writeCells(at("texts"), 24);
  for (const name of ["a", "b"]) {
    for (const [i, file] of names(at("texts", name)).entries()) {
      const length = 1 + (i % 2);
      const features = Float32Array.from({ length: length * 2 }, () => i + 1);
      writeFileSync(at("texts", name, file.replace(".png", ".npy")), npyOf(features, [length, 2]));
    }
  }
  const policy = uniformPolicy();
  const seen: Condition[] = [];
  const prefill = policy.prefill.bind(policy);
  policy.prefill = (cache, tokens, condition) => {
    seen.push(mapCondition(condition, (part) => keep(part.clone())));
    return prefill(cache, tokens, condition);
  };
  const more = { policy, features: [], prefixes: [1], samples: 30, batch: 7 };
  const { rows, data } = await evaluateModels(
    options({ ...more, data: { source: at("texts"), size: SIZE, evalPart: 0.4 } }),
  );
  const heldOut = data.heldOut?.read as number;
  assert.equal(rows[0]?.free?.images, 30);
  const all = (part: "features" | "isReal"): unknown[] =>
    seen.flatMap((condition) => condition[part]?.toList() as unknown[]);
  const features = all("features") as number[][][];
  assert.equal(features.length, 30 + heldOut);
  assert.ok(seen.every(({ classes }) => classes === undefined));
  // Padding stands before what is real.
  for (const [i, isReal] of (all("isReal") as number[][]).entries()) {
    const [first, second] = features[i] as number[][];
    assert.equal(isReal[1], 1);
    assert.ok((second?.[0] as number) > 0);
    assert.equal((first?.[0] as number) > 0, isReal[0] === 1);
  }
  assert.deepEqual(
    features.slice(0, 30),
    Array.from({ length: 30 }, (_, i) => features[30 + (i % heldOut)]),
  );
  for (const condition of seen) for (const part of Object.values(condition) as Tensor[]) part.dispose();
});

test("one class, few images, and a network of other classes leave out what cannot be said", async () => {
  await writeCells(at("one"), 9, [PATTERNS[0] as readonly number[]]);
  const { rows, real, notes, reconstruction } = await evaluateModels(
    options({
      policy: rightPolicy(),
      data: { source: at("one"), size: SIZE, evalPart: 0.5 },
      samples: 4,
      prefixes: [1],
    }),
  );
  const cells = rows[0]?.free?.networks.cells;
  assert.equal(cells?.accuracy, undefined);
  assert.ok(notes.some((note) => /no accuracy, for its 2 classes are not those of the images/.test(note)));
  assert.ok(Number.isFinite(reconstruction?.plain.l2?.value));
  assert.ok(real.training !== null);
});

test("what cannot be used is refused in one sentence, and nothing is left behind", async () => {
  const policy = rightPolicy();
  const refused = async (more: Partial<ModelEvalOptions>, message: RegExp | string): Promise<void> => {
    const out = at("never");
    const json = at("never.json");
    await assert.rejects(evaluateModels(options({ policy, out, json, ...more })), (error: Error) => {
      if (typeof message === "string") assert.equal(error.message, message);
      else assert.match(error.message, message);
      return true;
    });
    assert.ok(!existsSync(json));
    assert.deepEqual(existsSync(out) ? names(out) : [], []);
    assert.deepEqual(
      names(folder).filter((name) => name.endsWith(".tmp")),
      [],
    );
  };
  const source = (name: string) => ({ data: { source: at(name), size: SIZE, evalPart: 0.4 } });
  mkdirSync(at("empty"));
  await refused(source("empty"), /empty: expected a folder of images, .+ got an empty one\.$/);
  await writeCells(at("single"), 1, [PATTERNS[0] as readonly number[]]);
  await refused(
    source("single"),
    /splitSource: expected images to (train on|hold out), got none of 1 groups\./,
  );
  await writeCells(at("broken"), 20);
  for (const name of names(at("broken", "a"))) writeFileSync(at("broken", "a", name), "not an image");
  await refused(
    source("broken"),
    /data set: expected at most \d+ unreadable images of \d+, got \d+\. Mend or remove them/,
  );
  writeFileSync(at("file"), "");
  await refused({ out: at("file", "pages") }, /^eval: out: expected a folder that can be written, got E/);
  await refused(
    { json: at("nowhere", "x.json") },
    /^eval: json: expected a folder that can be written, got ENOENT/,
  );
  await refused({ npz: at("file", "x.npz") }, /^eval: npz: expected a folder that can be written, got E/);
  await refused(
    { prefixes: [CODES] },
    "eval: prefixes: expected integers from 0 to 3, with 4 codes per image, got 4.",
  );
  await refused({ temperatures: [1, 1] }, "eval: temperatures: expected each value once, got 1 twice.");
  const { policy: _, ...alone } = options();
  await assert.rejects(evaluateModels({ ...alone, against: policy }), {
    message: "eval: expected a policy to set the other against, got none. Name the one before by policy.",
  });
  await refused({ cfg: [] }, "eval: cfg: expected at least one, got none.");
  await refused({ samples: 1 }, "eval: samples: expected 0 for none, or at least 2, got 1.");
  await refused({ batch: 0 }, "eval: batch: expected an integer of at least 1, got 0.");
  await refused(
    { features: [cellJudge(), cellJudge()] },
    "eval: expected networks of different names, got cells twice.",
  );
  await refused(
    { data: { source: at("images"), size: SIZE + 4 } },
    "data.size: expected a multiple of 8, the pixels of a code, got 20.",
  );
  await refused(
    { data: { source: at("images"), size: 3 * 8 } },
    "eval: policy A: expected room for 9 codes, those of an image, got 4. Use smaller images, or another policy.",
  );
  const failing: Judge = {
    ...cellJudge("failing"),
    distance: () => {
      throw new Error("the network failed");
    },
  };
  await refused({ features: [failing] }, "the network failed");
});

test("tensors do not pile up", async () => {
  const run = () =>
    evaluateModels(options({ policy: uniformPolicy(), prefixes: [1], resamples: 5, samples: 8 }));
  await run();
  const counts: number[] = [];
  for (let i = 0; i < 3; i++) {
    await run();
    counts.push(memory().tensors);
  }
  // Each run makes a policy and a tokenizer that only the collector frees: one buffer.
  assert.ok((counts[2] as number) - (counts[0] as number) <= 8, counts.join());
});
