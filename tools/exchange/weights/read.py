"""Checkpoint files -> dicts of tensors. Nothing that a file holds is ever run."""

from __future__ import annotations

import argparse
import zipfile
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ....errors import UserError

_CONTAINERS = ("state_dict", "model", "module", "net", "model_state_dict")  # the weights among other things
_HARMLESS = [argparse.Namespace, np.dtype, np.dtypes.Float64DType, np.dtypes.Int64DType]
_HARMLESS.append((np.float64(0).__reduce__()[0], "numpy.core.multiarray.scalar"))
_HARMLESS.append((np.float64(0).__reduce__()[0], "numpy._core.multiarray.scalar"))


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a .safetensors file or of one that `torch.save` wrote, by name, on the CPU.

    Networks that a file keeps side by side, as DINO's `student` and `teacher`, are told apart by their first word.
    Raises `UserError` for what is missing, damaged, no checkpoint, or would have to be executed.
    """
    if path.is_dir():
        raise UserError(f"{path}: a folder; give a file of weights (a run of headrace needs no import)")
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        _refuse_compressed(path)
        with torch.serialization.safe_globals(_HARMLESS):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as fault:
        raise UserError(f"{path}: not a readable safetensors file ({fault})") from None
    except UserError:
        raise
    except Exception as fault:  # torch raises a dozen kinds for truncated, foreign and hostile files
        reason = str(fault).partition("\n")[0].partition(". ")[0]
        if "Weights only load failed" in reason or "Unsupported" in str(fault):
            raise UserError(
                f"{path}: holds Python objects, which are never unpickled; where you trust the file, "
                "save its state_dict alone and import that"
            ) from None
        if not isinstance(fault, (RuntimeError, OSError)) or not reason:
            reason = "torch.save did not write it, or it is damaged"
        raise UserError(f"{path}: not a readable file of weights ({reason})") from None
    tensors = _tensors(content)
    if not tensors:
        raise UserError(f"{path}: holds no tensors; save the network's state_dict")
    size = path.stat().st_size
    for name, tensor in tensors.items():
        if tensor.numel() * tensor.element_size() > size:  # one number under a shape of billions
            raise UserError(
                f"{path}: {name} of shape {tuple(tensor.shape)} is larger than the file; save it contiguous"
            )
    return tensors


def _refuse_compressed(path: Path) -> None:
    """torch.save compresses nothing: what is compressed can be far larger than the file. TorchScript is a program."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    if any("/code/" in entry.filename for entry in entries):
        raise UserError(
            f"{path}: a TorchScript archive, a program; where you trust it, load it and save its state_dict"
        )
    packed = [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise UserError(f"{path}: a compressed archive ({packed[0]}), which torch.save does not write; unpack it first")


def _tensors(content: object) -> dict[str, torch.Tensor]:
    if not isinstance(content, dict):
        return {}
    for key in _CONTAINERS:
        if isinstance(content.get(key), dict) and (inner := _tensors(content[key])):
            return inner
    found = {}
    for key, value in content.items():
        if isinstance(value, torch.Tensor):
            found[str(key)] = value
        elif isinstance(value, dict) and "optim" not in str(key):
            found |= {f"{key}.{name}": tensor for name, tensor in _tensors(value).items()}
    return found
