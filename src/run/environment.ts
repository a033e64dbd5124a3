/** What a run was made with: versions, machine and commit, for `env.json` and checkpoints. */
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { arch, cpus, hostname, platform, release, totalmem } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

import { cudaDeviceCount, getNumThreads, version } from "../torch/index.js";

/** The package's own folder, from `dist/src/rl_ar_finetune`. */
const root: string = fileURLToPath(new URL("../../../", import.meta.url));

/** Versions of what computes. */
export interface Versions {
  readonly package: string;
  readonly node: string;
  readonly libtorch: string;
}

export function versions(): Versions {
  const { version: own } = JSON.parse(readFileSync(join(root, "package.json"), "utf8")) as {
    version: string;
  };
  return { package: own, node: process.versions.node, libtorch: version().torch };
}

/** Everything that another machine may have differently. */
export interface Environment {
  readonly versions: Versions;
  /** How LibTorch was built, as it says. */
  readonly libtorchConfig: string;
  /** Commit of the package's checkout, and whether files differ from it; null where it is no checkout. */
  readonly commit: { readonly id: string; readonly isDirty: boolean } | null;
  readonly os: string;
  readonly host: string;
  readonly cpu: { readonly model: string; readonly cores: number };
  readonly memoryBytes: number;
  readonly cudaDevices: number;
  /** Threads of an operator. */
  readonly threads: number;
  /** Variables that change what the numeric libraries do, where set. */
  readonly variables: Readonly<Record<string, string>>;
  /** The command line. */
  readonly command: readonly string[];
  readonly startedAt: string;
}

const VARIABLES =
  /^(OMP|MKL|KMP|GOMP|DNNL|ONEDNN|OPENBLAS|CUDA|CUBLAS|CUDNN|NVIDIA|PYTORCH|TORCH|ATEN|LIBTORCH|RLAR)(_|$)/;

/** Look around. Runs git once, where there is one. */
export function environment(): Environment {
  const { config } = version();
  const processors = cpus();
  const variables = Object.entries(process.env).filter(([name]) => VARIABLES.test(name)) as [
    string,
    string,
  ][];
  return {
    versions: versions(),
    libtorchConfig: config,
    commit: commitOf(root),
    os: `${platform()} ${release()} ${arch()}`,
    host: hostname(),
    cpu: { model: processors[0]?.model.trim() ?? "unknown", cores: processors.length },
    memoryBytes: totalmem(),
    cudaDevices: cudaDeviceCount(),
    threads: getNumThreads(),
    variables: Object.fromEntries(variables.sort(([a], [b]) => (a < b ? -1 : 1))),
    command: process.argv,
    startedAt: new Date().toISOString(),
  };
}

/** The commit that a folder is a checkout of: of the repository whose root it is, not of one around it. */
export function commitOf(folder: string): Environment["commit"] {
  const git = (...args: string[]): string =>
    execFileSync("git", ["-C", folder, ...args], {
      encoding: "utf8",
      stdio: ["ignore", "pipe", "ignore"],
      timeout: 5000,
    }).trim();
  try {
    if (git("rev-parse", "--show-prefix") !== "") return null;
    return {
      id: git("rev-parse", "HEAD"),
      isDirty: git("status", "--porcelain", "--untracked-files=no") !== "",
    };
  } catch {
    return null; // no git, no repository, or no commit yet: all mean that there is none to name
  }
}
