/**
 * What a folder of LibTorch holds: version, CUDA, C++ ABI, and the CUDA headers that fit it. Looks at files
 * only; nothing of LibTorch is loaded here.
 */
import { existsSync, readdirSync, readFileSync, statSync } from "node:fs";
import { basename, dirname, join } from "node:path";

/** Oldest LibTorch whose C++ interface the addon is written for: major, minor. */
export const OLDEST = [2, 6];

/** File name of a shared library on this system. */
export function library(name) {
  return `lib${name}.${process.platform === "darwin" ? "dylib" : "so"}`;
}

/**
 * @typedef {{ version: string, path: string, cuda: boolean, cudaVersion?: string, cxx11Abi?: 0 | 1,
 *   problem?: undefined }} LibTorch `cuda`: it has libtorch_cuda; `cxx11Abi` is undefined where the standard
 *   library has one ABI only.
 */

/**
 * Look at a folder that should be a LibTorch.
 *
 * @param {string} path folder with `lib` and `include`: an unpacked LibTorch or a torch package.
 * @param {boolean} [wantsCuda] whether one without CUDA does not fit.
 * @returns {LibTorch | { problem: string }} `problem`: why it cannot be used.
 */
export function inspectLibTorch(path, wantsCuda = false) {
  if (!existsSync(path)) return { problem: "no such folder" };
  const missing = ["lib", "include"].filter((name) => !isFolder(join(path, name)));
  if (missing.length > 0) return { problem: `no folder ${missing.join(" and ")} in it` };
  const absent = ["c10", "torch_cpu", "torch"]
    .map(library)
    .filter((name) => !existsSync(join(path, "lib", name)));
  if (absent.length > 0) return { problem: `no ${absent.join(", ")} in its lib folder` };
  const version = readVersion(path);
  if (version === undefined)
    return { problem: "its version cannot be read: no version.h under include/torch" };
  const [major, minor] = version.split(".").map(Number);
  if (major < OLDEST[0] || (major === OLDEST[0] && minor < OLDEST[1])) {
    return { problem: `version ${version}, which is older than ${OLDEST.join(".")}` };
  }
  const cuda = existsSync(join(path, "lib", library("torch_cuda")));
  if (wantsCuda && !cuda) return { problem: "no CUDA in it, which RLAR_CUDA=1 asks for" };
  return {
    version,
    path,
    cuda,
    cudaVersion: /^cuda\b.*?=\s*'([\d.]+)'/m.exec(readText(join(path, "version.py")))?.[1],
    cxx11Abi: readCxx11Abi(path),
  };
}

function readVersion(path) {
  const header = ["headeronly/version.h", "csrc/api/include/torch/version.h"]
    .map((name) => readText(join(path, "include", "torch", name)))
    .join("\n");
  const part = (name) => new RegExp(`#define TORCH_VERSION_${name} (\\d+)`).exec(header)?.[1];
  const parts = ["MAJOR", "MINOR", "PATCH"].map(part);
  if (parts.every((value) => value !== undefined)) return parts.join(".");
  return /^__version__ = '(\d+\.\d+\.\d+)/m.exec(readText(join(path, "version.py")))?.[1];
}

/** The ABI of std::string that libc10 was compiled with, read from the mangled names of c10::Error. */
function readCxx11Abi(path) {
  if (process.platform !== "linux") return undefined;
  return readFileSync(join(path, "lib", library("c10"))).includes("__cxx11") ? 1 : 0;
}

/**
 * Folder of CUDA headers that fit a LibTorch with CUDA: of `CUDA_HOME`, of NVIDIA's packages beside torch, or
 * of the toolkit's usual place. The runtime's header is all that the addon includes.
 *
 * @returns {{ folder: string } | { reason: string }} `reason`: why there is none.
 */
export function findCudaHeaders(libtorch, env) {
  if (!libtorch.cuda) return { reason: "this LibTorch has no CUDA" };
  const nvidia = join(dirname(libtorch.path), "nvidia");
  const folders = [
    ...(env.CUDA_HOME ? [join(env.CUDA_HOME, "include")] : []),
    ...(isFolder(nvidia) ? readdirSync(nvidia).map((name) => join(nvidia, name, "include")) : []),
    "/usr/local/cuda/include",
  ];
  const misfits = [];
  for (const folder of folders) {
    const header = readText(join(folder, "cuda_runtime_api.h"));
    if (header === "") continue;
    const major = Math.floor(Number(/#define CUDART_VERSION\s+(\d+)/.exec(header)?.[1] ?? 0) / 1000);
    if (libtorch.cudaVersion !== undefined && Number.parseInt(libtorch.cudaVersion, 10) !== major) {
      misfits.push(`${folder} is of CUDA ${major}, LibTorch of CUDA ${libtorch.cudaVersion}`);
    } else if (!existsSync(join(folder, "crt", "host_defines.h"))) {
      misfits.push(`${folder} has no crt/host_defines.h, which NVIDIA's package nvidia-cuda-crt brings`);
    } else {
      return { folder };
    }
  }
  const places = ["CUDA_HOME", join(nvidia, "*", "include"), "/usr/local/cuda/include"].join(", ");
  return { reason: misfits.length > 0 ? misfits.join("; ") : `no cuda_runtime_api.h in ${places}` };
}

/** Folder of NCCL's header for a LibTorch with CUDA, from NVIDIA's package beside torch, or undefined. */
export function findNcclHeaders(libtorch, cudaHeaders) {
  const folders = [join(dirname(libtorch.path), "nvidia", "nccl", "include"), cudaHeaders, "/usr/include"];
  return folders.find((folder) => existsSync(join(folder, "nccl.h")));
}

/** NVIDIA's packages that the torch package beside `path` asks for; none when it does not say. */
export function wantedNvidiaPackages(path) {
  const site = dirname(path);
  const info = readdirSync(site).find((name) => /^torch-.*\.dist-info$/.test(name));
  if (basename(path) !== "torch" || info === undefined) return [];
  const lines = readText(join(site, info, "METADATA")).matchAll(
    /^Requires-Dist: ((?:nvidia|cuda)-[\w-]+(?:\[[\w,]+\])?)/gm,
  );
  return [...lines].map((match) => match[1]);
}

function isFolder(path) {
  return statSync(path, { throwIfNoEntry: false })?.isDirectory() ?? false;
}

function readText(path) {
  return existsSync(path) ? readFileSync(path, "utf8") : "";
}
