/**
 * Grouping of metrics into charts, with titles and explanations. Names come from the training loops; those that are
 * unknown here get charts by their prefix, so that every logged metric is shown.
 */
import { measureOf, STATISTICS } from "../metrics/measures.js";

/** A line of a chart, by its metric. */
export interface LineSpec {
  readonly metric: string;
  readonly label: string;
  /** A metric whose value is the distance of a band's edges. */
  readonly spread?: string;
  readonly isDashed?: boolean;
  /** Values that are far apart and not to be smoothed. */
  readonly hasMarks?: boolean;
  /** Not smoothed, since it is a setting and not a measurement. */
  readonly isExact?: boolean;
}

/** A chart, by its metrics; those that a run lacks are omitted. */
export interface ChartSpec {
  readonly title: string;
  readonly about: string;
  readonly lines: readonly LineSpec[];
  readonly unit?: "" | "%";
  readonly mayBeLog?: boolean;
  readonly hasZero?: boolean;
  readonly isWide?: boolean;
  /** Draw the reward before training, across. */
  readonly hasFloor?: boolean;
  /** Draw what the first value was, across. */
  readonly hasStart?: boolean;
  /** Lines that are parts of one whole, which say nothing one by one. */
  readonly isParts?: boolean;
  /** A key of the configuration whose value is drawn across. */
  readonly limit?: { readonly path: string; readonly label: string };
}

/** Charts under one heading. */
export interface ChartGroup {
  readonly title: string;
  readonly charts: readonly ChartSpec[];
  /** Phases of an iteration, to be stacked. */
  readonly phases?: readonly string[];
}

/** Extremes and second estimates beside the line that counts. */
const DASHED = /vq_ceiling$|_k1$|(ratio|norm)_(max|min)$|^advantage\/(max|min)$|diff_mean$/;

/** Settings and counts, which are not smoothed. */
const EXACT =
  /^(kl\/(coef|ref_running)|optim\/(lr|skipped_total)|perf\/(rss_gb|peak_gb|gpu_mem_peak_gb|native_tensors))$/;

/** A line as its metric says. */
const line = (metric: string, label: string): LineSpec => ({
  metric,
  label,
  ...(metric === "reward/mean" && { spread: "reward/std" }),
  ...(DASHED.test(metric) && { isDashed: true }),
  ...(metric.startsWith("eval/") && { hasMarks: true }),
  ...(EXACT.test(metric) && { isExact: true }),
});

/** @param lines - labels by metric. */
const chart = (
  title: string,
  about: string,
  lines: Readonly<Record<string, string>>,
  more: Omit<ChartSpec, "title" | "about" | "lines"> = {},
): ChartSpec => ({
  title,
  about,
  lines: Object.entries(lines).map(([metric, label]) => line(metric, label)),
  ...more,
});

const REWARD: readonly ChartSpec[] = [
  chart(
    "Reward",
    "Reward of the samples in training, with the standard deviation over an iteration. The ceiling is the reward " +
      "of the tokenizer's own reconstructions, the floor that of the policy before training, on held-out " +
      "images. Good: it rises towards the ceiling, both in training and on held-out images.",
    { "reward/mean": "in training", "reward/vq_ceiling": "ceiling", "eval/reward/mean": "held out" },
    { isWide: true, hasFloor: true },
  ),
  chart(
    "Gap to the ceiling",
    "Ceiling minus reward on the same images: what is left to gain. It varies less from batch to batch than the " +
      "reward. Good: it falls.",
    { "reward/gap": "gap" },
  ),
  chart(
    "Spread within a group",
    "Standard deviation of the rewards of an image's samples. The policy learns from these differences. Good: above 0.",
    { "reward/group_std": "within a group" },
    { hasZero: true },
  ),
  chart(
    "Groups with equal rewards",
    "Fraction of images whose samples all have the same reward: their advantages are 0, so the policy learns " +
      "nothing from them. Good: low.",
    { "advantage/frac_zero_std": "in the update", "rollout/constant_frac": "as first drawn" },
    { unit: "%", hasZero: true },
  ),
];

const LEARNING: readonly ChartSpec[] = [
  chart(
    "Loss",
    "The training loss. Good: it falls in training and on held-out images; a growing gap means overfitting.",
    { "train/loss": "in training", "eval/loss": "held out", "eval/nats_per_token": "held out" },
    { mayBeLog: true, isWide: true },
  ),
  chart(
    "Accuracy",
    "Share that is right.",
    { "train/accuracy": "in training", "eval/accuracy": "held out" },
    { unit: "%" },
  ),
];

