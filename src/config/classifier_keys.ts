/** Keys of `rlar classifier`: what they are, their defaults, and what they ask of each other. */
import * as z from "zod";
import { type FitConfig, fitKind } from "./fit_keys.js";
import { key, section } from "./key.js";
import type { ConfigKind } from "./kind.js";

/** The network, and how its images are varied. */
export interface ClassifierSection {
  readonly widths: readonly number[];
  readonly depth: number;
  readonly labelSmoothing: number;
  readonly shift: number;
  readonly jitter: number;
  readonly erase: number;
}

/** What `rlar classifier` is configured by. */
export interface ClassifierTrainConfig extends FitConfig {
  readonly classifier: ClassifierSection;
}

const part = z.number().min(0).max(1);

const classifier: z.ZodType<ClassifierSection> = section<ClassifierSection>({
  widths: key(
    z.array(z.int().min(8).multipleOf(8)).min(2).describe("two or more multiples of 8"),
    [32, 48, 96, 128],
    "channels at the images' own size and at each halving of it; the last is the number of features",
    "Add one for images of 64 px and more; widen it when the training loss stays high.",
  ),
  depth: key(
    z.int().min(1),
    1,
    "residual blocks after each halving",
    "Raise it when the training loss stays high, and there is a GPU.",
    "blocks",
  ),
  labelSmoothing: key(
    part,
    0.1,
    "part of the target that is spread over all classes",
    "Lower it when probabilities are to be taken at their word.",
  ),
  shift: key(
    z.int().min(0),
    2,
    "most pixels that a training image is moved each way",
    "Raise it with the size of the images; 0 where the place in the image tells the class.",
    "px",
  ),
  jitter: key(
    part,
    0.1,
    "how much brightness, contrast and saturation of training images vary, as a part of the range",
    "0 where colours tell the classes.",
  ),
  erase: key(
    part,
    0.4,
    "largest side of the square that is blanked in half of the training images, as a part of the image's",
    "Lower it when the training loss stays high.",
  ),
});

/** Largest images that the usual widths are made for. */
const LARGEST = 96;

/** What `rlar classifier` is configured by. */
export const classifierKind: ConfigKind<ClassifierTrainConfig> = fitKind<ClassifierTrainConfig>({
  name: "classifier",
  defaults: {
    epochs: 30,
    batch: 64,
    lr: 2e-3,
    betas: [0.9, 0.99],
    weightDecay: 0.05,
    ema: 0.998,
    best: "eval/accuracy",
    mode: "max",
  },
  own: { classifier },
  notes: ({ data: { size }, classifier: { widths } }) =>
    size > LARGEST && widths.length < 5
      ? [
          `data.size is ${size}: the classifier is made for images of 28 to 64 px, and is slow on larger ones. ` +
            "Set data.size=64, or add to classifier.widths.",
        ]
      : [],
});
