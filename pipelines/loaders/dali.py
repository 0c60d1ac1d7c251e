"""The loader on NVIDIA DALI: every image is decoded once and all its crops are resized from that.

DALI is fed from our own index and order through `external_source`, so that order, resume and replacement of bad images
are ours and alike in every loader. The same pipeline decodes on CPU cores or, on a GPU, through nvJPEG.

A damaged image can end a process in DALI 2.4. So it is given none: a sample's bytes are copied, and reach DALI only if
our own decoder has decoded these very bytes without finding a flaw (`sound.py`), which costs a decoding in the first
epoch and a digest afterwards, on threads that wait while DALI works. All else, which is every format but plain JPEG and
what libjpeg complains of, is decoded and cropped on our threads as in the cpu loader.
"""

from __future__ import annotations

import math
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import nvidia.dali.fn as fn
import nvidia.dali.types as types
import torch
from nvidia.dali import pipeline_def
from nvidia.dali.plugin.pytorch import feed_ndarray

from ...cores import cores
from ...errors import UserError
from ..images.budget import reserve
from ..images.decode import image_size
from ..images.rules import keep_rules
from ..spec import ViewSpec
from ..views.cut import decode_fast
from ..views.finish import cut_view, dali_problem, places
from .base import BaseLoader, LoaderError, Plan
from .sound import SOUND_FILE, sound_bytes

_INTERPOLATION = {
    "bilinear": types.INTERP_LINEAR,
    "bicubic": types.INTERP_CUBIC,
    "lanczos": types.INTERP_LANCZOS3,
}
_AHEAD = 2  # batches DALI works on while one is consumed
_CHUNK = 4  # images of one task
_MOST_PIXELS = 1 << 24  # of an image for DALI, which holds all of several batches at once
_STAND_IN = np.frombuffer(b"P6 1 1 255\n\0\0\0", np.uint8)  # what DALI decodes where our own threads make the crops


@dataclass
class Own:
    """The bytes of a sample that DALI is not given."""

    encoded: np.ndarray
    crops: dict[str, np.ndarray] = field(default_factory=dict)  # view name -> (count, size, size, 3) uint8


