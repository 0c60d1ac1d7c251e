"""A process of `host.py`: what calls of one build's operators cost the host, a turn for every line it reads.

A line is ``operator steps``, the answer a line of JSON. Triton's host code runs down to the launch, which does nothing.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable

if __name__ == "__main__":
    sys.path.pop(0)  # this folder, whose files would hide the build's

import torch  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.runtime import driver  # noqa: E402
from triton.runtime.jit import JITFunction  # noqa: E402

from headrace.kernels import registry  # noqa: E402
from headrace.kernels.bench import training_step  # noqa: E402


class Driver:
    """As much of a GPU's driver as a launch asks for."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


class Kernel:
    """A compiled kernel whose launch is counted and nothing else."""

    function, packed_metadata, launches = 0, (4, 1, 0), 0

    def launch_metadata(self, *arguments: object) -> None:
        return None

    def run(self, *arguments: object) -> None:
        Kernel.launches += 1


def not_compiled(self: JITFunction, key: object, signature: object, device: int, *others: object) -> Kernel:
    return self.device_caches[device][0].setdefault(key, Kernel())


def arguments(op: registry.Operator) -> tuple[tuple, dict]:
    """Small ones: what a CPU computes around the launches would be a GPU's work and is to take no time."""
    if op.name == "window_attention":
        qkv, table = torch.randn(1, 14, 14, 3, 1, 32, dtype=torch.bfloat16), torch.randn(169, 1)
        return (qkv, table), {"window": 7, "shift": 3, "scale": None}
    return op.cases[0].arguments()


def microseconds(step: Callable[[], object], steps: int) -> float:
    """Of this thread's time, median."""
    times = []
    for _ in range(steps):
        began = time.thread_time()
        step()
        times.append(time.thread_time() - began)
    return 1e6 * statistics.median(times)


def measured(name: str, steps: int) -> dict[str, float]:
    op = registry.operator(name)
    implementation = registry.resolve(op, "triton")
    function = implementation.load()
    args, kwargs = arguments(op)

    def run(*tensors: torch.Tensor) -> object:
        return op.run("triton", function, tensors, kwargs)

    # As where a GPU is: no CPU would be given the kernels.
    shape = op.shape_class(*args, **kwargs)
    registry._decisions[name, tuple(shape), None] = registry.Decision(implementation, function, "measured", {})

    def forward() -> None:
        with torch.no_grad():
            run(*args)

    phases = {"forward": forward}
    if op.gradients:
        phases["step"] = training_step(op, run, args)
        phases["chosen"] = training_step(op, lambda *tensors: op(*tensors, **kwargs), args)
    found = {}
    for phase, step in phases.items():
        step()
        before = Kernel.launches
        step()
        found[f"{phase}_launches"] = Kernel.launches - before
        microseconds(step, 30)
        found[phase] = microseconds(step, steps)
    return found


def main() -> None:
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # nobody writes what the launches would have: sums of it may take ten times as long
    driver.set_active(Driver())
    JITFunction._do_compile = not_compiled
    print("ready", flush=True)
    for line in sys.stdin:
        name, steps = line.split()
        print(json.dumps(measured(name, int(steps))), flush=True)


if __name__ == "__main__":
    main()
