"""Checkpoints in pieces, and the tool that joins each kind. A piece is told by its name, or by what is in it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...errors import UserError
from .pickled import Unknown

_DEEPSPEED = (
    "DeepSpeed: its weights lie in pieces; zero_to_fp32.py, which it leaves beside them, joins them into one file"
)
_MEGATRON = (
    "Megatron: a part of tensors or layers of each process; its tools/checkpoint/convert.py with "
    "--target-tensor-parallel-size 1 --target-pipeline-parallel-size 1 joins them"
)
_DCP = (
    "PyTorch's distributed format (FSDP): its weights lie in pieces; "
    "python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER whole.pth joins them"
)
_FILES = (  # the beginning of a file's name, its folder included, to its end; what wrote it
    (r"\.distcp$|/\.metadata$", _DCP),
    (r"zero_pp_rank_\d+_mp_rank_\d+\w*\.pt$|/zero_to_fp32\.py$", _DEEPSPEED),
    (r"/mp_rank_\d+[\d_]*/[\w.]+\.pt$|/mp_rank_\d+[\d_]*/?$|/latest_checkpointed_iteration\.txt$", _MEGATRON),
    (
        r"-\d{5}-of-\d{5}\.(safetensors|bin)$|\.index\.json$",
        "Hugging Face: one of several files of a model; transformers joins them: "
        "AutoModel.from_pretrained(FOLDER).save_pretrained(OUT, max_shard_size='1TB')",
    ),
)
_PIECES = re.compile(r"(^|\.)(DTensor|ShardedTensor|_shard\w*)$")
_FLAT = re.compile(r"(^|\.)(_?flat_param(_\d+)?|_fpw_module\.flat_param\w*)$")


def refuse_pieces(path: Path) -> None:
    """Raises `UserError` for a file, or a folder with files, that is named like a piece of a checkpoint."""
    inside = sorted(path.iterdir()) if path.is_dir() else []
    for file in (path, *inside):
        for pattern, whose in _FILES:
            if re.search(pattern, file.absolute().as_posix()):
                raise UserError(f"{path}: {whose}; import that file")


def refuse_parts(path: Path, content: Any, tensors: dict) -> None:
    """Raises `UserError` for a file whose tensors are parts of tensors."""
    pieces = [name for name, value in _objects(content) if _PIECES.search(value.name)]
    flat = [name for name in tensors if _FLAT.search(name)]
    if pieces or flat:
        raise UserError(
            f"{path}: FSDP: {(pieces or flat)[0]} is a part of a tensor; save torch.distributed.checkpoint.state_dict."
            "get_model_state_dict(model, options=StateDictOptions(full_state_dict=True)), and import that file"
        )
    if tensors and isinstance(content, dict) and "ds_version" in content:
        if not any(tensor.numel() for tensor in tensors.values()):  # of ZeRO-3: placeholders
            raise UserError(f"{path}: {_DEEPSPEED}; import that file")


def _objects(content: Any, name: str = "") -> Iterator[tuple[str, Unknown]]:
    """The stand-ins in nested dicts, with the keys that lead to them."""
    if isinstance(content, Unknown) and content.name:
        yield name, content
    elif isinstance(content, dict):
        for key, value in content.items():
            yield from _objects(value, f"{name}.{key}".strip("."))