class DaliLoader(BaseLoader):
    """See `BaseLoader`; `threads` is the number of CPU threads of the pipeline.

    `hw_decoder_load` is the share of a batch's JPEGs that goes to the GPU's own decoder rather than to its cores, in
    [0, 1], on GPUs that have one (A100, H100 and newer); None leaves it to DALI.
    """

    def __init__(
        self,
        source,
        inputs,
        order,
        *,
        threads: int | None = None,
        hw_decoder_load: float | None = None,
        **rest,
    ) -> None:
        for view in inputs.views:
            if problem := dali_problem(view):
                raise UserError(f"data.loader: dali {problem}, as view {view.name!r} needs; use data.loader=cpu")
        super().__init__(source, inputs, order, **rest)
        device_id = None
        if self.device.type == "cuda":
            device_id = torch.cuda.current_device() if self.device.index is None else self.device.index
        elif hw_decoder_load is not None:
            raise UserError("data.hw_decoder_load: there is no GPU that could decode; leave it out")
        decoder = {"device": "cpu" if device_id is None else "mixed"}
        if hw_decoder_load is not None:
            decoder["hw_decoder_load"] = hw_decoder_load
        self._common = {
            "decoder": decoder,
            "num_threads": threads or cores(),
            "device_id": device_id,
        }
        self._refused: set[int] = set()  # sound images that DALI does not take
        path = self._bad.path
        self._sound = sound_bytes(self.source, path and path.with_name(SOUND_FILE))
        alike = {"initializer": keep_rules, "initargs": (self.rules,)}
        self._workers = ThreadPoolExecutor(threads or cores(), "headrace-prove", **alike)
        self._planner = ThreadPoolExecutor(1, "headrace-plan", **alike)
        self._start()

    def _start(self) -> None:
        """A fresh pipeline whose first batch is that of `self._step`."""
        self._planned_step = self._step
        self._planned: deque[Future[Plan]] = deque()
        self._in_flight: deque[Plan] = deque()
        for _ in range(_AHEAD):
            self._plan_next()
        self._pipeline = _crop_pipeline(
            self._feed, self.inputs.views, batch_size=self.batch_size, prefetch_queue_depth=_AHEAD, **self._common
        )
        self._pipeline.build()

    def _plan_next(self) -> None:
        self._planned.append(self._planner.submit(self._prepare, self._planned_step))
        self._planned_step += 1

    def _prepare(self, step: int) -> Plan:
        """The plan of a step with the crops that DALI does not make."""
        while True:
            plan = self._plan(step)
            own = [b for b, encoded in enumerate(plan.encoded) if isinstance(encoded, Own)]
            boxes = {view.name: places(plan.params[view.name]) for view in plan.inputs.views} if own else {}
            if all(list(self._workers.map(partial(self._make, plan, boxes), own))):
                return plan

    def _gather(self, step: int):
        ids = self.order.ids(step, self.rank, self.world).tolist()
        chunks = [ids[start : start + _CHUNK] for start in range(0, len(ids), _CHUNK)]
        found = self._workers.map(lambda chunk: [self._fetch(index) for index in chunk], chunks)
        return [one for part in found for one in part]

    def _load(self, index: int):
        # copied: what is proven and what DALI reads later must be the same, whatever becomes of the file
        encoded = self._attempt("read", index, lambda index: np.array(self.source.read(index)), index)
        size = None if encoded is None else self._attempt("header", index, image_size, encoded)
        if size is None:
            return None
        if index not in self._refused and math.prod(size) <= _MOST_PIXELS:
            proven = self._attempt("decode", index, lambda encoded: self._sound.proven(index, encoded), encoded)
            if proven is None:
                return None
            if proven:
                return encoded, size
        return Own(encoded), size

    def _make(self, plan: Plan, boxes: dict[str, list], b: int) -> bool:
        """Decodes and crops an image of a plan by the `places` of its views; False if it is bad, and set aside now."""
        own = plan.encoded[b]
        with reserve(math.prod(plan.sizes[b])):
            began, index = time.perf_counter(), int(plan.ids[b])
            image = self._attempt("decode", index, decode_fast, own.encoded)
            if image is None:
                return False
            for view in plan.inputs.views:
                own.crops[view.name] = np.empty((view.count, view.size, view.size, 3), np.uint8)
                for out, copy in zip(own.crops[view.name], boxes[view.name]):
                    cut_view(image, view, copy[b], out)
        self._spend(index, began)
        return True

    def _feed(self) -> list[list[np.ndarray]]:
        """One batch for `external_source`; the plan is kept until the batch comes out, and with it the bytes."""
        plan = self._planned.popleft().result()
        self._plan_next()
        self._in_flight.append(plan)
        own = [isinstance(encoded, Own) for encoded in plan.encoded]
        arrays = [[_STAND_IN if ours else encoded for ours, encoded in zip(own, plan.encoded)]]
        for view in plan.inputs.views:
            crop = plan.params[view.name].crop.float()
            crop[:, own] = torch.tensor([0.0, 0.0, 1.0, 1.0])
            arrays += [list(corner.numpy()) for corner in crop[..., [1, 0]]]  # top, left
            arrays += [list(shape.numpy()) for shape in crop[..., [3, 2]]]  # height, width
            arrays.append([np.full(2, view.size, np.float32)] * len(plan.encoded))
        return arrays

    def _cut(self) -> tuple[Plan, dict[str, torch.Tensor]]:
        while True:
            try:
                outputs = self._pipeline.run()
                break
            except RuntimeError as fault:
                self._recover(fault)
        plan = self._in_flight.popleft()
        outputs = iter(outputs)
        crops = {}
        for view in plan.inputs.views:
            shape = (view.count, self.batch_size, view.size, view.size, 3)
            pixels = torch.empty(shape, dtype=torch.uint8, device=self.device)
            stream = torch.cuda.current_stream(self.device) if self.device.type == "cuda" else None
            for copy in range(view.count):
                feed_ndarray(next(outputs).as_tensor(), pixels[copy], cuda_stream=stream)
            for b, encoded in enumerate(plan.encoded):
                if isinstance(encoded, Own):
                    pixels[:, b] = torch.from_numpy(encoded.crops[view.name]).to(self.device)
            crops[view.name] = pixels.flatten(0, 1)
        return plan, crops

    def _recover(self, fault: RuntimeError) -> None:
        """DALI drops a whole pipeline for one image: find those it refuses, though they are sound, and start again with
        these on our own threads from now on."""
        refused = {index for plan in self._in_flight for index in self._refused_of(plan)}
        if not refused:
            raise LoaderError(f"decode: step {self._step}: {fault}") from fault
        self._refused |= refused
        self._drain()
        self._start()

    def _refused_of(self, plan: Plan) -> list[int]:
        """The samples of a plan that DALI cannot decode, by bisection."""

        def search(rows: list[int]) -> list[int]:
            batch = [plan.encoded[row] for row in rows]
            try:
                _decode_pipeline(batch, batch_size=len(batch), prefetch_queue_depth=1, **self._common).run()
            except RuntimeError:
                middle = len(rows) // 2
                return search(rows[:middle]) + search(rows[middle:]) if middle else rows
            return []

        given = [row for row, encoded in enumerate(plan.encoded) if not isinstance(encoded, Own)]
        return [int(plan.ids[row]) for row in (search(given) if given else [])]

    def load_state_dict(self, state: dict[str, int]) -> None:
        super().load_state_dict(state)
        self._drain()
        self._start()

    def _drain(self) -> None:
        """Lets go of the pipeline and of everything planned ahead."""
        self._pipeline = None
        for future in self._planned:
            future.cancel()
        self._planned.clear()
        self._in_flight.clear()

    def close(self) -> None:
        super().close()
        self._drain()
        self._planner.shutdown(wait=True, cancel_futures=True)
        self._workers.shutdown(wait=True, cancel_futures=True)


