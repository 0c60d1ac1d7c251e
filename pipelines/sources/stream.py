"""Tars that are not on a local disk: addresses of shards, read once from front to back by `loaders/stream.py`."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Sequence

from ...errors import UserError
from .shards import FORMAT, MANIFEST

SCHEMES = ("http://", "https://", "pipe:", "file:")
_OPTIONS = re.compile(r"#((?:samples|classes)=\d+(?:&(?:samples|classes)=\d+)*)$")
_TIMEOUT = 30  # seconds


class StreamSource:
    """Shards at `urls`: http(s) addresses, ``pipe:command`` or ``file:/path``; together about `samples` images.

    A stream has no positions, so nothing can be read by index; a sample's id is a hash of its shard's name and its own.
    `samples` is only what counts as one epoch.
    """

    def __init__(self, urls: Sequence[str], samples: int, classes: list[str] | None = None, *, name: str) -> None:
        self.urls, self.classes, self.name = list(urls), classes, name
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


def open_stream(name: str) -> StreamSource:
    """``http://host/train-{000000..000099}.tar``, ``file:/path/...`` or ``pipe:command``; braces as in a shell.

    How many images there are is told by the `dataset.json` beside the shards, or behind the address:
    ``#samples=1281167``, with ``&classes=1000`` where labels are wanted.

    Raises `UserError` where neither does.
    """
    from braceexpand import UnbalancedBracesError, braceexpand  # comes with webdataset

    match = _OPTIONS.search(name)
    address = name[: match.start()] if match else name
    options = {key: int(value) for key, value in (pair.split("=") for pair in match[1].split("&"))} if match else {}
    try:
        urls = list(braceexpand(address))
    except UnbalancedBracesError as fault:
        raise UserError(f"{address}: {fault}; write a range of shards as {{000000..000099}}") from None
    if "samples" not in options:
        return _by_manifest(address, urls)
    if not options["samples"]:
        raise UserError(f"{name}: samples must be at least 1")
    classes = [str(label) for label in range(options["classes"])] if "classes" in options else None
    return StreamSource(urls, options["samples"], classes, name=address)


def _by_manifest(address: str, urls: list[str]) -> StreamSource:
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
    return StreamSource(urls, sum(counts[url] for url in urls), manifest["classes"], name=address)
