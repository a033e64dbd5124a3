/** Rewards of a real server process over loopback: the protocol, many requests at once, faults, secrets, kill and resume. */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { resolveConfig } from "../../src/config/resolve.js";
import type { RewardContext } from "../../src/config/train.js";
import { tensorToPixels } from "../../src/data/index.js";
import {
  openServerTerms,
  type ServerOptions,
  scoreAddress,
  serverTerm,
} from "../../src/rl_ar_finetune/reward_server.js";
import { Generator, memory, rand, type Tensor, tidy, zeros } from "../../src/torch/index.js";
import { type Fault, judgeOf, startServer } from "../support/reward_server.js";
import { checkpointsOf, metricsOf, quietRun, Shown, tinyFolder, tinyRun } from "../support/train_run.js";
import "../support/settle.js";

const PROGRAM = fileURLToPath(new URL("../support/train_run.js", import.meta.url));

/** The server's reward in this process. */
const judge = (_: Tensor, samples: Tensor): number[] =>
  tidy(() => samples.split(1).map((sample) => judgeOf(tensorToPixels(sample).data)));

const OPTIONS = { weight: 1, batch: 1, concurrency: 16, timeout: 5, retries: 5, pause: 0.001 };

const contextOf = (count: number): RewardContext => ({
  imageIds: Array.from({ length: count }, (_, i) => `image ${i}`),
  classIds: Array.from({ length: count }, (_, i) => i),
  classNames: Array.from({ length: count }, (_, i) => `class ${i}`),
  captions: null,
  codes: zeros([count, 4], { dtype: "int64" }),
  trueCodes: null,
  numGenerations: 1,
  step: 7,
  seed: 0,
});

function pictures(count: number): Tensor {
  using generator = new Generator(1);
  return tidy(() => rand([count, 3, 8, 8], { generator }).mul(2).sub(1));
}

/** Scores of pictures from a server with these faults. */
async function scoresFrom(
  url: string,
  samples: Tensor,
  options: Partial<ServerOptions> = {},
): Promise<readonly number[]> {
  const term = serverTerm("judge", { ...OPTIONS, url, ...options });
  try {
    return (await term.send?.(samples, 0, contextOf(samples.size(0)))) ?? [];
  } finally {
    term.dispose?.();
  }
}

test("1,000 requests, 16 at once, with faults of every kind, give the scores of this process exactly", async (t) => {
  const faults: Fault[] = [];
  const kinds: Fault[] = [
    "500",
    "cut",
    "half",
    "short",
    "long",
    "nan",
    "infinite",
    "null",
    "text",
    "html",
    "empty",
    "failed",
  ];
  for (const [i, kind] of kinds.entries()) faults[3 * i] = kind;
  const all = Array.from(faults, (fault) => fault ?? null);
  const server = await startServer(t, all, 16);
  using samples = pictures(1000);
  const got = await scoresFrom(server.url, samples, { retries: 30 });
  assert.deepEqual(got, judge(samples, samples));
  const { requests, most } = await server.stats();
  assert.ok(requests > 1300, `${requests}`); // one in three failed
  assert.equal(most, 16);
});

test("requests hold samples in order, as PNG, with caption or class and what is known of them", async (t) => {
  const server = await startServer(t);
  using samples = pictures(10);
  assert.deepEqual(await scoresFrom(server.url, samples, { batch: 4 }), judge(samples, samples));
  const { requests, last } = await server.stats();
  assert.equal(requests, 3);
  assert.ok(last?.history.length === 1);
  const [{ text, image_b64: image }] = last.history as [{ text: string; image_b64: string }];
  assert.match(text, /^class \d$/);
  assert.ok(image.startsWith("iVBORw0KGgo")); // of every PNG
  const { id, class_name: name, sample, step } = last.metadata as Record<string, unknown>;
  assert.deepEqual([`${id}`.replace("image", "class"), sample, step], [name, 0, 7]);
});

