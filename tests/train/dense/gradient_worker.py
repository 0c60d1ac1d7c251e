"""One of several processes with their shares of four images: gradient_worker.py <head> <out.pt>; the first leaves
averaged gradients and running statistics."""

import sys

import torch

from headrace.models.algorithm import Progress
from headrace.models.algorithms.detector import Detector
from headrace.models.backbones import ResNet
from headrace.models.distributed import synchronize_batch_norm
from headrace.pipelines.spec import Batch
from headrace.train.engine.distributed import launch
from headrace.train.engine.loop import wrap


def images():
    """Of one size, with one to four objects, so that processes have different numbers of samples."""
    generator = torch.Generator().manual_seed(1)
    pixels, objects = torch.rand(4, 3, 64, 96, generator=generator), []
    for count in (1, 2, 4, 1):
        corners = torch.rand(count, 2, generator=generator) * torch.tensor([40.0, 20.0])
        sides = 16 + torch.rand(count, 2, generator=generator) * 20
        masks = (torch.rand(count, 64, 96, generator=generator) > 0.5).to(torch.uint8)
        labels = torch.arange(count) % 3
        objects.append({"size": (64, 96), "boxes": torch.cat([corners, corners + sides], 1), "labels": labels})
        objects[-1]["masks"] = masks
    return pixels, objects


def main(head, out):
    with launch(torch.device("cpu")) as process:
        torch.manual_seed(0)
        torch.set_num_threads(1)
        backbone = ResNet.Config("resnet18", width=8, zero_init_residual=False)
        detector = Detector(Detector.Config(backbone=backbone, head=head, width=16, classes=3))
        for part in (detector.proposals, detector.heads):
            part.fg_bg_sampler.batch_size_per_image = 10**6  # no draws: every sample counts
        detector.proposals._post_nms_top_n = {"training": 30, "testing": 30}
        detector = synchronize_batch_norm(detector, process.device).train()
        pixels, objects = images()
        own = slice(process.rank * 4 // process.world, (process.rank + 1) * 4 // process.world)
        batch = Batch({"image": pixels[own][None]}, torch.arange(4)[own], None, None, 0, 0, objects[own])
        model = wrap(detector, process)
        model(batch, Progress(0, 1, 1)).loss.backward()
        if process.is_main:
            buffers = {f"buffer {key}": value for key, value in detector.named_buffers()}
            torch.save({**{key: p.grad for key, p in detector.named_parameters()}, **buffers}, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
