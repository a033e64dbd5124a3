/**
 * The screen output of a run: a live line and a table on a terminal, a line per interval elsewhere, JSON for programs.
 * `log.ts` writes the files.
 */
import { EventEmitter } from "node:events";

import { Ticker } from "./ticker.js";

/** Where to write; `process.stdout` and `process.stderr` are such. */
export interface Screen {
  write(text: string): unknown;
  readonly isTTY?: boolean;
  readonly columns?: number;
}

const watched = new WeakSet<Screen>();
const closed = new WeakSet<Screen>();

/**
 * Write to a screen. One that fails, such as a closed pipe or a file on a full disk, is not written to again, and
 * the run continues.
 */
export function print(screen: Screen, text: string): void {
  if (closed.has(screen)) return;
  if (!watched.has(screen)) {
    watched.add(screen);
    // Without a listener the error of a closed pipe, which comes later, would end the process.
    if (screen instanceof EventEmitter) screen.on("error", () => closed.add(screen));
  }
  try {
    screen.write(text);
  } catch {
    closed.add(screen);
  }
}

/** Options of {@link RunConsole}. */
export interface ConsoleOptions {
  /** Iterations of the whole run. */
  readonly total: number;
  /** Default `process.stdout`. */
  readonly screen?: Screen;
  /** Only one JSON object per iteration on the screen, step 0 included; text of `say` goes to `errors`. */
  readonly json?: boolean;
  /** Default `process.stderr`. */
  readonly errors?: Screen;
  /** Only the text of `say`. */
  readonly quiet?: boolean;
  /** Default `process.env`; `NO_COLOR` and `TERM` are read. */
  readonly env?: Readonly<Record<string, string | undefined>>;
  /** Milliseconds, for the time left. */
  readonly now?: () => number;
}

/** Metrics by name. */
type Metrics = Readonly<Record<string, number>>;

/** Rewards that the sparkline shows. */
const HISTORY = 24;

/** Iterations from which the time left is estimated. */
const TIMED = 20;

/** Milliseconds between two live lines, so that fast runs do not flicker. */
const BETWEEN = 50;

/** Milliseconds after which an iteration within an interval has a line of its own where there is no terminal. */
const SILENCE = 10_000;

/** Milliseconds of an iteration from which on the next one shows its seconds on a terminal while it goes on. */
const SLOW = 2000;

/** The screen of a run. */
export class RunConsole {
  readonly isLive: boolean;
  readonly #options: Required<Omit<ConsoleOptions, "env">>;
  readonly #isColored: boolean;
  #hasLine = false;
  /** The live line on the screen; empty where there is none. */
  #line = "";
  #ticker: Ticker | null = null;
  #shownAt = -Infinity;
  #times: number[] = [];
  #rewards: number[] = [];
  /** The last one measured, which not every step does. */
  #ceiling: Metrics = {};

  constructor(options: ConsoleOptions) {
    const { total, screen = process.stdout, errors = process.stderr, json = false, quiet = false } = options;
    const { env = process.env, now = () => performance.now() } = options;
    this.#options = { total, screen, errors, json, quiet, now };
    const isTerminal = screen.isTTY === true && env.TERM !== "dumb";
    this.isLive = isTerminal && !json && !quiet;
    this.#isColored = isTerminal && (env.NO_COLOR ?? "") === "";
    this.#times.push(now());
    if (!this.isLive) this.#shownAt = now();
  }