const UPDATE: readonly ChartSpec[] = [
  chart(
    "KL divergence from the reference",
    "KL divergence of the policy from the reference, in nats per token (k1, k2, k3 are estimators). Good: it grows " +
      "slowly; a jump often comes before a collapse.",
    {
      "kl/ref_k3": "k3",
      "kl/ref_k2": "k2",
      "kl/ref_k1": "k1",
      "kl/ref_exact": "exact",
      "kl/ref_running": "running mean",
    },
    { mayBeLog: true },
  ),
  chart(
    "KL coefficient",
    "kl.coef, which adapts to kl.target where that is set.",
    { "kl/coef": "coefficient" },
    { mayBeLog: true },
  ),
  chart(
    "KL divergence of an update",
    "KL divergence by which the update of an iteration changes the policy, in nats per token. Good: small and steady.",
    { "kl/approx": "k3", "kl/approx_k1": "k1" },
    { mayBeLog: true },
  ),
  chart(
    "Entropy of the policy",
    "Entropy in nats per drawn token. Good: it falls slowly; near 0 the policy always draws the same codes.",
    { "policy/entropy": "entropy" },
  ),
  chart(
    "Clip fraction",
    "Fraction of tokens whose ratio is clipped, below and above. Good: a few percent.",
    { "clip_ratio/region_mean": "both", "clip_ratio/low_mean": "below", "clip_ratio/high_mean": "above" },
    { unit: "%", hasZero: true },
  ),
  chart(
    "Probability ratio",
    "New over old probability of the drawn tokens: mean and extremes. Good: the mean stays near 1.",
    { "policy/ratio_mean": "mean", "policy/ratio_max": "greatest", "policy/ratio_min": "least" },
    { mayBeLog: true },
  ),
  chart(
    "Sampling against update",
    "Difference between the log-probabilities of a token in sampling and in the update, before the first step. Good: 0 " +
      "except for rounding; otherwise the two compute different distributions.",
    { "sampling/logp_diff_max": "greatest", "sampling/logp_diff_mean": "mean" },
    { mayBeLog: true },
  ),
  chart(
    "Advantages",
    "Standard deviation and extremes over tokens. Good: no extreme is many standard deviations away.",
    {
      "advantage/std": "spread",
      "advantage/max": "greatest",
      "advantage/min": "least",
    },
  ),
];

const OPTIMIZER: readonly ChartSpec[] = [
  chart(
    "Gradient norm",
    "Gradient norm before clipping: mean and maximum over an iteration's optimizer steps. Good: steady, without spikes far above the limit.",
    { "optim/grad_norm": "mean", "optim/grad_norm_max": "greatest" },
    { mayBeLog: true, limit: { path: "optimizer.maxGradNorm", label: "clipped above" } },
  ),
  chart("Learning rate", "As the schedule gives it.", { "optim/lr": "rate" }, { hasZero: true }),
  chart(
    "Skipped updates",
    "Updates skipped so far, because a loss or gradient was not finite. Good: 0.",
    { "optim/skipped_total": "in all" },
    { hasZero: true },
  ),
];

const TOKENS: readonly ChartSpec[] = [
  chart(
    "Codebook use",
    "Fraction of the codebook that the samples of an iteration use. A fall means fewer kinds of patches.",
    { "tokens/codebook_usage": "in training", "eval/codebook_usage": "held out" },
    { unit: "%" },
  ),
  chart(
    "Effective codes",
    "Perplexity of the drawn codes: exponential of the entropy of their frequencies. A fall means fewer kinds of patches.",
    { "tokens/token_perplexity": "codes" },
    { hasZero: true },
  ),
  chart(
    "Sequences that differ",
    "Number of distinct sequences divided by the number of drawn sequences. Good: 100 %.",
    { "tokens/unique_frac": "share" },
    { unit: "%" },
  ),
];

const MACHINE: readonly ChartSpec[] = [
  chart(
    "Seconds per step",
    "All phases together, evaluations too.",
    { "perf/step_s": "seconds" },
    { hasZero: true },
  ),
  chart(
    "Tokens per second",
    "Drawn or predicted codes per second of the whole step.",
    { "perf/tokens_per_s": "tokens" },
    { hasZero: true },
  ),
  chart("Images per second", "Over the whole step.", { "perf/images_per_s": "images" }, { hasZero: true }),
  chart(
    "Memory (GiB)",
    "Memory of the process, and peak memory of tensors in a step. Good: constant after the first steps.",
    { "perf/rss_gb": "process", "perf/peak_gb": "tensors", "perf/gpu_mem_peak_gb": "GPU" },
    { hasZero: true },
  ),
  chart("Tensors alive", "Number of tensors after a step. Good: constant; a rise is a memory leak.", {
    "perf/native_tensors": "tensors",
  }),
];

/** Metrics that are shown elsewhere on the page, or that repeat a drawn one. */
const UNDRAWN =
  /^progress\/|^eval\/hacking_alarm$|^advantage\/(mean|abs_max)$|^optim\/(steps|skipped_steps)$/;

/** What a term adds to the reward. */
const WEIGHTED = /^reward\/(.+)\/weighted$/;

