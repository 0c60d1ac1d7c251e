"""What is installed of what the data path can use, and how to install the rest."""

from __future__ import annotations

import importlib.util
from importlib import metadata
from pathlib import Path

import torch

from ...pipelines.loaders.choose import DALI_HINT

_PACKAGES = ("torch", "torchvision", "nvidia-dali-cuda130", "nvidia-dali-cuda120", "ffcv", "webdataset", "triton")
_PACKAGES += ("pillow", "simplejpeg")


def versions() -> dict[str, str]:
    """Installed packages that the data path can use, and their versions."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            pass
    return found


def missing_packages() -> dict[str, str]:
    """What is not installed and could be, with the line that does it."""
    lines = {
        "nvidia.dali": DALI_HINT,
        "ffcv": "apt-get install build-essential pkg-config libopencv-dev libturbojpeg0-dev; pip install ffcv",
        "webdataset": "pip install webdataset",
        "triton": "pip install triton",
        "simplejpeg": "pip install simplejpeg (decodes JPEGs in two thirds of Pillow's time)",
    }
    found = {name: line for name, line in lines.items() if not _installed(name)}
    vendors = (path.read_text(encoding="utf-8").strip() for path in Path("/sys/bus/pci/devices").glob("*/vendor"))
    if not torch.cuda.is_available() and "0x10de" in vendors:
        found["GPU driver"] = (
            "a card of NVIDIA's is here: apt-get install nvidia-driver, or pip install torch with CUDA"
        )
    return found


def _installed(name: str) -> bool:
    package = name.partition(".")[0]
    return importlib.util.find_spec(package) is not None and importlib.util.find_spec(name) is not None
