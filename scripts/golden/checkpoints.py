"""Small files of torch.save, pickle and safetensors, and the values in them, for the tests of src/torch.

    python scripts/golden/checkpoints.py

Needs torch, safetensors and numpy, whose versions go into the metadata of values.safetensors. Writes
test/golden/checkpoints.
"""

import argparse
import collections
import datetime
import enum
import os
import pathlib
import pickle
import platform
import sys
import types
import warnings
import zipfile

import numpy
import safetensors
import safetensors.torch
import torch

OUT = pathlib.Path(__file__).parents[2] / "test" / "golden" / "checkpoints"
warnings.filterwarnings("ignore")


def in_module(module, **classes):
    """Classes that pickle under a module which no reader has."""
    for end in [i for i, char in enumerate(module + ".") if char == "."]:
        space = sys.modules.setdefault(module[:end], types.ModuleType(module[:end]))
    for name, cls in classes.items():
        cls.__module__, cls.__qualname__ = module, name
        setattr(space, name, cls)


class Config:
    def __init__(self):
        self.lr, self.name, self.parent = 1e-4, "gpt", self  # A ring.


class Slotted:
    __slots__ = ("a", "b")

    def __init__(self):
        self.a, self.b = 1, "two"

    def __getstate__(self):
        return None, {"a": self.a, "b": self.b}


class Names(list):
    pass


class Table(dict):
    pass


class Mode(enum.Enum):
    FAST = "fast"


class Ema(torch.Tensor):
    pass


class Exploit:
    """What a hostile pickle does: a call that Python would make while it loads."""

    def __reduce__(self):
        return os.system, ("touch pickle_was_run",)


in_module("a_package.config", Config=Config, Slotted=Slotted, Names=Names, Table=Table, Mode=Mode, Ema=Ema)


def values(protocol):
    """Plain Python values of every kind; a reader's answer is written out in the test."""
    config, names, table = Config(), Names(["a", "b"]), Table(x=1)
    shared = [1, 2]
    ring = []
    ring.append(ring)
    keyed = collections.defaultdict(list)
    keyed[3] = [4]
    tree = {
        "none": None,
        "bools": [True, False],
        "ints": [0, 1, 255, 256, 65535, 65536, -1, -129, 2**31 - 1, -(2**31)]
        + [2**53 - 1, 2**53, -(2**63), 10**30],
        "floats": [0.0, -0.0, 1.5, -1e300, 5e-324, float("inf"), float("-inf"), float("nan")],
        "complex": 1.5 - 2j,
        "text": ["", "plain", "é", "漢字", "\U0001f600", "a\nb\\u0041\\", "x" * 300],
        "surrogate": "\ud83d",
        "bytes": [b"", b"\x00\xff", b"y" * 300],
        "bytearray": bytearray(b"\x01\xfe"),
        "tuples": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)],
        "set": {1, 2},
        "frozenset": frozenset([3]),
        "ordered": collections.OrderedDict([("b", 1), ("a", 2)]),
        "counter": collections.Counter("aab"),
        "keyed": keyed,
        "mixed_keys": {1: "int", (1, 2): "tuple", None: "none"},
        "proto": {"__proto__": 1, "constructor": 2},
        "shared": [shared, shared],
        "ring": ring,
        "path": pathlib.PurePosixPath("/a/b") / "c.txt",
        "range": range(1, 10, 2),
        "slice": slice(1, None),
        "date": datetime.date(2020, 1, 2),
        "mode": Mode.FAST,
        "class": Config,
        "config": config,
        "slotted": Slotted() if protocol >= 2 else None,
        "names": names,
        "table": table,
        "namespace": argparse.Namespace(gpt_model="GPT-B", vocab_size=16384),
        "numpy": [numpy.float32(1.5), numpy.float64(-2.5), numpy.int64(-3), numpy.uint8(200)]
        + [numpy.bool_(True), numpy.float16(0.25)],
        "numpy_array": numpy.arange(4, dtype=numpy.int16).reshape(2, 2),
        "dtype": torch.bfloat16,
        "device": torch.device("cuda", 1),
        "size": torch.Size([2, 3]),
        "layout": torch.strided,
    }
    return tree


