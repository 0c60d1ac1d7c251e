"""Whose checkpoint it is: the layout, and what stands before the encoder's names."""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch

from ...errors import UserError
from . import hivit, hugging_face, mixmim, resnet, swin, vit
from .names import Layout
from .read import TRAINED

FIXED = (  # HiViT's depend on its depths
    *vit.LAYOUTS,
    *swin.LAYOUTS,
    *mixmim.LAYOUTS,
    *resnet.LAYOUTS,
    *hugging_face.LAYOUTS,
)
_FOLLOWS = re.compile(r"(^|[._])(teacher|momentum|target|encoder_k|ema)([._]|$)")  # prefixes of momentum networks
_TARGET = re.compile(r"(^|\.)target_generator\.")  # what OpenMMLab's masked methods learn to predict: CLIP, VQ-KD


def recognise(state: dict[str, torch.Tensor], family: str | None = None, teacher: bool = False) -> tuple[Layout, str]:
    """The layout and the prefix of the encoder's names that place the most tensors; see `convert`."""
    candidates = []
    for layout in _layouts(state):
        if family not in (None, layout.name, f"{layout.name}-{layout.kind}"):
            continue
        names = layout.names
        for prefix in _prefixes(state, layout):
            if prefix.startswith(TRAINED):
                continue
            inner = [name[len(prefix) :] for name in state if name.startswith(prefix)]
            known = all(any(name.startswith(need) for name in inner) for need in layout.needs)
            if known and not any(name.startswith(layout.lacks) for name in inner):
                candidates.append((sum(names.ours(name) is not None for name in inner), layout, prefix))
    candidates = [c for c in candidates if not _TARGET.search(c[2])] or candidates
    fit = [c for c in candidates if bool(_FOLLOWS.search(c[2])) == teacher]
    if teacher and not fit and any(name.startswith(TRAINED) for name in state):
        raise UserError("--teacher: MMEngine's EMAHook has put the average where the weights were; leave --teacher out")
    if teacher and not fit:
        raise UserError("--teacher: this checkpoint holds no second network (teacher, momentum encoder, target)")
    if not candidates:
        known = sorted({f"{layout.name}-{layout.kind}" for layout in (*FIXED, *hivit.layouts(4, 9))})
        if family is not None and family not in {*known, *(name.split("-")[0] for name in known)}:
            raise UserError(f"--family: no family {family!r}; known: {', '.join(known)}")
        some = ", ".join(list(state)[:3])
        raise UserError(
            f"no encoder of a known family among {len(state)} tensors ({some}, ...); known: {', '.join(known)}"
        )
    _, layout, prefix = max(fit or candidates, key=lambda c: c[0])
    return layout, prefix


def _layouts(state: dict[str, torch.Tensor]) -> Iterator[Layout]:
    yield from FIXED
    merges = sorted({int(m[1]) for name in state if (m := re.search(r"blocks\.(\d+)\.reduction\.weight$", name))})
    if len(merges) == 2:
        yield from hivit.layouts(*merges)


def _prefixes(state: dict[str, torch.Tensor], layout: Layout) -> list[str]:
    """What precedes the layout's mark, the shortest first."""
    found = {name[: -len(layout.mark)] for name in state if name.endswith(layout.mark)}
    return sorted((p for p in found if not p or p.endswith(".")), key=len)
