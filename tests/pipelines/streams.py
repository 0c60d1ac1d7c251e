"""What tests of streams share: loaders over tars behind commands and addresses."""

from headrace.pipelines.loaders.quarantine import Quarantine
from headrace.pipelines.loaders.stream import StreamLoader, _hash
from headrace.pipelines.order import Order
from headrace.pipelines.sources import open_source
from headrace.pipelines.spec import InputSpec, RandomMask, ViewSpec

VIEW = ViewSpec(count=2, size=48, interpolation="bicubic")
INPUTS = InputSpec((VIEW,), RandomMask(grid=(6, 6), ratio=0.5))


def stream(name, batch=6, *, seed=3, inputs=INPUTS, rank=0, world=1, max_bad=0.01, file=None, **order):
    source = open_source(name)
    order = Order(len(source), batch, seed=seed, **order)
    aside = Quarantine(source, max_bad, file)
    return StreamLoader(source, inputs, order, seed=seed, rank=rank, world=world, threads=2, quarantine=aside)


def pipes(folder, command="cat {}", shards="{0..2}", options="#samples=24&classes=3"):
    return "pipe:" + command.format(folder / f"train-{shards}.tar") + options


def take(loader, count):
    try:
        return [next(loader) for _ in range(count)]
    finally:
        loader.close()


class ByHash:
    """The same images, found by the ids that a stream gives them."""

    def __init__(self, folder):
        self._source = open_source(folder)
        self._index = {_hash(self._source.key(i)): i for i in range(len(self._source))}

    def __len__(self):
        return len(self._index)

    def read(self, index):
        return self._source.read(self._index[index])

    def label(self, index):
        return self._source.label(self._index[index])

    @property
    def ids(self):
        return set(self._index)
