/** What each launcher tells a process. */
import assert from "node:assert/strict";
import { test } from "node:test";

import { firstHost, readEnvironment, shares } from "../../src/distributed/index.js";

test("torchrun, whose agent serves the store", () => {
  const env = {
    RANK: "5",
    LOCAL_RANK: "1",
    WORLD_SIZE: "8",
    LOCAL_WORLD_SIZE: "4",
    GROUP_RANK: "1",
    MASTER_ADDR: "node-0",
    MASTER_PORT: "31337",
    TORCHELASTIC_RESTART_COUNT: "2",
    TORCHELASTIC_RUN_ID: "abc",
    TORCHELASTIC_USE_AGENT_STORE: "True",
  };
  assert.deepEqual(readEnvironment(env), {
    rank: 5,
    size: 8,
    localRank: 1,
    host: "node-0",
    port: 31337,
    file: null,
    isServedByLauncher: true,
    runId: "abc/2",
  });
});

test("SLURM's srun, with the first host of its list and PyTorch's port", () => {
  const env = {
    SLURM_PROCID: "3",
    SLURM_NTASKS: "4",
    SLURM_LOCALID: "1",
    SLURM_STEP_ID: "0",
    SLURM_JOB_ID: "77",
    SLURM_JOB_NODELIST: "gpu[07-08,11]",
  };
  const place = readEnvironment(env);
  assert.deepEqual(
    [place?.rank, place?.size, place?.localRank, place?.host, place?.port, place?.runId],
    [3, 4, 1, "gpu07", 29500, "77/0"],
  );
  const { SLURM_STEP_ID: _, ...batch } = env;
  assert.equal(
    readEnvironment({ ...batch, SLURM_PROCID: "0" }),
    null,
    "a script of sbatch is no task of srun",
  );
  assert.equal(readEnvironment({ ...env, MASTER_ADDR: "10.0.0.9", MASTER_PORT: "4000" })?.host, "10.0.0.9");
});

test("the first of SLURM's hosts", () => {
  const lists = {
    node3: "node3",
    "a1,b2": "a1",
    "n[3,5-7]": "n3",
    "rack[01-04]-gpu,login": "rack01-gpu",
    "x[10]": "x10",
  };
  for (const [list, first] of Object.entries(lists)) assert.equal(firstHost(list), first, list);
});

test("Open MPI", () => {
  const place = readEnvironment({
    OMPI_COMM_WORLD_RANK: "1",
    OMPI_COMM_WORLD_SIZE: "2",
    OMPI_COMM_WORLD_LOCAL_RANK: "1",
    MASTER_ADDR: "127.0.0.1",
  });
  assert.deepEqual([place?.rank, place?.size, place?.localRank, place?.port], [1, 2, 1, 29500]);
});

test("a Kubernetes PyTorchJob has one process a pod, and no local rank", () => {
  const place = readEnvironment({
    RANK: "2",
    WORLD_SIZE: "4",
    MASTER_ADDR: "job-master-0",
    MASTER_PORT: "23456",
  });
  assert.deepEqual(
    [place?.rank, place?.localRank, place?.host, place?.isServedByLauncher],
    [2, 0, "job-master-0", false],
  );
});

test("a file in place of a server", () => {
  const place = readEnvironment({ RANK: "0", WORLD_SIZE: "2", RLAR_STORE: "shared/store" });
  assert.equal(place?.file, "shared/store");
});

test("no launcher, and variables that contradict each other", () => {
  assert.equal(readEnvironment({}), null);
  assert.equal(readEnvironment({ MASTER_ADDR: "x", MASTER_PORT: "1" }), null);
  assert.throws(
    () => readEnvironment({ RANK: "1" }),
    /WORLD_SIZE: expected a number beside RANK, got nothing/,
  );
  assert.throws(() => readEnvironment({ WORLD_SIZE: "2" }), /RANK: expected a number beside WORLD_SIZE/);
  const two = { WORLD_SIZE: "2", MASTER_ADDR: "x" };
  assert.throws(
    () => readEnvironment({ ...two, RANK: "2" }),
    /RANK: expected a number below WORLD_SIZE=2, got 2/,
  );
  assert.throws(
    () => readEnvironment({ ...two, RANK: "one" }),
    /RANK: expected a whole number from 0, got one/,
  );
  assert.throws(
    () => readEnvironment({ RANK: "0", WORLD_SIZE: "2" }),
    /MASTER_ADDR: expected the address of rank 0/,
  );
});

test("rows are divided in order, and none counts twice", () => {
  assert.deepEqual(shares(7, 3), [
    [0, 3],
    [3, 2],
    [5, 2],
  ]);
  assert.deepEqual(shares(2, 4), [
    [0, 1],
    [1, 1],
    [2, 0],
    [2, 0],
  ]);
});
