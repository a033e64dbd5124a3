/** Process groups with real processes on this machine: collectives, and what is said of a process that is lost. */
import assert from "node:assert/strict";
import { once } from "node:events";
import { type AddressInfo, createServer } from "node:net";
import { test } from "node:test";

import { freePort } from "../../src/cli/launch.js";
import { type Ended, start } from "../support/processes.js";

const CHILD = "distributed/child.js";

for (const size of [2, 3]) {
  test(`collectives of ${size} processes`, async () => {
    const ended = await (await start(CHILD, size, ["collectives"])).ended;
    const sum = (size * (size + 1)) / 2;
    for (const [rank, { code, out, err }] of ended.entries()) {
      assert.equal(code, 0, err);
      assert.deepEqual(JSON.parse(out), {
        rank,
        size,
        a: [sum, sum, sum],
        b: [10 * sum, 10 * sum, 10 * sum, 10 * sum],
        c: [sum, sum],
        most: [size, -1],
        least: [1],
        gathered: Array.from({ length: 14 }, (_, i) => i),
        isOdd: Array.from({ length: size }, (_, i) => (i + 1) % 2),
        scattered: [2 * rank * sum, (2 * rank + 1) * sum],
        sent: [size, size],
        large: [sum, sum],
        values: ["NaN", ...Array(size - 1).fill("Infinity")],
        told: "of 0",
        isCounted: true,
      });
    }
  });
}

test("gradients that are added up during the backward pass are those added up after it, bit for bit", async () => {
  const ended = await (await start(CHILD, 3, ["gradients"])).ended;
  for (const [rank, { code, out, err }] of ended.entries()) {
    assert.equal(code, 0, err);
    const { steps, ...rest } = JSON.parse(out);
    for (const { isSame } of steps) assert.deepEqual(isSame, Array(5).fill(true));
    // Two layers a bucket: the head and the last layer, then two layers, then the one that is not used.
    const inTime = steps.map((step: { inTime: number }) => step.inTime);
    assert.deepEqual([steps[0].buckets, ...inTime], [3, 0, rank === 2 ? 0 : 1, rank === 2 ? 0 : 1]);
    assert.deepEqual(rest, {
      unused: true,
      agree: true,
      parts: [0, 0, 2, 2, 7, 7],
      long: [1010, 1011, 1012],
    });
  }
});

/** Each of the processes ended with the code of a lost rank and a message that matches. */
function assertNames(ended: readonly Ended[], ranks: readonly number[], message: RegExp): void {
  for (const rank of ranks) {
    const { code, err } = ended[rank] as Ended;
    assert.equal(code, 5, `rank ${rank}: ${err}`);
    assert.match(err, message);
  }
}

test("a process that never comes is named by those that did", async () => {
  const ended = await (await start(CHILD, 3, ["barrier", "3"], { ranks: [0, 2] })).ended;
  assertNames(ended, [0, 1], /LostRankError: .*3 processes within 3 s, got 2: rank 1 did not come/);
});

test("a killed process is named by all others", async () => {
  const running = await start(CHILD, 3, ["barrier"]);
  await Promise.all([0, 1, 2].map((rank) => running.saw(rank, "open")));
  process.kill(running.pids[2] as number, "SIGKILL");
  const ended = await running.ended;
  assertNames(ended, [0, 1], new RegExp(`no sign of life from rank 2 \\(process ${running.pids[2]} on `));
});

test("a killed process that serves the store is named by all others", async () => {
  const running = await start(CHILD, 2, ["barrier"]);
  await Promise.all([0, 1].map((rank) => running.saw(rank, "open")));
  process.kill(running.pids[0] as number, "SIGKILL");
  const [, other] = await running.ended;
  assertNames([other as Ended], [0], /rank 0 \(process \d+ on .*\) ended or cannot be reached/);
});

test("an error of one process is told by all others", async () => {
  const ended = await (await start(CHILD, 2, ["throw"])).ended;
  assertNames(ended, [0], /an error of rank 1 \(process .*\): the disk is on fire/);
  assert.match(ended[1]?.err ?? "", /^Error: the disk is on fire/);
});

test("a process that lives and does not come is named after the timeout", async () => {
  const ended = await (await start(CHILD, 2, ["late", "3"])).ended;
  assertNames(ended, [0], /rank 1 \(process \d+ on .*\) alive and not there after 3 s/);
});

test("processes of several runs or versions are told apart before they send anything", async () => {
  const pair = async (first: object, size: number, other: object): Promise<Ended[]> => {
    const env = { MASTER_PORT: `${await freePort()}` };
    const started = await Promise.all([
      start(CHILD, 2, ["barrier", "10"], { ranks: [0], env: { ...env, ...first } }),
      start(CHILD, size, ["barrier", "10"], { ranks: [1], env: { ...env, ...other } }),
    ]);
    return (await Promise.all(started.map(({ ended }) => ended))).flat();
  };
  const sizes = /expected 2 processes \(WORLD_SIZE\) .*rank 0, got 3 processes .* rank 1 \(process \d+ on /;
  assertNames(await pair({}, 3, {}), [0, 1], sizes);
  const versions = /expected package 1 for .*rank 0, got package 2 for rank 1 \(process /;
  assertNames(
    await pair({ TEST_VERSIONS: "package 1" }, 2, { TEST_VERSIONS: "package 2" }),
    [0, 1],
    versions,
  );
});

test("what differs between processes is named by its key and its process", async () => {
  for (const { err } of await (await start(CHILD, 2, ["same"])).ended)
    assert.match(err, /optimizer\.lr: expected the same .* 0\.001 on rank 0, got 0\.01 on rank 1/);
});

test("another program at the store's port is no store", async (t) => {
  const server = createServer(() => {}).listen(0, "127.0.0.1");
  t.after(() => server.close());
  await once(server, "listening");
  const { port } = server.address() as AddressInfo;
  const ended = await (await start(CHILD, 2, ["barrier", "3"], { env: { MASTER_PORT: `${port}` } })).ended;
  const [first, other] = ended as [Ended, Ended];
  assert.match(first.err, new RegExp(`expected port ${port} free .*MASTER_PORT`));
  assertNames(
    [other],
    [0],
    new RegExp(`LostRankError: .*the store of rank 0 at 127\\.0\\.0\\.1:${port}.*MASTER_PORT`),
  );
});

test("a port that is none is refused", async () => {
  const first = await start(CHILD, 2, ["barrier", "5"], { ranks: [0], env: { MASTER_PORT: "0" } });
  const [{ code, err }] = (await first.ended) as [Ended];
  assert.equal(code, 5);
  assert.match(err, /MASTER_PORT: expected a whole number from 1, got 0/);
});
