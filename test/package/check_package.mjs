#!/usr/bin/env node
/**
 * Is the package that npm would publish whole? Packs it, installs it into an empty project, imports it with types, and
 * uses it from the command line and from a program. Needs the npm registry; LibTorch comes from the cache.
 *
 *   node test/package/check_package.mjs
 */
import { spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const MOST_BYTES = 5e6;
const root = dirname(dirname(dirname(fileURLToPath(import.meta.url))));
const folder = mkdtempSync(join(tmpdir(), "rlar package "));

/** A program of a user, with types: a run of two steps on images that it makes. */
const PROGRAM = `
import { torch, trainRlLoop, type TrainConfigInput } from "rl-ar-finetune";

const tokenizer = {
  codebookSize: 4,
  downsample: 2,
  encode: (images: torch.Tensor) => images.mean(1).reshape([images.size(0), 2, 2, 2, 2]).mean([2, 4]).flatten(1).gt(0).long(),
  decodeCode: (codes: torch.Tensor) =>
    codes.double().div(2).sub(0.5).float().view(-1, 1, 2, 2).repeatInterleave(2, 2).repeatInterleave(2, 3).expand(-1, 3, -1, -1),
};
async function* loader() {
  for (;;) yield { images: torch.rand([2, 3, 4, 4]).mul(2).sub(1), classes: [0, 1] };
}
const cfg: TrainConfigInput = {
  run: { dir: "run" },
  tokenizer: { model: tokenizer },
  ar: { type: "gpt", nLayer: 1, nHead: 2, nEmbd: 8, extra: { classNum: 2 } },
  dataloader: loader(),
  rollout: { images: 2, numGenerations: 2 },
  reward: { l2: { weight: 1 } },
  train: { iters: 2 },
};
const { step, end } = await trainRlLoop(cfg);
console.log(\`done: \${step} \${end}\`);
`;

function run(name, args, { cwd = folder, expect } = {}) {
  process.stderr.write(`package: ${name} ${args.join(" ")}\n`);
  const env = { ...process.env };
  for (const key of Object.keys(env)) if (/^npm_|^INIT_CWD$|^NODE_PATH$/.test(key)) delete env[key];
  const { status, stdout, stderr, error } = spawnSync(name, args, { cwd, env, encoding: "utf8" });
  const output = `${stdout}${stderr}`;
  if (status !== 0 || (expect !== undefined && !expect.test(output))) {
    throw new Error(
      `${name} ${args.join(" ")}: expected exit code 0${expect ? ` and ${expect}` : ""}, got ${error?.message ?? status}:\n${output}`,
    );
  }
  return stdout;
}

try {
  const [packed] = Object.values(
    JSON.parse(run("npm", ["pack", "--json", "--pack-destination", folder], { cwd: root })),
  );
  const tarball = join(folder, packed.filename);
  const { size } = statSync(tarball);
  if (size > MOST_BYTES)
    throw new Error(`${packed.filename}: expected at most ${MOST_BYTES} bytes, got ${size}.`);
  writeFileSync(
    join(folder, "package.json"),
    JSON.stringify({ name: "user", private: true, type: "module" }),
  );
  run("npm", ["install", "--no-audit", "--no-fund", tarball]);
  run("npx", ["rlar", "--version"], { expect: /^\d+\.\d+\.\d+$/m });
  run("npx", ["rlar", "doctor"], { expect: /^libtorch +2/m });
  writeFileSync(join(folder, "program.ts"), PROGRAM);
  const options = [
    "--strict",
    "--module",
    "nodenext",
    "--target",
    "es2023",
    "--lib",
    "es2023,esnext.disposable",
  ];
  const types = ["--types", "node"]; // what the package brings along
  run(process.execPath, [
    join(root, "node_modules", "typescript", "bin", "tsc"),
    ...options,
    ...types,
    "program.ts",
  ]);
  run(process.execPath, ["program.js"], { expect: /done: 2 done/ });
  if (!existsSync(join(folder, "run", "report.html")))
    throw new Error("run/report.html: expected a page, got none.");
  run("npx", ["rlar", "report", "run"], { expect: /report\.html/ });
  console.log(`package: ${packed.filename}, ${(size / 1e6).toFixed(2)} MB, installed, imported, run`);
} finally {
  rmSync(folder, { recursive: true, force: true });
}
