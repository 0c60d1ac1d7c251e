"""Checkpoints: written atomically, read without unpickling code, the newest readable one found."""

from __future__ import annotations

import json
import os
import re
import threading
import warnings
import zipfile
from contextlib import suppress
from pathlib import Path

import torch
import yaml
from torch import nn

from ...errors import UserError
from ...models.algorithm import Algorithm
from ...models.algorithms import find_algorithm
from ...models.backbones.low_rank import merged
from ...models.targets.frozen import without_weights
from ...pipelines.images.rules import Rules, use_rules
from ..recipe import config

_NAME = re.compile(r"step-(\d{8})\.pt")
_GIVE = "give a run directory or a step-*.pt of one"
_IMPORT = "headrace import takes the encoder out of checkpoints of other libraries"


def save(folder: Path, step: int, state: dict, keep: int, keep_every: int | None = None) -> Path:
    """Writes ``step-XXXXXXXX.pt`` after `step` finished steps, then removes old ones: all but the newest `keep` and
    those whose step `keep_every` divides.

    The file appears under its name only when it is complete and on disk. `state` holds tensors and plain Python values.
    Raises `UserError` where it cannot be written; the older checkpoints are then all still there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:08d}.pt"
    temporary = path.with_suffix(".pt.tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(folder)
    except (OSError, RuntimeError) as fault:  # torch's zip writer raises RuntimeError when the disk is full
        temporary.unlink(missing_ok=True)
        raise UserError(f"{path}: the checkpoint could not be written ({fault}); free some space or change train.out")
    for old in checkpoints(folder)[:-keep]:
        if keep_every is None or step_of(old) % keep_every:
            with suppress(OSError):  # one too many is no fault of the run
                old.unlink(missing_ok=True)
    return path


def _sync_folder(folder: Path) -> None:
    """Puts the new name itself on disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Writer:
    """Saves in a thread of its own: training waits only while the state is copied to the host.

    A checkpoint that cannot be written is a warning as long as the run goes on, since the next one may do better;
    `finish` raises the `UserError` of the last one.
    """

    def __init__(self, folder: Path, keep: int, keep_every: int | None = None) -> None:
        self._folder, self._keep, self._keep_every = folder, keep, keep_every
        self._thread: threading.Thread | None = None
        self._fault: UserError | None = None
        for left_over in folder.glob("step-*.pt.tmp"):  # of a run that was killed
            left_over.unlink()

    def save(self, step: int, state: dict) -> None:
        self._join()
        if self._fault:
            warnings.warn(f"{self._fault}; the run goes on without", stacklevel=2)
        self._thread = threading.Thread(target=self._write, args=(step, _on_host(state)), name="checkpoint")
        self._thread.start()

    def finish(self) -> None:
        """Returns when the last one is on disk."""
        self._join()
        if self._fault:
            raise self._fault

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()

    def _write(self, step: int, state: dict) -> None:
        self._fault = None
        try:
            save(self._folder, step, state, self._keep, self._keep_every)
        except UserError as fault:
            self._fault = fault


def _on_host(value):
    """A copy whose tensors are on the CPU and share no memory with the original."""
    if torch.is_tensor(value):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _on_host(item) for key, item in value.items()}
    return type(value)(_on_host(item) for item in value) if isinstance(value, (list, tuple)) else value


def checkpoints(folder: Path) -> list[Path]:
    """All checkpoints of a run, oldest first."""
    if not os.path.isdir(folder):  # which, other than pathlib's, says no to a name that is too long
        return []
    return sorted(p for p in folder.glob("step-*.pt") if _NAME.fullmatch(p.name))


def step_of(path: Path) -> int:
    return int(_NAME.fullmatch(path.name)[1])


