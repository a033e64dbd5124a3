/**
 * The frame of all reports: templates that escape text, the style sheet, and the page's script.
 */

/** Markup that is inserted unescaped. Only {@link html} and {@link raw} make it; data is always escaped. */
export class Html {
  constructor(readonly markup: string) {}
}

/** What a template can hold; null, undefined and false leave nothing. */
export type Piece = Html | string | number | null | undefined | false | readonly Piece[];

/** A template whose text is escaped. Attribute values must be in double quotes. */
export function html(parts: TemplateStringsArray, ...pieces: readonly Piece[]): Html {
  let markup = parts[0] as string;
  for (const [i, piece] of pieces.entries()) markup += markupOf(piece) + (parts[i + 1] as string);
  return new Html(markup);
}

/** Constant markup of this package, such as the style sheet. */
export const raw = (markup: string): Html => new Html(markup);

function markupOf(piece: Piece): string {
  if (piece === null || piece === undefined || piece === false) return "";
  if (piece instanceof Html) return piece.markup;
  if (Array.isArray(piece)) return piece.map(markupOf).join("");
  // Data of another type than was expected, such as an object out of a file, is text as well.
  return escapeText(String(piece));
}

const ESCAPES: Readonly<Record<string, string>> = {
  "&": "&amp;",
  "<": "&lt;",
  ">": "&gt;",
  '"': "&quot;",
  "'": "&#39;",
};

