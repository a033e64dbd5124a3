/** `rlar emoji`: make the data set of the demo as one tar from two npm packages, which are downloaded once. */
import { spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { createReadStream, existsSync } from "node:fs";
import { mkdtemp, readdir, rename, rm } from "node:fs/promises";
import { homedir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { pipeline } from "node:stream/promises";

import { rlarCommand } from "../config/command.js";
import { EMOJI_PACKAGES, prepareEmoji } from "../data/index.js";
import { requireNew } from "../run/folder.js";
import { makeFolder } from "../torch/files.js";
import { expected } from "../torch/index.js";
import { withProgress } from "./progress.js";

/** Options of `rlar emoji`. */
export interface EmojiCommandOptions {
  out?: string;
  size: string;
  google?: string;
  fluent?: string;
  force?: boolean;
  json?: boolean;
}

type Which = keyof typeof EMOJI_PACKAGES;

/** Write the tar and say what is in it. @throws RangeError where a package cannot be fetched, or the tar cannot be written. */
export async function emoji(options: EmojiCommandOptions): Promise<void> {
  const size = Number(options.size);
  const { out = `emoji_${size}px.tar` } = options;
  if (!existsSync(dirname(resolve(out))))
    throw expected(out, "a file in a folder that exists", "none", `Make ${dirname(resolve(out))} first`);
  requireNew(out, options.force);
  const { classes, ...rest } = await withProgress("making the images", async (say) => {
    const google = await packageOf("google", options.google, say);
    const fluent = await packageOf("fluent", options.fluent, say);
    return await prepareEmoji({ google, fluent, size, out });
  });
  if (options.json) {
    process.stdout.write(`${JSON.stringify({ file: out, size, ...rest, classes }, null, 2)}\n`);
    return;
  }
  for (const [name, count] of Object.entries(classes))
    process.stdout.write(`${name.padEnd(20)} ${String(count).padStart(5)}\n`);
  process.stdout.write(
    `${rest.images} images of ${rest.designs} designs, ${(rest.bytes / 1e6).toFixed(1)} MB: ${out}\n` +
      `train on it: ${rlarCommand(["tokenizer", `data.source=${out}`, `data.size=${size}`, "data.group=([^/_]+)_[^/]*$", "model.preset=VQ-4-small"])}\n`,
  );
}

/** The file of a package: the one given, else the one downloaded before, else a new download. */
async function packageOf(
  which: Which,
  own: string | undefined,
  say: (line: string) => void,
): Promise<string> {
  const { name, version, sha512 } = EMOJI_PACKAGES[which];
  if (own !== undefined) {
    const found = await hashOf(own);
    if (found === sha512) return own;
    throw expected(
      `--${which}`,
      `${name} ${version} as npm packs it`,
      `${own}, another file`,
      `Make it with: npm pack ${name}@${version}`,
    );
  }
  const cache = join(cacheFolder(), "emoji");
  const kept = join(cache, `${which}-${version}.tgz`);
  if (existsSync(kept) && (await hashOf(kept)) === sha512) return kept;
  say(`fetching ${name} ${version}`);
  const remedy = `Check the network and the disk, or make the file elsewhere with npm pack ${name}@${version} and give it as --${which} FILE`;
  // In a temporary folder first: another process may download the same, and an incomplete file never gets the final name.
  let aside: string | undefined;
  try {
    makeFolder(cache);
    aside = await mkdtemp(join(cache, ".fetch-"));
    const problem = await npmPack(`${name}@${version}`, aside);
    const [file] = (await readdir(aside)).filter((one) => one.endsWith(".tgz"));
    if (problem !== undefined || file === undefined)
      throw expected("emoji", `npm to fetch ${name} ${version}`, problem ?? "no file", remedy);
    const found = await hashOf(join(aside, file));
    if (found !== sha512)
      throw expected("emoji", `${name} ${version} with sha512-${sha512}`, `sha512-${found}`, remedy);
    await rename(join(aside, file), kept);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).syscall === undefined) throw error;
    throw expected("emoji", `a folder ${cache} that can be written`, (error as Error).message, remedy);
  } finally {
    if (aside !== undefined) await rm(aside, { recursive: true, force: true });
  }
  return kept;
}

/** Run npm. @returns npm's own message when it fails, else undefined. */
async function npmPack(spec: string, folder: string): Promise<string | undefined> {
  return await new Promise((done) => {
    const npm = spawn("npm", ["pack", spec, "--pack-destination", folder, "--loglevel", "error"], {
      cwd: folder,
      stdio: ["ignore", "ignore", "pipe"],
    });
    let said = "";
    npm.stderr.on("data", (chunk: Buffer) => {
      said += chunk.toString("utf8");
    });
    npm.on("error", (error) => done(`${error.message}`));
    npm.on("close", (code) => {
      if (code === 0) return done(undefined);
      // "npm error code X", "npm error ..." and where its log is.
      const lines = said
        .split("\n")
        .map((line) => line.replace(/^npm (?:error|ERR!)\s*/, "").trim())
        .filter((line) => line !== "" && !/complete log/.test(line));
      done(lines.slice(0, 3).join("; ") || `exit code ${code}`);
    });
  });
}

async function hashOf(path: string): Promise<string> {
  const hash = createHash("sha512");
  try {
    await pipeline(createReadStream(path), hash);
  } catch (error) {
    throw expected(path, "a file that can be read", (error as Error).message);
  }
  return hash.digest("base64");
}

/** The folder where the set-up keeps its downloads. */
function cacheFolder(): string {
  const { RLAR_CACHE, XDG_CACHE_HOME } = process.env;
  if (RLAR_CACHE) return resolve(RLAR_CACHE);
  return join(XDG_CACHE_HOME || join(homedir(), ".cache"), "rl-ar-finetune");
}
