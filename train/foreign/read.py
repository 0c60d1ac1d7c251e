"""Checkpoint files -> dicts of tensors. Nothing that a file holds is ever run."""

from __future__ import annotations

import re
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ...errors import UserError
from .pickled import Unknown, unpickle
from .sharded import refuse_parts, refuse_pieces

AVERAGE = "ema."  # before the names of averaged weights that a file keeps beside the trained ones
TRAINED = "not_averaged."  # and the other way round
_CONTAINERS = ("state_dict", "model", "module", "net", "model_state_dict")  # the weights among other things
_MOST = 10**6  # values in a file, which are its tensors, optimizer states and settings
_AVERAGES = re.compile(r"(^|_)ema(_|$)")  # state_dict_ema of timm, model_ema of DeiT


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a .safetensors file or of one that `torch.save` wrote, by name, on the CPU.

    Networks that a file keeps side by side, as DINO's `student` and `teacher`, are told apart by their first word,
    which is `AVERAGE` for averaged weights. Of a whole pickled module its weights are read. Raises `UserError` for what
    is missing, damaged or no checkpoint, and for a part of one.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file")
    refuse_pieces(path)
    if not path.is_file():
        raise UserError(f"{path}: a folder; give a file of weights (a run of headrace needs no import)")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        _refuse_programs(path)
        content = unpickle(path)
        _refuse_endless(content)
        tensors = _tensors(content)
        refuse_parts(path, content, tensors)
    except SafetensorError as fault:
        raise UserError(f"{path}: not a readable safetensors file ({fault})") from None
    except UserError:
        raise
    except Exception as fault:  # a dozen kinds for truncated, foreign and hostile files
        own = isinstance(fault, (ValueError, OSError)) and str(fault)
        reason = str(fault).partition("\n")[0] if own else "torch.save did not write it, or it is damaged"
        raise UserError(f"{path}: not a readable file of weights ({reason})") from None
    if not tensors:
        raise UserError(f"{path}: holds no tensors{_instead(content)}; save the network's state_dict")
    size = path.stat().st_size
    for name, tensor in tensors.items():
        if tensor.numel() * tensor.element_size() > size:  # one number under a shape of billions
            raise UserError(
                f"{path}: {name} of shape {tuple(tensor.shape)} is larger than the file; save it contiguous"
            )
    return tensors


def _refuse_programs(path: Path) -> None:
    """torch.save compresses nothing: what is compressed can be far larger than the file. TorchScript is a program."""
    if not zipfile.is_zipfile(path):
        if tarfile.is_tarfile(path):
            raise UserError(f"{path}: a legacy .tar of PyTorch 0.1; load it there, and save its state_dict anew")
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


def _refuse_endless(content: Any) -> None:
    """A dict may hold itself, or the next one twice, and that one the next again."""
    count, rest = 0, [content]
    while rest:
        one, count = rest.pop(), count + 1
        if count > _MOST:
            raise ValueError(f"nests more than {_MOST} values")
        if isinstance(one, dict):
            rest += one.values()
        rest += _module(one).values() if isinstance(one, Unknown) else ()


def _tensors(content: Any) -> dict[str, torch.Tensor]:
    if not isinstance(content, dict):
        return {}
    module = isinstance(content, Unknown)
    content = _module(content) if module else content
    for key in () if module else _CONTAINERS:
        if isinstance(content.get(key), dict) and (inner := _tensors(content[key])):
            return inner | _averages(content)
    found = {}
    for key, value in content.items():
        if isinstance(value, torch.Tensor):
            found[str(key)] = value
        elif isinstance(value, dict) and "optim" not in str(key):
            found |= {f"{key}.{name}": tensor for name, tensor in _tensors(value).items()}
    return found


def _averages(content: dict) -> dict[str, torch.Tensor]:
    """The averaged weights beside the trained ones.

    MMEngine exchanges them as it saves: its `state_dict` is the average, and its `ema_state_dict` what was trained.
    """
    found = {}
    for key, value in content.items():
        if isinstance(value, dict) and isinstance(key, str) and _AVERAGES.search(key):
            exchanged = key == "ema_state_dict" and "message_hub" in content
            start = TRAINED if exchanged else AVERAGE
            found |= {f"{start}{name}": tensor for name, tensor in _tensors(value).items()}
    return found


def _module(thing: Unknown) -> dict[str, Any]:
    """A whole `nn.Module` as the dicts that its state_dict is made of; another object as what was put into it."""
    if not isinstance(thing.state, dict) or "_modules" not in thing.state:
        return dict(thing)
    parts = [thing.state.get(key) for key in ("_parameters", "_buffers", "_modules")]
    return {key: value for part in parts if isinstance(part, dict) for key, value in part.items()}


def _instead(content: Any) -> str:
    """What it holds instead, in words."""
    values = [content, *content.values()] if isinstance(content, dict) else [content]
    values += [inner for value in values if isinstance(value, dict) for inner in value.values()]
    names = {value.name: None for value in values if isinstance(value, Unknown) and value.name}
    return f", but objects of {', '.join(list(names)[:3])}" if names else ""
