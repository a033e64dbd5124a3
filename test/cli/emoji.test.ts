/** `rlar emoji` as a user runs it, with an npm that fails in every way; the real packages are not fetched. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { chmodSync, existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";

const folder = mkdtempSync(join(tmpdir(), "rlar-emoji-"));
const at = (name: string): string => join(folder, name);
after(() => rmSync(folder, { recursive: true }));

/** Run `rlar emoji` with a script in place of npm. */
function emoji(npm: string, ...args: string[]): { code: number | null; err: string } {
  mkdirSync(at("bin"), { recursive: true });
  writeFileSync(at("bin/npm"), `#!/bin/sh\n${npm}\n`);
  chmodSync(at("bin/npm"), 0o755);
  const env = { ...process.env, PATH: `${at("bin")}:${process.env.PATH}`, RLAR_CACHE: at("cache") };
  const { status, stderr } = spawnSync(
    process.execPath,
    ["dist/src/cli/main.js", "emoji", "--out", at("emoji.tar"), ...args],
    { encoding: "utf8", env },
  );
  return { code: status, err: stderr };
}

/** The last line of what it said, without the program's name; nothing is left over. */
function refused(npm: string, ...args: string[]): string {
  const { code, err } = emoji(npm, ...args);
  assert.equal(code, 3, err);
  assert.ok(!existsSync(at("emoji.tar")));
  if (existsSync(at("cache/emoji"))) assert.deepEqual(readdirSync(at("cache/emoji")), []);
  return err.trim().split("\n").at(-1) as string;
}

const ELSEWHERE =
  "Check the network and the disk, or make the file elsewhere with npm pack emoji-datasource-google@16.0.0 and give it as --google FILE.";

test("npm's own words are passed on when it cannot fetch", () => {
  assert.equal(
    refused(
      "echo 'npm error code ENOTFOUND' >&2; echo 'npm error network no such host' >&2; echo 'npm error A complete log of this run: x' >&2; exit 1",
    ),
    `rlar: emoji: expected npm to fetch emoji-datasource-google 16.0.0, got code ENOTFOUND; network no such host. ${ELSEWHERE}`,
  );
  assert.equal(
    refused("exit 7"),
    `rlar: emoji: expected npm to fetch emoji-datasource-google 16.0.0, got exit code 7. ${ELSEWHERE}`,
  );
  assert.equal(
    refused("exit 0"),
    `rlar: emoji: expected npm to fetch emoji-datasource-google 16.0.0, got no file. ${ELSEWHERE}`,
  );
});

test("a package with other contents is not kept", () => {
  // $4 is the folder after --pack-destination.
  assert.match(
    refused(
      '[ "$1 $2 $3" = "pack emoji-datasource-google@16.0.0 --pack-destination" ] && echo other > "$4/a.tgz"',
    ),
    /^rlar: emoji: expected emoji-datasource-google 16\.0\.0 with sha512-ZRexfzs7.*, got sha512-.*==\. Check the network/,
  );
});

test("a cache that cannot be written, a user's own wrong file and a file that exists are refused", () => {
  writeFileSync(at("cache_file"), "");
  const { code, err } = ((): { code: number | null; err: string } => {
    const env = { ...process.env, RLAR_CACHE: at("cache_file") };
    const args = ["dist/src/cli/main.js", "emoji", "--out", at("emoji.tar")];
    const { status, stderr } = spawnSync(process.execPath, args, { encoding: "utf8", env });
    return { code: status, err: stderr };
  })();
  assert.equal(code, 3);
  assert.match(err, /cache_file\/emoji: expected a path that can be written, got ENOTDIR.*choose another/);
  writeFileSync(at("own.tgz"), "mine");
  assert.equal(
    refused("exit 1", "--google", at("own.tgz")),
    `rlar: --google: expected emoji-datasource-google 16.0.0 as npm packs it, got ${at("own.tgz")}, another file. Make it with: npm pack emoji-datasource-google@16.0.0.`,
  );
  assert.match(
    refused("exit 1", "--google", at("absent.tgz")),
    /absent\.tgz: expected a file that can be read, got ENOENT/,
  );
  assert.match(
    refused("exit 1", "--out", at("absent/emoji.tar")),
    /absent\/emoji\.tar: expected a file in a folder that exists, got none\. Make .*\/absent first\.$/,
  );
  assert.equal(emoji("exit 1", "--size", "48").code, 2);
  writeFileSync(at("emoji.tar"), "there");
  const there = emoji("exit 1");
  assert.equal(there.code, 3);
  assert.match(
    there.err,
    /emoji\.tar: expected a file that does not exist yet, got one that does\. Use --force\.$/m,
  );
  rmSync(at("emoji.tar"));
});
