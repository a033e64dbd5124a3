/** The environment of a run for `env.json` and checkpoints: versions, machine and commit. */
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { arch, cpus, hostname, platform, release, totalmem } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

import { cudaDeviceCount, getNumThreads, version } from "../torch/index.js";

/** The package's own folder, from `dist/src/run`. */
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

/** Facts that may differ between machines. */
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
  /** Environment variables, where set, that change the numeric libraries or the set-up. */
  readonly variables: Readonly<Record<string, string>>;
  /** The command line. */
  readonly command: readonly string[];
  readonly startedAt: string;
}

/** The variables that are recorded where they are set: no others, since they may hold keys and passwords. */
const VARIABLES = [
  ...["OMP_NUM_THREADS", "OMP_WAIT_POLICY", "OMP_PROC_BIND", "OMP_PLACES", "OMP_SCHEDULE", "OMP_DYNAMIC"],
  ...["GOMP_CPU_AFFINITY", "GOMP_SPINCOUNT", "KMP_AFFINITY", "KMP_BLOCKTIME", "OPENBLAS_NUM_THREADS"],
  ...["MKL_NUM_THREADS", "MKL_DYNAMIC", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "DNNL_MAX_CPU_ISA"],
  ...["ONEDNN_MAX_CPU_ISA", "ONEDNN_DEFAULT_FPMATH_MODE", "ATEN_CPU_CAPABILITY"],
  ...["CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "CUDA_LAUNCH_BLOCKING", "CUDA_MODULE_LOADING"],
  ...["CUBLAS_WORKSPACE_CONFIG", "NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"],
  ...["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_NO_CUDA_MEMORY_CACHING"],
  ...["LIBTORCH", "RLAR_CACHE", "RLAR_CUDA", "RLAR_DEBUG"],
] as const;

/** The commit of the code that this process has loaded; undefined until it is asked for. */
let ownCommit: Environment["commit"] | undefined;

/** Collect the environment. The first call runs git, if it exists. */
export function environment(): Environment {
  const { config } = version();
  if (ownCommit === undefined) ownCommit = commitOf(root);
  const processors = cpus();
  const variables = VARIABLES.flatMap((name) => {
    const value = process.env[name];
    return value === undefined ? [] : [[name, value] as const];
  });
  return {
    versions: versions(),
    libtorchConfig: config,
    commit: ownCommit,
    os: `${platform()} ${release()} ${arch()}`,
    host: hostname(),
    cpu: { model: processors[0]?.model.trim() ?? "unknown", cores: processors.length },
    memoryBytes: totalmem(),
    cudaDevices: cudaDeviceCount(),
    threads: getNumThreads(),
    variables: Object.fromEntries(variables),
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
    return null; // no git, no repository, or no commit yet: in all cases there is no commit to record
  }
}
