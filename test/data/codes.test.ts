import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";

import { openCodes } from "../../src/data/codes.js";
import { LABEL_REMEDY } from "../../src/data/labels.js";
import { type DType, saveSafetensors, type Tensor, tensor } from "../../src/torch/index.js";
import { npyOf, scratch, writeFiles } from "../support/data_files.js";

const folder = scratch();
const at = (name: string): string => join(folder, name);

/** Write tensors to a file and free them. */
function save(name: string, tensors: Record<string, Tensor>): string {
  saveSafetensors(at(name), tensors);
  for (const one of Object.values(tensors)) one.dispose();
  return at(name);
}

const int = (data: number[] | number[][] | number[][][], dtype: DType = "int64"): Tensor =>
  tensor(data, { dtype });

test("a file of codes is read row by row, in every width of whole numbers", async () => {
  for (const dtype of ["int64", "int32", "int16", "uint8", "int8"] as const) {
    const path = save("codes.safetensors", {
      codes: int(
        [
          [1, 2, 3],
          [4, 5, 6],
        ],
        dtype,
      ),
      classes: int([3, 0], dtype),
    });
    const source = await openCodes(path);
    assert.deepEqual([source.kind, source.length, source.codeLength, source.variants], ["codes", 2, 3, 1]);
    assert.deepEqual((await source.locate(1, 0)).codes, BigInt64Array.of(4n, 5n, 6n));
    assert.deepEqual(
      [source.idOf(1), source.classOf(0), source.classNames.length],
      ["codes.safetensors#1", 3, 4],
    );
  }
});

test("unsigned 16 bits, which no tensor here has, are read too", async () => {
  const header = JSON.stringify({ codes: { dtype: "U16", shape: [2, 2], data_offsets: [0, 8] } });
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(header.length));
  writeFiles(folder, {
    "wide.safetensors": Buffer.concat([
      length,
      Buffer.from(header),
      Buffer.from(Uint16Array.of(1, 2, 3, 65535).buffer),
    ]),
  });
  const source = await openCodes(at("wide.safetensors"), { label: null });
  assert.deepEqual((await source.locate(1, 0)).codes, BigInt64Array.of(3n, 65535n));
});

test("several rows an image are variants of it", async () => {
  const path = save("crops.safetensors", {
    codes: int([
      [
        [1, 2],
        [3, 4],
        [5, 6],
      ],
      [
        [7, 8],
        [9, 10],
        [11, 12],
      ],
    ]),
    classes: int([0, 1]),
  });
  const source = await openCodes(path);
  assert.deepEqual([source.length, source.variants, source.codeLength], [2, 3, 2]);
  assert.deepEqual((await source.locate(1, 1)).codes, BigInt64Array.of(9n, 10n));
});

test("another row is another fingerprint", async () => {
  const print = async (last: number): Promise<string> => {
    return (
      await openCodes(
        save("print.safetensors", {
          codes: int([
            [1, 2],
            [3, last],
          ]),
          classes: int([0, 0]),
        }),
      )
    ).fingerprint;
  };
  assert.equal(await print(4), await print(4));
  assert.notEqual(await print(4), await print(5));
});

