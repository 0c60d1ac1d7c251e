"""What the evaluation commands share: arguments, the labelled sets, and the row that a figure is written down in."""

from __future__ import annotations

import argparse
import json
import platform
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch

import headrace

from ...errors import UserError
from ...models.stage_pools import LAYERS
from ...pipelines.sources.given import as_source
from ...pipelines.spec import ByteSource
from ...pipelines.views import recipes
from ...places import new_file, new_folder
from ..engine.distributed import Launch, pick_device
from .embed_encoder import ENCODER_HELP, Encoder, load_encoder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which features: the encoder, its layer, the view; and how they are computed."""
    parser.add_argument("encoder", help=ENCODER_HELP)
    parser.add_argument("--layer", choices=LAYERS, help="a pooled map of a ResNet in place of its last features")
    parser.add_argument("--view", help="a published view such as eval or knn; default: the encoder's own, undistorted")
    add_computing(parser)


def add_computing(parser: argparse.ArgumentParser) -> None:
    """How features are computed, which changes none of them."""
    parser.add_argument("--batch-size", type=positive, default=256, help="images of a process at a time (256)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--loader", choices=("auto", "cpu", "dali", "memory"), default="auto")
    parser.add_argument("--threads", type=positive, help="CPU threads that decode; default: all cores")


def add_sets(parser: argparse.ArgumentParser) -> None:
    """The two labelled sets, and where features and figures go."""
    parser.add_argument("--train", required=True, help="labelled shards, folder or other source to learn from")
    parser.add_argument("--val", required=True, help="labelled images of the same classes to classify")
    add_outputs(parser)


def add_outputs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--features", type=new_folder, default="features", help="folder of cached features (features)")
    add_results(parser)


def add_results(parser: argparse.ArgumentParser) -> None:
    default = "evaluation.jsonl"
    parser.add_argument("--results", type=new_file, default=default, help=f"file that gets a line of JSON ({default})")


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {value}")
    return value


def encoder_of(arguments: argparse.Namespace) -> Encoder:
    encoder = load_encoder(arguments.encoder, arguments.layer)
    if arguments.view is not None:
        try:
            view = recipes.view(arguments.view)
        except ValueError as fault:
            raise UserError(f"--view: {fault}") from None
        encoder.view = replace(view, name="evaluation")
    return encoder


def options_of(arguments: argparse.Namespace, process: Launch | None = None) -> dict:
    """The keywords of `embed.embed_batches`, of this process alone unless it is said which it is of several."""
    options = {name: getattr(arguments, name) for name in ("batch_size", "loader", "threads")}
    if options["threads"] is None and process is not None:
        options["threads"] = process.cores
    return options | {"process": process or Launch(device=pick_device(arguments.device))}


def labelled_sets(train, val) -> tuple[ByteSource, ByteSource]:
    """Both sources, of whatever `as_source` takes. Raises `UserError` unless they have labels of the same classes."""
    sources = as_source(train), as_source(val)
    for flag, source in zip(("--train", "--val"), sources):
        if source.classes is None:
            raise UserError(f"{flag}: {source.name} has no labels; give a folder per class")
    if sources[0].classes != sources[1].classes:
        raise UserError(
            f"--val: {sources[1].name} has other classes than {sources[0].name}; use the same class folders"
        )
    return sources


def right(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """(N, 2) bool: whether the label of a row (N, C) has the highest score, and one of the five highest."""
    best = scores.topk(min(5, scores.shape[1]), dim=1).indices == labels[:, None]
    return torch.stack([best[:, 0], best.any(1)], dim=1)


def accuracies(scores: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Shares of rows (N, C) that are `right`."""
    return dict(zip(("top1", "top5"), right(scores, labels).float().mean(0).tolist()))


class Stopwatch:
    """Seconds since it was made, for `record`."""

    def __init__(self) -> None:
        self._began = time.perf_counter()

    @property
    def seconds(self) -> float:
        return round(time.perf_counter() - self._began, 3)


def record(
    file: Path, protocol: str, encoder: Encoder, data: dict, settings: dict, figures: dict | list, watch: Stopwatch
) -> None:
    """Appends what was measured, of what and with what, to `file` as a line of JSON."""
    row = {
        "protocol": protocol,
        "encoder": {"name": encoder.name, "digest": encoder.digest, "view": asdict(encoder.view)},
        "data": data,
        "settings": settings,
        "figures": figures,
        "seconds": watch.seconds,
        "hardware": torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} CPU",
        "versions": {"headrace": headrace.__version__, "torch": torch.__version__},
    }
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(file, "a", encoding="utf-8") as out:
            out.write(json.dumps(row) + "\n")
    except OSError as fault:
        raise UserError(f"{file}: cannot be written ({fault.strerror}); give another --results") from None


def table(title: str, rows: list[dict]) -> None:
    """Prints rows of the same keys; floats between 0 and 1 called top1, mAP, mIoU ... are shares, shown in percent."""
    print(title)
    cells = [list(rows[0])] + [[_cell(key, value) for key, value in row.items()] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells)]
    for line in cells:
        print("  " + "  ".join(text.rjust(width) for text, width in zip(line, widths)))


def _cell(key: str, value) -> str:
    if value is None:
        return "-"
    if key.startswith(("top", "mAP", "AP", "mIoU", "mAcc", "aAcc", "held-out", "share")):
        return f"{value:.2%}"
    return f"{value:g}" if isinstance(value, float) else str(value)
