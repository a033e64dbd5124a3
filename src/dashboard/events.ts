/** The report's section on events of a run: how it ended, errors, and warnings. */

import { valueAt } from "../config/key.js";
import { POOR_CEILING } from "../evaluation/verdict.js";
import { measureOf } from "../metrics/measures.js";
import { duration } from "../run/console.js";
import { configNotes } from "./config.js";
import { ceilingOf, floorOf } from "./curves.js";
import { shortList } from "./evaluations.js";
import { type Html, html, type Notice, notices } from "./page.js";
import { objectOf } from "./reading.js";
import { outcomesOf } from "./results.js";
import { endOfRun, type Run, stepsText } from "./run.js";
import { finiteMean, numberText, rowTexts, type Series } from "./scale.js";

/** Steps as a short text: `3, 5-9, ... (12 in all)`. */
export function rangesText(steps: readonly number[]): string {
  const ranges: [number, number][] = [];
  for (const step of steps) {
    const last = ranges.at(-1);
    if (last !== undefined && step === last[1] + 1) last[1] = step;
    else ranges.push([step, step]);
  }
  const shown = ranges.slice(0, 12).map(([from, to]) => (from === to ? `${from}` : `${from}-${to}`));
  return ranges.length > 12 ? `${shown.join(", ")}, ... (${steps.length} in all)` : shown.join(", ");
}

/** Steps with a skipped update: those after which the total has grown. */
function skippedSteps({ metrics }: Run): number[] {
  const { steps, values } = metrics.get("optim/skipped_total") ?? { steps: [], values: [] };
  return steps.filter((_, i) => (values[i] as number) > (values[i - 1] ?? 0));
}

const stepsWhere = (series: Series | undefined, test: (value: number) => boolean): number[] =>
  (series?.steps ?? []).filter((_, i) => test(series?.values[i] as number));

/** Errors and warnings of a run. */
export function noticesOf(run: Run): Notice[] {
  const found: Notice[] = [];
  const bad = (text: string): number => found.push({ level: "problem", text });
  const look = (text: string): number => found.push({ level: "note", text });
  const { metrics } = run;
  const end = endOfRun(run);
  if (end.state === "stopped") bad(`The run is incomplete${stepsText(run)}: ${end.text}.`);
  const alarms = stepsWhere(metrics.get("eval/hacking_alarm"), (value) => value > 0);
  if (alarms.length > 0)
    bad(
      `The reward rose while every metric outside it fell since the start, at step ${rangesText(alarms)}: ` +
        "look at the samples; update.auxCe or kl.coef may be too low.",
    );
  const skipped = skippedSteps(run);
  if (skipped.length > 0) {
    const dumps = run.dumps > 0 ? ` ${run.dumps} of the batches are in dumps/.` : "";
    bad(
      `Updates were skipped because their loss or gradient was not finite, at step ${rangesText(skipped)}.${dumps}`,
    );
  }
  const noNumbers = new Map<string, string[]>();
  for (const [name, series] of metrics) {
    const total = series.values.at(-1) as number;
    if (/unreadable/.test(name) && total > 0)
      bad(`Images that could not be read: ${total} (${name})${unreadableNames(run)}.`);
    const where = rangesText(stepsWhere(series, Number.isNaN));
    if (where !== "") noNumbers.set(where, [...(noNumbers.get(where) ?? []), name]);
  }
  for (const [where, names] of noNumbers) bad(`Not a number at step ${where}: ${names.join(", ")}.`);
  if (run.damagedLines > 0)
    bad(
      `${run.damagedLines} ${run.damagedLines === 1 ? "line" : "lines"} of metrics.jsonl could not be read: ` +
        "the process was killed while it wrote, or the file was edited.",
    );
  for (const reason of run.unread) bad(`Not read: ${reason}`);
  for (const text of changesForTheWorse(run)) look(text);
  for (const text of poorTokenizer(run)) look(text);
  const gap = Math.max(0, ...(metrics.get("sampling/logp_diff_max")?.values ?? []).filter(Number.isFinite));
  const limit = valueAt(run.config, "limits.ratioGap");
  if (typeof limit === "number" && gap > limit)
    look(`Sampler and scorer differed by up to ${numberText(gap)} in a token's log-probability.`);
  const flat = finiteMean(metrics.get("advantage/frac_zero_std")?.values ?? []);
  if (flat > 0.5)
    look(
      `In ${numberText(flat, "%")} of the groups all samples had the same reward, so the policy learnt nothing from them.`,
    );
  const begun = Date.parse(run.starts[0]?.environment.startedAt ?? "");
  for (const { file, writtenAt } of run.evaluations)
    if (writtenAt < begun) bad(`${file} is older than the run: it is of other models.`);
  const last = run.starts.at(-1)?.environment;
  if (last?.commit?.isDirty) look("The code differed from the commit: files had been changed.");
  const commits = new Set(run.starts.flatMap(({ environment }) => environment.commit?.id ?? []));
  if (commits.size > 1) look(`The run went on under other code: ${[...commits].map(shortId).join(", ")}.`);
  for (const note of configNotes(run)) look(note);
  return found;
}

