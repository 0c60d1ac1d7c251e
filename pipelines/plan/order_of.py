"""The reading order of any source."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from ...errors import UserError
from ..order import Order, shard_sizes
from ..spec import ByteSource
from .follow import Frozen, follow
from .mixture import MixedOrder, Part
from .sets import PlannedSource


def order_of(
    source: ByteSource,
    global_batch: int,
    *,
    seed: int = 0,
    shuffle: bool = True,
    last: Literal["drop", "pad"] = "drop",
    block: int | Literal["shard"] | None = None,
    epochs: int | None = None,
    max_steps: int | None = None,
    begin: tuple[int, Mapping[str, int]] = (0, {}),
    frozen: Frozen | None = None,
) -> Order | MixedOrder:
    """The reading order of a source: of several sets with a plan a `MixedOrder`, else an `Order`.

    `block`: read in blocks of so many neighbours, or of a shard. Several sets that are not shuffled are read one after
    another. The length of the run, `max_steps` or `epochs`, is needed where weights change at a share of it, and the
    ledger, `frozen`, where sets follow it. Raises `UserError` for what does not fit together.
    """
    following = [p for p in source.plan if p.follow] if isinstance(source, PlannedSource) else []
    if following and (frozen is None or not shuffle):
        name = following[0].follow.names[0]
        raise UserError(f"{following[0].follow.at}: {name}: only a run that keeps a ledger has it (train.ledger=true)")
    if not isinstance(source, PlannedSource) or not shuffle:
        blocks = shard_sizes(source) if block == "shard" else block
        return Order(len(source), global_batch, seed=seed, shuffle=shuffle, last=last, blocks=blocks)
    if block is not None:
        raise UserError("data.block: several sets are not read in blocks; leave it out, or give one set")
    mix = source.mix
    lasting = [planned.spec.limit(len(planned.source)) or len(planned.source) for planned in source.plan]
    epoch_samples = mix.epoch or sum(lasting)
    steps_per_epoch = max(1, epoch_samples // global_batch)
    total = max_steps or (epochs and epochs * steps_per_epoch)
    parts = tuple(
        Part(planned.name, len(planned.source), weights, None if mix.exhausted == "again" else count, planned.favour)
        for planned, count, weights in zip(source.plan, lasting, _weights(source, lasting, steps_per_epoch, total))
    )
    options = {"pure": mix.pure, "exhausted": mix.exhausted, "epoch_samples": epoch_samples, "begin": begin}
    order = MixedOrder(parts, global_batch, seed=seed, **options)
    return follow(order, source, frozen) if following else order


def run_length(order: Order | MixedOrder, epochs: int | None, max_steps: int | None) -> int:
    """The steps of a run: `max_steps`, else `epochs`, but no more than a mixture lasts whose end ends the run."""
    steps = max_steps or epochs * order.steps_per_epoch
    return steps if order.ends is None else min(steps, order.ends)


def _weights(source: PlannedSource, lasting: list[int], steps_per_epoch: int, total: int | None) -> list[tuple]:
    """For each set its ((first step, weight), ...)."""
    said = {planned.name: planned.spec.moments for planned in source.plan}
    silent = [name for name, moments in said.items() if moments is None]
    by = source.mix.by or ("size" if len(silent) == len(said) else "weight")
    if by == "weight":
        if silent:
            raise UserError(f"data.train.{silent[0]}: weight: missing; give all sets one, or none (data.mix.by: size)")
        return [
            tuple(
                sorted((_in_steps(moment, steps_per_epoch, total), float(weight)) for moment, weight in table.items())
            )
            for table in said.values()
        ]
    if spoken := [name for name in said if name not in silent]:
        raise UserError(f"data.train.{spoken[0]}: weight: has no effect with data.mix.by: {by}; leave one of them out")
    power = 1.0 if by == "size" else 1 / source.mix.temperature
    return [((0, float(count) ** power),) for count in lasting]


def _in_steps(moment: float | str, steps_per_epoch: int, total: int | None) -> int:
    if isinstance(moment, str):
        number, _, unit = moment.partition(" ")
        return round(float(number) * (steps_per_epoch if unit.startswith("epoch") else 1))
    if moment and total is None:
        raise UserError(f'data.train: weight: {moment} is a share of a run without a length; write "500 steps"')
    return round(moment * (total or 0))
