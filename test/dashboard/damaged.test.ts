/** Files of older or damaged shape: the page is written, what is damaged is said, and nothing becomes markup. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

import { reportHtml } from "../../src/dashboard/report.js";
import { readRun } from "../../src/dashboard/run.js";
import { newFolder, writeRun } from "./run_files.js";

const estimate = (value: unknown) => ({ value, low: null, high: null });

const EVALUATION = {
  settings: { seeds: [0], resamples: 200, samples: 10, prefixes: [8], draws: 1 },
  judged: {
    run: "r",
    checkpoint: "step_000001",
    which: "last",
    text: "checkpoint step_000001 of r, the last",
  },
  files: [
    { role: "A", path: "a.safetensors", sha256: "1" },
    { role: "B", path: "b.safetensors", sha256: "2" },
  ],
  data: {
    train: { images: 20, read: 20, fingerprint: "t", unreadable: ["x.png"] },
    heldOut: { images: 4, read: 4, fingerprint: "h" },
  },
  networks: [{ name: "net", featureSize: 2, numClasses: 2, isRewarded: false }],
  real: { training: { images: 10, plain: {}, networks: { net: { fd_train: estimate(1) } } } },
  reconstruction: { images: 4, plain: { l2: estimate(0.1) }, networks: { net: { fd_train: estimate(1) } } },
  likelihoods: [
    { policy: "A", images: 4, natsPerToken: estimate(1), perplexity: estimate(2), top1: estimate(0.5) },
  ],
  rows: ["A", "B"].flatMap((policy) =>
    [1, 0.5].map((temperature) => ({
      policy,
      temperature,
      cfg: 1,
      free: { images: 10, plain: {}, networks: { net: { fd_train: estimate(2) } } },
      completions: [
        {
          prefix: 8,
          measures: { images: 4, plain: { l2: estimate(0.2) }, networks: { net: { fd_train: estimate(3) } } },
        },
      ],
    })),
  ),
  verdicts: {
    completion: [
      {
        network: "net",
        measure: "l2",
        prefix: 8,
        standings: [
          {
            point: { temperature: 1, cfg: 1, fd: 3, value: 0.2 },
            rival: { temperature: 1, cfg: 1, fd: estimate(3), value: 0.2 },
            gain: estimate(0),
            standing: "behind",
          },
        ],
      },
    ],
    free: [
      {
        network: "net",
        a: { temperature: 1, cfg: 1, fd: estimate(2) },
        b: { temperature: 1, cfg: 1, fd: estimate(2) },
      },
    ],
  },
  pages: ["free_A_t1_cfg1.png"],
  notes: ["note"],
};

const ENVIRONMENT = {
  versions: { package: "0.1.0", node: "20", libtorch: "2" },
  libtorchConfig: "built",
  commit: { id: "0123456789abcdef", isDirty: true },
  os: "linux",
  host: "box",
  cpu: { model: "cpu", cores: 2 },
  memoryBytes: 1,
  cudaDevices: 0,
  threads: 2,
  variables: {},
  command: ["node", "x.mjs"],
  startedAt: "2026-01-01T00:00:00.000Z",
};

/** Values that take the place of what a file should hold; markup in an object must not count as the page's own. */
const WRONG: readonly unknown[] = [
  null,
  "text",
  1e308,
  -1,
  [],
  {},
  [[1]],
  true,
  { markup: "<script>alert(1)</script>" },
  "</script><script>alert(1)</script>",
];

type Place = readonly (string | number)[];

/** Every place of a tree. */
function places(value: unknown, at: Place = []): Place[] {
  if (typeof value !== "object" || value === null) return [at];
  return [at, ...Object.entries(value).flatMap(([key, item]) => places(item, [...at, key]))];
}

