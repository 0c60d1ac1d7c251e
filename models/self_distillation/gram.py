"""Gram anchoring: similarities of the student's patches held to an earlier teacher's (DINOv3, arXiv 2508.10104)."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import UserError
from ...kernels.gram_loss import gram_loss
from ...lengths import length_in_steps
from ...pipelines.spec import ViewSpec
from ...schema.bounds import Natural, NotNegative, Positive
from ..algorithm import Progress
from ..backbones.vit import ViT
from ..weights import adapt
from .schedules import half_cosine

OWN = "ema"  # the run's own teacher
_LENGTHS = ("from", "warmup", "update_every")


@dataclass(frozen=True)
class Gram:
    """A frozen encoder, the Gram teacher, sees the large crops undistorted and larger. From `from` on, the similarities
    of the student's patches are held to those of its patches, resized to the student's grid.

    Lengths: "10000 steps", "10 epochs", or a share of the run.
    """

    begin: float | str = field(default=0.0, metadata={"key": "from"})
    # ema: the run's own teacher as it is at `from`; or a run, a checkpoint, an encoder.safetensors of a like encoder
    teacher: str = OWN
    weight: NotNegative = 2.0
    warmup: float | str = 0.0  # a half cosine from 0 to `weight`, and from 1 to `local_weight`
    local_weight: NotNegative = 1.0  # of the loss of small crops, beside Gram
    update_every: float | str | None = None  # so long after `from`, and again, it becomes a copy of the run's teacher
    updates: Natural | None = None  # at most so many times
    enlarge: Positive = 2.0  # sides of its crops, by those of the student's
    negatives: bool = True  # False: negative similarities count as 0
    features: NotNegative = 0.0  # weight of the mean of 1 - cosine between each patch and the Gram teacher's

    def __post_init__(self) -> None:
        for key, length in zip(_LENGTHS, (self.begin, self.warmup, self.update_every)):
            try:
                steps = 1 if length is None else length_in_steps(length, 1 << 40, 1)
            except ValueError as fault:
                raise ValueError(f"{key}: {fault}") from None
            if key == "update_every" and not steps:
                raise ValueError("update_every: must be longer than no step")
        if self.updates and self.update_every is None:
            raise ValueError("updates: has an effect with update_every only")

    def smoke(self) -> Gram:
        """For views of a few patches, which only whole numbers enlarge to whole patches, and runs of a few steps."""
        every = None if self.update_every is None else 0.25
        tiny = {"begin": 0.25 if self.begin else 0.0, "teacher": OWN, "warmup": 0.2, "update_every": every}
        return replace(self, **tiny, enlarge=max(1.0, float(round(self.enlarge))))

    def side(self, student: int) -> int:
        """The side in pixels of the Gram teacher's crops. Raises `ValueError` where that is no whole number."""
        side = student * self.enlarge
        if side != round(side):
            raise ValueError(f"gram: {student} px enlarged by {self.enlarge} are no whole pixels (gram.enlarge)")
        return round(side)

    def view(self, view: ViewSpec) -> ViewSpec:
        """The view's crops for the Gram teacher: the same boxes and flips, and nothing else done to them."""
        plain = {"jitter": 0.0, "gray": 0.0, "blur": 0.0, "solarize": 0.0, "rotate": 0.0, "randaugment": None}
        plain |= {"operations": (), "erasing": None, "sizes": {}}
        size = self.side(view.size)
        return replace(view, name=f"{view.name}_gram", draws=view.draws or view.name, size=size, **plain)


class GramTeacher(nn.Module):
    """The frozen encoder, and the part of the loss that it is for. Its weights are part of a checkpoint."""

    def __init__(self, config: Gram, backbone: ViT) -> None:
        super().__init__()
        self.config = config
        self.backbone = copy.deepcopy(backbone).requires_grad_(False)

    def take(self, module: nn.Module) -> None:
        """The weights of an encoder of the same kind. Raises `UserError` for one of another."""
        own = self.backbone.state_dict()
        found = adapt(module.state_dict(), self.backbone)
        wrong = [name for name in own if name not in found or found[name].shape != own[name].shape]
        if wrong or len(found) != len(own):
            theirs, width = getattr(module, "features", "other"), self.backbone.features
            what = f"has {theirs} features" if theirs != width else f"differs in {(wrong or ['its depth'])[0]}"
            raise UserError(
                f"algorithm.gram.teacher: {self.config.teacher} {what}, and the run's encoder {width}; a Gram teacher "
                "has the encoder's own shape, as algorithm.backbone says it"
            )
        self.backbone.load_state_dict(found)

    @torch.no_grad()
    def follow(self, teacher: ViT, progress: Progress) -> None:
        """After a step: becomes a copy of the run's teacher when it is time to."""
        config, since = self.config, progress.step + 1 - self._steps(self.config.begin, progress)
        due = since == 0 and config.teacher == OWN
        if since > 0 and config.update_every is not None:
            every = max(1, self._steps(config.update_every, progress))
            due = since % every == 0 and (config.updates is None or since // every <= config.updates)
        if due:
            for own, other in zip(self.backbone.parameters(), teacher.parameters(), strict=True):
                own.copy_(other)  # one by one: foreach knows no shares of tensors (train.shard)

    def share(self, progress: Progress) -> float | None:
        """How much of its weight Gram has in this step, in [0, 1]; None before it begins."""
        since = progress.step - self._steps(self.config.begin, progress)
        return None if since < 0 else half_cosine(self._steps(self.config.warmup, progress), since)

    def local_weight(self, progress: Progress) -> float:
        share = self.share(progress) or 0.0
        return 1 + share * (self.config.local_weight - 1)

    def losses(
        self, patches: Tensor, images: Tensor | None, grid: tuple[int, int], progress: Progress
    ) -> dict[str, Tensor]:
        """`patches` (C, L, D): the student's of C crops; `images` (C, 3, S, S): those crops, undistorted; None before
        Gram begins."""
        names, share = ["loss_gram"] + ["loss_features"] * (self.config.features > 0), self.share(progress)
        if share is None:
            return {name: patches.new_zeros((), dtype=torch.float32) for name in names}
        with torch.no_grad():
            seen = self.backbone.feature_maps(images)[0].float()
            if tuple(seen.shape[2:]) != tuple(grid):
                seen = F.interpolate(seen, grid, mode="bicubic", align_corners=False, antialias=False)
            seen = seen.flatten(2).transpose(1, 2)
        found = [share * self.config.weight * gram_loss(patches, seen, negatives=self.config.negatives)]
        if self.config.features:
            away = 1 - F.cosine_similarity(patches.float(), seen, dim=-1).mean()
            found.append(share * self.config.features * away)
        return dict(zip(names, found))

    @staticmethod
    def _steps(length: float | str, progress: Progress) -> int:
        return length_in_steps(length, progress.total_steps, progress.steps_per_epoch)
