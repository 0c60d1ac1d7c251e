"""What the roofline counts, beside counts by hand; and that it runs the real host code for a GPU that is not there."""

import json
import os
import re
import subprocess
import sys

import pytest

from headrace.kernels.proof import sass
from headrace.kernels.proof.roofline import GPUS, _executed, _loops
from headrace.kernels.proof.translate import Translator

SASS = """
	.text.kernel:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/                   HGMMA.64x64x16.F32 R8, R4, gdesc[UR4] ;
.L_x_1:
        /*0020*/                   LDG.E.128 R4, [R2] ;
        /*0030*/                   FADD R5, R5, R4 ;
.L_x_2:
        /*0040*/              @!P0 LDG.E.U16 R6, [R2] ;
        /*0050*/                   FFMA R8, R4, R5, R6 ;
        /*0060*/               @P0 BRA `(.L_x_2) ;
        /*0070*/               @P1 BRA `(.L_x_1) ;
        /*0080*/                   STG.E.64 [R2], R4 ;
        /*0090*/                   EXIT ;
.L_x_3:
        /*00a0*/                   BRA `(.L_x_3);
        /*00b0*/                   NOP ;
"""
PTX = """
.visible .entry kernel(
	.param .u64 kernel_param_0
)
.reqntid 32
{
	.reg .pred 	%p<3>;
	.reg .b32 	%r<9>;
	.reg .b64 	%rd<3>;
	ld.param.b64 %rd1, [kernel_param_0];
	mov.u32 %r1, 0;
$L__BB0_1:
	ld.global.b32 %r2, [%rd1];
$L__BB0_2:
	ld.global.b32 %r3, [%rd1];
	setp.lt.s32 %p1, %r1, 5;
	@%p1 bra $L__BB0_2;
	@%p2 bra $L__BB0_1;
	st.global.b32 [%rd1], %r1;
	ret;
$L__func_end0:
}
"""


def test_loops_and_kinds_of_machine_code():
    code = sass.parse(SASS)
    assert len(code.instructions) == 11
    assert code.loops == (sass.Loop(2, 7), sass.Loop(4, 6)) and sass.innermost(code) == [sass.Loop(4, 6)]
    assert sass.summary(code) == (1, (128 + 16) // 2, 3)
    assert sass.summary(sass.Code(code.instructions, ())).loop == 11
    kinds = sass.kinds(code.instructions)
    assert (kinds["LDG 128"], kinds["LDG 16"], kinds["STG 64"], kinds["HGMMA"]) == (1, 1, 1, 1)


def test_turns_of_the_ptx_weigh_the_machine_code():
    """Two instructions before, three of the outer loop alone 4 times, three of the inner one 20 times, three after."""
    code, kernel = sass.parse(SASS), Translator(PTX)
    assert [tuple(loop) for loop in _loops(kernel)] == [(1, 3), (2, 2)]
    visits = {0: 1, 1: 4, 2: 20, 3: 4, 4: 1}
    assert _executed(code, kernel, visits) == pytest.approx(2 + 3 * 4 + 3 * 20 + 3, rel=0.02)


def test_a_workload_on_a_gpu_that_is_not_there():
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    script = """
import json, sys
from headrace.kernels.proof import roofline
from headrace.kernels.check import poisoned_memory
found = list(roofline.rows("sm_90", ["token_mix"], "prediction"))
with poisoned_memory():  # host code looks up neighbours that nobody has written
    (looked_up,) = roofline.rows("sm_90", ["koleo"], "4096 rows")
assert len(looked_up.kernels) == 1
print(json.dumps([[row.phase, row.bytes, row.bound, row.target, [k[:3] for k in row.kernels]] for row in found]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    (forward, backward) = json.loads(done.stdout)
    assert (forward[0], backward[0]) == ("forward", "backward")
    assert forward[1] == pytest.approx(1e6 * 77.1e6 / GPUS["sm_90"].bandwidth, rel=0.01)
    for _, data, bound, target, kernels in (forward, backward):
        assert data <= bound <= target and kernels
        assert all(len(grid) == 1 and grid[0] > 1000 for _, grid, _ in kernels)
    assert not re.search("Traceback|Warning", done.stderr)
