/** What the tests of the metrics share: golden images, weighted sums and finite differences. */
import assert from "node:assert/strict";
import { FeatureClassifier } from "../../src/metrics/index.js";
import { arange, loadSafetensors, noGrad, setNumThreads, type Tensor, tidy } from "../../src/torch/index.js";

// These tensors are small: threads that wait for each other on a busy machine take longer than one alone.
setNumThreads(1);

/** Samples an image in the golden files. */
export const G = 2;

/** Read a golden file; asking for a tensor that it has not is an error. */
export function goldens(name: string): (key: string) => Tensor {
  const { tensors } = loadSafetensors(`test/golden/metrics/${name}.safetensors`);
  return (key) => {
    const tensor = tensors[key];
    assert.ok(tensor, key);
    return tensor;
  };
}

/** Two images `[2, 3, 48, 40]` and two samples of each `[4, 3, 48, 40]`, the first near and the second far. */
export function goldenImages(): { images: Tensor; samples: Tensor } {
  const golden = goldens("pixel");
  const signed = (bytes: Tensor): Tensor => tidy(() => bytes.float().div(127.5).sub(1));
  return { images: signed(golden("images")), samples: signed(golden("samples")) };
}

/** The classifier of the golden file, with a graph to its weights. */
export function goldenClassifier(): FeatureClassifier {
  const { tensors } = loadSafetensors("test/golden/metrics/classifier.safetensors");
  const network = new FeatureClassifier({ numClasses: 5, widths: [8, 16, 8], depth: 2 });
  const own = Object.entries(tensors).filter(([name]) => name.startsWith("weights."));
  network.loadStateDict(
    Object.fromEntries(own.map(([name, value]) => [name.slice("weights.".length), value])),
  );
  return network;
}

/** `sum_n (n + 1) values[n]`, whose gradient tells the values apart. */
export function weighted(values: Tensor): Tensor {
  return tidy(() => values.mul(arange(1, values.size(0) + 1)).sum());
}

/** Every second row and column of images. */
export function thinned(x: Tensor): Tensor {
  return x.slice(2, null, null, 2).slice(3, null, null, 2).contiguous();
}

/** Gradient of `weighted(fn(x))`. */
export function gradientOf(fn: (x: Tensor) => Tensor, x: Tensor): Tensor {
  return tidy(() => {
    const leaf = x.detach().clone().requiresGrad_();
    weighted(fn(leaf)).backward();
    assert.ok(leaf.grad);
    return leaf.grad;
  });
}

/** Central differences of `weighted(fn(x))` at some elements of a float64 x, and its gradient there. */
export function differences(
  fn: (x: Tensor) => Tensor,
  x: Tensor,
  count: number,
): { analytic: number[]; numeric: number[] } {
  const step = 1e-6;
  const gradient = gradientOf(fn, x).flatten();
  const indices = Array.from({ length: count }, (_, i) => Math.floor(((i + 0.37) * x.numel) / count));
  const numeric = indices.map((i) =>
    noGrad(() =>
      tidy(() => {
        const at = (delta: number): number => {
          const moved = x.clone();
          moved.flatten().narrow(0, i, 1).add_(delta);
          return weighted(fn(moved)).item();
        };
        return (at(step) - at(-step)) / (2 * step);
      }),
    ),
  );
  return { analytic: indices.map((i) => gradient.select(0, i).item()), numeric };
}
