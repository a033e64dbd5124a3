/** `rlar inspect | convert | reconstruct | sample` as a user runs them, on small models made here. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";

import sharp from "sharp";

import { readPixels } from "../../src/data/images.js";
import { FeatureClassifier } from "../../src/metrics/index.js";
import { LlamaGen } from "../../src/policies/index.js";
import { VQ_MODELS, VQModel } from "../../src/tokenizers/index.js";
import {
  call,
  loadSafetensors,
  manualSeed,
  noGrad,
  saveSafetensors,
  saveTorch,
  type Tensor,
  tidy,
  zeros,
} from "../../src/torch/index.js";

const folder = mkdtempSync(join(tmpdir(), "rlar-cli-"));
const at = (name: string): string => join(folder, name);
/** Another folder, for what is drawn: images in the first are counted. */
const drawnFolder = mkdtempSync(join(tmpdir(), "rlar-cli-drawn-"));
const drawnAt = (name: string): string => join(drawnFolder, name);
after(() => {
  for (const made of [folder, drawnFolder]) rmSync(made, { recursive: true });
});

function rlar(...args: string[]): { code: number | null; out: string; err: string } {
  const { status, stdout, stderr } = spawnSync(process.execPath, ["dist/src/cli/main.js", ...args], {
    encoding: "utf8",
  });
  return { code: status, out: stdout, err: stderr };
}

before(async () => {
  manualSeed(0);
  using tokenizer = new VQModel({ ...VQ_MODELS["VQ-4-small"], ch: 8, zChannels: 16, codebookSize: 64 });
  using policy = new LlamaGen({ vocabSize: 64, dim: 32, nLayer: 2, nHead: 4, blockSize: 16, numClasses: 5 });
  noGrad(() => tidy(() => call("aten::normal_", [policy.output.weight, 0, 0.5])));
  saveSafetensors(at("tokenizer.safetensors"), tokenizer.stateDict());
  saveSafetensors(at("policy.safetensors"), policy.stateDict());
  saveSafetensors(at("named.safetensors"), policy.stateDict(), {
    config: JSON.stringify(policy.options),
    classes: JSON.stringify(["ant", "cow", "a, b", "dog", "eel"]),
  });
  using other = new LlamaGen({ vocabSize: 65, dim: 32, nLayer: 1, nHead: 4, blockSize: 16, numClasses: 5 });
  saveSafetensors(at("other.safetensors"), other.stateDict());
  const texts = { modelType: "t2i", clsTokenNum: 3, captionDim: 4 } as const;
  using reader = new LlamaGen({ vocabSize: 64, dim: 32, nLayer: 1, nHead: 4, blockSize: 16, ...texts });
  saveSafetensors(at("texts.safetensors"), reader.stateDict(), { config: JSON.stringify(reader.options) });
  const { "decoder.conv_out.weight": last, ...others } = tokenizer.stateDict();
  const large = tidy(() => (last as Tensor).detach().mul(0).add(3e38));
  saveSafetensors(at("large.safetensors"), { ...others, "decoder.conv_out.weight": large });
  noGrad(() => tokenizer.post_quant_conv.weight.fill_(Number.NaN));
  saveSafetensors(at("nan.safetensors"), tokenizer.stateDict());
  const raw = { width: 20, height: 24, channels: 3 as const };
  const noise = (seed: number): Buffer =>
    Buffer.from(Array.from({ length: 20 * 24 * 3 }, (_, i) => (i * seed) % 256));
  for (const [i, name] of ["a.png", "b.png", "c.png"].entries()) {
    await sharp(noise(37 + i), { raw })
      .png()
      .toFile(at(name));
  }
  assert.equal(
    rlar("convert", at("policy.safetensors"), at("p.safetensors"), "--heads", "4", "--codes", "16").code,
    0,
  );
});

test("inspect and convert know a classifier and the names of its classes", () => {
  using network = new FeatureClassifier({ numClasses: 2, classNames: ["cat", "dog"], widths: [8, 16] });
  const config = JSON.stringify(network.config);
  saveSafetensors(at("classifier.safetensors"), network.stateDict(), { config });
  for (const file of ["classifier.safetensors", "converted.safetensors"]) {
    const { code, out } = rlar("inspect", at(file), "--json");
    assert.equal(code, 0);
    const facts = JSON.parse(out);
    assert.equal(facts.model, "feature classifier");
    assert.deepEqual(facts.config, network.config);
    assert.equal(facts.used, Object.keys(network.stateDict()).length);
    if (file === "converted.safetensors") break;
    assert.equal(rlar("convert", at(file), at("converted.safetensors")).code, 0);
  }
});

