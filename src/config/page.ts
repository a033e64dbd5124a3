/** `docs/configuration.md`: every key of every command as a page, written from the schemas. */
import { explainConfig, flow, type KeyExplanation, RESUMED, rangeOf } from "./explain.js";
import type { ConfigKind, Resumed } from "./kind.js";

const INTRO = `# Configuration

Every key of \`rlar train\`, \`rlar pretrain\`, \`rlar tokenizer\` and \`rlar classifier\`. This page is written by
\`npm run --silent rlar -- config docs > docs/configuration.md\` from the schemas in \`src/config\`; a test compares the two.

**Where values come from.** Defaults, then a preset, then a YAML or JSON file, then a program's values, then \`key=value\` on
the command line; later ones win, and of a key that the command line repeats, the last. \`null\` unsets a value. Values on the
command line are YAML: \`optimizer.betas=[0.9, 0.95]\`. \`rlar config show FILE key=value\` prints the whole, \`rlar config
explain KEY\` one key, \`rlar config schema\` a JSON Schema for editors.

**Spelling.** Keys may be in camelCase or snake_case (\`rollout.numGenerations\`, \`rollout.num_generations\`). An unknown key is
an error that names the nearest one. In TypeScript, \`const cfg: TrainConfigInput = { ... }\` is checked by the compiler in
either spelling.

**Paths.** A relative path in a file is relative to the file; on the command line and in a program it is relative to the
working directory.

**Presets.** A value of a preset that does not fit what you set is replaced, and a note says so. Two values that you set
yourself and that do not fit are an error.

**The original description.** Its configuration works as it is. \`grpo.enabled\` is a key that only it has, so it also takes
what the description implies: no auxiliary cross-entropy, a constant learning rate without warm-up, no clipping of advantages,
a clip range of 0.2, each unless you set it. A note lists these values. Set \`algorithm: grpo\` in its place to get the
defaults below.

**Resuming.** The last column says what a changed key does to a run that is resumed:
`;

/** The page for some kinds. The first is shown whole, of the others what differs from it. */
export function configurationPage(kinds: readonly ConfigKind<object>[]): string {
  const [first] = kinds;
  const usual = new Map(
    first === undefined ? [] : explainConfig("", first).map((key) => [key.path, rowOf(key)]),
  );
  const legend = Object.entries(RESUMED).map(([name, text]) => `- \`${name}\`: ${text}`);
  const commands = kinds.map((kind) => commandPage(kind, kind === first ? new Map() : usual));
  return `${INTRO}${legend.join("\n")}\n${commands.join("")}`;
}

function commandPage(kind: ConfigKind<object>, usual: ReadonlyMap<string, string>): string {
  const presets = Object.entries(kind.presets).map(([name, { about }]) => `- \`preset=${name}\`: ${about}`);
  const all = explainConfig("", kind);
  const same = all.filter((key) => usual.get(key.path) === rowOf(key));
  const other = all.filter((key) => !same.includes(key));
  const groups = new Map<string, KeyExplanation[]>();
  for (const key of other) {
    const [top = "", ...rest] = key.path.split(".");
    const group = rest.length === 0 ? "" : top;
    groups.set(group, [...(groups.get(group) ?? []), key]);
  }
  const tables = [...groups].map(([name, keys]) => {
    const heading = name === "" ? "\n" : `\n### ${kind.name}: ${name}\n\n`;
    const head = "| key | default | range | what it is, and when to change it | resume |";
    return `${heading}${head}\n| --- | --- | --- | --- | --- |\n${keys.map(rowOf).join("\n")}\n`;
  });
  const names = same.map(({ path }) => `\`${path}\``).join(", ");
  return (
    `\n## rlar ${kind.name}\n` +
    (presets.length > 0 ? `\n${presets.join("\n")}\n` : "") +
    (same.length > 0 ? `\nThese keys are the same as those of \`rlar train\`: ${names}.\n` : "") +
    tables.join("")
  );
}

/** A key as a row of a table. */
function rowOf(key: KeyExplanation): string {
  const cell = (text: string): string => text.replaceAll("|", "\\|");
  const also = key.aliases.map((name) => `\`${name}\``).join(", ");
  const text = `${key.help} ${key.when}${also === "" ? "" : ` Also: ${also}.`}`;
  const resume: Resumed = key.onResume;
  return `| \`${key.path}\` | \`${cell(flow(key.default))}\` | ${cell(rangeOf(key))} | ${cell(text)} | ${resume} |`;
}
