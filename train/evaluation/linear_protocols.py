"""Linear probing as it was published: recipes by family, run by the pre-training engine."""

from __future__ import annotations

from pathlib import Path

from ...errors import UserError
from ...models.algorithm import Algorithm
from ...models.algorithms.classifier import Classifier
from ...models.algorithms.multihead import MultiHead
from ...models.backbones import ResNet
from ...models.backbones.vit import ViT
from ...pipelines.images.rules import rules
from ..recipe import config
from ..recipe.recipe import SECTIONS, Recipe
from ..recipe.settings import DataSettings, Optim, TrainSettings

_DATA = ("loader", "threads", "max_bad")
_SGD = {"name": "sgd", "momentum": 0.9, "weight_decay": 0.0}
_LARS = {"name": "lars", "momentum": 0.9, "weight_decay": 0.0, "form": "update"}
_MAE = {**_LARS, "lr": 6.4, "warmup": "10 epochs", "warmup_from": 1e-4}

# Protocol -> batch size, epochs and optimizer of the linear layer on ImageNet, and what it sees where that is not the
# encoder's own output. Rates are for the batch size in the same row and scale linearly with another one. The training
# view is a random resized crop with a flip throughout.
_STAGES = {**_SGD, "lr": 0.01, "weight_decay": 1e-4, "nesterov": True, "schedule": "multistep"}
PROTOCOLS: dict[str, dict] = {
    "moco": {  # He et al. 2020; Chen et al. 2020
        "batch_size": 256,
        "epochs": 100,
        "optim": {**_SGD, "lr": 30.0, "schedule": "multistep", "milestones": [60.0, 80.0]},
    },
    "swav": {  # also Barlow Twins
        "batch_size": 256,
        "epochs": 100,
        "optim": {**_SGD, "lr": 0.3, "weight_decay": 1e-6, "per_epoch": True},
    },
    "simclr": {  # also BYOL; that of SimSiam's authors
        "batch_size": 4096,
        "epochs": 90,
        "optim": {**_LARS, "form": "paper", "lr": 1.6, "per_epoch": True},
    },
    "mocov3_resnet": {"batch_size": 1024, "epochs": 90, "optim": {**_SGD, "lr": 0.4, "per_epoch": True}},
    "mocov3_vit": {"batch_size": 1024, "epochs": 90, "optim": {**_SGD, "lr": 12.0, "per_epoch": True}, "pool": "cls"},
    "mae": {"batch_size": 16384, "epochs": 90, "optim": _MAE, "pool": "cls", "head_norm": True},
    "milan": {  # also EVA
        "batch_size": 16384,
        "epochs": 100,
        "optim": {**_MAE, "lr": 3.2},
        "pool": "cls",
        "head_norm": True,
    },
    # five heads, on all stages of a ResNet (Goyal et al. 2019)
    "stages": {"batch_size": 256, "epochs": 90, "optim": {**_STAGES, "milestones": [60.0, 80.0]}},
    "stages_places205": {"batch_size": 256, "epochs": 28, "optim": {**_STAGES, "milestones": [7.0, 14.0, 21.0]}},
    "stages_inaturalist": {"batch_size": 256, "epochs": 84, "optim": {**_STAGES, "milestones": [24.0, 48.0, 72.0]}},
}
_OF = {
    "moco": "moco relative_loc rotation_pred npid deepcluster odc densecl",
    "swav": "swav barlowtwins",
    "simclr": "simclr byol simsiam",
    "mocov3_vit": "dino",
    "mae": "mae mae_hivit pixmim simmim maskfeat beit beitv2 cae mixmim",
    "milan": "milan eva",
}


def protocol_of(algorithm: Algorithm) -> str:
    """Which of `PROTOCOLS` a method is measured with; for methods of others, by the kind of encoder."""
    name, is_vit = algorithm.config.name, isinstance(algorithm.encoder, ViT)
    if name == "mocov3":
        return "mocov3_vit" if is_vit else "mocov3_resnet"
    return next((p for p, names in _OF.items() if name in names.split()), "mae" if is_vit else "simclr")


def linear_recipe(
    algorithm: Algorithm, protocol: str, weights: Path, *, train: str, val: str, classes: int, out: Path, **change
) -> Recipe:
    """The recipe of a published protocol for an algorithm's encoder, whose weights are in `weights`.

    `change`: batch_size, epochs, max_steps, seed, device, loader, threads and max_bad, where they are not None.
    """
    row = PROTOCOLS[protocol]
    backbone = config.plain(getattr(algorithm.config, "backbone", None))
    if backbone is None:
        raise UserError(f"--protocol: {algorithm.config.name} has no section `backbone` to build its encoder from")
    if "drop_path" in backbone:
        backbone["drop_path"] = 0.0
    if backbone.get("pool") and "pool" in row:
        backbone["pool"] = row["pool"]
    training = algorithm.inputs().views[0]
    view = {"size": training.size, "mean": list(training.mean), "std": list(training.std)}
    section = {"backbone": backbone, "classes": classes, "weights": str(weights)}
    if protocol.startswith("stages"):
        if not isinstance(algorithm.encoder, ResNet):
            raise UserError(f"--protocol {protocol}: probes the stages of a ResNet, which this encoder is not")
        kind = MultiHead.Config
        section |= {"name": "multihead", "view": {"recipe": "linear_stages_train", **view}}
    else:
        kind = Classifier.Config
        section |= {
            "name": "classifier",
            "view": {"recipe": "linear_train", **view, "interpolation": training.interpolation},
            "frozen": True,
            "head_norm": row.get("head_norm", False),
            "mixing": {"mixup": 0.0, "cutmix": 0.0, "smoothing": 0.0},
        }
    given = {key: value for key, value in change.items() if value is not None}
    values = {
        "algorithm": section,
        "data": {"train": train, "val": val, **rules().unusual, **{key: given[key] for key in _DATA if key in given}},
        "train": {
            "out": str(out),
            "batch_size": row["batch_size"],
            "epochs": row["epochs"],
            **{key: given[key] for key in ("batch_size", "epochs", "max_steps", "seed", "device") if key in given},
        },
        "optim": {**row["optim"], "lr_batch": row["batch_size"]},
        "kernels": {},
    }
    types = {
        "algorithm": kind,
        "data": DataSettings,
        "train": TrainSettings,
        "optim": Optim,
        "kernels": dict[str, str],
    }
    tree = config.from_plain(values, f"linear protocol {protocol}")
    sections = config.build(tree, types)
    resolved = config.show(tree, sections)
    return Recipe(name=f"linear-{protocol}", resolved=resolved, **{key: sections[key] for key in SECTIONS})
