"""What others use to make the same views: a function each, as short as its library allows.

Each takes the images, the `ViewSpec`s, the number of workers and the batch size, and gives an endless iterator of
batches: a list with one float tensor (B, 3, size, size) per view and copy. The images are a folder, or what `prepare`
has made of it. `PEERS` says where the function is, which package it needs, and in what its augmentation differs from
ours.
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
    prepare: str = ""  # module:function(folder, out): writes the images in the peer's own format to `out`

    @property
    def missing(self) -> bool:
        try:
            return importlib.util.find_spec(self.package) is None
        except ModuleNotFoundError:  # not even the package that it is a part of
            return True

    def load(self, path: str = "") -> Callable:
        """The peer's function, or another of its functions."""
        module, _, name = (path or self.path).partition(":")
        return getattr(importlib.import_module(f".{module}", __package__), name)


_V2 = "torchvision v2's transforms"
_AREA = "crops average areas; no hue, gray or blur; decodes anew for every view"
_FOLDED = "colours folded into one matrix without clamps in between, hue as a rotation, crops not antialiased"
PEERS = {
    "torchvision": Peer("torchvision", "torchvision", "folders:torchvision_pil", "jitter in bytes"),
    "torchvision v2": Peer("torchvision", "torchvision", "folders:torchvision_v2", "jitter in bytes"),
    "timm": Peer("timm", "timm", "folders:timm", "blur by Pillow's boxes, jitter always"),
    "lightly": Peer("lightly", "lightly", "folders:lightly", "jitter in bytes; multi-crop decodes once as well"),
    "albumentations": Peer("albumentations", "albumentations", "folders:albumentations", "crops are not antialiased"),
    "kornia": Peer("kornia", "kornia", "folders:kornia", "crops by torchvision, colours batched in the main process"),
    "opencv by hand": Peer("cv2", "opencv-python", "opencv:by_hand", _FOLDED),
    "webdataset": Peer("webdataset", "webdataset", "tars:webdataset", _V2, "tars:write"),
    "dali": Peer("nvidia.dali", "nvidia-dali-cuda130", "dali:dali", "jitter in one order, contrast around mid-gray"),
    "ffcv": Peer("ffcv", "ffcv", "ffcv:ffcv", _AREA, "ffcv:write"),
    "ffcv raw": Peer("ffcv", "ffcv", "ffcv:ffcv", f"{_AREA}; holds pixels, 3 bytes each", "ffcv:write_raw"),
}
