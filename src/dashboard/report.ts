/**
 * Writes `report.html`, one self-contained page on a run, or a comparison of several. Each section is in another file of this
 * folder; this file puts them together.
 */

import { createHash } from "node:crypto";
import { join } from "node:path";
import { valueAt } from "../config/key.js";
import { duration } from "../run/console.js";
import { readOptions } from "../torch/arguments.js";
import { replaceFile } from "../torch/files.js";
import { expected } from "../torch/index.js";
import { commandSection, configSection, summaryOf, valueText } from "./config.js";
import { curves } from "./curves.js";
import { evalSection, frontierCharts, frontiersOf } from "./evaluations.js";
import { eventSection, shortId } from "./events.js";
import { type Html, html, raw, SCRIPT, STYLE, table } from "./page.js";
import type { SomeEnvironment } from "./reading.js";
import { comparison, judgedOn, resultSection, runList } from "./results.js";
import { endOfRun, type Run, readRun, totalOf } from "./run.js";
import { HELD_OUT, type Pictures, readPictures, sampleSection } from "./samples.js";
import { numberText } from "./scale.js";

/** Bytes that the pictures of a report may take; as text they are a third longer. */
const PICTURES = 2_000_000;

/**
 * Write the report of a run, or a comparison of several.
 *
 * @param folders - of runs; one, or several to compare.
 * @param options.out - the file; where omitted `report.html` in the run's folder, `comparison.html` in the first of several.
 * @returns the file.
 * @throws RangeError for a folder that holds no run, or a place that cannot be written to.
 */
export async function writeReport(
  folders: string | readonly string[],
  options: { out?: string } = {},
): Promise<string> {
  const { out: given } = readOptions<{ out?: string }>("writeReport", [options], { names: { out: true } });
  const list = typeof folders === "string" ? [folders] : folders;
  if (list.length === 0) throw expected("report", "at least one folder of a run", "none");
  const page = await reportHtml(list);
  // A run's own page stays what it is when the run is compared.
  const name = list.length === 1 ? "report.html" : "comparison.html";
  const out = given ?? join(list[0] as string, name);
  replaceFile(out, page);
  return out;
}

/** The page that {@link writeReport} writes, with a section before its own where one is given. */
export async function reportHtml(folders: readonly string[], before?: Section): Promise<string> {
  const runs = withNames(folders.map(readRun));
  const shown = await Promise.all(
    runs.map(
      async (run): Promise<Shown> => ({ run, pictures: await readPictures(run, PICTURES / runs.length) }),
    ),
  );
  const [first] = shown as [Shown];
  return shown.length === 1 ? pageOfOne(first, before) : pageOfSeveral(shown, before);
}

/** A run with its pictures. */
interface Shown {
  readonly run: Run;
  readonly pictures: Pictures;
}

/** Names by which runs are told apart: their folders', with as much of the path before it as that needs. */
function withNames(runs: readonly Run[]): Run[] {
  const names = (parts: number): string[] =>
    runs.map(({ folder, name }) => folder.split(/[\\/]/).filter(Boolean).slice(-parts).join("/") || name);
  const isTold = (list: readonly string[]): boolean => new Set(list).size === list.length;
  const parts = [1, 2, 3, 4].find((count) => isTold(names(count)));
  const chosen = parts === 1 ? runs.map(({ name }) => name) : names(parts ?? 4);
  return runs.map((run, i) => ({
    ...run,
    name: isTold(chosen) ? (chosen[i] as string) : `${chosen[i]} (${i + 1})`,
  }));
}

/** A part of the page with a heading and a place in the navigation. */
export interface Section {
  readonly title: string;
  readonly body: Html;
}

