/**
 * The report's section on the configuration of a run: its command, its differences from the defaults, and the command lines to
 * repeat or resume it.
 */
import { join } from "node:path";
import { classifierKind } from "../config/classifier.js";
import { rlarCommand, shellWord } from "../config/command.js";
import { diffConfigs, pathsIn } from "../config/explain.js";
import { valueAt } from "../config/key.js";
import { type ConfigKind, Findings } from "../config/kind.js";
import { pretrainKind } from "../config/pretrain.js";
import { tokenizerKind } from "../config/tokenizer.js";
import { trainKind } from "../config/train_kind.js";
import { type Html, html, table } from "./page.js";
import type { Run } from "./run.js";

/** The commands whose runs are reported. */
const KINDS: readonly ConfigKind<object>[] = [trainKind, tokenizerKind, pretrainKind, classifierKind].map(
  (kind) => kind as unknown as ConfigKind<object>,
);

/**
 * The kind that a configuration is of: the one that has all its sections and fewest others, of which an older run may
 * lack some; null where there is none.
 */
export function kindOfRun({ config }: Run): ConfigKind<object> | null {
  const names = Object.keys(config);
  const fitting = KINDS.map((kind) => ({ kind, sections: new Set(kind.keys.map(({ path }) => path[0])) }))
    .filter(({ sections }) => names.every((name) => sections.has(name)) && names.length * 2 >= sections.size)
    .sort((a, b) => a.sections.size - b.sections.size);
  return fitting[0]?.kind ?? null;
}

/** The algorithm, the contexts, the preset and the seed in words, as far as there are such. */
export function summaryOf(run: Run): string {
  const at = (path: string): unknown => valueAt(run.config, path);
  const kind = kindOfRun(run);
  const parts = [
    typeof at("algorithm") === "string" ? String(at("algorithm")).toUpperCase() : (kind?.name ?? null),
    typeof at("rollout.context.type") === "string"
      ? `${String(at("rollout.context.type")).replaceAll("_", " ")} contexts`
      : null,
    typeof at("preset") === "string" ? `preset ${at("preset")}` : null,
    at("seed") === undefined ? null : `seed ${at("seed")}`,
  ];
  return parts.filter((part) => part !== null).join(" · ");
}

/** A key whose value is not the default. */
interface Changed {
  readonly path: string;
  readonly value: unknown;
  readonly usual: unknown;
}

/** Keys that differ from the defaults, in the order of the schema; null for a configuration of no known kind. */
export function changedKeys(run: Run): Changed[] | null {
  const kind = kindOfRun(run);
  if (kind === null) return null;
  return pathsIn(run.config, kind).flatMap((path) => {
    const value = valueAt(run.config, path);
    const usual = kind.keyAt(path)?.default;
    return JSON.stringify(value) === JSON.stringify(usual) ? [] : [{ path, value, usual }];
  });
}

/** What `rlar` says of such a configuration before it starts; nothing where it cannot be read again. */
export function configNotes(run: Run): readonly string[] {
  const kind = kindOfRun(run);
  const parsed = kind?.schema.safeParse(run.config);
  if (kind === null || !parsed?.success) return [];
  const given = new Set(changedKeys(run)?.map(({ path }) => path));
  const found = new Findings({ isGiven: (path) => given.has(path), whereOf: (path) => path });
  kind.notes(parsed.data, found);
  return found.notes;
}

/** A value of the configuration as it would be written. */
export const valueText = (value: unknown): string =>
  typeof value === "string" ? value : value === undefined ? "absent" : JSON.stringify(value);

/** The section on the configuration: what was changed, then all of it. */
export function configSection(run: Run): Html {
  if (Object.keys(run.config).length === 0) return html`<p>There is no config.yaml in the folder.</p>`;
  const changed = changedKeys(run);
  const kind = kindOfRun(run);
  const head = ["key", "value", "default", "what it is"];
  const rows = (changed ?? []).map(({ path, value, usual }) => [
    html`<code>${path}</code>`,
    html`<code>${valueText(value)}</code>`,
    html`<code>${valueText(usual)}</code>`,
    html`<span class="help">${kind?.keyAt(path)?.help}</span>`,
  ]);
  const all =
    kind === null
      ? diffConfigs({}, run.config).map(({ path, after }) => [path, valueText(after), ""])
      : pathsIn(run.config, kind).map((path) => [
          path,
          valueText(valueAt(run.config, path)),
          kind.keyAt(path)?.help,
        ]);
  return html`${
    changed !== null && html`<p>What differs from the defaults:</p>${table(head, rows)}`
  }<details><summary>All ${all.length} keys</summary>
${table(
  ["key", "value", "what it is"],
  all.map(([path, value, help]) => [
    html`<code>${path}</code>`,
    html`<code>${value}</code>`,
    html`<span class="help">${help}</span>`,
  ]),
)}</details>`;
}

/** The command line that a run was started by, as it can be pasted where this process runs. */
export function commandText(command: readonly string[]): string {
  const [, script = "", ...rest] = command;
  if (!/(^|[\\/])(rlar(\.mjs)?|cli[\\/]main\.js|run\.mjs)$/.test(script))
    return ["node", script, ...rest].map(shellWord).join(" ");
  return rlarCommand(/run\.mjs$/.test(script) && rest[0] === "rlar" ? rest.slice(1) : rest);
}

/** The section on how to do it again. */
export function commandSection(run: Run): Html {
  const kind = kindOfRun(run);
  const begun = run.starts[0]?.environment.command;
  const passed = (kind?.keys ?? [])
    .filter(({ live, path }) => live !== undefined && (valueAt(run.config, path.join(".")) ?? null) !== null)
    .map(({ path }) => path.join("."));
  const file = join(run.folder, "config.yaml");
  const name = kind?.name ?? "train";
  const lines: [string, string][] = [
    ...(begun === undefined ? [] : [["As it was started", commandText(begun)] as [string, string]]),
    ...(kind === null || passed.length > 0
      ? []
      : ([
          ["Again, in a folder of its own", rlarCommand([name, file, `run.dir=${run.folder}-again`])],
          [
            "On from the last checkpoint",
            rlarCommand([name, file, `run.dir=${run.folder}`, "run.ifExists=resume"]),
          ],
        ] as [string, string][])),
  ];
  return html`<dl class="commands">${lines.map(([what, line]) => html`<dt>${what}</dt><dd><pre>${line}</pre></dd>`)}</dl>${
    passed.length > 0 &&
    html`<p>A program passed ${passed.join(", ")}, which no file holds: run that program again.</p>`
  }`;
}
