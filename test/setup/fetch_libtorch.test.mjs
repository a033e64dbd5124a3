/**
 * Fetching LibTorch through pip into the cache: once for many processes, whole or not at all, and what is said
 * when it cannot be had.
 */
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { existsSync, mkdirSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { fetchLibTorch, UNPACK } from "../../scripts/setup/fetch_libtorch.mjs";
import { Machine, until } from "./support.mjs";

const FOLDER = "libtorch-2.13.0-cpu";
const LOOKED_FOR = `  looked for: 1. LIBTORCH: not set
              2. torch of bin/python3: not installed
              3. the cache, cache/libtorch-2.13.0-cuda: no such folder
              4. the cache, cache/libtorch-2.13.0-cpu: no such folder
              5. torch 2.13.0 (cpu) through pip
`;

/** Standard error of a build that must fail. */
async function failure(machine, env) {
  const { code, stderr } = await machine.run(["build"], env);
  assert.equal(code, 1, stderr);
  return stderr;
}

test("the CPU wheel is asked for as configured, then at PyTorch's index, then plainly", async () => {
  const machine = new Machine();
  const noSuch = "WARNING: something\nERROR: No matching distribution found for torch==2.13.0+cpu\n";
  machine.python({}, { libtorch: machine.libtorch("wheel"), failures: { "+cpu": noSuch } });
  const { code, stderr } = await machine.run();
  assert.equal(code, 0, stderr);
  assert.match(stderr, /^set-up: fetching LibTorch 2\.13\.0 for CPU \(some 200 MB\) into cache \.\.\. T\n/);
  const wheels = machine.path("cache", "libtorch");
  const common = "download --no-deps --only-binary=:all: --progress-bar=off --retries=2 --timeout=30 -d";
  const index = "--index-url https://download.pytorch.org/whl/cpu --python-version=3.12";
  assert.deepEqual(
    machine.pipCalls().map((line) => line.replace(/cache\/\S+/, "cache/libtorch")),
    [
      `${common} ${wheels} torch==2.13.0+cpu`,
      `${common} ${wheels} torch==2.13.0+cpu ${index}`,
      `${common} ${wheels} torch==2.13.0`,
    ],
  );
  assert.deepEqual(readdirSync(machine.cache), [FOLDER]);
  assert.deepEqual(readdirSync(join(machine.cache, FOLDER)), ["torch"]);
});

test("RLAR_CUDA=1 installs torch with NVIDIA's packages beside it", async () => {
  const machine = new Machine();
  machine.python({}, { libtorch: machine.libtorch("wheel", { cuda: true }) });
  const { code, stderr } = await machine.run(["build"], { RLAR_CUDA: "1", LD_LIBRARY_PATH: "" });
  // Whether this machine has room for it decides what is said.
  if (code === 1) return assert.match(stderr, /^There is not enough disk space to fetch LibTorch\.$/m);
  assert.match(machine.pipCalls()[0], /^install .* --target=\S+ torch==2\.13\.0 nvidia-cuda-crt~=13\.0$/);
  assert.deepEqual(readdirSync(machine.cache), ["libtorch-2.13.0-cuda"]);
});

test("a CUDA build where a CPU build was wanted is refused, not kept", async () => {
  const machine = new Machine();
  machine.python({}, { libtorch: machine.libtorch("wheel", { cuda: true }) });
  const stderr = await failure(machine);
  assert.equal(
    stderr.slice(stderr.indexOf("pip could")),
    `pip could fetch no CPU build of torch 2.13.0, only one for CUDA, whose libraries come in other packages.
${LOOKED_FOR}  found:      a wheel with libtorch_cuda.so
  to do:      make https://download.pytorch.org/whl/cpu reachable for pip, or set RLAR_CUDA=1 to fetch CUDA's libraries as well (some
              gigabytes), or install torch 2.13.0 into the active Python,
              or set LIBTORCH to a LibTorch that is already on this machine.
`,
  );
  assert.deepEqual(readdirSync(machine.cache), []);
});

test("processes that start together fetch it once", async () => {
  const machine = new Machine();
  machine.python({}, { libtorch: machine.libtorch("wheel"), pipMs: 500 });
  // Clones of their own, so that only the cache's lock stands between them.
  const others = [new Machine(), new Machine(), new Machine()];
  const results = await Promise.all(
    others.map((other) => other.run(["build"], { PATH: machine.env.PATH, RLAR_CACHE: machine.cache })),
  );
  for (const { code, stderr } of results) assert.equal(code, 0, stderr);
  assert.equal(machine.pipCalls().length, 1);
  const waited = results.filter(({ stderr }) =>
    /^set-up: waiting for process \d+, which holds /m.test(stderr),
  );
  assert.equal(waited.length, 2);
  assert.deepEqual(readdirSync(machine.cache), [FOLDER]);
  for (const other of others) assert.equal(other.answer(), 42);
});

test("a killed fetch is begun anew and leaves nothing behind", async () => {
  const machine = new Machine();
  machine.python({}, { libtorch: machine.libtorch("wheel"), pipMs: 3_000 });
  const { child, result } = machine.start();
  await until(() => machine.pipCalls().length === 1);
  child.kill("SIGKILL");
  await result;
  const left = readdirSync(machine.cache).filter((name) => !name.endsWith(".socket"));
  assert.deepEqual(left.sort(), [".lock", `${FOLDER}.${child.pid}.tmp`]);
  machine.python({}, { libtorch: machine.path("wheel") });
  const { code, stderr } = await machine.run();
  assert.equal(code, 0, stderr);
  assert.deepEqual(readdirSync(machine.cache), [FOLDER]);
});

test("a folder in the cache that lacks something is replaced", async () => {
  const machine = new Machine();
  mkdirSync(machine.path("cache", FOLDER, "torch/lib"), { recursive: true });
  machine.python({}, { libtorch: machine.libtorch("wheel") });
  assert.equal((await machine.run()).code, 0);
  assert.ok(existsSync(machine.path("cache", FOLDER, "torch/lib/libc10.so")));
});

test("no Python", async () => {
  const machine = new Machine();
  const stderr = await failure(machine, { PATH: machine.bin });
  assert.equal(
    stderr,
    `LibTorch is not on this machine, and fetching it takes a Python 3 with pip.
  looked for: 1. LIBTORCH: not set
              2. a Python's torch: none of python3, python runs
              3. the cache, cache/libtorch-2.13.0-cuda: no such folder
              4. the cache, cache/libtorch-2.13.0-cpu: no such folder
              5. torch 2.13.0 (cpu) through pip
  found:      none of python3, python runs
  to do:      install Python 3 with pip (Debian and Ubuntu: apt install python3-pip; Fedora: dnf install python3-pip;
              macOS: brew install python), then run the same command again,
              or set LIBTORCH to a LibTorch that is already on this machine.
`,
  );
});

test("a Python without pip", async () => {
  const machine = new Machine();
  machine.python({ hasPip: false });
  const stderr = await failure(machine);
  assert.match(stderr, /^LibTorch is not on this machine, and fetching it takes a Python 3 with pip\.$/m);
  assert.match(stderr, /found: {6}bin\/python3 is Python 3\.11\.7 without pip\n {2}to do:/);
});

test("no network: pip's own words for every attempt", async () => {
  const machine = new Machine();
  const offline = `WARNING: Retrying (Retry(total=0)) after connection broken
ERROR: Could not find a version that satisfies the requirement (from versions: none)
ERROR: No matching distribution found
`;
  machine.python({}, { failures: { download: offline } });
  const attempt = (line) => `pip download ${line}:
              ERROR: Could not find a version that satisfies the requirement (from versions: none)
              ERROR: No matching distribution found
`;
  assert.equal(
    await failure(machine),
    `set-up: fetching LibTorch 2.13.0 for CPU (some 200 MB) into cache ... failed after T
pip could not fetch torch 2.13.0.
${LOOKED_FOR}  found:      ${attempt("torch==2.13.0+cpu")}              ${attempt(
      "torch==2.13.0+cpu --index-url https://download.pytorch.org/whl/cpu --python-version=3.12",
    )}              ${attempt("torch==2.13.0")}  to do:      check the network and pip's settings (\`python3 -m pip config list\`), then run the same command again,
              or install torch 2.13.0 into the active Python,
              or set LIBTORCH to a LibTorch that is already on this machine.
`,
  );
  assert.deepEqual(readdirSync(machine.cache), []);
});

test("a full disk, while downloading and while unpacking", async () => {
  const machine = new Machine();
  const full = "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device";
  const toDo = `  to do:      free space for cache and for pip's temporary files (TMPDIR), or set RLAR_CACHE to a folder on
              a roomier disk, then run the same command again,
              or set LIBTORCH to a LibTorch that is already on this machine.
`;
  machine.python({}, { failures: { download: full } });
  assert.equal(
    await failure(machine),
    `set-up: fetching LibTorch 2.13.0 for CPU (some 200 MB) into cache ... failed after T
The disk is full: LibTorch 2.13.0 could not be fetched.
${LOOKED_FOR}  found:      pip download torch==2.13.0+cpu:
              ${full}
${toDo}`,
  );
  assert.equal(machine.pipCalls().length, 1, "other sources would not help");
  machine.python({}, { unpackError: "OSError: [Errno 28] No space left on device" });
  assert.match(await failure(machine), /^The disk is full: LibTorch[\s\S]*found: {6}OSError: \[Errno 28\]/m);
  assert.deepEqual(readdirSync(machine.cache), []);
});

test("too little room is said before anything is fetched", async () => {
  const machine = new Machine();
  const request = { version: "2.13.0", kind: "cpu", env: machine.env, lookedFor: [] };
  const pythons = [{ program: "python3", version: "3.11.7", hasPip: true }];
  await assert.rejects(
    fetchLibTorch({ ...request, folder: join(machine.cache, FOLDER), pythons, freeBytes: () => 3e8 }),
    {
      message: `There is not enough disk space to fetch LibTorch.
  looked for: torch 2.13.0 (cpu) through pip
  found:      0.3 GB free for ${machine.cache}
  to do:      make 1 GB of room there, or set RLAR_CACHE to a folder on a roomier disk,
              or set LIBTORCH to a LibTorch that is already on this machine.`,
    },
  );
});

test("a cache that cannot be written to", async () => {
  const machine = new Machine();
  machine.python({}, { libtorch: machine.libtorch("wheel") });
  machine.write("cache", "a file where the folder should be");
  const stderr = await failure(machine);
  assert.equal(
    stderr,
    `The cache folder, where LibTorch would go, cannot be written to.
${LOOKED_FOR}  found:      EEXIST: file already exists, mkdir 'cache'
  to do:      set RLAR_CACHE to a folder that you can write to, then run the same command again,
              or set LIBTORCH to a LibTorch that is already on this machine.
`,
  );
});

test("a wheel that is not one, and a torch that does not fit", async () => {
  const machine = new Machine();
  machine.python({}, { unpackError: "Traceback\nzipfile.BadZipFile: File is not a zip file" });
  const broken = await failure(machine);
  assert.match(broken, /^The wheel torch\.whl cannot be unpacked\.$/m);
  assert.match(broken, /found: {6}Traceback\n {14}zipfile\.BadZipFile: File is not a zip file\n/);
  machine.python({}, { libtorch: machine.libtorch("wheel", { version: "2.2.0" }) });
  assert.match(
    await failure(machine),
    /^The torch 2\.13\.0 that pip fetched does not fit\.\n[\s\S]*found: {6}version 2\.2\.0, which is older than 2\.6\n/m,
  );
  assert.deepEqual(readdirSync(machine.cache), []);
});

test("of a wheel, libraries and headers are kept; tests and the Python half are not", (t) => {
  const machine = new Machine();
  const kept = [
    "torch.libs/libgfortran.so.5",
    "torch/include/ATen/ATen.h",
    "torch/lib/libc10.so",
    "torch/version.py",
  ];
  const dropped = [
    "torch/__init__.py",
    "torch/lib/libtorch_python.so",
    "torch/lib/libjitbackend_test.so",
  ].concat([
    ...["torch/lib/libshm.so", "torch/lib/libshm_windows/libshm.h", "torch/lib/libbackend_with_compiler.so"],
    ...["torch/testing/a.py", "torchgen/a.py", "torch-2.13.0.dist-info/METADATA"],
  ]);
  const make =
    "import sys, zipfile\nwith zipfile.ZipFile(sys.argv[1], 'w') as z:\n  [z.writestr(n, n) for n in sys.argv[2:]]";
  const wheel = machine.path("torch.whl");
  try {
    execFileSync("python3", ["-c", make, wheel, ...kept, ...dropped]);
  } catch (error) {
    if (error.code === "ENOENT") return t.skip("no python3 on this machine");
    throw error;
  }
  execFileSync("python3", ["-c", UNPACK, wheel, machine.path("out")]);
  const files = readdirSync(machine.path("out"), { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath ?? entry.path, entry.name));
  assert.deepEqual(files.map((path) => path.slice(machine.path("out").length + 1)).sort(), kept);
  assert.equal(readFileSync(machine.path("out/torch/version.py"), "utf8"), "torch/version.py");
});
