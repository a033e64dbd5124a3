/** Writes `sweep.html`: the trials of a sweep in a table, above the report on the runs that came furthest. */
import { join } from "node:path";
import { percent, type Standing, type SweepResult } from "../sweep/sweep.js";
import { replaceFile } from "../torch/files.js";
import { valueText } from "./config.js";
import { html, table } from "./page.js";
import { reportHtml } from "./report.js";

/** Runs whose curves and evaluations are shown. */
const SHOWN = 6;

/**
 * @param command - judges the winner on images that no trial was chosen on.
 * @returns the file.
 */
export async function writeSweep(
  { dir, standings }: SweepResult,
  { rungs, command }: { rungs: readonly number[]; command: string },
): Promise<string> {
  const keys = [...new Set(standings.flatMap(({ trial }) => Object.keys(trial.values)))];
  const measures = [...new Set(standings.flatMap(({ score }) => Object.keys(score.changes)))];
  const rows = standings.map(({ trial, steps, score }) => [
    trial.name,
    `${steps}`,
    ...keys.map((key) => (key in trial.values ? valueText(trial.values[key]) : "base")),
    score.point === null ? "" : `T ${score.point.temperature}, cfg ${score.point.cfg}`,
    changeText(score.objective),
    score.excess === 0 ? "kept" : `exceeded by ${changeText(score.excess)}`,
    ...measures.map((measure) => changeText(score.changes[measure])),
  ]);
  const head = ["trial", "steps", ...keys, "setting", "objective", "constraints", ...measures];
  const body = html`<p class="about">Rungs of ${rungs.join(", ")} steps; the better trials went on from each. Numbers are changes against
the base policy in percent, in the judge that sees the least gain; below 0 is a gain. The first is the best.</p>
${table(head, rows)}
<p>The trials were chosen on these held-out images. What the first one gains is measured on the others:</p><pre>${command}</pre>`;
  const best = standings[0]?.steps;
  const finalists = standings.filter(({ steps, score }) => steps === best && score.point !== null);
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

const changeText = (value: number | undefined): string =>
  value === undefined || !Number.isFinite(value) ? "-" : percent(value);
