"""LitData over its chunks behind an address, with torchvision's decoder and v2's transforms in worker processes."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path

import litdata
import torch
import torchvision
from litdata.streaming import downloader
from litdata.streaming.writer import BinaryWriter

from headrace.pipelines.sources import open_source

from .folders import Views, tensors


def write(data: Path, out: Path, megabytes: int) -> None:
    """The files of a folder as samples {image: bytes, label: 0}."""
    source = open_source(data)
    with contextlib.redirect_stdout(io.StringIO()):
        writer = BinaryWriter(str(out), chunk_bytes=megabytes << 20)
        for index in range(len(source)):
            writer[index] = {"image": source.read(index).tobytes(), "label": 0}
        writer.done()
        writer.merge(1)


class _Photos(litdata.StreamingDataset):
    def __init__(self, views, **options) -> None:
        super().__init__(**options)
        self._make = Views(views, tensors)

    def __getitem__(self, index):
        encoded = torch.frombuffer(bytearray(super().__getitem__(index)["image"]), dtype=torch.uint8)
        return self._make(torchvision.io.decode_image(encoded, torchvision.io.ImageReadMode.RGB))


def chunks(address: str, views, workers: int, batch: int, cache: Path) -> Iterator:
    """One epoch of batches from ``s3://bucket/folder`` of the server that the environment names."""
    torch.set_num_threads(1)
    downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = True  # its quick client takes no server without TLS otherwise
    place = {"endpoint_url": os.environ["AWS_ENDPOINT_URL"], "region_name": os.environ["AWS_REGION"]}
    keys = {name.lower(): os.environ[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    photos = _Photos(views, input_dir=address, cache_dir=str(cache), shuffle=True, storage_options=place | keys)
    yield from litdata.StreamingDataLoader(photos, batch_size=batch, num_workers=workers, drop_last=True)