test("inspect says which model, how large, and what is used and ignored", () => {
  const { code, out } = rlar("inspect", at("tokenizer.safetensors"), "--json");
  assert.equal(code, 0);
  const facts = JSON.parse(out);
  assert.equal(facts.model, "tokenizer VQ-4 (LlamaGen)");
  assert.equal(facts.config.codebookSize, 64);
  assert.deepEqual(facts.config.chMult, [1, 2, 2]);
  const { tensors } = loadSafetensors(at("tokenizer.safetensors"));
  const names = Object.keys(tensors);
  assert.equal(facts.used, names.length);
  assert.equal(
    facts.parameters,
    names.reduce((sum, name) => sum + (tensors[name]?.numel ?? 0), 0),
  );
  assert.deepEqual(facts.ignored, []);
  const text = rlar("inspect", at("p.safetensors")).out;
  assert.match(text, /^model +policy LlamaGen$/m);
  assert.match(text, /vocabSize 64, dim 32, blockSize 16, nLayer 2, nHead 4, modelType "c2i", numClasses 5/);
  const unknown = rlar("inspect", "test/golden/weights/llamagen.pt").out;
  assert.match(unknown, /^model +unknown$/m);
  assert.match(unknown, /^besides +optimizer \(a dict\), steps \(7\), args/m);
});

test("convert copies every value bit for bit and writes what the model is", () => {
  const source = loadSafetensors(at("policy.safetensors")).tensors;
  const { tensors, metadata } = loadSafetensors(at("p.safetensors"));
  assert.deepEqual(Object.keys(tensors).sort(), Object.keys(source).sort());
  for (const [name, value] of Object.entries(tensors))
    assert.ok(value.equal(source[name] as typeof value), name);
  assert.equal(metadata.model, "policy LlamaGen");
  assert.equal(JSON.parse(metadata.config ?? "").nHead, 4);
  const again = rlar("convert", at("policy.safetensors"), at("p.safetensors"));
  assert.equal(again.code, 3);
  assert.equal(
    again.err,
    `rlar: ${at("p.safetensors")}: expected a file that does not exist yet, got one that does. Use --force.\n`,
  );
});

test("convert writes safetensors alone, and adapters are named as such", () => {
  const ending = rlar("convert", at("policy.safetensors"), at("policy.pt"));
  assert.match(ending.err, /^rlar: out: expected a name that ends in \.safetensors, got .*policy\.pt\. /);
  assert.equal(ending.code, 2);
  tidy(() => {
    const [a, b] = [zeros([4, 32]), zeros([32, 4])];
    saveSafetensors(at("adapter.safetensors"), { "x.lora_A.weight": a, "x.lora_B.weight": b });
  });
  const shown = rlar("inspect", at("adapter.safetensors"));
  assert.match(shown.out, /^problem .*LoRA adapters of PEFT.*merge_and_unload/m);
  assert.equal(shown.code, 3);
});

test("what a policy's file does not tell is shown as unknown, not written, and asked for", () => {
  const facts = JSON.parse(rlar("inspect", at("policy.safetensors"), "--json").out);
  assert.deepEqual(facts.missing.sort(), ["blockSize", "nHead"]);
  assert.equal(facts.config.blockSize, undefined);
  const told = JSON.parse(rlar("inspect", at("p.safetensors"), "--json").out);
  assert.deepEqual([told.missing, told.config.blockSize, told.config.nHead], [[], 16, 4]);
  const converted = rlar("convert", at("policy.safetensors"), at("unknown.safetensors"));
  assert.equal(converted.code, 0);
  assert.match(converted.err, /nHead|blockSize/);
  const config = JSON.parse(loadSafetensors(at("unknown.safetensors")).metadata.config ?? "");
  assert.deepEqual([config.nHead, config.blockSize], [undefined, undefined]);
  const sampled = rlar(
    "sample",
    ...["--policy", at("unknown.safetensors"), "--tokenizer", at("tokenizer.safetensors"), "--class", "1"],
  );
  assert.equal(sampled.code, 3);
  assert.match(sampled.err, /unknown\.safetensors: expected blockSize.*--codes/);
});

