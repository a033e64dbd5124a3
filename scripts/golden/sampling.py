"""Golden distributions for test/rl_ar_finetune/distribution.test.ts: guidance, temperature, top-k, top-p, in this order.

Run: python scripts/golden/sampling.py   (needs torch, safetensors)
"""
import os

import torch
from safetensors.torch import save_file

OUT = os.path.join(os.path.dirname(__file__), "..", "..", "test", "golden", "rl", "distribution.safetensors")
torch.manual_seed(0)
logits = torch.randn(6, 33) * 2
null_logits = torch.randn(6, 33) * 2
tensors = {"logits": logits, "null_logits": null_logits}
SETTINGS = {
    "plain": (1.0, 1.0, 0, 1.0),
    "temperature": (1.0, 0.7, 0, 1.0),
    "top_k": (1.0, 1.0, 5, 1.0),
    "top_p": (1.0, 1.0, 0, 0.8),
    "guidance": (2.5, 1.0, 0, 1.0),
    "all": (1.5, 1.3, 12, 0.9),
}
for name, (scale, temperature, top_k, top_p) in SETTINGS.items():
    x = null_logits + (logits - null_logits) * scale
    x = x / temperature
    if top_k > 0:
        x = x.masked_fill(x < x.topk(top_k, dim=-1).values[:, -1:], float("-inf"))
    if top_p < 1:
        ordered, order = x.sort(dim=-1, descending=True)
        over = ordered.softmax(-1).cumsum(-1) > top_p
        over = torch.cat([torch.zeros_like(over[:, :1]), over[:, :-1]], dim=-1)  # the first one over stays
        x = x.masked_fill(torch.zeros_like(over).scatter(1, order, over), float("-inf"))
    tensors[name] = x.log_softmax(-1)
save_file(tensors, OUT, metadata={"torch": torch.__version__, "seed": "0"})
