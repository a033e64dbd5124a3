/**
 * What the tensor floor costs: one operator called from JavaScript, beside Python where a Python with torch is found
 * (PYTHON, then python3); plain and packed linear layers; making and freeing tensors; memory that is used again.
 *
 *     npm run bench core -- [threads]
 *
 * One thread where nothing is said: with more, other work on the machine shows in every time. The two languages take
 * turns and medians are compared. On a shared machine trust the ratios, not the times.
 */

import { type ChildProcessByStdio, spawn, spawnSync } from "node:child_process";
import { createInterface } from "node:readline";
import type { Readable, Writable } from "node:stream";
import { fileURLToPath } from "node:url";
import { Linear, packLinears } from "../src/nn/index.js";
import {
  emptyCache,
  functional as F,
  manualSeed,
  memory,
  noGrad,
  ones,
  rand,
  randn,
  setNumThreads,
  type Tensor,
  tidy,
  version,
  zeros,
} from "../src/torch/index.js";
import { median } from "./peer.js";

const ROUNDS = 9;
/** Results that one tidy frees: as many as a layer's worth of operators. */
const SCOPE = 50;

/** Passes through a linear layer that are timed together. */
const IN_A_ROW = 20;

/** Nanoseconds of one of `count` runs. */
function time(count: number, run: (count: number) => void): number {
  const begin = process.hrtime.bigint();
  run(count);
  return Number(process.hrtime.bigint() - begin) / count;
}

/** Run `fn` `count` times, in scopes of {@link SCOPE} results. */
function scoped(fn: () => unknown, size: number = SCOPE): (count: number) => void {
  const scope = (): void => {
    for (let i = 0; i < size; i++) fn();
  };
  return (count) => {
    for (let i = 0; i < count; i += size) tidy(scope);
  };
}

function plain(fn: () => unknown): (count: number) => void {
  return (count) => {
    for (let i = 0; i < count; i++) fn();
  };
}

interface Case {
  name: string;
  /** Name of the same in core_peer.py. */
  peer: string;
  count: number;
  needsGrad?: boolean;
  run: (count: number) => void;
}

function cases(): Case[] {
  const [p, q] = [ones([1]), ones([1])];
  const [square, other] = [randn([4, 4]), randn([4, 4])];
  const [x, w, b] = [randn([16, 768]), randn([768, 768]), randn([768])];
  const [input, w1, w2] = [randn([8, 16]), randn([16, 16]).requiresGrad_(), randn([16, 4]).requiresGrad_()];
  const chain = (): Tensor =>
    square.add(other).mul(other).sub(square).relu().exp().add(1).log().matmul(other).tanh().sum();
  const train = (): void =>
    tidy(() => {
      input.matmul(w1).relu().matmul(w2).sum().backward();
      w1.grad = null;
      w2.grad = null;
    });
  return [
    { name: "add, freed by tidy", peer: "add", count: 20_000, run: scoped(() => p.add(q)) },
    { name: "add, freed by dispose", peer: "add", count: 20_000, run: plain(() => p.add(q).dispose()) },
    { name: "add_", peer: "add_", count: 20_000, run: plain(() => p.add_(q)) },
    { name: "view", peer: "view", count: 20_000, run: scoped(() => square.view(2, 8)) },
    { name: "transpose", peer: "transpose", count: 20_000, run: scoped(() => square.transpose(0, 1)) },
    { name: "matmul 4x4", peer: "matmul", count: 20_000, run: scoped(() => square.matmul(other)) },
    { name: "sum", peer: "sum", count: 20_000, run: scoped(() => square.sum()) },
    {
      name: "sum over a dimension",
      peer: "sum_dim",
      count: 20_000,
      run: scoped(() => square.sum(1, { keepdim: true })),
    },
    { name: "chain of 10 operators", peer: "chain", count: 2_000, run: scoped(chain, 1) },
    {
      name: "linear 16 x 768 to 768",
      peer: "linear",
      count: 200,
      run: plain(() => F.linear(x, w, b).dispose()),
    },
    { name: "forward and backward", peer: "train", count: 1_000, needsGrad: true, run: plain(train) },
  ];
}

// ---- The peer ----

/** Asks the Python process to time a case of its own. */
type Peer = (name: string, count: number) => Promise<number>;

const PEER = fileURLToPath(new URL("../../bench/core_peer.py", import.meta.url));

function findPython(): string | undefined {
  return [process.env.PYTHON, "python3"].find((program) => {
    return program !== undefined && spawnSync(program, ["-c", "import torch"]).status === 0;
  });
}

function startPeer(python: string): { ask: Peer; child: ChildProcessByStdio<Writable, Readable, null> } {
  const child = spawn(python, [PEER, String(threads)], { stdio: ["pipe", "pipe", "inherit"] });
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  const ask: Peer = async (name, count) => {
    child.stdin.write(`${name} ${count}\n`);
    const { value, done } = await lines.next();
    if (done) throw new Error(`bench: expected a time for ${name} from ${python}, got its end.`);
    return Number(value);
  };
  return { ask, child };
}

