"""What tests of far sources share: a loader over shards in blocks, and what it gave."""

from headrace.pipelines.loaders.choose import make_loader
from headrace.pipelines.loaders.quarantine import Quarantine
from headrace.pipelines.order import Order, shard_sizes
from headrace.pipelines.sources import open_source
from headrace.pipelines.spec import InputSpec, RandomMask, ViewSpec

INPUTS = InputSpec((ViewSpec(count=2, size=32, jitter=0.8, brightness=0.4),), RandomMask(grid=(4, 4), ratio=0.5))
BATCH = 4


def reader(source, rank=0, world=1, kind="cpu", blocks=True, file=None):
    source = open_source(source) if isinstance(source, str) else source
    order = Order(len(source), BATCH, seed=5, blocks=shard_sizes(source) if blocks is True else blocks or None)
    aside = Quarantine(source, 0.5, file)
    return make_loader(source, INPUTS, order, kind=kind, threads=1, seed=5, rank=rank, world=world, quarantine=aside)


def taken(loader, count, first=0):
    """(ids, views, hidden patches, labels) of so many batches, from step `first` on; the loader is closed."""
    if first:
        loader.load_state_dict({"step": first})
    try:
        batches = [next(loader) for _ in range(count)]
        assert loader.stats().bad_images == 0, loader.stats().replaced
        labels = [None if b.labels is None else b.labels.tolist() for b in batches]
        return [(b.ids.tolist(), b.views["image"], b.mask.hidden, of) for b, of in zip(batches, labels)]
    finally:
        loader.close()


def equal(some, others):
    assert len(some) == len(others)
    for (ids, views, hidden, labels), (ids2, views2, hidden2, labels2) in zip(some, others):
        assert (ids, labels) == (ids2, labels2)
        assert views.equal(views2) and hidden.equal(hidden2)
    return True
