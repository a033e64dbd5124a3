/** NCCL with one process, since it takes one process for each GPU: the group opens, and a sum over it is the tensor itself. */
import assert from "node:assert/strict";
import { test } from "node:test";

import { freePort } from "../../src/cli/launch.js";
import { call, full, isCudaAvailable, tidy } from "../../src/torch/index.js";
import { closeGroup, distributedBackends, Store } from "../../src/torch/process_group.js";

const NO_NCCL = !isCudaAvailable()
  ? "no CUDA device"
  : !distributedBackends().includes("nccl") && "the addon was built without NCCL";

test("NCCL sums tensors on a GPU", { skip: NO_NCCL }, async () => {
  process.env.TORCH_NCCL_BLOCKING_WAIT = "1";
  const place = { host: "127.0.0.1", port: await freePort(), file: "", prefix: "nccl", processes: 1 };
  const store = new Store(place, { isServer: true, timeout: 20 });
  const address = { address: "127.0.0.1", networkInterface: "" };
  store.openGroup("alone", { rank: 0, size: 1, timeout: 60, ...address, usesNccl: true });
  tidy(() => {
    const tensor = full([1000], 3, { device: "cuda" });
    call("_c10d_functional::all_reduce_", [tensor, "sum", "alone"]);
    call("_c10d_functional::wait_tensor", [tensor]);
    assert.equal(tensor.sum().item(), 3000);
  });
  closeGroup("alone");
  store.close();
});