DTYPES = "uint8 int8 int16 int32 int64 float16 float32 float64 bfloat16 bool complex64 complex128".split()


def tensors():
    """Every dtype, layout and way of sharing; the test compares with values.safetensors."""
    generator = torch.Generator().manual_seed(1)
    base = torch.randn(4, 6, generator=generator)
    tree = collections.OrderedDict()
    for name in DTYPES:
        tree[f"dtypes.{name}"] = (torch.arange(6) - 2).reshape(2, 3).to(getattr(torch, name))
    tree["complex"] = torch.tensor([1 + 2j, -3.5j], dtype=torch.complex64)
    tree["conjugate"] = torch.tensor([[1 + 2j, 3 - 4j]], dtype=torch.complex64).mH
    tree["negative"] = torch.tensor([1 + 2j, 3 - 4j], dtype=torch.complex64).conj().imag
    tree["special"] = torch.tensor([float("nan"), float("inf"), float("-inf"), -0.0, 1e-45])
    tree["scalar"] = torch.tensor(7, dtype=torch.int64)
    tree["empty"] = torch.empty(0, 3)
    tree["empty_view"] = base[2:2]
    tree["base"] = base
    tree["transposed"] = base.t()
    tree["row"] = base[1]
    tree["column"] = base[:, 2]
    tree["strided"] = base[::2, 1::2]
    tree["expanded"] = torch.tensor([5.0]).expand(3, 2)
    image = torch.arange(24.0).reshape(1, 2, 3, 4)
    tree["channels_last"] = image.contiguous(memory_format=torch.channels_last)
    tree["parameter"] = torch.nn.Parameter(base[:2])
    tree["frozen"] = torch.nn.Parameter(torch.tensor([1.0, 2.0]), requires_grad=False)
    named = torch.nn.Parameter(torch.tensor([3.0]))
    named.note = "attributes are dropped"
    tree["with_state"] = named
    tree["subclass"] = torch.tensor([4.0, 5.0]).as_subclass(Ema)
    tree["buffer"] = torch.nn.Buffer(torch.tensor([6.0]))
    return tree


def write_reference(tree):
    """The same tensors, resolved and contiguous. complex128 has no safetensors dtype: its parts stand in."""
    plain = {}
    for name, tensor in tree.items():
        tensor = tensor.detach().as_subclass(torch.Tensor).resolve_conj().resolve_neg().contiguous().clone()
        plain[name] = torch.view_as_real(tensor).contiguous() if tensor.dtype == torch.complex128 else tensor
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "safetensors": safetensors.__version__,
    }
    text = ", ".join(f"{name} {version}" for name, version in versions.items())
    safetensors.torch.save_file(plain, OUT / "values.safetensors", metadata={"versions": text})


def lightning():
    """The shape of a Lightning checkpoint of a tokenizer with EMA weights."""
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Linear(4, 2))
    torch.nn.init.constant_(model[0].weight, 0.5)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    model[1](torch.ones(1, 4)).sum().backward()
    optimizer.step()
    state = model.state_dict()
    weights = collections.OrderedDict((f"encoder.{k}", v) for k, v in state.items())
    for key, value in state.items():
        weights["model_ema.encoder" + key.replace(".", "")] = value.clone()
    weights["model_ema.decay"] = torch.tensor(0.999, dtype=torch.float32)
    weights["model_ema.num_updates"] = torch.tensor(12, dtype=torch.int)
    weights["loss.mask"] = torch.ones(64, 64)

    class ModelCheckpoint:
        def __init__(self):
            self.best_model_score = torch.tensor(0.25)

    class DictConfig:
        def __init__(self, content):
            self.__dict__["_content"] = content

    in_module("omegaconf.dictconfig", DictConfig=DictConfig)
    in_module("pytorch_lightning.callbacks.model_checkpoint", ModelCheckpoint=ModelCheckpoint)
    return {
        "epoch": 3,
        "global_step": 1200,
        "pytorch-lightning_version": "1.9.5",
        "state_dict": weights,
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 4}}}},
        "callbacks": {
            ModelCheckpoint: {
                "monitor": "val/rec_loss",
                "best_model_path": pathlib.PurePosixPath("/runs/a.ckpt"),
            },
            "object": ModelCheckpoint(),
        },
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [],
        "hparams_name": "kwargs",
        "hyper_parameters": {
            "ddconfig": DictConfig({"z_channels": 256}),
            "args": argparse.Namespace(image_size=256),
            "n_embed": 16384,
        },
    }


