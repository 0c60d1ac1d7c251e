"""The loader on NVIDIA DALI: every image is decoded once and all its crops are resized from that.

DALI is fed from our own index and order through `external_source`, so that order, resume and replacement of bad images
are ours and alike in every loader. The same pipeline decodes on CPU cores or, on a GPU, through nvJPEG.

DALI 2.4 can end the process when two or more images of one batch have a sound header and undecodable pixels (1 of 40
batches with eight among 50; 0 of 80 with one). A data set with many such images is for `headrace check` first.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import nvidia.dali.fn as fn
import nvidia.dali.types as types
import torch
from nvidia.dali import pipeline_def
from nvidia.dali.plugin.pytorch import feed_ndarray

from ...cores import cores
from ...errors import UserError
from ..images.decode import DecodeError, decode
from ..images.jpeg import MAGIC, jpeg_header
from ..spec import ViewSpec
from ..views.finish import dali_problem
from .base import BaseLoader, LoaderError, Plan

_INTERPOLATION = {
    "bilinear": types.INTERP_LINEAR,
    "bicubic": types.INTERP_CUBIC,
    "lanczos": types.INTERP_LANCZOS3,
}
_AHEAD = 2  # batches DALI works on while one is consumed


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
        self._through_pillow: set[int] = set()  # readable images that DALI refused
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="headrace-plan")
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
        self._planned.append(self._executor.submit(self._plan, self._planned_step))
        self._planned_step += 1

    def _load(self, index: int):
        found = super()._load(index)
        if found is None or not (index in self._through_pillow or _unusual(found[0])):
            return found
        pixels = self._attempt("decode", index, decode, found[0])
        return None if pixels is None else (_as_ppm(pixels), pixels.shape[:2])

    def _feed(self) -> list[list[np.ndarray]]:
        """One batch for `external_source`; the plan is kept until the batch comes out, and with it the bytes."""
        plan = self._planned.popleft().result()
        self._plan_next()
        self._in_flight.append(plan)
        arrays = [plan.encoded]
        for view in self.inputs.views:
            crop = plan.params[view.name].crop.float()
            arrays += [list(corner.numpy()) for corner in crop[..., [1, 0]]]  # top, left
            arrays += [list(shape.numpy()) for shape in crop[..., [3, 2]]]  # height, width
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
        for view in self.inputs.views:
            shape = (view.count, self.batch_size, view.size, view.size, 3)
            pixels = torch.empty(shape, dtype=torch.uint8, device=self.device)
            stream = torch.cuda.current_stream(self.device) if self.device.type == "cuda" else None
            for copy in range(view.count):
                feed_ndarray(next(outputs).as_tensor(), pixels[copy], cuda_stream=stream)
            crops[view.name] = pixels.flatten(0, 1)
        return plan, crops

    def _recover(self, fault: RuntimeError) -> None:
        """DALI drops a whole pipeline for one image: find those it refuses, and start again without them.

        Those go through Pillow from then on, or are bad if Pillow refuses them, too. Images that DALI takes are left
        alone whatever Pillow thinks of them: what becomes of one must not depend on which others were in flight.
        """
        refused = [pair for plan in self._in_flight for pair in self._refused(plan)]
        if not refused or any(index in self._through_pillow for index, _ in refused):
            raise LoaderError(f"decode: step {self._step}: {fault}") from fault
        for index, encoded in refused:
            if self._attempt("decode", index, decode, encoded) is not None:
                self._through_pillow.add(index)
        self._drain()
        self._start()

    def _refused(self, plan: Plan) -> list[tuple[int, np.ndarray]]:
        """(index, bytes) of the images of a plan that DALI cannot decode.

        Alone, those that Pillow refuses; if it is none of these, all the others by bisection.
        """

        def search(rows: list[int]) -> list[int]:
            batch = [plan.encoded[row] for row in rows]
            try:
                _decode_pipeline(batch, batch_size=len(batch), prefetch_queue_depth=1, **self._common).run()
            except RuntimeError:
                middle = len(rows) // 2
                return search(rows[:middle]) + search(rows[middle:]) if middle else rows
            return []

        damaged = [row for row, encoded in enumerate(plan.encoded) if not _readable(encoded)]
        refused = [row for row in damaged if search([row])]
        refused = refused or search([row for row in range(len(plan.encoded)) if row not in damaged])
        return [(int(plan.ids[row]), plan.encoded[row]) for row in refused]

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
        self._drain()
        self._executor.shutdown(wait=True, cancel_futures=True)


def _unusual(encoded: np.ndarray) -> bool:
    """Whether Pillow shall look first: GIF, which DALI does not know, and JPEGs with a header out of the ordinary.

    Such a header may mean another size to DALI than to Pillow, and two images in a batch that DALI 2.4 cannot parse
    may end the process (5 of 40 batches with eight among 50).
    """
    head = bytes(encoded[:4])
    return head == b"GIF8" or head.startswith(MAGIC) and jpeg_header(encoded) is None


def _readable(encoded: np.ndarray) -> bool:
    try:
        decode(encoded)
    except DecodeError:
        return False
    return True


def _as_ppm(pixels: np.ndarray) -> np.ndarray:
    """Pixels as an uncompressed PPM file: how decoded images enter a pipeline that expects encoded ones."""
    header = b"P6\n%d %d\n255\n" % (pixels.shape[1], pixels.shape[0])
    return np.frombuffer(header + pixels.tobytes(), dtype=np.uint8)


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
    inputs = iter(fn.external_source(source=feed, num_outputs=1 + 2 * sum(v.count for v in views), no_copy=True))
    images = _decode(next(inputs), decoder)
    outputs = []
    for view in views:
        corners = [next(inputs) for _ in range(view.count)]
        shapes = [next(inputs) for _ in range(view.count)]
        kind = _INTERPOLATION[view.interpolation]
        for corner, shape in zip(corners, shapes):
            crop = fn.slice(images, corner, shape, axis_names="HW", normalized_anchor=False, normalized_shape=False)
            outputs.append(fn.resize(crop, size=[view.size, view.size], interp_type=kind, antialias=view.antialias))
    return tuple(outputs)
