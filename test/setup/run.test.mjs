/**
 * The entry behind npm's scripts: npm packages, TypeScript, the tasks and their exit codes.
 */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { cpSync, existsSync, mkdirSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { pathToFileURL } from "node:url";
import { requireNode, step } from "../../scripts/setup/report.mjs";
import { Machine, repository, until } from "./support.mjs";

/** A machine with TypeScript in place of native sources. */
function plainMachine() {
  const machine = new Machine();
  rmSync(machine.path("project/native"), { recursive: true });
  machine.write("project/src/one.ts", "export const one: number = 1;\n");
  return machine;
}

test("a Node.js that is too old is refused by number", () => {
  assert.throws(() => requireNode("18.20.4"), {
    message: `Node.js is too old for rl-ar-finetune.
  looked for: Node.js 20 or newer
  found:      Node.js 18.20.4 at ${process.execPath}
  to do:      install Node.js 20 or newer and make sure that \`node --version\` shows it.`,
  });
  requireNode("20.0.0");
  requireNode("26.1.0");
});

test("a step counts its seconds on a terminal, in one line of it; elsewhere it says when it began and how long it took", async (t) => {
  t.mock.timers.enable({ apis: ["setInterval"] });
  const what = "compiling many files against LibTorch";
  const written = async (screen, action) => {
    const texts = [];
    const ended = step(what, action, { ...screen, write: (text) => texts.push(text) });
    t.mock.timers.tick(2000);
    await ended.catch(() => {});
    t.mock.timers.tick(2000);
    return texts;
  };
  const works = async () => "made";
  assert.deepEqual(
    (await written({ isTTY: false }, works)).map((text) => text.replace(/[\d.]+ s/, "T")),
    [`set-up: ${what} ... `, "T\n"],
  );
  const fails = () => Promise.reject(new Error("no"));
  for (const [action, last] of [
    [works, /set-up: compiling many files against LibTorch \.\.\. [\d.]+ s\n$/],
    [fails, /\.\.\. failed after [\d.]+ s\n$/],
  ]) {
    const texts = await written({ isTTY: true, columns: 30 }, action);
    assert.equal(texts.length, 4, "begun, two seconds, ended, then silence");
    for (const text of texts.slice(1, 3)) {
      assert.ok(text.startsWith("\r\u001b[K"), text);
      assert.match(text.slice(4), /^set-up: compiling \.\.\. \d+ s$/);
      assert.ok(text.length - 4 < 30, text);
    }
    assert.match(texts.at(-1), last);
  }
});

test("npm packages are installed when they are not what the lock names", async () => {
  const machine = plainMachine();
  const modules = machine.path("project/node_modules");
  rmSync(modules);
  const lock = { packages: { "": {}, "node_modules/one": { version: "1.0.0", integrity: "sha512-1" } } };
  lock.packages["node_modules/elsewhere"] = { version: "1.0.0", integrity: "sha512-2", optional: true };
  machine.write("project/package-lock.json", JSON.stringify(lock));
  // An npm that puts TypeScript there too, as this project's own lock would.
  const npm = machine.program(
    "npm.cjs",
    `const fs = require("node:fs");
const lock = JSON.parse(fs.readFileSync("package-lock.json"));
fs.appendFileSync(${JSON.stringify(machine.path("npm.log"))}, process.argv.slice(2).join(" ") + "\\n");
fs.mkdirSync("node_modules/one", { recursive: true });
fs.writeFileSync("node_modules/one/package.json", "{}");
fs.rmSync("node_modules/typescript", { force: true });
fs.symlinkSync(${JSON.stringify(join(repository, "node_modules/typescript"))}, "node_modules/typescript");
fs.rmSync("node_modules/@types", { force: true });
fs.symlinkSync(${JSON.stringify(join(repository, "node_modules/@types"))}, "node_modules/@types");
const installed = { "node_modules/one": lock.packages["node_modules/one"] };
fs.writeFileSync("node_modules/.package-lock.json", JSON.stringify({ packages: installed }));`,
  );
  const env = { npm_execpath: npm };
  const { code, stderr } = await machine.run(["build"], env);
  assert.equal(code, 0, stderr);
  assert.equal(stderr, "set-up: installing npm packages ... T\nset-up: compiling TypeScript ... T\n");
  assert.equal(machine.read("npm.log"), "ci --include=dev --no-audit --no-fund\n");
  assert.equal((await machine.run(["build"], env)).stderr, "");

  lock.packages["node_modules/one"].version = "1.1.0";
  machine.write("project/package-lock.json", JSON.stringify(lock));
  assert.match((await machine.run(["build"], env)).stderr, /^set-up: installing npm packages \.\.\. T\n/);
  rmSync(join(modules, "one"), { recursive: true });
  assert.match((await machine.run(["build"], env)).stderr, /^set-up: installing npm packages \.\.\. T\n/);
});

test("an npm that fails: its own words", async () => {
  const machine = plainMachine();
  rmSync(machine.path("project/node_modules"));
  const npmSays = (...lines) => {
    const code = `console.error(${JSON.stringify(lines.join("\n"))}); process.exit(1);`;
    machine.program("bin/npm", code);
  };
  npmSays("npm warn something", "npm error code ENOTFOUND", "npm error");
  const { code, stderr } = await machine.run();
  assert.equal(code, 1);
  assert.equal(
    stderr,
    `set-up: installing npm packages ... failed after T
npm could not install the packages that package-lock.json names.
  looked for: npm ci, run in project
  found:      npm error code ENOTFOUND
  to do:      check the network and npm's settings (\`npm config list\`), then run the same command again.
`,
  );
  npmSays(
    "npm error code EUSAGE",
    "npm error",
    "npm error package-lock.json is not in sync",
    "npm error Usage:",
  );
  assert.match(
    (await machine.run()).stderr,
    /to do: {6}run `npm install`, which brings package-lock\.json in line with package\.json\.\n$/,
  );
  npmSays("npm error code ENOSPC", "npm error ENOSPC: no space left on device, write");
  assert.match(
    (await machine.run()).stderr,
    /to do: {6}free disk space for project and run the same command/,
  );
});

test("type errors are fatal and shown; what was compiled from a source that is gone goes", async () => {
  const machine = plainMachine();
  machine.write("project/test/two.test.ts", 'import { one } from "../src/one.js";\none satisfies number;\n');
  assert.equal((await machine.run()).code, 0);
  assert.ok(existsSync(machine.path("project/dist/test/two.test.js")));
  rmSync(machine.path("project/test/two.test.ts"));
  assert.equal((await machine.run()).stderr, "set-up: compiling TypeScript ... T\n");
  assert.equal(existsSync(machine.path("project/dist/test")), false);

  machine.write("project/src/one.ts", 'export const one: number = "one";\n');
  for (let attempt = 0; attempt < 2; attempt++) {
    const { code, stderr } = await machine.run(); // also when nothing changed since it failed
    assert.equal(code, 1);
    assert.equal(
      stderr,
      `set-up: compiling TypeScript ... failed after T
TypeScript does not compile.
src/one.ts(1,14): error TS2322: Type 'string' is not assignable to type 'number'.
  to do:      correct the errors above.
`,
    );
  }
  machine.write("project/src/one.ts", "export const one: number = 1;\n");
  assert.equal((await machine.run()).code, 0);
  rmSync(machine.path("project/dist/src/one.js"));
  assert.equal((await machine.run()).code, 0);
  assert.match(readFileSync(machine.path("project/dist/src/one.js"), "utf8"), /one = 1/);
});

test("`test` runs what is named, passes options and the exit code on, and checks style when all is run", async () => {
  const machine = plainMachine();
  cpSync(join(repository, "biome.json"), machine.path("project/biome.json"));
  machine.write("project/.gitignore", "");
  const body = (condition) => `import assert from "node:assert/strict";
import { test } from "node:test";

test("first", () => assert.ok(${condition}));
test("second", () => {});
`;
  machine.write("project/test/torch/good.test.ts", body("true"));
  machine.write("project/test/setup/bad.test.mjs", body("false"));
  const named = await machine.run(["test", "test/torch/good.test.ts"]);
  assert.equal(named.code, 0, named.stdout + named.stderr);
  assert.match(named.stdout, /^. tests 2\n[\s\S]*^. pass 2\n. fail 0\n/m);
  const folder = await machine.run(["test", "--test-name-pattern=second", "test/torch"]);
  assert.match(folder.stdout, /✔ second/);
  assert.doesNotMatch(folder.stdout, /✔ first/);
  const bad = await machine.run(["test", "test/setup"]);
  assert.equal(bad.code, 1);
  assert.match(bad.stdout, /^. fail 1$/m);
  const none = await machine.run(["test", "test/nn"]);
  assert.equal(none.code, 1);
  assert.equal(
    none.stderr,
    `test/nn: expected a test file or a folder of tests, got neither.
  to do:      name sources, such as test/torch/tensor.test.ts or test/nn.
`,
  );
  machine.write("project/test/setup/bad.test.mjs", body("true"));
  const all = await machine.run(["test"]);
  assert.equal(all.code, 0, all.stdout + all.stderr);
  assert.match(all.stdout, /^. tests 4$/m);
  machine.write("project/test/setup/bad.test.mjs", body("true").replaceAll('"', "'"));
  const unformatted = await machine.run(["test"]);
  assert.equal(unformatted.code, 1);
  assert.doesNotMatch(unformatted.stdout, /^. tests/m);
});

test("a folder that cannot be made is named", async () => {
  const machine = plainMachine();
  machine.write("project/build", "a file where the folder should be");
  const { code, stderr } = await machine.run();
  assert.equal(code, 1);
  assert.equal(
    stderr,
    `A file or folder that set-up writes cannot be written.
  found:      EEXIST: file already exists, mkdir 'project/build'
  to do:      make it writable or move it out of the way, then run the same command again.
`,
  );
});

test("a task that does not exist, and a bench", async () => {
  const machine = plainMachine();
  const unknown = await machine.run(["biuld"]);
  assert.deepEqual(
    [unknown.code, unknown.stderr],
    [1, "run: expected one of build, check, format, test, asan, bench, fuzz, start, rlar, got biuld.\n"],
  );
  mkdirSync(machine.path("project/bench"));
  machine.write("project/bench/add.ts", "console.log(process.argv.slice(2));\nprocess.exitCode = 3;\n");
  const bench = await machine.run(["bench", "add", "--n", "2"]);
  assert.deepEqual([bench.code, bench.stdout], [3, "[ '--n', '2' ]\n"]);
  const other = await machine.run(["bench", "mul"]);
  assert.equal(other.stderr, "bench: expected one of add, got mul.\n  to do:      npm run bench -- NAME\n");
});

test("a program that computes hears no signal: the first one is answered at once, the second ends it", async () => {
  const machine = plainMachine();
  machine.write(
    "project/src/cli/main.ts",
    `declare const process: any;
process.on("SIGTERM", () => console.log("heard"));
process.send({ endsAfterStep: process.argv[2] === "step" });
setTimeout(() => { console.log("begun"); for (;;); }, 100);
`,
  );
  for (const [what, says] of [
    ["step", "\nending after this step, with a checkpoint; repeat to end at once\n"],
    ["other", ""],
  ]) {
    const { child, result } = machine.start(["rlar", what]);
    const output = [];
    child.stdout.on("data", (text) => output.push(text));
    await until(() => output.join("").includes("begun"));
    child.kill("SIGTERM");
    child.kill("SIGTERM"); // passed on by npm's shell: the same one
    await new Promise((resolve) => setTimeout(resolve, 1200));
    assert.equal(child.exitCode, null);
    child.kill("SIGTERM");
    const { code, stderr } = await result;
    assert.equal(code, 143);
    assert.equal(stderr.replace(/^set-up: .*\n/gm, ""), says);
  }
});

test("a command ends although a thread of a library hangs", () => {
  // As a decoder that hangs: a thread of Node.js's pool that computes for an hour, in the program alone.
  const machine = new Machine();
  machine.write(
    "hang.mjs",
    'import { pbkdf2 } from "node:crypto"; ' +
      'if (process.argv[1]?.endsWith("main.js")) pbkdf2("a", "b", 2e9, 64, "sha512", () => {});',
  );
  const env = { ...process.env, NODE_OPTIONS: `--import=${pathToFileURL(machine.path("hang.mjs"))}` };
  const program = [join(repository, "scripts", "rlar.mjs"), "--version"];
  const { status, stdout } = spawnSync(process.execPath, program, { encoding: "utf8", env, timeout: 60_000 });
  assert.equal(status, 0);
  assert.match(stdout, /^\d+\.\d+\.\d+\n$/);
});

test("an evaluation that a signal ends says so, and that nothing is half-written", async () => {
  const machine = plainMachine();
  machine.write("project/src/cli/main.ts", 'console.log("begun"); setTimeout(() => {}, 60_000);\n');
  for (const [what, says] of [
    ["eval", /^\nrlar eval: ended by SIGTERM before it was done\. Its results were not written, .*\.\n$/],
    ["train", /^$/],
  ]) {
    const { child, result } = machine.start(["rlar", what]);
    const output = [];
    child.stdout.on("data", (text) => output.push(text));
    await until(() => output.join("").includes("begun"));
    child.kill("SIGTERM");
    const { code, stderr } = await result;
    assert.equal(code, 143);
    assert.match(stderr.replace(/^set-up: .*\n/gm, ""), says);
  }
});
