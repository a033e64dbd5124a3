"""Golden values for src/nn from PyTorch: layers, initial values, AdamW, clipping, schedules, EMA, autocast, and the
losses of examples/emoji_classifier.ts.

Run: python scripts/golden/nn.py   (needs torch, safetensors; test/fixtures/emoji_16px.safetensors must exist)
"""
import math
import os
import platform

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

ROOT = os.path.join(os.path.dirname(__file__), "..", "..")
SEED = 7


def save(name, tensors):
    metadata = {"torch": torch.__version__, "python": platform.python_version(), "seed": str(SEED)}
    path = os.path.join(ROOT, "test", "golden", "nn", f"{name}.safetensors")
    save_file({key: value.detach().clone().contiguous() for key, value in tensors.items()}, path, metadata)
    print(f"{name}: {len(tensors)} tensors, {os.path.getsize(path)} bytes")


def layers():
    """Of each layer: its state before, an input, the output, the output's gradient, and all gradients."""
    torch.manual_seed(SEED)
    out = {}

    def record(key, module, x):
        for parameter in module.parameters():  # ones and zeros would hide a swapped or missing operand
            with torch.no_grad():
                parameter.add_(0.3 * torch.randn_like(parameter))
        for name, value in module.state_dict().items():
            out[f"{key}/state/{name}"] = value.clone()
        out[f"{key}/x"] = x
        if x.is_floating_point():
            x.requires_grad_()
        y = module(x)
        gradient = torch.randn_like(y)
        y.backward(gradient)
        out[f"{key}/y"] = y
        out[f"{key}/gradient"] = gradient
        if x.is_floating_point():
            out[f"{key}/x_grad"] = x.grad
        for name, parameter in module.named_parameters():
            out[f"{key}/grad/{name}"] = parameter.grad
        for name, value in module.named_buffers():
            out[f"{key}/after/{name}"] = value.clone()

    image = lambda: torch.randn(2, 4, 6, 5)
    record("linear", nn.Linear(5, 3), torch.randn(2, 4, 5))
    record("linear_no_bias", nn.Linear(5, 3, bias=False), torch.randn(4, 5))
    record("embedding", nn.Embedding(7, 3), torch.tensor([[1, 6, 1], [0, 3, 1]]))
    record("layer_norm", nn.LayerNorm(6), 3 * torch.randn(2, 3, 6) + 1)
    record("layer_norm_no_bias", nn.LayerNorm(6, eps=0.1, bias=False), torch.randn(3, 6))
    record("layer_norm_plain", nn.LayerNorm(6, elementwise_affine=False), torch.randn(3, 6))
    record("rms_norm", nn.RMSNorm(6, eps=1e-5), 3 * torch.randn(2, 3, 6) + 1)
    record("group_norm", nn.GroupNorm(2, 4, eps=1e-6), image())
    record("batch_norm", nn.BatchNorm2d(4, eps=1e-3, momentum=0.2), 2 * image() + 1)
    batch_norm = nn.BatchNorm2d(4)
    batch_norm(3 * image() - 1)
    record("batch_norm_eval", batch_norm.eval(), image())
    record("conv", nn.Conv2d(4, 6, 3, padding=1), image())
    record("conv_strided", nn.Conv2d(4, 6, (2, 3), stride=(2, 1), padding=(1, 0), dilation=(1, 2), bias=False), image())
    record("conv_grouped", nn.Conv2d(4, 6, 1, groups=2), image())
    torch.manual_seed(SEED)
    record("dropout", nn.Dropout(0.3), torch.randn(4, 8))
    # fmt: off
    record("sequential", nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1), nn.GroupNorm(4, 8), nn.SiLU(), nn.Conv2d(8, 2, 1)), image())
    # fmt: on
    save("layers", out)


