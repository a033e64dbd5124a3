/**
 * What keys of the configuration ask of each other, and what is allowed but likely to disappoint. Ranges of single
 * keys are in the schema.
 */
import { shown } from "./input.js";
import type { Origins } from "./kind.js";
import { configKeys } from "./train_schema.js";
import type { TrainConfig } from "./types.js";

/** How a rollout is cut for the update. */
export interface BatchNumbers {
  /** N = B * G. */
  readonly sequences: number;
  /** Forward rows an image: 1 where its sequences share a context, else G. */
  readonly rowsAnImage: number;
  readonly rows: number;
  /** Images an optimizer step. */
  readonly miniBatch: number;
  readonly miniBatches: number;
  /** Optimizer steps a rollout. */
  readonly steps: number;
  /** Rows a forward pass. */
  readonly microBatch: number;
  readonly microBatchesAStep: number;
}

/** Whether the sequences of an image read the same codes, so that one forward row serves all of them. */
export function sharesContext(config: TrainConfig): boolean {
  return /teacher_forced$/.test(config.rollout.context.type);
}

/** Times a rollout is gone through. */
function epochsOf(config: TrainConfig): number {
  return config.algorithm === "ste" ? 1 : config[config.algorithm].epochs;
}

/** The numbers that follow from rollout, mini-batch, micro-batch and epochs. */
export function batchNumbers(config: TrainConfig): BatchNumbers {
  const { images, numGenerations } = config.rollout;
  const rowsAnImage = sharesContext(config) ? 1 : numGenerations;
  const miniBatch = config.update.miniBatch ?? images;
  const miniBatches = images / miniBatch;
  const rowsAStep = miniBatch * rowsAnImage;
  const microBatch = config.update.microBatch ?? rowsAStep;
  return {
    sequences: images * numGenerations,
    rowsAnImage,
    rows: images * rowsAnImage,
    miniBatch,
    miniBatches,
    steps: miniBatches * epochsOf(config),
    microBatch,
    microBatchesAStep: Math.ceil(rowsAStep / microBatch),
  };
}

/** Terms of the reward that count. */
export function activeTerms(config: TrainConfig): string[] {
  return Object.entries(config.reward).flatMap(([name, term]) => {
    if (typeof term !== "object" || term === null || term.weight === 0) return [];
    return name === "custom" && config.reward.custom.fn === null ? [] : [name];
  });
}

/** Terms that compare a sample with its image: what the cross-entropy has to balance. */
const COMPARING = new Set(["l1", "l2", "psnr", "ssim", "msSsim", "lpips", "perceptual", "latentCosine"]);

/** Terms that have a value at each pixel. */
const MAPPED = new Set(["l1", "l2", "ssim", "lpips", "perceptual"]);

/** Smallest images of terms that have one. */
const SMALLEST: Readonly<Record<string, number>> = { ssim: 11, msSsim: 176, perceptual: 8 };

