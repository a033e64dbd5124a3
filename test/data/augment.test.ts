import assert from "node:assert/strict";
import { test } from "node:test";

import { type AugmentOptions, augment } from "../../src/data/index.js";
import {
  arange,
  Generator,
  rand,
  setNumThreads,
  stream,
  type Tensor,
  tidy,
  zeros,
} from "../../src/torch/index.js";
import { expectClose } from "../support/close.js";
import { noLeak } from "../support/leak.js";

setNumThreads(1);

/** `[n, 3, 6, 5]` in [-1, 1], no two values of an image the same. */
const ramps = (n: number): Tensor =>
  tidy(() => arange(0, 90, 1, { dtype: "float32" }).div(45).sub(1).view(1, 3, 6, 5).repeat(n, 1, 1, 1));

function varied(images: Tensor, options: AugmentOptions, seed = 0): Tensor {
  using generator = stream(seed, "augment", 0);
  return augment(images, options, generator);
}

test("nothing asked for is a copy", () => {
  const images = ramps(2);
  const copy = varied(images, {});
  expectClose(copy, images, { rtol: 0, atol: 0 });
  copy.fill_(0);
  assert.equal(images.select(0, 0).select(0, 0).select(0, 0).select(0, 0).item(), -1);
});

test("a shift moves an image whole by up to that many pixels each way and repeats its border", () => {
  const images = ramps(200);
  const moved = varied(images, { shift: 2 });
  const seen = new Set<string>();
  for (const [n, image] of moved.unbind(0).entries()) {
    const [channel, original] = [image.select(0, 0).toList(), images.select(0, n).select(0, 0).toList()] as [
      number[][],
      number[][],
    ];
    const clamp = (value: number, most: number): number => Math.max(0, Math.min(most, value));
    const fits = (dy: number, dx: number): boolean =>
      channel.every((row, y) =>
        row.every((value, x) => value === original[clamp(y + dy, 5)]?.[clamp(x + dx, 4)]),
      );
    const moves = [-2, -1, 0, 1, 2].flatMap((dy) => [-2, -1, 0, 1, 2].map((dx) => [dy, dx] as const));
    const found = moves.filter(([dy, dx]) => fits(dy, dx));
    assert.equal(found.length, 1, `image ${n}`);
    seen.add(String(found[0]));
  }
  assert.equal(seen.size, 25); // each of 25 moves is missed by 200 draws with probability 0.0003
});

test("jitter by hand: saturation about grey, contrast about the mean, brightness added, in [-1, 1]", () => {
  const images = rand([3, 3, 4, 4]).mul(2).sub(1);
  const jitter = 0.3;
  using generator = stream(0, "augment", 0);
  const draws = rand([3, 3], { generator })
    .mul(2 * jitter)
    .sub(jitter)
    .toList() as number[][];
  const wanted = images.unbind(0).map((image, n) => {
    const [brightness, contrast, saturation] = draws[n] as [number, number, number];
    const grey = image.mean(0, { keepdim: true });
    const coloured = grey.add(image.sub(grey).mul(1 + saturation));
    const mean = image.mean();
    return mean
      .add(coloured.sub(mean).mul(1 + contrast))
      .add(brightness)
      .clamp(-1, 1);
  });
  for (const [n, image] of varied(images, { jitter }).unbind(0).entries()) {
    expectClose(image, wanted[n] as Tensor, { rtol: 1e-5, atol: 1e-6, where: `image ${n}` });
  }
});

test("erase blanks a square in about half of the images, no larger than asked for", () => {
  const images = zeros([400, 3, 16, 16]).add(1);
  const blanked = varied(images, { erase: 0.5 }).eq(0); // [400, 3, 16, 16]
  const areas = blanked.select(1, 0).sum([1, 2]).toList() as number[];
  const rows = blanked.select(1, 0).any(2).sum(1).toList() as number[];
  const columns = blanked.select(1, 0).any(1).sum(1).toList() as number[];
  for (const [n, area] of areas.entries()) {
    assert.equal(area, (rows[n] as number) * (columns[n] as number), "a rectangle");
    assert.ok((rows[n] as number) <= 8 && (columns[n] as number) <= 8);
  }
  const share = areas.filter((area) => area > 0).length / 400;
  assert.ok(share > 0.4 && share < 0.55, `${share}`);
  assert.ok(areas.some((area) => area > 36));
  assert.ok(blanked.select(1, 0).equal(blanked.select(1, 2)), "all colours alike");
});

test("draws follow from the generator, are the image's own, and leave nothing behind", () => {
  const images = rand([8, 3, 16, 16]).mul(2).sub(1);
  const all = { shift: 2, jitter: 0.2, erase: 0.5 };
  const first = varied(images, all);
  expectClose(varied(images, all), first, { rtol: 0, atol: 0 });
  assert.ok(!varied(images, all, 1).equal(first));
  assert.ok(first.amin().item() >= -1 && first.amax().item() <= 1);
  const same = varied(images.narrow(0, 0, 1).repeat(8, 1, 1, 1), all);
  assert.ok(!same.narrow(0, 0, 1).equal(same.narrow(0, 1, 1)));
  noLeak(() => varied(images, all).dispose());
});

test("options out of range are refused", () => {
  using generator = new Generator(0);
  const refused = (options: AugmentOptions, message: string): void => {
    assert.throws(() => augment(zeros([1, 3, 4, 4]), options, generator), { name: "RangeError", message });
  };
  refused({ shift: 1.5 }, "augment: shift: expected whole pixels from 0, got 1.5.");
  refused({ jitter: -0.1 }, "augment: jitter: expected a number in [0, 1], got -0.1.");
  refused({ erase: Number.NaN }, "augment: erase: expected a number in [0, 1], got NaN.");
});
