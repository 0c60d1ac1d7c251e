"""What others use to make the same views: a function each, as short as its library allows.

Each takes the folder of images, the `ViewSpec`s, the number of workers and the batch size, and gives an endless
iterator of batches: a list with one float tensor (B, 3, size, size) per view and copy. `PEERS` says where it is, which
package it needs, and in what its augmentation differs from ours.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import NamedTuple


class Peer(NamedTuple):
    package: str  # what has to be installed
    distribution: str  # the name of its version
    path: str  # module:function
    differences: str = ""

    @property
    def missing(self) -> bool:
        return importlib.util.find_spec(self.package) is None

    def load(self) -> Callable:
        module, _, name = self.path.partition(":")
        return getattr(importlib.import_module(f".{module}", __package__), name)


PEERS = {
    "torchvision": Peer("torchvision", "torchvision", "folders:torchvision_pil", "jitter in bytes"),
    "torchvision v2": Peer("torchvision", "torchvision", "folders:torchvision_v2", "jitter in bytes"),
    "timm": Peer("timm", "timm", "folders:timm", "blur by Pillow's boxes, jitter always"),
    "lightly": Peer("lightly", "lightly", "folders:lightly", "jitter in bytes; multi-crop decodes once as well"),
    "albumentations": Peer("albumentations", "albumentations", "folders:albumentations", "crops are not antialiased"),
    "kornia": Peer("kornia", "kornia", "folders:kornia", "crops by torchvision, colours batched in the main process"),
    "webdataset": Peer("webdataset", "webdataset", "tars:webdataset", "torchvision v2's transforms"),
    "dali": Peer("nvidia.dali", "nvidia-dali-cuda130", "dali:dali", "jitter in one order, contrast around mid-gray"),
}
