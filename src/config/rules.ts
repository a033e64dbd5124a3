/**
 * Rules between keys of the configuration of `rlar train`, and notes on combinations that are allowed but probably not
 * intended. Ranges of single keys are in the schema.
 */
import { nearestName } from "../torch/arguments.js";
import type { Findings } from "./kind.js";
import type { ArSection, DataConfig, TrainConfig } from "./train.js";

/** How a rollout is cut for the update. */
export interface BatchNumbers {
  /** N = B * G. */
  readonly sequences: number;
  /** Forward rows per image: 1 where its sequences share a context, otherwise G. */
  readonly rowsAnImage: number;
  readonly rows: number;
  /** Images per optimizer step. */
  readonly miniBatch: number;
  readonly miniBatches: number;
  /** Optimizer steps per rollout. */
  readonly steps: number;
  /** Rows per forward pass. */
  readonly microBatch: number;
  readonly microBatchesAStep: number;
}

/** Whether the sequences of an image read the same codes, so that one forward row serves all of them. */
export function sharesContext(config: TrainConfig): boolean {
  return /teacher_forced$/.test(config.rollout.context.type);
}

/** The numbers that follow from rollout, mini-batch, micro-batch and epochs. */
export function batchNumbers(config: TrainConfig): BatchNumbers {
  const { images, numGenerations } = config.rollout;
  const { algorithm } = config;
  const rowsAnImage = sharesContext(config) ? 1 : numGenerations;
  const miniBatch = config.update.miniBatch ?? images;
  const miniBatches = images / miniBatch;
  const rowsAStep = miniBatch * rowsAnImage;
  const microBatch = Math.min(config.update.microBatch ?? rowsAStep, rowsAStep);
  return {
    sequences: images * numGenerations,
    rowsAnImage,
    rows: images * rowsAnImage,
    miniBatch,
    miniBatches,
    steps: miniBatches * (algorithm === "ste" ? 1 : config[algorithm].epochs),
    microBatch,
    microBatchesAStep: Math.ceil(rowsAStep / microBatch),
  };
}

/** Names of the reward's terms in metrics, whether more of each is better, and what they are. */
const TERMS: Readonly<
  Record<string, { metric: string; isMore: boolean; compares?: true; mapped?: true; least?: number }>
> = {
  l1: { metric: "l1", isMore: false, compares: true, mapped: true },
  l2: { metric: "l2", isMore: false, compares: true, mapped: true },
  psnr: { metric: "psnr", isMore: true, compares: true },
  ssim: { metric: "ssim", isMore: true, compares: true, mapped: true, least: 11 },
  msSsim: { metric: "ms_ssim", isMore: true, compares: true, least: 176 },
  lpips: { metric: "lpips", isMore: false, compares: true, mapped: true },
  perceptual: { metric: "perceptual", isMore: false, compares: true, mapped: true, least: 8 },
  latentCosine: { metric: "latent_cosine", isMore: false, compares: true },
  patchGan: { metric: "patch_gan", isMore: true },
  custom: { metric: "custom", isMore: true },
};

/** Terms of the reward with a weight. */
function activeTerms(config: TrainConfig): string[] {
  return Object.entries(config.reward).flatMap(([name, term]) => {
    if (typeof term !== "object" || term === null || term.weight === 0) return [];
    return name === "custom" && config.reward.custom.fn === null ? [] : [name];
  });
}

/**
 * The metrics that an evaluation with this configuration makes and `eval.best` can name, and which of each is better:
 * null where neither is.
 */
export function evalMetrics(config: TrainConfig): ReadonlyMap<string, "max" | "min" | null> {
  const { eval: evaluation } = config;
  const better = new Map<string, "max" | "min" | null>([["reward", "max"]]);
  for (const name of [...activeTerms(config), "l1", "l2", "psnr", "ssim"]) {
    const { metric, isMore } = TERMS[name] as (typeof TERMS)[string];
    better.set(metric, isMore ? "max" : "min");
  }
  if (evaluation.perceptual !== null) better.set("perceptual_held_out", "min");
  if (evaluation.numGenerations > 1) better.set("diversity", "max");
  better.set("nats_per_token", "min");
  const metrics = [...better].flatMap(([name, mode]) =>
    (["mean", "min", "max", "std", "count"] as const).map(
      (of) => [`eval/${name}/${of}`, of === "std" || of === "count" ? null : mode] as const,
    ),
  );
  return new Map([...metrics, ["eval/codebook_usage", "max"]]);
}

