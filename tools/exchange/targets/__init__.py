"""What an encoder is called in other libraries, one file each; `exported.py` has what they share."""

from __future__ import annotations

from torch import nn

from ....errors import UserError
from . import hugging_face, openmmlab, timm, torchvision
from .exported import Exported

_TARGETS = {
    "timm": timm.KINDS,
    "torchvision": torchvision.KINDS,
    "hf": hugging_face.KINDS,
    "openmmlab": openmmlab.KINDS,
}
LIBRARIES = tuple(_TARGETS)


def target(library: str, encoder: nn.Module, config: object, size: int, classes: int | None) -> Exported:
    """How a library (one of `LIBRARIES`) takes an encoder, with a linear classifier unless `classes` is None.

    Raises `UserError` for what it has no model for.
    """
    known = _TARGETS[library]
    if type(encoder) not in known:
        others = [name for name, kinds in _TARGETS.items() if type(encoder) in kinds]
        raise UserError(f"--to {library}: has no {type(encoder).__name__}; use --to {' or '.join(others)}")
    return known[type(encoder)](encoder, config, size, classes)
