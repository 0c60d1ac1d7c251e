"""The webdataset library over tars of the same images, with torchvision v2's transforms in worker processes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
import torchvision

from headrace.pipelines.sources import open_source

from .folders import Views, tensors


def webdataset(data, views, workers: int, batch: int) -> Iterator:
    import webdataset as wds

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        source = open_source(data)
        shards = max(2 * workers, 1)
        for shard in range(shards):
            with wds.TarWriter(f"{folder}/{shard:06}.tar") as tar:
                for index in range(shard, len(source), shards):
                    tar.write({"__key__": f"{index:08}", "jpg": source.read(index).tobytes(), "cls": 0})
        rgb, make = torchvision.io.ImageReadMode.RGB, Views(views, tensors)

        def finish(encoded: bytes):
            return make(torchvision.io.decode_image(torch.frombuffer(bytearray(encoded), dtype=torch.uint8), rgb))

        urls = sorted(str(path) for path in Path(folder).glob("*.tar"))
        samples = wds.WebDataset(urls, shardshuffle=100, resampled=True).shuffle(200).to_tuple("jpg", "cls")
        batches = samples.map_tuple(finish, int).batched(
            batch, partial=False, collation_fn=torch.utils.data.default_collate
        )
        for made, _ in wds.WebLoader(batches, batch_size=None, num_workers=workers):
            yield made