export const shortId = (id: string): string => id.slice(0, 10);

/** What the newest checkpoint says of images that could not be read: what is wrong with each, which names it. */
function unreadableNames({ values }: Run): string {
  const found = valueAt(values, "progress.passedOver");
  const texts = Object.values(objectOf(found)).filter((text): text is string => typeof text === "string");
  return texts.length === 0
    ? ""
    : `: ${shortList(
        texts.map((text) => text.replace(/\.$/, "")),
        10,
        "; ",
      )}`;
}

/** A tokenizer whose own reconstructions are worth hardly more than the policy's samples before training. */
function poorTokenizer(run: Run): string[] {
  const [floor, ceiling] = [floorOf(run), ceilingOf(run)];
  // Rewards that are negated distances have their best at 0.
  if (floor === undefined || ceiling === undefined || !(floor < 0) || !(ceiling < POOR_CEILING * floor))
    return [];
  const most = (1 - ceiling / floor) * 100;
  const [own, base] = rowTexts([ceiling, floor]);
  return [
    `The tokenizer is poor: its own reconstructions have a reward of ${own} and the policy before training ${base}, of ` +
      `at best 0. Fine-tuning can win at most ${most > 0 ? most.toFixed(0) : 0} % of what is missing; train a better tokenizer first.`,
  ];
}

/** Held-out metrics that are worse at the end than at the start, and an entropy that fell apart. */
function changesForTheWorse(run: Run): string[] {
  const worse: string[] = [];
  for (const { name, first, last, verdict } of outcomesOf(run)) {
    const [before, after] = rowTexts([first, last], measureOf(name).unit);
    const mayNotFall = name === "diversity" || name === "codebook_usage";
    if (verdict === "worse")
      worse.push(`Held-out ${measureOf(name).title} is worse: ${before}, then ${after}`);
    else if (mayNotFall && last < first * 0.8)
      worse.push(`Held-out ${measureOf(name).title} fell: ${before}, then ${after}`);
  }
  const entropy = run.metrics.get("policy/entropy")?.values ?? [];
  const [first, last] = [entropy[0] ?? Number.NaN, entropy.at(-1) ?? Number.NaN];
  if (last < first * 0.5)
    worse.push(
      `The entropy of the policy fell by half or more: ${numberText(first)}, then ${numberText(last)}`,
    );
  return worse.map((text) => `${text}.`);
}

/** Starts, changes on the way, the best evaluation and the end, in order. */
function eventsOf(run: Run): { step: number; text: string }[] {
  const starts = run.starts.map(({ step, environment }, i) => {
    const when = environment.startedAt?.replace("T", " ").replace(/\..*/, " UTC") ?? "at an unknown time";
    const where = environment.host === undefined ? "" : ` on ${environment.host}`;
    return { step, text: `${i === 0 ? "Started" : `Went on from step ${step}`} ${when}${where}.` };
  });
  const best = run.best && {
    step: run.best.step,
    text: `Best ${run.best.metric}: ${numberText(run.best.value)} (checkpoints/${run.best.name}).`,
  };
  const end = endOfRun(run);
  const time = run.seconds === null ? "" : ` It ran for ${duration(run.seconds)}.`;
  const last = {
    step: run.lastStep,
    text: `${end.text.charAt(0).toUpperCase()}${end.text.slice(1)}.${time}`,
  };
  return [...starts, ...run.changes, ...(best ? [best] : []), last].sort((a, b) => a.step - b.step);
}

/** The section on what happened. */
export function eventSection(run: Run): Html {
  return html`${
    notices(noticesOf(run)) ??
    html`<p>No update was skipped, no metric was without a number, no alarm was raised.</p>`
  }<ol class="events">${eventsOf(run).map(
    ({ step, text }) => html`<li><span class="step">step ${step}</span><span>${text}</span></li>`,
  )}</ol>`;
}
