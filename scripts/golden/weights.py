"""Small PyTorch files with weights under every usual wrapper, for test/torch/weights.test.ts.

Run: python scripts/golden/weights.py   (needs torch)
"""
import argparse
import os
from collections import OrderedDict

import torch

OUT = os.path.join(os.path.dirname(__file__), "..", "..", "test", "golden", "weights")
os.makedirs(OUT, exist_ok=True)


def state(offset):
    return OrderedDict(
        [("conv.weight", torch.arange(6.0).view(2, 3) + offset), ("conv.bias", torch.full((2,), offset + 0.5))]
    )


def save(name, value):
    torch.save(value, os.path.join(OUT, name))


raw = state(0)
args = argparse.Namespace(lr=1e-4, model="GPT-B")
save("raw.pt", raw)
save("llamagen.pt", {"model": raw, "optimizer": {"state": {}, "param_groups": []}, "steps": 7, "args": args})
save("averaged.pt", {"model": raw, "ema": state(10), "steps": 7})
save("deepspeed.pt", {"module": {f"module.{key}": value for key, value in raw.items()}, "global_steps": 3})
save("lightning.ckpt", {"state_dict": raw, "epoch": 1, "callbacks": {}, "pytorch-lightning_version": "2.0"})
save("unusual.pt", {"generator": raw, "steps": 1})
save("no_weights.pt", {"steps": 1, "args": args})
save("list.pt", [raw])
