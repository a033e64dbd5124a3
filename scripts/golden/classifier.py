"""What PyTorch says of a small classifier and of the perceptual distance in its features, for the tests of src/metrics.

    python scripts/golden/classifier.py

Needs torch and safetensors; writes test/golden/metrics/classifier.safetensors. Weights and images are random float32,
everything else is computed in float64.
"""

import pathlib

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

OUT = pathlib.Path(__file__).parents[2] / "test" / "golden" / "metrics" / "classifier.safetensors"
SEED = 0
WIDTHS, DEPTH, CLASSES = [8, 16, 8], 2, 5
B, G, HEIGHT, WIDTH = 2, 2, 14, 10
torch.manual_seed(SEED)


def draw_weights():
    weights = {"stem.weight": torch.randn(WIDTHS[0], 3, 3, 3) * 0.3}

    def norm(name, width):
        weights[f"{name}.weight"] = 1 + 0.3 * torch.randn(width)
        weights[f"{name}.bias"] = 0.3 * torch.randn(width)

    norm("norm", WIDTHS[0])
    for k, (start, width) in enumerate(zip(WIDTHS, WIDTHS[1:])):
        for i in range(DEPTH):
            inputs = start if i == 0 else width
            name = f"blocks.{k}.{i}"
            weights[f"{name}.conv1.weight"] = torch.randn(width, inputs, 3, 3) / (9 * inputs) ** 0.5
            weights[f"{name}.conv2.weight"] = torch.randn(width, width, 3, 3) / (9 * width) ** 0.5
            norm(f"{name}.norm1", width)
            norm(f"{name}.norm2", width)
            if i == 0:
                weights[f"{name}.shortcut.weight"] = torch.randn(width, inputs, 1, 1) / inputs**0.5
    weights["head.weight"] = torch.randn(CLASSES, WIDTHS[-1]) * 0.5
    weights["head.bias"] = torch.randn(CLASSES) * 0.5
    return weights


def normed(w, name, x):
    """Groups of eight channels, by the formula."""
    n, c, h, width = x.shape
    groups = x.reshape(n, c // 8, -1)
    mean = groups.mean(2, keepdim=True)
    variance = ((groups - mean) ** 2).mean(2, keepdim=True)
    flat = ((groups - mean) / (variance + 1e-5).sqrt()).reshape(n, c, h, width)
    return flat * w[f"{name}.weight"].view(-1, 1, 1) + w[f"{name}.bias"].view(-1, 1, 1)


def halved(x):
    """Means of 2 x 2 pixels, of fewer at an odd border."""
    sums = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2)).unfold(2, 2, 2).unfold(3, 2, 2).sum((4, 5))
    ones = torch.ones_like(x[:1, :1])
    return sums / F.pad(ones, (0, x.shape[3] % 2, 0, x.shape[2] % 2)).unfold(2, 2, 2).unfold(3, 2, 2).sum((4, 5))


def stages(w, images):
    x = F.relu(normed(w, "norm", F.conv2d(images, w["stem.weight"], padding=1)))
    out = [x]
    for k in range(len(WIDTHS) - 1):
        for i in range(DEPTH):
            name = f"blocks.{k}.{i}"
            inner = F.conv2d(x, w[f"{name}.conv1.weight"], stride=2 if i == 0 else 1, padding=1)
            inner = F.conv2d(F.relu(normed(w, f"{name}.norm1", inner)), w[f"{name}.conv2.weight"], padding=1)
            if i == 0:
                x = F.conv2d(halved(x), w[f"{name}.shortcut.weight"])
            x = F.relu(normed(w, f"{name}.norm2", inner) + x)
        out.append(x)
    return out


def distance(w, images, samples):
    maps = []
    for x, y in zip(stages(w, images), stages(w, samples)):
        x, y = (f / (f.pow(2).sum(1, keepdim=True).sqrt() + 1e-10) for f in (x, y))
        maps.append(((x - y) ** 2).sum(1, keepdim=True))
    full = [F.interpolate(m, size=images.shape[2:], mode="bilinear", align_corners=False) for m in maps]
    return sum(m.mean((1, 2, 3)) for m in maps) / len(maps), sum(full)[:, 0] / len(maps)


weights = draw_weights()
images = torch.rand(B, 3, HEIGHT, WIDTH) * 2 - 1
noise = torch.tensor([0.05, 0.6]).repeat(B).view(B * G, 1, 1, 1)  # a near sample and a far one of each
samples = images.repeat_interleave(G, 0) + noise * torch.randn(B * G, 3, HEIGHT, WIDTH)
labels = torch.tensor([3, 0])

w = {name: value.double().requires_grad_() for name, value in weights.items()}
x = images.double().requires_grad_()
y = samples.double().requires_grad_()
out = {f"weights.{name}": value for name, value in weights.items()}
out |= {"images": images, "samples": samples, "labels": labels}
maps = stages(w, x)
for k, value in enumerate(maps):
    out[f"stages.{k}"] = value
out["features"] = maps[-1].mean((2, 3))
out["logits"] = out["features"] @ w["head.weight"].T + w["head.bias"]
out["probabilities"] = out["logits"].softmax(1)
loss = F.cross_entropy(out["logits"], labels)
for name, gradient in zip(w, torch.autograd.grad(loss, list(w.values()))):
    if name in ("stem.weight", "blocks.0.0.shortcut.weight", "blocks.1.1.norm2.bias", "head.weight"):
        out[f"grad.{name}"] = gradient
out["distance"], out["map"] = distance(w, x.repeat_interleave(G, 0), y)
weighted = (out["distance"] * torch.arange(1, B * G + 1)).sum()
out["grad.images"], out["grad.samples"] = torch.autograd.grad(weighted, (x, y))

OUT.parent.mkdir(parents=True, exist_ok=True)
tensors = {
    name: (value.detach().float() if value.is_floating_point() else value).clone().contiguous() for name, value in out.items()
}
save_file(tensors, OUT, metadata={"torch": torch.__version__, "seed": str(SEED)})
OUT.chmod(0o644)
