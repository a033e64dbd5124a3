/**
 * Fetch the pinned LibTorch: torch's wheel through pip, unpacked into the cache without its Python half.
 * Everything is made aside and renamed when complete, under a lock, so that an interrupted or a second fetch
 * leaves nothing half made.
 */
import { accessSync, constants, readdirSync, renameSync, rmSync, statfsSync } from "node:fs";
import { dirname, join } from "node:path";
import { makeFolders } from "./folders.mjs";
import { inspectLibTorch, library } from "./libtorch.mjs";
import { withLock } from "./lock.mjs";
import { pythonCandidates } from "./python.mjs";
import { SetupError, step } from "./report.mjs";
import { run, saysDiskFull, tail } from "./shell.mjs";

const CPU_INDEX = "https://download.pytorch.org/whl/cpu"; // where PyTorch itself publishes its CPU builds
const CUDA_HEADERS = "nvidia-cuda-crt~=13.0"; // torch names the CUDA runtime's package, not this part of its headers
const NEEDED_GB = { cpu: 1, cuda: 12 };

/** Unpacks what a C++ program needs; zipfile checks every member's checksum, sync puts it on the disk. */
export const UNPACK = `
import os, re, sys, zipfile
wheel, folder = sys.argv[1:]
kept = re.compile(r"(torch\\.libs/|torch/(lib/|include/|\\.dylibs/|version\\.py$))")
left_out = re.compile(r"torch/lib/lib(torch_python|shm\\w*|\\w*test|backend_with_compiler|aoti_custom_ops)\\b")
with zipfile.ZipFile(wheel) as archive:
    names = [name for name in archive.namelist() if kept.match(name) and not left_out.match(name)]
    archive.extractall(folder, names)
os.sync()
`;

/**
 * @param {{ folder: string, version: string, kind: "cpu" | "cuda", env: NodeJS.ProcessEnv,
 *   pythons: import("./python.mjs").Python[], lookedFor: string[], freeBytes?: (folder: string) => number }} request
 *   `folder` is where it goes in the cache; `lookedFor` opens a failure's message.
 * @returns {Promise<ReturnType<typeof inspectLibTorch>>}
 */
export async function fetchLibTorch({ folder, version, kind, pythons, env, lookedFor, freeBytes = freeOn }) {
  const cache = dirname(folder);
  const fail = (headline, found, toDo) => {
    throw new SetupError(headline, {
      lookedFor: [...lookedFor, `torch ${version} (${kind}) through pip`],
      found,
      toDo: [...toDo, "or set LIBTORCH to a LibTorch that is already on this machine."],
    });
  };
  const python = pythons.find((candidate) => candidate.hasPip);
  if (python === undefined) {
    const found = pythons.map(({ program, version }) => `${program} is Python ${version} without pip`);
    if (found.length === 0) found.push(`none of ${pythonCandidates(env).join(", ")} runs`);
    fail("LibTorch is not on this machine, and fetching it takes a Python 3 with pip.", found, [
      "install Python 3 with pip (Debian and Ubuntu: apt install python3-pip; Fedora: dnf install python3-pip;",
      "macOS: brew install python), then run the same command again,",
    ]);
  }
  requireWritable(cache, fail);
  return await withLock(join(cache, ".lock"), async () => {
    const path = join(folder, "torch");
    const present = inspectLibTorch(path, kind === "cuda");
    if (present.problem === undefined) return present; // another process fetched it meanwhile
    removeLeftovers(cache);
    rmSync(folder, { recursive: true, force: true });
    const freeGb = freeBytes(cache) / 1e9;
    if (freeGb < NEEDED_GB[kind]) {
      fail(
        "There is not enough disk space to fetch LibTorch.",
        [`${freeGb.toFixed(1)} GB free for ${cache}`],
        [`make ${NEEDED_GB[kind]} GB of room there, or set RLAR_CACHE to a folder on a roomier disk,`],
      );
    }
    const aside = `${folder}.${process.pid}.tmp`;
    try {
      if (kind === "cuda") await installWithCuda(python, version, aside, env, fail);
      else await downloadWheel(python, version, aside, env, fail);
      const { problem, cuda } = inspectLibTorch(join(aside, "torch"), kind === "cuda");
      if (problem !== undefined) {
        fail(
          `The torch ${version} that pip fetched does not fit.`,
          [problem],
          [`see what \`${python.program} -m pip download torch==${version} --no-deps\` fetches,`],
        );
      }
      if (cuda && kind === "cpu") {
        fail(
          `pip could fetch no CPU build of torch ${version}, only one for CUDA, whose libraries come in other packages.`,
          [`a wheel with ${library("torch_cuda")}`],
          [
            `make ${CPU_INDEX} reachable for pip, or set RLAR_CUDA=1 to fetch CUDA's libraries as well (some`,
            `gigabytes), or install torch ${version} into the active Python,`,
          ],
        );
      }
      renameSync(aside, folder);
    } finally {
      rmSync(aside, { recursive: true, force: true });
    }
    return inspectLibTorch(path, kind === "cuda");
  });
}

