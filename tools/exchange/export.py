"""Encoders for other libraries: ``headrace export <run, checkpoint or encoder.safetensors> --to timm``."""

from __future__ import annotations

import argparse
import hashlib
import io
import pickle
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from safetensors.torch import save
from torch import nn

from ...errors import UserError
from ...models.algorithm import Algorithm
from ...models.algorithms.classifier import Classifier
from ...models.backbones import ResNet
from ...places import new_folder
from ...train.engine.checkpoint import checkpoints
from ...train.evaluation.embed_encoder import saved_algorithm
from ...train.foreign import resnet
from ...train.foreign.convert import to_layout
from ...train.recipe import config
from . import onnx_file
from .targets import LIBRARIES, detectron2, target
from .targets.exported import Exported, refuse

TARGETS = (*LIBRARIES, "detectron2", "safetensors", "onnx")
_IMPORTS = {
    "timm": "import functools, safetensors.torch, timm, torch",
    "torchvision": "import safetensors.torch, torch, torchvision",
    "hf": "import safetensors.torch, transformers",
    "openmmlab": "import torch, mmpretrain.models",
}


@dataclass
class Part:
    """What is exported."""

    encoder: nn.Module
    config: object  # the backbone's
    size: int  # of the images in pixels
    classifier: Classifier | None = None  # where a linear layer on the encoder was trained

    @property
    def head(self) -> dict[str, torch.Tensor]:
        """Weight and bias of the linear layer; a batch normalisation before it is part of them."""
        norm, linear = self.classifier.scorer[1]
        weight, bias = linear.weight.detach(), linear.bias.detach()
        if isinstance(norm, nn.BatchNorm1d):
            gain = (norm.running_var + norm.eps).rsqrt()
            bias, weight = bias - weight @ (norm.running_mean * gain), weight * gain
        return {"weight": weight, "bias": bias}


def part_of(source: str | Path, *, teacher: bool = False) -> Part:
    """The encoder of a run, a checkpoint or an encoder.safetensors, or the teacher that follows it.

    Raises `UserError` where there is no such thing.
    """
    algorithm = saved_algorithm(source).eval()
    size = algorithm.inputs().views[0].side
    if teacher:
        return Part(_teacher(algorithm, source), algorithm.config.backbone, size)
    path = Path(source)
    trained = isinstance(algorithm, Classifier) and (path.suffix == ".pt" or bool(checkpoints(path)))
    return Part(algorithm.encoder, algorithm.config.backbone, size, algorithm if trained else None)


def _teacher(algorithm: Algorithm, source: str | Path) -> nn.Module:
    copies = getattr(algorithm, "teacher", None)
    for name, module in copies.named_children() if isinstance(copies, nn.Module) else ():
        if getattr(algorithm, name, None) is algorithm.encoder:
            if Path(source).suffix == ".safetensors":
                raise UserError(f"--teacher: {source} holds the encoder alone; give the run or a checkpoint of it")
            return module
    raise UserError(f"--teacher: {algorithm.config.name} has no teacher of its encoder")


def export(part: Part, library: str, out: Path, name: str) -> tuple[Path, str]:
    """Writes the encoder for a library (one of `TARGETS`) and returns the file, and Python that loads it.

    The file is called ``<name>_<date>-<first 8 hexadecimal digits of its SHA-256>``. The Python makes `model`;
    its last line is an expression of `model` and `images` (B, 3, S, S): the features (B, D), or the scores where
    a classifier was trained and the library's model has a place for it.
    """
    channels = getattr(part.config, "in_channels", 3)
    if channels != 3 and library != "safetensors":
        raise refuse(library, f"gets encoders of three channels, not of {channels}", "safetensors")
    temporary = out / f"{name}.tmp"
    try:
        out.mkdir(parents=True, exist_ok=True)
        return _written(part, library, temporary, out, name)
    except OSError as fault:
        raise UserError(f"{out}: cannot be written ({fault.strerror or fault}); choose another --out") from None
    finally:
        temporary.unlink(missing_ok=True)


