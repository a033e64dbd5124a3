/** Data sets that cannot be trained on, as every command that trains meets them. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";

import { grey, scratch, writeFiles } from "../support/data_files.js";
import { tinyFolder } from "../support/train_run.js";

const folder = scratch();
const at = (name: string): string => join(folder, name);

test("each command says what is wrong with the images, and leaves no half-made run", async (t) => {
  const tiny = await tinyFolder(t, 3);
  const tokenizer = `tokenizer.path=${join(tiny, "tokenizer.safetensors")}`;
  const models: Readonly<Record<string, readonly string[]>> = {
    train: [tokenizer, "ar.type=gpt", "ar.nLayer=1", "ar.nHead=2", "ar.nEmbd=16"],
    pretrain: [tokenizer, "ar.type=gpt", "ar.nLayer=1", "ar.nHead=2", "ar.nEmbd=16"],
    tokenizer: ["model.preset=VQ-4-small"],
    classifier: [],
  };
  mkdirSync(at("empty"));
  writeFiles(at("one"), { "a/0.png": await grey(9, 16) });
  writeFiles(at("bad"), { "a/0.png": "x", "a/1.png": "y", "b/2.png": "z", "b/3.png": "z" });
  const split =
    "none of 1 groups. Use more images, hold out another share \\(data.evalPart; 0 for none\\), or give held-out images of their own";
  const wanted: readonly [string, RegExp, readonly string[]][] = [
    [
      "empty",
      /empty: expected a folder of images, tar shards .*, got an empty one\.$/m,
      ["train", "pretrain", "tokenizer", "classifier"],
    ],
    // Whether the one image is held out or trained on, the other side has none.
    ["one", new RegExp(`splitSource: expected images to (train on|hold out), got ${split}`), ["train"]],
    ["bad", /data set: expected at most 1 unreadable images of \d, got 2\. /, ["tokenizer"]],
  ];
  for (const [data, message, commands] of wanted) {
    for (const command of commands) {
      const args = [command, `data.source=${at(data)}`, "data.size=16", `run.dir=${at("run")}`];
      const more = [...(models[command] ?? []), "train.threads=1", "train.device=cpu"];
      if (data === "bad") more.push("eval.every=0", "data.evalPart=0");
      const found = spawnSync(
        process.execPath,
        ["dist/src/cli/main.js", ...args, ...more, "run.ifExists=overwrite"],
        {
          encoding: "utf8",
        },
      );
      assert.equal(found.status, 3, `${command} ${data}: ${found.stderr}`);
      assert.match(found.stderr, message, `${command} ${data}`);
      const left = existsSync(at("run")) ? readdirSync(at("run"), { recursive: true, encoding: "utf8" }) : [];
      assert.deepEqual(
        left.filter((name) => /safetensors|\.tmp$/.test(name)),
        [],
        `${command} ${data}`,
      );
    }
  }
});
