"""The recipe sections `data`, `train` and `optim`. An algorithm's section is its own `Config`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch

from ...lengths import length_in_steps
from ...outside import called
from ...pipelines.images.rules import MAX_PIXELS, Rules
from ...pipelines.plan.spec import MixSpec, SetSpec
from ...schema.bounds import Count, Momentum, NotNegative, Positive
from .schedules import SCHEDULES, milestone_in_steps, own_factors


@dataclass(frozen=True)
class DataSettings:
    train: str | dict[str, SetSpec] | None = None  # a folder of shards or of images, or several sets by name
    mix: MixSpec = MixSpec()  # how several sets are mixed
    loader: Literal["auto", "cpu", "dali", "webdataset", "ffcv", "memory"] = "auto"
    threads: int | None = None  # CPU threads a process decodes with; default: its share of the cores
    hw_decoder_load: float | None = None  # dali on a GPU: the share of JPEGs for its JPEG engine; default: DALI's own
    # decoded pixels beside the shards, of `headrace pixels`. auto: where all shards have them; require: else an error
    pixels: Literal["auto", "never", "require"] = "auto"
    last_batch: Literal["drop", "pad"] = "drop"  # what becomes of the samples that do not fill an epoch's last batch
    block: int | Literal["shard"] | None = (
        None  # shuffle blocks of so many samples, or shards, and then within a window
    )
    val: str | None = None  # labelled images for train.knn_every; the training set is the bank of neighbours
    max_bad: float = 0.01  # the share of undecodable images above which the run stops; one is always let pass
    # None: RGB of eight bits. 1 to 16: images of so many channels, at sixteen bits up to the device
    channels: int | None = None
    # which values of images of more than eight bits are black and white: those that the format declares, percentiles
    # of each image, or low,high in the file's own numbers
    range: tuple[float, float] | Literal["full", "percentile"] = "full"
    max_pixels: int = MAX_PIXELS  # an image of more is bad

    def __post_init__(self) -> None:
        _ = self.rules
        for key in ("block", "threads"):
            if isinstance(value := getattr(self, key), int) and value < 1:
                raise ValueError(f"{key}: must be at least 1, not {value}")
        for key in ("max_bad", "hw_decoder_load"):
            if not 0 <= (getattr(self, key) or 0) <= 1:
                raise ValueError(f"{key}: a share lies in [0, 1], not {getattr(self, key)}")

    @property
    def rules(self) -> Rules:
        """How the images of this run are decoded, in training and in every evaluation of what it has trained."""
        return Rules(self.range, self.max_pixels, self.channels)


@dataclass(frozen=True)
class Lora:
    """Thin matrices that learn beside the given weights of an encoder's blocks."""

    rank: Count = 8
    alpha: Positive = 16.0  # their product counts alpha / rank


