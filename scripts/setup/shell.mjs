/**
 * Running other programs and looking at files: the few helpers that every set-up step needs.
 */
import { spawn } from "node:child_process";
import {
  accessSync,
  closeSync,
  constants,
  fsyncSync,
  openSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { delimiter, dirname, join } from "node:path";
import { makeFolders } from "./folders.mjs";

/**
 * Run a program to its end with its output captured.
 *
 * Asynchronous on purpose: a lock held meanwhile must keep showing signs of life.
 *
 * @param {string[]} command program and arguments.
 * @param {{ cwd?: string, env?: NodeJS.ProcessEnv }} [options]
 * @returns {Promise<{ ok: boolean, stdout: string, output: string, error?: NodeJS.ErrnoException }>} `output`
 *   is stdout and stderr as they came; `error` is set when the program could not be started.
 */
export function run([program, ...args], { cwd, env } = {}) {
  return new Promise((resolve) => {
    let stdout = "";
    let output = "";
    const child = spawn(program, args, { cwd, env, stdio: ["ignore", "pipe", "pipe"] });
    child.stdout.setEncoding("utf8").on("data", (text) => {
      stdout += text;
      output += text;
    });
    child.stderr.setEncoding("utf8").on("data", (text) => {
      output += text;
    });
    child.on("error", (error) => resolve({ ok: false, stdout, output: output || String(error), error }));
    child.on("close", (code, signal) => {
      if (signal) output += `\nended by ${signal}`;
      resolve({ ok: code === 0, stdout, output });
    });
  });
}

/** Absolute path of a program as the shell would find it, or undefined. */
export function which(program, env) {
  const candidates = program.includes("/")
    ? [program]
    : (env.PATH ?? "").split(delimiter).map((folder) => join(folder || ".", program));
  return candidates.find((path) => {
    try {
      accessSync(path, constants.X_OK);
      return statSync(path).isFile();
    } catch {
      return false;
    }
  });
}

/** Size and modification time as one word, "absent" where there is nothing: cheap to compare, reads no content. */
export function mark(path) {
  const stat = statSync(path, { throwIfNoEntry: false });
  if (stat === undefined) return "absent";
  return stat.isDirectory() ? `dir ${stat.mtimeMs}` : `${stat.size} ${stat.mtimeMs}`;
}

/** Files below a folder with one of the endings, sorted; none when the folder is absent. */
export function listFiles(folder, endings) {
  let entries;
  try {
    entries = readdirSync(folder, { recursive: true, withFileTypes: true });
  } catch (error) {
    if (error.code === "ENOENT") return [];
    throw error;
  }
  return entries
    .filter((entry) => entry.isFile() && endings.some((ending) => entry.name.endsWith(ending)))
    .map((entry) => join(entry.parentPath ?? entry.path, entry.name))
    .sort();
}

/** `path -> mark` for a list of files, as plain data to store in a stamp. */
export function marks(paths) {
  return Object.fromEntries(paths.map((path) => [path, mark(path)]));
}

/** Parsed JSON file, or undefined when it is absent or was cut short: a stamp in doubt counts as none. */
export function readJson(path) {
  try {
    return JSON.parse(readFileSync(path, "utf8"));
  } catch {
    return undefined;
  }
}

/** Write a file so that readers see the old content or the new, never a part. */
export function writeWhole(path, text) {
  makeFolders(dirname(path));
  const aside = `${path}.${process.pid}.tmp`;
  try {
    const file = openSync(aside, "w");
    try {
      writeFileSync(file, text);
      fsyncSync(file);
    } finally {
      closeSync(file);
    }
    renameSync(aside, path);
  } catch (error) {
    rmSync(aside, { force: true });
    throw error;
  }
}

/** The last lines of a program's output, without the empty ones. */
export function tail(output, lines) {
  return output
    .split("\n")
    .filter((line) => line.trim() !== "")
    .slice(-lines)
    .join("\n");
}

/** Whether a program's output or an error says that the disk is full. */
export function saysDiskFull(text) {
  return /No space left on device|ENOSPC|Errno 28|Disk quota exceeded/i.test(text);
}