/** Arguments of a sample of the policy with named classes. */
const named = (out: string, ...rest: string[]): string[] => [
  ...["sample", "--policy", at("named.safetensors"), "--tokenizer", at("tokenizer.safetensors")],
  ...["--out", drawnAt(out), ...rest],
];

test("classes are given by number or name, from the policy's file or a data set", () => {
  const sampled = rlar(...named("byName.png", "--class", "dog,1", "--class", "a, b", "--class", "eel"));
  assert.equal(sampled.code, 0, sampled.err);
  assert.match(sampled.out, /3 \(dog\), 1 \(cow\), 2 \(a, b\), 4 \(eel\)/);
  for (const [out, words] of [
    ["number.png", "3"],
    ["name.png", "dog"],
    ["other.png", "eel"],
  ] as const)
    assert.equal(rlar(...named(out, "--class", words)).code, 0);
  assert.deepEqual(readFileSync(drawnAt("name.png")), readFileSync(drawnAt("number.png")));
  assert.notDeepEqual(readFileSync(drawnAt("name.png")), readFileSync(drawnAt("other.png")));
  const whole = JSON.parse(rlar(...named("whole.png", "--class", "a, b", "--json")).out);
  assert.deepEqual(whole.classes, [2]);
  // A name from a data set, for a policy whose file has none.
  for (const name of ["x", "y"]) {
    mkdirSync(drawnAt(`set/${name}`), { recursive: true });
    copyFileSync(at("a.png"), drawnAt(`set/${name}/1.png`));
  }
  const ofData = rlar(
    ...["sample", "--policy", at("p.safetensors"), "--tokenizer", at("tokenizer.safetensors")],
    ...["--data", drawnAt("set"), "--class", "y", "--out", drawnAt("y.png"), "--json"],
  );
  assert.deepEqual(JSON.parse(ofData.out || ofData.err).classes, [1]);
});

test("--temperature 0 takes the likeliest codes whatever the seed, --unconditional starts from nothing", () => {
  const drawn = (out: string, ...rest: string[]): Buffer => {
    const { code, err } = rlar(...named(out, ...rest));
    assert.equal(code, 0, err);
    return readFileSync(drawnAt(out));
  };
  const greedy = drawn("g0.png", "--class", "1", "--temperature", "0", "--seed", "0");
  assert.deepEqual(drawn("g1.png", "--class", "1", "--temperature", "0", "--seed", "1"), greedy);
  const free = drawn("u.png", "--unconditional");
  assert.deepEqual(drawn("null.png", "--class", "5"), free, "the null class");
});

test("convert takes raw weights or their average, and says which", () => {
  const { tensors } = loadSafetensors(at("policy.safetensors"));
  const average = Object.fromEntries(Object.entries(tensors).map(([key, value]) => [key, value.add(1)]));
  saveTorch(at("both.pt"), { model: tensors, ema: average });
  for (const [asked, wanted] of [
    [[], "raw"],
    [["--weights", "ema"], "ema"],
  ] as const) {
    const { code, out, err } = rlar("convert", at("both.pt"), at(`${wanted}.safetensors`), ...asked);
    assert.equal(code, 0, err);
    assert.match(out, wanted === "raw" ? /raw .*\(model\)/ : /EMA .*\(ema\)/);
    const made = loadSafetensors(at(`${wanted}.safetensors`));
    assert.equal(made.metadata.weights, wanted);
    const source = wanted === "raw" ? tensors : average;
    assert.ok(made.tensors["norm.weight"]?.equal(source["norm.weight"] as Tensor));
  }
  const facts = JSON.parse(rlar("inspect", at("both.pt"), "--json").out);
  assert.deepEqual([facts.weights, facts.wrapper], ["raw", "model"]);
  assert.match(facts.notes.join(), /raw weights.*ema/);
  assert.equal(JSON.parse(rlar("inspect", at("ema.safetensors"), "--json").out).weights, "ema");
});

