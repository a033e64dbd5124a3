/**
 * What a second process brings: iterations of one run by 1 process and by 2, each with 1 thread, on the same global batch,
 * and the bandwidth of all-reduce beside that of PyTorch's own Gloo where a Python with torch is there.
 *
 *     npm run bench -- scale [--iters 6] [--large] [--python python3]
 *
 * Prints the median seconds of an iteration, without the first two, by phase, and how many times as fast two processes are;
 * beside it what the machine allows: two runs at once that share nothing, each with half of the images, whose caches and
 * memory meet all the same. `--large` takes a policy of GPT-B's width and depth with random weights in place of the demo's.
 */

import { spawn, spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { freePort } from "../src/cli/launch.js";
import { allReduce, destroy, init, isFirst } from "../src/distributed/index.js";
import { full, setNumThreads } from "../src/torch/index.js";
import { median } from "./peer.js";

const { values, positionals } = parseArgs({
  args: process.argv.slice(2).filter((argument) => argument !== "--"),
  allowPositionals: true,
  options: {
    iters: { type: "string", default: "6" },
    large: { type: "boolean", default: false },
    python: { type: "string", default: "python3" },
  },
});

const root = fileURLToPath(new URL("../../", import.meta.url));
const MIB = 64;
const ROUNDS = 10;

/** Run a program. @returns what it printed. */
function outputOf(program: string, args: readonly string[], env: Record<string, string>): Promise<string> {
  const child = spawn(program, args, {
    env: { ...process.env, OMP_NUM_THREADS: "1", ...env },
    cwd: root,
    stdio: ["ignore", "pipe", "inherit"],
  });
  let out = "";
  child.stdout.on("data", (text) => {
    out += text;
  });
  return new Promise((resolve, reject) => {
    child.on("close", (code) => {
      if (code === 0) resolve(out);
      else reject(new Error(`${program} ${args.join(" ")}: expected exit code 0, got ${code}.`));
    });
  });
}

/** Run a program in processes with torchrun's variables. @returns what the first one printed. */
async function inProcesses(count: number, program: string, args: readonly string[]): Promise<string> {
  const port = await freePort();
  const outputs = Array.from({ length: count }, (_, rank) =>
    outputOf(program, args, {
      RANK: `${rank}`,
      LOCAL_RANK: `${rank}`,
      WORLD_SIZE: `${count}`,
      MASTER_ADDR: "127.0.0.1",
      MASTER_PORT: `${port}`,
    }),
  );
  return (await Promise.all(outputs))[0] as string;
}

const MAIN = join(root, "dist/src/cli/main.js");
const IMAGES = values.large ? 8 : 32;

/** The command of a run that writes to a folder. */
function trainArgs(dir: string, images: number): string[] {
  const model = join(root, "models", "emoji_32px");
  return [
    MAIN,
    "train",
    `run.dir=${dir}`,
    `data.source=${join(model, "emoji_32px.tar")}`,
    "data.size=32",
    "data.evalPart=0",
    "data.workers=1",
    `tokenizer.path=${join(model, "tokenizer.safetensors")}`,
    ...(values.large
      ? ["ar={type: gpt, nLayer: 12, nHead: 12, nEmbd: 768}", "rollout.start=empty"]
      : [`ar.path=${join(model, "policy.safetensors")}`]),
    "algorithm=grpo",
    `rollout={images: ${images}, numGenerations: 4, context: {type: prefix}}`,
    "reward.l2.weight=1",
    "eval.every=0",
    "save.every=0",
    "log={every: 1, imagesEvery: 0, tensorboard: false}",
    `train={iters: ${values.iters}, threads: 1, device: cpu}`,
  ];
}

const PHASES = ["data", "rollout", "decode", "reward", "update"] as const;

/** Median seconds of an iteration, in all and by phase, and in collectives. */
type Seconds = Readonly<Record<"all" | "collectives" | (typeof PHASES)[number], number>>;

function secondsIn(dir: string): Seconds {
  const lines = readFileSync(join(dir, "metrics.jsonl"), "utf8").trim().split("\n").slice(2);
  const records = lines.map((line) => JSON.parse(line) as Record<string, number>);
  const of = (name: string): number => median(records.map((record) => record[name] ?? 0));
  const phases = PHASES.map((phase) => [phase, of(`time/${phase}`)]);
  return { all: of("perf/step_s"), collectives: of("perf/collectives_s"), ...Object.fromEntries(phases) };
}

/** Iterations by so many processes that share the images, or that have a run and a part of the images each. */
async function measure(count: number, isShared: boolean): Promise<Seconds> {
  const folder = mkdtempSync(join(tmpdir(), "bench-scale-"));
  const dirs = Array.from({ length: isShared ? 1 : count }, (_, i) => join(folder, `run-${i}`));
  try {
    if (isShared) await inProcesses(count, process.execPath, trainArgs(dirs[0] as string, IMAGES));
    else {
      const runs = dirs.map((dir) => outputOf(process.execPath, trainArgs(dir, IMAGES / count), {}));
      await Promise.all(runs);
    }
    const all = dirs.map(secondsIn);
    return all.reduce((slow, each) => (each.all > slow.all ? each : slow));
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** Sums of 64 MiB over two processes: GiB a second of what each holds. */
async function reduce(): Promise<void> {
  setNumThreads(1);
  await init();
  const data = full([MIB * 2 ** 18], 1, { dtype: "float32" });
  allReduce([data]);
  const times = Array.from({ length: ROUNDS }, () => {
    const start = performance.now();
    allReduce([data]);
    return (performance.now() - start) / 1000;
  });
  if (isFirst()) process.stdout.write(`${median(times)}\n`);
  await destroy();
}

const PEER = `
import time, torch, torch.distributed as dist
torch.set_num_threads(1)
dist.init_process_group("gloo")
data = torch.ones(${MIB} * 2**18)
dist.all_reduce(data)
times = []
for _ in range(${ROUNDS}):
    start = time.perf_counter()
    dist.all_reduce(data)
    times.append(time.perf_counter() - start)
if dist.get_rank() == 0: print(sorted(times)[len(times) // 2])
dist.destroy_process_group()
`;

if (positionals[0] === "reduce") {
  await reduce();
} else {
  const what = values.large ? "12 layers of width 768" : "the demo's policy";
  const one = await measure(1, true);
  const two = await measure(2, true);
  const apart = await measure(2, false);
  const columns: readonly (readonly [string, Seconds])[] = [
    ["1 process", one],
    ["2 processes", two],
    ["2 runs of half", apart],
  ];
  const row = (name: string, cells: readonly string[]): string =>
    `${name.padEnd(12)}${cells.map((cell) => cell.padStart(16)).join("")}\n`;
  process.stdout.write(
    `seconds of an iteration, ${what}, ${IMAGES} images, 4 samples each, 1 thread a process\n`,
  );
  process.stdout.write(
    row(
      "",
      columns.map(([name]) => name),
    ),
  );
  for (const name of ["all", ...PHASES, "collectives"] as const) {
    process.stdout.write(
      row(
        name,
        columns.map(([, seconds]) => seconds[name].toFixed(3)),
      ),
    );
  }
  const times = (seconds: Seconds): string => (one.all / seconds.all).toFixed(2);
  process.stdout.write(`2 processes: ${times(two)} times as fast as 1; `);
  process.stdout.write(`this machine allows ${times(apart)}, by two runs at once that share nothing\n`);
  const bandwidth = (seconds: string): string => (MIB / 1024 / Number(seconds)).toFixed(2);
  const self = fileURLToPath(import.meta.url);
  const ours = await inProcesses(2, process.execPath, [self, "reduce"]);
  process.stdout.write(`all-reduce of ${MIB} MiB by 2 processes: ${bandwidth(ours)} GiB/s here`);
  const hasTorch = spawnSync(values.python, ["-c", "import torch.distributed"]).status === 0;
  if (hasTorch) {
    const theirs = await inProcesses(2, values.python, ["-c", PEER]);
    process.stdout.write(`, ${bandwidth(theirs)} GiB/s by PyTorch\n`);
  } else process.stdout.write(`; ${values.python} has no torch to compare with\n`);
}
