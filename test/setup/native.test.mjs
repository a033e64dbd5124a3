/**
 * Building the addon: once, again only for what changed, safely beside others, and every way it can fail.
 */
import assert from "node:assert/strict";
import { existsSync, readdirSync, rmSync, statSync, utimesSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { Machine, until } from "./support.mjs";

const BUILT = [
  "set-up: compiling addon.cc against LibTorch 2.13.0 ... T",
  "set-up: linking the native addon ... T",
  "set-up: loading the native addon ... T",
  "",
].join("\n");

/** A machine with a LibTorch named in LIBTORCH. */
function machineWithLibTorch(options) {
  const machine = new Machine();
  machine.env.LIBTORCH = machine.libtorch("libtorch", options);
  return machine;
}

/** A compiler on the PATH that prints something and fails. */
function failingCompiler(machine, output) {
  machine.program("bin/g++", `process.stderr.write(${JSON.stringify(output)}); process.exit(1);`);
}

test("a first build says each step, a second one nothing", async () => {
  const machine = machineWithLibTorch();
  assert.deepEqual(await machine.run(), { code: 0, stdout: "", stderr: BUILT });
  assert.equal(machine.answer(), 42);
  assert.deepEqual(JSON.parse(machine.read("project/build/native/libtorch.json")), {
    version: "2.13.0",
    path: machine.env.LIBTORCH,
    source: "LIBTORCH",
    cuda: false,
    cudaHeaders: null,
    cudaHeadersReason: "this LibTorch has no CUDA",
    cxx11Abi: 1,
    compiler: "/usr/bin/g++",
  });
  const built = statSync(machine.path("project/build/native/rlar_torch.node")).mtimeMs;
  assert.deepEqual(await machine.run(), { code: 0, stdout: "", stderr: "" });
  assert.equal(statSync(machine.path("project/build/native/rlar_torch.node")).mtimeMs, built);
});

test("only changed contents are built again", async () => {
  const machine = machineWithLibTorch();
  machine.write("project/native/other.cc", "int other() { return 1; }\n");
  await machine.run();
  const later = new Date(Date.now() + 60_000);
  utimesSync(machine.path("project/native/addon.cc"), later, later); // as a fresh checkout would
  assert.equal((await machine.run()).stderr, "");
  machine.write("project/native/other.cc", "int other() { return 2; }\n");
  assert.match((await machine.run()).stderr, /^set-up: compiling other\.cc against/);
  machine.write("project/native/addon.h", "#define ANSWER 43\n");
  assert.match((await machine.run()).stderr, /^set-up: compiling addon\.cc, other\.cc against/);
  assert.equal(machine.answer(), 43);
  rmSync(machine.path("project/native/other.cc"));
  assert.match((await machine.run()).stderr, /^set-up: linking/);
  rmSync(machine.path("project/build/native/rlar_torch.node"));
  assert.match((await machine.run()).stderr, /^set-up: linking/);
});

test("another LibTorch means another build", async () => {
  const machine = machineWithLibTorch();
  await machine.run();
  const newer = machine.libtorch("newer", { version: "2.14.1", abi: "" });
  const { stderr } = await machine.run(["build"], { LIBTORCH: newer });
  assert.match(stderr, /^set-up: compiling addon\.cc against LibTorch 2\.14\.1 \.\.\. T\nset-up: linking/);
  const about = JSON.parse(machine.read("project/build/native/libtorch.json"));
  assert.deepEqual([about.version, about.cxx11Abi], ["2.14.1", 0]);
  assert.match(machine.read("project/build/native/obj/addon.log"), /-D_GLIBCXX_USE_CXX11_ABI=0/);
});

test("CUDA headers that fit switch the CUDA half on", async () => {
  const machine = machineWithLibTorch({ cuda: true });
  machine.write("libtorch/version.py", "cuda: Optional[str] = '12.6'\n");
  machine.write("toolkit/include/cuda_runtime_api.h", "#define CUDART_VERSION  12040\n");
  machine.write("toolkit/include/crt/host_defines.h", "");
  machine.write(
    "project/native/addon.h",
    "#ifdef RLAR_CUDA\n#define ANSWER 1\n#else\n#define ANSWER 0\n#endif\n",
  );
  await machine.run(["build"], { CUDA_HOME: machine.path("toolkit") });
  assert.equal(machine.answer(), 1);
  const about = JSON.parse(machine.read("project/build/native/libtorch.json"));
  assert.deepEqual([about.cuda, about.cudaHeaders], [true, machine.path("toolkit/include")]);

  assert.equal((await machine.run(["build"], { CUDA_HOME: machine.path("toolkit") })).stderr, "");

  machine.write("toolkit/include/cuda_runtime_api.h", "#define CUDART_VERSION  11080\n");
  await machine.run(["build"], { CUDA_HOME: machine.path("toolkit") });
  assert.equal(machine.answer(), 0);
  assert.match(
    JSON.parse(machine.read("project/build/native/libtorch.json")).cudaHeadersReason,
    /toolkit\/include is of CUDA 11, LibTorch of CUDA 12\.6/,
  );
});

test("two builds at once in one clone wait for each other", async () => {
  const machine = machineWithLibTorch();
  const results = await Promise.all([machine.run(), machine.run(), machine.run()]);
  assert.deepEqual(
    results.map(({ code }) => code),
    [0, 0, 0],
  );
  const compiled = results.filter(({ stderr }) => stderr.includes("compiling addon.cc"));
  assert.equal(compiled.length, 1);
  assert.equal(machine.answer(), 42);
  assert.deepEqual(readdirSync(machine.path("project/build")), ["native"]);
});

test("an interrupted build is taken up again", async () => {
  const machine = machineWithLibTorch();
  const real = "/usr/bin/g++";
  machine.program(
    "bin/g++",
    `const out = process.argv[process.argv.indexOf("-o") + 1];
require("node:fs").writeFileSync(out, "half an object");
setTimeout(() => {}, 5_000);`,
  );
  const { child, result } = machine.start();
  const half = machine.path(`project/build/native/obj/addon.o.${child.pid}.tmp`);
  await until(() => existsSync(half));
  child.kill("SIGKILL");
  await result;
  assert.ok(existsSync(machine.path("project/build/.lock")));
  const { code, stderr } = await machine.run(["build"], { CXX: real });
  assert.deepEqual([code, stderr], [0, BUILT]);
  assert.equal(machine.answer(), 42);
  assert.equal(existsSync(half), false);
});

test("no compiler: where it was looked for and how to get one", async () => {
  const machine = machineWithLibTorch();
  const { code, stderr } = await machine.run(["build"], { PATH: machine.bin });
  assert.equal(code, 1);
  assert.equal(
    stderr,
    `No C++ compiler was found; one is needed to build the native addon.
  looked for: 1. CXX: not set
              2. g++ on the PATH
              3. clang++ on the PATH
              4. c++ on the PATH
  found:      none of them on PATH=${machine.bin.replace(`${machine.folder}/`, "")}
  to do:      Debian and Ubuntu: apt install g++
              Fedora: dnf install gcc-c++
              macOS: xcode-select --install
`,
  );
});

test("a CXX that does not exist is not passed over", async () => {
  const machine = machineWithLibTorch();
  const { stderr } = await machine.run(["build"], { CXX: "g++-99 -pipe" });
  assert.match(
    stderr,
    /looked for: CXX=g\+\+-99 -pipe\n {2}found: {6}no such program\n {2}to do: {6}set CXX to/,
  );
});

test("a compiler without C++20 is told apart from an error in the sources", async () => {
  const machine = machineWithLibTorch();
  failingCompiler(
    machine,
    "g++: error: unrecognized command line option '-std=c++20'; did you mean '-std=c++2a'?\n",
  );
  const { code, stderr } = await machine.run();
  assert.equal(code, 1);
  assert.equal(
    stderr,
    `set-up: compiling addon.cc against LibTorch 2.13.0 ... failed after T
The C++ compiler is too old: it does not know C++20.
  looked for: bin/g++ -std=c++20
  found:      g++: error: unrecognized command line option '-std=c++20'; did you mean '-std=c++2a'?
  to do:      install GCC 10, Clang 12 or newer and set CXX to it, for example CXX=g++-12.
`,
  );
});

test("an error in the sources shows its last lines and where the rest is", async () => {
  const machine = machineWithLibTorch();
  machine.write("project/native/addon.cc", "int f() { return not_declared; }\n");
  const { code, stderr } = await machine.run();
  assert.equal(code, 1);
  assert.match(stderr, /^The native addon does not build\.$/m);
  assert.match(stderr, /'not_declared' was not declared in this scope/);
  assert.match(stderr, /to do: {6}read the complete output in project\/build\/native\/obj\/addon\.log\.\n$/);
  assert.match(machine.read("project/build/native/obj/addon.log"), /g\+\+ .*-std=c\+\+20[\s\S]*not_declared/);
});

test("a full disk is named as such", async () => {
  const machine = machineWithLibTorch();
  failingCompiler(machine, "/tmp/cc1.s: fatal error: error writing to /tmp/cc1.s: No space left on device\n");
  assert.equal(
    (await machine.run()).stderr,
    `set-up: compiling addon.cc against LibTorch 2.13.0 ... failed after T
The disk is full: the native addon could not be built.
  looked for: bin/g++
  found:      /tmp/cc1.s: fatal error: error writing to /tmp/cc1.s: No space left on device
  to do:      free space for project/build and for TMPDIR, then run the same command again.
`,
  );
});

test("a CUDA LibTorch without its libraries: which one, where it was looked for, what brings it", async () => {
  const machine = machineWithLibTorch();
  const torch = machine.libtorch("site/torch", { cuda: true });
  machine.library("site/torch/lib/libcublas.so.13");
  machine.library("site/torch/lib/libtorch_cuda.so", [machine.path("site/torch/lib/libcublas.so.13")]);
  rmSync(machine.path("site/torch/lib/libcublas.so.13"));
  machine.write(
    "site/torch-2.13.0.dist-info/METADATA",
    'Requires-Dist: filelock\nRequires-Dist: nvidia-cublas==13.1; platform_system == "Linux"\nRequires-Dist: nvidia-nccl-cu13==2.3\n',
  );
  const { code, stderr } = await machine.run(["build"], { LIBTORCH: torch });
  assert.equal(code, 1);
  assert.equal(
    stderr.slice(stderr.indexOf("LibTorch needs")),
    `LibTorch needs libcublas.so.13, which is not on this machine.
  looked for: 1. site/torch/lib
              2. site/nvidia/*/lib
              3. LD_LIBRARY_PATH
              4. the system's libraries
  found:      LibTorch 2.13.0 with CUDA in site/torch, without that library
  to do:      install torch 2.13.0 with its dependencies: python3 -m pip install torch==2.13.0
              (the packages it names: nvidia-cublas, nvidia-nccl-cu13),
              or name the folder that has the library in LD_LIBRARY_PATH,
              or use a CPU LibTorch: set LIBTORCH to one, or RLAR_CUDA=0 where no Python's torch is in the way.
`,
  );
  assert.equal((await machine.run(["build"], { LIBTORCH: torch })).code, 1, "it is not taken for built");
  // The library appears: what failed to load is tried again, though nothing else changed.
  machine.library("site/torch/lib/libcublas.so.13");
  const again = await machine.run(["build"], { LIBTORCH: torch, LD_LIBRARY_PATH: join(torch, "lib") });
  assert.equal(again.code, 0, again.stderr);
});

test("an addon that does not load says why", async () => {
  const machine = machineWithLibTorch();
  writeFileSync(
    machine.path("project/native/addon.cc"),
    "void missing();\nvoid (*const call)() = missing;\n",
  );
  const { code, stderr } = await machine.run();
  assert.equal(code, 1);
  assert.match(
    stderr,
    /The native addon was built, but does not load\.\n {2}looked for: 1\. project\/build\/native\/rlar_torch\.node\n {14}2\. LibTorch 2\.13\.0 in libtorch\n {2}found: {6}Error: .*(undefined symbol: _Z7missingv|did not self-register)/,
  );
});
