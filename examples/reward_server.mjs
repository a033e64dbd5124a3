/**
 * A reward server in Node.js: how well an image fits its caption or class, by a CLIP model on this machine. The protocol
 * is in docs/reward_servers.md; use it as a start for your own server.
 *
 *   npm install --prefix judge --ignore-scripts @huggingface/transformers && cp examples/reward_server.mjs judge
 *   node judge/reward_server.mjs FOLDER [--port 8080] [--template "a photo of {}"] [--token-env NAME]
 *
 * FOLDER holds a CLIP model in ONNX, as transformers.js reads it. Nothing is downloaded.
 */
import { existsSync } from "node:fs";
import { createServer } from "node:http";
import { basename, dirname, join, resolve } from "node:path";
import { parseArgs } from "node:util";

const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    port: { type: "string", default: "8080" },
    /** Stands around each text; {} is the text. */
    template: { type: "string", default: "{}" },
    "token-env": { type: "string" },
  },
});
if (positionals.length !== 1) {
  process.stderr.write("reward_server: expected the folder of a CLIP model in ONNX, got none.\n");
  process.exit(2);
}
const token = options["token-env"] === undefined ? undefined : process.env[options["token-env"]];
if (options["token-env"] !== undefined && !token) {
  process.stderr.write(`reward_server: expected a token in ${options["token-env"]}, got nothing.\n`);
  process.exit(2);
}

const FILES = [
  "config.json",
  "preprocessor_config.json",
  "tokenizer.json",
  "tokenizer_config.json",
  "onnx/text_model.onnx",
  "onnx/vision_model.onnx",
];
const missing = FILES.filter((name) => !existsSync(join(positionals[0], name)));
if (missing.length > 0) {
  process.stderr.write(
    `reward_server: expected ${missing.join(", ")} in ${positionals[0]}, got no such file.\n`,
  );
  process.exit(2);
}

/** Bytes of a request: 64 images of 1024 px. */
const MAX_BYTES = 256 * 2 ** 20;

/** The scores of images with their texts: [cosine, ...]. */
async function openClip(folder) {
  const packages = [import("@huggingface/transformers"), import("sharp")];
  const [clip, { default: sharp }] = await Promise.all(packages).catch((error) => {
    process.stderr.write(
      `reward_server: npm install --ignore-scripts @huggingface/transformers (${error.message})\n`,
    );
    process.exit(2);
  });
  clip.env.allowRemoteModels = false;
  clip.env.localModelPath = dirname(resolve(folder));
  const name = basename(resolve(folder));
  const precision = { dtype: "fp32" };
  const tokenizer = await clip.AutoTokenizer.from_pretrained(name);
  const processor = await clip.AutoProcessor.from_pretrained(name);
  const textModel = await clip.CLIPTextModelWithProjection.from_pretrained(name, precision);
  const imageModel = await clip.CLIPVisionModelWithProjection.from_pretrained(name, precision);
  const side = processor.image_processor.size.shortest_edge;
  const longest = textModel.config.text_config.max_position_embeddings;

  /** A square image, resized as Pillow does: the library itself resizes without a filter against aliasing. */
  const prepare = async (png) => {
    const { width, height } = await sharp(png).metadata();
    const scaled = (edge) => Math.trunc((side * edge) / Math.min(width, height));
    const [w, h] = [scaled(width), scaled(height)];
    const { data } = await sharp(png)
      .resize({ width: w, height: h, fit: "fill", kernel: "cubic" })
      .extract({ left: (w - side) >> 1, top: (h - side) >> 1, width: side, height: side })
      .toColourspace("srgb")
      .removeAlpha()
      .raw()
      .toBuffer({ resolveWithObject: true });
    return new clip.RawImage(new Uint8ClampedArray(data), side, side, 3);
  };
  /** Codes of texts. Long ones are cut before the code of their end, which the library's own truncation loses. */
  const encode = (texts) => {
    const all = texts
      .map((text) => tokenizer.encode(text))
      .map((ids) => (ids.length > longest ? [...ids.slice(0, longest - 1), ids.at(-1)] : ids));
    const length = Math.max(...all.map((ids) => ids.length));
    const tensor = (valueAt) => {
      const values = all.flatMap((ids) => Array.from({ length }, (_, i) => BigInt(valueAt(ids, i))));
      return new clip.Tensor("int64", BigInt64Array.from(values), [all.length, length]);
    };
    return {
      input_ids: tensor((ids, i) => ids[i] ?? ids.at(-1)),
      attention_mask: tensor((ids, i) => (i < ids.length ? 1 : 0)),
    };
  };
  const rows = ({ data, dims: [n, width] }) =>
    Array.from({ length: n }, (_, i) => data.subarray(i * width, (i + 1) * width));
  return async (images, texts) => {
    const { image_embeds } = await imageModel(await processor(await Promise.all(images.map(prepare))));
    const { text_embeds } = await textModel(encode(texts));
    const written = rows(text_embeds);
    return rows(image_embeds).map((image, i) => cosine(image, written[i]));
  };
}

