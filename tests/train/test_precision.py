"""Precision by what the device has instructions for."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from headrace.train.engine.distributed import ALONE
from headrace.train.precision import cost, native, resolved

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.mark.parametrize(
    "line, bf16, fp16",
    [
        ("flags\t\t: fpu sse avx2 avx512f", False, False),
        ("flags\t\t: fpu avx2 avx512f avx512_bf16", True, False),
        ("flags\t\t: fpu avx2 amx_bf16 amx_tile", True, False),
        ("flags\t\t: fpu avx512_bf16 avx512_fp16", True, True),
        ("Features\t: fp asimd asimdhp", False, True),
        ("Features\t: fp asimd bf16 i8mm", True, False),
        ("model name\t: bf16", False, False),
    ],
)
def test_processors(tmp_path, line, bf16, fp16):
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{line}\n")
    found = [native(precision, CPU, tmp_path / "cpuinfo") for precision in ("bf16", "fp16", "fp32")]
    assert found == [bf16, fp16, True]
    assert not native("bf16", CPU, tmp_path / "none") and native("fp32", CPU, tmp_path / "none")


@pytest.mark.parametrize("capability, bf16", [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_gpus(monkeypatch, capability, bf16):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert native("bf16", GPU) is bf16 and native("fp16", GPU)


def test_auto_is_what_all_devices_have(monkeypatch):
    everyone = SimpleNamespace(device=CPU, gather=lambda mine: [mine, False])
    for has, alone in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr("headrace.train.precision.native", lambda precision, device, has=has: has)
        assert resolved("auto", ALONE) == alone and resolved("auto", everyone) == "fp32"
        assert [resolved(choice, everyone) for choice in ("bf16", "fp16", "fp32")] == ["bf16", "fp16", "fp32"]
        assert cost("auto", CPU) is None
    assert "no instructions for bf16" in cost("bf16", CPU)


def test_a_run_says_what_it_computes_in(tmp_path):
    """On a processor without bf16: auto is fp32, and who asks for bf16 is told what it costs."""
    code = (
        "import sys, headrace.train.precision as p\n"
        "native = p.native\n"
        "p.native = lambda precision, device: precision == 'fp32'\n"
        "from dataclasses import replace\n"
        "from headrace.train.pretrain import pretrain\n"
        "from headrace.train.recipe.recipe import load_recipe, smoke, smoke_images\n"
        "from headrace.train.engine.distributed import ALONE\n"
        "tiny = smoke(load_recipe('mae_vit-tiny', ['train.max_steps=1']))\n"
        "for choice in ('auto', 'bf16'):\n"
        "    train = replace(tiny.train, out=choice, precision=choice)\n"
        "    pretrain(replace(tiny, train=train), ALONE, smoke_images())\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    said = [line.rpartition(", ")[2] for line in ran.stdout.splitlines() if line.startswith("algorithm")]
    assert said == ["fp32 (auto)", "bf16"]
    assert ran.stderr.count("has no instructions for bf16") == 1
