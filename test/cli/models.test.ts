/** `rlar inspect | convert | reconstruct | sample` as a user runs them, on small models made here. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";

import sharp from "sharp";

import { readPixels } from "../../src/data/images.js";
import { FeatureClassifier } from "../../src/metrics/index.js";
import { LlamaGen } from "../../src/policies/index.js";
import { VQ_MODELS, VQModel } from "../../src/tokenizers/index.js";
import { call, loadSafetensors, manualSeed, noGrad, saveSafetensors, tidy } from "../../src/torch/index.js";

const folder = mkdtempSync(join(tmpdir(), "rlar-cli-"));
const at = (name: string): string => join(folder, name);
after(() => rmSync(folder, { recursive: true }));

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
  using other = new LlamaGen({ vocabSize: 65, dim: 32, nLayer: 1, nHead: 4, blockSize: 16, numClasses: 5 });
  saveSafetensors(at("other.safetensors"), other.stateDict());
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

test("reconstruct writes inputs above reconstructions and prints how close they are", async () => {
  const args = ["reconstruct", folder, "--tokenizer", at("tokenizer.safetensors"), "--size", "16"];
  const { code, out, err } = rlar(...args, "--out", at("grid.out.png"), "--json");
  assert.equal(code, 0, err);
  const facts = JSON.parse(out);
  assert.equal(facts.images, 3);
  assert.equal(facts.each.length, 3);
  assert.ok(facts.psnr > 0 && facts.psnr < 40 && facts.ssim < 1 && facts.l1 > 0);
  const grid = await readPixels(at("grid.out.png"));
  assert.deepEqual([grid.width, grid.height], [3 * 18 + 2, 2 * 18 + 2]);
  rmSync(at("grid.out.png"));
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
      /expected a tokenizer, got a policy \(llamagen\)\. rlar inspect FILE/,
    ],
    [
      ["reconstruct", folder, ...tokenizer, "--size", "18"],
      3,
      /--size: expected a multiple of 4, the pixels of a code, got 18\./,
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
      /classes in \[0, 5\], got 9\./,
    ],
    [
      ["sample", "--policy", at("p.safetensors"), ...tokenizer],
      3,
      /sample: expected either --class or --features, got neither\./,
    ],
    [["sample", "--policy", at("p.safetensors"), ...tokenizer, "--class", "x"], 2, /Expected a number\./],
    [["inspectt", at("p.safetensors")], 2, /unknown command 'inspectt'/],
    [["reconstruct", folder], 2, /required option '--tokenizer <file>' not specified/],
  ];
  for (const [args, code, message] of cases) {
    const made = rlar(...args);
    assert.match(made.err, message, args.join(" "));
    assert.equal(made.code, code, args.join(" "));
  }
});
