"""Benchmarks: figures by formula, contenders that fail or lack a backward, and the machinery of the long run."""

import importlib
import inspect
import json
from dataclasses import asdict

import pytest
import torch

from headrace.benchmarks import kernels as long_run
from headrace.errors import UserError
from headrace.kernels import bench, operator, registry
from headrace.kernels.commands import main
from headrace.kernels.patch_loss.reference import patch_loss as reference

OP = operator("patch_loss")


@pytest.fixture(autouse=True)
def quick_ceilings(monkeypatch):
    monkeypatch.setattr(bench, "ceilings", lambda device: bench.Ceilings(2e10, 1e12))


def rows(*functions):
    implementations = [registry.resolve(OP, function) for function in functions]
    return list(bench.bench(OP, OP.cases[1], implementations, "cpu"))


def test_fractions_are_of_the_least_possible_time():
    figures = bench._figures(bench.Times(90, 100, 120), 10**6, 2 * 10**7, bench.Ceilings(2e10, 1e12))
    assert (figures["us_p20"], figures["us_p50"], figures["us_p80"]) == (90, 100, 120)
    assert figures["gbps"] == pytest.approx(10) and figures["tflops"] == pytest.approx(0.2)
    assert figures["frac_bw"] == pytest.approx(0.5) and figures["frac_flop"] == pytest.approx(0.2)
    assert figures["frac_roofline"] == pytest.approx(0.5)


def test_rows_carry_the_cost_and_the_error_of_what_was_timed():
    def tenth_too_much(images, prediction, hidden, **options):
        return 1.1 * reference(images, prediction, hidden, **options)

    forward, both, wrong_forward, wrong_both = rows("reference", tenth_too_much)
    args, kwargs = OP.cases[1].arguments()
    cost = OP.cost(*args, **kwargs)
    assert (forward.dir, both.dir) == ("forward", "forward+backward") == (wrong_forward.dir, wrong_both.dir)
    assert (both.bytes_min, both.flops) == (cost.bytes, cost.flops)
    assert (forward.bytes_min, forward.flops) == (cost.forward_bytes, cost.forward_flops)
    for row in (forward, both):
        assert row.us_p20 <= row.us_p50 <= row.us_p80
        assert row.gbps == pytest.approx(row.bytes_min / row.us_p50 / 1e3)
        assert max(row.rel_err.values()) < 1e-6 and row.bit_repro
    assert wrong_both.rel_err == pytest.approx({"value": 0.1, "gradient of prediction": 0.1}, rel=1e-4)


def test_whoever_fails_gets_a_row_and_the_others_go_on():
    def breaks(images, prediction, hidden, **options):
        raise RuntimeError("out of shared memory\nand more")

    def refuses(device, dtype, patch_size, channels):
        return "patches are odd"

    picky = registry.Implementation("picky", reference, refuses)
    found = rows(breaks, picky, "reference")
    assert [row.note for row in found] == [
        "RuntimeError: out of shared memory",
        "not supported: patches are odd",
        "",
        "",
    ]
    assert [row.us_p50 is None for row in found] == [True, True, False, False]


def test_the_interpreter_is_not_timed(user_module, capsys):
    pytest.importorskip("triton")
    user_module("import triton\ndef kernel(i, p, h, **o): return reference(i, p, h, **o)\n")
    for choice in ("triton", "my_kernels.kernel"):
        with pytest.raises(UserError, match="interpreter on a CPU, whose time says nothing"):
            bench.contenders(OP, [choice], "cpu")
    assert main(["bench", "patch_loss", "triton", "--device", "cpu"]) == 2
    assert [implementation.name for implementation in bench.contenders(OP, [], "cpu")] == ["reference", "compiled"]


