/**
 * The example reward servers answer a run's requests. Their models are stand-ins: a package of the same name in Node.js, a
 * function in Python. What they do with real models, their documentation says.
 */
import assert from "node:assert/strict";
import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { copyFileSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { type TestContext, test } from "node:test";
import type { RewardContext } from "../../src/config/train.js";
import { serverTerm } from "../../src/rl_ar_finetune/reward_server.js";
import { full, zeros } from "../../src/torch/index.js";

/** Stands in for transformers.js: an image is embedded as [1, its first red value], a text as [1, its length], at most 7. */
const STAND_IN = `
export const env = {};
const embeds = (values) => ({ data: Float32Array.from(values.flatMap((value) => [1, value])), dims: [values.length, 2] });
const part = (call, more = {}) => ({ from_pretrained: async () => Object.assign(call, more) });
export class Tensor {
  constructor(type, data, dims) {
    Object.assign(this, { data, dims });
  }
}
export class RawImage {
  constructor(data, width, height, channels) {
    if (data.length !== width * height * channels) throw new Error("pixels");
    this.red = data[0];
  }
}
// Codes of a text are 1 for each of its letters, and 9, its end.
export const AutoTokenizer = part(() => {}, { encode: (text) => [...Array.from(text, () => 1), 9] });
export const AutoProcessor = part(async (pictures) => pictures, { image_processor: { size: { shortest_edge: 4 } } });
const lengths = ({ input_ids: { data, dims: [n, length] } }) =>
  Array.from({ length: n }, (_, i) => data.subarray(i * length, (i + 1) * length).indexOf(9n));
export const CLIPTextModelWithProjection = part(async (ids) => ({ text_embeds: embeds(lengths(ids)) }), {
  config: { text_config: { max_position_embeddings: 8 } },
});
export const CLIPVisionModelWithProjection = part(async (images) => ({ image_embeds: embeds(images.map(({ red }) => red)) }));
`;

/** The same in Python, for the server's own protocol. */
const PYTHON = `
import base64, importlib.util, struct, sys, zlib
spec = importlib.util.spec_from_file_location("server", sys.argv[1])
server = importlib.util.module_from_spec(spec)
spec.loader.exec_module(server)
server.read_image = lambda turn: base64.b64decode(turn["image_b64"])
def clip(images, texts):
    if "a fail" in texts: raise MemoryError("no memory")
    return [len(text) + 0.125 * image.startswith(b"\\x89PNG") for image, text in zip(images, texts)]
http = server.ThreadingHTTPServer(("127.0.0.1", 0), server.handler_of({"clip": clip}, "a {}", "s3cret"))
print(f"http://127.0.0.1:{http.server_address[1]}", flush=True)
http.serve_forever()
`;

async function addressOf(t: TestContext, child: ChildProcess): Promise<string> {
  t.after(() => child.kill("SIGKILL"));
  return await new Promise((go, fail) => {
    child.stdout?.once("data", (line) => go(String(line).trim()));
    child.once("exit", (code) => fail(new Error(`the server ended with ${code}`)));
  });
}

const context: RewardContext = {
  imageIds: ["x", "y", "z"],
  classIds: [0, 1, 2],
  classNames: ["fox", "horse", "fail"],
  captions: null,
  codes: zeros([3, 4], { dtype: "int64" }),
  trueCodes: null,
  numGenerations: 1,
  step: 1,
  seed: 0,
};

async function ask(url: string, count: number, token?: string): Promise<readonly number[]> {
  using samples = full([count, 3, 8, 8], 1);
  const options = { url, weight: 1, batch: 8, concurrency: 2, timeout: 20, retries: 0 };
  const term = serverTerm("clip", { ...options, ...(token !== undefined && { token }) });
  try {
    return (await term.send?.(samples, 0, context)) ?? [];
  } finally {
    term.dispose?.();
  }
}

const start = (command: string, ...args: string[]): ChildProcess =>
  spawn(command, args, {
    stdio: ["ignore", "pipe", "inherit"],
    env: { ...process.env, SERVER_TOKEN: "s3cret" },
  });

test("examples/reward_server.mjs scores a run's samples with their texts", async (t) => {
  const folder = mkdtempSync(join(tmpdir(), "reward-server-"));
  t.after(() => rmSync(folder, { recursive: true, force: true }));
  const stub = join(folder, "node_modules", "@huggingface", "transformers");
  mkdirSync(stub, { recursive: true });
  writeFileSync(join(stub, "package.json"), '{"type": "module", "exports": "./index.js"}');
  writeFileSync(join(stub, "index.js"), STAND_IN);
  mkdirSync(join(folder, "node_modules", "sharp"));
  writeFileSync(
    join(folder, "node_modules", "sharp", "package.json"),
    '{"type": "module", "exports": "./index.js"}',
  );
  const real = JSON.stringify(import.meta.resolve("sharp"));
  writeFileSync(join(folder, "node_modules", "sharp", "index.js"), `export { default } from ${real};`);
  const program = join(folder, "reward_server.mjs");
  copyFileSync("examples/reward_server.mjs", program);
  mkdirSync(join(folder, "clip", "onnx"), { recursive: true });
  const files = ["config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"];
  for (const name of [...files, "onnx/text_model.onnx", "onnx/vision_model.onnx"])
    writeFileSync(join(folder, "clip", name), "");
  const args = [join(folder, "clip"), "--port", "0", "--template", "a {}", "--token-env", "SERVER_TOKEN"];
  const url = await addressOf(t, start(process.execPath, program, ...args));
  const cosine = (length: number): number =>
    (1 + 255 * length) / Math.sqrt((1 + 255 ** 2) * (1 + length ** 2));
  assert.deepEqual(await ask(url, 3, "s3cret"), [cosine(5), cosine(7), cosine(6)]);
  await assert.rejects(ask(url, 1, "other"), /status 401: .*bearer token/);
  await assert.rejects(ask(url, 1), /status 401/);
  const post = async (body: string): Promise<number> => {
    const headers = { authorization: "Bearer s3cret" };
    return (await fetch(`${url}/score`, { method: "POST", body, headers })).status;
  };
  for (const bad of [
    "no JSON",
    "{}",
    '{"requests": []}',
    '{"requests": [null]}',
    '{"requests": [{"history": []}]}',
  ])
    assert.equal(await post(bad), 400, bad);
  assert.deepEqual(await (await fetch(`${url}/rewards`)).json(), { rewards: ["clip"] });
  const none = spawnSync(process.execPath, [program], { encoding: "utf8" });
  assert.equal(none.status, 2);
  assert.match(none.stderr, /expected the folder of a CLIP model/);
  const other = spawnSync(process.execPath, [program, folder], { encoding: "utf8" });
  assert.equal(other.status, 2);
  assert.match(other.stderr, /expected config\.json, .*vision_model\.onnx in .*, got no such file/);
});

test("examples/reward_server.py speaks the same protocol, and tells of rewards that fail", async (t) => {
  if (spawnSync("python3", ["--version"]).status !== 0) return t.skip("no Python");
  const url = await addressOf(t, start("python3", "-B", "-c", PYTHON, resolve("examples/reward_server.py")));
  assert.deepEqual(await ask(url, 2, "s3cret"), [5.125, 7.125]);
  await assert.rejects(ask(url, 3, "s3cret"), /an error of clip: MemoryError\('no memory'\)/);
  await assert.rejects(ask(url, 1, "other"), /status 401/);
  assert.deepEqual(await (await fetch(`${url}/rewards`)).json(), { rewards: ["clip"] });
  assert.equal((await fetch(`${url}/absent`)).status, 404);
});
