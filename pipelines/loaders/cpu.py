"""The loader on our own threads: decoded once for all views, or not at all, each written into its place in the batch.

On a CPU the threads make whole views (`cpu_augment`); for a GPU they cut the crops, or copy the rows of stored pixels
that it cuts them from itself. Either is copied there ahead of the step that wants it, and it does the rest. Views that
are turned or go through RandAugment are cropped here and finished batch by batch, as in every loader.
"""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import nullcontext
from typing import NamedTuple

import numpy as np
import torch

from ...cores import cores
from ..images.budget import reserve
from ..images.decode import DecodeError
from ..images.planes import Planes
from ..images.rules import keep_rules, rules
from ..pixels.sidecars import Pixels
from ..spec import ViewSpec
from ..views.cut import decode_fast
from ..views.finish import cut_view, flips_early, places, rare_crop
from .base import BaseLoader, Plan, color_table
from .device import CopyStream, Sent
from .packed import Packed

AHEAD = 2  # batches in preparation while one is consumed
CHUNK = 4  # images of one task: a task a piece would cost 20 us of the interpreter's lock each


class Buffers:
    """Memory for one view of one batch after another. What nobody holds any more is used again: to have the kernel
    clear new pages would cost a tenth of the time that making the views takes.
    """

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, pin: bool) -> None:
        self._options = {"size": shape, "dtype": dtype, "pin_memory": pin}
        self._free: list[np.ndarray] = []

    def take(self, length: int | None = None) -> torch.Tensor:
        """A tensor that is nobody else's until it and everything that shares its memory is gone; `length` of the first
        axis, where it is not always the same."""
        memory = self._free.pop() if self._free else None
        if memory is None or length is not None and len(memory) < length:
            first, *rest = self._options["size"]
            size = (first if length is None else length + length // 4, *rest)  # that few more are outgrown
            memory = torch.empty(**self._options | {"size": size}).numpy()
        lent = memory[:length]
        weakref.finalize(lent, self._free.append, memory).atexit = False
        return torch.from_numpy(lent)


class Coming(NamedTuple):
    """A batch in preparation."""

    plan: Plan
    pixels: dict[ViewSpec | Packed, torch.Tensor]  # crops or views, or the rows of all images; written by
    parts: list[Future]  # tasks, each of which returns whether it could
    sent: Future | None  # for a GPU: what `CopyStream` sends once all have; None where one could not


class CpuLoader(BaseLoader):
    """See `BaseLoader`; `threads` work on images. One more thread reads the samples and draws the views of coming
    batches. A sample that `pixels` has is not decoded.
    """

    _decode = staticmethod(decode_fast)
    _own_crop: Callable | None = None  # a subclass's way to make a crop, with the arguments of `cut_view`
    _crops_on = ("cuda",)  # types of devices that cut crops from pixels

    def __init__(
        self, source, inputs, order, *, threads: int | None = None, pixels: Pixels | None = None, **rest
    ) -> None:
        super().__init__(source, inputs, order, **rest)
        self._pixels = pixels
        self._deep = rules().channels or 1
        alike = {"initializer": keep_rules, "initargs": (self.rules,)}
        self._planner = ThreadPoolExecutor(1, "headrace-plan", **alike)
        self._cutters = ThreadPoolExecutor(threads or cores(), "headrace-cut", **alike)
        self._coming: dict[int, Future] = {}  # step -> `Coming`
        views = {view for kind in inputs.kinds for view in kind.views}
        self._whole = {view for view in views if view in self._makers and not flips_early(view)}
        self._copies = self._sender = None
        pin = self.device.type == "cuda"  # copies to the device are then twice as fast, and nobody waits for them
        if pin:
            self._copies, self._sender = CopyStream(self.device), ThreadPoolExecutor(1, "headrace-copy")
        self._rows = pixels is not None and self._cuts_there(pixels.form)
        self._row_buffers = Buffers((0,), torch.uint8, pin)
        self._buffers = {
            view: Buffers(
                (view.count * self.batch_size, view.size, view.size, view.channels),
                torch.float32 if view in self._whole else torch.uint8 if rules().channels is None else torch.uint16,
                pin,
            )
            for view in views
        }

    def _cut(self) -> tuple[Plan, dict[str, torch.Tensor]]:
        while True:
            for step in range(self._step, self._step + AHEAD + 1):
                if step not in self._coming:
                    self._coming[step] = self._planner.submit(self._prepare, step)
            coming = self._await(self._coming.pop(self._step))
            wait(coming.parts)
            if all(part.result() for part in coming.parts):
                return coming.plan, self._crops(coming)

    def _crops(self, coming: Coming) -> dict[str, torch.Tensor]:
        """What `_cut` gives, of a batch that is written."""
        there = coming.pixels if coming.sent is None else self._copies.receive(self._await(coming.sent))
        if self._rows:
            ((packed, pixels),) = there.items()
            return self._cut_there(packed, pixels, coming.plan, torch.arange(len(coming.plan.ids)))
        return {
            view.name: images.permute(0, 3, 1, 2) if view in self._whole else images for view, images in there.items()
        }

    def _cuts_there(self, form: str | None) -> bool:
        """Whether the device itself cuts all crops, from pixels of that form: of planes none without antialiasing."""
        views = {view for kind in self.inputs.kinds for view in kind.views}
        return (
            self.device.type in self._crops_on
            and form in ("rgb", "yuv420")
            and self._own_crop is None
            and rules().channels is None
            and not any(view.crop == "window" or view.interpolation == "lanczos" for view in views)
            and (form == "rgb" or all(view.antialias for view in views))
        )

    def _cut_there(self, packed: Packed, pixels: torch.Tensor, plan: Plan, ids: torch.Tensor) -> dict:
        """`_crops` on the device, from the images `ids` of a buffer there."""
        return {view.name: packed.crops(pixels, view, ids, plan.params[view.name].crop) for view in plan.inputs.views}

    def _await(self, future: Future):
        """The result of a future: a subclass may have reasons not to wait for ever."""
        return future.result()

    def _prepare(self, step: int) -> Coming:
        plan = self._plan(step)
        rows = None if self._pixels is None else self._rows_of(plan)
        if rows is not None:
            for index, held, some in zip(plan.ids.tolist(), plan.encoded, rows):
                if _decoded(held):
                    self._pixels.ask(index, *some)
        if self._rows:
            packed = Packed(self._pixels.form, plan.sizes, rows)
            pixels = {packed: self._row_buffers.take(packed.length)}
            work = [self._pack(packed, pixels[packed].numpy())]
        else:
            pixels = {view: self._buffers[view].take() for view in plan.inputs.views}
            work = [self._work(view, plan, images.numpy()) for view, images in pixels.items()]
        starts = range(0, len(plan.ids), CHUNK)
        parts = [self._cutters.submit(self._fill, plan, work, start) for start in starts]
        sent = None if self._sender is None else self._sender.submit(self._send, pixels, parts)
        return Coming(plan, pixels, parts, sent)

    def _rows_of(self, plan: Plan) -> list[tuple[int, int | None]]:
        """Of each image of a step, the rows that its crops are made of: the first, and the one behind the last."""
        if any(rare_crop(view) is not None for view in plan.inputs.views):
            return [(0, None)] * len(plan.ids)
        crops = torch.cat([plan.params[view.name].crop for view in plan.inputs.views])  # (copies, B, 4)
        return list(zip(crops[..., 1].amin(0).tolist(), (crops[..., 1] + crops[..., 3]).amax(0).tolist()))

    def _send(self, pixels: dict[ViewSpec | Packed, torch.Tensor], parts: list[Future]) -> Sent | None:
        wait(parts)
        written = all(not part.cancelled() and part.exception() is None and part.result() for part in parts)
        return self._copies.send(pixels) if written else None

    def _work(self, view: ViewSpec, plan: Plan, out: np.ndarray) -> Callable[[np.ndarray | Planes, int], None]:
        """What makes a view of a batch: called with an image and its place in the batch, it writes all its copies."""
        params, samples = plan.params[view.name], len(plan.ids)
        cut, boxes = self._own_crop or cut_view, places(params)
        if view not in self._whole:

            def crops(image: np.ndarray | Planes, b: int) -> None:
                for copy in range(view.count):
                    cut(image, view, boxes[copy][b], out[copy * samples + b])

            return crops
        maker, table = self._makers[view], color_table(view, params).numpy()
        if self._own_crop is None and rare_crop(view) is None:
            crop = params.crop.contiguous().numpy()
            return lambda image, b: maker.views(image, crop, table, b, out)

        def views(image: np.ndarray | Planes, b: int) -> None:
            for copy in range(view.count):
                crop, row = np.empty((1, view.size, view.size, 3), np.uint8), copy * samples + b
                cut(image, view, boxes[copy][b], crop[0])
                maker.finish(crop, table[row : row + 1], 0, 1, out[row : row + 1])

        return views

    def _pack(self, packed: Packed, out: np.ndarray) -> Callable[[np.ndarray | Planes, int], None]:
        """As `_work`, what copies the rows of an image that its crops are made of."""

        def rows(image: np.ndarray | Planes, b: int) -> None:
            for start, flat in packed.pieces(b, image):
                out[start : start + len(flat)] = flat

        return rows

    def _fill(self, plan: Plan, work: list[Callable[[np.ndarray | Planes, int], None]], start: int) -> bool:
        for b in range(start, min(start + CHUNK, len(plan.ids))):
            with nullcontext() if _decoded(plan.encoded[b]) else reserve(self._deep * math.prod(plan.sizes[b])):
                began, index = time.perf_counter(), int(plan.ids[b])
                image = self._image(index, plan.encoded[b])
                # One that is no image is set aside by now; `_cut` prepares the step again, without it.
                if image is None or not self._is_of(index, image, plan.sizes[b]):
                    return False
                for make in work:
                    make(image, b)
                del image
                self._spend(index, began)
        return True

    def _is_of(self, index: int, image: np.ndarray | Planes, size: tuple[int, int]) -> bool:
        """Whether an image is of the size that its crops were drawn for; else it is set aside."""
        if image.shape[:2] != tuple(size):
            self._reject(index, DecodeError(f"{image.shape[:2]} pixels, {size} in its header or its index"))
        return image.shape[:2] == tuple(size)

    def _load(self, index: int):
        if self._pixels is None:
            return super()._load(index)
        image = self._attempt("read", index, self._pixels.image, index)
        if image is not None:
            return image, image.shape[:2]
        return None if index in self._bad else super()._load(index)

    def _image(self, index: int, held) -> np.ndarray | Planes | None:
        """What is there of a sample, decoded: (H, W, 3) uint8, (H, W, C) uint16 or `Planes`; None for a bad one, which
        is set aside."""
        return held if _decoded(held) else self._attempt("decode", index, self._decode, held)

    def load_state_dict(self, state: dict[str, int]) -> None:
        super().load_state_dict(state)
        self._drain()

    def _drain(self) -> None:
        """Ends what is in preparation."""
        for future in self._coming.values():
            future.cancel()
        for future in self._coming.values():
            if not future.cancelled() and future.exception() is None:
                coming = future.result()
                for part in coming.parts:
                    part.cancel()
                wait(coming.parts if coming.sent is None else [*coming.parts, coming.sent])
        self._coming.clear()

    def close(self) -> None:
        super().close()
        self._drain()
        self._planner.shutdown()
        self._cutters.shutdown()
        if self._sender is not None:
            self._sender.shutdown()
            self._copies.close()


def _decoded(held) -> bool:
    """Whether what a plan has of a sample is pixels, and not encoded bytes."""
    return isinstance(held, Planes) or isinstance(held, np.ndarray) and held.ndim == 3
