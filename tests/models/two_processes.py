"""One of two processes that run every algorithm of `tiny_algorithms`; called by torch.multiprocessing.spawn."""

import os

import torch
import torch.distributed as dist
from tiny_algorithms import OPTIONS, VARIANTS, build, make_batch, make_optimizer, run

from headrace.models.backbones import ResNet
from headrace.models.clustering import kmeans
from headrace.models.distributed import shuffle_across_ranks, synchronize_batch_norm, unshuffle_across_ranks
from headrace.train.engine.distributed import Launch
from headrace.train.engine.loop import wrap

STEPS = range(4)


def train(name, rank, world):
    """Four steps -> the gradients of the first and last (averaged over ranks) and the state at the end."""
    algorithm = build(name)
    if name == "npid":  # each rank draws its own negatives; here they are a function of the sample instead
        algorithm.draw_negatives = lambda ids: (ids[:, None] * 7 + torch.arange(12) * 5) % len(algorithm.bank.rows)
    if algorithm.local_batch_norm:  # per process by design, so it is taken out
        for module in algorithm.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.eval()
    synchronize_batch_norm(algorithm, torch.device("cpu"))
    device = torch.device("cpu")
    launch = Launch(rank=rank, world=world, local_rank=rank, local_world=world, device=device)
    gradients = {}

    def keep(step, output):
        if step in (0, 3):
            found = {f"{step} {n}": p.grad.clone() for n, p in algorithm.named_parameters() if p.grad is not None}
            gradients.update(found)

    run(
        algorithm,
        make_optimizer(algorithm, lr=0.02),
        STEPS,
        model=wrap(algorithm, launch),
        rank=rank,
        world=world,
        after_forward=keep,
    )
    return {"gradients": gradients, "state": {k: v.clone() for k, v in algorithm.state_dict().items()}}


def shuffled_keys(rank, world):
    """MoCo's keys with a ResNet, whose normalisation is per process: as it computes them, and in the plain order."""
    algorithm = build("moco", backbone=ResNet.Config(width=8))
    images = make_batch(algorithm, 0, rank, world).views["image"][1].contiguous(memory_format=torch.channels_last)
    torch.manual_seed(0)
    plain = torch.nn.functional.normalize(algorithm.teacher.head(algorithm.teacher.backbone(images)), dim=1)
    together, inverse = shuffle_across_ranks(images)
    back = unshuffle_across_ranks(together, inverse)
    order = torch.stack([(together[:, None] - images[None]).flatten(2).abs().sum(2) == 0]).any(2).sum()
    return {
        "keys": algorithm.keys(images),
        "plain": plain.detach(),
        "round trip": torch.equal(back, images),
        "channels last": together.is_contiguous(memory_format=torch.channels_last),
        "stayed": order,
    }


def main(rank, world, rendezvous, out):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world)
    results = {name: train(name, rank, world) for name in (*OPTIONS, *VARIANTS)}
    results["shuffle"] = shuffled_keys(rank, world)
    points = blobs()
    labels, centroids = kmeans(points[rank::world], 4, seed=1)
    results["kmeans"] = {"labels": labels, "centroids": centroids}
    torch.save(results, f"{out}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # threads of gloo and autograd may abort an interpreter that is ending (seen once)


def blobs():
    """40 points around 4 centres."""
    generator = torch.Generator().manual_seed(3)
    centres = 5 * torch.randn(4, 6, generator=generator)
    return (centres[torch.arange(40) % 4] + 0.3 * torch.randn(40, 6, generator=generator)).contiguous()
