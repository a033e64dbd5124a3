/** Commands that a program printed, run as a user does who pastes them. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { fileURLToPath } from "node:url";
import { rlarCommand } from "../../src/config/command.js";

const MAIN = fileURLToPath(new URL("../../src/cli/main.js", import.meta.url));

/** Run the command in a line such as `samples: npm run rlar -- sample ...`; a shell reads its quotes. */
export function pasted(line: string): { code: number | null; out: string; err: string } {
  const typed = `${rlarCommand([])} `;
  const at = line.indexOf(typed);
  assert.ok(at >= 0, `a command of rlar in: ${line}`);
  const command = `"$NODE" "$MAIN" ${line.slice(at + typed.length)}`;
  const { status, stdout, stderr } = spawnSync("sh", ["-c", command], {
    encoding: "utf8",
    env: { ...process.env, NODE: process.execPath, MAIN },
  });
  return { code: status, out: stdout, err: stderr };
}
