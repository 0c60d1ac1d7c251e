"""What the evaluation commands share: arguments, what counts as right, and the row that a figure is written down in."""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import platform
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

import torch

import headrace

from ...errors import UserError
from ...models.stage_pools import LAYERS
from ...pipelines.images.rules import add_rules, rules, use_options
from ...pipelines.loaders.quarantine import MAX_BAD
from ...pipelines.views import recipes
from ...places import new_file, new_folder
from ..engine.distributed import Launch, pick_device
from .embed import Features
from .embed_encoder import ENCODER_HELP, Encoder, load_encoder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which features: the encoder, its layer, the view; how they are computed; how many images may be undecodable."""
    add_encoder(parser)
    text = f"share of a set's images that may be undecodable, and are left out ({MAX_BAD:g}); one always may"
    parser.add_argument("--max-bad", type=share, default=MAX_BAD, metavar="SHARE", help=text)


def add_encoder(parser: argparse.ArgumentParser) -> None:
    """The same for a protocol that takes all images."""
    parser.add_argument("encoder", help=ENCODER_HELP)
    parser.add_argument("--layer", choices=LAYERS, help="a pooled map of a ResNet in place of its last features")
    parser.add_argument("--view", help="a published view such as eval or knn; default: the encoder's own, undistorted")
    add_rules(parser)
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


def share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"a share lies in [0, 1], not {value:g}")
    return value


def encoder_of(arguments: argparse.Namespace) -> Encoder:
    encoder = load_encoder(arguments.encoder, arguments.layer)
    use_options(arguments)  # instead of the encoder's own
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
    options["max_bad"] = getattr(arguments, "max_bad", 1.0)  # where all must be good, a command says so itself
    if options["threads"] is None and process is not None:
        options["threads"] = process.cores
    return options | {"process": process or Launch(device=pick_device(arguments.device))}


def right(scores: torch.Tensor, labels: torch.Tensor, tolerance: float = 0.0) -> torch.Tensor:
    """(N, 2) float64 in [0, 1]: how right each row of scores (N, C) is, by its highest score, and by its five highest.

    Classes whose scores differ by no more than `tolerance` share the places that are left for them, so an encoder or
    classifier to which everything is the same gets what chance would. A class of score -inf is out of question.
    """
    own = scores.gather(1, labels[:, None])
    above, equal = (scores > own + tolerance).sum(1), ((scores - own).abs() <= tolerance).sum(1)
    places = torch.tensor([1.0, 5.0], device=scores.device, dtype=torch.float64) - above[:, None]
    shares = (places / equal[:, None].clamp(min=1)).clamp(0, 1)
    return shares * (own.isfinite() & ~scores.isnan().any(1, keepdim=True))


def accuracies(scores: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Shares of rows (N, C) that are `right`, of those that have a label."""
    known = labels >= 0
    return dict(zip(("top1", "top5"), right(scores[known], labels[known]).mean(0).tolist()))


def require_finite(features: Features, flag: str, encoder: Encoder) -> None:
    """Raises `UserError` for features that are no numbers, of which every figure would be one of nothing."""
    for block in features.vectors.split(1 << 16):
        if not block.isfinite().all():
            raise UserError(f"{flag}: {encoder.name} gives features that are not finite; take an earlier checkpoint")


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
        **({"rules": rules().unusual} if rules().unusual else {}),  # of decoding: other pixels, other figures
        "data": data,
        "settings": settings,
        "figures": figures,
        "seconds": watch.seconds,
        "hardware": torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} CPU",
        "versions": {"headrace": headrace.__version__, "torch": torch.__version__},
    }
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        append(file, json.dumps(row) + "\n")
    except OSError as fault:
        raise UserError(f"{file}: cannot be written ({fault.strerror}); give another --results") from None


def append(file: Path, line: str) -> None:
    """Adds a line in one piece, whoever else adds one at the same time; on a full disk nothing of it."""
    with open(file, "ab", buffering=0) as out:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(out, fcntl.LOCK_EX)
        end, rest = os.fstat(out.fileno()).st_size, memoryview(line.encode())
        try:
            while rest:
                rest = rest[out.write(rest) :]
        except OSError:
            out.truncate(end)
            raise


def say_left_out(lines: Sequence[str], most: int = 10) -> None:
    for line in lines[:most]:
        print(f"left out: {line}")
    if len(lines) > most:
        print(f"left out: {len(lines) - most:,} others that cannot be decoded")


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
