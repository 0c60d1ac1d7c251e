"""Run by torchrun: one backward of one global batch; rank 0 leaves the averaged gradients in a file.

Usage: gradients_worker.py <algorithm> <photo folder> <out.pt>
"""

import sys

import torch

from headrace.models.algorithm import Progress
from headrace.models.algorithms.mae import MAE
from headrace.models.algorithms.simclr import SimCLR
from headrace.models.backbones.resnet import ResNet
from headrace.models.backbones.vit import ViT
from headrace.models.decoders import MAEDecoder
from headrace.models.distributed import synchronize_batch_norm
from headrace.pipelines.loaders.memory import MemoryLoader
from headrace.pipelines.order import Order
from headrace.pipelines.sources import open_source
from headrace.pipelines.spec import ViewSpec
from headrace.train.engine.distributed import launch
from headrace.train.engine.loop import wrap

CONFIGS = {
    "mae": MAE.Config(
        view=ViewSpec(size=32),
        backbone=ViT.Config(patch_size=8, width=24, depth=2, heads=2),
        decoder=MAEDecoder.Config(width=16, depth=1, heads=2),
    ),
    "simclr": SimCLR.Config(
        view=ViewSpec(count=2, size=32, jitter=0.8, brightness=0.4, hue=0.1),
        backbone=ResNet.Config(small_image_stem=True),
        hidden=32,
        projection=16,
    ),
}


def main(name: str, folder: str, out: str) -> None:
    with launch(torch.device("cpu")) as process:
        torch.manual_seed(0)
        algorithm = {"mae": MAE, "simclr": SimCLR}[name](CONFIGS[name])
        algorithm = synchronize_batch_norm(algorithm, process.device)
        source = open_source(folder)
        loader = MemoryLoader(
            source, algorithm.inputs(), Order(len(source), 12, seed=4), seed=4, rank=process.rank, world=process.world
        )
        model = wrap(algorithm, process)
        output = model(next(loader), Progress(0, 1, loader.steps_per_epoch))
        output.loss.backward()
        if process.is_main:
            buffers = {f"buffer {key}": value for key, value in algorithm.named_buffers()}
            torch.save({**{key: p.grad for key, p in algorithm.named_parameters()}, **buffers}, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
