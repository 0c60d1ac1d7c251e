"""The webdataset library over tars of the same images, with torchvision v2's transforms in worker processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
import torchvision
import webdataset as wds

from headrace.pipelines.sources import open_source

from .folders import Views, tensors

_SHARDS = 16


def write(data: Path, out: Path) -> None:
    source = open_source(data)
    out.mkdir()
    for shard in range(_SHARDS):
        with wds.TarWriter(f"{out}/{shard:06}.tar") as tar:
            for index in range(shard, len(source), _SHARDS):
                tar.write({"__key__": f"{index:08}", "jpg": source.read(index).tobytes(), "cls": 0})


def webdataset(tars: Path | list[str], views, workers: int, batch: int) -> Iterator:
    torch.set_num_threads(1)
    rgb, make = torchvision.io.ImageReadMode.RGB, Views(views, tensors)

    def finish(encoded: bytes):
        return make(torchvision.io.decode_image(torch.frombuffer(bytearray(encoded), dtype=torch.uint8), rgb))

    urls = sorted(str(path) for path in tars.glob("*.tar")) if isinstance(tars, Path) else tars
    samples = wds.WebDataset(urls, shardshuffle=100, resampled=True).shuffle(200).to_tuple("jpg", "cls")
    collate = torch.utils.data.default_collate
    batches = samples.map_tuple(finish, int).batched(batch, partial=False, collation_fn=collate)
    for made, _ in wds.WebLoader(batches, batch_size=None, num_workers=workers):
        yield made
