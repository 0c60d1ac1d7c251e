"""What a run says of itself at its start and at its end."""

from __future__ import annotations

import sys

import torch
from torch import nn

from .. import kernels
from ..pipelines.order import Order
from ..pipelines.plan.facts import in_words, sets_of
from ..pipelines.plan.mixture import MixedOrder
from ..pipelines.spec import ByteSource, Loader
from .engine.distributed import Launch
from .engine.metrics import duration, say
from .precision import cost
from .recipe.recipe import Recipe, without_effect
from .resume import Resumed


def announce(
    recipe: Recipe,
    process: Launch,
    source: ByteSource,
    loader: str,
    algorithm: nn.Module,
    order: Order | MixedOrder,
    total_steps: int,
    resumed: Resumed | None,
    precision: str,
) -> None:
    """The start-up block: every choice that was made."""
    settings, device = recipe.train, str(process.device)
    if process.device.type == "cuda":
        device = torch.cuda.get_device_name(process.device)
    parameters = sum(p.numel() for p in algorithm.parameters()) / 1e6
    labels = f"{len(source.classes)} classes" if source.classes else "no labels"
    batch = f"global batch {settings.batch_size}"
    if settings.accumulate > 1:
        batch += f" in {settings.accumulate} parts"
    how = [precision if precision == settings.precision else f"{precision} (auto)"]
    how += [key for key in ("deterministic", "checkpointing", "compile", "shard") if getattr(settings, key)]
    rows = {
        "recipe": f"{recipe.name} -> {recipe.out}",
        "algorithm": f"{recipe.algorithm.name}, {parameters:.2f} M parameters, {', '.join(how)}",
        "data": f"{source.name}: {len(source):,} images, {labels}",
        **{f"  {row['name']}": line for row, line in _sets(source, order, total_steps)},
        "loader": loader,
        "processes": f"{process.world} on {device}, {batch}",
        "steps": f"{total_steps:,} ({total_steps / order.steps_per_epoch:.1f} epochs of {order.steps_per_epoch:,})",
        "resumed": f"{resumed.path} at step {resumed.step}" if resumed else "no, a new run",
    }
    for row in kernels.report(process.device.type):
        operator = row.op if row.why == "automatic" else f"{row.op} ({row.why})"
        rows[f"{row.chosen} kernels"] = ", ".join(filter(None, (rows.get(f"{row.chosen} kernels"), operator)))
    width = max(map(len, rows))
    say("\n".join(f"{key:<{width}}  {value}" for key, value in rows.items()))
    if warning := cost(settings.precision, process.device):
        say(f"headrace: {warning}", sys.stderr)
    notes = without_effect(recipe, total_steps, order.steps_per_epoch, resumed.step if resumed else 0)
    for note in (*notes, *(resumed.notes if resumed else ())):
        say(f"headrace: {note}", sys.stderr)


def _sets(source: ByteSource, order: Order | MixedOrder, steps: int) -> list[tuple[dict, str]]:
    """Of several sets: a row and a line for each."""
    rows = sets_of(source, order, steps) if isinstance(order, MixedOrder) else []
    return [(row, line.partition(": ")[2]) for row, line in zip(rows, in_words(rows))]


def summary(steps: int, seconds: float, recipe: Recipe, loader: Loader) -> str:
    """A line at the end of the steps: how many, how fast, how much of it waiting."""
    stats, rate = loader.stats(), steps * recipe.train.batch_size / seconds
    parts = [f"{steps:,} steps in {duration(seconds)}, {rate:,.0f} images/s"]
    parts.append(f"{stats.wait_seconds / seconds:.1%} of the time waiting for data")
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        parts.append(f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB of GPU memory at the most")
    return "; ".join(parts)
