/** `rlar embed` from files to numbers, against transformers; reference sets for evaluations; evaluations with an encoder. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { cpSync, mkdtempSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";

import { writeNpz } from "../../src/data/npz.js";
import { evaluateModels } from "../../src/evaluation/judge_models.js";
import { openReferenceSet, requireDescribedBy } from "../../src/evaluation/reference_set.js";
import { frechetDistance } from "../../src/metrics/index.js";
import { loadSafetensors, type Tensor, tidy } from "../../src/torch/index.js";
import { expectClose } from "../support/close.js";
import { cellJudge, cellTokenizer, rightPolicy, SIZE, writeCells } from "../support/eval_toys.js";

const ROOT = "test/golden/encoders/zero_shot";
const folder = mkdtempSync(join(tmpdir(), "embed-"));

function rlar(...args: string[]): { status: number | null; stdout: string; stderr: string } {
  return spawnSync(process.execPath, ["dist/src/cli/main.js", ...args], { encoding: "utf8" });
}

test("embeddings of a folder and its zero-shot classes are those of transformers", () => {
  const out = join(folder, "embeddings.safetensors");
  const some = join(folder, "some");
  cpSync(`${ROOT}/images`, some, { recursive: true });
  const [first = ""] = readdirSync(some);
  writeFileSync(join(some, first, "cut short.png"), "\x89PNG");
  writeFileSync(join(some, first, "notes.txt"), "");
  const args = ["embed", `${ROOT}/model`, "--data", some, "--out", out, "--json"];
  const { status, stdout, stderr } = rlar(...args, "--zero-shot", "a photo of {}.");
  assert.equal(status, 0, stderr);
  const golden = JSON.parse(readFileSync(`${ROOT}/golden.json`, "utf8"));
  const { top1, predicted, images, unreadable, width } = JSON.parse(stdout);
  assert.deepEqual({ predicted, images, width }, { predicted: golden.predicted, images: 9, width: 12 });
  assert.equal(unreadable, 1);
  assert.match(stderr, /unreadable image: .*cut short\.png/);
  assert.match(stderr, /not read: \.txt/);
  assert.ok(Math.abs(top1 - golden.top1) < 1e-12, `${top1}`);
  tidy(() => {
    const { tensors, metadata } = loadSafetensors(out);
    const wanted = loadSafetensors(`${ROOT}/golden.safetensors`).tensors.image as Tensor;
    expectClose(tensors.embeddings as Tensor, wanted, { rtol: 1e-4, atol: 0.02 });
    assert.deepEqual((tensors.classes as Tensor).toList(), [0, 0, 0, 1, 1, 1, 2, 2, 2]);
    assert.match(metadata.network_sha256 as string, /^[0-9a-f]{64}$/);
    assert.equal(JSON.parse(metadata.names as string).length, 9);
  });
});

test("embed refuses what it cannot do, in one sentence", () => {
  const args = ["embed", `${ROOT}/model`, "--data", `${ROOT}/images`];
  assert.match(rlar(...args).stderr, /expected --out or --zero-shot, got neither/);
  assert.match(rlar(...args, "--out", join(folder, "a.npz")).stderr, /--out: expected .*\.safetensors, got/);
  const nowhere = rlar(...args, "--out", join(folder, "none", "a.safetensors"));
  assert.match(nowhere.stderr, /--out: expected a file that can be written, got .*\. Make the folder/);
  assert.equal(nowhere.status, 2);
  assert.match(rlar(...args, "--zero-shot", "a photo").stderr, /expected \{\} where the name goes/);
  assert.match(
    rlar(...args, "--zero-shot", "{}", "--text-tokenizer", folder).stderr,
    /tokenizer\.json: expected the text tokenizer/,
  );
});

test("an encoder judges an evaluation, and its embeddings are a reference set for it alone", async () => {
  const images = join(folder, "images");
  await writeCells(images, 60);
  const out = join(folder, "reference.safetensors");
  const embedded = rlar("embed", `${ROOT}/model`, "--data", images, "--size", `${SIZE}`, "--out", out);
  assert.equal(embedded.status, 0, embedded.stderr);
  const options = {
    tokenizer: cellTokenizer(),
    policy: rightPolicy(),
    data: { source: images, size: SIZE, evalPart: 0.4 },
    samples: 40,
    prefixes: [],
    resamples: 0,
    reference: out,
  };
  const found = await evaluateModels({ ...options, features: [`${ROOT}/model`] });
  const [network] = found.networks;
  assert.equal(network?.name, "CLIP, 32 px, patches of 8, width 24 (image embedding)");
  assert.equal(network?.numClasses, 0);
  assert.match(network?.sha256 ?? "", /^[0-9a-f]{64}$/);
  assert.deepEqual(network?.reference, { path: out, images: 60 });
  assert.match(found.files.find(({ role }) => role === "reference")?.sha256 ?? "", /^[0-9a-f]{64}$/);
  const measured = found.rows[0]?.free?.networks[network?.name ?? ""];
  assert.ok((measured?.fd_reference?.value ?? Number.NaN) >= 0);
  assert.ok((measured?.kd_train?.value ?? Number.NaN) > -1);
  assert.equal(measured?.score, undefined);
  await assert.rejects(
    evaluateModels({ ...options, features: [cellJudge()] }),
    /reference\.safetensors: expected features of .*, got CLIP, 32 px.*distance between features of two networks means nothing/,
  );
});

test("published moments are read from an .npz, deflated or not, and refused but for the network of FIDs", () => {
  const path = join(folder, "published.npz");
  const f8 = (values: readonly number[]): Uint8Array => new Uint8Array(Float64Array.from(values).buffer);
  writeNpz(path, {
    arr_0: { type: "u1", shape: [2], data: [Uint8Array.of(1, 2)] },
    mu: { type: "f8", shape: [2], data: [f8([1, -2])] },
    sigma: { type: "f8", shape: [2, 2], data: [f8([2, 0.5, 0.5, 1])] },
  });
  using set = openReferenceSet(path);
  assert.equal(set.network, null);
  assert.deepEqual(set.moments.mean.toList(), [1, -2]);
  assert.ok(frechetDistance(set.moments, set.moments) < 1e-9);
  requireDescribedBy(set, { name: "Inception v3 (FID)", featureSize: 2 }, null);
  assert.throws(
    () => requireDescribedBy(set, { name: "Inception v3 (FID)", featureSize: 2048 }, null),
    /expected features of Inception v3 \(FID\), got published moments of width 2/,
  );
  assert.throws(
    () => requireDescribedBy(set, { name: "CLIP", featureSize: 2 }, null),
    /expected features of CLIP/,
  );
  const bad = join(folder, "bad.npz");
  writeNpz(bad, { mu: { type: "f8", shape: [2], data: [f8([1, -2])] } });
  assert.throws(() => openReferenceSet(bad), /expected arrays mu and sigma, got no sigma/);
});