/** What is wrong between keys, as whole messages. */
export function problemsOf(config: TrainConfig, origins: Origins): string[] {
  const problems: string[] = [];
  const refuse = (path: string, what: string, got: unknown, remedy: string): void => {
    problems.push(`${origins.whereOf(path)}: expected ${what}, got ${shown(got)}. ${remedy}.`);
  };
  const { rollout, update, reward, kl, grpo, algorithm, blockSize, data } = config;
  const { images, numGenerations, context } = rollout;
  const numbers = batchNumbers(config);

  if (update.miniBatch !== null && images % update.miniBatch !== 0) {
    const remedy = `Set one of ${divisorsOf(images)}, or another rollout.images`;
    refuse("update.miniBatch", `a divisor of rollout.images ${images}`, update.miniBatch, remedy);
  } else if (update.microBatch !== null) {
    const rows = numbers.miniBatch * numbers.rowsAnImage;
    if (rows % update.microBatch !== 0) {
      const factors =
        numbers.rowsAnImage === 1 ? "" : ` (${numbers.miniBatch} images x ${numGenerations} sequences)`;
      const remedy = `Set one of ${divisorsOf(rows)}, or null`;
      refuse(
        "update.microBatch",
        `a divisor of a mini-batch's ${rows} rows${factors}`,
        update.microBatch,
        remedy,
      );
    }
  }
  if ((algorithm === "grpo" || algorithm === "rloo") && numGenerations < 2) {
    const remedy =
      "One sequence alone has nothing to be compared with: raise it, or set algorithm reinforce or ppo";
    refuse("rollout.numGenerations", `at least 2 for ${algorithm}`, numGenerations, remedy);
  }
  if (algorithm === "reinforce" && numbers.sequences < 2) {
    refuse("rollout.images", "at least 2 sequences a rollout for reinforce", numbers.sequences, "Raise it");
  }
  if (algorithm === "grpo" && grpo.objective === "cispo" && grpo.level === "sequence") {
    refuse(
      "grpo.level",
      "token with grpo.objective cispo",
      grpo.level,
      "CISPO weighs each token by its own ratio",
    );
  }
  if (rollout.keepGraph) {
    const remedy = "Set rollout.keepGraph: false";
    if (!sharesContext(config)) {
      refuse(
        "rollout.keepGraph",
        "a teacher-forced context with it",
        context.type,
        `${remedy}: codes drawn one by one have no graph`,
      );
    }
    if (numbers.steps > 1) {
      refuse(
        "rollout.keepGraph",
        "one optimizer step a rollout with it",
        numbers.steps,
        `${remedy}: a graph serves one step`,
      );
    }
    if (update.microBatch !== null) {
      refuse(
        "update.microBatch",
        "null with rollout.keepGraph",
        update.microBatch,
        `${remedy}, or leave the micro-batch out`,
      );
    }
  }
  if (kl.placement === "reward" && kl.estimator === "k3_own") {
    refuse(
      "kl.estimator",
      "k1, k2, k3 or exact in the reward",
      kl.estimator,
      "A reward has no gradient to choose",
    );
  }
  const placement = kl.placement ?? (algorithm === "ppo" ? "reward" : "loss");
  if (placement === "loss" && kl.estimator === "k1") {
    const remedy =
      "The gradient of k1 is 0 on average, so it adds noise and no pull: set kl.placement: reward, or estimator k2, k3 or exact";
    refuse("kl.estimator", "k2, k3, k3_own or exact in the loss", kl.estimator, remedy);
  }
  if (kl.target !== null && kl.coef === 0 && algorithm !== "ste") {
    refuse("kl.coef", "a coefficient above 0 with kl.target, to start from", 0, "Set kl.coef=0.01");
  }
  if (blockSize !== null) {
    if (rollout.maxLen !== null && rollout.maxLen > blockSize) {
      refuse(
        "rollout.maxLen",
        `at most blockSize ${blockSize}`,
        rollout.maxLen,
        "Lower it or raise blockSize",
      );
    }
    if (
      context.type === "prefix" &&
      context.length !== null &&
      context.length >= (rollout.maxLen ?? blockSize)
    ) {
      const most = (rollout.maxLen ?? blockSize) - 1;
      refuse(
        "rollout.context.length",
        `at most ${most}, one code fewer than a sequence has`,
        context.length,
        "Lower it",
      );
    }
  }
  const { interval } = rollout.guidance;
  if (interval !== null && interval[0] >= interval[1]) {
    refuse("rollout.guidance.interval", "two places, the first before the second", interval, "Swap them");
  }
  if (data.group !== null && !isPattern(data.group)) {
    refuse(
      "data.group",
      "a regular expression",
      data.group,
      "Such as ^[^/]+/(.*) for the name without its first folder",
    );
  }
  const terms = activeTerms(config);
  if (terms.length === 0) {
    refuse("reward", "at least one term with a weight", "none", "Set reward.l2.weight=1");
  }
  for (const name of ["lpips", "perceptual", "patchGan"] as const) {
    if (reward[name].weight !== 0 && reward[name].path === null) {
      const remedy = `Give the file, or set reward.${name}.weight=0`;
      refuse(
        `reward.${name}.path`,
        `the network's weights with reward.${name}.weight ${reward[name].weight}`,
        null,
        remedy,
      );
    }
  }
  const { perceptual } = reward;
  if (perceptual.weight !== 0 && perceptual.path !== null && perceptual.path === config.eval.perceptual) {
    const remedy =
      "A network that is rewarded cannot watch over itself: train it with another seed, or leave this out";
    refuse("eval.perceptual", "another file than reward.perceptual.path", config.eval.perceptual, remedy);
  }
  if (reward.credit === "place") {
    const whole = terms.filter((name) => !MAPPED.has(name));
    if (whole.length > 0) {
      const remedy = `Leave ${whole.join(" and ")} out, or set reward.credit: sequence`;
      refuse("reward.credit", "sequence with terms that have one value a sample", "place", remedy);
    }
    if (algorithm === "grpo" && grpo.level === "sequence") {
      const remedy = "One ratio a sequence has no use for a reward a code: set one of them otherwise";
      refuse("grpo.level", "token with reward.credit place", "sequence", remedy);
    }
  }
  if (algorithm === "ste") problems.push(...steProblems(config, terms, origins));
  for (const name of terms) {
    const least = SMALLEST[name] ?? 0;
    if (data.size < least)
      refuse("data.size", `at least ${least} for reward.${name}`, data.size, `Leave ${name} out`);
  }
  return problems;
}