function cosine(a, b) {
  let [dot, aa, bb] = [0, 0, 0];
  for (let i = 0; i < a.length; i++) {
    dot += a[i] * b[i];
    aa += a[i] * a[i];
    bb += b[i] * b[i];
  }
  return dot / Math.sqrt(aa * bb);
}

/** An answer other than 200. */
class Refusal extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function readBody(request) {
  const chunks = [];
  let bytes = 0;
  for await (const chunk of request) {
    bytes += chunk.length;
    if (bytes > MAX_BYTES) throw new Refusal(413, `expected at most ${MAX_BYTES} bytes`);
    chunks.push(chunk);
  }
  try {
    return JSON.parse(Buffer.concat(chunks).toString("utf8"));
  } catch {
    throw new Refusal(400, "expected JSON");
  }
}

async function answer(score, request) {
  if (request.method === "GET" && request.url === "/health")
    return { status: "ok", rewards: { clip: ["ok"] } };
  if (request.method === "GET" && request.url === "/rewards") return { rewards: ["clip"] };
  if (request.method !== "POST" || request.url !== "/score") throw new Refusal(404, "expected POST /score");
  if (token !== undefined && request.headers.authorization !== `Bearer ${token}`)
    throw new Refusal(401, "expected the bearer token of this server");
  const { requests } = await readBody(request);
  if (!Array.isArray(requests) || requests.length === 0 || requests.some((one) => Object(one) !== one))
    throw new Refusal(400, "expected a list of requests");
  const turns = requests.map(({ history, required_rewards: wanted }) => {
    const turn = Array.isArray(history) ? history.at(-1) : undefined;
    if (typeof turn?.image_b64 !== "string") throw new Refusal(400, "expected image_b64 in the last turn");
    if (!Array.isArray(wanted) || wanted.some((name) => name !== "clip"))
      throw new Refusal(400, `expected required_rewards ["clip"], got ${JSON.stringify(wanted)}`);
    return turn;
  });
  const texts = turns.map(({ text }) => options.template.replaceAll("{}", () => text ?? ""));
  const scores = await score(
    turns.map(({ image_b64 }) => Buffer.from(image_b64, "base64")),
    texts,
  );
  return { results: scores.map((clip) => ({ clip: { clip } })), errors: scores.map(() => ({})) };
}

const score = await openClip(positionals[0]);
const server = createServer((request, reply) => {
  answer(score, request)
    .then((body) => [200, body])
    .catch((error) => [error.status ?? 500, { error: error.message }])
    .then(([status, body]) => {
      reply.writeHead(status, { "content-type": "application/json" });
      reply.end(JSON.stringify(body));
    });
});
server.listen(Number(options.port), "127.0.0.1", () => {
  process.stdout.write(`http://127.0.0.1:${server.address().port}\n`);
});
