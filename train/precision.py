"""Which precision a device is good at, and what another one costs there."""

from __future__ import annotations

from pathlib import Path

import torch

from .engine.distributed import Launch

_FLAG_LINES = ("flags", "Featu")  # of x86 and of Arm
_CPU_FLAGS = {"bf16": {"avx512_bf16", "amx_bf16", "bf16"}, "fp16": {"avx512_fp16", "amx_fp16", "asimdhp"}}


def native(precision: str, device: torch.device, processor: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the device has instructions for bf16 or fp16; the others are made of those for fp32, on CPUs at many
    times the cost."""
    if precision == "fp32":
        return True
    if device.type == "cuda":
        return bool(torch.version.hip) or precision == "fp16" or torch.cuda.get_device_capability(device) >= (8, 0)
    try:
        flags = next(line for line in processor.read_text(encoding="utf-8").splitlines() if line[:5] in _FLAG_LINES)
    except (OSError, StopIteration):  # not Linux
        return False
    return not _CPU_FLAGS[precision].isdisjoint(flags.split())


def resolved(choice: str, process: Launch) -> str:
    """What a run computes in: for auto bf16 if all of its devices have it, else fp32; any other choice as it is."""
    if choice != "auto":
        return choice
    return "bf16" if all(process.gather(native("bf16", process.device))) else "fp32"


def cost(choice: str, device: torch.device) -> str | None:
    """What to tell someone whose explicit choice this device has no instructions for."""
    if choice == "auto" or native(choice, device):
        return None
    what = "this GPU" if device.type == "cuda" else "this processor"
    return (
        f"train.precision: {what} has no instructions for {choice}; a step may take 15 times as long as in fp32, which "
        "train.precision=auto would take here"
    )
