/**
 * Writes what came of a sweep: `sweep.csv` with all numbers, and `sweep.html`, a plot and a table of the trials above the report
 * on the runs that came furthest.
 */
import { join } from "node:path";
import type { SweepConfig } from "../config/sweep.js";
import { pointText } from "../evaluation/tables.js";
import { measureOf } from "../metrics/measures.js";
import { writeCsv } from "../run/log.js";
import type { MeanInterval } from "../sweep/interval.js";
import type { Change, Score } from "../sweep/score.js";
import { percent, type Standing, type SweepResult } from "../sweep/sweep.js";
import { replaceFile } from "../torch/files.js";
import { valueText } from "./config.js";
import { chartFigure, chartFrame, colorOf, HEIGHT, legendKey, round, WIDTH } from "./curves.js";
import { type Html, html, list, type Piece, table } from "./page.js";
import { reportHtml } from "./report.js";
import { type Axis, axisOf } from "./scale.js";

/** Runs whose curves and evaluations are shown. */
const SHOWN = 6;

/**
 * @param command - judges the winner on images that no trial was chosen on.
 * @returns the page; the table lies beside it.
 */
export async function writeSweep(
  result: SweepResult,
  { rungs, seeds, average }: Pick<SweepConfig, "rungs" | "seeds" | "average">,
  command: string,
): Promise<string> {
  const { dir, standings, isNamed } = result;
  writeCsv(
    join(dir, "sweep.csv"),
    standings.flatMap((standing) => recordsOf(standing, seeds)),
  );
  const best = standings[0]?.steps;
  const finalists = standings.filter(({ steps, score }) => steps === best && score.point !== null);
  const rest = isNamed ? "all trials went on from each" : "the better trials went on from each";
  const training =
    rungs.length === 1
      ? `Each trial trained to step ${rungs[0]}`
      : `Rungs end at steps ${rungs.join(", ")}; ${rest}`;
  const { runs, scale } = average;
  const averaged =
    (runs === 1 ? "" : `; ${runs} runs of each seed are averaged`) +
    (scale === 1 ? "" : `; what is judged is ${scale} times the change from the base`);
  const spread =
    seeds.length === 1
      ? ""
      : ` They are means over ${seeds.length} seeds, with the 95 % interval of the mean (Student's t); all seeds are judged on the same images.`;
  const body = html`<p class="about">${training}${averaged}. Numbers are changes against the base policy in percent; below 0 is a gain.${spread}
Each trial is shown at its best setting; sweep.csv has all settings${seeds.length > 1 && " and each seed"}. The first is the best.${seeds.length > 1 && " The sections after this one show the runs with the first seed."}</p>
<div class="charts two">${plotsOf(finalists)}</div>
${tableOf(standings, isNamed)}${isNamed && html`<h3>Keys</h3>${keyList(standings)}`}
<p>The trials were chosen on these held-out images. What the first one gains is measured on the others:</p><pre>${command}</pre>`;
  const page = await reportHtml(foldersOf(finalists.length > 0 ? finalists : standings), {
    title: "Trials",
    body,
  });
  const out = join(dir, "sweep.html");
  replaceFile(out, page);
  return out;
}

const foldersOf = (standings: readonly Standing[]): string[] =>
  standings.flatMap(({ runs }) => runs.slice(0, 1)).slice(0, SHOWN);

/** A line a trial, setting, measure and judge. */
function recordsOf(
  { trial, steps, settings, score }: Standing,
  seeds: readonly number[],
): Record<string, unknown>[] {
  return settings.flatMap((setting) =>
    setting.changes.map(({ measure, judge, value, low, high, seeds: values }) => ({
      trial: trial.name,
      steps,
      temperature: setting.point?.temperature,
      cfg: setting.point?.cfg,
      is_best_setting: setting === score,
      measure,
      judge,
      change_percent: value,
      low,
      high,
      ...Object.fromEntries(seeds.map((seed, i) => [`seed_${seed}`, values[i]])),
      keys: trial.values,
    })),
  );
}

/** Measures with their judges, in the order in which trials have them. */
function columnsOf(standings: readonly Standing[]): Pick<Change, "measure" | "judge">[] {
  const changes = standings.find(({ score }) => score.changes.length > 0)?.score.changes ?? [];
  return changes.map(({ measure, judge }) => ({ measure, judge }));
}

const changeIn = ({ changes }: Score, of: Pick<Change, "measure" | "judge">): Change | undefined =>
  changes.find(({ measure, judge }) => measure === of.measure && judge === of.judge);

function tableOf(standings: readonly Standing[], isNamed: boolean): Html {
  const keys = isNamed ? [] : [...new Set(standings.flatMap(({ trial }) => Object.keys(trial.values)))];
  const columns = columnsOf(standings);
  const rows = standings.map(({ trial, steps, score }): Piece[] => [
    trial.name,
    `${steps}`,
    ...keys.map((key) => (key in trial.values ? valueText(trial.values[key]) : "base")),
    score.point === null ? "" : pointText(score.point),
    changeText(score.objective),
    score.excess === 0 ? "kept" : `exceeded by ${changeText(score.excess)}`,
    ...columns.map((of) => intervalText(changeIn(score, of))),
  ]);
  const judges = judgesOf(columns);
  const names = columns.map(({ measure, judge }) =>
    judge === "" ? measure : `${measure} [${judges.indexOf(judge) + 1}]`,
  );
  const head = ["trial", "steps", ...keys, "setting", "objective", "constraints", ...names];
  return html`${list(judges.map((judge, i) => html`<b>[${i + 1}]</b>: features of ${judge}`))}${table(head, rows)}`;
}

