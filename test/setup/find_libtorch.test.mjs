/**
 * Which LibTorch is taken: the order of the places, what fits, and what is said of those that do not.
 */
import assert from "node:assert/strict";
import { appendFileSync, mkdirSync, rmSync, symlinkSync } from "node:fs";
import { test } from "node:test";
import { findCudaHeaders, inspectLibTorch } from "../../scripts/setup/libtorch.mjs";
import { Machine } from "./support.mjs";

/** Where the addon's LibTorch came from, after a build. */
async function taken(machine, env) {
  const { code, stderr } = await machine.run(["build"], env);
  assert.equal(code, 0, stderr);
  const { version, path, source } = JSON.parse(machine.read("project/build/native/libtorch.json"));
  return {
    version,
    path: path.replace(`${machine.folder}/`, ""),
    source: source.replace(machine.folder, ""),
    stderr,
  };
}

test("LIBTORCH, then the active Python's torch, then the cache, then pip", async () => {
  const machine = new Machine();
  const named = machine.libtorch("named", { version: "2.6.0" });
  const torch = machine.libtorch("site/torch", { version: "2.7.1" });
  machine.libtorch("cache/libtorch-2.13.0-cpu/torch");
  machine.python({ torch, path: [machine.path("site")] }, { libtorch: machine.libtorch("wheel") });

  const first = await taken(machine, { LIBTORCH: named });
  assert.deepEqual([first.version, first.path, first.source], ["2.6.0", "named", "LIBTORCH"]);
  const second = await taken(machine);
  assert.deepEqual([second.version, second.path], ["2.7.1", "site/torch"]);
  assert.equal(second.source, "torch of /bin/python3");

  machine.python({ path: [machine.path("site")] }, { libtorch: machine.path("wheel") });
  rmSync(torch, { recursive: true }); // as `pip uninstall torch` would; nothing else tells set-up
  const third = await taken(machine);
  assert.deepEqual([third.path, third.source], ["cache/libtorch-2.13.0-cpu/torch", "cache"]);
  assert.deepEqual(machine.pipCalls(), []);

  rmSync(machine.path("cache"), { recursive: true });
  const fourth = await taken(machine);
  assert.deepEqual([fourth.path, fourth.source], ["cache/libtorch-2.13.0-cpu/torch", "pip"]);
  assert.equal(machine.pipCalls().length, 1);

  machine.python({
    torch: machine.libtorch("site/torch", { version: "2.8.0" }),
    path: [machine.path("site")],
  });
  assert.equal((await taken(machine)).version, "2.8.0", "a torch installed later is seen");
});

test("a virtual environment's Python is asked before the PATH's", async () => {
  const machine = new Machine();
  machine.python({ torch: machine.libtorch("site/torch") });
  const inner = machine.libtorch("venv/lib/torch", { version: "2.9.0" });
  const answer = JSON.stringify({
    prefix: "/venv",
    version: "3.12.1",
    torch: inner,
    hasPip: false,
    path: [],
  });
  machine.program("venv/bin/python", `console.log(${JSON.stringify(`a greeting\n${answer}`)});`);
  assert.equal((await taken(machine, { VIRTUAL_ENV: machine.path("venv") })).version, "2.9.0");
});

test("an active torch that does not fit is passed over with one line", async () => {
  const machine = new Machine();
  machine.python({ torch: machine.libtorch("site/torch", { version: "2.1.2" }) });
  machine.libtorch("cache/libtorch-2.13.0-cpu/torch");
  const { version, stderr } = await taken(machine);
  assert.equal(version, "2.13.0");
  assert.equal(
    stderr.split("\n", 1)[0],
    "set-up: not using torch of bin/python3 (site/torch): version 2.1.2, which is older than 2.6",
  );
});

test("RLAR_CUDA=1 wants CUDA; RLAR_CUDA=0 leaves a fetched CUDA LibTorch alone", async () => {
  const machine = new Machine();
  machine.python({ torch: machine.libtorch("site/torch", { version: "2.7.0" }) });
  machine.libtorch("cache/libtorch-2.13.0-cuda/torch", { cuda: true });
  machine.libtorch("cache/libtorch-2.13.0-cpu/torch");
  const cuda = await taken(machine, { RLAR_CUDA: "1" });
  assert.equal(cuda.path, "cache/libtorch-2.13.0-cuda/torch");
  assert.match(cuda.stderr, /^set-up: not using .*: no CUDA in it, which RLAR_CUDA=1 asks for$/m);
  machine.python({});
  assert.equal((await taken(machine)).path, "cache/libtorch-2.13.0-cuda/torch", "it was asked for once");
  assert.equal((await taken(machine, { RLAR_CUDA: "0" })).path, "cache/libtorch-2.13.0-cpu/torch");
});

