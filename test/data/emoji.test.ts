import assert from "node:assert/strict";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { gzipSync } from "node:zlib";

import sharp from "sharp";

import { type EmojiOptions, prepareEmoji } from "../../src/data/emoji.js";
import { readSample } from "../../src/data/source.js";
import { splitSource } from "../../src/data/split.js";
import { openTar } from "../../src/data/tar.js";
import { scratch, tarOf } from "../support/data_files.js";

const folder = scratch();
const at = (name: string): string => join(folder, name);

type Colour = readonly [red: number, green: number, blue: number, alpha?: number];

/** An image of one colour whose right half is left clear. */
async function picture(format: "png" | "webp", side: number, [r, g, b, a = 255]: Colour): Promise<Buffer> {
  const data = Buffer.alloc(side * side * 4);
  for (let i = 0; i < side * side; i++) if (i % side < side / 2) data.set([r, g, b, a], i * 4);
  const image = sharp(data, { raw: { width: side, height: side, channels: 4 } });
  return await (format === "png" ? image.png() : image.webp({ lossless: true, exact: true })).toBuffer();
}

const entry = (unified: string, category: string, variations: readonly string[] = []) => ({
  unified,
  category,
  has_img_google: true,
  skin_variations: Object.fromEntries(variations.map((one) => [one, { unified: one, has_img_google: true }])),
});

const LIST = [
  entry("1F44B", "People & Body", ["1F44B-1F3FB", "1F44B-1F3FF"]),
  entry("1F469-200D-1F680", "People & Body", ["1F469-1F3FD-200D-1F680"]),
  entry("1F9D1-200D-1F680", "People & Body"),
  entry("1F926-200D-2642-FE0F", "People & Body"),
  entry("1F469-200D-2764-FE0F-200D-1F468", "People & Body"),
  entry("0023-FE0F-20E3", "Symbols"),
  entry("1F1F3-1F1F4", "Flags"),
  entry("1F1F8-1F1EF", "Flags"),
  entry("1F3FB", "Component"),
];

/** Noto's images by name; the last two flags are the same. */
const NOTO: Readonly<Record<string, Colour>> = {
  "1f44b": [255, 0, 0],
  "1f44b-1f3fb": [200, 0, 0],
  "1f44b-1f3ff": [100, 0, 0],
  "1f469-200d-1f680": [0, 10, 0],
  "1f469-1f3fd-200d-1f680": [0, 20, 0],
  "1f9d1-200d-1f680": [0, 30, 0],
  "1f926-200d-2642-fe0f": [0, 40, 0],
  "1f469-200d-2764-fe0f-200d-1f468": [0, 50, 0],
  "0023-fe0f-20e3": [0, 0, 0, 128],
  "1f1f3-1f1f4": [0, 0, 99],
  "1f1f8-1f1ef": [0, 0, 99],
  "1f3fb": [1, 2, 3],
};

/** Fluent's, in the spellings of its package. */
const FLUENT: Readonly<Record<string, Colour>> = {
  "1f44b": [250, 250, 0],
  "1f926-200d-2642": [40, 40, 0],
  "23-fe0f-20e3": [7, 8, 9],
  "1f1f3-1f1f4": [0, 77, 0],
  "1f3fb": [4, 5, 6],
};

async function packages(): Promise<Pick<EmojiOptions, "google" | "fluent">> {
  const google: Record<string, Buffer | string> = { "package/emoji.json": JSON.stringify(LIST) };
  for (const [name, colour] of Object.entries(NOTO))
    google[`package/img/google/64/${name}.png`] = await picture("png", 64, colour);
  google["package/img/google/sheets/64.png"] = "no image";
  const fluent: Record<string, Buffer | string> = { "package/package.json": "{}" };
  for (const [name, colour] of Object.entries(FLUENT))
    fluent[`package/assets/${name}.webp`] = await picture("webp", 256, colour);
  writeFileSync(at("google.tgz"), gzipSync(await tarOf(google)));
  writeFileSync(at("fluent.tgz"), gzipSync(await tarOf(fluent)));
  return { google: at("google.tgz"), fluent: at("fluent.tgz") };
}

const both = await packages();
const summary = await prepareEmoji({ ...both, size: 32, out: at("emoji.tar") });
const source = await openTar(at("emoji.tar"));
const ids = Array.from({ length: source.length }, (_, i) => source.idOf(i));

test("members are named by class, design, codepoints and style; one picture is there once", () => {
  assert.deepEqual(ids, [
    "emoji.tar/flags-noto/1f1f3-1f1f4_1f1f3-1f1f4_noto.webp",
    "emoji.tar/people-fluent/1f44b_1f44b_fluent.webp",
    "emoji.tar/people-fluent/1f926_1f926-200d-2642_fluent.webp",
    "emoji.tar/people-noto/1f44b_1f44b-1f3fb_noto.webp",
    "emoji.tar/people-noto/1f44b_1f44b-1f3ff_noto.webp",
    "emoji.tar/people-noto/1f44b_1f44b_noto.webp",
    "emoji.tar/people-noto/1f491_1f469-200d-2764-200d-1f468_noto.webp",
    "emoji.tar/people-noto/1f926_1f926-200d-2642_noto.webp",
    "emoji.tar/people-noto/1f9d1-200d-1f680_1f469-1f3fd-200d-1f680_noto.webp",
    "emoji.tar/people-noto/1f9d1-200d-1f680_1f469-200d-1f680_noto.webp",
    "emoji.tar/people-noto/1f9d1-200d-1f680_1f9d1-200d-1f680_noto.webp",
    "emoji.tar/symbols-fluent/0023-20e3_0023-20e3_fluent.webp",
    "emoji.tar/symbols-noto/0023-20e3_0023-20e3_noto.webp",
  ]);
  const classes = {
    "flags-noto": 1,
    "people-fluent": 2,
    "people-noto": 8,
    "symbols-fluent": 1,
    "symbols-noto": 1,
  };
  assert.deepEqual(source.classNames, Object.keys(classes));
  assert.deepEqual(summary, {
    images: 13,
    designs: 6,
    classes,
    bytes: readFileSync(at("emoji.tar")).length,
  });
});

