"""Triton's own output, executed: every operator's first case, against the interpreter, users' races, planted faults."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from headrace.kernels.check import relative_error, values_and_gradients  # noqa: E402
from headrace.kernels.proof.translate import covered  # noqa: E402
from headrace.kernels.registry import operator, operator_names, resolve  # noqa: E402

GUIDE = Path(__file__).parents[3] / "docs" / "kernels.md"
WITHOUT = {key: value for key, value in os.environ.items() if key not in ("TRITON_INTERPRET", "HEADRACE_KERNELS")}
COMPARED = {  # operator -> a case in float32, where executor and interpreter differ by the order of sums alone
    "patch_loss": "p14-odd-grid",
    "token_mix": "mix-fp32",
    "window_attention": "w7-shift",
    "info_nce": "queue-odd-width",
    "prototype_ce": "dino-no-center",
}
EXECUTE = """
import sys, torch
from headrace.kernels.check import values_and_gradients
from headrace.kernels.proof.launches import executed
from headrace.kernels.registry import operator, resolve
found = {}
for name, case_id in zip(sys.argv[2::2], sys.argv[3::2]):
    op = operator(name)
    function = resolve(op, "triton").load()
    args, kwargs = next(case for case in op.cases if case.id == case_id).arguments()
    with executed("sm_90") as findings:
        found[name] = values_and_gradients(op, lambda *t: op.run("triton", function, t, kwargs), args)
    assert findings.launches and not findings, findings.lines()
torch.save(found, sys.argv[1])
"""


def run(*command, path=None, code=0):
    environment = {**WITHOUT, "PYTHONPATH": f"{path}:{WITHOUT.get('PYTHONPATH', '')}"} if path else WITHOUT
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, env=environment)
    assert code is None or done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def check(*arguments, **options):
    return run("-m", "headrace.cli", "kernels", "check", *arguments, **options)


def test_the_first_case_of_every_operator():
    out = check("--execute", "sm_90", "--first")
    with_kernels = [
        name for name in operator_names() if any(i.name == "triton" for i in operator(name).implementations)
    ]
    assert [line.split()[0] for line in out.splitlines()[1:-1]] == with_kernels
    assert re.search(rf"checks of {len(with_kernels)} cases executed for sm_90, 0 failed$", out.strip())


def test_it_computes_what_the_interpreter_computes(tmp_path):
    chosen = {name: next((c.id for c in operator(name).cases if c.id == case), None) for name, case in COMPARED.items()}
    chosen = {name: case for name, case in chosen.items() if case}
    assert len(chosen) >= 4
    run("-c", EXECUTE, tmp_path / "found.pt", *[word for pair in chosen.items() for word in pair])
    executed = torch.load(tmp_path / "found.pt")
    for name, case_id in chosen.items():
        op = operator(name)
        function = resolve(op, "triton").load()
        args, kwargs = next(case for case in op.cases if case.id == case_id).arguments()
        interpreted = values_and_gradients(op, lambda *t: op.run("triton", function, t, kwargs), args)  # noqa: B023
        for key, value in interpreted.items():
            assert relative_error(executed[name][key], value) < 2e-6, (name, key)


USERS = """
import torch, triton, triton.language as tl
from headrace.kernels import Implementation

@triton.jit
def sums(prediction, images, hidden, loss, VALUES: tl.constexpr, BLOCK: tl.constexpr):
    patch, value = tl.program_id(0), tl.arange(0, BLOCK)
    guess = tl.load(prediction + patch * VALUES + value, mask=value < VALUES, other=0.0)
    aim = tl.load(images + patch * VALUES + value, mask=value < VALUES, other=0.0)
    seen = tl.load(hidden + patch).to(tl.float32)
    error = tl.sum((guess - aim) * (guess - aim), 0) * seen
    before = tl.load(loss)
    tl.store(loss, before + error)  # HERE

def patch_loss(images, prediction, hidden, *, patch_size, normalize=True, absolute=False, eps=1e-6):
    batch, patches, values = prediction.shape
    side, p = images.shape[2] // patch_size, patch_size
    cut = images.reshape(batch, -1, side, p, images.shape[3] // p, p).permute(0, 2, 4, 3, 5, 1)
    cut = cut.reshape(prediction.shape).float().contiguous()
    if normalize:
        variance, mean = torch.var_mean(cut, -1, keepdim=True)
        cut = (cut - mean) / (variance + eps).sqrt()
    loss = torch.zeros((), dtype=torch.float32, device=images.device)
    if prediction.numel():
        sums[(batch * patches,)](prediction.float().contiguous(), cut, hidden.contiguous().to(torch.uint8), loss,
                                 VALUES=values, BLOCK=triton.next_power_of_2(values))
    return loss / (hidden.sum().clamp(min=1) * values)

mine = Implementation("mine", patch_loss, lambda device, dtype, *sizes: None if device == "cuda" else "needs a GPU")
"""


def test_a_race_in_a_users_kernel_is_told_with_its_line(tmp_path):
    """Programs that add to one number without an atomic: an interpreter, which has one after the other, is content."""
    (tmp_path / "mine.py").write_text(USERS)
    line = 1 + USERS.splitlines().index(next(text for text in USERS.splitlines() if "# HERE" in text))
    out = check("patch_loss", "mine.mine", "--execute", "sm_90", "--first", path=tmp_path, code=1)
    assert re.search(rf"patch_loss mine p16-bf16: race in `loss`: .* at mine.py:({line}|{line - 1}) ", out), out
    mended = USERS.replace("    before = tl.load(loss)\n", "").replace(
        "tl.store(loss, before + error)", "tl.atomic_add(loss, error)"
    )
    (tmp_path / "mine.py").write_text(mended)
    out = check("patch_loss", "mine.mine", "--execute", "sm_90", "--first", path=tmp_path, code=None)
    assert "race in" not in out and "repeatable" not in out, out


def test_the_guides_kernel(tmp_path):
    for name in ("my_attention.py", "my_triton.py"):
        block = re.search(rf"```python\n(# {name}\n.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
        (tmp_path / name).write_text(
            block.group(1).replace("ds @ k, ds.mT @ q", "ds @ k * ctx.scale, ds.mT @ q * ctx.scale")
        )
    out = check("window_attention", "my_triton.attention", "--execute", "sm_90", "--first", path=tmp_path)
    assert re.search(r"my_triton +w7-shift-bf16 +12 of 12 ", out) and "0 failed" in out


def test_planted_faults_are_found():
    out = run("-m", "headrace.kernels.proof.mutants", "--every", "6")
    found, effective = map(int, re.search(r"(\d+) of (\d+) faults with an effect found", out).groups())
    assert effective >= 20 and found >= 0.85 * effective, out


def test_what_cannot_be_executed_is_refused(tmp_path):
    out = check("patch_loss", "reference", "--execute", "sm_90", code=2)
    assert "launched no Triton kernel" in out and "Traceback" not in out
    done = subprocess.run(
        [sys.executable, "-m", "headrace.cli", "kernels", "check", "patch_loss", "--execute", "sm_90"],
        capture_output=True,
        text=True,
        env={**WITHOUT, "TRITON_INTERPRET": "1"},
    )
    assert done.returncode == 2 and "unset it" in done.stderr
    assert "give --execute" in check("patch_loss", "--pessimistic", code=2)


def test_the_guide_lists_what_is_covered():
    table = GUIDE.read_text(encoding="utf-8").partition("| PTX | what of it |")[2].partition("\n\n")[0]
    listed = [word for row in table.splitlines()[2:] for word in re.findall(r"`([a-z0-9]+)`", row.split("|")[1])]
    assert sorted(listed) == covered()
