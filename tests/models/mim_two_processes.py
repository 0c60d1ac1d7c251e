"""What `test_mim_ranks.py` runs in one and in two processes: one step of every masked-image algorithm."""

import os

import torch
import torch.distributed as dist

from headrace.models.algorithm import Progress
from headrace.models.algorithms import find_algorithm
from headrace.pipelines.spec import Batch, Mask
from headrace.pipelines.views.masks import draw_mask

NAMES = (
    "mae",
    "mae_hivit",
    "simmim",
    "maskfeat",
    "beit",
    "beitv2",
    "cae",
    "milan",
    "eva",
    "mixmim",
    "pixmim",
    "vqkd",
    "ijepa",
    "capi",
)
IMAGES = 8


def share(name, rank, world):
    """The samples of a rank. MixMIM pairs the first with the last of a batch, so its pairs stay together."""
    if name == "mixmim" and world == 2:
        return [[0, 1, 6, 7], [2, 3, 4, 5]][rank]
    per_rank = IMAGES // world
    return list(range(rank * per_rank, (rank + 1) * per_rank))


def step(name, rank, world):
    """Gradients, averaged over ranks, and the state after one step on this rank's share of eight images."""
    kind = find_algorithm(name)
    torch.manual_seed(0)
    algorithm = kind(kind.Config().smoke()).eval()  # no drop path, whose draws are each process's own
    inputs, generator, own = algorithm.inputs(), torch.Generator().manual_seed(1), share(name, rank, world)
    views = {v.name: torch.randn(v.copies, IMAGES, 3, v.size, v.size, generator=generator) for v in inputs.views}
    views = {key: value[:, own] for key, value in views.items()}
    mask = None
    if inputs.mask is not None:
        whole = draw_mask(inputs.mask, 3, 0, torch.arange(IMAGES))
        drawn = {key: value for key, value in vars(whole).items() if value is not None}
        mask = Mask(**{key: value if len(value) == 1 else value[own] for key, value in drawn.items()})
    progress = Progress(0, 10, 10)
    algorithm(Batch(views, torch.tensor(own), None, mask, 0, 0), progress).loss.backward()
    gradients = {key: p.grad for key, p in algorithm.named_parameters() if p.grad is not None}
    if world > 1:
        for gradient in gradients.values():
            dist.all_reduce(gradient)
            gradient /= world
    algorithm.after_backward(progress)
    algorithm.after_step(progress)
    return {"gradients": gradients, "state": algorithm.state_dict()}


def main(rank, world, rendezvous, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world)
    torch.save({name: step(name, rank, world) for name in NAMES}, folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # threads of gloo and autograd may abort an interpreter that is ending (seen once)
