"""Check that PyTorch reads what saveTorch wrote: python scripts/golden/saved.py FILE, after the program below.

    saveTorch("all.pt", {
      tensors: Object.fromEntries(Object.keys(DTYPES).map((dtype) => [dtype, tensor([0, 1, 3]).to({ dtype })])),
      turned: tensor([[1, 2, 3], [4, 5, 6]]).transpose(0, 1),
      shared: [x, x], empty: zeros([0, 2]), scalar: tensor(1.5),
      plain: { none: null, flag: true, text: "ä", whole: 2 ** 40, large: 2n ** 100n, real: 0.5, list: [1, [2]] },
    })
"""
import sys
import zipfile

import torch

path = sys.argv[1]
assert zipfile.ZipFile(path).testzip() is None
for options in ({}, {"mmap": True}):
    value = torch.load(path, weights_only=True, **options)
    for name, each in value["tensors"].items():
        assert str(each.dtype) == f"torch.{name}", (name, each.dtype)
        expected = torch.tensor([0, 1, 3]).to(each.dtype)
        assert torch.equal(each, expected), (name, each)
    assert torch.equal(value["turned"], torch.tensor([[1.0, 4], [2, 5], [3, 6]]))
    first, second = value["shared"]
    assert first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()
    assert value["empty"].shape == (0, 2) and value["scalar"].item() == 1.5
    assert value["plain"] == {"none": None, "flag": True, "text": "ä", "whole": 2**40, "large": 2**100, "real": 0.5, "list": [1, [2]]}
torch.save(torch.load(path, weights_only=True), path + ".again")
print("torch", torch.__version__, "reads", path)