def _decode(encoded, decoder: dict):
    return fn.decoders.image(encoded, **decoder, output_type=types.RGB, jpeg_fancy_upsampling=True)


@pipeline_def
def _decode_pipeline(batch: list[np.ndarray], decoder: dict):
    """Encoded bytes -> pixels, of one batch."""
    return _decode(fn.external_source(source=[batch], no_copy=True), decoder)


@pipeline_def
def _crop_pipeline(feed, views: tuple[ViewSpec, ...], decoder: dict):
    """Encoded bytes -> for each view and copy (B, size, size, 3) uint8.

    `slice` before `resize` rather than `resize` with a region: its taps then stop at the crop's border as Pillow's do
    (largest difference 17 grey levels, at the border; with a region 48; 99.9 % of pixels within 1 either way).
    """
    count = 1 + sum(2 * view.count + 1 for view in views)
    inputs = iter(fn.external_source(source=feed, num_outputs=count, no_copy=True))
    images = _decode(next(inputs), decoder)
    outputs = []
    for view in views:
        corners = [next(inputs) for _ in range(view.count)]
        shapes = [next(inputs) for _ in range(view.count)]
        size = next(inputs)  # an input, for it may change from batch to batch
        kind = _INTERPOLATION[view.interpolation]
        for corner, shape in zip(corners, shapes):
            crop = fn.slice(images, corner, shape, axis_names="HW", normalized_anchor=False, normalized_shape=False)
            outputs.append(fn.resize(crop, size=size, interp_type=kind, antialias=view.antialias))
    return tuple(outputs)