/** Refuse a metric for `eval.best` that no evaluation makes, and the wrong direction for one. */
export function checkBest(
  { best, mode, every }: { best: string; mode: "max" | "min"; every: number },
  metrics: ReadonlyMap<string, "max" | "min" | null>,
  found: Findings,
): void {
  if (every === 0) return;
  const better = metrics.get(best);
  const names = [...metrics.keys()];
  if (better === undefined) {
    const near =
      names.find((name) => name === `eval/${best}`) ?? names.find((name) => name === `${best}/mean`);
    const likely = near ?? nearestName(best, names);
    const main = names.filter((name) => !/\/(min|max|std|count)$/.test(name)).join(", ");
    const remedy = likely === undefined ? `It makes ${main}` : `Did you mean "${likely}"? It makes ${main}`;
    found.refuse("eval.best", "a metric that this evaluation makes", best, remedy);
  } else if (better !== null && better !== mode) {
    const which = better === "min" ? "less" : "more";
    const fixes = { "eval.mode": better };
    found.refuse(
      "eval.mode",
      `${better} for ${best}, of which ${which} is better`,
      mode,
      `Set eval.mode=${better}`,
      fixes,
    );
  }
}

/** Note which keys of `eval` were given although nothing is evaluated. */
export function noteEval(evaluation: { every: number }, found: Findings): void {
  const names = Object.keys(evaluation).filter((name) => name !== "every");
  if (evaluation.every === 0)
    found.unread(
      "while eval.every is 0",
      names.map((name) => `eval.${name}`),
    );
}

/** Refuse what keys of `data` do not allow. */
export function checkData({ group, classNames }: DataConfig, found: Findings): void {
  if (group !== null && !isPattern(group)) {
    const remedy = "An example is ^[^/]+/(.*) for the name without its first folder";
    found.refuse("data.group", "a regular expression", group, remedy);
  }
  const twice = classNames?.find((name, i) => classNames.indexOf(name) !== i);
  if (twice !== undefined) {
    found.refuse("data.classNames", "each name once", `${twice} twice`, "Each class has one id");
  }
}

/** Refuse options that only a new policy can have where one is loaded, and note keys that are not used. */
export function checkPolicy(ar: ArSection, found: Findings): void {
  const loaded = ar.policy !== null ? "ar.policy" : ar.path !== null ? "ar.path" : null;
  if (ar.extra.usePretrainedCodebook === true && (loaded !== null || ar.type === "llamagen")) {
    const got = loaded === null ? "it with ar.type llamagen" : `it with ${loaded}, whose weights are loaded`;
    const remedy = "Remove usePretrainedCodebook: only a new policy of ar.type gpt starts from the codebook";
    found.refuse("ar.extra.usePretrainedCodebook", "a new policy of ar.type gpt", got, remedy);
  }
  if (loaded === null) {
    found.unread("without ar.path", ["ar.wrapper", "ar.weights"]);
    return;
  }
  const sizes = [
    "ar.type",
    "ar.cls",
    "ar.nLayer",
    "ar.nEmbd",
    ...Object.keys(ar.extra).map((name) => `ar.extra.${name}`),
  ];
  const file = ["ar.path", "ar.wrapper", "ar.weights", "ar.nHead"];
  found.unread(`with ${loaded}`, loaded === "ar.path" ? sizes : [...sizes, ...file]);
}

/** Require images to train and to evaluate on. */
export function requireImages(
  config: { data: DataConfig; eval: { every: number }; dataloader?: unknown },
  found: Findings,
): void {
  const { data, dataloader = null, eval: evaluation } = config;
  found.require("data.source", "images to train on", data.source !== null || dataloader !== null);
  const hasEval = evaluation.every === 0 || data.evalSource !== null || data.evalPart > 0;
  found.require(
    "data.evalSource",
    "images to evaluate on (or data.evalPart above 0, or eval.every: 0)",
    hasEval,
  );
}