def _written(part: Part, library: str, temporary: Path, out: Path, name: str) -> tuple[Path, str]:
    if library == "safetensors":
        return _safetensors(part, temporary, out, name)
    if library == "onnx":
        onnx_file.write(part.encoder, part.size, temporary)
        path = _named(temporary, out, name, ".onnx")
        return path, f"import onnxruntime\nmodel = onnxruntime.InferenceSession({str(path)!r})\n" + onnx_file.CALL
    if library == "detectron2":
        return _detectron2(part, temporary, out, name)
    classes = None if part.classifier is None else part.classifier.config.classes
    exported = target(library, part.encoder, part.config, part.size, classes)
    state = to_layout(part.encoder.state_dict(), exported.layout, exported.prefix)
    if classes is not None:
        head = exported.layout.classifiers[0]
        state |= {f"{head}.{key}": value.contiguous() for key, value in part.head.items()}
    if library == "openmmlab":
        buffer = io.BytesIO()  # torch's own writer of files raises RuntimeError where a disk is full
        torch.save({"state_dict": state, "meta": {}}, buffer)
        temporary.write_bytes(buffer.getbuffer())
        path = _named(temporary, out, name, ".pth")
    else:
        temporary.write_bytes(save(state))  # `save_file` makes files that nobody else may read
        path = _named(temporary, out, name, ".safetensors")
    return path, _code(library, exported, path)


def _named(temporary: Path, out: Path, name: str, suffix: str) -> Path:
    with temporary.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return temporary.replace(out / f"{name}_{time.strftime('%Y%m%d')}-{digest[:8]}{suffix}")


def _code(library: str, exported: Exported, path: Path) -> str:
    if library == "openmmlab":
        load = (
            f"state = torch.load({str(path)!r}, weights_only=True)['state_dict']\n"
            "state = {key[9:]: value for key, value in state.items() if key.startswith('backbone.')}"
        )
        into = "model.load_state_dict(state, strict=False)  # buffers that follow from the configuration are made anew"
        if "norm = " in exported.build:
            load += "\nnorm.load_state_dict({key: state.pop(f'norm.{key}') for key in ('weight', 'bias')})"
    else:
        load = f"state = safetensors.torch.load_file({str(path)!r})"
        # index buffers of windows are not in the file: they follow from the configuration
        into = "model.load_state_dict(state, strict=False)"
    return f"{_IMPORTS[library]}\n{exported.build}\n{load}\n{into}\nmodel.eval()\n{exported.features}"


def _safetensors(part: Part, temporary: Path, out: Path, name: str) -> tuple[Path, str]:
    view = dict(size=part.size) if part.classifier is None else config.plain(part.classifier.config.view)
    description = Classifier.Config(backbone=part.config)
    section = config.plain(description) | {"view": config.plain(description.view) | view}
    tensors = {key: value.contiguous() for key, value in part.encoder.state_dict().items()}
    temporary.write_bytes(save(tensors, metadata={"config": yaml.safe_dump(section)}))
    path = _named(temporary, out, name, ".safetensors")
    return path, f"import headrace\nmodel = headrace.get_model(checkpoint={str(path)!r})\nmodel.extract_feat(images)"


def _detectron2(part: Part, temporary: Path, out: Path, name: str) -> tuple[Path, str]:
    if not isinstance(part.encoder, ResNet):
        raise UserError("--to detectron2: takes ResNets alone; use --to timm or openmmlab")
    target("torchvision", part.encoder, part.config, part.size, None)  # raises for stems that it does not have either
    names = to_layout(part.encoder.state_dict(), resnet.TORCHVISION)
    model = {key: tensor.numpy() for key, tensor in detectron2.names(names).items()}
    content = {"model": model, "__author__": "headrace", "matching_heuristics": True}
    temporary.write_bytes(pickle.dumps(content))
    path = _named(temporary, out, name, ".pkl")
    return path, f"# MODEL.WEIGHTS {path}  MODEL.RESNETS.STRIDE_IN_1X1 False"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="headrace export",
        description="Write an encoder, and the classifier if one was trained, the way another library names things.",
    )
    parser.add_argument("encoder", help="a run directory, a .pt checkpoint or an encoder.safetensors")
    parser.add_argument("--to", choices=TARGETS, required=True)
    parser.add_argument("--teacher", action="store_true", help="the momentum teacher's encoder, not the student's")
    parser.add_argument("--out", type=new_folder, default=".", help="folder of the file (here)")
    parser.add_argument("--name", help="its beginning; default: from what is exported")
    arguments = parser.parse_args(argv)
    path = Path(arguments.encoder)
    stem = path.name if path.is_dir() else f"{path.absolute().parent.name}-{path.stem}"
    part = part_of(path, teacher=arguments.teacher)
    written, code = export(part, arguments.to, arguments.out, arguments.name or f"{stem}-{arguments.to}")
    print(f"{written}\n\n{code}")
    return 0