def load(path: Path) -> dict:
    """The state on the CPU. Raises `UserError`, which says what it is instead, for anything that is not a complete
    checkpoint of tensors.

    Every record is held to the checksum it was written with, which `torch.load` alone does not do.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(16)
        if (other := _other_format(start)) is not None:
            raise UserError(f"{path}: not a readable checkpoint ({other})")
        with zipfile.ZipFile(path) as archive:
            damaged, names = archive.testzip(), [name.rpartition("/")[2] for name in archive.namelist()]
        if damaged is not None:
            raise UserError(f"{path}: not a readable checkpoint (the checksum of {damaged} is wrong)")
        if "data.pkl" not in names or "constants.pkl" in names:
            other = "a TorchScript program" if "constants.pkl" in names else "a .zip, but not of torch"
            raise UserError(f"{path}: not a readable checkpoint ({other}; {_GIVE})")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such checkpoint") from None
    except IsADirectoryError:
        saved = checkpoints(path)
        raise UserError(f"{path}: a folder; " + (f"give a checkpoint in it, such as {saved[-1]}" if saved else _GIVE))
    except UserError:
        raise
    except zipfile.BadZipFile:
        raise UserError(f"{path}: not a readable checkpoint (cut short: it has a beginning and no end)") from None
    except Exception as fault:  # torch raises a dozen kinds for truncated, foreign and hostile files
        reason = str(fault).splitlines()[0] if str(fault) else type(fault).__name__
        if "Weights only load failed" in reason:
            reason = f"it holds Python objects, which are never unpickled; {_IMPORT}"
        raise UserError(f"{path}: not a readable checkpoint ({reason})") from None
    if not isinstance(state, dict) or "model" not in state:
        check_own(state, path)
    return state


def check_own(state: object, path: Path) -> None:
    """Raises `UserError`, which says what it is instead, for a state that no run of headrace saved."""
    if (foreign := _foreign(state)) is not None:
        raise UserError(f"{path}: not a headrace checkpoint but {foreign}")


def _other_format(start: bytes) -> str | None:
    """What a file is that begins so, if that is no zip archive, which torch has written since 1.6."""
    if start.startswith(b"PK"):
        return None
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 1 << 32:
        return f"a .safetensors file, which holds tensors alone; {_GIVE}"
    if start[:1] == b"\x80":
        return f"a pickle, as torch wrote before 1.6 and others do, which is never unpickled here; {_IMPORT}"
    return f"{'an empty file' if not start else 'no file of torch'}; {_GIVE}"


def _foreign(state: object) -> str | None:
    """What was loaded, in words; None for what `save` is given."""
    if not isinstance(state, dict):
        return f"a {type(state).__name__}; {_GIVE}"
    if {"step", "ids", "views"} <= state.keys():
        return f"a batch that was left because it was not finite; {_GIVE}"
    config, names = state.get("config"), ", ".join(map(str, list(state)[:4]))
    section = config.get("algorithm") if isinstance(config, dict) else None
    if isinstance(state.get("model"), dict) and isinstance(section, dict) and isinstance(section.get("name"), str):
        return None
    if state and all(torch.is_tensor(value) for value in state.values()):
        return f"the bare tensors of a model ({names}, ...); {_IMPORT}"
    return f"one of another library, with {names or 'nothing'} in it; {_IMPORT}"


def newest(folder: Path) -> tuple[Path, dict] | None:
    """The newest checkpoint that can be read; unreadable newer ones are named in a warning."""
    for path in reversed(checkpoints(folder)):
        try:
            return path, load(path)
        except UserError as fault:
            warnings.warn(f"{fault}; trying the one before", stacklevel=2)
    return None


def load_algorithm(path: str | Path) -> tuple[Path, Algorithm]:
    """The algorithm of a checkpoint, or of the newest one in a run directory, with its weights, on the CPU.

    From here on this process decodes images as that run did.

    Raises `UserError` where there is none that can be read.
    """
    path, state = find(path)
    return path, algorithm_of(state, path)


def find(path: str | Path) -> tuple[Path, dict]:
    """A checkpoint, or the newest readable one of a run directory, and what is in it."""
    path = Path(path)
    found = newest(path) if path.is_dir() else (path, load(path))
    if found is None:
        raise UserError(f"{path}: holds no readable checkpoint (step-*.pt)")
    check_own(found[1], found[0])
    return found


def algorithm_of(state: dict, path: Path) -> Algorithm:
    """The algorithm of a state that `path` was loaded from, with its weights; images are decoded as in its run."""
    algorithm = build_algorithm(state["config"]["algorithm"], path)
    load_weights(algorithm, merged(state["model"]), path, "those of the algorithm it names")
    use_rules(Rules.of(state["config"].get("data") or {}))
    return algorithm


def load_weights(module: nn.Module, weights: dict[str, torch.Tensor], path: Path, whose: str) -> None:
    """`load_state_dict`, whose complaints become a `UserError` of one line: the tensors of `path` are not `whose`."""
    try:
        module.load_state_dict(weights)
    except (RuntimeError, TypeError, AttributeError) as fault:
        reason = re.sub(r"^Error\(s\) in [^:]*: ", "", " ".join(str(fault).split()))
        reason = reason if len(reason) < 300 else reason[:300] + " ..."
        raise UserError(f"{path}: its tensors are not {whose} ({reason})") from None


def encoder_metadata(recipe: dict) -> dict[str, str]:
    """What an encoder.safetensors says besides weights, of a recipe in plain values: the algorithm, and how images were
    decoded where that was not as usual."""
    unusual = Rules.of(recipe.get("data") or {}).unusual
    return {"config": yaml.safe_dump(recipe["algorithm"])} | ({"rules": json.dumps(unusual)} if unusual else {})


def rules_in(metadata: dict[str, str] | None) -> Rules:
    """How an encoder with the metadata of `encoder_metadata` wants images decoded."""
    return Rules.of(json.loads((metadata or {}).get("rules", "{}")))


def build_algorithm(section: dict, origin: Path) -> Algorithm:
    """The algorithm of a saved configuration, untrained. Its target networks, which checkpoints do not hold and only
    training needs, are left empty, so their files need not be at hand."""
    kind = find_algorithm(section["name"])
    tree = config.from_plain({"algorithm": section}, str(origin))
    with without_weights():
        return kind(config.build(tree, {"algorithm": kind.Config})["algorithm"])
