"""Images, and what PyTorch, TorchMetrics and scikit-image say of them, for the tests of src/metrics; and LPIPS's heads.

    python scripts/golden/metrics.py

Needs torch, torchmetrics, scikit-image, numpy and safetensors; writes test/golden/metrics and
src/metrics/weights/lpips_heads.safetensors. Backbones are random: the tests draw the same weights from the same seeds.
"""

import hashlib
import pathlib

import numpy as np
import skimage
import skimage.metrics
import torch
import torch.nn.functional as F
import torchmetrics
import torchmetrics.functional.image as tm
from safetensors.torch import save_file
from torch import nn
from torchmetrics.functional.image import lpips as tm_lpips

ROOT = pathlib.Path(__file__).parents[2]
OUT = ROOT / "test" / "golden" / "metrics"
SEED = 0
VERSIONS = {
    "torch": torch.__version__,
    "torchmetrics": torchmetrics.__version__,
    "scikit-image": skimage.__version__,
    "seed": str(SEED),
}
G = 2
torch.use_deterministic_algorithms(True)
torch.manual_seed(SEED)


def draw_images():
    """Two images with soft shapes and some grain, and two samples of each: one near, one far. Bytes."""
    soft = F.interpolate(torch.rand(2, 3, 6, 5), size=(48, 40), mode="bicubic")
    images = soft * 200 + 25 + torch.randn(2, 3, 48, 40) * 8
    blurred = F.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)
    far = images.flip(0) * 0.5 + images * 0.5 + torch.randn(2, 3, 48, 40) * 30
    samples = torch.stack((blurred, far), 1).flatten(0, 1)
    return tuple(x.round().clamp(0, 255).to(torch.uint8) for x in (images, samples))


def signed(x):
    return x.float() / 127.5 - 1


def tiled(x):
    """Large enough for MS-SSIM."""
    return x.repeat(1, 1, 4, 5)[..., :176, :184]


def gradients(values, *inputs):
    """Of sum_n (n + 1) values[n]."""
    return torch.autograd.grad((values * torch.arange(1, len(values) + 1)).sum(), inputs)


def thinned(x):
    """Every second row and column: enough of a gradient to compare."""
    return x[:, :, ::2, ::2]


def pixel(images, samples):
    x, y = signed(images), signed(samples)
    a = x.repeat_interleave(G, 0).requires_grad_()
    b = y.clone().requires_grad_()
    out = {"images": images, "samples": samples}
    out["psnr"] = tm.peak_signal_noise_ratio(b, a, data_range=2.0, reduction="none", dim=(1, 2, 3))
    out["psnr.grad"] = thinned(gradients(out["psnr"], b)[0])
    out["ssim"], full = tm.structural_similarity_index_measure(
        b, a, data_range=2.0, reduction="none", return_full_image=True
    )
    out["ssim.map"] = full.mean(1)
    out["ssim.grad"], to_images = gradients(out["ssim"], b, a)
    out["ssim.grad_images"] = to_images.unflatten(0, (-1, G)).sum(1)
    large = tiled(y).clone().requires_grad_()
    out["ms_ssim"] = tm.multiscale_structural_similarity_index_measure(
        large, tiled(x).repeat_interleave(G, 0), data_range=2.0, reduction="none"
    )
    out["ms_ssim.grad"] = gradients(out["ms_ssim"], large)[0][:, :, ::11, ::11]
    maps = []
    for one, other in zip(a.detach().double().numpy(), b.detach().double().numpy()):
        options = dict(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=2.0, full=True)
        maps.append(skimage.metrics.structural_similarity(one, other, channel_axis=0, **options)[1].mean(0))
    # Only borders are treated otherwise there.
    out["ssim.map_inside"] = torch.from_numpy(np.stack(maps))[:, 5:-5, 5:-5]
    return out


class Fire(nn.Module):
    def __init__(self, inputs, squeeze, expand):
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeeze, 1)
        self.expand1x1 = nn.Conv2d(squeeze, expand, 1)
        self.expand3x3 = nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x):
        x = F.relu(self.squeeze(x))
        return torch.cat((F.relu(self.expand1x1(x)), F.relu(self.expand3x3(x))), 1)


def vgg16():
    layers, width = [], 3
    for item in [64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512]:
        if item == "M":
            layers.append(nn.MaxPool2d(2, 2))
        else:
            layers += [nn.Conv2d(width, item, 3, padding=1), nn.ReLU()]
            width = item
    return nn.Sequential(*layers)


def alexnet():
    return nn.Sequential(
        *(nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU()),
    )


def squeezenet():
    return nn.Sequential(
        *(nn.Conv2d(3, 64, 3, stride=2), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True)),
        *(Fire(64, 16, 64), Fire(128, 16, 64), nn.MaxPool2d(3, 2, ceil_mode=True)),
        *(Fire(128, 32, 128), Fire(256, 32, 128), nn.MaxPool2d(3, 2, ceil_mode=True)),
        *(Fire(256, 48, 192), Fire(384, 48, 192), Fire(384, 64, 256), Fire(512, 64, 256)),
    )


