/**
 * Models whose every number can be worked out: a tokenizer of grey cells, a policy that is a table, a network whose
 * features are the cells' means; and images made of such cells.
 */
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import sharp from "sharp";
import type { Judge } from "../../src/evaluation/options.js";
import { Module, Buffer as ModuleBuffer } from "../../src/nn/index.js";
import type { ArPolicy, Condition, DecodeCache } from "../../src/policies/policy.js";
import { buildTokenizerFrozen, type FrozenTokenizer } from "../../src/tokenizers/index.js";
import {
  cat,
  functional as F,
  keep,
  setNumThreads,
  type Tensor,
  tensor,
  tidy,
  zeros,
} from "../../src/torch/index.js";

setNumThreads(1);

/** Pixels of a cell's side, cells a side, and grey levels. */
export const CELL = 8;
export const SIDE = 2;
export const SIZE: number = CELL * SIDE;
export const CODES: number = SIDE * SIDE;
export const LEVELS = 4;

/** The codes of each class of {@link writeCells}. */
export const PATTERNS: readonly (readonly number[])[] = [
  [0, 1, 2, 3],
  [3, 0, 0, 1],
];

/** Grey of a level in [-1, 1], as 8 bits keep it. */
const greyOf = (level: number): number => (level * 85) / 127.5 - 1;

/** Level of each cell by its mean; a cell of the level's grey comes back. */
export function cellTokenizer(): FrozenTokenizer {
  return buildTokenizerFrozen({
    codebookSize: LEVELS,
    downsample: CELL,
    encode: (images) =>
      tidy(() => {
        const means = F.avgPool2d(images, CELL).mean(1).flatten(1); // [B, T]
        return means
          .add(1)
          .mul(127.5 / 85)
          .round()
          .long();
      }),
    decodeCode: (codes, grid) =>
      tidy(() => {
        const [rows, columns] = grid ?? [SIDE, SIDE];
        const grey = codes.float().mul(85).div(127.5).sub(1).reshape(-1, 1, rows, columns);
        return grey.repeatInterleave(CELL, 2).repeatInterleave(CELL, 3).expand(codes.size(0), 3, SIZE, SIZE);
      }),
  });
}

/**
 * Write images of two classes below a folder, `a` and `b`: the class's cells, each a little darker or lighter in a way
 * of its own, so that the tokenizer keeps not all.
 */
export async function writeCells(
  folder: string,
  count: number,
  patterns: readonly (readonly number[])[] = PATTERNS,
): Promise<void> {
  const names = ["a", "b"].slice(0, patterns.length);
  for (const name of names) mkdirSync(join(folder, name), { recursive: true });
  for (let i = 0; i < count; i++) {
    const pattern = patterns[i % patterns.length] as readonly number[];
    const data = Uint8Array.from({ length: SIZE * SIZE * 3 }, (_, at) => {
      const [row, column] = [Math.floor(at / 3 / SIZE), Math.floor(at / 3) % SIZE];
      const cell = Math.floor(row / CELL) * SIDE + Math.floor(column / CELL);
      const off = ((i * 7 + cell * 5) % 17) - 8;
      return Math.min(255, Math.max(0, (pattern[cell] as number) * 85 + off));
    });
    await sharp(data, { raw: { width: SIZE, height: SIZE, channels: 3 } })
      .png()
      .toFile(join(folder, names[i % patterns.length] as string, `${String(i).padStart(3, "0")}.png`));
  }
}

class TableCache implements DecodeCache {
  length = 0;
  classes: Tensor | null = null;
  constructor(
    readonly batch: number,
    readonly capacity: number,
  ) {}
  reset(): void {
    this.length = 0;
  }
  dispose(): void {
    this.classes?.dispose();
  }
  [Symbol.dispose](): void {
    this.dispose();
  }
}

