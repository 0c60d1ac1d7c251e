"""The loader on our own threads: decoded once for all views, crops written into the batch's place. For CPUs alone."""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor, wait

import torch

from .base_loader import BaseLoader, Plan
from .cut import crop_and_resize, decode_fast

_AHEAD = 2  # batches in preparation while one is consumed
_CHUNK = 4  # images of one task: a task a piece would cost 20 us of the interpreter's lock each


class CpuLoader(BaseLoader):
    """See `BaseLoader`; `threads` decode. One more thread reads the samples and draws the views of coming batches."""

    _decode = staticmethod(decode_fast)
    _crop = staticmethod(crop_and_resize)

    def __init__(self, source, inputs, order, *, threads: int | None = None, **rest) -> None:
        super().__init__(source, inputs, order, **rest)
        self._planner = ThreadPoolExecutor(1, thread_name_prefix="headrace-plan")
        self._cutters = ThreadPoolExecutor(threads or os.cpu_count() or 1, thread_name_prefix="headrace-cut")
        self._coming: dict[int, Future] = {}  # step -> what `_prepare` returns
        pin = self.device.type == "cuda"  # copies to the device are then twice as fast
        self._slots = [
            {
                view.name: torch.empty(
                    (view.count * self.batch_size, view.size, view.size, 3), dtype=torch.uint8, pin_memory=pin
                )
                for view in inputs.views
            }
            for _ in range(_AHEAD + 1)
        ]

    def _cut(self) -> tuple[Plan, dict[str, torch.Tensor]]:
        while True:
            for step in range(self._step, self._step + _AHEAD + 1):
                if step not in self._coming:
                    self._coming[step] = self._planner.submit(self._prepare, step)
            plan, crops, parts = self._coming.pop(self._step).result()
            wait(parts)
            if all(part.result() for part in parts):
                return plan, {name: pixels.to(self.device) for name, pixels in crops.items()}

    def _prepare(self, step: int) -> tuple[Plan, dict[str, torch.Tensor], list[Future]]:
        """The plan of a step, its slot, and the tasks that fill it: each returns whether it could."""
        plan = self._plan(step)
        crops = self._slots[step % len(self._slots)]
        boxes = {name: params.crop.tolist() for name, params in plan.params.items()}
        rows = {name: pixels.numpy() for name, pixels in crops.items()}
        starts = range(0, len(plan.ids), _CHUNK)
        return plan, crops, [self._cutters.submit(self._fill, plan, boxes, rows, start) for start in starts]

    def _fill(self, plan: Plan, boxes: dict, rows: dict, start: int) -> bool:
        samples = len(plan.ids)
        for b in range(start, min(start + _CHUNK, samples)):
            pixels = self._attempt("decode", int(plan.ids[b]), self._decode, plan.encoded[b])
            if pixels is None:  # set aside by now; `_cut` prepares the step again, without it
                return False
            for view in self.inputs.views:
                for copy, crops in enumerate(boxes[view.name]):
                    self._crop(pixels, crops[b], view.interpolation, rows[view.name][copy * samples + b])
        return True

    def load_state_dict(self, state: dict[str, int]) -> None:
        super().load_state_dict(state)
        self._drain()

    def _drain(self) -> None:
        """Ends what is in preparation: nothing writes into a slot afterwards."""
        for future in self._coming.values():
            future.cancel()
        for future in self._coming.values():
            if not future.cancelled() and future.exception() is None:
                parts = future.result()[2]
                for part in parts:
                    part.cancel()
                wait(parts)
        self._coming.clear()

    def close(self) -> None:
        self._drain()
        self._planner.shutdown()
        self._cutters.shutdown()
