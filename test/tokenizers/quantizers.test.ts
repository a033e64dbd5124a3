import assert from "node:assert/strict";
import { test } from "node:test";
import {
  type Lookup,
  nearestCodes,
  type QuantizerConfig,
  VectorQuantizer,
} from "../../src/tokenizers/index.js";
import {
  autocast,
  functional as F,
  Generator,
  isGradEnabled,
  noGrad,
  ones,
  randn,
  type Tensor,
  tensor,
  tidy,
  zeros,
} from "../../src/torch/index.js";
import { expectClose } from "../support/close.js";
import { noLeak } from "../support/leak.js";
import { expectCloseToScale, golden, type Name, peakBytesOf } from "./golden.js";

const CONFIG: QuantizerConfig = {
  codebookSize: 3,
  embedDim: 2,
  lookup: "l2",
  beta: 0.25,
  entropyTemperature: 0.01,
  sampleEntropyWeight: 0,
  batchEntropyWeight: 0,
  hasUsageRecord: false,
};

function quantizer(rows: number[][], options: Partial<QuantizerConfig>): VectorQuantizer {
  const config = { ...CONFIG, codebookSize: rows.length, ...options };
  const module = new VectorQuantizer(config);
  noGrad(() => module.embedding.weight.copy_(tensor(rows)));
  return module;
}

for (const name of ["ibq", "vq_cosine", "vq_l2"] satisfies Name[]) {
  test(`${name}: codes, features, loss terms and the gradient to the features are PyTorch's`, () => {
    const { model, want } = golden(name);
    const latent = (want.latent as Tensor).detach().requiresGrad_();
    assert.ok(model.quantize.codesOf(latent).equal(want.codes as Tensor), "codesOf");
    const { quantized, codes, losses, stats } = model.quantize.forward(latent);
    assert.ok(codes.equal(want.codes as Tensor), "forward");
    expectCloseToScale(quantized, want.quantized as Tensor, "quantized");
    const named = { ...prefixed("loss", losses), ...prefixed("stat", stats) };
    const wanted = Object.keys(want).filter((key) => /^(loss|stat)\./.test(key));
    assert.deepEqual(Object.keys(named).sort(), wanted.sort());
    for (const key of wanted)
      expectClose(named[key] as Tensor, want[key] as Tensor, { rtol: 1e-5, where: key });
    // Decoding from the codes gives the same features.
    const [b, , h, w] = latent.dims(4);
    expectCloseToScale(model.quantize.getCodebookEntry(codes, [h, w]), want.quantized as Tensor, "entry");
    assert.deepEqual(quantized.shape, [b, model.config.embedDim, h, w]);
  });
}

const prefixed = (prefix: string, record: Record<string, Tensor>): Record<string, Tensor> =>
  Object.fromEntries(Object.entries(record).map(([key, value]) => [`${prefix}.${key}`, value]));

test("the three lookups differ on the same codebook, as worked by hand", () => {
  const rows = [
    [3, 0],
    [0.6, 0.8],
    [0, 1],
  ];
  const z = tensor([[1, 1]]).reshape(1, 2, 1, 1);
  const codeFor = (lookup: Lookup): number => quantizer(rows, { lookup }).codesOf(z).item();
  assert.equal(codeFor("dot"), 0); // 3 against 1.4 and 1
  assert.equal(codeFor("cosine"), 1); // .71, .99, .71
  assert.equal(codeFor("l2"), 1); // distances squared 5, .2, 1
  const far = tensor([[0.1, 0.4]]).reshape(1, 2, 1, 1);
  assert.equal(quantizer(rows, { lookup: "l2" }).codesOf(far).item(), 2); // 8.57, .41, .37
  assert.equal(quantizer(rows, { lookup: "cosine" }).codesOf(far).item(), 2); // .24, .92, .97
  assert.equal(quantizer(rows, { lookup: "dot" }).codesOf(far).item(), 2); // .3, .38, .4
});