test("a fault that stays ends with the server's words; what no try can mend is not tried again", async (t) => {
  const wanted: Readonly<Record<Exclude<Fault, null>, [what: RegExp, requests: number]>> = {
    "500": [/status 500: a worker died, 3 times/, 3],
    "404": [/status 404: no such reward\. /, 1],
    echo: [/status 500: .*, 3 times/, 3],
    redirect: [/status 302: it redirects to http:\/\/127\.0\.0\.1:1\/score; give that address/, 1],
    cut: [/no connection \(\w+\), 3 times/, 3],
    half: [/no connection \(.+\), 3 times/, 3],
    short: [/0 results for 1 samples, 3 times/, 3],
    long: [/2 results for 1 samples, 3 times/, 3],
    nan: [/not JSON: .*NaN/, 3],
    infinite: [/no finite number/, 3],
    null: [/no finite number.*null/, 3],
    text: [/no finite number.*0\.5/, 3],
    html: [/not JSON: <html>gateway/, 3],
    empty: [/an empty answer, 3 times/, 3],
    "nan text": [/no finite number.*"NaN"/, 3],
    gzip: [/encoding gzip.*, 3 times/, 3],
    endless: [/more than 16777216 bytes, 3 times/, 3],
    "429": [/status 429: slow down/, 1],
    failed: [/error of judge: RuntimeError\('no memory'\)/, 3],
    never: [/no answer within 0\.2 s, 3 times/, 3],
  };
  using samples = pictures(1);
  const all = Object.entries(wanted);
  const server = await startServer(
    t,
    all.flatMap(([fault, [, requests]]) => Array<Fault>(requests).fill(fault as Fault)),
  );
  let sum = 0;
  for (const [fault, [what, requests]] of all) {
    // Time must end the one that it is about, and no other.
    const timeout = fault === "never" ? 0.2 : 60;
    const options = { retries: fault === "429" ? 0 : 2, timeout, token: "s3cret" };
    await assert.rejects(scoresFrom(server.url, samples, options), (error: Error) => {
      assert.match(
        error.message,
        /^reward\.http\.judge: expected scores from http:\/\/127\.0\.0\.1:\d+\/score, got /,
      );
      assert.match(error.message, what, fault);
      assert.ok(!error.message.includes("s3cret"), error.message);
      return true;
    });
    sum += requests;
    assert.equal((await server.stats()).requests, sum, fault);
  }
  await assert.rejects(
    scoresFrom("http://127.0.0.1:1", samples, { retries: 1 }),
    /no connection \(.*\), 2 times/,
  );
});

test("a busy server is asked again after the time that it asks for; one without TLS is not asked again", async (t) => {
  const server = await startServer(t, ["429", null]);
  using samples = pictures(1);
  const begun = performance.now();
  assert.deepEqual(await scoresFrom(server.url, samples), judge(samples, samples));
  assert.ok(performance.now() - begun > 990); // pauses are of 1 ms where it asks for none
  const secure = server.url.replace("http:", "https:");
  await assert.rejects(
    scoresFrom(secure, samples),
    /got no secure connection \(\w+\)\. .*https.*NODE_EXTRA_CA_CERTS/,
  );
  assert.equal((await server.stats()).requests, 2);
});

test("several scores of a reward: the one that is named, or that has the reward's name", async (t) => {
  const server = await startServer(t);
  using samples = pictures(1);
  const ask = (options: Partial<ServerOptions>) =>
    scoresFrom(server.url, samples, { retries: 0, ...options });
  assert.deepEqual(await ask({ reward: "other" }), judge(samples, samples));
  assert.deepEqual(await ask({ reward: "other", metric: "other" }), judge(samples, samples));
  await assert.rejects(ask({ metric: "quality" }), /no finite number as judge/);
  assert.equal(scoreAddress("http://localhost:8080"), "http://localhost:8080/score");
  assert.equal(scoreAddress("https://host/a/"), "https://host/a/score");
  assert.equal(scoreAddress("https://host/a/score"), "https://host/a/score");
});

