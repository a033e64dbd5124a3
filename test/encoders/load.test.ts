/** What openEncoder refuses, with the names of the tensors and values that are wrong. */
import assert from "node:assert/strict";
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";

import { describeEncoder, openEncoder } from "../../src/encoders/index.js";
import { full, loadSafetensors, saveSafetensors, type Tensor, zeros } from "../../src/torch/index.js";

const ROOT = "test/golden/encoders";
const ONLY_VISION = { towers: { text: false } };

function copyOf(name: string): string {
  const folder = mkdtempSync(join(tmpdir(), "encoder-"));
  cpSync(`${ROOT}/${name}`, folder, { recursive: true });
  return folder;
}

function changeWeights(folder: string, change: (tensors: Record<string, Tensor>) => void): void {
  const { tensors } = loadSafetensors(join(folder, "model.safetensors"));
  change(tensors);
  saveSafetensors(join(folder, "model.safetensors"), tensors);
}

function changeJson(path: string, change: (config: Record<string, never>) => void): void {
  const config = JSON.parse(readFileSync(path, "utf8"));
  change(config);
  writeFileSync(path, JSON.stringify(config));
}

test("a missing, an unknown and a misshapen tensor are named", () => {
  const folder = copyOf("hf_clip");
  changeWeights(folder, (tensors) => {
    delete tensors["vision_model.encoder.layers.1.self_attn.k_proj.weight"];
    tensors["vision_model.encoder.layers.2.layer_norm1.weight"] = zeros([24]);
    tensors["visual_projection.weight"] = zeros([12, 23]);
  });
  assert.throws(
    () => openEncoder(folder, ONLY_VISION),
    /missing vision_model\.encoder\.layers\.1\.self_attn\.k_proj\.weight; unknown vision_model\.encoder\.layers\.2\.layer_norm1\.weight; visual_projection\.weight \[12, 23\] instead of \[12, 24\]/,
  );
});

test("position_ids of old files are ignored, weights that are not finite refused", () => {
  const folder = copyOf("hf_siglip");
  changeWeights(folder, (tensors) => {
    tensors["vision_model.embeddings.position_ids"] = zeros([1, 16], { dtype: "int64" });
  });
  openEncoder(folder, ONLY_VISION).dispose();
  changeWeights(folder, (tensors) => {
    tensors["vision_model.head.probe"] = full([1, 1, 24], Number.NaN);
  });
  assert.throws(() => openEncoder(folder, ONLY_VISION), /vision_model\.head\.probe: expected finite weights/);
});

test("a file without its configuration and a configuration of another model are refused with a remedy", () => {
  const folder = copyOf("hf_clip");
  const config = join(folder, "config.json");
  changeJson(config, (values) => Object.assign(values, { model_type: "siglip2" }));
  assert.throws(
    () => openEncoder(folder, ONLY_VISION),
    /model_type: expected clip or siglip, got siglip2.*NaFlex/,
  );
  rmSync(config);
  assert.throws(() => openEncoder(folder, ONLY_VISION), /expected config\.json beside the weights, got none/);
  const openClip = copyOf("open_clip_quick");
  const path = join(openClip, "open_clip_config.json");
  changeJson(path, (values) =>
    Object.assign((values as never as { model_cfg: { text_cfg: object } }).model_cfg.text_cfg, {
      scale_fc: true,
    }),
  );
  assert.throws(
    () => openEncoder(openClip, ONLY_VISION),
    /text_cfg\.scale_fc: expected a model without it, got true/,
  );
  changeJson(path, (values) => {
    const { text_cfg } = (values as never as { model_cfg: { text_cfg: Record<string, unknown> } }).model_cfg;
    delete text_cfg.scale_fc;
    text_cfg.novelty = 3;
  });
  assert.throws(
    () => openEncoder(openClip, ONLY_VISION),
    /text_cfg\.novelty: expected a value that is known here, got 3/,
  );
});

test("an unknown option, a file of something else and heads that do not divide the width are refused", () => {
  assert.throws(() => openEncoder(`${ROOT}/hf_clip`, { tower: {} } as never), /tower/);
  assert.throws(
    () => openEncoder("test/golden/metrics/lpips.safetensors", ONLY_VISION),
    /expected an encoder: TokLIP, or CLIP/,
  );
  assert.throws(
    () => openEncoder(`${ROOT}/toklip/TokLIP.pt`, { ...ONLY_VISION, heads: 3 }),
    /heads that divides 16, got 3/,
  );
  assert.throws(
    () => openEncoder(`${ROOT}/hf_clip`, { ...ONLY_VISION, heads: 3 }),
    /heads: expected it for TokLIP alone/,
  );
});

test("a description needs no weights in memory", () => {
  const { name, family, text } = describeEncoder(`${ROOT}/hf_clip_quick`);
  assert.equal(name, "CLIP, 32 px, patches of 8, width 24");
  assert.equal(family, "clip");
  assert.equal(text.pool, "highest");
});

test("how images are prepared is read from the processor's file of transformers 5 too", () => {
  const folder = copyOf("hf_clip");
  const image_processor = { image_mean: [0.1, 0.2, 0.3], image_processor_type: "CLIPImageProcessor" };
  writeFileSync(join(folder, "processor_config.json"), JSON.stringify({ image_processor }));
  assert.deepEqual(describeEncoder(folder).preprocessing?.mean, [0.1, 0.2, 0.3]);
});