/** The wheel alone holds all of a CPU LibTorch. */
async function downloadWheel({ program }, version, aside, env, fail) {
  const wheels = join(aside, "wheel");
  makeFolders(wheels);
  const pip = [program, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--progress-bar=off"];
  const limits = ["--retries=2", "--timeout=30", "-d", wheels];
  // The wheel named plainly is CPU-only on macOS and some gigabytes of CUDA on Linux, so it comes last there.
  const cpu = `torch==${version}+cpu`;
  const plain = [`torch==${version}`];
  const anyPython = ["--python-version=3.12"]; // LibTorch is the same in every Python's wheel
  const attempts =
    process.platform === "darwin" ? [plain] : [[cpu], [cpu, "--index-url", CPU_INDEX, ...anyPython], plain];
  await step(`fetching LibTorch ${version} for CPU (some 200 MB) into ${dirname(aside)}`, async () => {
    const failures = [];
    for (const attempt of attempts) {
      const result = await run([...pip, ...limits, ...attempt], { env: pipEnv(env) });
      if (result.ok) break;
      failures.push(`pip download ${attempt.join(" ")}:\n${pipErrors(result.output)}`);
      const isHopeless = failures.length === attempts.length || saysDiskFull(result.output);
      if (isHopeless) failPip(version, failures, aside, fail);
    }
    const wheel = readdirSync(wheels).find((name) => name.endsWith(".whl"));
    if (wheel === undefined) {
      fail(
        `pip left no wheel of torch ${version}.`,
        [`no .whl in ${wheels}`],
        [`see what \`${program} -m pip download torch==${version} --no-deps\` does,`],
      );
    }
    const result = await run([program, "-c", UNPACK, join(wheels, wheel), aside], { env });
    if (!result.ok) {
      if (saysDiskFull(result.output)) failPip(version, [tail(result.output, 1)], aside, fail);
      fail(
        `The wheel ${wheel} cannot be unpacked.`,
        [tail(result.output, 4)],
        ["run the same command again: what was fetched is removed and fetched anew,"],
      );
    }
    rmSync(wheels, { recursive: true });
  });
}

/** With CUDA, torch needs NVIDIA's packages beside it: pip installs them all into a folder of their own. */
async function installWithCuda({ program }, version, aside, env, fail) {
  makeFolders(aside);
  const pip = [program, "-m", "pip", "install", "--only-binary=:all:", "--progress-bar=off", "--no-compile"];
  const limits = ["--retries=2", "--timeout=30", `--target=${aside}`];
  const command = [...pip, ...limits, `torch==${version}`, CUDA_HEADERS];
  await step(`fetching LibTorch ${version} with CUDA (some gigabytes) into ${dirname(aside)}`, async () => {
    const result = await run(command, { env: pipEnv(env) });
    if (result.ok) return;
    failPip(version, [`pip install torch==${version}:\n${pipErrors(result.output)}`], aside, fail);
  });
}

function failPip(version, failures, aside, fail) {
  if (failures.some(saysDiskFull)) {
    fail(`The disk is full: LibTorch ${version} could not be fetched.`, failures, [
      `free space for ${dirname(aside)} and for pip's temporary files (TMPDIR), or set RLAR_CACHE to a folder on`,
      "a roomier disk, then run the same command again,",
    ]);
  }
  fail(`pip could not fetch torch ${version}.`, failures, [
    "check the network and pip's settings (`python3 -m pip config list`), then run the same command again,",
    `or install torch ${version} into the active Python,`,
  ]);
}

function requireWritable(cache, fail) {
  try {
    makeFolders(cache);
    accessSync(cache, constants.W_OK);
  } catch (error) {
    fail(
      "The cache folder, where LibTorch would go, cannot be written to.",
      [error.message],
      ["set RLAR_CACHE to a folder that you can write to, then run the same command again,"],
    );
  }
}

function freeOn(folder) {
  const { bavail, bsize } = statfsSync(folder);
  return bavail * bsize;
}

/** What a killed process left; the lock's holder is the only one that makes such folders. */
function removeLeftovers(cache) {
  for (const name of readdirSync(cache)) {
    if (/^libtorch-.*\.tmp$/.test(name)) rmSync(join(cache, name), { recursive: true, force: true });
  }
}

function pipEnv(env) {
  return { ...env, PIP_DISABLE_PIP_VERSION_CHECK: "1", PIP_NO_INPUT: "1" };
}

/** pip's own words on why: its errors, else its last lines. */
function pipErrors(output) {
  const errors = output.split("\n").filter((line) => line.startsWith("ERROR:"));
  return errors.length > 0 ? errors.slice(-3).join("\n") : tail(output, 3);
}
