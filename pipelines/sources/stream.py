"""Tars that are not on a local disk: addresses of shards, read once from front to back by `loaders/stream.py`."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Mapping, Sequence

from ...errors import UserError
from ..remote import stores
from .shards import FORMAT, MANIFEST

SCHEMES = ("http://", "https://", "pipe:", "file:")
_OPTION = r"(?:(?:samples|classes)=\d+|image=[^&=#]+)"
_OPTIONS = re.compile(rf"#({_OPTION}(?:&{_OPTION})*)$")
_TAR = re.compile(r"[{#]|\.(tar|tgz|tbz|txz)(\.\w+)?(\?|$)")  # in an address of tars
_TIMEOUT = 30  # seconds


def is_folder(name: str) -> bool:
    """Whether a name is the address of a folder of shards, which is read in exact order: see remote_shards.py."""
    return name.startswith(stores.SCHEMES) and not (name.startswith(SCHEMES) and _TAR.search(name))


class StreamSource:
    """Shards at `urls`: http(s) addresses, ``pipe:command`` or ``file:/path``; together about `samples` images.

    A stream has no positions, so nothing can be read by index; a sample's id is a hash of its shard's name and its own.
    `samples` is only what counts as one epoch. `counts` says how many images a shard holds, where that is known, and
    `image` the suffix of the member to read, as in tars on disks.
    """

    def __init__(
        self,
        urls: Sequence[str],
        samples: int,
        classes: list[str] | None = None,
        *,
        name: str,
        counts: Mapping[str, int] | None = None,
        image: str = "",
    ) -> None:
        self.urls, self.classes, self.name, self.image = list(urls), classes, name, image
        self.counts = dict(counts or {})
        self.names: dict[int, str] = {}  # of the bad samples, noted by the loader
        self._samples = samples

    def __len__(self) -> int:
        return self._samples

    def read(self, index: int):
        raise UserError(
            f"{self.name}: a stream, which only data.loader=webdataset can read; copy the shards for others"
        )

    def label(self, index: int) -> int:
        return -1  # comes with the sample

    def key(self, index: int) -> str:
        return self.names.get(index, f"{self.name}#{index}")

    def size(self, index: int) -> None:
        return None

    def recall(self, index: int, key: str) -> bool:
        """Takes in what another process, or an earlier run, calls a bad sample; False for one of other shards."""
        shards = {url.partition("?")[0].rpartition("/")[2] for url in self.urls}
        if key not in self.urls and key.partition("/")[0] not in shards:
            return False
        self.names.setdefault(index, key)
        return True


def open_stream(name: str) -> StreamSource:
    """``http://host/train-{000000..000099}.tar``, ``file:/path/...`` or ``pipe:command``; braces as in a shell.

    How many images there are is told by the `dataset.json` beside the shards, or behind the address:
    ``#samples=1281167``, with ``&classes=1000`` where labels are wanted, and ``&image=rgb.jpg`` for one of several.

    Raises `UserError` where neither does.
    """
    from braceexpand import UnbalancedBracesError, braceexpand  # comes with webdataset

    match = _OPTIONS.search(name)
    address = name[: match.start()] if match else name
    options = dict(pair.split("=") for pair in match[1].split("&")) if match else {}
    image = options.get("image", "")
    try:
        urls = list(braceexpand(address))
    except UnbalancedBracesError as fault:
        raise UserError(f"{address}: {fault}; write a range of shards as {{000000..000099}}") from None
    if "samples" not in options:
        return _by_manifest(address, urls, image)
    if not int(options["samples"]):
        raise UserError(f"{name}: samples must be at least 1")
    classes = [str(label) for label in range(int(options["classes"]))] if "classes" in options else None
    return StreamSource(urls, int(options["samples"]), classes, name=address, image=image)


def _by_manifest(address: str, urls: list[str], image: str) -> StreamSource:
    hint = f"append the number of images, as in {address}#samples=1281167"
    if address.startswith("pipe:"):
        raise UserError(f"{address}: how many images a command gives is unknown; {hint}")
    folder, counts = urls[0].rpartition("/")[0], {}
    try:
        with urllib.request.urlopen(f"{folder}/{MANIFEST}", timeout=_TIMEOUT) as reply:
            manifest = json.load(reply)
        if manifest["format"] == FORMAT:
            counts = {f"{folder}/{shard['name']}": shard["samples"] for shard in manifest["shards"]}
    except (OSError, ValueError, LookupError, TypeError) as fault:
        raise UserError(
            f"{folder}/{MANIFEST}: not to be had ({fault}), so the number of images is unknown; {hint}"
        ) from None
    if unknown := [url for url in urls if url not in counts]:
        raise UserError(
            f"{unknown[0]}: not among the {len(counts)} shards of {folder}/{MANIFEST}; correct the name, or {hint}"
        )
    total = sum(counts[url] for url in urls)
    return StreamSource(urls, total, manifest["classes"], name=address, counts=counts, image=image)
