/** Checkpoints: what comes back, what is kept, what is refused, and what a killed process leaves. */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import fs, {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { syncBuiltinESMExports } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { plainConfig } from "../../src/config/explain.js";
import { resolveConfig } from "../../src/config/resolve.js";
import { AdamW, Ema, Linear } from "../../src/nn/index.js";
import {
  bestCheckpoint,
  type Checkpoint,
  listCheckpoints,
  readCheckpoint,
  saveCheckpoint,
} from "../../src/run/checkpoint.js";
import { versions } from "../../src/run/environment.js";
import { decodeData, type PlainData } from "../../src/run/plain_data.js";
import { forcedNotes, requireSameRun } from "../../src/run/resume.js";
import {
  full,
  manualSeed,
  openSafetensors,
  rand,
  restoreRandomState,
  saveRandomState,
  type Tensor,
  tensor,
  tidy,
} from "../../src/torch/index.js";
import { expectClose } from "../support/close.js";
import { noLeak } from "../support/leak.js";

const root = mkdtempSync(join(tmpdir(), "rlar-checkpoint-"));
after(() => rmSync(root, { recursive: true }));

let folders = 0;
const newFolder = (): string => join(root, String(folders++));

/** A small state that tells its step. */
function state(step: number): Checkpoint {
  return { step, tensors: { policy: { weight: full([3], step) } }, values: { seen: step * 10 } };
}

function save(folder: string, step: number, options: Parameters<typeof saveCheckpoint>[2] = {}): string {
  return tidy(() => saveCheckpoint(folder, state(step), options));
}

function loadedStep(folder: string, options: Parameters<typeof readCheckpoint>[1] = {}): number {
  using checkpoint = readCheckpoint(folder, options);
  assert.ok(checkpoint !== null);
  const { step, tensors, values } = checkpoint;
  expectClose(tensors.policy?.weight as Tensor, [step, step, step], { rtol: 0, atol: 0 });
  assert.equal(values.seen, step * 10);
  return step;
}

test("the state of a run comes back bit for bit: policy, optimizer, average, random numbers, everything else", () => {
  const folder = newFolder();
  manualSeed(3);
  const policy = new Linear(3, 2);
  using optimizer = new AdamW(policy.namedParameters(), { lr: 0.1 });
  using ema = new Ema(policy, { decay: 0.5 });
  const train = (): void =>
    tidy(() => {
      optimizer.zeroGrad();
      policy
        .forward(rand([4, 3]))
        .square()
        .mean()
        .backward();
      optimizer.step();
      ema.update();
    });
  train();
  const { tensors: moments, groups } = optimizer.stateDict();
  const { tensors: averages, updates } = ema.stateDict();
  const random = saveRandomState();
  const values = {
    groups: groups as unknown as PlainData,
    updates,
    seed: 2n ** 63n,
    cursor: { epoch: 2, position: 5 },
    gap: Number.NaN,
  };
  const tensors = { policy: policy.stateDict(), optimizer: moments, ema: averages, random };
  const path = saveCheckpoint(
    folder,
    { step: 12, tensors, values },
    { metadata: { policy: { config: '{"nHead":2}' } } },
  );
  assert.equal(path, join(folder, "step_000012"));
  train();
  const wanted = tidy(() => policy.stateDict().weight?.toArray());
  const average = tidy(() => ema.stateDict().tensors.weight?.toArray());

  using loaded = readCheckpoint(folder);
  assert.ok(loaded !== null);
  assert.equal(loaded.step, 12);
  assert.equal(loaded.path, path);
  assert.deepEqual(loaded.damaged, []);
  assert.deepEqual(loaded.values, values);
  assert.deepEqual({ ...loaded.metadata.policy }, { config: '{"nHead":2}' });
  const again = new Linear(3, 2);
  using otherOptimizer = new AdamW(again.namedParameters(), { lr: 7 });
  using otherEma = new Ema(again, { decay: 0.5 });
  again.loadStateDict(loaded.tensors.policy as Record<string, Tensor>);
  otherOptimizer.loadStateDict({ tensors: loaded.tensors.optimizer as Record<string, Tensor>, groups });
  otherEma.loadStateDict({ tensors: loaded.tensors.ema as Record<string, Tensor>, updates });
  restoreRandomState(loaded.tensors.random as Record<string, Tensor>);
  tidy(() => {
    otherOptimizer.zeroGrad();
    again
      .forward(rand([4, 3]))
      .square()
      .mean()
      .backward();
    otherOptimizer.step();
    otherEma.update();
  });
  assert.deepEqual(
    tidy(() => again.stateDict().weight?.toArray()),
    wanted,
  );
  assert.deepEqual(
    tidy(() => otherEma.stateDict().tensors.weight?.toArray()),
    average,
  );
  for (const tensor of Object.values(random)) tensor.dispose();
  again.dispose();
  policy.dispose();
});

test("the folder: safetensors that others can read, values, and a manifest of sizes and hashes", () => {
  const folder = newFolder();
  const path = save(folder, 7);
  assert.deepEqual(readdirSync(folder), ["step_000007"]);
  assert.deepEqual(readdirSync(path).sort(), ["manifest.json", "policy.safetensors", "values.json"]);
  const manifest = JSON.parse(readFileSync(join(path, "manifest.json"), "utf8"));
  assert.equal(manifest.format, 1);
  assert.equal(manifest.step, 7);
  assert.deepEqual(manifest.versions, versions());
  const names = manifest.files.map((file: { name: string }) => file.name);
  assert.deepEqual(names, ["policy.safetensors", "values.json"]);
  // bytes and sha256sum of this text
  assert.equal(readFileSync(join(path, "values.json"), "utf8"), '{\n "seen": 70\n}\n');
  assert.deepEqual(manifest.files[1], {
    name: "values.json",
    bytes: 16,
    sha256: "13a4f260c4f0ce679b0e956dc053201605fd722b57a177c0ce64e5183163d639",
  });
  using file = openSafetensors(join(path, "policy.safetensors"));
  assert.deepEqual(file.keys, ["weight"]);
});

test("parts may be read alone", () => {
  const folder = newFolder();
  tidy(() =>
    saveCheckpoint(folder, {
      step: 1,
      tensors: { policy: { a: tensor([1]) }, ema: { a: tensor([2]) } },
      values: {},
    }),
  );
  using loaded = readCheckpoint(folder, { parts: ["ema"] });
  assert.deepEqual(Object.keys(loaded?.tensors ?? {}), ["ema"]);
  assert.throws(() => readCheckpoint(folder, { parts: ["value_head"] }), {
    name: "RangeError",
    message: `${join(folder, "step_000001")}: expected the part value_head, got ema, policy.`,
  });
});

test("nothing is left alive", () => {
  const folder = newFolder();
  save(folder, 1);
  noLeak(() => {
    save(folder, 2);
    readCheckpoint(folder)?.dispose();
  });
});

test("an empty folder has no checkpoint", () => {
  const folder = newFolder();
  assert.equal(readCheckpoint(folder), null);
  mkdirSync(folder);
  writeFileSync(join(folder, "notes.txt"), "");
  mkdirSync(join(folder, ".1.abc.tmp"));
  assert.equal(readCheckpoint(folder), null);
  assert.throws(() => readCheckpoint(folder, { which: "best" }), {
    message: `${folder}: expected a best checkpoint, got none.`,
  });
  assert.throws(() => readCheckpoint(folder, { which: "step_000001" }), {
    message: `${folder}: expected a checkpoint step_000001, got none.`,
  });
});

test("the newest few stay, and the best", () => {
  const folder = newFolder();
  for (const step of [10, 20, 30, 40])
    save(folder, step, { keep: 2, ...(step === 20 && { best: { metric: "m", value: 0.5 } }) });
  assert.deepEqual(listCheckpoints(folder), ["step_000020", "step_000030", "step_000040"]);
  assert.deepEqual(bestCheckpoint(folder), { name: "step_000020", step: 20, metric: "m", value: 0.5 });
  assert.equal(loadedStep(folder), 40);
  assert.equal(loadedStep(folder, { which: "best" }), 20);
  assert.equal(loadedStep(folder, { which: "step_000030" }), 30);
  save(folder, 50, { keep: 2, best: { metric: "m", value: 0.6 } });
  assert.deepEqual(listCheckpoints(folder), ["step_000040", "step_000050"]);
  save(folder, 999_999, { keep: 2 });
  save(folder, 1_000_000, { keep: 2 });
  assert.deepEqual(listCheckpoints(folder), ["step_000050", "step_999999", "step_1000000"]); // as numbers, not as text
  assert.equal(loadedStep(folder), 1_000_000);
  assert.throws(() => readCheckpoint(folder, { which: "step_000040" }), {
    message: `${folder}: expected a checkpoint step_000040, got step_1000000, step_999999, step_000050.`,
  });
});

test("a step that is saved again is never absent meanwhile", () => {
  const folder = newFolder();
  save(folder, 5);
  const again = tidy(() => saveCheckpoint(folder, { ...state(5), values: { seen: 51 } }));
  assert.equal(again, join(folder, "step_000005.1"));
  assert.deepEqual(listCheckpoints(folder), ["step_000005.1"]);
  using loaded = readCheckpoint(folder);
  assert.equal(loaded?.values.seen, 51);
  save(folder, 5);
  assert.deepEqual(listCheckpoints(folder), ["step_000005"]);
});

test("a run that goes on from an earlier step gives up the later ones", () => {
  const folder = newFolder();
  for (const step of [10, 20, 30])
    save(folder, step, { ...(step === 30 && { best: { metric: "m", value: 1 } }) });
  save(folder, 15);
  assert.deepEqual(listCheckpoints(folder), ["step_000010", "step_000015"]);
  assert.equal(loadedStep(folder), 15);
  save(folder, 30); // another 30, which is not the best one
  assert.equal(bestCheckpoint(folder), null);
});

test("a damaged newest checkpoint is stepped over and named", () => {
  const cases: [(path: string) => void, RegExp][] = [
    [
      (path) => truncateSync(join(path, "policy.safetensors"), 40),
      /^policy\.safetensors has 40 bytes, not \d+$/,
    ],
    [
      (path) => {
        const file = join(path, "policy.safetensors");
        const bytes = readFileSync(file);
        bytes[bytes.length - 1] = (bytes.at(-1) as number) ^ 1;
        writeFileSync(file, bytes);
      },
      /^policy\.safetensors is not what was written \(its SHA-256 differs\)$/,
    ],
    [(path) => rmSync(join(path, "values.json")), /^values\.json is missing$/],
    [(path) => rmSync(join(path, "manifest.json")), /^manifest\.json cannot be read \(ENOENT: /],
    [(path) => truncateSync(join(path, "manifest.json"), 20), /^manifest\.json cannot be read \(.*JSON/],
    [(path) => writeFileSync(join(path, "manifest.json"), "{}"), /^manifest\.json does not list files$/],
    [
      (path) => writeFileSync(join(path, "manifest.json"), '{"format": 2, "files": []}'),
      /^its format is 2, not 1: another version wrote it$/,
    ],
  ];
  for (const [damage, reason] of cases) {
    const folder = newFolder();
    save(folder, 1);
    const newest = save(folder, 2);
    damage(newest);
    using loaded = readCheckpoint(folder);
    assert.equal(loaded?.step, 1);
    assert.equal(loaded.damaged.length, 1);
    assert.equal(loaded.damaged[0]?.path, newest);
    assert.match(loaded.damaged[0]?.reason as string, reason);
    assert.throws(
      () => readCheckpoint(folder, { which: "step_000002" }),
      /: expected a checkpoint that is whole, got 1 damaged:\n- /,
    );
    // The run goes on: the damaged one goes, and is not taken for the newest.
    save(folder, 2, { keep: 1 });
    assert.equal(loadedStep(folder), 2);
  }
});

test("when none is whole, all are told", () => {
  const folder = newFolder();
  const [one, two] = [save(folder, 1), save(folder, 2)];
  rmSync(join(one, "values.json"));
  rmSync(join(two, "policy.safetensors"));
  assert.throws(() => readCheckpoint(folder), {
    name: "Error",
    message:
      `${folder}: expected a checkpoint that is whole, got 2 damaged:\n` +
      `- ${two}: policy.safetensors is missing\n- ${one}: values.json is missing`,
  });
});

test("leftovers of interrupted saves and deletions go with the next save", () => {
  const folder = newFolder();
  const path = save(folder, 1);
  cpSync(path, join(folder, ".123.0a1b2c3d.tmp"), { recursive: true });
  cpSync(path, join(folder, ".step_000000.deleted.tmp"), { recursive: true });
  assert.equal(loadedStep(folder), 1);
  save(folder, 2);
  assert.deepEqual(readdirSync(folder).sort(), ["step_000001", "step_000002"]);
});

test("a save that fails leaves everything as it was", () => {
  const folder = newFolder();
  save(folder, 1);
  const refuse = (checkpoint: unknown, message: string, options = {}): void => {
    assert.throws(() => saveCheckpoint(folder, checkpoint as Checkpoint, options), { message });
    assert.deepEqual(readdirSync(folder), ["step_000001"]);
  };
  const good = { step: 2, tensors: {}, values: {} };
  refuse({ ...good, step: -1 }, "saveCheckpoint.step: expected an integer of at least 0, got -1.");
  refuse(good, "saveCheckpoint.keep: expected an integer of at least 1, got 0.", { keep: 0 });
  refuse({ ...good, tensors: { "a/b": {} } }, "saveCheckpoint: expected parts named in snake_case, got a/b.");
  refuse(good, "saveCheckpoint: expected tensors of policy, which has metadata, got none.", {
    metadata: { policy: {} },
  });
  refuse({ ...good, tensors: { policy: { w: 3 } } }, "saveSafetensors: w: expected a Tensor, got 3.");
  refuse(
    { ...good, values: { fn: () => 1 } },
    "saveCheckpoint.values.fn: expected plain data, got () => 1. Save tensors among the checkpoint's tensors, and what else " +
      "there is as numbers and text.",
  );
  assert.equal(loadedStep(folder), 1);
});

test("the best checkpoint is named by the checkpoints themselves, whatever becomes of best.json", () => {
  const folder = newFolder();
  const best = { name: "step_000001", step: 1, metric: "m", value: Number.NaN };
  save(folder, 1, { best: { metric: "m", value: Number.NaN } });
  save(folder, 2);
  for (const text of [null, "", "{", "null", "[]", '{"name": 3}', "\0\0"]) {
    if (text === null) rmSync(join(folder, "best.json"), { force: true });
    else writeFileSync(join(folder, "best.json"), text);
    assert.deepEqual(bestCheckpoint(folder), best);
    using loaded = readCheckpoint(folder);
    assert.deepEqual([loaded?.best, loaded?.damaged], [best, []]);
    assert.equal(loadedStep(folder, { which: "best" }), 1);
  }
  save(folder, 3, { keep: 1 });
  assert.deepEqual(decodeData(readFileSync(join(folder, "best.json"), "utf8")), best);
  assert.deepEqual(listCheckpoints(folder), ["step_000001", "step_000003"]);
});

test("a checkpoint of an older version has best.json alone; a damaged one is told", () => {
  const folder = newFolder();
  save(folder, 1, { best: { metric: "m", value: 1 } });
  const manifest = join(folder, "step_000001", "manifest.json");
  const { best: _, ...older } = JSON.parse(readFileSync(manifest, "utf8"));
  writeFileSync(manifest, JSON.stringify(older));
  const best = { name: "step_000001", step: 1, metric: "m", value: 1 };
  assert.deepEqual(bestCheckpoint(folder), best);
  for (const text of [
    "{",
    "null",
    "[1]",
    '{"name":"../x","step":1,"metric":"m","value":1}',
    '{"name":"step_000001"}',
  ]) {
    writeFileSync(join(folder, "best.json"), text);
    assert.equal(bestCheckpoint(folder), null);
    using loaded = readCheckpoint(folder);
    assert.equal(loaded?.step, 1);
    assert.deepEqual(
      loaded?.damaged.map(({ path }) => path),
      [join(folder, "best.json")],
    );
  }
});

test("a damaged manifest makes its checkpoint a damaged one, whatever stands in it", () => {
  const folder = newFolder();
  save(folder, 1);
  save(folder, 2);
  const file = join(folder, "step_000002", "manifest.json");
  const whole = JSON.parse(readFileSync(file, "utf8"));
  const values = { name: "values.json", bytes: 3, sha256: "" };
  const texts = [
    ...["", "null", "3", '"x"', "[]", "[null]", "{}", "\0\0\0"],
    ...[
      null,
      {},
      [null],
      [3],
      [[]],
      [{}],
      [{ ...values, name: "../values.json" }],
      [{ ...values, name: 3 }],
    ].map((files) => JSON.stringify({ ...whole, files })),
    ...[
      { files: [] },
      { step: "2" },
      { step: -1 },
      { step: null },
      { format: 2 },
      { best: {} },
      { best: 3 },
    ].map((change) => JSON.stringify({ ...whole, ...change })),
  ];
  for (const text of texts) {
    writeFileSync(file, text);
    using loaded = readCheckpoint(folder);
    assert.deepEqual([loaded?.step, loaded?.damaged.length], [1, 1], text);
    assert.equal(bestCheckpoint(folder), null, text);
  }
});

test("another configuration or data set is refused, unless forced", () => {
  const config = (...overrides: string[]) => resolveConfig({ overrides, isComplete: false }).config;
  const saved = { config: plainConfig(config()), data: "aabbccddeeff00112233" };
  const none = { config: [], parts: [] };
  assert.deepEqual(requireSameRun(saved, { config: config(), data: saved.data }), none);
  assert.deepEqual(requireSameRun(saved, { config: config("log.every=3"), data: saved.data }), none);
  const other = { config: config("rollout.temperature=0.9", "optimizer.lr=1", "log.every=3"), data: "ff" };
  assert.throws(() => requireSameRun(saved, other), {
    name: "ConfigError",
    message:
      "2 problems in the configuration:\n" +
      "- resume: expected the configuration that the run was begun with, got rollout.temperature: 1 -> 0.9; " +
      "optimizer.lr: 0.00001 -> 1. Undo it, start a new run, or resume with --force.\n" +
      "- resume: expected the images that the run was begun with (fingerprint aabbccddeeff), got others (ff). Give the same " +
      "data set, start a new run, or resume with --force.",
  });
  const forced = requireSameRun(saved, other, { force: true });
  assert.deepEqual(
    [forced.config.map(({ path }) => path), forced.parts],
    [["rollout.temperature", "optimizer.lr"], ["images"]],
  );
  assert.deepEqual(forcedNotes(forced, 7, [[/^rollout/, "by hand"]]), [
    "--force: rollout.temperature: 1 -> 0.9: by hand",
    "--force: optimizer.lr: 0.00001 -> 1: counts from step 8 on",
    "--force: other images: counts from step 8 on",
  ]);
  assert.throws(() => requireSameRun(saved, { config: config(), data: null }), /got others \(none\)/);
});

test("a forced file of weights has no effect, unless adapters are added to it", () => {
  const config = (...overrides: string[]) => resolveConfig({ overrides, isComplete: false }).config;
  const notes = (...always: string[]): string[] => {
    const saved = { config: plainConfig(config(...always)), data: null };
    const now = { config: config(...always, "ar.path=/other", "ar.weights=ema"), data: null };
    return forcedNotes(requireSameRun(saved, now, { force: true }), 7);
  };
  const plain = notes();
  assert.deepEqual(
    plain.map((line) => /^--force: (ar\.\w+): .*has no effect/.exec(line)?.[1]),
    ["ar.path", "ar.weights"],
  );
  for (const line of notes("ar.lora.rank=4")) assert.match(line, /counts from step 8 on$/);
});

/** Operations that change the disk. */
const CHANGING = [
  "openSync",
  "writeSync",
  "fsyncSync",
  "closeSync",
  "renameSync",
  "mkdirSync",
  "rmSync",
] as const;

/**
 * Run `fn` as a process that is gone before its `count`-th operation on the disk: that one and all after it are left out,
 * the cleaning up too.
 *
 * @returns whether it came that far.
 */
function cutShort(count: number, fn: () => void, refusal: Error = new Error("cut short")): boolean {
  const originals = CHANGING.map((name) => [name, fs[name]] as const);
  const closed = new Set<unknown>();
  let done = 0;
  for (const [name, original] of originals) {
    const replaced = (...args: unknown[]): unknown => {
      if (++done < count) return (original as (...args: unknown[]) => unknown)(...args);
      const isOpen = name === "closeSync" && !closed.has(args[0]);
      if (isOpen) (original as typeof fs.closeSync)(args[0] as number); // or the test itself runs out of them
      closed.add(args[0]);
      const [inside] =
        name === "rmSync" && done === count && existsSync(args[0] as string)
          ? fs.readdirSync(args[0] as string)
          : [];
      if (inside !== undefined) fs.unlinkSync(join(args[0] as string, inside)); // half of a folder is gone
      throw refusal;
    };
    Object.assign(fs, { [name]: replaced });
  }
  syncBuiltinESMExports();
  try {
    fn();
  } catch (error) {
    const { code } = refusal as NodeJS.ErrnoException;
    const told =
      /^\/\S+: expected a path that can be written, got EROFS: read-only file system\. Choose .+\.$/;
    if (code === undefined) assert.equal((error as Error).message, refusal.message);
    else assert.match((error as Error).message, told, `operation ${count}`);
  } finally {
    for (const [name, original] of originals) Object.assign(fs, { [name]: original });
    syncBuiltinESMExports();
  }
  return done >= count;
}

test("cut short before any operation on the disk, a save leaves the state before or the state after", () => {
  const template = newFolder();
  save(template, 1, { best: { metric: "m", value: 1 } });
  save(template, 2);
  cpSync(join(template, "step_000002"), join(template, ".step_000000.deleted.tmp"), { recursive: true });
  const seen = new Set<number>();
  let count = 1;
  for (let goesOn = true; goesOn; count++) {
    const folder = newFolder();
    cpSync(template, folder, { recursive: true });
    goesOn = cutShort(count, () => save(folder, 3, { keep: 1, best: { metric: "m", value: 3 } }));
    const step = loadedStep(folder);
    assert.ok(step === 2 || step === 3, `operation ${count}: ${step}`);
    seen.add(step);
    for (const name of listCheckpoints(folder)) loadedStep(folder, { which: name });
    const best = bestCheckpoint(folder);
    assert.ok(best?.value === 1 || best?.value === 3, `operation ${count}: no best checkpoint`);
    assert.equal(loadedStep(folder, { which: "best" }), best.value);
    save(folder, 4, { keep: 1 });
    assert.deepEqual(readdirSync(folder).sort(), ["best.json", best.name, "step_000004"].sort());
  }
  assert.ok(count > 25 && seen.size === 2, `${count} operations`);
});

test("a disk that becomes read-only at any operation of a save is told in one sentence", () => {
  const template = newFolder();
  save(template, 1, { best: { metric: "m", value: 1 } });
  save(template, 2);
  const refusal = Object.assign(new Error("EROFS: read-only file system, open '/some/.where.tmp'"), {
    code: "EROFS",
    syscall: "open",
  });
  let count = 1;
  for (let goesOn = true; goesOn; count++) {
    const folder = newFolder();
    cpSync(template, folder, { recursive: true });
    goesOn = cutShort(count, () => save(folder, 3, { keep: 1, best: { metric: "m", value: 3 } }), refusal);
  }
  assert.ok(count > 25, `${count} operations`);
});

/** Saves steps without end, telling each that is done. */
const WRITER = `
import { saveCheckpoint } from ${JSON.stringify(new URL("../../src/run/checkpoint.js", import.meta.url).href)};
import { full } from ${JSON.stringify(new URL("../../src/torch/index.js", import.meta.url).href)};
import { writeSync } from "node:fs";
const [folder, first] = [process.argv[1], Number(process.argv[2])];
for (let step = first; ; step++) {
  const weight = full([3], step);
  const bulk = full([20_000], step);
  const best = step % 3 === 0 ? { best: { metric: "m", value: step } } : {};
  saveCheckpoint(folder, { step, tensors: { policy: { weight }, optimizer: { bulk } }, values: { seen: step * 10 } }, { keep: 1, ...best });
  weight.dispose();
  bulk.dispose();
  writeSync(1, step + "\\n");
}
`;

/** Run the writer, kill it some time after its first save; the last step that it said was saved. */
async function killedWriter(folder: string, first: number, wait: number): Promise<number> {
  const child = spawn(process.execPath, ["--input-type=module", "-e", WRITER, folder, String(first)], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  let said = "";
  await new Promise<void>((resolve, reject) => {
    child.on("error", reject);
    child.on("close", () => resolve());
    child.stdout.setEncoding("utf8").on("data", (text: string) => {
      if (said === "") setTimeout(() => child.kill("SIGKILL"), wait);
      said += text;
    });
  });
  return Math.max(...said.slice(0, said.lastIndexOf("\n")).split("\n").map(Number));
}

test("killed at any moment, a process leaves the state before or the state after", async () => {
  const rounds = async (lane: number): Promise<void> => {
    const folder = newFolder();
    let first = 1;
    for (let round = 0; round < 10; round++) {
      // Moments spread over several saves, each some milliseconds long, at a different place in each round.
      const said = await killedWriter(folder, first, ((round * 7 + lane * 3) % 10) * 2.3);
      const step = loadedStep(folder);
      assert.ok(step === said || step === said + 1, `step ${said} was saved, step ${step} is there`);
      for (const name of listCheckpoints(folder)) loadedStep(folder, { which: name }); // each that bears the name is whole
      const best = bestCheckpoint(folder);
      if (best !== null) assert.equal(loadedStep(folder, { which: "best" }), best.value);
      first = step + 1;
    }
    save(folder, first, { keep: 1 });
    assert.ok(
      readdirSync(folder).every((name) => /^step_|^best\.json$/.test(name)),
      String(readdirSync(folder)),
    );
  };
  await Promise.all([rounds(0), rounds(1)]);
});