/** The networks that judge, in the order of the columns. */
const judgesOf = (columns: readonly Pick<Change, "judge">[]): string[] => [
  ...new Set(columns.map(({ judge }) => judge).filter((judge) => judge !== "")),
];

function keyList(standings: readonly Standing[]): Html {
  return list(
    standings.map(({ trial }) => {
      const keys = Object.entries(trial.values).map(([key, value]) => `${key}=${valueText(value)}`);
      return html`<b>${trial.name}</b>: <code>${keys.join(" ") || "the base unchanged"}</code>`;
    }),
  );
}

/** A plot a measure, the trials one below the other: a dot for the mean, a line for its interval, a color a judge. */
function plotsOf(standings: readonly Standing[]): Html[] {
  const columns = columnsOf(standings);
  const measures = [...new Set(columns.map(({ measure }) => measure))];
  // A judge keeps its color in all plots; measures without a judge have the first.
  const judges = judgesOf(columns);
  return measures.map((measure) => {
    const own = columns.filter((of) => of.measure === measure);
    return dotPlot({
      title: titleOf(measure),
      rows: standings.map(({ trial }) => trial.name),
      series: own.map(({ judge }) => ({
        label: judge,
        color: Math.max(0, judges.indexOf(judge)),
        values: standings.map(({ score }) => changeIn(score, { measure, judge })),
      })),
    });
  });
}

/** `completion.fd_train` in words. */
function titleOf(measure: string): string {
  const [set, name = ""] = measure.split(".");
  return `${measureOf(name).title} of ${set === "free" ? "free samples" : "completions"}, change in percent`;
}

/** Pixels of a row, of the space between the dots of its judges, and of the space above and below all rows. */
const [ROW, BETWEEN] = [26, 9];

/** Dots with their intervals, a row a name and a color a series. */
export function dotPlot(plot: {
  title: string;
  rows: readonly string[];
  series: readonly {
    readonly label: string;
    readonly color: number;
    readonly values: readonly (MeanInterval | undefined)[];
  }[];
}): Html {
  const { title, rows, series } = plot;
  const known = series.flatMap(({ values }) => values.flatMap((of) => (of === undefined ? [] : [of])));
  const x = axisOf([0, ...known.flatMap(({ value, low, high }) => [value, low ?? value, high ?? value])], {
    count: 4,
  });
  const tall = ROW * rows.length;
  const y: Axis = {
    ...{ low: 0, high: rows.length, isLog: false },
    ticks: rows.map((_, i) => i),
    place: (row) => 1 - (row + 0.5) / rows.length,
    text: (row) => rows[row] as string,
  };
  const across = (value: number): number => round(x.place(value) * WIDTH);
  const drawn = series.map(({ color, values }, s) => {
    const offset = ((s - (series.length - 1) / 2) * BETWEEN) / tall;
    const down = (row: number): number => round((1 - y.place(row) + offset) * HEIGHT);
    const shown = values.flatMap((of, row) => (of && Number.isFinite(of.value) ? [{ ...of, row }] : []));
    const bars = shown.flatMap(({ low, high, row }) =>
      low === null || high === null ? [] : [`M${across(low)} ${down(row)}H${across(high)}`],
    );
    const marks = shown.map(({ value, row }) => `M${across(value)} ${down(row)}h0`);
    return html`<g class="${colorOf(color)}"><path class="line" d="${bars.join("")}"/><path class="mark" d="${marks.join("")}"/></g>`;
  });
  const zero = html`<path class="reference grey" d="M${across(0)} 0V${HEIGHT}"/>`;
  const spoken = series.map(({ label, values }) => {
    const texts = rows.map((name, row) => `${name} ${intervalWords(values[row])}`);
    return `${label}${label && ": "}${texts.join("; ")}`;
  });
  return chartFigure({
    title,
    tall,
    keys: series.flatMap(({ label, color }) => (label === "" ? [] : [legendKey("mark", color, label)])),
    frame: chartFrame(html`${zero}${drawn}`, x, y, {
      label: `${title}. ${spoken.join(". ")}`,
      below: "percent against the base; left of the dotted line is better",
    }),
    about: html`${known.some(({ low }) => low !== null) && "Lines are 95 % intervals over the seeds."}`,
  });
}

const intervalWords = (of: MeanInterval | undefined): string =>
  of === undefined || !Number.isFinite(of.value)
    ? "-"
    : of.low === null || of.high === null
      ? percent(of.value)
      : `${percent(of.value)} [${of.low.toFixed(1)}, ${of.high.toFixed(1)}]`;

/** The mean with its interval, which may go on a line of its own. */
function intervalText(of: MeanInterval | undefined): Piece {
  if (of === undefined || of.low === null || of.high === null) return changeText(of?.value);
  return html`${percent(of.value)} <span class="range">[${of.low.toFixed(1)}, ${of.high.toFixed(1)}]</span>`;
}

const changeText = (value: number | undefined): string =>
  value === undefined || !Number.isFinite(value) ? "-" : percent(value);
