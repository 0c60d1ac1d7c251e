"""Weights of other code bases: ``headrace import <checkpoint> --to <folder>``."""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import yaml
from safetensors.torch import save

from ...errors import UserError
from ...models.algorithms.classifier import Classifier
from ...places import new_folder, place, write_file
from ...train.engine import checkpoint
from ...train.foreign.convert import NORMALIZATIONS, Imported, Options, convert
from ...train.foreign.methods import import_method
from ...train.foreign.read import read_tensors
from ...train.foreign.shapes import Wishes
from ...train.recipe import config


def import_checkpoint(path: Path, options: Options | None = None) -> Imported:
    """The encoder, and the classifier if there is one, of a foreign checkpoint; see `convert`."""
    try:
        return convert(read_tensors(path), options or Options())
    except UserError as fault:
        raise UserError(str(fault) if str(fault).startswith(str(path)) else f"{path}: {fault}") from None


def save_imported(imported: Imported, source: Path, out: Path) -> list[Path]:
    """Writes ``encoder.safetensors``, which every evaluation takes, and a checkpoint of the classifier if there is one.

    The folder then stands for a finished run. Raises `UserError` where it already holds one.
    """
    if (out / "encoder.safetensors").exists() or checkpoint.checkpoints(out):
        raise UserError(f"--to: {out} already holds an encoder; give another folder")
    out.mkdir(parents=True, exist_ok=True)
    classifier = imported.classifier
    written = []
    if imported.scores:
        written.append(save_algorithm(classifier, out))
    with source.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    description = {"config": yaml.safe_dump(config.plain(classifier.config)), "source": f"{source.name} {digest}"}
    path = out / "encoder.safetensors"
    tensors = {key: value.contiguous() for key, value in classifier.backbone.state_dict().items()}
    try:
        write_file(path, save(tensors, metadata=description))  # `save_file` makes files that nobody else may read
    except OSError as fault:
        raise UserError(f"--to: {path} cannot be written ({fault.strerror}); give another folder") from None
    return [*written, path]


def save_algorithm(algorithm: Classifier, out: Path) -> Path:
    """A checkpoint without optimizer: for everything but resuming."""
    state = {"model": algorithm.state_dict(), "config": {"algorithm": config.plain(algorithm.config)}}
    return checkpoint.save(out, 0, state, keep=1)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="headrace import",
        description="Take an encoder out of a checkpoint of timm, torchvision, OpenMMLab, Hugging Face, solo-learn, "
        "lightly or a method's authors. What is in the file is read, never run.",
    )
    parser.add_argument("checkpoint", type=place, help="a .pth, .pt, .ckpt or .safetensors file")
    parser.add_argument(
        "--to", type=new_folder, required=True, help="a new folder, which then stands for a finished run"
    )
    parser.add_argument("--family", help="the layout, such as openmmlab-swin; default: recognised by its names")
    parser.add_argument("--teacher", action="store_true", help="the momentum network, or averaged weights")
    parser.add_argument("--heads", type=int, help="of attention, where the tensors do not tell (MoCo v3's ViT-S: 12)")
    parser.add_argument("--pool", choices=("mean", "cls"), help="of a ViT's tokens; default: as the file suggests")
    parser.add_argument("--mlp", choices=("gelu", "quick_gelu"), help="activation of a ViT's MLPs; quick_gelu: CLIP")
    parser.add_argument("--size", type=int, help="side of the images in pixels; tables are resized (as trained)")
    parser.add_argument("--windows", type=int, nargs="+", help="of Swin or MixMIM, one or four; tables are resized")
    parser.add_argument("--block-tables", action="store_true", help="give each block its own relative table (BEiT)")
    parser.add_argument("--normalize", choices=tuple(NORMALIZATIONS), help="mean and deviation of the images")
    parser.add_argument("--recipe", help="take over the whole method, decoder and all, as this recipe configures it")
    arguments = parser.parse_args(argv)
    options = Options(
        family=arguments.family,
        teacher=arguments.teacher,
        wishes=Wishes(arguments.heads, arguments.pool, arguments.mlp),
        size=arguments.size,
        windows=None if arguments.windows is None else tuple(arguments.windows),
        block_tables=arguments.block_tables,
        normalize=arguments.normalize,
    )
    if arguments.recipe is not None:
        if checkpoint.checkpoints(arguments.to):
            raise UserError(f"--to: {arguments.to} already holds a checkpoint; give another folder")
        algorithm, report = import_method(read_tensors(arguments.checkpoint), arguments.recipe)
        print(f"{report}\nwritten     {save_algorithm(algorithm, arguments.to)}")
        return 0
    imported = import_checkpoint(arguments.checkpoint, options)
    written = save_imported(imported, arguments.checkpoint, arguments.to)
    print(imported.report())
    print("\n".join(f"written     {path}" for path in written))
    return 0
