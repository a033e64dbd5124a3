"""Golden images for src/data: Pillow's resizing, ADM's centre crop and OpenCV-like bilinear resizing by PyTorch.

Run: python scripts/golden/data.py   (needs torch, numpy, pillow, safetensors)
"""
import os
import PIL
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file

OUT = os.path.join(os.path.dirname(__file__), "..", "..", "test", "golden", "data")
CASES = [(37, 53, 16), (16, 16, 16), (100, 64, 24), (9, 13, 16), (131, 70, 32)]
FILTERS = {"box": Image.BOX, "bilinear": Image.BILINEAR, "bicubic": Image.BICUBIC, "lanczos": Image.LANCZOS}


def center_crop(image, size):
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def bilinear(array, height, width):
    x = torch.from_numpy(array).permute(2, 0, 1)[None].double()
    y = F.interpolate(x, size=(height, width), mode="bilinear", align_corners=False, antialias=False)
    return (y + 0.5).floor()[0].permute(1, 2, 0).to(torch.uint8)


tensors = {}
rng = np.random.default_rng(0)
for i, (height, width, size) in enumerate(CASES):
    array = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(array)
    tensors[f"{i}.source"] = torch.from_numpy(array)
    tensors[f"{i}.center"] = torch.from_numpy(np.array(center_crop(image, size)))
    for name, kind in FILTERS.items():
        tensors[f"{i}.{name}"] = torch.from_numpy(np.array(image.resize((20, 11), kind)))
    scale = size / min(height, width)
    h, w = round(height * scale), round(width * scale)
    top, left = (h - size) // 2, (w - size) // 2
    tensors[f"{i}.smallest_side"] = bilinear(array, h, w)[top : top + size, left : left + size].contiguous()
os.makedirs(OUT, exist_ok=True)
versions = {"torch": torch.__version__, "pillow": PIL.__version__, "numpy": np.__version__, "seed": "0"}
save_file(tensors, os.path.join(OUT, "resample.safetensors"), metadata=versions)
