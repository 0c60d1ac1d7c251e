"""Projection heads."""

from __future__ import annotations

from torch import nn


def projection_mlp(features: int, hidden: int, output: int, layers: int = 2) -> nn.Sequential:
    """(B, features) -> (B, output): linear layers without bias, each followed by batch normalisation, ReLU in between.

    SimCLR's head (arXiv 2002.05709, section 4.2) with the batch normalisations of the authors' code.
    """
    modules: list[nn.Module] = []
    for layer in range(layers):
        last = layer == layers - 1
        modules += [
            nn.Linear(features, output if last else hidden, bias=False),
            nn.BatchNorm1d(output if last else hidden),
        ]
        if not last:
            modules.append(nn.ReLU(inplace=True))
        features = hidden
    return nn.Sequential(*modules)
