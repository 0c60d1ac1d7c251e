"""Encoders by name: of a run, of a checkpoint, of other libraries, and the two baselines."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from ...errors import UserError
from ...models.algorithm import Algorithm
from ...models.algorithms import find_algorithm
from ...models.backbones import ResNet
from ...models.stage_pools import Stage
from ...models.targets.frozen import without_weights
from ...pipelines.images.rules import rules, use_rules
from ...pipelines.spec import ViewSpec
from ...pipelines.views.recipes import CIFAR_MEAN, CIFAR_STD
from ..engine.checkpoint import (
    build_algorithm,
    checkpoints,
    encoder_metadata,
    load_algorithm,
    load_weights,
    rules_in,
)
from ..recipe import config
from ..recipe.recipe import load_recipe
from .embed import evaluation_view

ENCODER_HELP = (
    "a run directory, a .pt checkpoint, an encoder.safetensors, torchvision:NAME or timm:NAME with their published "
    "weights, random:RECIPE (untrained), or pixels:SIDE (no encoder)"
)


@dataclass
class Encoder:
    """What is evaluated: ``module(images (B, 3, S, S)) -> (B, D)`` for images of `view`."""

    name: str
    module: nn.Module
    view: ViewSpec
    digest: str  # SHA-256 of weights and configuration, in 16 hexadecimal digits


def load_encoder(name: str, layer: str | None = None) -> Encoder:
    """The encoder that `ENCODER_HELP` calls so; `layer` feat1 .. feat5 gives the pooled maps of a ResNet instead.

    Raises `UserError` for what is not there, cannot be read, or has no such layers.
    """
    kind, _, rest = name.partition(":")
    if kind in _KINDS and rest and not Path(name).exists():
        module, view, description = _KINDS[kind](rest)
    else:
        algorithm = saved_algorithm(name)
        module, view = algorithm.encoder, evaluation_view(algorithm.inputs().views[0])
        description = str(algorithm.config)
    if layer is not None:
        if not isinstance(module, ResNet):
            raise UserError(f"--layer: {name} is no ResNet of headrace, which alone has feat1 to feat5; leave it out")
        module = Stage(module, layer)
    return Encoder(name, module.eval().requires_grad_(False), view, digest(module, f"{description} {layer}"))


def saved_algorithm(name: str | Path) -> Algorithm:
    """The algorithm of a run directory, a .pt checkpoint or an encoder.safetensors; of the last, other parts than the
    encoder are untrained. It is also what a directory without checkpoints is read for."""
    path = Path(name)
    if (path / "encoder.safetensors").is_file() and not checkpoints(path):
        path = path / "encoder.safetensors"
    if path.suffix != ".safetensors":
        return load_algorithm(path)[1]
    try:
        with safe_open(path, "pt") as file:
            section = yaml.safe_load((file.metadata() or {})["config"])
            use_rules(rules_in(file.metadata()))
            weights = {key: file.get_tensor(key) for key in file.keys()}
    except KeyError:
        raise UserError(
            f"{path}: tensors of another library, without the configuration of an encoder of headrace; headrace import "
            "makes one of them"
        ) from None
    except (OSError, SafetensorError, yaml.YAMLError) as fault:
        raise UserError(f"{path}: no encoder.safetensors of headrace ({fault}); give that of a finished run") from None
    if not (isinstance(section, dict) and isinstance(section.get("name"), str)):
        raise UserError(f"{path}: its configuration is none of an encoder of headrace; give that of a finished run")
    algorithm = build_algorithm(section, path)
    load_weights(algorithm.encoder, weights, path, "those of the encoder it names")
    return algorithm


def encoder_file(name: str | Path, folder: Path) -> Path:
    """Writes an encoder's weights into a run directory, as a classifier's `weights` reads them.

    The file's name carries a hash of its contents: a run that started from other weights is another run. Of a finished
    run the file it left is taken, which needs nothing else of the method.
    """
    path = Path(name)
    left = path if path.suffix == ".safetensors" else path / "encoder.safetensors"
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"start.{os.getpid()}.tmp"
    try:
        if left.is_file():
            shutil.copyfile(left, temporary)
        else:
            algorithm = saved_algorithm(path)
            tensors = {key: value.contiguous() for key, value in algorithm.encoder.state_dict().items()}
            described = encoder_metadata({"algorithm": config.plain(algorithm.config), "data": rules().unusual})
            temporary.write_bytes(save(tensors, metadata=described))
        with open(temporary, "rb") as file:
            contents = hashlib.file_digest(file, "sha256").hexdigest()[:16]
        return temporary.rename(folder / f"start-{contents}.safetensors")
    except OSError as fault:
        raise UserError(f"{folder}: the encoder could not be copied there ({fault})") from None
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def started_with(name: str | Path, folder: Path, keep: bool = True) -> Iterator[Path | None]:
    """`encoder_file`, or None for scratch, for as long as a run is made of it.

    Where that is refused before the run has a checkpoint, or nothing is to be kept, what was written is taken away.
    """
    if name == "scratch":
        yield None
        return
    present, saved = set(folder.glob("start-*")), checkpoints(folder)
    made, refused = [path for path in (folder, *folder.parents) if not path.exists()], False
    try:
        yield encoder_file(name, folder)
    except UserError:
        refused = checkpoints(folder) == saved
        raise
    finally:
        if refused or not keep:
            for path in {*folder.glob("start-*")} - present:
                path.unlink(missing_ok=True)
            with suppress(OSError):  # it holds more
                for path in made:
                    path.rmdir()


def inherited(file: Path) -> list[tuple[str, Any]]:
    """What a recipe takes over, where it says nothing else, from the encoder that it starts with: how images are
    decoded, as pairs of key and value."""
    try:
        with safe_open(file, "pt") as opened:
            return [(f"data.{key}", value) for key, value in rules_in(opened.metadata()).unusual.items()]
    except (SafetensorError, ValueError):  # what it is instead, is said by whoever reads its weights
        return []


def _random(recipe: str) -> tuple[nn.Module, ViewSpec, str]:
    section = load_recipe(recipe, ["train.max_steps=1"]).algorithm
    with torch.random.fork_rng(devices=[]), without_weights():  # the caller's numbers stay what they are
        torch.default_generator.manual_seed(0)
        algorithm = find_algorithm(section.name)(section)
    return algorithm.encoder, evaluation_view(algorithm.inputs().views[0]), str(section)


def _pixels(side: str) -> tuple[nn.Module, ViewSpec, str]:
    if not side.isdigit() or int(side) < 1:
        raise UserError(f"pixels:{side}: needs the side in pixels, as in pixels:32")
    view = ViewSpec(size=int(side), mean=CIFAR_MEAN, std=CIFAR_STD)
    return nn.Flatten(), evaluation_view(view), "pixels"


def published_torchvision(name: str) -> tuple[nn.Module, ViewSpec]:
    """A torchvision classifier with its published weights, and the view they were evaluated with."""
    import torchvision

    try:
        weights = torchvision.models.get_model_weights(name).DEFAULT
        model = torchvision.models.get_model(name, weights=weights)
    except ValueError:
        known = f"see torchvision.models.list_models(); there are {len(torchvision.models.list_models())}"
        raise UserError(f"torchvision:{name}: no such model; {known}") from None
    except OSError as fault:
        raise UserError(f"torchvision:{name}: its weights could not be fetched ({fault}); get {weights.url}") from None
    shown = weights.transforms()
    crop, resize = shown.crop_size[0], shown.resize_size[0]
    view = ViewSpec(
        name="evaluation",
        size=crop,
        crop="center",
        center_fraction=min(1.0, crop / resize),
        interpolation=shown.interpolation.value,
        flip=0.0,
        mean=tuple(shown.mean),
        std=tuple(shown.std),
    )
    return model, view


def _torchvision(name: str) -> tuple[nn.Module, ViewSpec, str]:
    model, view = published_torchvision(name)
    last = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)][-1]
    model.set_submodule(last, nn.Identity())  # the classifier
    return model, view, f"torchvision {name}"


def _timm(name: str) -> tuple[nn.Module, ViewSpec, str]:
    try:
        import timm
    except ImportError:
        raise UserError(f"timm:{name}: needs the timm package; pip install timm") from None
    try:
        model = timm.create_model(name, pretrained=True, num_classes=0)
    except (RuntimeError, OSError) as fault:
        raise UserError(f"timm:{name}: {str(fault).splitlines()[0]}") from None
    shown = timm.data.resolve_model_data_config(model)
    view = ViewSpec(
        name="evaluation",
        size=shown["input_size"][-1],
        crop="center",
        center_fraction=shown["crop_pct"],
        interpolation=shown["interpolation"],
        flip=0.0,
        mean=tuple(shown["mean"]),
        std=tuple(shown["std"]),
    )
    return model, view, f"timm {name}"


_KINDS = {"torchvision": _torchvision, "timm": _timm, "random": _random, "pixels": _pixels}


def digest(module: nn.Module, description: str) -> str:
    """SHA-256 of a description and all weights and buffers, in 16 hexadecimal digits."""
    total = hashlib.sha256(description.encode())
    for name, value in module.state_dict().items():
        total.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        total.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()[:16]
