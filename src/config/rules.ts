/**
 * Rules between keys of the configuration of `rlar train`, and notes on combinations that are allowed but probably not
 * intended. Ranges of single keys are in the schema.
 */
import { nearestName } from "../torch/arguments.js";
import type { Findings } from "./kind.js";
import type { ArSection, DataConfig, RewardTerm, TrainConfig } from "./train.js";

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

/** What is known of a term of the reward before it is opened. */
interface TermFacts {
  /** Its name in metrics. */
  readonly metric: string;
  readonly isMore: boolean;
  /** Whether it compares samples with images. */
  readonly compares?: true;
  /** Whether it has a value per pixel. */
  readonly mapped?: true;
  /** Smallest size of an image, in pixels. */
  readonly least?: number;
}

/** The terms that this project has. */
export const TERMS: Readonly<Record<RewardTerm, TermFacts>> = {
  l1: { metric: "l1", isMore: false, compares: true, mapped: true },
  l2: { metric: "l2", isMore: false, compares: true, mapped: true },
  psnr: { metric: "psnr", isMore: true, compares: true },
  ssim: { metric: "ssim", isMore: true, compares: true, mapped: true, least: 11 },
  msSsim: { metric: "ms_ssim", isMore: true, compares: true, least: 176 },
  lpips: { metric: "lpips", isMore: false, compares: true, mapped: true },
  perceptual: { metric: "perceptual", isMore: false, compares: true, mapped: true, least: 8 },
  latentCosine: { metric: "latent_cosine", isMore: false, compares: true },
  patchGan: { metric: "patch_gan", isMore: true },
  kernel: { metric: "kernel", isMore: true },
  toklipImage: { metric: "toklip_image", isMore: true, compares: true },
  toklipText: { metric: "toklip_text", isMore: true },
  clip: { metric: "clip", isMore: true },
  aesthetic: { metric: "aesthetic", isMore: true },
  dists: { metric: "dists", isMore: false, compares: true },
};

/** A term, and its key below `reward`. */
type ActiveTerm = TermFacts & { readonly key: string };

/** Whether a term of `reward.custom` has its function, or the module of one. */
const hasFunction = ({ fn, module }: TrainConfig["reward"]["custom"][string]): boolean =>
  fn !== null || module !== null;

/** Terms of the reward that count. */
function activeTerms({ reward }: TrainConfig): ActiveTerm[] {
  const given = Object.entries(TERMS).filter(([key]) => reward[key as RewardTerm].weight !== 0);
  const custom = Object.entries(reward.custom).filter(([, term]) => term.weight !== 0 && hasFunction(term));
  const http = Object.entries(reward.http).filter(([, { weight, url }]) => weight !== 0 && url !== null);
  const own = { custom, http };
  return [
    ...given.map(([key, facts]) => ({ ...facts, key })),
    ...Object.entries(own).flatMap(([section, terms]) =>
      terms.map(([metric]) => ({ metric, isMore: true, key: `${section}.${metric}` })),
    ),
  ];
}

/**
 * The metrics that an evaluation with this configuration makes and `eval.best` can name, and which of each is better:
 * null where neither is.
 */
