/** A process of `group.test.ts`: opens the group, does what its argument says, and prints what it got as JSON. */
import {
  accumulateGradients,
  allGather,
  allReduce,
  barrier,
  broadcast,
  broadcastValue,
  bucketsInTime,
  destroy,
  gatherParts,
  gatherValues,
  init,
  ownShare,
  rank,
  reduceGradients,
  reduceScatter,
  requireSame,
  size,
  takeTraffic,
} from "../../src/distributed/index.js";
import { arange, checkpoint, full, type Tensor, tensor, tidy } from "../../src/torch/index.js";

const [what, timeout = "20"] = process.argv.slice(2);
const numbers = (tensor: Tensor): number[] =>
  Array.from(tensor.flatten().toArray() as Iterable<number>, Number);

try {
  const { TEST_VERSIONS: versions } = process.env;
  await init({ timeout: Number(timeout), ...(versions !== undefined && { versions }) });
  if (what === "same") requireSame({ optimizer: { lr: rank() === 0 ? 1e-3 : 1e-2 }, weights: [1, 2] });
  const got = what === "collectives" ? collectives() : what === "gradients" ? gradients() : await failing();
  await destroy();
  process.stdout.write(`${JSON.stringify(got)}\n`);
} catch (error) {
  await destroy(error as Error);
  process.stderr.write(`${(error as Error).name}: ${(error as Error).message}\n`);
  process.exitCode = 5;
}

function collectives(): unknown {
  const own = rank() + 1;
  const a = full([3], own, { dtype: "float32" });
  const b = full([2, 2], 10 * own, { dtype: "float32" });
  const c = full([2], own, { dtype: "float64" });
  allReduce([a, b, c]);
  const most = tensor([own, -own], { dtype: "float64" });
  allReduce([most], "max");
  const least = tensor([own], { dtype: "int64" });
  allReduce([least], "min");
  const [from, count] = ownShare(7);
  const gathered = allGather(arange(0, 14, 1, { dtype: "float32" }).view(7, 2).narrow(0, from, count), 7);
  const isOdd = allGather(tensor([own % 2], { dtype: "int64" }).bool(), size());
  const scattered = reduceScatter(arange(0, 2 * size(), 1, { dtype: "float32" }).mul(own));
  const sent = full([2], own, { dtype: "bfloat16" });
  broadcast([sent], size() - 1);
  barrier();
  const large = full([8 * 2 ** 20], own, { dtype: "float32" });
  allReduce([large, full([4], own, { dtype: "float32" })]);
  const { bytes, seconds } = takeTraffic();
  return {
    rank: rank(),
    size: size(),
    a: numbers(a),
    b: numbers(b),
    c: numbers(c),
    most: numbers(most),
    least: numbers(least),
    gathered: numbers(gathered),
    isOdd: numbers(isOdd.to({ dtype: "int64" })),
    scattered: numbers(scattered),
    sent: numbers(sent.float()),
    large: [large.amin().item(), large.amax().item()],
    values: gatherValues({ rank: rank(), odd: rank() === 0 ? Number.NaN : Infinity }).map(({ odd }) =>
      String(odd),
    ),
    told: broadcastValue(`of ${rank()}`),
    isCounted: bytes > 2 ** 25 && seconds > 0,
  };
}

/**
 * Gradients of a network of five layers of 12 MiB, of which the last is computed again in two chunks and one is not used, with two
 * backward passes a step, by overlapping sums and by sums afterwards. The process of rank 2 has no rows.
 */
function gradients(): unknown {
  const width = 1774;
  const layers = Array.from({ length: 5 }, (_, i) =>
    tidy(() =>
      arange(0, width * width, 1, { dtype: "float32" })
        .mul(0.37 + i)
        .sin()
        .mul(0.03)
        .view(width, width),
    ).requiresGrad_(),
  );
  const [unused, ...used] = layers as [Tensor, ...Tensor[]];
  const head = used.pop() as Tensor;
  const backwardOf = (part: number): void =>
    tidy(() => {
      const rows = arange(0, 2 * width, 1, { dtype: "float32" })
        .mul(0.1 + part + rank())
        .cos()
        .view(2, width);
      const hidden = used.reduce((x, layer) => x.matmul(layer).tanh(), rows);
      const chunks = hidden.split(1).map((chunk) => checkpoint((x) => x.matmul(head), [chunk]));
      chunks.reduce((sum, chunk) => sum.add(chunk.square().sum()), full([], 0)).backward();
    });
  const parts = rank() === 2 ? [] : [0, 1];
  const gradientsOf = (sum: (all: readonly Tensor[]) => void): (Tensor | null)[] => {
    for (const layer of layers) layer.grad = null;
    sum(layers);
    return layers.map(({ grad }) => grad);
  };
  const after = gradientsOf((all) => {
    for (const part of parts) backwardOf(part);
    reduceGradients(all);
  });
  const steps = Array.from({ length: 3 }, () => {
    const during = gradientsOf((all) => {
      accumulateGradients(all, parts, backwardOf);
      reduceGradients(all);
    });
    const isSame = during.map((gradient, i) => {
      const other = after[i] as Tensor | null;
      return gradient === null || other === null ? gradient === other : gradient.equal(other);
    });
    return { isSame, ...bucketsInTime(layers) };
  });
  const known = gatherValues(
    Buffer.from((head.grad as Tensor).toArray().buffer as ArrayBuffer).toString("latin1"),
  );
  return {
    steps,
    unused: unused.grad === null,
    agree: known.every((bytes) => bytes === known[0]),
    parts: numbers(gatherParts(rank() === 1 ? [] : [full([2], rank()), full([rank()], 7)])),
    long: gatherValues("x".repeat(1010 + rank())).map(({ length }) => length),
  };
}

async function failing(): Promise<string> {
  process.stdout.write("open\n");
  if (what === "throw" && rank() === 1) throw new Error("the disk is on fire");
  if (what === "late" && rank() === 1) {
    await new Promise((resolve) => setTimeout(resolve, 1000 * (Number(timeout) + 8)));
    return "woke";
  }
  if (what === "exit" && rank() === 1) process.exit(9);
  for (;;) {
    barrier();
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}