test("a policy that is not whole is neither converted nor built", () => {
  const { tensors } = loadSafetensors(at("policy.safetensors"));
  const { "norm.weight": norm, ...rest } = tensors;
  const files: [name: string, tensors: Record<string, Tensor>, problem: RegExp][] = [
    ["lacking", rest, /missing norm\.weight/],
    ["misshapen", { ...rest, "norm.weight": zeros([31]) }, /norm\.weight \[31\] instead of \[32\]/],
    ["integers", { ...rest, "norm.weight": zeros([32], { dtype: "int64" }) }, /norm\.weight: .*int64/],
    ["many", { ...tensors, "layers.999999999.ffn_norm.weight": zeros([32]) }, /unknown layers\.999999999/],
    [
      "infinite",
      { ...rest, "norm.weight": (norm as Tensor).mul(Number.NaN) },
      /norm\.weight: expected finite/,
    ],
  ];
  for (const [name, state, problem] of files) {
    saveSafetensors(at(`${name}.safetensors`), state);
    const { code, err } = rlar("convert", at(`${name}.safetensors`), at("made.safetensors"));
    assert.equal(code, 3, name);
    assert.match(err, problem);
    assert.ok(err.startsWith(`rlar: ${at(name)}.safetensors: `), err);
    assert.ok(!existsSync(at("made.safetensors")), name);
  }
  const shown = rlar("inspect", at("many.safetensors"));
  assert.equal(shown.code, 3);
  assert.match(shown.out, /^problem .*unknown layers\.999999999/m);
});

test("reconstruct writes inputs beside reconstructions, labelled and enlarged, and prints how close they are", async () => {
  const args = ["reconstruct", folder, "--tokenizer", at("tokenizer.safetensors"), "--size", "16"];
  const { code, out, err } = rlar(...args, "--out", at("grid.out.png"), "--json");
  assert.equal(code, 0, err);
  const facts = JSON.parse(out);
  assert.equal(facts.images, 3);
  assert.equal(facts.each.length, 3);
  assert.ok(facts.psnr > 0 && facts.psnr < 40 && facts.ssim < 1 && facts.l1 > 0);
  const grid = await readPixels(at("grid.out.png"));
  // Three pairs side by side, enlarged nine times; a line of letters above, and the files' names.
  assert.deepEqual([grid.width, grid.height], [3 * (2 * 146 + 8), 11 + 11 + 146 + 2]);
  rmSync(at("grid.out.png"));
});

test("reconstruct skips images that cannot be read, and names them and the files that are no images", () => {
  const own = join(drawnFolder, "some images");
  mkdirSync(own);
  const tokenizer = [
    "--tokenizer",
    at("tokenizer.safetensors"),
    "--size",
    "16",
    "--out",
    drawnAt("some.png"),
  ];
  writeFileSync(join(own, "empty.png"), "");
  const none = rlar("reconstruct", own, ...tokenizer);
  assert.equal(none.code, 3);
  assert.match(none.err, /some images: expected an image that can be read, got none of 1\b.*empty\.png/);
  copyFileSync(at("a.png"), join(own, "whole.png"));
  writeFileSync(join(own, "cut.png"), readFileSync(at("a.png")).subarray(0, 60));
  writeFileSync(join(own, "notes.txt"), "");
  const { code, out, err } = rlar("reconstruct", own, ...tokenizer, "--json");
  assert.equal(code, 0, err);
  const facts = JSON.parse(out);
  assert.deepEqual([facts.images, facts.unreadable, facts.each.length], [1, 2, 1]);
  assert.match(facts.each[0].file, /whole\.png$/);
  for (const name of ["empty.png", "cut.png"])
    assert.match(err, new RegExp(`^unreadable image: .*${name}: expected`, "m"));
  assert.match(err, /\.txt \(1\)/);
});

test("sample gives the same image for the same seed, and another for another", () => {
  const draw = (name: string, ...more: string[]): Buffer => {
    const args = ["sample", "--policy", at("p.safetensors"), "--tokenizer", at("tokenizer.safetensors")];
    const { code, err } = rlar(...args, "--class", "1,4", "--per-class", "2", "--out", at(name), ...more);
    assert.equal(code, 0, err);
    const bytes = readFileSync(at(name));
    rmSync(at(name));
    return bytes;
  };
  const first = draw("s1.png", "--seed", "7", "--cfg", "1.5", "--top-k", "20");
  assert.ok(first.equals(draw("s2.png", "--seed", "7", "--cfg", "1.5", "--top-k", "20")));
  assert.ok(!first.equals(draw("s3.png", "--seed", "8", "--cfg", "1.5", "--top-k", "20")));
});

