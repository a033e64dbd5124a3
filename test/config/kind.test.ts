/** Configurations of several commands by one machinery. */
import assert from "node:assert/strict";
import { test } from "node:test";
import * as z from "zod";
import { configJsonSchema, configYaml, explainConfig, plainConfig } from "../../src/config/explain.js";
import { key, liveKey, section } from "../../src/config/key.js";
import { type ConfigKind, configKind } from "../../src/config/kind.js";
import { pretrainKind } from "../../src/config/pretrain_keys.js";
import { ConfigError, resolveConfig } from "../../src/config/resolve.js";
import { trainKind } from "../../src/config/train_kind.js";

interface Tea {
  readonly preset: string | null;
  readonly pot: { readonly litres: number; readonly kind: string };
  readonly sugar: number;
  readonly milk: number;
  readonly extra: Readonly<Record<string, unknown>>;
  readonly guest: object | null;
}

const tea: ConfigKind<Tea> = configKind<Tea>({
  name: "tea",
  schema: section<Tea>({
    preset: key(z.string().nullable(), null, "values to start from", "Rarely."),
    pot: section<Tea["pot"]>({
      litres: key(z.number().gt(0), 1, "size of the pot", "For guests.", "l"),
      kind: key(z.enum(["green", "black"]), "green", "what is in it", "As you like."),
    }),
    sugar: key(z.int().min(0), 0, "spoons of sugar", "Never."),
    milk: key(z.int().min(0), 0, "spoons of milk", "With black tea."),
    extra: key(z.record(z.string(), z.unknown()), {}, "whatever else", "Rarely."),
    guest: liveKey<object>("a guest", (value) => typeof value === "object", "who drinks it", "Pass one."),
  }),
  presets: { english: { about: "With milk.", values: { pot: { kind: "black" }, milk: 2 } } },
  aliases: { pot: ["pot.kind"], sweetener: ["sugar"] },
  meanings: {
    taste: (value) =>
      value === "sweet"
        ? [
            { path: "sugar", value: 3, isWeak: true },
            { path: "milk", value: 0, isWeak: true },
          ]
        : { expected: "sweet" },
  },
  spellings: { "pot.kind": { dark: "black" } },
  problems: ({ milk, pot }, { whereOf }) =>
    milk > 0 && pot.kind === "green" ? [`${whereOf("milk")}: expected 0 with green tea, got ${milk}.`] : [],
  missing: ({ guest }) => (guest === null ? ["guest: expected a guest, got nobody."] : []),
  notes: ({ sugar }, { isGiven }) => (isGiven("sugar") && sugar > 2 ? ["That is sweet."] : []),
  mayChange: (path) => path === "sugar",
  nameOf: ({ preset }) => preset ?? "plain",
});

const brew = (...overrides: string[]) => resolveConfig({ overrides, isComplete: false }, tea);

test("a kind of one's own is read, with its aliases, spellings, meanings, presets and rules", () => {
  const { config, notes, kind } = brew("pot=dark", "pot.litres=2", "sweetener=4", "extra.lemon=1");
  assert.equal(kind, tea);
  assert.deepEqual(config, {
    preset: null,
    pot: { litres: 2, kind: "black" },
    sugar: 4,
    milk: 0,
    extra: { lemon: 1 },
    guest: null,
  });
  assert.ok(Object.isFrozen(config) && Object.isFrozen(config.pot));
  assert.deepEqual(notes, ["That is sweet."]);
  assert.equal(brew("preset=english").config.milk, 2);
  // A meaning gives way to what is given under the key itself, before it or after.
  assert.deepEqual([brew("taste=sweet").config.sugar, brew("taste=sweet").config.milk], [3, 0]);
  assert.equal(brew("taste=sweet", "sugar=1").config.sugar, 1);
  assert.equal(brew("sugar=1", "taste=sweet").config.sugar, 1);
  const guest = { name: "Ada" };
  assert.equal(resolveConfig({ values: { guest } }, tea).config.guest, guest);
});

test("its problems are in its own words", () => {
  const problemsOf = (...overrides: string[]): readonly string[] => {
    try {
      brew(...overrides);
    } catch (error) {
      assert.ok(error instanceof ConfigError);
      return error.problems;
    }
    return [];
  };
  assert.deepEqual(problemsOf("suger=1"), ['command line: suger: unknown key. Did you mean "sugar"?']);
  assert.deepEqual(problemsOf("rollout.images=4"), [
    "command line: rollout.images: unknown key. Keys are preset, pot, sugar, milk, extra, guest, sweetener.",
  ]);
  assert.deepEqual(problemsOf("pot.litres=0", "taste=salty"), [
    "command line: taste: expected sweet, got salty.",
    "command line: pot.litres: expected a number above 0 (l), got 0.",
  ]);
  assert.deepEqual(problemsOf("milk=1"), ["command line: milk: expected 0 with green tea, got 1."]);
  assert.deepEqual(problemsOf("preset=french"), [
    "command line: preset: expected english or null, got french.",
  ]);
  assert.deepEqual(problemsOf("milk"), [
    "command line: expected key=value, got milk. rlar config explain --for tea lists the keys.",
  ]);
  assert.throws(() => resolveConfig({}, tea), /^ConfigError: guest: expected a guest, got nobody\.$/);
});

test("its keys are explained, written down and read back", () => {
  assert.deepEqual(
    explainConfig("pot", tea).map(({ path, aliases }) => [path, aliases]),
    [
      ["pot.litres", []],
      ["pot.kind", []],
    ],
  );
  assert.deepEqual(explainConfig("sugar", tea)[0]?.aliases, ["sweetener"]);
  assert.deepEqual(explainConfig("rollout", tea), []);
  const { config } = resolveConfig({ values: { guest: new Map(), pot: { litres: 3 } } }, tea);
  assert.equal(plainConfig(config, tea).guest, "<Map>");
  const text = configYaml(config, { comments: true, kind: tea });
  assert.match(text, /^pot:\n {2}# size of the pot \(a number above 0; l\)\n {2}litres: 3$/m);
  assert.match(text, /# the program passed <Map>\nguest: null\n/);
  const again = resolveConfig({ text, isComplete: false }, tea).config;
  assert.deepEqual(again, { ...config, guest: null });
  const schema = configJsonSchema(tea) as { title: string; properties: object };
  assert.equal(schema.title, "Configuration of rl-ar-finetune: rlar tea");
  assert.deepEqual(Object.keys(schema.properties), ["preset", "pot", "sugar", "milk", "extra"]);
});

test("the commands' kinds do not mix", () => {
  const train = resolveConfig({ isComplete: false });
  assert.equal(train.kind, trainKind);
  assert.throws(
    () => resolveConfig({ overrides: ["pretrain.noise=0.5"], isComplete: false }),
    /command line: pretrain\.noise: unknown key/,
  );
  assert.throws(
    () => resolveConfig({ overrides: ["rollout.images=4"], isComplete: false }, pretrainKind),
    /command line: rollout\.images: unknown key/,
  );
});
