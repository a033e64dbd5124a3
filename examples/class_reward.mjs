/**
 * An example of a reward module: the log-probability that a classifier gives the class of each sample, in nats. It does
 * not compare samples with images.
 *
 *   CLASSIFIER=models/emoji_32px/classifier.safetensors npm run rlar -- train models/emoji_32px/completion.yaml \
 *       reward.custom.class.module=examples/class_reward.mjs reward.l2.weight=0 reward.perceptual.weight=0 \
 *       reward.credit=sequence
 *
 * CLASSIFIER is a file of rlar classifier whose classes are those of the data.
 */
import { openClassifier, torch } from "rl-ar-finetune";

const path = process.env.CLASSIFIER;
if (!path)
  throw new Error("expected a classifier's file in the environment variable CLASSIFIER, got nothing");
const classifier = openClassifier(path);

/** float `[B * G]`: log p(class | sample). */
export default function logProbability(_images, samples, { classIds, numGenerations }) {
  if (classIds === null) throw new Error("expected data with classes");
  return torch.tidy(() => {
    const classes = torch.tensor(classIds, { dtype: "int64" }).repeatInterleave(numGenerations); // [B * G]
    const logProbabilities = classifier.logits(samples).logSoftmax(1); // [B * G, K]
    return logProbabilities.gather(1, classes.unsqueeze(1)).squeeze(1);
  });
}