test("straight-through losses, as worked by hand", () => {
  const module = quantizer(
    [
      [1, 0],
      [0, 2],
    ],
    { lookup: "l2" },
  );
  const z = tensor([[[[1.5]], [[0.5]]]], { requiresGrad: true }); // nearest [1, 0]: difference [.5, .5]
  const { quantized, losses } = module.forward(z);
  expectClose(losses.codebook as Tensor, 0.25);
  expectClose(losses.commitment as Tensor, 0.0625);
  expectClose(quantized.flatten(), [1, 0]);
  quantized
    .mul(tensor([2, 3]).reshape(1, 2, 1, 1))
    .sum()
    .add(losses.commitment as Tensor)
    .add(losses.codebook as Tensor)
    .backward();
  // 2 and 3 passed through, beta * 2 * .5 / 2 from the commitment.
  expectClose((z.grad as Tensor).flatten(), [2.125, 3.125]);
  // The codebook's own term alone: 2 * -.5 / 2.
  expectClose(module.embedding.weight.grad as Tensor, [
    [-0.5, -0.5],
    [0, 0],
  ]);
});

test("index propagation teaches every row of the codebook; passing through, only those used", () => {
  const rows = [
    [1, 0],
    [0, 1],
    [-1, 0],
  ];
  const touched = (lookup: Lookup): boolean[] => {
    const module = quantizer(rows, { lookup });
    const z = tensor([[[[0.9]], [[0.1]]]], { requiresGrad: true });
    module.forward(z).quantized.square().sum().backward();
    const grad = module.embedding.weight.grad;
    return rows.map((_, i) => grad !== null && grad.select(0, i).abs().sum().item() > 0);
  };
  assert.deepEqual(touched("dot"), [true, true, true]);
  assert.deepEqual(touched("l2"), [false, false, false]);
});

test("an entropy term without a weight is left out", () => {
  const z = randn([1, 2, 2, 2]);
  assert.deepEqual(
    Object.keys(
      quantizer(
        [
          [1, 0],
          [0, 1],
        ],
        {},
      ).forward(z).losses,
    ),
    ["codebook", "commitment"],
  );
  const module = quantizer(
    [
      [1, 0],
      [0, 1],
    ],
    { lookup: "dot", batchEntropyWeight: 0.5, entropyTemperature: 1 },
  );
  const { losses, stats } = module.forward(zeros([1, 2, 2, 2]));
  // Equal scores: both entropies are log 2, and 0 * log 2 - .5 * log 2 remains (1e-5 inside the logarithm).
  expectClose(stats.sampleEntropy as Tensor, Math.log(2));
  expectClose(stats.batchEntropy as Tensor, -Math.log(0.50001));
  expectClose(losses.entropy as Tensor, 0.5 * Math.log(0.50001));
});

test("the record holds the last codes of training, and usage the part of the codebook in it", () => {
  const rows = [
    [1, 0],
    [0, 1],
    [-1, 0],
    [0, -1],
  ];
  const module = quantizer(rows, { hasUsageRecord: true });
  const used = module.codebook_used as Tensor;
  const z = tensor([
    [0, 1],
    [-1, 0],
    [0, 1],
  ])
    .transpose(0, 1)
    .reshape(1, 2, 1, 3);
  assert.equal(module.usage(), 1 / 4); // zeros
  module.forward(z);
  module.eval().forward(z);
  assert.deepEqual(used.slice(0, -4).toList(), [...Array(4 - 3).fill(0), 1, 2, 1]);
  assert.equal(used.sum().item(), 4);
  assert.equal(module.usage(), 3 / 4);
  module.train().forward(z.narrow(3, 0, 2));
  assert.deepEqual(used.slice(0, -6).toList(), [0, 1, 2, 1, 1, 2]);
  // More codes than the record is long: the last ones.
  module.train().forward(z.repeat(1, 1, 300, 100));
  assert.deepEqual(used.slice(0, -4).toList(), [1, 1, 2, 1]);
  assert.equal(module.usage(), 2 / 4);
  assert.ok(Number.isNaN(quantizer(rows, {}).usage()));
});

test("blocks of rows and codes give the codes of one product, the first of equal ones", () => {
  const generator = new Generator(3);
  const rows = randn([37, 5], { generator });
  const table = randn([101, 5], { generator });
  for (const lookup of ["dot", "cosine", "l2"] satisfies Lookup[]) {
    const whole = nearestCodes(rows, table, lookup);
    for (const bytes of [1, 4 * 37, 4 * 37 * 10, 4 * 101 * 5]) {
      assert.ok(nearestCodes(rows, table, lookup, bytes).equal(whole), `${lookup}, ${bytes} bytes`);
    }
  }
  const ties = tensor([
    [1, 0],
    [1, 0],
    [0, 1],
    [1, 0],
  ]);
  for (const bytes of [1, 8, 1 << 20])
    assert.equal(nearestCodes(tensor([[1, 0]]), ties, "dot", bytes).item(), 0);
});