function pageOfOne(shown: Shown, before?: Section): string {
  const { run, pictures } = shown;
  const end = endOfRun(run);
  const state = end.state === "under way" ? "way" : end.state;
  const head = html`<h1>${run.name}</h1><p class="what">${summaryOf(run)}</p>
<p><span class="state ${state}">${end.text}</span></p>${factsTable(run)}`;
  const others = pictures.albums.filter(({ name }) => name !== HELD_OUT);
  const rest = sampleSection({ ...pictures, unread: [] }, (name) => name !== HELD_OUT);
  const shownPictures = html`${sampleSection(pictures, (name) => name === HELD_OUT)}${
    others.length > 0 && folded(`More pictures: ${others.map(({ name }) => name).join(", ")}`, rest)
  }`;
  const sections: Section[] = [
    ...(before ? [before] : []),
    {
      title: "Result",
      body:
        run.evaluations.length === 0
          ? resultSection(run, false, shownPictures)
          : html`${evalSection(run.evaluations, shownPictures)}<h3>While it trained</h3>${resultSection(run, true)}`,
    },
    { title: "What happened", body: eventSection(run) },
    { title: "Curves", body: curves([run]) },
    {
      title: "Details",
      body: html`<div class="text">${folded("Configuration", configSection(run))}${folded("Run it again", commandSection(run))}${folded("Environment", environmentSection(run))}</div>`,
    },
  ];
  return pageOf(run.name, head, sections);
}

const folded = (what: string, body: Html): Html => html`<details><summary>${what}</summary>${body}</details>`;

function pageOfSeveral(shown: readonly Shown[], before?: Section): string {
  const runs = shown.map(({ run }) => run);
  const head = html`<h1>${runs.length} runs</h1>${runList(runs)}`;
  const each = shown.map(
    (one, i) => html`<details><summary><i class="dot c${i % 8}"></i>${one.run.name}</summary>
${factsTable(one.run)}${evalSection(one.run.evaluations)}<h3>What happened</h3>${eventSection(one.run)}<h3>Samples</h3>${sampleSection(one.pictures, () => true)}
<h3>Configuration</h3><div class="text">${configSection(one.run)}</div><h3>Run it again</h3>${commandSection(one.run)}
<h3>Environment</h3><div class="text">${environmentSection(one.run)}</div></details>`,
  );
  const sections: Section[] = [
    ...(before ? [before] : []),
    { title: "Comparison", body: html`${comparison(runs)}${frontiers(runs)}` },
    { title: "Curves", body: curves(runs) },
    { title: "Each run", body: html`${each}` },
  ];
  return pageOf(runs.map(({ name }) => name).join(", "), head, sections);
}

/** What the runs' evaluations found at several temperatures, on the same charts. */
function frontiers(runs: readonly Run[]): Html | null {
  const all = runs.flatMap(({ name, evaluations: [first] }, color) =>
    first === undefined ? [] : [{ label: name, color, evaluation: first.evaluation }],
  );
  // Numbers of other images do not belong on one chart; a notice above says which runs have such.
  const compared = all.filter(({ evaluation }) => judgedOn(evaluation) === judgedOn(all[0]?.evaluation));
  const charts = frontierCharts(frontiersOf(compared));
  return charts && html`<h3>Closeness against realism</h3>${charts}`;
}

/** Different images that it was trained on, where an evaluation tells; null where none does. */
function trainImages({ evaluations }: Run): number | null {
  const known = evaluations.map(({ evaluation }) => evaluation.data?.train.images);
  return known.find((images) => images !== undefined) ?? null;
}

