"""TensorBoard's own bytes for the events of test/run/events.test.ts.

Run: python scripts/golden/events.py   (tensorboard 2.21; writes test/golden/events/)
"""

import struct
import zlib
from pathlib import Path

from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2, tensor_shape_pb2, types_pb2
from tensorboard.plugins.hparams import metadata, plugin_data_pb2
from tensorboard.summary.writer.record_writer import RecordWriter

OUT = Path(__file__).parents[2] / "test" / "golden" / "events"


def png(width, height, rgb):
    """The smallest PNG writer there is: every pixel the same colour."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = (b"\0" + bytes(rgb) * width) * height
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    image = png(3, 2, (255, 128, 0))
    (OUT / "pixel.png").write_bytes(image)
    value = summary_pb2.Summary.Value
    plugin = summary_pb2.SummaryMetadata.PluginData(plugin_name="text")
    words = tensor_pb2.TensorProto(
        dtype=types_pb2.DT_STRING,
        tensor_shape=tensor_shape_pb2.TensorShapeProto(dim=[tensor_shape_pb2.TensorShapeProto.Dim(size=1)]),
        string_val=["# Grüße".encode()],
    )
    summaries = [
        (0, [value(tag="reward/mean", simple_value=-0.03125), value(tag="kl/ref", simple_value=0.0)]),
        (300, [value(tag="reward/mean", simple_value=0.1)]),
        (
            300,
            [
                value(
                    tag="samples",
                    image=summary_pb2.Summary.Image(height=2, width=3, colorspace=3, encoded_image_string=image),
                )
            ],
        ),
        (
            2**40,
            [value(tag="config", tensor=words, metadata=summary_pb2.SummaryMetadata(plugin_data=plugin))],
        ),
    ]
    events = [event_pb2.Event(wall_time=1000.5, file_version="brain.Event:2")]
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    events.append(event_pb2.Event(wall_time=1000.5, step=7, session_log=start))
    for step, values in summaries:
        summary = summary_pb2.Summary(value=values)
        events.append(event_pb2.Event(wall_time=1000.5, step=step, summary=summary))
    write("run.tfevents", events)

    start = plugin_data_pb2.SessionStartInfo(start_time_secs=1000.5)
    start.hparams["a.lr"].number_value = 0.001
    start.hparams["a.zero"].number_value = 0.0
    start.hparams["b.off"].bool_value = False
    start.hparams["b.on"].bool_value = True
    start.hparams["c.empty"].string_value = ""
    start.hparams["c.name"].string_value = "Grüße"
    info = plugin_data_pb2.HParamsPluginData(session_start_info=start)
    values = value(
        tag=metadata.SESSION_START_INFO_TAG,
        tensor=metadata.NULL_TENSOR,
        metadata=metadata.create_summary_metadata(info),
    )
    summary = summary_pb2.Summary(value=[values])
    version = event_pb2.Event(wall_time=1000.5, file_version="brain.Event:2")
    write("hparams.tfevents", [version, event_pb2.Event(wall_time=1000.5, step=0, summary=summary)])


def write(name, events):
    with open(OUT / name, "wb") as file:
        writer = RecordWriter(file)
        for item in events:
            writer.write(item.SerializeToString(deterministic=True))


if __name__ == "__main__":
    main()
