"""Files behind http(s), and in data sets on Hugging Face: with the standard library, which takes 0.5 ms of CPU time a
MiB (aiohttp through fsspec 0.9, obstore's client 0.8), and proxies from the environment.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, urlsplit

from ...errors import UserError
from .stores import PASSING, SILENCE, Missing, Reply, Transient

_PIECE = 1 << 20  # bytes
_HUB = re.compile(r"hf://datasets/([^/@]+/[^/@]+)(?:@([^/]+))?(?:/(.+))?")
_NEXT = re.compile(r'<([^>]+)>;\s*rel="next"')


class WebFolder:
    """Files below an address; a query behind it, a token perhaps, goes with every request."""

    def __init__(self, address: str) -> None:
        self.address, mark, self._query = address.partition("?")
        self.address, self._query = self.address.rstrip("/"), mark + self._query
        self._token = ""

    def _url(self, name: str) -> str:
        return f"{self.address}/{quote(name)}{self._query}"

    def get(self, name: str, start: int = 0, end: int | None = None) -> Reply:
        asked = {} if not start and end is None else {"Range": f"bytes={start}-{'' if end is None else end - 1}"}
        reply = _open(self._url(name), asked, self._token)
        return Reply(start if reply.status == 206 else 0, _pieces(reply))

    def names(self) -> list[tuple[str, int]]:
        raise OSError("a web server does not list its files")

    def put(self, name: str, data: bytes | Path) -> None:
        raise OSError("a web server takes no files")


class HubFolder(WebFolder):
    """A folder of a data set on Hugging Face, ``hf://datasets/<owner>/<name>[@<revision>][/<folder>]``.

    The token of private ones is ``HF_TOKEN``, or what Hugging Face's own tools have stored.
    """

    def __init__(self, address: str) -> None:
        match = _HUB.fullmatch(address)
        if match is None:
            raise UserError(f"{address}: a data set on Hugging Face is hf://datasets/<owner>/<name>[/<folder>]")
        owner, revision, folder = match[1], quote(match[2] or "main", safe=""), match[3] or ""
        self._folder = folder
        hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
        self._files = f"{hub}/datasets/{owner}/resolve/{revision}" + (f"/{quote(folder)}" if folder else "")
        self._tree = f"{hub}/api/datasets/{owner}/tree/{revision}" + (f"/{quote(folder)}" if folder else "")
        self._token = os.environ.get("HF_TOKEN") or _stored_token()
        self.address = address

    def _url(self, name: str) -> str:
        return f"{self._files}/{quote(name)}"

    def names(self) -> list[tuple[str, int]]:
        return sorted((name, size) for name, size, _ in self.listed() if "/" not in name)

    def listed(self, recursive: bool = False) -> list[tuple[str, int, str]]:
        """(path below the folder, bytes, SHA-256 or "") of its files, and of those in its folders with `recursive`."""
        found, page = [], f"{self._tree}?recursive={str(recursive).lower()}"
        while page:
            with _open(page, {}, self._token) as reply:
                data = b"".join(_pieces(reply))
                following = _NEXT.search(reply.headers.get("Link", ""))
            try:
                for one in json.loads(data):
                    if one["type"] == "file":
                        name = str(one["path"]).removeprefix(self._folder).lstrip("/")
                        found.append((name, int(one["size"]), str((one.get("lfs") or {}).get("oid", ""))))
            except (ValueError, LookupError, TypeError, AttributeError):
                raise OSError("its list of files cannot be understood") from None
            page = following[1] if following else ""
        return sorted(found)


def open_store(address: str) -> WebFolder:
    return HubFolder(address) if address.startswith("hf://") else WebFolder(address)


def _stored_token() -> str:
    home = os.environ.get("HF_HOME") or os.path.expanduser("~/.cache/huggingface")
    try:
        return Path(home, "token").read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return ""


def _open(url: str, headers: dict[str, str], token: str) -> http.client.HTTPResponse:
    request = urllib.request.Request(url, headers=headers)
    if token:  # not for where the hub redirects to: a signed address and a token together are refused
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    try:
        return urllib.request.urlopen(request, timeout=SILENCE)
    except urllib.error.HTTPError as fault:
        with fault:
            said = f"the server answers {fault.code} {fault.reason}".rstrip()
        if fault.code in PASSING or fault.code >= 500:
            wait = fault.headers.get("Retry-After", "")
            raise Transient(said, float(wait) if wait.isdecimal() else 0.0) from None
        if fault.code in (404, 410):
            raise Missing(said) from None
        hint = " (a token in HF_TOKEN?)" if fault.code in (401, 403) and "huggingface" in urlsplit(url).netloc else ""
        raise OSError(f"{said}{hint}") from None
    except urllib.error.URLError as fault:
        if isinstance(fault.reason, ssl.SSLCertVerificationError):
            raise OSError(f"its certificate is not trusted ({fault.reason.verify_message})") from None
        raise Transient(_words(fault.reason)) from None
    except (OSError, http.client.HTTPException) as fault:
        raise Transient(_words(fault)) from None


def _pieces(reply: http.client.HTTPResponse) -> Iterator[memoryview]:
    """The body, in pieces that are valid until the next one."""
    left, buffer = reply.length, memoryview(bytearray(_PIECE))
    with reply:
        while True:
            try:
                count = reply.readinto(buffer)
            except (OSError, http.client.HTTPException, ValueError) as fault:
                raise Transient(f"the transfer breaks off ({_words(fault)})") from None
            if not count:
                break
            left = None if left is None else left - count
            yield buffer[:count]
    if left:  # http.client takes a connection that was closed for the end
        raise Transient(f"the transfer breaks off {left:,} bytes before its end")


def _words(fault: object) -> str:
    if isinstance(fault, TimeoutError):
        return f"no answer in {SILENCE} seconds"
    return getattr(fault, "strerror", None) or str(fault) or type(fault).__name__
