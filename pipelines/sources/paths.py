"""Image files by their paths, in the order of a list in memory."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from ...errors import UserError
from .class_numbers import class_numbers
from .files import FileSource


class PathSource(FileSource):
    """The files of `paths`, which may lie anywhere; `labels` (N,) are class numbers, -1 for none.

    Raises `UserError` if the first one does not exist, or if there are not as many labels.
    """

    def __init__(self, paths: Sequence[str | os.PathLike], labels: Sequence[int] | None = None) -> None:
        whole = [os.path.abspath(os.path.expanduser(os.fspath(path))) for path in paths]
        if not os.path.isfile(whole[0]):
            raise UserError(f"data: {whole[0]} does not exist; give paths of image files")
        numbers = None if labels is None else class_numbers(labels, len(whole), "data", "paths").astype(np.int32)
        root = os.path.commonpath([os.path.dirname(path) for path in whole])
        inside = [os.fsencode(os.path.relpath(path, root)) for path in whole]
        classes = None if numbers is None else [str(c) for c in range(int(numbers.max()) + 1)]
        super().__init__(root, inside, numbers, classes, "none" if numbers is None else "list")
