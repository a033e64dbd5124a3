/** `rlar average`: the average of policies that were fine-tuned from the same one, or a step beyond it. */
import { existsSync, statSync } from "node:fs";
import { basename, resolve } from "node:path";
import { ConfigError } from "../config/resolve.js";
import { optionsOfRun, type PolicyFile } from "../evaluation/options.js";
import { averagePolicies } from "../rl_ar_finetune/average.js";
import { requireNew, requireWritable } from "../run/folder.js";
import { expected, expectedMessage } from "../torch/index.js";

/** Options of `rlar average`. */
export interface AverageCommandOptions {
  out: string;
  base?: string;
  scale: number;
  force?: boolean;
  json?: boolean;
}

/** Average policies. Nothing is written unless all are finite and of one architecture. */
export function average(paths: readonly string[], options: AverageCommandOptions): void {
  const { out, scale, force = false, json = false } = options;
  requireWritable("--out", out, [".safetensors"]);
  requireNew(out, force);
  const found = paths.map(policyOf);
  const files = found.map(({ file }) => file.path);
  const twice = files.find((file, i) => files.indexOf(file) < i);
  if (twice !== undefined)
    throw new ConfigError([expectedMessage("average", "each policy once", `${twice} twice`)]);
  const base = options.base === undefined ? baseOf(found, scale) : { path: options.base };
  const agreement = averagePolicies(
    found.map(({ file }) => file),
    { base, scale, out },
  );
  const facts = { out, policies: files, base: base?.path ?? null, scale, agreement };
  process.stdout.write(json ? `${JSON.stringify(facts)}\n` : textOf(facts));
}

interface Found {
  readonly file: PolicyFile;
  /** What the policy was fine-tuned from, where that is known. */
  readonly base?: PolicyFile | undefined;
}

/** The policy of a run, or the file itself. */
function policyOf(path: string): Found {
  if (!existsSync(path) || !statSync(path).isDirectory()) return { file: { path: resolve(path) } };
  const { policy, against } = optionsOfRun(path, "last", "average");
  const file = against ?? policy;
  if (file === undefined) throw expected(path, "the run of a policy", "another run");
  return {
    file: { ...file, path: resolve(file.path) },
    base: against && policy && { ...policy, path: resolve(policy.path) },
  };
}

/** What all policies started from; undefined where no base is known and none is needed. */
function baseOf(found: readonly Found[], scale: number): PolicyFile | undefined {
  const bases = found.flatMap(({ base }) => (base === undefined ? [] : [base]));
  const paths = [...new Set(bases.map(({ path }) => path))];
  if (paths.length > 1) {
    throw new ConfigError([
      expectedMessage(
        "average",
        "policies that were fine-tuned from the same one",
        paths.join(" and "),
        "Where these are copies of one file, --base names it",
      ),
    ]);
  }
  if (scale === 1 || bases.length === found.length) return bases[0];
  const remedy = "Folders of runs know it, files of weights do not";
  throw new ConfigError([
    expectedMessage("--base", `the policy that scale ${scale} starts from`, "none", remedy),
  ]);
}

function textOf({
  out,
  policies,
  base,
  scale,
  agreement,
}: {
  out: string;
  policies: readonly string[];
  base: string | null;
  scale: number;
  agreement: number | null;
}): string {
  const what = policies.length === 1 ? "1 policy" : `the average of ${policies.length} policies`;
  const from = base === null || scale === 1 ? "" : `, ${scale} times its change from ${basename(base)}`;
  const shared =
    agreement === null
      ? ""
      : `cosine similarity of the changes of two policies: ${agreement.toFixed(3)} (1: both learnt the same, 0: nothing in common)\n`;
  return `${out}: ${what}${from}\n${shared}`;
}
