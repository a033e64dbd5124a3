/** The speed of this machine for each kind of work, measured for about two seconds with the shapes of a run. */
import { batchNumbers, type TrainConfig } from "../config/resolve.js";
import { Conv2d, Linear, packLinears, Sequential } from "../nn/index.js";
import { type Device, noGrad, rand, synchronize, tidy } from "../torch/index.js";
import type { PlanModels } from "./models.js";
import { type PlanDevice, WORK, type Work } from "./work.js";

/** Units of each kind of work per second. */
export type Rates = Work;

/** Seconds that work takes. */
export const secondsOf = (work: Work, rates: Rates): number =>
  WORK.reduce((sum, name) => sum + work[name] / rates[name], 0);

/** Seconds of each measurement, beside its first, slower run. */
const MEASURED_SECONDS = 0.35;

/** Weights that a product of few rows reads before the first come again, so that none is still in a cache. */
const COLD_BYTES = 2 ** 26;

/** Measure this machine. */
export function measureRates(
  config: TrainConfig,
  { policy, tokenizer }: PlanModels,
  device: Device,
  { isCuda, isNarrow }: PlanDevice,
): Rates {
  const dtype = isNarrow ? "bfloat16" : "float32";
  const { size } = config.data;
  const { images, microBatch: some, guidance } = config.rollout;
  const { sequences, microBatch } = batchNumbers(config);
  const d = Math.max(policy.width, 1);
  const rows = Math.max(
    1,
    sequences * Math.min(1, (some ?? images) / images) * (guidance.scale === 1 ? 1 : 2),
  );
  const positions = Math.min(1024, Math.max(64, microBatch * (size / tokenizer.downsample) ** 2));
  /** Units per second, where one `run` does so many. */
  const rate = (units: number, run: () => void): number => {
    const once = (): void => {
      tidy(run);
      if (isCuda) synchronize(device);
    };
    once();
    const start = performance.now();
    for (let count = 1; ; count++) {
      once();
      const seconds = (performance.now() - start) / 1000;
      if (seconds >= MEASURED_SECONDS) return (units * count) / seconds;
    }
  };
  return noGrad(() =>
    tidy(() => {
      using layer = new Linear(d, 4 * d).to({ device, dtype });
      const count = Math.min(
        4 * Math.max(policy.layers, 1),
        Math.ceil(COLD_BYTES / (4 * d * d * (isNarrow ? 2 : 4))),
      );
      using cold = new Sequential(...Array.from({ length: count }, () => new Linear(d, 4 * d))).to({
        device,
        dtype,
      });
      using _ = !isCuda && d >= 192 && rows >= 4 ? packLinears(cold, { dtype }) : null;
      const { channels } = tokenizer;
      const side = Math.min(size, 64);
      using kernel = new Conv2d(channels, channels, 3, { padding: 1 }).to({ device });
      const many = rand([positions, d], { device }).to({ dtype });
      const few = rand([rows, d], { device }).to({ dtype });
      const maps = rand([8, channels, side, side], { device });
      const large = rand([2 ** 22], { device });
      const small = rand([8], { device });
      return {
        wide: rate(2 * positions * 4 * d * d, () => layer.forward(many)),
        narrow: rate(2 * rows * 4 * d * d * count, () => {
          for (const step of cold.steps) if (step instanceof Linear) step.forward(few);
        }),
        convolution: rate(2 * 9 * channels ** 2 * side ** 2 * 8, () => kernel.forward(maps)),
        traffic: rate(2 * 4 * 2 ** 22, () => large.add_(1)),
        calls: rate(100, () => {
          for (let i = 0; i < 100; i++) small.add(1);
        }),
      };
    }),
  );
}
