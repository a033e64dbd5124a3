import assert from "node:assert/strict";
import { mkdirSync, symlinkSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";

import { expandPattern, listFiles, namesOf } from "../../src/data/paths.js";
import { scratch, writeFiles } from "../support/data_files.js";

const folder = scratch();
const at = (name: string): string => join(folder, name);

test("files are listed in order, through links, without hidden ones", async () => {
  const tree = at("tree");
  writeFiles(tree, { "b/2": "", "b/1": "", a: "", ".hidden": "", ".git/x": "", "c/d/e": "" });
  writeFiles(folder, { "elsewhere/f": "" });
  symlinkSync(at("elsewhere"), join(tree, "linked"));
  symlinkSync(at("elsewhere/f"), join(tree, "link"));
  symlinkSync(at("nowhere"), join(tree, "dangling"));
  assert.deepEqual(await listFiles(tree), ["a", "b/1", "b/2", "c/d/e", "dangling", "link", "linked/f"]);
});

test("folders that cannot be read, or never end, are refused", async () => {
  const loop = at("loop");
  mkdirSync(loop);
  symlinkSync(loop, join(loop, "again"));
  const message = `${join(loop, "again")}: expected a folder, got a link to a folder around it. Remove the link.`;
  await assert.rejects(listFiles(loop), { message });
  // A link to itself cannot be entered even by a user who may read everything.
  symlinkSync(at("shut"), at("shut"));
  await assert.rejects(
    listFiles(at("shut")),
    /^RangeError: .*shut: expected a folder that can be read, got ELOOP/,
  );
});

test("patterns stand for the files of a range, all present, or those that match", async () => {
  const names = ["t-08.tar", "t-09.tar", "t-10.tar", "v-08.tar", ".t-11.tar", "t+.tar"];
  writeFiles(at("shards"), Object.fromEntries(names.map((name) => [name, ""])));
  const expand = async (pattern: string): Promise<string[]> => {
    const found = await expandPattern("openTar", at(`shards/${pattern}`));
    return found.map((path) => path.slice(at("shards/").length));
  };
  assert.deepEqual(await expand("t-{08..10}.tar"), ["t-08.tar", "t-09.tar", "t-10.tar"]);
  assert.deepEqual(await expand("*-08.tar"), ["t-08.tar", "v-08.tar"]);
  assert.deepEqual(await expand("t-{08..09}*"), ["t-08.tar", "t-09.tar"]);
  assert.deepEqual(await expand("t+*"), ["t+.tar"]);
  assert.deepEqual(await expand("plain.tar"), ["plain.tar"]);
  const missing = `openTar: expected a file ${at("shards/t-11.tar")}, got none. Check the pattern.`;
  await assert.rejects(expand("t-{10..11}.tar"), { message: missing });
  for (const range of ["{10..08}", "{0..99999999999}", "{0..99999}-{0..99999}"]) {
    await assert.rejects(
      expand(`t-${range}.tar`),
      /openTar: expected a range that rises, of at most 1000000 files/,
    );
  }
  await assert.rejects(
    expandPattern("openTar", at("none/*.tar")),
    /^RangeError: openTar: expected a folder .* got ENOENT/,
  );
});

test("names begin below the folder that all have in common", () => {
  assert.deepEqual(namesOf(["/data/a/x.tar"]), ["x.tar"]);
  assert.deepEqual(namesOf(["/data/a/x.tar", "/data/ab/x.tar"]), ["a/x.tar", "ab/x.tar"]);
  assert.deepEqual(namesOf(["/x", "/y/z"]), ["x", "y/z"]);
});