async function hostCost(): Promise<void> {
  const python = findPython();
  const all = cases();
  const ours = all.map((): number[] => []);
  const theirs = all.map((): number[] => []);
  const peer = python === undefined ? undefined : startPeer(python);
  console.log(`Microseconds a call, LibTorch ${version().torch}`);
  if (peer === undefined) console.log("No Python with torch: set PYTHON to compare with one.");
  for (let round = 0; round <= ROUNDS; round++) {
    for (const [i, each] of all.entries()) {
      const run = (): number => time(each.count, each.run);
      const own = each.needsGrad ? run() : noGrad(run);
      const peers = await peer?.ask(each.peer, each.count);
      if (round === 0) continue; // warm-up
      ours[i]?.push(own);
      if (peers !== undefined) theirs[i]?.push(peers);
    }
  }
  for (const [i, { name }] of all.entries()) {
    const own = median(ours[i] as number[]) / 1000;
    const line = `${name.padEnd(28)}${own.toFixed(2).padStart(9)}`;
    if (peer === undefined) console.log(line);
    else {
      const peers = median(theirs[i] as number[]) / 1000;
      console.log(
        `${line}   Python ${peers.toFixed(2).padStart(8)}   ${(own / peers).toFixed(2)} of Python's`,
      );
    }
  }
  peer?.child.stdin.end();
}

// ---- Packed weights ----

/** Times of two ways, taken in turns, and how many times faster the second is. */
function compare(name: string, first: () => void, second: () => void, rounds: number, inARow = 1): void {
  const times: [number[], number[]] = [[], []];
  for (let round = 0; round <= rounds; round++) {
    for (const [i, run] of [first, second].entries()) {
      const took = time(1, run) / inARow / 1000;
      if (round > 0) times[i]?.push(took);
    }
  }
  const [a, b] = [median(times[0]), median(times[1])];
  console.log(
    `${name.padEnd(28)}${a.toFixed(0).padStart(9)}${b.toFixed(0).padStart(9)}   ${(a / b).toFixed(2)} times as fast`,
  );
}

function packedLinears(): void {
  console.log(`\nMicroseconds of a linear layer, 768 to 3072, plain and packed`);
  for (const dtype of ["float32", "bfloat16"] as const) {
    const layers = [new Linear(768, 3072), new Linear(768, 3072)] as const;
    for (const layer of layers) layer.to({ dtype });
    using _ = packLinears(layers[1]);
    for (const rows of [1, 8, 16, 32, 128]) {
      tidy(() => {
        const x = randn([rows, 768], { dtype });
        // Twenty in a row: the second finds the weights in the processor's cache, where there is room for them.
        const forward = (layer: Linear) => () =>
          noGrad(() =>
            tidy(() => {
              for (let i = 0; i < IN_A_ROW; i++) layer.forward(x);
            }),
          );
        compare(`${dtype}, ${rows} rows`, forward(layers[0]), forward(layers[1]), 31, IN_A_ROW);
      });
    }
    for (const layer of layers) layer.dispose();
  }
}

// ---- Tensors made and freed ----

async function rates(): Promise<void> {
  console.log("\nTensors of 16 elements made and freed, thousands a second");
  const make = (): Tensor => zeros([16]);
  const show = (name: string, nanoseconds: number): void => {
    console.log(`${name.padEnd(28)}${(1e6 / nanoseconds).toFixed(0).padStart(9)}`);
  };
  const repeated = (run: (count: number) => void): number =>
    median(Array.from({ length: ROUNDS }, () => time(20_000, run)));
  show("by tidy", repeated(scoped(make)));
  show("by dispose", repeated(plain(() => make().dispose())));
  const begin = process.hrtime.bigint();
  const count = 200_000;
  const before = memory().tensors;
  for (let i = 0; i < count; i++) {
    make();
    if (i % 1000 === 999) await new Promise((resolve) => setImmediate(resolve));
  }
  show("by the collector", Number(process.hrtime.bigint() - begin) / count);
  console.log(`${memory().tensors - before} of ${count} are still open: nothing called for them`);
}

// ---- Memory that is used again ----

function temporaries(): void {
  console.log("\nMicroseconds of an addition into new memory, and into memory that was freed before");
  for (const megabytes of [1, 16, 64, 256]) {
    tidy(() => {
      const x = rand([megabytes << 18]);
      const add = (): void => tidy(() => void x.add(1));
      const fresh = (): void => {
        emptyCache();
        add();
      };
      // Either way the one before has left its block behind, which `fresh` gives back first.
      compare(`${megabytes} MiB`, fresh, () => add(), 11);
    });
    emptyCache();
  }
}

const threads = Number(process.argv[2] ?? 1);
setNumThreads(threads);
console.log(`Threads in an operator: ${threads}`);
manualSeed(0);
await hostCost();
packedLinears();
await rates();
temporaries();
