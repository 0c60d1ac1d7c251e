"""One of two processes: the first is in a collective, the second waits to be hurried before it joins.

Started with RANK, WORLD_SIZE and an address; prints "asked" when it waits, and at the end how often it was hurried.
"""

import threading

import torch

from headrace.train.engine.distributed import launch
from headrace.train.engine.signals import StopRequest

with launch(torch.device("cpu"), timeout=60) as process:
    hurried = threading.Event()
    with StopRequest(process.control, hurried.set) as stop:
        process.barrier()
        print("ready", flush=True)
        if process.rank == 1:
            assert hurried.wait(30), "nobody said that the run was asked to stop"
        process.barrier()
        answers = [stop.agreed(), stop.agreed()]
    print(stop.signal, answers, hurried.wait(2), flush=True)
