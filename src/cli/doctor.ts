/** `rlar doctor`: print which LibTorch is in use and what the machine has. */
import { readFileSync, statfsSync } from "node:fs";
import { cpus, freemem, totalmem } from "node:os";
import { fileURLToPath } from "node:url";

import {
  cudaDeviceCount,
  getNumThreads,
  hasCudaStatistics,
  noGrad,
  rand,
  tidy,
  version,
  whyNoCuda,
} from "../torch/index.js";

/** Print the facts, and time one matrix product as a check that operators run. */
export function doctor(options: { json?: boolean }): void {
  const built = JSON.parse(
    readFileSync(fileURLToPath(new URL("../../../build/native/libtorch.json", import.meta.url)), "utf8"),
  ) as Record<string, unknown>;
  const disk = statfsSync(".");
  const gib = (bytes: number): string => `${(bytes / 2 ** 30).toFixed(1)} GiB`;
  const facts: Record<string, string> = {
    node: process.version,
    platform: `${process.platform} ${process.arch}`,
    processor: `${cpus()[0]?.model.trim() ?? "unknown"}, ${cpus().length} cores`,
    memory: `${gib(freemem())} free of ${gib(totalmem())}`,
    disk: `${gib(disk.bavail * disk.bsize)} free here`,
    libtorch: `${version().torch} from ${String(built.source ?? built.path)}`,
    threads: `${getNumThreads()} per operator`,
    cuda: cudaText(),
    "matrix product": `${gigaflops().toFixed(0)} GFLOP/s in float32`,
  };
  if (options.json) process.stdout.write(`${JSON.stringify(facts, null, 2)}\n`);
  else
    for (const [name, value] of Object.entries(facts)) process.stdout.write(`${name.padEnd(15)} ${value}\n`);
}

/** The GPUs, and what is missing to use them fully. */
function cudaText(): string {
  const count = cudaDeviceCount();
  if (count === 0) return `none: ${whyNoCuda()}`;
  const devices = count === 1 ? "1 device" : `${count} devices`;
  if (hasCudaStatistics()) return devices;
  return `${devices}, without memory statistics and graphs: built without CUDA's headers. Set CUDA_HOME and run npm run build`;
}

/** The best of a few products of 1024 x 1024 matrices. */
function gigaflops(): number {
  const n = 1024;
  return noGrad(() =>
    tidy(() => {
      const [a, b] = [rand([n, n]), rand([n, n])];
      let best = Infinity;
      for (let i = 0; i < 5; i++) {
        const start = performance.now();
        tidy(() => a.matmul(b).sum().item());
        best = Math.min(best, performance.now() - start);
      }
      return (2 * n ** 3) / best / 1e6;
    }),
  );
}
