"""``<out>/.sharding``: where finished shards wait for the last one, so that nothing unfinished opens as a data set.

plan.json      what was asked, and a fingerprint of the source: another run may continue only if both are the same
kept.npy       with --drop-duplicates or --drop-near-duplicates, the ids that are no duplicates
000007.tar     with .idx (DALI's index), .npy (rows of our index) and perhaps .npz (what was measured): they count once
               .json, the record, is there
000007.lock    held by the process that writes shard 7          lock   shared by all runs that write here

Finished shards are moved up to `out`, `index.npy` first and `dataset.json` last. Every step can be repeated, also by
several processes at once: all of them would write the same bytes, each file appears by one rename, and whoever comes
late finds the work done.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np

from ...errors import UserError
from ...places import write_file
from ..sources.shards import INDEX_FILE, MANIFEST, UNFINISHED
from .plan import Survey, differences


class Workspace:
    """The unfinished data set in `out`. Pickles without its lock.

    Raises `UserError` where `out` holds anything that is not ours.
    """

    def __init__(self, out: Path, prefix: str) -> None:
        self.out, self.folder, self._prefix, self._plan_id, self._lock = out, out / UNFINISHED, prefix, "", None
        self._made = not out.exists()
        ours = re.compile(rf"{prefix}-\d{{6}}\.(tar|idx)|{re.escape(INDEX_FILE)}|{re.escape(UNFINISHED)}")
        present = set() if self._made else set(os.listdir(out))
        if MANIFEST in present:
            present = set()  # finished; the caller looks at what it is
        if foreign := {name for name in present if UNFINISHED not in present or not ours.fullmatch(name)}:
            names = ", ".join(sorted(foreign)[:3])
            raise UserError(f"{out}: not empty ({names}); choose another folder, or empty it first")

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_lock": None}

    def file(self, shard: int, kind: str) -> Path:
        return self.folder / f"{shard:06d}.{kind}"

    def begin(self, survey: Survey) -> None:
        """Makes the workspace, or checks that the one it finds has the same plan; `UserError` says what differs."""
        while self._lock is None or not os.fstat(self._lock.fileno()).st_nlink:  # another run may have tidied it away
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.folder / "lock", "a", encoding="utf-8")
            with contextlib.suppress(OSError):  # some network disks know no locks; then nothing is tidied away
                fcntl.flock(self._lock, fcntl.LOCK_SH)
        plan = self.folder / "plan.json"
        ours = {"request": survey.request, "modified": survey.modified}
        if not plan.exists():
            write_file(plan, json.dumps(ours, indent=1).encode())
        there = json.loads(plan.read_bytes())
        if there != ours:
            if self.give_up():  # nothing is lost with that plan
                return self.begin(survey)
            found = differences(survey.request, there["request"]) or ["files of the source have been written to since"]
            found = "\n".join(f"  {line}" for line in found)
            raise UserError(
                f"{self.out}: holds an unfinished data set, begun with other arguments or another source:\n{found}\n"
                f"run it again as it was begun, or start over: delete {self.out}, or choose another folder"
            )
        self._plan_id = hashlib.sha256(json.dumps(there).encode()).hexdigest()

    def kept(self, seek) -> np.ndarray:
        """The ids that `seek` returns, sought once for all runs of this plan."""
        file = self.folder / "kept.npy"
        if not file.exists():
            write_file(file, _npy(seek()))
        return np.load(file)

    def finish_shard(self, shard: int, rows: np.ndarray, idx: str, size: int, sha256: str, bad: list) -> None:
        """Makes the record of a tar that is complete on the disk: `rows` of INDEX, `size` in bytes."""
        self.file(shard, "npy").write_bytes(_npy(rows))
        self.file(shard, "idx").write_text(idx, encoding="utf-8")
        record = {"plan": self._plan_id, "samples": len(rows), "bytes": size, "idx": len(idx), "sha256": sha256}
        write_file(self.file(shard, "json"), json.dumps(record | {"bad": bad}).encode())

    def finished(self, shard: int) -> bool:
        """Whether record and files of a shard are there and of the right sizes. While they are moved up, they are."""
        try:
            record = json.loads(self.file(shard, "json").read_bytes())
            if record["plan"] != self._plan_id:
                return False
            if (self.out / INDEX_FILE).exists():
                return True
            found = [self.file(shard, kind).stat().st_size for kind in ("tar", "idx")]
            found.append(len(np.load(self.file(shard, "npy"))))
            return found == [record["bytes"], record["idx"], record["samples"]]
        except (FileNotFoundError, ValueError, EOFError):  # or cut short by a power failure
            return False

    def records(self, shards: int) -> list[dict]:
        return [json.loads(self.file(shard, "json").read_bytes()) for shard in range(shards)]

    def publish(self, names: dict[int, str], manifest: dict) -> None:
        """Moves up the shards ``number -> name``, renumbered in that order, then writes `manifest`.

        Raises `FileNotFoundError` when another process has done so meanwhile.
        """
        rows = [np.load(self.file(shard, "npy")) for shard in names]
        for number, part in enumerate(rows):
            part["shard"] = number
        write_file(self.folder / INDEX_FILE, _npy(np.concatenate(rows)))
        _move(self.folder / INDEX_FILE, self.out / INDEX_FILE)
        for shard, name in names.items():
            for kind in ("idx", "tar"):
                _move(self.file(shard, kind), self.out / f"{name}.{kind}")
        _sync(self.out)
        write_file(self.folder / MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())
        _move(self.folder / MANIFEST, self.out / MANIFEST)
        _sync(self.out)

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def give_up(self) -> bool:
        """Leaves `out` as it was before, unless a shard is finished or another process writes here, too."""
        if self._lock is None or any(self.folder.glob("[0-9]*.json")):
            return False
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        self.remove()
        if self._made:
            with contextlib.suppress(OSError):
                self.out.rmdir()
        return True


def _move(file: Path, target: Path) -> None:
    """A rename that somebody else may have done already."""
    try:
        file.replace(target)
    except FileNotFoundError:
        if not target.exists():
            raise


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