test("a LIBTORCH that does not fit is an error, whatever else there is", async () => {
  const machine = new Machine();
  machine.python({ torch: machine.libtorch("site/torch") });
  const message = (value, wanted, problem, hint = "") => `LIBTORCH does not name a LibTorch that fits.
  looked for: LIBTORCH=${value}: a folder with lib and include, LibTorch 2.6 or newer${wanted}
  found:      ${value}: ${problem}
  to do:      ${hint}set LIBTORCH to an unpacked LibTorch or to the torch folder of a Python's site-packages,
              or unset it: then the active Python's torch is used, or LibTorch 2.13.0 is fetched through pip.
`;
  const refused = async (name, env = {}) => {
    const { code, stderr } = await machine.run(["build"], { LIBTORCH: machine.path(name), ...env });
    assert.equal(code, 1);
    return stderr;
  };
  assert.equal(await refused("nowhere"), message("nowhere", "", "no such folder"));
  mkdirSync(machine.path("empty/lib"), { recursive: true });
  assert.equal(await refused("empty"), message("empty", "", "no folder include in it"));
  machine.libtorch("old", { version: "2.5.1" });
  assert.equal(await refused("old"), message("old", "", "version 2.5.1, which is older than 2.6"));
  machine.libtorch("cpu");
  assert.equal(
    await refused("cpu", { RLAR_CUDA: "1" }),
    message("cpu", ", with CUDA", "no CUDA in it, which RLAR_CUDA=1 asks for"),
  );
  assert.equal(
    await refused("site"),
    message(
      "site",
      "",
      "no folder lib and include in it",
      "set LIBTORCH=site/torch, which is one,\n              ",
    ),
  );
});

test("what a folder of LibTorch holds", () => {
  const machine = new Machine();
  const path = machine.libtorch("torch", { version: "2.13.0" });
  const about = { version: "2.13.0", path, cuda: false, cudaVersion: undefined, cxx11Abi: 1 };
  assert.deepEqual(inspectLibTorch(path), about);

  const lib = (name) => machine.path("torch/lib", name);
  rmSync(lib("libtorch_cpu.so"));
  assert.deepEqual(inspectLibTorch(path), { problem: "no libtorch_cpu.so in its lib folder" });
  symlinkSync(lib("libc10.so"), lib("libtorch_cpu.so"));

  appendFileSync(lib("libtorch_cuda.so"), "");
  machine.write(
    "torch/version.py",
    "__version__ = '2.13.0+cu130'\ncuda: Optional[str] = '13.0'\nhip = None\n",
  );
  assert.deepEqual(inspectLibTorch(path, true), { ...about, cuda: true, cudaVersion: "13.0" });

  rmSync(machine.path("torch/include/torch/headeronly"), { recursive: true });
  assert.equal(inspectLibTorch(path).version, "2.13.0", "from version.py");
  const defines = [3, 0, 1].map((n, i) => `#define TORCH_VERSION_${["MAJOR", "MINOR", "PATCH"][i]} ${n}\n`);
  machine.write("torch/include/torch/csrc/api/include/torch/version.h", defines.join(""));
  assert.equal(inspectLibTorch(path).version, "3.0.1", "from the C++ header");
  rmSync(machine.path("torch/include/torch/csrc"), { recursive: true });
  rmSync(machine.path("torch/version.py"));
  assert.deepEqual(inspectLibTorch(path), {
    problem: "its version cannot be read: no version.h under include/torch",
  });
});

test("CUDA headers: CUDA_HOME first, then NVIDIA's packages, none of another major version", () => {
  const machine = new Machine();
  const headers = (folder, version) => {
    machine.write(`${folder}/cuda_runtime_api.h`, `#define CUDART_VERSION  ${version}\n`);
    machine.write(`${folder}/crt/host_defines.h`, "");
  };
  const libtorch = { path: machine.path("site/torch"), cuda: true, cudaVersion: "13.0" };
  const home = { CUDA_HOME: machine.path("toolkit") };
  headers("site/nvidia/cu13/include", 13000);
  headers("toolkit/include", 13010);
  assert.deepEqual(findCudaHeaders(libtorch, home), { folder: machine.path("toolkit/include") });
  assert.deepEqual(findCudaHeaders(libtorch, {}), { folder: machine.path("site/nvidia/cu13/include") });
  headers("toolkit/include", 12080);
  assert.deepEqual(findCudaHeaders(libtorch, home), { folder: machine.path("site/nvidia/cu13/include") });
  const unknown = { ...libtorch, cudaVersion: undefined };
  assert.deepEqual(findCudaHeaders(unknown, home), { folder: machine.path("toolkit/include") });
  rmSync(machine.path("site/nvidia/cu13/include/crt"), { recursive: true });
  const found = findCudaHeaders({ ...libtorch, cudaVersion: "99.0" }, home);
  assert.match(
    found.reason,
    /^.*toolkit\/include is of CUDA 12, LibTorch of CUDA 99\.0; .*cu13\/include is of CUDA 13/,
  );
  const halved = findCudaHeaders({ ...libtorch, cudaVersion: "13.0" }, {});
  if (halved.folder !== "/usr/local/cuda/include") {
    assert.match(
      halved.reason,
      /cu13\/include has no crt\/host_defines\.h, which NVIDIA's package nvidia-cuda-crt/,
    );
  }
  assert.deepEqual(findCudaHeaders({ ...libtorch, cuda: false }, home), {
    reason: "this LibTorch has no CUDA",
  });
});
