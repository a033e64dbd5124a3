import assert from "node:assert/strict";
import { test } from "node:test";
import { trainEmojiClassifier } from "../../examples/emoji_classifier.js";
import { setNumThreads, type Tensor } from "../../src/torch/index.js";
import { expectClose } from "../support/close.js";
import { noLeak } from "../support/leak.js";
import { golden } from "./golden.js";

setNumThreads(1); // test files run side by side, and so small a network gains nothing from threads

test("training on real images gives PyTorch's losses, batch after batch", () => {
  const wanted = golden("emoji");
  const epochs: number[] = [];
  const run = noLeak(() =>
    trainEmojiClassifier({ seed: 0, epochs: 10, onEpoch: (_, loss) => epochs.push(loss) }),
  );
  const losses = wanted.losses as Tensor;
  assert.equal(run.losses.length, losses.numel);
  const first = (count: number): [number[], Tensor] => [
    run.losses.slice(0, count),
    losses.narrow(0, 0, count),
  ];
  expectClose(...first(20), { rtol: 1e-6, atol: 0, where: "first 20 losses" });
  expectClose(...first(losses.numel), { rtol: 1e-5, atol: 0, where: "all losses" });
  expectClose(run.accuracy, (wanted.accuracy as Tensor).item(), { rtol: 0, atol: 0.01 });
  assert.equal(epochs.length, 10);
  assert.equal(run.categories.length, 9);
});
