"""Golden files for src/data in the formats that Python programs write: parquet, .npy and tar.

Run: python scripts/golden/data_files.py   (needs numpy 2, pillow 12, pyarrow 25)
"""
import io
import json
import os
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

OUT = os.path.join(os.path.dirname(__file__), "..", "..", "test", "golden", "data")


def png(level):
    """A 4 x 4 image of one grey level."""
    file = io.BytesIO()
    Image.fromarray(np.full((4, 4, 3), level, np.uint8)).save(file, "PNG")
    return file.getvalue()


# As Hugging Face publishes images: records of bytes and path, class names in the schema's metadata.
kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
images = pa.array([{"bytes": png(10 * i), "path": f"{i}.png"} for i in range(7)], kind)
labels = pa.array([i % 3 for i in range(7)], pa.int64())
features = {"image": {"_type": "Image"}, "label": {"names": ["cat", "dog", "eel"], "_type": "ClassLabel"}}
described = {"huggingface": json.dumps({"info": {"features": features}})}
table = pa.table({"image": images, "label": labels}).replace_schema_metadata(described)
pq.write_table(table, os.path.join(OUT, "hugging_face.parquet"), row_group_size=3, compression="snappy")

# Plain columns, with a text before them, a null among the images and names as classes.
captions = pa.array(["a", "b", "c", "d"])
bare = pa.array([png(100), None, png(120), png(130)], pa.binary())
kinds = pa.array(["eel", "cat", "eel", "cat"])
table = pa.table({"caption": captions, "img": bare, "class": kinds})
pq.write_table(table, os.path.join(OUT, "plain.parquet"), compression="zstd")

table = pa.table({"text": ["a"], "size": [1]})
pq.write_table(table, os.path.join(OUT, "no_image.parquet"))

folder = os.path.join(OUT, "npy")
os.makedirs(folder, exist_ok=True)
codes = np.arange(12, dtype=np.int64).reshape(1, 3, 4)
arrays = {
    "int64": codes,
    "uint16": (codes + 65000).astype(np.uint16),
    "int8": (codes - 6).astype(np.int8),
    "float16": np.array([[0.5, -2.0, 65504.0], [6e-8, 1e-3, -0.0]], np.float16),
    "float32": np.array([[1.5, -3.25]], np.float32),
    "float64": np.array([[0.1, 1e300]]),
    "fortran": np.asfortranarray(codes[0]),
    "big_endian": codes.astype(">i8"),
    "objects": np.array([{"a": 1}], dtype=object),
    "scalar": np.array(7, np.int32),
}
for name, array in arrays.items():
    np.save(os.path.join(folder, f"{name}.npy"), array)
with open(os.path.join(folder, "version2.npy"), "wb") as file:
    np.lib.format.write_array(file, codes, version=(2, 0))

for form in ["gnu", "pax", "ustar"]:
    with tarfile.open(os.path.join(OUT, f"{form}.tar"), "w", format=getattr(tarfile, f"{form.upper()}_FORMAT")) as tar:
        # A name beyond the 100 bytes of a header, and one outside ASCII, which ustar can only hold as it is.
        long = "c" * 30 + "/" + "d" * 60 + "/" + "e" * 40
        for key, level in [("a/0001", 10), ("b/0002", 20), (long, 30), ("b/häuser", 40)]:
            for ending, data in [("png", png(level)), ("cls", str(level // 10).encode())]:
                info = tarfile.TarInfo(f"{key}.{ending}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
