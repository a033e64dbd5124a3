/** Small encoders, a tokenizer and networks for rewards by meaning. */
import { copyFileSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { openEncoder } from "../../src/rl_ar_finetune/open_encoders.js";
import { VQModel } from "../../src/tokenizers/index.js";
import { noGrad, ones, rand, saveSafetensors, type Tensor, tidy } from "../../src/torch/index.js";

const ROOT = "test/golden/encoders";

/** A tokenizer like SigLIP 2's of letters alone, as the small TokLIP's text tower has 40 words. */
function writeLetters(folder: string): void {
  const from = (name: string) => JSON.parse(readFileSync(`${ROOT}/gemma_tokenizer/${name}`, "utf8"));
  const words = ["<pad>", "<eos>", "<bos>", "<unk>", "\u2581", ..."abcdefghijklmnopqrstuvwxyz"];
  const { model, added_tokens: added, ...rest } = from("tokenizer.json");
  const vocab = Object.fromEntries(words.map((word, i) => [word, i]));
  const letters = {
    ...rest,
    added_tokens: added.filter(({ id }: { id: number }) => id < 4),
    model: { ...model, vocab, merges: [], byte_fallback: false },
  };
  const { mask_token: _, ...config } = from("tokenizer_config.json");
  writeFileSync(join(folder, "tokenizer.json"), JSON.stringify(letters));
  writeFileSync(join(folder, "tokenizer_config.json"), JSON.stringify(config));
}

/**
 * Files of the terms of a reward, and the tokenizer whose codes the TokLIP among them reads, of which `toklip_vq.safetensors`
 * is the file. The TokLIP reads 8 letters of a text. Call it from the project's folder.
 */
export function writeEncoders(folder: string): { model: VQModel; reward: Readonly<Record<string, object>> } {
  const at = (...names: string[]): string => join(folder, ...names);
  mkdirSync(at("toklip"));
  mkdirSync(at("clip"));
  copyFileSync(`${ROOT}/toklip/TokLIP.pt`, at("toklip", "TokLIP.pt"));
  writeLetters(at("toklip"));
  for (const name of ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"])
    copyFileSync(`${ROOT}/zero_shot/model/${name}`, at("clip", name));
  const model = new VQModel({
    codebookSize: 64,
    codebookEmbedDim: 8,
    ch: 8,
    chMult: [1, 2, 2],
    numResBlocks: 1,
    zChannels: 8,
    normGroups: 4,
  });
  tidy(() => {
    const encoder = openEncoder(at("toklip", "TokLIP.pt"), { towers: { text: false } });
    noGrad(() => model.quantize.embedding.weight.copy_(encoder.visual?.codebook?.weight as Tensor));
    encoder.dispose();
    const config = JSON.stringify({ normGroups: 4 });
    saveSafetensors(at("toklip_vq.safetensors"), model.stateDict(), { config });
    saveSafetensors(at("head.safetensors"), { weight: rand([1, 12]), bias: rand([1]) });
    saveSafetensors(at("dists.safetensors"), { alpha: ones([1, 1475, 1, 1]), beta: ones([1, 1475, 1, 1]) });
    const places = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28];
    const widths = [3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512];
    const vgg = places.flatMap((place, i) => [
      [
        `features.${place}.weight`,
        rand([widths[i + 1] as number, widths[i] as number, 3, 3]).mul(0.01),
      ] as const,
      [`features.${place}.bias`, rand([widths[i + 1] as number])] as const,
    ]);
    saveSafetensors(at("vgg.safetensors"), Object.fromEntries(vgg));
  });
  const [toklip, clip] = [at("toklip", "TokLIP.pt"), at("clip")];
  return {
    model,
    reward: {
      toklipImage: { weight: 1, path: toklip },
      toklipText: { weight: 1, path: toklip, template: "{} cat" },
      clip: { weight: 1, path: clip },
      aesthetic: { weight: 1, path: clip, head: at("head.safetensors") },
      dists: { weight: 1, path: at("vgg.safetensors"), weights: at("dists.safetensors") },
    },
  };
}
