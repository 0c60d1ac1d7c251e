"""Projection and prediction heads."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn


def projection_mlp(
    features: int,
    hidden: int,
    output: int,
    layers: int = 2,
    *,
    bias: bool = False,
    last_bias: bool = False,
    last_norm: Literal["affine", "plain"] | None = "affine",
) -> nn.Sequential:
    """(B, features) -> (B, output): `layers` linear layers, batch normalisation and ReLU between them.

    SimCLR's head (arXiv 2002.05709, section 4.2) in the forms that later papers gave it: `bias` is that of all layers
    but the last, `last_bias` the last one's, and `last_norm` the batch normalisation after it, with learned scale and
    shift (affine), without (plain), or none.
    """
    modules: list[nn.Module] = []
    for _ in range(layers - 1):
        modules += [nn.Linear(features, hidden, bias=bias), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True)]
        features = hidden
    modules.append(nn.Linear(features, output, bias=last_bias))
    if last_norm is not None:
        modules.append(nn.BatchNorm1d(output, affine=last_norm == "affine"))
    return nn.Sequential(*modules)


class UnitLinear(nn.Linear):
    """Prototypes: a linear layer without bias whose rows have length 1 whatever the weights' length.

    (B, D) rows of unit length -> (B, K) cosines with K prototypes.
    """

    def __init__(self, features: int, prototypes: int) -> None:
        super().__init__(features, prototypes, bias=False)

    def rows(self) -> torch.Tensor:
        """(K, D): what vectors are multiplied with."""
        return F.normalize(self.weight, dim=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.rows())


class GainLinear(UnitLinear):
    """Prototypes with a trained length each, 1 at the start: weight normalisation (arXiv 1602.07868), row by row."""

    def __init__(self, features: int, prototypes: int) -> None:
        super().__init__(features, prototypes)
        self.gain = nn.Parameter(torch.ones(prototypes, 1))

    def rows(self) -> torch.Tensor:
        return self.gain * super().rows()


class PlainPrototypes(nn.Linear):
    """Prototypes as a linear layer without bias, weights ~ N(0, 0.02) (DINOv3)."""

    def __init__(self, features: int, prototypes: int) -> None:
        super().__init__(features, prototypes, bias=False)
        nn.init.trunc_normal_(self.weight, std=0.02)

    def rows(self) -> torch.Tensor:
        """(K, D): what vectors are multiplied with."""
        return self.weight


Prototypes = Literal["unit", "gain", "plain"]
_PROTOTYPES = {"unit": UnitLinear, "gain": GainLinear, "plain": PlainPrototypes}


class DINOHead(nn.Sequential):
    """DINO's head (arXiv 2104.14294, appendix C): three layers with GELU, unit length, products with K prototypes.

    (B, features) -> (B, prototypes). `last`: prototypes of length 1, the authors' weight normalisation with its gain
    fixed (DINO); with a trained gain (iBOT, DINOv2); a plain layer (DINOv3).
    """

    def __init__(self, features: int, hidden: int, bottleneck: int, prototypes: int, last: Prototypes = "unit") -> None:
        mlp = nn.Sequential(
            nn.Linear(features, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck)
        )
        for layer in mlp[::2]:
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        super().__init__(mlp, _PROTOTYPES[last](bottleneck, prototypes))

    def project(self, x: torch.Tensor) -> torch.Tensor:
        """(B, features) -> (B, bottleneck) of unit length, what prototypes are compared with."""
        return F.normalize(self[0](x), dim=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self[1](self.project(x))


def classifier(features: int, classes: int, std: float = 0.01) -> nn.Linear:
    """(B, features) -> (B, classes), weights from N(0, std), biases 0."""
    layer = nn.Linear(features, classes)
    nn.init.normal_(layer.weight, std=std)
    nn.init.zeros_(layer.bias)
    return layer