test("files that lack something are refused", async () => {
  const refuse = async (tensors: Record<string, Tensor>, message: string): Promise<void> => {
    const path = save("odd.safetensors", tensors);
    await assert.rejects(openCodes(path), { message: `${path}${message}` });
  };
  await refuse(
    { tokens: int([[1]]) },
    ": expected a tensor codes with codes, got tokens. Name it with image.",
  );
  await refuse(
    { codes: int([[1]]) },
    `: expected a tensor classes with the class of each image, got codes. ${LABEL_REMEDY}.`,
  );
  await refuse(
    { codes: int([[1]]), classes: int([1, 2]) },
    ": classes: expected whole numbers of shape [1], got int64 [2].",
  );
  const shape = ": codes: expected whole numbers of shape [N, T] or [N, R, T], got";
  await refuse({ codes: int([1, 2]), classes: int([1, 2]) }, `${shape} int64 [2].`);
  await refuse({ codes: tensor([[1, 2]]), classes: int([1]) }, `${shape} float32 [1, 2].`);
  using four = int([1, 2]);
  await refuse({ codes: four.view(1, 1, 1, 2), classes: int([1]) }, `${shape} int64 [1, 1, 1, 2].`);
  const named = save("named.safetensors", { tokens: int([[1]]), kinds: int([2]) });
  assert.equal((await openCodes(named, { image: "tokens", label: "kinds" })).classOf(0), 2);
  const negative = await openCodes(
    save("negative.safetensors", { codes: int([[1, -2]]), classes: int([0]) }),
  );
  await assert.rejects(negative.locate(0, 0), {
    message: "negative.safetensors#0: expected codes from 0, got -2n.",
  });
});

const codes = (...values: bigint[]): BigInt64Array => BigInt64Array.from(values);

test("LlamaGen's folders: ten crops an image in order of their numbers, labels beside", async () => {
  const rows = (first: bigint): Buffer => npyOf(codes(first, first + 1n, first + 2n, first + 3n), [1, 2, 2]);
  for (const [i, first] of [10n, 20n, 30n].entries()) {
    const name = [0, 2, 10][i];
    writeFiles(at("llamagen"), {
      [`imagenet256_codes/${name}.npy`]: rows(first),
      [`imagenet256_labels/${name}.npy`]: npyOf(codes(BigInt(i)), [1]),
    });
  }
  for (const path of [at("llamagen"), at("llamagen/imagenet256_codes")]) {
    const source = await openCodes(path);
    assert.deepEqual([source.length, source.variants, source.codeLength], [3, 2, 2]);
    assert.deepEqual(
      [0, 1, 2].map((i) => source.idOf(i)),
      ["0", "2", "10"],
    );
    assert.deepEqual(
      [0, 1, 2].map((i) => source.classOf(i)),
      [0, 1, 2],
    );
    assert.deepEqual((await source.locate(2, 1)).codes, codes(32n, 33n));
  }
});

test("folders of codes that lack something, or differ in size, are refused", async () => {
  const refuse = async (name: string, message: string): Promise<void> => {
    await assert.rejects(openCodes(at(name)), { message });
  };
  const one = npyOf(codes(1n, 2n), [2]);
  writeFiles(at("bare"), { "0.npy": one });
  await refuse(
    "bare",
    `${at("bare")}: expected a folder of labels beside it, ending in labels for codes, got none. ` +
      `${LABEL_REMEDY}.`,
  );
  const bare = await openCodes(at("bare"), { label: null });
  assert.deepEqual((await bare.locate(0, 0)).codes, codes(1n, 2n));

  writeFiles(at("half"), {
    "x_codes/0.npy": one,
    "x_codes/1.npy": one,
    "x_labels/0.npy": npyOf(codes(1n), [1]),
  });
  await refuse("half", `${at("half/x_labels")}: expected a label 1.npy, got none.`);
  writeFiles(at("half"), { "x_labels/1.npy": npyOf(codes(1n, 2n), [2]) });
  await refuse("half", `${at("half/x_labels/1.npy")}: expected one class, got 2 numbers.`);

  writeFiles(at("two"), { "a_codes/0.npy": one, "b_codes/0.npy": one });
  await refuse("two", `${at("two")}: expected one folder of .npy code files, got several: a_codes, b_codes.`);
  writeFiles(at("none"), { "a.txt": "" });
  await refuse("none", `${at("none")}: expected one folder of .npy code files, got none.`);

  writeFiles(at("sizes"), { "0.npy": one, "1.npy": npyOf(codes(1n, 2n, 3n), [3]) });
  const sizes = await openCodes(at("sizes"), { label: null });
  await assert.rejects(sizes.locate(1, 0), {
    message: `${at("sizes/1.npy")}: expected codes of shape [2], as the others, got [3].`,
  });
});
