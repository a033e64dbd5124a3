/** `rlar reconstruct`: images beside a tokenizer's reconstructions as a PNG, with PSNR, SSIM and LPIPS. */
import { basename } from "node:path";

import { UnreadableImages } from "../data/batch.js";
import { listImages, readImages, writePng } from "../data/images.js";
import { labelledPage, type PageRow } from "../data/page.js";
import { spread } from "../data/source.js";
import { l1, l2, psnr, ssim } from "../metrics/index.js";
import { openLpips, openTokenizer } from "../rl_ar_finetune/builder.js";
import { requireWritable } from "../run/folder.js";
import { cat, type Device, expected, type Tensor, tidy, toDevice } from "../torch/index.js";
import { sayNotes } from "./inspect.js";
import { imageCounter, withProgress } from "./progress.js";

/** Options of `rlar reconstruct`. */
export interface ReconstructOptions {
  tokenizer: string;
  out: string;
  size: number;
  crop: "center" | "smallest_side";
  limit: number;
  columns: number;
  lpips?: string;
  device: Device;
  wrapper?: string;
  weights?: "ema" | "raw";
  json?: boolean;
}

/** Images per forward pass of the tokenizer. */
const BATCH = 8;

export async function reconstruct(path: string, options: ReconstructOptions): Promise<void> {
  const { size, device } = options;
  requireWritable("--out", options.out, [".png"]);
  for (const name of ["size", "limit", "columns"] as const) {
    if (options[name] < 1) throw expected(`--${name}`, "at least 1", options[name]);
  }
  const { tokenizer, description, notes } = openTokenizer(options.tokenizer, {
    device,
    ...(options.wrapper !== undefined && { wrapper: options.wrapper }),
    ...(options.weights && { weights: options.weights }),
  });
  sayNotes(notes);
  if (size % tokenizer.downsample !== 0) {
    throw expected(
      "--size",
      `a multiple of ${tokenizer.downsample}, the tokenizer's downsampling factor`,
      size,
    );
  }
  using lpips = options.lpips === undefined ? undefined : openLpips(options.lpips, { device });
  const { files: all, notes: unread } = await listImages(path);
  sayNotes(unread);
  // Spread over the folder: its first files are often of one class.
  const chosen = spread(all.length, options.limit).map((i) => all[i] as string);
  const onPage = new Set(spread(chosen.length, options.columns).map((i) => chosen[i] as string));
  const files: string[] = [];
  const unreadable = new UnreadableImages();
  const measured: Record<string, number[]> = {};
  const shown: PageRow[] = [];
  const codes = new Set<number>();
  await withProgress("reconstructing", async (say) => {
    const count = imageCounter(chosen.length, say);
    for (let start = 0; start < chosen.length; start += BATCH) {
      count(start);
      const { names, images } = await readSome(chosen.slice(start, start + BATCH), options, unreadable);
      for (const line of unreadable.news()) say(line);
      if (names.length === 0) continue;
      files.push(...names);
      tidy(() => {
        const inputs = toDevice(cat(images), device);
        const indices = tokenizer.encode(inputs);
        const grid = [size / tokenizer.downsample, size / tokenizer.downsample] as const;
        const outputs = tokenizer.decodeCode(indices, grid).clamp(-1, 1);
        for (const code of indices.unique().toList() as number[]) codes.add(code);
        const terms: Record<string, Tensor> = { psnr: psnr(inputs, outputs), ssim: ssim(inputs, outputs) };
        terms.l1 = l1(inputs, outputs);
        terms.l2 = l2(inputs, outputs);
        if (lpips !== undefined) terms.lpips = lpips.forward(inputs, outputs);
        for (const [name, tensor] of Object.entries(terms)) {
          const values = tensor.toList() as number[];
          const stray = values.findIndex((value) => !Number.isFinite(value));
          if (stray >= 0) {
            const got = `${name} ${values[stray]} for ${names[stray]}`;
            throw expected(
              options.tokenizer,
              "finite measures",
              got,
              "Its weights are too large, or damaged",
            );
          }
          measured[name] = [...(measured[name] ?? []), ...values];
        }
        for (const [i, name] of names.entries()) {
          if (!onPage.has(name)) continue;
          const pair = cat([inputs.narrow(0, i, 1), outputs.narrow(0, i, 1)]).cpu();
          shown.push({ label: basename(name), images: pair });
        }
        return shown; // they outlive the batch
      });
      for (const image of images) image.dispose();
    }
  });
  if (files.length === 0) {
    const [problem = ""] = unreadable.problems;
    throw expected(
      path,
      "an image that can be read",
      `none of ${chosen.length}`,
      `The first: ${problem.replace(/\.$/, "")}`,
    );
  }
  using page = labelledPage(shown, ["input", "reconstr."]);
  await writePng(options.out, page);
  const means = Object.fromEntries(Object.entries(measured).map(([name, values]) => [name, mean(values)]));
  const { name: tokenizerName, weights } = description;
  const facts = {
    tokenizer: tokenizerName,
    weights,
    images: files.length,
    unreadable: unreadable.count,
    size,
    codesUsed: codes.size,
    ...means,
  };
  if (options.json) {
    const each = files.map((file, i) => ({
      file,
      ...Object.fromEntries(Object.entries(measured).map(([name, values]) => [name, values[i]])),
    }));
    process.stdout.write(`${JSON.stringify({ ...facts, out: options.out, each }, null, 2)}\n`);
  } else {
    const units: Record<string, string> = { psnr: " dB" };
    const text = Object.entries(means).map(
      ([name, value]) => `${name} ${value.toFixed(4)}${units[name] ?? ""}`,
    );
    process.stdout.write(
      `${tokenizerName}: ${files.length} images at ${size} px, ${codes.size} of ${tokenizer.codebookSize} codes used\n` +
        `${text.join("  ")}\n${basename(options.out)}: inputs with their reconstructions\n`,
    );
  }
}

/** Read images; one of several that cannot be read is noted and skipped, as in training. The images are the caller's. */
async function readSome(
  paths: readonly string[],
  { size, crop }: ReconstructOptions,
  unreadable: UnreadableImages,
): Promise<{ names: string[]; images: Tensor[] }> {
  const names: string[] = [];
  const images: Tensor[] = [];
  for (const path of paths) {
    try {
      images.push(await readImages([path], size, crop));
      names.push(path);
    } catch (error) {
      if (!(error instanceof RangeError)) throw error;
      unreadable.add(path, error.message);
    }
  }
  return { names, images };
}

function mean(values: readonly number[]): number {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}
