/**
 * The native addon: native/*.cc compiled against the LibTorch that was found, linked, and loaded once in a
 * process of its own to see that it can be. Objects are rebuilt by content, so a fresh checkout of the same
 * sources costs nothing.
 */
import { createHash } from "node:crypto";
import { existsSync, readFileSync, realpathSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { availableParallelism } from "node:os";
import { basename, dirname, isAbsolute, join } from "node:path";
import { findLibTorch } from "./find_libtorch.mjs";
import { makeFolders } from "./folders.mjs";
import { findCudaHeaders, findNcclHeaders, library, wantedNvidiaPackages } from "./libtorch.mjs";
import { pythonCandidates } from "./python.mjs";
import { SetupError, step } from "./report.mjs";
import { listFiles, marks, readJson, run, saysDiskFull, tail, which, writeWhole } from "./shell.mjs";

/** Environment that decides which LibTorch, which headers and which compiler are used. */
const DECIDING = ["LIBTORCH", "RLAR_CUDA", "RLAR_CACHE", "XDG_CACHE_HOME", "HOME", "CUDA_HOME", "CXX"].concat(
  [...["VIRTUAL_ENV", "PYTHONPATH", "PYENV_VERSION"]],
);
const COMPILERS = process.platform === "darwin" ? ["clang++", "c++", "g++"] : ["g++", "clang++", "c++"];

const nativeFolder = (root) => join(root, "build", "native");
const addonPath = (root) => join(nativeFolder(root), "rlar_torch.node");
const stampPath = (root) => join(nativeFolder(root), "stamp.json");
const sources = (root) => listFiles(join(root, "native"), [".cc"]);

/** Whether the addon is the one that these sources, this environment and this LibTorch make; starts no process. */
export function nativeReady(root, env) {
  if (sources(root).length === 0) return true;
  const stamp = readJson(stampPath(root));
  // The inputs hold set-up itself, so past this line the stamp has the form that is written here.
  if (stamp === undefined || !isSame(stamp.inputs, inputs(root, env))) return false;
  return isSame(stamp.results, results(root, env, stamp.places));
}

/** Find LibTorch, build what is out of date, load the result, and say in libtorch.json what it was built with. */
export async function buildNative(root, env) {
  const before = inputs(root, env); // an edit made while this runs must count as new
  const { libtorch, source, pythonPath } = await findLibTorch(env);
  const compiler = findCompiler(env);
  const headers = findCudaHeaders(libtorch, env);
  const build = { root, env, libtorch, compiler, cudaHeaders: headers.folder };
  const linked = await compileAndLink(build);
  if (linked !== undefined) {
    await step("loading the native addon", () => checkLoads(build));
    writeFileSync(linked.stamp, linked.hash); // counts as built once it has been loaded
  }
  const about = {
    version: libtorch.version,
    path: libtorch.path,
    source,
    cuda: libtorch.cuda,
    cudaHeaders: headers.folder ?? null,
    ...(headers.reason ? { cudaHeadersReason: headers.reason } : {}),
    cxx11Abi: libtorch.cxx11Abi ?? null,
    compiler: compiler.join(" "),
  };
  writeWhole(join(root, "build", "native", "libtorch.json"), `${JSON.stringify(about, null, 2)}\n`);
  const places = { libtorch, pythonPath };
  const stamp = { inputs: before, places, results: results(root, env, places) };
  writeWhole(stampPath(root), JSON.stringify(stamp));
}

/**
 * Build the addon once more with the compiler's address sanitizer, in a folder of its own, and load it nowhere.
 *
 * @returns its path and the libraries that must be loaded before any other.
 */
export async function buildSanitized(root, env) {
  const { libtorch } = await findLibTorch(env);
  const compiler = findCompiler(env);
  const preload = [];
  for (const name of ["libasan.so", "libstdc++.so"]) {
    const { stdout } = await run([...compiler, `-print-file-name=${name}`], { env });
    if (!isAbsolute(stdout.trim())) {
      throw new SetupError(`The address sanitizer needs ${name}, which the compiler does not have.`, {
        lookedFor: [`${compiler.join(" ")} -print-file-name=${name}`],
        found: [stdout.trim() || "nothing"],
        toDo: [
          "Debian and Ubuntu: apt install g++, which brings libasan; Fedora: dnf install libasan",
          "then set CXX to g++ where another compiler is found first.",
        ],
      });
    }
    preload.push(realpathSync(stdout.trim()));
  }
  const sanitize = ["-fsanitize=address", "-fno-omit-frame-pointer", "-g1"];
  const folder = join(root, "build", "asan");
  const headers = findCudaHeaders(libtorch, env);
  const build = { root, env, libtorch, compiler, cudaHeaders: headers.folder, folder, sanitize };
  const linked = await compileAndLink(build);
  if (linked !== undefined) writeFileSync(linked.stamp, linked.hash);
  return { addon: join(folder, "rlar_torch.node"), preload };
}

/** What was found and made, by size and time; `places` is what the last search came upon. */
function results(root, env, places) {
  const lib = join(places.libtorch.path, "lib");
  const libs = ["c10", "torch_cpu", "torch", "torch_cuda"].map((name) => join(lib, library(name)));
  return {
    files: marks([addonPath(root), ...libs, ...places.pythonPath]),
    cudaHeaders: findCudaHeaders(places.libtorch, env),
  };
}

/** What the build is made from, by size and time. */
function inputs(root, env) {
  const programs = [...pythonCandidates(env), ...compilerCandidates(env).map(([program]) => program)];
  return {
    env: DECIDING.map((name) => env[name] ?? null),
    programs: programs.map((name) => which(name, env) ?? null),
    files: marks([
      ...listFiles(join(root, "native"), [".cc", ".h"]),
      ...listFiles(join(root, "scripts", "setup"), [".mjs"]),
      join(nodeHeaders(root), "package.json"),
    ]),
  };
}

/** Folder of the package node-api-headers: npm puts it beside an installed package, not inside. */
function nodeHeaders(root) {
  try {
    return dirname(createRequire(join(root, "package.json")).resolve("node-api-headers/package.json"));
  } catch (error) {
    if (error.code !== "MODULE_NOT_FOUND") throw error;
    return join(root, "node_modules", "node-api-headers"); // not installed yet
  }
}

function compilerCandidates(env) {
  return env.CXX ? [env.CXX.trim().split(/\s+/)] : COMPILERS.map((name) => [name]);
}

/** The C++ compiler as program and arguments: `CXX` may hold both, such as "ccache g++". */
function findCompiler(env) {
  if (process.platform === "win32") {
    throw new SetupError("Windows is not supported.", {
      found: [`platform ${process.platform}`],
      toDo: ["use Linux or macOS; on Windows, the Windows Subsystem for Linux."],
    });
  }
  for (const [program, ...args] of compilerCandidates(env)) {
    const path = which(program, env);
    if (path !== undefined) return [path, ...args];
  }
  throw new SetupError("No C++ compiler was found; one is needed to build the native addon.", {
    lookedFor: env.CXX
      ? [`CXX=${env.CXX}`]
      : ["CXX: not set", ...COMPILERS.map((name) => `${name} on the PATH`)],
    found: [env.CXX ? "no such program" : `none of them on PATH=${env.PATH ?? ""}`],
    toDo: [
      ...(env.CXX ? ["set CXX to a compiler that exists, or unset it."] : []),
      "Debian and Ubuntu: apt install g++",
      "Fedora: dnf install gcc-c++",
      "macOS: xcode-select --install",
    ],
  });
}

/** Compile what changed, then link; the stamp to write when it was linked anew, undefined when it was up to date. */
async function compileAndLink(build) {
  const { root, folder = nativeFolder(root) } = build;
  const objects = join(folder, "obj");
  makeFolders(objects);
  for (const path of listFiles(dirname(objects), [".tmp"])) rmSync(path); // a killed build's
  const flags = compileFlags(build);
  const common = [
    ...[flags.join("\n"), build.compiler.join("\n"), identity(build.libtorch)],
    ...listFiles(join(root, "native"), [".h"]).map((path) => readFileSync(path)),
  ];
  const jobs = sources(root).map((source) => {
    const object = join(objects, `${basename(source, ".cc")}.o`);
    return { source, object, stamp: `${object}.hash`, hash: hashOf([...common, readFileSync(source)]) };
  });
  const stale = jobs.filter(({ object, stamp, hash }) => !existsSync(object) || !hasContent(stamp, hash));
  if (stale.length > 0) {
    const names = stale.map(({ source }) => basename(source)).join(", ");
    await step(`compiling ${names} against LibTorch ${build.libtorch.version}`, () =>
      compileAll(build, flags, stale),
    );
  }
  const link = linkFlags(build);
  const addon = join(folder, "rlar_torch.node");
  const stamp = `${addon}.hash`;
  const hash = hashOf([...jobs.map((job) => job.hash), link.join("\n")]);
  if (existsSync(addon) && hasContent(stamp, hash)) return undefined;
  rmSync(stamp, { force: true });
  const aside = `${addon}.${process.pid}.tmp`;
  const command = [...build.compiler, "-shared", "-o", aside, ...jobs.map(({ object }) => object), ...link];
  await step("linking the native addon", () => compilerRun(build, command, join(objects, "link.log")));
  renameSync(aside, addon);
  return { stamp, hash };
}

async function compileAll(build, flags, jobs) {
  const queue = [...jobs];
  const worker = async () => {
    for (let job = queue.shift(); job !== undefined; job = queue.shift()) {
      const { source, object, stamp, hash } = job;
      rmSync(stamp, { force: true });
      const aside = `${object}.${process.pid}.tmp`;
      const log = object.replace(/\.o$/, ".log");
      await compilerRun(build, [...build.compiler, ...flags, "-c", source, "-o", aside], log, () =>
        queue.splice(0),
      );
      renameSync(aside, object);
      writeFileSync(stamp, hash);
    }
  };
  const results = await Promise.allSettled(Array.from({ length: availableParallelism() }, worker));
  const failed = results.find((result) => result.status === "rejected");
  if (failed !== undefined) throw failed.reason;
}

function compileFlags({ root, libtorch, cudaHeaders, sanitize = [] }) {
  const include = join(libtorch.path, "include");
  const abi = libtorch.cxx11Abi === undefined ? [] : [`-D_GLIBCXX_USE_CXX11_ABI=${libtorch.cxx11Abi}`];
  const nccl = cudaHeaders && findNcclHeaders(libtorch, cudaHeaders);
  const folders = [
    join(nodeHeaders(root), "include"),
    ...[include, join(include, "torch", "csrc", "api", "include"), ...(cudaHeaders ? [cudaHeaders] : [])],
    ...[...(nccl ? [nccl] : []), join(root, "native")], // the latter in place of Gloo's headers
  ];
  return [
    ...["-O2", "-fPIC", "-std=c++20", "-fvisibility=hidden", "-Wall", "-Wextra", "-DNAPI_VERSION=8"],
    ...abi,
    ...sanitize,
    ...(cudaHeaders ? ["-DRLAR_CUDA=1"] : []),
    ...(nccl ? ["-DRLAR_NCCL=1"] : []),
    ...folders.flatMap((folder) => ["-isystem", folder]), // others' headers: no warnings of theirs
  ];
}

function linkFlags({ libtorch, sanitize = [] }) {
  const lib = join(libtorch.path, "lib");
  const names = ["c10", "torch_cpu", "torch", ...(libtorch.cuda ? ["torch_cuda", "c10_cuda"] : [])];
  // Nothing may be dropped as unused: a library's operators register themselves when it is loaded.
  const keep = process.platform === "darwin" ? ["-undefined", "dynamic_lookup"] : ["-Wl,--no-as-needed"];
  return [...sanitize, "-L", lib, ...keep, ...names.map((name) => `-l${name}`), `-Wl,-rpath,${lib}`];
}

/** Run the compiler with its whole output in a log, and turn its failures into instructions. */
async function compilerRun({ root, compiler }, command, log, onFail = () => {}) {
  const result = await run(command, { cwd: root });
  writeFileSync(log, `${command.join(" ")}\n${result.output}`);
  if (result.ok) return;
  onFail();
  const program = compiler.join(" ");
  const lookedFor = [program];
  if (saysDiskFull(result.output)) {
    throw new SetupError("The disk is full: the native addon could not be built.", {
      lookedFor,
      found: [tail(result.output, 2)],
      toDo: [`free space for ${join(root, "build")} and for TMPDIR, then run the same command again.`],
    });
  }
  if (/c\+\+20/.test(result.output) && /unrecogni[sz]ed|invalid value|unknown/i.test(result.output)) {
    throw new SetupError("The C++ compiler is too old: it does not know C++20.", {
      lookedFor: [`${program} -std=c++20`],
      found: [tail(result.output, 2)],
      toDo: ["install GCC 10, Clang 12 or newer and set CXX to it, for example CXX=g++-12."],
    });
  }
  throw new SetupError("The native addon does not build.", {
    lookedFor,
    found: [result.error ? result.error.message : tail(result.output, 15)],
    toDo: [`read the complete output in ${log}.`],
  });
}

/** Load the addon where a crash or a missing library costs nothing. */
async function checkLoads({ root, env, libtorch }) {
  const result = await run([process.execPath, "-e", "require(process.argv[1])", addonPath(root)], { env });
  if (result.ok) return;
  const lib = join(libtorch.path, "lib");
  const missing = /(\S+): cannot open shared object file|Library not loaded: (\S+)/.exec(result.output);
  if (missing !== null) {
    const wanted = wantedNvidiaPackages(libtorch.path);
    const around = [
      lib,
      join(dirname(libtorch.path), "nvidia", "*", "lib"),
      "LD_LIBRARY_PATH",
      "the system's libraries",
    ];
    throw new SetupError(`LibTorch needs ${missing[1] ?? missing[2]}, which is not on this machine.`, {
      lookedFor: around,
      found: [
        `LibTorch ${libtorch.version}${libtorch.cuda ? " with CUDA" : ""} in ${libtorch.path}, without that library`,
      ],
      toDo: [
        ...(libtorch.cuda
          ? [
              `install torch ${libtorch.version} with its dependencies: python3 -m pip install torch==${libtorch.version}`,
              ...(wanted.length > 0 ? [`(the packages it names: ${wanted.join(", ")}),`] : []),
              "or name the folder that has the library in LD_LIBRARY_PATH,",
            ]
          : ["install the system package that has it,"]),
        "or use a CPU LibTorch: set LIBTORCH to one, or RLAR_CUDA=0 where no Python's torch is in the way.",
      ],
    });
  }
  throw new SetupError("The native addon was built, but does not load.", {
    lookedFor: [addonPath(root), `LibTorch ${libtorch.version} in ${libtorch.path}`],
    found: [errorLines(result.output)],
    toDo: [
      `remove ${join(root, "build")} and run the same command again;`,
      "if it stays, use another LibTorch (LIBTORCH) or compiler (CXX).",
    ],
  });
}

function errorLines(output) {
  const error = output.split("\n").find((line) => /^\w*Error: /.test(line));
  return error ?? tail(output, 4);
}

/** Which LibTorch an object was compiled against, without reading its 400 MB. */
function identity(libtorch) {
  const lib = join(libtorch.path, "lib");
  return JSON.stringify({
    ...libtorch,
    libs: marks(["c10", "torch_cpu"].map((name) => join(lib, library(name)))),
  });
}

function isSame(a, b) {
  return JSON.stringify(a) === JSON.stringify(b);
}

function hashOf(parts) {
  const hash = createHash("sha256");
  for (const part of parts) hash.update(part).update("\0");
  return hash.digest("hex");
}

function hasContent(path, content) {
  return existsSync(path) && readFileSync(path, "utf8") === content;
}