test("pixels lie on white in the size that is asked for", async () => {
  const wanted: readonly [string, readonly number[]][] = [
    ["people-noto/1f44b_1f44b_noto", [255, 0, 0]],
    ["people-fluent/1f44b_1f44b_fluent", [250, 250, 0]],
    // 0 x 128/255 + 255 x 127/255
    ["symbols-noto/0023-20e3_0023-20e3_noto", [127, 127, 127]],
  ];
  for (const size of [32, 64]) {
    const out = at(`size_${size}.tar`);
    await prepareEmoji({ ...both, size, out });
    const sized = await openTar(out);
    for (const [name, colour] of wanted) {
      const i = ids.indexOf(`emoji.tar/${name}.webp`);
      const { pixels } = await readSample(sized, i);
      assert.equal(pixels?.width, size);
      assert.equal(pixels?.height, size);
      const pixel = (x: number, y: number): number[] => [
        ...(pixels?.data.subarray((y * size + x) * 3, (y * size + x) * 3 + 3) ?? []),
      ];
      // Away from the edge between the halves, which the filter smooths.
      for (const y of [0, 9, size - 1]) {
        assert.deepEqual([pixel(0, y), pixel(9, y)], [colour, colour], name);
        assert.deepEqual([pixel(size - 1, y), pixel(size - 10, y)], [Array(3).fill(255), Array(3).fill(255)]);
      }
    }
  }
});

test("the published group keeps every variant of a design on one side of a split", () => {
  const pattern = /([^/_]+)_[^/]*$/;
  const groupOf = (id: string): string => pattern.exec(id)?.[1] ?? "none";
  assert.deepEqual(
    [...new Set(ids.map(groupOf))],
    ["1f1f3-1f1f4", "1f44b", "1f926", "1f491", "1f9d1-200d-1f680", "0023-20e3"],
  );
  const { train, heldOut } = splitSource(source, { heldOut: 0.5, seed: 1, groupOf });
  const side = (part: typeof train): Set<string> =>
    new Set(Array.from({ length: part.length }, (_, i) => groupOf(part.idOf(i))));
  for (const group of side(train)) assert.ok(!side(heldOut).has(group));
});

test("the same packages give the same bytes, with the licences in them", async () => {
  await prepareEmoji({ ...both, size: 32, out: at("again.tar") });
  const bytes = readFileSync(at("emoji.tar"));
  assert.ok(bytes.equals(readFileSync(at("again.tar"))));
  const text = bytes.toString("latin1");
  for (const words of ["LICENCES.txt", "Google LLC", "Apache License, Version 2.0", "Microsoft Corporation"])
    assert.ok(text.includes(words), words);
});

test("what is no such package is refused, and nothing half-written stays", async () => {
  const tgz = async (name: string, members: Record<string, string | Buffer>): Promise<string> => {
    writeFileSync(at(name), gzipSync(await tarOf(members)));
    return at(name);
  };
  const out = at("no.tar");
  const refused = async (options: Partial<EmojiOptions>, message: string | RegExp): Promise<void> =>
    await assert.rejects(prepareEmoji({ ...both, size: 32, out, ...options }), { message });
  writeFileSync(at("text.tgz"), "no package");
  writeFileSync(at("cut.tgz"), readFileSync(both.google).subarray(0, 900));
  await refused(
    { google: at("text.tgz") },
    `${at("text.tgz")}: expected a package as npm packs it, .tgz, got incorrect header check.`,
  );
  await refused(
    { google: at("cut.tgz") },
    `${at("cut.tgz")}: expected a package as npm packs it, .tgz, got unexpected end of file.`,
  );
  await refused(
    { fluent: at("absent.tgz") },
    /absent\.tgz: expected a package as npm packs it, .tgz, got ENOENT/,
  );
  await refused(
    { google: both.fluent },
    `${both.fluent}: expected the package emoji-datasource-google, got one without emoji.json.`,
  );
  const json = await tgz("json.tgz", { "package/emoji.json": "[1]", "package/img/google/64/1f44b.png": "x" });
  await refused(
    { google: json },
    `${json}: expected emoji.json to be a list of entries with unified and category, got something else.`,
  );
  await refused(
    { fluent: both.google },
    `${both.google}: expected images .webp named by their codepoints, got none.`,
  );
  const list = JSON.stringify([LIST[0]]);
  const broken = await tgz("broken.tgz", {
    "package/emoji.json": list,
    "package/img/google/64/1f44b.png": "no image",
  });
  await refused({ google: broken }, /^people-noto\/1f44b_1f44b_noto: expected an image, got /);
  await refused(
    { size: 65 },
    "prepareEmoji: expected a size from 8 to 64 px, got 65. Noto's images have 64.",
  );
  await refused(
    { out: at("absent/no.tar") },
    /absent\/no\.tar: expected a path that can be written, got ENOENT/,
  );
  assert.deepEqual(
    readdirSync(folder).filter((name) => name.includes("no.tar") || name.endsWith(".tmp")),
    [],
  );
});
