/** Captions of images in tar shards, folders, parquet files and a program's loader, and those that cannot be used. */
import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";
import { fromIterable, type LoaderImage, type LoaderItem, onePass } from "../../src/data/index.js";
import { openSource } from "../../src/data/open_source.js";
import { type ImageSource, readSample, type SourceOptions } from "../../src/data/source.js";
import { subset } from "../../src/data/split.js";
import { zeros } from "../../src/torch/index.js";
import { goldenData, grey, npyOf, scratch, tarOf, writeFiles } from "../support/data_files.js";

const folder = scratch();
const image = await grey(1);

async function tar(
  members: Record<string, Uint8Array | string>,
  options?: SourceOptions,
): Promise<ImageSource> {
  writeFiles(folder, { "set.tar": await tarOf(members) });
  return await openSource(join(folder, "set.tar"), options);
}

let folders = 0;
async function files(
  members: Record<string, Uint8Array | string>,
  options?: SourceOptions,
): Promise<ImageSource> {
  const at = join(folder, `set_${folders++}`);
  writeFiles(at, members);
  return await openSource(at, options);
}

async function captionsOf(source: ImageSource): Promise<(string | undefined)[]> {
  const samples = [];
  for (let i = 0; i < source.length; i++) samples.push(await readSample(source, i));
  return samples.map(({ caption }) => caption);
}

const text = (name: string): string => `\ufeffa ${name} fox, “häppy”\n`;

for (const [format, open] of [
  ["tar shards", tar],
  ["a folder", files],
] as const) {
  test(`${format}: .txt, another extension, a field of JSON, or none`, async () => {
    const members = {
      "a/1.png": image,
      "a/1.txt": text("red"),
      "a/1.json": '{"caption": "one", "prompt": "two", "n": 3}',
      "a/1.short.txt": "fox",
      "b/2.jpg": image,
      "b/2.txt": text("blue"),
      "b/2.json": '{"caption": "three", "prompt": "four"}',
      "b/2.short.txt": "hen",
    };
    const usual = await open(members);
    assert.deepEqual(await captionsOf(usual), ["a red fox, “häppy”", "a blue fox, “häppy”"]);
    assert.equal(usual.hasCaptions, true);
    assert.ok(!usual.notes?.some((note) => / \.txt \(4\)/.test(note)), usual.notes?.join());
    assert.deepEqual(await captionsOf(subset(usual, [1])), ["a blue fox, “häppy”"]);
    const of = async (captions: string | null) => captionsOf(await open(members, { captions }));
    assert.deepEqual(await of("json"), ["one", "three"]);
    assert.deepEqual(await of("json.prompt"), ["two", "four"]);
    assert.deepEqual(await of("short.txt"), ["fox", "hen"]);
    assert.deepEqual(await of(null), [undefined, undefined]);
    // Another text is another set.
    const other = await open({ ...members, "b/2.txt": text("pink") });
    assert.notEqual(other.fingerprint, usual.fingerprint);
    assert.equal((await open({ "1.png": image })).hasCaptions, undefined);
  });

  test(`${format}: some images without a caption are named, with what to do`, async () => {
    const some = { "a/1.png": image, "a/1.txt": "a fox", "a/2.png": image };
    const refused = {
      name: "RangeError",
      message: /caption \(\.txt\).*got 1 for 2 images, none for .*a\/2\.png\. .*data\.captions=none/,
    };
    await assert.rejects(open(some), refused);
    assert.equal((await open(some, { captions: null })).hasCaptions, undefined);
    await assert.rejects(open({ "1.png": image }, { captions: "json" }), /caption \(\.json\).*got 0 for 1/);
  });
}

test("tar: members that hold labels are no captions, and both may come with features", async () => {
  const labelled = await tar({ "1.png": image, "1.txt": "fox" }, { label: "txt" });
  assert.deepEqual([labelled.classNames, labelled.hasCaptions], [["fox"], undefined]);
  const features = npyOf(Float32Array.of(1, 2), [1, 2]);
  const all = await tar({ "1.png": image, "1.cls": "0", "1.txt": "a fox", "1.npy": features });
  const sample = await readSample(all, 0);
  assert.deepEqual([sample.caption, sample.features?.shape, sample.classId], ["a fox", [1, 2], 0]);
});

test("parquet: a column of text by its usual name, another, or none", async () => {
  const path = goldenData("plain.parquet");
  const [first] = await captionsOf(subset(await openSource(path), [0]));
  assert.equal(typeof first, "string");
  assert.deepEqual(await captionsOf(subset(await openSource(path, { captions: "class" }), [0])), ["eel"]);
  assert.equal((await openSource(path, { captions: null })).hasCaptions, undefined);
  await assert.rejects(
    openSource(path, { captions: "img" }),
    /column img.*Name caption or class.*data\.captions=none/,
  );
  await assert.rejects(openSource(path, { captions: "words" }), /column words/);
  assert.equal((await openSource(goldenData("hugging_face.parquet"))).hasCaptions, undefined);
});

