/** The configuration of `rlar sweep`: a base configuration of `rlar train`, ranges of its keys, and how trials are judged. */
import * as z from "zod";
import { isObject } from "../torch/json.js";
import { key, pathKey, pathsKey, section } from "./key.js";
import { type ConfigKind, configKind } from "./kind.js";
import { atLeast0, count, integer0, positive, record, text } from "./shared.js";
import { trainKind } from "./train_kind.js";

const schema = section({
  preset: key(text.nullable(), null).describe(
    "Values to start from; there are none for this command. Leave it at null.",
  ),
  base: pathKey().describe(
    "Configuration file of rlar train that every trial starts from; the first drawn trial is this file unchanged. Required.",
  ),
  dir: pathKey().describe(
    "Folder of the sweep; null is runs/ and the name of the sweep's file. Name it to keep several sweeps of one file apart.",
  ),
  seed: key(integer0, 0).describe("Seed of the values that trials draw. Change it to draw others."),
  seeds: key(z.array(integer0).min(1).readonly(), [0]).describe(
    "Seeds of each trial's runs, whose numbers are averaged. Give several when the differences between trials are small.",
  ),
  trials: key(count, 16, "trials").describe(
    "Number of trials, the base among them. Raise it with the number of keys.",
  ),
  rungs: key(z.array(count).min(1).readonly(), [8, 16, 32], "steps").describe(
    "Training steps after which trials are evaluated and the worse ones end, ascending; the last is train.iters of all trials. Make the first long enough to tell good trials from bad.",
  ),
  keep: key(z.number().gt(0).lt(1), 0.5).describe(
    "Fraction of the drawn trials that goes on from each rung, rounded up. Lower it to save time, raise it when early rungs mislead.",
  ),
  keys: key(record, {}).describe(
    "Keys of rlar train with their ranges: a list of values, or {range: [low, high]} or {log: [low, high]} (uniform in the logarithm), with integer: true for whole numbers. Give those that you want to choose.",
  ),
  compare: key(record, {}).describe(
    "Trials by name, each with keys of rlar train and their values, in place of drawn ones; {} is the base file unchanged. All of them go through all rungs. Give it, with several seeds, to compare algorithms or settings that you name.",
  ),
  set: key(record, {}).describe(
    "Keys of rlar train with a value for all trials, in place of the base's. Set train.threads here, for example.",
  ),
  average: section({
    runs: key(count, 1, "runs").describe(
      "Runs of each seed whose weights are averaged before they are judged; their seeds are seed * runs and the next ones. Raise it to see what rlar average gains: the compute of a trial grows with it.",
    ),
    scale: key(positive, 1).describe(
      "How far the judged policy is from the base: 1 is the average, 1.5 half as far again, as --scale of rlar average. Raise it together with average.runs, since it enlarges what chance did as well.",
    ),
  }),
  objective: key(z.array(text).min(1).readonly(), ["completion.l2"]).describe(
    "What is to become small: the change of these measures against the base policy in percent, in the judge that sees the least gain, averaged over the measures. A measure is completion.NAME or free.NAME, such as completion.perceptual or free.fd_train.",
  ),
  constraints: key(record, { "completion.fd_train": 0 }).describe(
    "Greatest allowed change of measures against the base policy in percent, in every judge; trials that keep them come first. Fréchet and kernel distances are compared at the same temperature and guidance scale, all others with the base's best. Negative values ask for a gain.",
  ),
  eval: section({
    features: pathsKey().describe(
      "Files of the networks that judge, as --features of rlar eval. Required; give one that learnt elsewhere than the reward's network.",
    ),
    temperatures: key(z.array(positive).min(1).readonly(), [1, 0.8]).describe(
      "Sampling temperatures at which trials and base are evaluated; a trial counts by its best. Add those that you would use.",
    ),
    cfg: key(z.array(atLeast0).min(1).readonly(), [1]).describe(
      "Guidance scales, as --cfg of rlar eval. Add those that you would use.",
    ),
    images: key(count, 256, "images").describe(
      "Maximum number of held-out images that trials are chosen on. rlar eval --chosen-on with this number judges the winner on the others.",
    ),
    samples: key(integer0, 0, "samples").describe(
      "Free samples per setting; 0 draws none. Needed for measures of free samples.",
    ),
    trainImages: key(z.int().min(2), 4096, "images").describe(
      "Maximum number of training images that sets are compared with. Lower it to save time.",
    ),
    prefix: key(integer0.nullable(), null, "codes").describe(
      "Number of given codes of completions; null gives half of them. Set it to rollout.context.length.",
    ),
  }),
});

