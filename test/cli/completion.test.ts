import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { dirname, join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

const main = join(dirname(dirname(dirname(fileURLToPath(import.meta.url)))), "src", "cli", "main.js");
const rlar = (...args: string[]): string =>
  spawnSync(process.execPath, [main, ...args], { encoding: "utf8" }).stdout;

/** What bash offers after the words of a line. */
function offered(...line: string[]): string[] {
  const script = `${rlar("completion", "bash")}
COMP_WORDS=(${line.map((word) => `'${word}'`).join(" ")}); COMP_CWORD=${line.length - 1}; _rlar; printf '%s\\n' "\${COMPREPLY[@]}"`;
  return spawnSync("bash", ["-c", script], { encoding: "utf8", cwd: dirname(main) }).stdout.split("\n");
}

test("bash completes commands, options and keys", () => {
  assert.deepEqual(offered("rlar", "recon").filter(Boolean), ["reconstruct"]);
  assert.ok(offered("rlar", "train", "reward.lpips.w").includes("reward.lpips.weight="));
  assert.ok(offered("rlar", "pretrain", "--dry").includes("--dry-run"));
  assert.deepEqual(offered("rlar", "doctor", "train.iters").filter(Boolean), []);
  // Values of options and arguments; where any file may follow, the shell completes it.
  assert.deepEqual(offered("rlar", "eval", "--checkpoint", "").filter(Boolean), ["last", "best"]);
  assert.deepEqual(offered("rlar", "eval", "--policy", "").filter(Boolean), []);
  assert.deepEqual(offered("rlar", "config", "ex").filter(Boolean), ["explain"]);
  assert.ok(offered("rlar", "launch", "--processes", "2", "train", "data.sou").includes("data.source="));
});

test("zsh and fish have scripts of their own; another shell is refused", () => {
  assert.match(rlar("completion", "zsh"), /^autoload -U \+X bashcompinit/);
  assert.match(
    rlar("completion", "fish"),
    /__fish_seen_subcommand_from eval' -l checkpoint -r -f -a 'last best'/,
  );
  const { status, stderr } = spawnSync(process.execPath, [main, "completion", "tcsh"], { encoding: "utf8" });
  assert.equal(status, 2);
  assert.match(stderr, /bash, zsh, fish/);
});

test("every command's help ends with an example; the version is the package's", () => {
  const names = [...rlar("completion", "fish").matchAll(/__fish_use_subcommand -a (\w+)/g)].map((m) => m[1]);
  assert.ok(names.length >= 14, names.join());
  for (const name of names) {
    if (name !== "completion") assert.match(rlar(name as string, "--help"), /\nExample: .+\n {2}\S.*rlar/);
  }
  assert.match(rlar("embed", "--help"), /--zero-shot 'a photo of a \{\}\.'\n/); // its words survive the shell
  assert.match(rlar("--version"), /^\d+\.\d+\.\d+\n$/);
  const unknown = spawnSync(process.execPath, [main, "help", "trian"], { encoding: "utf8" });
  assert.equal(unknown.status, 2);
  assert.match(unknown.stderr, /unknown command 'trian'.*mean train/s);
});

test("the help and the version load no LibTorch, so they need no working folder", () => {
  for (const arg of ["--version", "--help"]) {
    const script = 'cd "$(mktemp -d)" && rmdir "$PWD" && "$0" "$@"';
    const { status, stderr } = spawnSync("bash", ["-c", script, process.execPath, main, arg], {
      encoding: "utf8",
    });
    assert.deepEqual([status, stderr], [0, ""]);
  }
});