def test_command_prints_and_remembers(user_module, capsys, monkeypatch):
    user_module("def kernel(i, p, h, **o): return reference(i, p.detach(), h, **o)\n")
    contenders = bench.contenders
    monkeypatch.setattr(bench, "contenders", lambda *a: [c for c in contenders(*a) if c.name != "compiled"])
    assert main(["bench", "patch_loss", "my_kernels.kernel", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "copies 20 GB/s, multiplies matrices at 1.00 TFLOP/s" in out
    assert sum(line.split()[:1] == ["patch_loss"] for line in out.splitlines()) == 4
    assert "my_kernels.kernel has no backward of its own: forward+backward has the reference's" in out
    assert main(["--device", "cpu"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("patch_loss")]
    assert "p16-bf16 forward+backward" in line and "of roofline" in line


@pytest.mark.parametrize("name", ["window_attention", "segment_attention", "biased_attention"])
def test_peers_compute_the_same(name):
    op = operator(name)
    math = importlib.import_module(f"headrace.kernels.{name}.workloads").peers()["sdpa math"]
    compared = 0
    for case in op.cases:
        args, kwargs = case.arguments()
        if args[0].dtype == torch.float32 and args[0].numel():
            expected = op.reference(*args, **kwargs)
            torch.testing.assert_close(math(*args, **kwargs), expected, rtol=1e-4, atol=1e-5, msg=case.id)
            compared += 1
    assert compared > 2


def test_workloads_fit_their_operators():
    """Drawn on the meta device: shapes and dtypes without the memory."""
    for path in sorted(long_run.RESULTS.parents[1].glob("kernels/*/workloads.py")):
        op = operator(path.parent.name)
        ids = [case.id for case in bench.workloads(op, "cuda")]
        assert len(ids) == len(set(ids)) > 0
        for case in bench.workloads(op, "cuda"):
            with torch.device("meta"):
                args, kwargs = case.arguments()
            inspect.signature(op.reference).bind(*args, **kwargs)
            typical, _ = op.cases[0].arguments()
            assert args[0].dim() == typical[0].dim() and args[0].device.type == "meta"


def test_the_long_run_needs_a_gpu_or_says_so(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert long_run.main([]) == 2
    said = capsys.readouterr().err
    assert "no GPU" in said and said.count("\n") == 1


def test_the_long_run_on_a_cpu_writes_every_row(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(long_run, "order", lambda op, device: [registry.resolve(op, "reference")])
    assert long_run.main(["--tiny", "--ops", "patch_loss", "--minutes", "2", "--out", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("kernels-cpu-*.jsonl")
    header, check, forward, both = map(json.loads, path.read_text().splitlines())
    assert (header["kind"], header["torch"]) == ("header", torch.__version__)
    assert (check["kind"], check["failed"]) == ("check", 0) and check["passed"] > 100
    assert [row["dir"] for row in (forward, both)] == ["forward", "forward+backward"] and both["us_p50"] > 0
    assert f"2 rows in {path}" in capsys.readouterr().out


def test_a_run_out_of_time_names_what_it_left_out():
    deadline = long_run.Deadline(0)
    found = list(long_run.timings(OP, "cpu", deadline))
    assert [(row.impl, row.note) for row in found] == [("reference", "out of time"), ("compiled", "out of time")]


def test_stages_share_the_time(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(long_run.time, "monotonic", lambda: now[0])
    deadline = long_run.Deadline(10)
    end = 600 * (1 - long_run.RESERVE)
    deadline.stage(0.25)
    assert deadline.left() == pytest.approx(end / 4)
    now[0] += 10  # what a stage does not need is the next one's
    deadline.stage(0.5)
    assert deadline.left() == pytest.approx((end - 10) / 2)
    now[0] += 600
    assert deadline.left() == 0


def test_rows_as_markdown(tmp_path, capsys):
    facts = {"kind": "header", "gpu": "A GPU", "torch": "2", "triton": "3", "copy_tbps": 4.3, "gemm_tflops": 790}

    def row(impl, direction, us, fraction=None):
        times = {"us_p50": us, "frac_roofline": fraction}
        return {"kind": "time", **asdict(bench.Row("patch_loss", impl, "B=512", "", "bfloat16", direction)), **times}

    both = "forward+backward"
    lines = [facts, row("triton", "forward", 50.0), row("triton", both, 120.4, 0.754), row("reference", both, 1794.0)]
    lines += [row("other", both, 300.0), row("another", both, 200.0), row("compiled", both, None)]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    assert long_run.main(["--table", str(path)]) == 0
    *_, line = capsys.readouterr().out.splitlines()
    assert line == "| patch_loss | B=512 | forward+backward | 120 | 75% | 1794 |  | 200 another |"
