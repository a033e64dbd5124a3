/**
 * The page's own script, as text: reading values off charts and going through pages of samples. All else is there
 * without it.
 */

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
  const output = bar.querySelector("output");
  const show = () => {
    for (const [i, page] of pages.entries()) page.hidden = i !== Number(input.value);
    output.textContent = pages[Number(input.value)].dataset.step;
  };
  bar.hidden = false;
  input.addEventListener("input", show);
  show();
}
`;