/** Text that reads the same between tags and in quoted attributes. */
export function escapeText(text: string): string {
  return text.replace(/[&<>"']/g, (sign) => ESCAPES[sign] as string);
}

/** Data for the page's script, in an element that no parser takes for markup or code. */
export function dataElement(data: unknown): Html {
  const text = JSON.stringify(data).replaceAll("<", "\\u003c");
  return raw(`<script type="application/json">${text}</script>`);
}

/** A word whose explanation unfolds by a tap, a click or the keyboard; the plain word if there is no explanation. */
export function hint(word: string, about: string): Html {
  return about === ""
    ? html`${word}`
    : html`<details class="hint"><summary>${word}</summary><p>${about}</p></details>`;
}

/** A table whose first column names the rows. */
export function table(head: readonly Piece[], rows: readonly (readonly Piece[])[]): Html {
  const cells = rows.map((row) => {
    const [name, ...rest] = row;
    return html`<tr><th scope="row">${name}</th>${rest.map((cell) => html`<td>${cell}</td>`)}</tr>`;
  });
  const titles = head.map((title) => html`<th scope="col">${title}</th>`);
  const top = head.length === 0 ? null : html`<thead><tr>${titles}</tr></thead>`;
  return html`<div class="scroll"><table>${top}<tbody>${cells}</tbody></table></div>`;
}

/** A list without marks. */
export const list = (items: readonly Piece[]): Html =>
  html`<ul class="plain">${items.map((item) => html`<li>${item}</li>`)}</ul>`;

/** A sentence that must not be missed. */
export interface Notice {
  readonly level: "problem" | "warning" | "note" | "verdict";
  readonly text: string;
}

export const told = (level: Notice["level"], texts: readonly string[]): Notice[] =>
  texts.map((text) => ({ level, text }));

/** Notices, each with its level in a word; nothing where there are none. */
export function notices(all: readonly Notice[]): Html | null {
  if (all.length === 0) return null;
  return html`<ul class="notices">${all.map(({ level, text }) => html`<li class="${level}"><b>${level}</b> ${text}</li>`)}</ul>`;
}

/** Colors of lines: eight that are told apart by those who see few colors, each with a contrast of 3 or more. */
const LIGHT: readonly string[] = [
  "#1d5fc4",
  "#c2410c",
  "#0b7a5c",
  "#7a3fd0",
  "#94690a",
  "#b61c64",
  "#0c7489",
  "#5c5751",
];

const DARK: readonly string[] = [
  "#7db0ff",
  "#ff9a57",
  "#4fd6a5",
  "#bf9cff",
  "#e2bd4e",
  "#ff85bd",
  "#55cfe6",
  "#b5afa8",
];

const named = (colors: readonly string[]): string => colors.map((color, i) => `--c${i}:${color};`).join("");

/** The style sheet. */
export const STYLE: string = `
:root{color-scheme:light dark;${named(LIGHT)}--page:#f6f5f2;--card:#fff;--ink:#1b1a18;--soft:#57534e;--rule:#dedad3;--grid:#ebe8e2;--good:#0b6b4f;--bad:#b3261e;--look:#8a5a00}
@media (prefers-color-scheme:dark){:root{${named(DARK)}--page:#131417;--card:#1c1e22;--ink:#eceae6;--soft:#b3afa8;--rule:#363940;--grid:#2a2d33;--good:#5fd6a6;--bad:#ff8f86;--look:#f0c060}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif;font-variant-numeric:tabular-nums}
main,header,footer{max-width:1280px;margin:0 auto;padding:0 24px}
header{padding-top:20px}
h1{font-size:28px;line-height:1.2;margin:0 0 4px;overflow-wrap:anywhere}
h2{font-size:21px;line-height:1.3;margin:24px 0 8px;padding-top:10px;border-top:2px solid var(--ink)}
h3{font-size:16px;margin:18px 0 8px}
h4{font-size:14px;line-height:1.35;margin:0}
p{margin:0 0 10px;max-width:120ch}
a{color:var(--c0)}
code,pre{font:13px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;overflow-wrap:anywhere}
pre{margin:0;padding:8px 12px;background:var(--page);border:1px solid var(--rule);border-radius:6px;white-space:pre-wrap}
.hint{display:inline;margin:0}.hint summary{display:inline;padding:0;font-size:inherit;list-style:none;border-bottom:1px dotted var(--soft);cursor:help}.hint summary::-webkit-details-marker{display:none}
.hint p{font-weight:400;font-size:13px;color:var(--soft);margin:2px 0;max-width:34ch;white-space:normal}
.what{font-size:17px;color:var(--soft);margin-bottom:14px}
.state{display:inline-block;padding:1px 10px;border-radius:99px;border:1px solid currentColor;font-weight:600;font-size:13px;margin-right:8px}
.state.done{color:var(--good)}.state.stopped{color:var(--bad)}.state.way{color:var(--look)}
nav{position:sticky;top:0;z-index:3;background:var(--page);border-bottom:1px solid var(--rule);margin-top:18px}
nav ul{max-width:1280px;margin:0 auto;padding:8px 24px;display:flex;gap:6px 20px;flex-wrap:wrap;list-style:none;font-size:14px}
nav a{text-decoration:none;color:var(--ink)}nav a:hover{text-decoration:underline}
h2,h3{scroll-margin-top:60px}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,230px),1fr));gap:1px;margin:0;background:var(--card);border:1px solid var(--rule);border-radius:8px;overflow:hidden}
.facts div{box-shadow:0 0 0 1px var(--grid);padding:8px 14px;min-width:0}
dt{font-size:13px;color:var(--soft)}
dd{margin:0;overflow-wrap:anywhere}
.facts dd{font-weight:600}
.facts dd span{font-weight:400;color:var(--soft)}
.commands dt{margin-top:10px}
.lead{font-size:17px;max-width:110ch}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,230px),1fr));gap:14px;margin:16px 0}
.tile,.chart,.page{background:var(--card);border:1px solid var(--rule);border-radius:10px;padding:14px 16px;margin:0;min-width:0}
.tile p{margin:0;font-size:14px;color:var(--soft)}
.tile .big{font-size:30px;line-height:1.25;font-weight:650;color:var(--ink)}
.spark{width:100%;height:34px;margin-top:8px;overflow:visible;display:block}
.better{color:var(--good)}.worse{color:var(--bad)}.quiet{color:var(--soft)}
.scroll{overflow-x:auto;margin:0 0 12px}
table{border-collapse:collapse;font-size:14px;background:var(--card);border:1px solid var(--rule);min-width:min(100%,420px)}
th,td{padding:5px 12px;text-align:right;border-top:1px solid var(--grid);vertical-align:top}
thead th{font-weight:600;color:var(--soft);font-size:13px;border:0;vertical-align:bottom}
th:first-child{text-align:left;font-weight:600}
td{white-space:nowrap}td:has(.range){white-space:normal}.range{display:inline-block;white-space:nowrap}.text td{white-space:normal}.text td,.text th{text-align:left}
td code{overflow-wrap:anywhere}.help{font-size:13px;color:var(--soft)}
details{margin:10px 0}summary{cursor:pointer;padding:4px 0;font-weight:600;font-size:14px}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,370px),1fr));gap:16px}
.chart{display:flex;flex-direction:column;--tall:170px}
.chart.wide{grid-column:1/-1;--tall:220px}
.chart.square{--tall:240px}
.about{font-size:13px;line-height:1.45;color:var(--soft);margin:6px 0 0;max-width:130ch;overflow-wrap:anywhere}
.legend{list-style:none;margin:4px 0 8px;padding:0;display:flex;flex-wrap:wrap;gap:1px 14px;font-size:13px}
.legend b{font-weight:600}.metrics{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;font-size:12px;overflow-wrap:anywhere}
.key{display:inline-block;width:18px;height:0;border-top:3px solid var(--c);vertical-align:middle;margin-right:6px}
.key.dashed{border-top-style:dashed}.key.reference{border-top:3px dotted var(--c)}
.key.solid{height:11px;width:11px;border:0;background:var(--c);border-radius:2px}
.key.mark{height:10px;width:10px;border:0;background:var(--c);border-radius:50%}
${LIGHT.map((_, i) => `.c${i}{--c:var(--c${i})}`).join("")}.grey{--c:var(--soft)}
.frame{display:grid;grid-template-columns:max-content 1fr;column-gap:8px;margin-top:auto;padding:6px 8px 0 0;font-size:12px;color:var(--soft)}
.frame .y{position:relative;text-align:right}
.frame .y span{position:absolute;right:0;transform:translateY(-50%);white-space:nowrap}
.frame .y .sizer{position:static;visibility:hidden;display:block;height:0;overflow:hidden}
.plot{position:relative;height:var(--tall);border-left:1px solid var(--rule);border-bottom:1px solid var(--rule);outline-offset:3px;touch-action:pan-y}
.plot svg{position:absolute;inset:0;width:100%;height:100%;overflow:visible;display:block}
.frame .x{grid-column:2;position:relative;height:20px}
.frame .x span{position:absolute;top:3px;transform:translateX(-50%);white-space:nowrap}
.frame .below{grid-column:2;margin:0;text-align:right;max-width:none}
path{fill:none;vector-effect:non-scaling-stroke}
.grid{stroke:var(--grid);stroke-width:1}
.line{stroke:var(--c);stroke-width:2;stroke-linejoin:round}.line.dashed{stroke-width:1.6;stroke-dasharray:6 4}
.reference{stroke:var(--c);stroke-width:1.6;stroke-dasharray:1.6 4}
.change{stroke:var(--soft);stroke-width:1}
.dots{stroke:var(--c);stroke-width:3;stroke-linecap:round;opacity:.42}
.mark{stroke:var(--c);stroke-width:6.5;stroke-linecap:round}
.interval{stroke:var(--c);stroke-width:1.4;opacity:.5}
.band{fill:var(--c);opacity:.14}.bar{fill:var(--c);vector-effect:none}
.tip{position:absolute;z-index:2;top:0;pointer-events:none;background:var(--card);color:var(--ink);border:1px solid var(--rule);border-radius:6px;box-shadow:0 2px 10px #0003;padding:5px 9px;font-size:12px;white-space:nowrap}
.tip p{margin:0}.tip b{font-weight:600}
.rule{position:absolute;top:0;bottom:0;width:0;border-left:1px solid var(--soft);pointer-events:none}
.at{position:absolute;white-space:nowrap;font-size:12px;font-weight:600;line-height:16px;pointer-events:none}
.at.right{transform:translate(8px,-50%)}.at.left{transform:translate(calc(-100% - 8px),-50%)}.at.above{transform:translate(-50%,calc(-100% - 5px))}.at.under{transform:translate(-50%,5px)}
.at.right.above{transform:translate(5px,calc(-100% - 1px))}.at.right.under{transform:translate(5px,1px)}.at.left.above{transform:translate(calc(-100% - 5px),calc(-100% - 1px))}.at.left.under{transform:translate(calc(-100% - 5px),1px)}
.at{color:var(--c);text-shadow:0 0 3px var(--card),0 0 3px var(--card),0 0 3px var(--card)}.line.thin{stroke-width:1.2;opacity:.7}
.about+.charts{margin-top:10px}.charts.two{grid-template-columns:repeat(auto-fill,minmax(min(100%,480px),1fr));margin-bottom:16px}
.plain{list-style:none;padding:0;margin:0 0 12px;overflow-wrap:anywhere}
main h4{margin:18px 0 6px}.chart h4,.tile h4{margin:0}
.notices .verdict{border-color:var(--c0)}.notices .verdict b{color:var(--c0)}
.samples{margin-bottom:18px}.slide{display:flex;align-items:center;gap:8px;margin:0 0 8px}.slide[hidden],.page[hidden]{display:none}
.slide input{flex:1 1 auto;min-width:60px;max-width:520px;height:44px;margin:0;accent-color:var(--c0)}
.slide button{font:inherit;font-size:14px;min-width:44px;height:44px;padding:0 10px;color:inherit;background:var(--card);border:1px solid var(--rule);border-radius:8px;cursor:pointer}
.page+.page{margin-top:12px}.page figcaption{font-weight:600;font-size:14px;margin-bottom:8px}
.page img{display:block;max-width:100%;height:auto;image-rendering:pixelated;background:#fff}.page .scroll{margin:0;max-height:28rem;overflow-y:auto}
.notices{list-style:none;padding:0;margin:0 0 14px}
.notices li{padding:7px 12px;border-left:4px solid var(--look);background:var(--card);margin-bottom:6px;border-radius:0 6px 6px 0;overflow-wrap:anywhere}
.notices li.problem{border-color:var(--bad)}.notices b{color:var(--look)}.notices .problem b{color:var(--bad)}
.events{list-style:none;padding:0;margin:0}.events li{padding:2px 0;overflow-wrap:anywhere;display:grid;grid-template-columns:90px 1fr}
.step{color:var(--soft)}
.dot{display:inline-block;width:11px;height:11px;border-radius:50%;background:var(--c);margin-right:7px}
footer{padding-top:20px;padding-bottom:24px;font-size:13px;color:var(--soft)}
@media (max-width:600px){main,header,footer{padding-left:14px;padding-right:14px}nav ul{padding:8px 14px}h1{font-size:23px}.tile,.chart,.page{padding:12px}th,td{padding:5px 8px}nav{position:static}.page img{max-width:none}}
@media print{nav,.slide{display:none}.chart,.tile,.page{break-inside:avoid}}
`;

/** Plain JavaScript; the page allows no other. */
export const SCRIPT: string = `"use strict";
const text = (x, unit) => {
  if (x === null) return "n/a";
  if (unit === "%") return text(x * 100) + " %";
  const size = Math.abs(x);
  return size !== 0 && (size >= 1e6 || size < 1e-3) ? x.toExponential(2).replace("e+", "e") : String(Number(x.toPrecision(4)));
};
const near = (steps, step) => {
  let [low, high] = [0, steps.length - 1];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (steps[middle] < step) low = middle;
    else high = middle;
  }
  return step - steps[low] <= steps[high] - step ? low : high;
};
for (const chart of document.querySelectorAll(".chart")) {
  const source = chart.querySelector("script[type='application/json']");
  const plot = chart.querySelector(".plot");
  if (source === null || plot === null) continue;
  const { x: [from, to], unit, lines } = JSON.parse(source.textContent);
  const all = [...new Set(lines.flatMap((line) => line.steps))].sort((a, b) => a - b);
  if (all.length === 0) continue;
  const tip = document.createElement("div");
  const rule = document.createElement("div");
  tip.className = "tip";
  rule.className = "rule";
  let at = all.length - 1;
  const show = () => {
    const step = all[at];
    const place = to === from ? 0.5 : (step - from) / (to - from);
    const head = document.createElement("p");
    head.textContent = "step " + Math.round(step);
    const rows = lines.map((line) => {
      const i = near(line.steps, step);
      const row = document.createElement("p");
      const key = document.createElement("i");
      const value = document.createElement("b");
      key.className = "key c" + line.color;
      const drawn = line.smooth === undefined ? line.values[i] : line.smooth[i];
      value.textContent = text(drawn, unit);
      const own = line.smooth === undefined ? "" : " (dot " + text(line.values[i], unit) + ")";
      const other = Math.abs(line.steps[i] - step) <= (to - from) / 100 ? "" : " at step " + Math.round(line.steps[i]);
      row.append(key, line.label + " ", value, own + other);
      return row;
    });
    tip.replaceChildren(head, ...rows);
    rule.style.left = 100 * place + "%";
    plot.append(rule, tip);
    const room = plot.clientWidth - tip.offsetWidth;
    const wanted = place * plot.clientWidth;
    tip.style.left = Math.max(Math.min(0, room), Math.min(room, wanted > plot.clientWidth / 2 ? wanted - tip.offsetWidth - 10 : wanted + 10)) + "px";
  };
  const hide = () => { tip.remove(); rule.remove(); };
  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect();
    at = near(all, from + ((event.clientX - box.left) / box.width) * (to - from));
    show();
  });
  plot.addEventListener("pointerleave", hide);
  plot.addEventListener("blur", hide);
  plot.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1, Home: -all.length, End: all.length }[event.key];
    if (move === undefined) return;
    event.preventDefault();
    at = Math.max(0, Math.min(all.length - 1, at + move));
    show();
  });
}
for (const group of document.querySelectorAll(".samples")) {
  const pages = [...group.querySelectorAll(".page")];
  const bar = group.querySelector(".slide");
  if (bar === null) continue;
  const input = bar.querySelector("input");
  const last = pages.length - 1;
  const show = () => {
    for (const [i, page] of pages.entries()) page.hidden = i !== Number(input.value);
    input.setAttribute("aria-valuetext", pages[Number(input.value)].querySelector("figcaption").textContent);
  };
  for (const button of bar.querySelectorAll("button")) {
    const by = Number(button.dataset.by);
    button.addEventListener("click", () => {
      input.value = by !== 0 ? Number(input.value) + by : Number(input.value) === last ? 0 : last;
      show();
    });
  }
  bar.hidden = false;
  input.addEventListener("input", show);
  show();
}
`;
