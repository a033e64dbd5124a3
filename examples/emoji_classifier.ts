/**
 * Train a two-layer network to tell the category of an emoji from its 16 x 16 pixels: 1,538 Noto emoji, nine
 * categories, a tenth of them held out. With the same seed PyTorch's losses are the same
 * (test/nn/emoji_classifier.test.ts).
 *
 *   npm run build && node dist/examples/emoji_classifier.js
 */
import { fileURLToPath } from "node:url";
import { AdamW, clipGradNorm, Linear, Sequential, schedules } from "../src/nn/index.js";
import {
  functional as F,
  loadSafetensors,
  manualSeed,
  noGrad,
  randperm,
  setNumThreads,
  type Tensor,
  tidy,
} from "../src/torch/index.js";

const DATA = fileURLToPath(new URL("../../test/fixtures/emoji_16px.safetensors", import.meta.url));
const BATCH = 64;
const HELD_OUT = 154;

export interface EmojiRun {
  /** Cross-entropy of each batch, nats. */
  losses: number[];
  /** Part of the held-out emoji whose category is found. */
  accuracy: number;
  categories: string[];
}

/** The whole experiment; `onEpoch` is told the mean loss of each pass over the data. */
export function trainEmojiClassifier(
  options: { seed?: number; epochs?: number; onEpoch?: (epoch: number, loss: number) => void } = {},
): EmojiRun {
  const { seed = 0, epochs = 20, onEpoch } = options;
  return tidy(() => {
    const { tensors, metadata } = loadSafetensors(DATA);
    const categories = JSON.parse(metadata.categories as string) as string[];
    const images = (tensors.images as Tensor).float().div(127.5).sub(1).flatten(1); // [N, 768] in [-1, 1]
    const labels = tensors.labels as Tensor;

    manualSeed(seed);
    const order = randperm(images.size(0));
    const trainCount = images.size(0) - HELD_OUT;
    const train = order.narrow(0, 0, trainCount);
    const heldOut = order.narrow(0, trainCount, HELD_OUT);

    using model = new Sequential(new Linear(768, 128), (x) => x.gelu(), new Linear(128, categories.length));
    using optimizer = new AdamW(model.namedParameters(), { lr: 2e-3, weightDecay: 0.05 });
    const total = epochs * Math.ceil(trainCount / BATCH);
    const schedule = schedules.cosine({ total, warmup: 20, final: 0.05 });

    const losses: number[] = [];
    for (let epoch = 0; epoch < epochs; epoch++) {
      const before = losses.length;
      tidy(() => {
        for (const indices of train.indexSelect(0, randperm(trainCount)).split(BATCH)) {
          tidy(() => {
            const logits = model.forward(images.indexSelect(0, indices)); // [64, 9]
            const loss = F.crossEntropy(logits, labels.indexSelect(0, indices));
            optimizer.zeroGrad();
            loss.backward();
            clipGradNorm(model.parameters(), 1);
            optimizer.step({ lrFactor: schedule(losses.length) });
            losses.push(loss.item());
          });
        }
      });
      const ofEpoch = losses.slice(before);
      onEpoch?.(epoch, ofEpoch.reduce((sum, loss) => sum + loss, 0) / ofEpoch.length);
    }

    const accuracy = noGrad(() => {
      const guess = model.forward(images.indexSelect(0, heldOut)).argmax(1);
      return guess.eq(labels.indexSelect(0, heldOut)).float().mean().item();
    });
    return { losses, accuracy, categories };
  });
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  setNumThreads(1); // so small a network is done before a second thread has woken up
  const { accuracy, categories } = trainEmojiClassifier({
    onEpoch: (epoch, loss) => console.log(`epoch ${String(epoch + 1).padStart(2)}  loss ${loss.toFixed(3)}`),
  });
  const percent = (100 * accuracy).toFixed(1);
  console.log(`held-out accuracy ${percent} % over ${categories.length} categories`);
}
