"""Networks that are used as they were published."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ...errors import UserError

RANDOM = "random"
_WITHOUT = ContextVar("target networks without weights", default=False)


@contextmanager
def without_weights() -> Iterator[None]:
    """Frozen networks that are built inside open no file and hold no values: only training computes targets."""
    token = _WITHOUT.set(True)
    try:
        yield
    finally:
        _WITHOUT.reset(token)


@dataclass(frozen=True)
class Weights:
    """Where a frozen network's weights lie: a local file of tensors, or "random", which is for trying a recipe out."""

    path: str | None = None
    sha256: str | None = None  # the file's, in full or its beginning


class Frozen(nn.Module):
    """A network that takes no gradients, stays in evaluation mode, and is not part of checkpoints.

    `load` reads its weights; until then they are random, the same for the same seed.
    """

    source = ""  # where people find the weights

    def __init__(self) -> None:
        super().__init__()
        self.register_state_dict_post_hook(_drop_own)
        self._register_load_state_dict_pre_hook(self._keep_own)

    def train(self, mode: bool = True) -> Frozen:
        return super().train(False)

    def load(self, weights: Weights, rename: Callable[[dict], dict] = lambda state: state) -> Frozen:
        """Takes the tensors of a file, under the names that `rename` gives them.

        Raises `UserError` for a file that is missing, is another one than `sha256` says, is no file of tensors, or does
        not fit.
        """
        self.requires_grad_(False).eval()
        if _WITHOUT.get():
            return self.to("meta")
        if weights.path == RANDOM:
            return self
        if weights.path is None:
            raise UserError(f"weights.path: missing; {self.source}, or weights.path=random to try the recipe out")
        path = Path(weights.path).expanduser()
        if not path.is_file():
            raise UserError(f"{path}: no such file; {self.source}")
        if weights.sha256 is not None:
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if not found.startswith(weights.sha256.lower()):
                raise UserError(f"{path}: its sha256 is {found}, not {weights.sha256}; fetch the file anew")
        state = rename(_read(path))
        missing, unexpected = nn.Module.load_state_dict(_Bare(self), state, strict=False)
        if missing or unexpected:
            wrong = ", ".join(
                [*(f"no {name}" for name in missing[:3]), *(f"unknown {name}" for name in unexpected[:3])]
            )
            raise UserError(f"{path}: not the weights of {type(self).__name__} ({wrong}); {self.source}")
        return self

    def _keep_own(self, state: dict, prefix: str, *rest: object) -> None:
        for name, tensor in (*self.named_parameters(), *self.named_buffers()):
            state[prefix + name] = tensor.detach()


class _Bare(nn.Module):
    """The children and tensors of a module without its hooks."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._modules, self._parameters, self._buffers = module._modules, module._parameters, module._buffers


def _drop_own(module: nn.Module, state: dict, prefix: str, metadata: dict) -> None:
    for name in [name for name in state if name.startswith(prefix)]:
        del state[name]


def _read(path: Path) -> dict:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as fault:  # a pickle of anything but tensors, a truncated file, no checkpoint at all
        reason = str(fault).splitlines()[0]
        raise UserError(f"{path}: cannot be read as a file of tensors ({reason})") from None
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"{path}: holds no dict of tensors; save the network's state_dict")
    return state
