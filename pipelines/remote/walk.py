"""Which shards will be wanted, in order, told from a known order of samples."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container, Sequence

_STEPS = 64  # that are looked at, at most, each time somebody takes one
_WAITING = 8  # shards that may be on their way; more would say nothing new


class Walk:
    """Goes ahead of a reader, step by step, as far as the shards between the two fit into `room` bytes.

    `shards_at(step)` says which shards a step reads, `sizes` their bytes.
    """

    def __init__(self, shards_at: Callable[[int], Sequence[int]], sizes: Sequence[int], room: int) -> None:
        self._shards_at, self._sizes, self._room = shards_at, sizes, room
        self._steps: deque[tuple[int, Sequence[int]]] = deque()  # those between the reader and the walk
        self._uses: dict[int, int] = {}  # shard -> of how many of these steps
        self._bytes, self._ahead = 0, 0  # of these shards; the step that is looked at next

    def to(self, step: int, there: Container[int]) -> list[int]:
        """The reader is at `step`: the shards that come up newly, in the order in which they are needed.

        `there`: those that are here already, and cost no waiting.
        """
        if not self._steps or not self._steps[0][0] <= step <= self._ahead:
            self._steps.clear()
            self._uses.clear()
            self._bytes, self._ahead = 0, step
        while self._steps and self._steps[0][0] < step:
            for shard in self._steps.popleft()[1]:
                self._uses[shard] -= 1
                if not self._uses[shard]:
                    del self._uses[shard]
                    self._bytes -= self._sizes[shard]
        fresh: list[int] = []
        waiting = sum(shard not in there for shard in self._uses)
        for _ in range(_STEPS):
            if self._ahead > step and (waiting >= _WAITING or len(self._uses) == len(self._sizes)):
                break
            shards = self._shards_at(self._ahead)
            new = [shard for shard in shards if shard not in self._uses]
            size = sum(self._sizes[shard] for shard in new)
            if self._ahead > step and self._bytes + size > self._room:
                break
            for shard in shards:
                self._uses[shard] = self._uses.get(shard, 0) + 1
            self._steps.append((self._ahead, shards))
            self._bytes, self._ahead = self._bytes + size, self._ahead + 1
            waiting += sum(shard not in there for shard in new)
            fresh += new
        return fresh

    @property
    def held(self) -> set[int]:
        """The shards between the reader and the walk."""
        return set(self._uses)
