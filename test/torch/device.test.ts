import assert from "node:assert/strict";
import { test } from "node:test";
import { native } from "../../src/torch/binding.js";
import {
  allowTf32,
  autocast,
  captureGraph,
  cudaDeviceCount,
  cudaEmptyCache,
  cudaMemory,
  type Device,
  Generator,
  getNumThreads,
  isCudaAvailable,
  memory,
  ones,
  requireDevice,
  restoreRandomState,
  setNumThreads,
  synchronize,
  tensor,
  tidy,
  version,
  zeros,
} from "../../src/torch/index.js";
import { noLeak } from "../support/leak.js";

const { torch } = version();
const NO_CUDA = isCudaAvailable() ? "this machine has a CUDA device" : false;

test("the version is that of the loaded LibTorch, with how it was built", () => {
  assert.match(torch, /^\d+\.\d+\.\d+/);
  assert.match(version().config, /PyTorch built with:/);
});

test("threads can be set from 1 to 1024", () => {
  const before = getNumThreads();
  try {
    setNumThreads(1);
    assert.equal(getNumThreads(), 1);
    setNumThreads(2);
    assert.equal(getNumThreads(), 2);
    setNumThreads(1024);
    setNumThreads(2);
    for (const count of [0, -1, 1.5, 1025, NaN, Infinity]) {
      assert.throws(() => setNumThreads(count), {
        name: "RangeError",
        message: `setNumThreads: expected an integer from 1 to 1024, got ${count}.`,
      });
    }
    assert.equal(getNumThreads(), 2);
  } finally {
    setNumThreads(before);
  }
});

test("TF32 is allowed and forbidden in products and convolutions, and what was set before comes back", () => {
  const flags = (): number => {
    const now = native.tf32(0);
    native.tf32(now);
    return now;
  };
  assert.equal(flags(), 2, "LibTorch's default: convolutions alone");
  {
    using _outer = allowTf32(true);
    assert.equal(flags(), 3);
    using _inner = allowTf32(false);
    assert.equal(flags(), 0);
  }
  assert.equal(flags(), 2);
});

test("the CPU needs nothing", () => {
  requireDevice("cpu");
  requireDevice("meta");
  synchronize("cpu");
  assert.equal(cudaDeviceCount() > 0, isCudaAvailable());
});

test("without CUDA, everything that asks for it says what is missing and what to do", {
  skip: NO_CUDA,
}, () => {
  const why =
    /expected a CUDA device, got none: LibTorch [\d.]+\S* was built (for the CPU alone\. Set LIBTORCH to a CUDA build|with CUDA but sees no device\. Check nvidia-smi and CUDA_VISIBLE_DEVICES)/;
  noLeak(() =>
    tidy(() => {
      const x = ones([2]);
      const generators = memory().generators;
      const uses: Record<string, () => unknown> = {
        requireDevice: () => requireDevice("cuda"),
        "requireDevice with an index": () => requireDevice("cuda:3"),
        "Tensor.to": () => x.to({ device: "cuda" }),
        "Tensor.to with an index": () => x.to({ device: "cuda:1" }),
        zeros: () => zeros([2], { device: "cuda" }),
        tensor: () => tensor([1], { device: "cuda" }),
        synchronize: () => synchronize("cuda"),
        captureGraph: () => captureGraph(() => undefined),
        cudaMemory: () => cudaMemory(),
        cudaEmptyCache: () => cudaEmptyCache(),
        Generator: () => new Generator(1, "cuda"),
        restoreRandomState: () => restoreRandomState({ "cuda:0": x }),
      };
      for (const [name, use] of Object.entries(uses)) assert.throws(use, why, name);
      assert.equal(memory().generators, generators);
      assert.throws(() => requireDevice("cuda"), {
        name: "RangeError",
        message: /^device: expected a CUDA device/,
      });
      assert.throws(() => captureGraph(() => undefined), {
        message: /^captureGraph: expected a CUDA device/,
      });
      assert.equal(
        autocast({ device: "cuda", dtype: "float16" }, () => x.add(1)).dtype,
        "float32",
        "state alone, no device",
      );
    }),
  );
});

test("devices that do not exist are refused by name", () => {
  tidy(() => {
    const x = ones([2]);
    for (const device of ["gpu", "", "cuda0", "CPU", "xpu:0"] as string[] as Device[]) {
      const refused = `: expected a device "cpu", "cuda" or "cuda:0", got "${device}"; self float32[2] cpu`;
      assert.throws(
        () => x.to({ device }),
        (error: Error) => error.message.endsWith(refused),
      );
      const asks = {
        device: requireDevice,
        synchronize,
        Generator: (each: Device) => new Generator(1, each),
      };
      for (const [where, ask] of Object.entries(asks)) {
        assert.throws(() => ask(device), {
          name: "RangeError",
          message: `${where}: expected "cpu", "cuda" or "cuda:0", got ${device}.`,
        });
      }
    }
    assert.throws(() => x.to({ device: "cuda:first" as Device }), /Invalid device string: 'cuda:first'/);
    assert.throws(() => requireDevice("cuda:first" as Device), {
      message: /^device: expected "cpu", "cuda" or "cuda:0", got cuda:first\.$/,
    });
  });
});

/** A stand-in for the graph functions of the addon, which a build without CUDA lacks. */
function fakeGraphs(fail: { end?: Error } = {}): { log: string[]; restore: () => void } {
  const log: string[] = [];
  const before = { ...native };
  Object.assign(native, {
    whyNoCuda: () => "",
    graphBegin: () => log.push("begin"),
    graphEnd: (graph: number) => {
      log.push(`end ${graph}`);
      if (fail.end !== undefined) throw fail.end;
    },
    graphAbort: (graph: number) => void log.push(`abort ${graph}`),
    graphReplay: (graph: number) => void log.push(`replay ${graph}`),
    graphRelease: (graph: number) => void log.push(`release ${graph}`),
  });
  return { log, restore: () => void Object.assign(native, before) };
}

test("a captured graph replays until it is disposed of; tensors made inside are freed", () => {
  const { log, restore } = fakeGraphs();
  try {
    noLeak(() => {
      using graph = captureGraph(() => {
        ones([2]);
        log.push("recorded");
      });
      graph.replay();
      graph.replay();
    });
  } finally {
    restore();
  }
  assert.deepEqual(log, ["begin", "recorded", "end 1", "replay 1", "replay 1", "release 1"]);
});

test("what throws during a capture ends it once, and is what the caller sees", () => {
  const own = new Error("of the caller");
  const ended = new Error("of the end");
  const { log, restore } = fakeGraphs({ end: ended });
  try {
    noLeak(() => {
      const failing = (): never => {
        ones([2]);
        throw own;
      };
      assert.throws(() => captureGraph(failing), own);
      assert.deepEqual(log.splice(0), ["begin", "abort 1"]);
      assert.throws(
        () => captureGraph(() => Promise.resolve() as unknown as undefined),
        /expected a function that returns/,
      );
      assert.deepEqual(log.splice(0), ["begin", "abort 1"]);
      assert.throws(() => captureGraph(() => undefined), ended);
      assert.deepEqual(log.splice(0), ["begin", "end 1"]);
    });
  } finally {
    restore();
  }
});
