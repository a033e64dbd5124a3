/** Codes of texts against transformers and open_clip. */
import assert from "node:assert/strict";
import { mkdtempSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";

import { type Clean, cleanText, openTextTokenizer } from "../../src/encoders/index.js";
import { readJson } from "../../src/encoders/texts.js";

const ROOT = "test/golden/encoders";

interface Golden {
  readonly texts: readonly string[];
  readonly length: number;
  readonly [key: string]: unknown;
}

function check(folder: string, key: string, options: { clean: Clean; padId?: number }): void {
  const { texts, length, ...golden } = readJson(`${ROOT}/${folder}/golden.json`, "golden codes") as Golden;
  const tokenizer = openTextTokenizer(`${ROOT}/${folder}`, options);
  const codes = tokenizer.encode(texts, length);
  for (const [i, row] of (codes.toList() as number[][]).entries()) {
    assert.deepEqual(row, (golden[key] as number[][])[i], texts[i]);
  }
  codes.dispose();
}

test("CLIP's tokenizer gives the codes of transformers, cut and filled", () => {
  check("clip_tokenizer", "transformers", { clean: "none" });
});

test("CLIP's tokenizer gives the codes of open_clip, which cleans texts and fills with 0", () => {
  check("clip_tokenizer", "open_clip", { clean: "whitespace_lower", padId: 0 });
});

test("Gemma's kind of tokenizer (SigLIP 2, TokLIP) gives its codes, unknown characters as bytes", () => {
  check("gemma_tokenizer", "ids", { clean: "canonical" });
});

test("T5's kind of tokenizer (SigLIP) gives its codes", () => {
  check("t5_tokenizer", "ids", { clean: "canonical" });
});

test("cleaning agrees with open_clip's canonical form", () => {
  const { texts, canonical } = readJson(`${ROOT}/gemma_tokenizer/golden.json`, "golden codes") as Golden;
  assert.deepEqual(
    texts.map((text) => cleanText(text, "canonical")),
    canonical,
  );
  assert.equal(cleanText("A \u201cred\u201d  do\ufb01g_1!", "canonical"), "a red dofig 1");
  assert.equal(cleanText("It's &lt;Fine&gt; &amp;amp; &#65;", "whitespace"), "It's <Fine> & A");
  assert.equal(cleanText("Under_Score, Dot.", "punctuation"), "underscore dot");
  assert.equal(cleanText("Dot. ", "lower"), "dot. ");
});

test("a missing tokenizer, one of another kind and one without padding are refused with a remedy", () => {
  const folder = mkdtempSync(join(tmpdir(), "texts-"));
  assert.throws(
    () => openTextTokenizer(folder, { clean: "none" }),
    /tokenizer\.json: expected the text tokenizer.*published with the weights/,
  );
  const file = join(folder, "tokenizer.json");
  writeFileSync(file, JSON.stringify({ model: { type: "None" } }));
  assert.throws(
    () => openTextTokenizer(file, { clean: "none" }),
    /expected a tokenizer of a kind that is known/,
  );
  writeFileSync(file, "{");
  assert.throws(
    () => openTextTokenizer(file, { clean: "none" }),
    /tokenizer\.json: expected a tokenizer in JSON/,
  );
  const state = readJson(`${ROOT}/gemma_tokenizer/tokenizer.json`, "a tokenizer");
  writeFileSync(file, JSON.stringify(state));
  assert.throws(
    () => openTextTokenizer(file, { clean: "none" }),
    /expected the code that fills short texts, got none.*pad_token/,
  );
});