export function evalMetrics(config: TrainConfig): ReadonlyMap<string, "max" | "min" | null> {
  const { eval: evaluation } = config;
  const better = new Map<string, "max" | "min" | null>([["reward", "max"]]);
  const { l1, l2, psnr, ssim } = TERMS;
  const watched = hasImages(config) ? [l1, l2, psnr, ssim] : [];
  for (const { metric, isMore } of [...activeTerms(config), ...watched])
    better.set(metric, isMore ? "max" : "min");
  if (evaluation.perceptual !== null) better.set("perceptual_held_out", "min");
  if (evaluation.numGenerations > 1) better.set("diversity", "max");
  if (hasImages(config)) better.set("nats_per_token", "min");
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

/** A file of captions or classes, in place of images. */
const TEXTS = /\.(txt|jsonl)$/i;

/** Whether there are images to train on, and not captions or classes alone. */
export function hasImages({ data, dataloader = null }: { data: DataConfig; dataloader?: unknown }): boolean {
  if (dataloader !== null) return true;
  return data.source === null ? data.classNames === null : !TEXTS.test(data.source);
}

/** Require images to train and to evaluate on. */
export function requireImages(
  config: { data: DataConfig; eval: { every: number }; dataloader?: unknown },
  found: Findings,
  isNeeded = true,
): void {
  const { data, dataloader = null, eval: evaluation } = config;
  const isThere = data.source !== null || dataloader !== null || !isNeeded;
  found.require("data.source", "images to train on", isThere);
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
  if (algorithm === "grpo" && grpo.level === "sequence" && update.topEntropy < 1) {
    const remedy = "One ratio per sequence has no single tokens: set update.topEntropy=1";
    refuse("update.topEntropy", "1 with grpo.level sequence", update.topEntropy, remedy, {
      "update.topEntropy": 1,
    });
  }
  if (context.type === "prefix") checkPrefix(config, found);
  if (rollout.redraws > 0) checkRedraws(config, found);
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
  checkAlarm(config, found);
  if (algorithm === "ste") checkSte(config, found);
  const { perceptual } = reward;
  const isCompared = [reward.l2, perceptual, reward.lpips].some(({ weight }) => weight > 0);
  if (update.codeDistance !== 0 && !isCompared) {
    const what = "0 without reward.l2, reward.perceptual and reward.lpips";
    const remedy = "It is the distance in what these compare: give one of them a weight above 0";
    refuse("update.codeDistance", what, update.codeDistance, remedy, { "update.codeDistance": 0 });
  }
  if (perceptual.weight !== 0 && perceptual.path !== null && perceptual.path === config.eval.perceptual) {
    const remedy =
      "A network that is rewarded cannot judge itself: train one with another seed, or remove eval.perceptual";
    refuse("eval.perceptual", "another file than reward.perceptual.path", config.eval.perceptual, remedy);
  }
}

/** Refuse what prefixes of several lengths do not support: their given codes are among the tokens, and masked. */
function checkPrefix({ rollout, reward }: TrainConfig, { refuse }: Findings): void {
  const { length, shortest, free } = rollout.context;
  if (shortest !== null && length !== null && shortest > length) {
    const remedy = "Lower it, or raise rollout.context.length";
    refuse("rollout.context.shortest", `at most rollout.context.length ${length}`, shortest, remedy);
  }
  if (free === 0 && (shortest === null || shortest === length)) return;
  const several = "with prefixes of several lengths";
  if (rollout.topK > 0 || rollout.topP < 1) {
    const path = rollout.topK > 0 ? "topK" : "topP";
    const off = path === "topK" ? 0 : 1;
    const remedy = "A given code may be none of those that a filter keeps";
    refuse(`rollout.${path}`, `${off} ${several}`, rollout[path], remedy, { [`rollout.${path}`]: off });
  }
  if (reward.credit === "place") {
    const remedy = "Set it, or rollout.context.shortest=null and rollout.context.free=0";
    refuse("reward.credit", `sequence ${several}`, "place", remedy, { "reward.credit": "sequence" });
  }
}

/** Refuse to draw again for constant groups where there are no groups, or where a graph holds the first rollout. */
function checkRedraws({ rollout, algorithm }: TrainConfig, found: Findings): void {
  const refuse = (what: string, remedy: string): void =>
    found.refuse("rollout.redraws", what, rollout.redraws, remedy, { "rollout.redraws": 0 });
  if (algorithm !== "grpo" && algorithm !== "rloo")
    refuse(`0 with ${algorithm}, which compares no groups`, "Set it, or algorithm=grpo or rloo");
  if (rollout.keepGraph)
    refuse("0 with rollout.keepGraph", "The graph is of the first rollout: set one of the two");
}

/** Refuse an alarm that goes back to the weights that the reward, which is gamed, likes best. */
function checkAlarm(config: TrainConfig, found: Findings): void {
  const { alarm, eval: evaluation } = config;
  if (alarm.action === "warn") return;
  if (evaluation.every === 0) {
    const remedy = "The alarm compares evaluations: set eval.every, or alarm.action=warn";
    found.refuse("alarm.action", "warn while eval.every is 0", alarm.action, remedy, {
      "alarm.action": "warn",
    });
    return;
  }
  const rewarded = ["reward", ...activeTerms(config).map(({ metric }) => metric)];
  if (alarm.action !== "rollback" || !rewarded.some((name) => evaluation.best.startsWith(`eval/${name}/`)))
    return;
  const remedy =
    "By the reward, the weights that game it are the best: set eval.best and eval.mode, such as eval/psnr/mean and max";
  found.refuse(
    "eval.best",
    "a metric outside the reward with alarm.action rollback",
    evaluation.best,
    remedy,
  );
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
  for (const name of Object.keys(TERMS) as RewardTerm[]) {
    const { weight, ...files } = reward[name];
    if (weight === 0) continue;
    for (const [key, file] of Object.entries(files)) {
      if (file !== null) continue;
      const what = `the network's weights with reward.${name}.weight ${weight}`;
      refuse(`reward.${name}.${key}`, what, null, `Give the file, or set reward.${name}.weight=0`);
    }
  }
  if (reward.credit === "place") {
    const byPlace = { "reward.credit": "sequence" };
    if (terms.length > 0 && terms.every(({ mapped }) => mapped !== true)) {
      const remedy = "Set it, or give a weight to l1, l2, ssim, lpips or perceptual";
      refuse("reward.credit", "sequence where no term has a value per place", "place", remedy, byPlace);
    }
    if (algorithm === "grpo" && grpo.level === "sequence") {
      const remedy = "One ratio per sequence cannot use a reward per code: change one of the two";
      refuse("grpo.level", "token with reward.credit place", "sequence", remedy, {
        "grpo.level": "token",
        ...byPlace,
      });
    }
  }
  for (const { key, least = 0 } of terms) {
    if (data.size >= least) continue;
    const remedy = `Set reward.${key}.weight=0`;
    refuse("data.size", `at least ${least} for reward.${key}`, data.size, remedy, {
      [`reward.${key}.weight`]: 0,
    });
  }
  checkOwnTerms(config, found);
}

/** Names in the log that no term of the user's own may have: other terms, and what an evaluation measures besides. */
const TAKEN: ReadonlySet<string> = new Set([
  ...Object.values(TERMS).map(({ metric }) => metric),
  ...["reward", "diversity", "nats_per_token", "codebook_usage", "hacking_alarm", "perceptual_held_out"],
]);

/** Hosts that a request reaches without a network. */
const LOOPBACK = /^(localhost|127(\.\d+){3}|\[::1\])$/;

/** Refuse what names, functions and servers of the user's own terms do not allow. */
function checkOwnTerms({ reward }: TrainConfig, found: Findings): void {
  const { refuse } = found;
  for (const section of ["custom", "http"] as const) {
    for (const [name, { clamp }] of Object.entries(reward[section])) {
      const at = `reward.${section}.${name}`;
      if (!/^[A-Za-z][\w-]{0,63}$/.test(name))
        refuse(at, "a name of letters, digits, - and _ that begins with a letter", name, "Rename the term");
      if (TAKEN.has(name)) refuse(at, "a name that no other metric has", name, "Rename the term");
      if (section === "http" && name in reward.custom)
        refuse(at, "a name that no term of reward.custom has", name, "Rename one of them");
      if (clamp !== null && clamp[0] >= clamp[1])
        refuse(`${at}.clamp`, "two scores, the lower before the higher", clamp, "Swap them");
    }
  }
  for (const [name, { fn, module }] of Object.entries(reward.custom)) {
    if (fn === null || module === null) continue;
    refuse(`reward.custom.${name}.module`, "null with a function", module, "Give one of the two");
  }
  for (const [name, { url, tokenEnv }] of Object.entries(reward.http)) {
    if (url !== null) checkServer(`reward.http.${name}.url`, url, refuse);
    if (tokenEnv !== null && !/^[A-Za-z_][A-Za-z0-9_]*$/.test(tokenEnv)) {
      const got = "other text, which is not shown as it may be the token";
      const remedy = "Put the token into a variable, and its name here";
      refuse(`reward.http.${name}.tokenEnv`, "the name of an environment variable", got, remedy);
    }
  }
}

/** Names of what must not be seen. */
const SECRET =
  /(?:^|[_-])(?:token|secret|password|passwd|pwd|signature|sig|credentials?|auth|authorization|api[_-]?key)$|^(?:key|(?:access|auth)token)$/i;

function checkServer(at: string, url: string, refuse: Findings["refuse"]): void {
  const parsed = URL.canParse(url) ? new URL(url) : null;
  if (parsed === null || !/^https?:$/.test(parsed.protocol)) {
    refuse(at, "the address of a server", url, "An example is http://127.0.0.1:8080");
  } else if (parsed.username !== "" || parsed.password !== "") {
    const remedy = "Files and messages would show it: give a token with reward.http.NAME.tokenEnv";
    refuse(at, "an address without a user or password", `${parsed.protocol}//...@${parsed.host}`, remedy);
  } else if ([...parsed.searchParams.keys()].some((name) => SECRET.test(name))) {
    const remedy = "Files and messages would show it: give a token with reward.http.NAME.tokenEnv";
    refuse(at, "an address without a token or key", `${parsed.origin}${parsed.pathname}?...`, remedy);
  } else if (parsed.protocol === "http:" && !LOOPBACK.test(parsed.hostname)) {
    const remedy =
      "Others could read and change what is sent: use https, or forward a local port (ssh -L) to the server";
    refuse(at, "https for a server on another machine", url, remedy);
  }
}

/** Refuse what the straight-through baseline does not support: filtered distributions, and contexts of sampled codes. */
function checkSte(config: TrainConfig, found: Findings): void {
  const { rollout, reward, update, kl } = config;
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
    ...(["latentCosine", "kernel", "toklipImage", "toklipText", "clip", "aesthetic", "dists"] as const).map(
      (name) => [`reward.${name}.weight`, 0, reward[name].weight] as const,
    ),
    // Scores of a server have no gradient, and those of a function are taken as they are.
    ...Object.entries(reward.http).flatMap(([name, { url, weight }]) =>
      url === null ? [] : [[`reward.http.${name}.weight`, 0, weight] as const],
    ),
    ...Object.entries(reward.custom)
      .filter(([, term]) => term.weight !== 0 && hasFunction(term))
      .flatMap(([name, { clamp, normalize }]) => [
        [`reward.custom.${name}.clamp`, null, clamp] as const,
        [`reward.custom.${name}.normalize`, null, normalize === "none" ? null : normalize] as const,
      ]),
    ["update.codeDistance", 0, update.codeDistance],
    ["update.codeFrequency", 0, update.codeFrequency],
    ["kl.coef", 0, kl.coef],
    ["kl.target", null, kl.target],
    ["kl.stop", null, kl.stop],
  ];
  for (const [path, value, got, what = value] of wanted) {
    if (got === value) continue;
    found.refuse(path, `${what} for ste`, got, "Set it, or another algorithm", { [path]: value });
  }
}

