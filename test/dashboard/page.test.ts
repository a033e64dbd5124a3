import assert from "node:assert/strict";
import { test } from "node:test";
import { dataElement, html, raw, table } from "../../src/dashboard/page.js";

test("text is escaped, templates in templates are not", () => {
  const name = `<img src=x onerror="alert('1')"> & co`;
  const escaped = "&lt;img src=x onerror=&quot;alert(&#39;1&#39;)&quot;&gt; &amp; co";
  assert.equal(html`<p title="${name}">${name}</p>`.markup, `<p title="${escaped}">${escaped}</p>`);
  assert.equal(
    html`<ul>${[1, "<"].map((item) => html`<li>${item}</li>`)}</ul>`.markup,
    "<ul><li>1</li><li>&lt;</li></ul>",
  );
  assert.equal(html`a${null}${undefined}${false}${raw("<b>")}`.markup, "a<b>");
});

test("data cannot end its element", () => {
  const { markup } = dataElement({ name: "</script><script>alert(1)</script>" });
  assert.equal(markup.match(/<\/script>/g)?.length, 1);
  const text = markup.replace(/^<script type="application\/json">|<\/script>$/g, "");
  assert.deepEqual(JSON.parse(text), { name: "</script><script>alert(1)</script>" });
});

test("a table names its rows", () => {
  assert.equal(
    table(["", "x"], [["a", 1]]).markup,
    '<div class="scroll"><table><thead><tr><th scope="col"></th><th scope="col">x</th></tr></thead><tbody><tr><th scope="row">a</th><td>1</td></tr></tbody></table></div>',
  );
});