/** A copy with another value at a place, or without it. */
function changed(value: unknown, [key, ...rest]: Place, by: unknown): unknown {
  if (key === undefined) return by;
  const copy = structuredClone(value) as Record<string | number, unknown>;
  if (rest.length === 0 && by === undefined) delete copy[key];
  else copy[key] = changed(copy[key], rest, by);
  return copy;
}

function assertHarmless(page: string, where: string): void {
  assert.ok(!page.includes("<script>alert"), where);
  assert.match(page, /<\/html>\s*$/, where);
}

for (const [file, whole] of [
  ["eval.json", EVALUATION],
  ["env.json", ENVIRONMENT],
] as const)
  test(`${file}: any part may be missing or of another type`, async (t) => {
    const folder = newFolder(t);
    const page = async (value: unknown): Promise<string> => {
      writeRun(folder, { metrics: [{ step: 1, a: 1 }], files: { [file]: value } });
      return await reportHtml([folder]);
    };
    assert.ok(!(await page(whole)).includes("damaged"));
    // Each place takes some of the values, all of them in turn.
    for (const [i, place] of places(whole).entries()) {
      const some = [0, 1, 2].map((k) => WRONG[(3 * i + k) % WRONG.length]);
      for (const wrong of place.length === 0 ? WRONG : [undefined, ...some])
        assertHarmless(
          await page(changed(whole, place, wrong)),
          `${place.join(".")}: ${JSON.stringify(wrong)}`,
        );
    }
  });

test("what is damaged is omitted and named, what is not stays", (t) => {
  const unreadOf = (value: unknown): readonly string[] =>
    readRun(writeRun(newFolder(t), { metrics: [], files: { "eval.json": value } })).unread;
  assert.deepEqual(unreadOf(EVALUATION), []);
  const [text] = unreadOf(changed(EVALUATION, ["rows", 0, "completions", 0, "measures", "plain", "l2"], {}));
  assert.match(
    text as string,
    /^eval\.json: 1 part .*rows\[0\]\.completions\[0\]\.measures\.plain\.l2\.value/,
  );
  const many = changed(EVALUATION, ["networks"], [1, 2, 3, 4, 5, 6]);
  assert.match(unreadOf(many)[0] as string, /^eval\.json: 6 parts .*networks\[0\].*and 2 more/);
  assert.match(unreadOf({ rows: "x" })[0] as string, /^eval\.json: expected what rlar eval --json writes/);
  assert.equal(unreadOf("{").length, 1);
});

test("an evaluation of an older version with a width beyond all numbers keeps its numbers", async (t) => {
  const text = JSON.stringify(EVALUATION).replace('"numClasses":2', '"numClasses":1e999');
  const folder = writeRun(newFolder(t), { metrics: [{ step: 1, a: 1 }], files: { "eval.json": text } });
  const run = readRun(folder);
  assert.equal(run.evaluations[0]?.evaluation.networks[0]?.name, "net");
  assert.match(run.unread[0] as string, /networks\[0\]\.numClasses/);
  assert.match(await reportHtml([folder]), /features of net/);
});

test("metrics.jsonl: steps that are none are counted, values beyond all bounds do not stop the page", async (t) => {
  const lines = [
    '{"step":1e999,"a":1}\n',
    '{"step":-1,"a":1}\n',
    '{"step":1.5,"a":1}\n',
    '{"step":"2","a":1}\n',
    "null\n[]\n5\n",
    '{"step":1,"a":1e308,"b":-1e308,"__proto__":1,"constructor/mean":3}\n',
    '{"step":2,"a":-1e308,"b":5e-324,"__proto__":2,"constructor/mean":4}\n',
    '{"step":9007199254740991,"a":1e999,"b":0,"toString":1}\n',
  ];
  const folder = writeRun(newFolder(t), { config: {}, metrics: lines });
  const run = readRun(folder);
  assert.equal(run.damagedLines, 7);
  assert.deepEqual(run.metrics.get("a")?.values, [1e308, -1e308, Infinity]);
  assertHarmless(await reportHtml([folder]), "metrics.jsonl");
});

