/** Layers, optimizer, average and packed weights on the meta device: what works there runs on a GPU. */
import assert from "node:assert/strict";
import { test } from "node:test";

import {
  AdamW,
  BatchNorm2d,
  Conv2d,
  clipGradNorm,
  Dropout,
  Ema,
  Embedding,
  GroupNorm,
  LayerNorm,
  Linear,
  Module,
  packLinears,
  RMSNorm,
  Sequential,
  schedules,
} from "../../src/nn/index.js";
import { functional as F, memory, noGrad, ones, type Tensor, tidy, zeros } from "../../src/torch/index.js";
import { noLeak } from "../support/leak.js";
import { onMeta, toMeta } from "../support/meta.js";

class Net extends Module {
  readonly table = new Embedding(5, 8);
  readonly convolutions = new Sequential(
    new Conv2d(1, 4, 3, { padding: 1 }),
    new BatchNorm2d(4),
    new GroupNorm(2, 4),
    (x) => x.silu(),
    new Dropout(0.1),
  );
  readonly norm = new LayerNorm(8);
  readonly last = new RMSNorm(8);
  readonly head = new Linear(8, 5, { bias: false });

  forward(index: Tensor): Tensor {
    const x = this.table.forward(index).unsqueeze(1); // [B, 1, T, 8]
    const y = this.convolutions.forward(x).mean(1); // [B, T, 8]
    return this.head.forward(this.last.forward(this.norm.forward(y)));
  }
}

const index = zeros([2, 3], { dtype: "int64" });
const isOnMeta = (tensors: Iterable<Tensor>): void => {
  for (const tensor of tensors) assert.equal(tensor.device, "meta");
};

test("a network moved to meta trains there: forward, backward, clipping, AdamW, EMA, schedules", () => {
  noLeak(() =>
    tidy(() => {
      const net = onMeta(new Net());
      isOnMeta([...net.parameters(), ...net.buffers()]);
      for (const fused of [true, false]) {
        using optimizer = new AdamW(net.namedParameters(), { fused });
        using ema = new Ema(net);
        const schedule = schedules.cosine({ total: 4 });
        for (let step = 0; step < 2; step++) {
          const logits = net.forward(toMeta(index));
          assert.deepEqual([logits.device, logits.shape], ["meta", [2, 3, 5]]);
          F.crossEntropy(logits.flatten(0, 1), toMeta(index).flatten()).backward();
          isOnMeta(net.parameters().map(({ grad }) => grad as Tensor));
          assert.equal(clipGradNorm(net.parameters(), 1), 0); // no values, so no norm
          optimizer.step({ lrFactor: schedule(step) });
          optimizer.zeroGrad();
          ema.update();
        }
        ema.withAverage(() => noGrad(() => net.eval().forward(toMeta(index))));
        net.train();
        isOnMeta(Object.values(optimizer.stateDict().tensors));
        const { tensors } = ema.stateDict();
        isOnMeta(Object.values(tensors));
        ema.loadStateDict({ tensors, updates: 1 });
        optimizer.loadStateDict(optimizer.stateDict());
      }
      net.loadStateDict(net.stateDict());
      net.to({ dtype: "bfloat16", memoryFormat: "channels_last" });
      assert.equal(net.forward(toMeta(index)).dtype, "bfloat16");
      net.dispose();
    }),
  );
});

test("a tensor of the CPU given to a network on meta is refused by every layer", () => {
  tidy(() => {
    const image = zeros([1, 4, 8, 8]);
    const row = zeros([1, 8]);
    const layers: [Module & { forward(x: Tensor): Tensor }, Tensor][] = [
      [new Linear(8, 2), row],
      [new LayerNorm(8), row],
      [new RMSNorm(8), row],
      [new GroupNorm(2, 4), image],
      [new BatchNorm2d(4), image],
      [new Conv2d(4, 4, 3), image],
      [new Embedding(4, 4), index],
    ];
    for (const [layer, x] of layers) {
      onMeta(layer);
      const name = layer.constructor.name;
      assert.throws(() => layer.forward(x), /on one device|same device/, name);
      assert.equal(layer.forward(toMeta(x)).device, "meta", name);
      layer.dispose();
    }
  });
});

test("packed linear layers on meta use their own weights, and leave no memory behind", () => {
  tidy(() => {
    const layer = onMeta(new Linear(1 << 12, 1 << 12));
    const { bytes } = memory();
    noGrad(() => {
      using packed = packLinears(new Sequential(layer), { dtype: "bfloat16" });
      assert.equal(packed.count, 1);
      const y = layer.forward(toMeta(ones([2, 1 << 12])));
      assert.deepEqual([y.device, y.dtype], ["meta", "bfloat16"]);
    });
    assert.ok(memory().bytes - bytes < 1 << 16);
    layer.dispose();
  });
});
