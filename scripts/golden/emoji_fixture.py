"""Make test/fixtures/emoji_16px.safetensors: Noto emoji at 16 x 16 pixels with their Unicode categories.

Base emoji (no skin tones) of each category but "Component", at most 200 evenly spaced in Unicode's order, painted on
white and averaged over 4 x 4 pixels. An image that equals an earlier one is left out.

Run: npm pack emoji-datasource-google@16.0.0, unpack it, and
     python scripts/golden/emoji_fixture.py path/to/package   (needs numpy, pillow, safetensors)
"""
import json
import os
import sys

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

OUT = os.path.join(os.path.dirname(__file__), "..", "..", "test", "fixtures", "emoji_16px.safetensors")
MOST = 200


def picture(path):
    rgba = np.asarray(Image.open(path).convert("RGBA"), dtype=np.float64)  # [64, 64, 4]
    alpha = rgba[..., 3:] / 255
    on_white = rgba[..., :3] * alpha + 255 * (1 - alpha)
    means = on_white.reshape(16, 4, 16, 4, 3).mean((1, 3))
    return np.floor(means + 0.5).astype(np.uint8).transpose(2, 0, 1)  # [3, 16, 16]


package = sys.argv[1]
with open(os.path.join(package, "package.json")) as file:
    version = json.load(file)["version"]
with open(os.path.join(package, "emoji.json")) as file:
    emoji = sorted((e for e in json.load(file) if e["has_img_google"]), key=lambda e: e["sort_order"])
categories = sorted({e["category"] for e in emoji} - {"Component"})
images, labels, seen = [], [], set()
for label, category in enumerate(categories):
    members = [e for e in emoji if e["category"] == category]
    count = min(MOST, len(members))
    for i in range(count):
        image = picture(os.path.join(package, "img", "google", "64", members[i * len(members) // count]["image"]))
        if image.tobytes() in seen:
            continue
        seen.add(image.tobytes())
        images.append(image)
        labels.append(label)
metadata = {
    "categories": json.dumps(categories),
    "source": f"Noto Emoji, from the npm package emoji-datasource-google {version}",
    "licence": "Apache-2.0; flags: public domain",
    "changes": "painted on white, averaged to 16 x 16 pixels",
}
save_file({"images": np.ascontiguousarray(np.stack(images)), "labels": np.array(labels, dtype=np.int64)}, OUT, metadata)
print(len(images), np.bincount(labels), os.path.getsize(OUT), "bytes")
