"""The running mean of what a teacher says, and KoLeo over the groups of a global batch."""

from __future__ import annotations

import torch
from torch import nn

from ...errors import UserError
from ...kernels.koleo import koleo
from ...kernels.ranks import all_reduce_sum
from ..distributed import gather_with_gradient


class Center(nn.Module):
    """The running mean of a teacher's logits, which is subtracted from them: buffer `mean` (K,).

    What is seen in a step counts from the next one on.
    """

    def __init__(self, prototypes: int, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros(prototypes))
        self._sums: list[torch.Tensor] = []  # since the last step: (K + 1,), the number of rows last

    @torch.no_grad()
    def see(self, mean: torch.Tensor, rows: int) -> None:
        """`mean` (K,) over `rows` rows; of none it may be anything."""
        mean = mean if rows else torch.zeros_like(mean)
        self._sums.append(torch.cat([mean.float() * rows, mean.new_full((1,), rows, dtype=torch.float32)]))

    @torch.no_grad()
    def update(self) -> None:
        """Moves towards the mean of the rows seen since the last call, those of all ranks alike. Stays where there are
        none."""
        if not self._sums:
            return
        *total, rows = all_reduce_sum(torch.stack(self._sums).sum(0)).split([len(self.mean), 1])
        self._sums.clear()
        share = (1 - self.momentum) * (rows > 0)
        self.mean.lerp_(total[0] / rows.clamp(min=1), share)


def spread(features: torch.Tensor, group: int, nearest: int = 1) -> torch.Tensor:
    """features (V, B, D) of this rank -> the sum over views of `koleo` in groups of so many consecutive samples of the
    global batch, whatever ranks they are on."""
    if features.shape[1] % group:
        features = gather_with_gradient(features).transpose(0, 1).flatten(1, 2)
    if features.shape[1] % group:
        raise UserError(
            f"algorithm.koleo_group: {group} does not divide the {features.shape[1]} images of a micro-batch; give a "
            "divisor of at least 2"
        )
    return sum(koleo(view, group=group, nearest=nearest) for view in features)