/** What the straight-through baseline cannot serve: it draws codes from plain distributions, in given contexts. */
function steProblems(config: TrainConfig, terms: readonly string[], origins: Origins): string[] {
  const { rollout, reward, kl } = config;
  const wanted: readonly (readonly [path: string, what: string, got: unknown, isRight: boolean])[] = [
    ["rollout.context.type", "a teacher-forced context", rollout.context.type, sharesContext(config)],
    ["rollout.temperature", "1", rollout.temperature, rollout.temperature === 1],
    ["rollout.topK", "0", rollout.topK, rollout.topK === 0],
    ["rollout.topP", "1", rollout.topP, rollout.topP === 1],
    ["rollout.guidance.scale", "1", rollout.guidance.scale, rollout.guidance.scale === 1],
    ["rollout.keepGraph", "false", rollout.keepGraph, !rollout.keepGraph],
    ["reward.normalize", "none", reward.normalize, reward.normalize === "none"],
    ["reward.credit", "sequence", reward.credit, reward.credit === "sequence"],
    ["reward.latentCosine.weight", "0", reward.latentCosine.weight, !terms.includes("latentCosine")],
    ["kl.coef", "0", kl.coef, kl.coef === 0],
    ["kl.target", "null", kl.target, kl.target === null],
    ["kl.stop", "null", kl.stop, kl.stop === null],
  ];
  return wanted.flatMap(([path, what, got, isRight]) =>
    isRight
      ? []
      : [
          `${origins.whereOf(path)}: expected ${what} for ste, got ${shown(got)}. Set it, or take another algorithm.`,
        ],
  );
}

/** What is missing before training can begin. */
export function missingParts(config: TrainConfig, origins: Origins): string[] {
  const problems: string[] = [];
  const want = (path: string, what: string, isThere: boolean): void => {
    if (!isThere) problems.push(`${origins.whereOf(path)}: expected ${what}, got nothing.`);
  };
  const { data, dataloader, tokenizer, ar, eval: evaluation } = config;
  want("data.source", "images to train on", data.source !== null || dataloader !== null);
  want("tokenizer.path", "a file with a tokenizer", tokenizer.path !== null || tokenizer.model !== null);
  const hasPolicy = ar.path !== null || ar.policy !== null || ar.cls !== null || ar.type !== null;
  want("ar.path", "a file with a policy, or ar.type for a new one", hasPolicy);
  const hasEval = evaluation.every === 0 || data.evalSource !== null || data.evalPart > 0;
  want("data.evalSource", "images to evaluate on (or data.evalPart above 0, or eval.every: 0)", hasEval);
  return problems;
}