/** Refuse values that do not fit together. */
export function problemsOf(config: TrainConfig, found: Findings): void {
  const { rollout, update, reward, kl, grpo, algorithm, blockSize, data } = config;
  const { images, numGenerations, context } = rollout;
  const numbers = batchNumbers(config);
  const { refuse } = found;

  if (update.miniBatch !== null && images % update.miniBatch !== 0) {
    const remedy = `Set one of ${divisorsOf(images)}, or another rollout.images`;
    refuse("update.miniBatch", `a divisor of rollout.images ${images}`, update.miniBatch, remedy, {
      "update.miniBatch": null,
    });
  }
  if ((algorithm === "grpo" || algorithm === "rloo") && numGenerations < 2) {
    const remedy =
      "One sequence has nothing to be compared with: raise it, or set algorithm to reinforce or ppo";
    refuse("rollout.numGenerations", `at least 2 for ${algorithm}`, numGenerations, remedy, {
      "rollout.numGenerations": 2,
    });
  }
  if (algorithm === "reinforce" && numbers.sequences < 2) {
    refuse("rollout.images", "at least 2 sequences per rollout for reinforce", numbers.sequences, "Raise it");
  }
  if (algorithm === "grpo" && grpo.objective === "cispo" && grpo.level === "sequence") {
    const remedy = "CISPO weights each token by its own ratio";
    refuse("grpo.level", "token with grpo.objective cispo", grpo.level, remedy, { "grpo.level": "token" });
  }
  if (rollout.keepGraph) {
    const off = { "rollout.keepGraph": false };
    const remedy = "Set rollout.keepGraph=false";
    if (!sharesContext(config)) {
      const why = `${remedy}: codes that are sampled one by one have no graph`;
      refuse("rollout.keepGraph", "a teacher-forced context with it", context.type, why, off);
    }
    if (numbers.steps > 1) {
      const why = `${remedy}: a graph serves one step`;
      refuse("rollout.keepGraph", "one optimizer step per rollout with it", numbers.steps, why, off);
    }
    if (update.microBatch !== null) {
      const why = `${remedy}, or remove update.microBatch`;
      refuse("update.microBatch", "null with rollout.keepGraph", update.microBatch, why, {
        "update.microBatch": null,
      });
    }
  }
  if (kl.placement === "reward" && kl.estimator === "k3_own") {
    const remedy = "A KL term in the reward has no gradient";
    refuse("kl.estimator", "k1, k2, k3 or exact in the reward", kl.estimator, remedy);
  }
  const placement = kl.placement ?? (algorithm === "ppo" ? "reward" : "loss");
  if (placement === "loss" && kl.estimator === "k1") {
    const remedy =
      "The gradient of k1 is 0 on average, so it only adds noise: set kl.placement=reward, or estimator k2, k3 or exact";
    refuse("kl.estimator", "k2, k3, k3_own or exact in the loss", kl.estimator, remedy);
  }
  if (kl.target !== null && kl.coef === 0 && algorithm !== "ste") {
    refuse("kl.coef", "a coefficient above 0 with kl.target, to start from", 0, "Set kl.coef=0.01", {
      "kl.coef": 0.01,
    });
  }
  if (blockSize !== null) {
    const { maxLen } = rollout;
    if (maxLen !== null && maxLen > blockSize) {
      refuse("rollout.maxLen", `at most blockSize ${blockSize}`, maxLen, "Lower it or raise blockSize");
    }
    const codes = maxLen ?? blockSize;
    if (context.type === "prefix" && context.length !== null && context.length >= codes) {
      const what = `at most ${codes - 1}, one code fewer than a sequence has`;
      refuse("rollout.context.length", what, context.length, "Lower it", { "rollout.context.length": null });
    }
  }
  const { interval } = rollout.guidance;
  if (interval !== null && interval[0] >= interval[1]) {
    refuse("rollout.guidance.interval", "two positions, the first before the second", interval, "Swap them");
  }
  checkData(data, found);
  checkPolicy(config.ar, found);
  checkBest(config.eval, evalMetrics(config), found);
  checkReward(config, found);
  if (algorithm === "ste") checkSte(config, found);
  const { perceptual } = reward;
  if (perceptual.weight !== 0 && perceptual.path !== null && perceptual.path === config.eval.perceptual) {
    const remedy =
      "A network that is rewarded cannot judge itself: train one with another seed, or remove eval.perceptual";
    refuse("eval.perceptual", "another file than reward.perceptual.path", config.eval.perceptual, remedy);
  }
}