/** A run whose reward is the server's. */
const served = (dir: string, url: string, more: object = {}, changes: object = {}): object => ({
  run: { dir, ifExists: "resume" },
  reward: { l2: { weight: 1 }, http: { judge: { url, weight: 0.5, ...more } } },
  eval: { every: 2, images: 4, numGenerations: 2 },
  tokenizer: { decodeBatch: 2 },
  save: { every: 2 },
  train: { iters: 4 },
  ...changes,
});

const weightsOf = (dir: string, step: number): Buffer =>
  readFileSync(join(dir, "checkpoints", `step_${String(step).padStart(6, "0")}`, "policy.safetensors"));

test("a run with a server that fails now and then is, bit for bit, that with the same reward in the process", async (t) => {
  const folder = await tinyFolder(t);
  const server = await startServer(t, [
    null,
    null,
    null,
    null,
    null,
    "500",
    null,
    null,
    null,
    null,
    null,
    null,
    "cut",
  ]);
  const [own, http] = [join(folder, "own"), join(folder, "http")];
  const inProcess = { l2: { weight: 1 }, custom: { judge: { fn: judge, weight: 0.5 } } };
  await quietRun(tinyRun(folder, served(own, "", {}, { reward: inProcess })));
  await quietRun(tinyRun(folder, served(http, server.url)));
  assert.deepEqual(metricsOf(http), metricsOf(own));
  assert.ok(weightsOf(http, 4).equals(weightsOf(own, 4)));
  // Of 4 steps: 8 samples and 4 reconstructions, 2 at a time; of 3 evaluations: 8 samples.
  assert.ok((await server.stats()).requests > 4 * (4 + 2) + 3 * 4);
});

test("a run that is killed goes on with its server to the same end", async (t) => {
  const folder = await tinyFolder(t);
  const server = await startServer(t);
  const [whole, killed] = [join(folder, "whole"), join(folder, "killed")];
  const start = (dir: string) => {
    const config = JSON.stringify(served(dir, server.url, {}, { train: { iters: 8 } }));
    const child = spawn(process.execPath, [PROGRAM, folder, config], { stdio: "ignore" });
    return { child, ended: new Promise((done) => child.on("close", done)) };
  };
  assert.equal(await start(whole).ended, 0);
  const { child, ended } = start(killed);
  const file = join(killed, "metrics.jsonl");
  while (child.exitCode === null && (!existsSync(file) || readFileSync(file, "utf8").split("\n").length < 5))
    await sleep(5);
  child.kill("SIGKILL");
  await ended;
  assert.equal(await start(killed).ended, 0);
  assert.deepEqual(metricsOf(killed), metricsOf(whole));
  assert.ok(weightsOf(killed, 8).equals(weightsOf(whole, 8)));
});

test("a server that dies ends the run with a checkpoint and the batch; with another one it goes on", async (t) => {
  const folder = await tinyFolder(t);
  const [whole, dir] = [join(folder, "whole"), join(folder, "run")];
  const off = { eval: { every: 0 }, save: { every: 0 } };
  const server = await startServer(t);
  await quietRun(tinyRun(folder, served(whole, server.url, {}, off)));
  const dying = await startServer(t, [...Array(12).fill(null), ...Array(100).fill("500")]); // after two steps
  await assert.rejects(
    quietRun(tinyRun(folder, served(dir, dying.url, { retries: 1 }, off))),
    (error: Error) => {
      assert.match(error.message, /^reward\.http\.judge: .*status 500.*2 times.*step 3/);
      assert.ok(error.message.includes(join(dir, "dumps", "step_000003_judge")));
      return true;
    },
  );
  assert.deepEqual(checkpointsOf(dir), ["step_000002"]);
  assert.ok(existsSync(join(dir, "dumps", "step_000003_judge", "batch.json")));
  const before = memory().tensors;
  await quietRun(tinyRun(folder, served(dir, server.url, { retries: 3, timeout: 30 }, off)));
  assert.equal(memory().tensors, before);
  assert.deepEqual(metricsOf(dir), metricsOf(whole));
});