/** What is allowed and likely not meant, or worth knowing before a run starts. */
export function notesOf(config: TrainConfig, origins: Origins): string[] {
  const notes: string[] = [];
  const { rollout, update, algorithm, kl } = config;
  const terms = activeTerms(config);
  const isComparing = terms.every((name) => COMPARING.has(name));
  if (update.auxCe === 0 && isComparing && sharesContext(config)) {
    notes.push(
      `update.auxCe is 0 with a reward of ${terms.join(" and ")} in ${rollout.context.type} contexts: such a reward alone wrecks ` +
        "a generator, since it pays for blur and nothing keeps the codes likely (VA-pi's FID goes from 14 to 39, with " +
        "LPIPS too). Set update.auxCe=0.1.",
    );
  }
  if (rollout.context.type === "free" && isComparing) {
    notes.push(
      "rollout.context is free: a policy that starts from a class alone cannot know which image it is compared with, so the " +
        "reward draws it towards the class's average. rollout.context=prefix tells it.",
    );
  }
  const { steps } = batchNumbers(config);
  if (steps === 1 && (algorithm === "grpo" || algorithm === "ppo")) {
    notes.push(
      "One optimizer step a rollout: the ratio is 1, nothing is clipped, and loss/policy stays near 0. " +
        "Watch reward/mean and optim/grad_norm.",
    );
  }
  if (steps > 1 && (algorithm === "reinforce" || algorithm === "rloo")) {
    notes.push(
      `${steps} optimizer steps a rollout: ${algorithm} corrects for none but the first. Set algorithm=grpo, which clips the ` +
        "ratio, or one epoch and update.miniBatch=null.",
    );
  }
  if (config.dataloader !== null && config.data.evalSource === null && config.eval.every > 0) {
    notes.push(
      "No images can be set apart from a dataloader, so nothing is evaluated. Give data.evalSource for that.",
    );
  }
  if (rollout.topK > 0 || rollout.topP < 1) {
    notes.push(
      "rollout.topK and rollout.topP cut codes from what is learnt about: the policy keeps their old probabilities.",
    );
  }
  if (
    rollout.context.noise >= 0.3 &&
    rollout.context.type === "noisy_teacher_forced" &&
    rollout.context.ramp === 0
  ) {
    notes.push(
      `rollout.context.noise ${rollout.context.noise} from the first iteration ruins a policy that was pre-trained without ` +
        "noise. Set rollout.context.ramp, or less noise, unless this one was.",
    );
  }
  const unread = (why: string, paths: readonly string[]): void => {
    const given = paths.filter((path) => origins.isGiven(path));
    if (given.length > 0) notes.push(`${given.join(", ")}: not read ${why}.`);
  };
  if (kl.coef === 0) {
    unread("while kl.coef is 0", ["kl.estimator", "kl.placement", ...(kl.stop === null ? ["kl.path"] : [])]);
  }
  if (kl.target === null) unread("without kl.target", ["kl.horizon"]);
  if (config.ar.lora.rank === null) unread("without ar.lora.rank", ["ar.lora.alpha", "ar.lora.targets"]);
  if (config.reward.credit === "sequence") unread("while reward.credit is sequence", ["reward.creditDecay"]);
  else if (algorithm === "ppo") unread("by ppo, which has ppo.lambda", ["reward.creditDecay"]);
  if (algorithm === "ste") unread("while algorithm is ste", ["update.tokenDropout", "update.maxLen"]);
  for (const other of ["reinforce", "rloo", "grpo", "ppo", "ste"]) {
    if (other === algorithm) continue;
    const idle = configKeys
      .map((key) => key.path.join("."))
      .filter((path) => path.startsWith(`${other}.`) && origins.isGiven(path));
    if (idle.length > 0) notes.push(`${idle.join(", ")}: not read while algorithm is ${algorithm}.`);
  }
  const { type } = rollout.context;
  const idle = [
    ...(type === "prefix" ? [] : ["rollout.context.length"]),
    ...(type === "noisy_teacher_forced" ? [] : ["rollout.context.noise"]),
    ...(type === "prefix" || type === "noisy_teacher_forced" ? [] : ["rollout.context.ramp"]),
  ].filter((path) => origins.isGiven(path));
  if (idle.length > 0) notes.push(`${idle.join(", ")}: not read in ${type} contexts.`);
  return notes;
}

/** Whether a text can be used as a regular expression. */
export function isPattern(text: string): boolean {
  try {
    return new RegExp(text) instanceof RegExp;
  } catch {
    return false;
  }
}

function divisorsOf(n: number): string {
  return Array.from({ length: n }, (_, i) => i + 1)
    .filter((i) => n % i === 0)
    .join(", ");
}
