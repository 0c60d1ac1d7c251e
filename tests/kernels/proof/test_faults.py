"""The executor on PTX written by hand: right programs run, and each kind of fault is told with its line."""

import numpy as np
import pytest
import torch

from headrace.kernels.proof.execute import launch
from headrace.kernels.proof.memory import Findings
from headrace.kernels.proof.ptx import Fault, NotCovered, arranged

FRAME = """
.version 8.0
.target sm_90a
.extern .shared .align 16 .b8 global_smem[];
.visible .entry kernel(
	.param .u64 .ptr .global .align 1 kernel_param_0,
	.param .u64 .ptr .global .align 1 kernel_param_1,
	.param .u32 kernel_param_2
)
.reqntid 64
{
	.reg .pred 	%%p<9>;
	.reg .b32 	%%r<20>;
	.reg .b64 	%%rd<20>;
	.loc	1 10 0
	ld.param.b64 	%%rd1, [kernel_param_0];
	ld.param.b64 	%%rd2, [kernel_param_1];
	ld.param.b32 	%%r9, [kernel_param_2];
	mov.u32 	%%r1, %%tid.x;
	mul.wide.u32 	%%rd3, %%r1, 4;
	add.s64 	%%rd4, %%rd1, %%rd3;
	add.s64 	%%rd5, %%rd2, %%rd3;
	shl.b32 	%%r2, %%r1, 2;
%s
	ret;
$L__func_end0:
}
	.file	1 "/somewhere/mine.py"
"""
REVERSED = """
	ld.global.b32 	%r3, [%rd4];
	.loc 1 11 0
	st.shared.b32 	[%r2], %r3;
	BARRIER
	xor.b32 	%r4, %r2, 252;
	.loc 1 13 0
	ld.shared.b32 	%r5, [%r4];
	st.global.b32 	[%rd5], %r5;
"""


def run(body, count=64, out=64, grid=1, number=0):
    """-> what was written, what was found."""
    source = torch.arange(count, dtype=torch.int32) * 7 + 1
    target = torch.zeros(out, dtype=torch.int32)
    findings = Findings()
    values = [source.data_ptr(), target.data_ptr(), number]
    launch(FRAME % body, 256, (grid,), values, [("source", source), ("target", target)], findings)
    return target, findings


def test_values_go_through_shared_memory():
    target, findings = run(REVERSED.replace("BARRIER", "bar.sync 0;"))
    assert target.tolist() == [7 * (63 - i) + 1 for i in range(64)] and not findings
    assert findings.launches == findings.blocks == 1


OUT_OF_LINE = """
	setp.lt.u32 	%p1, %r1, 5;
	mov.u32 	%r3, %r1;
	@%p1 bra 	$L__BB0_2;
$L__BB0_1:
	st.shared.b32 	[%r2], %r3;
	bar.sync 	0;
	xor.b32 	%r4, %r2, 252;
	ld.shared.b32 	%r5, [%r4];
	st.global.b32 	[%rd5], %r5;
	ret;
$L__BB0_2:
	add.s32 	%r3, %r1, 1000;
	bra 	$L__BB0_1;
"""


def test_threads_that_take_a_way_at_the_end_of_the_text_are_waited_for():
    target, findings = run(OUT_OF_LINE)
    assert target.tolist() == [i + 1000 * (i < 5) for i in range(63, -1, -1)] and not findings


@pytest.mark.parametrize(
    ("successors", "order"),
    [
        ([[1, 3], [2], [], [1]], [0, 3, 1, 2]),  # a way at the end of the text, and back
        ([[1], [2, 4], [3], [1], []], [0, 1, 2, 3, 4]),  # a loop before what follows it
        ([[1], [4, 2], [3], [1], []], [0, 1, 2, 3, 4]),
        ([[1], [2, 5], [3], [1, 4], [], [3]], [0, 1, 2, 5, 3, 4]),  # a way at the end, within a loop
        ([[1], [2], [3, 2], [1, 4], []], [0, 1, 2, 3, 4]),  # a loop within a loop
        ([[3], [2], [], [1, 3]], [0, 3, 1, 2]),  # a loop at the end of the text, before the rest
        ([[2], [2], []], [0, 2, 1]),  # nothing leads to it
    ],
)
def test_blocks_follow_all_that_lead_to_them(successors, order):
    found = arranged(successors)
    beside = {2, 5} if len(successors) == 6 else set()  # two ways that may come in either order
    assert [block for block in found if block not in beside] == [block for block in order if block not in beside]
    assert all(order.index(block) == found.index(block) or block in beside for block in order)


def test_a_product_of_64_bits_in_two_halves():
    body = "	mov.u32 	%r3, 4000000007;\n	mad.lo.cc.u32 	%r4, %r3, %r3, 4294967295;\n"
    body += "	madc.hi.u32 	%r5, %r3, %r3, 0;\n"
    body += "	shf.l.wrap.b32 	%r6, %r4, %r5, 7;\n	shf.r.wrap.b32 	%r7, %r4, %r5, 7;\n"
    for place, register in enumerate(("%r4", "%r5", "%r6", "%r7")):
        body += f"	st.global.b32 	[%rd2+{4 * place}], {register};\n"
    target, _ = run(body)
    whole = 4000000007**2 + 4294967295
    expected = [whole, whole >> 32, whole << 7 >> 32, whole >> 7]
    assert [value & 0xFFFFFFFF for value in target.tolist()[:4]] == [value & 0xFFFFFFFF for value in expected]