/** Prefixes whose metrics have a heading of their own. */
const HEADINGS: Readonly<Record<string, string>> = {
  train: "Training",
  eval: "Held-out images",
  loss: "Losses",
  value: "Value head",
  data: "Data",
};

/** The charts of all metrics, under headings, in reading order. */
export function chartGroups(names: Iterable<string>): ChartGroup[] {
  const left = new Set([...names].filter((name) => !UNDRAWN.test(name)));
  const weighted = [...left].filter((name) => WEIGHTED.test(name));
  const take = (specs: readonly ChartSpec[]): ChartSpec[] =>
    specs.flatMap((spec) => {
      const lines = spec.lines.filter(({ metric }) => left.has(metric));
      return lines.length === 0 ? [] : [{ ...spec, lines }];
    });
  const groups: ChartGroup[] = [
    left.has("reward/mean") || !left.has("train/loss")
      ? { title: "Reward", charts: take([...REWARD, termsChart(weighted)]) }
      : {
          title: "Learning",
          // Without its value in training a chart says what is among the held-out ones.
          charts: take(LEARNING).filter(({ lines }) => lines[0]?.metric.startsWith("train/")),
        },
    { title: "Update", charts: take(UPDATE) },
    { title: "Optimizer", charts: take(OPTIMIZER) },
    { title: "Tokens", charts: take(TOKENS) },
    {
      title: "Time and memory",
      charts: take(MACHINE),
      phases: [...left].filter((name) => name.startsWith("time/")),
    },
  ];
  for (const { lines } of groups.flatMap(({ charts }) => charts)) {
    for (const { metric, spread } of lines) {
      // A reward's total is drawn with its spread, and its extremes go with it.
      const base = metric.replace(/\/mean$/, "");
      if (base !== metric && spread !== undefined)
        for (const part of STATISTICS) left.delete(`${base}/${part}`);
      // What is evaluated has a chart of its own as well.
      if (!metric.startsWith("eval/")) left.delete(metric);
    }
  }
  for (const name of [...left]) if (name.startsWith("time/")) left.delete(name);
  const byPrefix = new Map<string, string[]>();
  for (const name of left) {
    const prefix = name.includes("/") ? name.slice(0, name.indexOf("/")) : "";
    byPrefix.set(prefix, [...(byPrefix.get(prefix) ?? []), name]);
  }
  const others = [...byPrefix].map(([prefix, metrics]): ChartGroup => {
    const charts = plainCharts(metrics, prefix === "eval");
    if (prefix === "reward") return { title: "Terms of the reward, in their own units", charts };
    return { title: HEADINGS[prefix] ?? (prefix === "" ? "Other" : prefix.replaceAll("_", " ")), charts };
  });
  const first = ["Training", "Held-out images", "Terms of the reward, in their own units"];
  const early = first.flatMap((title) => others.filter((group) => group.title === title));
  const late = others.filter(({ title }) => !first.includes(title));
  return [...groups.slice(0, 1), ...early, ...groups.slice(1, 2), ...late, ...groups.slice(2)].filter(
    ({ charts, phases = [] }) => charts.length + phases.length > 0,
  );
}

/** The terms of the reward as they count, on one chart. */
function termsChart(weighted: readonly string[]): ChartSpec {
  return {
    title: "What each term adds",
    about:
      "Terms times weight and sign; they sum to the reward. Good: none drowns the others unless it is meant to.",
    lines: weighted.map((metric) => line(metric, WEIGHTED.exec(metric)?.[1] ?? metric)),
    isParts: true,
  };
}

/** A chart a metric; mean, standard deviation and extremes of one are one chart. */
function plainCharts(metrics: readonly string[], isEvaluated: boolean): ChartSpec[] {
  const bases = new Set(metrics.map((name) => baseOf(name, metrics)));
  return [...bases].map((base) => {
    const isSpread = metrics.includes(`${base}/mean`) && !metrics.includes(base);
    const metric = isSpread ? `${base}/mean` : base;
    const { title, about, sign, unit = "" } = measureOf(base);
    const good = sign === 0 ? "" : sign === 1 ? " Good: rises." : " Good: falls.";
    const hasBand = isSpread && !isEvaluated && metrics.includes(`${base}/std`);
    return {
      title,
      about: `${about}${hasBand ? " The band is the spread over samples." : ""}${good}`.trim(),
      lines: [
        {
          metric,
          label: base,
          hasMarks: isEvaluated,
          ...(hasBand && { spread: `${base}/std` }),
        },
      ],
      unit,
      hasStart: isEvaluated,
      mayBeLog: !isEvaluated && /loss|norm|ce$/.test(base),
    };
  });
}

/** `reward/l2` of `reward/l2/std`, where there is a mean that it belongs to. */
function baseOf(name: string, metrics: readonly string[]): string {
  const cut = name.lastIndexOf("/");
  const base = name.slice(0, cut);
  const isPart = STATISTICS.includes(name.slice(cut + 1)) && metrics.includes(`${base}/mean`);
  return isPart ? base : name;
}