test("what cannot be used is refused in one sentence, with exit code 3; a wrong command line with 2", () => {
  writeFileSync(at("text.bin"), "no weights here");
  const tokenizer = ["--tokenizer", at("tokenizer.safetensors")];
  const cases: [string[], number, RegExp][] = [
    [["inspect", at("text.bin")], 3, /text\.bin: expected .+, got .+\.\n$/],
    [["inspect", at("missing.pt")], 3, /missing\.pt: expected a file that can be read, got ENOENT/],
    [
      ["reconstruct", folder, "--tokenizer", at("p.safetensors")],
      3,
      /expected a tokenizer, got a policy \(llamagen\)\. .*rlar.* inspect \S*p\.safetensors shows/,
    ],
    [
      ["reconstruct", folder, ...tokenizer, "--size", "18"],
      3,
      /--size: expected a multiple of 4\b.*, got 18\./,
    ],
    [
      ["reconstruct", at("text.bin"), ...tokenizer, "--size", "16"],
      3,
      /text\.bin: expected an image, got .+ Remove the file or convert it/,
    ],
    [
      ["reconstruct", folder, "--tokenizer", at("nan.safetensors"), "--size", "16"],
      3,
      /post_quant_conv\.weight.+finite/,
    ],
    [
      ["sample", "--policy", at("p.safetensors"), ...tokenizer, "--class", "1", "--out", at("s.jpg")],
      2,
      /--out: expected a name that ends in \.png, got \S+s\.jpg/,
    ],
    [
      ["sample", "--policy", at("tokenizer.safetensors"), ...tokenizer, "--class", "1"],
      3,
      /expected a policy, got a tokenizer \(VQ-4 \(LlamaGen\)\)/,
    ],
    [
      ["sample", "--policy", at("other.safetensors"), "--heads", "4", ...tokenizer, "--class", "1"],
      3,
      /expected a vocabulary of 64, the tokenizer's codebook, got 65\./,
    ],
    [
      ["sample", "--policy", at("p.safetensors"), ...tokenizer, "--class", "9"],
      3,
      /--class: expected a class in \[0, 5\].*, got 9\./,
    ],
    [
      ["sample", "--policy", at("texts.safetensors"), ...tokenizer, "--class", "1"],
      3,
      /--class: .*text features.*--features/,
    ],
    [
      ["reconstruct", folder, "--tokenizer", at("large.safetensors"), "--size", "16"],
      3,
      /large.*finite results/,
    ],
    [
      ["sample", "--policy", at("p.safetensors"), ...tokenizer],
      3,
      /sample: expected one of --class.*--unconditional, got none\. .*--class.* 0 to 4/,
    ],
    [["sample", "--policy", at("p.safetensors"), ...tokenizer, "--class", "x"], 3, /got x\. .*--data IMAGES/],
    [
      ["sample", "--policy", at("named.safetensors"), ...tokenizer, "--class", "dogs"],
      3,
      /Did you mean dog\?/,
    ],
    [
      ["sample", "--policy", at("named.safetensors"), ...tokenizer, "--class", "1,"],
      3,
      /--class: .*got nothing/,
    ],
    [
      ["sample", "--policy", at("named.safetensors"), ...tokenizer, "--class", "1", "--unconditional"],
      3,
      /got --class and --unconditional\./,
    ],
    [
      [
        ...["sample", "--policy", at("named.safetensors"), ...tokenizer, "--class", "1"],
        ...["--temperature", "0", "--per-class", "2"],
      ],
      3,
      /--per-class: expected 1 .*got 2\./,
    ],
    [["sample", "--policy", at("p.safetensors"), "--class", "1"], 3, /--tokenizer FILE, or --run DIR/],
    [["inspectt", at("p.safetensors")], 2, /unknown command 'inspectt'/],
    [["reconstruct", folder], 2, /required option '--tokenizer <file>' not specified/],
  ];
  for (const [args, code, message] of cases) {
    const made = rlar(...args);
    assert.match(made.err, message, args.join(" "));
    assert.equal(made.code, code, args.join(" "));
  }
});
