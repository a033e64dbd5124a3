"""DISTS of the golden images by its own program, and scores of small aesthetic heads, for the tests.

    python scripts/golden/dists.py DISTS/DISTS_pytorch

Needs the source of dingkeyan93/DISTS, torch, torchvision, numpy and safetensors; writes test/golden/metrics/dists.safetensors and
test/golden/encoders/aesthetic. VGG16 is random: the tests draw the same weights from the same seed.
"""

import pathlib
import sys

import torch
from safetensors.torch import load_file, save_file
from torch import nn

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[0] = sys.argv[1]
import DISTS_pt  # noqa: E402
import torchvision  # noqa: E402


def random_vgg(pretrained=True):
    torch.manual_seed(0)
    layers, width = [], 3
    for out in (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512):
        if out == "M":
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [nn.Conv2d(width, out, 3, padding=1), nn.ReLU(inplace=False)]
            width = out
    model = nn.Module()
    model.features = nn.Sequential(*layers)
    with torch.no_grad():
        for layer in layers:
            if isinstance(layer, nn.Conv2d):
                layer.weight.mul_(6**0.5)
    return model


torchvision.models.vgg16 = random_vgg
DISTS_pt.models.vgg16 = random_vgg
model = DISTS_pt.DISTS(load_weights=False)
generator = torch.Generator().manual_seed(3)
alpha, beta = (torch.rand(1, 1475, 1, 1, generator=generator) for _ in range(2))
model.alpha.data, model.beta.data = alpha, beta
golden = load_file(ROOT / "test/golden/metrics/pixel.safetensors")
images, samples = (golden[name].float() / 255 for name in ("images", "samples"))
y = samples.double().requires_grad_()
distance = model.double()(images.double().repeat_interleave(2, 0), y, require_grad=True)
(distance * torch.arange(1, 5)).sum().backward()
save_file({"alpha": alpha, "beta": beta, "distance": distance.detach().float(),
           # By values in [-1, 1], every second row and column.
           "grad": (y.grad / 2)[:, :, ::2, ::2].contiguous().float()},
          ROOT / "test/golden/metrics/dists.safetensors")

out = ROOT / "test/golden/encoders/aesthetic"
out.mkdir(parents=True, exist_ok=True)
torch.manual_seed(4)
x = torch.randn(3, 6)
single = nn.Linear(6, 1)
five = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.2), nn.Linear(8, 5), nn.Dropout(0.2), nn.Linear(5, 4), nn.Dropout(0.1),
                     nn.Linear(4, 3), nn.Linear(3, 1)).eval()
relu = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 5), nn.ReLU(), nn.Dropout(0.2), nn.Linear(5, 4),
                     nn.ReLU(), nn.Dropout(0.1), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 1)).eval()
torch.save(single.state_dict(), out / "linear.pth")
found = {"x": x}
for name, head in (("linear", single), ("five", five), ("relu", relu)):
    if name != "linear":
        torch.save({f"layers.{k}": v for k, v in head.state_dict().items()}, out / f"{name}.pth")
    found[name] = head(x / x.norm(dim=-1, keepdim=True)).detach().squeeze(-1)
save_file(found, out / "golden.safetensors")
print(distance)
