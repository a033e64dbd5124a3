"""LlamaGen's own modules, for bench/step.ts and bench/rollout.ts: python peer.py CHECKOUT THREADS, CHECKOUT being a
clone of LlamaGen, or the LlamaGen folder of one of VA-pi. Reads one request a line, in JSON, and answers with seconds,
in JSON. Weights are random. The step is put together as VA-pi's training script does it: one forward pass for the
rollout, decoding in chunks of 8, LPIPS of pairs, and one forward and backward pass per sequence."""
import contextlib
import json
import sys
import time
import types
import warnings

import torch
from torch import nn
from torch.nn import functional as F

warnings.filterwarnings("ignore")
checkout, threads = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(threads)
sys.path.insert(0, checkout)


def vgg16(**_):
    """torchvision's, which needs no weights here: configuration D of Simonyan and Zisserman 2015."""
    layers, channels = [], 3
    for width in [64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0]:
        if width == 0:
            layers.append(nn.MaxPool2d(2, 2))
        else:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
            channels = width
    return types.SimpleNamespace(features=nn.Sequential(*layers))


from autoregressive.models.generate import generate  # noqa: E402
from autoregressive.models.gpt import GPT_models  # noqa: E402
from tokenizer.tokenizer_image.vq_model import VQ_models  # noqa: E402

# Modules that LPIPS imports to find and download weights, while it is imported.
stand_ins = {name: types.ModuleType(name) for name in ("torchvision", "torchvision.models", "requests", "tqdm")}
stand_ins["torchvision.models"].vgg16 = vgg16
stand_ins["torchvision"].models = stand_ins["torchvision.models"]
stand_ins["tqdm"].tqdm = None
before = {name: sys.modules.get(name) for name in stand_ins}
sys.modules.update(stand_ins)
from tokenizer.tokenizer_image import lpips as lpips_module  # noqa: E402

for name, module in before.items():
    if module is None:
        del sys.modules[name]
    else:
        sys.modules[name] = module
lpips_module.LPIPS.load_from_pretrained = lambda self, name=None: None
built = {}


def policy(name, size):
    if built.get("policy", (None,))[0] != (name, size):
        built.pop("policy", None)
        torch.manual_seed(0)
        model = GPT_models[name](vocab_size=16384, block_size=size).eval()
        nn.init.normal_(model.output.weight, std=0.02)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, betas=(0.9, 0.999), weight_decay=1e-4)
        built["policy"] = ((name, size), model, optimizer)
    return built["policy"][1:]


def frozen():
    if "frozen" not in built:
        torch.manual_seed(0)
        tokenizer = VQ_models["VQ-16"](codebook_size=16384, codebook_embed_dim=8).eval().requires_grad_(False)
        built["frozen"] = tokenizer, lpips_module.LPIPS().eval().requires_grad_(False)
    return built["frozen"]


class Clock:
    def __init__(self):
        self.times, self.last = {}, time.perf_counter()

    def mark(self, name):
        now = time.perf_counter()
        self.times[name], self.last = now - self.last, now


def step(model, images, generations, size):
    tokenizer, lpips = frozen()
    side, group = size // 16, generations
    t = side * side
    gpt, optimizer = policy(model, t)
    x = torch.rand(images, 3, size, size) * 2 - 1
    y = torch.zeros(images, dtype=torch.long)
    positions = torch.arange(t)
    clock = Clock()
    with torch.no_grad():
        codes = tokenizer.encode(x)[2][2].reshape(images, t)
        clock.mark("encode")
        noise = torch.rand(images, t - 1) < 0.5
        context = torch.where(noise, torch.randint(16384, (images, t - 1)), codes[:, :-1])
        logits = gpt(context, y, input_pos=positions)[0]
        logp = logits.log_softmax(-1)
        drawn = torch.multinomial(logits.softmax(-1).flatten(0, 1), group, replacement=True)
        drawn = drawn.view(images, t, group).transpose(1, 2)  # [B, G, T]
        old = logp.gather(2, drawn.transpose(1, 2)).transpose(1, 2).flatten(0, 1)
        sequences = drawn.flatten(0, 1)
        clock.mark("rollout")
        chunks = [tokenizer.decode_code(c, [len(c), 8, side, side]) for c in sequences.split(8)]
        samples = torch.cat(chunks)
        clock.mark("decode")
        truth = x.repeat_interleave(group, 0)
        rewards = torch.cat([
            -((a - b) ** 2).mean((1, 2, 3)) - lpips(a, b).view(-1)
            for a, b in zip(samples.split(8), truth.split(8))
        ])
        clock.mark("reward")
        grouped = rewards.view(images, group)
        advantages = (grouped - grouped.mean(1, True)) / (grouped.std(1, keepdim=True) + 1e-8)
        advantages = advantages.clamp(-5, 5).view(-1, 1)
    rows = [tensor.repeat_interleave(group, 0) for tensor in (context, y, codes)]
    parts = range(0, images * group, 8)
    for start in parts:
        ctx, cls, gt, seq, before, advantage = (
            tensor[start : start + 8] for tensor in (*rows, sequences, old, advantages)
        )
        logits = gpt(ctx, cls, input_pos=positions)[0]
        new = logits.log_softmax(-1).gather(2, seq.unsqueeze(-1)).squeeze(-1)
        ratio = (new - before).exp()
        loss = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(0.8, 1.2)).mean()
        loss = loss + 0.1 * F.cross_entropy(logits.flatten(0, 1), gt.flatten())
        (loss / len(parts)).backward()
    torch.nn.utils.clip_grad_norm_(gpt.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    clock.mark("update")
    return clock.times


def rollout(model, batch, codes, dtype):
    gpt = policy(model, 256)[0].to(getattr(torch, dtype))
    with contextlib.redirect_stdout(sys.stderr):
        begin = time.perf_counter()
        generate(gpt, torch.zeros(batch, dtype=torch.long), codes, temperature=1.0, top_k=0, top_p=1.0)
        seconds = time.perf_counter() - begin
    gpt.float()
    for block in gpt.layers:
        block.attention.kv_cache = None
    return {"rollout": seconds}


for line in sys.stdin:
    request = json.loads(line)
    print(json.dumps({"step": step, "rollout": rollout}[request.pop("what")](**request)), flush=True)