def initial():
    """Values that modules start with, drawn one after another from one seed."""
    torch.manual_seed(SEED)
    out = {}
    modules = {
        "linear": nn.Linear(6, 4),
        "conv": nn.Conv2d(4, 6, (3, 2), groups=2),
        "embedding": nn.Embedding(5, 3),
        "linear_no_bias": nn.Linear(3, 5, bias=False),
        "layer_norm": nn.LayerNorm(4),
    }
    for key, module in modules.items():
        for name, value in module.state_dict().items():
            out[f"{key}.{name}"] = value
    out["xavier"] = nn.init.xavier_uniform_(torch.empty(4, 3, 2, 2), gain=0.5)
    out["kaiming"] = nn.init.kaiming_uniform_(torch.empty(4, 6), a=1)
    out["normal"] = nn.init.normal_(torch.empty(4, 5), 0.5, 0.02)
    out["uniform"] = nn.init.uniform_(torch.empty(17), -2, 3)
    save("init", out)


def adamw():
    """20 steps over two groups; parameter b has no gradient in every third step, c never has one."""
    torch.manual_seed(SEED)
    out = {}
    for dtype in (torch.float32, torch.float64):
        shapes = {"a": (4, 3), "b": (5,), "c": (2,), "d": (33, 7), "e": ()}
        params = {k: nn.Parameter(torch.randn(s, dtype=dtype)) for k, s in shapes.items()}
        first, second = [params[k] for k in "abc"], [params[k] for k in "de"]
        optimizer = torch.optim.AdamW(
            [{"params": first, "weight_decay": 0.3}, {"params": second, "lr": 1e-2, "betas": (0.8, 0.9), "eps": 1e-3}],
            lr=3e-2,
            fused=True,
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        prefix = str(dtype).removeprefix("torch.")
        for k, p in params.items():
            out[f"{prefix}/start/{k}"] = p
        grads = {k: [] for k in "abde"}
        values = {k: [] for k in "abde"}
        out.update({k: v.clone() for k, v in out.items()})
        for step in range(20):
            for k in "abde":
                params[k].grad = 10 ** (step % 5 - 2) * torch.randn_like(params[k])
                grads[k].append(params[k].grad.clone())
            if step % 3 == 0:
                params["b"].grad = None
            optimizer.step()
            schedule.step()
            for k in values:
                values[k].append(params[k].detach().clone())
        for k in values:
            out[f"{prefix}/grads/{k}"] = torch.stack(grads[k])
            out[f"{prefix}/values/{k}"] = torch.stack(values[k])
            state = optimizer.state[params[k]]
            out[f"{prefix}/state/{k}.step"] = state["step"]
            out[f"{prefix}/state/{k}.exp_avg"] = state["exp_avg"]
            out[f"{prefix}/state/{k}.exp_avg_sq"] = state["exp_avg_sq"]
        assert params["c"] not in optimizer.state
    save("adamw", out)


def clip():
    torch.manual_seed(SEED)
    out = {}
    params = [nn.Parameter(torch.zeros(s)) for s in ((4, 3), (5,), ())] + [nn.Parameter(torch.zeros(6).double())]
    for i, p in enumerate(params):
        p.grad = torch.randn_like(p)
        out[f"before/{i}"] = p.grad.clone()
    for max_norm in (100.0, 0.5):
        out[f"norm/{max_norm:g}"] = nn.utils.clip_grad_norm_(params, max_norm).double()
        for i, p in enumerate(params):
            out[f"after/{max_norm:g}/{i}"] = p.grad.clone()
    save("clip", out)


def schedules():
    """Factors over 40 updates: 10 of warm-up, decay to update 30, and what comes after."""
    S = torch.optim.lr_scheduler
    out = {}

    def record(key, make):
        parameter = nn.Parameter(torch.zeros(1))
        optimizer = torch.optim.SGD([parameter], lr=1.0)
        schedule = make(optimizer)
        factors = []
        for _ in range(40):
            factors.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        out[key] = torch.tensor(factors, dtype=torch.float64)

    def warm(optimizer, after):
        before = S.LinearLR(optimizer, start_factor=1 / 11, total_iters=10)
        return S.SequentialLR(optimizer, [before, after], milestones=[10])

    class Held(S.CosineAnnealingLR):  # PyTorch's rises again after T_max
        def get_lr(self):
            return super().get_lr() if self.last_epoch <= self.T_max else [self.eta_min]

    record("constant", lambda o: warm(o, S.ConstantLR(o, factor=1)))
    record("linear", lambda o: warm(o, S.LinearLR(o, 1.0, 0.1, total_iters=20)))
    record("cosine", lambda o: warm(o, Held(o, T_max=20, eta_min=0.1)))
    record("cosine_cold", lambda o: Held(o, T_max=30))
    save("schedules", out)


def ema():
    torch.manual_seed(SEED)
    out = {}
    model = nn.Linear(4, 3)
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    averaged.update_parameters(model)  # the first call copies
    warmed = {k: v.detach().clone() for k, v in model.named_parameters()}
    steps = {k: [] for k in warmed}
    for k, v in model.named_parameters():
        out[f"start/{k}"] = v.detach().clone()
    for t in range(12):
        with torch.no_grad():
            for k, v in model.named_parameters():
                v.add_(torch.randn_like(v))
                steps[k].append(v.detach().clone())
                decay = min((1 + t) / (10 + t), 0.5)
                warmed[k] = decay * warmed[k] + (1 - decay) * v
        averaged.update_parameters(model)
    for k, v in averaged.module.named_parameters():
        out[f"steps/{k}"] = torch.stack(steps[k])
        out[f"average/{k}"] = v
        out[f"warmed/{k}"] = warmed[k]
    save("ema", out)


def autocast():
    """Forward and backward of a small network in bfloat16 with float32 weights."""
    torch.manual_seed(SEED)
    # fmt: off
    model = nn.Sequential(
        nn.Linear(16, 32), nn.LayerNorm(32), nn.GELU(), nn.Linear(32, 32, bias=False), nn.SiLU(), nn.Linear(32, 5))
    # fmt: on
    out = {f"state/{k}": v.clone() for k, v in model.state_dict().items()}
    x = torch.randn(8, 16, requires_grad=True)
    target = torch.randint(0, 5, (8,))
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(x)
        loss = F.cross_entropy(logits, target)
    loss.backward()
    out |= {"x": x, "target": target, "logits": logits, "loss": loss, "x_grad": x.grad}
    out |= {f"grad/{k}": v.grad for k, v in model.named_parameters()}
    save("autocast", out)


def emoji(epochs=10, seed=0):
    """The same experiment as examples/emoji_classifier.ts, with the same random numbers."""
    data = load_file(os.path.join(ROOT, "test", "fixtures", "emoji_16px.safetensors"))
    images = (data["images"].float() / 127.5 - 1).flatten(1)
    labels = data["labels"]
    torch.manual_seed(seed)
    order = torch.randperm(len(images))
    train, held_out = order[:-154], order[-154:]
    model = nn.Sequential(nn.Linear(768, 128), nn.GELU(), nn.Linear(128, 9))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05, fused=True)
    total = epochs * math.ceil(len(train) / 64)

    def factor(step):
        if step < 20:
            return (step + 1) / 21
        return 0.05 + 0.95 * (1 + math.cos(math.pi * (step - 20) / (total - 20))) / 2

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    losses = []
    for _ in range(epochs):
        for indices in train[torch.randperm(len(train))].split(64):
            loss = F.cross_entropy(model(images[indices]), labels[indices])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
    accuracy = (model(images[held_out]).argmax(1) == labels[held_out]).float().mean()
    save("emoji", {"losses": torch.tensor(losses, dtype=torch.float64), "accuracy": accuracy})
    print(f"loss {losses[0]:.4f} -> {losses[-1]:.4f}, held-out accuracy {accuracy:.3f}")


torch.set_num_threads(1)
for golden in (layers, initial, adamw, clip, schedules, ema, autocast, emoji):
    golden()
