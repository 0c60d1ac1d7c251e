"""ONNX files of encoders."""

from __future__ import annotations

import copy
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import nn

from ... import kernels
from ...errors import UserError
from ...models.backbones.windows import WindowBlock

_OPERATORS = ("window_attention", "segment_attention", "biased_attention")  # of encoders; ONNX takes plain PyTorch
CALL = "model.run(None, {'images': images.numpy()})[0]"


def write(encoder: nn.Module, size: int, path: Path) -> None:
    """images (B, 3, size, size) -> features (B, D), for any B. Raises `UserError` without the packages it takes."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError:
        raise UserError("--to onnx: needs two more packages; pip install onnx onnxscript") from None
    images = torch.zeros(2, 3, size, size)
    encoder = copy.deepcopy(encoder)
    without_segments(encoder)
    with torch.no_grad(), ExitStack() as stack:
        for operator in _OPERATORS:
            stack.enter_context(kernels.use(operator, "reference"))
        torch.onnx.export(
            encoder,
            (images,),
            str(path),
            input_names=["images"],
            output_names=["features"],
            dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
            external_data=False,
            verbose=False,
        )


def without_segments(encoder: nn.Module) -> None:
    """Makes large windows attend all in all and mask, with the same results.

    Sorting a window's tokens by their segments saves time, but what is sorted depends on values: no graph of shapes
    alone can hold it.
    """
    for block in encoder.modules():
        if isinstance(block, WindowBlock):
            block.segments = lambda *_: None
