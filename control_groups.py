"""The control groups that a process is in: what a container, a job or a service may use of a machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

PROCESS, GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def folders(controller: str, process: Path = PROCESS, groups: Path = GROUPS) -> Iterator[Path]:
    """Folders whose files may limit this process's use of "cpu" or "memory": of its own group and of all around it,
    since the limit of a group holds for those inside, of versions 1 and 2. Some may not exist.

    In a container the path of the group may not be visible; the container's own group is then the root of what is
    mounted.
    """
    try:
        lines = process.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        for mount in (groups / controllers, groups / controller) if controllers else (groups / "unified", groups):
            inside = mount / path.strip("/")
            yield from (folder for folder in (inside, *inside.parents) if folder.is_relative_to(mount))