def deflate(source, target):
    """The same archive as another zip tool writes it: deflated, no padding, sizes in the local headers."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new:
        for item in old.infolist():
            new.writestr(zipfile.ZipInfo(item.filename), old.read(item), compress_type=zipfile.ZIP_DEFLATED)


def write_safetensors():
    """One tensor of each dtype that the format and torch share, and the corners: 0-d, empty, odd names."""
    names = "bool uint8 int8 int16 uint16 int32 uint32 int64 uint64".split()
    names += "float16 bfloat16 float32 float64 complex64 float8_e4m3fn float8_e5m2".split()
    tree = {name: torch.tensor([0, 1, 3]).to(getattr(torch, name)) for name in names}
    tree["scalar"] = torch.tensor(1.5)
    tree["empty"] = torch.zeros(2, 0)
    tree["a/漢 \"quoted\"\n.weight"] = torch.tensor([[1.0, 2.0]])
    tree["\U0001f600"] = torch.tensor([1.0])
    tree["\uffee"] = torch.tensor([2.0])
    tree["__proto__"] = torch.tensor([8.0])
    safetensors.torch.save_file(tree, OUT / "all_dtypes.safetensors", metadata={"format": "pt"})
    supported = {k: v for k, v in tree.items() if not k.startswith(("uint16", "uint32", "uint64", "float8"))}
    safetensors.torch.save_file(supported, OUT / "supported.safetensors", metadata={"format": "pt"})


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    for protocol in range(6):
        with open(OUT / f"values.p{protocol}.pkl", "wb") as file:
            pickle.dump(values(protocol), file, protocol=protocol)
    tree = tensors()
    write_reference(tree)
    for protocol in range(2, 6):
        torch.save(tree, OUT / f"tensors.p{protocol}.pt", pickle_protocol=protocol)
    torch.save(tree, OUT / "legacy.p2.pt", _use_new_zipfile_serialization=False)
    torch.save(tree, OUT / "legacy.p4.pt", _use_new_zipfile_serialization=False, pickle_protocol=4)
    deflate(OUT / "tensors.p2.pt", OUT / "deflated.pt")
    torch.save(lightning(), OUT / "lightning.ckpt")
    # A class without source text: legacy files carry the source of every module class they can find.
    Net = type("Net", (torch.nn.Module,), {})
    in_module("a_package.model", Net=Net)
    module = Net()
    module.register_parameter("weight", torch.nn.Parameter(torch.tensor([[2.0, 3.0]])))
    torch.save(module, OUT / "module.pt")
    torch.save(module, OUT / "module_legacy.pt", _use_new_zipfile_serialization=False)
    odd = {
        "uint16": torch.tensor([1, 2], dtype=torch.uint16),
        "float8": torch.tensor([1.0]).to(torch.float8_e4m3fn),
        "sparse": torch.eye(2).to_sparse(),
        "quantized": torch.quantize_per_tensor(torch.tensor([1.0]), 0.5, 0, torch.qint8),
        "meta": torch.empty(2, device="meta"),
        "storage": torch.tensor([1.0, 2.0]).untyped_storage(),
        "plain": torch.tensor([9.0]),
    }
    torch.save(odd, OUT / "odd.pt")
    torch.save({"weights": torch.tensor([1.0]), "exploit": Exploit()}, OUT / "malicious.pt")
    write_safetensors()
    for path in OUT.iterdir():
        path.chmod(0o644)
    assert not os.path.exists("pickle_was_run")
    print(sum(path.stat().st_size for path in OUT.iterdir()), "bytes in", OUT)


main()