/** What was run, at a glance. */
function factsTable(run: Run): Html {
  const at = (path: string): unknown => valueAt(run.config, path);
  const total = totalOf(run);
  const images = trainImages(run);
  const seen = run.metrics.get("progress/images_seen")?.values.at(-1);
  const group = at("rollout.numGenerations");
  const environment: SomeEnvironment = run.starts[0]?.environment ?? {};
  const commit = environment.commit;
  const facts: [string, string, string][] = [
    ["steps", `${run.lastStep}${total === null ? "" : ` of ${total}`}`, ""],
    [
      "wall time",
      run.seconds === null ? "n/a" : duration(run.seconds),
      run.starts.length > 1 ? `in ${run.starts.length} parts` : "",
    ],
  ];
  if (typeof group === "number")
    facts.push(["a step", `${at("rollout.images")} images × ${group}`, "samples of each"]);
  const size = `${valueText(at("data.size") ?? "?")} px`;
  facts.push([
    "images",
    images === null ? size : images.toLocaleString("en"),
    `${images === null ? "" : `of ${size}, `}from ${valueText(at("data.source") ?? "a program")}` +
      (seen === undefined ? "" : `; ${seen.toLocaleString("en")} drawn with repetition`),
  ]);
  const rest: typeof facts = [];
  for (const { role, what, parameters, file } of run.models)
    rest.push([role, parameters === null ? what : `${what}, ${millions(parameters)}`, file]);
  rest.push([
    "code",
    commit ? `commit ${shortId(commit.id)}` : `version ${environment.versions?.package ?? "unknown"}`,
    commit?.isDirty ? "with changes" : "",
  ]);
  const { cpu, cudaDevices = 0, threads } = environment;
  if (cpu)
    rest.push([
      "machine",
      cpu.model,
      `${cpu.cores} cores, ${threads ?? "?"} threads, ${cudaDevices === 0 ? "no GPU" : `${cudaDevices} CUDA`}`,
    ]);
  const list = (some: typeof facts): Html =>
    html`<dl class="facts">${some.map(([name, value, more]) => html`<div><dt>${name}</dt><dd>${value} <span>${more}</span></dd></div>`)}</dl>`;
  return html`${list(facts)}${folded("Models, code, machine", list(rest))}`;
}

/** A number of parameters, such as `18.4 M parameters`. */
function millions(count: number): string {
  if (count < 1e3) return `${count} parameters`;
  return count < 1e6 ? `${numberText(count / 1e3)} k parameters` : `${numberText(count / 1e6)} M parameters`;
}

function environmentSection({ starts }: Run): Html {
  if (starts.length === 0) return html`<p>There is no env.json in the folder.</p>`;
  return html`${starts.map(({ step, environment }) => {
    const { libtorchConfig, command: _, ...rest } = environment;
    const rows = Object.entries(rest).flatMap(([name, value]) => factRows(name, value));
    return html`<h3>${step === 0 ? "At the start" : `From step ${step} on`}</h3>${table([], rows)}${
      libtorchConfig !== undefined &&
      html`<details><summary>How LibTorch was built</summary><pre>${libtorchConfig}</pre></details>`
    }`;
  })}`;
}

function factRows(name: string, value: unknown): [string, Html][] {
  if (name === "memoryBytes" && typeof value === "number")
    return [["memory", html`${numberText(value / 2 ** 30)} GiB`]];
  if (typeof value === "object" && value !== null)
    return Object.entries(value).flatMap(([key, of]) => factRows(`${name} ${key}`, of));
  return [[name, html`<code>${String(value ?? "none")}</code>`]];
}

const idOf = (title: string): string => title.toLowerCase().replaceAll(" ", "-");

/** The whole page: no address in it is outside it, and it allows no script but its own. */
function pageOf(title: string, head: Html, sections: readonly Section[]): string {
  const hash = createHash("sha256").update(SCRIPT).digest("base64");
  const policy = `default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-${hash}'`;
  return html`<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="${policy}">
<title>${title}: report</title><style>${raw(STYLE)}</style></head>
<body><header>${head}</header>
<nav><ul>${sections.map((section) => html`<li><a href="#${idOf(section.title)}">${section.title}</a></li>`)}</ul></nav>
<main>${sections.map(({ title: name, body }) => html`<section><h2 id="${idOf(name)}">${name}</h2>${body}</section>`)}</main>
<footer>Written by rlar report on ${new Date().toISOString().slice(0, 16).replace("T", " ")} UTC.</footer>
<script>${raw(SCRIPT)}</script></body></html>
`.markup;
}
