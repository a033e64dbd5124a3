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

const line = (metric: string, label: string, more: Omit<LineSpec, "metric" | "label"> = {}): LineSpec => ({
  metric,
  label,
  ...more,
});

const REWARD: readonly ChartSpec[] = [
  {
    title: "Reward",
    about:
      "What samples are worth in training, with the spread over the samples of an iteration; the ceiling is the reward of the " +
      "tokenizer's own reconstructions, the floor that of the policy before training, on held-out images. Good: rises " +
      "towards the ceiling, in training and held out alike.",
    lines: [
      line("reward/mean", "in training", { spread: "reward/std" }),
      line("reward/vq_ceiling", "ceiling", { isDashed: true }),
      line("eval/reward/mean", "held out", { hasMarks: true }),
    ],
    isWide: true,
    hasFloor: true,
  },
  {
    title: "Gap to the ceiling",
    about:
      "Ceiling minus reward on the same images: what is left to win. It varies less from batch to batch than the reward. Good: falls.",
    lines: [line("reward/gap", "gap")],
  },
  {
    title: "Spread within a group",
    about:
      "Standard deviation of the rewards of an image's samples: what the policy learns from. Good: above 0.",
    lines: [line("reward/group_std", "within a group")],
    hasZero: true,
  },
  {
    title: "Groups with equal rewards",
    about:
      "Share of images whose samples all have the same reward: their advantages are 0, so the policy learns nothing from them. Good: low.",
    lines: [line("advantage/frac_zero_std", "share")],
    unit: "%",
    hasZero: true,
  },
];

const LEARNING: readonly ChartSpec[] = [
  {
    title: "Loss",
    about:
      "What is minimised. Good: falls in training and on held-out images; a growing gap means memorised images.",
    lines: [
      line("train/loss", "in training"),
      line("eval/loss", "held out", { hasMarks: true }),
      line("eval/nats_per_token", "held out", { hasMarks: true }),
    ],
    isWide: true,
    mayBeLog: true,
  },
  {
    title: "Accuracy",
    about: "Share that is right.",
    lines: [line("train/accuracy", "in training"), line("eval/accuracy", "held out", { hasMarks: true })],
    unit: "%",
  },
];

const UPDATE: readonly ChartSpec[] = [
  {
    title: "KL divergence from the reference",
    about:
      "How far the policy is from where it began, in nats per token (k1, k2, k3 are estimators). Good: grows slowly; a jump often comes before a collapse.",
    lines: [
      line("kl/ref_k3", "k3"),
      line("kl/ref_k2", "k2"),
      line("kl/ref_k1", "k1", { isDashed: true }),
      line("kl/ref_exact", "exact"),
      line("kl/ref_running", "running mean", { isExact: true }),
    ],
    mayBeLog: true,
  },
  {
    title: "KL coefficient",
    about: "kl.coef, which adapts to kl.target where that is set.",
    lines: [line("kl/coef", "coefficient", { isExact: true })],
    mayBeLog: true,
  },
  {
    title: "KL divergence of an update",
    about: "How far the updates of a step move the policy, in nats per token. Good: small and even.",
    lines: [line("kl/approx", "k3"), line("kl/approx_k1", "k1", { isDashed: true })],
    mayBeLog: true,
  },
  {
    title: "Entropy of the policy",
    about: "In nats per drawn token. Good: falls slowly; near 0 the policy draws the same codes every time.",
    lines: [line("policy/entropy", "entropy")],
  },
  {
    title: "Clip fraction",
    about: "Share of tokens whose ratio left the trusted range, below and above. Good: a few per cent.",
    lines: [
      line("clip_ratio/region_mean", "both"),
      line("clip_ratio/low_mean", "below"),
      line("clip_ratio/high_mean", "above"),
    ],
    unit: "%",
    hasZero: true,
  },
  {
    title: "Probability ratio",
    about: "New over old probability of the drawn tokens: mean and extremes. Good: the mean stays near 1.",
    lines: [
      line("policy/ratio_mean", "mean"),
      line("policy/ratio_max", "greatest", { isDashed: true }),
      line("policy/ratio_min", "least", { isDashed: true }),
    ],
    mayBeLog: true,
  },
  {
    title: "Sampler against scorer",
    about:
      "Difference of the two log-probabilities of a token before any update. Good: 0 but for rounding; else draws and scores have drifted apart.",
    lines: [
      line("sampling/logp_diff_max", "greatest"),
      line("sampling/logp_diff_mean", "mean", { isDashed: true }),
    ],
    mayBeLog: true,
  },
  {
    title: "Advantages",
    about: "Of the tokens: spread and extremes. Good: no extreme far beyond the spread.",
    lines: [
      line("advantage/std", "spread"),
      line("advantage/max", "greatest", { isDashed: true }),
      line("advantage/min", "least", { isDashed: true }),
    ],
  },
];

const OPTIMIZER: readonly ChartSpec[] = [
  {
    title: "Gradient norm",
    about:
      "Before clipping, mean and greatest of an iteration's updates. Good: even; spikes far above the limit are not.",
    lines: [line("optim/grad_norm", "mean"), line("optim/grad_norm_max", "greatest", { isDashed: true })],
    mayBeLog: true,
    limit: { path: "optimizer.maxGradNorm", label: "clipped above" },
  },
  {
    title: "Learning rate",
    about: "As the schedule gives it.",
    lines: [line("optim/lr", "rate", { isExact: true })],
    hasZero: true,
  },
  {
    title: "Skipped updates",
    about: "Updates skipped so far, because a loss or gradient was not finite. Good: 0.",
    lines: [line("optim/skipped_total", "in all", { isExact: true })],
    hasZero: true,
  },
];

const TOKENS: readonly ChartSpec[] = [
  {
    title: "Codebook use",
    about: "Share of the codes that the samples of an iteration use. A fall means fewer kinds of patches.",
    lines: [
      line("tokens/codebook_usage", "in training"),
      line("eval/codebook_usage", "held out", { hasMarks: true }),
    ],
    unit: "%",
  },
  {
    title: "Effective codes",
    about:
      "As many codes, used evenly, would be as mixed as those drawn: the exponential of their entropy. A fall means fewer kinds of patches.",
    lines: [line("tokens/token_perplexity", "codes")],
    hasZero: true,
  },
  {
    title: "Sequences that differ",
    about: "Share of drawn sequences that are like none before them. Good: 100 %.",
    lines: [line("tokens/unique_frac", "share")],
    unit: "%",
  },
];

const MACHINE: readonly ChartSpec[] = [
  {
    title: "Seconds per step",
    about: "All phases together, evaluations too.",
    lines: [line("perf/step_s", "seconds")],
    hasZero: true,
  },
  {
    title: "Tokens per second",
    about: "Drawn or predicted, over the whole step.",
    lines: [line("perf/tokens_per_s", "tokens")],
    hasZero: true,
  },
  {
    title: "Images per second",
    about: "Over the whole step.",
    lines: [line("perf/images_per_s", "images")],
    hasZero: true,
  },
  {
    title: "Memory (GiB)",
    about: "Of the process, and the most that tensors took in a step. Good: flat after the first steps.",
    lines: [
      line("perf/rss_gb", "process", { isExact: true }),
      line("perf/peak_gb", "tensors", { isExact: true }),
      line("perf/gpu_mem_peak_gb", "GPU", { isExact: true }),
    ],
    hasZero: true,
  },
  {
    title: "Tensors alive",
    about: "After a step. Good: flat; a slope is a leak.",
    lines: [line("perf/native_tensors", "tensors", { isExact: true })],
  },
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
