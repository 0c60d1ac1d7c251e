"""From measurements to what to do about them: nothing is measured here, and nothing is advised that was not."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

# what every image goes through before the model, in this order
PREPARATION = ("read, warm", "header", "draw", "decode", "crop and resize", "augment")


@dataclass(frozen=True)
class Timing:
    """How long one image takes in one stage: microseconds, of repeated measurements."""

    median: float
    p20: float
    p80: float

    @property
    def rate(self) -> float:
        """Images/s."""
        return 1e6 / self.median


@dataclass(frozen=True)
class Measured:
    """All that `advise` knows."""

    stages: dict[str, Timing]  # the parts, on one thread: `PREPARATION`, and where measured "read, cold", "copy to GPU"
    together: Timing  # `PREPARATION` in one go on one thread
    loaders: dict[str, Timing]  # whole loaders on all `threads`
    loader: str  # which of them training would use
    cores: int
    threads: int  # a loader decodes with
    torch_threads: int
    gpu: str | None
    folder: bool  # loose files
    images: int  # in the source
    image_bytes: float  # mean of an encoded image
    height: float  # mean in pixels
    width: float
    crop: int  # side of the largest view in pixels
    memory: int  # bytes of RAM
    pixels: dict[str, Timing] = field(default_factory=dict)  # format -> the cpu loader from pixels that are there
    free: int | None = None  # bytes on the disk that would hold them, where that is known
    model: Timing | None = None
    training: Timing | None = None  # loader and model together
    missing: dict[str, str] = field(default_factory=dict)  # package -> the line that installs it

    @property
    def parts(self) -> float:
        """Microseconds per image of `PREPARATION`, added up."""
        return sum(self.stages[name].median for name in PREPARATION)

    @property
    def in_memory(self) -> bool:
        """Whether the encoded set stays in the page cache after the first epoch, three quarters of RAM being free."""
        return self.images * self.image_bytes < 0.75 * self.memory


def binding(measured: Measured) -> tuple[str, float]:
    """The slowest of what runs side by side, and its images/s."""
    rates = {f"the {measured.loader} loader": measured.loaders[measured.loader].rate}
    if measured.model is not None:
        rates["the model"] = measured.model.rate
    if "read, cold" in measured.stages and not measured.in_memory:
        rates["storage"] = measured.stages["read, cold"].rate
    if "copy to GPU" in measured.stages:
        rates["the copy to the GPU"] = measured.stages["copy to GPU"].rate
    return min(rates.items(), key=lambda item: item[1])


def advise(measured: Measured) -> list[str]:
    """Lines for a person: what binds, then what would help and by how much, the most first, then what is missing."""
    name, rate = binding(measured)
    lines = [f"{name} binds at {_count(rate)} images/s"]
    if measured.model is None:
        lines[0] += ", the model apart: --model times that, too"
    if name == "the model":
        loader = measured.loaders[measured.loader].rate
        lines[0] += f"; the {measured.loader} loader delivers {_count(loader)}, {loader / rate:.1f} times as many"
        if loader < 1.2 * rate and measured.gpu is None:
            lines.append("on CPUs both share the cores: what is saved in either helps")
    elif name == "storage":
        lines += _storage(measured)
    elif name == "the copy to the GPU":
        lines.append("smaller views, or a link with more lanes; nothing in a recipe makes the copy faster")
    else:
        lines += _loader(measured)
    if measured.gpu is None and measured.torch_threads < measured.cores:
        lines.append(
            f"torch uses {measured.torch_threads} of {measured.cores} cores: set OMP_NUM_THREADS={measured.cores}"
        )
    return lines + [f"{package} is not installed: {line}" for package, line in measured.missing.items()]


def max_side(measured: Measured) -> int:
    """The longer side to re-encode to: twice the largest view, so that crops of a quarter of the area stay sharp."""
    return 2 * measured.crop


def _loader(measured: Measured) -> list[str]:
    """Remedies for a slow loader as (images/s that each promises, line), the best first."""
    now = measured.loaders[measured.loader].rate
    share = {name: measured.stages[name].median / measured.parts for name in PREPARATION}
    found = []
    for other, timing in measured.loaders.items():
        if timing.rate > 1.1 * now:
            found.append(
                (timing.rate, f"data.loader={other} delivers {_count(timing.rate)} images/s here, as measured")
            )
    found += _pixels(measured, now)
    if measured.threads < measured.cores:
        expected = now * measured.cores / measured.threads
        text = f"data.threads={measured.cores} (now {measured.threads}): up to {_count(expected)} images/s"
        found.append((expected, text))
    side, longer = max_side(measured), max(measured.height, measured.width)
    if longer > 1.5 * side:
        saved = share["decode"] * (1 - (side / longer) ** 2)  # decoding costs what it has pixels
        found.append(
            (
                now / (1 - saved),
                f"images are {longer / measured.crop:.1f} times as long as a view: headrace shard DATA OUT "
                f"--max-side {side} saves {saved:.0%} of the work, up to {_count(now / (1 - saved))} images/s",
            )
        )
    if share["augment"] > 0.3 and measured.gpu is None:
        expected = now / (1 - share["augment"])
        text = f"augmentation is {share['augment']:.0%} of the work: on a GPU it runs there, the loader is left with "
        found.append((expected, f"{text}the rest, up to {_count(expected)} images/s"))
    if measured.folder and share["read, warm"] + share["header"] > 0.1:
        saved = share["read, warm"] + share["header"]
        text = f"opening files and reading headers is {saved:.0%} of the work, an index of shards saves it: "
        found.append((now / (1 - saved), f"{text}headrace shard DATA OUT, up to {_count(now / (1 - saved))} images/s"))
    lines = [line for _, line in sorted(found, reverse=True)]
    if measured.model is not None:
        needed = math.ceil(measured.cores * measured.model.rate / now)
        lines.append(f"the model takes {_count(measured.model.rate)} images/s: about {needed} cores like these feed it")
    elif not lines:
        main = max(share, key=share.get)
        lines.append(
            f"{share[main]:.0%} of the work is {main}; {2 * measured.cores} cores would deliver about "
            f"{_count(2 * now)} images/s"
        )
    return lines


def _pixels(measured: Measured, now: float) -> list[tuple[float, str]]:
    """What pixels beside the shards would bring, or why not: from a disk no more than it was seen to read."""
    found = []
    for form, timing in measured.pixels.items():
        each = measured.height * measured.width * (3 if form == "rgb" else 1.5)
        size, rate, why = measured.images * each, timing.rate, ""
        cold = measured.stages.get("read, cold")
        if cold is not None and size > 0.75 * measured.memory:
            disk = 1e6 * measured.image_bytes / cold.median / each
            rate, why = min(rate, disk), f", from a disk that reads {disk * each / 1e6:,.0f} MB/s"
        text = f"pixels beside the shards, {form}: {size / 1e9:,.1f} GB, {_count(rate)} images/s as measured{why}: "
        if rate <= 1.1 * now:
            found.append((0.0, f"{text}not worth it, decoding is as fast"))
        elif measured.free is not None and size > measured.free:
            found.append((0.0, f"{text}but {measured.free / 1e9:,.1f} GB are free"))
        else:
            shards = "headrace shard DATA OUT --pixels" if measured.folder else "headrace pixels DATA --format"
            found.append((rate, f"{text}{shards} {form}"))
    return found


def _storage(measured: Measured) -> list[str]:
    size = measured.images * measured.image_bytes
    lines = [
        f"the set is {size / 1e9:,.0f} GB and memory {measured.memory / 1e9:,.0f} GB, so every epoch reads the disk: "
        "keep it on a local NVMe disk, or"
    ]
    side, longer = max_side(measured), max(measured.height, measured.width)
    if longer > side:
        smaller = (side / longer) ** 2
        lines.append(f"headrace shard DATA OUT --max-side {side}: about {size * smaller / 1e9:,.0f} GB to read")
    if measured.folder:
        lines.append("headrace shard DATA OUT: tars are read ahead by the system, files are opened one by one")
    return lines


def _count(rate: float) -> str:
    """Images/s in three digits."""
    digits = max(0, 2 - math.floor(math.log10(rate)))
    return f"{round(rate, 2 - math.floor(math.log10(rate))):,.{digits}f}"
