"""Triton's own output, executed: every operator's first case, against the interpreter, users' races, planted faults."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from headrace.kernels.check import relative_error, values_and_gradients  # noqa: E402
from headrace.kernels.commands import main  # noqa: E402
from headrace.kernels.proof.translate import covered  # noqa: E402
from headrace.kernels.registry import operator, operator_names, resolve  # noqa: E402

pytestmark = pytest.mark.timeout(900)  # the first test waits for all that is compiled and executed
GUIDE = Path(__file__).parents[3] / "docs" / "kernels.md"
WITHOUT = {key: value for key, value in os.environ.items() if key not in ("TRITON_INTERPRET", "HEADRACE_KERNELS")}
COMPARED = {  # operator -> a case in float32, where executor and interpreter differ by the order of sums alone
    "patch_loss": "p14-odd-grid",
    "token_mix": "mix",
    "window_attention": "w7-shift",
    "info_nce": "queue-odd-width",
    "prototype_ce": "dino-no-center",
}
CHECK = ("--execute", "sm_90", "--first")
COMMANDS = {  # name -> arguments of `headrace kernels check`, its exit code
    "all": (CHECK, 0),
    "race": (("patch_loss", "mine.mine", *CHECK), 1),
    "mended": (("patch_loss", "mended.mine", *CHECK), None),
    "broken": (("patch_loss", "broken.mine", *CHECK), 1),
    "guide": (("window_attention", "my_triton.attention", *CHECK), 0),
    "no kernel": (("patch_loss", "reference", *CHECK), 2),
    "alone": (("patch_loss", "--pessimistic"), 2),
}
# All in one process without the interpreter, which these tests run in.
SCRIPT = """
import contextlib, io, json, sys, torch
from headrace.kernels.commands import main
from headrace.kernels.check import values_and_gradients
from headrace.kernels.proof import mutants
from headrace.kernels.proof.launches import executed
from headrace.kernels.registry import operator, resolve

commands, compared = json.loads(sys.argv[2])
said = {}
for name, words in commands.items():
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        code = main(["check", *words])
    said[name] = code, out.getvalue()
values = {}
for name, case_id in compared.items():
    op = operator(name)
    function = resolve(op, "triton").load()
    args, kwargs = next(case for case in op.cases if case.id == case_id).arguments()
    with executed("sm_90") as findings:
        values[name] = values_and_gradients(op, lambda *t: op.run("triton", function, t, kwargs), args)
    assert findings.launches and not findings, findings.lines()
with contextlib.redirect_stdout(io.StringIO()) as out:
    mutants.main(["--every", "6"])
torch.save((said, values, out.getvalue()), sys.argv[1])
"""


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


@pytest.fixture(scope="module")
def carried_out(tmp_path_factory):
    """-> name of a command -> what it printed; operator -> values and gradients; the table of planted faults."""
    folder = tmp_path_factory.mktemp("executed")
    (folder / "mine.py").write_text(USERS)
    mended = USERS.replace("    before = tl.load(loss)\n", "")
    (folder / "mended.py").write_text(mended.replace("tl.store(loss, before + error)", "tl.atomic_add(loss, error)"))
    (folder / "broken.py").write_text(USERS.replace("before = tl.load(loss)", "before = tl.load(loss) + nothing"))
    for name in ("my_attention.py", "my_triton.py"):
        block = re.search(rf"```python\n(# {name}\n.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
        (folder / name).write_text(block.group(1))
    commands = {name: words for name, (words, _) in COMMANDS.items()}
    environment = {**WITHOUT, "PYTHONPATH": f"{folder}:{WITHOUT.get('PYTHONPATH', '')}"}
    command = [sys.executable, "-c", SCRIPT, folder / "found.pt", json.dumps((commands, COMPARED))]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    said, values, table = torch.load(folder / "found.pt")
    for name, (_, code) in COMMANDS.items():
        assert code in (None, said[name][0]), said[name]
    return {name: text for name, (_, text) in said.items()}, values, table


def test_the_first_case_of_every_operator(carried_out):
    out = carried_out[0]["all"]
    names = [name for name in operator_names() if any(i.name == "triton" for i in operator(name).implementations)]
    assert [line.split()[0] for line in out.splitlines()[1:-1]] == names
    assert re.search(rf"checks of {len(names)} cases executed for sm_90, 0 failed$", out.strip())
    assert "not supported" not in out


@pytest.mark.parametrize("name", COMPARED)
def test_it_computes_what_the_interpreter_computes(carried_out, name):
    op = operator(name)
    function = resolve(op, "triton").load()
    args, kwargs = next(case for case in op.cases if case.id == COMPARED[name]).arguments()
    interpreted = values_and_gradients(op, lambda *t: op.run("triton", function, t, kwargs), args)
    for key, value in interpreted.items():
        assert relative_error(carried_out[1][name][key], value) < 2e-6, key


def test_a_race_in_a_users_kernel_is_told_with_its_line(carried_out):
    """Programs that add to one number without an atomic: an interpreter, which has one after the other, is content."""
    line = 1 + next(number for number, text in enumerate(USERS.splitlines()) if "# HERE" in text)
    out = carried_out[0]["race"]
    assert re.search(rf"patch_loss mine p16-bf16: race in `loss`: .* at mine.py:({line}|{line - 1}) ", out), out
    assert "race in" not in carried_out[0]["mended"], carried_out[0]["mended"]


def test_a_kernel_that_does_not_compile_is_told_as_that(carried_out):
    out = carried_out[0]["broken"]
    assert "runs: CompilationError" in out and "nothing is not defined" in out


def test_the_guides_kernel(carried_out):
    out = carried_out[0]["guide"]
    assert re.search(r"my_triton +w7-shift-bf16 +12 of 12 ", out) and "0 failed" in out


def test_planted_faults_are_found(carried_out):
    found, effective = map(int, re.search(r"(\d+) of (\d+) faults with an effect found", carried_out[2]).groups())
    assert effective >= 20 and found >= 0.85 * effective, carried_out[2]


def test_what_cannot_be_executed_is_refused(carried_out, capsys):
    assert "launched no Triton kernel" in carried_out[0]["no kernel"]
    assert "give --execute" in carried_out[0]["alone"]
    assert main(["check", "patch_loss", *CHECK]) == 2
    assert "TRITON_INTERPRET=1 leaves nothing to compile; unset it" in capsys.readouterr().err


def test_the_guide_lists_what_is_covered():
    table = GUIDE.read_text(encoding="utf-8").partition("| PTX | what of it |")[2].partition("\n\n")[0]
    listed = [word for row in table.splitlines()[2:] for word in re.findall(r"`([a-z0-9]+)`", row.split("|")[1])]
    assert sorted(listed) == covered()