@dataclass(frozen=True)
class TrainSettings:
    out: str | None = None  # run directory; default runs/<recipe name>
    batch_size: int = 256  # global: of all processes and micro-batches together
    accumulate: int = 1  # micro-batches of a step, where a batch does not fit in memory
    epochs: int | None = None
    max_steps: int | None = None  # the length of the run in optimizer steps; takes precedence over epochs
    seed: int = 0
    deterministic: bool = False  # only operations whose result does not vary from run to run on a GPU; slower
    save_every: int = 1000  # steps between checkpoints; one is always written at the end
    keep: int = 2  # how many of the newest checkpoints stay
    keep_every: int | None = None  # those of steps that this divides stay, too
    resume: str = "auto"  # auto: from the newest readable checkpoint in `out`, if any; never; or a path
    # what a new run begins with: a run directory, a checkpoint, an encoder.safetensors, or timm:NAME
    init: str | None = None
    lora: Lora | None = None  # of the encoder, only low-rank matrices beside its layers learn; with init
    guard: float | None = None  # with knn_every: the fall of k-NN accuracy since the start at which the run stops
    accept_changes: bool = False  # continue although recipe or images are others than the checkpoint's
    replan: bool = False  # continue although data.train and data.mix, and they alone, plan another mixture from here on
    log_every: int = 10
    device: Literal["auto", "cpu", "cuda"] = "auto"
    # bf16, fp16: autocast, weights stay fp32; auto: bf16 where the device has it, else fp32
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "fp32"
    max_skipped: int = 10  # steps in a row that may be left out because loss or gradient were not finite
    checkpointing: bool = False  # transformer blocks recompute their activations in the backward pass
    compile: bool = False  # torch.compile of the algorithm's forward
    unused_parameters: bool = False  # of several processes: some parameters take no part in some steps
    shard: bool = False  # of several processes: FSDP2, weights and optimizer state shared out over them
    timeout: float = 600.0  # seconds after which a process that others wait for is given up
    profile: str | None = None  # "100:110": a trace of these steps, trace.json in the run directory
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ()  # beside metrics.jsonl
    knn_every: int | None = None  # epochs between k-NN scores on data.val
    ledger: bool = False  # last loss, average, visits and step of each sample, in the folder ledger of `out`

    def __post_init__(self) -> None:
        if self.epochs is None and self.max_steps is None:
            raise ValueError("epochs: give train.epochs or train.max_steps")
        positive = ("batch_size", "accumulate", "epochs", "max_steps", "save_every", "keep", "keep_every", "log_every")
        for key in (*positive, "max_skipped", "timeout", "knn_every"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ValueError(f"{key}: must be at least 1, not {value}")
        if self.lora is not None and (self.init is None or self.shard):
            raise ValueError("lora: needs the weights that it leaves alone, train.init, and goes without train.shard")
        if self.guard is not None and (not 0 <= self.guard <= 1 or self.knn_every is None):
            raise ValueError("guard: a fall of the accuracy in [0, 1], looked at every train.knn_every epochs")
        if self.batch_size % self.accumulate:
            raise ValueError(f"accumulate: {self.accumulate} does not divide a batch of {self.batch_size}")
        if self.profile is not None and not re.fullmatch(r"\d+:\d+", self.profile):
            raise ValueError(f"profile: needs first:last step such as 100:110, not {self.profile!r}")
        if self.profile is not None and int(self.profile.split(":")[0]) > int(self.profile.split(":")[1]):
            raise ValueError(f"profile: {self.profile} ends before it begins")
        if self.profile is not None and int(self.profile.split(":")[0]) < 1:
            raise ValueError(f"profile: steps count from 1, not {self.profile}")


@dataclass(frozen=True)
class GroupRule:
    """What the parameters with a name that `match` is found in do differently. The first rule that matches counts."""

    match: str  # regular expression, searched in the full parameter name: "predictor", "\\.norm\\d\\.", "bias$"
    lr: float = 1.0  # factor on the rate
    fixed_lr: bool = False  # the peak rate from the first step to the last (SimSiam's predictor)
    weight_decay: float | None = None  # a value of its own, outside the weight-decay schedule and whatever is exempt
    momentum: float | None = None  # sgd and lars
    adapt: bool | None = None  # lars and lamb: whether the layer-wise ratio applies, whatever is exempt

    def __post_init__(self) -> None:
        try:
            re.compile(self.match)
        except re.error as fault:
            raise ValueError(f"match: {self.match!r} is not a regular expression: {fault}") from None
        if self.lr < 0 or (self.weight_decay or 0) < 0:
            raise ValueError(f"lr, weight_decay: are not negative, got {self.lr}, {self.weight_decay}")


@dataclass(frozen=True)
class Frozen:
    """Parameters that stand still at the start: their rate is 0, whatever else is said of them."""

    match: str  # regular expression, searched in the full parameter name
    until: float | str  # "1 epochs", "500 steps", or a share of the run

    def __post_init__(self) -> None:
        try:
            re.compile(self.match)
        except re.error as fault:
            raise ValueError(f"match: {self.match!r} is not a regular expression: {fault}") from None
        try:
            length_in_steps(self.until, total_steps=1, steps_per_epoch=1)
        except ValueError as fault:
            raise ValueError(f"until: {fault}") from None


@dataclass(frozen=True)
class OptimSettings:
    """What every optimizer shares. docs/training.md explains the fields with the recipes they come from."""

    lr: float = 1.5e-4
    lr_batch: int | None = 256  # the global batch that `lr` is stated for; null: used as it stands
    lr_scaling: Literal["linear", "sqrt"] = "linear"  # with the batch: in proportion, or as its root (DINOv2, DINOv3)
    warmup: float | str = 0.0  # "10 epochs", "500 steps", or a number: a share of the run
    warmup_from: float | None = None  # the first step's share of the peak; null: 1 / warm-up steps
    warmup_curve: Literal["linear", "cosine"] = "linear"  # cosine: half a period, level at both ends
    # after the warm-up: cosine, poly, multistep, constant, or a function of one's own by its dotted name
    schedule: str = "cosine"
    per_epoch: bool = False  # the cosine moves once per epoch instead of at every step
    final_lr: float = 0.0  # where cosine and poly end, as a share of the peak
    power: float = 0.9  # of poly: 1 is a straight line
    # of multistep: the epochs, or "18000 steps", after which the rate is multiplied by `gamma`
    milestones: tuple[float | str, ...] = ()
    gamma: Positive = 0.1
    weight_decay: float = 0.05
    weight_decay_end: float | None = None  # where a half cosine takes it over the run (DINO: 0.04 -> 0.4)
    # without weight decay and layer-wise adaptation: "vectors" (biases, norms, tokens: at most one dimension above 1),
    # "none", or a list of regular expressions that are searched in the full parameter names
    exempt: tuple[str, ...] | Literal["vectors", "none"] = "vectors"
    groups: tuple[GroupRule, ...] = ()
    layer_decay: float | None = None  # factor on the rate per layer, from the last one down (fine-tuning)
    merge_layer: Literal["before", "after"] = "before"  # of layer_decay: whose rate a merging of tokens has
    clip_grad: float | None = None  # largest norm of the gradient
    # regular expressions: gradients of the parameters that the first is found in are clipped by their own norm, those
    # of the second by theirs, and all others by their own; none: by the norm of the whole
    clip_apart: tuple[str, ...] = ()
    frozen: tuple[Frozen, ...] = ()  # what stands still at the start of the run

    def __post_init__(self) -> None:
        if self.lr <= 0 or (self.lr_batch is not None and self.lr_batch < 1):
            raise ValueError(f"lr: needs lr > 0 and lr_batch >= 1, got {self.lr}, {self.lr_batch}")
        for key in ("final_lr", "warmup_from"):
            if not 0 <= (getattr(self, key) or 0) <= 1:
                raise ValueError(f"{key}: a share lies in [0, 1], not {getattr(self, key)}")
        try:
            length_in_steps(self.warmup, total_steps=1, steps_per_epoch=1)
        except ValueError as fault:
            raise ValueError(f"warmup: {fault}") from None
        if self.schedule not in SCHEDULES:
            own_factors(self.schedule, np.arange(8) / 8)
        try:
            milestones = [milestone_in_steps(one, steps_per_epoch=1) for one in self.milestones]
        except ValueError as fault:
            raise ValueError(f"milestones: {fault}") from None
        if (self.schedule == "multistep") != bool(self.milestones):
            raise ValueError("milestones: belong to schedule multistep, which needs them")
        if milestones != sorted(milestones):
            raise ValueError(f"milestones: must rise, got {list(self.milestones)}")
        if self.schedule != "cosine" and self.per_epoch:
            raise ValueError("per_epoch: has an effect with schedule cosine only")
        if self.schedule not in ("cosine", "poly") and self.final_lr:
            raise ValueError("final_lr: has an effect with schedules cosine and poly only")
        if self.power <= 0:
            raise ValueError(f"power: must be positive, not {self.power}")
        if min(self.weight_decay, self.weight_decay_end or 0) < 0:
            raise ValueError("weight_decay, weight_decay_end: are not negative")
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay: lies in (0, 1], not {self.layer_decay}")
        if self.merge_layer != "before" and self.layer_decay is None:
            raise ValueError("merge_layer: has an effect with layer_decay only")
        if self.clip_grad is not None and self.clip_grad <= 0:
            raise ValueError(f"clip_grad: must be positive, not {self.clip_grad}")
        if self.clip_apart and self.clip_grad is None:
            raise ValueError("clip_apart: has an effect with clip_grad only")
        for pattern in self.clip_apart:
            try:
                re.compile(pattern)
            except re.error as fault:
                raise ValueError(f"clip_apart: {pattern!r} is not a regular expression: {fault}") from None
        takes = {
            "momentum": isinstance(self, SGDSettings | LARSSettings),
            "adapt": isinstance(self, LARSSettings | LAMBSettings),
        }
        for key, taken in takes.items():
            if not taken and any(getattr(rule, key) is not None for rule in self.groups):
                raise ValueError(f"groups: this optimizer takes no {key}")


@dataclass(frozen=True)
class SGDSettings(OptimSettings):
    name: Literal["sgd"] = "sgd"
    momentum: Momentum = 0.9
    nesterov: bool = False


@dataclass(frozen=True)
class AdamWSettings(OptimSettings):
    name: Literal["adamw"] = "adamw"
    betas: tuple[float, float] = (0.9, 0.95)
    eps: NotNegative = 1e-8


@dataclass(frozen=True)
class LARSSettings(OptimSettings):
    name: Literal["lars"] = "lars"
    momentum: Momentum = 0.9
    trust: Positive = 1e-3  # the trust coefficient
    eps: NotNegative = 1e-8
    # paper: arXiv 1708.03888, the rate inside the momentum, |w| / (|g| + decay |w|) (SimCLR, BYOL, SwAV as published by
    # MMSelfSup); update: the rate outside, |w| / |g + decay w| (the authors' MoCo v3, Barlow Twins, MAE linear probing)
    form: Literal["paper", "update"] = "paper"


@dataclass(frozen=True)
class LAMBSettings(OptimSettings):
    name: Literal["lamb"] = "lamb"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: NotNegative = 1e-6


@dataclass(frozen=True)
class OwnOptimSettings(OptimSettings):
    """Any `torch.optim.Optimizer` by the dotted name of its class; `options` are its keywords but for `lr`.

    One without ``_step_supports_amp_scaling``, which says that it leaves out steps by itself where `found_inf` is set,
    makes the host wait for the device once a step.
    """

    name: str = ""
    options: dict[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        taken = {"lr", "weight_decay"} & self.options.keys()
        if taken:
            raise ValueError(f"options: {' and '.join(sorted(taken))} belong into the section itself, beside `options`")
        called(self.name, ("parameters", "lr"), self.options, _is_optimizer, "optimizer")


def _is_optimizer(thing: object) -> bool:
    return isinstance(thing, type) and issubclass(thing, torch.optim.Optimizer)


# a recipe's `optim` section
Optim = AdamWSettings | SGDSettings | LARSSettings | LAMBSettings | OwnOptimSettings