  /**
   * Something begins that may take long: its name with the seconds that it takes, on a terminal, or a line each
   * {@link SILENCE} elsewhere; until anything else is shown. Not on a screen of a program's own.
   */
  busy(what: string): void {
    const { screen, json, quiet } = this.#options;
    this.#clear();
    const fd = fdOf(screen);
    if (fd === undefined || json || quiet) return;
    if (this.isLive) {
      print(screen, `${what} ...`);
      this.#hasLine = true;
    }
    this.#ticker = new Ticker(
      this.isLive
        ? { fd, period: 1000, before: `\r\x1b[K${what} ... `, after: "" }
        : { fd, period: SILENCE, before: `${what}: `, after: "\n" },
    );
  }

  /** What was begun with {@link busy} is done. */
  idle(): void {
    this.#clear();
  }

  /** An iteration is done: the live line, or its JSON. Step 0, the evaluation before the first, has no live line. */
  step(step: number, metrics: Metrics): void {
    const { total, screen, json, now } = this.#options;
    if (json) print(screen, `${jsonLine({ step, ...metrics })}\n`);
    if (step === 0) return;
    this.#endTicker();
    this.#times = [...this.#times.slice(-TIMED), now()];
    const reward = metrics["reward/mean"] ?? metrics["train/loss"];
    if (reward !== undefined && Number.isFinite(reward))
      this.#rewards = [...this.#rewards.slice(1 - HISTORY), reward];
    const ceiling = metrics["reward/vq_ceiling"];
    if (ceiling !== undefined) this.#ceiling = { "reward/vq_ceiling": ceiling };
    if (!this.isLive || (now() - this.#shownAt < BETWEEN && step < total)) return;
    this.#shownAt = now();
    const line = liveLine(
      step,
      { ...this.#ceiling, ...metrics },
      {
        total,
        rewards: this.#rewards,
        secondsLeft: this.secondsLeft(step),
        width: widthOf(screen) - this.#roomForNext(step),
        isColored: this.#isColored,
      },
    );
    print(screen, `\r\x1b[K${line}`);
    this.#line = line;
    this.#hasLine = true;
  }

  /**
   * An iteration within an interval is done, and another begins. On a terminal its seconds are shown if it may take long.
   * Elsewhere there is a line about the iteration alone if none was printed for {@link SILENCE}, so that whoever reads a
   * file sees that a slow run goes on.
   */
  between(step: number, metrics: Metrics): void {
    const { total, screen, json, quiet, now } = this.#options;
    this.#awaitNext(step);
    if (this.isLive || json || quiet || now() - this.#shownAt < SILENCE) return;
    this.#shownAt = now();
    print(screen, `${plainLine(step, total, metrics, this.secondsLeft(step))}\n`);
  }

  /** An interval is done: a table on a terminal, else one line. */
  interval(step: number, metrics: Metrics): void {
    const { total, screen, json, quiet, now } = this.#options;
    if (json || quiet) return;
    const left = this.secondsLeft(step);
    if (!this.isLive) {
      this.#endTicker();
      this.#shownAt = now();
      print(screen, `${plainLine(step, total, metrics, left)}\n`);
      return;
    }
    this.#clear();
    const head = `step ${step}/${total}${left === null ? "" : `, ${duration(left)} left`}`;
    print(screen, `${head}\n${table(metrics, widthOf(screen))}`);
    this.#awaitNext(step);
  }

  /** A line of text, above the live line. */
  say(text: string): void {
    const { screen, errors, json } = this.#options;
    this.#clear();
    print(json ? errors : screen, `${text}\n`);
  }

  /** End the live line. */
  close(): void {
    const { screen } = this.#options;
    const line = this.#line;
    if (this.#ticker !== null) {
      this.#clear();
      if (line !== "") print(screen, line);
      this.#hasLine = line !== "";
    }
    if (this.#hasLine) print(screen, "\n");
    this.#hasLine = false;
  }

  /** Seconds to the end at the pace of the last iterations; null before there is one. */
  secondsLeft(step: number): number | null {
    const [first, last] = [this.#times[0], this.#times.at(-1)];
    const count = this.#times.length - 1;
    if (count < 1 || first === undefined || last === undefined) return null;
    return ((last - first) / count / 1000) * Math.max(0, this.#options.total - step);
  }

  /** Rewards of the sparkline, for a checkpoint. */
  state(): readonly number[] {
    return this.#rewards;
  }

  load(state: readonly number[]): void {
    this.#rewards = state.slice(-HISTORY);
  }

  /** Columns for the seconds of the iteration after this one, where they are shown. */
  #roomForNext(step: number): number {
    const [before = 0, last = 0] = this.#times.slice(-2);
    if (last - before < SLOW || step >= this.#options.total || fdOf(this.#options.screen) === undefined)
      return 0;
    return nextText(step).length + "59m59s".length;
  }

  #awaitNext(step: number): void {
    const fd = fdOf(this.#options.screen);
    if (!this.isLive || fd === undefined || this.#roomForNext(step) === 0) return;
    const text = `${this.#line}${nextText(step)}`.trimStart();
    this.#ticker = new Ticker({ fd, period: 1000, before: `\r\x1b[K${text}`, after: "" });
    this.#hasLine = true;
  }

  #endTicker(): void {
    this.#ticker?.[Symbol.dispose]();
    this.#ticker = null;
  }

  #clear(): void {
    this.#endTicker();
    if (this.#hasLine) print(this.#options.screen, "\r\x1b[K");
    this.#hasLine = false;
    this.#line = "";
  }
}

/** The file descriptor of a screen; undefined for one of a program's own. */
const fdOf = (screen: Screen): number | undefined =>
  [process.stdout, process.stderr].find((stream) => stream === screen)?.fd;

/** Stands before the seconds of the iteration after this one. */
const nextText = (step: number): string => `  step ${step + 1}: `;

/** Columns that a line may take; a terminal of unknown width says 0. The last column would break the line. */
const widthOf = ({ columns }: Screen): number => (columns || 80) - 1;

/** A record as one line of JSON: NaN and infinities, which JSON cannot express, become null. */
export function jsonLine(record: Readonly<Record<string, unknown>>): string {
  return JSON.stringify(record, (_, value: unknown) =>
    typeof value === "number" && !Number.isFinite(value) ? null : value,
  );
}

/** What {@link liveLine} needs beside the metrics. */
export interface LiveLineOptions {
  readonly total: number;
  /** The latest rewards, the newest last; losses in supervised training. */
  readonly rewards: readonly number[];
  readonly secondsLeft: number | null;
  readonly width: number;
  readonly isColored?: boolean;
}

/**
 * An iteration on one line of at most `width` characters: progress and reward first, then time left, KL, entropy,
 * fraction of clipped tokens, gradient norm, time and speed, as far as they fit.
 */
export function liveLine(step: number, metrics: Metrics, options: LiveLineOptions): string {
  const { total, rewards, secondsLeft, width, isColored = false } = options;
  const reward = metrics["reward/mean"];
  const ceiling = metrics["reward/vq_ceiling"];
  const before = rewards.at(-2);
  const parts: string[] = [`step ${step}/${total} ${bar(step / total)}`];
  if (reward !== undefined) {
    const arrow = before === undefined || reward === before ? "" : reward > before ? " ↑" : " ↓";
    const top = ceiling === undefined ? "" : ` (ceil ${short(ceiling)})`;
    parts.push(`reward ${short(reward)}${arrow} ${sparkline(rewards, ceiling)}${top}`);
  }
  const loss = metrics["train/loss"];
  if (reward === undefined && loss !== undefined) {
    const arrow = before === undefined || loss === before ? "" : loss > before ? " ↑" : " ↓";
    parts.push(`loss ${short(loss)}${arrow} ${sparkline(rewards)}`);
  }
  const kl = metrics["kl/ref"] ?? metrics["kl/approx"];
  const [low, high] = [metrics["clip_ratio/low_mean"], metrics["clip_ratio/high_mean"]];
  const [entropy, norm] = [metrics["policy/entropy"], metrics["optim/grad_norm"]];
  if (secondsLeft !== null) parts.push(`${duration(secondsLeft)} left`);
  if (kl !== undefined) parts.push(`kl ${short(kl)}`);
  if (entropy !== undefined) parts.push(`H ${short(entropy)}`);
  if (low !== undefined && high !== undefined) parts.push(`clip ${percent(low)}/${percent(high)}%`);
  if (norm !== undefined) parts.push(`gn ${short(norm)}`);
  const seconds = metrics["perf/step_s"];
  if (seconds !== undefined) parts.push(`${short(seconds)}s${times(metrics)}`);
  const [pace, images] = [metrics["perf/tokens_per_s"], metrics["perf/images_per_s"]];
  if (pace !== undefined) parts.push(`${compact(pace)} tok/s`);
  if (images !== undefined) parts.push(`${compact(images)} img/s`);
  let line = "";
  for (const part of parts) {
    const longer = line === "" ? part : `${line}  ${part}`;
    if (longer.length > width) break;
    line = longer;
  }
  if (line === "") line = (parts[0] as string).slice(0, Math.max(0, width));
  return isColored ? line.replace("↑", "\x1b[32m↑\x1b[0m").replace("↓", "\x1b[31m↓\x1b[0m") : line;
}

/** The largest phases of an iteration. */
function times(metrics: Metrics): string {
  const phases = Object.entries(metrics)
    .filter(([name, value]) => name.startsWith("time/") && value > 0)
    .sort(([, a], [, b]) => b - a)
    .slice(0, 4)
    .map(([name, value]) => `${name.slice("time/".length)} ${short(value)}`);
  return phases.length === 0 ? "" : ` (${phases.join(", ")})`;
}

const BLOCKS = "▁▂▃▄▅▆▇█";

/** Numbers as bars; the highest bar is the ceiling where there is one, else the largest number. */
export function sparkline(values: readonly number[], ceiling?: number): string {
  if (values.length === 0) return "";
  const low = Math.min(...values);
  const high = Math.max(...values, ceiling ?? -Infinity);
  const levels = BLOCKS.length - 1;
  return values
    .map((value) => BLOCKS[high === low ? 0 : Math.round(((value - low) / (high - low)) * levels)])
    .join("");
}

function bar(part: number): string {
  const filled = Math.round(Math.min(1, Math.max(0, part)) * 8);
  return `▕${"█".repeat(filled)}${" ".repeat(8 - filled)}▏`;
}

/**
 * Metrics by group, a group a line, wrapped to the width: `l2 0.21 ±0.12` for the mean and the standard deviation, whose
 * minimum and maximum are in the files alone. Rewards come first, losses and time last.
 */
export function table(metrics: Metrics, width: number): string {
  const groups = new Map<string, string[]>();
  for (const [name, value] of Object.entries(metrics)) {
    const at = name.indexOf("/");
    const [group, rest] = at < 0 ? ["", name] : [name.slice(0, at), name.slice(at + 1)];
    const [, of = "", part] = /^(.*?)\/?(mean|std|min|max)$/.exec(rest) ?? [];
    const spreadOf = `${group}/${of === "" ? "" : `${of}/`}`;
    const [mean, std] = [metrics[`${spreadOf}mean`], metrics[`${spreadOf}std`]];
    const isSpread = part !== undefined && mean !== undefined && std !== undefined;
    if (isSpread && part !== "mean") continue;
    const cells = groups.get(group) ?? [];
    if (!isSpread) cells.push(`${rest} ${short(value)}`);
    else if (of === "") cells.unshift(`mean ${short(value)} ±${short(std)}`);
    else cells.push(`${of} ${short(value)} ±${short(std)}`);
    groups.set(group, cells);
  }
  const order = ["reward", "train", "eval", "advantage", "policy", "kl", "clip_ratio", "optim", "loss"];
  const rank = (group: string): number => (order.includes(group) ? order.indexOf(group) : order.length);
  const sorted = [...groups].sort(([a], [b]) => rank(a) - rank(b));
  const margin = Math.max(...[...groups.keys()].map((group) => group.length), 0) + 4;
  return sorted.map(([group, cells]) => wrapped(`  ${group}`.padEnd(margin), cells, width)).join("");
}

function wrapped(head: string, cells: readonly string[], width: number): string {
  const lines: string[] = [];
  let line = head;
  for (const cell of cells) {
    if (line.trimEnd().length > head.trimEnd().length && line.length + cell.length > width) {
      lines.push(line.trimEnd());
      line = " ".repeat(head.length);
    }
    line += `${cell}  `;
  }
  return `${[...lines, line.trimEnd()].join("\n")}\n`;
}

/** Names that a line without a terminal shows, in this order, where they are there. */
const PLAIN: readonly string[] = [
  "reward/mean",
  "reward/std",
  "reward/vq_ceiling",
  "eval/reward/mean",
  "kl/ref",
  "kl/approx",
  "policy/entropy",
  "clip_ratio/region_mean",
  "optim/grad_norm",
  "optim/lr",
  "optim/skipped_steps",
  "perf/step_s",
  "perf/tokens_per_s",
  "perf/images_per_s",
];

/** One line for a log: `step=120/1000 reward/mean=-0.0312 ... left=21m`, to be searched and cut. */
export function plainLine(step: number, total: number, metrics: Metrics, secondsLeft: number | null): string {
  // A supervised trainer has few metrics, so all are shown.
  const isFit = !Object.keys(metrics).some((name) => /^(eval\/)?reward\//.test(name));
  const own = Object.keys(metrics).filter((name) => isFit && /^(train|eval)\//.test(name));
  const shown = [...own, ...PLAIN.filter((name) => !own.includes(name))].flatMap((name) =>
    metrics[name] === undefined ? [] : [`${name}=${short(metrics[name])}`],
  );
  const left = secondsLeft === null ? [] : [`left=${duration(secondsLeft)}`];
  return [`step=${step}/${total}`, ...shown, ...left].join(" ");
}

const percent = (part: number): string => short(part * 100);

/** Three significant digits. */
export function short(value: number): string {
  if (!Number.isFinite(value)) return Number.isNaN(value) ? "nan" : value > 0 ? "inf" : "-inf";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e5 || size < 1e-4) return value.toExponential(1).replace("e+", "e");
  return String(Number(value.toPrecision(3)));
}

/** Thousands and millions by a letter. */
function compact(value: number): string {
  if (value >= 1e6) return `${short(value / 1e6)}M`;
  return value >= 1e3 ? `${short(value / 1e3)}k` : short(value);
}

/** A time such as `45s`, `1m10s`, `21m` or `3h05m`. */
export function duration(seconds: number): string {
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole}s`;
  if (whole < 600) return `${Math.floor(whole / 60)}m${String(whole % 60).padStart(2, "0")}s`;
  const minutes = Math.round(whole / 60);
  if (minutes < 60) return `${minutes}m`;
  return `${Math.floor(minutes / 60)}h${String(minutes % 60).padStart(2, "0")}m`;
}