NETS = {
    "vgg": (vgg16, [3, 8, 15, 22, 29]),
    "alex": (alexnet, [1, 4, 7, 9, 11]),
    "squeeze": (squeezenet, [1, 4, 7, 9, 10, 11, 12]),
}
MD5 = {
    "vgg": "d507d7349b931f0638a25a48a722f98a",
    "alex": "9642209e2b57a85d20f86d812320f9e6",
    "squeeze": "6361044f0470b81956528320db0ba955",
}


def published_heads(net):
    path = pathlib.Path(tm_lpips.__file__).parent / "lpips_models" / f"{net}.pth"
    assert hashlib.md5(path.read_bytes()).hexdigest() == MD5[net], path
    return torch.load(path, map_location="cpu")


def random_backbone(net):
    """torchvision's layers in its order, with the variance of He et al. so that signals reach the end. The pool after the last tap is left out."""
    torch.manual_seed(SEED)
    features = NETS[net][0]()
    with torch.no_grad():
        for layer in features.modules():
            if isinstance(layer, nn.Conv2d):
                layer.weight.mul_(6**0.5)
    return features.requires_grad_(False)


def lpips(net, x, y):
    """Zhang et al. 2018, eq. 1, as the authors' program has it: distance [N] and map [N, 1, H, W]."""
    features, taps, heads = random_backbone(net), NETS[net][1], published_heads(net)
    shift = torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1)

    def units(images):
        images, out = (images - shift) / scale, []
        for i, layer in enumerate(features):
            images = layer(images)
            if i in taps:
                length = images.pow(2).sum(1, keepdim=True).sqrt()
                out.append(images / (length + 1e-10))
        return out

    maps = [
        F.conv2d((a - b) ** 2, heads[f"lin{k}.model.1.weight"]) for k, (a, b) in enumerate(zip(units(x), units(y)))
    ]
    large = [F.interpolate(m, size=x.shape[2:], mode="bilinear", align_corners=False) for m in maps]
    return sum(m.mean((1, 2, 3)) for m in maps), sum(large)


def perceptual(images, samples):
    out = {}
    x, y = signed(images).repeat_interleave(G, 0), signed(samples)
    for net in NETS:
        b = y.clone().requires_grad_()
        distance, full = lpips(net, x, b)
        out[f"{net}.distance"] = distance
        out[f"{net}.map"] = full[:, 0]
        out[f"{net}.grad"] = thinned(gradients(distance, b)[0])
        # TorchMetrics regularises the length otherwise, so it agrees less closely.
        assert all(value.isfinite().all() for value in out.values()), net
        tm_lpips._get_tv_model_features = lambda name, pretrained: random_backbone(net)
        other = tm_lpips._LPIPS(net=net)(x, y).flatten()
        assert torch.allclose(distance, other, rtol=1e-4), (net, distance, other)
    return out


def patchgan(samples):
    def conv(*args, **options):
        return nn.Conv2d(*args, kernel_size=4, padding=1, **options)

    torch.manual_seed(SEED)
    layers = [conv(3, 64, stride=2), nn.LeakyReLU(0.2)]
    for inputs, outputs, stride in ((64, 128, 2), (128, 256, 2), (256, 512, 1)):
        layers += [conv(inputs, outputs, stride=stride, bias=False), nn.BatchNorm2d(outputs), nn.LeakyReLU(0.2)]
    net = nn.Sequential(*layers, conv(512, 1))
    for layer in net:
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, 0.0, 0.02)
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.weight, 1.0, 0.02)
    y = signed(samples)
    out = {"parameters": torch.tensor(sum(p.numel() for p in net.parameters()))}
    out["train.logits"] = net(y)
    out["train.logits"].mean().backward()
    for name in ("0.bias", "3.weight", "11.bias"):
        out[f"train.grad.main.{name}"] = net.get_parameter(name).grad
    net.eval()
    b = y.clone().requires_grad_()
    out["eval.logits"] = net(b)
    out["eval.score"] = out["eval.logits"].mean((1, 2, 3))
    out["eval.grad"] = thinned(gradients(out["eval.score"], b)[0])
    for name in ("3.running_mean", "9.running_var", "9.num_batches_tracked"):
        out[f"main.{name}"] = net.state_dict()[name]
    out["eval.32px"] = net(y[:, :, :32, :32])
    return out


def save(path, tensors, metadata=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
    save_file(tensors, path, metadata=metadata or VERSIONS)
    path.chmod(0o644)


images, samples = draw_images()
save(OUT / "pixel.safetensors", pixel(images, samples))
save(OUT / "lpips.safetensors", perceptual(images, samples))
save(OUT / "patchgan.safetensors", patchgan(samples))
heads = {f"{net}.{name}": value for net in NETS for name, value in published_heads(net).items()}
source = {"source": "LPIPS heads, version 0.1", "licence": "BSD-2-Clause, see LICENSE beside this file"}
save(ROOT / "src" / "metrics" / "weights" / "lpips_heads.safetensors", heads, source)
