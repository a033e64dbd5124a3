/**
 * What the sources may import, how large they may grow, and what no file of the project may hold.
 */
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { basename, dirname, join, posix, relative, sep } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

const root = dirname(dirname(dirname(fileURLToPath(import.meta.url))));

/** A folder of src and the folders that its files may import beside their own; what is not listed may not. */
const MODELS = ["torch", "distributed", "nn", "data", "encoders", "tokenizers", "policies", "metrics"];
const LOOP = [...MODELS, "config", "run", "rl_ar_finetune"];
const FLOORS: Readonly<Record<string, readonly string[]>> = {
  torch: [],
  distributed: ["torch"],
  nn: ["torch", "distributed"],
  data: ["torch", "nn", "distributed"],
  encoders: ["torch", "nn", "data"],
  tokenizers: ["torch", "nn"],
  policies: ["torch", "nn"],
  metrics: ["torch", "nn", "encoders"],
  config: MODELS,
  run: [...MODELS, "config"],
  rl_ar_finetune: [...MODELS, "config", "run"],
  trainers: LOOP,
  evaluation: LOOP,
  plan: LOOP,
  sweep: [...LOOP, "evaluation"],
  dashboard: [...LOOP, "trainers", "evaluation", "plan", "sweep"],
  cli: [...LOOP, "trainers", "evaluation", "plan", "sweep", "dashboard"],
  // src/index.ts, the package root, lies in no folder.
  "": [...LOOP, "trainers", "evaluation", "plan", "dashboard"],
};

/** Folders of models, and the only files above them that may name what is in them; the command line and the root may too. */
const BUILDERS = [
  "src/rl_ar_finetune/builder.ts",
  "src/rl_ar_finetune/open_encoders.ts",
  "src/rl_ar_finetune/describe_weights.ts",
  "src/plan/costs.ts",
  "src/plan/models.ts",
];
const CONCRETE: Readonly<Record<string, readonly string[]>> = {
  encoders: [...BUILDERS, "src/rl_ar_finetune/encoder_rewards.ts"],
  tokenizers: BUILDERS,
  policies: BUILDERS,
  metrics: [...BUILDERS, "src/rl_ar_finetune/rewards.ts"],
};

/** Files beside the models that name none: plain functions over the interfaces, for anyone. */
const SHARED: ReadonlySet<string> = new Set([
  "src/policies/condition.ts",
  "src/policies/guidance.ts",
  "src/metrics/distribution.ts",
  "src/metrics/neighbours.ts",
  "src/metrics/measures.ts",
  "src/metrics/ranks.ts",
]);

const MAX_LINES = 700;

interface Import {
  /** Path below the root, with forward slashes. */
  readonly target: string;
  /** `import type`, which leaves nothing in the compiled file. */
  readonly isTypeOnly: boolean;
}

/** Files below a folder of the root with one of the endings, as paths below the root. */
function filesIn(folder: string, ...endings: string[]): string[] {
  if (!existsSync(join(root, folder))) return [];
  return readdirSync(join(root, folder), { recursive: true, encoding: "utf8" })
    .filter((name) => endings.some((ending) => name.endsWith(ending)))
    .map((name) => `${folder}/${name.split(sep).join("/")}`)
    .sort();
}

