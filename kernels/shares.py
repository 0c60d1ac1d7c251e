"""How a long reduction is shared out among programs, so that few rows fill a GPU as well as many."""

from __future__ import annotations

import torch

from .tiles import processors


def shares(rows: int, items: int, block: int, device: torch.device) -> tuple[int, int]:
    """(how many shares, of how many items): `rows` programs each reduce a share of `items`, block by block.

    Shares are whole blocks; there are enough for four programs on each processor, and none is empty but the only one of
    no items. On a CPU, where Triton's interpreter runs, there are a few, so that putting them together is tested.
    """
    blocks = -(-items // block)
    wanted = max(1, min(-(-4 * processors(device, 2) // max(rows, 1)), blocks))
    share = max(1, -(-blocks // wanted)) * block
    return max(1, -(-items // share)), share
