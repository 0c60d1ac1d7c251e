"""The recipe sections `data`, `train` and `optim`. An algorithm's section is its own `Config`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class DataSettings:
    train: str | None = None  # a folder of shards or a plain folder of images
    loader: Literal["auto", "cpu", "dali", "webdataset", "ffcv", "memory"] = "auto"
    threads: int | None = None  # CPU threads a process decodes with; default: its share of the cores
    last_batch: Literal["drop", "pad"] = "drop"  # what becomes of the samples that do not fill an epoch's last batch
    block: int | Literal["shard"] | None = (
        None  # shuffle blocks of so many samples, or shards, and then within a window
    )
    max_bad: float = 0.01  # the share of undecodable images above which the run stops; one is always let pass

    def __post_init__(self) -> None:
        if isinstance(self.block, int) and self.block < 1:
            raise ValueError(f"block: must be at least 1, not {self.block}")
        if not 0 <= self.max_bad <= 1:
            raise ValueError(f"max_bad: a share lies in [0, 1], not {self.max_bad}")


@dataclass(frozen=True)
class TrainSettings:
    out: str | None = None  # run directory; default runs/<recipe name>
    batch_size: int = 256  # global: of all processes together
    epochs: int | None = None
    max_steps: int | None = None  # the length of the run in optimizer steps; takes precedence over epochs
    seed: int = 0
    save_every: int | None = None  # steps between checkpoints; one is always written at the end
    keep: int = 2  # how many of the newest checkpoints stay
    resume: str = "auto"  # auto: from the newest readable checkpoint in `out`, if any; never; or a path
    log_every: int = 10
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"  # bf16: autocast, weights stay fp32

    def __post_init__(self) -> None:
        if self.epochs is None and self.max_steps is None:
            raise ValueError("epochs: give train.epochs or train.max_steps")
        for key in ("batch_size", "epochs", "max_steps", "save_every", "keep", "log_every"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ValueError(f"{key}: must be at least 1, not {value}")


@dataclass(frozen=True)
class OptimSettings:
    """What every optimizer shares."""

    lr: float = 1.5e-4
    lr_batch: int | None = 256  # the global batch that `lr` is stated for; scaled linearly; null: used as it stands
    weight_decay: float = 0.05  # not on biases, norms and tokens
    warmup: float = 0.05  # share of the run over which the rate rises linearly from 0
    final_lr: float = 0.0  # where the cosine ends, as a share of the peak
    clip_grad: float | None = None  # largest norm of the whole gradient

    def __post_init__(self) -> None:
        if self.lr <= 0 or (self.lr_batch is not None and self.lr_batch < 1):
            raise ValueError(f"lr: needs lr > 0 and lr_batch >= 1, got {self.lr}, {self.lr_batch}")
        for key in ("warmup", "final_lr"):
            if not 0 <= getattr(self, key) <= 1:
                raise ValueError(f"{key}: a share lies in [0, 1], not {getattr(self, key)}")
        if self.clip_grad is not None and self.clip_grad <= 0:
            raise ValueError(f"clip_grad: must be positive, not {self.clip_grad}")


@dataclass(frozen=True)
class AdamWSettings(OptimSettings):
    name: Literal["adamw"] = "adamw"
    betas: tuple[float, float] = (0.9, 0.95)


@dataclass(frozen=True)
class SGDSettings(OptimSettings):
    name: Literal["sgd"] = "sgd"
    momentum: float = 0.9
