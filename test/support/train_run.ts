/**
 * A run small enough to be made dozens of times: emoji of 16 px, a tokenizer of 32 codes, a policy of width 16. As a
 * program it makes one run: `node train_run.js FOLDER CONFIG`, CONFIG in JSON over that of {@link tinyRun}.
 */
import {
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import type { TrainConfigInput } from "../../src/config/resolve.js";
import { writePng } from "../../src/data/index.js";
import { type TrainOptions, type TrainResult, trainRlLoop } from "../../src/rl_ar_finetune/train_loop.js";
import { VQModel } from "../../src/tokenizers/index.js";
import {
  loadSafetensors,
  manualSeed,
  saveSafetensors,
  setNumThreads,
  type Tensor,
  tidy,
} from "../../src/torch/index.js";

setNumThreads(1);

const EMOJI = fileURLToPath(new URL("../../../test/fixtures/emoji_16px.safetensors", import.meta.url));

type Values = Record<string, unknown>;

/** A folder with images of three classes below `images/` and a tokenizer of random weights, gone after the tests. */
export async function tinyFolder(t: { after(fn: () => void): void }, images = 20): Promise<string> {
  const folder = mkdtempSync(join(tmpdir(), "train-run-"));
  t.after(() => rmSync(folder, { recursive: true, force: true }));
  await writeEmoji(join(folder, "images"), images);
  manualSeed(7);
  const tokenizer = tinyTokenizer();
  saveSafetensors(join(folder, "tokenizer.safetensors"), tokenizer.stateDict(), {
    config: JSON.stringify({ normGroups: 4 }),
  });
  tokenizer.dispose();
  return folder;
}

/** The keys of a command line for a run on such a folder. */
export const tinyKeys = (folder: string): string[] => [
  `data.source=${join(folder, "images")}`,
  `tokenizer.path=${join(folder, "tokenizer.safetensors")}`,
  "data.size=16",
  "data.evalPart=0",
  "ar={type: gpt, nLayer: 1, nHead: 2, nEmbd: 16, extra: {classNum: 3}}",
  "rollout={images: 4, numGenerations: 2}",
  "reward.l2.weight=1",
  "eval.every=0",
];

/** Emoji as PNG files, in folders named by class. */
export async function writeEmoji(folder: string, count: number, from = 0): Promise<void> {
  const { tensors } = loadSafetensors(EMOJI);
  for (const name of ["a", "b", "c"]) mkdirSync(join(folder, name), { recursive: true });
  for (let i = from; i < from + count; i++) {
    const image = tidy(() => (tensors.images as Tensor).narrow(0, i, 1).float().div(127.5).sub(1));
    await writePng(
      join(folder, ["a", "b", "c"][i % 3] as string, `${String(i).padStart(3, "0")}.png`),
      image,
    );
    image.dispose();
  }
  for (const tensor of Object.values(tensors)) tensor.dispose();
}

/** 32 codes, each of 4 x 4 pixels. */
export function tinyTokenizer(): VQModel {
  return new VQModel({
    codebookSize: 32,
    codebookEmbedDim: 4,
    ch: 8,
    chMult: [1, 2, 2],
    numResBlocks: 1,
    zChannels: 8,
    normGroups: 4,
  });
}

/** The configuration of a run in a folder of {@link tinyFolder}, with changes. */
export function tinyRun(folder: string, changes: object = {}): TrainConfigInput {
  const values: Values = {
    run: { dir: join(folder, "run"), ifExists: "fail" },
    data: { source: join(folder, "images"), size: 16, evalPart: partOf(changes) },
    tokenizer: { path: join(folder, "tokenizer.safetensors") },
    ar: { type: "gpt", nLayer: 1, nHead: 2, nEmbd: 16, extra: { classNum: 3 } },
    algorithm: "grpo",
    rollout: { images: 4, numGenerations: 2, context: { type: "prefix" } },
    reward: { l2: { weight: 1 } },
    optimizer: { lr: 1e-3 },
    eval: { every: 0 },
    save: { every: 2 },
    log: { imagesEvery: 0 },
    train: { iters: 2, threads: 1, device: "cpu" },
  };
  return merged(values, changes as Values);
}

/** So few images are all trained on, where nothing is evaluated. */
function partOf({ eval: evaluation }: { eval?: { every?: number } }): number {
  return (evaluation?.every ?? 0) > 0 ? 0.2 : 0;
}

function merged(values: Values, changes: Values): Values {
  const isPlain = (value: unknown): value is Values =>
    typeof value === "object" && value !== null && Object.getPrototypeOf(value) === Object.prototype;
  const result = { ...values };
  for (const [name, value] of Object.entries(changes)) {
    const before = result[name];
    result[name] = isPlain(value) && isPlain(before) ? merged(before, value) : value;
  }
  return result;
}

/** What a run shows, collected. */
export class Shown {
  text = "";
  write(text: string): void {
    this.text += text;
  }
}

/** Make a run without a word on the screen. */
export function quietRun(config: object, options: TrainOptions = {}): Promise<TrainResult> {
  return trainRlLoop(config as TrainConfigInput, { screen: new Shown(), ...options });
}

/** Write a file as if it had lain there for a while, such as a `steer.yaml`, which is left to settle. */
export function writeSettled(path: string, text: string): void {
  writeFileSync(path, text);
  utimesSync(path, 1e9, 1e9 + text.length);
}

/** The lines of a run's metrics. `isPlain` leaves out what depends on the machine: times, memory. */
export function metricsOf(
  dir: string,
  { isPlain = true }: { isPlain?: boolean } = {},
): Record<string, number | null>[] {
  const lines = readFileSync(join(dir, "metrics.jsonl"), "utf8").trim().split("\n");
  return lines.map((line) => {
    const all = Object.entries(JSON.parse(line) as Record<string, number | null>);
    return Object.fromEntries(all.filter(([name]) => !isPlain || !/^(time$|time\/|perf\/)/.test(name)));
  });
}

/** Names of a run's checkpoints, oldest first. */
export function checkpointsOf(dir: string): string[] {
  try {
    return readdirSync(join(dir, "checkpoints"))
      .filter((name) => /^step_\d+$/.test(name))
      .sort();
  } catch {
    return [];
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const [, , folder = ".", changes = "{}"] = process.argv;
  const { step, end } = await quietRun(tinyRun(folder, JSON.parse(changes) as Values));
  process.stdout.write(JSON.stringify({ step, end }));
}
