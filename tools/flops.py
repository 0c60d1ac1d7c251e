"""Multiply-adds of an encoder, module by module, counted by torch without computing anything."""

from __future__ import annotations

import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from .exchange.onnx_file import without_segments

# what attention is on CPUs, which torch (2.14) has no count for
_UNKNOWN = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v)
}


def multiply_adds(encoder: nn.Module, size: int) -> dict[str, int]:
    """Path of each module that was called ("" is the whole) -> multiply-adds of one image (3, size, size) in it.

    They are half of what torch counts as operations: matrix products, convolutions and attention; norms and
    activations do not count. `encoder` is built on the meta device, and left with memory that holds nothing.
    """
    encoder = encoder.to_empty(device="cpu").eval()  # memory that is never touched
    without_segments(encoder)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        images = torch.empty(1, 3, size, size)
        with FlopCounterMode(display=False, custom_mapping=_UNKNOWN) as counter:
            encoder(images)
    root = type(encoder).__name__
    counts = {path: sum(found.values()) // 2 for path, found in counter.get_flop_counts().items()}
    return {path[len(root) + 1 :]: count for path, count in counts.items() if (path + ".").startswith(root + ".")}