/** Logits by class and position alone. The row after the classes' is that of the null condition. */
export class TablePolicy extends Module implements ArPolicy {
  readonly vocabSize: number = LEVELS;
  readonly blockSize: number = CODES;
  readonly hiddenSize: number = LEVELS;
  readonly options = {};
  gradientCheckpointing = false;
  /** `[classes + 1, T, V]`. */
  readonly table: ModuleBuffer;

  constructor(logits: readonly (readonly (readonly number[])[])[]) {
    super();
    this.table = new ModuleBuffer(tensor(logits as number[][][], { dtype: "float32" }));
  }

  #rows(condition: Condition, batch: number): Tensor {
    const { classes } = condition;
    if (classes !== undefined) return classes;
    return zeros([batch], { dtype: "int64" }).add(this.table.size(0) - 1);
  }

  hidden(tokens: Tensor, condition: Condition): Tensor {
    return tidy(() => {
      const rows = this.table.indexSelect(0, this.#rows(condition, tokens.size(0)));
      return rows.narrow(1, 0, tokens.size(1) + 1);
    });
  }

  logits(hidden: Tensor): Tensor {
    return hidden;
  }

  forward(tokens: Tensor, condition: Condition): Tensor {
    return this.hidden(tokens, condition);
  }

  nullCondition(condition: Condition): Condition {
    if (condition.classes === undefined) return {};
    return { classes: condition.classes.mul(0).add(this.table.size(0) - 1) };
  }

  openCache(batch: number): DecodeCache {
    return new TableCache(batch, CODES);
  }

  prefill(cache: DecodeCache, tokens: Tensor, condition: Condition): Tensor {
    const own = cache as TableCache;
    own.classes = keep(this.#rows(condition, tokens.size(0)).clone());
    own.length = tokens.size(1);
    return tidy(() => this.table.indexSelect(0, own.classes as Tensor).select(1, own.length));
  }

  decode(cache: DecodeCache, _token: Tensor): Tensor {
    const own = cache as TableCache;
    own.length++;
    return tidy(() => this.table.indexSelect(0, own.classes as Tensor).select(1, own.length));
  }

  repeatCache(cache: DecodeCache, times: number): DecodeCache {
    const own = cache as TableCache;
    const copy = new TableCache(own.batch * times, CODES);
    copy.length = own.length;
    copy.classes = keep(tidy(() => (own.classes as Tensor).repeatInterleave(times, 0)));
    return copy;
  }
}

/** Draws each class's own codes, all but for certain; the null condition knows nothing. */
export function rightPolicy(sharpness = 60): TablePolicy {
  const rows = PATTERNS.map((pattern) =>
    pattern.map((code) => Array.from({ length: LEVELS }, (_, level) => (level === code ? sharpness : 0))),
  );
  return new TablePolicy([...rows, PATTERNS[0]?.map(() => Array<number>(LEVELS).fill(0)) ?? []]);
}

/** Draws all codes alike often. */
export function uniformPolicy(): TablePolicy {
  return new TablePolicy(
    PATTERNS.concat([[]]).map(() => Array.from({ length: CODES }, () => Array<number>(LEVELS).fill(0))),
  );
}

/** Features: the mean grey of each cell. Classes: by whether the first cell is dark (0) or light (1), for certain. */
export function cellJudge(name = "cells"): Judge {
  const means = (images: Tensor): Tensor => F.avgPool2d(images, CELL).mean(1).flatten(1);
  return {
    network: {
      name,
      featureSize: CODES,
      numClasses: 2,
      describe: (images) =>
        tidy(() => {
          const features = means(images);
          const light = features.select(1, 0).gt(0).float();
          return { features, probabilities: cat([light.rsub(1).unsqueeze(1), light.unsqueeze(1)], 1) };
        }),
    },
    distance: (images, samples) =>
      tidy(() => {
        const times = samples.size(0) / images.size(0);
        return means(images).repeatInterleave(times, 0).sub(means(samples)).abs().mean(1);
      }),
  };
}

export { greyOf };
