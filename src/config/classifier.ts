/** The configuration of `rlar classifier`: its own keys and defaults, and rules between keys. */
import * as z from "zod";
import { fitKind, fitSchema } from "./fit.js";
import { key, section } from "./key.js";
import type { ConfigKind } from "./kind.js";
import { count, integer0, unit } from "./shared.js";

const schema = fitSchema(
  {
    classifier: section({
      widths: key(
        z.array(z.int().min(8).multipleOf(8)).min(2).readonly().describe("two or more multiples of 8"),
        [32, 48, 96, 128],
        "channels",
      ).describe(
        "Channels at full resolution and after each halving of the resolution; the last is the number of features. Add one number for images of 64 px and more; raise the numbers when the training loss stays high.",
      ),
      depth: key(count, 1, "blocks").describe(
        "Residual blocks after each halving of the resolution. Raise it on a GPU when the training loss stays high.",
      ),
      labelSmoothing: key(unit, 0.1).describe(
        "Label smoothing: fraction of the target that is spread over all classes. Lower it when the predicted probabilities matter.",
      ),
      shift: key(integer0, 2, "px").describe(
        "Augmentation: maximum translation in each direction. Raise it with the size of the images; set 0 if the class depends on the position in the image.",
      ),
      jitter: key(unit, 0.1).describe(
        "Augmentation: maximum change of brightness, contrast and saturation, as a fraction. Set 0 if classes differ only in color.",
      ),
      erase: key(unit, 0.4).describe(
        "Augmentation: maximum side of the square that is erased from half of the images, as a fraction of the image's side. Lower it when the training loss stays high.",
      ),
    }),
  },
  {
    epochs: 30,
    batch: 64,
    lr: 2e-3,
    betas: [0.9, 0.99],
    weightDecay: 0.05,
    ema: 0.998,
    best: "eval/accuracy",
    mode: "max",
  },
);

/** What `rlar classifier` is configured by. */
export type ClassifierTrainConfig = z.output<typeof schema>;

/** Largest images that the default widths are made for, in pixels. */
const LARGEST = 96;

/** What `rlar classifier` is configured by. */
export const classifierKind: ConfigKind<ClassifierTrainConfig> = fitKind<ClassifierTrainConfig>({
  name: "classifier",
  schema,
  memory: "Lower train.batch, data.size or classifier.widths",
  metrics: () => ({ "eval/accuracy": "max", "eval/balanced_accuracy": "max", "eval/loss": "min" }),
  notes: ({ data: { size }, classifier: { widths } }, { notes }) => {
    if (size <= LARGEST || widths.length >= 5) return;
    notes.push(
      `data.size is ${size}: the classifier is made for images of 28 to 64 px and is slow on larger ones. ` +
        "Set data.size=64, or add to classifier.widths.",
    );
  },
});