/** The project's own files that a source imports. Statements are formatted, so each begins a line. */
function importsOf(file: string, text: string): Import[] {
  const code = text.replace(/^[ \t]*\/\*[\s\S]*?\*\//gm, "");
  const statement =
    /^(?:import|export)\s+(type\s)?(?:[^;"'`]*?\sfrom\s+)?"(\.[^"]+)"|\bimport\("(\.[^"]+)"\)/gm;
  const found: Import[] = [];
  for (const [, typeWord, fixed, dynamic] of code.matchAll(statement)) {
    const target = posix.join(posix.dirname(file), (fixed ?? dynamic ?? "").replace(/\.js$/, ".ts"));
    if (existsSync(join(root, target))) found.push({ target, isTypeOnly: typeWord !== undefined });
  }
  return found;
}

function floorOf(file: string): string {
  const [top, folder, ...rest] = file.split("/");
  assert.equal(top, "src");
  return rest.length === 0 ? "" : (folder ?? "");
}

/** Why a file of src may not import another, or undefined when it may. */
function importProblem(file: string, { target, isTypeOnly }: Import): string | undefined {
  if (!target.startsWith("src/")) return "src imports nothing outside src";
  const from = floorOf(file);
  const to = floorOf(target);
  if (from === to) return undefined;
  const allowed = FLOORS[from];
  if (allowed === undefined) return `src/${from} is no floor of the design`;
  if (!allowed.includes(to)) {
    return `src/${from} may import ${["itself", ...allowed].join(", ")}, not src/${to || "index.ts"}`;
  }
  const namers = from === "cli" || from === "" ? undefined : CONCRETE[to];
  if (namers === undefined || isTypeOnly || SHARED.has(target)) return undefined;
  if (namers.includes(file)) return undefined;
  return `only ${namers.join(" and ")} may import src/${to}, others its types (import type)`;
}

/** One cycle among imports, as the files on it, or undefined. */
function findCycle(graph: ReadonlyMap<string, readonly string[]>): string[] | undefined {
  const finished = new Set<string>();
  const path: string[] = [];
  const visit = (file: string): string[] | undefined => {
    if (path.includes(file)) return [...path.slice(path.indexOf(file)), file];
    if (finished.has(file)) return undefined;
    path.push(file);
    for (const target of graph.get(file) ?? []) {
      const cycle = visit(target);
      if (cycle !== undefined) return cycle;
    }
    path.pop();
    finished.add(file);
    return undefined;
  };
  for (const file of graph.keys()) {
    const cycle = visit(file);
    if (cycle !== undefined) return cycle;
  }
  return undefined;
}

const sources = filesIn("src", ".ts").map((file) => ({ file, text: readFileSync(join(root, file), "utf8") }));
const imports = new Map(sources.map(({ file, text }) => [file, importsOf(file, text)]));

test("the scan sees every form of import", () => {
  const text = [
    'import { a } from "./errors.js";',
    "import {",
    "  b,",
    '} from "./dtype.js";',
    'import type { C } from "./dtype.js";',
    'export { d } from "./errors.js";',
    'import "./errors.js";',
    '  const e = await import("./dtype.js");',
    '/* import { f } from "./errors.js"; */',
    ' * import { g } from "./errors.js";',
    'import { h } from "node:fs";',
  ].join("\n");
  const errors = { target: "src/torch/errors.ts", isTypeOnly: false };
  const dtype = { target: "src/torch/dtype.ts", isTypeOnly: false };
  const expected = [errors, dtype, { ...dtype, isTypeOnly: true }, errors, errors, dtype];
  assert.deepEqual(importsOf("src/torch/any.ts", text), expected);
});

test("the rules refuse what the design forbids", () => {
  const problem = (file: string, target: string, isTypeOnly = false): string | undefined =>
    importProblem(file, { target, isTypeOnly });
  assert.equal(problem("src/nn/linear.ts", "src/torch/tensor.ts"), undefined);
  assert.equal(problem("src/torch/tensor.ts", "src/nn/linear.ts"), "src/torch may import itself, not src/nn");
  assert.equal(
    problem("src/policies/gpt.ts", "src/tokenizers/vq.ts", true),
    "src/policies may import itself, torch, nn, not src/tokenizers",
  );
  assert.equal(problem("src/rl_ar_finetune/builder.ts", "src/policies/gpt.ts"), undefined);
  assert.equal(problem("src/rl_ar_finetune/rewards.ts", "src/metrics/lpips.ts"), undefined);
  assert.equal(problem("src/rl_ar_finetune/sampling.ts", "src/policies/ar_policy.ts", true), undefined);
  assert.equal(
    problem("src/rl_ar_finetune/sampling.ts", "src/policies/gpt.ts"),
    `only ${BUILDERS.join(" and ")} may import src/policies, others its types (import type)`,
  );
  assert.match(problem("src/index.ts", "src/cli/main.ts") ?? "", /not src\/cli$/);
  assert.match(problem("src/dashboard/server.ts", "src/cli/main.ts") ?? "", /not src\/cli$/);
  assert.equal(problem("src/nn/linear.ts", "test/support/close.ts"), "src imports nothing outside src");
  assert.equal(problem("src/extra/a.ts", "src/torch/tensor.ts"), "src/extra is no floor of the design");
  const cycle = findCycle(
    new Map([
      ["a", ["b"]],
      ["b", ["c"]],
      ["c", ["b"]],
    ]),
  );
  assert.deepEqual(cycle, ["b", "c", "b"]);
});

test("imports between the floors of src only go down", () => {
  const problems = [...imports].flatMap(([file, targets]) =>
    targets.flatMap((entry) => {
      const problem = importProblem(file, entry);
      return problem === undefined ? [] : [`${file} imports ${entry.target}: ${problem}`];
    }),
  );
  assert.deepEqual(problems, []);
});

test("no source imports itself by way of others", () => {
  const targets = [...imports].map(([file, list]): [string, string[]] => [
    file,
    list.map(({ target }) => target),
  ]);
  assert.equal(findCycle(new Map(targets))?.join(" -> "), undefined);
});

test(`sources stay under ${MAX_LINES} lines and open with what they are`, () => {
  const others = [...filesIn("native", ".cc", ".h"), ...filesIn("scripts", ".mjs", ".ts")];
  const all = [...sources, ...others.map((file) => ({ file, text: readFileSync(join(root, file), "utf8") }))];
  const problems = all.flatMap(({ file, text }) => {
    const lines = text.split("\n").length - 1;
    return [
      ...(lines < MAX_LINES ? [] : [`${file}: ${lines} lines`]),
      ...(/^(#!.*\n)?\/[/*]/.test(text)
        ? []
        : [`${file}: does not open with a comment that says what it is`]),
    ];
  });
  assert.deepEqual(problems, []);
});

test("source files are named in snake_case", () => {
  const odd = sources.filter(({ file }) => !/^[a-z0-9_]+(\.d)?\.ts$/.test(basename(file)));
  assert.deepEqual(
    odd.map(({ file }) => file),
    [],
  );
});

test("package-lock.json names no address to download from", () => {
  const lock = JSON.parse(readFileSync(join(root, "package-lock.json"), "utf8")) as {
    packages: Record<string, { resolved?: string }>;
  };
  const addressed = Object.entries(lock.packages).filter(([, entry]) => entry.resolved !== undefined);
  assert.deepEqual(
    addressed.map(([name]) => name),
    [],
    'omit-lockfile-registry-resolved=true in .npmrc keeps "resolved" out: run npm install again',
  );
});

test("package-lock.json has an entry for every platform's binary", () => {
  const lock = JSON.parse(readFileSync(join(root, "package-lock.json"), "utf8")) as {
    packages: Record<string, { optionalDependencies?: Record<string, string> }>;
  };
  const named = Object.values(lock.packages).flatMap((entry) =>
    Object.keys(entry.optionalDependencies ?? {}),
  );
  assert.deepEqual(
    named.filter((name) => lock.packages[`node_modules/${name}`] === undefined),
    [],
    "npm ci refuses a lock that lacks one",
  );
});

test("no file holds a path of someone's machine or the address of a package registry", (t) => {
  if (!existsSync(join(root, ".git")))
    return t.skip("not a git checkout, so which files are the project's is unknown");
  const listed = ["ls-files", "-z", "--cached", "--others", "--exclude-standard"];
  const files = execFileSync("git", listed, { cwd: root, encoding: "utf8" }).split("\0").filter(Boolean);
  const machinePath = /(?<![\w.~-])\/(?:home|Users|root|work)\/[\w.-]+|[A-Z]:\\Users\\/;
  const registry =
    /\b(?:registry\.(?:npmjs|yarnpkg)\.|(?:test\.)?pypi\.org|pythonhosted\.org|deb\.debian\.org)/;
  const self = relative(root, fileURLToPath(import.meta.url).replace(/^(.*)dist[\\/](.*)\.js$/, "$1$2.ts"));
  const problems: string[] = [];
  for (const file of files) {
    if (file === self.split(sep).join("/") || !existsSync(join(root, file))) continue;
    const bytes = readFileSync(join(root, file));
    if (bytes.includes(0)) continue; // not text
    bytes
      .toString("utf8")
      .split("\n")
      .forEach((line, i) => {
        const hit = machinePath.exec(line) ?? registry.exec(line);
        if (hit !== null) problems.push(`${file}:${i + 1} holds ${hit[0]}`);
      });
  }
  assert.deepEqual(problems, []);
});
