"""Every joint-embedding and pretext-task algorithm at a size that takes milliseconds, and steps of it on fixed batches.

Run as a program it prints the losses of ten steps: python tests/models/tiny_algorithms.py > tests/models/golden.json
"""

import json
from dataclasses import replace

import torch

from headrace.models.algorithm import Progress
from headrace.models.algorithms import find_algorithm
from headrace.models.backbones import ResNet, ViT
from headrace.models.self_distillation.gram import Gram
from headrace.models.self_distillation.method import PatchHead
from headrace.pipelines.spec import Batch, Place, ViewSpec
from headrace.pipelines.views.masks import draw_mask

BACKBONE = ViT.Config(patch_size=8, width=24, depth=2, heads=2)
SAMPLES, BATCH, STEPS_PER_EPOCH = 24, 8, 3
_ONE = ViewSpec(size=32)
_TWO = replace(_ONE, count=2)
_PAIR = {"first": replace(_ONE, name="first"), "second": replace(_ONE, name="second")}
_SMALL = ViewSpec(name="small", size=16, count=3)

_NARROW = dict(hidden=32, bottleneck=8, prototypes=20, momentum=0.9, teacher_warmup="3 steps")

OPTIONS = {
    "relative_loc": dict(
        view=ViewSpec(size=111, crop="window", resize=128, parts="patches"),  # 16 px a patch
        hidden=32,
        dropout=0.0,
    ),
    "rotation_pred": dict(view=replace(_ONE, parts="rotations")),
    "npid": dict(view=_ONE, projection=8, negatives=12),
    "deepcluster": dict(view=_ONE, clusters=5, components=6),
    "odc": dict(view=_ONE, hidden=16, projection=12, dropout=0.0, clusters=5, min_size=4, centroids_every=2),
    "moco": dict(view=_TWO, hidden=32, projection=16, queue=20, momentum=0.9),
    "mocov3": dict(**_PAIR, backbone=replace(BACKBONE, pool="cls", freeze_patch_embed=True), hidden=32, projection=16),
    "simclr": dict(view=_TWO, hidden=32, projection=16, temperature=0.2),
    "byol": dict(**_PAIR, hidden=32, projection=16, momentum=0.9),
    "swav": dict(
        large=replace(_TWO, name="large"),
        small=_SMALL,
        hidden=32,
        projection=16,
        prototypes=6,
        queue=16,
        queue_from=1,
        freeze_prototypes=2,
    ),
    "densecl": dict(
        view=_TWO, backbone=ResNet.Config(width=8, small_image_stem=True), hidden=32, projection=16, queue=20
    ),
    "simsiam": dict(view=_TWO, projection=32, bottleneck=8),
    "barlowtwins": dict(**_PAIR, projection=24),
    "distill": dict(view=_ONE, queue=20),
    "lejepa": dict(
        large=replace(_TWO, name="large"),
        small=_SMALL,
        backbone=replace(BACKBONE, pool="cls"),
        embedding=20,
        hidden=32,
        projection=12,
        weight=0.1,
        directions=40,
    ),
    "dino": dict(
        **_PAIR,
        small=_SMALL,
        backbone=replace(BACKBONE, pool="cls", positions="learned"),
        hidden=32,
        bottleneck=8,
        prototypes=20,
        momentum=0.9,
        teacher_warmup=3,
        teacher_temperature=0.05,
        teacher_temperature_from=0.03,
    ),
    "ibot": dict(
        **_PAIR,
        small=_SMALL,
        backbone=replace(BACKBONE, pool="cls", positions="learned"),
        **_NARROW,
    ),
    "dinov2": dict(
        **_PAIR,
        small=_SMALL,
        backbone=replace(BACKBONE, pool="cls", positions="learned", layer_scale=0.1),
        **_NARROW,
        patch_head=PatchHead(24, 8, 16),
        koleo_group=8,  # of two ranks: half of it on each
    ),
    "dinov3": dict(
        **_PAIR,
        small=_SMALL,
        backbone=replace(BACKBONE, heads=1, pool="cls", positions="rotary", layer_scale=0.1, registers=2),
        **_NARROW,
        patch_head=PatchHead(24, 8, 16),
        koleo_group=4,
        rotary_rescale=2.0,
        untie_norms=True,
    ),
}


