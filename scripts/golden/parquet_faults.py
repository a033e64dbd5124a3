"""Parquet files that hold no usable images or labels, for the messages of src/data/parquet.ts.

Run: python scripts/golden/parquet_faults.py   (needs pyarrow 25)
"""
import base64
import json
import os
import struct
import zlib

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as encryption

OUT = os.path.join(os.path.dirname(__file__), "..", "..", "test", "golden", "data")


def png(level):
    """A 4 x 4 image of one grey level."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    head = struct.pack(">IIBBBBB", 4, 4, 8, 0, 0, 0, 0)
    rows = bytes([0, level, level, level, level]) * 4
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def write(name, **columns):
    statistics = columns.pop("statistics", True)
    pq.write_table(pa.table(columns), os.path.join(OUT, f"{name}.parquet"), write_statistics=statistics)


record = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
labels = pa.array([0, 1, 0], pa.int64())
some = pa.array([png(10), png(20), png(30)], pa.binary())
lists = [[{"bytes": png(10), "path": "a"}], [], [{"bytes": png(20), "path": "b"}]]
write("image_list", images=pa.array(lists, pa.list_(record)), label=labels)
write("byte_list", images=pa.array([[png(10)], [], [png(20)]], pa.list_(pa.binary())), label=labels)
paths = pa.array([{"bytes": None, "path": f"{i}.png"} for i in range(3)], record)
write("paths_only", image=paths, label=labels)
write("paths_only_unknown", image=paths, label=labels, statistics=False)
write("path_struct", image=pa.array([{"path": f"{i}.png"} for i in range(3)], pa.struct([("path", pa.string())])), label=labels)
write("label_unknown", image=some, label=pa.array([0, -1, 1], pa.int64()))
write("label_null", image=some, label=pa.array([0, 1, None], pa.int64()))
write("label_list", image=some, label=pa.array([[0], [1, 2], []], pa.list_(pa.int64())))


class Keys(encryption.KmsClient):
    """Hands out the data keys as they are."""
    def __init__(self, _):
        super().__init__()

    def wrap_key(self, key, _):
        return base64.b64encode(key)

    def unwrap_key(self, key, _):
        return base64.b64decode(key)


for name, plain in [("encrypted", False), ("encrypted_label", True)]:
    table = pa.table({"image": some, "label": labels})
    settings = encryption.EncryptionConfiguration("footer", column_keys={"key": ["label"]}, plaintext_footer=plain)
    properties = encryption.CryptoFactory(Keys).file_encryption_properties(encryption.KmsConnectionConfig(), settings)
    with pq.ParquetWriter(os.path.join(OUT, f"{name}.parquet"), table.schema, encryption_properties=properties) as out:
        out.write_table(table)
table = pa.table({"image": some, "label": labels})
encodings = {"image": "DELTA_BYTE_ARRAY", "label": "PLAIN"}
pq.write_table(table, os.path.join(OUT, "delta_bytes.parquet"), use_dictionary=False, column_encoding=encodings)
listed = pa.array([{"bytes": [png(10)], "path": "x"}] * 3, pa.struct([("bytes", pa.list_(pa.binary())), ("path", pa.string())]))
write("record_list", image=listed, label=labels)

# Columns and classes that could be taken for others.
pair = pa.Table.from_arrays([some, labels, pa.array([5, 5, 5])], names=["image", "label", "label"])
pq.write_table(pair, os.path.join(OUT, "column_twice.parquet"))
write("mask_and_image", mask=pa.array([png(200)] * 3, pa.binary()), image=some, label=labels)
write("label_bytes", image=some, label=pa.array([b"\xff", b"\xfe", b"a"], pa.binary()))
for name, classes in [("names_ab", ["a", "b"]), ("names_ba", ["b", "a"]), ("names_twice", ["a", "a"])]:
    about = {"info": {"features": {"label": {"names": classes, "_type": "ClassLabel"}}}}
    table = pa.table({"image": some, "label": labels}).replace_schema_metadata({"huggingface": json.dumps(about)})
    pq.write_table(table, os.path.join(OUT, f"{name}.parquet"))
