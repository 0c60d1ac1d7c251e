"""Pairs of names, theirs and ours, that are read in both directions."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

import torch

# (theirs, ours): names of tensors or of modules, whose tensors keep the rest of their names. {i} is a number, the same
# on both sides. Several of theirs are one of ours, joined along the first dimension.
Pair = tuple[str | tuple[str, ...], str]


def blocks(theirs: str, pairs: tuple[Pair, ...], ours: str = "blocks.{i}") -> tuple[Pair, ...]:
    """Pairs of names inside a block -> pairs of full names."""
    return tuple(
        (f"{theirs}.{a}" if isinstance(a, str) else tuple(f"{theirs}.{part}" for part in a), f"{ours}.{b}")
        for a, b in pairs
    )


_WRAPPERS = re.compile(  # what stands inside of names where a module was wrapped, and is none of its own
    r"(?:(?<=\.)|^)(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module|_fpw_module)\."
)
_PARTS = ((".parametrizations.weight.original0", ".weight_g"), (".parametrizations.weight.original1", ".weight_v"))


def unwrapped(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors without the wrappers in their names: of DDP, FSDP, torch.compile, checkpointing and EMA.

    The two parts of a normalised weight have the older one of PyTorch's two pairs of names. Where two names would
    become one, both stay as they are.
    """
    found: dict[str, list[str]] = {}
    for name in state:
        short = _WRAPPERS.sub("", name)
        for new, old in _PARTS:
            short = short.replace(new, old)
        found.setdefault(short, []).append(name)
    return {short if len(names) == 1 else name: state[name] for short, names in found.items() for name in names}


class Place(NamedTuple):
    """Where a tensor belongs: part `part` of `parts` of the tensor `name`."""

    name: str
    part: int = 0
    parts: int = 1


class Names:
    """The pairs of a layout. Of pairs with the same one of ours, the first is written and the others are read too."""

    def __init__(self, pairs: tuple[Pair, ...]) -> None:
        self._to_ours, self._to_theirs = [], []
        for theirs, ours in pairs:
            spellings = (theirs,) if isinstance(theirs, str) else theirs
            for part, spelling in enumerate(spellings):
                self._to_ours.append((_pattern(spelling), ours, part, len(spellings), spelling.count(".")))
            self._to_theirs.append((_pattern(ours), spellings, ours.count(".")))
        self._to_ours.sort(key=lambda entry: -entry[-1])  # the more exact pair first; ties as given
        self._to_theirs.sort(key=lambda entry: -entry[-1])

    def ours(self, name: str) -> Place | None:
        for pattern, ours, part, parts, _ in self._to_ours:
            if found := pattern.fullmatch(name):
                return Place(ours.format(**found.groupdict()) + found["rest"], part, parts)
        return None

    def theirs(self, name: str) -> tuple[str, ...] | None:
        """The names of the parts that `name`, one of ours, is cut into."""
        for pattern, spellings, _ in self._to_theirs:
            if found := pattern.fullmatch(name):
                return tuple(spelling.format(**found.groupdict()) + found["rest"] for spelling in spellings)
        return None


def _pattern(spelling: str) -> re.Pattern:
    parts = re.split(r"\{(\w+)\}", spelling)
    text = "".join(rf"(?P<{part}>\d+)" if i % 2 else re.escape(part) for i, part in enumerate(parts))
    return re.compile(text + r"(?P<rest>(?:\..+)?)")


@dataclass(frozen=True)
class Layout:
    """How a code base writes down one kind of our encoders."""

    name: str
    kind: str  # resnet, vit, swin, mixmim or hivit
    pairs: tuple[Pair, ...]
    mark: str  # a tensor that this layout always has; what precedes it in a checkpoint is the encoder's prefix
    needs: tuple[str, ...] = ()  # further names, or beginnings of them, that tell it from layouts with the same mark
    lacks: tuple[str, ...] = ()  # and such that it never has
    class_row: bool = False  # the position table starts with a row for the class token
    flat: bool = False  # the class token is (D,) and the position table (L, D)
    implies: tuple[tuple[str, object], ...] = ()  # what it says of the encoder's `Config` without a tensor
    corners: tuple[int, int, int, int] | None = None  # patch merging: its order of our corners, channels outermost
    rebuilt: tuple[str, ...] = ()  # ends of names of tensors that follow from the configuration
    classifiers: tuple[str, ...] = ("head",)  # where a linear classifier is found; export writes the first
    outside: tuple[Pair, ...] = ()  # tensors of the encoder that a checkpoint keeps elsewhere, by their full names

    @property
    def names(self) -> Names:
        return Names(self.pairs)