_SUBSETS = replace(OPTIONS["dinov2"]["backbone"], drop_path=0.4, drop_path_form="subsets")
_GRAM = Gram("1 steps", warmup="3 steps", local_weight=0.5, update_every="2 steps", updates=1, features=0.1)
VARIANTS = {  # of a method, by options of its own, held to what holds for all
    "visreg": ("lejepa", dict(regularizer="visreg")),
    "dinov2 with subsets": ("dinov2", dict(backbone=_SUBSETS)),
    "dinov3 with gram": ("dinov3", dict(gram=_GRAM)),
}


def build(name, seed=0, **changes):
    """The algorithm, or one of `VARIANTS`, with weights of this seed, prepared for `SAMPLES` samples."""
    torch.manual_seed(seed)
    method, own = VARIANTS.get(name, (name, {}))
    kind = find_algorithm(method)
    algorithm = kind(kind.Config(**{"backbone": BACKBONE, **OPTIONS[method], **own, **changes}))
    algorithm.prepare(SAMPLES)
    return algorithm.train()


def pictures(count, size, seed):
    """(count, 3, size, size) smooth, mutually different images; `seed` moves and dims them a little."""
    coarse = torch.randn(SAMPLES, 3, 4, 4, generator=torch.Generator().manual_seed(99))[:count]
    images = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic", align_corners=False)
    generator = torch.Generator().manual_seed(seed)
    gain = 0.7 + 0.6 * torch.rand(count, 1, 1, 1, generator=generator)
    noise = 0.1 * torch.randn(images.shape, generator=generator)
    return images * gain + noise


def make_batch(algorithm, step, rank=0, world=1):
    """This rank's part of the global batch of a step: samples in turn, every view of a sample drawn anew."""
    ids = (torch.arange(BATCH) + step * BATCH) % SAMPLES
    mine = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
    views = {}
    for number, spec in enumerate(algorithm.inputs().views):
        copies = [pictures(SAMPLES, spec.side, 1000 * step + 100 * number + c)[ids] for c in range(spec.copies)]
        if spec.parts == "rotations":
            copies = [copies[0].rot90(-turns, (2, 3)) for turns in range(4)]
        if spec.parts == "patches":
            copies = [copy + place / 4 for place, copy in enumerate(copies)]
        views[spec.name] = torch.stack(copies)[:, mine]
    epoch, spec, mask = step // STEPS_PER_EPOCH, algorithm.inputs().mask, None
    if spec is not None:
        mask = draw_mask(spec, 0, epoch, ids[mine], Place(step, mine.start, BATCH))
    return Batch(views=views, ids=ids[mine], labels=None, mask=mask, step=step, epoch=epoch)


@torch.no_grad()
def embed(module, view):
    training = {m: m.training for m in module.modules()}
    features = module.eval()(pictures(SAMPLES, view.size, 0))
    for part, was in training.items():
        part.training = was
    return features


def make_optimizer(algorithm, lr=0.05):
    return torch.optim.SGD([p for p in algorithm.parameters() if p.requires_grad], lr=lr, momentum=0.9)


def run(algorithm, optimizer, steps, *, model=None, rank=0, world=1, total=10, after_forward=None, bf16=False):
    """Does `steps` (a range) as the training loop does; returns the losses."""
    losses = []
    for step in steps:
        progress = Progress(step, total, STEPS_PER_EPOCH)
        if step % STEPS_PER_EPOCH == 0:
            algorithm.start_epoch(progress, embed)
        torch.manual_seed(step)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            output = (model or algorithm)(make_batch(algorithm, step, rank, world), progress)
        optimizer.zero_grad()
        output.loss.backward()
        algorithm.after_backward(progress)
        if after_forward:
            after_forward(step, output)
        optimizer.step()
        algorithm.after_step(progress)
        losses.append(output.loss.item())
    return losses


if __name__ == "__main__":
    golden = {}
    for algorithm_name in OPTIONS:
        subject = build(algorithm_name)
        golden[algorithm_name] = [round(x, 5) for x in run(subject, make_optimizer(subject), range(10))]
    print(json.dumps(golden, indent=1).replace(",\n  ", ", ").replace("[\n  ", "[").replace("\n ]", "]"))
