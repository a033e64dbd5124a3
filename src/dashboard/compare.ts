/** Several runs beside each other: what each was, how it ended, where they differ, and the mean over those that differ by seed only. */

import { diffConfigs } from "../config/explain.js";
import { duration } from "../run/console.js";
import { summaryOf, valueText } from "./config.js";
import { endOf, totalOf } from "./events.js";
import { type Html, html, table } from "./html.js";
import { aboutOf } from "./measures.js";
import { changeText, type Outcome, outcomesOf } from "./results.js";
import type { Run } from "./run.js";
import { meanOf, numberText, rowTexts } from "./scale.js";

/** Which color is which run, what it was, and how it ended. */
export function runList(runs: readonly Run[]): Html {
  const rows = runs.map((run, i) => {
    const total = totalOf(run);
    return [
      html`<i class="dot c${i % 8}"></i>${run.name}`,
      summaryOf(run),
      `${run.lastStep}${total === null ? "" : ` of ${total}`}`,
      run.seconds === null ? "n/a" : duration(run.seconds),
      endOf(run).text,
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
  const mean = meanOf(finite);
  const squares = finite.reduce((sum, value) => sum + (value - mean) ** 2, 0);
  const std = finite.length < 2 ? Number.NaN : Math.sqrt(squares / (finite.length - 1));
  return { mean, std, count: finite.length };
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
    const { unit } = aboutOf(name);
    const [mean, change] = rowTexts([last.mean, moved.mean], unit);
    return html`<b>${mean}</b> ±${numberText(last.std, unit)}<br><span class="quiet">change ${change} ±${numberText(moved.std, unit)}</span>`;
  };
  const head = [
    "held-out images",
    ...runs.map(({ name }, i) => html`<i class="dot c${i % 8}"></i>${name}`),
    ...groups.map((group) => html`mean of ${group.map(({ name }) => name).join(", ")}`),
  ];
  const rows = names.map((name) => [
    html`<abbr title="${aboutOf(name).about}">${aboutOf(name).title}</abbr>`,
    ...runs.map((run) => cell(run, name)),
    ...groups.map((group) => grouped(group, name)),
  ]);
  return html`${
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
  const [before, after] = rowTexts([first, last], aboutOf(name).unit);
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
