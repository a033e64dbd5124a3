/** Configurations of several commands by one machinery. */
import assert from "node:assert/strict";
import { test } from "node:test";
import * as z from "zod";
import { configJsonSchema, configYaml, explainConfig, plainConfig } from "../../src/config/explain.js";
import { key, liveKey, section } from "../../src/config/key.js";
import { type ConfigKind, configKind } from "../../src/config/kind.js";
import { pretrainKind } from "../../src/config/pretrain.js";
import { ConfigError, resolveConfig } from "../../src/config/resolve.js";
import { trainKind } from "../../src/config/train_kind.js";

const schema = section({
  preset: key(z.string().nullable(), null).describe("Values to start from. Rarely changed."),
  pot: section({
    litres: key(z.number().gt(0), 1, "l").describe("Size of the pot. Raise it for guests."),
    kind: key(z.enum(["green", "black"]), "green").describe("What is in it. As you like."),
  }),
  sugar: key(z.int().min(0), 0).describe("Spoons of sugar. Never."),
  milk: key(z.int().min(0), 0).describe("Spoons of milk. Add it to black tea."),
  extra: key(z.record(z.string(), z.unknown()), {}).describe("Whatever else. Rarely changed."),
  guest: liveKey<object>("a guest", (value) => typeof value === "object").describe(
    "Who drinks it. Pass one.",
  ),
});
type Tea = z.output<typeof schema>;

const tea: ConfigKind<Tea> = configKind<Tea>({
  name: "tea",
  schema,
  presets: { english: { about: "With milk.", values: { pot: { kind: "black" }, milk: 2 } } },
  aliases: { pot: ["pot.kind"], sweetener: ["sugar"] },
  meanings: {
    taste: (value) =>
      value === "sweet"
        ? [
            { path: "sugar", value: 3, rank: "weak" },
            { path: "milk", value: 0, rank: "weak" },
            { path: "pot.litres", value: 5, rank: "default" },
          ]
        : { expected: "sweet" },
  },
  spellings: { "pot.kind": { dark: "black" } },
  problems: ({ milk, pot }, { refuse }) => {
    if (milk > 0 && pot.kind === "green")
      refuse("milk", "0 with green tea", milk, "Use black tea", { milk: 0 });
  },
  missing: ({ guest }, { require }) => require("guest", "a guest", guest !== null),
  notes: ({ sugar }, { isGiven, notes }) => {
    if (isGiven("sugar") && sugar > 2) notes.push("That is sweet.");
  },
  onResume: (path) => (path === "sugar" ? "free" : path === "pot.kind" ? "fixed" : "forced"),
  memory: "Brew less at a time",
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
  // A default gives way to all that is given, and to a preset.
  assert.equal(brew("taste=sweet").config.pot.litres, 5);
  assert.equal(brew("pot.litres=2", "taste=sweet").config.pot.litres, 2);
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
  assert.match(problemsOf("suger=1").join(), /^command line: suger: unknown key.*"sugar"/);
  assert.match(problemsOf("rollout.images=4").join(), /preset, pot, sugar, milk, extra, guest, sweetener/);
  assert.deepEqual(problemsOf("pot.litres=0", "taste=salty"), [
    "command line: taste: expected sweet, got salty.",
    "command line: pot.litres: expected a number above 0 (l), got 0.",
  ]);
  assert.match(problemsOf("milk=1").join(), /^command line: milk: expected 0 with green tea, got 1\./);
  assert.match(problemsOf("preset=french").join(), /preset: expected english or null, got french/);
  assert.match(problemsOf("milk").join(), /expected key=value, got milk.*--for tea/);
  assert.throws(() => resolveConfig({}, tea), /^ConfigError: guest: expected a guest, got nothing\.$/);
});

test("a value of a preset gives way to what the user set", () => {
  const { config, notes } = brew("preset=english", "pot=green");
  assert.equal(config.milk, 0);
  assert.match(notes.join(), /milk is 0 in place of 2 from preset english/);
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
  assert.match(text, /^pot:\n {2}# Size of the pot\..*a number above 0; l.*\n {2}litres: 3$/m);
  assert.match(text, /# the program passed <Map>\nguest: null\n/);
  assert.deepEqual(
    explainConfig("", tea).flatMap(({ path, onResume }) => (onResume === "forced" ? [] : [[path, onResume]])),
    [
      ["pot.kind", "fixed"],
      ["sugar", "free"],
    ],
  );
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
