/**
 * A project in a temporary folder with stand-ins around it: a LibTorch of three tiny libraries, a Python whose
 * pip is a script, and the environment of a fresh machine. Set-up itself is the real one.
 */
import { execFileSync, spawn } from "node:child_process";
import {
  chmodSync,
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  realpathSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { delimiter, dirname, join } from "node:path";
import { after } from "node:test";
import { fileURLToPath } from "node:url";

export const repository = dirname(dirname(dirname(fileURLToPath(import.meta.url))));

/** The smallest addon; `answer` shows which build one is looking at. */
export const ADDON = `#include <node_api.h>
#include "addon.h"
NAPI_MODULE_INIT() {
  napi_value answer;
  napi_create_int32(env, ANSWER, &answer);
  napi_set_named_property(env, exports, "answer", answer);
  return exports;
}
`;

/** A fresh machine: `project`, `cache`, `bin` (first on the PATH) and whatever a test puts beside them. */
export class Machine {
  constructor() {
    this.folder = realpathSync(mkdtempSync(join(tmpdir(), "rlar-setup-")));
    after(() => rmSync(this.folder, { recursive: true, force: true }));
    this.project = this.path("project");
    this.cache = this.path("cache");
    this.bin = this.path("bin");
    for (const name of ["scripts", "package.json", "package-lock.json", "tsconfig.json"]) {
      cpSync(join(repository, name), join(this.project, name), { recursive: true });
    }
    symlinkSync(join(repository, "node_modules"), join(this.project, "node_modules"));
    this.write("bin/package.json", '{ "type": "commonjs" }'); // whatever a folder above says
    this.program("bin/npm", "console.error('no npm in this test'); process.exit(1);"); // keeps node_modules safe
    this.write("project/native/addon.cc", ADDON);
    this.write("project/native/addon.h", "#define ANSWER 42\n");
    this.env = {
      PATH: [this.bin, "/usr/bin", "/bin"].join(delimiter),
      HOME: this.folder,
      RLAR_CACHE: this.cache,
    };
  }

  path(...parts) {
    return join(this.folder, ...parts);
  }

  read(name) {
    return readFileSync(this.path(name), "utf8");
  }

  write(name, text) {
    mkdirSync(dirname(this.path(name)), { recursive: true });
    writeFileSync(this.path(name), text);
  }

  /** A program on the PATH, in JavaScript (CommonJS). */
  program(name, code) {
    this.write(name, `#!${process.execPath}\n${code}`);
    chmodSync(this.path(name), 0o755);
    return this.path(name);
  }

  /**
   * `python3` and `python`: answers set-up's question, downloads with `pip` and unpacks wheels.
   *
   * @param {object} [answer] overrides of what it says of itself.
   * @param {{ libtorch?: string, failures?: Record<string, string>, pipMs?: number, unpackError?: string }} [pip]
   *   `libtorch` is what the wheel holds; `failures` maps a part of pip's command line to what it then prints
   *   before it fails; each command is added to `pip.log`.
   */
  python(answer = {}, pip = {}) {
    const said = { prefix: "/usr", version: "3.11.7", torch: null, hasPip: true, path: [], ...answer };
    const code = `
const fs = require("node:fs");
const args = process.argv.slice(2);
const pip = ${JSON.stringify({ failures: {}, pipMs: 0, ...pip })};
if (args[1].includes("find_spec")) {
  console.log(JSON.stringify(${JSON.stringify(said)}));
} else if (args[0] === "-m") {
  const line = args.slice(2).join(" ");
  fs.appendFileSync(${JSON.stringify(this.path("pip.log"))}, line + "\\n");
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, pip.pipMs);
  const failure = Object.keys(pip.failures).find((part) => line.includes(part));
  if (failure !== undefined) {
    console.error(pip.failures[failure]);
    process.exit(1);
  }
  const target = args.find((arg) => arg.startsWith("--target="));
  if (target) fs.cpSync(pip.libtorch, target.slice(9) + "/torch", { recursive: true });
  else fs.writeFileSync(args[args.indexOf("-d") + 1] + "/torch.whl", "");
} else {
  if (pip.unpackError) {
    console.error(pip.unpackError);
    process.exit(1);
  }
  fs.cpSync(pip.libtorch, args[3] + "/torch", { recursive: true });
}
`;
    for (const name of ["python3", "python"]) this.program(`bin/${name}`, code);
  }

  pipCalls() {
    return existsSync(this.path("pip.log")) ? this.read("pip.log").trim().split("\n") : [];
  }

  /**
   * A LibTorch that can be linked against and loaded, and does nothing.
   *
   * @param {{ version?: string, cuda?: boolean, abi?: string }} [options]
   */
  libtorch(name, { version = "2.13.0", cuda = false, abi = "__cxx11" } = {}) {
    const [major, minor, patch] = version.split(".");
    const defines = `#define TORCH_VERSION_MAJOR ${major}\n#define TORCH_VERSION_MINOR ${minor}\n`;
    this.write(
      `${name}/include/torch/headeronly/version.h`,
      `${defines}#define TORCH_VERSION_PATCH ${patch}\n`,
    );
    mkdirSync(this.path(name, "lib"), { recursive: true });
    for (const lib of ["c10", "torch_cpu", "torch", ...(cuda ? ["c10_cuda", "torch_cuda"] : [])]) {
      this.library(join(name, "lib", `lib${lib}.so`));
    }
    writeFileSync(this.path(name, "lib", "libc10.so"), abi, { flag: "a" });
    return this.path(name);
  }

  /** A shared library without content, or one that needs another. */
  library(name, needs = []) {
    const link = [`-Wl,-soname,${name.split("/").at(-1)}`, "-Wl,--no-as-needed", ...needs];
    execFileSync("g++", ["-shared", "-x", "c++", "/dev/null", "-x", "none", "-o", this.path(name), ...link]);
  }

  /**
   * Run `node scripts/run.mjs` in the project to its end.
   *
   * @returns {Promise<{ code: number | null, stdout: string, stderr: string }>} with this machine's paths
   *   replaced by words, and times by T.
   */
  run(args = ["build"], env = {}) {
    const { child, result } = this.start(args, env);
    child.stdin?.end();
    return result;
  }

  /** As `run`, while it runs. */
  start(args = ["build"], env = {}) {
    const script = join(this.project, "scripts", "run.mjs");
    const child = spawn(process.execPath, [script, ...args], {
      env: { ...this.env, ...env },
      cwd: this.project,
    });
    const output = { stdout: "", stderr: "" };
    for (const name of ["stdout", "stderr"]) {
      child[name].setEncoding("utf8").on("data", (text) => {
        output[name] += text;
      });
    }
    const plain = (text) => text.replaceAll(`${this.folder}/`, "").replace(/\b\d+\.\d s$/gm, "T");
    const result = new Promise((resolve) => {
      child.on("close", (code) =>
        resolve({ code, stdout: plain(output.stdout), stderr: plain(output.stderr) }),
      );
    });
    return { child, result };
  }

  /** What the built addon answers, asked in a process of its own. */
  answer() {
    const code = "console.log(require(process.argv[1]).answer)";
    const addon = join(this.project, "build/native/rlar_torch.node");
    return Number(execFileSync(process.execPath, ["-e", code, addon], { encoding: "utf8" }));
  }
}

/** Wait until something is so, or fail after ten seconds. */
export async function until(condition) {
  const end = Date.now() + 10_000;
  while (!condition()) {
    if (Date.now() > end) throw new Error(`still not so after 10 s: ${condition}`);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}