/** Refuse what needs images, where there are captions or classes alone. */
function checkWithoutImages(config: TrainConfig, found: Findings): void {
  const { rollout, update, data, eval: evaluation } = config;
  const what = data.source === null ? "data.classNames alone" : data.source;
  const remedy = `There are no images in ${what}: set it, or give images in data.source`;
  const refuse = (path: string, wanted: unknown, got: unknown): void =>
    found.refuse(path, `${wanted} without images`, got, remedy, { [path]: wanted });
  for (const { key, compares } of activeTerms(config)) {
    if (compares) refuse(`reward.${key}.weight`, 0, config.reward[key as RewardTerm].weight);
  }
  if (rollout.context.type !== "free") refuse("rollout.context.type", "free", rollout.context.type);
  if (update.auxCe !== 0) refuse("update.auxCe", 0, update.auxCe);
  for (const name of ["codeDistance", "codeFrequency"] as const)
    if (update[name] !== 0) refuse(`update.${name}`, 0, update[name]);
  if (evaluation.perceptual !== null) refuse("eval.perceptual", null, evaluation.perceptual);
}

/** Require the keys that training needs. */
export function missingParts(config: TrainConfig, found: Findings): void {
  const { tokenizer, ar } = config;
  requireImages(config, found, hasImages(config));
  if (!hasImages(config)) checkWithoutImages(config, found);
  found.require(
    "tokenizer.path",
    "a file with a tokenizer",
    tokenizer.path !== null || tokenizer.model !== null,
  );
  for (const [name, term] of Object.entries(config.reward.custom)) {
    const isThere = term.weight === 0 || hasFunction(term);
    found.require(`reward.custom.${name}.module`, "a file, or a function from a program", isThere);
  }
  for (const [name, { url, weight }] of Object.entries(config.reward.http)) {
    found.require(`reward.http.${name}.url`, "the address of a reward server", weight === 0 || url !== null);
  }
  const hasPolicy = ar.path !== null || ar.policy !== null || ar.cls !== null || ar.type !== null;
  found.require("ar.path", "a file with a policy, or ar.type for a new one", hasPolicy);
}

