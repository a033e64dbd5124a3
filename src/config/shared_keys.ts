/** Keys that `rlar train` and the supervised trainers have to the letter; those that differ are with their command. */
import * as z from "zod";

import { key } from "./key.js";
import type { Precision } from "./types.js";

export const count: z.ZodInt = z.int().min(1);
export const every: z.ZodInt = z.int().min(0);
export const positive: z.ZodNumber = z.number().gt(0);
export const text: z.ZodString = z.string().min(1);
const below1 = z.number().min(0).lt(1);

export const seed: z.ZodType<number> = key(
  z.int().min(0),
  0,
  "decides every random number of the run",
  "Run several before believing a small difference.",
);

export const device: z.ZodType<string> = key(
  z
    .string()
    .regex(/^(auto|cpu|cuda(:\d+)?)$/)
    .describe("auto, cpu, cuda or cuda:N"),
  "auto",
  "cpu, cuda or cuda:N; auto is cuda where there is one",
  "To leave the GPU to others.",
);

export const threads: z.ZodType<number | null> = key(
  count.nullable(),
  null,
  "threads of an operator on the CPU; null leaves it to LibTorch",
  "Set 1 to share a machine.",
);

export const eps: z.ZodType<number> = key(
  positive,
  1e-8,
  "added to the root of the squares' mean",
  "Rarely.",
);

export const maxGradNorm: z.ZodType<number | null> = key(
  positive.nullable(),
  1,
  "largest norm of the gradient, all weights as one vector; null is no limit",
  "Look at optim/grad_norm: clipping should be the exception.",
);

export const emaWarmup: z.ZodType<boolean> = key(
  z.boolean(),
  true,
  "let the average forget its start soon",
  "Rarely.",
);

export const tensorboard: z.ZodType<boolean> = key(
  z.boolean(),
  true,
  "write TensorBoard's event files to tb/",
  "Switch it off to save space.",
);

export const csv: z.ZodType<boolean> = key(
  z.boolean(),
  true,
  "write metrics.csv at the end",
  "Switch it off when nobody opens it.",
);

export const patience: z.ZodType<number> = key(
  every,
  0,
  "evaluations without a new best after which the run ends; 0 never ends it",
  "Set 5 for runs that nobody watches.",
  "evaluations",
);

/** Which of a metric's values is the better one. */
export const modeOf = (value: "max" | "min"): z.ZodType<"max" | "min"> =>
  key(z.enum(["max", "min"]), value, "whether more of that metric is better, or less", "Together with best.");

/** Checkpoints that stay. */
export const keepOf = (value: number): z.ZodType<number> =>
  key(count, value, "checkpoints that stay, beside the best one", "Raise it to look back further.");

/** Decays of AdamW; `steps` is what the command calls them. */
export const betasOf = (value: readonly [number, number], steps: string): z.ZodType<[number, number]> =>
  key(
    z.tuple([below1, below1]),
    [...value],
    "decay of the mean of the gradient and of its square",
    `0.999 for the second suits runs of many thousand ${steps}.`,
  );

/** The type in which something is computed. */
export const precisionOf = (what: string, when: string): z.ZodType<Precision> =>
  key(
    z.enum(["auto", "float32", "bfloat16"]),
    "auto",
    `type in which ${what} are computed; auto is bfloat16 on CUDA, float32 on a CPU`,
    when,
  );

/** Limits of updates that are left out; `steps` is what the command calls them. */
export const limitsOf = (
  steps: string,
): { nonFiniteInARow: z.ZodType<number>; nonFinite: z.ZodType<number> } => ({
  nonFiniteInARow: key(
    count,
    5,
    `${steps} in a row that may be left out because the loss or gradient is not finite; one more ends the run with exit code 4`,
    "Rarely: look for the cause.",
    steps,
  ),
  nonFinite: key(
    count,
    100,
    `such ${steps} in the whole run; one more ends it with exit code 4`,
    "Rarely: look for the cause.",
    steps,
  ),
});