test("a batch has the captions; one that cannot be used counts as an unreadable image", async () => {
  const bad: Readonly<Record<string, [Uint8Array | string, RegExp]>> = {
    empty: [" \n", /caption of .*empty/],
    long: ["x".repeat(2 ** 16 + 1), /at most 65536 bytes, got 65537/],
    "not UTF-8": [Uint8Array.of(0xe9, 0x20), /UTF-8/],
  };
  const members: Record<string, Uint8Array | string> = {};
  for (let i = 0; i < 40; i++) {
    members[`${i}.png`] = image;
    members[`${i}.txt`] = i === 7 ? `fox 6` : `fox ${i}`;
  }
  for (const open of [tar, files]) {
    for (const [name, [caption, message]] of Object.entries(bad)) {
      const source = await open({ ...members, "3.txt": caption });
      const problems: string[] = [];
      const seen: string[] = [];
      const onUnreadable = (_: string, problem: string) => problems.push(problem);
      for await (const batch of onePass(source, { batchSize: 16, size: 4, workers: 1, onUnreadable })) {
        for (const [i, id] of batch.ids.entries()) {
          const number = Number(/(\d+)\.png/.exec(id)?.[1]);
          assert.equal(batch.captions?.[i], `fox ${number === 7 ? 6 : number}`);
          seen.push(id);
        }
        batch.dispose();
      }
      assert.equal(seen.length, 39, name);
      assert.equal(problems.length, 1, name);
      assert.match(problems[0] as string, message);
      assert.match(problems[0] as string, /3\.png/);
    }
  }
  const json = { "1.png": image, "2.png": image, "1.json": "{}", "2.json": '{"caption": ["a"]}' };
  const source = await tar(json, { captions: "json" });
  await assert.rejects(readSample(source, 0), /caption of set\.tar\/1\.png: expected text, got none/);
  await assert.rejects(readSample(source, 1), /caption of set\.tar\/2\.png: expected text, got \[a\]/);
  const broken = await tar({ "1.png": image, "1.json": "caption" }, { captions: "json" });
  await assert.rejects(readSample(broken, 0), /not JSON/);
});

test("a program's loader gives captions, of single images and of batches that are cut", async () => {
  const next = async (items: readonly LoaderItem[], batchSize = 3) => {
    const batches = fromIterable(items, { batchSize, size: 4 });
    try {
      const batch = await batches.next();
      batch.dispose();
      return batch.captions;
    } finally {
      batches.close();
    }
  };
  using one = zeros([3, 4, 4]);
  using two = zeros([2, 3, 4, 4]);
  using three = zeros([3, 3, 4, 4]);
  const single = (caption?: string): LoaderImage => ({
    image: one,
    ...(caption !== undefined && { caption }),
  });
  assert.deepEqual(await next([single("a"), single(" b "), single("c")]), ["a", "b", "c"]);
  assert.equal(await next([single()]), undefined);
  assert.deepEqual(await next([{ images: two, captions: ["a", "b"] }]), ["a", "b"]);
  const batches = fromIterable(
    [
      { images: two, captions: ["a", "b"] },
      { images: three, captions: ["c", "d", "e"] },
    ],
    { batchSize: 1 },
  );
  const seen: unknown[] = [];
  for (let i = 0; i < 3; i++) {
    using batch = await batches.next();
    seen.push(batch.captions);
  }
  batches.close();
  assert.deepEqual(seen, [
    ["a", "b"],
    ["c", "d"],
    ["e", "a"],
  ]);
  await assert.rejects(next([single("a"), single(), single("b")]), /caption for every image.*none for/);
  await assert.rejects(next([{ images: two, captions: ["a"] }]), /2 captions.*got 1/);
  await assert.rejects(next([{ images: two, captions: ["a", ""] }]), /empty caption/);
  await assert.rejects(next([{ images: two, captions: "ab" as never }]), /list of captions/);
});

test("what holds no captions refuses that some are asked for", async () => {
  for (const name of ["codes.npy", "codes.safetensors"]) {
    const set = join(folder, `none_${name}`);
    writeFiles(set, { [name]: npyOf(BigInt64Array.of(1n, 2n), [1, 2]) });
    await assert.rejects(openSource(set, { captions: "txt" }), /data\.captions.*without captions/);
  }
});