/** What `rlar sweep` is configured by. */
export type SweepConfig = z.output<typeof schema>;

/** What `rlar sweep` is configured by. */
export const sweepKind: ConfigKind<SweepConfig> = configKind<SweepConfig>({
  name: "sweep",
  schema,
  presets: {},
  moved: (path, value, inFolder) => {
    const [section, ...names] = path.split(".");
    if (section === "set" || section === "keys") return moved(names, value, inFolder);
    if (section !== "compare") return value;
    if (names.length > 0) return moved(names.slice(1), value, inFolder);
    return isObject(value) ? eachOf(value, (keys) => moved([], keys, inFolder)) : value;
  },
  problems: ({ rungs, seeds, compare, keys, trials, keep, eval: { temperatures, cfg, samples } }, found) => {
    const { refuse, isGiven } = found;
    const isAscending = rungs.every((rung, i) => i === 0 || rung > (rungs[i - 1] as number));
    if (!isAscending) refuse("rungs", "steps in ascending order", rungs, "Sort them");
    // An evaluation would refuse these after hours of training, and equal seeds are one run that would count twice.
    for (const [path, values] of Object.entries({
      seeds,
      "eval.temperatures": temperatures,
      "eval.cfg": cfg,
    })) {
      const twice = values.find((value, i) => values.indexOf(value) !== i);
      if (twice !== undefined) refuse(path, "each value once", `${twice} twice`, "Remove one");
    }
    if (samples === 1) refuse("eval.samples", "0 for none, or at least 2", 1, "Raise it");
    if (Object.keys(compare).length === 0) return;
    const remedy = "Remove it, or compare";
    if (Object.keys(keys).length > 0) refuse("keys", "no ranges beside compare", keys, remedy);
    if (isGiven("trials")) refuse("trials", "no number of trials beside compare", trials, remedy);
    if (isGiven("keep")) refuse("keep", "no fraction beside compare, whose trials all go on", keep, remedy);
  },
  missing: ({ base, keys, compare, eval: { features } }, { require }) => {
    require("base", "a configuration file of rlar train", base !== null);
    const hasTrials = Object.keys({ ...keys, ...compare }).length > 0;
    require("keys", "at least one key with a range, or trials in compare", hasTrials);
    require("eval.features", "at least one network that judges", features !== null);
  },
  notes: () => {},
  onResume: (path) => (path === "dir" ? "free" : "fixed"), // there is no --force
  memory: "Lower eval.trainImages, or what the training runs need",
  nameOf: () => "sweep",
});

/** An object with a function of each value under its name. */
const eachOf = (values: object, of: (value: unknown, name: string) => unknown): object =>
  Object.fromEntries(Object.entries(values).map(([name, value]) => [name, of(value, name)]));

/** Values of keys of `rlar train` below `names`, in any of their spellings, with `inFolder` of each path. */
function moved(names: readonly string[], value: unknown, inFolder: (path: unknown) => unknown): unknown {
  const path = trainKind.pathOf(names);
  const isPath = (trainKind.aliases[path] ?? [path]).some((key) => trainKind.keyAt(key)?.isPath === true);
  if (isPath) return inFolder(value);
  return isObject(value)
    ? eachOf(value, (below, name) => moved([...names, ...name.split(".")], below, inFolder))
    : value;
}