test("config.yaml: other types, loops and aliases that repeat each other", async (t) => {
  const bomb = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"];
  for (let i = 1; i < 9; i++)
    bomb.push(
      `a${i}: &a${i} [${Array(10)
        .fill(`*a${i - 1}`)
        .join(", ")}]`,
    );
  const texts = [
    "- 1\n",
    "5\n",
    "a: &a [*a]\n",
    "a: &a { b: *a }\n",
    "seed: { markup: <script>alert(1)</script> }\nalgorithm: [1]\ntrain: { iters: [] }\ndata: 5\nrollout: x\n",
    "seed: 123456789012345678901234567890\neval: { patience: x }\nlimits: 3\n? { a: 1 }\n: 2\n",
    "? [__proto__]\n: 1\n__proto__: { seed: 1 }\n",
    `${bomb.join("\n")}\n`,
    "a: [\n",
  ];
  for (const text of texts) {
    const files = { "config.yaml": text };
    const folder = writeRun(newFolder(t), { metrics: [{ step: 1, a: 1 }], files });
    assertHarmless(await reportHtml([folder]), text.slice(0, 40));
  }
  const deep = `a: ${"[".repeat(200)}${"]".repeat(200)}\n`;
  const folder = writeRun(newFolder(t), { metrics: [], files: { "config.yaml": deep } });
  assert.match(readRun(folder).unread.join(), /config\.yaml: .*levels/);
});

test("other files: checkpoints' values, the index of samples, pictures that are none", async (t) => {
  const folder = writeRun(newFolder(t), {
    metrics: [{ step: 1, a: 1 }],
    files: {
      "checkpoints/step_000001/values.json": '{"config":[],"progress":5}',
      "checkpoints/best.json": "[]",
      ".lock": "5",
      "samples/broken.png": "no image",
      "eval/free_A_t1_cfg1.png": "no image either",
      "eval.json": EVALUATION,
      "samples.jsonl":
        '{"step":1,"name":{"markup":"<script>alert(1)</script>"},"file":"samples/broken.png","columns":[[]],"rewards":[[{}]]}\n{}\n',
    },
  });
  const page = await reportHtml([folder]);
  assertHarmless(page, "samples");
  assert.match(page, /Not read: broken\.png/);
  for (const file of ["samples\\.jsonl", "checkpoints/best\\.json"])
    assert.match(page, new RegExp(`Not read: ${file}: `));
  assert.match(page, /Not read: free_A_t1_cfg1\.png/);
});

test("folders and files in each other's place, and files that hold something else", async (t) => {
  const page = async (files: Record<string, unknown>): Promise<string> =>
    await reportHtml([writeRun(newFolder(t), { metrics: [{ step: 1, a: 1 }], files })]);
  const names = ["config.yaml", "env.json", "eval.json", "samples.jsonl", "checkpoints/best.json"];
  for (const name of names)
    assert.match(await page({ [`${name}/x`]: "1" }), new RegExp(`Not read: ${name}`), name);
  for (const name of ["checkpoints", "dumps"])
    assert.match(await page({ [name]: "1" }), new RegExp(`Not read: ${name}`), name);
  for (const [name, text] of [
    ["config.yaml", "- 1\n"],
    ["config.yaml", ""],
    ["checkpoints/step_000001/values.json", "[]"],
    ["env.json", "[]"],
  ] as const)
    assert.match(await page({ [name]: text }), new RegExp(`Not read: ${name}`), name);
});

test("the case that was reported", async (t) => {
  const path = fileURLToPath(new URL("../../../test/fixtures/report/eval_damaged.json", import.meta.url));
  const text = readFileSync(path, "utf8");
  const folder = writeRun(newFolder(t), { metrics: [{ step: 1, a: 1 }], files: { "eval.json": text } });
  assert.ok(readRun(folder).evaluations.length === 1);
  assertHarmless(await reportHtml([folder]), "case");
});
