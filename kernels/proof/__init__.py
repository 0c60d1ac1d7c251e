"""Compiled kernels held to account without a GPU.

    ptx.py         PTX -> instructions, each with the line of its source
    memory.py      bounds, alignment, unwritten reads, races between warps and between blocks
    numbers.py     arithmetic where numpy's differs; the errors of approximate instructions
    matrices.py    tensor cores: fragments, descriptors, products
    expressions.py arithmetic instructions -> numpy       transfers.py   those that move data or meet at barriers
    translate.py   a kernel -> a Python function          chunk.py       the blocks that it runs side by side
    execute.py     every block of a launch
    launches.py    takes Triton's launches: to execute, or to look at
    sass.py        machine code: loops, widths             roofline.py    bounds of workloads from it
    tf32.py        products that a GPU rounds and a CPU does not, in the source
    mutants.py     plants faults in our kernels and counts how many are found

`headrace kernels check OP [IMPL] --execute sm_90` is what all this is for. The compiler's output runs: what its passes
over layouts, shared memory and barriers do is executed, which Triton's interpreter knows nothing of. Not modelled:
time, and what `ptxas` makes of the PTX.
"""

EXECUTED = ("sm_80", "sm_90")  # architectures whose PTX can be executed
