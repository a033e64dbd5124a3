// What npm would publish: small, whole, and free of imports that an installed package cannot serve.
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { isBuiltin } from "node:module";
import { dirname, join, posix } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

const root = dirname(dirname(dirname(fileURLToPath(import.meta.url))));
const { dependencies, imports } = JSON.parse(readFileSync(join(root, "package.json"), "utf8"));
const options = ["pack", "--dry-run", "--json", "--ignore-scripts"];
const { stdout } = spawnSync("npm", options, { cwd: root, encoding: "utf8" });
const [{ size, files }] = Object.values(JSON.parse(stdout));
const paths = new Set(files.map(({ path }) => path));

test("the tarball is small and holds no test, golden or weights of the demo", () => {
  assert.ok(size < 5e6, `${size} bytes`);
  const odd = [...paths].filter((path) => /(^|\/)test\/|golden|\.tar$|^models\/.*\.safetensors$/.test(path));
  assert.deepEqual(odd, []);
});

test("it holds what package.json names and what set-up needs", () => {
  const needed = [
    "dist/src/index.js",
    "dist/src/index.d.ts",
    "scripts/rlar.mjs",
    "native/addon.cc",
    "LICENSE",
  ];
  for (const path of [...needed, "README.md", "scripts/setup/ready.mjs", "dist/src/cli/main.js"]) {
    assert.ok(paths.has(path), path);
  }
  for (const file of ["lpips_heads.safetensors", "LICENSE"])
    assert.ok(paths.has(`src/metrics/weights/${file}`), file);
});

test("every import is of a file in it, of Node, or of a dependency that npm installs with it", () => {
  const problems = [];
  for (const path of paths) {
    if (!/\.(m?js)$/.test(path)) continue;
    const code = readFileSync(join(root, path), "utf8").replace(/^[ \t]*(\/\*[\s\S]*?\*\/|\/\/.*)/gm, "");
    for (const [, fixed, dynamic] of code.matchAll(
      /^(?:import|export)\s(?:[^;"'`]*?\sfrom\s+)?"([^"]+)";|\bimport\("([^"]+)"\)/gm,
    )) {
      const name = fixed ?? dynamic;
      if (name.startsWith("#")) {
        const target = imports[name]?.default ?? imports[name];
        if (!paths.has(target?.replace(/^\.\//, ""))) problems.push(`${path}: ${name}`);
        continue;
      }
      if (name.startsWith(".")) {
        if (!paths.has(posix.join(posix.dirname(path), name))) problems.push(`${path}: ${name}`);
      } else if (!isBuiltin(name) && dependencies[name.match(/^(@[^/]+\/)?[^/]+/)[0]] === undefined) {
        problems.push(`${path}: ${name}`);
      }
    }
  }
  assert.deepEqual(problems, []);
});
