/** Writes `docs/configuration.md`, a page with every key of every command, from the schemas. */
import { explainConfig, flow, type KeyExplanation, RESUMED, rangeOf } from "./explain.js";
import type { ConfigKind, Resumed } from "./kind.js";

const INTRO = `# Configuration

This page lists every key of \`rlar train\`, \`rlar pretrain\`, \`rlar tokenizer\`, \`rlar classifier\` and \`rlar sweep\`. It is written by
\`npm run --silent rlar -- config docs > docs/configuration.md\` from the schemas in \`src/config\`; a test compares the two.

**Where values come from.** Values come from the defaults, a preset, a YAML or JSON file, a program, and \`key=value\` on the command
line; each overrides the ones before. If the command line repeats a key, the last value wins. \`null\` unsets a value. Values on
the command line are YAML: \`optimizer.betas=[0.9, 0.95]\`. \`rlar config show FILE key=value\` prints the whole configuration,
\`rlar config explain KEY\` explains a key, and \`rlar config schema\` prints a JSON Schema for editors.

**Spelling.** Keys may be in camelCase or snake_case (\`rollout.numGenerations\`, \`rollout.num_generations\`). An unknown key is
an error, which names the most similar key. In TypeScript the compiler checks \`const cfg: TrainConfigInput = { ... }\` in both
spellings.

**Paths.** A relative path in a file is relative to the file; on the command line and in a program it is relative to the
working directory.

**Presets.** If a value of a preset does not fit a value that you set, the preset's value is replaced, and a note says so. If two
values that you set do not fit together, that is an error.

**The original description.** The configuration in the original description of this project works unchanged. Its key
\`grpo.enabled\` also sets that description's other defaults, unless you set them: no auxiliary cross-entropy, a constant learning
rate without warm-up, no clipping of advantages, a clip range of 0.2. A note lists these values. Use \`algorithm: grpo\` instead
to get the defaults below.

**Resuming.** The last column says whether a key may be changed when a run is resumed:
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
    const head = "| key | default | range | meaning, and when to change it | resume |";
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