def test_a_missing_barrier_is_a_race():
    _, findings = run(REVERSED.replace("BARRIER", ""))
    assert findings.lines() == [
        "race in shared memory: read of what another wrote at mine.py:13 (ld.shared.b32) (32 times)",
        "read of unwritten shared memory at mine.py:13 (ld.shared.b32) (32 times)",
    ] or findings.lines()[0].startswith("race in shared memory: read of what another wrote at mine.py:13")


def test_a_warp_may_read_what_it_wrote_itself():
    body = REVERSED.replace("BARRIER", "").replace("xor.b32 	%r4, %r2, 252", "xor.b32 	%r4, %r2, 124")
    assert not run(body)[1]


def test_reading_unwritten_shared_memory():
    _, findings = run("	.loc 1 21 0\n	ld.shared.b32 	%r5, [%r2];\n	st.global.b32 	[%rd5], %r5;")
    assert findings.lines() == ["read of unwritten shared memory at mine.py:21 (ld.shared.b32) (64 times)"]


@pytest.mark.parametrize("blocks", [2, 70], ids=["side by side", "one after the other"])
def test_blocks_that_write_the_same_place_race(blocks):
    body = "	mov.u32 %r4, %ctaid.x;\n	.loc 1 30 0\n	st.global.b32 	[%rd5], %r4;"
    assert not run(body)[1]
    (line,) = run(body, grid=blocks)[1].lines()
    assert line.startswith("race in `target`: two writes at mine.py:30 (st.global.b32)")


def test_blocks_that_write_the_same_value_do_not_race():
    assert not run("	st.global.b32 	[%rd5], %r1;", grid=70)[1]


def test_a_block_that_reads_what_another_writes_races():
    body = "	ld.global.b32 	%r3, [%rd2];\n	.loc 1 31 0\n	mov.u32 %r4, %ctaid.x;\n	setp.eq.s32 %p1, %r4, 1;\n"
    body += "	setp.eq.s32 %p2, %r1, 0;\n	and.pred %p1, %p1, %p2;\n	@%p1 st.global.b32 	[%rd2], %r1;"
    lines = run(body, grid=2)[1].lines()
    assert lines and all("mine.py:31" in line and "`target`" in line for line in lines)


def test_atomics_do_not_race_and_add_up():
    target, findings = run("	red.global.gpu.relaxed.add.u32 	[%rd2], %r1;", grid=3)
    assert target[0] == 3 * sum(range(64)) and not findings


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (
            "	.loc 1 40 0\n	st.global.b32 	[%rd5+4], %r1;",
            "out of bounds.*offset 256 of `target`.*1 threads.*mine.py:40",
        ),
        ("	.loc 1 41 0\n	ld.global.b32 	%r3, [%rd4+2];", "misaligned access of 4 bytes.*mine.py:41"),
        ("	.loc 1 42 0\n	ld.global.v2.b32 	{%r3, %r4}, [%rd4];", "misaligned access of 8 bytes.*mine.py:42"),
        ("	.loc 1 43 0\n	st.shared.b32 	[%r2+4], %r1;", "out of bounds.*shared memory.*mine.py:43"),
        (
            "	setp.lt.u32 %p1, %r1, 32;\n	@%p1 bra $L__BB0_1;\n	.loc 1 44 0\n"
            "	bar.sync 0;\n$L__BB0_1:\n	add.s32 %r1, %r1, 1;",
            "never reach its barrier.*mine.py:44",
        ),
        (
            "	setp.lt.u32 %p1, %r1, 8;\n	@%p1 bra $L__BB0_1;\n	.loc 1 45 0\n"
            "	shfl.sync.bfly.b32 %r4, %r1, 1, 31, -1;\n$L__BB0_1:\n	add.s32 %r1, %r1, 1;",
            "warp diverged.*mine.py:45",
        ),
    ],
    ids=["bounds", "alignment", "vector", "shared", "barrier", "shuffle"],
)
def test_faults_end_the_launch(body, words):
    with pytest.raises(Fault, match=words):
        run(body)


@pytest.mark.parametrize("word", ["tcgen05.mma", "cp.async.bulk", "mbarrier.init.shared::cta.b64"])
def test_what_is_not_covered_is_refused_by_name_and_line(word):
    with pytest.raises(NotCovered, match=rf"^{word} at mine.py:50$"):
        run(f"	.loc 1 50 0\n	{word} %r1, %r2, %r3;")


def test_threads_part_and_meet_again():
    """A loop of as many rounds as the thread's number, in blocks that end at different times."""
    body = """
	mov.u32 %r3, 0;
	mov.u32 %r4, 0;
	mov.u32 %r5, %ctaid.x;
	mad.lo.s32 %r6, %r5, 64, %r1;
	setp.eq.u32 %p2, %r6, 0;
	@%p2 bra $L__BB0_2;
$L__BB0_1:
	add.s32 %r3, %r3, %r4;
	add.s32 %r4, %r4, 1;
	setp.lt.u32 %p1, %r4, %r6;
	@%p1 bra $L__BB0_1;
$L__BB0_2:
	bar.sync 0;
	mul.wide.u32 %rd6, %r6, 4;
	add.s64 %rd7, %rd2, %rd6;
	st.global.b32 [%rd7], %r3;
"""
    target, findings = run(body, out=320, grid=5)
    n = np.arange(320)
    assert target.tolist() == (n * (n - 1) // 2).tolist() and not findings
