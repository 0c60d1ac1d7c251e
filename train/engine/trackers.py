"""Other places where metrics go: TensorBoard and Weights & Biases, each only where asked for and installed."""

from __future__ import annotations

import importlib
import secrets
from pathlib import Path
from typing import Protocol

from ...errors import UserError


class Tracker(Protocol):
    def __call__(self, step: int, values: dict[str, float]) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in ``<run directory>/tensorboard``."""

    def __init__(self, folder: Path, name: str, config: dict, first_step: int) -> None:
        module = _required("torch.utils.tensorboard", "tensorboard")
        # what an interrupted run wrote after its last checkpoint is written again
        self._writer = module.SummaryWriter(str(folder / "tensorboard"), purge_step=first_step)

    def __call__(self, step: int, values: dict[str, float]) -> None:
        for key, value in values.items():
            self._writer.add_scalar(key, value, step)

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """One W&B run per run directory: a resumed run continues it."""

    def __init__(self, folder: Path, name: str, config: dict, first_step: int) -> None:
        wandb = _required("wandb", "wandb")
        identity = folder / "wandb-id"
        own = identity.read_text(encoding="utf-8").strip() if identity.exists() else ""
        if not own:
            own = secrets.token_hex(8)
            identity.write_text(own, encoding="utf-8")
        try:
            self._run = wandb.init(
                project="headrace",
                name=name,
                id=own,
                resume="allow",
                config=config,
                dir=str(folder),
                reinit="create_new",  # a run that the process's owner has begun is not ours to write to, nor to end
            )
        except wandb.Error as fault:
            said = " ".join(str(fault).split())
            hint = "log in by `wandb login`, or set WANDB_MODE=offline"
            raise UserError(f"train.trackers: wandb: {said}; {hint}") from None

    def __call__(self, step: int, values: dict[str, float]) -> None:
        self._run.log(values, step=step)

    def close(self) -> None:
        self._run.finish()


_KINDS = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}


def make_tracker(kind: str, folder: Path, name: str, config: dict, first_step: int) -> Tracker:
    """`kind`: tensorboard | wandb. Raises `UserError` where its package is missing."""
    return _KINDS[kind](folder, name, config, first_step)


def _required(module: str, package: str):
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(
            f"train.trackers: {package} is not installed: pip install {package}, or headrace[{package}]"
        ) from None