test("blocks give the same codes when codes come in the last block alone", () => {
  const table = zeros([10, 2]);
  table.select(0, 9).fill_(1);
  assert.deepEqual(nearestCodes(ones([3, 2]), table, "dot", 4 * 3 * 4).toList(), [9, 9, 9]);
});

test("262,144 codes are compared without the scores of all of them", () => {
  const module = new VectorQuantizer({ ...CONFIG, codebookSize: 262_144, embedDim: 4, lookup: "dot" });
  const z = randn([4, 4, 16, 16]);
  const allScores = 4 * 16 * 16 * 262_144 * 4;
  let codes: Tensor | undefined;
  const peak = peakBytesOf(() => {
    codes = module.codesOf(z);
  });
  assert.ok(peak < allScores / 12, `${peak} bytes, all scores take ${allScores}`);
  // Checked for some positions against the whole product.
  const rows = z.permute(0, 2, 3, 1).reshape(-1, 4).narrow(0, 500, 8);
  const whole = tidy(() => rows.matmul(module.embedding.weight.transpose(0, 1)).argmax(1));
  assert.ok((codes as Tensor).flatten().narrow(0, 500, 8).equal(whole));
});

test("codes and losses are those of float32 also under autocast", () => {
  const { model, want } = golden("ibq");
  const latent = want.latent as Tensor;
  const state = { device: "cpu", dtype: "bfloat16" } as const;
  const plain = model.quantize.forward(latent);
  const cast = autocast(state, () => model.quantize.forward(latent));
  assert.ok(cast.quantized.equal(plain.quantized));
  for (const [key, value] of Object.entries(plain.losses))
    assert.ok((cast.losses[key] as Tensor).equal(value), key);
  assert.ok(autocast(state, () => model.quantize.codesOf(latent)).equal(want.codes as Tensor));
});

test("a fresh codebook is normal for dot, of unit rows for cosine, and small for l2", () => {
  const rowsOf = (lookup: Lookup): Tensor =>
    new VectorQuantizer({ ...CONFIG, codebookSize: 4096, embedDim: 8, lookup }).embedding.weight.detach();
  const dot = rowsOf("dot");
  expectClose(dot.std(), 1, { rtol: 1e-2, atol: 1e-2 });
  expectClose(dot.mean(), 0, { atol: 2e-2 });
  expectClose(rowsOf("cosine").norm(2, 1), ones([4096]));
  const l2 = rowsOf("l2");
  assert.ok(l2.abs().amax().item() <= 1 / 4096);
  expectClose(l2.std(), 2 / 4096 / Math.sqrt(12), { rtol: 1e-2, atol: 1e-6 });
});

test("table rows are normalised for the cosine alone", () => {
  const rows = [
    [3, 4],
    [0, 2],
  ];
  expectClose(quantizer(rows, { lookup: "cosine" }).table(), [
    [0.6, 0.8],
    [0, 1],
  ]);
  expectClose(quantizer(rows, { lookup: "l2" }).table(), rows);
  expectClose(quantizer(rows, { lookup: "dot" }).table(), rows);
  expectClose(F.normalize(tensor(rows), { dim: 1 }), [
    [0.6, 0.8],
    [0, 1],
  ]);
});

test("nothing is left behind but the results", () => {
  const z = randn([2, 2, 3, 3]);
  for (const lookup of ["dot", "cosine", "l2"] satisfies Lookup[]) {
    const module = quantizer(
      [
        [1, 0],
        [0, 1],
      ],
      { lookup, hasUsageRecord: true, sampleEntropyWeight: 1 },
    );
    noLeak(() => {
      const { quantized, codes, losses, stats } = module.forward(z);
      for (const result of [quantized, codes, ...Object.values(losses), ...Object.values(stats)])
        result.dispose();
      module.codesOf(z).dispose();
      module.usage();
    });
  }
  assert.equal(isGradEnabled(), true);
});
