"""Writes test/golden/rl/tokenizer_losses.safetensors: values and gradients of the tokenizers' training losses.

The formulas are those of VQGAN, LlamaGen and SEED-Voken, written out; everything in float32, by PyTorch.
Usage: python scripts/golden/tokenizer_losses.py
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

SEED = 20240611
OUT = Path(__file__).resolve().parents[2] / "test" / "golden" / "rl" / "tokenizer_losses.safetensors"


def per_image(logits):
    return logits.flatten(1).mean(1)


def bce(logits, target):
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))


GENERATOR = {
    "hinge": lambda fake: -fake.mean(),
    "vanilla": lambda fake: bce(fake, 1.0),
    "non_saturating": lambda fake: bce(per_image(fake), 1.0),
}
DISCRIMINATOR = {
    "hinge": lambda real, fake: 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean()),
    "vanilla": lambda real, fake: 0.5 * (bce(real, 1.0) + bce(fake, 0.0)),
    "non_saturating": lambda real, fake: bce(per_image(real), 1.0) + bce(per_image(fake), 0.0),
}


def main():
    torch.manual_seed(SEED)
    out = {}
    images = torch.rand(3, 3, 8, 8) * 2 - 1
    made = torch.rand(3, 3, 8, 8) * 2 - 1
    out["images"], out["made"] = images, made
    for name, loss in {"l1": F.l1_loss, "l2": F.mse_loss}.items():
        x = made.clone().requires_grad_()
        value = loss(x, images)
        out[f"pixel.{name}"] = value.detach()
        (out[f"pixel.{name}.grad"],) = torch.autograd.grad(value, x)

    real = torch.randn(3, 1, 4, 4) * 1.5 + 0.5
    fake = torch.randn(3, 1, 4, 4) * 1.5 - 0.5
    out["real"], out["fake"] = real, fake
    for name, loss in GENERATOR.items():
        x = fake.clone().requires_grad_()
        value = loss(x)
        out[f"generator.{name}"] = value.detach()
        (out[f"generator.{name}.grad"],) = torch.autograd.grad(value, x)
    for name, loss in DISCRIMINATOR.items():
        r, f = real.clone().requires_grad_(), fake.clone().requires_grad_()
        value = loss(r, f)
        out[f"discriminator.{name}"] = value.detach()
        out[f"discriminator.{name}.real_grad"], out[f"discriminator.{name}.fake_grad"] = torch.autograd.grad(
            value, [r, f]
        )

    average_real, average_fake = 0.0, 0.0
    for step in range(3):
        r, f = (real + step).requires_grad_(), (fake - 0.5 * step).requires_grad_()
        average_real = 0.9 * average_real + 0.1 * r.mean().item()
        average_fake = 0.9 * average_fake + 0.1 * f.mean().item()
        value = F.relu(r - average_fake).pow(2).mean() + F.relu(average_real - f).pow(2).mean()
        out[f"lecam.{step}"] = value.detach()
        out[f"lecam.{step}.averages"] = torch.tensor([average_real, average_fake], dtype=torch.float64)
        out[f"lecam.{step}.real_grad"], out[f"lecam.{step}.fake_grad"] = torch.autograd.grad(value, [r, f])

    # A decoder of two layers and a discriminator of one; the whole loss at once, as the published code has it.
    latent = torch.randn(2, 4, 8, 8)
    target = torch.rand(2, 3, 8, 8) * 2 - 1
    first = torch.randn(6, 4, 3, 3) * 0.2
    last = torch.randn(3, 6, 3, 3) * 0.2
    critic = torch.randn(1, 3, 4, 4) * 0.3
    out.update(latent=latent, target=target, first=first, last=last, critic=critic)
    for name, weight, adaptive in [("fixed", 0.1, False), ("adaptive", 0.8, True), ("none", 0.0, False)]:
        a, b = first.clone().requires_grad_(), last.clone().requires_grad_()
        hidden = torch.tanh(F.conv2d(latent, a, padding=1))
        image = F.conv2d(hidden, b, padding=1)
        near = F.l1_loss(image, target) + 0.5 * F.mse_loss(image, target)
        adversarial = -F.conv2d(image, critic, stride=2, padding=1).mean()
        factor = torch.tensor(weight)
        if adaptive:
            (of_near,) = torch.autograd.grad(near, b, retain_graph=True)
            (of_adversarial,) = torch.autograd.grad(adversarial, b, retain_graph=True)
            ratio = torch.norm(of_near) / (torch.norm(of_adversarial) + 1e-4)
            factor = torch.clamp(ratio, 0.0, 1e4).detach() * weight
        other = hidden.square().mean()
        (near + factor * adversarial + other).backward()
        out[f"through.{name}.factor"] = factor
        out[f"through.{name}.near"] = near.detach()
        out[f"through.{name}.first_grad"], out[f"through.{name}.last_grad"] = a.grad, b.grad

    metadata = {"seed": str(SEED), "torch": torch.__version__, "script": "scripts/golden/tokenizer_losses.py"}
    save_file({name: value.contiguous() for name, value in out.items()}, OUT, metadata=metadata)
    print(f"{OUT}: {len(out)} tensors")


if __name__ == "__main__":
    main()