/** Keys of `data` that a dataloader replaces, and those that then count for evaluation images only. */
const OF_SOURCE = ["source", "evalPart", "flip", "balance", "group"];
const OF_IMAGES = ["image", "crop", "flip", "maxUnreadable", "workers"];
const OF_READING = ["label", "image", "captions", "classNames", "featureTokens", "maxUnreadable", "workers"];

/** Note values that are allowed but probably not intended, and facts worth knowing before a run starts. */
export function notesOf(config: TrainConfig, found: Findings): void {
  const { rollout, update, algorithm, kl, data } = config;
  const { notes, unread } = found;
  const terms = activeTerms(config);
  const isComparing = terms.every(({ compares }) => compares === true);
  if (update.auxCe === 0 && isComparing && sharesContext(config)) {
    notes.push(
      `update.auxCe is 0 with a reward of ${terms.map(({ key }) => key).join(" and ")} in ${rollout.context.type} contexts: such a reward alone ` +
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
  if (!hasImages(config)) {
    unread(
      "without images",
      OF_IMAGES.map((name) => `data.${name}`),
    );
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
  if (update.entropyTarget === null) unread("without update.entropyTarget", ["update.entropyDelta"]);
  if (algorithm === "ppo") unread("by ppo, which has no groups", ["update.constantGroups"]);
  if (kl.target === null) unread("without kl.target", ["kl.horizon"]);
  if (kl.coef === 0 && kl.stop === null) unread("while kl.coef is 0", ["kl.refreshEvery", "kl.refreshMix"]);
  else if (kl.refreshEvery === 0) unread("without kl.refreshEvery", ["kl.refreshMix"]);
  if (config.ar.lora.rank === null) unread("without ar.lora.rank", ["ar.lora.alpha", "ar.lora.targets"]);
  if (config.reward.credit === "sequence") unread("while reward.credit is sequence", ["reward.creditDecay"]);
  else if (algorithm === "ppo") unread("by ppo, which has ppo.lambda", ["reward.creditDecay"]);
  if (algorithm === "ste") {
    const names = ["tokenDropout", "topEntropy", "constantGroups", "entropyTarget", "entropyDelta"];
    unread(
      "while algorithm is ste",
      names.map((name) => `update.${name}`),
    );
  }
  noteEval(config.eval, found);
  for (const other of ["reinforce", "rloo", "grpo", "ppo", "ste"] as const) {
    if (other === algorithm) continue;
    unread(
      `while algorithm is ${algorithm}`,
      Object.keys(config[other]).map((name) => `${other}.${name}`),
    );
  }
  const inContext = [
    ...(type === "prefix" ? [] : ["length", "shortest", "free"]),
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
