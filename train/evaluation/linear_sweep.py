"""Linear classifiers on frozen features: many learning rates and weight decays at once, as columns of one matrix."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from ...pipelines.rng import stream_key
from ..recipe.schedules import learning_rates
from .embed import Features
from .evaluate import accuracies

RATES = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
DECAYS = (0.0, 1e-5, 1e-4, 1e-3, 1e-2)
_HELD_OUT = 0.1  # share of the training rows that chooses among the heads


@dataclass(frozen=True)
class Scale:
    """Brings every feature to mean 0 and variance 1 over the training rows; one that never varies becomes 0.

    A linear classifier can express neither more nor less by that, but one learning rate then suits every encoder. It is
    what MAE's batch normalisation without affine does, with exact statistics.
    """

    mean: torch.Tensor  # (D,)
    factor: torch.Tensor  # (D,)

    @classmethod
    def of(cls, vectors: torch.Tensor) -> Scale:
        deviation, mean = torch.std_mean(vectors, dim=0, correction=0)
        return cls(mean, torch.where(deviation > 1e-6, 1 / deviation.clamp(min=1e-6), 0.0))

    def __call__(self, vectors: torch.Tensor) -> torch.Tensor:
        return (vectors - self.mean) * self.factor


@torch.inference_mode()
def fit_heads(
    vectors: torch.Tensor,
    labels: torch.Tensor,
    classes: int,
    settings: Sequence[tuple[float, float]],
    *,
    epochs: int,
    batch_size: int = 256,
    momentum: float = 0.9,
    seed: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights (H, D, classes) and biases (H, classes), a head for each (learning rate, weight decay) of `settings`.

    Each minimises mean cross entropy + decay / 2 |W|² from zero by SGD with momentum under a cosine, biases without
    decay, as if it were trained alone: all see the same batches, in an order that depends on the seed alone. A step is
    two matrix products, (B, D) x (D, H classes) and its transpose. Loss and gradient are written out, on the device
    of `vectors` (N, D).
    """
    device, heads = vectors.device, len(settings)
    batch_size = min(batch_size, len(vectors))
    per_epoch = len(vectors) // batch_size
    factors = learning_rates(1.0, epochs * per_epoch, per_epoch).tolist()
    rates, decays = (torch.tensor(column, device=device).repeat_interleave(classes) for column in zip(*settings))
    weight = torch.zeros(vectors.shape[1], heads * classes, device=device)
    bias = torch.zeros(heads * classes, device=device)
    speed, bias_speed = torch.zeros_like(weight), torch.zeros_like(bias)
    for epoch in range(epochs):
        key = stream_key(seed, "linear", epoch) % 2**64
        order = torch.from_numpy(np.random.Generator(np.random.Philox(key=key)).permutation(len(vectors))).to(device)
        for step in range(per_epoch):
            rows = order[step * batch_size : (step + 1) * batch_size]
            x, y = vectors[rows], labels[rows]
            slope = torch.addmm(bias, x, weight).view(-1, heads, classes).softmax(2)  # of the loss by the scores
            slope[torch.arange(batch_size, device=device), :, y] -= 1
            slope = slope.view(batch_size, -1) / batch_size
            speed.mul_(momentum).addmm_(x.T, slope).addcmul_(weight, decays)
            bias_speed.mul_(momentum).add_(slope.sum(0))
            factor = factors[epoch * per_epoch + step]
            weight.addcmul_(speed, rates, value=-factor)
            bias.addcmul_(bias_speed, rates, value=-factor)
    return weight.view(-1, heads, classes).transpose(0, 1), bias.view(heads, classes)


def sweep_heads(
    train: Features,
    test: Features,
    classes: int,
    *,
    rates: Sequence[float] = RATES,
    decays: Sequence[float] = DECAYS,
    epochs: int = 50,
    batch_size: int = 256,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> tuple[dict, list[dict]]:
    """What the best head gives on the test set, and the held-out accuracy of every head.

    A tenth of the training rows chooses learning rate and weight decay; a head with these, trained on all rows, is what
    is tested: the test set takes no part in any choice. Rows without a label neither teach nor count.
    """
    train, test = train.labelled(), test.labelled()
    bits = np.random.Philox(key=stream_key(seed, "held out", 0) % 2**64)
    order = torch.from_numpy(np.random.Generator(bits).permutation(len(train.labels)))
    held = max(1, round(_HELD_OUT * len(order)))
    held, fitted = order[:held], order[held:]
    scale = Scale.of(train.vectors)
    x, y = scale(train.vectors).to(device), train.labels.to(device)
    grid = list(itertools.product(rates, decays))
    options = {"epochs": epochs, "batch_size": batch_size, "seed": seed}
    weights, biases = fit_heads(x[fitted.to(device)], y[fitted.to(device)], classes, grid, **options)
    scores = torch.einsum("nd,hdc->hnc", x[held.to(device)], weights) + biases[:, None]
    rows = [
        {"lr": lr, "weight_decay": decay, "held-out": accuracies(own, y[held.to(device)])["top1"]}
        for (lr, decay), own in zip(grid, scores)
    ]
    best = max(rows, key=lambda row: row["held-out"])
    weights, biases = fit_heads(x, y, classes, [(best["lr"], best["weight_decay"])], **options)
    tested = scale(test.vectors).to(device) @ weights[0] + biases[0]
    return {**best, **accuracies(tested, test.labels.to(device))}, rows


def cross_entropy(
    weight: torch.Tensor, bias: torch.Tensor, vectors: torch.Tensor, labels: torch.Tensor, decay: float
) -> float:
    """What `fit_heads` minimises, for one head."""
    return (F.cross_entropy(vectors @ weight + bias, labels) + decay / 2 * weight.square().sum()).item()
