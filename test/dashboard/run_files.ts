/** Folders of runs as the training loops leave them, written by hand. */
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";

import sharp from "sharp";
import { configYaml } from "../../src/config/explain.js";
import { resolveConfig } from "../../src/config/resolve.js";

/** A folder that is gone after the tests. */
export function newFolder(t: { after(fn: () => void): void }): string {
  const folder = mkdtempSync(join(tmpdir(), "rlar-report-"));
  t.after(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

/** What a folder is to hold; what is left out is not written. */
export interface RunFiles {
  /** Lines of metrics.jsonl: objects, or text as it is. */
  readonly metrics?: readonly (Readonly<Record<string, unknown>> | string)[];
  /** Values over the defaults of `rlar train`. */
  readonly config?: Readonly<Record<string, unknown>>;
  readonly env?: Readonly<Record<string, unknown>>;
  /** Other files by name: text, or what becomes JSON. */
  readonly files?: Readonly<Record<string, unknown>>;
}

export function writeRun(folder: string, { metrics, config, env, files = {} }: RunFiles): string {
  mkdirSync(join(folder, "samples"), { recursive: true });
  const write = (name: string, text: string): void => {
    mkdirSync(dirname(join(folder, name)), { recursive: true });
    writeFileSync(join(folder, name), text);
  };
  if (metrics !== undefined) {
    const lines = metrics.map((line) => (typeof line === "string" ? line : `${JSON.stringify(line)}\n`));
    write("metrics.jsonl", lines.join(""));
  }
  if (config !== undefined)
    write("config.yaml", configYaml(resolveConfig({ values: config, isComplete: false }).config));
  if (env !== undefined) write("env.json", JSON.stringify(env));
  for (const [name, value] of Object.entries(files))
    write(name, typeof value === "string" ? value : JSON.stringify(value));
  return folder;
}

/** A page of samples of some size, with its line of the index. */
export async function writePage(
  folder: string,
  step: number,
  options: { width?: number; height?: number; about?: Readonly<Record<string, unknown>> } = {},
): Promise<string> {
  const { width = 14, height = 8, about = {} } = options;
  const file = `samples/step_${String(step).padStart(6, "0")}_train.png`;
  mkdirSync(join(folder, "samples"), { recursive: true });
  // Noise, which takes the most room.
  let state = step + 1;
  const data = Buffer.alloc(width * height * 3);
  for (let i = 0; i < data.length; i++) {
    state = (Math.imul(state, 1103515245) + 12345) >>> 0;
    data[i] = state >>> 16;
  }
  await sharp(data, { raw: { width, height, channels: 3 } })
    .png()
    .toFile(join(folder, file));
  return `${JSON.stringify({ step, name: "train", file, ...about })}\n`;
}
