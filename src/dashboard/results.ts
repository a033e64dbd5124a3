/**
 * The report's section on results: the run's own evaluations on held-out images during training, and the comparison of several
 * runs. Results of `rlar eval` are in `evaluations.ts`.
 */

import { diffConfigs } from "../config/explain.js";
import { measureOf } from "../metrics/measures.js";
import { duration } from "../run/console.js";
import { summaryOf, valueText } from "./config.js";
import { ceilingOf, floorOf, isRewarded, sparkPath } from "./curves.js";
import { type Html, hint, html, notices, table, told } from "./page.js";
import type { SomeEvaluation } from "./reading.js";
import { endOfRun, type Run, totalOf } from "./run.js";
import { finiteMean, numberText, rowTexts, type Series } from "./scale.js";

/** A held-out metric from the first evaluation to the last. */
export interface Outcome {
  /** Such as `reward` or `l2`. */
  readonly name: string;
  readonly series: Series;
  /** Standard deviation over the samples of the last evaluation. */
  readonly spread: number;
  readonly first: number;
  readonly last: number;
  /** At the best checkpoint; NaN where there is none. */
  readonly best: number;
  /** Of the first value's size; NaN where that is 0. */
  readonly change: number;
  readonly verdict: "better" | "worse" | "";
}

/** What was evaluated, the reward first. */
export function outcomesOf(run: Run): Outcome[] {
  const outcomes = [...run.metrics].flatMap(([metric, series]): Outcome[] => {
    const name = metric.replace(/^eval\//, "").replace(/\/mean$/, "");
    const isOther = !metric.startsWith("eval/") || /\/(std|min|max)$|hacking_alarm/.test(metric);
    if (isOther || !series.values.some(Number.isFinite)) return [];
    const first = series.values[0] as number;
    const last = series.values.at(-1) as number;
    const best =
      run.best === null ? Number.NaN : (series.values[series.steps.indexOf(run.best.step)] ?? Number.NaN);
    const change = (last - first) / Math.abs(first);
    const spread = run.metrics.get(`eval/${name}/std`)?.values.at(-1) ?? Number.NaN;
    return [
      {
        name,
        series,
        spread,
        first,
        last,
        best,
        change: Number.isFinite(change) ? change : Number.NaN,
        verdict: verdictOf(name, first, last, spread),
      },
    ];
  });
  const rank = ({ name }: Outcome): number => (name === "reward" ? 0 : 1);
  return outcomes.sort((a, b) => rank(a) - rank(b));
}

/**
 * Better or worse, where the metric has a direction and the change is worth the word: a tenth of the spread over samples,
 * or half a per cent where there is no spread.
 */
export function verdictOf(name: string, first: number, last: number, spread: number): Outcome["verdict"] {
  const { sign } = measureOf(name);
  const moved = last - first;
  const least = spread > 0 ? 0.1 * spread : 0.005 * Math.abs(first);
  if (sign === 0 || !(Math.abs(moved) >= least) || moved === 0) return "";
  return moved * sign > 0 ? "better" : "worse";
}

/** Percent with a sign; nothing where percents make no sense: of decibels, and of what is in percent itself. */
export function changeText({ name, change }: Pick<Outcome, "name" | "change">): string {
  if (name === "psnr" || measureOf(name).unit === "%" || Number.isNaN(change)) return "";
  return `${change > 0 ? "+" : ""}${Math.abs(change) < 10 ? (change * 100).toFixed(1) : Math.round(change * 100)} %`;
}

/** The title of a metric, with a mark where the reward used its network. */
const titleIn = (run: Run, name: string): string =>
  `${measureOf(name).title}${isRewarded(run, name) ? " [rewarded]" : ""}`;

/**
 * The section on the result.
 *
 * @param isFolded - all but its first sentence unfolds: where `rlar eval` has judged the models, that is what counts.
 * @param pictures - shown after the first sentence.
 */
export function resultSection(run: Run, isFolded = false, pictures: Html | null = null): Html {
  const outcomes = outcomesOf(run);
  if (outcomes.length === 0)
    return html`<p>Nothing was evaluated on held-out images in this run (eval.every, data.evalPart).</p>${pictures}`;
  const steps = (outcomes[0] as Outcome).series.steps;
  const [from, to] = [steps[0] as number, steps.at(-1) as number];
  if (steps.length < 2)
    return html`<p>One evaluation on held-out images, at step ${from}; a second one would show a change.</p>${pictures}${table(
      ["metric", `step ${from}`],
      outcomes.map(({ name, last }) => [titleIn(run, name), rowTexts([last], measureOf(name).unit)[0]]),
    )}`;
  const hasSpread = outcomes.some(({ spread }) => !Number.isNaN(spread));
  const hasBest = run.best !== null && run.best.step !== to && run.best.step !== from;
  const rows = outcomes.map((outcome) => {
    const { name, first, last, best, spread, verdict } = outcome;
    const { about, unit } = measureOf(name);
    const moved = last - first;
    const [start, end, middle, change] = rowTexts([first, last, best, moved], unit);
    return [
      hint(titleIn(run, name), about),
      start,
      ...(hasBest ? [middle] : []),
      end,
      ...(hasSpread
        ? [Number.isNaN(spread) ? "" : html`<span class="quiet">±${numberText(spread, unit)}</span>`]
        : []),
      `${moved > 0 ? "+" : ""}${unit === "%" ? change?.replace("%", "points") : change}`,
      changeText(outcome),
      html`<span class="${verdict}">${verdict}</span>`,
    ];
  });
  const head = [
    "held-out images",
    `step ${from}`,
    ...(hasBest ? [`best, step ${run.best?.step}`] : []),
    `step ${to}`,
    ...(hasSpread ? ["spread over samples"] : []),
    "change",
    "",
    "",
  ];
  const tiles = html`<div class="tiles">${tilesOf(run, outcomes)}</div>`;
  const all = html`${table(head, rows)}
<p class="about">Every evaluation is on the same images with the same random numbers. ${
    hasSpread
      ? "The spread is the standard deviation over the samples of the last one, not the uncertainty of the mean; a change below a tenth of it is called neither better nor worse."
      : "A change below half a per cent is called neither better nor worse."
  }${hasBest && " The best step was chosen by these very images, so its numbers flatter it."}</p>`;
  return html`${lead(run, outcomes)}${pictures}${
    isFolded
      ? html`<details><summary>Held-out metrics while it trained</summary>${tiles}${all}</details>`
      : html`${tiles}<details><summary>All held-out metrics</summary>${all}</details>`
  }`;
}

/** The reward in a sentence, with its floor and its ceiling. */
function lead(run: Run, outcomes: readonly Outcome[]): Html | null {
  const reward = outcomes.find(({ name }) => name === "reward");
  const [floor, ceiling] = [floorOf(run), ceilingOf(run)];
  if (reward === undefined || floor === undefined) return null;
  const { last, verdict, series } = reward;
  const what = verdict === "" ? "hardly changed" : verdict === "better" ? "rose" : "fell";
  const [before, after, top] = rowTexts([floor, last, ceiling ?? Number.NaN]);
  const share = ceiling === undefined ? Number.NaN : (last - floor) / (ceiling - floor);
  const way =
    ceiling === undefined
      ? ""
      : ceiling > floor && share > 0
        ? ` That is ${numberText(share, "%")} of the way from the policy before training (the floor) to the tokenizer's own reconstructions of the training images (the ceiling, ${top}).`
        : ` The tokenizer's own reconstructions of the training images (the ceiling) are worth ${top}.`;
  return html`<p class="lead">The held-out reward ${what}: ${before} before training, <b>${after}</b> at step ${series.steps.at(-1)}.${way}</p>`;
}

/** Metrics that say most, in this order. */
const FIRST: readonly string[] = [
  "reward",
  "perceptual_held_out",
  "perceptual",
  "lpips",
  "nats_per_token",
  "accuracy",
  "loss",
  "psnr",
  "l2",
  "ssim",
  "diversity",
];

function tilesOf(run: Run, outcomes: readonly Outcome[]): Html[] {
  const chosen = FIRST.flatMap((name) => outcomes.find((outcome) => outcome.name === name) ?? []);
  const rest = outcomes.filter((outcome) => !chosen.includes(outcome));
  return [...chosen, ...rest].slice(0, 4).map((outcome) => {
    const { name, series, first, last, verdict } = outcome;
    const change = changeText(outcome);
    const [before, after] = rowTexts([first, last], measureOf(name).unit);
    return html`<div class="tile"><h4>${titleIn(run, name)}</h4><p class="big">${after}</p>
<p>from ${before}${change !== "" && html`, ${change}`} <b class="${verdict}">${verdict}</b></p>
<svg class="spark" viewBox="0 0 1000 400" preserveAspectRatio="none" aria-hidden="true"><path class="line c0" d="${sparkPath(series.values)}"/></svg></div>`;
  });
}

/** Which color is which run, what it was, and how it ended. */
export function runList(runs: readonly Run[]): Html {
  const rows = runs.map((run, i) => {
    const total = totalOf(run);
    return [
      html`<i class="dot c${i % 8}"></i>${run.name}`,
      summaryOf(run),
      `${run.lastStep}${total === null ? "" : ` of ${total}`}`,
      run.seconds === null ? "n/a" : duration(run.seconds),
      endOfRun(run).text,
    ];
  });
  return html`<div class="text">${table(["run", "what", "steps", "wall time", "end"], rows)}</div>`;
}

/** Runs that are the same but for the seed and the folder. */
export function seedGroups(runs: readonly Run[]): Run[][] {
  const groups = new Map<string, Run[]>();
  for (const run of runs) {
    const { seed: _, run: __, ...rest } = run.config;
    const key = JSON.stringify(rest);
    groups.set(key, [...(groups.get(key) ?? []), run]);
  }
  return [...groups.values()];
}

/** Mean and standard deviation (over n - 1) of finite numbers; NaN for the spread of one. */
export function meanAndSpread(values: readonly number[]): { mean: number; std: number; count: number } {
  const finite = values.filter(Number.isFinite);
  const mean = finiteMean(finite);
  const squares = finite.reduce((sum, value) => sum + (value - mean) ** 2, 0);
  const std = finite.length < 2 ? Number.NaN : Math.sqrt(squares / (finite.length - 1));
  return { mean, std, count: finite.length };
}

/** What an evaluation's numbers are of: its held-out images and how it drew; null where there is no evaluation. */
export function judgedOn(evaluation: SomeEvaluation | undefined): string | null {
  if (evaluation === undefined) return null;
  const { data, settings } = evaluation;
  const { prefixes, draws, seeds } = settings;
  return JSON.stringify([data?.heldOut?.fingerprint, data?.heldOut?.read, prefixes, draws, seeds]);
}

/** Keys that say which held-out images a run is evaluated on. */
const IMAGE_KEYS =
  /^data\.(source|evalSource|evalPart|group|size|crop|label|image|classNames)$|^eval\.images$/;

/** Keys that say what is drawn for them. */
const DRAW_KEYS =
  /^rollout\.(context|start)\b|^eval\.(numGenerations|temperature|topK|topP|guidance)\b|^tokenizer\.path$/;

/** Keys that say what a reward is, or what judges beside it. */
const REWARD_KEYS = /^reward\.|^eval\.perceptual$/;

/** Why the numbers of some runs cannot be compared. */
export function comparabilityOf(runs: readonly Run[]): string[] {
  const [first, ...others] = runs as [Run, ...Run[]];
  const paths = [
    ...new Set(others.flatMap((run) => diffConfigs(first.config, run.config).map(({ path }) => path))),
  ];
  const differing = (pattern: RegExp): string => paths.filter((path) => pattern.test(path)).join(", ");
  const told = (what: string, keys: string): string[] => (keys === "" ? [] : [`${what} (${keys}).`]);
  const judged = runs.flatMap(({ name, evaluations: [one] }) =>
    one === undefined ? [] : [{ name, on: judgedOn(one.evaluation) }],
  );
  const other = judged.filter(({ on }) => on !== judged[0]?.on);
  return [
    ...told(
      "The runs were evaluated on different images: their numbers cannot be compared",
      differing(IMAGE_KEYS),
    ),
    ...told(
      "The runs drew different things for the same images: their numbers cannot be compared",
      differing(DRAW_KEYS),
    ),
    ...told(
      "The runs have different rewards or judges: those numbers cannot be compared",
      differing(REWARD_KEYS),
    ),
    ...(other.length === 0
      ? []
      : [
          `rlar eval judged ${other.map(({ name }) => name).join(", ")} on other images or with other draws than ` +
            `${judged[0]?.name}: they are not on its charts.`,
        ]),
  ];
}

/** The tables of the comparison. */
export function comparison(runs: readonly Run[]): Html {
  const outcomes = new Map(runs.map((run) => [run, new Map(outcomesOf(run).map((of) => [of.name, of]))]));
  const names = [...new Set([...outcomes.values()].flatMap((of) => [...of.keys()]))];
  const groups = seedGroups(runs).filter((group) => group.length > 1);
  const cell = (run: Run, name: string): Html | string => {
    const outcome = outcomes.get(run)?.get(name);
    return outcome === undefined ? "" : outcomeCell(outcome);
  };
  const grouped = (group: readonly Run[], name: string): Html => {
    const of = group.flatMap((run) => outcomes.get(run)?.get(name) ?? []);
    const last = meanAndSpread(of.map((outcome) => outcome.last));
    const moved = meanAndSpread(of.map((outcome) => outcome.last - outcome.first));
    const { unit } = measureOf(name);
    const [mean, change] = rowTexts([last.mean, moved.mean], unit);
    return html`<b>${mean}</b> ±${numberText(last.std, unit)}<br><span class="quiet">change ${change} ±${numberText(moved.std, unit)}</span>`;
  };
  const head = [
    "held-out images",
    ...runs.map(({ name }, i) => html`<i class="dot c${i % 8}"></i>${name}`),
    ...groups.map((group) => html`mean of ${group.map(({ name }) => name).join(", ")}`),
  ];
  const rows = names.map((name) => [
    hint(
      `${measureOf(name).title}${runs.some((run) => isRewarded(run, name)) ? " [rewarded]" : ""}`,
      measureOf(name).about,
    ),
    ...runs.map((run) => cell(run, name)),
    ...groups.map((group) => grouped(group, name)),
  ]);
  return html`${notices(told("warning", comparabilityOf(runs)))}${
    names.length === 0
      ? html`<p>None of the runs was evaluated on held-out images.</p>`
      : html`${table(head, rows)}<p class="about">Last evaluation, and below it the first with the change.${
          groups.length > 0 &&
          " Runs that differ by their seed only are averaged: mean and standard deviation over the runs."
        }</p>`
  }${differences(runs)}`;
}

function outcomeCell(outcome: Outcome): Html {
  const { name, first, last, verdict } = outcome;
  const [before, after] = rowTexts([first, last], measureOf(name).unit);
  const change = changeText(outcome);
  return html`<b>${after}</b><br><span class="quiet">from ${before}${change !== "" && `, ${change}`}</span> <span class="${verdict}">${verdict}</span>`;
}

/** Keys of the configuration in which the runs differ. */
function differences(runs: readonly Run[]): Html {
  const [first, ...others] = runs as [Run, ...Run[]];
  const paths = new Set(
    others.flatMap((run) => diffConfigs(first.config, run.config).map(({ path }) => path)),
  );
  paths.delete("run.dir");
  paths.delete("run.ifExists");
  if (paths.size === 0) return html`<p>All have the same configuration.</p>`;
  const values = runs.map(
    (run) => new Map(diffConfigs({}, run.config).map(({ path, after }) => [path, after])),
  );
  const rows = [...paths].map((path) => [
    html`<code>${path}</code>`,
    ...values.map((of) => html`<code>${valueText(of.get(path))}</code>`),
  ]);
  return html`<h3>Where their configurations differ</h3>${table(["key", ...runs.map(({ name }) => name)], rows)}`;
}