function checkReward(config: TrainConfig, found: Findings): void {
  const { reward, algorithm, grpo, data } = config;
  const terms = activeTerms(config);
  const { refuse } = found;
  if (terms.length === 0) {
    refuse("reward", "at least one term with a weight", "none", "Set reward.l2.weight=1", {
      "reward.l2.weight": 1,
    });
  }
  for (const name of ["lpips", "perceptual", "patchGan"] as const) {
    if (reward[name].weight === 0 || reward[name].path !== null) continue;
    const what = `the network's weights with reward.${name}.weight ${reward[name].weight}`;
    refuse(`reward.${name}.path`, what, null, `Give the file, or set reward.${name}.weight=0`);
  }
  if (reward.credit === "place") {
    const byPlace = { "reward.credit": "sequence" };
    const whole = terms.filter((name) => TERMS[name]?.mapped !== true);
    if (whole.length > 0) {
      const remedy = `Set the weight of ${whole.join(" and ")} to 0, or reward.credit=sequence`;
      refuse("reward.credit", "sequence with terms that have one value per sample", "place", remedy, byPlace);
    }
    if (algorithm === "grpo" && grpo.level === "sequence") {
      const remedy = "One ratio per sequence cannot use a reward per code: change one of the two";
      refuse("grpo.level", "token with reward.credit place", "sequence", remedy, {
        "grpo.level": "token",
        ...byPlace,
      });
    }
  }
  for (const name of terms) {
    const { least = 0 } = TERMS[name] ?? {};
    if (data.size >= least) continue;
    const remedy = `Set reward.${name}.weight=0`;
    refuse("data.size", `at least ${least} for reward.${name}`, data.size, remedy, {
      [`reward.${name}.weight`]: 0,
    });
  }
}

/** Refuse what the straight-through baseline does not support: filtered distributions, and contexts of sampled codes. */
function checkSte(config: TrainConfig, found: Findings): void {
  const { rollout, reward, kl } = config;
  const isGiven = sharesContext(config);
  const wanted: readonly (readonly [path: string, value: unknown, got: unknown, what?: string])[] = [
    [
      "rollout.context.type",
      isGiven ? rollout.context.type : "teacher_forced",
      rollout.context.type,
      "a teacher-forced context",
    ],
    ["rollout.temperature", 1, rollout.temperature],
    ["rollout.topK", 0, rollout.topK],
    ["rollout.topP", 1, rollout.topP],
    ["rollout.guidance.scale", 1, rollout.guidance.scale],
    ["rollout.keepGraph", false, rollout.keepGraph],
    ["reward.normalize", "none", reward.normalize],
    ["reward.credit", "sequence", reward.credit],
    ["reward.latentCosine.weight", 0, reward.latentCosine.weight],
    ["kl.coef", 0, kl.coef],
    ["kl.target", null, kl.target],
    ["kl.stop", null, kl.stop],
  ];
  for (const [path, value, got, what = value] of wanted) {
    if (got === value) continue;
    found.refuse(path, `${what} for ste`, got, "Set it, or another algorithm", { [path]: value });
  }
}

/** Require the keys that training needs. */
export function missingParts(config: TrainConfig, found: Findings): void {
  const { tokenizer, ar } = config;
  requireImages(config, found);
  found.require(
    "tokenizer.path",
    "a file with a tokenizer",
    tokenizer.path !== null || tokenizer.model !== null,
  );
  const hasPolicy = ar.path !== null || ar.policy !== null || ar.cls !== null || ar.type !== null;
  found.require("ar.path", "a file with a policy, or ar.type for a new one", hasPolicy);
}

/** Keys of `data` that a dataloader replaces, and those that then count for evaluation images only. */
const OF_SOURCE = ["source", "evalPart", "flip", "balance", "group"];
const OF_READING = ["label", "image", "classNames", "featureTokens", "maxUnreadable", "workers"];

