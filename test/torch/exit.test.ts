/** What a process does at its end, and backwards inside backwards: each in a process of its own. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";

const TORCH = new URL("../../src/torch/index.js", import.meta.url).href;

const ADD_ONE =
  "const addOne = (x, back = ([g]) => [g]) => T.customFunction([x], () => ({ outputs: [x.add(1)], saved: [] }), back)[0];";

/** Run a program with the tensor floor as `T`. */
function run(program: string): { code: number | null; signal: string | null; text: string } {
  return runAlone(`const T = await import(${JSON.stringify(TORCH)}); ${ADD_ONE} ${program}`);
}

function runAlone(source: string): { code: number | null; signal: string | null; text: string } {
  const child = spawnSync(process.execPath, ["--input-type=module", "-e", source], {
    encoding: "utf8",
    timeout: 120_000,
  });
  return { code: child.status, signal: child.signal, text: child.stdout + child.stderr };
}

/** Programs that end with graphs, generators and strings alive. */
const ENDS: Record<string, string> = {
  "a graph of a custom backward":
    "const x = T.ones([2], { requiresGrad: true }); globalThis.y = [addOne(x), addOne(addOne(x))];",
  "callbacks of graphs that went before":
    "const x = T.ones([2], { requiresGrad: true }); globalThis.y = [addOne(x), addOne(x)]; for (let i = 0; i < 3; i++) addOne(x).dispose();",
  checkpoints:
    "const x = T.ones([2], { requiresGrad: true }); const f = () => T.checkpoint((a) => a.mul(2), [x]); T.tidy(() => f().sum().backward()); globalThis.y = f(); T.tidy(() => f().sum().backward());",
  "a call of process.exit inside a backward":
    "const x = T.ones([2], { requiresGrad: true }); globalThis.y = addOne(x); addOne(x, () => process.exit(0)).sum().backward();",
  "generators, large blocks and autocast's weights":
    "globalThis.y = [new T.Generator(1), T.zeros([1 << 20])]; T.zeros([1 << 20]).dispose(); const w = T.ones([2, 2], { requiresGrad: true }); T.autocast({ device: 'cpu', dtype: 'bfloat16' }, () => process.exit(T.functional.linear(w, w).numel - 4));",
};

ENDS["a call of process.exit inside a backward on a thread"] = `
  const { native } = await import(${JSON.stringify(TORCH.replace("index.js", "binding.js"))});
  native.setThreadedBackward(true);
  ${ENDS["a call of process.exit inside a backward"]}`;
for (const [what, program] of Object.entries(ENDS)) {
  test(`a process ends cleanly with ${what} alive`, () => {
    assert.deepEqual(run(program), { code: 0, signal: null, text: "" });
  });
}

test("a process ends cleanly after a worker that held a graph; a second thread is refused by a sentence", () => {
  const body = `import(${JSON.stringify(TORCH)}).then((T) => { ${ADD_ONE} globalThis.y = addOne(T.ones([2], { requiresGrad: true })); });`;
  const { code, signal, text } = runAlone(`
    const { Worker } = await import("node:worker_threads");
    await new Promise((resolve) => new Worker(${JSON.stringify(body)}, { eval: true }).on("exit", resolve));
    await import(${JSON.stringify(TORCH)}).catch((error) => console.log(error.message));`);
  assert.deepEqual([code, signal], [0, null], text);
  assert.match(text, /^rl-ar-finetune: expected one JavaScript thread to load LibTorch, got a second\./);
});

test("a backward that returns anything but tensors is a sentence, and the process goes on", () => {
  const returned = ["[3]", "[undefined]", "['x']", "[[g]]", "[{}]", "3", "null", "undefined", "[]", "[g, g]"];
  const { code, text } = run(`
    const x = T.ones([2], { requiresGrad: true });
    for (const back of [${returned.map((value) => `([g]) => (${value})`).join(", ")}]) {
      try { addOne(x, back).sum().backward(); console.log("taken"); } catch (error) { console.log(error.message); }
    }
    addOne(x).sum().backward();
    console.log(x.grad.toList().join());`);
  assert.equal(code, 0, text);
  const lines = text.trim().split("\n");
  assert.equal(lines.pop(), "1,1");
  assert.equal(lines.length, returned.length);
  for (const line of lines) assert.match(line, /^customFunction: expected .*(gradient|array).*, got .+\.$/);
});

const NESTED = `
  const go = (depth) => {
    const a = T.ones([2], { requiresGrad: true });
    addOne(a, ([g]) => { if (depth > 0) T.enableGrad(() => go(depth - 1)); return [g]; }).sum().backward();
    return a.grad.toList().join();
  };
  const deep = (depth, x) => (depth === 0 ? x.mul(2) : T.checkpoint((y) => deep(depth - 1, y), [x]));
  const attempt = (fn) => { try { return fn(); } catch (error) { return error.message; } };`;

for (const threaded of [false, true]) {
  test(`60 backwards inside another run, more are refused${threaded ? ", on a thread too" : ""}`, () => {
    const { code, signal, text } = run(`${NESTED}
      const { native } = await import(${JSON.stringify(TORCH.replace("index.js", "binding.js"))});
      native.setThreadedBackward(${threaded});
      console.log(go(60));
      for (const depth of [61, 62, 100]) console.log(attempt(() => go(depth)));
      const x = T.ones([2], { requiresGrad: true });
      console.log(attempt(() => deep(100, x).sum().backward()));
      console.log(go(3));`);
    assert.deepEqual([code, signal], [0, null], text);
    const lines = text.trim().split("\n");
    assert.equal(lines[0], "1,1");
    for (const line of lines.slice(1, 5))
      assert.match(line, /expected at most 60 backwards inside another, got more\. Nest fewer /);
    assert.equal(lines[5], "1,1");
  });
}

test("a working folder that was removed is said before LibTorch's libraries end the process", () => {
  const program = `
    import { mkdtempSync, rmdirSync } from "node:fs";
    const folder = mkdtempSync(${JSON.stringify(join(tmpdir(), "rlar-gone-"))});
    process.chdir(folder); rmdirSync(folder);
    await import(${JSON.stringify(TORCH)}).catch((error) => console.log(error.message));`;
  const { code, text } = runAlone(program);
  assert.equal(code, 0, text);
  assert.match(text, /^working folder: expected one that is there, got one that was removed\. Change /);
});
