/**
 * Makes the images that the outside judge of the demo learns from: clip art of Debian's package openclipart-png, which is in
 * the public domain, as one WebDataset tar. A class is a folder of the package. Pictures of smileys are omitted, so that no
 * image looks like those that the judge is to measure.
 *
 *   apt-get download openclipart-png && dpkg-deb --extract openclipart-png_*.deb clipart
 *   node scripts/clipart.mjs clipart/usr/share/openclipart/png clipart_32px.tar
 */
import { createHash } from "node:crypto";
import { readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";

import sharp from "sharp";
import { pack } from "tar-stream";

const [folder, out, side = "32"] = process.argv.slice(2);
if (folder === undefined || out === undefined) {
  console.error("usage: node scripts/clipart.mjs FOLDER_OF_PNGS OUT.tar [PIXELS]");
  process.exit(2);
}
const size = Number(side);

/** Folders without a subject, and what looks like an emoji. */
const OMITTED = /^(unsorted|special|logos|buttons)\/|smil|emot|face|avatar/i;
/** A folder with fewer images is no class. A folder with more, such as 1,378 stars, is thinned out. */
const LEAST = 24;
const MOST = 200;

const files = readdirSync(folder, { recursive: true })
  .filter((file) => file.endsWith(".png") && !OMITTED.test(file))
  .sort();
/** Files by class: the first two folders, or the first alone where the two hold too few images. */
const byPart = (parts, some) => {
  const found = new Map();
  for (const file of some) {
    const name = file.split("/").slice(0, -1).slice(0, parts).join("-");
    found.set(name, [...(found.get(name) ?? []), file]);
  }
  return found;
};
const narrow = [...byPart(2, files)].filter(([, some]) => some.length >= LEAST);
const used = new Set(narrow.flatMap(([, some]) => some));
const wide = [
  ...byPart(
    1,
    files.filter((file) => !used.has(file)),
  ),
].filter(([, some]) => some.length >= LEAST);
const classes = new Map();
for (const [name, some] of [...narrow, ...wide].sort(([a], [b]) => (a < b ? -1 : 1)))
  classes.set(name, [...(classes.get(name) ?? []), ...some]);

const tar = pack();
const chunks = [];
tar.on("data", (chunk) => chunks.push(chunk));
const seen = new Set();
const counts = {};
for (const [name, some] of classes) {
  const step = Math.max(1, some.length / MOST);
  const chosen = Array.from({ length: Math.floor(some.length / step) }, (_, i) => some[Math.floor(i * step)]);
  for (const file of chosen) {
    const white = { r: 255, g: 255, b: 255 };
    let bytes;
    try {
      bytes = await sharp(join(folder, file), { limitInputPixels: false })
        .flatten({ background: white })
        .resize(size, size, { fit: "contain", background: white })
        .toColourspace("srgb")
        .webp({ lossless: true, effort: 4 })
        .toBuffer();
    } catch (error) {
      console.error(`${file}: not read: ${error.message}`);
      continue;
    }
    const hash = createHash("sha256").update(bytes).digest("hex");
    if (seen.has(hash)) continue;
    seen.add(hash);
    counts[name] = (counts[name] ?? 0) + 1;
    const member = `${name}/${file
      .replaceAll("/", "-")
      .replace(/\.png$/, "")
      .replace(/[^\w-]+/g, "_")}.webp`;
    tar.entry({ name: member, mode: 0o644, mtime: new Date(0) }, bytes);
  }
}
tar.finalize();
await new Promise((resolve) => tar.once("end", resolve));
writeFileSync(out, Buffer.concat(chunks));
console.log(counts, `${seen.size} images of ${Object.keys(counts).length} classes: ${out}`);