/** Note values that are allowed but probably not intended, and facts worth knowing before a run starts. */
export function notesOf(config: TrainConfig, found: Findings): void {
  const { rollout, update, algorithm, kl, data } = config;
  const { notes, unread } = found;
  const terms = activeTerms(config);
  const isComparing = terms.every((name) => TERMS[name]?.compares === true);
  if (update.auxCe === 0 && isComparing && sharesContext(config)) {
    notes.push(
      `update.auxCe is 0 with a reward of ${terms.join(" and ")} in ${rollout.context.type} contexts: such a reward alone ` +
        "ruins a generator, since it favors blur and nothing keeps the codes likely (VA-pi's FID rises from 14 to 39, with " +
        "LPIPS too). Set update.auxCe=0.1.",
    );
  }
  if (rollout.context.type === "free" && isComparing) {
    notes.push(
      "rollout.context is free: a policy that starts from a class alone cannot know which image it is compared with, so the " +
        "reward pulls it towards the mean image of the class. Set rollout.context=prefix to give it a part of the image.",
    );
  }
  const { steps } = batchNumbers(config);
  if (steps === 1 && (algorithm === "grpo" || algorithm === "ppo")) {
    notes.push(
      "One optimizer step per rollout: the ratio is 1, nothing is clipped, and loss/policy stays near 0. " +
        "Watch reward/mean and optim/grad_norm.",
    );
  }
  if (steps > 1 && (algorithm === "reinforce" || algorithm === "rloo")) {
    notes.push(
      `${steps} optimizer steps per rollout: ${algorithm} is on-policy in the first only. Set algorithm=grpo, which clips ` +
        "the ratio, or one epoch and update.miniBatch=null.",
    );
  }
  if (config.dataloader !== null) {
    const evaluates = data.evalSource !== null && config.eval.every > 0;
    unread(
      "with a dataloader",
      [...OF_SOURCE, ...(evaluates ? [] : OF_READING)].map((name) => `data.${name}`),
    );
    if (!evaluates && config.eval.every > 0) {
      notes.push(
        "No images can be held out from a dataloader, so nothing is evaluated. Set data.evalSource for that.",
      );
    }
  }
  if (rollout.topK > 0 || rollout.topP < 1) {
    notes.push(
      "rollout.topK and rollout.topP remove codes from training: the policy keeps their old probabilities.",
    );
  }
  const { type, noise, ramp } = rollout.context;
  if (noise >= 0.3 && type === "noisy_teacher_forced" && ramp === 0) {
    notes.push(
      `rollout.context.noise ${noise} from the first iteration ruins a policy that was pre-trained without noise. ` +
        "Set rollout.context.ramp, or less noise, unless it was pre-trained with noise.",
    );
  }
  if (kl.coef === 0) {
    unread("while kl.coef is 0", ["kl.estimator", "kl.placement", ...(kl.stop === null ? ["kl.path"] : [])]);
  }
  if (kl.target === null) unread("without kl.target", ["kl.horizon"]);
  if (config.ar.lora.rank === null) unread("without ar.lora.rank", ["ar.lora.alpha", "ar.lora.targets"]);
  if (config.reward.credit === "sequence") unread("while reward.credit is sequence", ["reward.creditDecay"]);
  else if (algorithm === "ppo") unread("by ppo, which has ppo.lambda", ["reward.creditDecay"]);
  if (algorithm === "ste") unread("while algorithm is ste", ["update.tokenDropout"]);
  noteEval(config.eval, found);
  for (const other of ["reinforce", "rloo", "grpo", "ppo", "ste"] as const) {
    if (other === algorithm) continue;
    unread(
      `while algorithm is ${algorithm}`,
      Object.keys(config[other]).map((name) => `${other}.${name}`),
    );
  }
  const inContext = [
    ...(type === "prefix" ? [] : ["length"]),
    ...(type === "noisy_teacher_forced" ? [] : ["noise"]),
    ...(type === "prefix" || type === "noisy_teacher_forced" ? [] : ["ramp"]),
  ];
  unread(
    `in ${type} contexts`,
    inContext.map((name) => `rollout.context.${name}`),
  );
}

/** Whether a text can be used as a regular expression. */
function isPattern(text: string): boolean {
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