test("a token comes from the environment and enters no file and no message", async (t) => {
  const folder = await tinyFolder(t);
  const dir = join(folder, "run");
  const server = await startServer(t, [...Array(8).fill(null), "echo", "echo"]);
  const token = "tok-1234567890";
  process.env.REWARD_TEST_TOKEN = token;
  t.after(() => delete process.env.REWARD_TEST_TOKEN);
  const screen = new Shown();
  const config = tinyRun(
    folder,
    served(dir, server.url, { tokenEnv: "REWARD_TEST_TOKEN", retries: 0 }, { eval: { every: 0 } }),
  );
  await assert.rejects(quietRun(config, { screen }), (error: Error) => {
    assert.match(error.message, /status 500: not for Bearer/);
    assert.ok(!`${error.message} ${error.stack} ${error.cause}`.includes(token));
    return true;
  });
  assert.equal((await server.stats()).authorization, `Bearer ${token}`);
  assert.ok(!screen.text.includes(token));
  for (const name of readdirSync(dir, { recursive: true, encoding: "utf8" })) {
    const file = join(dir, name);
    if (/\.(json|jsonl|yaml|csv)$|tfevents/.test(name)) assert.ok(!readFileSync(file).includes(token), name);
  }
  const absent = tinyRun(
    folder,
    served(join(folder, "other"), server.url, { tokenEnv: "REWARD_TEST_ABSENT" }),
  );
  await assert.rejects(
    quietRun(absent),
    /^RangeError: reward\.http\.judge\.tokenEnv: .*REWARD_TEST_ABSENT.*not set/,
  );
});

test("a token with characters that no header holds is refused unseen; a line break at its end does not count", (t) => {
  t.after(() => delete process.env.REWARD_TEST_TOKEN);
  const judge = { ...OPTIONS, url: "http://localhost:1", tokenEnv: "REWARD_TEST_TOKEN" };
  const open = () => openServerTerms({ reward: { http: { judge } } } as never);
  process.env.REWARD_TEST_TOKEN = "tok\nen";
  assert.throws(open, (error: Error) => {
    assert.match(
      error.message,
      /^reward\.http\.judge\.tokenEnv: expected a token .*, got REWARD_TEST_TOKEN, whose value/,
    );
    assert.ok(!error.message.includes("tok\n"));
    return true;
  });
  process.env.REWARD_TEST_TOKEN = "token\r\n";
  for (const term of open()) term.dispose?.();
});

test("only this machine is reached without https; names, addresses and algorithms that do not fit are refused", () => {
  const read = (...overrides: string[]) => resolveConfig({ overrides, isComplete: false }).config;
  for (const url of [
    "http://localhost:8080",
    "http://127.0.0.1",
    "http://127.1.2.3:9/x",
    "http://[::1]:80",
    "https://host.example/a",
    "http://localhost/?author=a&max_tokens=9&key_frames=2",
  ])
    assert.equal(read(`reward.http.judge.url=${url}`).reward.http.judge?.url, url);
  const refused: Readonly<Record<string, RegExp>> = {
    "reward.http.judge.url=http://10.0.0.1:8080": /judge\.url: expected https for .*another machine/,
    "reward.http.judge.url=http://localhost.example": /expected https/,
    "reward.http.judge.url=http://127.0.0.1.example": /expected https/,
    "reward.http.judge.url=ftp://localhost": /the address of a server/,
    "reward.http.judge.url=localhost:8080": /the address of a server/,
    "reward.http.judge.url=https://user:secret@host": /without a user or password/,
    "reward.http.judge.url=http://localhost/?api_key=secret":
      /without a token or key, got http:\/\/localhost\/\?\.\.\./,
    "reward.http.judge.url=http://localhost/?access_token=secret": /without a token or key/,
    "reward.http.judge.tokenEnv=Bearer secret": /the name of an environment variable, got .*not shown/,
    "reward.http.l2.url=http://localhost": /no other metric/,
  };
  for (const [override, message] of Object.entries(refused)) {
    assert.throws(() => read(override), { message }, override);
    assert.throws(
      () => read(override),
      (error: Error) => !error.message.includes("secret"),
    );
  }
  assert.throws(
    () => read("reward.http.judge.url=http://localhost", "reward.custom.judge.module=a.mjs"),
    /reward\.custom/,
  );
});
